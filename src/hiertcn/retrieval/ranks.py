"""The best of scored items: by score, then by row."""

from __future__ import annotations

__all__ = ["best", "ranked"]

import numpy as np

from hiertcn.retrieval.protocol import Found, Rows, Vectors


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
    is NaN."""
    held = scores.shape[1]
    if held > 4 * k:
        # Only those that are among the first, or share the last place, are put in order.
        least = np.partition(scores, held - k, axis=1)[:, held - k, None]
        kept = max(k, int(((scores >= least) & (scores > -np.inf)).sum(axis=1).max(initial=0)))
        columns = scores.argpartition(held - kept, axis=1)[:, held - kept :]
        rows, scores = np.take_along_axis(rows, columns, 1), np.take_along_axis(scores, columns, 1)
    rows = np.where(np.isneginf(scores), 0, rows)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    each = np.arange(len(rows))[:, None]
    rows, scores = rows[each, order], scores[each, order]
    if order.shape[1] < k:
        missing = ((0, 0), (0, k - order.shape[1]))
        rows, scores = np.pad(rows, missing), np.pad(scores, missing, constant_values=-np.inf)
    return rows, scores
