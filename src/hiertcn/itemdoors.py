"""The doors over HTTP to the items that are recommended: put, withdrawn, restored; their types and what is done.

What is answered by 200 is stored, and counts in every answer after it, here at once and within seconds on other servers
of the store.
"""

from __future__ import annotations

__all__ = [
    "BODY",
    "ItemMessage",
    "ItemResult",
    "ItemsAnswer",
    "ItemsRequest",
    "RestoreRequest",
    "WithdrawRequest",
    "put",
    "restore",
    "withdraw",
    "withdraw_one",
]

import asyncio
from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from hiertcn import messages as m
from hiertcn.decoding import decoded
from hiertcn.door import told
from hiertcn.incoming import id_in_path
from hiertcn.recommender import Recommender
from hiertcn.service import Service, Work
from hiertcn.stock import Shrinks, Stated, Stock

MOST_ITEMS = 1000
# So many vectors of some hundred numbers.
BODY = 8 << 20

ItemStatus = Literal["added", "replaced", "withdrawn", "restored", "unknown_item", "invalid"]
Ids = Annotated[list[m.Id], Meta(max_length=MOST_ITEMS)]


class ItemMessage(m.Sent):
    """An item to add, or what is to replace a known one's. vector: computed as those of the catalog."""

    item_id: m.Id
    vector: Annotated[list[float], Meta(min_length=1, max_length=65_536)] | None = None
    title: Annotated[str, Meta(max_length=1000)] | None = None


class ItemsRequest(m.Sent):
    """Up to 1,000 items, each judged by itself."""

    items: Annotated[list[msgspec.Raw], Meta(max_length=MOST_ITEMS)]


class WithdrawRequest(m.Sent):
    """Up to 1,000 items. allow_shrink: even if more than half of all are withdrawn then."""

    items: Ids
    allow_shrink: bool = False


class RestoreRequest(m.Sent):
    """Up to 1,000 items."""

    items: Ids


class ItemResult(Struct):
    """What became of an item."""

    item_id: str | int | None
    status: ItemStatus
    error: m.Fault | msgspec.UnsetType = msgspec.UNSET


class ItemsAnswer(Struct):
    """In the order of the items."""

    results: list[ItemResult]


class _Serving(Protocol):
    service: Service


async def put(server: _Serving, given: ItemsRequest, _: Request) -> ItemsAnswer:
    """Add or replace up to 1,000 items: they are recommended by their vectors, without training."""
    stock = server.service.recommender.stock
    results = await asyncio.to_thread(_put, stock, given.items)
    await _count(server)
    return ItemsAnswer(results)


async def withdraw(server: _Serving, given: WithdrawRequest, _: Request) -> ItemsAnswer:
    """Never recommend these items, until they are restored."""
    known = await _withdraw(server, given.items, given.allow_shrink)
    return _told(given.items, known, "withdrawn")


async def restore(server: _Serving, given: RestoreRequest, _: Request) -> ItemsAnswer:
    """Recommend these items again."""
    known = await asyncio.to_thread(server.service.recommender.stock.restore, given.items)
    await _count(server)
    return _told(given.items, known, "restored")


async def withdraw_one(server: _Serving, _: None, request: Request) -> Response:
    """Never recommend this item, until it is restored."""
    if not all(await _withdraw(server, [id_in_path(request, "item_id")])):
        raise m.Refused(404, "unknown_item", "No item of this id is known.")
    return Response(status_code=204)


async def _withdraw(server: _Serving, items: Sequence[m.Id], allow_shrink: bool = False) -> list[bool]:
    try:
        known = await asyncio.to_thread(server.service.recommender.stock.withdraw, items, allow_shrink)
    except Shrinks as error:
        raise m.Refused(409, "would_shrink", str(error)) from None
    await _count(server)
    return known


async def _count(server: _Serving) -> None:
    """Let what was changed count between two batches, so that no answer after this one knows less."""
    await server.service.do(Work(act=Recommender.listen))


def _put(stock: Stock, items: Sequence[msgspec.Raw]) -> list[ItemResult]:
    results: dict[int, ItemResult] = {}
    stated: dict[int, Stated] = {}
    for number, raw in enumerate(items):
        try:
            item = decoded(raw, ItemMessage)
            stated[number] = Stated(item.item_id, item.vector, item.title)
        except m.Refused as refused:
            results[number] = ItemResult(None, "invalid", refused.fault)
    for (number, one), wrong in zip(list(stated.items()), stock.faults(list(stated.values())), strict=True):
        if wrong is not None:
            fault = m.Fault("invalid", f"The item {told(one.item)} is not taken: {wrong}.")
            if stock.model.given is None:
                raise m.Refused(409, "learned_vectors", fault.message)
            results[number] = ItemResult(one.item, "invalid", fault)
            del stated[number]
    for (number, one), new in zip(stated.items(), stock.put(list(stated.values())), strict=True):
        results[number] = ItemResult(one.item, "added" if new else "replaced")
    return [results[number] for number in range(len(items))]


def _told(items: Sequence[m.Id], known: Sequence[bool], status: ItemStatus) -> ItemsAnswer:
    return ItemsAnswer(
        [ItemResult(item, status if held else "unknown_item") for item, held in zip(items, known, strict=True)]
    )
