"""The first of scored candidates are those of all candidates put in order."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hiertcn.retrieval.ranks import ranked


@settings(deadline=None, max_examples=300)
@given(
    queries=st.integers(1, 4),
    candidates=st.integers(1, 120),
    k=st.integers(1, 60),
    levels=st.sampled_from((1, 3, 1_000)),
    missing=st.sampled_from((0.0, 0.4, 0.95, 1.0)),
    seed=st.integers(0, 10**6),
)
def test_the_first_of_all_in_order(
    queries: int, candidates: int, k: int, levels: int, missing: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    rows = np.stack([random.permutation(200)[:candidates] + 1 for _ in range(queries)])
    # Few levels: many share the last place.
    scores = random.integers(0, levels, rows.shape).astype(np.float32)
    scores[random.random(rows.shape) < missing] = -np.inf
    found, theirs = ranked(rows, scores, k)
    assert found.shape == theirs.shape == (queries, k)
    for query in range(queries):
        pairs = sorted((-score, row) for row, score in zip(rows[query], scores[query], strict=True) if score > -np.inf)
        expected = [(row, -score) for score, row in pairs[:k]]
        expected += [(0, -np.inf)] * (k - len(expected))
        assert list(zip(found[query], theirs[query], strict=True)) == expected
