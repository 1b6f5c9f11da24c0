"""Models whose state is a person's last items, whatever sessions they were in."""

from __future__ import annotations

__all__ = ["OneSequence", "Windowed"]

from abc import abstractmethod

import torch
from torch import Tensor

from hiertcn.models.protocol import Model, VectorModel
from hiertcn.models.recurrence import place_of
from hiertcn.ragged import SessionBatch
from hiertcn.sequences import Continued, Sequences


class Windowed(Model):
    """State int64 [W · C]: what is `kept` of the last W items, oldest first, 0 where there are fewer."""

    state_dtype = torch.int64

    def kept(self, batch: SessionBatch) -> Tensor:
        """int64 [N, C]: what is kept of the item at each position, its row first."""
        return batch.items.unsqueeze(1)

    def fold(self, batch: SessionBatch, initial: Tensor) -> tuple[Tensor, Tensor]:
        sequences, kept = batch.by_user, self.kept(batch)
        return sequences.windows(kept, initial, sequences.begun), sequences.windows(kept, initial, sequences.after)

    def last_items(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        """int64 [N, W · C]: the last items before each position, out of its session and of `long_term` [M, W · C]."""
        return batch.by_session.windows(self.kept(batch), long_term, batch.by_session.before)


class OneSequence(Windowed, VectorModel):
    """A network over a person's last W items as one sequence, whatever sessions they were in.

    The state is the rows of as many items as a query sees, so they are read again when the person comes back; a batch
    reads them once a user, and never a window a position. `head` maps what `read` gives to queries.
    """

    width: int
    head: torch.nn.Module

    @abstractmethod
    def read(self, sequences: Continued) -> Tensor:
        """[P, width] after each element, which sees it and the W − 1 before it."""

    def _queries(self, batch: SessionBatch, sequences: Sequences, initial: Tensor) -> Tensor:
        continued = sequences.continued(batch.items, initial)
        hidden = self.read(continued)
        # Of somebody without items nothing was read.
        nothing = hidden.new_zeros(1, self.width)
        return self.finished(self.head(place_of(nothing, hidden, continued.latest[sequences.before])))

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        return self._queries(batch, batch.by_session, long_term)

    def forward(self, batch: SessionBatch, initial: Tensor) -> tuple[Tensor, Tensor]:
        sequences = batch.by_user
        after = sequences.windows(self.kept(batch), initial, sequences.after)
        return self._queries(batch, sequences, initial), after
