"""How a model takes over: which one is there to begin with, what it has to show, and what is open meanwhile."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiertcn import deployment as deployments
from hiertcn import modeldoors, smoke
from hiertcn.deployment import Deployment, NotSwapped
from hiertcn.door import Ask
from hiertcn.errors import ArtifactError, InputError, StorageError
from hiertcn.exported import Exported
from hiertcn.exporting import export
from hiertcn.messages import Refused, SwapRequest
from hiertcn.registry import POINTER, Registry
from hiertcn.retrieval import ExactIndex, open_index
from hiertcn.scoring import compared
from hiertcn.served import exported_of
from hiertcn.server import Server
from hiertcn.service import Service, Work
from hiertcn.smoke import check_answers
from hiertcn.states import MemoryStates
from people import FULL, catalog_of, run_of
from swaps import models


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("shelf") / "models", "a", "b", "others")


@pytest.fixture
def root(shelf: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shelf, tmp_path / "models"))


@contextmanager
def deployed(root: Path, name: str = "a") -> Iterator[tuple[Deployment, Service]]:
    registry = Registry(root)
    first = exported_of(registry.folder(name))
    assert first is not None
    with (
        MemoryStates() as states,
        Deployment(registry, name, first, "exact", states) as deployment,
        Service(deployment.current.recommender) as service,
    ):
        yield deployment, service


def answers(service: Service) -> str:
    async def ask() -> Work:
        return await service.do(Work(ask=Ask("u", 2)))

    return asyncio.run(ask()).by.name.partition("-")[0]


class TestRegistry:
    def test_it_starts_with_the_one_served_last_or_the_only_one(self, root: Path, tmp_path: Path) -> None:
        registry = Registry(root)
        assert registry.names() == ["a", "b", "others"]
        with pytest.raises(InputError, match="3 models: a, b, others"):
            registry.first()
        assert registry.first("b") == "b"
        registry.serve("others")
        assert Registry(root).first() == "others"
        assert Registry(root).first("a") == "a"
        only = Path(shutil.copytree(root / "b", tmp_path / "only" / "one")).parent
        (only / "notes").mkdir()
        assert (Registry(only).names(), Registry(only).first()) == (["one"], "one")
        shutil.rmtree(root / "others")
        with pytest.raises(InputError, match="no model 'others'; expected one of a, b"):
            Registry(root).folder(Registry(root).first())

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": 3}', "\xff", "[" * 100_000])
    def test_a_pointer_that_says_nothing_is_told(self, root: Path, text: str) -> None:
        (root / POINTER).write_bytes(text.encode("latin-1"))
        with pytest.raises(ArtifactError, match=r"--model: a, b, others") as caught:
            Registry(root).first()
        assert len(str(caught.value)) < 600
        assert Registry(root).first("a") == "a"

    def test_what_a_killed_process_left_is_swept(self, root: Path) -> None:
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        left = root / f"{POINTER}.{gone.pid}.writing"
        left.mkdir()
        Registry(root)
        assert not left.exists()

    def test_one_model_alone_is_all_there_is(self, root: Path) -> None:
        for path, name in ((root / "a", "a"), (root / "a" / "online", "online"), (root / "b", "b")):
            registry = Registry(path)
            assert (registry.names(), registry.first(), registry.folder(name)) == ([name], name, path)
            with pytest.raises(InputError, match="no model 'other'"):
                registry.folder("other")
            registry.serve(name)
            assert not (path / POINTER).exists()

    def test_no_model_is_told_like_any_other_folder(self, tmp_path: Path) -> None:
        for path in (tmp_path / "nowhere", tmp_path):
            registry = Registry(path)
            with pytest.raises(ArtifactError, match="not a model directory"):
                exported_of(registry.folder(registry.first()))

    @settings(max_examples=50, deadline=None)
    @given(st.text() | st.lists(st.sampled_from(["..", ".", "/", "a", "b", "models", "online", "\\"])).map("".join))
    def test_no_name_leads_out(self, shelf: Path, name: str) -> None:
        if name in ("a", "b", "others"):
            assert Registry(shelf).folder(name) == shelf / name
            return
        with pytest.raises(InputError, match="expected one of a, b, others") as caught:
            Registry(shelf).folder(name)
        assert len(str(caught.value)) < 400


def test_two_at_once_are_one_and_a_refusal(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()

    def slowly(folder: Path) -> Exported | None:
        begun.set()
        assert go.wait(20)
        return exported_of(folder)

    monkeypatch.setattr(deployments, "exported_of", slowly)

    async def both(deployment: Deployment, service: Service) -> None:
        first = asyncio.ensure_future(deployment.swap(service, "b"))
        await asyncio.to_thread(begun.wait, 20)
        for call in (deployment.swap(service, "b"), deployment.rollback(service)):
            with pytest.raises(NotSwapped) as caught:
                await call
            assert caught.value.code == "swap_under_way"
        # People are answered all the while.
        work = await service.do(Work(ask=Ask("u", 2)))
        assert work.by is deployment.current.recommender
        go.set()
        await first

    with deployed(root) as (deployment, service):
        asyncio.run(both(deployment, service))
        assert (deployment.current.name, answers(service)) == ("b", "b")


def test_a_stop_waits_for_no_swap(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()
    monkeypatch.setattr(deployments, "exported_of", lambda _: begun.set() or go.wait(20))

    async def stopped(server: Server) -> None:
        swapping = asyncio.ensure_future(modeldoors.swap(server, SwapRequest("b"), None))  # type: ignore[arg-type]
        await asyncio.to_thread(begun.wait, 20)
        server.ready = False
        with pytest.raises(Refused) as caught:
            await asyncio.wait_for(swapping, 10)
        assert (caught.value.status, caught.value.fault.code) == (503, "stopping")

    with deployed(root) as (deployment, service):
        asyncio.run(stopped(Server(service, deployment=deployment)))
        assert answers(service) == "a"
        go.set()


def test_what_is_withdrawn_while_a_model_is_opened_is_not_recommended_by_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def swapped(deployment: Deployment, service: Service) -> list[str]:
        serve = Registry.serve

        def withdrawing(registry: Registry, name: str) -> None:
            # The last step before the take-over: the next model has heard all until now.
            service.recommender.stock.withdraw(["c"])
            serve(registry, name)

        monkeypatch.setattr(Registry, "serve", withdrawing)
        await deployment.swap(service, "b")
        work = await service.do(Work(ask=Ask("u", 6)))
        assert work.by is deployment.current.recommender
        return [str(item) for item, _, _ in work.by.stock.listed(work.found.best)]

    with deployed(root) as (deployment, service):
        assert sorted(asyncio.run(swapped(deployment, service))) == ["a", "b", "d", "e", "f"]


class Counted(ExactIndex):
    """An index that tells how many are open."""

    now = most = 0

    def __init__(self, vectors: Any) -> None:
        super().__init__(vectors)
        self._open = True
        Counted.now += 1
        Counted.most = max(Counted.most, Counted.now)

    def close(self) -> None:
        Counted.now -= self._open
        self._open = False

    def search(self, *given: Any, **more: Any) -> Any:
        assert self._open
        return super().search(*given, **more)


def test_two_indexes_are_open_at_most(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is swapped, rolled back or refused, early or late; and a rollback finds what was closed."""
    Counted.now = Counted.most = 0
    monkeypatch.setattr(deployments, "open_index", lambda _, vectors, **options: Counted(vectors))
    refusal = Mock(side_effect=ArtifactError("it says nothing that makes sense"))

    with deployed(root) as (deployment, service):
        for name in "bab":
            asyncio.run(deployment.swap(service, name))
            assert (answers(service), Counted.now) == (name, 2)
        with pytest.raises(NotSwapped, match="0 of the 6 items"):
            asyncio.run(deployment.swap(service, "others"))
        # It was found unfit before the model before had to make way for it.
        assert Counted.now == 2
        with monkeypatch.context() as patch:
            patch.setattr(deployments, "check_answers", refusal)
            with pytest.raises(NotSwapped, match="nothing that makes sense"):
                asyncio.run(deployment.swap(service, "a"))
        assert (answers(service), Counted.now, deployment.previous) == ("b", 1, "a")
        for name in "aba":
            asyncio.run(deployment.rollback(service))
            assert (answers(service), Counted.now) == (name, 2)
        assert Counted.most == 2
    assert Counted.now == 0


@pytest.mark.parametrize("error", [StorageError("the disk is full"), MemoryError(), TypeError("what is this")])
def test_whatever_fails_nothing_has_changed(root: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with deployed(root) as (deployment, service):
        asyncio.run(deployment.swap(service, "b"))
        for place, what in ((deployments, "open_index"), (deployments, "Recommender"), (Registry, "serve")):
            with monkeypatch.context() as patch:
                patch.setattr(place, what, Mock(side_effect=error))
                with pytest.raises(NotSwapped, match=str(error) or "MemoryError"):
                    asyncio.run(deployment.swap(service, "a"))
            assert (answers(service), deployment.current.name, deployment.previous) == ("b", "b", "a")
            assert json.loads((root / POINTER).read_text()) == {"model": "b"}
        asyncio.run(deployment.rollback(service))
        assert answers(service) == "a"


def test_a_pointer_that_cannot_be_written_lets_nobody_take_over(root: Path) -> None:
    (root / POINTER).mkdir()
    with deployed(root) as (deployment, service):
        with pytest.raises(NotSwapped, match=f"Could not write .*{POINTER}"):
            asyncio.run(deployment.swap(service, "b"))
        assert answers(service) == deployment.current.name == "a"


def test_a_swap_asked_for_twice_is_one(root: Path) -> None:
    with deployed(root) as (deployment, service):
        for _ in range(2):
            asyncio.run(deployment.swap(service, "b"))
            assert (deployment.current.name, deployment.previous) == ("b", "a")
        asyncio.run(deployment.rollback(service))
        assert answers(service) == deployment.current.name == "a"


def test_a_model_that_was_written_again_takes_over_from_itself(root: Path) -> None:
    with deployed(root / "b", "b") as (deployment, service):
        before = deployment.current
        shutil.rmtree(root / "b")
        shutil.copytree(root / "others", root / "b")
        asyncio.run(deployment.swap(service, "b", allow_shrink=True))
        assert deployment.current.recommender.knows("z")
        asyncio.run(deployment.rollback(service))
        assert deployment.current is before
        assert not deployment.current.recommender.knows("z")


class Blind(ExactIndex):
    """An index that misses the best of each search."""

    exact = False

    def search(self, queries: Any, k: int, allowed: Any = None) -> Any:
        rows, scores = super().search(queries, k + 10, allowed)
        return rows[:, 10:], scores[:, 10:]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("large")
    return Exported(export(run_of(folder / "run", FULL, catalog_of(range(400)))))


def test_an_index_has_to_find_nearly_all(large: Exported, root: Path) -> None:
    vectors = compared(large)
    with ExactIndex(vectors) as right, Blind(vectors) as blind:
        check_answers(large, vectors, right)
        with pytest.raises(ArtifactError, match=r"finds 80% of the 50 best items .* expected 90%"):
            check_answers(large, vectors, blind)
    for model in (large, Exported(root / "b")):
        with open_index("faiss:hnsw", compared(model)) as found:
            check_answers(model, compared(model), found)


def test_answers_have_to_be_numbers_and_to_come_in_time(large: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = compared(large)
    with ExactIndex(vectors) as index:
        with monkeypatch.context() as patch:
            patch.setattr(smoke, "SLOWEST", 0.0)
            with pytest.raises(ArtifactError, match="ms for an answer"):
                check_answers(large, vectors, index)
        search = index.search
        for damaged in (
            lambda rows, scores: (rows, np.full_like(scores, np.inf)),
            lambda rows, scores: (rows, np.full_like(scores, np.nan)),
            lambda rows, scores: (np.where(rows > 30, 0, rows), scores),
        ):
            monkeypatch.setattr(index, "search", lambda queries, k, by=damaged: by(*search(queries, k)))
            with pytest.raises(ArtifactError, match="expected 50 items of finite scores"):
                check_answers(large, vectors, index)


def test_a_swap_needs_no_torch(root: Path) -> None:
    program = f"""
import asyncio, sys
from pathlib import Path
from hiertcn.deployment import Deployment
from hiertcn.registry import Registry
from hiertcn.served import exported_of
from hiertcn.service import Service
from hiertcn.states import MemoryStates
registry = Registry(Path({str(root)!r}))
deployment = Deployment(registry, "a", exported_of(registry.folder("a")), "exact", MemoryStates())
with Service(deployment.current.recommender) as service:
    asyncio.run(deployment.swap(service, "b"))
    asyncio.run(deployment.rollback(service))
print(deployment.current.name, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["a", "False"]
