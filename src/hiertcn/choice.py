"""What of the catalog an answer may be chosen of."""

from __future__ import annotations

__all__ = ["allowed"]

import numpy as np
import numpy.typing as npt

from hiertcn.door import Ask, checked_id
from hiertcn.stock import Stock


def allowed(stock: Stock, ask: Ask) -> npt.NDArray[np.int64] | None:
    """The rows, in order, of the candidates that pass the filter; None where all items may be answered. An item that
    was added while serving has no columns, so it passes none.

    Raises InputError for a candidate that can be no id, and a filter that the catalog can't answer.
    """
    among = None
    if ask.candidates is not None:
        rows = stock.rows([checked_id(item, "candidate") for item in ask.candidates])
        among = np.unique(rows[rows > 0]).astype(np.int64)
    if ask.filter is None:
        return among
    passing = stock.catalog.matching(ask.filter)
    return passing if among is None else np.intersect1d(among, passing, assume_unique=True)
