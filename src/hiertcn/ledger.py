"""What was changed of items while serving, kept in a store of states for all servers that share it, now and later.

Facts, as people told them: ids, vectors, titles, whether an item is withdrawn; no rows, which are a model's own. Each
item that was ever changed has a number, which it keeps.
"""

from __future__ import annotations

__all__ = ["Item", "Ledger", "owns"]

import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hiertcn.errors import ArtifactError
from hiertcn.states import StateStore, Update

# Neither is as long as the digest of a user's id.
_HEAD, _ITEM = b"items", b"items/%08d"
_FORMAT = 1
# Changed items that the head names, so that who heard of those before need not read all.
_NAMED = 4_000
# So many are written at once, and read at once.
_TOGETHER = 200
_SIZES = struct.Struct("<II")


@dataclass(frozen=True, eq=False)
class Item:
    """id: as text. withdrawn: None where nobody said. vector: float32 [G], and `by`, the digest of the model that it
    was told to; None where the item has only that of a model's catalog."""

    id: str
    withdrawn: bool | None = None
    title: str | None = None
    vector: npt.NDArray[np.float32] | None = None
    by: str = ""

    def to_bytes(self) -> bytes:
        """As it is stored."""
        facts = json.dumps([_FORMAT, self.id, self.withdrawn, self.title, self.by]).encode()
        vector = b"" if self.vector is None else self.vector.astype("<f4").tobytes()
        body = _SIZES.pack(len(facts), len(vector)) + facts + vector
        return body + zlib.crc32(body).to_bytes(4, "little")

    @classmethod
    def from_bytes(cls, data: bytes) -> Item:
        """What `to_bytes` gave. Raises ArtifactError for anything else."""
        body = data[:-4]
        if len(body) < _SIZES.size or zlib.crc32(body).to_bytes(4, "little") != data[-4:]:
            raise _damaged("an item")
        size, _ = _SIZES.unpack_from(body)
        facts, vector = body[_SIZES.size : _SIZES.size + size], body[_SIZES.size + size :]
        form, name, withdrawn, title, by = json.loads(facts)
        if form != _FORMAT:
            raise _damaged(f"an item in format {form}")
        return cls(name, withdrawn, title, np.frombuffer(vector, "<f4") if vector else None, by)


@dataclass(frozen=True)
class _Head:
    """version: of the last change. items: how many there are. named: [version, numbers] of the last changes."""

    version: int = 0
    items: int = 0
    named: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def to_bytes(self) -> bytes:
        return json.dumps([_FORMAT, self.version, self.items, self.named]).encode()

    @classmethod
    def from_bytes(cls, data: bytes | None) -> _Head:
        if data is None:
            return cls()
        try:
            form, version, items, named = json.loads(data)
        except ValueError:
            form = version = items = named = None
        if form != _FORMAT:
            raise _damaged(f"a list of items in format {form}")
        return cls(version, items, tuple((at, tuple(numbers)) for at, numbers in named))

    def after(self, changed: Sequence[int]) -> _Head:
        """When the items of these numbers changed, too."""
        named, room = [(self.version + 1, tuple(changed))], _NAMED - len(changed)
        for version, numbers in self.named[::-1]:
            room -= len(numbers)
            if room < 0:
                break
            named.append((version, numbers))
        return _Head(self.version + 1, max(self.items, *(number + 1 for number in changed)), tuple(named[::-1]))

    def since(self, version: int) -> list[int]:
        """The numbers of what changed after `version`."""
        if version + 1 < min((at for at, _ in self.named), default=self.version + 1):
            return list(range(self.items))
        return sorted({number for at, numbers in self.named if at > version for number in numbers})


class Ledger:
    """Of a store. Safe to use from several threads, and servers: no change is lost to another.

    Its methods raise StorageError where the store does, and ArtifactError where what it holds is damaged.
    """

    def __init__(self, store: StateStore) -> None:
        self._store, self._lock = store, threading.Lock()
        self._head = _Head()
        self._numbers: dict[str, int] = {}
        self._news: dict[int, Item] = {}

    def known(self, items: Iterable[str]) -> set[str]:
        """Those of the items that it holds by now."""
        with self._lock:
            self._read()
            return {item for item in items if item in self._numbers}

    def news(self) -> dict[int, Item]:
        """By their numbers, the items that changed since this was asked before: first all of them."""
        with self._lock:
            self._read()
            found, self._news = self._news, {}
        return found

    def change(self, items: dict[str, Callable[[Item], Item]]) -> None:
        """Replace each of the items by what its function gives of it; of a new one, of `Item(id)`. Up to 200 are stored
        as one."""
        names = list(items)
        for begin in range(0, len(names), _TOGETHER):
            part = {name: items[name] for name in names[begin : begin + _TOGETHER]}
            with self._lock:
                while not self._changed(part):
                    pass

    def _changed(self, items: dict[str, Callable[[Item], Item]]) -> bool:
        """Whether it was done; not if another server came between."""
        head = self._read()
        fresh = iter(range(head.items, head.items + len(items)))
        numbers = [self._numbers[name] if name in self._numbers else next(fresh) for name in items]
        done = False

        def write(found: list[bytes | None]) -> Update:
            nonlocal done
            done = _Head.from_bytes(found[0]).version == head.version
            if not done:
                return Update(found)
            values: list[bytes | None] = [head.after(numbers).to_bytes()]
            for (name, change), value in zip(items.items(), found[1:], strict=True):
                values.append(change(Item(name) if value is None else Item.from_bytes(value)).to_bytes())
            return Update(values)

        self._store.update([_HEAD, *(_ITEM % number for number in numbers)], write)
        return done

    def _read(self) -> _Head:
        """Catch up with the store; its head."""
        (value,) = self._store.get([_HEAD])
        head = _Head.from_bytes(value)
        numbers = head.since(self._head.version)
        for begin in range(0, len(numbers), _TOGETHER):
            some = numbers[begin : begin + _TOGETHER]
            for number, stored in zip(some, self._store.get([_ITEM % number for number in some]), strict=True):
                if stored is None:
                    raise _damaged("a list that names an item which is not there")
                item = Item.from_bytes(stored)
                self._numbers[item.id], self._news[number] = number, item
        self._head = head
        return head


def owns(key: bytes) -> bool:
    """Whether what a store holds under a key is of items, and not of a user."""
    return key == _HEAD or (key.startswith(_HEAD) and len(key) == len(_ITEM % 0))


def _damaged(found: str) -> ArtifactError:
    return ArtifactError(
        f"The store holds {found} that can't be read, of the items that were changed while serving; expected what this "
        "version wrote. Restore the store from a copy."
    )
