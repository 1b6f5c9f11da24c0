"""What tests of the crowd share: a small catalog, and the crowd's answers as whole tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hiertcn.crowd import Horizons

CATALOG = 6
HORIZONS = Horizons((0.05, 2.0), (0.5,))
START = 1_700_000_000


def dense(rows: npt.NDArray[np.int32], weights: npt.NDArray[np.float32], catalog: int = CATALOG) -> npt.NDArray[Any]:
    """[N, C, n + 1], nothing at row 0."""
    out = np.zeros((*rows.shape[:2], catalog + 1))
    for place in np.ndindex(rows.shape):
        out[(*place[:2], rows[place])] += weights[place]
    out[..., 0] = 0
    return out
