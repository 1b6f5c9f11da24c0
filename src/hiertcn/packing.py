"""The step-major order of ragged sequences: all first elements, longest sequence first, then all second ones, …"""

from __future__ import annotations

__all__ = ["Lagged", "Packing"]

from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Lagged(Protocol):
    """Step-major elements of which the ones before are known."""

    def lag(self, lag: int) -> tuple[int, Tensor]:
        """(begin, source [N - begin]): elements from `begin` on have one `lag` steps earlier, at `source`."""


class Packing:
    """The step-major order of G sequences that lie one after another, with `lengths` [G] (zeros allowed).

    flat:  int64 [N], the flat place of each packed element     place: int64 [N], the packed place of each flat element
    sizes: int64 [L] on the CPU, sequences longer than t         ranked: int64 [G], sequences, longest first
    """

    def __init__(self, lengths: npt.NDArray[np.int64]) -> None:
        ranked = np.argsort(-lengths, kind="stable")
        longest = int(lengths[ranked[0]]) if len(lengths) else 0
        sizes = np.searchsorted(-lengths[ranked], -np.arange(longest), side="left").astype(np.int64)
        steps = np.repeat(np.arange(longest), sizes)
        self._offsets = np.concatenate([[0], np.cumsum(sizes)])
        starts = (np.cumsum(lengths) - lengths)[ranked]
        slots = np.arange(len(steps)) - self._offsets[steps]
        flat = starts[slots] + steps
        place = np.empty(len(flat), dtype=np.int64)
        place[flat] = np.arange(len(flat))
        self._steps, self._slots = steps, slots
        self.sizes = torch.from_numpy(sizes)
        self.ranked = torch.from_numpy(ranked)
        self.flat = torch.from_numpy(flat)
        self.place = torch.from_numpy(place)

    @property
    def active(self) -> Tensor:
        """int64: the sequences that are not empty, longest first."""
        return self.ranked[: int(self.sizes[0]) if len(self.sizes) else 0]

    @cached_property
    def sequence(self) -> Tensor:
        """int64 [N]: the sequence of each packed element."""
        return self.ranked[torch.from_numpy(self._slots)]

    def lag(self, lag: int) -> tuple[int, Tensor]:
        """(begin, source [N - begin]): packed elements from `begin` on have one `lag` steps earlier, at `source`."""
        if lag >= len(self._offsets):
            return len(self._steps), torch.empty(0, dtype=torch.int64)
        begin = int(self._offsets[lag])
        return begin, torch.from_numpy(self._offsets[self._steps[begin:] - lag] + self._slots[begin:])
