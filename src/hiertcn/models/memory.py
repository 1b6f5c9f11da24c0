"""Models that remember the sessions they were shown, and learn nothing else."""

from __future__ import annotations

__all__ = ["MemoryModel"]

from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hiertcn.models.protocol import Model

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Memory:
    """Sessions of known items, and in which of them each item is. S sessions, E events, n items.

    items: int64 [E], offsets: int64 [S + 1], ends: float64 [S], seconds
    """

    def __init__(self, items: Ints, offsets: Ints, ends: Floats, catalog: int) -> None:
        self.items, self.offsets, self.ends = items, offsets, ends
        owner = np.repeat(np.arange(len(ends)), np.diff(offsets))
        session, item = np.divmod(np.unique(owner * (catalog + 1) + items), catalog + 1)
        self.distinct = np.bincount(session, minlength=len(ends))
        """int64 [S]: different items of each session."""
        order = np.lexsort((-ends[session], item))
        self.sessions = session[order]
        self.of_item = np.searchsorted(item[order], np.arange(catalog + 2))
        """Sessions that hold item i, the latest first: sessions[of_item[i]:of_item[i + 1]]."""


class MemoryModel(Model):
    """`memorise` takes the train sessions in; the model's tensors are these sessions."""

    memory_items: Tensor
    memory_offsets: Tensor
    memory_ends: Tensor

    def __init__(self, items: int, state_size: int) -> None:
        super().__init__(items, state_size)
        self.register_buffer("memory_items", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("memory_offsets", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("memory_ends", torch.zeros(0, dtype=torch.float64))

    def memorise(self, items: Tensor, offsets: Tensor, ends: Tensor) -> None:
        """Take in sessions: item rows int32 [E], offsets int64 [S + 1], and when each ended, float64 [S] seconds.

        Raises ValueError unless the offsets fit and the rows are of the catalog.
        """
        given = ((items, torch.int32), (offsets, torch.int64), (ends, torch.float64))
        right = all(tensor.ndim == 1 and tensor.dtype == dtype for tensor, dtype in given)
        if not right or len(offsets) != len(ends) + 1 or offsets[0] != 0 or offsets[-1] != len(items):
            raise ValueError("the sessions have offsets that do not fit")
        if (offsets.diff() <= 0).any() or not items.clamp(1, self.items_in_catalog).equal(items):
            raise ValueError("the sessions are empty or hold items outside the catalog")
        self.memory_items, self.memory_offsets, self.memory_ends = items, offsets, ends

    @cached_property
    def memory(self) -> Memory:
        tensors = (self.memory_items, self.memory_offsets, self.memory_ends)
        items, offsets, ends = (tensor.cpu().numpy() for tensor in tensors)
        return Memory(items.astype(np.int64), offsets, ends, self.items_in_catalog)
