"""The live page in a real browser, on a real server: what a person sees, does by mouse or by keys, and is told."""

from __future__ import annotations

import re
from typing import Any

import pytest

from browsers import (
    TITLES,
    Open,
    column,
    expect,
    kept,
    listed,
    picked,
    region,
    shop,
    tell,
    timeline,
    user_of,
)
from hiertcn.artifact import Run
from servers import Server


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shop(tmp_path_factory.mktemp("runs") / "shop")


def test_a_person_is_chosen_and_their_sessions_are_seen(server: Server, opened: Open) -> None:
    tell(server, "anna", [("i0", 0), ("i4", 60), ("nothing", 70), ("i5", 8000)])
    page = opened(server, told="404")
    page.get_by_label("User id").fill("anna")
    page.get_by_role("button", name="Show").click()
    picked(page, "Fig")
    assert timeline(page) == [["Fig"], ["Apple", "Elder", "nothing (not in the catalog)"]]
    expect(region(page, "Sessions")).to_contain_text("2 h 12 min later")
    best = server.post("/v1/recommend", {"user_id": "anna", "k": 10}).body["items"]
    lists = server.post("/v1/beside", {"user_id": "anna", "k": 10}).body["lists"]
    assert listed(page, "HierTCN") == [one["item_id"] for one in best]
    assert listed(page, "Moving average") == [one["item_id"] for one in lists["moving_average"]]
    assert listed(page, "Last items") == [one["item_id"] for one in lists["last_items"]]
    # Loaded anew, it shows the same; and the way back leads to who was there before.
    page.goto(page.url.replace("anna", "nobody"))
    expect(region(page, "Sessions")).to_contain_text("Nothing picked yet")
    expect(region(page, "Next items")).to_contain_text("nothing is known yet: popular items")
    page.go_back()
    picked(page, "Fig")
    page.reload()
    picked(page, "Fig")


def test_a_pick_changes_all_lists_and_the_timeline_and_is_stored(server: Server, opened: Open) -> None:
    page = opened(server)
    page.get_by_role("button", name="Invent one").click()
    expect(column(page, "Last items").get_by_role("listitem")).to_have_count(10)
    assert re.fullmatch("guest-[0-9a-f]{8}", user_of(page))
    columns = ("HierTCN", "Moving average", "Last items")
    before = [listed(page, name) for name in columns]
    region(page, "Catalog").get_by_role("button", name="Fig").click()
    picked(page, "Fig")
    column(page, "HierTCN").get_by_role("button", name="Cherry").click()
    picked(page, "Fig", "Cherry")
    after = [listed(page, name) for name in columns]
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert after[2][:2] == ["i9", "i5"]
    assert kept(server, user_of(page)) == [["i5", "i9"]]
    ask = {"user_id": user_of(page), "k": 10}
    assert after[0] == [one["item_id"] for one in server.post("/v1/recommend", ask).body["items"]]
    # It is told, too, to who does not see it; and beside each item, how far it went.
    best = column(page, "HierTCN").locator(".name bdi").first.inner_text()
    expect(page.locator("#said")).to_contain_text(f"Cherry is picked. HierTCN now puts {best} first, then ")
    expect(column(page, "Last items").get_by_role("listitem").first).to_contain_text(
        "up 9" if "i9" in before[2] else "new"
    )
    expect(column(page, "Last items").get_by_role("button", name=re.compile("^2 .*Fig i5.* 1$"))).to_have_count(1)


def test_clicks_in_a_row_keep_their_order(server: Server, opened: Open) -> None:
    page = opened(server)
    names = ["Plum", "Fig", "Elder", "Apple", "Fig"]
    # Nobody is chosen: somebody is invented.
    expect(region(page, "Catalog").get_by_role("button", name="Plum")).to_be_visible()
    page.evaluate(
        "names => names.forEach(name => [...document.querySelectorAll('#items button')]"
        ".find(one => one.querySelector('bdi').textContent === name).click())",
        names,
    )
    picked(page, *names)
    assert kept(server, user_of(page)) == [["i7", "i5", "i4", "i0", "i5"]]


def test_everything_is_done_by_keys(server: Server, opened: Open) -> None:
    page = opened(server, told="404")
    expect(region(page, "Catalog").get_by_role("listitem")).to_have_count(len(TITLES))

    def focused() -> Any:
        return page.locator(":focus")

    def to(what: Any) -> None:
        for _ in range(60):
            if what.evaluate("one => one === document.activeElement"):
                assert "solid 3px" in what.evaluate("one => getComputedStyle(one).outline")
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"no Tab leads to {what}")

    page.keyboard.press("Tab")
    expect(focused()).to_have_text("Skip to the recommendations")
    to(page.get_by_label("User id"))
    page.keyboard.type("keys-only")
    page.keyboard.press("Enter")
    expect(column(page, "HierTCN").get_by_role("listitem")).to_have_count(10)
    to(page.get_by_label("Search titles and ids"))
    page.keyboard.type("pea")
    expect(region(page, "Catalog").get_by_role("listitem")).to_have_count(1)
    expect(region(page, "Catalog").get_by_role("status")).to_have_text("1 item")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    picked(page, "Pear")
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "End", "Home", "ArrowDown"):
        page.keyboard.press(key)
    expect(focused()).to_have_attribute("type", "button")
    second = focused().locator("bdi").first.inner_text()
    assert second == column(page, "Last items").get_by_role("listitem").nth(1).locator("bdi").first.inner_text()
    page.keyboard.press("Space")
    picked(page, "Pear", second)
    # It is first now, and who picked it goes on from there.
    expect(focused().locator(".rank")).to_have_text("1")
    expect(focused().locator("bdi").first).to_have_text(second)
    to(page.get_by_role("button", name="Forget", exact=True))
    page.keyboard.press("Enter")
    expect(focused()).to_have_text("Keep")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(region(page, "Sessions")).to_contain_text("Nothing picked yet")
    assert kept(server, "keys-only") == []


def test_who_was_forgotten_begins_anew(server: Server, opened: Open) -> None:
    tell(server, "gone", [("i4", 0)])
    page = opened(server, "#user=gone")
    picked(page, "Elder")
    page.get_by_role("button", name="Forget", exact=True).click()
    page.get_by_role("dialog", name="Forget this person?").get_by_role("button", name="Forget").click()
    expect(region(page, "Sessions")).to_contain_text("Nothing picked yet")
    region(page, "Catalog").get_by_role("button", name="Fig").click()
    picked(page, "Fig")
    assert kept(server, "gone") == [["i5"]]
