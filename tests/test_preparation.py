"""`prepare`: filters, splits, sessions and the catalog, through the cache it writes."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings

from hiertcn.cache import Cache
from hiertcn.errors import InputError
from hiertcn.events import as_logged
from hiertcn.preparation import PrepareConfig, prepare, preset_names
from hiertcn.sessions import PARTS
from logs import BEGIN, make_log


def rows_of(cache: Cache) -> list[tuple[Any, ...]]:
    """(user, time as logged, item, part, session of the user) of every event, in the order of the cache."""
    ids = [None, *cache.catalog.items["item_id"].to_list()]
    found: list[tuple[Any, ...]] = []
    for number in range(len(cache)):
        shard = cache.shard(number)
        sessions = shard.sessions
        times = as_logged(sessions.times, cache.manifest.time_form).to_list()
        for place, user in enumerate(shard.user_ids.to_list()):
            first = sessions.user_offsets[place]
            for session in range(first, sessions.user_offsets[place + 1]):
                for event in range(sessions.session_offsets[session], sessions.session_offsets[session + 1]):
                    part = PARTS[sessions.parts[event]]
                    found.append((user, times[event], ids[sessions.items[event]], part, session - first))
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40), st.integers(0, 5)), min_size=20, max_size=80),
    gap=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_the_cache_holds_what_the_log_says(
    tmp_path: Path, rows: list[tuple[int, int, int]], gap: int, seed: int
) -> None:
    """Against a plain loop: sessions by gap, the `last` split by count, each event once."""
    log = pl.DataFrame(rows, schema=["user", "ts", "item"], orient="row").with_columns(pl.col("ts") + BEGIN)
    counts = Counter(user for user, _, _ in set(rows))
    if sum(n > 1 for n in counts.values()) < 2 or len({item for user, _, item in rows if counts[user] > 1}) < 2:
        return
    expected = []
    for user in sorted(u for u, n in counts.items() if n > 1):
        events = sorted({(t, i) for u, t, i in rows if u == user})
        session, previous = 0, events[0][0]
        for place, (time, item) in enumerate(events):
            session += time - previous >= gap
            previous = time
            train, valid = int(0.8 * len(events)), int(0.9 * len(events))
            expected.append((user, time + BEGIN, item, PARTS[(place >= train) + (place >= valid)], session))
    shuffled = log.sample(fraction=1, shuffle=True, seed=seed)
    cache = prepare(shuffled, tmp_path / "cache", overwrite=True, session_gap=gap, events_per_shard=15)
    assert rows_of(cache) == expected
    trained = Counter(item for _, _, item, part, _ in expected if part == "train")
    ordered = sorted(trained, key=lambda item: (-trained[item], item))
    assert cache.catalog.ids.to_list() == ordered
    assert cache.catalog.train_events.tolist() == [0, *(trained[item] for item in ordered)]
    assert set(cache.catalog.items["item_id"].to_list()) == {item for _, _, item, _, _ in expected}
    cache.verify()


def test_a_gap_of_exactly_session_gap_begins_a_session(tmp_path: Path) -> None:
    times = [0, 1799, 1799 + 1800, 1799 + 1800 + 1801]
    log = pl.DataFrame({"user": list("aaaabbbb"), "item": list("ijijijij"), "ts": [BEGIN + t for t in times] * 2})
    assert [row[-1] for row in rows_of(prepare(log, tmp_path / "cache"))] == [0, 0, 1, 2] * 2


@pytest.mark.parametrize("asked", ["1_7", " 17", "१७", "17.0", "0x11", "", "1" * 30])
def test_an_integer_id_is_found_as_it_stands_only(tmp_path: Path, asked: str) -> None:
    log = pl.DataFrame({"user": list("aabb"), "item": [17, 3, 3, 17], "ts": BEGIN + np.arange(4)})
    catalog = prepare(log, tmp_path / "cache").catalog
    assert catalog.row("17") == catalog.row(17) == catalog.row("+17") > 0
    assert catalog.row(asked) == 0


def test_a_session_of_too_many_events_is_cut(tmp_path: Path) -> None:
    log = pl.DataFrame(
        {"user": ["a"] * 7 + ["b"] * 3, "item": list("ijijijijij"), "ts": BEGIN + np.arange(10), "visit": 1}
    )
    for column in (None, "visit"):
        cache = prepare(log, tmp_path / "cache", overwrite=True, max_session_events=3, session_column=column)
        assert [row[-1] for row in rows_of(cache)] == [0, 0, 0, 1, 1, 1, 2, 0, 0, 0]
        assert cache.manifest.max_session_events == 3


def test_a_session_column_decides_where_its_value_changes(tmp_path: Path) -> None:
    log = pl.DataFrame(
        {
            "user": list("aaaabbbb"),
            "item": list("ijijijij"),
            "ts": [BEGIN + 10_000 * n for n in range(8)],
            "visit": ["x", "x", "y", "x", None, None, "z", "z"],
        }
    )
    cache = prepare(log, tmp_path / "cache", session_column="visit")
    assert [row[-1] for row in rows_of(cache)] == [0, 0, 1, 2, 0, 0, 1, 1]


def test_filters_in_order_with_their_waterfall(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    log = make_log(events=600).with_columns(type=pl.Series(rng.choice([1, 4], 600)))
    said: list[str] = []
    options = {
        "drop_types": [4],
        "min_item_events": 20,
        "min_user_events": 8,
        "max_user_events": 12,
        "report": said.append,
    }
    cache = prepare(log, tmp_path / "cache", **options)
    left = log.filter(pl.col("type") == 1)
    left = left.filter(pl.len().over("item_id") >= 20)
    left = left.filter(pl.len().over("user_id").is_between(8, 12))
    assert Counter(row[:3] for row in rows_of(cache)) == Counter(left.select("user_id", "ts", "item_id").rows())
    steps = cache.manifest.waterfall
    assert [step["step"] for step in steps] == [
        "as read, usable, without duplicates",
        "without types 4",
        "items with at least 20 events",
        "users with at least 8 events",
        "users with at most 12 events",
    ]
    assert all(a["events"] - b["events"] == b["dropped_events"] for a, b in pairwise(steps))
    assert steps[-1]["events"] == left.height == cache.manifest.events
    assert sum(f"{step['events']:,} events" in line for step, line in zip(steps, said[3:8], strict=True)) == 5


def test_types_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--type-column"):
        prepare(make_log(), tmp_path / "cache", drop_types=["view"])
    said: list[str] = []
    prepare(make_log().with_columns(type=pl.lit("view")), tmp_path / "cache", drop_types="veiw", report=said.append)
    assert any("no event is of type 'veiw' (did you mean 'view'?)" in line for line in said)


def test_split_by_time(tmp_path: Path) -> None:
    log = make_log()
    cache = prepare(log, tmp_path / "cache", split="time")
    parts = {part: [row[1] for row in rows_of(cache) if row[3] == part] for part in PARTS}
    assert [len(parts[part]) for part in PARTS] == [320, 40, 40]
    assert max(parts["train"]) < min(parts["valid"]) <= max(parts["valid"]) < min(parts["test"])
    split = cache.manifest.split
    assert (split["by"], split["overlap"], len(split["cuts"])) == ("time", 0, 2)
    cuts = [BEGIN + 100_000, BEGIN + 200_000]
    expected = [sum(t < cuts[0] for t in log["ts"]), sum(cuts[0] <= t < cuts[1] for t in log["ts"])]
    for given_as in (
        cuts,
        [str(cut) for cut in cuts],
        [pl.Series([cut * 10**6]).cast(pl.Datetime("us", "UTC"))[0] for cut in cuts],
    ):
        cache = prepare(log, tmp_path / "cache", split="time", cuts=given_as, overwrite=True)
        assert [cache.manifest.parts[part]["events"] for part in PARTS[:2]] == expected
    for wrong, said in (([BEGIN - 1, BEGIN], "train part is empty"), (cuts[::-1], "wrong way round")):
        with pytest.raises(InputError, match=said):
            prepare(log, tmp_path / "cache", split="time", cuts=wrong, overwrite=True)


def test_split_by_users_keeps_them_whole(tmp_path: Path) -> None:
    log = make_log(users=100, events=1000)
    part_of = {row[0]: row[3] for row in rows_of(prepare(log, tmp_path / "all", split="users"))}
    cache = prepare(log.filter(pl.col("user_id") > "u030"), tmp_path / "some", split="users")
    assert {row[0]: row[3] for row in rows_of(cache)} == {user: part for user, part in part_of.items() if user > "u030"}
    assert set(part_of.values()) == set(PARTS)


def test_split_by_a_column(tmp_path: Path) -> None:
    log = make_log().with_columns(fold=pl.Series(["train"] * 300 + ["Validation"] * 60 + ["test"] * 40))
    cache = prepare(log, tmp_path / "cache", split="column:fold")
    part_of = {(u, t): PARTS[("train", "Validation", "test").index(f)] for u, _, t, f in log.rows()}
    assert all(part_of[row[:2]] == row[3] for row in rows_of(cache))
    with pytest.raises(InputError, match="did you mean 'fold'"):
        prepare(log, tmp_path / "other", split="column:flod")
    with pytest.raises(InputError, match="'fold' holds None"):
        prepare(log.with_columns(fold=None), tmp_path / "other", split="column:fold")


def test_items_only_in_test_are_counted_not_lost(tmp_path: Path) -> None:
    late = pl.DataFrame({"user_id": ["u001", "u002"], "item_id": ["late", "late"], "ts": [BEGIN + 10**6] * 2})
    cache = prepare(pl.concat([make_log(), late]), tmp_path / "cache", split="time")
    assert cache.catalog.row("late") == 0
    assert (cache.manifest.outside_items, cache.manifest.parts["test"]["outside_events"]) == (1, 2)
    assert sum(row[2] == "late" for row in rows_of(cache)) == 2


def test_a_catalog_names_items_in_the_type_of_the_log(tmp_path: Path) -> None:
    log = make_log().with_columns(pl.col("item_id").str.slice(1).cast(pl.Int32))
    items = pl.DataFrame(
        {"id": [*range(12), 77], "name": [f"Item {n}" for n in range(13)], "image_url": ["http://x"] * 13}
    )
    items.with_columns(vector=[[0.5, 1.0]] * 13).write_parquet(tmp_path / "items.parquet")
    items.write_csv(tmp_path / "items.csv")
    items.write_ndjson(tmp_path / "items.jsonl")
    for number, form in enumerate(("parquet", "csv", "jsonl")):
        cache = prepare(log, tmp_path / str(number), catalog=tmp_path / f"items.{form}")
        assert cache.catalog.title(cache.catalog.row(3)) == "Item 3"
        assert (cache.manifest.items, cache.catalog.train_events[cache.catalog.row(77)]) == (13, 0)
        assert cache.catalog.items["link"].unique().to_list() == ["http://x"]
    (tmp_path / "items.csv").write_text("id,title\nx1,A\n")
    with pytest.raises(InputError, match="'x1'"):
        prepare(log, tmp_path / "other", catalog=tmp_path / "items.csv")
    (tmp_path / "items.csv").write_text("key,title\n1,A\n")
    with pytest.raises(InputError, match="no column of item ids"):
        prepare(log, tmp_path / "other", catalog=tmp_path / "items.csv")


def test_what_was_read_and_chosen_is_recorded(tmp_path: Path) -> None:
    make_log().write_csv(tmp_path / "log.csv")
    sources = prepare(tmp_path / "log.csv", tmp_path / "cache", split="users", seed=3).manifest.sources
    assert sources["files"] == [{"name": "log.csv", "rows": 400}]
    assert sources["columns"] == {"user": "user_id", "item": "item_id", "time": "ts"}
    assert sources["times"] == "seconds since 1970 (found by range)"
    assert (sources["options"]["split"], sources["options"]["seed"], sources["preset"]) == ("users", 3, None)


@pytest.mark.parametrize("step", [1, 10**6])
@pytest.mark.parametrize("items", [5, 40_000])
def test_events_are_in_order_however_wide_their_columns(tmp_path: Path, items: int, step: int) -> None:
    """Of 30 years in microseconds and many items a row is more than one number can hold."""
    rng = np.random.default_rng(0)
    item = np.append(rng.integers(0, items, 500), np.arange(items))
    times = BEGIN * 10**6 - rng.integers(0, 9 * 10**14 // step, len(item)) * step
    log = pl.DataFrame({"user": rng.integers(0, 3000, len(item)), "item": item, "ts": times})
    cache = prepare(log, tmp_path / "cache", time_unit="us", min_user_events=1)
    names = cache.catalog.items["item_id"].to_list()
    sessions, ids = cache.shard(0).sessions, cache.shard(0).user_ids.to_list()
    users = np.repeat(np.arange(len(ids)), np.diff(sessions.event_offsets))
    found = [
        (ids[user], time, names[row - 1])
        for user, time, row in zip(users.tolist(), sessions.times.tolist(), sessions.items.tolist(), strict=True)
    ]
    assert found == sorted(log.select("user", "ts", "item").rows())


def test_what_is_there_already_is_not_lost(tmp_path: Path) -> None:
    log, out = make_log(), tmp_path / "cache"
    out.mkdir()
    first = prepare(log, out).manifest.fingerprint
    with pytest.raises(InputError, match="--overwrite"):
        prepare(log, out)
    with pytest.raises(InputError, match="Nothing to predict"):
        prepare(log[:1], out, overwrite=True)
    assert Cache(out).manifest.fingerprint == first
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(InputError, match="is no cache"):
        prepare(log, tmp_path / "notes", overwrite=True)


def test_all_wrong_options_are_named_at_once(tmp_path: Path) -> None:
    options = {
        "session_gap": -1,
        "split": "tiem",
        "fractions": (0.5, 0.1, 0.1),
        "max_bad_rows": 2,
        "tz": "Mars",
        "seed": "x",
    }
    with pytest.raises(InputError) as caught:
        prepare(make_log(), tmp_path / "cache", **options)
    assert all(name in str(caught.value) for name in options)
    assert "did you mean 'time'?" in str(caught.value)
    for options, said in (
        ({"sesion_gap": 3}, "did you mean 'session_gap'"),
        ({"preset": "taobo"}, "did you mean 'taobao'"),
        ({"cuts": [1, 2]}, "for split 'time'"),
        ({"min_user_events": 9, "max_user_events": 5}, "at least min_user_events"),
    ):
        with pytest.raises(InputError, match=said):
            prepare(make_log(), tmp_path / "cache", **options)


PRESET_LINES = {
    "xing2016": ("user_id\titem_id\tinteraction_type\tcreated_at", "{u}\t{i}\t1\t{t}", "s"),
    "taobao": (None, "{u},{i},77,pv,{t}", "s"),
    "retailrocket": ("timestamp,visitorid,event,itemid,transactionid", "{t}000,{u},view,{i},", "ms"),
    "movielens": ("userId,movieId,rating,timestamp", "{u},{i},3.5,{t}", "s"),
    "movielens-1m": (None, "{u}::{i}::3::{t}", "s"),
    "movielens-100k": (None, "{u}\t{i}\t3\t{t}", "s"),
    "diginetica": ("session_id;user_id;item_id;timeframe;eventdate", "{u};NA;{i};{n}123;2016-05-09", None),
    "yoochoose": (None, "{u},2014-04-07T10:{m}:09.277Z,{i},0", None),
    "lastfm-1k": (None, 'user_{u}\t2009-05-04T23:{m}:57Z\t{i}\tA "b\t\tC, d', None),
}


@pytest.mark.parametrize("preset", [name for name in preset_names() if name != "ebnerd"])
def test_presets_read_the_files_they_are_for(tmp_path: Path, preset: str) -> None:
    header, line, unit = PRESET_LINES[preset]
    rng = np.random.default_rng(0)
    rows = [(u, i, BEGIN + n * 60, n) for n, (u, i) in enumerate(rng.integers(1, 6, (50, 2)))]
    lines = [line.format(u=u, i=i, t=t, n=n, m=f"{n:02d}") for u, i, t, n in rows]
    (tmp_path / "log").write_text("\n".join([header, *lines] if header else lines) + "\n")
    options = {"min_item_events": 1, "min_user_events": 2} if preset == "xing2016" else {}
    said: list[str] = []
    cache = prepare(tmp_path / "log", tmp_path / "cache", preset=preset, report=said.append, split="last", **options)
    assert cache.manifest.events == 50
    assert cache.manifest.sources["preset"] == preset
    assert said[0] != ""
    if unit:
        assert cache.manifest.time_form == unit
    if preset == "diginetica":
        sessions = cache.shard(0).sessions
        assert len(np.unique(sessions.times)) == 50


def test_the_preset_of_the_paper_has_its_filters(tmp_path: Path) -> None:
    (tmp_path / "log.tsv").write_text(
        "user_id\titem_id\tinteraction_type\tcreated_at\n1\t1\t1\t1440000000\n2\t2\t4\t1440000000\n"
    )
    with pytest.raises(InputError, match="without types 4: 1 events"):
        prepare(tmp_path / "log.tsv", tmp_path / "cache", preset="xing2016")
    # Explicit options win over the preset.
    with pytest.raises(InputError, match="items with at least 2 events"):
        prepare(tmp_path / "log.tsv", tmp_path / "cache", preset="xing2016", min_item_events=2)


def test_the_real_news_log(shared_data: Path, tmp_path: Path) -> None:
    cache = prepare(shared_data / "ebnerd_demo" / "events.parquet", tmp_path / "cache", min_item_events=5)
    manifest = cache.manifest
    assert (manifest.sources["rows"], manifest.events, manifest.users, manifest.sessions) == (
        347945,
        344937,
        1934,
        85661,
    )
    assert sum(part["events"] for part in manifest.parts.values()) == manifest.events
    assert cache.shard(0).user_ids.is_sorted()


def test_the_real_list_log_and_its_preset(shared_data: Path, tmp_path: Path) -> None:
    cache = prepare(shared_data / "ebnerd_tiny44" / "history.parquet", tmp_path / "cache", preset="ebnerd")
    assert (cache.manifest.sources["rows"], cache.manifest.users) == (8303, 44)


def test_the_real_shop_log_and_its_preset(shared_data: Path, tmp_path: Path) -> None:
    log = shared_data / "taobao_tiny43" / "UserBehavior.csv"
    cache = prepare(log, tmp_path / "cache", preset="taobao", drop_types=["fav"])
    assert (cache.manifest.users, cache.manifest.time_form) == (43, "s")
    raw = pl.read_csv(log, has_header=False).filter(pl.nth(3) != "fav")
    assert cache.manifest.events == raw.unique().height


def test_config_is_the_documented_one() -> None:
    config = PrepareConfig()
    assert (config.session_gap, config.split, config.min_user_events) == (1800.0, "last", 2)
    assert all(name in (PrepareConfig.__doc__ or "") for name in PrepareConfig.model_fields)
