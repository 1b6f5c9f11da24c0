"""`hiertcn replay`: a store filled from the command line, and what it says where it can't be."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from commands import Ask, said
from hiertcn.artifact import Run
from hiertcn.exporting import export
from hiertcn.replay import replay
from hiertcn.served import served
from hiertcn.states import MemoryStates, Update, UserState, open_states
from people import FULL, catalog_of, run_of
from replays import assert_same, busy, log_of


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ask:
    return Ask(monkeypatch, capfd)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_of(tmp_path_factory.mktemp("runs") / "run", FULL, catalog_of("abcde"))


def test_the_command_fills_a_file_by_the_run_or_what_was_exported(run: Run, tmp_path: Path, ask: Ask) -> None:
    events = [*busy(30), *busy(7, "v")]
    frame = pl.DataFrame(events, schema=["user", "item", "time"], orient="row").with_columns(
        kind=pl.Series(["seen" if n % 5 == 0 else "picked" for n in range(37)]),
        id=pl.Series([f"e{n}" for n in range(37)]),
    )
    frame.write_parquet(tmp_path / "log.parquet")
    expected = MemoryStates()
    model = served(run)
    kept = [n for n in range(37) if n % 5]
    replay(model, expected, log_of([events[n] for n in kept], [f"e{n}" for n in kept]))
    folder = export(run, tmp_path / "online")
    options = ["--time-unit", "s", "--type-column", "kind", "--drop-types", "seen", "--event-id", "id"]
    for number, path in enumerate((run.path, folder)):
        state = f"sqlite:///{tmp_path}/{number}.db"
        answer = ask("replay", tmp_path / "log.parquet", path, "--state", state, *options)
        assert answer.code == 0, answer.err
        assert "29 events of 2 users: 29 applied; the last 29 new picks told" in " ".join(answer.err.split())
        with open_states(state) as store:
            assert_same(store, expected, model.digest)
    one = f"sqlite:///{tmp_path}/one.db"
    since = ["--since", events[3][2], "--user", "u", "--users", 5]
    assert ask("replay", tmp_path / "log.parquet", folder, "--state", one, "--time-unit", "s", *since).code == 0
    with open_states(one) as store:
        ((_, value),) = store.scan()
    assert UserState.from_bytes(value, model.digest).items == [item for _, item, _ in events[3:30]]


def test_the_command_says_what_it_can_not_do(run: Run, tmp_path: Path, ask: Ask) -> None:
    log, path = tmp_path / "log.csv", run.path
    log.write_text("user,item,time,id\nu,a,1714521600,x\nu,b,1714521700,\n")
    state = f"sqlite:///{tmp_path}/states.db"
    said(ask("replay", log, path, "--state", "memory:"), 2, "ends with this command", "sqlite:///FILE")
    said(ask("replay", log, path, "--state", state, "--event-id", "ids"), 2, "no column 'ids' for event", "'id'")
    said(ask("replay", log, path, "--state", state, "--event-id", "id"), 2, "no event id")
    late = ["--since", "2030-01-01T00:00:00Z"]
    said(ask("replay", log, path, "--state", state, *late), 2, "No event of the log is left")
    said(ask("replay", log, path, "--state", state, "--since", "soon"), 2, "'soon'")
    said(ask("replay", log, path, "--state", state, "--preset", "ebner"), 2, "No preset")
    assert not (tmp_path / "states.db").exists()
    assert ask("replay", log, path, "--state", state).code == 0
    with open_states(state) as store:
        ((key, value),) = store.scan()
        store.update([key], lambda _: Update([value[:-2]]))
    said(ask("replay", log, path, "--state", state), 3, "1 users are damaged", "--rebuild")
    assert ask("replay", log, path, "--state", state, "--rebuild").code == 0
