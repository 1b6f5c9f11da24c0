"""Boosts: what a query adds to the scores of single items, beside what their vectors give. Ours.

Behind the vector of a query stand its boosted rows and then their boosts, so it stays one tensor [T, Q + 2J].

Legend: N positions, T targets, J boosted items of a query, Q size of a query's vector, n items, C columns of
the crowd.
"""

from __future__ import annotations

__all__ = ["LARGEST", "CrowdBoosts", "RepeatBoosts", "among", "joined", "of_rows", "some", "spread"]

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiertcn.ragged import SessionBatch

LARGEST = 1 << 24
"""Rows from here on are no exact float32."""
# So that one pick within the horizon tells an item from those that nobody picked.
_STEEP = 10.0
_BEGIN = 0.1
# A repeat may be a hundred times as likely as any other item; a parameter moves by the learning rate a step.
_FAST = 5.0
# So large that what the person picked stays above what everybody did where there is too little to learn which counts
# more: chosen by the validation parts of a log of 1,600 events, and one of 345,000, which it makes no difference to.
_RECENT = 0.6


class CrowdBoosts(nn.Module):
    """w_c log(1 + 10 t_c) for items that weigh t_c in the column c of the crowd; w = W hidden + b."""

    def __init__(self, width: int, columns: int) -> None:
        super().__init__()
        self.weigh = nn.Linear(width, columns)
        nn.init.zeros_(self.weigh.weight)
        nn.init.constant_(self.weigh.bias, _BEGIN)

    def forward(self, hidden: Tensor, batch: SessionBatch) -> tuple[Tensor, Tensor]:
        """[N, C K] item rows, 0 for none, and their boosts. Raises ValueError for a batch that knows another crowd."""
        if batch.crowd_weights.shape[1] != self.weigh.out_features:
            raise ValueError(
                f"the crowd has {batch.crowd_weights.shape[1]} columns, expected {self.weigh.out_features}"
            )
        return batch.crowd_rows.flatten(1), self.weighed(hidden, batch.crowd_weights)

    def weighed(self, hidden: Tensor, weights: Tensor) -> Tensor:
        """[N, C K]: the boosts of items that weigh `weights` [N, C, K]."""
        boosts: Tensor = self.weigh(hidden).unsqueeze(2) * torch.log1p(weights * _STEEP)
        return boosts.flatten(1)


class RepeatBoosts(nn.Module):
    """w_l for the item that was picked l events ago, other ones in the running session and before it. Far back, several
    l share one. w = W hidden + 5 b."""

    def __init__(self, width: int, last: int) -> None:
        super().__init__()
        self._last, self._buckets = last, int(_buckets(torch.arange(last, last + 1, device="cpu"))) + 1
        self.weigh = nn.Linear(width, 2 * self._buckets, bias=False)
        nn.init.zeros_(self.weigh.weight)
        # Where there is little to learn from, last items first is the best guess.
        self.bias = nn.Parameter(torch.linspace(_RECENT, 0, self._buckets).repeat(2))

    def forward(self, hidden: Tensor, batch: SessionBatch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """[N, last] item rows, 0 for none, and their boosts. rows: the same rows, oldest first."""
        return rows.flip(1), self.weighed(hidden, batch.step)

    def weighed(self, hidden: Tensor, step: Tensor) -> Tensor:
        """[N, last]: the boosts of the last items, the latest first, of positions `step` [N] of their sessions."""
        lags = torch.arange(1, self._last + 1, device=hidden.device)
        before = lags > step.unsqueeze(1)
        boosts: Tensor = self.weigh(hidden) + _FAST * self.bias
        return boosts.gather(1, _buckets(lags) + self._buckets * before)


def _buckets(lags: Tensor) -> Tensor:
    """int64: the same for 4 and 5, 6 and 7, 8 to 11, 12 to 15 … items ago."""
    # Only powers of two are near a bound, and they are on it.
    return (2 * lags.double().log2() + 1e-6).long()


def some(boosts: Tensor, dropout: float) -> Tensor:
    """Each boost, or with the chance `dropout` none: the vectors are to learn what they tell, too. Those that stay are
    not scaled: they mean the same when all are there."""
    return boosts * (torch.rand_like(boosts) >= dropout)


def joined(boosts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """[N, 2J], what stands behind the vectors of queries: of pairs of rows and boosts [N, …]."""
    rows, values = (torch.cat(parts, dim=1) for parts in zip(*boosts, strict=True))
    values = values.float() if values.dtype == torch.bfloat16 else values
    return torch.cat([rows.to(values.dtype), values], dim=1)


def _halves(tail: Tensor) -> tuple[Tensor, Tensor]:
    rows, boosts = tail.chunk(2, dim=1)
    return rows.long(), boosts


def spread(tail: Tensor, items: int) -> Tensor:
    """[T, n]: the boosts `tail` [T, 2J] of every item of the catalog."""
    rows, boosts = _halves(tail)
    return boosts.new_zeros(len(tail), items + 1).scatter_add(1, rows, boosts)[:, 1:]


def among(tail: Tensor, asked: Tensor) -> Tensor:
    """[T, C]: the boosts `tail` [T, 2J] of item rows `asked` [C], the same for all."""
    rows, boosts = _halves(tail)
    ordered = asked.sort().values
    place = torch.searchsorted(ordered, rows).clamp_max(len(ordered) - 1)
    found = boosts * (ordered[place] == rows)
    # What is asked for twice has its boosts at the first place.
    dense = boosts.new_zeros(len(tail), len(asked)).scatter_add(1, place, found)
    return dense[:, torch.searchsorted(ordered, asked)]


def of_rows(tail: Tensor, asked: Tensor) -> Tensor:
    """[T, C]: the boosts `tail` [T, 2J] of item rows `asked` [T, C], each query's own."""
    rows, boosts = _halves(tail)
    rows, order = rows.sort(dim=1)
    # In double precision, since small boosts are differences of large sums.
    sums = F.pad(boosts.gather(1, order).double().cumsum(1), (1, 0))
    asked = asked.contiguous()
    first, past = torch.searchsorted(rows, asked), torch.searchsorted(rows, asked, right=True)
    return (sums.gather(1, past) - sums.gather(1, first)).to(boosts.dtype)
