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


# What fails, and how, stands in the file that FAULTS names: errors of writes and of syncs, milliseconds that a sync
# takes, seconds that the wall clock is wrong.
_PROCESS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
static volatile long long none[4], *faults = none;
__attribute__((constructor)) static void begin(void) {
    int handle = open(getenv("FAULTS"), O_RDONLY);
    void *found = mmap(0, sizeof none, PROT_READ, MAP_SHARED, handle, 0);
    if (found != MAP_FAILED) faults = found;
    close(handle);
}
#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)
ssize_t pwrite64(int handle, const void *from, size_t count, off64_t at) {
    REAL(pwrite64);
    if (faults[0]) { errno = faults[0]; return -1; }
    return real(handle, from, count, at);
}
int fdatasync(int handle) {
    REAL(fdatasync);
    if (faults[1]) { errno = faults[1]; return -1; }
    if (faults[2]) usleep(1000 * faults[2]);
    return real(handle);
}
int fsync(int handle) { return fdatasync(handle); }
int clock_gettime(clockid_t id, struct timespec *found) {
    REAL(clock_gettime);
    int result = real(id, found);
    if (id == CLOCK_REALTIME) found->tv_sec += faults[3];
    return result;
}
"""


class Faults:
    """Of processes that are started with its environment, what the system does to them, changed while they run."""

    NAMES = ("write", "sync", "delay", "clock")

    def __init__(self, folder: Path) -> None:
        if shutil.which("cc") is None:
            pytest.skip("no C compiler, to build the library that lets calls of the system fail")
        library, self._path = folder / "faults.so", folder / "faults"
        build = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"]
        subprocess.run(build, input=_PROCESS, text=True, check=True)
        self._path.write_bytes(bytes(8 * len(self.NAMES)))
        self.environment = {"LD_PRELOAD": str(library), "FAULTS": str(self._path)}

    @contextmanager
    def of(self, name: str, value: int) -> Iterator[None]:
        """`write` and `sync`: a number of errno; `delay`: milliseconds; `clock`: seconds."""
        self._set(name, value)
        try:
            yield
        finally:
            self._set(name, 0)

    def _set(self, name: str, value: int) -> None:
        with self._path.open("r+b") as file:
            file.seek(8 * self.NAMES.index(name))
            file.write(value.to_bytes(8, "little", signed=True))
