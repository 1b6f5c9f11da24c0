"""Evaluation of a model on one part of a cache: ranks, metrics, segments, predictions."""

from __future__ import annotations

__all__ = ["Evaluation", "check_candidates", "evaluate", "evaluate_model", "read_candidates", "simple_model"]

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.catalog import Catalog
from hiertcn.crowd import Crowd
from hiertcn.errors import InputError, nearest
from hiertcn.events import as_logged
from hiertcn.files import written_aside
from hiertcn.metrics import Table, measure
from hiertcn.models import CONFIGS, Model, ModelConfig, VectorConfig, build, trainable
from hiertcn.quarantine import shown
from hiertcn.ranking import Candidates, Ranks, rank, ranking_batches
from hiertcn.sessions import PARTS
from hiertcn.streams import crowd_of, known_rows
from hiertcn.targets import SEGMENTS, Targets
from hiertcn.vectors import Vectors

TOP = 20


@dataclass(frozen=True)
class Evaluation:
    """How a model ranks the targets of one part of a cache: exactly, over the model's whole catalog or `candidates`."""

    name: str
    part: str
    cache: Cache
    catalog: Catalog
    ranks: Ranks
    targets: Targets
    candidates: Candidates = "all"

    @property
    def ranked(self) -> npt.NDArray[np.bool_]:
        """bool [T]: targets that have a rank. Those outside the catalog, or with nothing to be ranked among, have none;
        they are counted, not scored."""
        return ~np.isnan(self.ranks.ranks)

    @property
    def outside(self) -> int:
        """Targets on items outside the catalog."""
        return int((self.ranks.among == 0).sum())

    @property
    def alone(self) -> int:
        """Targets with nothing to be ranked among; none over the whole catalog."""
        return 0 if self.candidates == "all" else int((self.ranks.among == 1).sum())

    @cached_property
    def table(self) -> Table:
        return self._measured(self.ranked)

    def _measured(self, which: npt.NDArray[np.bool_], **options: int) -> Table:
        return measure(self.ranks.ranks[which], self.targets.user[which], self.ranks.among[which], **options)

    @cached_property
    def segments(self) -> dict[str, dict[str, Table]]:
        """For each way to divide targets, the table of each segment, in a natural order."""
        out: dict[str, dict[str, Table]] = {}
        for way, names in self.targets.segments().items():
            found = [name for name in SEGMENTS[way] if (self.ranked & (names == name)).any()]
            out[way] = {name: self._measured(self.ranked & (names == name), resamples=200) for name in found}
        return out

    def as_json(self) -> dict[str, Any]:
        """Everything but the single ranks, ready for `json.dumps`."""
        return {
            "model": self.name,
            "part": self.part,
            "split": self.cache.manifest.split,
            "candidates": float(self.ranks.among[self.ranked].mean()),
            "targets": len(self.ranks.ranks),
            "targets_outside_the_catalog": self.outside,
            "targets_without_candidates": self.alone,
            "metrics": asdict(self.table),
            "segments": {
                way: {name: asdict(table) for name, table in tables.items()} for way, tables in self.segments.items()
            },
        }

    def predictions(self) -> pl.DataFrame:
        """A line for each target: user_id, time, item_id as in the log, rank (null outside the catalog), topk (ids)."""
        users, times, items = [], [], []
        first = 0
        for index in range(len(self.cache)):
            shard = self.cache.shard(index)
            sessions = shard.sessions
            mine = self.ranks.events[(self.ranks.events >= first) & (self.ranks.events < first + len(sessions.items))]
            mine = mine - first
            users.append(shard.user_ids.gather(np.searchsorted(sessions.event_offsets, mine, side="right") - 1))
            times.append(sessions.times[mine])
            items.append(sessions.items[mine])
            first += len(sessions.items)
        ids = self.catalog.ids
        targets, width = self.ranks.top.shape
        top = pl.Series("topk", [[]] * targets, pl.List(ids.dtype))
        if width:
            top = ids.gather(self.ranks.top.ravel() - 1).reshape((targets, width)).arr.to_list()
        return pl.DataFrame(
            {
                "user_id": pl.concat(users),
                "time": as_logged(np.concatenate(times), self.cache.manifest.time_form),
                "item_id": self.cache.catalog.items["item_id"].gather(np.concatenate(items) - 1),
                "rank": pl.Series(self.ranks.ranks).fill_nan(None),
                "topk": top,
            }
        )

    def write_predictions(self, path: Path) -> None:
        """Write `predictions` as Parquet, whole or not at all."""
        with written_aside(path) as aside:
            self.predictions().write_parquet(aside)

    def __str__(self) -> str:
        lines = [
            f"{self.name} on {self.part}: {self.table.targets} targets of {self.table.users} users ranked among "
            f"{self._among()} items; {self.outside} targets on items outside the catalog"
            + ("" if self.candidates == "all" else f", {self.alone} with nothing to be ranked among"),
            f"{'':22}{'per event':>10}  {'95% interval':18}{'per user':>10}  {'95% interval':18}",
        ]
        for name in self.table.event:
            cells = [
                f"{value[name]:10.4f}  {'–'.join(f'{v:.4f}' for v in interval[name]):18}"
                for value, interval in (
                    (self.table.event, self.table.event_interval),
                    (self.table.user, self.table.user_interval),
                )
            ]
            lines.append(f"{name:22}{''.join(cells)}")
        return "\n".join(lines)

    def _among(self) -> str:
        whole = self.candidates == "all"
        return str(self.catalog.size) if whole else f"{self.ranks.among[self.ranked].mean():.1f} (mean)"

    def segment_lines(self) -> str:
        """Recall@10 and MRR per event of each segment, as lines for a person."""
        lines = [f"{'segment':44}{'targets':>9}{'recall@10':>11}{'mrr':>9}"]
        for way, tables in self.segments.items():
            for name, table in tables.items():
                lines.append(
                    f"{way + ': ' + name:44}{table.targets:9,}{table.event['recall@10']:11.4f}{table.event['mrr']:9.4f}"
                )
        return "\n".join(lines)


def evaluate_model(
    model: Model,
    catalog: Catalog,
    cache: Cache,
    part: str,
    *,
    candidates: Candidates = "all",
    top: int = 0,
    users: float = 1.0,
    seed: int = 0,
    name: str = "",
    crowd: Crowd | None = None,
) -> Evaluation:
    """Rank the events of `part` ("valid" or "test") with a model over `catalog`, the state rolled through all before.

    users:  the share of users to read
    crowd: what `crowd_of` gives, for a model that reads it; None: it is computed

    Raises InputError if the part holds no event on an item of the catalog.
    """
    if part not in PARTS[1:]:
        raise InputError(f"{part!r} is not a part to evaluate; expected one of {', '.join(PARTS[1:])}.")
    own = catalog.fingerprint == cache.catalog.fingerprint
    rows = known_rows(cache.catalog, None if own else catalog)
    crowd = crowd or crowd_of(cache, part, rows, model.horizons)
    batches = ranking_batches(cache, part, rows, users, crowd)
    if not batches.targets:
        raise InputError(
            f"The {part} part of {cache.path} holds no event, so there is nothing to evaluate. "
            "Prepare the log with another --split or other fractions."
        )
    check_candidates(candidates, cache, part)
    ranks = rank(model, batches, batches.rows, candidates=candidates, top=top, seed=seed)
    if np.isnan(ranks.ranks).all():
        raise InputError(
            f"None of the {batches.targets} {part} targets of {cache.path} is on one of the {catalog.size} items "
            f"that the model knows, such as {shown(catalog.ids.head(3).to_list())}. Give a log with the same item "
            "ids, or split it otherwise."
        )
    return Evaluation(name, part, cache, catalog, ranks, Targets.of(cache, ranks.events), candidates)


def check_candidates(candidates: Candidates, cache: Cache, part: str) -> None:
    """Raises InputError if `candidates` are impressions and the part has none."""
    if candidates == "impressions" and not cache.manifest.parts[part].get("events_with_impressions"):
        raise InputError(
            f"No {part} event of {cache.path} has impressions. Prepare the log with --impressions, or rank among other "
            "candidates."
        )


def evaluate(
    run: Run | str | Path,
    cache: Cache | str | Path | None = None,
    split: str = "test",
    *,
    model: str | None = None,
    candidates: Candidates = "all",
    top: int = 0,
    seed: int = 0,
) -> Evaluation:
    """Evaluate a trained model on one part of a prepared log.

    run:   the model directory
    cache: the prepared log; None is the one the model was trained on. Items of another log are matched by id
    split: the part, "valid" or "test"
    model: one that needs no training, such as "popularity" or "last_items", ranks the same targets instead, over the
           run's catalog
    candidates: "all" of the catalog; "impressions": what was shown beside the target; or a number, so many items drawn
           for each target under `seed`
    top:   how many of the items ranked first to keep for each target, of "all"

    Raises InputError or ArtifactError if one of them is not what it should be, or the log that the model was trained on
    has been prepared anew: its test part might hold what was trained on.
    """
    run = run if isinstance(run, Run) else Run(run)
    own = run.manifest["cache"]
    given, cache = cache, cache if isinstance(cache, Cache) else Cache(cache or own["path"])
    if given is None and cache.manifest.fingerprint != own["fingerprint"]:
        raise InputError(
            f"{cache.path} has fingerprint {cache.manifest.fingerprint[:16]}, but {run.path} was trained on "
            f"{own['fingerprint'][:16]}: it was prepared anew since. Train again, or pass --cache to evaluate on it as "
            "on any other log."
        )
    cache.verify()
    ranker, name = (run.model, run.name) if model is None else (simple_model(model, run.catalog, run.vectors), model)
    return evaluate_model(ranker, run.catalog, cache, split, candidates=candidates, top=top, seed=seed, name=name)


def read_candidates(text: str) -> Candidates:
    """ "all", "impressions", or the number of "random:N". Raises InputError for anything else."""
    if text in ("all", "impressions"):
        return "all" if text == "all" else "impressions"
    number = text.removeprefix("random:")
    if number == text or not number.isdecimal() or not 0 < int(number) <= 1_000_000:
        raise InputError(
            f"Candidates {shown(text)} are none; expected all, impressions, or random:N, such as random:100."
        )
    return int(number)


def _untrained(config: type[ModelConfig], vectors: Vectors | None) -> ModelConfig:
    return config(vectors="fixed") if vectors is not None and issubclass(config, VectorConfig) else config()


def simple_model(name: str, catalog: Catalog, vectors: Vectors | None = None) -> Model:
    """A model that needs no training; with `vectors` of the items, those that average them, too.

    Raises InputError for the name of one that does.
    """
    configs = {known: _untrained(config, vectors) for known, config in CONFIGS.items()}
    simple = [known for known, config in configs.items() if not trainable(config)]
    if name not in simple:
        raise InputError(
            f"{name!r} is not a model that can be evaluated without training{nearest(name, simple)}; "
            f"those are {', '.join(simple)}. Train the others with `hiertcn train --preset`."
        )
    return build(configs[name], catalog.train_events, 0, vectors)
