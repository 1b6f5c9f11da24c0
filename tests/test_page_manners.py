"""What the live page owes everybody: no harm by texts of others, calm in trouble, room in any window, no barriers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from browsers import (
    HOSTILE,
    PICTURES,
    TITLES,
    Open,
    column,
    expect,
    kept,
    picked,
    region,
    shop,
    tell,
    user_of,
)
from hiertcn.artifact import Run
from hiertcn.keys import new_key
from hiertcn.service import SHUT
from servers import Server
from stores import RedisServer

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shop(tmp_path_factory.mktemp("runs") / "shop")


def test_texts_of_others_are_no_markup(server: Server, opened: Open) -> None:
    tell(server, "<b>bold", [("i2", 0)])
    page = opened(server, "#user=%3Cb%3Ebold", told="Content Security Policy|Trusted")
    expect(region(page, "Next items").get_by_text(HOSTILE, exact=True).first).to_be_visible()
    assert page.evaluate("document.querySelectorAll('main script, main b').length") == 0
    # Even markup that got in would do nothing.
    blocked = page.evaluate(
        "() => { const one = document.createElement('script'); one.append('window.hacked = 2');"
        "try { document.body.append(one) } catch {} try { document.body.innerHTML = '<p>' } catch { return true } }"
    )
    assert (blocked, page.evaluate("window.hacked ?? null")) == (True, None)


def test_pictures_are_shown_where_the_catalog_has_them(server: Server, opened: Open) -> None:
    page = opened(server)
    items = region(page, "Catalog").get_by_role("listitem")
    image = items.nth(0).locator("img")
    expect(image).to_have_attribute("src", PICTURES[0])
    page.wait_for_function("document.querySelector('#items img').naturalWidth > 0")
    # A picture that is gone gives way to a letter.
    expect(items.nth(1).locator(".picture")).to_have_text("P")
    expect(items.nth(4).locator(".picture")).to_have_text("E")


def back(redis: RedisServer, page: Any) -> None:
    """Where it took long to fail, it is asked again half a second later only."""
    redis.start()
    page.wait_for_timeout(1000 * SHUT)


def test_a_store_that_fails_is_told_calmly_and_then_tried_again(run: Run, opened: Open, tmp_path: Path) -> None:
    with RedisServer(tmp_path) as redis, Server(run.path, "--state", redis.url(deadline=0.5)) as server:
        page = opened(server, told="503")
        items = region(page, "Catalog")
        items.get_by_role("button", name="Apple").click()
        picked(page, "Apple")
        redis.kill()
        items.get_by_role("button", name="Elder").click()
        trouble = page.get_by_role("alert")
        expect(trouble).to_contain_text("Nothing that was taken in is lost.")
        assert "Traceback" not in page.content()
        picked(page, "Apple")
        page.reload()
        expect(region(page, "Next items")).to_contain_text("the store does not answer: popular items")
        expect(column(page, "HierTCN").get_by_role("listitem").first).to_contain_text("Apple")
        back(redis, page)
        trouble.get_by_role("button", name="Try again").click()
        picked(page, "Apple")
        expect(trouble).to_be_empty()
        redis.kill()
        items.get_by_role("button", name="Elder").click()
        expect(trouble).to_contain_text("Nothing that was taken in is lost.")
        back(redis, page)
        trouble.get_by_role("button", name="Try again").click()
        picked(page, "Apple", "Elder")
        assert kept(server, user_of(page)) == [["i0", "i4"]]


def test_a_server_with_keys_asks_for_one(run: Run, opened: Open, tmp_path: Path) -> None:
    (reader, read), (admin, all_of_it) = new_key(), new_key()
    path = tmp_path / "keys.toml"
    path.write_text(f'read = ["{read}"]\nadmin = ["{all_of_it}"]\n')
    with Server(run.path, "--state", "memory:", "--keys", path) as server:
        page = opened(server, "#user=anna", told="40[14]")
        field, trouble = page.get_by_label("API key"), page.get_by_role("alert")
        expect(trouble).to_contain_text("Enter an API key")
        expect(field).to_be_focused()
        field.fill("wrong")
        page.get_by_role("button", name="Use").click()
        expect(trouble).to_contain_text("is not known here")
        field.fill(reader)
        page.keyboard.press("Enter")
        fig = column(page, "HierTCN").get_by_role("button", name="Fig")
        expect(fig).to_be_disabled()
        expect(trouble).to_be_empty()
        expect(page.get_by_role("button", name="Forget", exact=True)).to_be_hidden()
        field.fill(admin)
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Forget", exact=True)).to_be_visible()
        fig.click()
        picked(page, "Fig")
        # It is kept as long as the tab, and stands nowhere else.
        page.reload()
        picked(page, "Fig")
        stored = page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]")
        assert stored == [[admin], 0, ""]
        assert admin not in page.url + page.content()


@pytest.mark.parametrize("width", [320, 375, 800, 1360])
def test_it_fits_its_window(server: Server, opened: Open, width: int) -> None:
    tell(server, "fits", [(f"i{n % 12}", 20 * n) for n in range(30)])
    page = opened(server, "#user=fits", viewport={"width": width, "height": 700})
    expect(column(page, "Last items").get_by_role("listitem")).to_have_count(10)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    ends = page.evaluate("[...document.querySelectorAll('main *')].map(one => one.getBoundingClientRect().right)")
    assert max(ends) <= width


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_ranks_glide_unless_motion_is_unwanted(server: Server, opened: Open, motion: str) -> None:
    page = opened(server, reduced_motion=motion)
    page.evaluate(
        "() => { window.glides = 0; const animate = Element.prototype.animate;"
        "Element.prototype.animate = function (...given) { window.glides++; return animate.apply(this, given); } }"
    )
    for number, name in enumerate(["Elder", "Fig"], 1):
        region(page, "Catalog").get_by_role("button", name=name).click()
        picked(page, *["Elder", "Fig"][:number])
    assert (page.evaluate("window.glides") > 0) == (motion == "no-preference")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_rule_of_accessibility_is_broken(server: Server, opened: Open, scheme: str) -> None:
    tell(server, f"seen-{scheme}", [("i0", 0), ("nothing", 60), ("i5", 8000)])
    page = opened(server, color_scheme=scheme, reduced_motion="reduce")
    expect(region(page, "Catalog").get_by_role("listitem")).to_have_count(len(TITLES))
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", shade)[0]) < 60) == (scheme == "dark")
    assert axe.Axe().run(page).response["violations"] == []
    page.goto(page.url + f"#user=seen-{scheme}")
    picked(page, "Fig")
    region(page, "Catalog").get_by_role("button", name="Elder").click()
    expect(page.locator(".moved").first).to_be_visible()
    assert axe.Axe().run(page).response["violations"] == []
    page.get_by_role("button", name="Forget", exact=True).click()
    assert axe.Axe().run(page).response["violations"] == []
