"""Who was forgotten is told without a name, and left out of a log, up to the moment and no further."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from hiertcn.artifact import Run
from hiertcn.aside import set_aside
from hiertcn.cli import app
from hiertcn.door import key_of
from hiertcn.errors import InputError
from hiertcn.exporting import export
from hiertcn.forgotten import forgotten_of, read_forgotten, remember
from hiertcn.preparation import prepare
from hiertcn.recommender import Recommender
from hiertcn.states import MemoryStates, Update
from people import FULL, START, catalog_of, run_of
from servers import Server

NOW = int(time.time())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = run_of(tmp_path_factory.mktemp("runs") / "shop", FULL, catalog_of("abcde"))
    export(run)
    return run


def test_a_store_tells_who_was_forgotten_and_nobody_else(run: Run) -> None:
    states = MemoryStates()
    with Recommender.load(run, states) as rec:
        for user in ("kept", "gone", "back", "damaged"):
            rec.observe(user, "a", START)
        rec.delete("gone", until=START + 10.25)
        rec.delete("back", until=START + 20)
        rec.observe("back", "b", START + 30)
        # Without a moment nothing is kept, and nothing told.
        rec.delete("kept")
        states.update([key_of("damaged")], lambda _: Update([b"HTCN" + bytes(90)]))
        set_aside(states, [key_of("damaged")], b"HTCN" + bytes(90))
        rec.stock.withdraw(["e"])
        found = dict(forgotten_of(states))
    assert found == {key_of("gone").hex(): START + 10.25, key_of("back").hex(): START + 20}


def test_a_damaged_state_tells_nothing(run: Run) -> None:
    states = MemoryStates()
    with Recommender.load(run, states) as rec:
        rec.delete("gone", until=START)
        (value,) = states.get([key_of("gone")])
        assert value is not None
        states.update([key_of("gone")], lambda _: Update([value[:30] + bytes([value[30] ^ 1]) + value[31:]]))
        assert list(forgotten_of(states)) == []


def test_a_store_made_anew_knows_who_was_forgotten(run: Run, tmp_path: Path) -> None:
    log = pl.DataFrame(
        [(user, item, START + wait) for user in ("kept", "gone") for item, wait in (("a", 0), ("b", 10), ("c", 20))],
        schema=["user", "item", "ts"],
        orient="row",
    )
    log.write_parquet(tmp_path / "log.parquet")
    listed = {"forgotten": [{"digest": key_of(user).hex(), "until": START + 10} for user in ("gone", "never seen")]}
    (tmp_path / "forgotten.json").write_text(json.dumps(listed))
    state = f"sqlite:///{tmp_path}/states.db"
    asked = ["replay", tmp_path / "log.parquet", run.path, "--state", state, "--forgotten", tmp_path / "forgotten.json"]
    for _ in range(2):
        assert CliRunner().invoke(app, list(map(str, asked))).exit_code == 0
        with Recommender.load(run, state) as rec:
            kept = {user: rec.kept_of(user) for user in ("kept", "gone")}
            assert {user: found and found.sessions[0][0] for user, found in kept.items()} == {
                "kept": ["a", "b", "c"],
                "gone": ["c"],
            }
            assert dict(forgotten_of(rec.states)) == {one["digest"]: one["until"] for one in listed["forgotten"]}
    # Of a store that knows events of theirs, those are gone.
    with Recommender.load(run, state) as rec:
        remember(rec.states, {key_of("kept"): (START + 15) * 1_000_000, key_of("gone"): 5}, rec.digest)
        kept = {user: rec.kept_of(user) for user in ("kept", "gone")}
        assert {user: found and found.sessions[0][0] for user, found in kept.items()} == {"kept": ["c"], "gone": ["c"]}
        assert rec.observe("gone", "a", START + 9) == "expired"


@pytest.mark.parametrize("whole", [False, True], ids=["texts", "whole numbers"])
def test_from_a_deletion_over_http_to_a_log_without_it(run: Run, tmp_path: Path, whole: bool) -> None:
    users = [7, 8, 9] if whole else ["anna", "böla", "c/d"]
    with Server(run.path, "--state", "memory:") as server:
        assert server.ask("GET", "/v1/forgotten").body == {"forgotten": []}
        event: dict[str, Any] = {"event_id": "e", "user_id": users[0], "item_id": "a", "time": NOW - 60}
        server.post("/v1/events", {"events": [event]})
        assert server.ask("DELETE", f"/v1/users/{users[0]}").status == 204
        (tmp_path / "forgotten.json").write_text(json.dumps(server.ask("GET", "/v1/forgotten").body))
    log = pl.DataFrame(
        [
            (user, item, NOW + wait)
            for user in users
            for item, wait in (("a", -900), ("b", -30), ("c", 900), ("d", 901))
        ],
        schema=["user", "item", "ts"],
        orient="row",
    )
    options: dict[str, Any] = {"split": "users", "fractions": (1.0, 0.0, 0.0)}
    whole_log = prepare(log, tmp_path / "whole", **options)
    left = prepare(log, tmp_path / "left", forgotten=tmp_path / "forgotten.json", **options)
    assert (whole_log.manifest.events, left.manifest.events) == (12, 10)
    assert left.manifest.waterfall[1]["step"] == "without what was to be forgotten"
    assert left.manifest.waterfall[1]["dropped_events"] == 2
    sessions = {user: part for shard in map(left.shard, range(len(left))) for user, part in _times(shard)}
    assert sessions[users[0]] == [NOW + 900, NOW + 901]
    assert len(sessions[users[1]]) == len(sessions[users[2]]) == 4


def _times(shard: Any) -> list[tuple[Any, list[int]]]:
    offsets = shard.sessions.session_offsets[shard.sessions.user_offsets]
    times = (shard.sessions.times // 1_000_000).tolist()
    return [(user, times[offsets[at] : offsets[at + 1]]) for at, user in enumerate(shard.user_ids.to_list())]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"forgotten": 3}',
        '{"forgotten": [{"digest": "00", "until": 1}]}',
        '{"forgotten": [{"until": 1}]}',
    ]
    + [
        json.dumps({"forgotten": [{"digest": "0" * 32, "until": bad}]})
        for bad in (None, float("nan"), "x", "1e400", 1e300, -1)
    ],
)
def test_what_is_no_such_list_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(InputError, match="no list of who is forgotten; expected"):
        read_forgotten(tmp_path / "list.json")
    with pytest.raises(InputError, match="can't be read"):
        read_forgotten(tmp_path / "none.json")
