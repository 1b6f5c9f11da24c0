"""By which names a server is asked, where it has no keys: else any page in a browser of this machine could ask it.

A page may name its own host and let that lead here (DNS rebinding), and may send what needs no answer from anywhere.
"""

from __future__ import annotations

__all__ = ["LOCAL", "check_named"]

from collections.abc import Collection, Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from hiertcn.messages import Refused

LOCAL = ("localhost", "127.0.0.1", "::1")


@lru_cache
def _name_in(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def check_named(method: str, headers: Mapping[str, str], hosts: Collection[str]) -> None:
    """Raises Refused for a request that was sent to another host than `hosts`, or by a page of one."""
    asked = [("//" + headers.get("host", ""), 400, "unknown_host", "asked by another name")]
    if method != "GET" and "origin" in headers:
        asked.append((headers["origin"], 403, "foreign_page", "asked by a page of another host"))
    for url, status, code, how in asked:
        if _name_in(url) not in hosts:
            raise Refused(
                status,
                code,
                f"The server was {how}; without keys it answers as {', '.join(sorted(hosts))} only. "
                "Give it keys (--keys FILE), or choose --open.",
            )
