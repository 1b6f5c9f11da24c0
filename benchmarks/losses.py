"""Every loss, judged among what was shown beside the item picked, and with negatives that were shown or drawn: what
configs/losses.toml states, each model by its defaults. Item vectors are of the train part's sessions.

Models that are trained stay in claims/losses, so that what was stopped is gone on with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import KEPT, kept_cache, real_log, record, signed, within
from hiertcn.cache import Cache
from hiertcn.comparing import compare
from hiertcn.comparison import Compared, Comparison
from hiertcn.embedding import cooccurrence, svd_vectors, write_items
from hiertcn.metrics import METRICS, Table, per_event
from hiertcn.watching import Watch

PLAN = Path(__file__).parents[1] / "configs" / "losses.toml"
SHOWN = ("recall@1", "mrr", "mean_rank_percentile")
DIM = 64


def run_last() -> None:
    _run("last")


def run_users() -> None:
    _run("users")


def _run(split: str) -> None:
    folder = KEPT / "losses" / split
    cache = _cache(folder / "cache", split)
    found = compare(cache, PLAN, 1, folder / "out", progress=Watch())
    first = found.models[0].evaluation
    among = first.ranks.among[first.ranked]
    chance = _by_chance(among)
    best = max(found.models, key=lambda model: model.evaluation.table.event["mrr"])
    ahead = {model.name: found.difference(best, model) for model in found.models if model is not best}
    seconds = {model.name: model.figures["seconds_tuning"] for model in found.models}
    rows = [[*_told(found, model, ahead), f"{seconds[model.name]:.0f}"] for model in found.models]
    rows.append(["random order", *(f"{chance[m]:.4f}" for m in SHOWN), "", ""])
    parts = cache.manifest.parts
    figures = {
        "split": cache.manifest.split,
        "parts": parts,
        "models": {model.name: model.evaluation.as_json()["metrics"] for model in found.models},
        "random_order": chance,
        "best": best.name,
        "best_minus_other": {name: _mrr(table) for name, table in ahead.items()},
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "failures": dict(found.failures),
    }
    notes = [
        f"Split `{split}`: {first.table.targets:,} test events of {first.table.users:,} users that were shown with "
        f"others, {among.mean():.1f} items each, the picked one among them. "
        f"{parts['train']['events_with_impressions']:,} of {parts['train']['events']:,} train events have "
        "impressions; the others' negatives are drawn by train events^0.75, and so are all of `_sampled`.",
        f"Item vectors: {DIM}-d, SVD of mutual information in the sessions of the train part; HierTCN reads them with "
        f"learned ones beside, {found.budget['epochs']} passes at most, the best by MRR on the validation part, among "
        "the whole catalog. 95% intervals by bootstrap over users.",
    ]
    record(f"losses_{split}", figures, ["model", *SHOWN, f"{best.name} − it, mrr", "seconds"], rows, notes)


def _cache(path: Path, split: str) -> Cache:
    plain, items = kept_cache(path.with_name("plain"), split=split), path.with_name("items.parquet")
    write_items(items, plain.catalog, svd_vectors(cooccurrence(plain), DIM, seed=0))
    impressions = Path(real_log()).parent / "event_negatives.parquet"
    shown: dict[str, Any] = {"impressions": impressions, "impression_columns": "time=ts", "impression_window": 0}
    return kept_cache(path, split=split, catalog=items, **shown)


def _told(found: Comparison, model: Compared, ahead: dict[str, Table]) -> list[str]:
    table = model.evaluation.table
    values = [within(table.event[m], table.event_interval[m]) for m in SHOWN]
    if model.name not in ahead:
        return [model.name, *values, ""]
    lead = _mrr(ahead[model.name])
    return [model.name, *values, signed(lead["mean"], lead["interval"])]


def _mrr(table: Table) -> dict[str, Any]:
    return {"mean": table.event["mrr"], "interval": table.event_interval["mrr"]}


def _by_chance(among: np.ndarray) -> dict[str, float]:
    """What any order drawn at random comes to: the mean over all ranks."""
    means = [per_event(np.arange(1.0, n + 1), int(n)).mean(0) for n in among]
    return dict(zip(METRICS, np.mean(means, axis=0).tolist(), strict=True))
