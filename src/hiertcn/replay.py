"""The states of a store, rebuilt or caught up from a log, in bulk: what telling all its events one by one gives.

Users are taken whole, thousands at a time. What the log says of them joins what is stored of them, all sessions that no
late event can change are folded at once, and one synced transaction stores them. A replay that was ended goes on when
it is run again: what is stored counts as told.

Legend: N events of the log, U users, I items.
"""

from __future__ import annotations

__all__ = ["Replayed", "event_id_of", "replay"]

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import polars as pl

from hiertcn.catalog import Catalog
from hiertcn.door import key_of
from hiertcn.errors import ArtifactError
from hiertcn.events import Events
from hiertcn.journal import Journal, Told
from hiertcn.online import Online
from hiertcn.recommender import LATENESS
from hiertcn.served import Served
from hiertcn.skew import stated
from hiertcn.states import Pick, StateStore, Status, Update, UserState, mark_of
from hiertcn.stock import Stock
from hiertcn.streams import Ints

TOGETHER = 50_000
"""Events of a transaction; users stay whole."""


def event_id_of(user: str, item: str, time: int) -> str:
    """The id of an event in a log that has none; `time` in microseconds."""
    return f"{user} {item} {time}"


@dataclass
class Replayed:
    """What became of a log's events, by status as of `Recommender.observe_many`; of how many users they are, how many
    of these have a damaged state that was left as it is, and how many picks all servers of the store were told."""

    users: int = 0
    events: int = 0
    damaged: int = 0
    told: int = 0
    statuses: Counter[Status] = field(default_factory=Counter)

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {status}" for status, count in self.statuses.most_common())
        return (
            f"{self.events:,} events of {self.users:,} users: {counts or 'none taken in'}; the last {self.told:,} new "
            "picks told to servers"
        )


class _History(NamedTuple):
    """What the log says of one user, in the order of a state; ranks: [n], the items' places in the order of ids;
    begin: where the user begins in the log."""

    key: bytes
    picks: list[Pick]
    ranks: Ints
    begin: int


class _Followed(NamedTuple):
    """Of one user: what was found in the store, what to put there, what became of the events, and what may be told."""

    found: bytes | None
    value: bytes
    statuses: list[Status]
    told: list[Told]


def replay(
    model: Served,
    store: StateStore,
    log: Events,
    *,
    lateness: float = LATENESS,
    rebuild: bool = False,
    advance: Callable[[int], None] = lambda events: None,
) -> Replayed:
    """Bring the states of all users of a log up to its end, and tell the journal what was picked last.

    An event that is stored changes nothing, as far as the user's last 128 reach; of those before them nothing is read
    again. In a log without ids an event is stored if its user has one on the same item at the same time. What was
    shown beside events is not read.

    rebuild: read stored facts and the log together anew, and begin damaged states anew; else a state of this model is
             led on from where it stands, and what the log knows from before that is remembered at most
    advance: is told how many events were stored since

    The journal is told the last 100,000 picks at most, of those that neither it nor the model's crowd heard of. Raises
    what the store raises; what was stored until then stays.
    """
    return _Replay(model, store, log, lateness, rebuild).run(advance)


class _Replay:
    def __init__(self, model: Served, store: StateStore, log: Events, lateness: float, rebuild: bool) -> None:
        self._store, self._log, self._rebuild = store, log, rebuild
        self._stock = stock = Stock(model, store)
        self._digest, self._order = model.digest, stock.catalog.order
        self._online = Online(stock.model, stock, model.session_gap, model.max_session_events, lateness)
        self._times = log.frame["time"].to_numpy()
        self._items, self._users = log.frame["item"].to_numpy(), log.frame["user"].to_numpy()
        self._item_ids = log.item_ids.cast(pl.String).to_list()
        self._ranks = _ranks(log.item_ids, model.catalog)
        self._journal = Journal(store, model, self._times)
        self._done = Replayed()

    def run(self, advance: Callable[[int], None]) -> Replayed:
        begins = np.append(np.flatnonzero(np.diff(self._users.astype(np.int64), prepend=-1)), len(self._users))
        first = 0
        while first < len(begins) - 1:
            # One user at least, and no more than come together.
            last = max(int(np.searchsorted(begins, begins[first] + TOGETHER, side="right")) - 1, first + 1)
            self._bring(self._histories(begins[first : last + 1]))
            advance(int(begins[last] - begins[first]))
            first = last
        self._done.told = self._journal.tell()
        return self._done

    def _histories(self, begins: Ints) -> list[_History]:
        """Of the users who begin there in the log; the last place is the end of the last one."""
        mine = slice(int(begins[0]), int(begins[-1]))
        users, ranks, times = self._users[mine], self._ranks[self._items[mine]], self._times[mine]
        items = [self._item_ids[item] for item in self._items[mine].tolist()]
        user_ids = self._log.user_ids.gather(users).cast(pl.String).to_list()
        marks = list(map(mark_of, self._event_ids(mine, user_ids, items, times.tolist())))
        order = np.lexsort((np.array(marks, dtype=np.uint64), ranks, times, users))
        picks = [
            Pick(items[at], time, marks[at]) for at, time in zip(order.tolist(), times[order].tolist(), strict=True)
        ]
        ranks = ranks[order]
        return [
            _History(key_of(user_ids[begin]), picks[begin:end], ranks[begin:end], mine.start + begin)
            for begin, end in pairwise((begins - mine.start).tolist())
        ]

    def _event_ids(self, mine: slice, users: list[str], items: list[str], times: list[int]) -> list[str]:
        if self._log.event_ids is None:
            return list(map(event_id_of, users, items, times))
        found: list[str] = self._log.event_ids.gather(self._log.frame["event"][mine]).cast(pl.String).to_list()
        return found

    def _bring(self, histories: list[_History]) -> None:
        """Store what `histories` make of what is stored."""
        done: dict[int, _Followed] = {}

        def change(values: Sequence[bytes | None]) -> Update:
            # It is called again if others changed a key meanwhile; only that user is followed again then.
            stale = [n for n, value in enumerate(values) if n not in done or done[n].found != value]
            followed = self._followed([histories[n] for n in stale], [values[n] for n in stale])
            done.update(zip(stale, followed, strict=True))
            return Update([done[n].value for n in range(len(histories))])

        self._store.update([history.key for history in histories], change)
        for one, history in zip((done[n] for n in range(len(histories))), histories, strict=True):
            self._done.users += 1
            self._done.events += len(history.picks)
            self._done.damaged += not one.statuses
            self._done.statuses.update(one.statuses)
            self._journal.add(one.told)

    def _followed(self, histories: Sequence[_History], values: Sequence[bytes | None]) -> list[_Followed]:
        found = [self._state(value) for value in values]
        joined = [
            (UserState(), []) if state is None else self._joined(state, history.picks)
            for state, history in zip(found, histories, strict=True)
        ]
        folded = self._online.folded([state for state, _ in joined])
        return [
            _Followed(value, value or b"", [], [])
            if state is None
            else _Followed(value, after.to_bytes(self._digest), statuses, self._told(history, before, statuses))
            for value, state, after, history, (before, statuses) in zip(
                values, found, folded, histories, joined, strict=True
            )
        ]

    def _state(self, value: bytes | None) -> UserState | None:
        """What is stored; None if that is damaged, and is to be left."""
        if value is None:
            return UserState()
        try:
            state = UserState.from_bytes(value, self._digest)
        except ArtifactError:
            return UserState() if self._rebuild else None
        return state.unlearned() if self._rebuild else state

    def _joined(self, state: UserState, picks: list[Pick]) -> tuple[UserState, list[Status]]:
        """The state with the log's events, and what became of each."""
        if self._log.event_ids is not None or not state.times:
            return state.followed_by_all(picks, self._order)
        stored = set(zip(state.items, map(stated, state.times), strict=True))
        known = [(pick.item, stated(pick.time)) in stored for pick in picks]
        after, others = state.followed_by_all(
            [pick for pick, is_known in zip(picks, known, strict=True) if not is_known], self._order
        )
        statuses = iter(others)
        return after, ["duplicate" if is_known else next(statuses) for is_known in known]

    def _told(self, history: _History, state: UserState, statuses: list[Status]) -> list[Told]:
        """Those of a user's events that count for the crowd, once each, with what was picked before them."""
        times = np.array([pick.time for pick in history.picks], dtype=np.int64)
        wanted = np.flatnonzero(self._journal.wants(times))
        seen: set[int] = set()
        chosen = []
        for at in wanted.tolist():
            mark = history.picks[at].mark
            if statuses[at] not in ("expired", "conflict") and mark not in seen:
                chosen.append(at)
            seen.add(mark)
        if not chosen:
            return []
        before = self._journal.before(self._stock, state, times[chosen])
        return [
            Told(history.picks[at].time, int(history.ranks[at]), history.begin + at, history.picks[at].item, previous)
            for at, previous in zip(chosen, before, strict=True)
        ]


def _ranks(ids: pl.Series, catalog: Catalog) -> Ints:
    """int64 [I]: the places of a log's items in the order that a state keeps events of one time in."""
    if ids.dtype == catalog.ids.dtype:
        return np.arange(len(ids))
    texts = ids.cast(pl.String).to_list()
    ranks = np.empty(len(texts), dtype=np.int64)
    ranks[sorted(range(len(texts)), key=lambda at: catalog.order(texts[at]))] = np.arange(len(texts))
    return ranks
