"""What was shown to a person when an item was picked: read from a file, joined to the events of a log.

Legend: N events, V views (rows of the file, one for each item picked of it), S items shown.
"""

from __future__ import annotations

__all__ = ["MOST", "Shown", "join_views", "read_views"]

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from hiertcn.columns import ViewColumns
from hiertcn.errors import InputError, nearest
from hiertcn.quarantine import shown as told
from hiertcn.sessions import SECOND
from hiertcn.sources import find_sources, unpacked
from hiertcn.tables import Layout, open_table
from hiertcn.times import iso, read_times

MOST = 20
_KNOWN = {
    "user": ("user_id", "user", "uid", "visitor_id", "customer_id"),
    "item": ("clicked", "picked", "item_ids_clicked", "article_ids_clicked", "item_id", "item", "article_id"),
    "time": ("impression_time", "imp_ts", "view_time", "timestamp", "ts", "time"),
    "shown": ("shown", "impressions", "inview", "item_ids_inview", "article_ids_inview", "neg_item_ids", "negatives"),
}
_CLOCK = "%m/%d/%Y %I:%M:%S %p"


@dataclass(frozen=True)
class Shown:
    """Of N events what was shown beside the item picked: `items` [offsets[i]:offsets[i + 1]] for event i."""

    items: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]


def read_views(
    given: str | Path | Sequence[str | Path] | pl.DataFrame,
    columns: ViewColumns,
    layout: Layout,
    unit: str | None = None,
    tz: str | None = None,
) -> pl.DataFrame:
    """A line for each item picked: user, item (as in the file), time (int64 microseconds) and shown (a list).

    Raises InputError where a column is missing, or times have no zone and `tz` is None.
    """
    with unpacked([] if isinstance(given, pl.DataFrame) else find_sources(given)) as sources:
        read = []
        for source in [given] if isinstance(given, pl.DataFrame) else sources:
            table = open_table(source, layout)
            chosen = _chosen(columns, table.columns, table.name)
            frame = table.read(list(dict.fromkeys(chosen.values())), lists=True).frame
            read.append(frame.select(pl.col(name).alias(role) for role, name in chosen.items()))
        views = pl.concat(read, how="vertical_relaxed")
    views = views.with_columns(_listed(views[role]) for role in ("item", "shown") if role in views.columns)
    if views["shown"].dtype == pl.String:
        views = views.with_columns(pl.col("shown").str.split(" "))
    if not isinstance(views["shown"].dtype, pl.List):
        raise InputError(
            f"The column of items shown is of type {views['shown'].dtype}; expected a list, or a text with spaces "
            "between items. Choose another with --impression-columns shown=NAME."
        )
    if "item" not in views.columns:
        views = _marked(views)
    elif isinstance(views["item"].dtype, pl.List):
        others = pl.col("shown").list.set_difference("item") if views["shown"].dtype == views["item"].dtype else "shown"
        views = views.filter(pl.col("item").list.len() > 0).with_columns(shown=others).explode("item")
    if not views.height:
        return views.with_columns(pl.col("time").cast(pl.Int64, strict=False))
    raw = views["time"]
    if raw.dtype == pl.String and (clock := raw.str.to_datetime(_CLOCK, strict=False)).null_count() == raw.null_count():
        raw = clock
    times = read_times(raw.alias("time"), unit, tz)
    return views.with_columns(times.values.alias("time")).drop_nulls(["user", "item", "time"])


def _listed(values: pl.Series) -> pl.Series:
    """JSON lists in texts as lists of texts; anything else as it is."""
    if values.dtype != pl.String or not values.drop_nulls().str.starts_with("[").all() or not values.count():
        return values
    try:
        read = [None if text is None else [str(item) for item in json.loads(text)] for text in values.to_list()]
    except ValueError as error:
        wrong = next(text for text in values.drop_nulls().to_list() if not _is_json(text))
        raise InputError(
            f"The impressions hold {told(wrong)} ({error}); expected lists such as [1, 2]. Mend the file."
        ) from error
    return pl.Series(values.name, read, pl.List(pl.String))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _chosen(columns: ViewColumns, known: list[str], name: str) -> dict[str, str]:
    lower = {column.lower(): column for column in reversed(known)}
    chosen = {}
    for field in fields(columns):
        role, wanted = field.name, getattr(columns, field.name)
        found = wanted or next((lower[one] for one in _KNOWN[role] if one in lower), None)
        if found is None and role == "item":
            continue
        if found not in known:
            raise InputError(
                f"{name} has no column of impressions for {role}{nearest(wanted or role, known)}; its columns are "
                f"{told(', '.join(known))}. Name it with --impression-columns {role}=NAME."
            )
        chosen[role] = found
    return chosen


def _marked(views: pl.DataFrame) -> pl.DataFrame:
    """Views whose items say themselves whether they were picked: "a-1", or not: "b-0"."""
    marks = views["shown"].explode().drop_nulls()
    if not marks.cast(pl.String).str.contains("-[01]$").all():
        raise InputError(
            "The impressions have no column of what was picked, and the items shown are not marked with -1 or -0, such "
            f"as {told(marks.head(3).to_list())}. Name the column with --impression-columns item=NAME."
        )
    picked = pl.col("shown").list.eval(pl.element().filter(pl.element().str.ends_with("-1")).str.head(-2))
    bare = pl.col("shown").list.eval(pl.element().str.head(-2))
    bare = bare.list.set_difference(picked)
    return views.with_columns(picked.alias("item"), bare.alias("shown")).explode("item")


def join_views(
    events: pl.DataFrame,
    user_ids: pl.Series,
    item_ids: pl.Series,
    catalog_ids: pl.Series,
    rows: npt.NDArray[np.int32],
    views: pl.DataFrame,
    window: float,
    seed: int,
) -> Shown:
    """What was shown before each event: the user's latest view in which the item was picked, at most `window` seconds
    earlier. The item itself and items outside the catalog are left out, and of more than MOST a part is drawn.

    events:      [N] with user, item (codes into `user_ids`, `item_ids`) and time (microseconds)
    catalog_ids: of item rows 1, 2, …        rows: int32 [N], the item row of each event
    """
    coded = views.with_row_index("view")
    for role, ids in (("user", user_ids), ("item", item_ids)):
        table = pl.DataFrame({role: ids.cast(pl.String), f"{role}_code": np.arange(len(ids), dtype=np.uint32)})
        coded = coded.with_columns(pl.col(role).cast(pl.String)).join(table, on=role, how="inner")
    coded = coded.select(pl.col("user_code").alias("user"), pl.col("item_code").alias("item"), "time", "view")
    asked = events.select("user", "item", "time").with_row_index("event")
    found = asked.sort("time").join_asof(
        coded.sort("time", "view"),
        on="time",
        by=["user", "item"],
        strategy="backward",
        tolerance=int(window * SECOND),
        check_sortedness=False,
    )
    pairs = found.filter(pl.col("view").is_not_null()).select("event", "view")
    if views.height and not len(pairs):
        first = views.row(0, named=True)
        raise InputError(
            f"None of {views.height:,} picks of views is an event of the log. The first is of user "
            f"{told(first['user'])} on item {told(first['item'])} at {iso(first['time'])}; the log has users "
            f"such as {told(user_ids.head(3).to_list())}, items {told(item_ids.head(3).to_list())}, times from "
            f"{iso(events['time'].to_numpy().min())}. Check the columns of impressions, --tz and --impression-window."
        )
    listed = views.select("shown").with_row_index("view").join(pairs, on="view", how="inner").explode("shown")
    table = pl.DataFrame(
        {"shown": catalog_ids.cast(pl.String), "row": np.arange(1, len(catalog_ids) + 1, dtype=np.int32)}
    )
    listed = listed.with_columns(pl.col("shown").cast(pl.String)).join(table, on="shown", how="inner")
    listed = listed.unique(["event", "row"]).sort("event", "row")
    event, row = listed["event"].to_numpy().astype(np.int64), listed["row"].to_numpy()
    event, row = event[row != rows[event]], row[row != rows[event]]
    kept = _drawn(event, seed)
    counts = np.bincount(event[kept], minlength=events.height)
    return Shown(row[kept], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def _drawn(event: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Places, in order, of at most MOST of each event's items; `event` [S] ascends."""
    by_chance = np.lexsort((np.random.default_rng(seed).random(len(event)), event))
    begins = np.searchsorted(event, event)
    return np.sort(by_chance[np.arange(len(event)) - begins < MOST])
