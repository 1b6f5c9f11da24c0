"""API keys and what they allow. A server keeps their digests alone; two keys of one role make rotation possible."""

from __future__ import annotations

__all__ = ["ROLES", "Keys", "Role", "new_key"]

import hmac
import secrets
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from hiertcn.config import Config, read_toml

Role = Literal["read", "write", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class KeysConfig(Config):
    """SHA-256 digests of keys, by role: as `hiertcn key` prints them."""

    read: Annotated[tuple[_Digest, ...], Field(strict=False)] = ()
    write: Annotated[tuple[_Digest, ...], Field(strict=False)] = ()
    admin: Annotated[tuple[_Digest, ...], Field(strict=False)] = ()


class Keys:
    """Who may do what. read: recommend, write: events, admin: all; without any key everybody may do all."""

    def __init__(self, config: KeysConfig | None = None) -> None:
        config = config or KeysConfig()
        self._digests: Sequence[tuple[Role, str]] = [(role, d) for role in ROLES for d in getattr(config, role)]

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Of a TOML file such as KeysConfig describes. Raises InputError for another."""
        return cls(KeysConfig(**read_toml(path)))

    def __len__(self) -> int:
        return len(self._digests)

    def roles(self, key: str) -> set[Role]:
        """Those of a key; none of a wrong one. All digests are compared, however early one fits."""
        digest = sha256(key.encode()).hexdigest()
        return {role for role, known in self._digests if hmac.compare_digest(digest, known)}

    def sent(self, header: str) -> set[Role]:
        """Those of the key in a request's Authorization header."""
        scheme, _, key = header.partition(" ")
        return self.roles(key.strip()) if scheme.lower() == "bearer" else set()

    def allow(self, roles: set[Role], role: Role) -> bool:
        """Whether one who has `roles` may do what `role` may."""
        return not self._digests or role in roles or "admin" in roles


def new_key() -> tuple[str, str]:
    """A key, and its digest."""
    key = secrets.token_urlsafe(32)
    return key, sha256(key.encode()).hexdigest()
