"""The catalog: item ids of the user's own ↔ item rows, with titles and links for people.

Row 0 is "no item". Rows 1…size are the catalog: what the train part of the log holds, most frequent first, then what
was named beside the log. Rows above `size` are items of the log outside the catalog: known by name, never ranked.
"""

from __future__ import annotations

__all__ = ["COLUMNS", "Catalog", "Filter"]

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property, reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hiertcn.errors import ArtifactError, InputError, nearest
from hiertcn.quarantine import shown

_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
_WHOLES = re.compile(rf"{_WHOLE.pattern}(?:\n{_WHOLE.pattern})*")
COLUMNS = ("item_id", "title", "link", "train_events")
Filter = Mapping[str, str | int | Sequence[str | int]]
"""By column the value, or one of the values, that an item must have."""


class Catalog:
    """`items` has a line for each row from 1 on: item_id (string or int64), title and link (or null), train_events; and
    columns of strings or int64 that items can be chosen by."""

    def __init__(self, items: pl.DataFrame, size: int) -> None:
        missing = [c for c in COLUMNS if c not in items.columns]
        if missing or not 0 <= size <= items.height:
            raise ArtifactError(
                f"The catalog has columns {items.columns} and {items.height} lines for {size} items; expected the "
                f"columns {list(COLUMNS)} and at least as many lines. Prepare the log again."
            )
        if items["item_id"].n_unique() != items.height or items["item_id"].null_count():
            raise ArtifactError("The catalog names an item twice, or one without an id. Prepare the log again.")
        self.items = items
        self.size = size
        self._rows_by: dict[str, dict[Any, npt.NDArray[np.int64]]] = {}

    @property
    def ids(self) -> pl.Series:
        """The ids of the catalog's items, in row order."""
        return self.items["item_id"][: self.size]

    @cached_property
    def id_list(self) -> list[str | int]:
        """The same as a list."""
        return self.ids.to_list()

    @property
    def train_events(self) -> npt.NDArray[np.int64]:
        """int64 [size + 1]: events of the train part on each row; row 0 has none."""
        return np.concatenate([[0], self.items["train_events"][: self.size].to_numpy()]).astype(np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the ids and their order; two catalogs with the same one can share a model."""
        digest = hashlib.sha256(str(self.ids.dtype).encode())
        for block in self.ids.to_frame().iter_slices(1 << 16):
            digest.update("\0".join(map(str, block["item_id"].to_list())).encode())
        return digest.hexdigest()

    @cached_property
    def titles(self) -> dict[int, str]:
        """By row, of the items that have one."""
        rows = self.items[: self.size].select("title").with_row_index("row", offset=1).drop_nulls()
        return dict(rows.iter_rows())

    @cached_property
    def _texts(self) -> bool:
        return self.items["item_id"].dtype == pl.String

    @cached_property
    def _row_of(self) -> dict[Any, int]:
        return dict(zip(self.id_list, range(1, self.size + 1), strict=True))

    def row(self, item_id: str | int) -> int:
        """The row of one item, 0 where the catalog does not hold it. The id is taken in the log's own type."""
        return self._row_of.get(self.coerce(item_id), 0)

    @cached_property
    def _numbers(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """The ids of a log of integers, ascending, and their rows."""
        ids = self.ids.to_numpy()
        order = ids.argsort()
        return ids[order], (order + 1).astype(np.int32)

    def rows_of(self, item_ids: Sequence[str]) -> npt.NDArray[np.int32]:
        """int32 [len(item_ids)]: the rows of several items, each as of `row`; of a log of integers in half the time
        or less."""
        if not self._texts and self.size and _WHOLES.fullmatch("\n".join(item_ids)):
            ids, rows = self._numbers
            # An id may hold a line's end, or a number that no log can.
            with suppress(ValueError, OverflowError):
                asked = np.fromiter(map(int, item_ids), dtype=np.int64, count=len(item_ids))
                places = np.minimum(ids.searchsorted(asked), len(ids) - 1)
                return np.where(ids[places] == asked, rows[places], np.int32(0))
        return np.fromiter(map(self.row, item_ids), dtype=np.int32, count=len(item_ids))

    def coerce(self, item_id: str | int) -> str | int | None:
        """The id in the type the log has: "17" finds item 17 of a log of integers, and 17 finds "17"."""
        if self._texts:
            return str(item_id)
        # `int` takes more than a log does: "1_7", " 17 ", digits of other scripts.
        return int(item_id) if not isinstance(item_id, str) or _WHOLE.fullmatch(item_id) else None

    def typed(self, item_id: str) -> str | int:
        """An id of the log, of which the text is known, in the type the log has; one that can't be of it as it is."""
        found = self.coerce(item_id)
        return item_id if found is None else found

    def order(self, item_id: str) -> tuple[int, str]:
        """By which ids of the log's type come in the order that a log is prepared in; others come first."""
        if self._texts:
            return 0, item_id
        number = self.coerce(item_id)
        return (-(2**63) - 1, item_id) if number is None else (int(number), "")

    def rows(self, ids: pl.Series) -> npt.NDArray[np.int32]:
        """int32 [len(ids)]: rows of many items, their ids as they stand in the log; 0 for those the catalog does not
        hold."""
        table = pl.DataFrame({"id": self.ids.cast(pl.String), "row": np.arange(1, self.size + 1, dtype=np.int32)})
        found = pl.DataFrame({"id": ids.cast(pl.String)}).join(table, on="id", how="left", maintain_order="left")
        return found["row"].fill_null(0).to_numpy().astype(np.int32)

    @cached_property
    def columns(self) -> dict[str, type]:
        """By which items can be chosen, and whether they hold str or int."""
        schema = self.items.schema.items()
        return {name: str if kind == pl.String else int for name, kind in schema if name not in COLUMNS}

    def check(self, wanted: Filter) -> None:
        """Raises InputError for a column that is not there, or a value of another type than the column's."""
        for name, values in wanted.items():
            if name not in self.columns:
                has = f"the catalog has {shown(', '.join(self.columns))}" if self.columns else "the catalog keeps none"
                raise InputError(
                    f"No column {shown(name)} to filter by{nearest(name, self.columns)}; {has}. Keep columns with "
                    "`hiertcn prepare --keep-columns`."
                )
            kind = self.columns[name]
            for value in _each(values):
                if not isinstance(value, kind) or isinstance(value, bool):
                    what = "texts" if kind is str else "whole numbers"
                    raise InputError(f"The column {shown(name)} holds {what}, and never {shown(value)}. Give one.")

    def matching(self, wanted: Filter) -> npt.NDArray[np.int64]:
        """The rows, in order, whose columns all hold what is wanted of them. Raises InputError as `check`."""
        self.check(wanted)
        every, none = np.arange(1, self.size + 1), np.empty(0, dtype=np.int64)
        found = [
            np.unique(np.concatenate([none, *(self._by(name).get(value, none) for value in _each(values))]))
            for name, values in wanted.items()
        ]
        return reduce(np.intersect1d, found, every)

    def _by(self, name: str) -> dict[Any, npt.NDArray[np.int64]]:
        """The rows of each value of a column, grouped when it is first asked for."""
        if name not in self._rows_by:
            column = self.items[: self.size].select(name).with_row_index("row", offset=1).drop_nulls()
            groups = column.group_by(name).agg(pl.col("row").cast(pl.Int64))
            self._rows_by[name] = dict(zip(groups[name], map(pl.Series.to_numpy, groups["row"]), strict=True))
        return self._rows_by[name]

    @cached_property
    def _lowered(self) -> pl.DataFrame:
        return (
            self.items[: self.size]
            .select(pl.col("item_id").cast(pl.String), "title")
            .select(pl.all().str.to_lowercase().fill_null(""))
        )

    def search(self, text: str, limit: int, among: npt.NDArray[np.bool_]) -> list[int]:
        """At most `limit` rows of those that `among`, bool [size + 1], marks, of items whose id or title holds each
        word of `text`, whatever its case: the item of that very id, then by rows."""
        words = pl.select(pl.lit(text).str.to_lowercase()).item().split()
        held = [pl.any_horizontal(pl.all().str.contains(word, literal=True)) for word in words]
        shown = self._lowered.select(pl.all_horizontal(pl.col("item_id").is_not_null(), *held)).to_series()
        rows = shown.arg_true().to_numpy() + 1
        rows = rows[among[rows]]
        own = self.row(text.strip())
        first = [own] if own and among[own] else []
        return list(dict.fromkeys([*first, *rows[:limit].tolist()]))[:limit]

    def title(self, row: int) -> str | None:
        title: str | None = self.items["title"][row - 1]
        return title


def _each(values: str | int | Sequence[str | int]) -> Sequence[str | int]:
    return [values] if isinstance(values, str | int) else values
