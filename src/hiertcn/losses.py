"""Losses over targets, each the sum over targets divided by their number.

Legend: T targets, Q size of a query, K negatives, n items of the catalog.
"""

from __future__ import annotations

__all__ = ["RANKING", "RankingLoss", "cross_entropy", "l2", "ranking_loss", "sampled_softmax"]

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from hiertcn.negatives import Negatives

Lookup = Callable[[Tensor], tuple[Tensor, Tensor | None]]
Score = Callable[[Tensor, Tensor], Tensor]
"""int64 [R] rows → the vectors [R, Q] that queries are compared with, and what is added to the scores [R], or None."""
RankingLoss = Literal["nce", "bpr", "bpr_sigmoid", "hinge", "hinge_sigmoid", "hinge_logsigmoid"]
RANKING: tuple[RankingLoss, ...] = get_args(RankingLoss)


def cross_entropy(
    queries: Tensor, targets: Tensor, vectors: Tensor, bias: Tensor | None, boosts: Tensor | None = None
) -> Tensor:
    """Full softmax over the catalog: −log softmax(q · V)[target] (the loss of You et al. on XING).

    queries: [T, Q], targets: int64 [T] rows ≥ 1, vectors: [n + 1, Q], bias: [n + 1] or None,
    boosts: [T, n], added to the scores, or None → scalar
    """
    others = vectors[1:]
    offsets = others.new_zeros(len(others)) if bias is None else bias[1:]
    own, offset = F.embedding(targets, vectors), offsets[targets - 1]
    if boosts is not None:
        offset = offset + boosts.gather(1, targets.unsqueeze(1) - 1).squeeze(1)
    # Every item once, the target too: shared negatives of which one is the target.
    return _softmax(queries, own, others, offset, offsets, torch.ones_like(targets), boosts)


def sampled_softmax(
    queries: Tensor,
    targets: Tensor,
    lookup: Lookup,
    negatives: Negatives,
    boosts: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Softmax over the target and shared negatives, each score less the log of how often its row is expected to be
    drawn (logQ; Bengio & Senécal, 2008; Yi et al., 2019). A negative equal to the target is masked out.

    queries: [T, Q], targets: int64 [T] rows ≥ 1, negatives: K rows, boosts: of the targets [T] and of the
    negatives [T, K], added to the scores, or None → scalar
    """
    asked = torch.cat([targets, negatives.rows])
    chosen, bias = lookup(asked)
    own, others = chosen[: len(targets)], chosen[len(targets) :]
    both = -negatives.expected.log()[asked]
    if bias is not None:
        both = both + bias
    offset, offsets = both[: len(targets)], both[len(targets) :]
    if boosts is not None:
        offset = offset + boosts[0]
    rows = negatives.rows.sort().values
    repeats = torch.searchsorted(rows, targets, right=True) - torch.searchsorted(rows, targets)
    return _softmax(queries, own, others, offset, offsets, repeats, None if boosts is None else boosts[1])


def l2(queries: Tensor, targets: Tensor, lookup: Lookup) -> Tensor:
    """Σ (p − y)², y the target's vector: no negative is needed. Shapes as in `cross_entropy` (You et al., 2019)."""
    return (queries - lookup(targets)[0]).square().sum(1).mean()


def ranking_loss(
    name: RankingLoss, queries: Tensor, targets: Tensor, negatives: Tensor, score: Score, delta: float, weight: float
) -> Tensor:
    """Each target against negatives of its own (You et al., 2019), p the query at length 1, s(v) = p · v (+ bias):

    nce              −log σ(s(y)) − weight · mean_j log σ(−s(n_j))
    bpr              −mean_j log σ(s(y) − s(n_j))
    bpr_sigmoid      −mean_j log σ(σ(s(y)) − σ(s(n_j))), as in the authors' code
    hinge            mean_j relu(s(n_j) − s(y) + delta)
    hinge_sigmoid    the same of σ(s)            hinge_logsigmoid: the same of log σ(s), Pinterest's choice

    queries: [T, Q], targets: int64 [T] rows ≥ 1, negatives: int64 [T, K] rows, 0 where there is none; score: of [T, Q]
    and rows [T, C] ([T, C], see Model.score_rows) → scalar.
    Negatives equal to the target are left out; a target that has none left counts with what needs none.
    """
    kept = (negatives > 0) & (negatives != targets.unsqueeze(1))
    with torch.autocast(queries.device.type, enabled=False):
        p = F.normalize(queries.float() if queries.dtype == torch.bfloat16 else queries, dim=1)
        scores = score(p, torch.cat([targets.unsqueeze(1), negatives], dim=1))
    own, others = scores[:, :1], scores[:, 1:]
    if name == "nce":
        each = -weight * F.logsigmoid(-others)
    elif name == "bpr":
        each = -F.logsigmoid(own - others)
    elif name == "bpr_sigmoid":
        each = -F.logsigmoid(own.sigmoid() - others.sigmoid())
    else:
        squash = {"hinge": lambda s: s, "hinge_sigmoid": torch.sigmoid, "hinge_logsigmoid": F.logsigmoid}[name]
        each = F.relu(squash(others) - squash(own) + delta)
    loss = (each * kept).sum(1) / kept.sum(1).clamp_min(1)
    if name == "nce":
        loss = loss - F.logsigmoid(own.squeeze(1))
    return loss.mean()


def _softmax(
    queries: Tensor,
    own: Tensor,
    others: Tensor,
    offset: Tensor,
    offsets: Tensor,
    repeats: Tensor,
    boosts: Tensor | None,
) -> Tensor:
    with torch.autocast(queries.device.type, enabled=False):
        dtype = others.dtype
        loss: Tensor = _SharedSoftmax.apply(  # type: ignore[no-untyped-call]
            queries.to(dtype),
            own,
            others,
            offset.to(dtype),
            offsets.to(dtype),
            repeats,
            None if boosts is None else boosts.to(dtype),
        )
    return loss


class _SharedSoftmax(torch.autograd.Function):
    """−log softmax of each target among itself and K shared negatives, in as few passes over [T, K] as will do.

    A negative that is the target has the target's own score, so what it adds is known and taken off again: no mask
    [T, K] is needed.

    queries, own: [T, Q], others: [K, Q], offset: [T], offsets: [K], repeats: int64 [T], negatives that are the target,
    boosts: [T, K] or None
    → the mean, a scalar
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        own: Tensor,
        others: Tensor,
        offset: Tensor,
        offsets: Tensor,
        repeats: Tensor,
        boosts: Tensor | None,
    ) -> Tensor:
        positive = (queries * own).sum(1) + offset
        weights = torch.addmm(offsets, queries, others.T)
        if boosts is not None:
            weights.add_(boosts)
        top = torch.maximum(weights.amax(1), positive) if len(others) else positive
        weights.sub_(top.unsqueeze(1)).exp_()
        mass = (positive - top).exp()
        total = weights.sum(1) + mass * (1 - repeats)
        ctx.save_for_backward(queries, own, others, weights, mass * (1 - repeats), total)
        return (total.log() + top - positive).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, own, others, weights, mass, total = ctx.saved_tensors
        share = grads[0] / (len(queries) * total)
        of_negative = weights * share.unsqueeze(1)
        of_positive = mass * share - grads[0] / len(queries)
        of_queries = torch.addcmul(of_negative @ others, of_positive.unsqueeze(1), own)
        of_own = of_positive.unsqueeze(1) * queries
        of_offsets = of_negative.sum(0) if ctx.needs_input_grad[4] else None
        of_boosts = of_negative if ctx.needs_input_grad[6] else None
        return of_queries, of_own, of_negative.T @ queries, of_positive, of_offsets, None, of_boosts
