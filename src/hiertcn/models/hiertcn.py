"""HierTCN: a GRU across sessions, a temporal convolutional network within the running one (You et al., WWW 2019)."""

from __future__ import annotations

__all__ = ["HierTCN", "HierTCNConfig"]

from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from hiertcn.config import Count, Dropout, Positive
from hiertcn.crowd import Horizons
from hiertcn.models.aggregation import Aggregate, aggregate
from hiertcn.models.boosts import CrowdBoosts, RepeatBoosts, joined, some
from hiertcn.models.low import Low, low_level
from hiertcn.models.protocol import VectorConfig, VectorModel
from hiertcn.models.recurrence import StackedGRU, place_of
from hiertcn.ragged import SessionBatch, shift

WEEK = 168 * 3600.0
GAP_BUCKETS = 28
_QUIET = 0.1
Hours = Annotated[tuple[Positive, ...], Field(max_length=8, strict=False)]


class HierTCNConfig(VectorConfig):
    """Defaults are the paper's for short sessions; `dropout`, `norm` and `clock` are ours and off.

    low:         what reads the running session: "tcn"; or as baselines of You et al. "gru" (HierGRU), of as many layers
                 as there are channels, or "mean" (Hier-MV), of what was read so far
    head:        "embedding" emits a query in the space of the item vectors; "softmax" has output vectors of its own
    gap_decay:   "fixed" multiplies the state by exp(−gap / 168 h) before a session, "learned" learns the bandwidth
    impressions: the mean vector of what was shown beside the previous event is read with its item's
    trends, follows: horizons (hours, increasing) over which what everybody picked lately boosts scores: of all items,
                 and after the person's last item; none: no boosts
    repeats:     so many last items of the person are kept in the state, too, and have boosts
    clock:       embeddings of the hour and the gap a model may know (of the previous event, or where a session begins)
    """

    name: ClassVar[str] = "hiertcn"

    units: Count = 128
    state_layers: Count = 2
    channels: Annotated[tuple[Count, ...], Field(min_length=1, strict=False)] = (128, 128)
    kernel: Count = 5
    low: Low = "tcn"
    aggregate: Aggregate = "mean"
    head: Literal["embedding", "softmax"] = "embedding"
    gap_decay: Literal["none", "fixed", "learned"] = "none"
    impressions: bool = False
    dropout: Dropout = 0.0
    norm: bool = False
    clock: bool = False
    trends: Hours = ()
    follows: Hours = ()
    repeats: Annotated[int, Field(ge=0, le=4096)] = 0

    @property
    def boosts(self) -> bool:
        """Whether queries boost single items."""
        return bool(self.trends or self.follows or self.repeats)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.head == "softmax" and (self.vectors not in (None, "learned") or self.ranking != "inner" or self.unit):
            raise ValueError('head should be "embedding" for given vectors, "l2" ranking or unit queries')
        if any(list(hours) != sorted(set(hours)) for hours in (self.trends, self.follows)):
            raise ValueError("trends and follows should be horizons in increasing order")
        if self.low == "gru" and len(set(self.channels)) > 1:
            raise ValueError('channels should all be the same for low = "gru"')
        return self


class HierTCN(VectorModel):
    """z = W_z [E x; s]; h = TCN(z); u = W h. `s` is folded once a finished session: s ← GRU(AGG(session), s).

    The state is s, and behind it, as numbers, the rows of the last items that `repeats` asks for, oldest first.
    """

    def __init__(self, items: int, config: HierTCNConfig, given: Tensor | None = None) -> None:
        self.long_size = config.state_layers * config.units
        super().__init__(items, self.long_size + config.repeats, config, given)
        self.config = config
        width = config.channels[0]
        self.high = StackedGRU(config.dim, config.units, config.state_layers)
        # The column blocks of W_z: the state's share is computed once a session, not once an event.
        self.input_item = nn.Linear(config.dim, width, bias=False)
        self.input_state = nn.Linear(self.long_size, width, bias=False)
        self.input_skipped = nn.Linear(config.dim, width, bias=False) if config.impressions else None
        self.reads_impressions = config.impressions
        self.clock = Clock(width) if config.clock else None
        self.norm = nn.LayerNorm(width) if config.norm else nn.Identity()
        # Named for what it is in the paper's model.
        self.tcn = low_level(config.low, width, config.channels, config.kernel, config.dropout, config.norm)
        self.head = nn.Linear(config.channels[-1], self.items.query_size if config.head == "embedding" else items + 1)
        self.horizons = Horizons(config.trends, config.follows)
        columns = len(config.trends) + len(config.follows)
        self.crowd_boosts = CrowdBoosts(config.channels[-1], columns) if columns else None
        self.repeat_boosts = RepeatBoosts(config.channels[-1], config.repeats) if config.repeats else None
        self.dropout = nn.Dropout(config.dropout)
        if config.boosts:
            # So that the first scores are those of the boosts, and what is not learned yet adds little noise to them.
            with torch.no_grad():
                self.head.weight.mul_(_QUIET)
        if config.gap_decay == "learned":
            self.log_bandwidth = nn.Parameter(torch.tensor(168.0).log())

    @property
    def query_size(self) -> int:
        return super().query_size if self.config.head == "embedding" else self.head.in_features

    @property
    def vectors(self) -> Tensor:
        return super().vectors if self.config.head == "embedding" else self.head.weight

    @property
    def bias(self) -> Tensor | None:
        return super().bias if self.config.head == "embedding" else self.head.bias

    def lookup(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.config.head == "embedding":
            return super().lookup(rows)
        return F.embedding(rows, self.head.weight), self.head.bias[rows]

    def _decay(self, gaps: Tensor) -> Tensor | None:
        """[M]: what the state is multiplied by after a pause of `gaps` [M] seconds."""
        if self.config.gap_decay == "none":
            return None
        bandwidth = self.log_bandwidth.exp() * 3600 if self.config.gap_decay == "learned" else WEEK
        return torch.exp(-gaps / bandwidth)

    def _item_vectors(self, batch: SessionBatch) -> Tensor:
        out: Tensor = self.dropout(self.items(batch.items))
        return out

    def _skipped(self, batch: SessionBatch) -> Tensor:
        """[N, D]: the mean vector of what was shown beside each position's item; zero where that is not known."""
        vectors = self.items(batch.skipped)
        sums = vectors.new_zeros(len(batch.items), vectors.shape[1]).index_add(0, batch.skipped_at, vectors)
        # Not bincount: it waits for the device.
        ones = torch.ones_like(batch.skipped_at, dtype=vectors.dtype)
        count = vectors.new_zeros(len(batch.items)).index_add(0, batch.skipped_at, ones)
        mean: Tensor = sums / count.clamp_min(1).unsqueeze(1)
        return mean

    def _fold(self, batch: SessionBatch, initial: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        finished = aggregate(vectors, batch, self.config.aggregate).index_select(0, batch.folds)
        decay = self._decay(batch.gaps)
        long_term, last = initial[:, : self.long_size], initial[:, self.long_size :]
        states = self.high(finished, batch.users, long_term, None if decay is None else decay[batch.folds])
        before, after = place_of(long_term, states, batch.before), place_of(long_term, states, batch.after)
        if self.repeat_boosts is None:
            return before, after
        rows, sequences = batch.items.unsqueeze(1).to(last.dtype), batch.by_user
        last_before, last_after = (sequences.windows(rows, last, at) for at in (sequences.begun, sequences.after))
        return torch.cat([before, last_before], dim=1), torch.cat([after, last_after], dim=1)

    def _encode(self, batch: SessionBatch, long_term: Tensor, vectors: Tensor) -> Tensor:
        long_term, last = long_term[:, : self.long_size], long_term[:, self.long_size :]
        decay = self._decay(batch.gaps)
        if decay is not None:
            long_term = long_term * decay.unsqueeze(1)
        state = self.input_state(self.dropout(long_term))
        given = self.input_item(vectors)
        if self.input_skipped is not None:
            given = given + self.input_skipped(self.dropout(self._skipped(batch)))
        hidden = shift(given, batch) + state.index_select(0, batch.session)
        if self.clock is not None:
            hidden = hidden + self.clock(batch)
        hidden = self.tcn(self.norm(hidden), batch)
        queries = hidden if self.config.head == "softmax" else self.finished(self.head(hidden))
        boosts = [] if self.crowd_boosts is None else [self.crowd_boosts(hidden, batch)]
        if self.repeat_boosts is not None:
            rows = batch.by_session.windows(batch.items.unsqueeze(1), last.long(), batch.by_session.before)
            repeated, weights = self.repeat_boosts(hidden, batch, rows)
            boosts.append((repeated, some(weights, self.config.dropout) if self.training else weights))
        return torch.cat([queries, joined(boosts)], dim=1) if boosts else queries

    def fold(self, batch: SessionBatch, initial: Tensor) -> tuple[Tensor, Tensor]:
        return self._fold(batch, initial, self._item_vectors(batch))

    def encode(self, batch: SessionBatch, long_term: Tensor) -> Tensor:
        return self._encode(batch, long_term, self._item_vectors(batch))

    def forward(self, batch: SessionBatch, initial: Tensor) -> tuple[Tensor, Tensor]:
        vectors = self._item_vectors(batch)
        before, after = self._fold(batch, initial, vectors)
        return self._encode(batch, before, vectors), after


class Clock(nn.Module):
    """[N, width] from what a model may know of time: hour and weekday of `seen`, and how long the last pause was.

    Ours; You et al. give the model no time but the gap.

    The pause is the gap before the session at its first position and the time between the two previous events later;
    the two share no embedding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hour = nn.Embedding(24, width)
        self.weekday = nn.Embedding(7, width)
        self.pause = nn.Embedding(2 * GAP_BUCKETS, width)
        for table in (self.hour, self.weekday, self.pause):
            # So that they begin without a say: at random they drown what the items tell, and learning starts late.
            nn.init.zeros_(table.weight)

    def forward(self, batch: SessionBatch) -> Tensor:
        begin, source = batch.lag(1)
        later = (batch.seen[begin:] - batch.seen[source]).float()
        first = batch.gaps[batch.session[:begin]]
        bucket = torch.cat([first, later]).clamp_min(0).add(1).log2().long().clamp_max(GAP_BUCKETS - 1)
        bucket[begin:] += GAP_BUCKETS
        hours = (batch.seen / 3600).long()
        # 1970-01-01 was a Thursday; Monday is 0.
        weekday = (hours // 24 + 3) % 7
        out: Tensor = self.hour(hours % 24) + self.weekday(weekday) + self.pause(bucket)
        return out
