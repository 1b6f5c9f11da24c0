"""Losses over targets, each the sum over targets divided by their number.

Legend: T targets, Q size of a query, K negatives, n items of the catalog.
"""

from __future__ import annotations

__all__ = ["cross_entropy", "sampled_softmax"]

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hiertcn.negatives import Negatives


def cross_entropy(queries: Tensor, targets: Tensor, vectors: Tensor, bias: Tensor | None) -> Tensor:
    """Full softmax over the catalog: −log softmax(q · V)[target] (the loss of You et al. on XING).

    queries: [T, Q], targets: int64 [T] rows ≥ 1, vectors: [n + 1, Q], bias: [n + 1] or None → scalar
    """
    others = vectors[1:]
    offsets = others.new_zeros(len(others)) if bias is None else bias[1:]
    own, offset = F.embedding(targets, vectors), offsets[targets - 1]
    # Every item once, the target too: shared negatives of which one is the target.
    return _softmax(queries, own, others, offset, offsets, torch.ones_like(targets))


def sampled_softmax(
    queries: Tensor,
    targets: Tensor,
    vectors: Tensor,
    bias: Tensor | None,
    negatives: Negatives,
    *,
    sparse: bool = False,
) -> Tensor:
    """Softmax over the target and shared negatives, each score less the log of how often its row is expected to be
    drawn (logQ; Bengio & Senécal, 2008; Yi et al., 2019). A negative equal to the target is masked out.

    Shapes as in `cross_entropy`; negatives: K rows → scalar. With `sparse` the gradient of `vectors` holds the rows of
    targets and negatives only.
    """
    chosen = F.embedding(torch.cat([targets, negatives.rows]), vectors, sparse=sparse)
    own, others = chosen[: len(targets)], chosen[len(targets) :]
    expected = negatives.expected.log()
    offset, offsets = -expected[targets], -expected[negatives.rows]
    if bias is not None:
        offset, offsets = offset + bias[targets], offsets + bias[negatives.rows]
    rows = negatives.rows.sort().values
    repeats = torch.searchsorted(rows, targets, right=True) - torch.searchsorted(rows, targets)
    return _softmax(queries, own, others, offset, offsets, repeats)


def _softmax(queries: Tensor, own: Tensor, others: Tensor, offset: Tensor, offsets: Tensor, repeats: Tensor) -> Tensor:
    with torch.autocast(queries.device.type, enabled=False):
        dtype = others.dtype
        loss: Tensor = _SharedSoftmax.apply(  # type: ignore[no-untyped-call]
            queries.to(dtype), own, others, offset.to(dtype), offsets.to(dtype), repeats
        )
    return loss


class _SharedSoftmax(torch.autograd.Function):
    """−log softmax of each target among itself and K shared negatives, in as few passes over [T, K] as will do.

    A negative that is the target has the target's own score, so what it adds is known and taken off again: no mask
    [T, K] is needed.

    queries, own: [T, Q], others: [K, Q], offset: [T], offsets: [K], repeats: int64 [T], negatives that are the target
    → the mean, a scalar
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, own: Tensor, others: Tensor, offset: Tensor, offsets: Tensor, repeats: Tensor
    ) -> Tensor:
        positive = (queries * own).sum(1) + offset
        weights = torch.addmm(offsets, queries, others.T)
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
        return of_queries, of_own, of_negative.T @ queries, of_positive, of_offsets, None
