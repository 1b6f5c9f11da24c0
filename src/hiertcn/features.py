"""What is known of items beside where they are picked.

Legend: n items, B items asked for, F features.
"""

from __future__ import annotations

__all__ = ["ItemFeatures"]

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.feature_extraction.text import HashingVectorizer
from torch import Tensor
from torch.nn import functional as F

from hiertcn.cache import Cache

_TEXT = 1 << 12


class ItemFeatures:
    """Of the items of a cache, outside its catalog, too: the vectors that they came with, or else their titles.

    kind: "vectors", "titles" or "none"      size: F      has: bool [n + 1], which items have some
    """

    def __init__(self, cache: Cache) -> None:
        self.kind, self.size = "none", 0
        self._rows: Any = None
        titles = cache.catalog.items["title"]
        self.has = np.zeros(cache.catalog.items.height + 1, dtype=bool)
        if cache.vectors is not None:
            self.kind, self.size, self._rows = "vectors", cache.vectors.shape[1], cache.vectors
            self.has[1 : len(cache.vectors)] = True
        elif titles.null_count() < len(titles):
            # Hashes need no vocabulary, so they read the title of a new item as they read the others.
            hashing = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), n_features=_TEXT, dtype=np.float32)
            self.kind, self.size = "titles", _TEXT
            self._rows = hashing.transform(["", *titles.fill_null("").to_list()])
            self.has = self._rows.getnnz(axis=1) > 0

    def read(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """float32 [B, F] of length 1; zero of items without features."""
        out = np.zeros((len(rows), self.size), dtype=np.float32)
        inside = self.has[rows]
        found = self._rows[rows[inside]]
        out[inside] = found.toarray() if hasattr(found, "toarray") else found
        return F.normalize(torch.from_numpy(out), dim=1)
