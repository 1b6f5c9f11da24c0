"""Models that take over from one another while people are answered, over HTTP."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hiertcn.keys import new_key
from hiertcn.recommender import Recommender
from hiertcn.registry import POINTER
from runs import relisted, restated
from servers import Said, Server
from swaps import NOW, models, picks, served


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("shelf") / "models", "a", "b", "crowd", "few", "others")


@pytest.fixture
def root(shelf: Path, tmp_path: Path) -> Path:
    """Two models, one of which is served."""
    for name in "ab":
        shutil.copytree(shelf / name, tmp_path / "models" / name)
    (tmp_path / "models" / POINTER).write_text('{"model": "a"}')
    return tmp_path / "models"


def swap(server: Server, name: str, **more: Any) -> Said:
    return server.post("/v1/model", {"model": name, **more})


def expected(recommender: Recommender, events: list[dict[str, Any]], k: int = 5) -> dict[str, Any]:
    found = recommender.recommend_history([e["item_id"] for e in events], [e["time"] for e in events], k)
    return {one.item: pytest.approx(one.score, abs=1e-5) for one in found}


def items_of(said: Said) -> dict[str, float]:
    return {one["item_id"]: one["score"] for one in said.body["items"]}


def test_every_answer_is_of_one_model_and_all_that_was_told(root: Path) -> None:
    """People pick and ask without a pause while models are swapped: nobody is refused, and each answer is that of the
    model it names for all events of the person, whichever model had read them."""
    over, answers = threading.Event(), []

    def person(number: int) -> list[tuple[list[dict[str, Any]], Said]]:
        events, found = picks(np.random.default_rng(number), f"u{number}", 120), []
        for at, event in enumerate(events):
            said = server.post("/v1/events", {"events": [event]})
            assert (said.status, said.body["results"][0]["status"] in ("applied", "unknown_item")) == (200, True)
            ask = {"user_id": event["user_id"], "k": 5, "as_of": event["time"]}
            found.append((events[: at + 1], server.post("/v1/recommend", ask)))
            if over.is_set():
                break
        return found

    with Server(root, "--state", "memory:") as server:
        with ThreadPoolExecutor(4) as threads:
            asking = [threads.submit(person, number) for number in range(4)]
            for number in range(20):
                said = swap(server, "ab"[(number + 1) % 2])
                assert (said.status, said.body["name"]) == (200, "ab"[(number + 1) % 2]), said
                assert server.ask("GET", "/readyz").status == 200
            over.set()
            for one in asking:
                answers += one.result()
        assert server.end() == 0
    alone = {name: Recommender.load(served(root, name)) for name in "ab"}
    for events, said in answers:
        assert said.status == 200
        by = said.body["model"][0]
        assert said.body["model"] == f"{by}-{alone[by].digest.hex()}"
        known = any(alone[by].knows(event["item_id"]) for event in events)
        assert said.body["source"] == ("model" if known else "cold")
        if known:
            assert items_of(said) == expected(alone[by], events)
    assert {said.body["model"][0] for _, said in answers} == {"a", "b"}


def test_a_rollback_is_quick_and_goes_both_ways(root: Path) -> None:
    with Server(root, "--state", "memory:") as server:
        refused = server.ask("POST", "/v1/model/rollback")
        assert (refused.status, refused.body["error"]["code"]) == (409, "no_previous")
        first = server.ask("GET", "/v1/model").body
        assert first == {"name": "a", "model": first["model"], "previous": None, "models": ["a", "b"]}
        assert swap(server, "b").body["previous"] == "a"
        for name, other in ("ab", "ba"):
            begun = time.monotonic()
            said = server.ask("POST", "/v1/model/rollback")
            assert time.monotonic() - begun < 2
            assert (said.status, said.body["name"], said.body["previous"]) == (200, name, other)
            assert server.post("/v1/recommend", {"user_id": "u"}).body["model"] == said.body["model"]
        assert json.loads((root / POINTER).read_text()) == {"model": "b"}
        assert server.end() == 0
    with Server(root, "--state", "memory:") as server:
        assert server.ask("GET", "/v1/model").body["name"] == "b"


def test_killed_in_a_swap_it_starts_with_the_one_or_the_other(root: Path) -> None:
    random, state = np.random.default_rng(0), f"sqlite:///{root}/states.db"
    events = picks(random, "u", 10)
    alone = {name: Recommender.load(served(root, name)) for name in "ab"}
    (root / "states.db").touch(0o600)
    for life in range(5):
        with Server(root, "--state", state) as server:
            if not life:
                server.post("/v1/events", {"events": events})
            now = server.ask("GET", "/v1/model").body["name"]
            said = server.post("/v1/recommend", {"user_id": "u", "k": 5, "as_of": events[-1]["time"]})
            assert said.body["model"] == f"{now}-{alone[now].digest.hex()}"
            assert items_of(said) == expected(alone[now], events)

            def swapping(server: Server = server) -> None:
                with suppress(OSError, HTTPException):
                    for number in range(10_000):
                        assert swap(server, "ab"[number % 2]).status == 200

            thread = threading.Thread(target=swapping)
            thread.start()
            time.sleep(float(random.uniform(0.02, 0.3)))
            server.kill()
            thread.join()
    with Server(root, "--state", state) as server:
        assert server.ask("GET", "/readyz").status == 200
    assert sorted(path.name for path in root.iterdir() if path.name.startswith("serving")) == [POINTER]


def test_a_model_that_hears_everybody_hears_those_of_before(root: Path, shelf: Path) -> None:
    shutil.copytree(shelf / "crowd", root / "crowd")
    told = [{**event, "event_id": f"{n}"} for n, event in enumerate(picks(np.random.default_rng(3), "v", 30))]
    ask = {"user_id": "nobody", "k": 8, "as_of": NOW}
    with Server(root, "--state", "memory:") as server, Recommender.load(root / "crowd") as alone:
        deaf = {one.item: one.score for one in alone.recommend("nobody", 8, time=NOW)}
        server.post("/v1/events", {"events": told[:20]})
        assert swap(server, "crowd").status == 200
        for events in (told[:20], told[20:]):
            for event in events:
                alone.observe("v", event["item_id"], event["time"])
            found = {one.item: pytest.approx(one.score, abs=1e-5) for one in alone.recommend("nobody", 8, time=NOW)}
            assert items_of(server.post("/v1/recommend", ask)) == found != deaf
            server.post("/v1/events", {"events": told[20:]})
        # What it missed while another model answered, it hears when it comes back.
        assert swap(server, "a").status == 200
        later = {"event_id": "later", "user_id": "w", "item_id": "h", "time": NOW}
        server.post("/v1/events", {"events": [later]})
        assert server.ask("POST", "/v1/model/rollback").body["name"] == "crowd"
        alone.observe("w", "h", NOW)
        found = {one.item: pytest.approx(one.score, abs=1e-5) for one in alone.recommend("nobody", 8, time=NOW)}
        assert items_of(server.post("/v1/recommend", ask)) == found


def test_only_an_admin_swaps(root: Path) -> None:
    made = {role: new_key() for role in ("read", "write", "admin")}
    path = root.parent / "keys.toml"
    path.write_text("".join(f'{role} = ["{digest}"]\n' for role, (_, digest) in made.items()))
    with Server(root, "--state", "memory:", "--keys", path) as server:
        found = {}
        for role, (key, _) in made.items():
            headers = {"authorization": f"Bearer {key}"}
            asked = [("GET", "", None), ("POST", "", {"model": "b"}), ("POST", "/rollback", None)]
            found[role] = [server.ask(way, f"/v1/model{path}", body, **headers).status for way, path, body in asked]
    assert found == {"read": [200, 403, 403], "write": [403, 403, 403], "admin": [200, 200, 200]}


def part(folder: Path, stem: str) -> Path:
    (path,) = [path for path in folder.iterdir() if path.name.startswith(stem)]
    return path


def flipped(stem: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = part(folder, stem)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return damage


def cut(stem: str) -> Callable[[Path], None]:
    return lambda folder: part(folder, stem).write_bytes(part(folder, stem).read_bytes()[:-1])


def filled(stem: str, value: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        np.lib.format.open_memmap(part(folder, stem), mode="r+")[1:] = value
        relisted(folder, stem, part(folder, stem).name)

    return damage


def exchanged(folder: Path) -> None:
    shutil.copyfile(folder / "fold.onnx", folder / "encode.onnx")
    relisted(folder, "encode", "encode.onnx")


def replaced(stem: str, by: Callable[[Path], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = part(folder, stem)
        path.unlink()
        by(path)

    return damage


def linked(folder: Path) -> None:
    folder.rename(folder.parent.parent / f"real-{folder.name}")
    folder.symlink_to(folder.parent.parent / f"real-{folder.name}")


def a_log(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"waterfall": []}')


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    **{
        f"{stem} flipped": (flipped(stem), stem)
        for stem in ("manifest", "fold", "encode", "read", "compared", "catalog")
    },
    **{f"{stem} cut": (cut(stem), stem) for stem in ("manifest", "encode", "read", "catalog")},
    **{f"{stem} gone": (replaced(stem, lambda _: None), stem) for stem in ("manifest", "fold", "catalog")},
    "of another format": (lambda folder: restated(folder, format=99), "format 99"),
    "sizes that are not": (lambda folder: restated(folder, reads__query=12), ""),
    "no numbers": (filled("read", np.nan), "no number"),
    "too large": (filled("compared", 1e30), "not finite, or larger"),
    "endless": (filled("read", 3e38), ""),
    "no graph": (lambda folder: (cut("fold")(folder), relisted(folder, "fold", "fold.onnx")), "no graph"),
    "another graph": (exchanged, "takes"),
    "nothing left": (lambda folder: restated(folder, withdrawn=[1, 2, 3, 4, 5, 6]), "no item to recommend"),
    "most withdrawn": (lambda folder: restated(folder, withdrawn=[2, 3, 4]), "2 of the 5 items"),
    "a log": (a_log, "prepared log"),
    "empty": (lambda folder: [path.unlink() for path in folder.iterdir()], "no model"),
    "a file": (lambda folder: (shutil.rmtree(folder), folder.write_text("model")), "no model"),
    "a link": (linked, "is a link"),
    "a link inside": (lambda folder: (folder / "index").symlink_to("/tmp"), "index' is a link"),
    "a link for a file": (replaced("read", lambda path: path.symlink_to("/dev/zero")), "is a link"),
    "a pipe": (replaced("read", os.mkfifo), "not a plain file"),
}


@pytest.fixture(scope="module")
def watched(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server that is asked for bad models, and goes on."""
    root = tmp_path_factory.mktemp("watched") / "models"
    shutil.copytree(shelf, root)
    with Server(root, "--model", "a", "--state", "memory:", "--index", "exact") as server:
        yield server, root


def assert_serves_on(server: Server) -> None:
    assert server.ask("GET", "/readyz").status == 200
    assert server.ask("GET", "/v1/model").body["name"] == "a"
    said = server.post("/v1/recommend", {"user_id": "u", "k": 2})
    assert (said.status, said.body["model"][:2], [one["item_id"] for one in said.body["items"]]) == (
        200,
        "a-",
        ["a", "b"],
    )


def refusal(said: Said) -> str:
    assert (said.status, said.body["error"]["code"]) == (409, "model_refused"), said
    assert 20 < len(said.body["error"]["message"]) < 1000
    return str(said.body["error"]["message"])


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_model_does_not_take_over(watched: tuple[Server, Path], kind: str) -> None:
    server, root = watched
    damage, told = BAD[kind]
    name = kind.replace(" ", "-")
    shutil.copytree(root / "b", root / name)
    damage(root / name)
    assert told in refusal(swap(server, name))
    assert_serves_on(server)


@pytest.mark.parametrize(
    "name", ["..", ".", "../models/b", "b/", "/etc", "http://x/b", "b\0", "none", "-b", "b\n", "é"]
)
def test_a_name_leads_nowhere_else(watched: tuple[Server, Path], name: str) -> None:
    server, _ = watched
    assert "expected one of a, " in refusal(swap(server, name))
    assert_serves_on(server)


def test_a_run_is_exported_first(watched: tuple[Server, Path]) -> None:
    server, root = watched
    shutil.copytree(root / "a", root / "trained", ignore=shutil.ignore_patterns("online"))
    shutil.copytree(root / "a", root / "stale")
    restated(root / "stale", validation={"mrr": 1.0})
    for name in ("trained", "stale"):
        assert f"hiertcn export {root / name}" in refusal(swap(server, name))
    assert_serves_on(server)


def test_fewer_items_are_taken_when_that_is_meant(watched: tuple[Server, Path]) -> None:
    server, _ = watched
    for name, told in (("few", "2 of the 5 items"), ("others", "0 of the 5 items")):
        assert told in refusal(swap(server, name))
        assert_serves_on(server)
        assert swap(server, name, allow_shrink=True).body["name"] == name
        # Back to where more is known, however much that is.
        assert server.ask("POST", "/v1/model/rollback").body["name"] == "a"
    for body in ({}, {"model": ""}, {"model": 1}, {"model": "b", "allow_shrink": 1}, {"model": "b", "url": "x"}):
        assert server.post("/v1/model", body).status == 422
