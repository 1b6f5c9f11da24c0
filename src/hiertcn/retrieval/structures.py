"""The structures of faiss that find nearly all of the best items without comparing every one."""

from __future__ import annotations

__all__ = ["Faiss", "build", "kind_for", "load", "parameters", "version"]

from collections.abc import Callable, Iterator
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from hiertcn.errors import Stopped
from hiertcn.retrieval.protocol import SMALL, Allowed, Rows, Vectors

LEAST = 64
LINKS, BUILD_WIDTH = 32, 100
# The width of a search of so many items; it grows with the fourth root of their number, to find the same share of them.
WIDTH, WIDTH_AT = 170, 100_000
# The graph is built by inner products of vectors whose norms are raised to this power. With 1, those of the search, few
# items are linked to any but those of large norm, and many are not found; with 0, only angles count, and the ways lead
# past those of large norm.
BEND = 0.5
BITS, PER_CELL, PROBED, LEAST_PROBED, FETCHED, TRAINED = 8, 40, 0.16, 32, 4, 64
# Of cells that hold the vectors themselves, each number in 8 bits: so many times the root of the number of items; they
# are learned from so many vectors each, in so many rounds; and as many are probed as find this share of the best
# BEST_OF for vectors like those of the items, which ASKED tell. What 8 bits say of the last ones found is not certain,
# so MORE are; and who asks for BEST_OF that may be given asks for so many more, too.
CELLS, LEARNED, ROUNDS, RECALL, BEST_OF, ASKED, TURNED, MORE = 9, 48, 8, 0.98, 50, 256, 0.7, 16
_BLOCK = 1 << 12
_FORMAT = 1


def version() -> str:
    """Of the library."""
    return str(faiss.__version__)


def kind_for(items: int) -> str:
    """The kind that suits so many items."""
    return "flat" if items < SMALL else "ivf"


def parameters(kind: str) -> dict[str, str]:
    """What a structure of a kind is built and searched by."""
    return {
        "flat": {},
        "hnsw": {
            "links": str(LINKS),
            "build_width": str(BUILD_WIDTH),
            "search_width": f"{WIDTH} at {WIDTH_AT}",
            "norm_power": str(BEND),
        },
        "ivf": {"cells": f"{CELLS} times the root", "recall": str(RECALL), "bits": "8", "more": str(MORE)},
        "ivfpq": {"bits": str(BITS), "items_a_cell": str(PER_CELL), "probed": str(PROBED), "fetched": str(FETCHED)},
    }[kind] | {"format": str(_FORMAT)}


class Faiss:
    """Places 0…n − 1 of the vectors it was built over. Searched by several threads at a time, and never changed."""

    def __init__(self, kind: str, index: Any, threads: int) -> None:
        self.kind, self._index, self._threads = kind, index, threads
        self.exact = kind == "flat"
        self._cells = _stored(index.quantizer, index) if kind == "ivf" else None

    def find(self, queries: Vectors, k: int, marked: Allowed, count: int) -> Rows:
        """int64 [T, C]: places with the largest scores, of the `count` that `marked`, bool [n], marks; −1 for none.

        More than k of them where scores are only estimated here.
        """
        # A thread's own setting; without it the library takes all cores.
        faiss.omp_set_num_threads(self._threads)
        chosen = {}
        if count < len(marked):
            bits = np.packbits(marked, bitorder="little")
            chosen = {"sel": faiss.IDSelectorBitmap(bits)}
        if self.kind == "flat":
            return self._search(queries, k, faiss.SearchParameters(**chosen))
        # What is passed by on the way counts among what is looked at.
        share = count / len(marked)
        if self.kind == "hnsw":
            width = WIDTH * (len(marked) / WIDTH_AT) ** 0.25
            width = min(len(marked), int(max(width, 2 * k) / share))
            return self._search(queries, k, faiss.SearchParametersHNSW(efSearch=width, **chosen))
        cells = self._index.nlist
        if self.kind == "ivf":
            probed, fetched = self._index.nprobe * max(1, k / (BEST_OF + MORE)) ** 0.5, k + MORE
        else:
            probed, fetched = max(LEAST_PROBED, cells * PROBED), FETCHED * k
        probed = min(cells, int(probed / share))
        params = faiss.SearchParametersIVF(nprobe=probed, **chosen)
        found = min(count, fetched)
        return self._search(queries, found, params) if self._cells is None else self._near(queries, found, params)

    def _near(self, queries: Vectors, k: int, params: Any) -> Rows:
        """The same by cells chosen here: of so many a product and a partition are far quicker than the library's own
        search."""
        assert self._cells is not None
        scores, rest = queries @ self._cells.T, len(self._cells) - params.nprobe
        cells = np.ascontiguousarray(np.argpartition(scores, rest, axis=1)[:, rest:])
        near = np.take_along_axis(scores, cells, axis=1)
        best, places = np.empty((len(queries), k), dtype=np.float32), np.empty((len(queries), k), dtype=np.int64)
        arrays = (faiss.swig_ptr(array) for array in (cells, near, best, places))
        # The method that takes arrays takes no parameters.
        self._index.search_preassigned_c(len(queries), faiss.swig_ptr(queries), k, *arrays, False, params)
        return places

    def _search(self, queries: Vectors, k: int, params: Any) -> Rows:
        places: Rows = self._index.search(queries, k, params=params)[1]
        return places

    def vectors(self) -> Vectors | None:
        """The vectors it was built over, if it holds them: float32 [n, Q], its own memory."""
        if self.kind in ("ivf", "ivfpq"):
            return None
        return _stored(self._index if self.kind == "flat" else self._index.storage, self._index)

    def facts(self) -> dict[str, str]:
        """What it is, for people."""
        return {"kind": f"faiss:{self.kind}", "faiss": version(), **parameters(self.kind)}

    def to_bytes(self) -> npt.NDArray[np.uint8]:
        """All but the vectors themselves."""
        flags = faiss.IO_FLAG_SKIP_STORAGE if self.kind == "hnsw" else 0
        data: npt.NDArray[np.uint8] = faiss.serialize_index(self._index, flags)
        return data


def build(kind: str, vectors: npt.NDArray[Any], threads: int = 1, going: Callable[[], bool] = lambda: True) -> Faiss:
    """A structure over `vectors`, floats [n, Q]; flat, where they are too few to learn from.

    Raises Stopped as soon as `going` says no.
    """
    faiss.omp_set_num_threads(threads)
    size, dim = vectors.shape
    kind = kind if size >= LEAST else "flat"
    if kind == "flat":
        index = faiss.IndexFlatIP(dim)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BUILD_WIDTH
    elif kind == "ivf":
        index = _cells(vectors)
    else:
        index = _trained(vectors)
    for block in _blocks(vectors, going):
        index.add(_bent(block) if kind == "hnsw" else block)
    if kind == "hnsw":
        _fill(_stored(index.storage, index), vectors)
    elif kind in ("ivf", "ivfpq"):
        looked_up = faiss.IndexFlatIP(dim)
        looked_up.add(_stored(index.quantizer, index))
        index.quantizer, index.own_fields = looked_up, True
        looked_up.this.disown()
    if kind == "ivf":
        index.nprobe = _enough(index, vectors)
    return Faiss(kind, index, threads)


def load(kind: str, data: npt.NDArray[np.uint8], vectors: npt.NDArray[Any], threads: int = 1) -> Faiss:
    """The structure over `vectors` that `to_bytes` gave. Only for bytes that are known to be it: nothing is checked."""
    flags = faiss.IO_FLAG_SKIP_STORAGE if kind == "hnsw" else 0
    index = faiss.deserialize_index(data, flags)
    if kind == "hnsw":
        storage = faiss.IndexFlatIP(vectors.shape[1])
        for block in _blocks(vectors, lambda: True):
            storage.add(block)
        index.storage, index.own_fields = storage, True
        storage.this.disown()
    return Faiss(kind, index, threads)


def _cells(vectors: npt.NDArray[Any]) -> Any:
    """An inverted file of vectors in 8 bits a number, its cells learned from a part of them. The nearest cell takes an
    item, as of `_trained`."""
    size, dim = vectors.shape
    cells = max(1, min(size // 8, int(CELLS * size**0.5)))
    quantizer = faiss.IndexFlatL2(dim)
    kind = faiss.ScalarQuantizer.QT_8bit
    index = faiss.IndexIVFScalarQuantizer(quantizer, dim, cells, kind, faiss.METRIC_INNER_PRODUCT)
    index.by_residual, index.cp.spherical = False, False
    index.cp.niter, index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = ROUNDS, LEARNED, 1
    sample = np.random.default_rng(0).permutation(size)[: LEARNED * cells]
    index.train(np.asarray(vectors[np.sort(sample)], dtype=np.float32))
    return index


def _enough(index: Any, vectors: npt.NDArray[Any]) -> int:
    """So many cells as hold RECALL of the best of all, for queries in directions of items, turned by noise."""
    random = np.random.default_rng(1)
    size = len(vectors)
    some = np.asarray(vectors[np.sort(random.integers(0, size, ASKED))], dtype=np.float32)
    # As large as the vectors are, and as they lie.
    noise = some[random.permutation(ASKED)] - some[random.permutation(ASKED)]
    queries = _of_length_one(some) + TURNED * _of_length_one(noise)
    best = min(BEST_OF, size - MORE)
    scores = np.full((ASKED, 0), 0, dtype=np.float32)
    places = np.full((ASKED, 0), 0, dtype=np.int64)
    for begin in range(0, size, _BLOCK):
        block = np.asarray(vectors[begin : begin + _BLOCK], dtype=np.float32)
        scores = np.concatenate([scores, queries @ block.T], axis=1)
        places = np.concatenate([places, np.broadcast_to(np.arange(begin, begin + len(block)), (ASKED, len(block)))], 1)
        kept = np.argpartition(-scores, min(best, scores.shape[1]) - 1, axis=1)[:, :best]
        scores, places = np.take_along_axis(scores, kept, 1), np.take_along_axis(places, kept, 1)
    probed = 1
    while probed < index.nlist:
        found = index.search(queries, best + MORE, params=faiss.SearchParametersIVF(nprobe=probed))[1]
        if np.mean([np.isin(mine, others).mean() for mine, others in zip(places, found, strict=True)]) >= RECALL:
            break
        probed = min(index.nlist, max(probed + 1, int(1.1 * probed)))
    return probed


def _of_length_one(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(norms > 0, vectors / np.maximum(norms, 1e-30), 0).astype(np.float32)


def _trained(vectors: npt.NDArray[Any]) -> Any:
    """An inverted file of product-quantised residues, its cells and codes learned from a part of the vectors."""
    size, dim = vectors.shape
    cells = max(1, min(size // PER_CELL, int(4 * size**0.5)))
    parts = next(n for n in range(max(1, dim // 2), 0, -1) if dim % n == 0)
    bits = BITS if size >= 1 << BITS else max(1, int(size).bit_length() - 1)
    # Items go to the nearest cell, so that those of large norm have cells of their own; cells are looked up by inner
    # product (see `build`).
    quantizer = faiss.IndexFlatL2(dim)
    index = faiss.IndexIVFPQ(quantizer, dim, cells, parts, bits, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical = False
    # Fewer than it would like are all there are.
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    sample = np.random.default_rng(0).permutation(size)[: max(TRAINED * cells, 1 << 14)]
    index.train(np.asarray(vectors[np.sort(sample)], dtype=np.float32))
    return index


def _blocks(vectors: npt.NDArray[Any], going: Callable[[], bool]) -> Iterator[Vectors]:
    for begin in range(0, len(vectors), _BLOCK):
        if not going():
            raise Stopped("An index was closed while it was being built.")
        yield np.ascontiguousarray(vectors[begin : begin + _BLOCK], dtype=np.float32)


def _bent(block: Vectors) -> Vectors:
    norms = np.linalg.norm(block, axis=1, keepdims=True)
    return np.where(norms > 0, block * np.maximum(norms, 1e-30) ** (BEND - 1), 0).astype(np.float32)


class _Memory:
    """An array of a library's own memory, with what keeps that from being freed."""

    def __init__(self, array: Vectors, owner: Any) -> None:
        self.__array_interface__ = array.__array_interface__
        self.owner = owner


def _stored(index: Any, owner: Any) -> Vectors:
    """The vectors in a flat `index`, which `owner` frees; whoever has the array keeps the owner."""
    flat = faiss.downcast_index(index)
    array = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
    return np.asarray(_Memory(array, owner))


def _fill(stored: Vectors, vectors: npt.NDArray[Any]) -> None:
    for begin in range(0, len(stored), _BLOCK):
        stored[begin : begin + _BLOCK] = vectors[begin : begin + _BLOCK]
