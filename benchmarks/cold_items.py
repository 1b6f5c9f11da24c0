"""Items that came after training: what each way of ranking reaches on them, every half an hour of a news site's days.

The log is cut in time; nothing is trained on what comes after. At each moment item vectors are computed anew from the
picks up to then (PinSage of the train part, applied to a larger graph), and every next pick is ranked among all items
that were picked by anybody before it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.record import real_log, record, scratch
from hiertcn.cache import Cache
from hiertcn.embedding import write_items
from hiertcn.metrics import difference, measure
from hiertcn.models import MovingAverageConfig, VectorModel, build
from hiertcn.neighbourhoods import Baskets
from hiertcn.pinsage import PinSage, PinSageConfig, train_pinsage
from hiertcn.preparation import prepare
from hiertcn.progress import Progress
from hiertcn.sessions import SECOND, Sessions, sessionize
from hiertcn.settings import read_settings
from hiertcn.streams import Stream
from hiertcn.training import train
from hiertcn.wholes import whole_batch

GAP, LONGEST = 1800, 1000
REFRESH, HOUR, DAY = 1800, 3600, 86400
AGES = ("first pick", "< 1 h", "1–6 h", "6–24 h", "≥ 24 h")
WEIGHTS = (0.01, 0.03, 0.1, 0.3, 1.0)
DIM = 128
MODEL = {"vectors": "fixed", "clock": True, "dropout": 0.2, "norm": True}
BUDGET = {"epochs": 8, "patience": 2, "learning_rate": 0.002}


@dataclass(frozen=True)
class Log:
    """All events, user after user: users, items (rows of the cache, outside its catalog, too), seconds, parts."""

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    parts: np.ndarray

    @classmethod
    def of(cls, cache: Cache) -> Log:
        shards = [cache.shard(index).sessions for index in range(len(cache))]
        sizes = np.concatenate([np.diff(s.event_offsets) for s in shards])
        columns = ([s.items for s in shards], [s.times for s in shards], [s.parts for s in shards])
        items, times, parts = (np.concatenate(column) for column in columns)
        return cls(np.repeat(np.arange(len(sizes)), sizes), items.astype(np.int64), times / SECOND, parts)


class Interval:
    """The targets [T] between two moments, and what is known of n items before each of them."""

    def __init__(self, log: Log, targets: np.ndarray, first: np.ndarray, picks: np.ndarray) -> None:
        """first: [n + 1], when each item was picked first; picks: places of all events, in the order of time."""
        self._log, self.targets, self._first = log, targets, first
        self._picks, self._times = picks, log.times[picks]

    def popular(self, seconds: float) -> np.ndarray:
        """[T, n + 1]: how often each item was picked in so many seconds before each target."""
        out = np.zeros((len(self.targets), len(self._first)), dtype=np.float32)
        for at, now in enumerate(self._log.times[self.targets]):
            low, high = np.searchsorted(self._times, (now - seconds, now))
            out[at] = np.bincount(self._log.items[self._picks[low:high]], minlength=len(self._first))
        return out

    def ranks(self, scores: np.ndarray) -> np.ndarray:
        """[T]: mid-ranks of the targets among the items picked before by anybody, but not by the same user; behind all
        of them if never picked."""
        log, out = self._log, np.empty(len(self.targets))
        for at, place in enumerate(self.targets):
            now, user, item = log.times[place], log.users[place], log.items[place]
            begin = np.searchsorted(log.users, user)
            known = self._first < now
            known[log.items[begin:place]] = False
            if not known[item]:
                out[at] = known.sum() + 1
                continue
            others = scores[at, known]
            out[at] = 1 + (others > scores[at, item]).sum() + ((others == scores[at, item]).sum() - 1) / 2
        return out


def _queries(model: VectorModel, log: Log, targets: np.ndarray, items: int) -> np.ndarray:
    """[T, Q]: what the model asks for at the targets, each after all earlier events of its user."""
    users = np.unique(log.users[targets])
    last = np.full(int(log.users.max()) + 1, -1)
    np.maximum.at(last, log.users[targets], targets)
    kept = np.flatnonzero(np.arange(len(log.users)) <= last[log.users])
    offsets = np.searchsorted(log.users[kept], np.append(users, users[-1] + 1))
    times = np.round(log.times[kept] * SECOND).astype(np.int64)
    begins = sessionize(offsets, times, GAP, LONGEST)
    parts = np.isin(kept, targets).astype(np.uint8) * 2
    sessions = Sessions(log.items[kept].astype(np.int32), times, parts, begins, np.searchsorted(begins, offsets))
    batch = whole_batch(Stream.of(sessions, np.arange(items + 1), "test", GAP, LONGEST))
    with torch.inference_mode():
        queries, _ = model(batch, model.zero_state(len(users)))
    asked = kept[batch.events.numpy()]
    return queries[batch.positions].numpy()[np.argsort(asked)][np.argsort(np.argsort(targets))]


def _trained(folder: Path, cache: Cache, vectors: np.ndarray) -> VectorModel:
    """HierTCN on the train part alone, the last events of each user in it choosing the pass."""
    write_items(folder / "items.parquet", cache.catalog, vectors)
    log = Log.of(cache)
    past = pl.read_parquet(real_log()).filter(pl.col("ts") <= int(log.times[log.parts == 0].max()))
    own = prepare(past, folder / "past", catalog=folder / "items.parquet", session_gap=GAP, split="last")
    model = train(own, *read_settings("small", model=MODEL, train=BUDGET), folder / "run", progress=Progress()).model
    assert isinstance(model, VectorModel)
    return model


def _scores(model: VectorModel, table: np.ndarray, log: Log, targets: np.ndarray) -> np.ndarray:
    """[T, n + 1], standardised over the items that have a vector in `table`; the others' are 0, the mean."""
    # The vectors that it reads and compares with are not among its weights.
    model.items.given, model.items_in_catalog = torch.from_numpy(table), len(table) - 1
    has = table.any(axis=1)
    scores = _queries(model, log, targets, len(table) - 1) @ table.T
    mean, spread = scores[:, has].mean(1, keepdims=True), scores[:, has].std(1, keepdims=True)
    return np.where(has, (scores - mean) / np.maximum(spread, 1e-6), 0)


def run() -> None:
    """Benchmark `cold_items`."""
    with scratch() as folder:
        cache = prepare(real_log(), folder / "cache", session_gap=GAP, split="time")
        log, items = Log.of(cache), cache.catalog.items.height
        begun = time.perf_counter()
        pinsage, vectors = train_pinsage(cache, PinSageConfig(dim=DIM), seed=0)
        hiertcn = _trained(folder, cache, vectors)
        average = build(MovingAverageConfig(dim=DIM, vectors="fixed"), cache.catalog.train_events, 0, vectors)
        assert isinstance(average, VectorModel)
        trained = time.perf_counter() - begun
        found = {part: _ranked(cache, pinsage, hiertcn, average, index) for index, part in ((1, "valid"), (2, "test"))}
    targets, ranks = found["test"]
    weight = max(WEIGHTS, key=lambda weight: (1 / found["valid"][1][f"HierTCN and hour, {weight}"]).mean())
    names = {f"HierTCN and hour, {weight}": f"HierTCN × {weight} and popularity of the last hour"}
    shown = {names.get(name, name): values for name, values in ranks.items() if ", " not in name or name in names}
    events = np.bincount(log.items[log.parts == 0], minlength=items + 1)
    first = np.full(items + 1, np.inf)
    np.minimum.at(first, log.items, log.times)
    unseen = events[log.items[targets]] == 0
    age = np.searchsorted([1e-9, HOUR, 6 * HOUR, DAY], log.times[targets] - first[log.items[targets]], side="right")
    among = int((first < log.times[targets].max()).sum())
    tables = {name: measure(values[unseen], log.users[targets][unseen], among) for name, values in shown.items()}
    by_age = {
        name: {label: float((values[unseen & (age == k)] <= 10).mean()) for k, label in enumerate(AGES) if k}
        for name, values in shown.items()
    }
    best = names[f"HierTCN and hour, {weight}"]
    gain = difference(
        shown[best][unseen], shown["popularity of the last hour"][unseen], log.users[targets][unseen], among
    )
    rows = [
        [
            name,
            *(
                f"{one.event[m]:.4f} ({'–'.join(f'{v:.4f}' for v in one.event_interval[m])})"
                for m in ("recall@10", "recall@20", "mrr")
            ),
            *(f"{by_age[name][label]:.3f}" for label in AGES[1:]),
        ]
        for name, one in tables.items()
    ]
    figures = {
        "targets": len(targets),
        "unseen_in_training": float(unseen.mean()),
        "never_picked_before": float((age == 0)[unseen].mean()),
        "models": {name: {"event": one.event, "interval": one.event_interval} for name, one in tables.items()},
        "recall@10_by_age": by_age,
        "weight": weight,
        "hiertcn_and_hour_minus_hour": {"mean": gain.event, "interval": gain.event_interval},
        "seconds_of_training": trained,
    }
    notes = [
        f"Split `time` of ebnerd_demo, all items: of {len(targets):,} test events on items that the user had not yet, "
        f"{unseen.mean():.1%} are on items without a train event, and those are what the table is of; "
        f"{(age == 0)[unseen].mean():.1%} of them are the first pick of their item by anybody, which none of these can "
        "rank. Candidates are the items picked before by anybody and not by the same user. 95% intervals by bootstrap "
        "over users; the last columns are recall@10 by the time since the item was first picked.",
        f"Vectors: PinSage of the train part's sessions, {DIM}-d, applied every {REFRESH // 60} minutes to all picks "
        "so far; the log has no text or pictures, so a new item is read by where it is picked alone. HierTCN was "
        "trained on the train part, and reads new items by these vectors. Nothing is trained on what comes after.",
        f"The sum is of standardised scores of HierTCN, times {weight} (the best by MRR of "
        f"{', '.join(map(str, WEIGHTS))} on the validation part), and log(0.1 + picks of the last hour). Its paired "
        "difference to popularity of the "
        f"last hour: mrr {gain.event['mrr']:+.4f} ({gain.event_interval['mrr'][0]:+.4f}…"
        f"{gain.event_interval['mrr'][1]:+.4f}), recall@10 {gain.event['recall@10']:+.4f} "
        f"({gain.event_interval['recall@10'][0]:+.4f}…{gain.event_interval['recall@10'][1]:+.4f}).",
    ]
    record("cold_items", figures, ["what", "recall@10", "recall@20", "mrr", *AGES[1:]], rows, notes)


def _ranked(
    cache: Cache, pinsage: PinSage, hiertcn: VectorModel, average: VectorModel, part: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Targets of a part, as places in the log, and their ranks by each way."""
    log, items = Log.of(cache), cache.catalog.items.height
    first = np.full(items + 1, np.inf)
    np.minimum.at(first, log.items, log.times)
    first[0] = np.inf
    picks = np.argsort(log.times, kind="stable")
    trained = np.bincount(log.items[log.parts == 0], minlength=items + 1).astype(np.float32)
    sessions = np.cumsum(np.append(True, (np.diff(log.users) != 0) | (np.diff(log.times) >= GAP))) - 1
    codes = log.users * (items + 1) + log.items
    _, earliest = np.unique(codes, return_index=True)
    asked = np.intersect1d(np.flatnonzero(log.parts == part), earliest)
    moments = np.arange(log.times[asked].min(), log.times[asked].max() + REFRESH, REFRESH)
    places: list[np.ndarray] = []
    ranks: dict[str, list[np.ndarray]] = {}
    for number, (begin, end) in enumerate(pairwise(moments)):
        targets = asked[(log.times[asked] >= begin) & (log.times[asked] < end)]
        if not len(targets):
            continue
        before = np.flatnonzero(log.times < begin)
        table = pinsage.embed(pinsage.nodes(cache, Baskets(log.items[before], sessions[before], items + 1), seed=0))
        interval = Interval(log, targets, first, picks)
        hour, day = interval.popular(HOUR), interval.popular(DAY) > 0
        like = np.ones((len(targets), 1), dtype=np.float32)
        ours, plain = (_scores(model, table, log, targets) for model in (hiertcn, average))
        ways = {
            "popularity in training": like * trained,
            "popularity of the last hour": hour,
            "recency": like * np.where(np.isfinite(first), first - log.times.min(), 0),
            "moving average": plain,
            "moving average among the last day's": np.where(day, plain, plain - 1e3),
            "HierTCN": ours,
            "HierTCN among the last day's": np.where(day, ours, ours - 1e3),
            **{f"HierTCN and hour, {weight}": weight * ours + np.log(0.1 + hour) for weight in WEIGHTS},
        }
        for name, scores in ways.items():
            ranks.setdefault(name, []).append(interval.ranks(scores))
        places.append(targets)
        if number % 20 == 0:
            sys.stderr.write(f"part {part}: {number} of {len(moments)} intervals\n")
    return np.concatenate(places), {name: np.concatenate(values) for name, values in ranks.items()}
