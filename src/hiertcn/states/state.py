"""What is known of one user, and its form in a store."""

from __future__ import annotations

__all__ = ["DIGEST", "SEEN", "UserState", "digest_of_model"]

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hiertcn.errors import ArtifactError

SEEN = 256
DIGEST = 8
_MAGIC, _FORMAT = b"HTCN", 2
# Magic, format, code of the long-term type, digest, previous end, sizes of times (and items), long_term, seen, skipped.
_HEADER = struct.Struct(f"<4sHH{DIGEST}sqIIII")
_CHECK = struct.Struct("<I")
_TYPES = (np.dtype("<f4"), np.dtype("<i8"), np.dtype("<f8"))
_NEVER = np.iinfo(np.int64).min


def _none() -> npt.NDArray[np.int32]:
    return np.empty(0, dtype=np.int32)


def _no_times() -> npt.NDArray[np.int64]:
    return np.empty(0, dtype=np.int64)


def digest_of_model(trained: str, model: dict[str, Any], session_gap: float, longest: int) -> bytes:
    """What a stored state depends on: the weights, how the model reads them, the item rows and the session rule."""
    stated = json.dumps([trained, model, session_gap, longest], sort_keys=True)
    return hashlib.sha256(stated.encode()).digest()[:DIGEST]


@dataclass(frozen=True, eq=False)
class UserState:
    """Facts, not activations: about 1 KB beside the long-term state, and 80 bytes an event of what was shown.

    long_term:    [S], the model's state after the user's finished sessions
    items, times: int32 [R], item rows (0 is an item outside the catalog), and int64 [R], microseconds: the events that
                  `long_term` has not read yet, those of the running session
    previous_end: microseconds: the last event of the latest finished session that holds a known item; None without one
    seen:         int32 [at most SEEN], the last distinct known items, the latest at the end
    skipped, skips: int32 [K], rows of items that were shown beside those events and not picked, and int32 [R], how many
                  beside each
    """

    long_term: npt.NDArray[Any]
    items: npt.NDArray[np.int32] = field(default_factory=_none)
    times: npt.NDArray[np.int64] = field(default_factory=_no_times)
    previous_end: int | None = None
    seen: npt.NDArray[np.int32] = field(default_factory=_none)
    skipped: npt.NDArray[np.int32] = field(default_factory=_none)
    skips: npt.NDArray[np.int32] = field(default_factory=_none)

    def followed_by(
        self,
        items: npt.NDArray[np.int32],
        times: npt.NDArray[np.int64],
        skipped: Sequence[npt.NDArray[np.int32]] = (),
    ) -> Self:
        """The state after more events, `items`, `times` and, if known, `skipped` [n], in time order; the long-term
        state stays."""
        more = np.array([len(rows) for rows in skipped] or [0] * len(items), dtype=np.int32)
        latest = np.concatenate([self.seen, items[items > 0]])[::-1]
        _, first = np.unique(latest, return_index=True)
        return replace(
            self,
            items=np.concatenate([self.items, items]),
            times=np.concatenate([self.times, times]),
            seen=latest[np.sort(first)[:SEEN]][::-1],
            skipped=np.concatenate([self.skipped, *skipped]).astype(np.int32),
            skips=np.concatenate([self.skips, more]),
        )

    def without_events(self) -> Self:
        """The state when `long_term` has read all events."""
        return replace(self, items=_none(), times=_no_times(), skipped=_none(), skips=_none())

    def to_bytes(self, digest: bytes) -> bytes:
        """The state as a value for a store, marked with the DIGEST bytes of the model it belongs to."""
        long_term = self.long_term.astype(self.long_term.dtype.newbyteorder("<"))
        end = _NEVER if self.previous_end is None else self.previous_end
        # Most people's are nothing but zeros.
        skips = self.skips if len(self.skipped) else self.skips[:0]
        sizes = (len(self.times), len(long_term), len(self.seen), len(self.skipped))
        header = _HEADER.pack(_MAGIC, _FORMAT, _TYPES.index(long_term.dtype), digest, end, *sizes)
        rows = (values.astype("<i4") for values in (self.items, self.seen, self.skipped, skips))
        body = b"".join([header, *(values.tobytes() for values in (self.times.astype("<i8"), long_term, *rows))])
        return body + _CHECK.pack(zlib.crc32(body))

    @classmethod
    def from_bytes(cls, data: bytes, digest: bytes) -> Self:
        """The state in a value of a store. Raises ArtifactError if it is damaged, or of another format or model."""
        body, check = data[: -_CHECK.size], data[-_CHECK.size :]
        if len(body) < _HEADER.size or check != _CHECK.pack(zlib.crc32(body)):
            raise _refused("is damaged")
        magic, form, kind, owner, end, events, size, seen, skipped = _HEADER.unpack_from(body)
        if (magic, form) != (_MAGIC, _FORMAT) or kind >= len(_TYPES):
            raise _refused(f"has format {form}, this version reads format {_FORMAT}")
        if owner != digest:
            raise _refused(f"was stored under the model {owner.hex()}, and this one is {digest.hex()}")
        columns: list[tuple[np.dtype[Any], int]] = [(np.dtype("<i8"), events), (_TYPES[kind], size)]
        columns += [(np.dtype("<i4"), count) for count in (events, seen, skipped, events if skipped else 0)]
        at = np.cumsum([_HEADER.size, *(dtype.itemsize * count for dtype, count in columns)]).tolist()
        if at[-1] != len(body):
            raise _refused("does not have the length it states")
        times, state, rows, known, passed, skips = (
            np.frombuffer(body, *column, begin) for column, begin in zip(columns, at, strict=False)
        )
        if not skipped:
            skips = np.zeros(events, dtype=np.int32)
        if skips.min(initial=0) < 0 or skips.sum() != skipped:
            raise _refused("does not agree with itself")
        return cls(state, rows, times, None if end == _NEVER else end, known, passed, skips)


def _refused(found: str) -> ArtifactError:
    return ArtifactError(
        f"A user's stored state {found}; expected one that this model wrote. Give each model a store of its own, or "
        "delete the user to begin anew."
    )
