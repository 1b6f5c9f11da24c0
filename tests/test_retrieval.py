"""Every index keeps the same promises, and the exact one finds what the plainest search finds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.format import open_memmap

from hiertcn.errors import InputError
from hiertcn.retrieval import FORMS, Index, open_index
from hiertcn.retrieval.approximate import ApproximateIndex
from hiertcn.retrieval.protocol import LAST
from indexes import asked, learned_vectors, plain_search, recall

ITEMS, DIM = 600, 8
VECTORS = learned_vectors(ITEMS, DIM)
VECTORS[0] = 100
QUERIES = asked(VECTORS, 6)
INDEXES: dict[str, Callable[[Path], str]] = {
    **{
        name: lambda _, name=name: name
        for name in ("exact", "int8", "faiss", "faiss:flat", "faiss:hnsw", "faiss:ivf", "faiss:ivfpq")
    },
    "qdrant:memory": lambda _: "qdrant:memory",
}


@pytest.fixture(autouse=True)
def structures_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so few items, all would be compared."""
    monkeypatch.setattr("hiertcn.retrieval.approximate.FEW", 0)


def rows(*listed: int) -> np.ndarray:
    return np.array(listed, dtype=np.int64)


class TestIndex:
    """The contract."""

    @pytest.fixture(params=INDEXES)
    def index(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Index]:
        with open_index(INDEXES[request.param](tmp_path), VECTORS) as index:
            yield index

    def items(self) -> dict[int, np.ndarray]:
        return dict(enumerate(VECTORS[1:], 1))

    def test_the_best_come_first(self, index: Index) -> None:
        found, scores = index.search(QUERIES, 10)
        best, products = plain_search(self.items(), QUERIES, 10)
        assert (found.dtype, scores.dtype, found.shape) == (np.int64, np.float32, (6, 10))
        assert recall(found, best) == 1 if index.exact else recall(found, best) >= 0.9
        np.testing.assert_allclose(scores, np.einsum("tq,tkq->tk", QUERIES, VECTORS[found]), rtol=1e-5)
        assert (np.diff(scores, axis=1) <= 0).all()
        if index.exact:
            np.testing.assert_allclose(scores, products, rtol=1e-5)

    def test_only_what_is_allowed_is_found(self, index: Index) -> None:
        for share in (0.9, 0.3, 0.02):
            allowed = np.random.default_rng(0).random(ITEMS + 1) < share
            found, _ = index.search(QUERIES, 10, allowed)
            best, _ = plain_search(self.items(), QUERIES, 10, allowed)
            assert allowed[found].all()
            assert recall(found, best) >= (1 if index.exact else 0.9)

    def test_where_fewer_are_the_rest_is_empty(self, index: Index) -> None:
        allowed = np.zeros(ITEMS + 1, dtype=bool)
        allowed[[0, 3, 5]] = True
        found, scores = index.search(QUERIES, 4, allowed)
        assert all(set(row) == {3, 5} for row in found[:, :2].tolist())
        assert (found[:, 2:] == 0).all()
        assert np.isneginf(scores[:, 2:]).all()
        found, scores = index.search(QUERIES, 3, allowed[:1])
        assert (found == 0).all()
        assert np.isneginf(scores).all()
        assert index.search(QUERIES[:0], 3)[0].shape == (0, 3)
        index.remove(np.arange(6, ITEMS + 1))
        found, _ = index.search(QUERIES, 9)
        assert len(index) == 5
        assert (np.sort(found, axis=1) == [0, 0, 0, 0, 1, 2, 3, 4, 5]).all()

    def test_what_was_put_is_found_at_once(self, index: Index) -> None:
        new = 20 * QUERIES[:3] / np.linalg.norm(QUERIES[:3], axis=1, keepdims=True)
        index.put(rows(ITEMS + 1, 7, ITEMS + 5_000), new)
        assert index.search(QUERIES[:3], 1)[0].ravel().tolist() == [ITEMS + 1, 7, ITEMS + 5_000]
        assert len(index) == ITEMS + 2
        # A list of what is allowed that is older than an item does not allow it.
        assert ITEMS + 1 not in index.search(QUERIES, 20, np.ones(ITEMS + 1, dtype=bool))[0]
        index.put(rows(7), -new[1:2])
        assert 7 not in index.search(QUERIES[1:2], 20)[0]
        assert len(index) == ITEMS + 2

    def test_what_was_removed_is_never_found(self, index: Index) -> None:
        first = index.search(QUERIES, 5)[0]
        index.remove(np.append(first.ravel(), [0, -3, 10**12]))
        assert not set(index.search(QUERIES, 50)[0].ravel().tolist()) & set(first.ravel().tolist())
        assert len(index) == ITEMS - len(set(first.ravel().tolist()))
        index.put(first[:1, 0], VECTORS[first[:1, 0]])
        assert index.search(QUERIES[:1], 1)[0][0, 0] == first[0, 0]

    def test_of_a_row_named_twice_the_last_vector_counts(self, index: Index) -> None:
        far = 30 * QUERIES[:1]
        index.put(rows(900, 900), np.concatenate([-far, far]))
        assert (index.search(QUERIES[:1], 1)[0][0, 0], len(index)) == (900, ITEMS + 1)

    def test_what_is_no_vector_is_refused_and_changes_nothing(self, index: Index) -> None:
        one = np.ones((1, DIM), dtype=np.float32)
        bad: list[Callable[[], Any]] = [
            lambda: index.put(rows(0), one),
            lambda: index.put(rows(LAST + 1), one),
            lambda: index.put(rows(1, 2), one),
            lambda: index.put(rows(1), one * np.nan),
            lambda: index.put(rows(1), one * 1e30),
            lambda: index.put(rows(1), one[:, :3]),
            lambda: index.put(np.array([1.0]), one),
            lambda: index.search(one * np.inf, 3),
            lambda: index.search(one[0], 3),
            lambda: index.search(one, 0),
            lambda: index.remove(np.array([[1]])),
        ]
        for call in bad:
            with pytest.raises(InputError, match="expected"):
                call()
        assert len(index) == ITEMS

    def test_it_says_what_it_is(self, index: Index) -> None:
        facts = index.facts()
        assert {"kind", "tombstones"} <= facts.keys()
        assert all(type(value) is str for value in facts.values())
        assert isinstance(index.exact, bool)

    def test_closing_twice_does_nothing(self, index: Index) -> None:
        index.close()
        index.close()


def test_the_vectors_it_was_built_over_are_not_changed() -> None:
    before = VECTORS.copy()
    for name in ("exact", "int8", "faiss:flat", "faiss:hnsw", "faiss:ivf", "faiss:ivfpq"):
        with open_index(name, VECTORS) as index:
            index.put(rows(1, 2), VECTORS[3:5])
            index.remove(rows(5))
    np.testing.assert_array_equal(VECTORS, before)


@pytest.mark.parametrize("name", ["exact", "faiss:flat"])
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_exact_ones_find_what_the_plainest_search_finds(name: str, data: st.DataObject) -> None:
    # Of small whole numbers, scores are exact, and many are equal.
    seed, items, k = data.draw(st.tuples(st.integers(0, 99), st.integers(0, 40), st.integers(1, 50)))
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (items + 1, 3)).astype(data.draw(st.sampled_from([np.float16, np.float32])))
    queries = rng.integers(-2, 3, (data.draw(st.integers(0, 3)), 3)).astype(np.float32)
    held = dict(enumerate(vectors[1:].astype(np.float32), 1))
    allowed = rng.random(rng.integers(1, 60)) < 0.6 if data.draw(st.booleans()) else None
    with open_index(name, vectors) as index:
        for _ in range(data.draw(st.integers(0, 3))):
            put, gone = rng.integers(1, 50, 4), rng.integers(0, 50, 2)
            new = rng.integers(-2, 3, (4, 3)).astype(np.float32)
            index.put(put, new)
            index.remove(gone)
            held = {**held, **dict(zip(put.tolist(), new, strict=True))}
            held = {row: vector for row, vector in held.items() if row not in gone}
        found, scores = index.search(queries, k, allowed)
        best, products = plain_search(held, queries, k, allowed)
        np.testing.assert_array_equal(scores, products)
        if name == "exact":
            np.testing.assert_array_equal(found, best)
        assert len(index) == len(held)


def test_blocks_and_holes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hiertcn.retrieval.table._SCORES", 200)
    allowed = np.random.default_rng(0).random(ITEMS + 1) < np.linspace(0, 1, ITEMS + 1)
    with open_index("exact", VECTORS) as index:
        best, products = plain_search(dict(enumerate(VECTORS)), QUERIES, 40, allowed)
        found, scores = index.search(QUERIES, 40, allowed)
    np.testing.assert_array_equal(found, best)
    np.testing.assert_allclose(scores, products, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_read_only_memory_map_will_do(tmp_path: Path, dtype: type) -> None:
    table = open_memmap(tmp_path / "vectors.npy", mode="w+", dtype=dtype, shape=VECTORS.shape)
    table[:] = VECTORS
    table.flush()
    mapped = open_memmap(tmp_path / "vectors.npy", mode="r")
    found = {}
    for name in ("exact", "int8", "faiss:flat", "faiss:hnsw", "faiss:ivf"):
        with open_index(name, mapped, cache=tmp_path) as index:
            found[name] = index.search(QUERIES, 5)
    np.testing.assert_array_equal(found["exact"][0], found["faiss:flat"][0])
    # To the last bit: one item has one score, whatever finds it.
    np.testing.assert_array_equal(found["exact"][1], found["faiss:flat"][1])
    for name in ("int8", "faiss:hnsw", "faiss:ivf"):
        assert recall(found[name][0], found["exact"][0]) >= 0.95


@pytest.mark.parametrize(
    ("kind", "items"),
    [("int8", 8_000), ("faiss:hnsw", 8_000), ("faiss:ivf", 8_000), ("faiss:ivfpq", 3_000)],
    ids=lambda value: str(value),
)
def test_nearly_all_of_the_best_are_found(kind: str, items: int) -> None:
    least = 0.97
    vectors = learned_vectors(items, 32)
    queries = asked(vectors, 100)
    allowed = np.random.default_rng(0).random(len(vectors)) < 0.5
    with open_index("exact", vectors) as exact, open_index(kind, vectors) as index:
        assert recall(index.search(queries, 50)[0], exact.search(queries, 50)[0]) >= least
        assert recall(index.search(queries, 50, allowed)[0], exact.search(queries, 50, allowed)[0]) >= least
        gone = np.random.default_rng(1).permutation(items)[: items // 6] + 1
        for each in (exact, index):
            each.remove(gone)
        assert recall(index.search(queries, 50)[0], exact.search(queries, 50)[0]) >= least


def test_what_is_hidden_is_not_found_however_small_it_is() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(0, 0.1, (2_001, 8)).astype(np.float32)
    vectors[:, 0] = -1
    vectors[1:65] *= 1e-7
    query = np.eye(1, 8, dtype=np.float32)
    with open_index("int8", vectors) as index:
        assert set(index.search(query, 10)[0].ravel().tolist()) <= set(range(1, 65))
        index.remove(np.arange(1, 33))
        index.put(np.arange(33, 65), np.tile(-2 * query, (32, 1)))
        found, scores = index.search(query, 10)
    assert found.min() > 64
    np.testing.assert_allclose(scores, -1, rtol=1e-5)


@pytest.mark.parametrize(
    ("held", "faiss", "biased", "kind"),
    [
        (ITEMS, True, False, None),
        (ITEMS, False, True, None),
        (ITEMS + 1, True, False, "faiss:ivf"),
        (ITEMS + 1, True, True, "int8"),
        (ITEMS + 1, False, False, "int8"),
    ],
)
def test_auto_is_what_suits_the_items_and_is_installed(
    held: int, faiss: bool, biased: bool, kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hiertcn.retrieval.SMALL", ITEMS)
    monkeypatch.setattr("hiertcn.retrieval.structures.SMALL", ITEMS)
    monkeypatch.setattr("hiertcn.retrieval.find_spec", lambda name: object() if faiss else None)
    with open_index("auto", VECTORS[:held], biased=biased) as index:
        assert index.exact is (kind is None)
        assert kind is None or index.facts()["kind"] == kind


def test_faiss_chooses_by_the_number_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hiertcn.retrieval.structures.SMALL", ITEMS)
    for held, kind, exact in ((ITEMS, "faiss:flat", True), (ITEMS + 1, "faiss:ivf", False)):
        with open_index("faiss", VECTORS[:held]) as index:
            assert (index.facts()["kind"], index.exact) == (kind, exact)


@pytest.mark.parametrize("name", ["exact", "int8", "faiss", "faiss:hnsw", "faiss:ivf", "faiss:ivfpq", "qdrant:memory"])
def test_an_index_may_begin_empty(name: str) -> None:
    with open_index(name, np.zeros((1, DIM), dtype=np.float32)) as index:
        assert (len(index), index.search(QUERIES, 3)[0].tolist()) == (0, [[0] * 3] * 6)
        index.put(rows(4), VECTORS[4:5])
        assert index.search(QUERIES[:1], 3)[0].tolist() == [[4, 0, 0]]


def test_threads_may_search_while_others_write() -> None:
    """Each search finds all of some moment: no half of a write, nothing that was gone before it began."""
    with ApproximateIndex(VECTORS, "hnsw", beside=40) as index, ThreadPoolExecutor(4) as threads:
        far = 50 * np.abs(QUERIES[:1])

        def write(_: int) -> None:
            index.put(rows(*range(1_001, 1_021)), np.repeat(far, 20, axis=0))
            index.put(rows(*range(2_000, 2_050)), np.repeat(-far, 50, axis=0))
            index.remove(rows(*range(1_001, 1_021), *range(2_000, 2_050)))

        def read(_: int) -> list[int]:
            return [row for row in index.search(far, 30)[0].ravel().tolist() if 1_000 < row < 1_050]

        for _ in range(10):
            found = [threads.submit(read, n) for n in range(12)]
            written = threads.submit(write, 0)
            assert all(answer.result() in ([], list(range(1_001, 1_021))) for answer in found)
            written.result()
            assert read(0) == []
        index.settle()
        assert int(index.facts()["rebuilt"]) >= 1
        assert read(0) == []


@pytest.mark.parametrize(
    "url", ["", "exakt", "faiss:hsnw", "qdrant", "qdrant:", "qdrant:///", "qdrant://u:p@h", "http://h"]
)
def test_an_unknown_index_names_the_known_ones(url: str) -> None:
    with pytest.raises(InputError, match="expected one of auto, exact, int8, faiss") as caught:
        open_index(url, VECTORS)
    near = {"exakt": "exact", "faiss:hsnw": "faiss:hnsw", "qdrant": "qdrant:memory"}.get(url)
    assert near is None or f"did you mean '{near}'" in str(caught.value)
    assert all(form in str(caught.value) for form in FORMS)


@pytest.mark.parametrize("name", ["auto", "exact", "int8", "faiss", "qdrant:memory"])
def test_what_is_no_table_of_vectors_is_refused(name: str) -> None:
    holed = VECTORS.copy()
    holed[17, 2] = np.nan
    for bad in (VECTORS[0], VECTORS[:0], VECTORS.astype(np.float64), VECTORS[:, :0], holed):
        with pytest.raises(InputError, match="expected"):
            open_index(name, bad)


def test_no_index_loads_torch_and_exact_needs_no_extra() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'faiss', 'qdrant_client')))\n"
        "import numpy as np; from hiertcn.retrieval import open_index\n"
        "print(open_index('exact', np.eye(3, dtype='f4')).search(np.eye(3, dtype='f4'), 1)[0].ravel())\n"
        "for name in ('faiss', 'qdrant:memory'):\n"
        "    try: open_index(name, np.eye(3, dtype='f4'))\n"
        "    except ModuleNotFoundError as error: print(error.name)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.split("\n") == ["[1 1 2]", "faiss", "qdrant_client", ""]
