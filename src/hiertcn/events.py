"""The events of a log: who, what, when, as codes in one order, whatever order and format the log has.

Legend: U users, I items, N events. Ids stay what they are in the log (string or int64); codes are their places in
sorted order. Events are ordered by user id, time and item id, so the order of rows in the log never matters.
"""

from __future__ import annotations

__all__ = ["Columns", "Events", "as_logged", "read_events"]

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hiertcn.columns import NEEDED, Columns
from hiertcn.errors import InputError, nearest
from hiertcn.quarantine import EXAMPLES, Quarantine, shown
from hiertcn.sources import find_sources, unpacked
from hiertcn.tables import Layout, Rows, Table, open_table
from hiertcn.times import UNITS, as_logged, read_times

_LONGEST_ID = 256
_CONTROL = r"\p{Cc}"
_SECOND = UNITS["us"]
_IDS = ("user", "item", "event")
# Integers that lie so close are looked up in a table; the others, and texts, are joined.
_DENSE = 4
_TEXTS = (pl.String, pl.Categorical, pl.Enum, pl.Null)


@dataclass(frozen=True)
class Events:
    """Events of a log, in order.

    user_ids: [U], item_ids: [I], sorted, each once (string or int64)
    frame:    [N] with user, item (uint32 codes), time (int64 microseconds) and, where the log has them, event (uint32
              codes into `event_ids`), type, session, part (uint32 codes into `names`)
    event_ids: [E], sorted, each once (string or int64); None without a column of them
    """

    user_ids: pl.Series
    item_ids: pl.Series
    frame: pl.DataFrame
    names: dict[str, list[str | None]]
    columns: Columns
    time_form: str
    time_stated: str
    files: list[dict[str, Any]]
    quarantine: Quarantine
    duplicates: int
    event_ids: pl.Series | None = None


def read_events(
    log: str | Path | Sequence[str | Path] | pl.DataFrame,
    columns: Columns,
    layout: Layout,
    *,
    time_unit: str | None = None,
    tz: str | None = None,
    max_bad_rows: float = 0.001,
    keep_duplicates: bool = False,
    one_user: bool = False,
) -> Events:
    """Read, validate, order and deduplicate the events of a log; of one that is of `one_user`, it need not say whose.

    Rows that can't be used are set aside by reason; more than the fraction `max_bad_rows` of them, a column that is
    missing or of the wrong kind, times of an unknown unit, or no event at all raise InputError.
    """
    if isinstance(log, pl.DataFrame):
        columns, names, read = _read_tables([open_table(log, layout)], columns, one_user)
    else:
        with unpacked(find_sources(log)) as sources:
            columns, names, read = _read_tables([open_table(source, layout) for source in sources], columns, one_user)
    files = [{"name": name, "rows": rows.frame.height + len(rows.bad)} for name, rows in zip(names, read, strict=True)]
    quarantine = _quarantine(names, read)
    quarantine.check(max_bad_rows)
    places = _Places(names, read)
    raw = _stacked(names, [rows.frame for rows in read])
    del read
    times = read_times(raw["time"].alias(str(columns.time)), time_unit, tz)
    for reason, where in times.faults.items():
        places.add(quarantine, reason, where, raw["time"])
    moments = times.values
    if columns.offset is not None:
        moments = moments + raw["offset"].cast(pl.Float64, strict=False).fill_null(0).cast(pl.Int64) * 1000
    good = moments.is_not_null()
    coded = {"time": moments}
    ids = {}
    for role in _ids_of(raw):
        ids[role], coded[role], good = _encoded(raw[role], role, good, places, quarantine)
    quarantine.check(max_bad_rows)
    labels: dict[str, list[str | None]] = {}
    for role in ("type", "session", "part"):
        if role in raw.columns:
            unique = raw[role].unique().sort()
            labels[role] = unique.cast(pl.String).to_list()
            coded[role] = _codes(raw[role], unique)
    del raw
    frame = pl.DataFrame(
        [
            coded[role].alias(role)
            for role in ("user", "time", "item", "event", "type", "session", "part")
            if role in coded
        ]
    )
    if not good.all():
        frame = frame.filter(good)
    frame = _sorted(frame)
    duplicates = 0
    if not keep_duplicates:
        same = _repeats(
            frame.select(role for role in ("user", "time", "item", "event", "type") if role in frame.columns)
        )
        duplicates = int(same.sum())
        frame = frame.filter(~same) if duplicates else frame
    return Events(
        ids["user"],
        ids["item"],
        frame,
        labels,
        columns,
        times.form,
        times.stated,
        files,
        quarantine,
        duplicates,
        ids.get("event"),
    )


def _ids_of(frame: pl.DataFrame) -> list[str]:
    return [role for role in _IDS if role in frame.columns]


def _quarantine(names: list[str], read: list[Rows]) -> Quarantine:
    """The lines that are no rows. Raises InputError when there is no row at all."""
    quarantine = Quarantine(read=sum(rows.frame.height + len(rows.bad) for rows in read))
    if not quarantine.read:
        raise InputError(
            f"The log holds 0 events ({shown(', '.join(names))}); expected at least two users and two items. "
            "Check the file."
        )
    for name, rows in zip(names, read, strict=True):
        for reason in dict.fromkeys(line.reason for line in rows.bad):
            lines = [line for line in rows.bad if line.reason == reason]
            quarantine.add(reason, len(lines), [(f"{name} line {line.line}", line.text) for line in lines[:EXAMPLES]])
    if quarantine.total == quarantine.read:
        raise InputError(f"None of {quarantine.read:,} rows can be used: {quarantine.summary()}. Mend the log.")
    return quarantine


def _sorted(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows in the order of their columns, none of which holds a null.

    Where all values of a row fit one number together, sorting those numbers is several times faster.
    """
    if not frame.height:
        return frame
    seconds = bool((frame["time"] % _SECOND == 0).all())
    columns = [frame[name] // _SECOND if seconds and name == "time" else frame[name] for name in frame.columns]
    lows = [int(column.min()) for column in columns]  # type: ignore[arg-type]
    spans = [int(column.max()) - low + 1 for column, low in zip(columns, lows, strict=True)]  # type: ignore[arg-type]
    if prod(spans) >= 1 << 63:
        return frame.sort(frame.columns)
    key = pl.Series(np.zeros(frame.height, dtype=np.int64))
    for column, low, span in zip(columns, lows, spans, strict=True):
        key = key * span + (column.cast(pl.Int64) - low)
    key = key.sort()
    found: list[pl.Series] = []
    for column, low, span in reversed(list(zip(columns, lows, spans, strict=True))):
        found.append((key % span + low).cast(column.dtype).alias(column.name))
        key = key // span
    ordered = pl.DataFrame(reversed(found))
    return ordered.with_columns(pl.col("time") * _SECOND) if seconds else ordered


def _repeats(frame: pl.DataFrame) -> pl.Series:
    """Rows of an ordered frame that are the same as the row before."""
    same = [(pl.col(name) == pl.col(name).shift(1)).fill_null(False) for name in frame.columns]
    return frame.select(pl.all_horizontal(same)).to_series()


def _read_tables(tables: list[Table], columns: Columns, one_user: bool) -> tuple[Columns, list[str], list[Rows]]:
    columns = columns.found_in(tables[0], NEEDED[1:] if one_user else NEEDED)
    named = columns.named()
    read = []
    for table in tables:
        absent = [name for name in named.values() if name not in table.columns]
        if absent:
            raise InputError(
                f"{table.name} has no column {absent[0]!r}{nearest(absent[0], table.columns)}, but {tables[0].name} "
                "has; expected the same columns in all files of a log. Give them one by one, or mend the file."
            )
        rows = table.read(list(dict.fromkeys(named.values())))
        frame = rows.frame.select(pl.col(name).alias(role) for role, name in named.items())
        if columns.user is None:
            frame = frame.with_columns(user=pl.lit("the one"))
        read.append(replace(rows, frame=_checked(frame, named, table.name)))
    return columns, [table.name for table in tables], read


def _checked(frame: pl.DataFrame, named: dict[str, str], name: str) -> pl.DataFrame:
    """Ids as integers or strings. Raises InputError for a column of any other kind, and for nested ones."""
    for role, column in named.items():
        kind = frame[role].dtype
        if kind.is_nested() or (role in _IDS and not (kind.is_integer() or kind in _TEXTS)):
            example = shown(frame[role].drop_nulls().first())
            expected = "strings or integers, kept as they are" if role in _IDS else "single values"
            raise InputError(
                f"Column {column!r} of {name} is of type {kind} ({example}); expected {expected}, for {role}. "
                "Write it so, or choose another column."
            )
    return frame.with_columns(_id(frame[role]) for role in _ids_of(frame))


def _id(raw: pl.Series) -> pl.Series:
    """Integers that int64 can't hold become strings."""
    if raw.dtype.is_integer() and raw.dtype not in (pl.UInt64, pl.Int128, pl.UInt128):
        return raw
    fits = raw.dtype.is_integer() and raw.cast(pl.Int64, strict=False).null_count() == raw.null_count()
    return raw.cast(pl.Int64 if fits else pl.String)


def _stacked(names: list[str], frames: list[pl.DataFrame]) -> pl.DataFrame:
    for name, frame in zip(names, frames, strict=True):
        for role in _ids_of(frame):
            if (
                frame.height
                and frames[0].height
                and frame[role].dtype.is_integer() != frames[0][role].dtype.is_integer()
            ):
                raise InputError(
                    f"The {role} ids are {frames[0][role].dtype} in {names[0]} and {frame[role].dtype} in {name}; "
                    "expected one type in all files of a log. Write them all as strings or all as integers."
                )
    filled = [frame for frame in frames if frame.height] or frames[:1]
    try:
        return pl.concat(filled, how="vertical_relaxed")
    except pl.exceptions.PolarsError as error:
        raise InputError(
            f"The files of the log do not fit together ({shown(str(error).splitlines()[0])}); expected columns of one "
            "type. Write them in the same form."
        ) from error


class _Places:
    """Where a row of the whole log stands: file and line."""

    def __init__(self, names: list[str], read: list[Rows]) -> None:
        filled = [(name, rows) for name, rows in zip(names, read, strict=True) if rows.frame.height]
        self._names = [name for name, _ in filled]
        self._starts = np.cumsum([0, *(rows.frame.height for _, rows in filled)])
        self._rows = [replace(rows, frame=pl.DataFrame()) for _, rows in filled]

    def add(self, quarantine: Quarantine, reason: str, where: pl.Series, values: pl.Series) -> None:
        examples: list[tuple[str, object]] = []
        for row in where.arg_true().head(EXAMPLES):
            file = int(np.searchsorted(self._starts, row, side="right")) - 1
            examples.append((f"{self._names[file]} {self._rows[file].place(row - self._starts[file])}", values[row]))
        quarantine.add(reason, int(where.sum()), examples)


def _codes(values: pl.Series, unique: pl.Series) -> pl.Series:
    """uint32 [N]: the place of each value in `unique` (null among them finds null)."""
    if values.dtype.is_integer() and len(values) and not values.null_count():
        low, high = int(values.min()), int(values.max())  # type: ignore[arg-type]
        if high - low < _DENSE * len(values):
            places = np.zeros(high - low + 1, dtype=np.uint32)
            places[(unique.cast(pl.Int64) - low).to_numpy()] = np.arange(len(unique), dtype=np.uint32)
            return pl.Series(places[(values.cast(pl.Int64) - low).to_numpy()])
    table = pl.DataFrame({"id": unique}).with_row_index("code")
    found = pl.DataFrame({"id": values}).join(table, on="id", how="left", maintain_order="left", nulls_equal=True)
    return found["code"].cast(pl.UInt32)


def _encoded(
    raw: pl.Series, role: str, good: pl.Series, places: _Places, quarantine: Quarantine
) -> tuple[pl.Series, pl.Series, pl.Series]:
    """Sorted ids that occur, codes [N], and the rows still good; rows whose id is none are set aside.

    A row is counted once: not again if it is bad already.
    """
    unique = raw.unique().sort()
    codes = _codes(raw, unique)
    unique = unique.cast(pl.Int64) if unique.dtype.is_integer() else unique
    faults = {f"no {role} id": unique.is_null()}
    if unique.dtype == pl.String:
        length = unique.str.len_bytes()
        faults[f"empty {role} id"] = length == 0
        faults[f"{role} id over {_LONGEST_ID} bytes"] = length > _LONGEST_ID
        faults[f"control character in {role} id"] = (length <= _LONGEST_ID) & unique.str.contains(_CONTROL)
    for reason, wrong in faults.items():
        wrong = wrong.fill_null(False)
        if wrong.any():
            where = wrong.gather(codes) & good
            if where.any():
                places.add(quarantine, reason, where, raw)
            good = good & ~where
    return unique, codes, good
