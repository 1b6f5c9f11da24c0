"""The one protocol of all indexes of item vectors, and what comes in at their door."""

from __future__ import annotations

__all__ = ["Allowed", "Found", "Index", "Rows", "Vectors", "check_base", "check_queries", "check_rows", "check_vectors"]

from abc import abstractmethod
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from hiertcn.errors import InputError

Rows = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
Allowed = npt.NDArray[np.bool_]
Found = tuple[Rows, Vectors]
"""Item rows int64 [T, k] and scores float32 [T, k], best first; row 0 and −inf where there is no more."""

# Inner products of such numbers stay finite, in any number of dimensions that fits in memory.
LARGEST = 1e15
# Rows are kept in 32 bits, one of them the sign.
LAST = (1 << 31) - 1
# Fewer items than these are all compared, where nobody chose.
SMALL = 20_000
_BLOCK = 1 << 16


class Index(Protocol):
    """Finds the items with the largest inner products with a query.

    Built over `vectors`, float32 or float16 [n + 1, Q], by item row; row 0 is no item. Safe to use from several
    threads: a search sees each `put` and `remove` that had returned when it began. A context manager that closes it.
    """

    exact: bool
    """Whether `search` finds the best for certain. Otherwise it finds nearly all of them."""

    @abstractmethod
    def search(self, queries: Vectors, k: int, allowed: Allowed | None = None) -> Found:
        """The `k` best items of each of `queries`, float32 [T, Q], of those rows that `allowed`, bool [rows], marks.

        Best first, equal scores by the smaller row; a row beyond the end of `allowed` is not allowed. Raises InputError
        for queries of another size or that are not finite, and StorageError if a server does not answer in time.
        """

    @abstractmethod
    def put(self, rows: Rows, vectors: Vectors) -> None:
        """Add or replace items: int64 [R], from 1 on, also beyond n; float32 [R, Q]. Of a row that is named twice, the
        last vector counts. They are found from when it returns.

        Raises InputError for rows below 1 or beyond 31 bits, or vectors of another size or that are not finite.
        """

    @abstractmethod
    def remove(self, rows: Rows) -> None:
        """Take items out, int64 [R]: none is found any more once it returns. An unknown row is no error."""

    @abstractmethod
    def __len__(self) -> int:
        """How many items can be found."""

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """What kind of index it is, its parameters, the version of its library, and how much has changed in it."""

    @abstractmethod
    def close(self) -> None:
        """Release what the index holds; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def check_base(vectors: npt.NDArray[Any]) -> None:
    """Raise InputError unless an index can be built over `vectors`; they are read once, a block at a time."""
    if vectors.ndim != 2 or not len(vectors) or not vectors.shape[1] or vectors.dtype not in (np.float16, np.float32):
        raise InputError(
            f"An index was given {vectors.dtype} of shape {vectors.shape}; expected float32 or float16 [items + 1, "
            "dimensions], row 0 no item. Give one vector for each item row."
        )
    for begin in range(1, len(vectors), _BLOCK):
        _check_finite(vectors[begin : begin + _BLOCK], "An index was given vectors")


def check_queries(queries: Vectors, dim: int, k: int) -> Vectors:
    """`queries` as float32 [T, dim], contiguous."""
    if k < 1:
        raise InputError(f"A search for the best {k} items; expected at least 1.")
    return _floats(queries, dim, "Queries")


def check_rows(rows: Rows) -> Rows:
    """`rows` as int64 [R]."""
    found = np.asarray(rows)
    if found.ndim != 1 or (found.size and not np.issubdtype(found.dtype, np.integer)):
        raise InputError(
            f"Item rows are {found.dtype} of shape {found.shape}; expected whole numbers, one for each item."
        )
    return found.astype(np.int64)


def check_vectors(rows: Rows, vectors: Vectors, dim: int) -> tuple[Rows, Vectors]:
    """`rows` [R] and their `vectors` [R, dim], each row once, with the last of its vectors."""
    rows, vectors = check_rows(rows), _floats(vectors, dim, "Vectors of items")
    least, most = rows.min(initial=1), rows.max(initial=1)
    if len(rows) != len(vectors) or least < 1 or most > LAST:
        raise InputError(
            f"{len(rows):,} item rows, from {least} to {most}, came with {len(vectors):,} vectors; expected a vector "
            f"for each row, and rows from 1 to {LAST:,}."
        )
    last = len(rows) - 1 - np.unique(rows[::-1], return_index=True)[1]
    return rows[last], vectors[last]


def _floats(vectors: npt.NDArray[Any], dim: int, what: str) -> Vectors:
    found = np.asarray(vectors)
    if found.ndim != 2 or found.shape[1] != dim or not np.issubdtype(found.dtype, np.floating):
        raise InputError(
            f"{what} are {found.dtype} of shape {found.shape}; expected floats [any, {dim}], the size of the vectors "
            "that the index was built over."
        )
    _check_finite(found, what)
    return np.ascontiguousarray(found, dtype=np.float32)


def _check_finite(vectors: npt.NDArray[Any], what: str) -> None:
    # A comparison with what is no number is false, too.
    if not float(np.abs(vectors).max(initial=0)) <= LARGEST:
        raise InputError(
            f"{what} that are not finite, or larger than {LARGEST:g}; expected numbers. Compute them again."
        )
