"""Whether a model knows its target before it is asked: a check that every compared model has to pass.

The items of the test events are permuted among these events, in what models read as well as in what they are asked for.
Then nothing is left to be known of an event but how frequent each item is, so no sound model ranks the targets better
than the best constant ranking, the items in the order of their frequency among these very targets. A model that is
given its target, by the batch or by an input that is one step late, stays far above. So that weak leaks are found, too,
some batches are asked again with other targets, and with other items and times where nothing follows: queries have to
stay. Ours.
"""

from __future__ import annotations

__all__ = ["Permuted", "Soundness", "best_constant", "check_soundness"]

from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hiertcn.cache import Cache, Shard
from hiertcn.catalog import Catalog
from hiertcn.evaluation import evaluate_model
from hiertcn.metrics import difference, measure
from hiertcn.models import Model
from hiertcn.ranking import ranking_batches
from hiertcn.sessions import PARTS, SECOND, Sessions
from hiertcn.streams import crowd_of, known_rows

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
# Batches that are asked a second time with other targets.
LOOKS = 4
_CLOSE = 1e-4

Estimate = tuple[float, float, float]


class _OtherShard(Shard):
    def __init__(self, shard: Shard, **columns: npt.NDArray[Any]) -> None:
        self._table = shard._table
        self._columns: dict[str, Any] = columns

    @property
    def sessions(self) -> Sessions:
        """Those of the shard, with other columns."""
        return replace(super().sessions, **self._columns)


class Permuted(Cache):
    """A cache in which the items of the events of `part` are permuted among these events; nothing is written."""

    def __init__(self, cache: Cache, part: str, seed: int) -> None:
        super().__init__(cache.path)
        index = PARTS.index(part)
        held = [shard.sessions.items[shard.sessions.parts == index] for shard in map(cache.shard, range(len(cache)))]
        drawn = np.random.default_rng(seed).permutation(np.concatenate([np.empty(0, np.int32), *held]))
        self._drawn = np.split(drawn, np.cumsum([len(items) for items in held])[:-1])
        self._index = index

    def shard(self, index: int) -> Shard:
        """The shard, with the permuted items."""
        shard = super().shard(index)
        items = shard.sessions.items.copy()
        items[shard.sessions.parts == self._index] = self._drawn[index]
        return _OtherShard(shard, items=items)


class _Later(Cache):
    """A cache in which each user's last event is later, but in the same session, unless it begins one."""

    def __init__(self, cache: Cache) -> None:
        super().__init__(cache.path)
        self._of = cache

    def shard(self, index: int) -> Shard:
        shard = self._of.shard(index)
        sessions = shard.sessions
        times, ends = sessions.times.copy(), sessions.event_offsets[1:]
        last = ends[np.diff(sessions.event_offsets) > 0] - 1
        last = np.setdiff1d(last, sessions.session_offsets)
        latest = times[last - 1] + round(self.manifest.session_gap * SECOND)
        times[last] += np.maximum(latest - times[last], 0) // 2
        return _OtherShard(shard, items=sessions.items, times=times)


@dataclass(frozen=True)
class Soundness:
    """MRR per event of a model on the permuted log, with its 95% interval; that of the best constant ranking; the
    paired difference of the two, with its interval; whether queries stay when what may not be known is another."""

    mrr: Estimate
    constant: float
    difference: Estimate
    same_queries: bool

    @property
    def leaks(self) -> bool:
        """Whether the model knows more than it may."""
        return self.difference[1] > 0 or not self.same_queries


def best_constant(targets: Ints) -> Floats:
    """float64 [T]: ranks of target rows [T] by the frequency of items among these, ties in any order."""
    rows, place, count = np.unique(targets, return_inverse=True, return_counts=True)
    ranks = np.empty(len(rows))
    ranks[np.argsort(-count, kind="stable")] = np.arange(1, len(rows) + 1)
    out: Floats = ranks[place]
    return out


def check_soundness(model: Model, catalog: Catalog, cache: Cache, seed: int = 0, part: str = "test") -> Soundness:
    """Rank `part` of the permuted log with a model over `catalog`, the cache's own.

    Raises InputError if the part holds no event on an item of the catalog.
    """
    permuted = Permuted(cache, part, seed)
    found = evaluate_model(model, catalog, permuted, part)
    ranked, rows = found.ranked, known_rows(cache.catalog)
    items = np.concatenate([permuted.shard(index).sessions.items for index in range(len(permuted))])
    constant = best_constant(rows[items[found.ranks.events[ranked]]])
    ours, users = found.ranks.ranks[ranked], found.targets.user[ranked]
    table, paired = measure(ours, users, catalog.size), difference(ours, constant, users, catalog.size)
    return Soundness(
        mrr=(table.event["mrr"], *table.event_interval["mrr"]),
        constant=float((1 / constant).mean()),
        difference=(paired.event["mrr"], *paired.event_interval["mrr"]),
        same_queries=_same_queries(model, permuted, part, rows, seed),
    )


@torch.inference_mode()
def _same_queries(model: Model, cache: Cache, part: str, rows: Ints, seed: int) -> bool:
    """Whether the queries of the first batches stay when what may not be known there is another: targets and what was
    shown beside them, permuted (states stay, too); each user's last event, which nothing follows: its time within the
    session, and the item at its position."""
    crowd = crowd_of(cache, part, rows, model.horizons)
    batches, moved = (ranking_batches(one, part, rows, crowd=crowd) for one in (cache, _Later(cache)))
    model.eval()
    carried, random = model.zero_state(batches.rows), np.random.default_rng(seed)
    for batch, later in islice(zip(batches, moved, strict=True), LOOKS):
        batch = batch.to(carried.device)
        initial = batch.initial(carried)
        queries, after = model(batch, initial)
        if not _close(queries[batch.positions], model(later.to(carried.device), initial)[0][batch.positions]):
            return False
        order = torch.from_numpy(random.permutation(len(batch.targets))).to(carried.device)
        told = replace(batch, targets=batch.targets[order], shown=batch.shown[order])
        again, state = model(told, initial)
        if not (_close(queries[batch.positions], again[batch.positions]) and _close(after, state)):
            return False
        last = batch.layout.place[np.cumsum(batch.session_lengths)[np.cumsum(batch.user_sessions) - 1] - 1]
        last = last.to(carried.device)
        items = batch.items.clone()
        items[last] = torch.where(items[last] > 0, items[last] % model.items_in_catalog + 1, 0)
        if not _close(queries[last], model(replace(batch, items=items), initial)[0][last]):
            return False
        carried = batch.carry(carried, after)
    return True


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours.double(), theirs.double(), rtol=_CLOSE, atol=_CLOSE)
