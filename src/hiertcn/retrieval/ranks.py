"""The best of scored items: by score, then by row."""

from __future__ import annotations

__all__ = ["best", "ranked"]

import numpy as np
import numpy.typing as npt

from hiertcn.retrieval.protocol import Found, Rows, Vectors

# Of a key, the bits that hold the row.
_ROW = np.int64((1 << 32) - 1)
_LARGEST = np.int32((1 << 31) - 1)


def best(scores: Vectors, k: int) -> Rows:
    """Columns of the `k` largest of `scores` [T, N], in no order; of equal scores those further left. [T, min(k, N)]"""
    held = scores.shape[1]
    if k >= held:
        return np.broadcast_to(np.arange(held), scores.shape)
    part = np.argpartition(scores, held - k, axis=1)[:, held - k :]
    least = np.take_along_axis(scores, part, axis=1).min(axis=1, initial=np.inf)
    # Where several share the last place, a partition takes any of them.
    for tied in np.flatnonzero((scores >= least[:, None]).sum(axis=1) > k):
        part[tied] = np.argsort(-scores[tied], kind="stable")[:k]
    return part


def ranked(rows: Rows, scores: Vectors, k: int) -> Found:
    """The first `k` ≥ 1 of candidates [T, C], best first, filled up with row 0 and −inf where fewer are. No score
    is NaN. As whole numbers, score before row, they are sorted several times as fast as by two keys."""
    # Adding zero makes 0 of −0, which has other bits.
    bits = (np.asarray(scores, dtype=np.float32) + np.float32(0)).view(np.int32)
    keys = (~_flipped(bits)).astype(np.int64) << 32
    keys |= np.where(np.isneginf(scores), 0, rows)
    held = keys.shape[1]
    if held > 4 * k:
        keys = np.partition(keys, k - 1, axis=1)[:, :k]
    keys = np.sort(keys, axis=1)[:, :k]
    rows, scores = keys & _ROW, _flipped(~(keys >> 32).astype(np.int32)).view(np.float32)
    if held < k:
        missing = ((0, 0), (0, k - held))
        rows, scores = np.pad(rows, missing), np.pad(scores, missing, constant_values=-np.inf)
    return rows, scores


def _flipped(bits: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The bits of floats as whole numbers in the same order, or these as those bits again."""
    return bits ^ ((bits >> 31) & _LARGEST)
