"""Which part (train, valid, test) each event belongs to, and what the split says about itself.

Legend: U users, N events in the order of users and times; parts are indexes into `sessions.PARTS`.
"""

from __future__ import annotations

__all__ = ["by_last", "by_names", "by_time", "by_users", "described", "quantile_cuts"]

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hiertcn.errors import InputError
from hiertcn.quarantine import shown
from hiertcn.sessions import PARTS
from hiertcn.times import iso

Parts = npt.NDArray[np.uint8]
Fractions = tuple[float, float, float]
_NAMES = {"train": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "test": 2}


def quantile_cuts(times: npt.NDArray[np.int64], fractions: Fractions) -> tuple[int, int]:
    """The times where valid and where test begin, so that about these fractions of all events lie before."""
    places = [min(_floor(share, len(times)), len(times) - 1) for share in (fractions[0], fractions[0] + fractions[1])]
    ordered = np.partition(times, places)
    return int(ordered[places[0]]), int(ordered[places[1]])


def by_time(times: npt.NDArray[np.int64], cuts: tuple[int, int]) -> Parts:
    """Events before the first cut train, those before the second are valid, the rest test."""
    return np.searchsorted(np.array(cuts), times, side="right").astype(np.uint8)


def by_last(user_offsets: npt.NDArray[np.int64], fractions: Fractions) -> Parts:
    """Each user's first floor(train · n) events train, up to floor((train + valid) · n) valid, the rest test."""
    counts = np.diff(user_offsets)
    place = np.arange(user_offsets[-1]) - np.repeat(user_offsets[:-1], counts)
    parts = np.zeros(len(place), np.uint8)
    for share in (fractions[0], fractions[0] + fractions[1]):
        parts += place >= np.repeat(_floor(share, counts), counts)
    return parts


def _floor(share: float, counts: Any) -> Any:
    """floor(share · counts), not one less where the product is a whole number but for rounding."""
    return np.floor(share * np.asarray(counts) + 1e-9).astype(np.int64)


def by_users(user_ids: pl.Series, fractions: Fractions, seed: int) -> Parts:
    """[U]: whole users by a hash of seed and id; the fractions hold on average.

    So a user's part depends neither on the order of the log nor on who else is in it.
    """
    hashes = np.array(
        [int.from_bytes(hashlib.blake2b(f"{seed}:{user}".encode(), digest_size=6).digest()) for user in user_ids],
        dtype=np.int64,
    )
    bounds = np.array([fractions[0], fractions[0] + fractions[1]]) * 2**48
    return np.searchsorted(bounds, hashes, side="right").astype(np.uint8)


def by_names(codes: npt.NDArray[np.uint32], names: list[str | None], column: str) -> Parts:
    """Parts named in a column of the log. Raises InputError for a name that is none."""
    used = np.flatnonzero(np.bincount(codes, minlength=len(names)))
    lookup = np.zeros(len(names), np.uint8)
    for code in used:
        part = _NAMES.get((names[code] or "").strip().lower())
        if part is None:
            raise InputError(
                f"The split column {column!r} holds {shown(names[code])}; expected train, valid or test in every row. "
                "Mend the column, or split with --split time, users or last."
            )
        lookup[code] = part
    return lookup[codes]


def described(by: str, parts: Parts, times: npt.NDArray[np.int64], **how: Any) -> dict[str, Any]:
    """The split for the manifest: how it was made, where train ends, test begins, how many train events are later."""
    train, test = times[parts == 0], times[parts == PARTS.index("test")]
    begins = int(test.min()) if len(test) else None
    return {
        "by": by,
        **how,
        "train_ends": iso(int(train.max())) if len(train) else None,
        "test_begins": None if begins is None else iso(begins),
        "overlap": 0 if begins is None else int((train > begins).sum()),
    }
