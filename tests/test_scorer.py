"""What an index and boosts find together is what all scores say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiertcn import scoring
from hiertcn.retrieval import ExactIndex
from hiertcn.scoring import Limits, Scorer, compared

SIZE, BOOSTED = 4, 30


class Boosting:
    """Vectors and boosts, and nothing that learned them."""

    def __init__(self, items: int, biased: bool, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.vectors = random.standard_normal((items + 1, SIZE)).astype(np.float32)
        self.bias = random.standard_normal(items + 1).astype(np.float32) if biased else None

    def parted(self, queries: Any) -> tuple[Any, Any, Any]:
        boosted = (queries.shape[1] - SIZE) // 2
        rows = queries[:, SIZE : SIZE + boosted].astype(np.int64)
        return queries[:, :SIZE], rows, queries[:, SIZE + boosted :]

    def score_rows(self, queries: Any, rows: np.ndarray) -> np.ndarray:
        # Column j is row j + 1; of row 0, anything.
        return np.take_along_axis(self.score(queries), np.maximum(rows - 1, 0), axis=1)

    def scores_of(self, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
        found = (self.vectors[rows] * vectors[:, None]).sum(2)
        return found if self.bias is None else found + self.bias[rows]

    def score(self, queries: Any) -> Any:
        vectors, rows, boosts = self.parted(queries)
        scores = vectors @ self.vectors.T + (0 if self.bias is None else self.bias)
        for query in range(len(rows)):
            for row, boost in zip(rows[query], boosts[query], strict=True):
                scores[query, row] += boost
        return scores[:, 1:]


@settings(deadline=None, max_examples=150)
@given(
    items=st.integers(1, 300),
    users=st.integers(1, 4),
    biased=st.booleans(),
    boosted=st.sampled_from((0, 1, BOOSTED)),
    up=st.sampled_from((-9.0, 0.5, 9.0)),
    hidden=st.sampled_from((0.0, 0.1, 0.9, 1.0)),
    shut=st.sampled_from((None, 0.0, 0.3, 1.0)),
    few=st.sampled_from((0, 5, 1_000)),
    seed=st.integers(0, 10**6),
)
def test_an_index_and_boosts_give_what_all_scores_give(
    items: int,
    users: int,
    biased: bool,
    boosted: int,
    up: float,
    hidden: float,
    shut: float | None,
    few: int,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    model = Boosting(items, biased, seed)
    queries = random.standard_normal((users, SIZE + 2 * boosted)).astype(np.float32)
    # Of few rows, so that some are boosted twice.
    best = np.argsort(-model.score(queries[:, :SIZE]), axis=1)[:, : BOOSTED // 2] + 1
    queries[:, SIZE : SIZE + boosted] = random.choice(np.append(0, best.ravel()), (users, boosted))
    queries[:, SIZE + boosted :] *= up
    is_open = None if shut is None else random.random(items + 1) >= shut
    limits = []
    for user in range(users):
        # In any order: what a person had comes in that of time.
        out = random.permutation(np.flatnonzero(random.random(items + 1) < hidden))
        among = None if user % 2 else np.unique(random.integers(1, items + 1, 12))
        limits.append(Limits(int(random.integers(1, 40)), out[out > 0], among))
    expected = Scorer(model).best(queries, limits, is_open)  # type: ignore[arg-type]
    # Of more candidates than `few`, an index is searched.
    with ExactIndex(compared(model)) as index, pytest.MonkeyPatch.context() as patch:  # type: ignore[arg-type]
        patch.setattr(scoring, "_FEW", few)
        found = Scorer(model, index).best(queries, limits, is_open)  # type: ignore[arg-type]
    for one, other, limit in zip(found, expected, limits, strict=True):
        assert not set(one.rows.tolist()) & set(limit.hidden.tolist())
        assert is_open is None or is_open[one.rows].all()
        assert len(set(one.rows.tolist())) == len(one.rows) == len(other.rows)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        if (np.diff(other.scores) < -1e-3).all():
            assert one.rows.tolist() == other.rows.tolist()


def test_what_an_index_did_not_find_is_looked_for_where_all_it_found_is_pushed_down() -> None:
    model = Boosting(200, False, 0)
    query = np.ones((1, SIZE), dtype=np.float32)
    order = np.argsort(-model.score(query)[0]) + 1
    # As many as are asked of an index at first, for two items.
    rows, boosts = order[:18].astype(np.float32)[None], np.full((1, 18), -100, dtype=np.float32)
    with ExactIndex(compared(model)) as index:  # type: ignore[arg-type]
        (found,) = Scorer(model, index).best(np.concatenate([query, rows, boosts], axis=1), [_two()])  # type: ignore[arg-type]
    assert found.rows.tolist() == order[18:20].tolist()
    assert found.scores == pytest.approx(np.sort(model.score(query)[0])[::-1][18:20])


def _two() -> Limits:
    return Limits(2, np.zeros(0, dtype=np.int64))
