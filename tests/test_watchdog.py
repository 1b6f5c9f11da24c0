"""A server that hangs ends itself, says where it was, and has lost nothing when it is started again."""

from __future__ import annotations

import http.client
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from faults import Faults
from hiertcn.artifact import Run
from hiertcn.watchdog import HUNG_CODE
from servers import Server


def event(number: int) -> dict[str, Any]:
    return {"event_id": f"e{number}", "user_id": "u", "item_id": "abcde"[number % 5], "time": int(time.time())}


def told(server: Server) -> str:
    """What it said until its end."""
    assert server.process.stderr is not None
    assert server.process.wait(60) == HUNG_CODE
    return server.process.stderr.read()


def test_a_thread_of_batches_that_hangs_for_long_ends_the_server(run: Run, tmp_path: Path) -> None:
    faults, state = Faults(tmp_path), f"sqlite:///{tmp_path}/states.db"

    class Brief(Server):
        PROGRAM = f"import hiertcn.watchdog as w; w.HUNG = 3; {Server.PROGRAM}"

    with pytest.MonkeyPatch.context() as patch:
        for variable, value in faults.environment.items():
            patch.setenv(variable, value)
        started = Brief(run.path, "--state", state)
    events = [event(number) for number in range(5)]
    with started as server:
        # As long as it gets on, however slowly, it stays.
        with faults.of("delay", 900):
            for one in events:
                assert server.post("/v1/observe", {"event": one}).body["result"]["status"] == "applied"
        with faults.of("delay", 60_000), suppress(OSError, http.client.HTTPException):
            server.post("/v1/observe", {"event": event(5)})
        said = told(server)
    assert "Error: the thread of batches has not got on for 3 s" in said
    assert "sqlite.py" in said
    with Server(run.path, "--state", state) as server:
        again = server.post("/v1/events", {"events": events}).body["results"]
        assert {one["status"] for one in again} == {"duplicate"}


def test_a_loop_of_requests_that_hangs_ends_it_too(run: Run) -> None:
    class Stopped(Server):
        PROGRAM = (
            "import hiertcn.watchdog as w; w.HUNG = 2\n"
            "import time; import hiertcn.server as s; s.Server._check = lambda *_: time.sleep(60)\n"
            f"{Server.PROGRAM}"
        )

    with Stopped(run.path, "--state", "memory:") as server:
        with suppress(OSError, http.client.HTTPException):
            server.post("/v1/recommend", {"user_id": "u"})
        assert "the loop of requests has not got on" in told(server)
