"""Every store of states keeps the same promises."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hiertcn.errors import InputError
from hiertcn.states import StateStore, Update, open_states
from stores import STORES, log, one, opened, put, raising

BIG = bytes(range(256)) * 4000


class TestStateStore:
    """The contract."""

    @pytest.fixture(params=STORES)
    def store(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateStore]:
        with opened(request.param, request, tmp_path) as store:
            yield store

    def test_an_unknown_key_has_nothing(self, store: StateStore) -> None:
        assert store.get([b"u", b"v"]) == [None, None]
        store.delete([b"u"])
        store.forget(b"u")
        assert one(store, b"u") is None
        assert store.get([]) == []

    def test_an_update_sees_what_was_stored(self, store: StateStore) -> None:
        seen: list[list[bytes | None]] = []

        def grown(found: list[bytes | None]) -> Update:
            seen.append(found)
            return Update([(value or b"") + b"\0x" for value in found])

        store.update([b"u"], grown)
        store.update([b"v", b"u"], grown)
        assert seen == [[None], [None, b"\0x"]]
        assert store.get([b"u", b"v", b"u"]) == [b"\0x\0x", b"\0x", b"\0x\0x"]

    def test_many_keys_in_one_update(self, store: StateStore) -> None:
        keys = [b"%d" % n for n in range(1000)]
        store.update(keys, lambda found: Update(list(keys)))
        marked = [None if key == b"7" else b"-" + key for key in keys]
        store.update(keys[::-1], lambda found: Update(marked[::-1] if found == keys[::-1] else []))
        assert store.get(keys) == marked

    def test_keys_are_apart(self, store: StateStore) -> None:
        keys = [
            b"u",
            b"U",
            b"u ",
            b"\0",
            b"\0\0",
            b"\xff",
            b"1",
            b"01",
            b"'; --",
            b"%",
            b"*",
            b"[u]",
            b":",
            bytes(16),
            b"k" * 64,
        ]
        for key in keys:
            put(store, key, b"of " + key)
        store.delete([b"U", b"\0"])
        assert store.get(keys) == [None if key in (b"U", b"\0") else b"of " + key for key in keys]

    @pytest.mark.parametrize("value", [b"", b"\0", b"8 bytes!", BIG], ids=["empty", "nul", "short", "1 MB"])
    def test_any_bytes_come_back(self, store: StateStore, value: bytes) -> None:
        store.update([b"u"], lambda _: Update([value], [value]))
        store.put("name", value)
        assert (one(store, b"u"), store.value("name")) == (value, value)
        assert store.journal(0) == [(1, value)]
        assert list(store.scan()) == [(b"u", value)]
        store.update([b"u"], lambda found: Update([b"same" if found == [value] else b"other"]))
        assert one(store, b"u") == b"same"

    @pytest.mark.parametrize("bad", [b"", b"k" * 65, "u", 1, None, bytearray(b"u")], ids=repr)
    def test_a_key_that_can_be_none_is_refused(self, store: StateStore, bad: Any) -> None:
        for call in (lambda: store.get([bad]), lambda: store.forget(bad), lambda: put(store, bad, b"")):
            with pytest.raises(InputError, match="expected 1 to 64 bytes"):
                call()

    def test_a_key_stands_once_in_an_update(self, store: StateStore) -> None:
        with pytest.raises(InputError, match="1 of them distinct"):
            store.update([b"u", b"u"], lambda found: Update(found))
        store.delete([b"u", b"u"])

    def test_a_failed_update_changes_nothing(self, store: StateStore) -> None:
        store.update([b"u"], lambda _: Update([b"before"], [b"first"]))
        for keys in ([b"u"], [b"v", b"u"]):
            with pytest.raises(ZeroDivisionError):
                store.update(keys, raising(ZeroDivisionError()))
        assert store.get([b"u", b"v"]) == [b"before", None]
        store.update([b"u"], lambda _: Update([b"after"], [b"second"]))
        assert [entry for _, entry in store.journal(0)] == [b"first", b"second"]

    @pytest.mark.parametrize(
        "bad", [([],), ([b"", b""],), (["text"],), ([1],), ([b""], [None]), ([b""], ["x"])], ids=repr
    )
    def test_an_update_that_gives_nonsense_changes_nothing(self, store: StateStore, bad: Any) -> None:
        put(store, b"u", b"before")
        with pytest.raises(InputError, match="An update gave"):
            store.update([b"u"], lambda _: Update(*bad))
        assert (one(store, b"u"), store.journal(0)) == (b"before", [])

    def test_a_deleted_key_begins_anew(self, store: StateStore) -> None:
        seen: list[list[bytes | None]] = []
        for way in (store.forget, lambda key: store.delete([key]), lambda key: put(store, key, None)):
            store.update([b"u", b"v"], lambda found: Update([b"before", seen.append(found) or b"kept"]))
            way(b"u")
            assert store.get([b"u", b"v"]) == [None, b"kept"]
        assert seen == [[None, None], [None, b"kept"], [None, b"kept"]]

    def test_the_journal_is_in_order_and_behind_a_position(self, store: StateStore) -> None:
        assert store.journal(0) == []
        for n in range(4):
            store.update([b"u"], lambda _, n=n: Update([b""], [b"%d" % n, b"%d'" % n]))
        entries = store.journal(0)
        assert [entry for _, entry in entries] == [b"0", b"0'", b"1", b"1'", b"2", b"2'", b"3", b"3'"]
        positions = [position for position, _ in entries]
        assert positions == sorted(set(positions))
        assert positions[0] > 0
        for at, position in enumerate(positions):
            assert store.journal(position) == entries[at + 1 :]
            assert store.journal(position, 2) == entries[at + 1 : at + 3]
        assert store.journal(2**53 - 1) == store.journal(0, 0) == []

    def test_a_position_of_the_journal_is_never_used_twice(self, store: StateStore) -> None:
        log(store, b"a", b"b", b"c")
        (_, _), (second, _), (third, _) = store.journal(0)
        store.trim(second)
        assert store.journal(0) == [(third, b"c")]
        store.trim(0)
        store.trim(third)
        store.trim(third)
        assert store.journal(0) == []
        log(store, b"d")
        ((fourth, entry),) = store.journal(0)
        assert (fourth > third, entry) == (True, b"d")
        assert store.journal(third) == store.journal(second) == [(fourth, b"d")]
        store.trim(2**53 - 1)
        assert store.journal(0) == []

    @pytest.mark.parametrize("bad", [-1, 1.0, "1", None, True, 2**53])
    def test_a_position_that_can_be_none_is_refused(self, store: StateStore, bad: Any) -> None:
        for call in (store.journal, store.trim):
            with pytest.raises(InputError, match="no position"):
                call(bad)

    @pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, 5_000_001])
    def test_a_named_value_is_replaced_whole(self, store: StateStore, size: int) -> None:
        assert store.value("crowd") is None
        for byte in (b"a", b"b"):
            store.put("crowd", byte * size)
            store.put("other", byte)
            assert store.value("crowd") == byte * size
        assert (store.value("other"), store.value("Crowd")) == (b"b", None)
        assert list(store.scan()) == []

    def test_a_named_value_is_never_read_half_replaced(self, store: StateStore) -> None:
        ended = threading.Event()

        def write(byte: bytes) -> None:
            for _ in range(4):
                store.put("crowd", byte * 2_500_000)

        def read() -> set[bytes]:
            seen = set()
            while not ended.is_set():
                seen.add(bytes(set(store.value("crowd") or b"")))
            return seen

        with ThreadPoolExecutor(3) as threads:
            reader = threads.submit(read)
            list(threads.map(write, (b"a", b"b")))
            ended.set()
        assert reader.result() <= {b"", b"a", b"b"}
        assert len(store.value("crowd") or b"") == 2_500_000

    @pytest.mark.parametrize("bad", ["", "a b", "ü", "n" * 65, "a:b", "a\n", b"a", None])
    def test_a_name_that_can_be_none_is_refused(self, store: StateStore, bad: Any) -> None:
        for call in (lambda: store.put(bad, b""), lambda: store.value(bad)):
            with pytest.raises(InputError, match="can't name a stored value"):
                call()

    def test_a_scan_gives_all_while_others_write(self, store: StateStore) -> None:
        kept = {b"k%d" % n: b"v%d" % n for n in range(1500)}
        store.update(list(kept), lambda _: Update(list(kept.values())))
        found: list[tuple[bytes, bytes]] = []
        for pair in store.scan():
            found.append(pair)
            if len(found) % 100 == 1:
                put(store, b"new%d" % len(found), b"new")
                store.forget(b"new%d" % len(found))
        assert {key: value for key, value in found if key in kept} == kept
        assert dict(store.scan()) == kept

    def test_no_update_is_lost_between_threads(self, store: StateStore) -> None:
        def count(number: int) -> None:
            entry = b"%d" % number
            store.update([b"u"], lambda found: Update([b"%d" % (int(found[0] or b"0") + 1)], [entry]))

        with ThreadPoolExecutor(32) as threads:
            list(threads.map(count, range(128)))
        assert one(store, b"u") == b"128"
        assert sorted(int(entry) for _, entry in store.journal(0)) == list(range(128))

    def test_updates_of_overlapping_keys_are_whole(self, store: StateStore) -> None:
        keys = [b"a", b"b", b"c"]

        def move(number: int) -> None:
            pair = [keys[number % 3], keys[(number + 1 + number // 3 % 2) % 3]]
            store.update(
                pair, lambda found: Update([b"%d" % (int(found[0] or 0) - 1), b"%d" % (int(found[1] or 0) + 1)])
            )

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(move, range(60)))
        assert sum(int(value or 0) for value in store.get(keys)) == 0

    def test_it_says_what_it_is(self, store: StateStore) -> None:
        facts = store.facts()
        assert {"kind", "durability"} <= set(facts)
        assert all(isinstance(value, str) and value and "\n" not in value for value in facts.values())

    def test_closing_twice_does_nothing(self, store: StateStore) -> None:
        store.close()
        store.close()


@pytest.mark.parametrize("url", ["", "sqlite:states.db", "sqlite:///", "SQLITE:///a", "/a", "redis:/a", "memory:a"])
def test_an_unknown_store_names_the_known_ones(url: str) -> None:
    with pytest.raises(InputError, match="memory:, sqlite:///FILE, redis://HOST:PORT/DB or rediss") as caught:
        open_states(url)
    assert len(str(caught.value)) < 300


def test_an_unknown_durability_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="expected 'fsync' or 'os'"):
        open_states("memory:", "none")  # type: ignore[arg-type]


def test_a_path_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_states("sqlite:///mine.db").close()
    open_states(f"sqlite:///{tmp_path}/absolute.db").close()
    assert {path.name for path in tmp_path.iterdir()} == {"mine.db", "absolute.db"}
    open_states("memory").close()


TAILS = [
    "?prefix=",
    "?prefix=a*",
    "?prefix=a%0Ab",
    "?deadline=0",
    "?deadline=soon",
    "?deadline=1e9",
    "/one",
    "?prefx=a",
]


@pytest.mark.parametrize("tail", [*TAILS, "?a", "?decode_responses=1", "?ssl_keyfile=a"])
def test_a_url_of_redis_that_can_be_none_is_refused(tail: str) -> None:
    pytest.importorskip("redis", reason="the package redis is not installed")
    with pytest.raises(InputError, match=r"expected|Expected"):
        open_states(f"redis://127.0.0.1:1{tail}")
    with pytest.raises(InputError, match="can't be read"):
        open_states("redis://127.0.0.1:port")
