"""Every item compared, in whole numbers of eight bits: some eight times as fast as in 32, and nearly as good.

What is found is compared again by the true vectors, so all that can go wrong is that one of the last was not found.

Legend: n places, B queries of a pass, C columns, L = LANES items of a column, Q size of a vector.
"""

from __future__ import annotations

__all__ = ["Int8"]

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from hiertcn.errors import InputError, Stopped
from hiertcn.retrieval.protocol import Allowed, Rows, Vectors

KIND = "int8"
# Items of a column share a scale, and are looked at only where the best of them is among the best columns.
LANES = 32
# More than are asked for, since eight bits do not tell the last ones from the next.
MORE = 16
# Of seven bits: products of two pairs fit into sixteen, in which processors without better instructions add them up.
_MOST_ITEM, _MOST_QUERY, _ZERO = 63, 127, 128
# Products in memory at a time; bytes of the largest graph that there can be.
_PRODUCTS, _LARGEST = 1 << 23, (1 << 31) - (1 << 20)
_BLOCK = 1 << 12
_LEAST = np.iinfo(np.int32).min
_OPSET, _IR = 17, 9


class Int8:
    """Places 0…n − 1 of the vectors it was built over. Searched by several threads at a time, and never changed.

    Places lie in columns by their largest number, so that items of one column, with one scale, are alike in size.
    vectors: floats [n, Q]. Raises Stopped as soon as `going` says no, InputError for more than 2 GB.
    """

    kind, exact = KIND, False

    def __init__(self, vectors: npt.NDArray[Any], threads: int, going: Callable[[], bool]) -> None:
        size, dim = vectors.shape
        columns = max(1, -(-size // LANES))
        if columns * LANES * dim > _LARGEST:
            raise InputError(
                f"{size:,} vectors of {dim} numbers are more than {KIND} can hold; expected at most "
                f"{_LARGEST // dim:,}. Choose faiss:ivfpq."
            )
        peaks = np.concatenate([_peaks(vectors[at : at + _BLOCK]) for at in range(0, max(size, 1), _BLOCK)])
        # Where nothing is, at the end of the last column, is place n.
        grid = np.append(np.argsort(peaks, kind="stable"), np.full(columns * LANES - size, size)).reshape(
            columns, LANES
        )
        self._scales = (np.append(peaks, 0.0)[grid].max(axis=1) / _MOST_ITEM).astype(np.float32)
        self._scales[self._scales == 0] = 1.0
        self._places = np.ascontiguousarray(grid.T).ravel()
        self._empty = np.flatnonzero(self._places == size)
        table = np.zeros((len(self._places), dim), dtype=np.int8)
        for begin in range(0, len(table), _BLOCK):
            if not going():
                raise Stopped("An index was closed while it was being built.")
            block = np.arange(begin, min(begin + _BLOCK, len(table)))
            real = block[self._places[block] < size]
            scales = self._scales[real % columns, None]
            table[real] = np.rint(np.asarray(vectors[self._places[real]], dtype=np.float32) / scales)
        self._products = _products(table, threads)

    def find(self, queries: Vectors, k: int, marked: Allowed, count: int) -> Rows:
        """int64 [T, C]: places with the largest scores, of the `count` that `marked`, bool [n], marks; −1 for none."""
        hidden = self._empty if count == len(marked) else np.flatnonzero(~np.append(marked, False)[self._places])
        together = max(1, _PRODUCTS // len(self._places))
        parts = [
            self._best(queries[at : at + together], min(k + MORE, count), hidden)
            for at in range(0, len(queries), together)
        ]
        return np.concatenate(parts) if parts else np.empty((0, k), dtype=np.int64)

    def _best(self, queries: Vectors, k: int, hidden: Rows) -> Rows:
        sizes = np.maximum(np.abs(queries).max(axis=1, keepdims=True), 1e-30) / _MOST_QUERY
        products = self._products((np.rint(queries / sizes) + _ZERO).astype(np.uint8))
        # Less than any product can be.
        products[:, hidden] = _LEAST
        # The k best are in the k columns whose best ones are best.
        held, columns = len(queries), len(self._scales)
        wide = min(k, columns)
        tops = _scaled(products.reshape(held, LANES, columns).max(axis=1), self._scales)
        chosen = np.argpartition(tops, columns - wide, axis=1)[:, None, columns - wide :]
        places = (chosen + columns * np.arange(LANES)[:, None]).reshape(held, -1)
        whole = products.take(places + np.arange(held)[:, None] * products.shape[1])
        scores = _scaled(whole.reshape(held, LANES, wide), self._scales[chosen]).reshape(held, -1)
        best = np.argpartition(scores, LANES * wide - k, axis=1)[:, LANES * wide - k :]
        found = self._places.take(np.take_along_axis(places, best, axis=1))
        return np.where(np.isneginf(np.take_along_axis(scores, best, axis=1)), -1, found)

    def vectors(self) -> None:
        """It holds none."""

    def facts(self) -> dict[str, str]:
        """For people."""
        return {"kind": KIND, "onnxruntime": str(ort.__version__)}


def _scaled(products: npt.NDArray[np.int32], scales: Vectors) -> Vectors:
    """Scores; −inf for what is hidden, whatever its scale."""
    scores: Vectors = products * scales
    scores[products == _LEAST] = -np.inf
    return scores


def _peaks(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = np.abs(np.asarray(vectors, dtype=np.float64)).max(axis=1)
    return found


def _products(table: npt.NDArray[np.int8], threads: int) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.int32]]:
    """What gives int32 [B, n]: the products of queries uint8 [B, Q], whose zero is _ZERO, with `table` [n, Q]."""
    held, dim = table.shape
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["queries", "table", "zero"], ["products"])],
        KIND,
        [helper.make_tensor_value_info("queries", TensorProto.UINT8, ["B", dim])],
        [helper.make_tensor_value_info("products", TensorProto.INT32, ["B", held])],
        [
            numpy_helper.from_array(np.ascontiguousarray(table.T), "table"),
            numpy_helper.from_array(np.array(_ZERO, dtype=np.uint8), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda queries: np.asarray(session.run(None, {"queries": queries})[0])
