"""Vectors in blocks, and in the memory of faiss: what its structures are built of and leave behind."""

from __future__ import annotations

__all__ = ["BLOCK", "blocks", "check_going", "fill", "looked_up_by_product", "stored"]

from collections.abc import Callable, Iterator
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from hiertcn.errors import Stopped
from hiertcn.retrieval.protocol import Vectors

BLOCK = 1 << 12


def check_going(going: Callable[[], bool]) -> None:
    """Raise Stopped if `going` says no."""
    if not going():
        raise Stopped("An index was closed while it was being built.")


def blocks(vectors: npt.NDArray[Any], going: Callable[[], bool]) -> Iterator[Vectors]:
    """float32 [BLOCK or fewer, Q], one after another. Raises Stopped as soon as `going` says no."""
    for begin in range(0, len(vectors), BLOCK):
        check_going(going)
        yield np.ascontiguousarray(vectors[begin : begin + BLOCK], dtype=np.float32)


def stored(index: Any, owner: Any) -> Vectors:
    """The vectors in a flat `index`, which `owner` frees; whoever has the array keeps the owner."""
    flat = faiss.downcast_index(index)
    array = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
    return np.asarray(_Memory(array, owner))


def fill(array: Vectors, vectors: npt.NDArray[Any]) -> None:
    """Replace what is stored by `vectors`."""
    for begin in range(0, len(array), BLOCK):
        array[begin : begin + BLOCK] = vectors[begin : begin + BLOCK]


def looked_up_by_product(index: Any) -> None:
    """Let the cells of an inverted file, learned and filled by distance, be looked up by inner product."""
    looked_up = faiss.IndexFlatIP(index.d)
    looked_up.add(stored(index.quantizer, index))
    index.quantizer, index.own_fields = looked_up, True
    looked_up.this.disown()


class _Memory:
    """An array of a library's own memory, with what keeps that from being freed."""

    def __init__(self, array: Vectors, owner: Any) -> None:
        self.__array_interface__ = array.__array_interface__
        self.owner = owner
