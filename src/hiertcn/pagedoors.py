"""The doors over HTTP that the live page has for itself: its files, items by words and ids, two simple models beside
the served one, and what a key may do; their types and what is done."""

from __future__ import annotations

__all__ = [
    "Access",
    "BesideAnswer",
    "BesideRequest",
    "FoundItem",
    "FoundItems",
    "ItemsQuery",
    "access",
    "found",
    "items",
    "lists",
    "page",
]

import asyncio
from collections.abc import Callable
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta, Struct
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from hiertcn import messages as m
from hiertcn.beside import beside
from hiertcn.keys import ROLES, Keys, Role
from hiertcn.page import file, image_of
from hiertcn.recommender import Recommender
from hiertcn.stock import Stock

_Text = Annotated[str, Meta(min_length=1, max_length=256)]


class ItemsQuery(Struct, forbid_unknown_fields=True):
    """Of a URL. id: these items; else q: words that an item's id or title holds; else the most popular ones."""

    q: Annotated[str, Meta(max_length=256)] = ""
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    id: Annotated[list[_Text], Meta(max_length=100)] = msgspec.field(default_factory=list)


class FoundItem(Struct, omit_defaults=True):
    """An item, by its id as it stands in the log. image: a link to a picture."""

    item_id: str | int
    title: str | None = None
    image: str | None = None


class FoundItems(Struct):
    """As they were asked for, or the most popular first."""

    items: list[FoundItem]


class BesideRequest(m.Sent):
    """What other models would give a user."""

    user_id: m.Id
    k: m.K = 10


class BesideAnswer(Struct):
    """By model, the best first. source: "cold" where nothing is known of the user; model: the one that is served."""

    user_id: str | int
    lists: dict[str, list[m.Ranked]]
    source: m.Source
    model: str


class Access(Struct):
    """keys: whether the server has any; roles: what the key that was sent may do."""

    keys: bool
    roles: list[Role]


class _Serving(Protocol):
    keys: Keys
    now: Callable[[], float]

    @property
    def recommender(self) -> Recommender: ...


async def page(server: _Serving, _: None, request: Request) -> Response:
    """The live page, and the files it is made of."""
    catalog = server.recommender.stock.model.catalog
    return await asyncio.to_thread(file, request.path_params.get("name"), catalog)


async def items(server: _Serving, _: None, request: Request) -> FoundItems:
    """Items: by their ids, by words, or the most popular."""
    return await asyncio.to_thread(found, server.recommender.stock, _asked(request.query_params))


async def lists(server: _Serving, given: BesideRequest, _: Request) -> BesideAnswer:
    """What a moving average and the last items would give a user, beside the model."""
    recommender = server.recommender
    best = await asyncio.to_thread(beside, recommender, given.user_id, given.k)
    cold = any(one.source == "popular" for list_ in best.values() for one in list_)
    ranked = {name: [m.Ranked(one.item, one.score, one.title) for one in list_] for name, list_ in best.items()}
    return BesideAnswer(given.user_id, ranked, "cold" if cold else "model", recommender.name)


async def access(server: _Serving, _: None, request: Request) -> Access:
    """What the key that was sent may do."""
    roles = server.keys.sent(request.headers.get("authorization", ""), server.now())
    return Access(len(server.keys) > 0, [role for role in ROLES if server.keys.allow(roles, role)])


def found(stock: Stock, asked: ItemsQuery) -> FoundItems:
    """Of the items asked for by id those that are known; else those that may be recommended and hold the words."""
    if asked.id:
        rows = [row for row in map(stock.row, asked.id) if row]
    else:
        rows = stock.model.catalog.search(asked.q, asked.limit, stock.open)
        rows = (rows + _added(stock, asked.q))[: asked.limit]
    return FoundItems([FoundItem(stock.id(row), stock.title(row), image_of(_link(stock, row))) for row in rows])


def _added(stock: Stock, text: str) -> list[int]:
    """The same of what is in no catalog."""
    words, is_open = text.lower().split(), stock.open
    rows = [row for row in stock.added if row < len(is_open) and is_open[row]]
    texts = [f"{stock.id(row)}\n{stock.title(row) or ''}".lower() for row in rows]
    return [row for row, held in zip(rows, texts, strict=True) if all(word in held for word in words)]


def _link(stock: Stock, row: int) -> str | None:
    catalog = stock.model.catalog
    link: str | None = catalog.items["link"][row - 1] if row <= catalog.size else None
    return link


def _asked(query: QueryParams) -> ItemsQuery:
    given: dict[str, object] = {name: query[name] for name in query}
    twice = [name for name in query if name != "id" and len(query.getlist(name)) > 1]
    if twice:
        raise m.Refused(422, "duplicate_key", f"{twice[0][:80]!r} is there twice. Send it once.")
    if "id" in given:
        given["id"] = query.getlist("id")
    try:
        return msgspec.convert(given, ItemsQuery, strict=False)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `")
        raise m.Refused(422, "invalid", f"{message}.", place.rstrip("`").removeprefix("$.") or None) from None
