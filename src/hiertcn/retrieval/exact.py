"""Every item compared with every query."""

from __future__ import annotations

__all__ = ["ExactIndex"]

from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

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


class ExactIndex(Index):
    """Matrix products by NumPy, a block of items at a time; a memory map stays one, and 16 bits stay 16.

    Its threads are those of NumPy's matrix products.
    """

    exact = True

    def __init__(self, vectors: npt.NDArray[Any]) -> None:
        check_base(vectors)
        self._table = Table(vectors)
        self._lock = Lock()

    def search(self, queries: Vectors, k: int, allowed: Allowed | None = None) -> Found:
        now = self._table.now
        queries = check_queries(queries, now.base.shape[1], k)
        marked = now.allowing(allowed)
        slots = np.concatenate([now.among(queries, k, marked), now.beside(queries, k, marked)], axis=1)
        return now.rank(queries, k, slots)

    def put(self, rows: Rows, vectors: Vectors) -> None:
        rows, vectors = check_vectors(rows, vectors, self._table.now.base.shape[1])
        with self._lock:
            self._table.put(rows, vectors)

    def remove(self, rows: Rows) -> None:
        rows = check_rows(rows)
        with self._lock:
            self._table.remove(rows)

    def __len__(self) -> int:
        return self._table.now.count

    def facts(self) -> dict[str, str]:
        now = self._table.now
        return {
            "kind": "exact",
            "numpy": np.__version__,
            "put": str(int(now.live[len(now.base) :].sum())),
            "tombstones": str(len(now.live) - now.count - int((now.rows == 0).sum())),
        }

    def close(self) -> None:
        pass
