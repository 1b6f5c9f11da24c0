"""What SQLite adds to the contract: one owner, bounded files, and faults of the disk and the file, survived."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from faults import failing_syncs, failing_writes
from hiertcn.errors import ArtifactError, StorageError
from hiertcn.states import SQLiteStates, Update
from hiertcn.states.protocol import Durability
from stores import files_of, log, one, put, until


def run(program: str, path: Path, more: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own, with the file's path as its argument and more in its environment."""
    head = "import sys; from hiertcn.states import SQLiteStates, Update; from hiertcn.errors import StorageError\n"
    command, environment = [sys.executable, "-c", head + program, str(path)], {**os.environ, **(more or {})}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


def test_another_store_of_the_same_file_finds_it(tmp_path: Path) -> None:
    path = tmp_path / "states.db"
    with SQLiteStates(path) as store:
        store.update([b"u"], lambda _: Update([b"value"], [b"entry"]))
        store.put("crowd", b"all of it")
    with SQLiteStates(path) as store:
        assert (one(store, b"u"), store.journal(0), store.value("crowd")) == (b"value", [(1, b"entry")], b"all of it")
        store.trim(1)
    with SQLiteStates(path) as store:
        log(store, b"next")
        assert store.journal(0) == [(2, b"next")]
    assert [file.name for file in tmp_path.iterdir()] == ["states.db"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("link", [False, True])
def test_only_one_store_has_the_file(tmp_path: Path, link: bool) -> None:
    path = other = tmp_path / "states.db"
    opening = "SQLiteStates(sys.argv[1])"
    with SQLiteStates(path) as store:
        if link:
            other = tmp_path / "link.db"
            other.symlink_to(path)
        # Twice: refusing must not end the lock.
        for _ in range(2):
            with pytest.raises(StorageError, match=r"locked.*let several servers share a Redis"):
                SQLiteStates(other)
            refused = run(opening, other)
            assert "StorageError" in refused.stderr
            assert "database is locked" in refused.stderr
        put(store, b"u", b"value")
        assert one(store, b"u") == b"value"
    assert run(opening, path).returncode == 0


@pytest.mark.parametrize(("durability", "synchronous"), [("fsync", "2"), ("os", "1")])
def test_how_durable_it_is(tmp_path: Path, durability: str, synchronous: str) -> None:
    with SQLiteStates(tmp_path / "states.db", durability) as store:  # type: ignore[arg-type]
        facts = store.facts()
        assert (facts["synchronous"], facts["journal_mode"], facts["secure_delete"]) == (synchronous, "wal", "1")
        assert facts["durability"].startswith(durability)
        assert facts["SQLite"] == sqlite3.sqlite_version


def test_within_a_second_what_the_system_has_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (synced.append(os.readlink(f"/proc/self/fd/{handle}")), real(handle))
    )
    with SQLiteStates(tmp_path / "states.db", "os") as store:
        put(store, b"u", b"value")
        until(lambda: bool(synced), 5)
        assert synced == [str(tmp_path / "states.db-wal")]

        def refuse(handle: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fsync", refuse)
        put(store, b"u", b"newer")
        until(lambda: store._failed is not None, 5)
        monkeypatch.setattr(os, "fsync", real)
        with pytest.raises(StorageError, match="Input/output error"):
            put(store, b"u", b"newest")
        assert one(store, b"u") == b"newer"
        put(store, b"u", b"newest")


def test_a_write_too_large_is_a_clean_error_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "states.db"
    with SQLiteStates(path) as store:
        put(store, b"u", b"value")
    ended = run(
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, -1))\n"
        "with SQLiteStates(sys.argv[1]) as store:\n"
        "    for call in (lambda: store.update([b'u', b'v'], lambda _: Update([b'', bytes(300_000)], [b'no'])),\n"
        "                 lambda: store.put('crowd', bytes(300_000))):\n"
        "        try: call()\n"
        "        except StorageError as error: print(error)\n"
        "    assert store.get([b'u', b'v']) == [b'value', None] and store.journal(0) == []\n"
        "    store.update([b'v'], lambda _: Update([b'small']))",
        path,
    )
    assert (ended.returncode, ended.stdout.count("states.db can't be used")) == (0, 2), ended.stderr
    with SQLiteStates(path) as store:
        assert store.get([b"u", b"v"]) == [b"value", b"small"]
        assert store.value("crowd") is None


def test_a_full_disk_is_told_and_survived_without_a_restart(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "hiertcn-test", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can't be mounted here")
    try:
        with SQLiteStates(disk / "states.db") as store:
            for n in range(50):
                put(store, b"%d" % n, bytes(2000))
            filler = disk / "filler"
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)) == 4096:
                    pass
            acknowledged, refusals = {}, []
            for n in range(3000):
                try:
                    store.update([b"%d" % (n % 50)], lambda _, n=n: Update([b"%d" % n * 500], [b"%d" % n]))
                    acknowledged[n % 50] = b"%d" % n * 500
                except StorageError as error:
                    refusals.append(str(error))
                    if len(refusals) == 20:
                        break
            assert len(refusals) == 20
            assert all("disk is full" in told for told in refusals)
            expected = [acknowledged.get(n, bytes(2000)) for n in range(50)]
            assert store.get([b"%d" % n for n in range(50)]) == expected
            filler.unlink()
            put(store, b"0", b"again")
            store.check()
        with SQLiteStates(disk / "states.db") as store:
            assert store.get([b"%d" % n for n in range(50)]) == [b"again", *expected[1:]]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS], ids=errno.errorcode.__getitem__)
def test_a_failing_disk_acknowledges_nothing(tmp_path: Path, number: int) -> None:
    path = tmp_path / "states.db"
    with SQLiteStates(path) as store:
        put(store, b"u", b"before")
        with failing_writes(["pwrite", "pwrite64", "write"], number):
            for _ in range(3):
                for change in (
                    lambda: store.update([b"u", b"v"], lambda _: Update([b"no", b"no"], [b"no"])),
                    lambda: store.put("crowd", b"no"),
                ):
                    with pytest.raises(StorageError, match="can't be used"):
                        change()
            assert store.get([b"u", b"v"]) == [b"before", None]
        store.update([b"u"], lambda found: Update([b"after " + (found[0] or b"")], [b"entry"]))
        store.put("crowd", b"yes")
        store.check()
    with SQLiteStates(path) as store:
        assert store.get([b"u", b"v"]) == [b"after before", None]
        assert ([entry for _, entry in store.journal(0)], store.value("crowd")) == ([b"entry"], b"yes")


def test_a_failing_sync_acknowledges_nothing(tmp_path: Path) -> None:
    path = tmp_path / "states.db"
    ended = run(
        "import os; from pathlib import Path; failing = Path(os.environ['FAILING'])\n"
        "with SQLiteStates(sys.argv[1]) as store:\n"
        "    store.update([b'u'], lambda _: Update([b'before']))\n"
        "    failing.touch()\n"
        "    for _ in range(3):\n"
        "        try: store.update([b'u', b'v'], lambda _: Update([b'no', b'no'], [b'no']))\n"
        "        except StorageError as error: print(error)\n"
        "        assert store.get([b'u', b'v']) == [b'before', None]\n"
        "    failing.unlink()\n"
        "    store.update([b'u'], lambda found: Update([b'after ' + found[0]], [b'entry'])); store.check()",
        path,
        failing_syncs(tmp_path),
    )
    assert (ended.returncode, ended.stdout.count("disk I/O error")) == (0, 3), ended.stderr
    with SQLiteStates(path) as store:
        assert store.get([b"u", b"v"]) == [b"after before", None]
        assert [entry for _, entry in store.journal(0)] == [b"entry"]


def test_what_is_forgotten_is_in_no_file(tmp_path: Path) -> None:
    rng = random.Random(1)
    mark = b"<personal>"
    with SQLiteStates(tmp_path / "states.db") as store:
        for n in range(300):
            # Values of all sizes move one another about in the pages.
            others = [b"other%d" % rng.randrange(80) for _ in range(3)]
            store.update(sorted(set(others)), lambda found: Update([b"o" * rng.randrange(6000) for _ in found]))
            if n % 3 == 0:
                put(store, b"the-user", mark * rng.randrange(1, 600))
        assert mark in files_of(tmp_path)
        store.forget(b"the-user")
        kept = files_of(tmp_path)
        assert b"the-user" not in kept
        assert mark not in kept
        assert one(store, b"other1") is not None


def test_what_a_killed_process_forgot_is_in_no_file(tmp_path: Path) -> None:
    path = tmp_path / "states.db"
    run(
        "import os; store = SQLiteStates(sys.argv[1]); store._checkpoint = lambda: os.kill(os.getpid(), 9)\n"
        "store.update([b'u'], lambda _: Update([b'<personal>' * 9])); store.forget(b'u')",
        path,
    )
    assert b"<personal>" in files_of(tmp_path)
    with SQLiteStates(path):
        assert b"<personal>" not in files_of(tmp_path)


@pytest.mark.parametrize(("durability", "least", "most"), [("fsync", 1 << 20, 3 << 20), ("os", 4 << 20, 12 << 20)])
def test_the_write_ahead_log_stays_short(tmp_path: Path, durability: Durability, least: int, most: int) -> None:
    wal, longest = tmp_path / "states.db-wal", 0
    with SQLiteStates(tmp_path / "states.db", durability) as store:
        for n in range(120):
            keys = [b"%d" % (n * 37 % 1000 + k) for k in range(64)]
            store.update(keys, lambda found: Update([os.urandom(4000)] * len(found), [bytes(100)] * 64))
            longest = max(longest, wal.stat().st_size)
        assert least < longest < most
        store.put("crowd", bytes(40 << 20))
        put(store, b"u", b"")
        assert wal.stat().st_size < most


def test_a_value_that_was_never_finished_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "states.db"
    ended = run(
        "import os; from hiertcn.states import sqlite; sqlite._SHARE = 'nonsense'\n"
        "with SQLiteStates(sys.argv[1]) as store:\n"
        "    store.put('crowd', bytes(3 << 20))",
        path,
    )
    assert ended.returncode == 1
    assert path.stat().st_size > 3 << 20
    with SQLiteStates(path) as store:
        assert store.value("crowd") is None
        assert store._connection.execute("SELECT count(*) FROM parts").fetchone() == (0,)


@pytest.mark.parametrize("kind", ["text", "short", "database", "newer", "older"])
def test_a_foreign_file_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "theirs"
    if kind in ("text", "short"):
        path.write_bytes(b"user,item,time\n" * (20 if kind == "text" else 1))
    elif kind in ("newer", "older"):
        SQLiteStates(path).close()
    if kind in ("database", "newer", "older"):
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE theirs (a)")
            if kind != "database":
                connection.execute(f"PRAGMA user_version = {99 if kind == 'newer' else 1}")
        connection.close()
    before = path.read_bytes()
    told = "format 1; this version reads format 2.*replay the log" if kind == "older" else "no store of states"
    with pytest.raises(ArtifactError, match=told):
        SQLiteStates(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "states.db"
    path.touch()
    with SQLiteStates(path) as store:
        put(store, b"u", b"value")
    with SQLiteStates(path) as store:
        assert one(store, b"u") == b"value"


@pytest.mark.parametrize("damage", ["page", "all", "truncated"])
def test_a_damaged_file_is_refused_with_the_way_out(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "states.db"
    with SQLiteStates(path) as store:
        for n in range(200):
            put(store, b"u%d" % n, b"value" * 50)
    whole = path.read_bytes()
    page = {"page": (4096, 8192), "all": (100, len(whole))}.get(damage, (0, 0))
    path.write_bytes(whole[: page[0]] + b"\xff" * (page[1] - page[0]) + whole[page[1] : None if page[1] else 8192])
    with pytest.raises(ArtifactError, match=r"damaged.*Put back a copy of it, or .* replay the log") as caught:
        SQLiteStates(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["", "missing/states.db"])
def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, place: str) -> None:
    with pytest.raises(StorageError, match="can't be used"):
        SQLiteStates(tmp_path / place)
