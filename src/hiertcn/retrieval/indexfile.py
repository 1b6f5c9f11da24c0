"""Built indexes on disk, so that a process that starts again need not build them: a local cache, never an input.

A file is named by what it was built from, and begins with the digest of what follows. Only one that this user
wrote, that nobody else may write to, and whose digest is right reaches the library that reads it; any other is built
anew.
"""

from __future__ import annotations

__all__ = ["key_of", "read_index", "write_index"]

import hashlib
import json
import logging
import os
import platform
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hiertcn.errors import StorageError
from hiertcn.files import written_aside

_MAGIC = b"hiertcn index 1\n"
_HEAD = len(_MAGIC) + hashlib.sha256().digest_size
_BLOCK = 1 << 16
_log = logging.getLogger(__name__)


def key_of(vectors: npt.NDArray[Any], facts: Mapping[str, str]) -> str:
    """SHA-256 of `vectors` [n, Q], what is built from them and by what, and the kind of machine; in hexadecimal."""
    shape = [str(vectors.dtype), *vectors.shape]
    digest = hashlib.sha256(json.dumps([shape, sorted(facts.items()), platform.machine()]).encode())
    for begin in range(0, len(vectors), _BLOCK):
        digest.update(np.ascontiguousarray(vectors[begin : begin + _BLOCK]).data)
    return digest.hexdigest()


def read_index(path: Path) -> npt.NDArray[np.uint8] | None:
    """What was written to `path`; None, with a warning if there is a file, unless it is whole and this user's."""
    try:
        # A pipe or a device would be waited for, and a link may lead anywhere.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
                _refused(path, "it is no file that only this user may write to")
                return None
            with os.fdopen(handle, "rb", closefd=False) as file:
                data = np.fromfile(file, dtype=np.uint8)
        finally:
            os.close(handle)
    except FileNotFoundError:
        return None
    except OSError as error:
        _refused(path, os.strerror(error.errno or 0))
        return None
    head, body = data[:_HEAD].tobytes(), data[_HEAD:]
    if head != _MAGIC + hashlib.sha256(body.data).digest():
        _refused(path, "it is damaged, or was not written by this version")
        return None
    return body


def _refused(path: Path, why: str) -> None:
    _log.warning("The index in %s is not used: %s. It is built anew.", path, why)


def write_index(path: Path, data: npt.NDArray[np.uint8]) -> None:
    """Write `data` to `path`, for this user alone. A disk that refuses is told as a warning: an index works without."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with written_aside(path) as aside:
            handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(_MAGIC + hashlib.sha256(data.data).digest())
                file.write(data.data)
    except (OSError, StorageError) as error:
        _log.warning("The index is not kept for the next start: %s", error)
