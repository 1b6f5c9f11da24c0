"""The files of a log: found, told apart by what they hold, and unpacked within bounds."""

from __future__ import annotations

__all__ = ["Source", "find_sources", "unpacked"]

import errno
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import pyarrow as pa

from hiertcn.errors import InputError, StorageError, nearest
from hiertcn.quarantine import shown

_SUFFIXES = {
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".csv", ".tsv", ".txt", ".dat", ".data"), "csv"),
}
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_PACKED_SUFFIXES = (".gz", ".zst", ".zstd")
_FOREIGN = {
    b"PK\x03\x04": "a zip archive",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"ARROW1": "an Arrow file",
}
LARGEST = 256 << 30
RATIO = 200
_ALWAYS = 64 << 20
_BLOCK = 4 << 20


@dataclass(frozen=True)
class Source:
    """One file, not packed. `kind` is parquet, csv or jsonl; `name` is what people call it."""

    path: Path
    name: str
    kind: str

    @property
    def tabs(self) -> bool:
        return Path(self.name.removesuffix(".gz").removesuffix(".zst")).suffix == ".tsv"


def find_sources(log: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files of a log given as a file, a folder (all logs under it, sorted), a glob, or several of these.

    Raises InputError where there is none.
    """
    given = [log] if isinstance(log, str | Path) else list(log)
    found = [path for one in given for path in _expand(Path(one).expanduser())]
    if not found:
        raise InputError("No log was given; expected a file, a folder, a glob, or several of these.")
    return list(dict.fromkeys(found))


def _expand(given: Path) -> list[Path]:
    if given.is_file():
        return [given]
    if given.is_dir():
        found = sorted(path for path in given.rglob("*") if path.is_file() and _is_log(path.relative_to(given)))
        if not found:
            raise InputError(
                f"The folder {shown(str(given))} holds no log; expected files ending in {', '.join(_SUFFIXES)} "
                "(also with .gz or .zst). Name the files one by one if they end otherwise."
            )
        return found
    if any(sign in str(given) for sign in "*?["):
        found = [Path(path) for path in sorted(glob(str(given), recursive=True)) if Path(path).is_file()]
        if found:
            return found
    beside = [path.name for path in given.parent.iterdir()] if given.parent.is_dir() else []
    raise InputError(
        f"No log at {shown(str(given))}{nearest(given.name, beside)}; expected a file, a folder or a glob. Check the "
        "path."
    )


def _is_log(path: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.parts)
    bare = path.with_suffix("") if path.suffix in _PACKED_SUFFIXES else path
    return not hidden and path.name != "manifest.json" and bare.suffix.lower() in _SUFFIXES


@contextmanager
def unpacked(paths: Sequence[Path]) -> Iterator[list[Source]]:
    """The files as they are, or unpacked (gzip, zstd) into a temporary folder that lives as long as the context.

    Raises InputError for a file that is empty, of another kind than its name says, damaged, or far larger unpacked.
    """
    with tempfile.TemporaryDirectory(prefix="hiertcn-") as folder:
        yield [_open(path, Path(folder) / str(number)) for number, path in enumerate(paths)]


def _open(path: Path, scratch: Path) -> Source:
    head = _head(path)
    for magic, codec in _PACKED.items():
        if head.startswith(magic):
            _unpack(path, codec, scratch)
            return Source(
                scratch, path.name, _kind(scratch, path.with_suffix("") if path.suffix in _PACKED_SUFFIXES else path)
            )
    return Source(path, path.name, _kind(path, path))


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError as error:
        raise InputError(
            f"{path} can't be read: {error.strerror}. Check that the file is there and readable."
        ) from error


def _kind(path: Path, named: Path) -> str:
    head = _head(path)
    suffix = _SUFFIXES.get(named.suffix.lower())
    if not head:
        raise InputError(
            f"{named} holds 0 events: the file is empty. Give a log with at least two users and two items."
        )
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or (suffix != "parquet" and _every_other_is_nul(head)):
        raise InputError(
            f"{named} is UTF-16; expected UTF-8. Write it again, for instance with: iconv -f UTF-16 -t UTF-8."
        )
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise InputError(
                f"{named} is {what}; expected Parquet, CSV, TSV or JSON lines. Unpack or convert it first."
            )
    if (suffix == "parquet") != head.startswith(b"PAR1"):
        holds, says = ("no Parquet", "Parquet") if suffix == "parquet" else ("Parquet", suffix or "another kind")
        raise InputError(
            f"{named} holds {holds} but its name says {says}. Rename it, or write it again if it is damaged."
        )
    if suffix:
        return suffix
    return "jsonl" if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") else "csv"


def _every_other_is_nul(head: bytes) -> bool:
    return len(head) >= 8 and min(head[0::2].count(0), head[1::2].count(0)) * 10 < len(head) // 4 < max(
        head[0::2].count(0), head[1::2].count(0)
    )


def _unpack(path: Path, codec: str, scratch: Path) -> None:
    packed, size = path.stat().st_size, 0
    try:
        with pa.input_stream(str(path), compression=codec) as source, scratch.open("wb") as target:
            while block := source.read(_BLOCK):
                size += len(block)
                check_size(path, packed, size)
                target.write(block)
    except (OSError, pa.ArrowInvalid) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(
                f"{path} can't be unpacked into {scratch.parent.parent}: {error.strerror}. Free some space there, or "
                "point TMPDIR to another place."
            ) from error
        raise InputError(
            f"{path} can't be unpacked as {codec} ({shown(str(error))}). It may be cut short; fetch it again."
        ) from error


def check_size(path: Path, packed: int, unpacked: int) -> None:
    """Raise InputError when `packed` bytes on disk become too many: beyond 256 GiB, or 200-fold beyond 64 MiB."""
    if unpacked > LARGEST or (unpacked > _ALWAYS and unpacked > RATIO * packed):
        raise InputError(
            f"{path} has {packed:,} bytes and unpacks to {unpacked:,} or more; expected at most {RATIO} times its "
            "size and "
            f"{LARGEST >> 30} GiB. If that is right, unpack it yourself and give the unpacked file."
        )
