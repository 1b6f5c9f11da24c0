"""Losses over targets, each the sum over targets divided by their number.

Legend: T targets, Q size of a query, K negatives, n items of the catalog.
"""

from __future__ import annotations

__all__ = ["cross_entropy", "sampled_softmax"]

import torch
from torch import Tensor
from torch.nn import functional as F

from hiertcn.negatives import Negatives


def cross_entropy(queries: Tensor, targets: Tensor, vectors: Tensor, bias: Tensor | None) -> Tensor:
    """Full softmax over the catalog: −log softmax(q · V)[target] (the loss of You et al. on XING).

    queries: [T, Q], targets: int64 [T] rows ≥ 1, vectors: [n + 1, Q], bias: [n + 1] or None → scalar
    """
    logits = queries @ vectors[1:].T if bias is None else torch.addmm(bias[1:], queries, vectors[1:].T)
    return F.cross_entropy(logits.float(), targets - 1)


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
    positive = (queries * own).sum(1) + offset
    negative = torch.addmm(offsets, queries, others.T)
    same = negatives.rows.int() == targets.int().unsqueeze(1)
    negative = negative.masked_fill_(same, -torch.inf)
    # −log softmax of the target among itself and the negatives.
    return F.softplus(negative.float().logsumexp(1) - positive.float()).mean()
