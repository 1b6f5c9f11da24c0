"""The first of scored candidates are those of all candidates put in order."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hiertcn.retrieval.protocol import LAST
from hiertcn.retrieval.ranks import ranked


@settings(deadline=None, max_examples=300)
@given(
    queries=st.integers(1, 4),
    candidates=st.integers(1, 120),
    k=st.integers(1, 60),
    levels=st.sampled_from((1, 3, 1_000)),
    missing=st.sampled_from((0.0, 0.4, 0.95, 1.0)),
    least=st.sampled_from((1, LAST - 199)),
    seed=st.integers(0, 10**6),
)
def test_the_first_of_all_in_order(
    queries: int, candidates: int, k: int, levels: int, missing: float, least: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    rows = np.stack([random.permutation(200)[:candidates] + least for _ in range(queries)])
    # Few levels: many share the last place. Below zero, too, and zero in both of its forms.
    scores = (random.integers(-levels, levels, rows.shape) / np.float32(8)).astype(np.float32)
    scores *= random.choice(np.float32([-1, 1]), rows.shape)
    scores[random.random(rows.shape) < missing] = -np.inf
    found, theirs = ranked(rows, scores, k)
    assert found.shape == theirs.shape == (queries, k)
    for query in range(queries):
        pairs = sorted((-score, row) for row, score in zip(rows[query], scores[query], strict=True) if score > -np.inf)
        expected = [(row, -score) for score, row in pairs[:k]]
        expected += [(0, -np.inf)] * (k - len(expected))
        assert list(zip(found[query], theirs[query], strict=True)) == expected
