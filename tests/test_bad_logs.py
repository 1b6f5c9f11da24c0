"""Bad logs: each is refused with what was found and what to do, or its bad rows are set aside and counted."""

from __future__ import annotations

import contextlib
import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from hiertcn import tables
from hiertcn.cache import Cache
from hiertcn.errors import InputError
from hiertcn.preparation import prepare
from logs import BEGIN, make_log


def log_text(rows: int = 30) -> list[str]:
    return ["user_id,item_id,ts", *(f"u{n % 5},i{n % 7},{BEGIN + n * 60}" for n in range(rows))]


def prepared(tmp_path: Path, log: Any, **options: Any) -> Cache:
    if isinstance(log, list):
        log = "\n".join(log) + "\n"
    if isinstance(log, str):
        log = log.encode()
    if isinstance(log, bytes):
        (tmp_path / "log.csv").write_bytes(log)
        log = tmp_path / "log.csv"
    return prepare(log, tmp_path / "cache", **options)


def refused(tmp_path: Path, log: Any, *said: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        prepared(tmp_path, log, **options)
    text = str(caught.value)
    assert "\n" not in text
    for part in said:
        assert part in text
    assert not (tmp_path / "cache").exists()
    return text


def quarantined(cache: Cache) -> dict[str, int]:
    return {reason: found["rows"] for reason, found in cache.manifest.sources["quarantined"].items()}


def item_ids(cache: Cache) -> set[Any]:
    return set(cache.catalog.items["item_id"].to_list())


@pytest.mark.parametrize("text", ["", "user_id,item_id,ts\n", "user_id,item_id,ts"])
def test_empty_file_or_header_only(tmp_path: Path, text: str) -> None:
    refused(tmp_path, text, "0 events")


def test_missing_or_misnamed_column_names_the_nearest(tmp_path: Path) -> None:
    lines = log_text()
    refused(tmp_path, ["usr_id,item_id,ts", *lines[1:]], "no column for user", "did you mean 'usr_id'?")
    refused(tmp_path, lines, "no column 'itemid' for item", "did you mean 'item_id'?", item_column="itemid")
    refused(tmp_path, lines[1:], "--no-header")
    refused(tmp_path, lines, "for both user and item", user_column="item_id")


def test_ragged_rows_and_unbalanced_quotes_are_set_aside_with_their_line(tmp_path: Path) -> None:
    lines = log_text()
    lines[4:4] = ["u1,i1", "u1,i1,1700000000,7", 'u1,"i1,1700000000']
    lines[9:9] = ['u1,i1",1700000000']
    cache = prepared(tmp_path, lines, max_bad_rows=0.2)
    assert quarantined(cache) == {
        "2 fields instead of 3": 1,
        "4 fields instead of 3": 1,
        "unbalanced quote": 2,
    }
    assert "line 7" in cache.manifest.sources["quarantined"]["unbalanced quote"]["examples"][0]
    assert cache.manifest.events == 30
    assert cache.manifest.sources["rows"] == 34


def test_too_many_bad_rows_stop_the_run(tmp_path: Path) -> None:
    lines = log_text()
    lines[4:4] = ["u1,i1"]
    refused(tmp_path, lines, "1 of 31 rows", "log.csv line 5", "--max-bad-rows", "0.10%")


def test_encodings(tmp_path: Path) -> None:
    lines = log_text()
    text = "\n".join(lines)
    for codec in ("utf-16", "utf-16-le", "utf-16-be"):
        refused(tmp_path, text.encode(codec), "UTF-16")
    assert prepared(tmp_path, b"\xef\xbb\xbf" + text.encode()).manifest.events == 30
    bad = text.encode() + b"\nu1,i\xff\xfe,1700000000\n"
    cache = prepared(tmp_path, bad, max_bad_rows=0.2, overwrite=True)
    assert quarantined(cache) == {"invalid UTF-8": 1}
    assert cache.manifest.events == 30


@pytest.mark.parametrize(("unit", "scale"), [("ms", 1_000), ("us", 1_000_000), ("ns", 1_000_000_000)])
def test_a_declared_unit_that_the_range_contradicts(tmp_path: Path, unit: str, scale: int) -> None:
    log = make_log().with_columns(pl.col("ts") * scale)
    refused(tmp_path, log, "looks like", f"--time-unit {unit}", time_unit="s")
    assert prepared(tmp_path, log, time_unit=unit).manifest.time_form == unit


def test_a_unit_that_the_range_can_not_tell(tmp_path: Path) -> None:
    log = make_log().with_columns(pl.col("ts") - BEGIN + 1)
    refused(tmp_path, log, "--time-unit")
    assert prepared(tmp_path, log, time_unit="s").manifest.events == 400


def test_naive_times_need_a_zone_and_offsets_become_utc(tmp_path: Path) -> None:
    log = make_log()
    moments = pl.from_epoch("ts", time_unit="s")
    naive = log.with_columns(moments.dt.strftime("%Y-%m-%d %H:%M:%S").alias("ts"))
    refused(tmp_path, naive, "no time zone", "--tz")
    refused(tmp_path, log.with_columns(moments.alias("ts")), "no time zone", "--tz")
    expected = prepared(tmp_path, log).shard(0).sessions.times
    offset = log.with_columns((moments + pl.duration(hours=2)).dt.strftime("%Y-%m-%dT%H:%M:%S+02:00").alias("ts"))
    mixed = pl.concat([naive[:200], offset[200:]])
    refused_mixed = tmp_path / "mixed"
    refused_mixed.mkdir()
    refused(refused_mixed, mixed, "200 times", "no time zone")
    for log, options in ((offset, {}), (naive, {"tz": "UTC"}), (mixed, {"tz": "UTC"})):
        cache = prepared(tmp_path, log, overwrite=True, **options)
        np.testing.assert_array_equal(cache.shard(0).sessions.times, expected)
    local = prepared(tmp_path, naive, overwrite=True, tz="Europe/Copenhagen")
    np.testing.assert_array_equal(local.shard(0).sessions.times, expected - 3600 * 10**6)


def test_impossible_times_are_set_aside_by_reason(tmp_path: Path) -> None:
    log = make_log().with_columns(pl.col("ts").cast(pl.Float64))
    bad = pl.Series("ts", [0.0, -5.0, 253_370_764_800.0, float("nan"), float("inf"), None, 86_400.0])
    rows = log[: len(bad)].with_columns(bad)
    cache = prepared(tmp_path, pl.concat([log, rows]), max_bad_rows=0.1)
    assert quarantined(cache) == {
        "time is 0": 1,
        "time is negative": 1,
        "time is after 2100": 2,
        "time is not a number": 1,
        "no time": 1,
        "time is before 1990": 1,
    }
    assert cache.manifest.events == 400


def test_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    log = make_log()
    twice = pl.concat([log, log[:17]])
    cache = prepared(tmp_path, twice)
    assert (cache.manifest.events, cache.manifest.sources["duplicates"]) == (400, 17)
    kept = prepared(tmp_path, twice, keep_duplicates=True, overwrite=True)
    assert (kept.manifest.events, kept.manifest.sources["duplicates"]) == (417, 0)
    types = pl.concat([log.with_columns(type=pl.lit("view")), log[:17].with_columns(type=pl.lit("buy"))])
    assert prepared(tmp_path, types, overwrite=True).manifest.events == 417


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    log = make_log().with_columns(session=pl.col("ts") // 3000, ts=pl.col("ts") // 5000 * 5000)
    options = {"session_column": "session", "events_per_shard": 100, "split": "users"}
    expected = prepared(tmp_path, log, **options).manifest
    for seed in range(3):
        shuffled = log.sample(fraction=1, shuffle=True, seed=seed)
        found = prepared(tmp_path, shuffled, overwrite=True, **options).manifest
        assert [s["sha256"] for s in found.shards] == [s["sha256"] for s in expected.shards]
        assert found.fingerprint == expected.fingerprint
    assert len(expected.shards) > 1


def test_a_bot_is_capped_to_its_last_events(tmp_path: Path) -> None:
    log = make_log()
    bot = pl.DataFrame({"user_id": "bot", "item_id": "i001", "ts": BEGIN + np.arange(5000)})
    said: list[str] = []
    cache = prepared(tmp_path, pl.concat([log, bot]), cap_user_events=50, report=said.append)
    assert cache.manifest.events == 450
    assert cache.manifest.waterfall[-1]["dropped_events"] == 4950
    assert any("last 50 events" in line for line in said)
    shard, place = cache.find("bot") or (0, 0)
    sessions = cache.shard(shard).sessions
    begin, end = sessions.event_offsets[place], sessions.event_offsets[place + 1]
    assert sessions.times[begin] == (BEGIN + 4950) * 10**6
    assert end - begin == 50


def test_users_of_one_event_are_dropped_and_counted(tmp_path: Path) -> None:
    log = pl.concat([make_log(), pl.DataFrame({"user_id": ["once"], "item_id": ["i001"], "ts": [BEGIN]})])
    said: list[str] = []
    cache = prepared(tmp_path, log, report=said.append)
    assert cache.find("once") is None
    assert cache.manifest.waterfall[-1] == {
        "step": "users with at least 2 events",
        "events": 400,
        "users": 20,
        "items": 12,
        "dropped_events": 1,
    }
    assert any("of one event" in line for line in said)


def test_one_user_or_one_item_is_nothing_to_predict(tmp_path: Path) -> None:
    log = make_log()
    refused(tmp_path, log.with_columns(user_id=pl.lit("u")), "Nothing to predict", "400 events of 1 user(s)")
    refused(tmp_path, log.with_columns(item_id=pl.lit("i")), "Nothing to predict", "1 item(s)")


def test_nothing_left_is_refused_with_the_waterfall(tmp_path: Path) -> None:
    refused(tmp_path, make_log(), "No event is left", "400 events", "items with at least 1000", min_item_events=1000)


def test_ids_are_kept_verbatim_and_floats_refused(tmp_path: Path) -> None:
    lines = log_text()
    lines += [f"00{n % 3},00123,{BEGIN + n}" for n in range(6)]
    cache = prepared(tmp_path, lines)
    assert "00123" in item_ids(cache)
    assert cache.find("000") is not None
    log = make_log().with_columns(item_id=pl.col("item_id").str.slice(1).cast(pl.Float64))
    refused(tmp_path / "other", log, "'item_id'", "Float64", "strings or integers")
    numbers = log.with_columns(item_id=pl.col("item_id").cast(pl.UInt16))
    assert prepared(tmp_path, numbers, overwrite=True).catalog.ids.dtype == pl.Int64


def test_odd_ids_are_kept_and_unusable_ones_set_aside(tmp_path: Path) -> None:
    odd = ["a,b", "🐟", "é", "e\u0301", "x" * 256, "é" * 128, 'say "hi"', " spaced "]
    bad = ["a\nb", "a\0b", "a\tb", "\x85", "x" * 257, "é" * 129, "", None]
    times = BEGIN + np.arange(len(odd + bad) * 2)
    log = pl.DataFrame(
        {"user_id": ["u1", "u2"] * len(odd + bad), "item_id": [i for i in odd + bad for _ in "12"], "ts": times}
    )
    for number, form in enumerate(("frame", "csv", "jsonl", "parquet")):
        path: Any = tmp_path / f"log.{form}"
        if form == "frame":
            path = log
        else:
            getattr(log, {"csv": "write_csv", "jsonl": "write_ndjson", "parquet": "write_parquet"}[form])(path)
        cache = prepare(path, tmp_path / f"cache{number}", max_bad_rows=0.6)
        assert item_ids(cache) == set(odd)
        assert sum(quarantined(cache).values()) == 2 * len(bad)
        assert quarantined(cache)["control character in item id"] == 8
        assert quarantined(cache)["item id over 256 bytes"] == 4


def test_items_of_the_log_that_the_catalog_does_not_name(tmp_path: Path) -> None:
    log = make_log()
    items = pl.DataFrame({"item_id": [f"i{n:03d}" for n in range(10)] + ["never"], "title": ["T"] * 11})
    items.write_parquet(tmp_path / "items.parquet")
    catalog = tmp_path / "items.parquet"
    refused(tmp_path, log, "2 items of the log", "'i010'", catalog=catalog, unknown_items="error")
    said: list[str] = []
    train = prepared(tmp_path, log, catalog=catalog, report=said.append)
    assert item_ids(train) == {f"i{n:03d}" for n in range(12)} | {"never"}
    assert train.catalog.items.filter(item_id="never")["train_events"].item() == 0
    assert any("1 without a train event" in line for line in said)
    drop = prepared(tmp_path, log, catalog=catalog, unknown_items="drop", overwrite=True)
    assert item_ids(drop) == {f"i{n:03d}" for n in range(10)} | {"never"}
    assert drop.manifest.waterfall[1]["step"] == "on items of the catalog given"


@pytest.mark.parametrize("ids", [["a", "a"], ["a", None], [1.0, 2.0]])
def test_catalogs_without_an_id_for_each_item(tmp_path: Path, ids: list[Any]) -> None:
    pl.DataFrame({"item_id": ids}).write_parquet(tmp_path / "items.parquet")
    refused(tmp_path, make_log(), "item ids of", catalog=tmp_path / "items.parquet")


def test_damaged_parquet(tmp_path: Path) -> None:
    whole = io.BytesIO()
    make_log().write_parquet(whole)
    data = whole.getvalue()
    cases = {
        "cut": data[: len(data) // 2],
        "cut at the end": data[:-1],
        "wrong": b"hello" * 100,
        "footer": data[:-60] + data[-8:],
    }
    for text in cases.values():
        path = tmp_path / "log.parquet"
        path.write_bytes(text)
        refused(tmp_path, path, "log.parquet")
    (tmp_path / "log.csv").write_bytes(data)
    refused(tmp_path, tmp_path / "log.csv", "Parquet")
    assert not list(tmp_path.glob("*.writing"))


def test_archives_and_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "log.csv", "w") as archive:
        archive.writestr("log.csv", "a")
    refused(tmp_path, tmp_path / "log.csv", "zip archive")
    bomb = tmp_path / "bomb.csv.gz"
    bomb.write_bytes(gzip.compress(b"user_id,item_id,ts\n" + b"0" * (70 << 20), compresslevel=9))
    refused(tmp_path, bomb, "unpacks to", "200 times")
    packed = gzip.compress("\n".join(log_text(500)).encode())
    (tmp_path / "cut.csv.gz").write_bytes(packed[: len(packed) // 2])
    refused(tmp_path, tmp_path / "cut.csv.gz", "can't be unpacked")
    constant = tmp_path / "constant.parquet"
    pl.select(pl.repeat(1, 50_000_000).alias("user_id")).write_parquet(constant)
    refused(tmp_path, constant, "unpacks to")
    monkeypatch.setattr(tables, "LARGEST_GROUP", 100)
    make_log().write_parquet(tmp_path / "log.parquet")
    refused(tmp_path, tmp_path / "log.parquet", "row group")


def test_a_test_part_that_overlaps_training_is_said_with_dates(tmp_path: Path) -> None:
    for split, overlaps in (("last", True), ("users", True), ("time", False)):
        said: list[str] = []
        split_by = prepared(tmp_path, make_log(), split=split, report=said.append, overwrite=True).manifest.split
        warnings = [line for line in said if "later than the first test event" in line]
        assert bool(warnings) == overlaps == (split_by["overlap"] > 0)
        assert all(split_by["train_ends"] in line and split_by["test_begins"] in line for line in warnings)


def mutated(data: bytes, cuts: list[tuple[float, bytes]]) -> bytes:
    for where, what in cuts:
        place = int(where * len(data))
        data = data[:place] + what + data[place + len(what) :]
    return data


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(["csv", "tsv", "jsonl", "parquet", "csv.gz", "jsonl.zst"]),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=12)), max_size=4),
    kept=st.floats(0.2, 1),
)
def test_whatever_happens_to_a_file_it_is_read_or_refused(
    tmp_path: Path, form: str, cuts: list[tuple[float, bytes]], kept: float
) -> None:
    log, whole = make_log(events=60), io.BytesIO()
    kind = form.partition(".")[0]
    if kind == "parquet":
        log.write_parquet(whole)
    elif kind == "jsonl":
        log.write_ndjson(whole)
    else:
        log.write_csv(whole, separator="\t" if kind == "tsv" else ",")
    data = mutated(whole.getvalue(), cuts)
    if form.endswith("gz"):
        data = gzip.compress(data)
    elif form.endswith("zst"):
        packed = io.BytesIO()
        with pa.CompressedOutputStream(packed, "zstd") as sink:
            sink.write(data)
            sink.flush()
            data = packed.getvalue()
    path = tmp_path / f"log.{form}"
    path.write_bytes(data[: round(kept * len(data))])
    with contextlib.suppress(InputError):
        prepare(path, tmp_path / "cache", overwrite=True, max_bad_rows=0.5).verify()
