"""Models whose state is the rows of a person's last items, whatever sessions they were in."""

from __future__ import annotations

__all__ = ["Windowed"]

import torch
from torch import Tensor

from hiertcn.models.protocol import Model
from hiertcn.ragged import SessionBatch


class Windowed(Model):
    """State int64 [W]: the last W item rows, oldest first, 0 where there are fewer."""

    state_dtype = torch.int64

    def fold(self, batch: SessionBatch, initial: Tensor) -> tuple[Tensor, Tensor]:
        windows = batch.by_user.windows(batch, initial)
        return windows[batch.by_user.begun], windows[batch.by_user.after]

    def last_items(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        """int64 [N, W]: the last item rows before each position, out of its session and of `long_term` [M, W]."""
        return batch.by_session.windows(batch, long_term)[batch.by_session.before]
