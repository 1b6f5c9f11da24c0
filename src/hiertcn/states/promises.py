"""What a Redis server can promise of what it acknowledges, told from its configuration."""

from __future__ import annotations

__all__ = ["Say", "Server", "checked_server"]

from collections.abc import Callable
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from hiertcn.errors import InputError
from hiertcn.states.protocol import Durability

Say = Callable[[str], None]
OLDEST = (6, 2)
"""Trimming a stream by position came with this version."""
_ASKED = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory-policy", "maxmemory", "save")
_UNKNOWN = "unknown"


class Server(NamedTuple):
    """kind and version, what becomes of what is acknowledged, and the settings that decide it."""

    kind: str
    promise: str
    settings: dict[str, str]


def checked_server(client: Any, durability: Durability, where: str, say: Say) -> Server:
    """The server behind `client` (a redis.Redis). Warns by `say` of what it can't promise or doesn't tell.

    Raises InputError for a server that is too old, or that can't keep what `durability` "fsync" promises.
    """
    about = _told(client.info, "server")
    kind = "Valkey" if about.get("server_name") == "valkey" else "Redis"
    version = str(about.get("valkey_version") or about.get("redis_version") or _UNKNOWN)
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers and numbers < OLDEST:
        raise InputError(f"{where} has version {version}; expected {'.'.join(map(str, OLDEST))} or later. Update it.")
    settings = _settings(client)
    for line in _unknown(settings):
        say(f"warning: {where}: {line}")
    losses = _losses(settings, durability)
    if losses and durability == "fsync":
        raise InputError(
            f"{where} can lose what it has acknowledged: {'; '.join(losses)}. Expected appendonly yes, appendfsync "
            "always and no eviction. Set these (CONFIG SET, then CONFIG REWRITE), or open the store with the "
            "durability 'os'."
        )
    for loss in losses:
        say(f"warning: {where}: {loss}")
    return Server(f"{kind} {version}", _promise(settings, losses), settings)


def _told(ask: Callable[..., Any], *arguments: str) -> dict[str, Any]:
    """The answer; empty where the server forbids the question, as hosted ones do."""
    try:
        found: dict[str, Any] = ask(*arguments)
        return found
    except ResponseError:
        return {}


def _settings(client: Any) -> dict[str, str]:
    found = dict.fromkeys(_ASKED, _UNKNOWN)
    for name in _ASKED:
        found |= {key: str(value) or "never" for key, value in _told(client.config_get, name).items()}
    if found["appendonly"] == _UNKNOWN and "aof_enabled" in (persistence := _told(client.info, "persistence")):
        found["appendonly"] = "yes" if persistence["aof_enabled"] else "no"
    if found["maxmemory-policy"] == _UNKNOWN:
        found["maxmemory-policy"] = str(_told(client.info, "memory").get("maxmemory_policy", _UNKNOWN))
    return found


def _unknown(settings: dict[str, str]) -> list[str]:
    names = [name for name in ("appendonly", "appendfsync", "maxmemory-policy") if settings[name] == _UNKNOWN]
    if not names:
        return []
    return [f"CONFIG is forbidden, so {' and '.join(names)} can't be known, and what a crash loses neither"]


def _losses(settings: dict[str, str], durability: Durability) -> list[str]:
    """How what is acknowledged may get lost; for "os", beyond about the last second."""
    losses = []
    sync = settings["appendfsync"]
    if settings["appendonly"] == "no":
        losses.append("appendonly is no, so a crash loses everything since the last snapshot")
    elif sync == "no" or (sync == "everysec" and durability == "fsync"):
        losses.append(f"appendfsync is {sync}, so a power cut loses what was not synced yet")
    if durability == "fsync" and settings["no-appendfsync-on-rewrite"] == "yes":
        losses.append("no-appendfsync-on-rewrite is yes, so nothing is synced while the file is rewritten")
    # The volatile policies evict keys with a time to live, and states have none.
    if settings["maxmemory-policy"].startswith("allkeys"):
        losses.append(f"maxmemory-policy is {settings['maxmemory-policy']}, so states are evicted when memory is short")
    return losses


def _promise(settings: dict[str, str], losses: list[str]) -> str:
    if losses:
        return "; ".join(losses)
    if _UNKNOWN in (settings["appendonly"], settings["appendfsync"], settings["maxmemory-policy"]):
        return "unknown, since the server does not tell its configuration"
    lost = "nothing" if settings["appendfsync"] == "always" else "about the last second"
    return f"a crash of the server loses {lost} of what was acknowledged"
