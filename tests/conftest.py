"""Logs that tests share: a tiny one made here, and the real ones where a checkout has them beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from logs import make_log
from servers import Server
from stores import RedisServer

# What takes longest begins first, so that no process is left alone with it at the end.
LONGEST = "learning models tuning comparison resume cli training boosts swap openapi recommender exported report plans"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}": place for place, name in enumerate(LONGEST.split())}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real logs beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real logs are not here: no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def workshop() -> Iterator[None]:
    """All studies and comparisons of this process share one workshop."""
    from hiertcn import comparing, tuning
    from studies import KeptWorkshop

    with pytest.MonkeyPatch.context() as patch:
        for module in (comparing, tuning):
            patch.setattr(module, "Workshop", KeptWorkshop)
        yield
    KeptWorkshop.leave()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An untrained model of five items, exported."""
    from hiertcn.exporting import export
    from people import FULL, catalog_of, run_of

    run = run_of(tmp_path_factory.mktemp("runs") / "shop", FULL, catalog_of("abcde"))
    export(run)
    return run


@pytest.fixture(scope="module")
def server(run: Any) -> Iterator[Server]:
    """A server of the module's `run`."""
    with Server(run.path, "--state", "memory:") as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that syncs each write, for all tests that break nothing."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium. It goes with its module: while it is there, the thread has a loop of its own."""
    from browsers import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens a page that goes nowhere but to its server and to the catalog's pictures, and complains of nothing."""
    from browsers import pages

    with pages(browser) as open_page:
        yield open_page


@pytest.fixture
def tiny_log() -> pl.DataFrame:
    """400 events of 20 users on 12 items, strings and seconds."""
    return make_log()
