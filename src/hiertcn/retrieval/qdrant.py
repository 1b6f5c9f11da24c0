"""Item vectors in Qdrant, a vector server, or in a folder of its client's own."""

from __future__ import annotations

__all__ = ["API_KEY", "QdrantIndex"]

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from threading import Lock
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException

from hiertcn.errors import StorageError
from hiertcn.quarantine import shown
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
from hiertcn.retrieval.ranks import ranked

API_KEY = "HIERTCN_QDRANT_API_KEY"
"""The variable of the environment that the key of a server is read from."""
DEADLINE = 1.0
_UPLOADING, _BLOCK = 60.0, 1_000


class QdrantIndex(Index):
    """A collection of points without payload, an item row each, by dot product; named by the digest of the vectors.

    The collection is filled when it is opened for the first time, and then marked as whole by an alias. The first `put`
    or `remove` takes the mark away, since it no longer holds those vectors: who opens it next fills it anew. So one
    process at a time may write to it.

    where: how the client is opened: `url` or `path` or `location`. deadline: seconds, of each step of a request
    (connect, send, receive).

    Raises StorageError where the server can't be reached, refuses or does not answer in time.
    """

    exact = False

    def __init__(self, vectors: npt.NDArray[Any], where: dict[str, Any], deadline: float = DEADLINE) -> None:
        check_base(vectors)
        self._dim = vectors.shape[1]
        self._where = next(iter(where.values()))
        self._lock = Lock()
        self._closed = False
        # What the server holds, told by row, so that a row taken out is not given even if the server still does.
        self._there: Allowed = np.arange(len(vectors)) > 0
        self._name = f"hiertcn-{_digest(vectors)}"
        remote: dict[str, Any] = {"timeout": deadline, "api_key": os.environ.get(API_KEY), "check_compatibility": False}
        with self._faults():
            self._client = QdrantClient(**where, **(remote if "url" in where else {}))
        try:
            with self._faults():
                self._changed = not self._is_whole()
                if self._changed:
                    self._fill(vectors)
        except BaseException:
            self._client.close()
            raise

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (ApiException, QdrantException, ResponseHandlingException, httpx.HTTPError, OSError) as error:
            told = shown(str(error) or type(error).__name__)
            raise StorageError(
                f"The vector server at {self._where} did not do what it was asked: {told}. "
                "Expected Qdrant there, that answers in time. Start it, mend the address, or give its key in the "
                f"environment as {API_KEY}."
            ) from error

    @property
    def _mark(self) -> str:
        return f"{self._name}-whole"

    def _is_whole(self) -> bool:
        return any(alias.alias_name == self._mark for alias in self._client.get_aliases().aliases)

    def _fill(self, vectors: npt.NDArray[Any]) -> None:
        self._client.delete_collection(self._name, timeout=int(_UPLOADING))
        sizes = models.VectorParams(size=self._dim, distance=models.Distance.DOT)
        self._client.create_collection(self._name, vectors_config=sizes, timeout=int(_UPLOADING))
        for begin in range(1, len(vectors), _BLOCK):
            block = np.asarray(vectors[begin : begin + _BLOCK], dtype=np.float32)
            self._upsert(np.arange(begin, begin + len(block)), block)
        alias = models.CreateAlias(collection_name=self._name, alias_name=self._mark)
        self._client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
        self._changed = False

    def _upsert(self, rows: Rows, vectors: Vectors) -> None:
        self._client.upsert(self._name, models.Batch(ids=rows.tolist(), vectors=vectors.tolist()), wait=True)

    def _unmark(self) -> None:
        if not self._changed:
            alias = models.DeleteAlias(alias_name=self._mark)
            self._client.update_collection_aliases([models.DeleteAliasOperation(delete_alias=alias)])
            self._changed = True

    def search(self, queries: Vectors, k: int, allowed: Allowed | None = None) -> Found:
        queries = check_queries(queries, self._dim, k)
        there = self._there
        marked = there.copy()
        if allowed is not None:
            marked[len(allowed) :] = False
            marked[: len(allowed)] &= np.asarray(allowed, dtype=bool)[: len(marked)]
        limit = min(k, int(marked.sum()))
        rows = np.zeros((len(queries), limit), dtype=np.int64)
        scores = np.full(rows.shape, -np.inf, dtype=np.float32)
        if limit and len(queries):
            asked = [
                models.QueryRequest(query=query, limit=limit, filter=_only(marked, there)) for query in queries.tolist()
            ]
            with self._faults():
                answers = self._client.query_batch_points(self._name, asked)
            for at, answer in enumerate(answers):
                found = [(int(point.id), point.score) for point in answer.points]
                kept = [pair for pair in found if pair[0] < len(marked) and marked[pair[0]]]
                rows[at, : len(kept)] = [row for row, _ in kept]
                scores[at, : len(kept)] = [score for _, score in kept]
        return ranked(rows, scores, k)

    def put(self, rows: Rows, vectors: Vectors) -> None:
        rows, vectors = check_vectors(rows, vectors, self._dim)
        with self._lock, self._faults():
            self._unmark()
            for begin in range(0, len(rows), _BLOCK):
                self._upsert(rows[begin : begin + _BLOCK], vectors[begin : begin + _BLOCK])
            there = np.zeros(max(len(self._there), int(rows.max(initial=0)) + 1), dtype=bool)
            there[: len(self._there)] = self._there
            there[rows] = True
            self._there = there

    def remove(self, rows: Rows) -> None:
        rows = check_rows(rows)
        with self._lock:
            there = self._there.copy()
            rows = rows[(rows > 0) & (rows < len(there))]
            there[rows] = False
            # Before the server is told: whatever becomes of that, they are not found here any more.
            self._there = there
            with self._faults():
                self._unmark()
                self._client.delete(self._name, models.PointIdsList(points=rows.tolist()), wait=True)

    def __len__(self) -> int:
        return int(self._there.sum())

    def facts(self) -> dict[str, str]:
        return {
            "kind": "qdrant",
            "at": str(self._where),
            "collection": self._name,
            "qdrant-client": version("qdrant-client"),
            "tombstones": "0",
        }

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._client.close()


def _only(marked: Allowed, there: Allowed) -> models.Filter | None:
    """By whichever list of rows is shorter."""
    out: list[Any] = np.flatnonzero(there & ~marked).tolist()
    wanted: list[Any] = np.flatnonzero(marked).tolist()
    if not out:
        return None
    if len(out) < len(wanted):
        return models.Filter(must_not=[models.HasIdCondition(has_id=out)])
    return models.Filter(must=[models.HasIdCondition(has_id=wanted)])


def _digest(vectors: npt.NDArray[Any]) -> str:
    digest = hashlib.sha256(f"{vectors.dtype} {vectors.shape}".encode())
    for begin in range(0, len(vectors), _BLOCK):
        digest.update(np.ascontiguousarray(vectors[begin : begin + _BLOCK]).data)
    return digest.hexdigest()[:32]
