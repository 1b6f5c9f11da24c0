"""Sampled negatives, shared by all targets of a batch, with the expected count of every row for the logQ correction."""

from __future__ import annotations

__all__ = ["NegativeSampler", "Negatives"]

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


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
        weights = train_events[1:].astype(np.float64) ** alpha * (train_events[1:] > 0)
        popularity = weights / weights.sum()
        share = train_events / max(int(train_events.sum()), 1)
        # Ends at exactly 1 with the last row that can be drawn, so that rounding never draws one that can't.
        self._cumulative = np.cumsum(popularity) / np.cumsum(popularity)[-1]
        self._items, self._uniform, self._popular, self._in_batch = items, uniform, popular, in_batch
        drawn = np.append(0.0, uniform / items + popular * popularity)
        self._drawn = torch.from_numpy(drawn.astype(np.float32))
        self._share = torch.from_numpy(share.astype(np.float32))

    def draw(self, targets: Tensor, rng: np.random.Generator) -> Negatives:
        """Negatives for a batch with `targets` int64 [T], on their device."""
        uniform = rng.integers(1, self._items + 1, self._uniform)
        popular = 1 + np.searchsorted(self._cumulative, rng.random(self._popular), side="right")
        rows = torch.from_numpy(np.concatenate([uniform, popular])).to(targets.device)
        expected = self._drawn.to(targets.device)
        if self._in_batch:
            rows = torch.cat([rows, targets])
            expected = expected + len(targets) * self._share.to(targets.device)
        return Negatives(rows, expected)
