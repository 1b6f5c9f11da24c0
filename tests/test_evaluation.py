"""Evaluation against one person's replay, against the log itself, and against what can be counted by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from caches import User, cache_of
from hiertcn.artifact import Run, write_run
from hiertcn.cache import Cache
from hiertcn.catalog import Catalog
from hiertcn.errors import InputError
from hiertcn.evaluation import TOP, Evaluation, evaluate, evaluate_model
from hiertcn.models import (
    GRUConfig,
    HierTCNConfig,
    HRNNConfig,
    LastItemsConfig,
    ModelConfig,
    MovingAverageConfig,
    build,
)
from hiertcn.preparation import prepare
from logs import BEGIN
from scoring import one_by_one

GAP, ITEMS = 1800, 12
FULL = HierTCNConfig(dim=8, units=6, channels=(8, 8), kernel=3, gap_decay="fixed", clock=True)
KINDS: dict[str, ModelConfig] = {
    "hiertcn": FULL,
    "hiertcn with output vectors": HierTCNConfig(dim=8, units=6, channels=(8, 8, 8), head="softmax", aggregate="max"),
    "hrnn": HRNNConfig(dim=8, units=6),
    "gru": GRUConfig(dim=8, units=6),
    "moving average": MovingAverageConfig(dim=8, window=3),
    "last items": LastItemsConfig(window=4),
}
NOWHERE = {"path": "", "fingerprint": ""}


def run_of(path: Path, catalog: Catalog, cache: Cache | None = None) -> Run:
    """A model directory with weights as they are initialised, which says that it was trained on `cache`."""
    path.mkdir()
    facts = {
        "session_gap": GAP,
        "max_session_events": 1000,
        "cache": {"path": str(cache.path), "fingerprint": cache.manifest.fingerprint} if cache else NOWHERE,
        "validation": {},
        "history": [],
    }
    write_run(path, build(FULL, catalog.train_events, seed=0), FULL, catalog, facts)
    return Run(path)


def people(count: int = 12, seed: int = 0) -> list[User]:
    """Users with up to 40 events, an event in any part, on items of the catalog and three outside it."""
    rng = np.random.default_rng(seed)
    users: list[User] = []
    for user in range(count):
        events = int(rng.integers(1, 40))
        times = BEGIN + np.cumsum(rng.choice([0, 1, 60, GAP - 1, GAP, GAP + 1, 90_000, 700_000], events))
        parts = rng.choice(["train", "valid", "test"], events)
        users.append((f"u{user:02}", rng.integers(1, ITEMS + 4, events).tolist(), times.tolist(), parts.tolist()))
    return users


def assert_ranked_by(scores: torch.Tensor, items: Sequence[int], ranks: np.ndarray) -> None:
    """`ranks` [T] are those of `items` in `scores` [T, items], but for what rounding can turn round."""
    for line, item, found in zip(scores.double(), items, ranks, strict=True):
        if not 0 < item <= len(line):
            assert np.isnan(found)
            continue
        own = line[item - 1]
        assert int((line > own + 1e-5).sum()) + 1 <= found <= int((line >= own - 1e-5).sum())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return cache_of(tmp_path_factory.mktemp("log") / "cache", people(), GAP, catalog_size=ITEMS, shards=3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_rolls_through_all_earlier_events(cache: Cache, kind: str) -> None:
    """Whatever part they are in: the ranks are those of one person after another, told every event."""
    model = build(KINDS[kind], cache.catalog.train_events, seed=3)
    evaluations = {part: evaluate_model(model, cache.catalog, cache, part) for part in ("valid", "test")}
    users = people()
    scores = one_by_one(model, users, GAP)
    items = [item for _, theirs, _, _ in users for item in theirs]
    for part, found in evaluations.items():
        asked = [p == part for _, _, _, parts in users for p in parts]
        np.testing.assert_array_equal(found.ranks.events, np.flatnonzero(asked))
        assert_ranked_by(scores[asked], np.array(items)[asked].tolist(), found.ranks.ranks)
        assert 10 < found.ranked.sum() < len(found.ranked)


def log_of(users: int = 30, seed: int = 1, **columns: Callable[[pl.Expr], pl.Expr]) -> pl.DataFrame:
    """A log with the part of each event, about a tenth of the test events are on items that no one trains on."""
    rng = np.random.default_rng(seed)
    count = users * 20
    log = pl.DataFrame(
        {
            "user_id": rng.permutation(np.arange(count) % users) * 7 + 1000,
            "item_id": rng.integers(0, 40, count) * 3 + 100,
            "ts": BEGIN + np.cumsum(rng.integers(1, 900, count)),
            "part": rng.choice(["train", "valid", "test"], count, p=[0.6, 0.1, 0.3]),
        }
    )
    rare = (pl.col("part") == "test") & (pl.col("ts") % 10 == 0)
    log = log.with_columns(pl.when(rare).then(9000 + pl.col("item_id")).otherwise("item_id").alias("item_id"))
    return log.with_columns(**{name: change(pl.col(name)) for name, change in columns.items()})


def stamps(form: str) -> Callable[[pl.Expr], pl.Expr]:
    return lambda ts: pl.from_epoch(ts).dt.strftime(form)


def moments(unit: Any, zone: str) -> Callable[[pl.Expr], pl.Expr]:
    return lambda ts: pl.from_epoch(ts).cast(pl.Datetime(unit)).dt.replace_time_zone("UTC").dt.convert_time_zone(zone)


TIMES: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "seconds": lambda ts: ts,
    "milliseconds": lambda ts: ts * 1000 + 7,
    "microseconds": lambda ts: ts * 1_000_000 + 7,
    "nanoseconds": lambda ts: ts * 1_000_000_000 + 7000,
    "float seconds": lambda ts: ts + 0.25,
    "ISO": stamps("%Y-%m-%dT%H:%M:%SZ"),
    "ISO with a space": stamps("%Y-%m-%d %H:%M:%S+00:00"),
    "datetimes": moments("ms", "Europe/Copenhagen"),
}
IDS: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "integers": lambda ids: ids,
    "strings": lambda ids: pl.format("00{}, é", ids),
}


@pytest.mark.parametrize(("times", "ids"), [*((times, "integers") for times in TIMES), ("seconds", "strings")])
def test_predictions_are_the_test_events_as_in_the_log(tmp_path: Path, times: str, ids: str) -> None:
    log = log_of(ts=TIMES[times], user_id=IDS[ids], item_id=IDS[ids])
    cache = prepare(log, tmp_path / "cache", split="column:part", session_gap=GAP)
    found = evaluate(run_of(tmp_path / "run", cache.catalog, cache), top=TOP)
    found.write_predictions(tmp_path / "predictions.parquet")
    written = pl.read_parquet(tmp_path / "predictions.parquet")
    item = log.schema["item_id"]
    assert written.schema == {
        "user_id": log.schema["user_id"],
        "time": log.schema["ts"],
        "item_id": item,
        "rank": pl.Float64(),
        "topk": pl.List(item),
    }
    expected = log.filter(pl.col("part") == "test").select("user_id", pl.col("ts").alias("time"), "item_id")
    keys = expected.columns
    assert written.select(keys).sort(keys).equals(expected.sort(keys))

    trained = set(log.filter(pl.col("part") == "train")["item_id"])
    outside = 0
    for target, rank, top in written.select("item_id", "rank", "topk").iter_rows():
        assert len(set(top)) == TOP
        assert trained.issuperset(top)
        assert (rank is None) == (target not in trained)
        outside += rank is None
        if rank is not None:
            assert 1 <= rank <= len(trained)
            assert (target in top) == (rank <= TOP)
            assert rank > TOP or top[int(rank) - 1] == target
    stated = found.as_json()
    assert 0 < outside == stated["targets_outside_the_catalog"]
    assert stated["targets"] == len(written) == stated["metrics"]["targets"] + outside


def test_a_catalog_smaller_than_the_top_is_given_whole(tmp_path: Path, cache: Cache) -> None:
    written = evaluate(run_of(tmp_path / "run", cache.catalog, cache), top=TOP).predictions()
    assert written["topk"].list.len().unique().to_list() == [ITEMS]
    assert written["topk"].list.n_unique().unique().to_list() == [ITEMS]
    none = evaluate(tmp_path / "run", cache).predictions()
    assert none.drop("topk").equals(written.drop("topk"))
    assert none["topk"].list.len().unique().to_list() == [0]
    assert none.schema == written.schema


@pytest.mark.parametrize("ids", IDS)
def test_another_log_is_evaluated_by_the_ids_of_its_items(tmp_path: Path, ids: str) -> None:
    """Among its items are some that it does not train on but the model knows, and some that the model does not."""
    ours = prepare(log_of(), tmp_path / "ours", split="column:part", session_gap=GAP)
    # Item 103 is trained on here, but there it is in the test part only; 104 is known there only.
    log = log_of(users=9, seed=2).with_columns(
        pl.when((pl.col("item_id") == 103) & (pl.col("part") != "test")).then(104).otherwise("item_id").alias("item_id")
    )
    other = prepare(log.with_columns(IDS[ids](pl.col("item_id"))), tmp_path / "other", split="column:part")
    run = run_of(tmp_path / "run", ours.catalog)
    if ids == "strings":
        with pytest.raises(InputError, match=r"None of the \d+ .* targets"):
            evaluate(run, other)
        return
    found = evaluate(run, other, top=TOP)
    users: list[User] = []
    for key, frame in log.sort("user_id", "ts").group_by("user_id", maintain_order=True):
        rows = ours.catalog.rows(frame["item_id"]).tolist()
        users.append((str(key[0]), rows, frame["ts"].to_list(), frame["part"].to_list()))
    asked = [part == "test" for _, _, _, parts in users for part in parts]
    rows = np.array([row for _, theirs, _, _ in users for row in theirs])
    assert_ranked_by(one_by_one(run.model, users, GAP)[asked], rows[asked].tolist(), found.ranks.ranks)
    assert found.predictions().filter(pl.col("item_id") == 103)["rank"].null_count() == 0
    assert other.catalog.row(103) == ours.catalog.row(104) == 0
    assert set(found.predictions()["topk"].explode()) <= set(ours.catalog.ids)
    assert found.predictions()["rank"].null_count() == (rows[asked] == 0).sum() > 0


def test_ids_of_text_find_those_of_integers(tmp_path: Path) -> None:
    ours = prepare(log_of(), tmp_path / "ours", split="column:part", session_gap=GAP)
    texts = prepare(log_of(item_id=lambda ids: ids.cast(pl.String)), tmp_path / "texts", split="column:part")
    run = run_of(tmp_path / "run", ours.catalog)
    written = [evaluate(run, cache, top=TOP).predictions() for cache in (ours, texts)]
    assert written[1].with_columns(pl.col("item_id").cast(pl.Int64)).equals(written[0])


def simple_ranks(tmp_path: Path, name: str) -> Evaluation:
    """Counts of the train part: item 1 three, items 2 and 3 two each, item 4 one, item 5 outside the catalog."""
    users: list[User] = [
        ("a", [3, 1, 2, 2, 4, 1], [0, 1, 2, 9000, 9001, 9002], ["train"] * 3 + ["test"] * 3),
        ("b", [1, 1, 2, 3, 4, 3], range(6), ["train"] * 5 + ["test"]),
        ("c", [5, 5, 2], range(3), ["valid", "test", "test"]),
    ]
    cache = cache_of(tmp_path / "cache", users, GAP, catalog_size=4)
    run = run_of(tmp_path / "run", cache.catalog)
    return evaluate(run, cache, model=name, top=4)


def test_popularity_by_hand(tmp_path: Path) -> None:
    found = simple_ranks(tmp_path, "popularity")
    np.testing.assert_array_equal(found.ranks.ranks, [2.5, 4, 1, 2.5, np.nan, 2.5])
    assert found.ranks.top[:, [0, 3]].tolist() == [[1, 4]] * 6
    assert found.table.event["mrr"] == pytest.approx((0.4 * 3 + 0.25 + 1) / 5)
    assert found.table.user["mrr"] == pytest.approx(((0.4 + 0.25 + 1) / 3 + 0.4 + 0.4) / 3)
    assert (found.name, found.table.users) == ("popularity", 3)


def test_last_items_by_hand(tmp_path: Path) -> None:
    """The latest first, over the bounds of sessions and parts; then popularity."""
    found = simple_ranks(tmp_path, "last_items")
    assert found.ranks.top[:4].tolist() == [[2, 1, 3, 4], [2, 1, 3, 4], [4, 2, 1, 3], [4, 3, 2, 1]]
    np.testing.assert_array_equal(found.ranks.ranks, [1, 4, 3, 2, np.nan, 2.5])


def test_a_run_knows_its_log(tmp_path: Path, cache: Cache) -> None:
    run = run_of(tmp_path / "run", cache.catalog, cache)
    found = evaluate(str(run.path), split="valid")
    assert found.as_json() == evaluate(run, str(cache.path), "valid").as_json()
    stated = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert (stated["model"], stated["part"], stated["candidates"]) == ("hiertcn", "valid", ITEMS)
    assert stated["metrics"]["event"] == asdict(found.table)["event"]
    assert f"{found.table.event['recall@10']:.4f}" in str(found)
    assert "no earlier session" in found.segment_lines()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"split": "train"}, "'train' is not a part to evaluate; expected one of valid, test"),
        ({"model": "popularty"}, "did you mean 'popularity'"),
        ({"model": "gru"}, "Train the others"),
    ],
)
def test_what_can_not_be_evaluated(tmp_path: Path, cache: Cache, arguments: dict[str, str], said: str) -> None:
    run = run_of(tmp_path / "run", cache.catalog, cache)
    with pytest.raises(InputError, match=said) as caught:
        evaluate(run, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_part_that_holds_nothing(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "cache", [("a", [1, 2, 3], [0, 1, 2], ["train", "train", "test"])], GAP, catalog_size=2)
    run = run_of(tmp_path / "run", cache.catalog, cache)
    with pytest.raises(InputError, match=r"The valid part of .* holds no event"):
        evaluate(run, split="valid")
    with pytest.raises(InputError, match=r"None of the 1 test targets of .* is on one of the 2 items"):
        evaluate(run)
