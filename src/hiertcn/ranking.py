"""Exact ranks of targets over the whole catalog, in blocks of bounded memory."""

from __future__ import annotations

__all__ = ["Ranks", "rank", "ranking_batches"]

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hiertcn.batching import SessionBatches
from hiertcn.cache import Cache
from hiertcn.errors import TrainingError
from hiertcn.models import Model
from hiertcn.ragged import SessionBatch
from hiertcn.streams import Ints

BLOCK_SCORES = 1 << 23


@dataclass(frozen=True)
class Ranks:
    """Of T targets, in the order of the cache's events.

    events: int64 [T], places in the cache, all its shards one after another
    ranks:  float64 [T], 1 is best, ties share the middle rank; NaN for a target outside the model's catalog
    top:    int64 [T, k], the item rows ranked first
    """

    events: Ints
    ranks: npt.NDArray[np.float64]
    top: Ints


def ranking_batches(cache: Cache, part: str, item_rows: Ints, users: float = 1.0, seed: int = 0) -> SessionBatches:
    """Batches that read every earlier event of the users with targets in `part`, in the cache's order."""
    return SessionBatches(
        cache, part, item_rows=item_rows, rows=128, sessions=10, chunk=50, shuffle=False, seed=seed, users=users
    )


@torch.inference_mode()
def rank(model: Model, batches: Iterable[SessionBatch], rows: int, *, top: int = 0, block: int = BLOCK_SCORES) -> Ranks:
    """Rank every target of `batches` of `rows` rows. At most `block` scores (or those of one target) exist at a time.

    Raises TrainingError if the model scores a target with NaN.
    """
    training = model.training
    try:
        return _rank(model.eval(), batches, rows, top, block)
    finally:
        model.train(training)


def _rank(model: Model, batches: Iterable[SessionBatch], rows: int, top: int, block: int) -> Ranks:
    events, ranks, best = [], [], []
    carried = model.zero_state(rows)
    for batch in batches:
        batch = batch.to(carried.device)
        queries, after = model(batch, batch.initial(carried))
        carried = batch.carry(carried, after)
        asked = queries[batch.positions]
        width = max(1, block // model.items_in_catalog)
        for begin in range(0, len(asked), width):
            scores = model.score(asked[begin : begin + width])
            ranks.append(_mid_ranks(scores, batch.targets[begin : begin + width]))
            best.append(scores.topk(min(top, scores.shape[1])).indices + 1)
        events.append(batch.events)
    if not events:
        return Ranks(np.empty(0, np.int64), np.empty(0), np.empty((0, top), np.int64))
    order = torch.cat(events).argsort()
    return Ranks(*(torch.cat(parts)[order].cpu().numpy() for parts in (events, ranks, best)))


def _mid_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """float64 [T]: ranks of `targets` (rows ≥ 1; 0 gives NaN) in `scores` [T, n]. Another's NaN counts as above."""
    own = scores.gather(1, (targets - 1).clamp_min(0).unsqueeze(1))
    above = scores.shape[1] - (scores <= own).sum(1, dtype=torch.int32)
    equal = (scores == own).sum(1, dtype=torch.int32)
    if bool((equal == 0).any()):
        raise TrainingError("The model scores an item with NaN; its weights are damaged. Train it again.")
    return (above + (equal + 1) / 2).double().masked_fill(targets == 0, torch.nan)
