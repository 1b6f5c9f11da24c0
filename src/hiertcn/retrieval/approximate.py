"""Nearly all of the best items, without comparing every one; exact about what was put or removed lately."""

from __future__ import annotations

__all__ = ["ApproximateIndex"]

import logging
from collections.abc import Callable
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hiertcn.errors import InputError, Stopped
from hiertcn.retrieval.indexfile import key_of, read_index, write_index
from hiertcn.retrieval.protocol import (
    Allowed,
    Found,
    Index,
    Rows,
    Vectors,
    check_base,
    check_queries,
    check_rows,
    check_vectors,
)
from hiertcn.retrieval.table import Table

DEAD, BESIDE, MOST_BESIDE = 0.2, 0.02, 5_000
# Of so few items, comparing all is as fast as walking past the others, and certain.
FEW = 4_096
KINDS = ("int8", "flat", "hnsw", "ivf", "ivfpq")
_Write = Callable[[Table], None]
_log = logging.getLogger(__name__)


class Structure(Protocol):
    """Places 0…n − 1 of the vectors it was built over. Searched by several threads at a time, and never changed."""

    @property
    def kind(self) -> str:
        """One of KINDS."""

    @property
    def exact(self) -> bool:
        """Whether every item is compared, in full."""

    def find(self, queries: Vectors, k: int, marked: Allowed, count: int) -> Rows:
        """int64 [T, C]: places with the largest scores, of the `count` that `marked`, bool [n], marks; −1 for none.

        More than k of them where scores are only estimated here.
        """

    def vectors(self) -> Vectors | None:
        """The vectors it was built over, if it holds them: float32 [n, Q], its own memory."""

    def facts(self) -> dict[str, str]:
        """What it is, for people."""


class ApproximateIndex(Index):
    """A structure over a base that stays, and a table at its side for what is put later, compared exactly.

    Once a fifth of the base is dead, or the side is larger than `beside` items (None: a fiftieth of the base, at least
    MOST_BESIDE), a thread builds a new one of what is there then, while the old one answers; writes of meanwhile are
    done again on the new one before it takes over. Scores are inner products with the true vectors.

    kind: int8, or of faiss flat, hnsw, ivf or ivfpq; None chooses of faiss by the number of items. cache: a folder for
    what took long to build first. Its file is taken from there where it is whole, and built anew, with a warning, where
    it is not. threads: of a search, and of building.
    """

    def __init__(
        self,
        vectors: npt.NDArray[Any],
        kind: str | None = None,
        *,
        cache: Path | None = None,
        threads: int = 1,
        beside: int | None = None,
    ) -> None:
        check_base(vectors)
        if threads < 1 or kind not in (None, *KINDS):
            raise InputError(
                f"An index of kind {kind!r} with {threads} threads; expected one of {', '.join(KINDS)}, or none, and "
                "at least 1 thread."
            )
        self._kind, self._cache, self._threads, self._beside = kind, cache, threads, beside
        self._dim, self._closed = vectors.shape[1], False
        self._lock = Lock()
        # What was written since the snapshot that a new structure is built of; None while none is.
        self._since: list[_Write] | None = None
        self._worker: Thread | None = None
        self._rebuilt = 0
        base = vectors[1:]
        self._now = self._built(base, np.arange(1, len(vectors)), cache)

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Whether every item is compared, as with kind flat."""
        return self._now[0].exact

    def _built(self, base: npt.NDArray[Any], rows: Rows, cache: Path | None) -> tuple[Structure, Table]:
        structure = self._structure(base, cache)
        stored = structure.vectors()
        return structure, Table(base if stored is None else stored, rows)

    def _structure(self, base: npt.NDArray[Any], cache: Path | None) -> Structure:
        # Each of them needs a package of its own.
        if self._kind == "int8":
            from hiertcn.retrieval.int8 import Int8

            return Int8(base, self._threads, lambda: not self._closed)
        from hiertcn.retrieval import structures

        kind = self._kind or structures.kind_for(len(base))
        if cache is None or kind == "flat" or len(base) < structures.LEAST:
            return structures.build(kind, base, self._threads, lambda: not self._closed)
        built_by = {"kind": kind, "faiss": structures.version(), **structures.parameters(kind)}
        path = cache / f"{kind}-{key_of(base, built_by)}.index"
        data = read_index(path)
        if data is not None:
            return structures.load(kind, data, base, self._threads)
        structure = structures.build(kind, base, self._threads)
        write_index(path, structure.to_bytes())
        return structure

    def search(self, queries: Vectors, k: int, allowed: Allowed | None = None) -> Found:
        queries = check_queries(queries, self._dim, k)
        structure, table = self._now
        now = table.now
        marked = now.allowing(allowed)
        base = marked[: len(now.base)]
        count = int(np.count_nonzero(base))
        few = count <= max(FEW, 2 * k)
        found = now.among(queries, k, marked) if few else structure.find(queries, k, base, count)
        return now.rank(queries, k, np.concatenate([found, now.beside(queries, k, marked)], axis=1))

    def put(self, rows: Rows, vectors: Vectors) -> None:
        rows, vectors = check_vectors(rows, vectors, self._dim)
        self._write(lambda table: table.put(rows, vectors))

    def remove(self, rows: Rows) -> None:
        rows = check_rows(rows)
        self._write(lambda table: table.remove(rows))

    def _write(self, write: _Write) -> None:
        with self._lock:
            write(self._now[1])
            if self._since is not None:
                self._since.append(write)
            elif self._is_worn() and not self._closed:
                self._since = []
                self._worker = Thread(target=self._rebuild, name="hiertcn-index", daemon=True)
                self._worker.start()

    def _is_worn(self) -> bool:
        now = self._now[1].now
        base = len(now.base)
        most = max(MOST_BESIDE, int(base * BESIDE)) if self._beside is None else self._beside
        return int(now.live[base:].sum()) > most or self._dead() > DEAD * max(1, base)

    def _dead(self) -> int:
        now = self._now[1].now
        return int((~now.live[: len(now.base)]).sum())

    def _rebuild(self) -> None:
        """Build of what is live, then let it take over."""
        with self._lock:
            now, self._since = self._now[1].now, []
        try:
            slots = np.flatnonzero(now.live)
            slots = slots[np.argsort(now.rows[slots])]
            structure, table = self._built(now.vectors(slots), now.rows[slots], None)
        except Stopped:
            return
        except Exception:
            # The old one still answers, and the next write tries again.
            _log.exception("The index could not be built anew; the one before stays in use.")
            with self._lock:
                self._since = None
            return
        with self._lock:
            for write in self._since:
                write(table)
            self._since = None
            self._now = structure, table
            self._rebuilt += 1

    def settle(self) -> None:
        """Wait until no structure is being built."""
        worker = self._worker
        if worker is not None:
            worker.join()

    def __len__(self) -> int:
        return self._now[1].now.count

    def facts(self) -> dict[str, str]:
        structure, table = self._now
        now = table.now
        return {
            **structure.facts(),
            "threads": str(self._threads),
            "put": str(int(now.live[len(now.base) :].sum())),
            "tombstones": str(self._dead()),
            "rebuilt": str(self._rebuilt),
        }

    def close(self) -> None:
        self._closed = True
        self.settle()
