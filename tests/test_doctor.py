"""`hiertcn doctor`: what it says of a store, a model and what is installed, and which promises it finds broken."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import Answer, asked
from hiertcn.artifact import Run
from hiertcn.diagnosis import diagnose
from hiertcn.recommender import LATENESS
from hiertcn.replay import replay
from hiertcn.served import served
from hiertcn.states import SQLiteStates, Update, open_states, sqlite
from hiertcn.states.schema import FORMAT
from hiertcn.states.state import HISTORY
from people import KINDS, catalog_of, run_of
from replays import busy, log_of
from stores import RedisServer


@pytest.fixture
def state(run: Run, tmp_path: Path) -> str:
    """A store of ten users of 1 … 10 events."""
    url = f"sqlite:///{tmp_path / 'states.db'}"
    with open_states(url) as store:
        replay(served(run), store, log_of([event for n in range(10) for event in busy(n + 1, f"u{n}")]))
    return url


def doctor(*arguments: Any) -> tuple[Answer, dict[str, Any]]:
    answer = asked("doctor", *arguments, "--json")
    return answer, json.loads(answer.out)


def test_what_is_sound_ends_with_0(run: Run, state: str) -> None:
    answer, found = doctor(run.path, "--state", state, "--index", "faiss")
    assert (answer.code, found["sound"], found["problems"]) == (0, True, [])
    with open_states(state) as store:
        sizes = [len(value) for _, value in store.scan()]
        assert found["store"] == {**store.facts(), "write-ahead log": found["store"]["write-ahead log"]}
    assert found["versions"]["SQLite"] == sqlite3.sqlite_version
    assert found["versions"]["numpy"] == np.__version__
    assert (found["model"]["items"], found["model"]["form"]) == (5, "ONNX")
    assert found["model"]["digest"] == served(run).digest.hex()
    assert found["limits"]["lateness"].startswith(f"{LATENESS:g} s")
    assert found["limits"]["history"].startswith(f"{HISTORY} events")
    assert found["index"] == {"index": "faiss", "cache": "none: it is built when a server starts"}
    states = found["states"]
    assert (states["users"], states["events"], states["of this model"], states["damaged"]) == (10, 55, 10, 0)
    assert [states[f"bytes, {name}"] for name in ("mean", "p50", "p90", "p99", "max")] == [
        round(one) for one in (np.mean(sizes), *np.percentile(sizes, [50, 90, 99, 100]))
    ]


def test_people_read_the_same(run: Run, state: str) -> None:
    answer = asked("doctor", run.path, "--state", state)
    assert answer.code == 0
    assert "fsync: a kill loses nothing acknowledged, a power cut nothing" in answer.out
    assert answer.out.strip().splitlines()[-1] == "sound"
    assert asked("doctor").code == 0


def test_each_promise_that_cannot_be_held_is_named(run: Run, state: str, tmp_path: Path) -> None:
    path = Path(state.removeprefix("sqlite:///"))
    with open_states(state) as store:
        for (key, value), new in zip(list(store.scan())[:3], (b"HTCN", b"", None), strict=True):
            store.update([key], lambda _, new=new, value=value: Update([value[:-1] if new is None else new]))  # type: ignore[misc]
    path.chmod(0o644)
    answer, found = doctor(run.path, "--state", state, "--index", "fais")
    assert answer.code == 1
    assert (found["states"]["damaged"], found["states"]["of this model"]) == (3, 7)
    wrong, damaged, mode = found["problems"]
    assert "'fais' is no index" in wrong
    assert "3 users are damaged" in damaged
    assert f"hiertcn replay LOG RUN --state {state} --rebuild" in damaged
    assert f"chmod 600 {path}" in mode


def test_states_of_another_model_are_counted(run: Run, state: str, tmp_path: Path) -> None:
    other = run_of(tmp_path / "other", KINDS["hiertcn"], catalog_of("abcde"))
    answer, found = doctor(other.path, "--state", state)
    assert (answer.code, found["states"]["of this model"]) == (0, 0)
    assert found["states"]["of another, read anew when asked for"] == 10
    assert found["model"]["form"].startswith("torch")


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    state = f"sqlite:///{tmp_path / 'states.db'}"
    answer, found = doctor("--state", state)
    assert answer.code == 1
    assert f"hiertcn replay LOG RUN --state {state}" in found["problems"][0]
    assert not list(tmp_path.iterdir())


def test_a_store_that_is_damaged_older_or_in_use_is_named_with_the_way_out(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(state.removeprefix("sqlite:///"))
    with open_states(state):
        assert "locked" in doctor("--state", state)[1]["problems"][0]
    file = sqlite3.connect(path)
    file.execute(f"PRAGMA user_version = {FORMAT - 1}")
    file.close()
    answer, found = doctor("--state", state)
    assert answer.code == 1
    assert "hiertcn replay LOG RUN --state sqlite:///NEW" in found["problems"][0]
    data = bytearray(path.read_bytes())
    data[60:64] = FORMAT.to_bytes(4, "big")
    data[4096 : 3 * 4096] = bytes(range(256)) * 32
    path.write_bytes(data)
    for most in (sqlite.CHECKED, 0):
        # Also of a file that is too large to be read whole when it is opened.
        monkeypatch.setattr(sqlite, "CHECKED", most)
        (problem,) = doctor("--state", state)[1]["problems"]
        assert "damaged" in problem
        assert "hiertcn replay LOG RUN --state sqlite:///NEW" in problem


def test_a_model_that_is_none_is_named(tmp_path: Path) -> None:
    answer, found = doctor(tmp_path / "nothing")
    assert answer.code == 1
    assert "nothing" in found["problems"][0]


def test_memory_promises_nothing() -> None:
    assert "keeps nothing" in diagnose(state="memory:").problems[0]


def test_a_redis_that_loses_what_it_acknowledged_is_named_with_its_settings(tmp_path: Path) -> None:
    options = ("--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "allkeys-lru")
    with RedisServer(tmp_path, options) as server:
        found = diagnose(state=server.url())
        assert not found.sound
        assert "appendfsync is everysec" in found.problems[0]
        assert "allkeys-lru" in found.problems[0]
        facts = found.facts["store"]
        assert (facts["appendonly"], facts["appendfsync"]) == ("yes", "everysec")
        assert facts["maxmemory-policy"] == "allkeys-lru"
        assert facts["kind"].startswith(("Redis", "Valkey"))
        weaker = diagnose(state=server.url(), durability="os")
        assert [problem for problem in weaker.problems if "allkeys-lru" in problem]
        assert not [problem for problem in weaker.problems if "everysec" in problem]


def test_a_redis_that_holds_what_it_promises_is_sound(redis_server: RedisServer) -> None:
    found = diagnose(state=redis_server.url())
    assert (found.problems, found.facts["states"]) == ([], {"users": 0, "events": 0, "damaged": 0})


def test_an_index_that_is_kept_is_told(run: Run, tmp_path: Path) -> None:
    folder = Path(served_folder(run)) / "index"
    folder.mkdir()
    (folder / "hnsw-x.index").write_bytes(b"12345")
    try:
        assert diagnose(run.path, index="faiss").facts["index"]["cache"] == "1 files of 5 bytes"
    finally:
        (folder / "hnsw-x.index").unlink()
        folder.rmdir()


def served_folder(run: Run) -> Path:
    return run.path / "online"


def test_what_a_locked_file_held_is_left(state: str) -> None:
    """To look at a store changes nothing in it."""
    with SQLiteStates(state.removeprefix("sqlite:///")) as store:
        before = dict(store.scan())
    doctor("--state", state)
    with open_states(state) as store:
        assert dict(store.scan()) == before
