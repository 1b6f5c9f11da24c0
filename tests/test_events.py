"""Readers: one log gives the same events in every format, and times go back as they came."""

from __future__ import annotations

import csv
import gzip
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from hiertcn.errors import InputError
from hiertcn.events import Columns, as_logged, read_events
from hiertcn.tables import Layout
from hiertcn.times import parse_time, read_times
from logs import BEGIN, make_log


def read(log: Any, columns: Columns | None = None, layout: Layout | None = None, **options: Any) -> Any:
    return read_events(log, columns or Columns(), layout or Layout(), **options)


def as_rows(events: Any) -> list[tuple[Any, ...]]:
    frame = events.frame
    return list(
        zip(
            events.user_ids.gather(frame["user"]).to_list(),
            (frame["time"] // 10**6).to_list(),
            events.item_ids.gather(frame["item"]).to_list(),
            strict=True,
        )
    )


def write_all(log: pl.DataFrame, folder: Path) -> dict[str, tuple[Path | list[Path] | str, Columns, Layout]]:
    by_place = Columns("0", "1", "2")
    log.write_parquet(folder / "log.parquet")
    log.write_csv(folder / "log.csv")
    log.write_csv(folder / "log.tsv", separator="\t", include_header=False)
    log.write_csv(folder / "semicolons.txt", separator=";", quote_style="always")
    (folder / "ratings.dat").write_text("".join(f"{u}::{i}::{t}\n" for u, i, t in log.rows()))
    log.write_ndjson(folder / "log.jsonl")
    (folder / "log.csv.gz").write_bytes(gzip.compress((folder / "log.csv").read_bytes()))
    with pa.CompressedOutputStream(str(folder / "log.jsonl.zst"), "zstd") as packed:
        packed.write((folder / "log.jsonl").read_bytes())
    (folder / "crlf.csv").write_bytes((folder / "log.csv").read_bytes().replace(b"\n", b"\r\n"))
    (folder / "bare").write_bytes((folder / "log.csv").read_bytes())
    (folder / "parts").mkdir()
    log[:150].write_parquet(folder / "parts" / "1.parquet")
    log[150:].write_parquet(folder / "parts" / "2.parquet")
    (folder / "parts" / "_SUCCESS").touch()
    found: dict[str, tuple[Path | list[Path] | str, Columns, Layout]] = {
        path.name: (path, Columns(), Layout())
        for path in folder.iterdir()
        if path.is_file() and path.suffix not in (".tsv", ".dat")
    }
    found["log.tsv"] = (folder / "log.tsv", by_place, Layout(header=False))
    found["ratings.dat"] = (folder / "ratings.dat", by_place, Layout(header=False))
    found["folder"] = (folder / "parts", Columns(), Layout())
    found["glob"] = (str(folder / "parts" / "*.parquet"), Columns(), Layout())
    found["several"] = ([folder / "parts" / "2.parquet", folder / "parts" / "1.parquet"], Columns(), Layout())
    return found


@pytest.mark.parametrize("integers", [False, True])
def test_every_format_gives_the_same_events(tmp_path: Path, integers: bool) -> None:
    log = make_log()
    if integers:
        log = log.with_columns(pl.col("user_id", "item_id").str.slice(1).cast(pl.UInt32))
    expected = sorted((u, t, i) for u, i, t in log.rows())
    as_text = sorted((str(u), t, str(i)) for u, i, t in log.rows())
    assert as_rows(read(log)) == expected
    for name, (path, columns, layout) in write_all(log, tmp_path).items():
        typed = any(kind in name for kind in ("parquet", "json", "folder", "glob", "several"))
        assert as_rows(read(path, columns, layout)) == (expected if typed else as_text), name


def test_a_log_with_lists_is_one_event_an_element() -> None:
    log = make_log()
    lists = log.group_by("user_id").agg("item_id", "ts")
    empty = pl.DataFrame({"user_id": ["none"], "item_id": [[]], "ts": [[]]}, schema=lists.schema)
    assert as_rows(read(pl.concat([lists, empty]))) == as_rows(read(log))


def test_the_shared_real_log_of_lists(shared_data: Path) -> None:
    columns = Columns("user_id", "article_id_fixed", "impression_time_fixed")
    events = read(shared_data / "ebnerd_tiny44" / "history.parquet", columns, tz="Europe/Copenhagen")
    assert (events.frame.height + events.duplicates, len(events.user_ids)) == (8303, 44)
    assert events.time_form == "local us Europe/Copenhagen"


def test_columns_are_found_by_well_known_names_and_stated() -> None:
    log = make_log().rename({"user_id": "visitorid", "item_id": "movieId", "ts": "Event_Time"})
    found = read(log.with_columns(event=pl.lit("view"))).columns
    assert found == Columns("visitorid", "movieId", "Event_Time", type="event")


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    log = make_log()
    log.write_parquet(tmp_path / "a.parquet")
    log.with_columns(user_id=pl.col("user_id").str.slice(1).cast(pl.Int64)).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"a\.parquet and Int64 in b\.parquet"):
        read(tmp_path)
    log.rename({"ts": "at"}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet has no column 'ts'"):
        read(tmp_path)


@pytest.mark.parametrize("log", ["nothing.csv", "no*.csv", []])
def test_a_log_that_is_not_there(tmp_path: Path, log: Any) -> None:
    with pytest.raises(InputError, match="No log"):
        read(str(tmp_path / log) if isinstance(log, str) else log)


def test_unsigned_ids_beyond_int64_become_strings() -> None:
    log = make_log().with_columns(user_id=pl.Series([2**64 - 30 + n % 20 for n in range(400)], dtype=pl.UInt64))
    assert read(log).user_ids[0] == str(2**64 - 30)


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=6) | st.sampled_from(
    ['"', ",", 'a"b', "a,b", "\n", "x\ny", "\n\n"]
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(texts, texts), max_size=12), quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]))
def test_csv_keeps_any_id_that_is_one(tmp_path: Path, rows: list[tuple[str, str]], quoting: Any) -> None:
    rows = [("u", "i"), *rows]
    with (tmp_path / "log.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=quoting, lineterminator="\n")
        writer.writerow(["user_id", "item_id", "ts", "note"])
        writer.writerows((u, i, BEGIN + n, "") for n, (u, i) in enumerate(rows))
    events = read(tmp_path / "log.csv", max_bad_rows=1.0)
    good = {(u, BEGIN + n, i) for n, (u, i) in enumerate(rows) if all(x and "\n" not in x for x in (u, i))}
    assert set(as_rows(events)) == good
    assert events.frame.height + events.quarantine.total == len(rows)


def test_a_quoted_line_break_in_another_column_is_no_harm(tmp_path: Path) -> None:
    lines = ["user_id,item_id,ts,note", *(f'u{n % 3},i{n % 2},{BEGIN + n},"a\nb ""c"" d"' for n in range(20))]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    assert read(tmp_path / "log.csv").frame.height == 20


def test_a_missing_quote_does_not_swallow_the_rows_after_it(tmp_path: Path) -> None:
    lines = ["user_id,item_id,ts", *(f"u{n % 3},i{n % 2},{BEGIN + n}" for n in range(40))]
    lines[10] = f'u1,"i1,{BEGIN}'
    lines[30] = f'u1,i1",{BEGIN}'
    (tmp_path / "log.csv").write_text("\n".join(lines))
    events = read(tmp_path / "log.csv", max_bad_rows=0.1)
    assert (events.frame.height, events.quarantine.counts) == (38, {"unbalanced quote": 2})
    assert [text[: text.index(":")] for text in events.quarantine.examples["unbalanced quote"]] == [
        "log.csv line 11",
        "log.csv line 31",
    ]


def test_places_of_bad_rows_are_lines_of_their_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [f"u{n % 3},i{n % 2},{BEGIN + n}" for n in range(20)]
        rows[7] = "u1,i1,0"
        (tmp_path / f"{name}.csv").write_text("user_id,item_id,ts\n" + "\n".join(rows))
    events = read(tmp_path, max_bad_rows=0.1)
    assert events.quarantine.examples["time is 0"] == ["a.csv line 9: '0'", "b.csv line 9: '0'"]


def test_json_lines_that_are_no_objects(tmp_path: Path) -> None:
    good = [f'{{"user_id": "u{n % 3}", "item_id": {n % 2}, "ts": {BEGIN + n}, "more": [1]}}' for n in range(20)]
    bad = ['{"user_id": "u1"', "[1, 2]", '{"user_id": NaN}', "nothing", "[" * 100_000]
    (tmp_path / "log.jsonl").write_text("\n".join([*good[:10], *bad, "", *good[10:]]))
    events = read(tmp_path / "log.jsonl", max_bad_rows=0.3)
    assert (events.frame.height, events.quarantine.counts) == (20, {"not a JSON object": 5})
    assert events.item_ids.dtype == pl.Int64
    (tmp_path / "log.jsonl").write_text("\n".join([*good, f'{{"user_id": "\\ud800", "item_id": "x", "ts": {BEGIN}}}']))
    events = read(tmp_path / "log.jsonl", max_bad_rows=0.1)
    assert (events.item_ids.to_list(), events.quarantine.total) == (["0", "1", "x"], 1)


def test_one_outlier_does_not_change_the_unit(shared_data: Path) -> None:
    log = shared_data / "taobao_tiny43" / "UserBehavior.csv"
    events = read(log, Columns("0", "1", "4", type="3"), Layout(header=False))
    assert (events.time_form, events.frame.height, len(events.user_ids), len(events.item_ids)) == ("s", 4321, 43, 3276)
    assert sorted(filter(None, events.names["type"])) == ["buy", "cart", "fav", "pv"]


moments = st.integers(631_152_000 * 10**6, 2_145_000_000 * 10**6)


def written(times: list[int], form: str) -> pl.Series:
    """Times of microseconds as a log may have them."""
    values = pl.Series("ts", times, dtype=pl.Int64)
    utc = values.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    local = utc.dt.convert_time_zone("America/New_York")
    made = {
        "s": lambda: values // 10**6,
        "ms": lambda: values // 10**3,
        "us": lambda: values,
        "ns": lambda: values * 1000,
        "float_s": lambda: values / 10**6,
        "float_ms": lambda: values / 10**3,
        "text UTC %Y-%m-%dT%H:%M:%S%.3fZ": lambda: (utc.dt.truncate("1ms")).dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"),
        "text UTC %Y-%m-%d %H:%M:%S+00:00": lambda: utc.dt.strftime("%Y-%m-%d %H:%M:%S+00:00"),
        "datetime us UTC": lambda: utc,
        "datetime ms America/New_York": lambda: local.dt.cast_time_unit("ms"),
        "datetime ns UTC": lambda: utc.dt.cast_time_unit("ns"),
        "local us UTC": lambda: utc.dt.replace_time_zone(None),
        "local date UTC": lambda: utc.dt.date(),
    }
    return made[form]().alias("ts")


FORMS = (
    "s",
    "ms",
    "us",
    "ns",
    "float_s",
    "float_ms",
    "datetime us UTC",
    "datetime ms America/New_York",
    "datetime ns UTC",
)
FORMS += ("local us UTC", "local date UTC", "text UTC %Y-%m-%dT%H:%M:%S%.3fZ", "text UTC %Y-%m-%d %H:%M:%S+00:00")


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25, deadline=None)
@given(times=st.lists(moments, min_size=1, max_size=20))
def test_times_go_back_as_they_came(form: str, times: list[int]) -> None:
    raw = written(times, form)
    found = read_times(raw, None, "UTC" if form.startswith("local") else None)
    assert found.form == form
    assert not found.faults
    np.testing.assert_allclose(found.values.to_numpy(), times, atol=86_400e6 if "date " in form else 1e6)
    back = as_logged(found.values.to_numpy(), found.form)
    assert back.dtype == raw.dtype
    assert back.to_list() == raw.to_list()


def test_offsets_and_short_forms_of_iso() -> None:
    expected = int(datetime(2024, 5, 1, 10, 30, tzinfo=UTC).timestamp() * 10**6)
    same = ["2024-05-01T10:30:00Z", "2024-05-01 12:30:00+02:00", "2024-05-01T10:30Z", "2024-05-01 10:30:00.000 UTC"]
    same += ["2024-05-01T05:00:00-0530", "2024-05-01T10:30:00z"]
    assert read_times(pl.Series("ts", same), None, None).values.to_list() == [expected] * len(same)
    found = read_times(pl.Series("ts", [*same, "2024-02-30T00:00Z", "yesterday", None]), None, None)
    assert {reason: int(rows.sum()) for reason, rows in found.faults.items()} == {"no time": 1, "time is no date": 2}


def test_local_times_around_a_change_of_the_clock() -> None:
    raw = pl.Series("ts", ["2024-03-31T02:30:00", "2024-10-27T02:30:00"])
    found = read_times(raw, None, "Europe/Copenhagen")
    first = int(datetime(2024, 10, 27, 0, 30, tzinfo=UTC).timestamp() * 10**6)
    assert found.values.to_list() == [None, first]


@pytest.mark.parametrize(
    "column",
    [
        pl.Series("ts", [1.7e9], dtype=pl.Float32),
        pl.Series("ts", [True]),
        pl.Series("ts", ["soon"]),
        pl.Series("ts", [None], dtype=pl.Int64),
        pl.Series("ts", [0, -1]),
    ],
)
def test_columns_that_hold_no_times(column: pl.Series) -> None:
    with pytest.raises(InputError, match="'ts'"):
        read_times(column, None, None)


def test_a_time_given_by_a_person() -> None:
    expected = 1_445_617_130 * 10**6
    for value, form in (
        (1_445_617_130, "s"),
        ("1445617130", "s"),
        (1_445_617_130_000, "ms"),
        ("2015-10-23T16:18:50Z", "s"),
    ):
        assert parse_time(value, form, None) == expected
    for value in ("soon", "nan", "2015-10-23T16:18:50"):
        with pytest.raises(InputError):
            parse_time(value, "s", None)
