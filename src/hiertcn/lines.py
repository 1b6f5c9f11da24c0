"""Text logs a block of lines at a time: quick where every line is a row, forgiving where not.

Every line that is no row is named with its number and the reason; every other one is kept as it is. Blank lines are
nothing. Quick is a fast reader on the whole block; line by line is the rest: quotes that span lines, bytes that are no
UTF-8, objects of changing types.
"""

from __future__ import annotations

__all__ = ["BadLine", "column_of", "json_sample", "read_csv_lines", "read_json_lines"]

import csv
import json
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

Numbers = npt.NDArray[np.int64]
_BLOCK = 1 << 20
_NEWLINE, _RETURN = 10, 13
_STAND_IN = "\x1f"
_LONGEST_RECORD = 100
_UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


class BadLine(NamedTuple):
    """A line that is no row: its number in the file from 1, why, and what it holds."""

    line: int
    reason: str
    text: str


class _Block(NamedTuple):
    """Whole lines, the first of them number `first` of the file."""

    first: int
    data: bytes

    def lines(self, bad: list[BadLine]) -> Iterator[tuple[int, str]]:
        """(number, text) of the lines that are UTF-8 and not blank."""
        for number, raw in enumerate(BytesIO(self.data), self.first):
            try:
                text = raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                bad.append(_bad(number, "invalid UTF-8", raw))
                continue
            if text:
                yield number, text


class _Found(NamedTuple):
    frame: pl.DataFrame
    numbers: Numbers
    bad: list[BadLine]


def _bad(number: int, reason: str, raw: bytes) -> BadLine:
    text = raw.decode("utf-8", "replace")
    return BadLine(number, "invalid UTF-8" if "\ufffd" in text else reason, text.rstrip("\r\n"))


def _blocks(path: Path, header: bool = False, quotes: bool = False) -> Iterator[_Block]:
    """The lines of a file after its header, some at a time; with `quotes`, cut where none is open."""
    with path.open("rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        number = 1
        if header:
            file.readline()
            number = 2
        while data := file.read(_BLOCK):
            data += file.readline()
            if quotes and data.count(b'"') % 2:
                more = list(islice(file, _LONGEST_RECORD))
                closed = next((n for n, line in enumerate(more, 1) if line.count(b'"') % 2), 0)
                data += b"".join(more[:closed])
                file.seek(-sum(map(len, more[closed:])), 1)
            yield _Block(number, data)
            number += data.count(b"\n")


def _read(
    blocks: Iterator[_Block],
    names: list[str],
    quick: Callable[[_Block], _Found | None],
    slow: Callable[[_Block, list[BadLine]], Iterator[tuple[int, list[Any]]]],
) -> _Found:
    frames, numbers, bad = [], [np.empty(0, np.int64)], []
    for block in blocks:
        found = quick(block)
        if found is None:
            lines: list[BadLine] = []
            rows = list(slow(block, lines))
            columns = zip(*(values for _, values in rows), strict=True) if rows else [()] * len(names)
            frame = pl.DataFrame([column_of(name, values) for name, values in zip(names, columns, strict=True)])
            found = _Found(frame, np.array([number for number, _ in rows], dtype=np.int64), lines)
        frames.append(found.frame)
        numbers.append(found.numbers)
        bad.extend(found.bad)
    filled = [frame for frame in frames if frame.height]
    empty = pl.DataFrame(schema=dict.fromkeys(names, pl.String))
    return _Found(pl.concat(filled or [empty], how="vertical_relaxed"), np.concatenate(numbers), bad)


def read_csv_lines(
    path: Path, separator: str, quotes: bool, header: bool, columns: list[str], wanted: list[str]
) -> tuple[pl.DataFrame, Numbers, list[BadLine]]:
    """The `wanted` columns as strings [N], the line number of each row [N], and the lines that are no rows."""
    places = [columns.index(name) for name in wanted]
    width = len(columns)

    def quick(block: _Block) -> _Found | None:
        kept = _rows_of(block, separator, quotes, width)
        if kept is None:
            return None
        data, numbers, bad, sign = kept
        try:
            scan = pl.scan_csv(
                BytesIO(data),
                has_header=False,
                separator=sign,
                quote_char='"' if quotes else None,
                schema={str(place): pl.String for place in range(width)},
            )
            frame = scan.select(pl.col(str(p)).alias(name) for p, name in zip(places, wanted, strict=True)).collect()
        except _UNREADABLE:
            return None
        return _Found(frame, numbers, bad) if frame.height == len(numbers) else None

    def slow(block: _Block, bad: list[BadLine]) -> Iterator[tuple[int, list[str | None]]]:
        for number, fields in _records(block.lines(bad), separator, quotes, width, bad):
            yield number, [fields[place] or None for place in places]

    return _read(_blocks(path, header, quotes), wanted, quick, slow)


def _rows_of(
    block: _Block, separator: str, quotes: bool, width: int
) -> tuple[bytes, Numbers, list[BadLine], str] | None:
    """The lines of `width` fields, their numbers, the other lines, and the sign that now separates fields.

    None where only quotes can tell the fields.
    """
    data, sign = block.data, separator
    if len(separator) > 1:
        if _STAND_IN.encode() in data:
            return None
        data, sign = data.replace(separator.encode(), _STAND_IN.encode()), _STAND_IN
    if not data.endswith(b"\n"):
        data += b"\n"
    signs = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(signs == _NEWLINE) + 1
    lengths = np.diff(ends, prepend=0)
    fields = np.diff(np.searchsorted(np.flatnonzero(signs == ord(sign)), ends), prepend=0) + 1
    good = fields == width
    blank = (lengths == 1) | ((lengths == 2) & (signs[ends - lengths] == _RETURN))
    if good.all():
        return data, block.first + np.arange(len(ends)), [], sign
    if quotes and b'"' in data:
        return None
    bad = [
        _bad(
            block.first + line,
            f"{fields[line]} fields instead of {width}",
            data[ends[line] - lengths[line] : ends[line]],
        )
        for line in np.flatnonzero(~(good | blank)).tolist()
    ]
    good &= ~blank
    return signs[np.repeat(good, lengths)].tobytes(), block.first + np.flatnonzero(good), bad, sign


def _records(
    lines: Iterator[tuple[int, str]], separator: str, quotes: bool, width: int, bad: list[BadLine]
) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of the records of `width` fields.

    A record may span lines inside quotes, but not over a line that is a row of its own: then a quote is missing.
    """
    waiting: list[tuple[int, str]] = []
    while (first := waiting.pop(0) if waiting else next(lines, None)) is not None:
        number, text = first
        taken: list[tuple[int, str]] = []
        while quotes and text.count('"') % 2 and len(taken) < _LONGEST_RECORD:
            following = waiting.pop(0) if waiting else next(lines, None)
            if following is None:
                break
            taken.append(following)
            if following[1].count(separator) == width - 1 and '"' not in following[1]:
                break
            text += "\n" + following[1]
        fields = None if quotes and text.count('"') % 2 else _fields(text, separator, quotes)
        if fields is not None and len(fields) == width:
            yield number, fields
            continue
        reason = "unbalanced quote" if fields is None else f"{len(fields)} fields instead of {width}"
        bad.append(BadLine(number, reason, first[1]))
        waiting = taken + waiting


def _fields(text: str, separator: str, quotes: bool) -> list[str] | None:
    """Fields of one record, or None where its quotes do not fit."""
    if not quotes or '"' not in text or len(separator) > 1:
        return text.split(separator)
    try:
        return next(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error:
        return None


def read_json_lines(
    path: Path, wanted: list[str], schema: dict[str, pl.DataType] | None = None
) -> tuple[pl.DataFrame, Numbers, list[BadLine]]:
    """The `wanted` keys of the objects of a file, their line numbers [N], and lines that are none.

    With `schema`, the types that most values have, blocks are read quickly where all have.
    """

    def quick(block: _Block) -> _Found | None:
        try:
            frame = pl.read_ndjson(BytesIO(block.data), schema=schema)
        except _UNREADABLE:
            return None
        lines = block.data.count(b"\n") + (not block.data.endswith(b"\n"))
        return _Found(frame, block.first + np.arange(lines), []) if frame.height == lines else None

    def slow(block: _Block, bad: list[BadLine]) -> Iterator[tuple[int, list[Any]]]:
        return ((number, [found.get(name) for name in wanted]) for number, found in _objects(block, bad))

    return _read(_blocks(path), wanted, quick, slow)


def json_sample(path: Path) -> list[dict[str, Any]]:
    """The first thousand objects of a file."""
    return [found for _, found in islice((one for block in _blocks(path) for one in _objects(block, [])), 1000)]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _objects(block: _Block, bad: list[BadLine]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in block.lines(bad):
        try:
            found = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            yield number, found
        elif text.strip():
            bad.append(BadLine(number, "not a JSON object", text))


def column_of(name: str, values: tuple[Any, ...]) -> pl.Series:
    """Integers as Int64, numbers as Float64, all else as text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int} and all(value is None or abs(value) < 1 << 63 for value in values):
        return pl.Series(name, values, dtype=pl.Int64)
    if kinds and kinds <= {int, float}:
        return pl.Series(name, [None if value is None else float(value) for value in values], dtype=pl.Float64)
    texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pl.Series(name, [text if text is None else _writable(text) for text in texts], dtype=pl.String)


def _writable(text: str) -> str:
    """Text that UTF-8 can hold: NUL, which no id may have, stands for a lone surrogate."""
    return text if text.isprintable() else "".join("\0" if "\ud800" <= sign <= "\udfff" else sign for sign in text)
