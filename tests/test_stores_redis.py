"""What Redis adds to the contract: many servers on one store, and a server that can't promise or can't answer, told."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hiertcn.errors import ArtifactError, InputError, StorageError
from hiertcn.states import StateStore, Update, open_states
from stores import SAFE, RedisServer, files_of, free_port, log, one, put, until

pytest.importorskip("redis", reason="the package redis is not installed")
READ_ONLY = "read only|READONLY"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One whose settings these tests change."""
    with RedisServer(tmp_path_factory.mktemp("own")) as server:
        yield server


@contextmanager
def setting(server: RedisServer, **settings: str) -> Iterator[None]:
    client = server.client()
    before = {name: client.config_get(name.replace("_", "-"))[name.replace("_", "-")] for name in settings}
    for name, value in settings.items():
        client.config_set(name.replace("_", "-"), value)
    try:
        yield
    finally:
        for name, value in before.items():
            client.config_set(name.replace("_", "-"), value)


def refused(store: StateStore, told: str, reads: bool = False) -> None:
    """No change is acknowledged, nor a read where `reads` is False, and the error says why."""
    changes = [
        lambda: store.update([b"u"], lambda found: Update([b"no"], [b"no"])),
        lambda: log(store, b"no"),
        lambda: store.put("crowd", b"no"),
    ]
    asked = [
        lambda: store.get([b"u"]),
        lambda: store.journal(0),
        lambda: store.value("crowd"),
        lambda: list(store.scan()),
    ]
    for call in changes if reads else changes + asked:
        with pytest.raises(StorageError, match=told) as caught:
            call()  # type: ignore[no-untyped-call]
        assert "\n" not in str(caught.value)
    if reads:
        assert one(store, b"u") == b"before"


def test_stores_of_one_prefix_are_one_and_of_another_are_none(redis_server: RedisServer) -> None:
    url = redis_server.url()
    with open_states(url) as a, open_states(url) as b, open_states(redis_server.url()) as other:
        a.update([b"u"], lambda _: Update([b"value"], [b"from a"]))
        log(b, b"from b")
        a.put("crowd", b"both")
        assert one(b, b"u") == b"value"
        assert a.journal(0) == b.journal(0) == [(1, b"from a"), (2, b"from b")]
        assert b.value("crowd") == b"both"
        assert (one(other, b"u"), other.journal(0), other.value("crowd"), list(other.scan())) == (None, [], None, [])
    with open_states(url) as again:
        assert one(again, b"u") == b"value"


def test_a_key_that_was_deleted_and_came_again_is_another(redis_server: RedisServer) -> None:
    url, seen = redis_server.url(), []
    with open_states(url) as store, open_states(url) as other:
        put(store, b"u", b"same")

        def slow(found: list[bytes | None]) -> Update:
            seen.append(found)
            if len(seen) == 1:
                other.delete([b"u"])
                put(other, b"u", b"same")
            elif len(seen) == 2:
                other.forget(b"u")
            return Update([b"new"], [b"once"])

        store.update([b"u"], slow)
        assert seen == [[b"same"], [b"same"], [None]]
        assert [entry for _, entry in other.journal(0)] == [b"once"]


def test_the_journal_has_a_limit(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from hiertcn.states import redis

    monkeypatch.setattr(redis, "JOURNAL", 100)
    with open_states(redis_server.url()) as store:
        log(store, *(b"%d" % n for n in range(1000)))
        kept = store.journal(0)
        assert 100 <= len(kept) <= 300
        assert kept[-1] == (1000, b"999")


def test_a_replaced_value_leaves_no_parts(redis_server: RedisServer) -> None:
    client = redis_server.client()
    with open_states(redis_server.url("parts")) as store:
        for size in (3, 2):
            store.put("crowd", bytes(size << 20))
            names = client.keys("parts:p:*")
            assert (len(names), {client.ttl(name) for name in names}) == (size, {-1})
        client.delete(*names)
        with pytest.raises(ArtifactError, match=r"lacks a part.*Put it again"):
            store.value("crowd")
        store.put("crowd", b"again")
        assert store.value("crowd") == b"again"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("appendonly", "no"),
        ("appendfsync", "everysec"),
        ("appendfsync", "no"),
        ("no-appendfsync-on-rewrite", "yes"),
        ("maxmemory-policy", "allkeys-lru"),
    ],
)
def test_a_server_that_can_lose_what_it_acknowledged(server: RedisServer, name: str, value: str) -> None:
    said: list[str] = []
    with setting(server, **{name.replace("-", "_"): value}):
        with pytest.raises(InputError, match=rf"{name} is {value}.*or open the store with the durability 'os'"):
            open_states(server.url(), "fsync")
        with open_states(server.url(), "os", said.append) as store:
            facts = store.facts()
    # Up to a second is what "os" gives away.
    expected = [] if value in ("everysec", "yes") else [f"{name} is {value}"]
    assert [line.startswith("warning:") and expected[0] in line for line in said] == [True] * len(expected)
    assert facts[name] == value
    assert facts["durability"].startswith("os: ")


def test_it_says_what_it_is(server: RedisServer) -> None:
    said: list[str] = []
    with open_states(server.url("mine", 0.5), say=said.append) as store:
        facts = store.facts()
    assert facts["kind"].startswith(("Redis ", "Valkey "))
    assert facts["durability"] == "fsync: a crash of the server loses nothing of what was acknowledged"
    assert (facts["appendonly"], facts["appendfsync"], facts["prefix"], facts["deadline"]) == (
        "yes",
        "always",
        "mine",
        "0.5 s",
    )
    assert said == []


def test_where_config_is_forbidden_it_says_what_it_cannot_know(server: RedisServer) -> None:
    server.client().execute_command("ACL SETUSER guest on >secret ~* +@all -config -bgrewriteaof")
    url = server.url().replace("redis://", "redis://guest:secret@")
    said: list[str] = []
    with open_states(url, say=said.append) as store:
        put(store, b"u", b"value")
        assert store.facts()["durability"].startswith("fsync: unknown")
        assert said == [said[0]]
        assert "CONFIG is forbidden, so appendfsync can't be known" in said[0]
        store.forget(b"u")
        assert one(store, b"u") is None
        until(lambda: len(said) > 1, 10)
        assert "forgotten states are still in the files" in said[1]
        assert "1 forgotten keys are still in files" in store.facts()["erasure"]
        server.client().execute_command("ACL SETUSER guest +bgrewriteaof")
        until(lambda: store.facts()["erasure"] == "nothing is waiting")
    with setting(server, appendonly="no"), pytest.raises(InputError, match="appendonly is no"):
        open_states(url)
    with pytest.raises(StorageError) as caught:
        open_states(url.replace("secret", "password-of-mine"))
    assert "password-of-mine" not in str(caught.value)


def test_a_full_memory_is_told_and_survived(server: RedisServer) -> None:
    with open_states(server.url()) as store:
        put(store, b"u", b"before")
        with setting(server, maxmemory="1"):
            refused(store, "OOM|maxmemory", reads=True)
            store.delete([b"v"])
        put(store, b"u", b"after")
        assert (one(store, b"u"), store.journal(0)) == (b"after", [])


def test_a_replica_is_told_and_survived(server: RedisServer) -> None:
    client = server.client()
    with open_states(server.url()) as store:
        put(store, b"u", b"before")
        client.execute_command(f"REPLICAOF 127.0.0.1 {free_port()}")
        try:
            refused(store, READ_ONLY, reads=True)
            with pytest.raises(StorageError, match=READ_ONLY):
                store.forget(b"u")
            with pytest.raises(StorageError, match=READ_ONLY):
                open_states(server.url())
        finally:
            client.execute_command("REPLICAOF NO ONE")
        put(store, b"u", b"after")
        assert (one(store, b"u"), store.journal(0)) == (b"after", [])


def test_a_slow_server_is_given_up_within_the_deadline(server: RedisServer) -> None:
    client = server.client()
    with open_states(server.url(deadline=0.05)) as store:
        client.execute_command("CLIENT PAUSE 1500")
        begun = time.monotonic()
        for call in (lambda: store.get([b"u"]), lambda: log(store, b"no"), lambda: store.journal(0)):
            with pytest.raises(StorageError, match=r"Timeout|timed out.*within 0.05 s"):
                call()  # type: ignore[no-untyped-call]
        assert time.monotonic() - begun < 1
        client.execute_command("CLIENT UNPAUSE")
        until(lambda: store.value("crowd") is None, 5)
        with open_states(server.url()) as patient:
            put(patient, b"u", b"value")


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from hiertcn.states import redis

    monkeypatch.setattr(redis, "PATIENCE", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(StorageError, match="Timeout"):
        open_states(f"redis://127.0.0.1:{silent.getsockname()[1]}")


def test_a_server_that_is_loading_or_of_old_is_told() -> None:
    def answering(reply: bytes) -> int:
        program = (
            "import socket; listening = socket.create_server(('127.0.0.1', 0))\n"
            "print(listening.getsockname()[1], flush=True)\n"
            f"while True:\n    peer, _ = listening.accept()\n    while peer.recv(9999): peer.sendall({reply!r})"
        )
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        return int(process.stdout.readline())

    processes: list[subprocess.Popen[str]] = []
    loading = b"-LOADING Redis is loading the dataset in memory\r\n"
    old = b"redis_version:5.0.14\r\n"
    try:
        with pytest.raises(StorageError, match="loading"):
            open_states(f"redis://127.0.0.1:{answering(loading)}")
        with pytest.raises(InputError, match=r"version 5.0.14; expected 6.2 or later"):
            open_states(f"redis://127.0.0.1:{answering(b'$%d' % len(old) + bytes([13, 10]) + old + bytes([13, 10]))}")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_server_that_is_gone_is_told_and_found_again(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as own, open_states(own.url()) as store:
        put(store, b"u", b"before")
        own.kill()
        refused(store, "refused|closed|reset")
        with pytest.raises(StorageError, match="refused"):
            open_states(own.url())
        own.start()
        assert one(store, b"u") == b"before"
        store.update([b"u"], lambda found: Update([b"after"], [b"entry"]))
        assert (one(store, b"u"), store.journal(0)) == (b"after", [(1, b"entry")])


def test_what_is_forgotten_is_in_no_file(tmp_path: Path) -> None:
    mark = b"<personal>"
    with RedisServer(tmp_path, [*SAFE[:-1], "900", "1"]) as own:
        url = own.url()
        with open_states(url) as store:
            for n in range(1, 4):
                put(store, b"the-user", mark * n)
            put(store, b"other", b"kept")
            own.client().save()
            assert files_of(tmp_path).count(mark) >= 6
            store.forget(b"the-user")
            until(lambda: mark not in files_of(tmp_path), 60)
            until(lambda: store.facts()["erasure"] == "nothing is waiting")
            assert b"the-user" not in files_of(tmp_path)
            assert store.get([b"the-user", b"other"]) == [None, b"kept"]
        # What a store could not end before it was gone, the next one does.
        with open_states(url) as store:
            put(store, b"v", mark)
            store._erasure._closed.set()  # type: ignore[attr-defined]
            store.forget(b"v")
        assert mark in files_of(tmp_path)
        with open_states(url):
            until(lambda: mark not in files_of(tmp_path), 60)


def test_a_store_of_another_format_is_refused(redis_server: RedisServer) -> None:
    redis_server.client().set("newer:format", b"9")
    with pytest.raises(ArtifactError, match=r"format b'9'; this version reads.*another prefix"):
        open_states(redis_server.url("newer"))


def test_tls_checks_who_answers(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from redis import SSLConnection

    from hiertcn.states import redis

    monkeypatch.setattr(redis, "PATIENCE", 0.2)
    made: Any = redis._client("rediss://127.0.0.1:1", 1, {}).connection_pool.make_connection()
    assert isinstance(made, SSLConnection)
    assert (made.check_hostname, made.cert_reqs.name) == (True, "CERT_REQUIRED")
    with pytest.raises(StorageError):
        open_states(redis_server.url().replace("redis://", "rediss://"))
