"""Vectors of items out of a log, where none are given: from what is picked near one another in sessions.

Legend: n items of a catalog, D size of a vector, P pairs.
"""

from __future__ import annotations

__all__ = ["Neighbours", "cooccurrence", "item_to_item", "svd_vectors", "write_items"]

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
from sklearn.utils.extmath import randomized_svd

from hiertcn.cache import Cache
from hiertcn.catalog import Catalog
from hiertcn.files import written_aside
from hiertcn.itemlist import MADE_OF
from hiertcn.sessions import PARTS

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
WINDOW = 5
_SCORES = 1 << 22


def pairs(cache: Cache, part: str, window: int) -> tuple[Ints, Ints]:
    """[P] item rows and [P] those picked at most `window` events later in the same session, of one part's events."""
    first, later = [], []
    for index in range(len(cache)):
        sessions = cache.shard(index).sessions
        session = np.repeat(np.arange(len(sessions.session_offsets) - 1), np.diff(sessions.session_offsets))
        kept = (sessions.parts == PARTS.index(part)) & (sessions.items > 0) & (sessions.items <= cache.manifest.items)
        items, session = sessions.items[kept].astype(np.int64), session[kept]
        for lag in range(1, window + 1):
            same = session[lag:] == session[:-lag]
            first.append(items[:-lag][same])
            later.append(items[lag:][same])
    return np.concatenate(first), np.concatenate(later)


def cooccurrence(cache: Cache, window: int = WINDOW) -> Any:
    """Sparse [n + 1, n + 1], symmetric: how often two items are picked near one another in the train part."""
    first, later = pairs(cache, "train", window)
    differ = first != later
    size = cache.manifest.items + 1
    counts = sp.coo_matrix((np.ones(int(differ.sum())), (first[differ], later[differ])), shape=(size, size)).tocsr()
    return counts + counts.T


def svd_vectors(counts: Any, dim: int, seed: int, shift: float = 1.0) -> Floats:
    """[n + 1, D] of length 1: the positive pointwise mutual information of items (less log `shift`), factorised (Levy &
    Goldberg, 2014); rows of items that are never near another are zero.

    Context frequencies are smoothed by the power 0.75, as in word2vec.
    """
    counts = counts.tocoo()
    of_item, of_context = np.asarray(counts.sum(1)).ravel(), np.asarray(counts.sum(0)).ravel() ** 0.75
    expected = of_item[counts.row] * of_context[counts.col] / max(of_context.sum(), 1e-12)
    information = np.maximum(np.log(counts.data / expected) - np.log(shift), 0)
    matrix = sp.coo_matrix((information, (counts.row, counts.col)), shape=counts.shape).tocsr()
    left, strength, _ = randomized_svd(matrix, n_components=min(dim, matrix.shape[0]), n_iter=7, random_state=seed)
    vectors = np.zeros((matrix.shape[0], dim), dtype=np.float32)
    vectors[:, : len(strength)] = left * np.sqrt(strength)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    # What is left of a row without neighbours is rounding.
    alone = (norms < 1e-6).ravel() | (of_item == 0)
    vectors /= np.where(norms > 0, norms, 1)
    vectors[alone] = 0
    return vectors


@dataclass(frozen=True)
class Neighbours:
    """Of P held-out pairs of consecutive picks: the share whose second item is among the 20 nearest of the first."""

    pairs: int
    without_vector: int
    recall_at_20: float
    of_popular: float
    """The same of the 20 most popular items."""


def item_to_item(cache: Cache, vectors: Floats, part: str = "test") -> Neighbours:
    """How well `vectors` [n + 1, D] of length 1 (or 0: none) tell the next item of held-out sessions from the last one.

    Nearest by inner product, the item itself left out; a pair on an item without a vector is missed.
    """
    first, later = pairs(cache, part, 1)
    differ = first != later
    first, later = first[differ], later[differ]
    has: npt.NDArray[np.bool_] = np.any(vectors != 0, axis=1)
    popular = np.argsort(-cache.catalog.train_events, kind="stable")[:20]
    queries, index = np.unique(first, return_inverse=True)
    nearest = np.zeros((len(queries), min(20, len(vectors) - 1)), dtype=np.int64)
    step = max(1, _SCORES // len(vectors))
    for begin in range(0, len(queries), step):
        asked = queries[begin : begin + step]
        scores = vectors[asked] @ vectors.T
        scores[:, ~has] = -np.inf
        scores[np.arange(len(asked)), asked] = -np.inf
        nearest[begin : begin + step] = np.argpartition(-scores, nearest.shape[1] - 1, axis=1)[:, : nearest.shape[1]]
    known: npt.NDArray[np.bool_] = has[first] & has[later]
    found = np.equal(nearest[index], later.reshape(-1, 1)).any(axis=1) & known
    count = max(len(first), 1)
    return Neighbours(
        len(first), int((~known).sum()), float(found.sum()) / count, float(np.isin(later, popular).sum()) / count
    )


def write_items(path: str | Path, catalog: Catalog, vectors: Floats, made_of: dict[str, Any] | None = None) -> int:
    """Write an item list for `prepare --catalog`: item_id, title, link, embedding of items with a vector; how many.

    made_of: the split of the log whose train part the vectors are of, for `prepare` to compare
    """
    rows = np.flatnonzero(vectors.any(axis=1))
    items = catalog.items.select("item_id", "title", "link")[(rows - 1).tolist()].to_arrow()
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors[rows].ravel()), vectors.shape[1])
    with written_aside(Path(path)) as aside:
        table = items.append_column("embedding", values)
        pq.write_table(table.replace_schema_metadata({MADE_OF: json.dumps(made_of)}), aside)
    return len(rows)
