"""Ranges of whole numbers, many at once, and runs of equal ones."""

from __future__ import annotations

__all__ = ["ranges", "runs"]

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def ranges(begins: Ints, ends: Ints) -> Ints:
    """begin…end of each range, one range after another."""
    lengths = ends - begins
    return np.repeat(begins - np.cumsum(lengths) + lengths, lengths) + np.arange(int(lengths.sum()))


def runs(rows: npt.NDArray[Any]) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Of each place of `rows` [T, J]: int64 [T, J], the first place of the run of equal ones that it is in, and bool
    [T, J], whether it is the last of it."""
    new = np.ones((len(rows), rows.shape[1] + 1), dtype=bool)
    np.not_equal(rows[:, 1:], rows[:, :-1], out=new[:, 1:-1])
    begins = np.maximum.accumulate(np.where(new[:, :-1], np.arange(rows.shape[1]), 0), axis=1)
    return begins, new[:, 1:]
