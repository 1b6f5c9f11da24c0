"""Everything computed on unpadded sessions. The hot code of the models lives here and nowhere else.

A batch is laid out *step-major*: the first position of every session, longest session first, then the second position
of every session that has one, and so on (the order of torch's PackedSequence). Then the positions that have a
predecessor `lag` steps back in their session are exactly a suffix of the batch, so a causal tap is one gather and one
matrix product on the positions that need it, and nothing is ever computed on padding.

Legend: N positions, M sessions, U users, F folding sessions, G sequences, C channels, K taps, S size of the state.
"""

from __future__ import annotations

__all__ = ["Ints", "SessionBatch", "causal_conv", "pack_sessions", "shift"]

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hiertcn.crowd import Crowd
from hiertcn.packing import Lagged, Packing
from hiertcn.sequences import Latest, Sequences

Ints = npt.NDArray[np.int64]
_NONE: Ints = np.empty(0, dtype=np.int64)
_NO_CROWD = np.empty((0, 0, 0), dtype=np.int32), np.empty((0, 0, 0), dtype=np.float32)


@dataclass(frozen=True)
class SessionBatch:
    """Sessions of several users, one user's sessions after another's; positions step-major.

    A position asks "which item is next?" and then gives the answer as input to later positions of its session.

    items:     int64 [N], the item at each position; 0 where it is asked for and not known, at a session's last one only
    seen:      float64 [N], seconds: the latest time a model may know there, that of the previous known item of the
               session, or the time the session begins for its first position. Never the position's own time
    session:   int64 [N], the session of each position
    gaps:      float32 [M], seconds to the session's first event from the end of the user's latest session before it
               that holds a known item; 0 where there is none
    carried:   int64 [U], the row of the batch whose carried state the user goes on from; -1 for the zero state
    rows:      int64 [R], the rows of the batch that hold anything    closing: int64 [R], the last user in each of them
    before:    int64 [M], into [initial states of users; states after folds]: the long-term state before each session
    after:     int64 [U], into the same: the long-term state after the user's last finished session
    folds:     int64 [F], the sessions that are finished and hold an item, in the packed order of `users`
    positions: int64 [T], where targets are asked       targets: int64 [T], their item rows; 0 outside the catalog
    events:    int64 [T], the place of each target in the cache, all its shards one after another
    shown:     int64 [T, W], the rows of items that were shown at each target and not picked, 0 behind the last
    skipped:   int64 [K], the rows of items that were shown beside the items of positions and not picked
    skipped_at: int64 [K], the position of each
    crowd_rows: int32 [N, C, K], of items that everybody picked lately, 0 for none, as known at `seen`
    crowd_weights: float32 [N, C, K], see crowd.py. Both are empty for a model that does not read them
    layout:    the order of positions        users: the order of folds, a sequence a user
    session_lengths: int64 [M], user_sessions: int64 [U], finished: bool [M] (only a user's last session may not be)
    """

    items: Tensor
    seen: Tensor
    session: Tensor
    gaps: Tensor
    carried: Tensor
    rows: Tensor
    closing: Tensor
    before: Tensor
    after: Tensor
    folds: Tensor
    positions: Tensor
    targets: Tensor
    events: Tensor
    shown: Tensor
    skipped: Tensor
    skipped_at: Tensor
    crowd_rows: Tensor
    crowd_weights: Tensor
    layout: Packing
    users: Packing
    session_lengths: Ints
    user_sessions: Ints
    finished: npt.NDArray[np.bool_]

    @property
    def sessions(self) -> int:
        return len(self.gaps)

    def to(self, device: torch.device) -> SessionBatch:
        """The same batch with its tensors on `device`; layouts stay on the CPU, where sizes are read without a sync."""
        if device.type == "cpu":
            return self
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    @cached_property
    def _lags(self) -> dict[int, tuple[int, Tensor]]:
        return {}

    def lag(self, lag: int) -> tuple[int, Tensor]:
        """`Packing.lag` of the positions, on the batch's device, computed once."""
        if lag not in self._lags:
            begin, source = self.layout.lag(lag)
            self._lags[lag] = begin, source.to(self.items.device)
        return self._lags[lag]

    def initial(self, carried: Tensor) -> Tensor:
        """[U, S]: the state each user starts from, out of the states `carried` [rows, S] from the batch before."""
        known = (self.carried >= 0).unsqueeze(1)
        return torch.where(known, carried[self.carried.clamp_min(0)], torch.zeros_like(carried[:1]))

    def carry(self, carried: Tensor, after: Tensor) -> Tensor:
        """[rows, S]: the states to carry to the next batch, `after` [U, S] those of this one; no gradient crosses."""
        return carried.index_copy(0, self.rows, after.detach()[self.closing])

    def session_sum(self, values: Tensor) -> Tensor:
        """[M, C]: sum of `values` [N, C] over each session."""
        return values.new_zeros(self.sessions, values.shape[1]).index_add(0, self.session, values)

    @cached_property
    def step(self) -> Tensor:
        """int64 [N]: how many positions are before each in its session."""
        sizes = self.layout.sizes
        return torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(self.items.device)

    @cached_property
    def known(self) -> Tensor:
        """float32 [N, 1]: 1 where the position holds an item."""
        return (self.items > 0).unsqueeze(1).float()

    @property
    def user(self) -> Ints:
        """int64 [M]: the user of each session."""
        return np.repeat(np.arange(len(self.user_sessions)), self.user_sessions)

    @cached_property
    def by_user(self) -> Sequences:
        """The batch as one flat sequence of known items a user."""
        ends, last = np.cumsum(self.session_lengths), np.cumsum(self.user_sessions) - 1
        finished = ends[last] - np.where(self.finished[last], 0, self.session_lengths[last])
        return self._sequences(self.user, finished)

    @cached_property
    def by_session(self) -> Sequences:
        """The batch as one flat sequence of known items a session."""
        return self._sequences(np.arange(self.sessions), np.cumsum(self.session_lengths))

    def _sequences(self, owner: Ints, ends: Ints) -> Sequences:
        """Those that sessions [M] belong to; they end at flat places [G]."""
        place, lengths = self.layout.place.numpy(), self.session_lengths
        known = (self.items.cpu().numpy() > 0)[place]
        starts = np.cumsum(lengths) - lengths
        return Sequences(known, np.repeat(owner, lengths), place, starts, ends, self.items.device)


def pack_sessions(
    *,
    items: Ints,
    seen: npt.NDArray[np.float64],
    session_lengths: Ints,
    user_sessions: Ints,
    gaps: npt.NDArray[np.float32],
    finished: npt.NDArray[np.bool_],
    carried: Ints,
    rows: Ints,
    closing: Ints,
    positions: Ints,
    targets: Ints,
    events: Ints,
    shown: Ints | None = None,
    skipped: Ints = _NONE,
    skipped_at: Ints = _NONE,
    crowd: Crowd | None = None,
) -> SessionBatch:
    """A batch from flat arrays: `items`, `seen` [N] session by session; `session_lengths`, `gaps`, `finished` [M] user
    by user; `positions` [T] and `skipped_at` [K] are flat places; the others as in SessionBatch. No session and no user
    is empty."""
    layout = Packing(session_lengths)
    flat, place = layout.flat.numpy(), layout.place.numpy()
    session = np.repeat(np.arange(len(session_lengths)), session_lengths)
    user = np.repeat(np.arange(len(user_sessions)), user_sessions)
    holds = np.zeros(len(session_lengths), dtype=bool)
    holds[session[items > 0]] = True
    folds = finished & holds
    users = Packing(np.bincount(user[folds], minlength=len(user_sessions)).astype(np.int64))
    latest = Latest(folds, user, users.place.numpy(), len(user_sessions))
    ends = np.cumsum(user_sessions)
    previous = np.append(0, items)[:-1]
    previous[np.cumsum(session_lengths) - session_lengths] = 0
    crowd_rows, crowd_weights = _NO_CROWD if crowd is None else crowd.at(seen[flat], previous[flat])
    return SessionBatch(
        items=torch.from_numpy(items[flat]),
        seen=torch.from_numpy(seen[flat]),
        session=torch.from_numpy(session[flat]),
        gaps=torch.from_numpy(gaps),
        carried=torch.from_numpy(carried),
        rows=torch.from_numpy(rows),
        closing=torch.from_numpy(closing),
        before=torch.from_numpy(latest.before(np.arange(len(user)), user)),
        after=torch.from_numpy(latest.before(ends, np.arange(len(ends)))),
        folds=torch.from_numpy(np.flatnonzero(folds)[users.flat.numpy()]),
        positions=torch.from_numpy(place[positions]),
        targets=torch.from_numpy(targets),
        events=torch.from_numpy(events),
        shown=torch.from_numpy(np.empty((len(targets), 0), dtype=np.int64) if shown is None else shown),
        skipped=torch.from_numpy(skipped),
        skipped_at=torch.from_numpy(place[skipped_at]),
        crowd_rows=torch.from_numpy(crowd_rows),
        crowd_weights=torch.from_numpy(crowd_weights),
        layout=layout,
        users=users,
        session_lengths=session_lengths,
        user_sessions=user_sessions,
        finished=finished,
    )


def shift(values: Tensor, batch: SessionBatch) -> Tensor:
    """[N, C]: at each position the value of the position before it in the session, zero at the first."""
    begin, source = batch.lag(1)
    return torch.cat([values.new_zeros(begin, values.shape[1]), values.index_select(0, source)])


class _CausalConv(torch.autograd.Function):
    """One matrix product a tap, each on the suffix of positions that have the predecessor it reads."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, taps: Sequence[tuple[int, Tensor]]) -> Tensor:
        out = torch.addmm(bias, hidden, weight[0])
        sources = []
        for (begin, source), tap in zip(taps, weight[1:], strict=True):
            sources.append(hidden.index_select(0, source))
            out[begin:].addmm_(sources[-1], tap)
        ctx.save_for_backward(hidden, weight, *sources)
        ctx.taps = taps
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad,) = grads
        hidden, weight, *sources = ctx.saved_tensors
        grad_hidden = grad @ weight[0].T
        grad_weight = torch.empty_like(weight)
        torch.mm(hidden.T, grad, out=grad_weight[0])
        for j, ((begin, source), values) in enumerate(zip(ctx.taps, sources, strict=True), 1):
            torch.mm(values.T, grad[begin:], out=grad_weight[j])
            grad_hidden.index_add_(0, source, grad[begin:] @ weight[j].T)
        return grad_hidden, grad_weight, grad.sum(0), None


def causal_conv(hidden: Tensor, weight: Tensor, bias: Tensor, dilation: int, batch: Lagged) -> Tensor:
    """Causal dilated convolution of `hidden` [N, C] in each sequence: Σ_j hidden[step − j·dilation] weight[j] + bias.

    weight: [K, C, C'], bias: [C'] → [N, C']. Taps before a sequence's first element read zero.
    """
    taps = [batch.lag(j * dilation) for j in range(1, len(weight))]
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), bias.to(dtype)
    out: Tensor = _CausalConv.apply(hidden, weight, bias, taps)  # type: ignore[no-untyped-call]
    return out
