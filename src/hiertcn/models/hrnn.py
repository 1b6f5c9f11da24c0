"""HRNN: a GRU within the session that starts from the state across sessions (Quadrana et al., RecSys 2017)."""

from __future__ import annotations

__all__ = ["HRNN", "HRNNConfig"]

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from hiertcn.config import Count, Dropout
from hiertcn.models.protocol import VectorConfig, VectorModel
from hiertcn.models.recurrence import StackedGRU, place_of
from hiertcn.packing import Packing
from hiertcn.ragged import Ints, SessionBatch


class HRNNConfig(VectorConfig):
    """`units` of each of the two GRUs."""

    name: ClassVar[str] = "hrnn"

    units: Count = 128
    dropout: Dropout = 0.0


class HRNN(VectorModel):
    """h_0 = tanh(W s); h ← GRU(E x, h); s ← GRU(h at the session's end, s); u = W h.

    The state needs the low level's last unit, so sessions of one user have to be computed one after another.
    """

    def __init__(self, items: int, config: HRNNConfig, given: Tensor | None = None) -> None:
        super().__init__(items, config.units, config, given)
        self.config = config
        self.low = StackedGRU(config.dim, config.units, 1)
        self.high = StackedGRU(config.units, config.units, 1)
        self.start = nn.Linear(config.units, config.units)
        self.head = nn.Linear(config.units, self.items.query_size)
        self.dropout = nn.Dropout(config.dropout)

    def _read(self, vectors: Tensor, batch: SessionBatch, long_term: Tensor) -> Tensor:
        """The low level over all sessions at once: hidden units [N, units] before each position."""
        start = torch.tanh(self.start(long_term))
        sequences = batch.by_session
        states = self.low(vectors[sequences.source], sequences.packing, start)
        return place_of(start, states, sequences.before)

    def _run(self, batch: SessionBatch, initial: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden units [N, units], the state before each session [M, units], and after each user's finished ones."""

        def on_device(places: Ints) -> Tensor:
            return torch.from_numpy(places).to(batch.items.device)

        vectors = self.dropout(self.items(batch.items))
        lengths, place = batch.session_lengths, batch.layout.place.numpy()
        first, starts = np.cumsum(batch.user_sessions) - batch.user_sessions, np.cumsum(lengths) - lengths
        items = np.bincount(batch.session.cpu().numpy(), weights=batch.items.cpu().numpy() > 0).astype(np.int64)
        folded = np.isin(np.arange(batch.sessions), batch.folds.cpu().numpy())
        state, hidden, befores = initial, [], []
        positions, order = [], []
        for turn in range(int(batch.user_sessions.max())):
            users = np.flatnonzero(batch.user_sessions > turn)
            sessions = first[users] + turn
            packing = Packing(lengths[sessions])
            steps = np.repeat(np.arange(len(packing.sizes)), packing.sizes.numpy())
            at = on_device(place[starts[sessions][packing.sequence.numpy()] + steps])
            before = state[on_device(users)]
            start = torch.tanh(self.start(before))
            outputs = self.low(vectors[at], packing, start)
            source = packing.lag(1)[1].numpy()
            hidden.append(torch.cat([start[on_device(packing.active.numpy())], outputs[on_device(source)]]))
            positions.append(at)
            befores.append(before)
            order.append(sessions)
            folds = np.flatnonzero(folded[sessions])
            if len(folds):
                ends = (np.cumsum(lengths[sessions]) - lengths[sessions] + items[sessions] - 1)[folds]
                last = outputs[on_device(packing.place.numpy()[ends])]
                one_each = Packing(np.ones(len(folds), dtype=np.int64))
                after = self.high(last, one_each, before[on_device(folds)])
                state = state.index_copy(0, on_device(users[folds]), after.to(state.dtype))
        by_position, by_session = torch.cat(positions).argsort(), on_device(np.concatenate(order)).argsort()
        return torch.cat(hidden)[by_position], torch.cat(befores)[by_session], state

    def fold(self, batch: SessionBatch, initial: Tensor) -> tuple[Tensor, Tensor]:
        _, before, after = self._run(batch, initial)
        return before, after

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        hidden = self._read(self.dropout(self.items(batch.items)), batch, long_term)
        return self.finished(self.head(self.dropout(hidden)))

    def forward(self, batch: SessionBatch, initial: Tensor) -> tuple[Tensor, Tensor]:
        hidden, _, after = self._run(batch, initial)
        return self.finished(self.head(self.dropout(hidden))), after
