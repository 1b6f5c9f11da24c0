"""Recommendations for people, following each event: what training and evaluation compute, online.

There is one way from events to an answer. The events that the long-term state has not read yet, and after them an event
on no item at the moment asked about, become a Stream as in evaluation; the model's own `fold` and `encode` do the rest.
Whole histories and single events, one person and many, differ only in how many events are still to be read.
"""

from __future__ import annotations

__all__ = ["Recommender"]

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from hiertcn.answers import Chosen, Followed, Kept, Recommendation
from hiertcn.aside import forget_aside
from hiertcn.choice import allowed
from hiertcn.crowd import Crowd
from hiertcn.door import Ask, Event, Id, Time, checked_id, checked_k, microseconds, pick_of
from hiertcn.door import key_of as _key
from hiertcn.errors import ArtifactError, InputError
from hiertcn.hearing import Hearing
from hiertcn.online import Online
from hiertcn.retrieval import Index
from hiertcn.scoring import Limits, Scorer, best_of
from hiertcn.served import Served, served
from hiertcn.sessions import SECOND, sessionize
from hiertcn.states import Pick, StateStore, Status, Update, UserState, open_states
from hiertcn.stock import Stock
from hiertcn.streams import Ints

LATENESS = 300.0
if TYPE_CHECKING:
    from hiertcn.artifact import Run
_NONE = np.zeros(0, dtype=np.int64)


class _Asked(NamedTuple):
    """Of one user: the moment asked about, in microseconds, how many items, and the rows of those to leave out, and of
    those to choose of."""

    state: UserState
    moment: int
    k: int = 1
    hidden: Ints = _NONE
    among: Ints | None = None


class Recommender:
    """A trained model and the states of its users. Times are seconds since 1970 UTC, or datetimes with a zone.

    stock: its items, which can be changed; such a change counts once it is listened to

    A context manager that closes the store. Safe to use from several threads.
    """

    def __init__(
        self,
        model: Served,
        states: StateStore,
        crowd: Crowd | None = None,
        *,
        lateness: float = LATENESS,
        index: Index | None = None,
    ) -> None:
        self.states, self.digest = states, model.digest
        self.name = f"{model.path.name}-{model.digest.hex()}"
        self.stock = Stock(model, states, index)
        self._model = self.stock.model
        self._rule = model.session_gap, model.max_session_events
        self._hearing = Hearing(states, self.stock, self._rule, crowd or model.crowd())
        self._online = Online(self._model, self.stock, *self._rule, lateness)
        self._scorer = Scorer(self._model, index)

    @classmethod
    def load(
        cls,
        run: str | Path | Run,
        states: str | StateStore = "memory:",
        crowd: Crowd | None = None,
        *,
        lateness: float = LATENESS,
    ) -> Self:
        """The model of the directory `run`, or what `hiertcn export` wrote, with the store `states` ("memory:",
        "sqlite:///FILE", "redis://HOST", or an open one).

        crowd:    for a model that reads it, what everybody picked lately; None: as of the end of its log, all parts of
                  it. What is observed is added, and told by the store to every recommender that shares it
        lateness: seconds that an event may come after one of a later time and still be read in its place

        Raises ArtifactError for a directory that is damaged or none, and what `open_states` raises.
        """
        # A damaged model is found before a store is made.
        model = served(run)
        return cls(model, open_states(states) if isinstance(states, str) else states, crowd, lateness=lateness)

    @property
    def clock(self) -> float | None:
        """Seconds: when the last event of anybody was, that was heard of; None before the first one."""
        return self._hearing.clock

    def close(self) -> None:
        """Close the store."""
        self.states.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def observe(
        self, user: Id, item: Id, time: Time, shown: Sequence[Id] = (), *, event_id: str | None = None
    ) -> Status:
        """Take in one event; see `observe_many`."""
        return self.observe_many([Event(user, item, time, event_id, shown)])[0]

    def observe_many(self, events: Sequence[Event]) -> list[Status]:
        """Take in events of any users, in any order; what became of each. When it returns, all are stored: as one.

        An item outside the catalog counts for the session's time only. "late": it is of a session that is over and was
        read already, so it is only remembered; within `lateness` no event is. "duplicate", "conflict": an event of
        this id is among the user's last 128, alike or not; nothing changes. "expired": see `delete`.

        Raises InputError for an id or a time that can't be one; then nothing is stored.
        """
        return self.follow(events).statuses

    def follow(self, events: Sequence[Event]) -> Followed:
        """The same, with what is known now of the users."""
        users: dict[bytes, list[tuple[int, Pick]]] = {}
        for number, event in enumerate(events):
            users.setdefault(_key(event.user), []).append((number, self._pick(event)))
        followed = Followed(["applied"] * len(events), {})

        def change(values: Sequence[bytes | None]) -> Update:
            states, told_all = [], []
            for value, picks in zip(values, users.values(), strict=True):
                state = self._state(value)
                for number, pick in picks:
                    state, followed.statuses[number] = state.followed_by(pick, self.stock.catalog.order)
                    if followed.statuses[number] == "applied":
                        told_all.append(self._hearing.told(state, pick))
                states.append(state)
            found = self._online.folded(states)
            followed.states.update(zip(users, found, strict=True))
            return Update([state.to_bytes(self.digest) for state in found], told_all)

        if users:
            self.states.update(list(users), change)
            self._hearing.listen()
        return followed

    def recommend(
        self, user: Id, k: int = 10, *, exclude_seen: bool = False, time: Time | None = None
    ) -> list[Recommendation]:
        """The `k` items (1 … 500; fewer where the catalog has fewer) that `user` is most likely to pick next.

        time:         when it is asked, no earlier than the user's last event. If that begins a session, the running one
                      is taken as finished; nothing is stored. Without it, the session is still running
        exclude_seen: leave out the items of the user's last 128 events

        Of a user without an event on a known item nothing is known but what everybody picks at `time`, where the model
        reads that; else the most popular items are given, and `source` says so.
        Raises InputError for a bad argument, ArtifactError if the store holds a damaged state for the user.
        """
        return self.recommend_many([Ask(user, k, exclude_seen, time)])[0]

    def recommend_many(
        self, asks: Sequence[Ask], known: Mapping[bytes, UserState] | None = None
    ) -> list[list[Recommendation]]:
        """The same of several people at once, each as of `recommend`; all are computed in parallel.

        known: the states that `follow` has just given; those of others are read
        """
        return [self.stock.named(*found) for found in self.find_many(asks, known)]

    def find_many(self, asks: Sequence[Ask], known: Mapping[bytes, UserState] | None = None) -> list[Chosen]:
        """The same by rows, which `stock` names."""
        known = dict(known or {})
        keys = [_key(ask.user) for ask in asks]
        unread = list(dict.fromkeys(key for key in keys if key not in known))
        for key, value in zip(unread, self.states.get(unread) if unread else (), strict=True):
            known[key] = self._state(value)
        return self._find([self._asked(ask, known[key]) for ask, key in zip(asks, keys, strict=True)])

    def recommend_history(
        self,
        items: Sequence[Id],
        times: Sequence[Time],
        k: int = 10,
        *,
        exclude_seen: bool = False,
        sessions: Sequence[Id] | None = None,
        shown: Sequence[Sequence[Id]] | None = None,
    ) -> list[Recommendation]:
        """The same for a person in no store, from all of the person's events at once, in any order.

        sessions: of each event, where the log names them: a session begins where this changes
        shown:    of each event, the items that were shown, as of `Event`

        Without `sessions` equal to observing the events one after another, but all are computed in parallel.
        """
        columns = {"times": times, "sessions": sessions, "lists of items shown": shown}
        for what, column in columns.items():
            if column is not None and len(items) != len(column):
                raise InputError(f"There are {len(items)} items and {len(column)} {what}; expected one for each item.")
        beside = shown if shown is not None else [()] * len(items)
        picks = [self._pick(Event("", *one)) for one in zip(items, times, [None] * len(items), beside, strict=True)]
        order = sorted(range(len(picks)), key=lambda at: (picks[at].time, self.stock.catalog.order(picks[at].item)))
        ordered = [picks[at] for at in order]
        lists = [pick.shown for pick in ordered]
        state = UserState(
            [pick.item for pick in ordered],
            [pick.time for pick in ordered],
            [0] * len(ordered),
            lists if any(lists) else [],
            len(ordered),
        )
        keys = None
        if sessions is not None and len(sessions):
            keys = np.unique(list(map(str, sessions)), return_inverse=True)[1][order]
        hidden = self._rows(state.seen) if exclude_seen else _NONE
        (found,) = self._find([_Asked(state, state.latest, checked_k(k), hidden)], keys)
        return self.stock.named(*found)

    def query(self, user: Id, time: Time | None = None) -> npt.NDArray[Any]:
        """[Q]: the vector whose scores, with the model's boosts, rank the next item; `time` as in `recommend`."""
        found: npt.NDArray[Any] = self._model.parted(self._query(user, time))[0][0]
        return found

    def scores(self, user: Id, time: Time | None = None) -> npt.NDArray[Any]:
        """[n]: the model's scores of the whole catalog, in the order of its rows; `time` as in `recommend`."""
        found: npt.NDArray[Any] = self._model.score(self._query(user, time))[0]
        return found

    def _query(self, user: Id, time: Time | None) -> npt.NDArray[Any]:
        value = self.states.get([_key(user)])[0]
        return self._queries([self._asked(Ask(user, time=time), self._state(value))])

    def knows(self, item: Id) -> bool:
        """Whether it is an item of the catalog, or was added."""
        return self.stock.row(checked_id(item, "item")) > 0

    def popular(self, ask: Ask) -> Chosen:
        """An answer without looking at the store: the most popular items."""
        return self._find([self._asked(ask._replace(exclude_seen=False, time=None), UserState())])[0]

    def delete(self, user: Id, until: Time | None = None) -> None:
        """Forget all events of a user; those up to `until`, or an earlier call's, that come later, too."""
        moments = [] if until is None else [microseconds(until)]
        # One that is damaged is forgotten, too.
        with suppress(ArtifactError):
            moments += [at for at in (self._state(self.states.get([_key(user)])[0]).forgotten,) if at is not None]
        forgotten = UserState(forgotten=max(moments)).to_bytes(self.digest) if moments else None
        self.states.forget(_key(user), forgotten)
        forget_aside(self.states, _key(user))

    def _asked(self, ask: Ask, state: UserState) -> _Asked:
        for event in ask.unstored:
            state, _ = state.followed_by(self._pick(event), self.stock.catalog.order)
        at = state.latest if ask.time is None else max(microseconds(ask.time), state.latest)
        hidden = self._rows(state.seen) if ask.exclude_seen else _NONE
        return _Asked(state, at, checked_k(ask.k), hidden, allowed(self.stock, ask))

    def _rows(self, items: Sequence[str]) -> Ints:
        """The rows of those that the catalog holds."""
        rows = self.stock.rows(items)
        return rows[rows > 0].astype(np.int64)

    def _state(self, stored: bytes | None) -> UserState:
        return UserState() if stored is None else UserState.from_bytes(stored, self.digest)

    def _pick(self, event: Event) -> Pick:
        pick = pick_of(event)
        return pick._replace(shown=self._online.kept_of(pick.item, pick.shown)) if pick.shown else pick

    def kept_of(self, user: Id) -> Kept | None:
        """What the store holds of a user; None for nobody."""
        value = self.states.get([_key(user)])[0]
        if value is None:
            return None
        state = self._state(value)
        times = np.array(state.times, dtype=np.int64)
        offsets = sessionize(np.array([0, len(times)]), times, *self._rule)
        items = list(map(self.stock.catalog.typed, state.items))
        return Kept([(items[a:b], (times[a:b] / SECOND).tolist()) for a, b in pairwise(offsets.tolist())], len(value))

    def listen(self) -> None:
        """Hear what all that share the store were told since, of items and of picks."""
        self.stock.listen()
        self._hearing.listen()

    def _queries(self, asked: Sequence[_Asked], keys: Ints | None = None) -> npt.NDArray[Any]:
        """[U, Q]: of the moments asked about."""
        states = [one.state for one in asked]
        stream = self._online.asked(states, np.array([one.moment for one in asked], dtype=np.int64), keys)
        with self._hearing.crowd() as crowd:
            return self._model.encode(stream, self._online.initial(states), crowd)

    def _find(self, asked: Sequence[_Asked], keys: Ints | None = None) -> list[Chosen]:
        hears = self._hearing.hears
        warm = {
            n: one for n, one in enumerate(asked) if (hears and one.moment) or any(map(self.stock.row, one.state.items))
        }
        limits = [Limits(one.k, one.hidden, one.among) for one in asked]
        is_open, popular = self.stock.open, self.stock.popular
        queries = self._queries(list(warm.values()), keys) if warm else None
        found = iter(() if queries is None else self._scorer.best(queries, [limits[n] for n in warm], is_open))
        return [
            Chosen(next(found), "model") if n in warm else Chosen(best_of(popular, limit, is_open), "popular")
            for n, limit in enumerate(limits)
        ]
