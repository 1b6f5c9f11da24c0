"""Every store keeps the same promises, and a user's state comes back from it as it was, or not at all."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hiertcn.errors import ArtifactError, InputError, StorageError
from hiertcn.states import SQLiteStates, StateStore, open_states

MINE, OTHER = b"8 bytes!", b"8 others"
STORES: dict[str, Callable[[Path], str]] = {
    "memory": lambda folder: "memory:",
    "sqlite": lambda folder: f"sqlite:///{folder / 'states.db'}",
}


def put(store: StateStore, user: str, value: bytes) -> None:
    store.update(user, lambda _: value)


class TestStateStore:
    """The contract."""

    @pytest.fixture(params=STORES)
    def store(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateStore]:
        with open_states(STORES[request.param](tmp_path)) as store:
            yield store

    def test_an_unknown_user_has_nothing(self, store: StateStore) -> None:
        assert store.get("u") is None
        store.delete("u")
        assert store.get("u") is None

    def test_update_sees_what_was_stored_and_returns_what_is(self, store: StateStore) -> None:
        found: list[bytes | None] = []

        def grown(value: bytes | None) -> bytes:
            found.append(value)
            return (value or b"") + b"\0x"

        assert store.update("u", grown) == b"\0x"
        assert store.update("u", grown) == b"\0x\0x"
        assert found == [None, b"\0x"]
        assert store.get("u") == b"\0x\0x"

    def test_users_are_apart(self, store: StateStore) -> None:
        users = ["u", "U", "u ", "ü", "u\u0308", "1", "01", "'; DROP TABLE states; --", "%", "日本", "🙂", "a" * 5000]
        for user in users:
            put(store, user, user.encode())
        store.delete("U")
        assert [store.get(user) for user in users] == [None if user == "U" else user.encode() for user in users]

    @pytest.mark.parametrize("value", [b"", b"\0", bytes(range(256)) * 4000], ids=["empty", "nul", "1 MB"])
    def test_any_bytes_come_back(self, store: StateStore, value: bytes) -> None:
        put(store, "u", value)
        assert store.get("u") == value

    def test_a_failed_update_changes_nothing(self, store: StateStore) -> None:
        put(store, "u", b"before")

        def fail(_: bytes | None) -> bytes:
            raise InputError("no")

        for user in ("u", "v"):
            with pytest.raises(InputError, match="no"):
                store.update(user, fail)
        assert (store.get("u"), store.get("v")) == (b"before", None)
        put(store, "u", b"after")
        assert store.get("u") == b"after"

    def test_a_deleted_user_begins_anew(self, store: StateStore) -> None:
        put(store, "u", b"before")
        store.delete("u")
        assert store.get("u") is None
        assert store.update("u", lambda value: b"new" if value is None else b"old") == b"new"

    def test_no_update_is_lost_between_threads(self, store: StateStore) -> None:
        def count(number: int) -> None:
            store.update(f"u{number % 3}", lambda value: str(int(value or b"0") + 1).encode())

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(count, range(300)))
        assert [store.get(f"u{k}") for k in range(3)] == [b"100"] * 3

    def test_closing_twice_does_nothing(self, store: StateStore) -> None:
        store.close()
        store.close()


@pytest.mark.parametrize(
    "url", ["", "memory", "redis://localhost", "sqlite:states.db", "sqlite:///", "SQLITE:///a", "/a"]
)
def test_an_unknown_store_names_the_known_ones(url: str) -> None:
    with pytest.raises(InputError, match="memory: or sqlite:///FILE") as caught:
        open_states(url)
    assert len(str(caught.value)) < 300


def test_a_path_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_states("sqlite:///mine.db").close()
    open_states(f"sqlite:///{tmp_path}/absolute.db").close()
    assert {path.name for path in tmp_path.iterdir()} == {"mine.db", "absolute.db"}


class TestSQLite:
    def test_another_process_of_the_same_file_finds_it(self, tmp_path: Path) -> None:
        path = tmp_path / "states.db"
        with SQLiteStates(path) as store:
            put(store, "u", b"value")
        with SQLiteStates(path) as store:
            assert store.get("u") == b"value"
        assert [file.name for file in tmp_path.iterdir()] == ["states.db"]

    def test_an_acknowledged_update_survives_a_kill(self, tmp_path: Path) -> None:
        path = tmp_path / "states.db"
        program = (
            "import os, signal, sys; from hiertcn.states import SQLiteStates; store = SQLiteStates(sys.argv[1])\n"
            "for n in range(50): store.update(f'u{n}', lambda _: b'value')\n"
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        ended = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
        assert ended.returncode == -signal.SIGKILL
        with SQLiteStates(path) as store:
            assert [store.get(f"u{n}") for n in range(50)] == [b"value"] * 50

    def test_only_one_store_has_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "states.db"
        with SQLiteStates(path) as store:
            with pytest.raises(StorageError, match="locked"):
                SQLiteStates(path)
            put(store, "u", b"value")
            assert store.get("u") == b"value"
        SQLiteStates(path).close()

    def test_a_full_disk_is_a_clean_error_and_loses_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "states.db"
        with SQLiteStates(path) as store:
            put(store, "u", b"value")
        program = (
            "import resource, signal, sys\n"
            "from hiertcn.states import SQLiteStates; from hiertcn.errors import StorageError\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))\n"
            "with SQLiteStates(sys.argv[1]) as store:\n"
            "    try: store.update('u', lambda _: bytes(200_000))\n"
            "    except StorageError as error: print(error)\n"
            "    assert store.get('u') == b'value'; store.update('v', lambda _: b'small')"
        )
        ended = subprocess.run([sys.executable, "-c", program, str(path)], check=True, capture_output=True, text=True)
        assert "states.db can't be used" in ended.stdout
        with SQLiteStates(path) as store:
            assert (store.get("u"), store.get("v")) == (b"value", b"small")

    def test_nothing_is_left_of_a_deleted_user(self, tmp_path: Path) -> None:
        with SQLiteStates(tmp_path / "states.db") as store:
            for n in range(40):
                put(store, f"other{n}", b"kept" * 50)
                put(store, "the-user", b"private" * (n + 1))
            store.delete("the-user")
            for file in tmp_path.iterdir():
                assert b"the-user" not in file.read_bytes()
                assert b"private" not in file.read_bytes()
            assert store.get("other39") == b"kept" * 50

    @pytest.mark.parametrize("kind", ["text", "short", "database", "version"])
    def test_a_foreign_file_is_refused_and_left_alone(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "theirs"
        if kind in ("text", "short"):
            path.write_bytes(b"user,item,time\n" * (20 if kind == "text" else 1))
        elif kind == "version":
            SQLiteStates(path).close()
        if kind in ("database", "version"):
            with sqlite3.connect(path) as connection:
                connection.execute("CREATE TABLE theirs (a)")
                if kind == "version":
                    connection.execute("PRAGMA user_version = 99")
            connection.close()
        before = path.read_bytes()
        with pytest.raises(ArtifactError, match="no store of states"):
            SQLiteStates(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_an_empty_file_becomes_a_store(self, tmp_path: Path) -> None:
        path = tmp_path / "states.db"
        path.touch()
        with SQLiteStates(path) as store:
            put(store, "u", b"value")
        with SQLiteStates(path) as store:
            assert store.get("u") == b"value"

    def test_a_damaged_file_is_told(self, tmp_path: Path) -> None:
        path = tmp_path / "states.db"
        with SQLiteStates(path) as store:
            for n in range(200):
                put(store, f"u{n}", b"value" * 50)
        whole = path.read_bytes()
        path.write_bytes(whole[:100] + b"\xff" * (len(whole) - 100))
        with pytest.raises(ArtifactError, match="damaged"), SQLiteStates(path) as store:
            store.get("u1")

    @pytest.mark.parametrize("place", ["", "missing/states.db"])
    def test_a_place_that_cannot_be_written_is_told(self, tmp_path: Path, place: str) -> None:
        with pytest.raises(StorageError, match="can't be used"):
            SQLiteStates(tmp_path / place)
