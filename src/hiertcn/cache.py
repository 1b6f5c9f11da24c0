"""The cache: the prepared log on disk, opened by memory map.

    CACHE/manifest.json     what is inside, how it was made, a digest of each file
    CACHE/catalog.arrow     a line for each item row (see catalog.py)
    CACHE/shard-00000.arrow a line for each user, whole, in the order of user ids: user_id, session_lengths list<int32>,
                            items list<int32>, times list<int64> (microseconds), parts list<uint8>

Shards are plain Arrow IPC files: Polars, DuckDB and PyArrow read them as they are.
"""

from __future__ import annotations

__all__ = ["FORMAT", "Cache", "Manifest", "Shard", "write_cache"]

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from hiertcn.catalog import Catalog
from hiertcn.errors import ArtifactError
from hiertcn.files import digest_of, write_folder
from hiertcn.sessions import PARTS, Sessions
from hiertcn.vectors import Vectors, open_vectors

FORMAT = 1
VECTORS = "vectors.npy"
# Of each the offsets of its sessions are in memory.
_OPEN_SHARDS = 4


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds. Counts are of what was kept; `waterfall` says what was dropped on the way."""

    session_gap: float
    max_session_events: int
    split: dict[str, Any]
    time_form: str
    waterfall: list[dict[str, Any]] = field(default_factory=list)
    users: int = 0
    sessions: int = 0
    events: int = 0
    items: int = 0
    outside_items: int = 0
    parts: dict[str, dict[str, int]] = field(default_factory=dict)
    sources: dict[str, Any] = field(default_factory=dict)
    shards: list[dict[str, Any]] = field(default_factory=list)
    vectors: dict[str, Any] | None = None
    catalog_digest: str = ""
    fingerprint: str = ""
    format: int = FORMAT


class Shard:
    """Whole users of one file, as views into the memory map."""

    def __init__(self, path: Path) -> None:
        try:
            with pa.memory_map(str(path)) as source:
                self._table = pa.ipc.open_file(source).read_all().combine_chunks()
        except (OSError, pa.ArrowInvalid) as error:
            raise ArtifactError(f"{path} is not a readable shard ({error}). Prepare the log again.") from error

    def _values(self, name: str) -> npt.NDArray[Any]:
        column = self._table.column(name)
        return column.chunk(0).flatten().to_numpy(zero_copy_only=True) if column.num_chunks else np.empty(0, np.int64)

    @property
    def user_ids(self) -> pl.Series:
        return pl.Series(pl.from_arrow(self._table.select(["user_id"]))["user_id"])  # type: ignore[index]

    @cached_property
    def sessions(self) -> Sessions:
        lengths = self._values("session_lengths")
        per_user = self._table.column("session_lengths").chunk(0).value_lengths().to_numpy()
        shown: tuple[Any, ...] = ()
        if "shown" in self._table.column_names:
            counts = self._values("shown_counts")
            shown = self._values("shown"), np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        return Sessions(
            items=self._values("items"),
            times=self._values("times"),
            parts=self._values("parts"),
            session_offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            user_offsets=np.concatenate([[0], np.cumsum(per_user, dtype=np.int64)]),
            **dict(zip(("shown", "shown_offsets"), shown, strict=False)),
        )


class Cache:
    """A prepared log. Opening reads the manifest and the catalog; shards are mapped when they are asked for.

    Raises ArtifactError if the folder is no cache, is of another format, or a file is missing or of another size.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        manifest = self.path / "manifest.json"
        try:
            found = json.loads(manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{self.path} is not a cache: {manifest.name} can't be read ({error}). "
                "Give the folder that `hiertcn prepare LOG --out CACHE` wrote."
            ) from error
        if isinstance(found, dict) and "weights" in found:
            raise ArtifactError(
                f"{self.path} is a model directory, not a cache. Give the folder that "
                "`hiertcn prepare LOG --out CACHE` wrote."
            )
        known = {f.name for f in fields(Manifest)}
        if not isinstance(found, dict) or found.get("format") != FORMAT or set(found) != known:
            written = found.get("format") if isinstance(found, dict) else None
            raise ArtifactError(
                f"{manifest} has format {written!r}; this version reads format {FORMAT}. Prepare the log again."
            )
        self.manifest = Manifest(**found)
        for name, size, _ in self._files():
            if not (self.path / name).is_file() or (self.path / name).stat().st_size != size:
                raise ArtifactError(
                    f"{self.path / name} is missing or not of the {size} bytes stated. Prepare the log again."
                )
        self._shards: OrderedDict[int, Shard] = OrderedDict()

    def _files(self) -> list[tuple[str, int, str]]:
        try:
            files = [*self.manifest.shards, *([self.manifest.vectors] if self.manifest.vectors else [])]
            listed = [(str(s["file"]), int(s["bytes"]), str(s["sha256"])) for s in files]
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{self.path}/manifest.json lists its files wrongly. Prepare the log again.") from error
        if any(Path(name).name != name for name, _, _ in listed):
            raise ArtifactError(f"{self.path}/manifest.json names a file outside the cache. Prepare the log again.")
        return listed

    def verify(self) -> None:
        """Check every file against its digest. Raises ArtifactError naming the first that differs."""
        stated = [("catalog.arrow", self.manifest.catalog_digest), *((n, d) for n, _, d in self._files())]
        for name, expected in stated:
            actual = digest_of(self.path / name) if (self.path / name).is_file() else "of no file"
            if actual != expected:
                raise ArtifactError(
                    f"{self.path / name} has SHA-256 {actual}, its manifest says {expected}. Prepare the log again."
                )

    @cached_property
    def catalog(self) -> Catalog:
        path = self.path / "catalog.arrow"
        if not path.is_file() or digest_of(path) != self.manifest.catalog_digest:
            raise ArtifactError(f"{path} does not have the SHA-256 its manifest states. Prepare the log again.")
        return Catalog(pl.read_ipc(path), self.manifest.items)

    @cached_property
    def vectors(self) -> Vectors | None:
        """[items + 1, D]: the vectors that items came with, if they did; memory-mapped, row 0 zero."""
        stated = self.manifest.vectors
        return None if stated is None else open_vectors(self.path / stated["file"], self.manifest.items + 1)

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.path.iterdir())

    @property
    def has_impressions(self) -> bool:
        return any("events_with_impressions" in counts for counts in self.manifest.parts.values())

    def __len__(self) -> int:
        return len(self.manifest.shards)

    def shard(self, index: int) -> Shard:
        if index not in self._shards:
            self._shards[index] = Shard(self.path / self.manifest.shards[index]["file"])
            if len(self._shards) > _OPEN_SHARDS:
                self._shards.popitem(last=False)
        self._shards.move_to_end(index)
        return self._shards[index]

    def find(self, user_id: str | int) -> tuple[int, int] | None:
        """(shard, place in it) of a user, or None. The id is taken in the log's own type."""
        for index in range(len(self)):
            ids = self.shard(index).user_ids
            if ids.dtype == pl.String:
                wanted: str | int = str(user_id)
            else:
                try:
                    wanted = int(user_id)
                except ValueError:
                    return None
            place = ids.search_sorted(wanted)
            if place < len(ids) and ids[place] == wanted:
                return index, place
        return None


def _write_table(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(table.num_rows, 1))


def _lists(values: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def write_cache(
    path: Path,
    manifest: Manifest,
    catalog: Catalog,
    shards: Iterable[tuple[pl.Series, Sessions]],
    write_vectors: Callable[[Path], None] | None = None,
) -> Cache:
    """Write users (ids, sessions) shard by shard, then the catalog and the manifest; visible only when whole.

    `write_vectors` writes the table of the items' vectors to the path it is given. `manifest` comes with what the
    caller knows; counts, digests and the list of shards are filled in here.
    Raises StorageError when the disk refuses.
    """
    with write_folder(path) as folder:
        listed: list[dict[str, Any]] = []
        parts: dict[str, dict[str, int]] = {}
        for number, (user_ids, sessions) in enumerate(shards):
            name = f"shard-{number:05d}.arrow"
            events = sessions.event_offsets
            columns = {
                "user_id": user_ids.to_arrow(),
                "session_lengths": _lists(np.diff(sessions.session_offsets).astype(np.int32), sessions.user_offsets),
                "items": _lists(sessions.items, events),
                "times": _lists(sessions.times, events),
                "parts": _lists(sessions.parts, events),
            }
            if (offsets := sessions.shown_offsets) is not None:
                columns["shown_counts"] = _lists(np.diff(offsets).astype(np.uint8), events)
                columns["shown"] = _lists(sessions.shown, offsets[events])
            _write_table(folder / name, pa.table(columns))
            listed.append(
                {
                    **_listed(folder / name),
                    "users": len(user_ids),
                    "sessions": len(sessions.session_offsets) - 1,
                    "events": len(sessions.items),
                }
            )
            for part, counts in _count_parts(sessions, catalog.size).items():
                before = parts.setdefault(part, dict.fromkeys(counts, 0))
                parts[part] = {key: before[key] + value for key, value in counts.items()}
        _write_table(folder / "catalog.arrow", catalog.items.to_arrow())
        catalog_digest = digest_of(folder / "catalog.arrow")
        files = list(listed)
        if write_vectors is not None:
            write_vectors(folder / VECTORS)
            files.append(_listed(folder / VECTORS))
        fingerprint = hashlib.sha256("".join([catalog_digest, *(s["sha256"] for s in files)]).encode()).hexdigest()
        whole = {
            **asdict(manifest),
            "users": sum(s["users"] for s in listed),
            "sessions": sum(s["sessions"] for s in listed),
            "events": sum(s["events"] for s in listed),
            "items": catalog.size,
            "outside_items": catalog.items.height - catalog.size,
            "parts": parts,
            "shards": listed,
            "vectors": files[-1] if write_vectors is not None else None,
            "catalog_digest": catalog_digest,
            "fingerprint": fingerprint,
        }
        (folder / "manifest.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    return Cache(path)


def _listed(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest_of(path)}


def _count_parts(sessions: Sessions, catalog_size: int) -> dict[str, dict[str, int]]:
    """For train, valid and test: events, users with any, and events on items outside the catalog."""
    owner = np.repeat(np.arange(len(sessions.user_offsets) - 1), np.diff(sessions.event_offsets))
    counts = {}
    for index, part in enumerate(PARTS):
        mine = sessions.parts == index
        counts[part] = {
            "events": int(mine.sum()),
            "users": int(np.count_nonzero(np.bincount(owner[mine]))),
            "outside_events": int((sessions.items[mine] > catalog_size).sum()),
        }
        if sessions.shown_offsets is not None:
            counts[part]["events_with_impressions"] = int((np.diff(sessions.shown_offsets)[mine] > 0).sum())
    return counts
