"""The stock of a larger model and of one with numbers as ids, and the tables that its items stand in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiertcn.artifact import Run, write_run
from hiertcn.errors import InputError
from hiertcn.exported import Exported
from hiertcn.exporting import export
from hiertcn.itemrows import Longer
from hiertcn.models import HierTCNConfig, build
from hiertcn.recommender import Recommender
from hiertcn.retrieval.approximate import ApproximateIndex
from hiertcn.scoring import compared
from hiertcn.states import MemoryStates
from hiertcn.stock import Stated, Stock
from indexes import asked, learned_vectors, recall
from people import GAP, SIZES, START, catalog_of
from test_items import DIM, items_of, listened, model_of, vectors_of

_ROWS = st.lists(st.integers(1, 700), unique=True, max_size=300)


@settings(max_examples=60, deadline=None)
@given(st.lists(_ROWS, max_size=6), st.sampled_from([(), (3,)]))
def test_a_table_holds_what_was_put_and_older_ones_what_they_held(
    puts: list[list[int]], shape: tuple[int, ...]
) -> None:
    random = np.random.default_rng(0)
    base = random.normal(size=(12, *shape)).astype(np.float32)
    base[0] = 0
    held = dict(enumerate(base))
    versions = [(Longer(base), dict(held))]
    for rows in puts:
        values = random.normal(size=(len(rows), *shape)).astype(np.float32)
        held.update(zip(rows, values, strict=True))
        versions.append((versions[-1][0].put(np.array(rows, dtype=np.int64), values), dict(held)))
    for table, expected in versions:
        assert len(table) == max(expected) + 1
        found = np.array([expected.get(row, np.zeros(shape)) for row in range(len(table))], dtype=np.float32)
        np.testing.assert_array_equal(table[:], found)
        np.testing.assert_array_equal(table[3:9], found[3:9])
        asked_rows = random.integers(0, len(table), (2, 5))
        np.testing.assert_array_equal(table.take(asked_rows), found[asked_rows])


def test_a_walked_index_finds_nearly_all_after_much_has_changed(tmp_path: Path) -> None:
    """A quarter withdrawn, as many added, some moved: an HNSW index beside all scores."""
    count, dim = 6_000, 16
    table = learned_vectors(count + 1_500, dim)
    config = HierTCNConfig.model_validate({**SIZES, "vectors": "fixed"})
    names = [f"n{row}" for row in range(1, count + 1)]
    run = _big(tmp_path / "run", config, names, table[: count + 1])
    model = Exported(export(run))
    with ApproximateIndex(compared(model), "hnsw") as index:
        stock = Stock(model, MemoryStates(), index)
        for begin in range(0, 1_500, 500):
            some = range(begin, begin + 500)
            stock.withdraw([f"n{4 * n + 1}" for n in some])
            stock.put([Stated(f"added-{n}", table[count + 1 + n].tolist()) for n in some])
            stock.put([Stated(f"n{4 * n + 2}", table[4 * n + 3].tolist()) for n in range(begin, begin + 50)])
            stock.listen()
        index.settle()
        assert len(index) == count
        assert int(index.facts()["rebuilt"]) >= 1
        queries = asked(table, 100)
        # Rows from its last item on are of withdrawn and moved items, that have theirs in the catalog.
        rows = np.flatnonzero(stock.open)
        scores = queries @ model_of(stock).compared(rows).T
        best = rows[np.argsort(-scores)]
        found = index.search(queries, 50)[0]
        assert recall(found, best[:, :50]) >= 0.97
        assert stock.open[found].all()


def _big(path: Path, config: HierTCNConfig, names: Sequence[str | int], vectors: np.ndarray[Any, Any]) -> Run:
    path.mkdir()
    np.save(path / "given.npy", vectors)
    catalog = catalog_of(names)
    model = build(config, catalog.train_events, 0, vectors)
    rule = {"session_gap": float(GAP), "max_session_events": 1000, "validation": {}, "history": []}
    facts = {"cache": {"path": str(path), "fingerprint": "none"}, **rule}
    write_run(path, model, config, catalog, facts, path / "given.npy")
    return Run(path)


def test_numbers_as_ids(tmp_path: Path) -> None:
    config = HierTCNConfig.model_validate({**SIZES, "vectors": "fixed"})
    model = Exported(export(_numbered(tmp_path / "run", config)))
    rec = Recommender(model, MemoryStates())
    assert rec.stock.put([Stated("0017", [1.0] * DIM), Stated(17, [2.0] * DIM), Stated(3, title="Three")]) == [
        True,
        False,
        False,
    ]
    rec.observe("u", "17", START)
    assert {17, 3} <= items_of(listened(rec))
    assert rec.stock.rows(["3", "017", "17", "99", "x"]).tolist() == [3, 9, 9, 0, 0]
    assert rec.stock.rows(["3", "017", "17", "99"]).tolist() == [3, 9, 9, 0]
    with pytest.raises(InputError, match="whole numbers"):
        rec.stock.put([Stated("x", [1.0] * DIM)])
    assert rec.stock.withdraw([17, "x", 99]) == [True, False, False]
    assert 17 not in items_of(listened(rec))


def _numbered(path: Path, config: HierTCNConfig) -> Run:
    return _big(path, config, list(range(1, 9)), vectors_of(8))
