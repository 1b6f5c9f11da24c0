"""A store that was there before is not begun anew unnoticed: a server says what is wrong with its file, and helps."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import time
from pathlib import Path

import pytest

from commands import Answer, Ask, said
from hiertcn.artifact import Run
from hiertcn.recommender import Recommender
from hiertcn.states import SQLiteStates
from servers import Server

NOW = int(time.time())


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ask:
    return Ask(monkeypatch, capfd)


@pytest.fixture(scope="module")
def served(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a server that has ended."""
    path = tmp_path_factory.mktemp("served") / "states.db"
    with Server(run.path, "--state", f"sqlite:///{path}") as server:
        event = {"event_id": "e", "user_id": "u", "item_id": "a", "time": NOW}
        assert server.post("/v1/events", {"events": [event]}).status == 200
        assert server.end() == 0
    assert sorted(file.name for file in path.parent.iterdir()) == ["states.db", "states.db.begun"]
    return path


@pytest.fixture
def store(served: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    for file in served.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / file.name).chmod(0o600)
    return tmp_path / "states.db"


def refused(ask: Ask, run: Run, store: Path) -> Answer:
    before = {file: file.stat().st_mode for file in store.parent.iterdir()}
    answer = ask("serve", run.path, "--state", f"sqlite:///{store}", "--port", 0)
    assert {file: file.stat().st_mode for file in store.parent.iterdir()} == before
    return answer


def starts(run: Run, store: Path, *options: str) -> int:
    """How many events of the user a server has that is started now."""
    with Server(run.path, "--state", f"sqlite:///{store}", *options) as server:
        found = server.ask("GET", "/v1/users/u")
        return int(found.body["events"]) if found.status == 200 else 0


@pytest.mark.parametrize("left", ["nothing", "an empty file"])
def test_a_store_that_is_gone_is_not_begun_anew_unless_that_is_meant(
    ask: Ask, run: Run, store: Path, left: str
) -> None:
    store.unlink()
    if left != "nothing":
        store.touch()
    said(refused(ask, run, store), 5, "There is no store", "begun there", f"--state sqlite:///{store}", "--anew")
    assert starts(run, store, "--anew") == 0
    # From then on it is there again.
    store.unlink()
    said(refused(ask, run, store), 5, "--anew")


def test_the_command_that_is_told_brings_it_back(ask: Ask, run: Run, store: Path) -> None:
    store.unlink()
    log = store.with_name("log.csv")
    log.write_text(f"user,item,time\nu,a,{NOW}\nu,b,{NOW + 1}\n")
    found = re.search(r"`hiertcn (replay LOG .*?)`", refused(ask, run, store).err)
    assert found is not None
    done = ask(*shlex.split(found[1].replace("LOG", str(log))))
    assert done.code == 0, done.err
    assert starts(run, store) == 2


def test_a_store_that_moved_with_its_marker_or_without_is_served(run: Run, store: Path) -> None:
    assert starts(run, store) == 1
    store.with_name("states.db.begun").unlink()
    assert starts(run, store) == 1
    assert store.with_name("states.db.begun").exists()


def test_who_may_read_it_is_looked_at(ask: Ask, run: Run, store: Path) -> None:
    for mode in (0o644, 0o660, 0o602):
        store.chmod(mode)
        found = re.search(r"`(chmod 600 .*?)`", refused(ask, run, store).err)
        assert found is not None
    os.chmod(shlex.split(found[1])[2], int(shlex.split(found[1])[1], 8))
    assert starts(run, store) == 1


def test_who_can_not_read_it_is_told_how_to(ask: Ask, run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may read all, so that no mode would tell.
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != store and access(path, mode))
    said(refused(ask, run, store), 5, "can't be read and written", f"chown {getpass.getuser()} {store}")


def test_one_that_is_damaged_or_older_is_refused_with_the_command(ask: Ask, run: Run, store: Path) -> None:
    whole = store.read_bytes()
    for head, code, part in ((60, 3, "format 1; this version"), (None, 3, "is damaged")):
        data = bytearray(whole)
        if head is not None:
            data[head : head + 4] = (1).to_bytes(4, "big")
        else:
            data[4096:8192] = b"\xff" * 4096
        store.write_bytes(data)
        said(refused(ask, run, store), code, part, "hiertcn replay LOG RUN --state sqlite:///NEW")
    store.write_bytes(whole)
    assert starts(run, store) == 1


def test_in_python_no_marker_is_made_or_asked_for(run: Run, tmp_path: Path) -> None:
    with Recommender.load(run, f"sqlite:///{tmp_path}/states.db"):
        assert not list(tmp_path.glob("*.begun"))
    with SQLiteStates(tmp_path / "other.db"):
        assert not list(tmp_path.glob("*.begun"))
