"""What `prepare` can be told: options with their allowed ranges, and presets of them for public sets."""

from __future__ import annotations

__all__ = ["PrepareConfig", "prepare_config", "preset_names"]

import tomllib
from dataclasses import fields
from functools import cache
from importlib import resources
from typing import Annotated, Any, Literal, Self

import polars as pl
from pydantic import AfterValidator, Field, model_validator

from hiertcn.columns import Columns, ViewColumns
from hiertcn.config import Config, Count
from hiertcn.errors import InputError, nearest
from hiertcn.quarantine import shown
from hiertcn.tables import Layout

SPLITS = ("time", "users", "last")


def _known_zone(tz: str) -> str:
    try:
        pl.Series([0], dtype=pl.Datetime("us")).dt.replace_time_zone(tz)
    except pl.exceptions.PolarsError:
        raise ValueError("should be a time zone such as UTC or Europe/Copenhagen") from None
    return tz


def _known_split(split: str) -> str:
    if split not in SPLITS and split.removeprefix("column:") in ("", split):
        raise ValueError(f"should be time, users, last or column:NAME{nearest(split, SPLITS)}")
    return split


def _whole(fractions: tuple[float, float, float]) -> tuple[float, float, float]:
    if not (fractions[0] > 0 and min(fractions) >= 0 and abs(sum(fractions) - 1) < 1e-6):
        raise ValueError("should be three numbers from 0 to 1 that sum to 1, the first above 0")
    return fractions


class PrepareConfig(Config):
    """How a log becomes a cache. Raises InputError naming every value out of range.

    columns:          which column is what
    session_gap:      seconds; a gap of at least this begins a new session (not with a session column)
    max_session_events: a session of more is cut after every so many
    header, separator, quotes: the layout of text files
    time_unit:        s, ms, us or ns; None: found by range
    tz:               the zone of times that have none
    drop_types:       event types to leave out
    min_item_events, min_user_events, max_user_events: items and users with fewer or more events are left out
    cap_user_events:  of a user with more events the last so many are kept
    split:            time, users, last, or column:NAME
    fractions, cuts:  the shares of train, valid and test; or, for time, the two times where valid and test begin
    seed:             of the split by users
    unknown_items:    items of the log that the given catalog does not name: train on them, leave them outside the
                      catalog, drop their events before the split, or error; None: train, or outside where the catalog
                      has vectors
    impression_column: the column of the log that lists what was shown when its item was picked
    impression_columns, impression_window: of a file of impressions: which column is what, and the most seconds from a
                      view to the event it led to
    max_bad_rows:     the fraction of rows that may be unusable
    keep_duplicates:  keep rows with the same user, item, time and type
    events_per_shard: about how many events a file of the cache holds; users stay whole
    """

    columns: Columns = Columns()
    session_gap: Annotated[float, Field(gt=0, le=1e9)] = 1800.0
    max_session_events: Count = 1000
    header: bool = True
    separator: Annotated[str, Field(min_length=1, max_length=2)] | None = None
    quotes: bool = True
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    tz: Annotated[str, AfterValidator(_known_zone)] | None = None
    drop_types: tuple[str, ...] = ()
    min_item_events: Count = 1
    min_user_events: Count = 2
    max_user_events: Count | None = None
    cap_user_events: Annotated[int, Field(ge=2)] = 100_000
    split: Annotated[str, AfterValidator(_known_split)] = "last"
    fractions: Annotated[tuple[float, float, float], AfterValidator(_whole)] = (0.8, 0.1, 0.1)
    cuts: tuple[str | float, str | float] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    impression_column: str | None = None
    impression_columns: ViewColumns = ViewColumns()
    impression_window: Annotated[float, Field(ge=0, le=1e9)] = 600.0
    unknown_items: Literal["train", "outside", "drop", "error"] | None = None
    max_bad_rows: Annotated[float, Field(ge=0, le=1)] = 0.001
    keep_duplicates: bool = False
    events_per_shard: Annotated[int, Field(ge=1, le=1_000_000_000)] = 4_000_000

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.cuts is not None and self.split != "time":
            raise ValueError(f"cuts are for split 'time', not for {self.split!r}")
        if self.max_user_events is not None and self.max_user_events < self.min_user_events:
            raise ValueError(f"max_user_events should be at least min_user_events, {self.min_user_events}")
        return self

    @property
    def layout(self) -> Layout:
        return Layout(self.header, self.separator, self.quotes)


@cache
def _presets() -> dict[str, dict[str, Any]]:
    return tomllib.loads(resources.files("hiertcn").joinpath("presets.toml").read_text(encoding="utf-8"))


def preset_names() -> list[str]:
    """The names that `prepare_config` knows presets by."""
    return list(_presets())


def _view_columns(given: str) -> ViewColumns:
    """Of a text such as "item=clicked,shown=inview"."""
    named = dict(part.split("=", 1) for part in _parts(given) if "=" in part)
    roles = [f.name for f in fields(ViewColumns)]
    if len(named) != len(_parts(given)) or set(named) - set(roles):
        raise InputError(
            f"impression_columns is {shown(given)}; expected some of {', '.join(f'{role}=NAME' for role in roles)}, "
            "with commas between."
        )
    return ViewColumns(**named)


def _parts(given: Any) -> list[Any]:
    return [part.strip() for part in given.split(",")] if isinstance(given, str) else list(given)


def _number(part: Any) -> Any:
    """A text that is a number as one; other things as text, for what is to check them."""
    if isinstance(part, int | float):
        return part
    return float(part) if str(part).lstrip("-").replace(".", "", 1).isdigit() else str(part)


def prepare_config(preset: str | None, options: dict[str, Any]) -> tuple[PrepareConfig, str | None]:
    """The config of flat options (`user_column=…`) over those of a preset, and what is to be known of the preset.

    Options that are None are as if not given. Raises InputError for an unknown name, with the nearest known one.
    """
    presets = _presets()
    if preset is not None and preset not in presets:
        raise InputError(
            f"No preset {shown(preset)}{nearest(preset, presets)}; expected one of {', '.join(presets)}. "
            "Choose one of these, or name the columns yourself."
        )
    given = dict(presets[preset]) if preset else {}
    note = given.pop("note", None)
    given |= {name: value for name, value in options.items() if value is not None}
    roles = {f"{f.name}_column": f.name for f in fields(Columns) if f.name not in ("part", "event")}
    known = [*(name for name in PrepareConfig.model_fields if name != "columns"), *roles]
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise InputError(
            f"No option {shown(unknown)}{nearest(unknown, known)}; expected some of {', '.join(known)}. Correct the "
            "name."
        )
    columns = {roles[name]: str(given.pop(name)) for name in list(given) if name in roles}
    if str(given.get("split", "")).startswith("column:"):
        columns["part"] = given["split"].removeprefix("column:")
    if isinstance(views := given.get("impression_columns"), str):
        given["impression_columns"] = _view_columns(views)
    given["drop_types"] = tuple(map(str, _parts(given.get("drop_types", ()))))
    given |= {name: tuple(map(_number, _parts(given[name]))) for name in ("fractions", "cuts") if name in given}
    return PrepareConfig(columns=Columns(**columns), **given), note
