"""What all who share a store are told of picks, through its journal: so that every one of them hears the same crowd."""

from __future__ import annotations

__all__ = ["Hearing"]

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hiertcn.crowd import Crowd
from hiertcn.sessions import SECOND, begins_session
from hiertcn.states import Pick, StateStore, UserState

# Entries of a journal that are kept, and how many more there may be before it is trimmed.
KEPT, MORE = 100_000, 20_000
# Entries that are read at once.
_TOGETHER = 10_000


class _Stock(Protocol):
    def row(self, item: str) -> int:
        """0 for an item that is not known."""

    def rows(self, items: Sequence[str]) -> npt.NDArray[np.int32]:
        """int32 [len(items)]: the same of several items."""

    def listen(self) -> None:
        """Learn of items that were added since."""


class Hearing:
    """The crowd of a model, None for one that reads none, as it goes on with what the store was told: of that, the last
    100,000 picks at least.

    rule: when a session is over: after so many seconds, or events
    clock: seconds: when the last event of anybody was; None before the first one
    """

    def __init__(self, store: StateStore, stock: _Stock, rule: tuple[float, int], crowd: Crowd | None) -> None:
        self._store, self._stock, (self._gap, self._longest) = store, stock, rule
        self._crowd, self._lock, self._heard, self._trimmed = crowd, threading.Lock(), 0, 0
        self.clock: float | None = None

    @property
    def hears(self) -> bool:
        """Whether there is a crowd."""
        return self._crowd is not None

    @contextmanager
    def crowd(self) -> Iterator[Crowd | None]:
        """The crowd, while nothing changes it."""
        with self._lock:
            yield self._crowd

    def listen(self) -> None:
        """Take in what was told since."""
        with self._lock:
            more = True
            while more:
                entries = self._store.journal(self._heard, _TOGETHER)
                more = len(entries) == _TOGETHER
                if entries:
                    self._take_in([json.loads(entry) for _, entry in entries])
                    self._heard = entries[-1][0]
            if self._heard - self._trimmed > KEPT + MORE:
                self._trimmed = self._heard - KEPT
                self._store.trim(self._trimmed)

    def _take_in(self, told: Sequence[tuple[int, str, str]]) -> None:
        times, items, before = zip(*told, strict=True)
        rows = self._stock.rows(items)
        if not rows.all():
            # Somebody may have added the item before it was picked. Where the store fails, all is heard later.
            self._stock.listen()
            rows = self._stock.rows(items)
        self.clock = max(self.clock or 0.0, max(times) / SECOND)
        if self._crowd is not None:
            for at, row, item in zip(times, rows.tolist(), before, strict=True):
                self._crowd.observe(row, at / SECOND, self._stock.row(item) if item else 0)

    def told(self, state: UserState, pick: Pick) -> bytes:
        """An entry of the journal: a pick that is in `state`, and what the same person picked before in the session."""
        times, items, known = state.times, state.items, None
        begin = place = times.index(pick.time)
        while begin and not begins_session(times[begin - 1], times[begin], self._gap):
            begin -= 1
            if known is None and self._stock.row(items[begin]):
                known = begin
            if known is not None and len(times) <= self._longest:
                break
        else:
            # Sessions that are too long were cut.
            begin = place - (place - begin) % self._longest
        before = items[known] if known is not None and known >= begin else ""
        return json.dumps([pick.time, pick.item, before]).encode()
