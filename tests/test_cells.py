"""Cells are probed by how far their items spread, too; whatever the vectors are."""

from __future__ import annotations

import numpy as np
import pytest

from hiertcn.retrieval import cells
from indexes import asked, learned_vectors, recall

ITEMS, DIM, BEST = 8_000, 32, 50


def best(vectors: np.ndarray, queries: np.ndarray, k: int = BEST) -> np.ndarray:
    scores = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def found(index: cells.Cells, queries: np.ndarray, size: int, k: int = BEST) -> np.ndarray:
    return index.find(queries, k, np.ones(size, dtype=bool), size)


def test_fewer_cells_are_probed_than_by_their_centres_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    table = learned_vectors(ITEMS, DIM)
    vectors, queries = table[1:], asked(table, 200)
    index = cells.build(vectors, 1, lambda: True)
    monkeypatch.setattr(cells, "BOLD", 0.0)
    plain = cells.build(vectors, 1, lambda: True)
    assert index._index.nprobe < 0.8 * plain._index.nprobe
    for one in (index, plain):
        assert recall(found(one, queries, ITEMS), best(vectors, queries)) > 0.95


@pytest.mark.parametrize("most", range(1, 40))
def test_no_more_cells_are_probed_than_are_needed(most: int) -> None:
    vectors = learned_vectors(ITEMS // 10, DIM)[1:]

    class Known:
        """Finds all from so many cells on, and nothing of fewer."""

        more = 0

        def __init__(self, needed: int) -> None:
            self.needed = needed

        def near(self, queries: np.ndarray, k: int, probed: int, _: object) -> np.ndarray:
            return best(vectors, queries, k) if probed >= self.needed else np.full((len(queries), k), -1)

    for needed in {1, 2, most // 2, most - 1, most, most + 2} - {0}:
        assert cells._enough(Known(needed), most, vectors, lambda: True) == min(needed, most)


@pytest.mark.parametrize("scale", [1e-12, 1e14])
def test_numbers_of_any_size_are_found_as_well(scale: float) -> None:
    table = learned_vectors(ITEMS, DIM)
    index = cells.build(table[1:] * np.float32(scale), 1, lambda: True)
    with np.errstate(over="raise", invalid="raise"):
        rows = found(index, asked(table, 100) * np.float32(scale), ITEMS)
    assert recall(rows, best(table[1:], asked(table, 100))) > 0.95


@pytest.mark.parametrize(("size", "dim"), [(64, 1), (65, 3), (700, 8)])
@pytest.mark.parametrize("how", ["zero", "equal", "random"])
def test_few_or_equal_vectors(size: int, dim: int, how: str) -> None:
    random = np.random.default_rng(0)
    vectors = {"zero": np.zeros((size, dim)), "equal": np.ones((size, dim)), "random": random.normal(size=(size, dim))}
    some = vectors[how].astype(np.float32)
    index = cells.build(some, 1, lambda: True)
    queries = random.normal(size=(4, dim)).astype(np.float32)
    assert np.isfinite(index._spread.reach(queries)).all()
    rows = found(cells.load(index.to_bytes(), 1), queries, size, size)
    np.testing.assert_array_equal(rows, found(index, queries, size, size))
    for row in rows:
        assert len(np.unique(row[row >= 0])) == (row >= 0).sum()


def test_only_what_is_marked_is_found() -> None:
    table = learned_vectors(ITEMS, DIM)
    vectors, queries = table[1:], asked(table, 50)
    marked = np.random.default_rng(2).random(ITEMS) < 0.5
    rows = cells.build(vectors, 1, lambda: True).find(queries, BEST, marked, int(marked.sum()))
    assert marked[rows[rows >= 0]].all()
    allowed = np.flatnonzero(marked)
    assert recall(rows, allowed[best(vectors[allowed], queries)]) > 0.95


@pytest.mark.parametrize("dim", [1, 16, 33])
def test_whole_numbers_rank_as_the_vectors_do(dim: int) -> None:
    random = np.random.default_rng(3)
    # Columns of unlike width that lie far from zero.
    vectors = (random.normal(size=(2_000, dim)) * random.uniform(0.1, 9, dim) + random.normal(size=dim) * 50).astype(
        np.float32
    )
    queries = random.normal(size=(20, dim)).astype(np.float32)
    codes = cells._Codes.of(vectors.min(axis=0), vectors.max(axis=0))
    told, asked_for = codes.told(vectors), codes.asked(queries)
    assert told.shape[1] % cells.LANES == 0
    for numbers in (told, asked_for):
        assert (numbers == np.rint(numbers)).all()
        assert np.abs(numbers).max() == cells._MOST
    scores, exact = asked_for @ told.T, queries @ vectors.T
    for ours, theirs in zip(scores, exact, strict=True):
        assert np.corrcoef(ours, theirs)[0, 1] > 0.999


@pytest.mark.parametrize("dim", [127, 128])
@pytest.mark.parametrize("down", [1.0, 100.0, 10_000.0])
def test_a_number_that_outweighs_all_others_leaves_them_their_say(dim: int, down: float) -> None:
    # As a bias does that pushes half of all items down.
    random = np.random.default_rng(4)
    pushed = random.choice([0.0, -down], (ITEMS, 1))
    vectors = np.hstack([random.normal(size=(ITEMS, dim)) / 10, pushed]).astype(np.float32)
    queries = np.hstack([random.normal(size=(50, dim)) * 2, np.ones((50, 1))]).astype(np.float32)
    index = cells.build(vectors, 1, lambda: True)
    every = cells.load(index.to_bytes(), 1).near(queries, BEST + index.more, len(index._centres), {})
    assert recall(every, best(vectors, queries)) > 0.98


def test_where_whole_numbers_say_too_little_queries_stay_floats() -> None:
    table = learned_vectors(ITEMS, DIM)
    odd = table[1:].copy()
    odd[7, 3] = 1_000 * np.abs(odd).max()
    assert cells.build(table[1:], 1, lambda: True)._codes is not None
    index = cells.build(odd, 1, lambda: True)
    assert index._codes is None
    assert index._index.nprobe > 0
