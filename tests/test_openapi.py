"""What the door says of itself is so: every route is stated, every answer is as stated, whatever is asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from hiertcn.artifact import Run
from hiertcn.exporting import export
from hiertcn.keys import new_key
from hiertcn.server import ROUTES
from people import FULL, run_of, shop
from servers import Said, Server

NOW = int(time.time())


class Patient(Server):
    """A server to which no time of an event is too far ahead: which ones are, no schema can say."""

    PROGRAM = f"import hiertcn.server as server; server.SKEW = 10 ** 10; {Server.PROGRAM}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = run_of(tmp_path_factory.mktemp("runs") / "shop", FULL, shop())
    export(run)
    return run


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    made, digest = new_key()
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    path.write_text(f'admin = ["{digest}"]\n')
    return made, path


@pytest.fixture(scope="module")
def server(run: Run, key: tuple[str, Path]) -> Iterator[Server]:
    with Patient(run.path, "--state", "memory:", "--keys", key[1]) as server:
        yield server


def test_every_route_is_stated_with_what_it_takes_and_who_may(server: Server) -> None:
    stated = server.ask("GET", "/openapi.json").body
    found = {(method.upper(), path) for path, methods in stated["paths"].items() for method in methods}
    assert found == {(door.method, re.sub(":path", "", door.path)) for door in ROUTES}
    for door in ROUTES:
        one = stated["paths"][re.sub(":path", "", door.path)][door.method.lower()]
        assert ("security" in one, one.get("x-role")) == (door.role is not None, door.role)
        assert one["summary"].endswith((".", ":")) or one["summary"], one
        assert ("requestBody" in one) == (door.takes is not None)
        assert ("401" in one["responses"]) == (door.role is not None)
    asked = stated["components"]["schemas"]["RecommendRequest"]
    assert asked["additionalProperties"] is False
    assert asked["properties"]["k"] == {"type": "integer", "minimum": 1, "maximum": 500, "default": 10}


def _closed(schema: Any) -> Any:
    """The same, of answers that hold nothing that is not stated."""
    if isinstance(schema, dict):
        inner = {name: _closed(value) for name, value in schema.items()}
        return {"additionalProperties": False, **inner} if "properties" in schema else inner
    return [_closed(one) for one in schema] if isinstance(schema, list) else schema


def test_every_answer_is_as_stated(server: Server, key: tuple[str, Path]) -> None:
    stated = server.ask("GET", "/openapi.json").body
    auth = {"authorization": f"Bearer {key[0]}"}
    event = {"event_id": "e1", "user_id": "u", "item_id": "a", "time": NOW}
    asked: list[tuple[str, str, Any, int]] = [
        ("POST", "/v1/events", {"events": [event, event, {}, {**event, "event_id": "e2", "item_id": "?"}]}, 200),
        ("POST", "/v1/events", {"events": 3}, 422),
        ("POST", "/v1/recommend", {"user_id": "u"}, 200),
        ("POST", "/v1/recommend", {"user_id": "nobody", "candidates": ["?"]}, 200),
        ("POST", "/v1/recommend", {"user_id": "u", "filter": {"color": "red"}}, 422),
        ("POST", "/v1/recommend", {"user_id": "u", "filter": {"colour": ["red"], "year": 2020}}, 200),
        ("POST", "/v1/recommend", b"{", 400),
        ("POST", "/v1/observe", {"event": {**event, "event_id": "e3", "time": NOW + 9}}, 200),
        ("POST", "/v1/observe", {"event": {**event, "item_id": "b"}}, 409),
        ("GET", "/v1/users/u", None, 200),
        ("GET", "/v1/users/nobody", None, 404),
        ("DELETE", "/v1/users/u", None, 204),
        *(("GET", path, None, 200) for path in ("/livez", "/readyz", "/metrics", "/openapi.json", "/docs")),
    ]
    for method, path, body, status in asked:
        said = server.ask(method, path, body, **auth)
        assert said.status == status, (path, said)
        _check(stated, method, re.sub("^/v1/users/.*", "/v1/users/{user_id}", path), said)
    _check(stated, "POST", "/v1/recommend", refused := server.post("/v1/recommend", {"user_id": "u"}))
    assert refused.status == 401
    with pytest.raises(jsonschema.ValidationError):
        _check(stated, "POST", "/v1/recommend", Said(200, {**server.ask("GET", "/openapi.json").body}))


def _check(stated: dict[str, Any], method: str, path: str, said: Said) -> None:
    answer = stated["paths"][path][method.lower()]["responses"][str(said.status)]
    if "application/json" not in answer.get("content", {}):
        return
    schema = {**answer["content"]["application/json"]["schema"], "components": _closed(stated["components"])}
    jsonschema.validate(said.body, schema, jsonschema.Draft202012Validator)


def test_without_keys_none_is_asked_for(run: Run) -> None:
    from hiertcn.openapi import document

    stated = document(ROUTES, False, {})
    assert "securitySchemes" not in stated["components"]
    assert not [one for one in stated["paths"].values() for method in one.values() if "401" in method["responses"]]
    assert json.loads(json.dumps(stated)) == stated


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_needs_nothing_from_elsewhere(server: Server) -> None:
    said = server.ask("GET", "/docs")
    text = said.body.decode()
    tags = _Tags()
    tags.feed(text)
    assert not [tag for tag, _ in tags.found if tag in ("script", "img", "link", "iframe", "form")]
    links = {attrs["href"] or "" for tag, attrs in tags.found if tag == "a"}
    names = {f"#{attrs['id']}" for tag, attrs in tags.found if "id" in attrs}
    assert links == {*links & names, "openapi.json"}
    assert names == {f"#{name}" for name in server.ask("GET", "/openapi.json").body["components"]["schemas"]}
    for door in ROUTES:
        assert door.stated_path in text
    style = re.search("<style>(.*)</style>", text, re.S)
    assert style is not None
    import base64
    import hashlib

    with server.open(b"GET /docs HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n") as opened:
        head = opened.recv(4096).decode()
    assert base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode() in head
    assert "default-src 'none'" in head
    assert "unsafe" not in head


def _fuzzed(server: Server, key: str, folder: Path, *options: str) -> int:
    """Schemathesis with all its checks; how many requests it made. Fails with what it found."""
    command = [sys.executable, "-m", "schemathesis.cli", "--no-color", "run"]
    command += [f"http://127.0.0.1:{server.port}/openapi.json", "-H", f"Authorization: Bearer {key}"]
    command += ["--generation-database", "none", "--suppress-health-check", "all", "--seed", "1", *options]
    places = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "generated", "PYTHONPATH": places}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    found = re.search(r"([\d,]+) generated", done.stdout)
    assert found is not None, done.stdout[-3000:]
    metrics = server.ask("GET", "/metrics").body.decode()
    assert not re.search('status="5', metrics), metrics
    return int(found[1].replace(",", ""))


def test_whatever_is_asked_is_answered_as_stated(server: Server, key: tuple[str, Path], tmp_path: Path) -> None:
    assert _fuzzed(server, key[0], tmp_path, "--max-examples", "25", "--phases", "coverage,fuzzing") > 500


@pytest.mark.slow
def test_whatever_is_asked_of_20_000_requests(run: Run, key: tuple[str, Path], tmp_path: Path) -> None:
    with Patient(run.path, "--state", "memory:", "--keys", key[1], "--user-limit", 0) as server:
        # But one check, which takes an item that was refused, by its own status, for one that was created.
        but = "--exclude-checks", "ensure_resource_availability"
        assert _fuzzed(server, key[0], tmp_path, "--max-examples", "1800", *but) >= 20_000
