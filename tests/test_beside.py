"""What stands beside the model's answers: two simple models of the same facts, and the catalog, found by words."""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Iterator
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hiertcn.artifact import Run, write_run
from hiertcn.assortment import withdraw_items
from hiertcn.beside import AVERAGED, KEPT, beside
from hiertcn.catalog import Catalog
from hiertcn.door import Event
from hiertcn.errors import InputError
from hiertcn.exported import Exported
from hiertcn.exporting import export
from hiertcn.keys import new_key
from hiertcn.models import HierTCNConfig, LastItemsConfig, MovingAverageConfig, build
from hiertcn.page import image_of
from hiertcn.pagedoors import ItemsQuery, found
from hiertcn.recommender import Recommender
from hiertcn.states import MemoryStates
from hiertcn.stock import Stated
from people import FULL, GAP, SIZES, START, assert_alike, catalog_of, run_of
from servers import Server
from test_exported import saved

NOW = int(time.time())
ITEMS = "abcdefghijklmnopqrst"
KINDS = {"inner": FULL, "l2": HierTCNConfig(**SIZES, ranking="l2")}
# Events of a person: seconds since the one before, and an item; z is in no catalog.
EVENTS = st.lists(st.tuples(st.sampled_from([1, 600, GAP, 90_000]), st.sampled_from(ITEMS + "z")), max_size=80)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_of(tmp_path_factory.mktemp("runs") / "shop", FULL, catalog_of(ITEMS))


def averaging(path: Path, served: Run) -> Run:
    """A moving average over the vectors that the served model compares with."""
    config = MovingAverageConfig(dim=SIZES["dim"], ranking=served.manifest["model"]["ranking"])
    model = build(config, served.catalog.train_events, 0)
    with torch.no_grad():
        model.items.weight.copy_(served.model.vectors)
    facts = {name: served.manifest[name] for name in ("cache", "session_gap", "max_session_events")}
    write_run(path, model, config, served.catalog, {**facts, "validation": {}, "history": []})
    return Run(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("online", [False, True], ids=["torch", "exported"])
def test_they_are_the_models_of_their_names(kind: str, online: bool, tmp_path: Path) -> None:
    served = run_of(tmp_path / "served", KINDS[kind], catalog_of(ITEMS), seed=3)
    model = Exported(export(served)) if online else None
    rec = Recommender(model, MemoryStates()) if model else Recommender.load(served)
    models = {
        "moving_average": Recommender.load(averaging(tmp_path / "average", served)),
        "last_items": Recommender.load(run_of(tmp_path / "last", LastItemsConfig(), served.catalog)),
    }
    users = count()

    @settings(max_examples=12, deadline=None)
    @given(EVENTS)
    def same(events: list[tuple[int, str]]) -> None:
        user, times = next(users), START + np.cumsum([0, *(gap for gap, _ in events)])[1:]
        told = [Event(user, item, int(at)) for (_, item), at in zip(events, times, strict=True)]
        for one in (rec, *models.values()):
            one.observe_many(told)
        found = beside(rec, user, len(ITEMS))
        assert list(found) == list(models)
        for name, one in models.items():
            expected = one.recommend(user, len(ITEMS))
            assert_alike(found[name], expected)
            apart = np.array([(a.score, b.score) for a, b in zip(found[name], expected, strict=True)])
            np.testing.assert_allclose(apart[:, 0], apart[:, 1], atol=1e-5)
        assert [r.item for r in found["last_items"]] == [r.item for r in models["last_items"].recommend(user, 20)]

    same()
    assert (MovingAverageConfig().window, LastItemsConfig().window) == (AVERAGED, KEPT)


def test_a_model_without_vectors_has_the_last_items_beside_it(tmp_path: Path) -> None:
    with Recommender.load(run_of(tmp_path / "last", LastItemsConfig(), catalog_of("abc"))) as rec:
        rec.observe("u", "c", START)
        found = beside(rec, "u", 2)
        with pytest.raises(InputError, match="k is 0"):
            beside(rec, "u", 0)
    assert [(name, [one.item for one in best]) for name, best in found.items()] == [("last_items", ["c", "a"])]


def ids(rec: Recommender, **asked: Any) -> list[str | int]:
    return [one.item_id for one in found(rec.stock, ItemsQuery(**asked)).items]


def test_what_is_withdrawn_stands_nowhere(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", FULL, catalog_of("abcde"))
    withdraw_items(run.path, ["b"])
    with Recommender.load(run.path) as rec:
        rec.observe("u", "b", START)
        rec.stock.withdraw(["d"])
        rec.listen()
        assert all({one.item for one in best} == set("ace") for best in beside(rec, "u", 5).values())
        assert ids(rec) == list("ace")
        assert (ids(rec, q="b"), ids(rec, q="d"), ids(rec, q="elder")) == ([], ["e"], ["e"])
        # Who had it sees what it was.
        assert ids(rec, id=["b"]) == ["b"]


def test_what_is_added_stands_beside_the_rest(tmp_path: Path) -> None:
    vectors = np.random.default_rng(5).normal(size=(len(ITEMS) + 1, 4)).astype(np.float32)
    vectors[0] = 0
    run = saved(tmp_path / "run", HierTCNConfig(**SIZES, vectors="fixed"), vectors)
    with Recommender(Exported(export(run)), MemoryStates()) as rec:
        known = ids(rec)
        new = 9 * vectors[3]
        rec.stock.put([Stated("new-1", new.tolist(), "Nectarine"), Stated("new-2", (-new).tolist())])
        rec.listen()
        rec.observe("u", "new-1", START)
        lists = {name: [one.item for one in best] for name, best in beside(rec, "u", 50).items()}
        assert ids(rec, limit=100) == [*known, "new-1", "new-2"]
        assert (ids(rec, q="NECTAR"), ids(rec, id=["new-1"])) == (["new-1"], ["new-1"])
    # By its own vector it is nearest to itself, and farthest from its opposite.
    assert (lists["moving_average"][0], lists["moving_average"][-1]) == ("new-1", "new-2")
    assert lists["last_items"] == ["new-1", *known, "new-2"]


TEXT = st.text("aAbB1 .*", max_size=4)
LINES = st.lists(st.tuples(TEXT.filter(bool), st.none() | TEXT), unique_by=lambda line: line[0])


@settings(max_examples=60, deadline=None)
@given(LINES, TEXT, st.integers(1, 5))
def test_search_finds_what_holds_every_word(lines: list[tuple[str, str | None]], text: str, limit: int) -> None:
    schema = {"item_id": pl.String, "title": pl.String}
    frame = pl.DataFrame(lines, schema=schema, orient="row").with_columns(
        link=pl.lit(None, pl.String), train_events=pl.lit(1, pl.Int64)
    )
    words = text.lower().split()
    expected = [
        row
        for row, (item, title) in enumerate(lines, 1)
        if all(word in item.lower() or word in (title or "").lower() for word in words)
    ]
    own = [row for row, (item, _) in enumerate(lines, 1) if item == text.strip()]
    expected = list(dict.fromkeys(own + expected))[:limit]
    assert Catalog(frame, len(lines)).search(text, limit, np.arange(len(lines) + 1) > 0) == expected


def test_a_link_is_a_picture_if_its_path_says_so() -> None:
    pictures = ("https://a.test/b/c.JPG", "http://a.test:80/x.webp?w=3", "https://a.test/%20/ä.svg#x")
    others = (
        None,
        "",
        "https://a.test/b",
        "javascript:alert(1)//a.png",
        "https://a.test/?x=/b.png",
        "ftp://a.test/b.png",
    )
    more = ("https://a.test; script-src */b.png", "https://u@a.test/b.png", "//a.test/b.png", "https://a.test/b.png x")
    assert [image_of(link) for link in pictures] == list(pictures)
    assert [image_of(link) for link in others + more] == [None] * len(others + more)


@pytest.fixture(scope="module")
def server(run: Run) -> Iterator[Server]:
    export(run)
    with Server(run.path, "--state", "memory:") as server:
        yield server


def test_the_doors_say_what_the_functions_say(server: Server, run: Run) -> None:
    events = [{"event_id": f"e{n}", "user_id": "u", "item_id": item, "time": NOW + n} for n, item in enumerate("dab")]
    server.post("/v1/events", {"events": events})
    with Recommender.load(run) as rec:
        rec.observe_many([Event("u", one["item_id"], one["time"]) for one in events])
        expected = beside(rec, "u", 4)
    said = server.post("/v1/beside", {"user_id": "u", "k": 4}).body
    assert [one["item_id"] for one in said["lists"]["last_items"]] == ["b", "a", "d", "c"]
    for name, best in expected.items():
        found = [(one["item_id"], one["score"]) for one in said["lists"][name]]
        assert found == [(one.item, pytest.approx(one.score, abs=1e-5)) for one in best]
    assert (said["source"], said["user_id"]) == ("model", "u")
    cold = server.post("/v1/beside", {"user_id": "nobody", "k": 2}).body
    assert cold["source"] == "cold"
    assert [[one["item_id"] for one in best] for best in cold["lists"].values()] == [["a", "b"]] * 2
    assert server.post("/v1/beside", {"user_id": "u", "k": 501}).status == 422


def test_items_are_found_by_words_and_by_ids(server: Server) -> None:
    def found(query: str) -> list[str]:
        return [one["item_id"] for one in server.ask("GET", f"/v1/items{query}").body["items"]]

    assert server.ask("GET", "/v1/items?q=APP").body == {"items": [{"item_id": "a", "title": "Apple"}]}
    assert found("?limit=3") == ["a", "b", "c"]
    # The item of that id, then what holds it.
    assert found("?q=e") == ["e", "a"]
    assert found("?q=e&limit=1") == ["e"]
    assert found("?id=c&id=nothing&id=a") == ["c", "a"]
    bad = ("?limit=0", "?limit=101", "?limit=x", "?who=a", "?q=a&q=b", "?id=", f"?q={'a' * 257}", "?id=a" * 101)
    assert [server.ask("GET", f"/v1/items{query}").status for query in bad] == [422] * len(bad)
    assert server.ask("GET", "/v1/items?limit=0").body["error"]["field"] == "limit"


def test_the_package_holds_all_that_the_page_is_made_of() -> None:
    folder = files("hiertcn").joinpath("page")
    home = folder.joinpath("index.html").read_text()
    named = {*re.findall(r'(?:src|href)="page/([^"]+)"', home)}
    for script in sorted(one for one in named if one.endswith(".js")):
        named |= {*re.findall(r'from "\./([^"]+)"', folder.joinpath(script).read_text())}
    assert named == {one.name for one in folder.iterdir()} - {"index.html"}
    # What the policy would not let in.
    assert not re.search(r"<style|style=| on[a-z]+=|<script(?! type=.module. src=)|https?:", home)


def test_files_come_as_what_they_are_and_under_a_policy(server: Server) -> None:
    kinds = {"/": "text/html", "/page/app.js": "text/javascript", "/page/style.css": "text/css"}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    for path, kind in {**kinds, "/page/icon.svg": "image/svg+xml"}.items():
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (answer.status, len(answer.read()) > 100) == (200, True), path
        assert answer.getheader("content-type", "").startswith(kind)
        policy = answer.getheader("content-security-policy", "")
        assert policy.startswith("default-src 'self'; img-src 'self'; ")
        assert "unsafe" not in policy
        assert answer.getheader("x-content-type-options") == "nosniff"
    connection.close()
    for path in ("/page/", "/page/nothing.js", "/page/..%2fserver.py", "/page/../server.py", "/page/%00"):
        assert server.ask("GET", path).status == 404, path
    assert server.ask("POST", "/").status == 405


def test_a_key_is_told_what_it_may(run: Run, tmp_path: Path, server: Server) -> None:
    assert server.ask("GET", "/v1/access").body == {"keys": False, "roles": ["read", "write", "admin"]}
    (reader, read), (both, shared), (admin, all_of_it) = new_key(), new_key(), new_key()
    path = tmp_path / "keys.toml"
    path.write_text(f'read = ["{read}", "{shared}"]\nwrite = ["{shared}"]\nadmin = ["{all_of_it}"]\n')
    expected = {
        reader: ["read"],
        both: ["read", "write"],
        admin: ["read", "write", "admin"],
        "wrong": [],
    }
    with Server(run.path, "--state", "memory:", "--keys", path) as locked:
        for key, roles in expected.items():
            headers = {"authorization": f"Bearer {key}"}
            assert locked.ask("GET", "/v1/access", **headers).body == {"keys": True, "roles": roles}
            status = 200 if "read" in roles else 401
            assert locked.ask("GET", "/v1/items", **headers).status == status
            assert locked.post("/v1/beside", {"user_id": "u"}, **headers).status == status
        assert locked.ask("GET", "/v1/access").body["roles"] == []
        # The page holds nothing that is anybody's.
        assert locked.ask("GET", "/").status == 200
