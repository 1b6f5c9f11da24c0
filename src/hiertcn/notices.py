"""What `prepare` says of what it does, and what it warns of."""

from __future__ import annotations

__all__ = ["say_read", "say_split", "say_vectors", "say_written"]

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from hiertcn.cache import Cache
from hiertcn.events import Events
from hiertcn.itemlist import ItemList
from hiertcn.quarantine import shown
from hiertcn.sessions import PARTS, Sessions

Say = Callable[[str], None]


def say_vectors(say: Say, listed: ItemList | None, split: dict[str, Any]) -> None:
    """Warn of vectors that may hold what is to be predicted."""
    if listed is not None and listed.made_of is not None and listed.made_of != split:
        say(
            f"warning: the vectors were made of another part of a log ({shown(json.dumps(listed.made_of))}) than the "
            "train part here, so they may hold what valid and test ask for. To measure, embed with the options of this "
            "command, or embed its cache."
        )


def say_read(say: Say, events: Events) -> None:
    """Say what was read of a log, and what was set aside."""
    say(f"read {events.quarantine.read:,} rows of {len(events.files)} file(s)")
    say("columns: " + ", ".join(f"{role} = {name}" for role, name in events.columns.named().items()))
    say(f"times: {events.time_stated}")
    for reason, count in events.quarantine.counts.items():
        say(f"  set aside {count:,} rows: {reason}, such as {events.quarantine.examples[reason][0]}")
    if events.duplicates:
        say(f"  dropped {events.duplicates:,} rows that repeat a user, item, time and type")


def say_split(say: Say, parts: npt.NDArray[np.uint8], split: dict[str, Any]) -> None:
    """Warn of a part that is empty, and of train events that are later than test events."""
    for index, part in enumerate(PARTS):
        if not (parts == index).any() and split.get("fractions", (1, 1, 1))[index] > 0:
            say(f"warning: the {part} part is empty")
    if split["overlap"]:
        say(
            f"warning: {split['overlap']:,} train events are later than the first test event (train ends "
            f"{split['train_ends']}, test begins {split['test_begins']}); split by time "
            "for a test that lies wholly after training"
        )


def say_written(say: Say, cache: Cache, whole: Sessions) -> None:
    """Say what is in a cache just written."""
    manifest = cache.manifest
    single = int((np.diff(whole.session_offsets) == 1).sum())
    say(
        f"wrote {manifest.events:,} events in {manifest.sessions:,} sessions ({single:,} of one event) of "
        f"{manifest.users:,} users, {cache.bytes:,} bytes in {len(cache)} shard(s)"
    )
    unseen = int((cache.catalog.train_events[1:] == 0).sum())
    say(
        f"catalog: {manifest.items:,} items ({unseen:,} without a train event); {manifest.outside_items:,} other items "
        "are outside it"
    )
    for part, counts in manifest.parts.items():
        say(
            f"  {part}: {counts['events']:,} events of {counts['users']:,} users, {counts['outside_events']:,} on "
            "items outside the catalog"
        )
