"""Negatives: drawn ones that all targets of a batch share, with the expected count of every row for the logQ
correction; and each target's own, of what was shown beside it, or drawn where that is not known."""

from __future__ import annotations

__all__ = ["Drawn", "NegativeSampler", "Negatives", "OwnNegatives"]

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Drawn = Literal["uniform", "popular", "in_batch"]


@dataclass(frozen=True)
class Negatives:
    """`rows` int64 [K]: the drawn item rows, repeats and all; `expected` float32 [items + 1]: how often each row is
    drawn on average in such a batch, the targets' own share in it when they are negatives of one another."""

    rows: Tensor
    expected: Tensor


class NegativeSampler:
    """Draws `uniform` rows uniformly and `popular` rows in proportion to train events^`alpha`; with `in_batch` the
    batch's targets are negatives of one another too. K = uniform + popular (+ T)."""

    def __init__(
        self, train_events: npt.NDArray[np.int64], uniform: int, popular: int, alpha: float, in_batch: bool
    ) -> None:
        items = len(train_events) - 1
        self._cumulative = _cumulative(train_events, alpha)
        popularity = np.diff(self._cumulative, prepend=0.0)
        share = train_events / max(int(train_events.sum()), 1)
        self._items, self._uniform, self._popular, self._in_batch = items, uniform, popular, in_batch
        drawn = np.append(0.0, uniform / items + popular * popularity)
        self._drawn = torch.from_numpy(drawn.astype(np.float32))
        self._share = torch.from_numpy(share.astype(np.float32))

    def draw(self, targets: Tensor, rng: np.random.Generator) -> Negatives:
        """Negatives for a batch with `targets` int64 [T], on their device."""
        uniform = rng.integers(1, self._items + 1, self._uniform)
        popular = _popular(self._cumulative, rng, self._popular)
        rows = torch.from_numpy(np.concatenate([uniform, popular])).to(targets.device)
        expected = self._drawn.to(targets.device)
        if self._in_batch:
            rows = torch.cat([rows, targets])
            expected = expected + len(targets) * self._share.to(targets.device)
        return Negatives(rows, expected)


class OwnNegatives:
    """For each target `count` rows of its own: what was shown beside it, or else drawn from `drawn`."""

    def __init__(self, train_events: npt.NDArray[np.int64], count: int, drawn: Drawn, alpha: float) -> None:
        self._items, self._count, self._drawn = len(train_events) - 1, count, drawn
        self._cumulative = _cumulative(train_events, alpha)

    def draw(self, targets: Tensor, shown: Tensor, rng: np.random.Generator) -> Tensor:
        """int64 [T, count] rows, 0 for none, for `targets` [T] and `shown` [T, W], 0 behind the last."""
        size = (len(targets), self._count)
        if self._drawn == "in_batch":
            rows = targets[torch.from_numpy(rng.integers(0, len(targets), size)).to(targets.device)]
        else:
            uniform = self._drawn == "uniform"
            drawn = rng.integers(1, self._items + 1, size) if uniform else _popular(self._cumulative, rng, size)
            rows = torch.from_numpy(drawn).to(targets.device)
        if not shown.shape[1]:
            return rows
        own = torch.nn.functional.pad(shown, (0, max(0, self._count - shown.shape[1])))
        if own.shape[1] > self._count:
            # By chance: what was shown lies in the order of item rows, the most popular first.
            order = torch.from_numpy(rng.random(tuple(own.shape))).to(own.device).masked_fill(own == 0, 2.0).argsort(1)
            own = own.gather(1, order[:, : self._count])
        return torch.where((own > 0).any(1, keepdim=True), own, rows)


def _cumulative(train_events: npt.NDArray[np.int64], alpha: float) -> npt.NDArray[np.float64]:
    """[items]: of drawing in proportion to train events^alpha."""
    summed = np.cumsum(train_events[1:].astype(np.float64) ** alpha * (train_events[1:] > 0))
    # Ends at exactly 1 with the last row that can be drawn, so that rounding never draws one that can't.
    out: npt.NDArray[np.float64] = summed / summed[-1]
    return out


def _popular(
    cumulative: npt.NDArray[np.float64], rng: np.random.Generator, size: int | tuple[int, int]
) -> npt.NDArray[np.int64]:
    return (1 + np.searchsorted(cumulative, rng.random(size), side="right")).astype(np.int64)
