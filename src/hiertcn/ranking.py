"""Exact ranks of targets over the whole catalog, in blocks of bounded memory, or among some candidates of each."""

from __future__ import annotations

__all__ = ["Candidates", "Ranks", "check_validation", "rank", "ranking_batches"]

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hiertcn.batching import SessionBatches
from hiertcn.cache import Cache
from hiertcn.crowd import Crowd
from hiertcn.errors import InputError, TrainingError
from hiertcn.models import Model, VectorModel
from hiertcn.ragged import SessionBatch
from hiertcn.streams import Ints, known_rows

BLOCK_SCORES = 1 << 23


@dataclass(frozen=True)
class Ranks:
    """Of T targets, in the order of the cache's events.

    events: int64 [T], places in the cache, all its shards one after another
    ranks:  float64 [T], 1 is best, ties share the middle rank; NaN for a target outside the model's catalog, or without
            other candidates
    top:    int64 [T, k], the item rows ranked first
    among:  int64 [T], how many items it was ranked among, itself one of them; 0 outside the catalog
    """

    events: Ints
    ranks: npt.NDArray[np.float64]
    top: Ints
    among: Ints


def ranking_batches(
    cache: Cache, part: str, item_rows: Ints, users: float = 1.0, crowd: Crowd | None = None, seed: int = 0
) -> SessionBatches:
    """Batches that read every earlier event of the users with targets in `part`, in the cache's order."""
    return SessionBatches(
        cache,
        part,
        item_rows=item_rows,
        rows=128,
        sessions=10,
        chunk=50,
        shuffle=False,
        seed=seed,
        users=users,
        crowd=crowd,
    )


Candidates = Literal["all", "impressions"] | int
"""The whole catalog, what was shown beside the target, or so many items drawn for each target."""


def check_validation(cache: Cache, users: float) -> None:
    """Raises InputError if nothing could be ranked at an epoch's end."""
    valid = cache.manifest.parts["valid"]
    if valid["events"] == valid["outside_events"]:
        raise InputError(
            f"All {valid['events']:,} valid events of {cache.path} are on items outside the catalog, so no epoch could "
            "be told from another. Prepare the log with another --split or other fractions."
        )
    if users < 1 and not ranking_batches(cache, "valid", known_rows(cache.catalog), users).targets:
        raise InputError(
            f"validation_users = {users} draws none of the {valid['users']:,} users of the valid part. Raise it."
        )


@torch.inference_mode()
def rank(
    model: Model,
    batches: Iterable[SessionBatch],
    rows: int,
    *,
    candidates: Candidates = "all",
    top: int = 0,
    block: int = BLOCK_SCORES,
    seed: int = 0,
) -> Ranks:
    """Rank every target of `batches` of `rows` rows. At most `block` scores (or those of one target) exist at a time.

    `top` items of each are kept, of the whole catalog only; `seed` is of the candidates that are drawn. Raises
    TrainingError if the model scores a target with NaN.
    """
    training = model.training
    try:
        if candidates == "all":
            return _rank(model.eval(), batches, rows, top, block)
        return _rank_among(model.eval(), batches, rows, candidates, block, seed)
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
        return Ranks(np.empty(0, np.int64), np.empty(0), np.empty((0, top), np.int64), np.empty(0, np.int64))
    order = torch.cat(events).argsort()
    found, ranked, first = (torch.cat(parts)[order].cpu().numpy() for parts in (events, ranks, best))
    return Ranks(found, ranked, first, np.where(np.isnan(ranked), 0, model.items_in_catalog))


def _rank_among(
    model: Model, batches: Iterable[SessionBatch], rows: int, candidates: str | int, block: int, seed: int
) -> Ranks:
    events, ranks, among = [np.empty(0, np.int64)], [np.empty(0)], [np.empty(0, np.int64)]
    carried = model.zero_state(rows)
    rng = np.random.default_rng(seed)
    for batch in batches:
        batch = batch.to(carried.device)
        queries, after = model(batch, batch.initial(carried))
        carried = batch.carry(carried, after)
        asked = queries[batch.positions]
        # No more numbers in the vectors of candidates than scores, where those are all that is computed.
        each = asked.shape[1] * (candidates if isinstance(candidates, int) else batch.shown.shape[1])
        width = max(1, block // max(1, each if isinstance(model, VectorModel) else model.items_in_catalog))
        for begin in range(0, len(asked), width):
            targets = batch.targets[begin : begin + width]
            others = batch.shown[begin : begin + width]
            if isinstance(candidates, int):
                drawn = rng.integers(1, model.items_in_catalog + 1, (len(targets), candidates))
                others = torch.from_numpy(drawn).to(carried.device)
            found, counted = _mid_ranks_among(model, asked[begin : begin + width], targets, others)
            ranks.append(found.cpu().numpy())
            among.append(counted.cpu().numpy())
        events.append(batch.events.cpu().numpy())
    every = np.concatenate(events)
    order = every.argsort()
    top = np.empty((len(every), 0), np.int64)
    return Ranks(every[order], np.concatenate(ranks)[order], top, np.concatenate(among)[order])


def _mid_ranks_among(model: Model, queries: Tensor, targets: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """float64 [T] and int64 [T]: ranks of `targets` among themselves and `others` [T, C], and of how many (0: no item).

    A candidate that is 0 or the target is none.
    """
    kept = (others > 0) & (others != targets.unsqueeze(1)) & (targets > 0).unsqueeze(1)
    scores = model.score_rows(queries, torch.cat([targets.unsqueeze(1), others], dim=1).clamp_min(1))
    own, theirs = scores[:, :1], scores[:, 1:]
    if bool(own.isnan().any()):
        raise TrainingError("The model scores an item with NaN; its weights are damaged. Train it again.")
    above, equal = (~(theirs <= own) & kept).sum(1), ((theirs == own) & kept).sum(1)
    found = (1 + above + equal / 2).double().masked_fill(~kept.any(1), torch.nan)
    return found, kept.sum(1) + (targets > 0)


def _mid_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """float64 [T]: ranks of `targets` (rows ≥ 1; 0 gives NaN) in `scores` [T, n]. Another's NaN counts as above."""
    own = scores.gather(1, (targets - 1).clamp_min(0).unsqueeze(1))
    above = scores.shape[1] - (scores <= own).sum(1, dtype=torch.int32)
    equal = (scores == own).sum(1, dtype=torch.int32)
    if bool((equal == 0).any()):
        raise TrainingError("The model scores an item with NaN; its weights are damaged. Train it again.")
    return (above + (equal + 1) / 2).double().masked_fill(targets == 0, torch.nan)
