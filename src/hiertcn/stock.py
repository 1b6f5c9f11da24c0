"""The items that people are recommended now: those of a model's catalog, and what was changed of them while serving.

An item that was added has the row behind the catalog that its number in the ledger gives it, whatever other items come
or go. Rows of a catalog that grew are others, so what is stored of a user names such an item by that number.

Legend: n rows, R items, U users, W last items of a state, G size of given vectors.
"""

from __future__ import annotations

__all__ = ["Shrinks", "Stated", "Stock"]

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from hiertcn.answers import Recommendation
from hiertcn.door import Id, checked_id, told
from hiertcn.errors import ArtifactError, InputError, StorageError
from hiertcn.ledger import Item, Ledger
from hiertcn.quarantine import EXAMPLES
from hiertcn.retrieval import Index
from hiertcn.scoring import Best
from hiertcn.served import Extensible, Served
from hiertcn.states import StateStore

_log = logging.getLogger(__name__)
# Of all items, how many may be withdrawn before somebody has to say that it is meant.
_SHARE = 0.5
# A state holds rows as float32.
_MOST = 1 << 24


class Shrinks(InputError):
    """More than half of all items would be withdrawn."""


class Stated(NamedTuple):
    """An item as people put it: by its id, a vector like those the others came with, a title. None: as it was."""

    item: Id
    vector: Sequence[float] | None = None
    title: str | None = None


class Stock:
    """Of a model and the store that its changes are kept in; index: over what queries are compared with.

    What is put, withdrawn or restored is in the store when the call returns, and counts here, as on all servers of the
    store, from the next `listen` on. Those may come from any thread; `listen`, and what reads, from one at a time.

    model:    a copy, which has the new items, too
    catalog:  the model's own, without what was changed
    size:     the last row; some may be of no item
    open:     bool [size + 1], rows that may be recommended
    popular:  float64 [size], by row from 1 on: train events
    left_out: items of the store whose vector, or that wholly, this model can't take in
    """

    def __init__(self, model: Served, store: StateStore, index: Index | None = None) -> None:
        self.model = copy(model)
        self.catalog, self._index, self._ledger = model.catalog, index, Ledger(store)
        self._ids: list[Any] = list(model.catalog.id_list)
        self._titles, self._added = dict(model.catalog.titles), dict[Id, int]()
        self.size = model.catalog.size
        self.open = np.arange(self.size + 1) > 0
        self.open[model.withdrawn] = False
        self._opened = self.open
        self.popular = model.catalog.train_events[1:].astype(np.float64)
        self.left_out: set[str] = set()
        # By their numbers, the rows of the ledger's items, 0 for those left out.
        self._rows = np.zeros(0, dtype=np.int64)
        self._unindexed: set[int] = set()
        self._damaged = False
        self._take_in(self._ledger.news())

    def row(self, item: Id) -> int:
        """The row of an item, 0 where it is not known."""
        return self.catalog.row(item) or self._added.get(cast(Id, self.catalog.coerce(item)), 0)

    def rows(self, items: Sequence[str]) -> npt.NDArray[np.int32]:
        """int32 [len(items)]: the same of several items."""
        found = self.catalog.rows_of(items)
        if self._added:
            for at in np.flatnonzero(found == 0).tolist():
                found[at] = self.row(items[at])
        return found

    @property
    def added(self) -> list[int]:
        """The rows of items that are in no catalog."""
        return list(self._added.values())

    def id(self, row: int) -> Id:
        """As it stands in the log."""
        found: Id = self._ids[row - 1]
        return found

    def title(self, row: int) -> str | None:
        """For people."""
        return self._titles.get(row)

    def named(self, best: Best, source: str) -> list[Recommendation]:
        """The best items as they stand in the log, for people. source: of their scores."""
        return [Recommendation(*one, source) for one in self.listed(best)]

    def listed(self, best: Best) -> Iterator[tuple[Id, float, str | None]]:
        """Of each the id, score and title."""
        ids, rows = self._ids, best.rows.tolist()
        return zip([ids[row - 1] for row in rows], best.scores.tolist(), map(self._titles.get, rows), strict=True)

    def stored(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[U, W]: rows, as a store keeps them: of an item that was added −1 − its number."""
        return np.where(rows > self.catalog.size, self.catalog.size - rows, rows)

    def restored(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[U, W]: what `stored` gave, as rows here and now; 0 for items that are not known here."""
        numbers = -1 - rows.astype(np.int64)
        added = numbers >= 0
        if not added.any():
            return rows
        known = added & (numbers < len(self._rows))
        out = np.where(added, 0, rows)
        out[known] = self._rows[numbers[known]]
        return out

    def faults(self, items: Sequence[Stated]) -> list[str | None]:
        """What is wrong with each of the items that are to be put, None for what is right."""
        names: list[str | None] = []
        out: list[str | None] = []
        for stated in items:
            try:
                names.append(self._name(stated.item))
                out.append(None)
            except InputError as error:
                names.append(None)
                out.append(str(error))
        known = self._held(names)
        for number, (stated, name) in enumerate(zip(items, names, strict=True)):
            out[number] = out[number] or self._fault(stated, name, name in known)
            if out[number] is None:
                known.add(name)
        return out

    def _fault(self, stated: Stated, name: str | None, known: bool) -> str | None:
        given = self.model.given
        if name is None:
            return "its id is none of this log's, whose ids are whole numbers"
        if given is None and not (known and stated.vector is None):
            return (
                "the model learned its item vectors, so it takes no others, and no item that it was not trained on; "
                "serve one that was trained on given vectors"
            )
        if stated.vector is None or given is None:
            return None if known else "it is new, and comes without a vector"
        try:
            with np.errstate(over="ignore"):
                vector = np.array(stated.vector, dtype=np.float64).astype(np.float32)
        except (TypeError, ValueError, OverflowError):
            return "its vector is no list of numbers"
        wrong = given.fault(vector)
        return None if wrong is None else f"its vector is {wrong}"

    def put(self, items: Sequence[Stated]) -> list[bool]:
        """Add or replace items; of each, whether it is new. A withdrawn one stays withdrawn.

        A model that has an item in its own catalog keeps its own vector of it, unless the vector was told to that very
        model. Raises InputError, and nothing changes, for items that have `faults`.
        """
        faults = [(one.item, wrong) for one, wrong in zip(items, self.faults(items), strict=True) if wrong is not None]
        if faults:
            named = "; ".join(f"{told(item)}: {wrong}" for item, wrong in faults[:EXAMPLES])
            raise InputError(
                f"{len(faults):,} of {len(items):,} items can't be put: {named}. Give each new item a vector of finite "
                "numbers, not all zero, computed as those of the catalog."
            )
        names = [cast(str, self._name(stated.item)) for stated in items]
        known, new = self._held(names), []
        changes: dict[str, Callable[[Item], Item]] = {}
        for name, stated in zip(names, items, strict=True):
            new.append(name not in known and name not in changes)
            changes[name] = _then(changes.get(name), self._facts(stated))
        if len(self._ids) + len(changes) >= _MOST:
            raise InputError(f"There are {len(self._ids):,} items; at most {_MOST:,} can be served. Train a new model.")
        self._ledger.change(changes)
        return new

    def withdraw(self, items: Iterable[Id], allow_shrink: bool = False) -> list[bool]:
        """Never recommend these items, until they are restored; of each, whether it is known: others are passed over.

        Raises Shrinks if more than half of all items would be withdrawn then, unless `allow_shrink`.
        """
        names = self._known(items)
        is_open, held = self.open, self.catalog.size + len(self._added)
        closed = sum(bool(is_open[row]) for row in {self.row(name) for name in names if name is not None})
        left = int(is_open.sum()) - closed
        if closed and held - left > _SHARE * held and not allow_shrink:
            raise Shrinks(
                f"That would leave {left:,} of {held:,} items to recommend; expected at least half of them. Choose "
                "allow_shrink if it is meant."
            )
        self._ledger.change({name: _withdrawn(True) for name in names if name is not None})
        return [name is not None for name in names]

    def restore(self, items: Iterable[Id]) -> list[bool]:
        """Recommend these items again; of each, whether it is known."""
        names = self._known(items)
        self._ledger.change({name: _withdrawn(False) for name in names if name is not None})
        return [name is not None for name in names]

    def listen(self) -> None:
        """Let what was changed since count here. Raises StorageError where the store fails."""
        try:
            news = self._ledger.news()
        except ArtifactError as error:
            # What is known goes on to be served; it is told once.
            if not self._damaged:
                _log.error("%s", error)
            self._damaged = True
            return
        if news or self._unindexed:
            self._take_in(news)

    def _name(self, item: Id) -> str | None:
        """The one text by which the ledger knows an item; None if no log of this type can hold it."""
        found = self.catalog.coerce(checked_id(item, "item"))
        return None if found is None else str(found)

    def _held(self, names: Iterable[str | None]) -> set[str | None]:
        """Those of the names that are of known items: of the catalog, or of the ledger as it is by now."""
        asked = {name for name in names if name is not None}
        return {*(name for name in asked if self.row(name)), *self._ledger.known(asked)}

    def _known(self, items: Iterable[Id]) -> list[str | None]:
        names = [self._name(item) for item in items]
        known = self._held(names)
        return [name if name in known else None for name in names]

    def _facts(self, stated: Stated) -> Callable[[Item], Item]:
        told_: dict[str, Any] = {} if stated.title is None else {"title": stated.title}
        if stated.vector is not None:
            told_ |= {"vector": np.array(stated.vector, dtype=np.float32), "by": self.model.digest.hex()}
        return lambda item: replace(item, **told_)

    def _take_in(self, news: dict[int, Item]) -> None:
        """Names come last: who reads meanwhile asks for no row that is not there yet."""
        if news:
            self._make_room(max(news))
        # A new one: others may be reading the one before.
        is_open = np.pad(self.open, (0, self.size + 1 - len(self.open)))
        added: dict[Id, int] = {}
        vectors: dict[int, npt.NDArray[np.float32]] = {}
        for number, item in news.items():
            own, name = self.catalog.row(item.id), self.catalog.coerce(item.id)
            fits = self._fits(item) and (not own or item.by == self.model.digest.hex())
            row = own or (self.catalog.size + 1 + number if name is not None and (fits or self._rows[number]) else 0)
            if item.vector is not None and not fits:
                self.left_out.add(item.id)
            self._rows[number] = row
            if not row:
                continue
            if fits:
                vectors[row] = cast(Any, item.vector)
                self.left_out.discard(item.id)
            if item.title is not None:
                self._titles[row] = item.title
            if not own:
                added[cast(Id, name)] = row
                self._ids[row - 1] = name
            opens = bool(not own or self._opened[row]) if item.withdrawn is None else not item.withdrawn
            if row in vectors or opens != is_open[row]:
                self._unindexed.add(row)
            is_open[row] = opens
        if vectors:
            cast(Extensible, self.model).put(np.array(list(vectors)), np.stack(list(vectors.values())))
        self.open = is_open
        self._bring_up_index()
        self._added |= added

    def _fits(self, item: Item) -> bool:
        given = self.model.given
        return item.vector is not None and given is not None and given.fault(item.vector) is None

    def _make_room(self, number: int) -> None:
        """For the item of this number."""
        self._rows = np.pad(self._rows, (0, max(number + 1 - len(self._rows), 0)))
        more = self.catalog.size + 1 + number - self.size
        if more > 0 and self.model.given is not None:
            self.popular = np.pad(self.popular, (0, more))
            self._ids += [None] * more
            self.size += more

    def _bring_up_index(self) -> None:
        """What the index could not be told stays hidden or not found, and is told it at the next time."""
        if self._index is None or not self._unindexed:
            self._unindexed.clear()
            return
        rows = np.array(sorted(self._unindexed), dtype=np.int64)
        found = rows[self.open[rows]]
        try:
            if len(found):
                self._index.put(found, cast(Extensible, self.model).compared(found))
            self._index.remove(rows[~self.open[rows]])
        except StorageError as error:
            _log.warning("Items that changed are not in the index yet: %s", error)
            return
        self._unindexed.clear()


def _withdrawn(withdrawn: bool) -> Callable[[Item], Item]:
    return lambda item: replace(item, withdrawn=withdrawn)


def _then(first: Callable[[Item], Item] | None, second: Callable[[Item], Item]) -> Callable[[Item], Item]:
    return second if first is None else lambda item: second(first(item))
