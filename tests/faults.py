"""Disks that fail, for tests of what a store of states does then."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# A sync fails as long as the file that FAILING names is there.
_SYNC = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
static int sync_by(const char *name, int handle) {
    if (!access(getenv("FAILING"), F_OK)) { errno = EIO; return -1; }
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(handle);
}
int fsync(int handle) { return sync_by("fsync", handle); }
int fdatasync(int handle) { return sync_by("fdatasync", handle); }
"""


class _VFS(ctypes.Structure):
    """The head of SQLite's table of the system's file calls, sqlite3_vfs of version 3."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("version", "file", "longest")),
        *((name, ctypes.c_void_p) for name in ("next", "name", "data")),
        *((f"method{n}", ctypes.c_void_p) for n in range(13)),
        ("set_call", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)),
    )


@contextmanager
def failing_writes(calls: list[str], number: int) -> Iterator[None]:
    """SQLite's calls of the system fail, made to the way its own tests do it."""
    try:
        library = ctypes.CDLL("libsqlite3.so.0")
        find = library.sqlite3_vfs_find
    except (OSError, AttributeError):
        pytest.skip("this Python has an SQLite of its own, whose calls of the system can't be replaced")
    find.restype = ctypes.POINTER(_VFS)
    vfs = find(None)
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, use_errno=True)

    def fail(_: int) -> int:
        ctypes.set_errno(number)
        return -1

    instead = kind(fail)
    for call in calls:
        assert vfs.contents.set_call(vfs, call.encode(), ctypes.cast(instead, ctypes.c_void_p)) == 0
    try:
        yield
    finally:
        for call in calls:
            vfs.contents.set_call(vfs, call.encode(), None)


def failing_syncs(folder: Path) -> dict[str, str]:
    """What the environment of a process says, so that its syncs fail while the file `folder`/failing is there."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler, to build the library that lets a sync fail")
    library = folder / "sync.so"
    build = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(build, input=_SYNC, text=True, check=True)
    return {"LD_PRELOAD": str(library), "FAILING": str(folder / "failing")}
