"""AGG: what a finished session is summed up to before the long-term state reads it (You et al., 2019)."""

from __future__ import annotations

__all__ = ["AGGREGATES", "aggregate"]

from typing import Literal, get_args

import torch
from torch import Tensor

from hiertcn.ragged import SessionBatch

Aggregate = Literal["mean", "max"]
AGGREGATES = get_args(Aggregate)


def aggregate(vectors: Tensor, batch: SessionBatch, how: Aggregate) -> Tensor:
    """[M, D]: the mean or the elementwise maximum of the known items' `vectors` [N, D] of each session.

    A session without a known item gives zeros; it is never folded.
    """
    if how == "mean":
        return batch.session_sum(vectors * batch.known) / batch.session_sum(batch.known).clamp_min(1)
    lowest = vectors.new_full((batch.sessions, vectors.shape[1]), -torch.inf)
    masked = vectors.masked_fill(batch.known == 0, -torch.inf)
    index = batch.session.unsqueeze(1).expand_as(masked)
    largest = lowest.scatter_reduce(0, index, masked, "amax")
    return largest.masked_fill(largest == -torch.inf, 0.0)
