"""One file (or frame) of a log as a table: its columns, and the rows of those that are wanted."""

from __future__ import annotations

__all__ = ["Layout", "Rows", "Table", "open_table"]

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from hiertcn.errors import InputError
from hiertcn.lines import BadLine, column_of, json_sample, read_csv_lines, read_json_lines
from hiertcn.quarantine import shown
from hiertcn.sources import Source, check_size

SEPARATORS = ("\t", "::", ",", ";", "|")
_UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, OSError)
LARGEST_GROUP = 8 << 30


@dataclass(frozen=True)
class Layout:
    """How a text file is laid out. `separator` None: found in the first line. `quotes` False: `"` means nothing."""

    header: bool = True
    separator: str | None = None
    quotes: bool = True


@dataclass(frozen=True)
class Rows:
    """N rows of the wanted columns. `lines` [N] are their numbers in the file; None: row r is on line first + r."""

    frame: pl.DataFrame
    first: int = 1
    lines: npt.NDArray[np.int64] | None = None
    bad: list[BadLine] = field(default_factory=list)
    word: str = "line"

    def place(self, row: int) -> str:
        return f"{self.word} {self.first + row if self.lines is None else self.lines[row]}"


class Table(Protocol):
    """A log or a list of items, its columns known and its rows still to be read."""

    name: str
    columns: list[str]

    def read(self, wanted: list[str], *, lists: bool = False) -> Rows:
        """Rows of the columns `wanted`: of a line that holds lists one for each place, or, with `lists`, as they are.

        Raises InputError where the file can't be read.
        """
        ...


def open_table(source: Source | pl.DataFrame, layout: Layout) -> Table:
    """The table of a file or a frame. Raises InputError where its columns can't be told."""
    if isinstance(source, pl.DataFrame):
        return _Frame(source)
    kinds: dict[str, Callable[[], Table]] = {
        "parquet": lambda: _Parquet(source),
        "jsonl": lambda: _Json(source),
        "csv": lambda: _Csv(source, layout),
    }
    return kinds[source.kind]()


class _Frame:
    name = "the frame"

    def __init__(self, frame: pl.DataFrame) -> None:
        self._frame = frame
        self.columns = frame.columns

    def read(self, wanted: list[str], *, lists: bool = False) -> Rows:
        chosen = self._frame.lazy().select(wanted)
        return Rows((chosen if lists else _exploded(chosen)).collect(), word="row")


class _Parquet:
    def __init__(self, source: Source) -> None:
        self.name, self._path = source.name, source.path
        try:
            self._scan = pl.scan_parquet(source.path, glob=False, hive_partitioning=False)
            self.columns = self._scan.collect_schema().names()
            self._check()
        except _UNREADABLE as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: BaseException) -> InputError:
        return InputError(
            f"{self.name} can't be read as Parquet ({shown(str(error).splitlines()[0])}). It may be cut short or "
            "damaged; "
            "fetch or write it again."
        )

    def _check(self) -> None:
        """Nothing is read of a file whose footer promises more than a machine should be asked to hold."""
        footer = pq.read_metadata(self._path)
        groups = [footer.row_group(number).total_byte_size for number in range(footer.num_row_groups)]
        if max(groups, default=0) > LARGEST_GROUP:
            raise InputError(
                f"{self.name} has a row group of {max(groups):,} bytes; expected at most {LARGEST_GROUP >> 30} GiB. "
                "Write it again with smaller row groups."
            )
        check_size(self._path, self._path.stat().st_size, max(sum(groups), 4 * footer.num_rows))

    def read(self, wanted: list[str], *, lists: bool = False) -> Rows:
        chosen = self._scan.select(wanted)
        try:
            return Rows((chosen if lists else _exploded(chosen)).collect(engine="streaming"), word="row")
        except _UNREADABLE as error:
            raise self._unreadable(error) from error


def _exploded(scan: pl.LazyFrame) -> pl.LazyFrame:
    """A log with one line a user and lists of items and times, as one row an event."""
    lists = [name for name, kind in scan.collect_schema().items() if isinstance(kind, pl.List)]
    return scan.filter(pl.col(lists[0]).list.len() > 0).explode(lists) if lists else scan


class _Json:
    def __init__(self, source: Source) -> None:
        self.name, self._path = source.name, source.path
        self._sample = json_sample(source.path)
        self.columns = list(dict.fromkeys(key for found in self._sample for key in found))
        if not self.columns:
            raise InputError(
                f"{self.name} holds no JSON objects; expected one a line, like "
                '{"user_id": 1, "item_id": 2, "ts": 1700000000}. Write it so.'
            )

    def read(self, wanted: list[str], *, lists: bool = False) -> Rows:
        values = {name: tuple(found.get(name) for found in self._sample) for name in wanted}
        schema = {name: column_of(name, found).dtype for name, found in values.items()}
        frame, lines, bad = read_json_lines(self._path, wanted, schema)
        return _placed(frame, lines, bad)


class _Csv:
    def __init__(self, source: Source, layout: Layout) -> None:
        self.name, self._path = source.name, source.path
        self._header, self._quotes = layout.header, layout.quotes
        with source.path.open(encoding="utf-8-sig", errors="replace") as file:
            first = file.readline().rstrip("\r\n")
        self._separator = layout.separator or _separator(first, source.tabs)
        fields = _split(first, self._separator, self._quotes)
        self.columns = fields if self._header else [str(place) for place in range(len(fields))]
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise InputError(
                f"{self.name} has two columns named {shown(twice[0])} in its first line; expected a header with "
                "different "
                "names. Rename one, or pass --no-header if the file has no header."
            )

    def read(self, wanted: list[str], *, lists: bool = False) -> Rows:
        layout = (self._separator, self._quotes, self._header)
        frame, lines, bad = read_csv_lines(self._path, *layout, self.columns, wanted)
        return _placed(frame, lines, bad)


def _placed(frame: pl.DataFrame, lines: npt.NDArray[np.int64], bad: list[BadLine]) -> Rows:
    """Rows without their line numbers where these follow one another."""
    if len(lines) and lines[-1] - lines[0] + 1 == len(lines):
        return Rows(frame, first=int(lines[0]), bad=bad)
    return Rows(frame, lines=lines, bad=bad)


def _split(line: str, separator: str, quotes: bool) -> list[str]:
    if quotes and len(separator) == 1 and '"' in line:
        return next(csv.reader([line], delimiter=separator))
    return line.split(separator)


def _separator(first: str, tabs: bool) -> str:
    """What the first line is most often divided by."""
    if tabs:
        return "\t"
    counts = {separator: first.count(separator) for separator in SEPARATORS}
    return next((separator for separator, count in counts.items() if count > 1), max(counts, key=counts.__getitem__))
