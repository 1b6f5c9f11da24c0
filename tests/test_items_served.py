"""The doors to items, of a real server: put, moved, withdrawn and restored under way; kept by its store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exports import ITEMS
from hiertcn.artifact import Run
from hiertcn.exported import Exported
from hiertcn.exporting import export
from hiertcn.keys import new_key
from hiertcn.models import HierTCNConfig
from hiertcn.recommender import Recommender
from hiertcn.states import MemoryStates
from people import SIZES, catalog_of, run_of
from servers import Said, Server
from test_items import DIM, shop

NOW = int(time.time()) - 60


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = shop(tmp_path_factory.mktemp("served") / "run")
    export(run)
    return run


@pytest.fixture(scope="module")
def server(run: Run) -> Iterator[Server]:
    with Server(run.path, "--state", "memory:", "--index", "faiss:hnsw") as server:
        yield server


def pick(server: Server, user: str, item: str, number: int = 0) -> None:
    event = {"event_id": f"{user}-{number}", "user_id": user, "item_id": item, "time": NOW + number}
    assert server.post("/v1/events", {"events": [event]}).body["results"][0]["status"] == "applied"


def best(server: Server, user: str, k: int = 500, **options: Any) -> list[str]:
    said = server.post("/v1/recommend", {"user_id": user, "k": k, **options})
    assert said.status == 200, said
    return [one["item_id"] for one in said.body["items"]]


def statuses(said: Said) -> list[str]:
    assert said.status == 200, said
    return [result["status"] for result in said.body["results"]]


def toward(run: Run, *items: str) -> np.ndarray[Any, Any]:
    """[DIM]: what a user who picked `items` now is looking for."""
    with Recommender(Exported(run.path / "online"), MemoryStates()) as rec:
        for number, item in enumerate(items):
            rec.observe("u", item, NOW + number)
        query = rec.query("u")
    found: np.ndarray[Any, Any] = query / np.linalg.norm(query)
    return found


def test_an_item_that_is_put_is_recommended_at_once_moved_withdrawn_and_restored(server: Server, run: Run) -> None:
    query = toward(run, "i03")
    pick(server, "one", "i03")
    begun = time.monotonic()
    item = {"item_id": "fresh", "vector": (50 * query).tolist(), "title": "Fresh"}
    assert statuses(server.post("/v1/items", {"items": [item]})) == ["added"]
    said = server.post("/v1/recommend", {"user_id": "one", "k": 1})
    assert time.monotonic() - begun < 5
    (first,) = said.body["items"]
    assert (first["item_id"], first["title"]) == ("fresh", "Fresh")
    assert first["score"] == pytest.approx(50 * float(query @ query) * _norm(run), rel=1e-4)
    # Moved away from the query, it comes last, and keeps its title.
    moved = {"item_id": "fresh", "vector": (-50 * query).tolist()}
    assert statuses(server.post("/v1/items", {"items": [moved]})) == ["replaced"]
    assert best(server, "one")[-1] == "fresh"
    assert statuses(server.post("/v1/items", {"items": [item]})) == ["replaced"]
    pick(server, "one", "fresh", 1)
    assert server.ask("DELETE", "/v1/items/fresh").status == 204
    for options in ({}, {"candidates": ["fresh", "i01"]}, {"exclude_seen": True}):
        assert "fresh" not in best(server, "one", **options)
    assert "fresh" not in best(server, "nobody")
    assert statuses(server.post("/v1/items/restore", {"items": ["fresh", "nothing"]})) == ["restored", "unknown_item"]
    assert "fresh" in best(server, "one")
    assert server.ask("DELETE", "/v1/items/nothing").status == 404


def _norm(run: Run) -> float:
    with Recommender(Exported(run.path / "online"), MemoryStates()) as rec:
        rec.observe("u", "i03", NOW)
        return float(np.linalg.norm(rec.query("u")))


def test_what_was_withdrawn_is_popular_no_more(server: Server) -> None:
    assert best(server, "nobody", 2) == ["i01", "i02"]
    found = server.post("/v1/items/withdraw", {"items": ["i01", "nothing"]})
    assert statuses(found) == ["withdrawn", "unknown_item"]
    assert best(server, "nobody", 2) == ["i02", "i03"]
    assert best(server, "nobody", candidates=["i01"]) == []
    # A nightly delivery of all vectors brings it not back.
    put = {"item_id": "i01", "vector": [1.0] * DIM}
    assert statuses(server.post("/v1/items", {"items": [put]})) == ["replaced"]
    assert "i01" not in best(server, "nobody")
    server.post("/v1/items/restore", {"items": ["i01"]})
    assert best(server, "nobody", 1) == ["i01"]


def test_each_item_is_judged_by_itself(server: Server) -> None:
    right = [1.0] * DIM
    items: list[dict[str, Any]] = [
        {"item_id": "judged", "vector": right},
        {"item_id": "judged-1", "vector": right[1:]},
        {"item_id": "judged-2", "vector": [0.0] * DIM},
        {"item_id": "judged-3", "vector": [1e39] * DIM},
        {"item_id": "judged-4", "vector": ["1"] * DIM},
        {"item_id": "judged-5"},
        {"vector": right},
        {"item_id": "judged-7", "vector": right, "colour": "red"},
        {"item_id": "judged\x00", "vector": right},
        {"item_id": "judged", "title": "Twice"},
    ]
    said = server.post("/v1/items", {"items": items})
    assert statuses(said) == ["added", *["invalid"] * 8, "replaced"]
    messages = [result["error"]["message"] for result in said.body["results"] if "error" in result]
    for message, part in zip(messages, ("size 4", "zero", "not finite", "float", "without a vector"), strict=False):
        assert part in message
    assert server.post("/v1/items", {"items": [items[0]] * 1001}).status == 422
    assert server.post("/v1/items", b'{"items": [' + b" " * (9 << 20) + b"]}").status == 413
    assert statuses(server.post("/v1/items", {"items": []})) == []
    assert server.post("/v1/items", b'{"items": [{"item_id": "x", "vector": [NaN]}]}').status == 400
    left = server.post("/v1/items/withdraw", {"items": [f"i{row:02}" for row in range(1, ITEMS + 1)]})
    assert (left.status, left.body["error"]["code"]) == (409, "would_shrink")
    assert len(best(server, "nobody")) > ITEMS


def test_a_thousand_items_are_put_while_people_ask(server: Server, run: Run) -> None:
    """Nobody is told of an error, or of what is not there, and all of them are there in the end."""
    vectors = np.random.default_rng(0).normal(size=(1_000, DIM)).round(3).tolist()
    names = [f"many-{number}" for number in range(1_000)]
    pick(server, "many", "i05")
    done = False

    def ask(user: str) -> int:
        count = 0
        while not done:
            assert len(best(server, user, 50)) >= ITEMS
            count += 1
        return count

    with ThreadPoolExecutor(3) as threads:
        asking = [threads.submit(ask, user) for user in ("many", "one", "nobody")]
        for begin in range(0, 1_000, 250):
            some = slice(begin, begin + 250)
            items = [{"item_id": n, "vector": v} for n, v in zip(names[some], vectors[some], strict=True)]
            assert statuses(server.post("/v1/items", {"items": items})) == ["added"] * 250
        done = True
        assert all(one.result() > 0 for one in asking)
    assert set(best(server, "many", candidates=names[:1000:2])) == set(names[:1000:2])
    server.post("/v1/items/withdraw", {"items": names, "allow_shrink": True})
    assert not set(best(server, "many")) & set(names)


def test_what_was_changed_outlives_a_kill(run: Run, tmp_path: Path) -> None:
    options = "--state", f"sqlite:///{tmp_path}/states.db"
    put = {"item_id": "kept", "vector": (50 * toward(run, "i03")).tolist()}
    with Server(run.path, *options) as server:
        assert statuses(server.post("/v1/items", {"items": [put]})) == ["added"]
        assert statuses(server.post("/v1/items/withdraw", {"items": ["i02"]})) == ["withdrawn"]
        server.kill()
    with Server(run.path, *options) as server:
        pick(server, "u", "i03")
        found = best(server, "u")
        assert found[0] == "kept"
        assert "i02" not in found


def test_two_servers_of_one_store_have_the_same_items(run: Run, redis_server: Any) -> None:
    options = "--state", redis_server.url(prefix="items")
    with Server(run.path, *options) as one, Server(run.path, *options) as other:
        put = {"item_id": "both", "vector": (50 * toward(run, "i03")).tolist()}
        assert statuses(one.post("/v1/items", {"items": [put]})) == ["added"]
        assert statuses(other.post("/v1/items/withdraw", {"items": ["i02"]})) == ["withdrawn"]
        pick(one, "u", "i03")
        deadline = time.monotonic() + 5
        while [(best(server, "u", 1), "i02" in best(server, "u")) for server in (one, other)] != [
            (["both"], False)
        ] * 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_model_of_learned_vectors_takes_no_new_items(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", HierTCNConfig(**SIZES), catalog_of("abcde"))
    export(run)
    key, digest = new_key()
    reader, known = new_key()
    (tmp_path / "keys.toml").write_text(f'admin = ["{digest}"]\nread = ["{known}"]\n')
    admin, read = ({"authorization": f"Bearer {one}"} for one in (key, reader))
    with Server(run.path, "--state", "memory:", "--keys", tmp_path / "keys.toml") as server:
        said = server.post("/v1/items", {"items": [{"item_id": "x", "vector": [1.0]}]}, **admin)
        assert (said.status, said.body["error"]["code"]) == (409, "learned_vectors")
        assert "trained on given vectors" in said.body["error"]["message"]
        titled = server.post("/v1/items", {"items": [{"item_id": "c", "title": "Cherry"}]}, **admin)
        assert statuses(titled) == ["replaced"]
        assert server.ask("DELETE", "/v1/items/a", **admin).status == 204
        found = server.post("/v1/recommend", {"user_id": "u", "k": 5}, **read).body["items"]
        assert [one["item_id"] for one in found] == ["b", "c", "d", "e"]
        assert found[1]["title"] == "Cherry"
        for path in ("/v1/items", "/v1/items/withdraw", "/v1/items/restore"):
            assert server.post(path, {"items": []}, **read).status == 403
        assert server.ask("DELETE", "/v1/items/b", **read).status == 403
