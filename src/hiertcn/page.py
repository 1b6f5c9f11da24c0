"""The live page's files, under a policy that lets nothing in but them and the catalog's pictures."""

from __future__ import annotations

__all__ = ["file", "image_of"]

import re
from functools import cache
from importlib.resources import files

from starlette.responses import Response

from hiertcn import messages as m
from hiertcn.catalog import Catalog

_HOME = "index.html"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'self'; img-src 'self'{hosts}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'; require-trusted-types-for 'script'"
)
# A link goes to a picture if its path says so; what it names goes into a header, so it has to be plain.
_PICTURE = r"(?i)^(https?://[a-z0-9.-]+(?::[0-9]{1,5})?)/[^?#\s]*\.(?:avif|gif|jpe?g|png|svg|webp)(?:[?#]\S*)?$"
_MOST_HOSTS = 20


def file(name: str | None, catalog: Catalog) -> Response:
    """A file of the page that shows `catalog`, None: the page itself. Raises Refused for a name of none."""
    name = name or _HOME
    body = _bodies().get(name)
    if body is None:
        raise m.Refused(404, "not_found", f"The page has no file {name[:80]!r}. See /.")
    hosts = _hosts(catalog) if name == _HOME else []
    headers = {
        "content-security-policy": _POLICY.format(hosts="".join(f" {host}" for host in hosts)),
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return Response(body, media_type=_KINDS[name[name.rindex(".") :]], headers=headers)


@cache
def _bodies() -> dict[str, bytes]:
    """By name: all there are, so that no name asked for becomes a path."""
    found = (one for one in files("hiertcn").joinpath("page").iterdir() if one.name.endswith(tuple(_KINDS)))
    return {one.name: one.read_bytes() for one in found}


def _hosts(catalog: Catalog) -> list[str]:
    """Where its pictures are; of very many, all there can be."""
    hosts = catalog.items["link"].str.extract(_PICTURE, 1).drop_nulls().unique().sort().to_list()
    return hosts if len(hosts) <= _MOST_HOSTS else ["http:", "https:"]


def image_of(link: str | None) -> str | None:
    """The link of an item if it goes to a picture."""
    return link if link is not None and re.match(_PICTURE, link) else None
