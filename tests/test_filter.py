"""Items chosen by the catalog's own columns: kept from the list on to the server, and never more than was allowed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiertcn import scoring
from hiertcn.artifact import Run
from hiertcn.cache import Cache
from hiertcn.catalog import Catalog
from hiertcn.catalogfile import read_catalog, write_catalog
from hiertcn.choice import allowed
from hiertcn.door import Ask
from hiertcn.errors import ArtifactError, InputError
from hiertcn.exported import FOLDER, Exported
from hiertcn.exporting import export
from hiertcn.models import HierTCNConfig
from hiertcn.preparation import prepare
from hiertcn.recommender import Recommender
from hiertcn.retrieval import ExactIndex
from hiertcn.scoring import Limits, Scorer, compared
from hiertcn.states import MemoryStates
from hiertcn.stock import Stock
from logs import make_log
from people import FULL, SIZES, START, catalog_of, run_of, shop
from servers import Server


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = run_of(tmp_path_factory.mktemp("runs") / "shop", FULL, shop())
    export(run)
    return run


@pytest.fixture(scope="module")
def stock(run: Run) -> Stock:
    return Stock(Exported(run.path / FOLDER), MemoryStates())


NOW = int(time.time())
VALUES: dict[str, list[Any]] = {"colour": ["red", "blue", "green", "1=1; DROP"], "year": [2020, 2021, 1999]}
FILTERS = st.fixed_dictionaries(
    {}, optional={name: st.sampled_from(v) | st.lists(st.sampled_from(v), max_size=3) for name, v in VALUES.items()}
)


@settings(max_examples=60, deadline=None)
@given(wanted=FILTERS, candidates=st.none() | st.lists(st.sampled_from("abcdex")))
def test_what_passes_is_what_a_plain_look_at_each_line_finds(
    stock: Stock, wanted: dict[str, Any], candidates: list[str] | None
) -> None:
    catalog = stock.catalog
    found = allowed(stock, Ask("u", candidates=candidates, filter=wanted))
    lists = {name: value if isinstance(value, list) else [value] for name, value in wanted.items()}
    expected = [
        row
        for row, line in enumerate(catalog.items.iter_rows(named=True), start=1)
        if all(line[name] in values for name, values in lists.items())
        and (candidates is None or line["item_id"] in candidates)
    ]
    assert found is not None
    assert found.tolist() == expected


def test_columns_are_kept_from_the_list_to_the_export(tmp_path: Path) -> None:
    log = make_log()
    ids = sorted(set(log[log.columns[1]].to_list()))
    listed = pl.DataFrame(
        {
            "item_id": ids,
            "title": ids,
            "colour": [["red", "blue"][n % 2] for n in range(len(ids))],
            "year": list(range(len(ids))),
            "price": [1.5] * len(ids),
        }
    )
    listed.write_parquet(tmp_path / "items.parquet")
    prepare(log, tmp_path / "cache", catalog=tmp_path / "items.parquet", keep_columns="colour,year")
    catalog = Cache(tmp_path / "cache").catalog
    assert catalog.columns == {"colour": str, "year": int}
    for row in catalog.matching({"colour": "red"}).tolist():
        assert ids.index(catalog.ids[row - 1]) % 2 == 0
    run = run_of(tmp_path / "run", FULL, catalog)
    assert Run(run.path).catalog.items.equals(catalog.items)
    assert Exported(export(run)).catalog.items.equals(catalog.items)
    for columns, found in {
        "colours": "no column 'colours' to keep .did you mean 'colour'",
        "price": "of type Float64; expected text or whole numbers",
        "title": "one of the catalog's own",
    }.items():
        with pytest.raises(InputError, match=found):
            prepare(log, tmp_path / "other", catalog=tmp_path / "items.parquet", keep_columns=columns)
    with pytest.raises(InputError, match="without a catalog"):
        prepare(log, tmp_path / "other", keep_columns="colour")


def test_a_column_of_another_type_in_a_file_is_told(tmp_path: Path) -> None:
    catalog = shop()
    wrong = Catalog(catalog.items.with_columns(pl.lit(1.5).alias("price")), catalog.size)
    stated = write_catalog(tmp_path, "catalog.arrow", wrong)
    with pytest.raises(ArtifactError, match="price"):
        read_catalog(tmp_path, stated)


def test_only_what_passes_is_answered(server: Server) -> None:
    for user, source in (("warm", "model"), ("nobody", "cold")):
        if user == "warm":
            server.post("/v1/events", {"events": [{"event_id": "e", "user_id": user, "item_id": "a", "time": NOW}]})
        for wanted, expected in (
            ({"colour": "red"}, {"a", "b"}),
            ({"colour": ["red", "blue"], "year": 2021}, {"b", "c"}),
            ({"colour": "1=1; DROP"}, {"e"}),
            ({}, set("abcde")),
        ):
            said = server.post("/v1/recommend", {"user_id": user, "filter": wanted})
            assert {one["item_id"] for one in said.body["items"]} == expected
            assert said.body["source"] == source
            assert "reason" not in said.body
    both = server.post("/v1/recommend", {"user_id": "warm", "filter": {"year": 2021}, "candidates": ["a", "b"]})
    assert [one["item_id"] for one in both.body["items"]] == ["b"]


def test_where_nothing_is_left_it_is_said_why(server: Server) -> None:
    event = {"event_id": "e", "user_id": "one", "item_id": "c", "time": NOW}
    for path, body in (
        ("recommend", {"user_id": "one", "filter": {"colour": "green"}}),
        ("recommend", {"user_id": "one", "candidates": []}),
        ("observe", {"event": event, "filter": {"colour": "blue"}, "exclude_seen": True}),
    ):
        said = server.post(f"/v1/{path}", body)
        assert (said.status, said.body["items"], said.body["reason"]) == (200, [], "none_left")


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"color": "red"}, "did you mean 'colour'?); the catalog has 'colour, year'"),
        ({"title": "Apple"}, "No column 'title'"),
        ({"year": "2021"}, "holds whole numbers, and never '2021'"),
        ({"colour": 5}, "holds texts, and never 5"),
        ({"colour = 'red' OR 1=1 --": "red"}, "No column"),
        ({"colour": ".*"}, None),
        ({"colour": {"$ne": 1}}, "got `object`"),
        ([["colour", "red"]], "Expected `object | null`"),
    ],
)
def test_a_filter_is_data_and_nothing_else(server: Server, wanted: Any, told: str | None) -> None:
    event = {"event_id": str(wanted)[:40], "user_id": "strange", "item_id": "c", "time": NOW}
    said = server.post("/v1/recommend", {"user_id": "u", "filter": wanted})
    if told is None:
        assert (said.status, said.body["items"]) == (200, [])
        return
    assert (said.status, told in said.body["error"]["message"]) == (422, True), said
    # What is refused is not taken in either.
    assert server.post("/v1/observe", {"event": event, "filter": wanted}).status == 422
    assert server.ask("GET", "/v1/users/strange").status == 404


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_many_that_are_allowed_are_searched_as_if_all_were_scored(
    many: Exported, index: ExactIndex, seed: int, k: int
) -> None:
    random = np.random.default_rng(seed)
    rec = Recommender(many, MemoryStates())
    rec.observe("u", f"i{random.integers(300)}", START)
    rows = np.flatnonzero(random.random(300) < random.random()) + 1
    hidden = np.flatnonzero(random.random(300) < 0.2) + 1
    queries, limits = rec._query("u", START + 5), [Limits(k, hidden, rows)]
    (dense,) = Scorer(many).best(queries, limits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "_FEW", 10)
        (searched,) = Scorer(many, index).best(queries, limits)
    np.testing.assert_allclose(searched.scores, dense.scores, atol=1e-5)
    assert set(searched.rows.tolist()) <= set(rows.tolist()) - set(hidden.tolist())


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    path = tmp_path_factory.mktemp("many") / "run"
    config = HierTCNConfig(**SIZES, repeats=3)
    return Exported(export(run_of(path, config, catalog_of([f"i{n}" for n in range(300)]))))


@pytest.fixture(scope="module")
def index(many: Exported) -> Iterator[ExactIndex]:
    with ExactIndex(compared(many)) as index:
        yield index
