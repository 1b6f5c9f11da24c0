"""Which column of a log is what: named, or found among well-known names."""

from __future__ import annotations

__all__ = ["NEEDED", "Columns", "ViewColumns"]

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations

from hiertcn.errors import InputError, nearest
from hiertcn.quarantine import shown
from hiertcn.tables import Table

KNOWN = {
    "user": ("user_id", "user", "uid", "visitor_id", "customer_id", "member_id", "client_id"),
    "item": (
        "item_id",
        "item",
        "iid",
        "article_id",
        "product_id",
        "movie_id",
        "track_id",
        "video_id",
        "news_id",
        "sku",
    ),
    "time": ("timestamp", "ts", "time", "created_at", "event_time", "datetime", "unix_time", "date"),
    "type": ("type", "event_type", "interaction_type", "behavior_type", "behavior", "behaviour", "event", "action"),
}
NEEDED = ("user", "item", "time")


@dataclass(frozen=True)
class Columns:
    """Which column of the log is what; None: found among well-known names (user, item, time, type) or not used.

    Files without a header have columns "0", "1", … `offset` holds milliseconds to add to `time`, `event` an id of each
    event.
    """

    user: str | None = None
    item: str | None = None
    time: str | None = None
    session: str | None = None
    type: str | None = None
    part: str | None = None
    offset: str | None = None
    event: str | None = None

    def found_in(self, table: Table, needed: Sequence[str] = NEEDED) -> Columns:
        """These columns with the well-known names of `table` filled in.

        Raises InputError where one that is needed is missing, naming the nearest.
        """
        known = {_plain(name): name for name in reversed(table.columns)}
        chosen = {
            role: next((known[_plain(n)] for n in names if _plain(n) in known), None) for role, names in KNOWN.items()
        }
        taken = {f.name: getattr(self, f.name) or chosen.get(f.name) for f in fields(self)}
        problems = [
            f"no column {name!r} for {role}{nearest(name, table.columns)}"
            for role, name in taken.items()
            if name is not None and name not in table.columns
        ]
        problems += [f"no column for {r}{_closest(KNOWN[r], table.columns)}" for r in needed if taken[r] is None]
        problems += [
            f"column {taken[role]!r} for both {role} and {other}"
            for role, other in combinations(NEEDED, 2)
            if taken[role] is not None and taken[role] == taken[other]
        ]
        if problems:
            raise InputError(
                f"{table.name} has {'; '.join(problems)}. Its columns are {shown(', '.join(table.columns))}. Name "
                f"the right ones with --user-column, --item-column, --time-column and the like.{_hint(table.columns)}"
            )
        return replace(self, **taken)

    def named(self) -> dict[str, str]:
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


@dataclass(frozen=True)
class ViewColumns:
    """Which column of a file of impressions is what; None: found among well-known names.

    item:  what was picked: an item or a list of them. Without it, what `shown` marks: "a-1 b-0" (MIND)
    shown: a list of items, or a text of them with spaces between
    """

    user: str | None = None
    item: str | None = None
    time: str | None = None
    shown: str | None = None


def _plain(name: str) -> str:
    return "".join(sign for sign in name.lower() if sign.isalnum())


def _closest(known: Sequence[str], columns: list[str]) -> str:
    return next((hint for name in known if (hint := nearest(name, columns))), "")


def _hint(columns: list[str]) -> str:
    numbers = any(name.replace(".", "").isdigit() for name in columns)
    named = columns != [str(place) for place in range(len(columns))]
    return " If the file has no header, pass --no-header and give columns as 0, 1, …" if numbers and named else ""
