"""States in a Redis or Valkey server, which several processes may share."""

from __future__ import annotations

__all__ = ["RedisStates"]

import random
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from hiertcn.errors import ArtifactError, InputError, StorageError, nearest
from hiertcn.quarantine import shown
from hiertcn.states.erasure import Erasure
from hiertcn.states.promises import Say, Server, checked_server
from hiertcn.states.protocol import (
    Durability,
    StateStore,
    Update,
    changed,
    checked_keys,
    checked_name,
    checked_position,
)

FORMAT = b"1"
PREFIX, DEADLINE = "hiertcn", 0.05
PATIENCE = 5.0
"""Seconds that the server has where nobody waits for an answer: opening, scanning, values by name."""
CONTENTION = 5.0
"""Seconds after which an update whose keys others keep changing is given up."""
JOURNAL = 1_000_000
"""The journal keeps about so many entries, whoever trims it."""
PART = 1 << 20
UNFINISHED = 3600
"""Seconds after which Redis itself removes a part of a value that was never finished."""
PAGE = 256
_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_TLS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
# A value is stored behind the VERSION random bytes of the update that wrote it. It is replaced if that still stands
# there, so that no value has to be sent to be compared, and a key that was deleted and came again is a different one.
VERSION = 8
_UPDATE = """
local keys = #KEYS - 2
for i = 1, keys do
    if redis.call('GETRANGE', KEYS[i + 2], 0, 7) ~= ARGV[i + 1] then return 0 end
end
for i = 1, keys do
    local value = ARGV[i + 1 + keys]
    if value == '' then redis.call('DEL', KEYS[i + 2]) else redis.call('SET', KEYS[i + 2], value) end
end
local entries = #ARGV - 1 - 2 * keys
if entries > 0 then
    local last = redis.call('INCRBY', KEYS[2], entries)
    for i = 1, entries do
        local position = string.format('%.0f-0', last - entries + i)
        redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], position, 'e', ARGV[i + 1 + 2 * keys])
    end
end
return 1
"""
# KEYS: a pointer, `new` parts, old parts. ARGV: the pointer as it was and shall be, `new`.
_SHARE = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
for i = 2, ARGV[3] + 1 do
    if redis.call('EXISTS', KEYS[i]) == 0 then return redis.error_reply('a part of the value expired') end
end
redis.call('SET', KEYS[1], ARGV[2])
for i = 2, ARGV[3] + 1 do redis.call('PERSIST', KEYS[i]) end
for i = ARGV[3] + 2, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 1
"""


class RedisStates(StateStore):
    """Keys under a prefix of one server, `redis://` or `rediss://[USER:PASSWORD@]HOST[:PORT][/DB][?prefix=…&deadline=…]`.

    prefix:   of all keys, "hiertcn"; stores of one prefix are the same store
    deadline: seconds that the server has for each answer, 0.05
    ssl_ca_certs, ssl_certfile, ssl_keyfile: files for rediss://, which checks the server's certificate and name

    How safe an update is depends on the server. With `durability` "fsync" it must sync each write (appendonly yes,
    appendfsync always) and evict nothing; with "os" `say` is told what may be lost. Several servers behind one address
    (Redis Cluster) are not supported.

    Raises InputError for a URL that can't be, or a server that can't keep the promise, and StorageError where it can't
    be reached.
    """

    def __init__(self, url: str, durability: Durability = "fsync", say: Say = lambda line: None) -> None:
        self.durability = durability
        address, self.prefix, deadline, options = _parsed(url)
        split = urlsplit(address)
        self.where = f"Redis at {split.hostname or 'localhost'}:{split.port or 6379}"
        # The client's stubs let every call return an Awaitable.
        self._quick: Any = _client(address, deadline, options)
        self._slow: Any = _client(address, PATIENCE, options)
        self._deadline = deadline
        self._journal, self._position = self._key("journal"), self._key("position")
        self._update, self._share = self._quick.register_script(_UPDATE), self._slow.register_script(_SHARE)
        self._erasure = Erasure(self._slow, self._key("unerased"), say)
        try:
            with self._faults():
                self._server: Server = checked_server(self._slow, durability, self.where, say)
                if (form := self._slow.get(self._key("format"))) is None:
                    self._slow.set(self._key("format"), FORMAT)
                elif form != FORMAT:
                    raise ArtifactError(
                        f"The states under {self.prefix!r} in {self.where} have format {shown(form)}; this version "
                        f"reads format {FORMAT!r}. Give another prefix and replay the log into it."
                    )
                self._erasure.resume()
        except BaseException:
            self.close()
            raise

    def _key(self, *names: str) -> bytes:
        return ":".join((self.prefix, *names)).encode()

    def _keys(self, keys: list[bytes]) -> list[bytes]:
        head = self._key("s", "")
        return [head + key for key in keys]

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, OSError) as error:
            raise StorageError(
                f"{self.where} can't be used as a store of states: {error}. Expected a server that takes writes and "
                f"answers within {self._deadline:g} s. Nothing was acknowledged; see to the server, then ask again."
            ) from error

    def _read(self, keys: list[bytes]) -> list[bytes | None]:
        if not keys:
            return []
        with self._faults():
            found: list[bytes | None] = self._quick.mget(self._keys(keys))
        return found

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return _bare(self._read(checked_keys(keys)))

    def update(self, keys: Sequence[bytes], fn: Callable[[list[bytes | None]], Update]) -> None:
        keys = checked_keys(keys, distinct=True)
        names = [self._journal, self._position, *self._keys(keys)]
        begun, pause = time.monotonic(), 0.001
        while True:
            found = self._read(keys)
            values, journal = changed(keys, _bare(found), fn)
            version = secrets.token_bytes(VERSION)
            were = [b"" if value is None else value[:VERSION] for value in found]
            new = [b"" if value is None else version + value for value in values]
            with self._faults():
                if self._update(names, [JOURNAL, *were, *new, *journal]):
                    return
            if time.monotonic() - begun > CONTENTION:
                raise StorageError(
                    f"{self.where}: others changed the same keys for {CONTENTION:g} s. Nothing was stored; ask again."
                )
            time.sleep(random.random() * pause)
            pause = min(2 * pause, 0.05)

    def forget(self, key: bytes, instead: bytes | None = None) -> None:
        (name,) = self._keys(checked_keys([key]))
        with self._faults():
            self._erasure.forget(name, None if instead is None else secrets.token_bytes(VERSION) + instead)

    def journal(self, after: int, most: int = 10_000) -> list[tuple[int, bytes]]:
        with self._faults():
            rows = self._quick.xrange(self._journal, f"{checked_position(after) + 1}-0", "+", most) if most else []
        return [(int(position.partition(b"-")[0]), entry[b"e"]) for position, entry in rows]

    def trim(self, upto: int) -> None:
        with self._faults():
            self._slow.xtrim(self._journal, minid=f"{checked_position(upto) + 1}-0", approximate=False)

    def put(self, name: str, value: bytes) -> None:
        # Parts have a time to live until the last one is there, when one script makes them the value, for good.
        pointer, version = self._key("v", checked_name(name)), secrets.token_hex(VERSION)
        view, count = memoryview(value), -(-len(value) // PART)
        new = f"{version} {count}".encode()
        with self._faults():
            for number, part in enumerate(self._parts(new)):
                self._slow.set(part, view[number * PART : (number + 1) * PART], ex=UNFINISHED)
            while True:
                old = self._slow.get(pointer) or b""
                if self._share([pointer, *self._parts(new), *self._parts(old)], [old, new, count]):
                    return

    def _parts(self, pointer: bytes) -> list[bytes]:
        """The keys of the parts that a pointer, a version and a number, speaks of."""
        if not pointer:
            return []
        version, count = pointer.decode().split()
        return [self._key("p", version, str(number)) for number in range(int(count))]

    def value(self, name: str) -> bytes | None:
        pointer = self._key("v", checked_name(name))
        while True:
            with self._faults():
                if (found := self._slow.get(pointer)) is None:
                    return None
                parts = [self._slow.get(part) for part in self._parts(found)]
                # One is missing if the value was replaced in the meantime; else a person has removed it.
                if None not in parts:
                    return b"".join(parts)
                if self._slow.get(pointer) == found:
                    raise ArtifactError(f"{self.where} lacks a part of the value {name!r}. Put it again.")

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        head, cursor = self._key("s", ""), 0
        while True:
            with self._faults():
                cursor, names = self._slow.scan(cursor, head + b"*", PAGE)
                values = self._slow.mget(names) if names else []
            for name, value in zip(names, values, strict=True):
                if value is not None:
                    yield name[len(head) :], value[VERSION:]
            if not cursor:
                return

    def facts(self) -> dict[str, str]:
        with self._faults():
            entries = self._slow.xlen(self._journal)
            erasing = self._erasure.state()
        return {
            "kind": self._server.kind,
            "server": self.where,
            "prefix": self.prefix,
            "durability": f"{self.durability}: {self._server.promise}",
            **self._server.settings,
            "deadline": f"{self._deadline:g} s",
            "journal": f"{entries:,} entries of at most about {JOURNAL:,}",
            "erasure": erasing,
        }

    def close(self) -> None:
        self._erasure.close()
        self._quick.close()
        self._slow.close()


def _bare(found: list[bytes | None]) -> list[bytes | None]:
    return [None if value is None else value[VERSION:] for value in found]


def _client(address: str, deadline: float, options: dict[str, str]) -> Any:
    tls = {"ssl_check_hostname": True} if address.startswith("rediss:") else {}
    # No retries: a write whose answer was lost may have been done.
    return Redis.from_url(
        address,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=deadline,
        socket_connect_timeout=deadline,
        **tls,
        **options,
    )


def _parsed(url: str) -> tuple[str, str, float, dict[str, str]]:
    """(the address, the prefix, the deadline, options of TLS) in a URL."""
    try:
        split = urlsplit(url)
        query = dict(parse_qsl(split.query, keep_blank_values=True, strict_parsing=bool(split.query)))
        _ = split.port
    except ValueError as error:
        raise InputError(f"The store's URL can't be read: {error}. Expected redis://HOST:PORT/DB.") from error
    prefix, deadline = query.pop("prefix", PREFIX), query.pop("deadline", str(DEADLINE))
    if not _PREFIX.fullmatch(prefix):
        raise InputError(f"The prefix is {shown(prefix)}; expected 1 to 64 of A-Z, a-z, 0-9, '_', '.', ':' and '-'.")
    try:
        seconds = float(deadline)
    except ValueError:
        seconds = 0.0
    if not 0.001 <= seconds <= 60:
        raise InputError(f"The deadline is {shown(deadline)}; expected 0.001 to 60, in seconds. Leave it out for 0.05.")
    if not re.fullmatch(r"(/\d{0,4})?", split.path):
        raise InputError(f"The store's database is {shown(split.path)}; expected a number, as in redis://HOST:PORT/0.")
    known = _TLS if split.scheme == "rediss" else ()
    for name in query:
        if name not in known:
            listed = ("prefix", "deadline", *known)
            raise InputError(
                f"{shown(name)} is no option of a store{nearest(name, listed)}; expected {', '.join(listed)}."
            )
    return urlunsplit(split._replace(query=urlencode({}))), prefix, seconds, query
