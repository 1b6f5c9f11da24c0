"""The structures of faiss that find nearly all of the best items without comparing every one."""

from __future__ import annotations

__all__ = ["Faiss", "build", "kind_for", "load", "parameters", "version"]

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from hiertcn.retrieval import cells
from hiertcn.retrieval.blocks import blocks, fill, looked_up_by_product, stored
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
        cells.KIND: cells.parameters(),
        "ivfpq": {"bits": str(BITS), "items_a_cell": str(PER_CELL), "probed": str(PROBED), "fetched": str(FETCHED)},
    }[kind] | {"format": str(_FORMAT)}


class Faiss:
    """Places 0…n − 1 of the vectors it was built over. Searched by several threads at a time, and never changed."""

    def __init__(self, kind: str, index: Any, threads: int) -> None:
        self.kind, self._index, self._threads = kind, index, threads
        self.exact = kind == "flat"

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
        held = self._index.nlist
        probed = min(held, int(max(LEAST_PROBED, held * PROBED) / share))
        params = faiss.SearchParametersIVF(nprobe=probed, **chosen)
        return self._search(queries, min(count, FETCHED * k), params)

    def _search(self, queries: Vectors, k: int, params: Any) -> Rows:
        places: Rows = self._index.search(queries, k, params=params)[1]
        return places

    def vectors(self) -> Vectors | None:
        """The vectors it was built over, if it holds them: float32 [n, Q], its own memory."""
        if self.kind == "ivfpq":
            return None
        return stored(self._index if self.kind == "flat" else self._index.storage, self._index)

    def facts(self) -> dict[str, str]:
        """What it is, for people."""
        return {"kind": f"faiss:{self.kind}", "faiss": version(), **parameters(self.kind)}

    def to_bytes(self) -> npt.NDArray[np.uint8]:
        """All but the vectors themselves."""
        flags = faiss.IO_FLAG_SKIP_STORAGE if self.kind == "hnsw" else 0
        data: npt.NDArray[np.uint8] = faiss.serialize_index(self._index, flags)
        return data


def build(
    kind: str, vectors: npt.NDArray[Any], threads: int = 1, going: Callable[[], bool] = lambda: True
) -> Faiss | cells.Cells:
    """A structure over `vectors`, floats [n, Q]; flat, where they are too few to learn from.

    Raises Stopped as soon as `going` says no.
    """
    faiss.omp_set_num_threads(threads)
    size, dim = vectors.shape
    kind = kind if size >= LEAST else "flat"
    if kind == cells.KIND:
        return cells.build(vectors, threads, going)
    if kind == "flat":
        index = faiss.IndexFlatIP(dim)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BUILD_WIDTH
    else:
        index = _trained(vectors)
    for block in blocks(vectors, going):
        index.add(_bent(block) if kind == "hnsw" else block)
    if kind == "hnsw":
        fill(stored(index.storage, index), vectors)
    elif kind == "ivfpq":
        looked_up_by_product(index)
    return Faiss(kind, index, threads)


def load(kind: str, data: npt.NDArray[np.uint8], vectors: npt.NDArray[Any], threads: int = 1) -> Faiss | cells.Cells:
    """The structure over `vectors` that `to_bytes` gave. Only for bytes that are known to be it: nothing is checked."""
    if kind == cells.KIND:
        return cells.load(data, threads)
    flags = faiss.IO_FLAG_SKIP_STORAGE if kind == "hnsw" else 0
    index = faiss.deserialize_index(data, flags)
    if kind == "hnsw":
        storage = faiss.IndexFlatIP(vectors.shape[1])
        for block in blocks(vectors, lambda: True):
            storage.add(block)
        index.storage, index.own_fields = storage, True
        storage.this.disown()
    return Faiss(kind, index, threads)


def _trained(vectors: npt.NDArray[Any]) -> Any:
    """An inverted file of product-quantised residues, its cells and codes learned from a part of the vectors. The
    nearest cell takes an item, so that those of large norm have cells of their own; cells are looked up by inner
    product."""
    size, dim = vectors.shape
    lists = max(1, min(size // PER_CELL, int(4 * size**0.5)))
    parts = next(n for n in range(max(1, dim // 2), 0, -1) if dim % n == 0)
    bits = BITS if size >= 1 << BITS else max(1, int(size).bit_length() - 1)
    quantizer = faiss.IndexFlatL2(dim)
    index = faiss.IndexIVFPQ(quantizer, dim, lists, parts, bits, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical = False
    # Fewer than it would like are all there are.
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    sample = np.random.default_rng(0).permutation(size)[: max(TRAINED * lists, 1 << 14)]
    index.train(np.asarray(vectors[np.sort(sample)], dtype=np.float32))
    return index


def _bent(block: Vectors) -> Vectors:
    norms = np.linalg.norm(block, axis=1, keepdims=True)
    return np.where(norms > 0, block * np.maximum(norms, 1e-30) ** (BEND - 1), 0).astype(np.float32)
