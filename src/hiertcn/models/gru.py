"""GRU: one flat recurrent network over all of a user's events, without sessions (Hidasi et al., 2016)."""

from __future__ import annotations

__all__ = ["GRU", "GRUConfig"]

from typing import ClassVar

from torch import Tensor, nn

from hiertcn.config import Count, Dropout
from hiertcn.models.protocol import VectorConfig, VectorModel
from hiertcn.models.recurrence import StackedGRU, place_of
from hiertcn.ragged import SessionBatch
from hiertcn.sequences import Sequences


class GRUConfig(VectorConfig):
    """Two layers of 200 units are the paper's baseline."""

    name: ClassVar[str] = "gru"

    units: Count = 200
    layers: Count = 2
    dropout: Dropout = 0.0


class GRU(VectorModel):
    """The state is the hidden units of all layers after the last event; u = W h of the last layer."""

    def __init__(self, items: int, config: GRUConfig, given: Tensor | None = None) -> None:
        super().__init__(items, config.layers * config.units, config, given)
        self.config = config
        self.cells = StackedGRU(config.dim, config.units, config.layers)
        self.head = nn.Linear(config.units, self.items.query_size)
        self.dropout = nn.Dropout(config.dropout)

    def _states(self, batch: SessionBatch, sequences: Sequences, initial: Tensor) -> Tensor:
        out: Tensor = self.cells(self.dropout(self.items(batch.items[sequences.source])), sequences.packing, initial)
        return out

    def _query(self, states: Tensor) -> Tensor:
        return self.finished(self.head(self.dropout(states[:, -self.config.units :])))

    def fold(self, batch: SessionBatch, initial: Tensor) -> tuple[Tensor, Tensor]:
        states = self._states(batch, batch.by_user, initial)
        return place_of(initial, states, batch.by_user.begun), place_of(initial, states, batch.by_user.after)

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        sequences = batch.by_session
        return self._query(place_of(long_term, self._states(batch, sequences, long_term), sequences.before))

    def forward(self, batch: SessionBatch, initial: Tensor) -> tuple[Tensor, Tensor]:
        states = self._states(batch, batch.by_user, initial)
        after = place_of(initial, states, batch.by_user.after)
        return self._query(place_of(initial, states, batch.by_user.before)), after
