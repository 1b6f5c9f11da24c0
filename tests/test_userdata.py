"""What a server holds of a user is told in full to who may ask, and what may not be held is not."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from hiertcn.artifact import Run
from hiertcn.aside import set_aside
from hiertcn.door import key_of
from hiertcn.exporting import export
from hiertcn.keys import new_key
from hiertcn.messages import encoded
from hiertcn.models import HierTCNConfig
from hiertcn.recommender import LATENESS, Recommender
from hiertcn.states import MemoryStates, Update, UserState, mark_of
from hiertcn.userdata import stored_of
from people import FULL, GAP, SIZES, START, catalog_of, run_of
from servers import Server

NOW = int(time.time())
DAY = 86_400
HEARING = HierTCNConfig(**SIZES, clock=True, trends=(0.5,), follows=(1.0,), impressions=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = run_of(tmp_path_factory.mktemp("runs") / "shop", HEARING, catalog_of("abcde"))
    export(run)
    return run


def event(user: str, item: str, number: int, wait: int = 0, **more: Any) -> dict[str, Any]:
    return {"event_id": f"{user}-{number}", "user_id": user, "item_id": item, "time": NOW + wait, **more}


def test_all_that_is_stored_is_told(run: Run) -> None:
    states = MemoryStates()
    with Recommender.load(run, states) as rec:
        rec.observe("u", "a", START + 0.25, event_id="first")
        rec.observe("u", "never heard of", START + GAP + 1)
        rec.observe("u", "b", START + 3 * GAP, ["c", "a"], event_id="last")
        rec.observe("u", "c", START + 3 * GAP + LATENESS + 1)
        found = stored_of(states, "u")
        assert found is not None
        ((_, value),) = states.scan()
        state = UserState.from_bytes(value, rec.digest)
        assert [(one.item_id, one.time, one.read, one.shown) for one in found.events] == [
            ("a", START + 0.25, True, []),
            ("never heard of", START + GAP + 1, True, []),
            ("b", START + 3 * GAP, False, ["c", "a"]),
            ("c", START + 3 * GAP + LATENESS + 1, False, []),
        ]
        assert [one.event_mark for one in found.events] == [
            f"{mark_of('first'):016x}",
            None,
            f"{mark_of('last'):016x}",
            None,
        ]
        assert state.long_term is not None
        assert found.long_term == state.long_term.tolist()
        assert (found.model, found.bytes) == (rec.digest.hex(), len(value))
        assert (found.read_until, found.forgotten_until) == (START + 0.25, None)
        rec.delete("u", START + 4 * GAP)
        gone = stored_of(states, "u")
        assert gone is not None
        assert (gone.events, gone.long_term, gone.model, gone.forgotten_until) == ([], None, None, START + 4 * GAP)
        assert stored_of(states, "v") is None


def test_what_is_damaged_is_told_as_it_is_and_forgotten_too(run: Run) -> None:
    states = MemoryStates()
    key = key_of("u")
    with Recommender.load(run, states) as rec:
        for damaged in ([b"<first>"], [b"<first>", b"<second>"]):
            states.update([key], lambda _, damaged=damaged: Update([damaged[-1]]))
            found = stored_of(states, "u")
            assert found is not None
            assert (found.damaged, found.events, found.long_term, found.model) == (damaged, [], None, None)
            assert found.bytes == sum(map(len, damaged))
            if len(damaged) == 1:
                assert set_aside(states, [key], damaged[0]) == 1
                assert (found := stored_of(states, "u")) is not None
                assert (found.damaged, found.bytes) == (damaged, len(damaged[0]))
        rec.delete("u", START)
        gone = stored_of(states, "u")
        assert gone is not None
        assert gone.damaged == []
        assert b"<" not in b"".join(value for _, value in states.scan())
    assert json.loads(encoded(found))["damaged"] == ["PGZpcnN0Pg==", "PHNlY29uZD4="]


def test_what_another_model_made_is_told_as_it_is(run: Run, tmp_path: Path) -> None:
    states = MemoryStates()
    other = run_of(tmp_path / "other", FULL, catalog_of("abcde"))
    with Recommender.load(other, states) as rec:
        rec.observe("u", "a", START)
        rec.observe("u", "b", START + 3 * GAP)
        rec.observe("u", "b", START + 3 * GAP + LATENESS + 1)
        found = stored_of(states, "u")
    assert found is not None
    assert found.model == rec.digest.hex() != Recommender.load(run).digest.hex()
    assert found.long_term is not None
    assert len(found.long_term) == len(rec._model.zero_state(1)[0])


def test_an_admin_gets_it_over_http(run: Run, tmp_path: Path) -> None:
    made = {role: new_key() for role in ("read", "write", "admin")}
    path = tmp_path / "keys.toml"
    path.write_text("".join(f'{role} = ["{digest}"]\n' for role, (_, digest) in made.items()))
    headers = {role: {"authorization": f"Bearer {key}"} for role, (key, _) in made.items()}
    with Server(run.path, "--state", "memory:", "--keys", path) as server:
        server.post("/v1/events", {"events": [event("u", "a", 0), event("u", "b", 1, -5)]}, **headers["write"])
        said = {role: server.ask("GET", "/v1/export/u", **header) for role, header in headers.items()}
        assert {role: one.status for role, one in said.items()} == {"read": 403, "write": 403, "admin": 200}
        body = said["admin"].body
        assert [(one["item_id"], one["time"]) for one in body["events"]] == [("b", NOW - 5), ("a", NOW)]
        assert body["events"][1]["event_mark"] == f"{mark_of('u-0'):016x}"
        assert server.ask("GET", "/v1/export/nobody", **headers["admin"]).status == 404


def test_without_consent_an_event_is_read_for_the_answer_alone(server: Server, run: Run) -> None:
    for user in ("asked", "free"):
        server.post("/v1/events", {"events": [event(user, "a", 0, -50)]})
    before = server.ask("GET", "/v1/export/asked").body
    body = {"event": event("asked", "b", 1, -20, consent=False, shown=["d"]), "k": 5, "exclude_seen": True}
    found = server.post("/v1/observe", body).body
    theirs = server.post("/v1/observe", {**body, "event": event("free", "b", 1, -20, shown=["d"])}).body
    assert found["result"] == {"event_id": "asked-1", "status": "not_stored"}
    assert theirs["result"]["status"] == "applied"
    assert [one["item_id"] for one in found["items"]] == [one["item_id"] for one in theirs["items"]]
    assert {one["item_id"] for one in found["items"]} == {"c", "d", "e"}
    for ours, other in zip(found["items"], theirs["items"], strict=True):
        assert ours["score"] == pytest.approx(other["score"], abs=1e-5)
    assert server.ask("GET", "/v1/export/asked").body == before
    # The same id counts as new, since it was never stored.
    assert server.post("/v1/observe", {"event": event("asked", "b", 1, -20)}).body["result"]["status"] == "applied"


def test_without_consent_nothing_is_stored_and_nobody_is_told(run: Run, tmp_path: Path) -> None:
    state = f"sqlite:///{tmp_path}/states.db"
    with Server(run.path, "--state", state) as server:
        sent = [event("quiet", "a", n, n, consent=False) for n in range(3)]
        said = server.post("/v1/events", {"events": sent})
        assert [one["status"] for one in said.body["results"]] == ["not_stored"] * 3
        assert server.post("/v1/observe", {"event": sent[0]}).body["source"] == "model"
        assert server.ask("GET", "/v1/users/quiet").status == 404
        assert server.end() == 0
    with Recommender.load(run, state) as rec:
        assert (list(rec.states.scan()), rec.states.journal(0)) == ([], [])


def test_an_event_older_than_what_is_retained_is_expired(server: Server) -> None:
    sent = [event("old", "a", 0, -400 * DAY - 60), event("old", "b", 1, -400 * DAY + 3600)]
    said = server.post("/v1/events", {"events": sent})
    assert [one["status"] for one in said.body["results"]] == ["expired", "applied"]
    one = server.post("/v1/observe", {"event": sent[0], "k": 2})
    assert (one.status, one.body["result"]["status"], len(one.body["items"])) == (200, "expired", 2)
    assert server.ask("GET", "/v1/users/old").body["events"] == 1
    text = server.ask("GET", "/metrics").body.decode()
    assert 'hiertcn_events_total{status="expired"} 2.0' in text


def test_a_consent_that_is_none_is_refused(server: Server) -> None:
    said = server.post("/v1/observe", {"event": event("u", "a", 0, consent="no")})
    assert (said.status, said.body["error"]["field"]) == (422, "event.consent")
