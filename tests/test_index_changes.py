"""Whatever is put, removed and built anew, an index finds what a dict of vectors holds."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hiertcn.retrieval import blocks, structures
from hiertcn.retrieval.approximate import ApproximateIndex
from indexes import asked, learned_vectors, plain_search, recall

DIM = 4
SOME_ROWS = st.lists(st.integers(1, 260), max_size=25)


class Churn(RuleBasedStateMachine):
    """A flat structure is exact, so that all that is found can be told; the way of an index past it is the same."""

    kind = "flat"

    @initialize(items=st.integers(0, 120), seed=st.integers(0, 9))
    def begin(self, items: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        vectors = self._vectors(items + 1)
        self.held = dict(enumerate(vectors[1:], 1))
        self.index = ApproximateIndex(vectors, self.kind, beside=20)

    def _vectors(self, count: int) -> np.ndarray:
        return self.rng.integers(-3, 4, (count, DIM)).astype(np.float32)

    @rule(rows=SOME_ROWS)
    def put(self, rows: list[int]) -> None:
        vectors = self._vectors(len(rows))
        self.index.put(np.array(rows, dtype=np.int64), vectors)
        self.held.update(zip(rows, vectors, strict=True))

    @rule(rows=SOME_ROWS)
    def remove(self, rows: list[int]) -> None:
        self.index.remove(np.array(rows, dtype=np.int64))
        self.held = {row: vector for row, vector in self.held.items() if row not in rows}

    @precondition(lambda self: self.held)
    @rule(k=st.integers(1, 30), share=st.sampled_from([0.1, 0.6, 1.0]))
    def search_allowed(self, k: int, share: float) -> None:
        self._compare(k, self.rng.random(261) < share)

    @rule()
    def settle(self) -> None:
        self.index.settle()

    @invariant()
    def the_same_is_found(self) -> None:
        self._compare(7, None)

    def _compare(self, k: int, allowed: np.ndarray | None) -> None:
        queries = self._vectors(2)
        found, scores = self.index.search(queries, k, allowed)
        np.testing.assert_array_equal(scores, plain_search(self.held, queries, k, allowed)[1])
        assert len(self.index) == len(self.held)
        for query, rows, values in zip(queries, found.tolist(), scores.tolist(), strict=True):
            known = [(row, value) for row, value in zip(rows, values, strict=True) if row]
            assert len({row for row, _ in known}) == len(known)
            assert all(self.held[row] @ query == value for row, value in known)

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.index.close()


@pytest.fixture(autouse=True)
def structures_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hiertcn.retrieval.approximate.FEW", 0)
    monkeypatch.setattr("hiertcn.retrieval.structures.LEAST", 2)


class TestChurn(Churn.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


def rows(begin: int, end: int) -> np.ndarray:
    return np.arange(begin, end, dtype=np.int64)


def test_writes_of_while_it_is_built_anew_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = learned_vectors(400, 8)
    far = 40 * asked(vectors, 1)
    begun, go = threading.Event(), threading.Event()
    plain = structures.build

    with ApproximateIndex(vectors, "hnsw") as index:

        def build(*given: object) -> structures.Structure:
            begun.set()
            assert go.wait(30)
            return plain(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(structures, "build", build)
        index.remove(rows(1, 81))
        assert not begun.is_set()
        index.remove(rows(81, 82))
        assert begun.wait(30)
        index.put(rows(500, 501), far)
        index.put(rows(7, 8), far * 2)
        index.remove(rows(300, 401))
        before = index.search(far, 20)[0]
        go.set()
        index.settle()
        facts = index.facts()
        assert (facts["rebuilt"], facts["put"], facts["tombstones"]) == ("1", "2", "101")
        assert before[0, :2].tolist() == [7, 500]
        assert recall(index.search(far, 20)[0], before) >= 0.9
        found = set(index.search(far, 300)[0].ravel().tolist()) - {0}
        assert found <= {7, 500, *range(82, 300)}
        assert len(index) == 220


def test_what_fails_in_the_background_leaves_the_old_one_in_use(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = learned_vectors(200, 8)
    query = asked(vectors, 1)
    with ApproximateIndex(vectors, "hnsw", beside=10) as index:
        with monkeypatch.context() as patch:
            patch.setattr(structures, "build", lambda *_: 1 // 0)
            index.put(rows(300, 320), np.linspace(30, 20, 20, dtype=np.float32)[:, None] * query)
            index.settle()
        assert "could not be built anew" in caplog.text
        assert index.search(query, 1)[0].tolist() == [[300]]
        assert index.facts()["rebuilt"] == "0"
        index.put(rows(400, 401), 60 * query)
        index.settle()
        assert (index.facts()["rebuilt"], index.facts()["put"]) == ("1", "0")
        assert index.search(query, 2)[0].tolist() == [[400, 300]]


def test_closing_ends_what_is_being_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 1)
    vectors = learned_vectors(3_000, 8)
    index = ApproximateIndex(vectors, "flat", beside=10)
    index.put(rows(3_001, 3_020), vectors[1:20])
    index.close()
    assert not any(thread.name == "hiertcn-index" for thread in threading.enumerate())


def test_an_old_answer_outlives_the_structure_it_came_of() -> None:
    """Vectors lie in the library's memory; who still reads them keeps it."""
    vectors = learned_vectors(5_000, 16)
    index = ApproximateIndex(vectors, "hnsw")
    base = index._now[1].now.base
    index.remove(rows(1, 1_500))
    index.settle()
    assert index.facts()["rebuilt"] == "1"
    index.close()
    del index
    np.testing.assert_array_equal(base, vectors[1:])
