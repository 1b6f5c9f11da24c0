"""What was changed of items, kept in a store: nothing lost between servers, and heard by who was away."""

from __future__ import annotations

import threading

from hiertcn.door import key_of
from hiertcn.ledger import Item, Ledger, owns
from hiertcn.states import MemoryStates


def test_no_change_is_lost_between_servers() -> None:
    """Eight write at once, each some items of its own and some of all, in parts."""
    store = MemoryStates()

    def write(number: int) -> None:
        ledger = Ledger(store)
        for part in range(5):
            names = {f"own-{number}-{part}-{n}" for n in range(60)} | {"shared"}
            ledger.change({name: lambda item: Item(item.id, title=(item.title or "") + "x") for name in names})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    news = Ledger(store).news()
    assert sorted(news) == list(range(8 * 5 * 60 + 1))
    titles = {item.id: item.title for item in news.values()}
    assert titles.pop("shared") == "x" * 40
    assert set(titles.values()) == {"x"}


def test_who_was_away_for_long_hears_all() -> None:
    store = MemoryStates()
    away, writer = Ledger(store), Ledger(store)
    writer.change({"a": lambda item: item})
    assert [item.id for item in away.news().values()] == ["a"]
    for part in range(30):
        writer.change({f"{part}-{n}": lambda item: item for n in range(200)})
    writer.change({"a": lambda item: Item("a", True)})
    news = away.news()
    assert len(news) == 30 * 200 + 1
    assert news[0].withdrawn
    assert away.news() == {}
    # What changed lately is named, so that not all is read again.
    writer.change({"7-7": lambda item: Item("7-7", title="t")})
    assert [item.title for item in away.news().values()] == ["t"]


def test_its_keys_are_told_from_those_of_users() -> None:
    store = MemoryStates()
    Ledger(store).change({"a": lambda item: item})
    keys = [key for key, _ in store.scan()]
    assert len(keys) == 2
    assert all(map(owns, keys))
    assert not owns(key_of("items"))
