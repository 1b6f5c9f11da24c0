"""API keys and what they allow. A server keeps their digests alone; two keys of one role make rotation possible."""

from __future__ import annotations

__all__ = ["ROLES", "Keys", "Role", "new_key"]

import hmac
import secrets
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import AfterValidator, Field

from hiertcn.config import Config, read_toml

Role = Literal["read", "write", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
_UNTIL = " until "


class _Known(NamedTuple):
    """end: seconds since 1970, from when on a key is none"""

    role: Role
    digest: str
    end: float


def _end(line: str) -> float:
    """Raises ValueError for a day that there is not."""
    _, _, day = line.partition(_UNTIL)
    if not day:
        return float("inf")
    return datetime.combine(date.fromisoformat(day), time.max, UTC).timestamp()


def _with_a_day(line: str) -> str:
    _end(line)
    return line


_Line = Annotated[
    str, Field(pattern=rf"^[0-9a-f]{{64}}({_UNTIL}\d{{4}}-\d{{2}}-\d{{2}})?$"), AfterValidator(_with_a_day)
]


class KeysConfig(Config):
    """SHA-256 digests of keys, by role, each perhaps with its last day (UTC): as `hiertcn key` prints them."""

    read: Annotated[tuple[_Line, ...], Field(strict=False)] = ()
    write: Annotated[tuple[_Line, ...], Field(strict=False)] = ()
    admin: Annotated[tuple[_Line, ...], Field(strict=False)] = ()


class Keys:
    """Who may do what. read: recommend, write: events, admin: all; without any key everybody may do all. One that has
    expired counts as a key, so it opens nothing."""

    def __init__(self, config: KeysConfig | None = None) -> None:
        config = config or KeysConfig()
        self._known: Sequence[_Known] = [
            _Known(role, line.partition(_UNTIL)[0], _end(line)) for role in ROLES for line in getattr(config, role)
        ]

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Of a TOML file such as KeysConfig describes. Raises InputError for another."""
        return cls(KeysConfig(**read_toml(path, 'lines such as write = ["DIGEST"], which `hiertcn key` prints')))

    def __len__(self) -> int:
        return len(self._known)

    def roles(self, key: str, now: float) -> set[Role]:
        """Those of a key at `now`, seconds since 1970; none of a wrong or an expired one. All digests are compared,
        however early one fits."""
        digest = sha256(key.encode()).hexdigest()
        return {role for role, known, end in self._known if hmac.compare_digest(digest, known) and now < end}

    def sent(self, header: str, now: float) -> set[Role]:
        """Those of the key in a request's Authorization header."""
        scheme, _, key = header.partition(" ")
        return self.roles(key.strip(), now) if scheme.lower() == "bearer" else set()

    def allow(self, roles: set[Role], role: Role) -> bool:
        """Whether one who has `roles` may do what `role` may."""
        return not self._known or role in roles or "admin" in roles


def new_key(days: int = 0) -> tuple[str, str]:
    """A key, and what stands for it in a KeysConfig. days: so many it counts beside today; 0: always"""
    key = secrets.token_urlsafe(32)
    last = datetime.now(UTC).date() + timedelta(days=days)
    return key, sha256(key.encode()).hexdigest() + (f"{_UNTIL}{last}" if days else "")
