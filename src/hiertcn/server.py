"""The door over HTTP: parse, call, answer. What is asked goes to the service; here are limits, roles and shapes."""

from __future__ import annotations

__all__ = ["ROUTES", "Server"]

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from msgspec import Struct
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from hiertcn import itemdoors, pagedoors
from hiertcn import messages as m
from hiertcn.answers import Recommendation
from hiertcn.deployment import Deployment, NotSwapped
from hiertcn.door import Ask, Event, checked_id, pick_of
from hiertcn.errors import ArtifactError, InputError, StorageError
from hiertcn.keys import Keys, Role
from hiertcn.measures import Measures
from hiertcn.recommender import Recommender
from hiertcn.service import Overloaded, Service, Work
from hiertcn.userdata import UserData, stored_of

BODY = 1 << 20
SLOW = 10.0
SKEW = 120
RETENTION = 400 * 86_400
JSON = "application/json"


@dataclass(frozen=True)
class Door:
    """One way in: what it takes (None: no body), of how many bytes at most, and who may use it (None: everybody)."""

    method: str
    path: str
    role: Role | None
    takes: type[Struct] | None
    call: Callable[[Server, Any, Request], Awaitable[Any]]
    body: int = BODY


class Server:
    """The ASGI application of a service. now: the wall clock, seconds since 1970. deployment: of the service's
    recommender, where another model may take over."""

    def __init__(
        self,
        service: Service,
        keys: Keys | None = None,
        now: Callable[[], float] = time.time,
        deployment: Deployment | None = None,
    ) -> None:
        self.service, self.keys, self._now, self._deployment = service, keys or Keys(), now, deployment
        self.measures = Measures(lambda: service.waiting)
        self.ready = True
        routes = [Route(door.path, self._endpoint(door), methods=[door.method]) for door in ROUTES]
        handlers: dict[Any, Any] = {HTTPException: _refused_by_routing, Exception: _unforeseen}
        self.app = Starlette(routes=routes, exception_handlers=handlers)

    @property
    def recommender(self) -> Recommender:
        """The one that answers now."""
        return self.service.recommender

    def _endpoint(self, door: Door) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            begun = time.perf_counter()
            try:
                self._check_role(request, door.role)
                given = None if door.takes is None else m.decoded(await _body(request, door.body), door.takes)
                found = await door.call(self, given, request)
                answer = found if isinstance(found, Response) else Response(m.encoded(found), media_type=JSON)
            except m.Refused as refused:
                answer = _problem(refused.status, refused.fault)
            except InputError as error:
                answer = _problem(422, m.Fault("invalid", str(error)))
            except NotSwapped as kept:
                answer = _problem(409, m.Fault(kept.code, str(kept)))
            except Overloaded:
                answer = _problem(503, m.Fault("overloaded", "Too much waits. Come back in a second."), retry=1)
            except StorageError as error:
                answer = _problem(503, m.Fault("store_unavailable", str(error)), retry=1)
            except ArtifactError as error:
                answer = _problem(503, m.Fault("state_damaged", str(error)))
            self.measures.request(door.path, answer.status_code, time.perf_counter() - begun)
            return answer

        return endpoint

    def _check_role(self, request: Request, role: Role | None) -> None:
        if role is None or not len(self.keys):
            return
        roles = self.keys.sent(request.headers.get("authorization", ""))
        if not roles:
            raise m.Refused(401, "unauthorized", "Send a key that is known here, as `Authorization: Bearer KEY`.")
        if not self.keys.allow(roles, role):
            raise m.Refused(403, "forbidden", f"The key may not do this; it takes one of the role {role}.")

    def _event(self, given: m.EventMessage) -> Event:
        """Checked, so that it can spoil no batch. Raises Refused for a time that can't be, InputError for an id."""
        now = self._now()
        if given.time > now + SKEW:
            raise m.Refused(422, "clock_skew", f"The time is {given.time - now:.0f} s ahead of the clock here.", "time")
        event = Event(given.user_id, given.item_id, given.time, given.event_id, given.shown)
        checked_id(event.user, "user")
        pick_of(event)
        return event

    def _passed(self, given: m.EventMessage) -> m.Result | None:
        """What becomes of an event that is not to be taken in, too old or without consent; None for any other."""
        outcome: m.Outcome = "expired" if given.time < self._now() - RETENTION else "not_stored"
        if outcome == "not_stored" and given.consent:
            return None
        self.measures.event(outcome)
        return m.Result(given.event_id, outcome)

    def _result(self, work: Work, number: int) -> m.Result:
        event, status = work.events[number], work.statuses[number]
        assert work.by is not None
        outcome: m.Outcome = "unknown_item" if status == "applied" and not work.by.knows(event.item) else status
        self.measures.event(outcome)
        return m.Result(event.event_id, outcome)

    async def events(self, given: m.EventsRequest, _: Request) -> m.EventsAnswer:
        """Take in up to 1,000 events, each of which counts once."""
        results: dict[int, m.Result] = {}
        events: list[Event] = []
        places = []
        for number, raw in enumerate(given.events):
            try:
                given_one = m.decoded(raw, m.EventMessage)
                event = self._event(given_one)
                if (passed := self._passed(given_one)) is not None:
                    results[number] = passed
                    continue
                events.append(event)
                places.append(number)
            except (m.Refused, InputError) as error:
                fault = error.fault if isinstance(error, m.Refused) else m.Fault("invalid", str(error))
                self.measures.event("invalid")
                results[number] = m.Result(_event_id(raw), "invalid", fault)
        if events:
            work = await self.service.do(Work(events))
            results |= {place: self._result(work, number) for number, place in enumerate(places)}
        return m.EventsAnswer([results[number] for number in range(len(given.events))])

    async def recommend(self, given: m.RecommendRequest, _: Request) -> m.Answer:
        """What a user will pick next."""
        ask = Ask(given.user_id, given.k, given.exclude_seen, given.as_of or self._clock(), given.candidates)
        _check(ask)
        try:
            work = await self.service.do(Work(ask=ask))
        except (StorageError, ArtifactError):
            # Read once: another may take over.
            by = self.recommender
            return m.Answer(given.user_id, _ranked(by.popular(ask)), "degraded", by.name)
        assert work.by is not None
        return m.Answer(given.user_id, _ranked(work.found), _source(work.found), work.by.name)

    async def observe(self, given: m.ObserveRequest, _: Request) -> m.ObserveAnswer:
        """Take in one event, then say what its user will pick next."""
        event = self._event(given.event)
        ask = Ask(event.user, given.k, given.exclude_seen, max(given.event.time, self._clock() or 0), given.candidates)
        _check(ask)
        if (passed := self._passed(given.event)) is not None:
            unstored = ask._replace(unstored=[event] if passed.status == "not_stored" else [])
            work = await self.service.do(Work(ask=unstored))
        else:
            work = await self.service.do(Work([event], ask))
        if passed is None and work.statuses[0] == "conflict":
            message = f"An event {given.event.event_id[:80]!r} with another item or time is known; it stays."
            raise m.Refused(409, "conflict", message, "event.event_id")
        assert work.by is not None
        found = work.found
        result = passed or self._result(work, 0)
        return m.ObserveAnswer(result, event.user, _ranked(found), _source(found), work.by.name)

    def _clock(self) -> float | None:
        """The time of the last event of anybody."""
        return self.recommender.clock

    async def user(self, _: None, request: Request) -> m.UserAnswer:
        """What is kept of a user."""
        user = request.path_params["user_id"]
        kept = await asyncio.to_thread(self.recommender.kept_of, user)
        if kept is None:
            raise m.Refused(404, "unknown_user", "Nothing is kept of this user.")
        clock = self._clock()
        idle = None if clock is None or not kept.sessions else max(0.0, clock - kept.sessions[-1][1][-1])
        sessions = [m.SessionAnswer(items, times) for items, times in kept.sessions]
        return m.UserAnswer(user, sessions, sum(len(s.items) for s in sessions), kept.size, idle)

    async def export(self, _: None, request: Request) -> UserData:
        """All that is stored of a user, in full."""
        found = await asyncio.to_thread(stored_of, self.recommender.states, request.path_params["user_id"])
        if found is None:
            raise m.Refused(404, "unknown_user", "Nothing is kept of this user.")
        return found

    async def forget(self, _: None, request: Request) -> Response:
        """Forget a user: nothing is kept, and events up to now that come later are not taken in."""
        await asyncio.to_thread(self.recommender.delete, request.path_params["user_id"], self._now())
        return Response(status_code=204)

    async def model(self, _: None, __: Request) -> m.ModelAnswer:
        """Which model answers, and which others could."""
        deployment = self._deployed()
        names = await asyncio.to_thread(deployment.names)
        return m.ModelAnswer(deployment.current.name, self.recommender.name, deployment.previous, names)

    async def swap(self, given: m.SwapRequest, request: Request) -> m.ModelAnswer:
        """Let another model answer; the one that does answers on until then, or if it can't."""
        await self._while_ready(self._deployed().swap(self.service, given.model, given.allow_shrink))
        return await self.model(None, request)

    async def rollback(self, _: None, request: Request) -> m.ModelAnswer:
        """Let the model before the current one answer again."""
        await self._while_ready(self._deployed().rollback(self.service))
        return await self.model(None, request)

    async def _while_ready(self, swapping: Coroutine[Any, Any, None]) -> None:
        """Opening a model may take minutes, for which a stop does not wait."""
        task = asyncio.ensure_future(swapping)
        while not (await asyncio.wait({task}, timeout=0.2))[0]:
            if not self.ready:
                task.cancel()
                raise m.Refused(
                    503, "stopping", "The server stops. When it is back, GET /v1/model says which one answers."
                )
        await task

    def _deployed(self) -> Deployment:
        if self._deployment is None:
            raise NotSwapped(
                "no_models", "This server was started on one model as it is. Start it on a folder of models."
            )
        return self._deployment

    async def live(self, _: None, __: Request) -> Response:
        """Whether the process gets on."""
        stuck = time.monotonic() - self.service.beat > 5 and self.service.waiting
        return Response(status_code=503 if stuck else 200)

    async def is_ready(self, _: None, __: Request) -> Response:
        """Whether requests are taken."""
        return Response(status_code=200 if self.ready else 503)

    async def metrics(self, _: None, __: Request) -> Response:
        """Figures for Prometheus."""
        return Response(self.measures.text(), media_type="text/plain; version=0.0.4")


ROUTES = (
    Door("POST", "/v1/events", "write", m.EventsRequest, Server.events),
    Door("POST", "/v1/recommend", "read", m.RecommendRequest, Server.recommend),
    Door("POST", "/v1/observe", "write", m.ObserveRequest, Server.observe),
    Door("GET", "/v1/users/{user_id}", "read", None, Server.user),
    Door("GET", "/v1/users/{user_id}/export", "admin", None, Server.export),
    Door("DELETE", "/v1/users/{user_id}", "admin", None, Server.forget),
    Door("GET", "/v1/model", "read", None, Server.model),
    Door("POST", "/v1/model", "admin", m.SwapRequest, Server.swap),
    Door("POST", "/v1/model/rollback", "admin", None, Server.rollback),
    Door("POST", "/v1/items", "admin", itemdoors.ItemsRequest, itemdoors.put, itemdoors.BODY),
    Door("POST", "/v1/items/withdraw", "admin", itemdoors.WithdrawRequest, itemdoors.withdraw),
    Door("POST", "/v1/items/restore", "admin", itemdoors.RestoreRequest, itemdoors.restore),
    Door("DELETE", "/v1/items/{item_id}", "admin", None, itemdoors.withdraw_one),
    Door("GET", "/v1/items", "read", None, pagedoors.items),
    Door("POST", "/v1/beside", "read", pagedoors.BesideRequest, pagedoors.lists),
    Door("GET", "/v1/access", None, None, pagedoors.access),
    Door("GET", "/", None, None, pagedoors.page),
    Door("GET", "/page/{name}", None, None, pagedoors.page),
    Door("GET", "/livez", None, None, Server.live),
    Door("GET", "/readyz", None, None, Server.is_ready),
    Door("GET", "/metrics", None, None, Server.metrics),
)


async def _body(request: Request, most: int) -> bytes:
    """Of a request that states it right, no longer than it may be. Raises Refused for any other."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise m.Refused(415, "content_type", f"The content type is {kind[:80]!r}; expected {JSON}.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise m.Refused(415, "content_encoding", "Compressed bodies are not taken. Send it as it is.")
    too_long = m.Refused(413, "too_long", f"The body is longer than {most:,} bytes. Send less at once.")
    if int(request.headers.get("content-length", "0")) > most:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(SLOW):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_long
    except TimeoutError:
        raise m.Refused(408, "too_slow", f"The body did not come within {SLOW:.0f} s.") from None
    except ClientDisconnect:
        raise m.Refused(400, "gone", "The connection ended before the body.") from None
    return bytes(body)


def _event_id(raw: Any) -> str | None:
    """Of an event that is none, if it can be told."""
    try:
        found = msgspec.json.decode(raw).get("event_id")
    except (msgspec.DecodeError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def _check(ask: Ask) -> None:
    """So that it can spoil no batch. Raises InputError."""
    for item in (ask.user, *(ask.candidates or ())):
        checked_id(item, "user or candidate")


def _ranked(found: list[Recommendation]) -> list[m.Ranked]:
    return [m.Ranked(one.item, one.score, one.title) for one in found]


def _source(found: list[Recommendation]) -> m.Source:
    return "cold" if not found or found[0].source == "popular" else "model"


def _problem(status: int, fault: m.Fault, retry: int | None = None) -> Response:
    headers = {} if retry is None else {"retry-after": str(retry)}
    return Response(m.encoded(m.Problem(fault)), status_code=status, media_type=JSON, headers=headers)


async def _refused_by_routing(_: Request, error: HTTPException) -> Response:
    phrase = HTTPStatus(error.status_code).phrase
    return _problem(error.status_code, m.Fault(phrase.lower().replace(" ", "_"), f"{phrase}. See /docs."))


async def _unforeseen(_: Request, error: Exception) -> Response:
    return _problem(500, m.Fault("fault", "Something failed that should not; the log of the server says what."))
