"""What of the catalog an answer may be chosen of."""

from __future__ import annotations

__all__ = ["allowed"]

import numpy as np
import numpy.typing as npt

from hiertcn.catalog import Catalog
from hiertcn.door import Ask, checked_id


def allowed(catalog: Catalog, ask: Ask) -> npt.NDArray[np.int64] | None:
    """The rows, in order, of the candidates that pass the filter; None where all of the catalog may be answered.

    Raises InputError for a candidate that can be no id, and a filter that the catalog can't answer.
    """
    among = None
    if ask.candidates is not None:
        rows = np.array([catalog.row(checked_id(item, "candidate")) for item in ask.candidates], dtype=np.int64)
        among = np.unique(rows[rows > 0])
    if ask.filter is None:
        return among
    passing = catalog.matching(ask.filter)
    return passing if among is None else np.intersect1d(among, passing, assume_unique=True)
