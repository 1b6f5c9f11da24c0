"""Ranges of whole numbers, many at once."""

from __future__ import annotations

__all__ = ["ranges"]

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def ranges(begins: Ints, ends: Ints) -> Ints:
    """begin…end of each range, one range after another."""
    lengths = ends - begins
    return np.repeat(begins - np.cumsum(lengths) + lengths, lengths) + np.arange(int(lengths.sum()))
