"""Cells of vectors in 8 bits, those probed where the best items may be: by a cell's centre, and by how far its items
spread from it in the direction of a query.

By their centres alone, nearly twice as many would have to be: items lie far out in a wide cell whose centre is no
better than others.

Legend: n places, T queries, C places found, Q size of a vector, D of a code, L cells, G groups of directions.
"""

from __future__ import annotations

__all__ = ["KIND", "Cells", "build", "load", "parameters"]

from bisect import bisect_left
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import faiss
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as restored
from safetensors.numpy import save

from hiertcn.retrieval.blocks import blocks, check_going, stored
from hiertcn.retrieval.protocol import Allowed, Rows, Vectors

KIND = "ivf"
# Of cells that hold the vectors themselves, each number in 8 bits: so many times the root of the number of items; they
# are learned from so many vectors each, in so many rounds; and as many are probed as find this share of the best
# BEST_OF for vectors like those of the items, which ASKED tell.
CELLS, LEARNED, ROUNDS, RECALL, BEST_OF, ASKED, TURNED = 6, 48, 8, 0.98, 50, 256, 0.7
# What 8 bits say of the last ones found is not certain, the less the closer items lie; so of so many one more is found,
# within these bounds. And who asks for BEST_OF that may be given asks for some more, too.
ONE_MORE_OF, MORE, MOST_MORE = 20_000, 16, 128
# The best of n numbers lies some sqrt(2 ln n) spreads above their mean; so many times that is looked for. How far items
# spread is told by GROUPS of directions that have equal shares of it in all cells together.
BOLD, GROUPS = 1.25, 8
# A code holds a multiple of so many numbers, up to this one or its negative: they are multiplied side by side. Where
# less than this share of the best is found by them among all items, since some number outweighs the others, queries
# stay floats.
LANES, _MOST, SURE = 16, 127, 0.99
# In these bytes is told how many more hold what the library does not.
_HEAD = 8


class _Codes(NamedTuple):
    """Vectors in whole numbers, which are multiplied in two thirds of the time that floats of 8 bits take.

    middle:  float32 [Q], from which vectors are told, since a query scores it alike for all of them
    unit:    float32 [Q], of a column: so many of it lie between
    columns: int64 [D], which of them each number of a code tells; the widest ones fill the code up, and are told by
             several, so that a query's numbers are more alike
    shares:  float32 [D], what of its column's unit each number stands for
    """

    middle: Vectors
    unit: Vectors
    columns: Rows
    shares: Vectors

    @classmethod
    def of(cls, low: Vectors, high: Vectors) -> Self:
        """low, high: float32 [Q], of vectors the least and the largest numbers."""
        unit = np.maximum((high / 2 - low / 2) / _MOST, np.finfo(np.float32).tiny)
        counts = np.ones(len(unit))
        for _ in range(-len(unit) % LANES):
            counts[np.argmax(unit / counts)] += 1
        columns = np.repeat(np.arange(len(unit)), counts.astype(np.int64))
        middle = np.asarray(low / 2 + high / 2, dtype=np.float32)
        return cls(middle, unit, columns, (unit / counts).astype(np.float32)[columns])

    def told(self, vectors: Vectors) -> Vectors:
        """float32 [n, D]: whole numbers."""
        found = np.rint((vectors - self.middle) / self.unit).clip(-_MOST, _MOST)
        return np.ascontiguousarray(found.take(self.columns, axis=1), dtype=np.float32)

    def asked(self, queries: Vectors) -> Vectors:
        """float32 [T, D]: whole numbers, whose products with codes rank these as those of the vectors do."""
        along = queries.take(self.columns, axis=1) * self.shares
        largest = np.maximum(np.abs(along).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        found: Vectors = np.rint(along / largest * np.float32(_MOST))
        return found


class _Spread(NamedTuple):
    """axes:   float32 [Q, Q]: directions in columns, those in which items lie farthest from their cells' centres first,
            each as long as they lie there
    starts: int64 [G]: the first axis of each group
    wide:   float32 [L, G]: by group the squares, as shares of those of all cells, of how far a cell's best item may
            lie"""

    axes: Vectors
    starts: Rows
    wide: Vectors

    def reach(self, queries: Vectors) -> Vectors:
        """float32 [T, L]: how much more than its centre the best item of each cell may score."""
        # Of length one, since squares of large numbers are no numbers.
        norms = np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-30)
        along = np.add.reduceat(((queries / norms) @ self.axes) ** 2, self.starts, axis=1)
        found: Vectors = norms * np.sqrt(along @ self.wide.T)
        return found


class Cells:
    """Places 0…n − 1 of the vectors it was built over. Searched by several threads at a time, and never changed.

    more: so many more than are asked for are found
    """

    kind, exact = KIND, False

    def __init__(self, index: Any, centres: Vectors, codes: _Codes | None, spread: _Spread, threads: int) -> None:
        self._index, self._threads = index, threads
        self._centres, self._codes, self._spread = centres, codes, spread
        self.more = min(max(MORE, index.ntotal // ONE_MORE_OF), MOST_MORE)

    def find(self, queries: Vectors, k: int, marked: Allowed, count: int) -> Rows:
        """int64 [T, C]: places with the largest scores, of the `count` that `marked`, bool [n], marks; −1 for none.

        More than k of them, since scores are only estimated here.
        """
        # A thread's own setting; without it the library takes all cores.
        faiss.omp_set_num_threads(self._threads)
        chosen = {}
        if count < len(marked):
            chosen = {"sel": faiss.IDSelectorBitmap(np.packbits(marked, bitorder="little"))}
        # What is passed by on the way counts among what is looked at.
        probed = self._index.nprobe * max(1, k / (BEST_OF + MORE)) ** 0.5 * len(marked) / count
        return self.near(queries, min(count, k + self.more), max(1, min(len(self._centres), int(probed))), chosen)

    def near(self, queries: Vectors, k: int, probed: int, chosen: dict[str, Any]) -> Rows:
        """int64 [T, k]: the best places of the `probed` best cells. Of thousands of cells two products, a partition and
        a sort choose far quicker than the library's own search."""
        scores = queries @ self._centres.T
        scores += self._spread.reach(queries)
        rest = len(self._centres) - probed
        cells = scores.argpartition(rest, axis=1)[:, rest:]
        # The best first, else what is found is replaced again and again.
        order = np.take_along_axis(scores, cells, 1).argsort(axis=1)[:, ::-1]
        cells = np.ascontiguousarray(np.take_along_axis(cells, order, 1))
        best, places = np.empty((len(queries), k), dtype=np.float32), np.empty((len(queries), k), dtype=np.int64)
        told = queries if self._codes is None else self._codes.asked(queries)
        # What cells score is only added where they hold what is left of vectors.
        arrays = (faiss.swig_ptr(array) for array in (cells, scores, best, places))
        params = faiss.SearchParametersIVF(nprobe=probed, **chosen)
        # The method that takes arrays takes no parameters.
        self._index.search_preassigned_c(len(queries), faiss.swig_ptr(told), k, *arrays, False, params)
        return places

    def vectors(self) -> None:
        """It holds none."""

    def facts(self) -> dict[str, str]:
        """What it is, for people."""
        return {"kind": f"faiss:{KIND}", "faiss": str(faiss.__version__), **parameters()}

    def to_bytes(self) -> npt.NDArray[np.uint8]:
        """All of it."""
        codes = {} if self._codes is None else self._codes._asdict()
        arrays = {"centres": self._centres, **codes, **self._spread._asdict()}
        ours = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        data: npt.NDArray[np.uint8] = faiss.serialize_index(self._index)
        return np.concatenate([np.frombuffer(len(ours).to_bytes(_HEAD, "little") + ours, dtype=np.uint8), data])


def parameters() -> dict[str, str]:
    """What it is built and searched by."""
    found = {
        "cells": f"{CELLS} times the root",
        "recall": str(RECALL),
        "bits": "8, signed",
        "more": f"{MORE} to {MOST_MORE}",
    }
    return {**found, "bold": str(BOLD), "groups": str(GROUPS)}


def load(data: npt.NDArray[np.uint8], threads: int) -> Cells:
    """What `to_bytes` gave. Only for bytes that are known to be it: nothing is checked."""
    end = _HEAD + int.from_bytes(data[:_HEAD].tobytes(), "little")
    ours = restored(data[_HEAD:end].tobytes())
    codes = _Codes(*(ours[name] for name in _Codes._fields)) if "unit" in ours else None
    spread = _Spread(*(ours[name] for name in _Spread._fields))
    return Cells(faiss.deserialize_index(data[end:]), ours["centres"], codes, spread, threads)


def build(vectors: npt.NDArray[Any], threads: int, going: Callable[[], bool]) -> Cells:
    """Cells learned from a part of `vectors`, floats [n, Q]. The nearest one takes an item, so that those of large norm
    have cells of their own; they are looked up by inner product. Raises Stopped as soon as `going` says no."""
    size, dim = vectors.shape
    cells = max(1, min(size // 8, int(CELLS * size**0.5)))
    clustering, nearest = faiss.Clustering(dim, cells), faiss.IndexFlatL2(dim)
    clustering.niter, clustering.max_points_per_centroid, clustering.min_points_per_centroid = ROUNDS, LEARNED, 1
    sample = np.random.default_rng(0).permutation(size)[: LEARNED * cells]
    clustering.train(np.asarray(vectors[np.sort(sample)], dtype=np.float32), nearest)
    low = high = np.asarray(vectors[0], dtype=np.float32)
    for block in blocks(vectors, going):
        low, high = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0))
    codes, ends, centres = _Codes.of(low, high), np.stack([low, high]), np.array(stored(nearest, nearest))
    index = _filled(vectors, nearest, codes, ends, going)
    found = Cells(index, centres, codes, _spread(index, centres, vectors, going), threads)
    index.nprobe = _enough(found, cells, vectors, going, SURE)
    if not index.nprobe:
        index = _filled(vectors, nearest, None, ends, going)
        found = Cells(index, centres, None, found._spread, threads)
        index.nprobe = _enough(found, cells, vectors, going)
    return found


def _filled(
    vectors: npt.NDArray[Any], nearest: Any, codes: _Codes | None, ends: Vectors, going: Callable[[], bool]
) -> Any:
    """Lists of codes alone, each vector in that of its `nearest` cell: what cells are near a query is told to them.
    ends: [2, Q], the least and the largest numbers"""
    kinds = faiss.ScalarQuantizer
    width, kind = (nearest.d, kinds.QT_8bit) if codes is None else (len(codes.columns), kinds.QT_8bit_direct_signed)
    flat = faiss.IndexFlatIP(width)
    index = faiss.IndexIVFScalarQuantizer(flat, width, nearest.ntotal, kind, faiss.METRIC_INNER_PRODUCT)
    index.by_residual, index.is_trained = False, True
    if codes is None:
        index.sq.train(ends)
    for block in blocks(vectors, going):
        told, near = block if codes is None else codes.told(block), nearest.search(block, 1)[1]
        index.add_core(len(block), faiss.swig_ptr(told), None, faiss.swig_ptr(near))
    return index


def _spread(index: Any, centres: Vectors, vectors: npt.NDArray[Any], going: Callable[[], bool]) -> _Spread:
    """How the vectors lie about the centres of their cells."""
    dim, held = vectors.shape[1], np.zeros(index.nlist)

    def beside(cell: int) -> Vectors:
        """[items, Q]: from the centre to each of the items."""
        held[cell] = size = index.invlists.list_size(cell)
        places = np.sort(faiss.rev_swig_ptr(index.invlists.get_ids(cell), size)) if size else np.empty(0, dtype=int)
        found: Vectors = np.asarray(vectors[places], dtype=np.float32) - centres[cell]
        return found

    whole = np.zeros((dim, dim))
    for cell in range(index.nlist):
        check_going(going)
        away = beside(cell)
        whole += away.T @ away
    lengths, axes = np.linalg.eigh(whole / max(held.sum(), 1))
    lengths, axes = np.maximum(lengths[::-1], 1e-12), axes[:, ::-1]
    shares = np.append(0.0, np.cumsum(lengths)) / lengths.sum()
    starts = np.unique(np.searchsorted(shares[:-1], np.arange(GROUPS) / GROUPS))
    starts = starts[starts < dim]
    wide = np.zeros((index.nlist, len(starts)))
    for cell in range(index.nlist):
        check_going(going)
        along = np.add.reduceat((beside(cell) @ axes) ** 2, starts, axis=1)
        wide[cell] = along.sum(axis=0) / max(held[cell], 1)
    wide *= 2 * BOLD**2 * np.log1p(held)[:, None] / np.add.reduceat(lengths, starts)
    return _Spread((axes * np.sqrt(lengths)).astype(np.float32), starts, wide.astype(np.float32))


def _enough(cells: Cells, most: int, vectors: npt.NDArray[Any], going: Callable[[], bool], least: float = 0.0) -> int:
    """So many cells as hold RECALL of the best of all, for queries in directions of items, turned by noise; 0 where
    `most` do not find this share."""
    random = np.random.default_rng(1)
    size = len(vectors)
    some = np.asarray(vectors[np.sort(random.integers(0, size, ASKED))], dtype=np.float32)
    # As large as the vectors are, and as they lie.
    noise = some[random.permutation(ASKED)] - some[random.permutation(ASKED)]
    queries = _of_length_one(some) + TURNED * _of_length_one(noise)
    best = max(1, min(BEST_OF, size - cells.more))
    scores = np.full((ASKED, 0), 0, dtype=np.float32)
    places = np.full((ASKED, 0), 0, dtype=np.int64)
    begin = 0
    for block in blocks(vectors, going):
        scores = np.concatenate([scores, queries @ block.T], axis=1)
        places = np.concatenate([places, np.broadcast_to(np.arange(begin, begin + len(block)), (ASKED, len(block)))], 1)
        kept = np.argpartition(-scores, min(best, scores.shape[1]) - 1, axis=1)[:, :best]
        scores, places = np.take_along_axis(scores, kept, 1), np.take_along_axis(places, kept, 1)
        begin += len(block)

    def enough(probed: int, share: float = RECALL) -> bool:
        check_going(going)
        found = cells.near(queries, best + cells.more, probed, {})
        shares = [np.isin(mine, others).mean() for mine, others in zip(places, found, strict=True)]
        return bool(np.mean(shares) >= share)

    if least and not enough(most, least):
        return 0
    # Twice as many until they do; then it is looked for between.
    last = 1
    while last < most and not enough(last):
        last = min(most, 2 * last)
    return bisect_left(range(last // 2 + 1, last), True, key=enough) + last // 2 + 1


def _of_length_one(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(norms > 0, vectors / np.maximum(norms, 1e-30), 0).astype(np.float32)
