"""Times of a log ↔ int64 microseconds since 1970 UTC, and what form they had.

The unit of a number is found by its range: the dates 1990 … 2100 in s, ms, us and ns do not overlap, so the median
tells it, and no outlier can change it.
"""

from __future__ import annotations

__all__ = ["UNITS", "Times", "as_logged", "iso", "parse_time", "read_times"]

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isfinite

import numpy as np
import numpy.typing as npt
import polars as pl

from hiertcn.errors import InputError
from hiertcn.quarantine import shown

UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_EARLIEST = 631_152_000  # 1990-01-01
_LATEST = 4_102_444_800  # 2100-01-01
_SECONDS = "%Y-%m-%dT%H:%M:%S"
_ZONED = (f"{_SECONDS}%.f%#z", "%Y-%m-%dT%H:%M%#z")
_NAIVE = (f"{_SECONDS}%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d")


@dataclass(frozen=True)
class Times:
    """Parsed times of N rows.

    values: Int64 [N], microseconds UTC; null where the time can't be used
    faults: by reason, the rows (bool [N]) that can't be used
    form:   how to write a time back (see `as_logged`)
    stated: what was found, for people
    """

    values: pl.Series
    faults: dict[str, pl.Series]
    form: str
    stated: str


def iso(microseconds: int) -> str:
    """A time for people, in UTC."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(microseconds))).isoformat()


def read_times(raw: pl.Series, unit: str | None, tz: str | None) -> Times:
    """Times of the column `raw`: numbers since 1970 (in `unit`, or the unit found), ISO strings or datetimes.

    Datetimes and strings without a zone are local times of `tz`. Raises InputError when the unit can't be told or
    contradicts the values, when a zone is missing, or when the column holds no times at all.
    """
    kind = raw.dtype
    if kind == pl.String:
        return _read_text(raw, unit, tz)
    if kind.is_integer():
        return _read_numbers(raw, raw.cast(pl.Int64, strict=False), unit, "")
    if kind == pl.Float64:
        return _read_numbers(raw, raw, unit, "float_")
    if kind == pl.Float32:
        raise InputError(
            f"The time column {raw.name!r} holds 32-bit floats, which are minutes off for today's dates; expected "
            "integers, 64-bit floats, ISO strings or datetimes. Write the log again with one of these."
        )
    if isinstance(kind, pl.Datetime) or kind == pl.Date:
        return _read_datetimes(raw, tz)
    raise InputError(
        f"The time column {raw.name!r} is of type {kind}; expected integers, floats, ISO strings or datetimes. "
        "Choose another with --time-column."
    )


def _plausible(value: float) -> str | None:
    return next((u for u, scale in UNITS.items() if _EARLIEST * scale <= value < _LATEST * scale), None)


def _unit(raw: pl.Series, middle: float | None, declared: str | None) -> tuple[str, bool]:
    """The unit of numbers with this median, and whether their range confirms it."""
    found = None if middle is None else _plausible(middle)
    if declared and found and found != declared:
        raise InputError(
            f"Times in {raw.name!r} were declared to be {_NAMES[declared]}, but {middle:g} looks like {_NAMES[found]}; "
            f"pass --time-unit {found}."
        )
    if middle is None:
        raise InputError(
            f"The time column {raw.name!r} holds no time above 0, only values such as {shown(raw.first())}; expected "
            "times since 1970, ISO strings or datetimes. Choose another with --time-column."
        )
    if found or declared:
        return found or str(declared), found is not None
    raise InputError(
        f"The unit of the times in {raw.name!r} can't be told: they lie around {middle:g}, which is no date from 1990 "
        "to 2100 in seconds, milliseconds, microseconds or nanoseconds since 1970. Pass --time-unit s, ms, us or ns, "
        "or "
        "choose another --time-column."
    )


def _read_numbers(raw: pl.Series, numbers: pl.Series, unit: str | None, prefix: str) -> Times:
    finite = numbers.filter(numbers.is_finite()) if prefix else numbers.drop_nulls()
    middle = finite.filter(finite > 0).median()
    unit, confirmed = _unit(raw, None if middle is None else float(middle), unit)  # type: ignore[arg-type]
    scale = UNITS[unit]
    missing = raw.is_null()
    faults = {
        "no time": missing,
        "time is not a number": (numbers.is_null() & ~missing)
        | (numbers.is_nan() if prefix else pl.repeat(False, len(raw), eager=True)),
        "time is 0": numbers == 0,
        "time is negative": numbers < 0,
        "time is before 1990": (numbers > 0) & (numbers < (_EARLIEST * scale if confirmed else 0)),
        "time is after 2100": numbers >= _LATEST * scale
        if not prefix
        else (numbers >= _LATEST * scale) & ~numbers.is_nan(),
    }
    bad = _any(faults)
    usable = numbers if bad is None else numbers.set(bad, None)
    if prefix:
        values = (usable * (1_000_000 / scale)).round().cast(pl.Int64)
    elif scale <= 1_000_000:
        values = usable * (1_000_000 // scale)
    else:
        values = usable // (scale // 1_000_000)
    stated = f"{_NAMES[unit]} since 1970" + (" (found by range)" if confirmed else " (as declared)")
    return Times(values, _clean(faults), prefix + unit, stated)


def _read_text(raw: pl.Series, unit: str | None, tz: str | None) -> Times:
    text = raw.str.strip_chars()
    whole = text.cast(pl.Int64, strict=False)
    present = len(raw) - raw.null_count()
    if _mostly(whole, present):
        return _read_numbers(raw, whole, unit, "")
    number = text.cast(pl.Float64, strict=False)
    if _mostly(number, present):
        return _read_numbers(raw, number, unit, "float_")
    return _read_iso(raw, text, tz)


def _mostly(parsed: pl.Series, present: int) -> bool:
    """At least 99% of what is there could be parsed."""
    return (len(parsed) - parsed.null_count()) * 100 >= present * 99


def _parse(text: pl.Series, formats: tuple[str, ...]) -> pl.Series:
    parsed: pl.Series | None = None
    for form in formats:
        found = text.str.to_datetime(form, strict=False, time_unit="us").dt.replace_time_zone(None)
        parsed = found if parsed is None else parsed.zip_with(parsed.is_not_null(), found)
        if parsed.null_count() == text.null_count():
            break
    assert parsed is not None
    return parsed


def _read_iso(raw: pl.Series, text: pl.Series, tz: str | None) -> Times:
    zoned = _parse(text, _ZONED)
    rest = text.set(zoned.is_not_null(), None)
    if rest.null_count() < len(rest):
        rest = rest.str.replace(" ", "T", literal=True).str.replace("(T?UTC|z)$", "Z")
        tidied = _parse(rest, _ZONED)
        zoned, rest = zoned.zip_with(zoned.is_not_null(), tidied), rest.set(tidied.is_not_null(), None)
    naive = _parse(rest, _NAIVE)
    if zoned.null_count() == len(raw) == naive.null_count():
        example = raw.drop_nulls().first()
        raise InputError(
            f"The time column {raw.name!r} holds {shown(example)}; expected numbers since 1970, or ISO 8601 such as "
            "'2024-05-01T12:30:00Z'. Write the times in one of these forms, or choose another with --time-column."
        )
    if tz is None and naive.null_count() < len(raw):
        raise _naive_error(raw.name, raw.filter(naive.is_not_null()).first(), len(raw) - naive.null_count())
    if tz is not None:
        naive = _localize(naive, tz)
    both = zoned.zip_with(zoned.is_not_null(), naive)
    return _finish(raw, both, _text_form(raw, both, tz), "ISO 8601 strings")


def _read_datetimes(raw: pl.Series, tz: str | None) -> Times:
    zone = getattr(raw.dtype, "time_zone", None)
    unit = getattr(raw.dtype, "time_unit", "date")
    if zone is not None:
        moments = raw.dt.convert_time_zone("UTC").dt.replace_time_zone(None).dt.cast_time_unit("us")
        return _finish(raw, moments, f"datetime {unit} {zone}", f"datetimes of {zone}")
    if tz is None:
        raise _naive_error(raw.name, raw.drop_nulls().first(), len(raw) - raw.null_count())
    local = raw.cast(pl.Datetime("us"))
    return _finish(raw, _localize(local, tz), f"local {unit} {tz}", f"datetimes, taken as local times of {tz}")


def _naive_error(column: str, example: object, count: int) -> InputError:
    return InputError(
        f"{count:,} times in {column!r} have no time zone, such as {shown(str(example))}; expected a zone or an "
        "offset. "
        "Say which zone they are in with --tz, for instance --tz UTC or --tz Europe/Copenhagen."
    )


def _localize(local: pl.Series, tz: str) -> pl.Series:
    """Local times of `tz` in UTC: the earlier one of an hour that came twice, null for one that never was."""
    zoned = local.dt.replace_time_zone(tz, ambiguous="earliest", non_existent="null")
    return zoned.dt.convert_time_zone("UTC").dt.replace_time_zone(None)


def _finish(raw: pl.Series, moments: pl.Series, form: str, stated: str) -> Times:
    values = moments.cast(pl.Datetime("us")).cast(pl.Int64)
    faults = {
        "no time": raw.is_null(),
        "time is no date": moments.is_null() & raw.is_not_null(),
        "time is 0": values == 0,
        "time is negative": values < 0,
        "time is before 1990": (values > 0) & (values < _EARLIEST * 1_000_000),
        "time is after 2100": values >= _LATEST * 1_000_000,
    }
    bad = _any(faults)
    return Times(values if bad is None else values.set(bad, None), _clean(faults), form, stated)


def _clean(faults: dict[str, pl.Series]) -> dict[str, pl.Series]:
    return {reason: rows.fill_null(False) for reason, rows in faults.items() if rows.any()}


def _any(faults: dict[str, pl.Series]) -> pl.Series | None:
    bad: pl.Series | None = None
    for rows in _clean(faults).values():
        bad = rows if bad is None else bad | rows
    return bad


def _text_form(raw: pl.Series, moments: pl.Series, tz: str | None) -> str:
    """`text ZONE FORMAT` when one format writes the first rows exactly as they are in the log, else `iso`."""
    some = pl.DataFrame({"text": raw, "moment": moments}).drop_nulls().head(1000)
    for between in ("T", " "):
        for fraction in ("", "%.3f", "%.6f"):
            for zone, suffix in (("UTC", "Z"), ("UTC", "+00:00"), (tz, "")):
                form = f"text {zone} %Y-%m-%d{between}%H:%M:%S{fraction}{suffix}"
                if zone and as_logged(some["moment"].cast(pl.Int64).to_numpy(), form).equals(some["text"]):
                    return form
    return "iso"


def as_logged(times: npt.NDArray[np.int64], form: str) -> pl.Series:
    """Times [N] in microseconds, written as the log had them.

    Nanoseconds come back as multiples of 1000; ISO strings of mixed shapes or offsets come back in UTC.
    """
    values = pl.Series("time", times, dtype=pl.Int64)
    if form.removeprefix("float_") in UNITS:
        scale = UNITS[form.removeprefix("float_")]
        if form.startswith("float_"):
            return values / (1_000_000 / scale)
        return values // (1_000_000 // scale) if scale <= 1_000_000 else values * (scale // 1_000_000)
    moments = values.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    kind, _, rest = form.partition(" ")
    if kind == "iso":
        return moments.dt.strftime(f"{_SECONDS}%.6fZ")
    first, _, last = rest.partition(" ")
    if kind == "text":
        return moments.dt.convert_time_zone(first).dt.strftime(last)
    local = moments.dt.convert_time_zone(last)
    if kind == "local":
        local = local.dt.replace_time_zone(None)
    return local.cast(pl.Date) if first == "date" else local.dt.cast_time_unit(first)  # type: ignore[arg-type]


def parse_time(value: str | float, form: str, tz: str | None) -> int:
    """One time given by a person, ISO or a number in the log's unit, in microseconds. Raises InputError."""
    text = str(value)
    unit = form.removeprefix("float_")
    try:
        number = float(text)
    except ValueError:
        found = read_times(pl.Series("cuts", [text]), None, tz).values[0]
    else:
        found = round(number * (1_000_000 / UNITS[unit if unit in UNITS else "s"])) if isfinite(number) else None
    if found is None:
        raise InputError(
            f"{shown(text)} is not a time. Expected ISO 8601 or a number in the unit of the log; correct it and try "
            "again."
        )
    return int(found)
