"""Files that are whole or not there: written aside, fsynced, renamed; checked by digest when read."""

from __future__ import annotations

__all__ = ["ASIDE", "digest_of", "refusals", "sweep", "sweep_dead", "write_folder", "write_text", "written_aside"]

import errno
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from hiertcn.errors import StorageError

ASIDE = ".writing"
_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM}
_REFUSED |= {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn what the system says when it refuses to write `path` into a StorageError."""
    try:
        yield
    except Exception as error:
        # Libraries in Rust have errors of their own, with the system's number in the text.
        told = re.search(r"\(os error (\d+)\)", str(error))
        number = getattr(error, "errno", None) or int(told[1] if told else 0)
        if number not in _REFUSED:
            raise
        raise StorageError(
            f"Could not write {path}: {os.strerror(number)}. What was there before is intact. "
            "Free some space or choose another place, then run the command again."
        ) from error


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to; on success it is fsynced and replaces `path`, otherwise it is removed.

    Raises StorageError when the disk refuses the write; what was at `path` is then intact.
    """
    # A folder of its own, since some libraries write to a name of their choice beside the one they are given.
    folder = path.with_name(f"{path.name}.{os.getpid()}{ASIDE}")
    aside = folder / path.name
    with refusals(path):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            _sync(aside)
            os.replace(aside, path)
            _sync(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace the file at `path` by `text`, whole."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to fill; on success it is fsynced and becomes `path` (replacing that), else removed."""
    with refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside, before = (path.with_name(f"{path.name}.{os.getpid()}{mark}{ASIDE}") for mark in ("", ".before"))
        sweep_dead(path)
        try:
            aside.mkdir()
            yield aside
            for file in sorted(aside.rglob("*")):
                _sync(file)
            if path.exists():
                os.replace(path, before)
            os.replace(aside, path)
            _sync(path.parent)
        finally:
            if before.exists() and not path.exists():
                os.replace(before, path)
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(before, ignore_errors=True)


def sweep_dead(path: Path) -> None:
    """Remove what processes that are gone left beside `path` when they were killed in writing it."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*{ASIDE}"):
        pid = left.name.removeprefix(f"{path.name}.").partition(".")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a process killed in the middle of a write left aside in `folder`."""
    for left in folder.glob(f"*{ASIDE}"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
