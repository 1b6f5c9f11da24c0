"""`prepare`: a log → filters → split → sessions → the cache on disk."""

from __future__ import annotations

__all__ = ["Columns", "PrepareConfig", "prepare", "preset_names"]

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hiertcn.cache import Cache, Manifest, write_cache
from hiertcn.catalog import COLUMNS, Catalog
from hiertcn.columns import Columns, ViewColumns
from hiertcn.errors import InputError, nearest
from hiertcn.events import Events, read_events
from hiertcn.filters import filtered
from hiertcn.forgotten import read_forgotten, without_forgotten
from hiertcn.impressions import join_views, read_views
from hiertcn.itemlist import ItemList, read_items
from hiertcn.notices import say_read, say_split, say_vectors, say_written
from hiertcn.options import PrepareConfig, prepare_config, preset_names
from hiertcn.quarantine import EXAMPLES, shown
from hiertcn.sessions import Sessions, sessionize
from hiertcn.splits import by_last, by_names, by_time, by_users, described, quantile_cuts
from hiertcn.tables import Layout
from hiertcn.times import iso, parse_time
from hiertcn.vectors import write_vectors

Offsets = npt.NDArray[np.int64]


def prepare(
    log: str | Path | Sequence[str | Path] | pl.DataFrame,
    out: str | Path,
    *,
    catalog: str | Path | None = None,
    vectors: str | Path | None = None,
    vector_column: str | None = None,
    keep_columns: str | Sequence[str] | None = None,
    impressions: str | Path | None = None,
    forgotten: str | Path | None = None,
    preset: str | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
    **options: Any,
) -> Cache:
    """Prepare a log (a file, several, a folder, a glob, or a frame) into a cache at `out`.

    `catalog` names items for people, and may hold their vectors: in the column `vector_column` (found if it has a usual
    name), or in the file `vectors` (.npy or safetensors), a row for each line. Of its other columns those of
    `keep_columns`, texts or whole numbers, are kept, so that recommendations can be filtered by them. `impressions` is
    a file of what was shown when an item was picked; the log's own list of that is the option impression_column.
    Of users who are in the file `forgotten`, as `GET /v1/forgotten` tells them, earlier events are left out.
    `preset` fills in options for a known public set; `report` is told, line by line, what was found and done; `options`
    are those of PrepareConfig, and user_column, item_column, time_column, session_column, type_column, offset_column.
    The shards do not depend on the order of rows in the log.

    Raises InputError for anything in the log or the options that can't be used, StorageError when the disk refuses.
    """
    say = report or (lambda line: None)
    config, note = prepare_config(preset, options)
    out = Path(out)
    _check_place(out, overwrite)
    if note:
        say(note)
    events = read_events(
        log,
        config.columns,
        config.layout,
        time_unit=config.time_unit,
        tz=config.tz,
        max_bad_rows=config.max_bad_rows,
        keep_duplicates=config.keep_duplicates,
    )
    say_read(say, events)
    views = _views(log, impressions, config, events.columns)
    if catalog is None and (vectors or vector_column or keep_columns):
        what = "Vectors were" if vectors or vector_column else "Columns to keep were"
        raise InputError(f"{what} given without a catalog that says of which items they are. Give --catalog, too.")
    kept = keep_columns.split(",") if isinstance(keep_columns, str) else keep_columns or ()
    listed = None if catalog is None else read_items(catalog, events.item_ids.dtype, vectors, vector_column, kept)
    items = None if listed is None else listed.items
    given = None if listed is None else listed.vectors
    if given is not None:
        say(f"vectors: {given.lines:,} of size {given.dim}, {given.dtype}, from {given.name}")
    named = None if items is None else events.item_ids.is_in(items["item_id"].implode())
    config = _with_policy(config, given is not None)
    if named is not None and config.unknown_items == "error":
        _refuse_unknown(events, named)
    for name in config.drop_types:
        if name not in events.names.get("type", [name]):
            known = [known for known in events.names["type"] if known]
            has = shown(", ".join(known))
            say(f"warning: no event is of type {shown(name)}{nearest(name, known)}; the log has {has}")
    left = events if forgotten is None else without_forgotten(events, read_forgotten(forgotten))
    frame, waterfall = filtered(events, left, config, named)
    for step in waterfall.steps:
        say(f"  {step['events']:>13,} events {step['users']:>11,} users {step['items']:>10,} items   {step['step']}")
    waterfall.check()
    offsets = _runs(frame["user"].to_numpy())
    users = events.user_ids.gather(frame["user"].gather(offsets[:-1]))
    times = frame["time"].to_numpy()
    parts, split = _split(config, events, frame, users, offsets)
    say_split(say, parts, split)
    built = _catalog(events.item_ids, frame["item"].to_numpy(), parts, items, config.unknown_items == "outside")
    say_vectors(say, listed, split)
    if config.unknown_items == "outside" and not built.train_events.any():
        raise InputError(
            f"No train event is on one of the {built.size:,} items of the catalog given, such as "
            f"{shown(built.ids.head(EXAMPLES).to_list())}. Give the ids as they stand in the log."
        )
    rows = _rows_of(events.item_ids, built)[frame["item"].to_numpy()]
    keys = frame["session"].to_numpy() if "session" in frame.columns else None
    session_offsets = sessionize(offsets, times, config.session_gap, config.max_session_events, keys)
    manifest = Manifest(
        session_gap=config.session_gap,
        max_session_events=config.max_session_events,
        split=split,
        time_form=events.time_form,
        waterfall=waterfall.steps,
        sources=_sources(events, config, preset),
    )
    user_offsets = np.searchsorted(session_offsets, offsets).astype(np.int64)
    whole = Sessions(rows, times, parts, session_offsets, user_offsets)
    if views is not None:
        window = config.impression_window if impressions is not None else 0.0
        joined = join_views(frame, events.user_ids, events.item_ids, built.ids, rows, views, window, config.seed)
        whole = replace(whole, shown=joined.items, shown_offsets=joined.offsets)
        with_any = int((np.diff(joined.offsets) > 0).sum())
        say(f"impressions: {views.height:,} picks of views; {with_any:,} of {frame.height:,} events have some")
    del frame, rows
    cache = write_cache(out, manifest, built, _shards(users, whole, config.events_per_shard), _placed(built, listed))
    say_written(say, cache, whole)
    return cache


def _views(log: Any, impressions: str | Path | None, config: PrepareConfig, columns: Columns) -> pl.DataFrame | None:
    if impressions is not None and config.impression_column is not None:
        raise InputError("Impressions were given twice, in a file and in a column of the log. Choose one.")
    if impressions is not None:
        # A file of its own has a layout of its own; columns that are numbers say that it has no header.
        named = [name for name in vars(config.impression_columns).values() if name]
        header = not any(name.isdigit() for name in named)
        return read_views(impressions, config.impression_columns, Layout(header=header), None, config.tz)
    if config.impression_column is None:
        return None
    if columns.offset is not None:
        raise InputError(
            "impression_column can't be joined where an offset is added to times. Give a file of impressions."
        )
    own = ViewColumns(columns.user, columns.item, columns.time, config.impression_column)
    return read_views(log, own, config.layout, config.time_unit, config.tz)


def _with_policy(config: PrepareConfig, vectors: bool) -> PrepareConfig:
    """The config with a policy for items of the log that are not listed. Where items have vectors, all need one."""
    if vectors and config.unknown_items == "train":
        raise InputError(
            "unknown_items is 'train', but the catalog gives vectors, and an item outside it has none. Choose outside, "
            "drop or error, or leave the vectors out."
        )
    return config.model_copy(update={"unknown_items": config.unknown_items or ("outside" if vectors else "train")})


def _placed(built: Catalog, listed: ItemList | None) -> Callable[[Path], None] | None:
    """What writes the table of vectors, in the order of item rows."""
    if listed is None or listed.vectors is None:
        return None
    given, ids = listed.vectors, listed.items["item_id"]
    return lambda path: write_vectors(path, given, ids, built.rows(ids).astype(np.int64), built.size + 1)


def _runs(codes: npt.NDArray[np.uint32]) -> Offsets:
    """Offsets [U+1] of the runs of equal codes."""
    return np.concatenate([[0], np.flatnonzero(codes[1:] != codes[:-1]) + 1, [len(codes)]]).astype(np.int64)


def _shards(users: pl.Series, whole: Sessions, events_per_shard: int) -> Iterator[tuple[pl.Series, Sessions]]:
    """Whole users, about `events_per_shard` events at a time."""
    begins = whole.event_offsets[:-1] // events_per_shard
    bounds = np.append(np.flatnonzero(np.diff(begins, prepend=-1)), len(users))
    for first, last in pairwise(bounds.tolist()):
        yield users[first:last], whole.users(first, last)


def _check_place(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    kinds = (".json", ".arrow", ".npy")
    is_cache = (out / "manifest.json").is_file() and all(file.suffix in kinds for file in out.iterdir())
    if not is_cache:
        raise InputError(f"{shown(str(out))} is there and is no cache; expected a new folder. Choose another --out.")
    if not overwrite:
        raise InputError(
            f"{shown(str(out))} is a cache already. Choose another --out, or pass --overwrite to replace it."
        )


def _refuse_unknown(events: Events, named: pl.Series) -> None:
    used = pl.Series(np.bincount(events.frame["item"].to_numpy(), minlength=len(events.item_ids)) > 0)
    unknown = events.item_ids.filter(used & ~named)
    if len(unknown):
        raise InputError(
            f"{len(unknown):,} items of the log are not in the catalog given, such as "
            f"{shown(unknown.head(EXAMPLES).to_list())}. Add them to it, or choose --unknown-items train or drop."
        )


def _split(
    config: PrepareConfig, events: Events, frame: pl.DataFrame, users: pl.Series, offsets: Offsets
) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
    times = frame["time"].to_numpy()
    shares = {"fractions": list(config.fractions)}
    how: dict[str, Any]
    if config.split == "time":
        if config.cuts is None:
            cuts, how = quantile_cuts(times, config.fractions), shares
        else:
            first, second = (parse_time(cut, events.time_form, config.tz) for cut in config.cuts)
            cuts, how = (first, second), {}
        if cuts[0] > cuts[1]:
            raise InputError(
                f"The cuts {iso(cuts[0])} and {iso(cuts[1])} are the wrong way round; give the earlier one first."
            )
        parts, how = by_time(times, cuts), {**how, "cuts": [iso(cut) for cut in cuts]}
    elif config.split == "users":
        mine = by_users(users, config.fractions, config.seed)
        parts, how = np.repeat(mine, np.diff(offsets)), {**shares, "seed": config.seed}
    elif config.split == "last":
        parts, how = by_last(offsets, config.fractions), shares
    else:
        column = config.split.removeprefix("column:")
        parts, how = by_names(frame["part"].to_numpy(), events.names["part"], column), {"column": column}
    if not (parts == 0).any():
        raise InputError(
            f"The train part is empty: the events lie from {iso(times.min())} to {iso(times.max())} and split "
            f"{config.split!r} gives none of the {len(times):,} to it. Choose other cuts, fractions or another --split."
        )
    return parts, described(config.split.partition(":")[0], parts, times, **how)


def _catalog(
    item_ids: pl.Series,
    codes: npt.NDArray[np.uint32],
    parts: npt.NDArray[np.uint8],
    items: pl.DataFrame | None,
    named_only: bool,
) -> Catalog:
    """Items of the train part, most frequent first, ties by id; then those of `items`; then, outside, the others. With
    `named_only`, items of the train part that are not among `items` are outside, too."""
    counts = np.bincount(codes[parts == 0], minlength=len(item_ids))
    trained = pl.DataFrame({"item_id": item_ids, "train_events": counts}).filter(pl.col("train_events") > 0)
    if named_only and items is not None:
        trained = trained.join(items.select("item_id"), on="item_id", how="semi")
    ordered = trained.sort("train_events", "item_id", descending=[True, False])
    named = pl.DataFrame({"item_id": item_ids[:0]}) if items is None else items.select("item_id").sort("item_id")
    seen = item_ids.filter(pl.Series(np.bincount(codes, minlength=len(item_ids)) > 0)).to_frame("item_id")
    inside = pl.concat([ordered, named.join(ordered, on="item_id", how="anti", maintain_order="left")], how="diagonal")
    whole = pl.concat([inside, seen.join(inside, on="item_id", how="anti", maintain_order="left")], how="diagonal")
    whole = whole.with_columns(pl.col("train_events").fill_null(0))
    if items is None:
        whole = whole.with_columns(pl.lit(None, pl.String).alias("title"), pl.lit(None, pl.String).alias("link"))
    else:
        whole = whole.join(items, on="item_id", how="left", maintain_order="left")
    kept = [] if items is None else [name for name in items.columns if name not in COLUMNS]
    return Catalog(whole.select(*COLUMNS, *kept), inside.height)


def _rows_of(item_ids: pl.Series, catalog: Catalog) -> npt.NDArray[np.int32]:
    """int32 [I]: the row of each item of the log, inside the catalog or outside; 0 for items that no kept event has."""
    rows = catalog.items.select("item_id").with_row_index("row", 1)
    found = item_ids.to_frame("item_id").join(rows, on="item_id", how="left", maintain_order="left")
    return found["row"].fill_null(0).cast(pl.Int32).to_numpy()


def _sources(events: Events, config: PrepareConfig, preset: str | None) -> dict[str, Any]:
    return {
        "files": events.files,
        "rows": events.quarantine.read,
        "quarantined": events.quarantine.record(),
        "duplicates": events.duplicates,
        "columns": events.columns.named(),
        "times": events.time_stated,
        "preset": preset,
        "options": config.model_dump(mode="json"),
    }
