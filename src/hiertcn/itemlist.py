"""The list of items that a person gives beside the log: ids, titles and links for people, vectors, and columns to
choose items by."""

from __future__ import annotations

__all__ = ["MADE_OF", "ItemList", "read_items"]

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow.parquet as pq

from hiertcn.catalog import COLUMNS
from hiertcn.errors import InputError, nearest
from hiertcn.quarantine import EXAMPLES, shown
from hiertcn.sources import Source, find_sources, unpacked
from hiertcn.tables import Layout, Table, open_table
from hiertcn.vectors import GivenVectors, find_vector_column, read_vectors

MADE_OF = "hiertcn.made_of"
_KNOWN = {
    "item_id": ("item_id", "id", "item", "itemid", "article_id", "product_id", "movie_id", "movieid", "sku"),
    "title": ("title", "name"),
    "link": ("link", "url", "image", "image_url", "image_link", "thumbnail"),
}


class ItemList(NamedTuple):
    """A line an item: item_id, title and link (strings, null if not given), the columns kept; and their vectors, line
    by line."""

    items: pl.DataFrame
    vectors: GivenVectors | None
    made_of: dict[str, Any] | None = None
    """The split of the log that the vectors were made of, where `hiertcn embed` wrote the list."""


def read_items(
    path: str | Path,
    kind: pl.DataType,
    vectors: str | Path | None = None,
    vector_column: str | None = None,
    kept: Sequence[str] = (),
) -> ItemList:
    """The items of a list, with ids of `kind`, the type of the log's, and the columns `kept`.

    Reads Parquet, CSV, TSV or JSON lines, with a header. Vectors are in a column of a Parquet list, or in the file
    `vectors`, a row for each line. Raises InputError for a list without ids, with an id missing or twice, with ids that
    the log's type can't hold, for a column to keep that is not there or of neither text nor whole numbers, or for
    vectors that can't be read.
    """
    with unpacked(find_sources(path)) as sources:
        tables = [open_table(source, Layout()) for source in sources]
        frames = []
        for table in tables:
            lower = {name.lower(): name for name in reversed(table.columns)}
            chosen = {role: next((lower[n] for n in names if n in lower), None) for role, names in _KNOWN.items()}
            if chosen["item_id"] is None:
                raise InputError(
                    f"{table.name} has no column of item ids{nearest('item_id', table.columns)}; its columns are "
                    f"{shown(', '.join(table.columns))}. Name one of them item_id."
                )
            _check_kept(kept, table)
            rows = table.read(
                list(dict.fromkeys([*(name for name in chosen.values() if name), *kept])), lists=bool(kept)
            )
            if rows.bad:
                bad = rows.bad[0]
                raise InputError(
                    f"{table.name} line {bad.line} is no row ({bad.reason}): {shown(bad.text)}. Expected every line "
                    "to name an "
                    "item; mend it."
                )
            texts = {
                role: name
                for role, name in chosen.items()
                if name and (role == "item_id" or rows.frame[name].dtype == pl.String)
            }
            frames.append(
                rows.frame.select(
                    *(
                        (pl.col(texts[role]) if role in texts else pl.lit(None, pl.String)).alias(role)
                        for role in _KNOWN
                    ),
                    *(_kept(rows.frame[name], table.name) for name in kept),
                )
            )
        column = None if vectors is not None else find_vector_column(sources, vector_column)
        made_of = _made_of(sources[0]) if column else None
        given = read_vectors(sources, column) if column else None if vectors is None else read_vectors(Path(vectors))
    for name in kept:
        if len({frame[name].dtype for frame in frames}) > 1:
            raise InputError(
                f"The column {shown(name)} is text in one file of {path} and not in another. Write it alike."
            )
    items = pl.concat(frames, how="vertical_relaxed")
    return ItemList(items.with_columns(_ids(items["item_id"], kind, str(path))), given, made_of)


def _made_of(source: Source) -> dict[str, Any] | None:
    stated = (pq.read_schema(source.path).metadata or {}).get(MADE_OF.encode())
    try:
        found = json.loads(stated or b"null")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _check_kept(kept: Sequence[str], table: Table) -> None:
    for name in kept:
        if name in COLUMNS:
            raise InputError(f"A column to keep is named {name}, which is one of the catalog's own. Rename it.")
        if name not in table.columns:
            raise InputError(
                f"{table.name} has no column {shown(name)} to keep{nearest(name, table.columns)}; its columns are "
                f"{shown(', '.join(table.columns))}. Add it, or name another."
            )


def _kept(column: pl.Series, name: str) -> pl.Series:
    if column.dtype in (pl.Categorical, pl.Enum):
        return column.cast(pl.String)
    if column.dtype != pl.String and (not column.dtype.is_integer() or column.dtype == pl.UInt64):
        raise InputError(
            f"The column {shown(column.name)} of {name} is of type {column.dtype}; expected text or whole numbers "
            "of 64 bits, to choose items by. Write it as such, or keep another."
        )
    return column if column.dtype == pl.String else column.cast(pl.Int64)


def _ids(raw: pl.Series, kind: pl.DataType, name: str) -> pl.Series:
    if not (raw.dtype == pl.String or raw.dtype.is_integer()):
        raise InputError(
            f"The item ids of {name} are of type {raw.dtype}; expected strings or integers. Write them as such."
        )
    ids = raw.cast(kind, strict=False)
    lost = raw.filter(ids.is_null())
    if len(lost):
        raise InputError(
            f"{len(lost):,} item ids of {name} are missing or not {'integers' if kind.is_integer() else 'text'} like "
            "the ids of "
            f"the log, such as {shown(lost.head(EXAMPLES).to_list())}. Give every item the id that the log has for it."
        )
    twice = ids.filter(ids.is_duplicated()).unique().sort()
    if len(twice):
        raise InputError(
            f"{len(twice):,} item ids of {name} are there more than once, such as "
            f"{shown(twice.head(EXAMPLES).to_list())}. "
            "Keep one line for each item."
        )
    return ids
