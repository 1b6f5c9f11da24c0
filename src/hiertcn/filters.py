"""Filters of a log's events, and the waterfall of what each of them left."""

from __future__ import annotations

__all__ = ["Waterfall", "filtered", "without_types"]

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from hiertcn.errors import InputError
from hiertcn.events import Events
from hiertcn.options import PrepareConfig


@dataclass
class Waterfall:
    """Counts after each step. `steps` holds {step, events, users, items, dropped_events}."""

    steps: list[dict[str, Any]] = field(default_factory=list)

    def add(self, step: str, frame: pl.DataFrame) -> None:
        """Count what is left of `frame` [N] after `step`. Raises InputError, with all numbers, when nothing is."""
        before = self.steps[-1]["events"] if self.steps else frame.height
        self.steps.append(
            {
                "step": step,
                "events": frame.height,
                "users": int(np.count_nonzero(_counts(frame["user"]))),
                "items": int(np.count_nonzero(_counts(frame["item"]))),
                "dropped_events": before - frame.height,
            }
        )
        if not frame.height:
            raise InputError(f"No event is left after: {self}. Loosen the filter of the last step.")

    def check(self) -> None:
        """Raise InputError if what the last step left has nothing to predict."""
        left = self.steps[-1]
        if left["users"] < 2 or left["items"] < 2:
            raise InputError(
                f"Nothing to predict: {left['events']:,} events of {left['users']:,} user(s) on {left['items']:,} "
                "item(s); expected at least two of each. Check the columns of users and items, and the filters."
            )

    def __str__(self) -> str:
        return "; ".join(
            f"{s['step']}: {s['events']:,} events, {s['users']:,} users, {s['items']:,} items" for s in self.steps
        )


def filtered(
    events: Events, remembered: Events, config: PrepareConfig, named: pl.Series | None
) -> tuple[pl.DataFrame, Waterfall]:
    """The events that pass types, unknown items, items, users and cap, once and in this order.

    Users and items are counted over what the step before left. `remembered`: those that are not to be forgotten;
    `named`: bool [I], the items that a given catalog names.
    """
    frame, waterfall = remembered.frame, Waterfall()
    waterfall.add("as read, usable, without duplicates", events.frame)
    waterfall.check()
    if remembered is not events:
        waterfall.add("without what was to be forgotten", frame)
    if config.drop_types:
        frame = without_types(remembered, config.drop_types)
        waterfall.add(f"without types {', '.join(config.drop_types)}", frame)
    if named is not None and config.unknown_items == "drop":
        frame = _keep(frame, named.gather(frame["item"]))
        waterfall.add("on items of the catalog given", frame)
    if config.min_item_events > 1:
        frame = _keep(frame, pl.Series(_counts(frame["item"]) >= config.min_item_events).gather(frame["item"]))
        waterfall.add(f"items with at least {config.min_item_events} events", frame)
    counts = _counts(frame["user"])
    frame = _keep(frame, pl.Series(counts >= config.min_user_events).gather(frame["user"]))
    waterfall.add(f"users with at least {config.min_user_events} events", frame)
    if config.max_user_events is not None:
        frame = _keep(frame, pl.Series(counts <= config.max_user_events).gather(frame["user"]))
        waterfall.add(f"users with at most {config.max_user_events} events", frame)
    cap = config.cap_user_events
    counts = _counts(frame["user"])
    if counts.max() > cap:
        ends = np.cumsum(counts)
        before_end = ends[frame["user"].to_numpy()] - np.arange(frame.height)
        frame = _keep(frame, pl.Series(before_end <= cap))
        waterfall.add(f"the last {cap} events of a user", frame)
    return frame, waterfall


def _counts(codes: pl.Series) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.bincount(codes.to_numpy())


def _keep(frame: pl.DataFrame, kept: pl.Series) -> pl.DataFrame:
    return frame if kept.all() else frame.filter(kept)


def without_types(events: Events, types: tuple[str, ...]) -> pl.DataFrame:
    """Their frame [N] without the events of these types. Raises InputError where the log has none."""
    return _keep(events.frame, ~_of_types(events, types))


def _of_types(events: Events, types: tuple[str, ...]) -> pl.Series:
    if "type" not in events.frame.columns:
        raise InputError(
            f"Types {', '.join(types)} are to be dropped but no column of the log holds types. Name it with "
            "--type-column."
        )
    return pl.Series([name in types for name in events.names["type"]]).gather(events.frame["type"])
