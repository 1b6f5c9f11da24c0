"""The live page in the browser of the system, and what tests see of it."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import polars as pl
import pytest

from hiertcn.artifact import Run
from hiertcn.catalog import Catalog
from hiertcn.exporting import export
from people import FULL, run_of
from servers import Server

sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
expect = sync_api.expect
# The machine may be busy.
expect.set_options(timeout=15_000)

NOW = int(time.time())
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
TITLES = ["Apple", "Pear", HOSTILE, None, "Elder", "Fig", "x" * 200, "Plum", "Quince", "Cherry", "Lime", "Mango"]
PICTURES = {0: "http://pictures.test/apple.png", 1: "http://pictures.test/gone.png"}
PIXEL = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><rect width="1" height="1"/></svg>'


Open = Callable[..., Any]


def shop(path: Path) -> Run:
    """A model over items with odd titles, some with pictures, exported."""
    size = len(TITLES)
    lines = {
        "item_id": [f"i{row}" for row in range(size)],
        "title": TITLES,
        "link": pl.Series([PICTURES.get(row) for row in range(size)], dtype=pl.String),
        "train_events": [3 * (size - row) for row in range(size)],
    }
    run = run_of(path, FULL, Catalog(pl.DataFrame(lines), size))
    export(run)
    return run


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser of the system; skips the test where there is none."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on the path; on Debian: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@contextmanager
def pages(browser: Any) -> Iterator[Open]:
    """Opens a page that goes nowhere but to its server and to the catalog's pictures, and complains of nothing."""
    contexts, asked, said = [], [], []

    def draw(route: Any) -> None:
        there = route.request.url.endswith("apple.png")
        route.fulfill(status=200 if there else 404, content_type="image/svg+xml", body=PIXEL if there else "")

    def complaints(message: Any, told: str) -> list[str]:
        # That a picture is gone is no fault of the page.
        expected = "gone.png" in message.location["url"] or (told and re.search(told, message.text))
        return [] if expected else [message.text]

    def open_page(server: Server, address: str = "", told: str = "", **options: Any) -> Any:
        """told: what the browser may say of requests that fail, a pattern."""
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.route("http://pictures.test/**", draw)
        page.on("request", lambda request: asked.append((server.port, urlsplit(request.url))))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.extend(complaints(message, told)))
        page.goto(f"http://127.0.0.1:{server.port}/{address}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert asked
    assert {url.netloc for _, url in asked} <= {f"127.0.0.1:{port}" for port, _ in asked} | {"pictures.test"}
    assert said == []


def tell(server: Server, user: str, picks: list[tuple[str, int]]) -> None:
    events = [
        {"event_id": f"{user}-{n}", "user_id": user, "item_id": item, "time": NOW - 9000 + wait}
        for n, (item, wait) in enumerate(picks)
    ]
    assert server.post("/v1/events", {"events": events}).status == 200


def region(page: Any, name: str) -> Any:
    return page.get_by_role("search" if name == "Catalog" else "region", name=name, exact=True)


def column(page: Any, name: str) -> Any:
    return region(page, "Next items").get_by_role("list", name=name, exact=True)


def listed(page: Any, name: str) -> list[str]:
    """The ids in a column."""
    return [str(one.get_attribute("data-id")) for one in column(page, name).get_by_role("listitem").all()]


# A picture that is gone gives way to a letter, sooner or later.
_WITHOUT_PICTURES = """all => all.map(one =>
    [...one.children].filter(part => !part.classList.contains("picture")).map(part => part.textContent).join(""))"""


def timeline(page: Any) -> list[list[str]]:
    """The names in each session, the latest session first."""
    sessions = region(page, "Sessions").locator(".timeline > li").all()
    return [session.locator(".event").evaluate_all(_WITHOUT_PICTURES) for session in sessions]


def picked(page: Any, *names: str) -> None:
    """Wait until these are what is in the latest session."""
    expect(region(page, "Sessions").locator(".timeline > li").first.locator(".event > :not(.picture)")).to_have_text(
        list(names)
    )


def kept(server: Server, user: str) -> list[list[str]]:
    return [session["items"] for session in server.ask("GET", f"/v1/users/{user}").body.get("sessions", [])]


def user_of(page: Any) -> str:
    found: str = page.get_by_label("User id").input_value()
    return found
