"""The door over HTTP: parse, call, answer. What is asked goes to the service; here are limits, roles and shapes."""

from __future__ import annotations

__all__ = ["ROUTES", "Server"]

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from http import HTTPStatus
from itertools import zip_longest
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from hiertcn import itemdoors, modeldoors, pagedoors, userdoors
from hiertcn import messages as m
from hiertcn.allowance import Allowance
from hiertcn.answers import Chosen
from hiertcn.decoding import decoded
from hiertcn.deployment import Deployment
from hiertcn.direct import Direct, JSONAnswer
from hiertcn.door import Ask, Event, checked_id, microseconds, pick_of
from hiertcn.errors import ArtifactError, InputError, StorageError
from hiertcn.hosts import check_named
from hiertcn.incoming import body_of, decoded_apart, event_id_in, headers_of
from hiertcn.keys import Keys, Role
from hiertcn.measures import Measures
from hiertcn.openapi import JSON, Door, document
from hiertcn.problems import BUSY, problem
from hiertcn.recommender import Recommender
from hiertcn.reference import CSP, page
from hiertcn.service import Overloaded, Service, Work
from hiertcn.skew import SKEW, ahead_of, clamped

RETENTION = 400 * 86_400
# Seconds in which something that waits should get on.
STUCK = 5.0
_log = logging.getLogger(__name__)


class Server:
    """The ASGI application of a service.

    now: the wall clock, seconds since 1970. allowance: of each user. deployment: of the service's recommender, where
    another model may take over. hosts: the names by which alone it may be asked; None: by any
    """

    def __init__(
        self,
        service: Service,
        keys: Keys | None = None,
        now: Callable[[], float] = time.time,
        allowance: Allowance | None = None,
        deployment: Deployment | None = None,
        hosts: Collection[str] | None = None,
    ) -> None:
        self.service, self.keys, self.now = service, keys or Keys(), now
        self._allowance, self.deployment, self._hosts = allowance, deployment, hosts
        self.measures = Measures(lambda: service.waiting, lambda: service.set_aside)
        self.ready = True
        endpoints = {(door.method, door.path): self._endpoint(door) for door in ROUTES}
        routes = [Route(path, endpoint, methods=[method]) for (method, path), endpoint in endpoints.items()]
        handlers: dict[Any, Any] = {HTTPException: _refused_by_routing, Exception: _unforeseen}
        routed = Starlette(routes=routes, exception_handlers=handlers)
        routed.router.redirect_slashes = False  # To where is made of the Host that a client named.
        self.app = Direct(endpoints, routed, _unforeseen)

    @property
    def recommender(self) -> Recommender:
        """The one that answers now."""
        return self.service.recommender

    def refuses(self, method: bytes, path: bytes) -> bool:
        """Whether a request is answered by BUSY, unread, since too much waits; then it is counted."""
        if not self.service.full or (method, path) not in _WAITING:
            return False
        self.measures.request(path.decode(), 503)
        return True

    def _endpoint(self, door: Door) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            begun, status = time.perf_counter(), 500
            try:
                answer = await self._answer(door, request)
                status = answer.status_code
                return answer
            finally:
                self.measures.request(door.path, status, time.perf_counter() - begun)

        return endpoint

    async def _answer(self, door: Door, request: Request) -> Response:
        try:
            headers = headers_of(request)
            if self._hosts is not None:
                check_named(request.method, headers, self._hosts)
            self._check_role(headers, door.role)
            body = b"" if door.takes is None else await body_of(request, headers, door.body)
            given = None if door.takes is None else await decoded_apart(body, door.takes)
            found = await door.call(self, given, request)
            return found if isinstance(found, Response) else JSONAnswer(m.encoded(found))
        except m.Refused as refused:
            return problem(refused.status, refused.fault, refused.retry)
        except InputError as error:
            return problem(422, m.Fault("invalid", str(error)))
        except Overloaded:
            return BUSY
        except StorageError:
            # Where it is, only the log tells.
            return problem(503, m.Fault("store_unavailable", "The store does not take it now."), retry=1)
        except ArtifactError as error:
            _log.warning("%s", error)
            return problem(503, m.Fault("state_damaged", "What is stored can't be read; the log says why."))

    def _check_role(self, headers: Mapping[str, str], role: Role | None) -> None:
        if role is None or not len(self.keys):
            return
        roles = self.keys.sent(headers.get("authorization", ""), self.now())
        if not roles:
            raise m.Refused(401, "unauthorized", "Send a key that is known here, as `Authorization: Bearer KEY`.")
        if not self.keys.allow(roles, role):
            raise m.Refused(403, "forbidden", f"The key may not do this; it takes one of the role {role}.")

    def _event(self, given: m.EventMessage) -> Event:
        """Checked, so that it can spoil no batch. Raises Refused for a time that can't be, InputError for an id."""
        now = self.now()
        if given.time > now + SKEW:
            raise m.Refused(422, "clock_skew", f"The time is {given.time - now:.0f} s ahead of the clock here.", "time")
        event = Event(given.user_id, given.item_id, clamped(given.time, now), given.event_id, given.shown)
        checked_id(event.user, "user")
        pick_of(event)
        return event

    def _passed(self, event: Event, given: m.EventMessage) -> m.Result | None:
        """What becomes of an event that is not to be taken in, too old or without consent; None for any other. Raises
        Refused for a user who writes too much: only what would be stored counts."""
        old = given.time < self.now() - RETENTION
        if old or not given.consent:
            return self._became(event, "expired" if old else "not_stored")
        if self._allowance is not None and (wait := self._allowance.take(str(event.user))):
            limit = f"{self._allowance.per_minute:,} events in a minute"
            raise m.Refused(429, "limited", f"The user wrote {limit}. Send it again in {wait} s.", retry=wait)
        return None

    def _became(self, event: Event, outcome: m.Outcome) -> m.Result:
        self.measures.event(outcome)
        return m.Result(event.event_id, outcome, ahead=ahead_of(microseconds(event.time)) or msgspec.UNSET)

    async def _stored(self, work: Work) -> Work:
        """What is not, as a duplicate, costs its user nothing."""
        try:
            await self.service.do(work)
        finally:
            if self._allowance is not None:
                for event, status in zip_longest(work.events, work.statuses):
                    if status not in ("applied", "late"):
                        self._allowance.give_back(str(event.user))
        return work

    def _check(self, ask: Ask) -> None:
        """So that it can spoil no batch. Raises InputError."""
        for item in (ask.user, *(ask.candidates or ())):
            checked_id(item, "user or candidate")
        self.recommender.stock.catalog.check(ask.filter or {})

    def _result(self, work: Work, number: int) -> m.Result:
        event, status = work.events[number], work.statuses[number]
        return self._became(event, "unknown_item" if status == "applied" and not work.by.knows(event.item) else status)

    async def events(self, given: m.EventsRequest, _: Request) -> m.EventsAnswer:
        """Take in up to 1,000 events, each of which counts once."""
        results: dict[int, m.Result] = {}
        events: list[Event] = []
        places = []
        for number, raw in enumerate(given.events):
            try:
                stated = decoded(raw, m.EventMessage)
                event = self._event(stated)
                if (passed := self._passed(event, stated)) is not None:
                    results[number] = passed
                else:
                    events.append(event)
                    places.append(number)
            except (m.Refused, InputError) as error:
                fault = error.fault if isinstance(error, m.Refused) else m.Fault("invalid", str(error))
                outcome: m.Outcome = "limited" if fault.code == "limited" else "invalid"
                self.measures.event(outcome)
                results[number] = m.Result(event_id_in(raw), outcome, fault)
        if events:
            work = await self._stored(Work(events))
            results |= {place: self._result(work, number) for number, place in enumerate(places)}
        return m.EventsAnswer([results[number] for number in range(len(given.events))])

    async def recommend(self, given: m.RecommendRequest, _: Request) -> m.Answer:
        """What a user will pick next."""
        at = given.as_of or self._clock()
        ask = Ask(given.user_id, given.k, given.exclude_seen, at, given.candidates, given.filter)
        self._check(ask)
        try:
            work = await self.service.do(Work(ask=ask))
        except (StorageError, ArtifactError):
            by = self.recommender  # Read once: another may take over.
            items, _source, reason = _answered(by, by.popular(ask))
            return m.Answer(given.user_id, items, "degraded", by.name, reason)
        items, source, reason = _answered(work.by, work.found)
        return m.Answer(given.user_id, items, source, work.by.name, reason)

    async def observe(self, given: m.ObserveRequest, _: Request) -> m.ObserveAnswer:
        """Take in one event, then say what its user will pick next."""
        event = self._event(given.event)
        clock = max(min(given.event.time, self.now()), self._clock() or 0)
        ask = Ask(event.user, given.k, given.exclude_seen, clock, given.candidates, given.filter)
        self._check(ask)
        if (passed := self._passed(event, given.event)) is not None:
            unstored = ask._replace(unstored=[event] if passed.status == "not_stored" else [])
            work = await self.service.do(Work(ask=unstored))
        else:
            work = await self._stored(Work([event], ask))
        if passed is None and work.statuses[0] == "conflict":
            message = f"An event {given.event.event_id[:80]!r} with another item or time is known; it stays."
            raise m.Refused(409, "conflict", message, "event.event_id")
        result = passed or self._result(work, 0)
        items, source, reason = _answered(work.by, work.found)
        return m.ObserveAnswer(result, event.user, items, source, work.by.name, reason)

    def _clock(self) -> float | None:
        """The time of the last event of anybody."""
        return self.recommender.clock

    async def live(self, _: None, __: Request) -> Response:
        """Whether the process gets on."""
        if self.service.stuck > STUCK:
            raise m.Refused(503, "stuck", f"What waits has not got on for {self.service.stuck:.0f} s.")
        return Response()

    async def is_ready(self, _: None, __: Request) -> m.ReadyAnswer:
        """Whether requests are taken."""
        if not self.ready:
            raise m.Refused(503, "not_ready", "It is about to stop.")
        return m.ReadyAnswer("degraded" if self.service.failing else "ready")

    async def metrics(self, _: None, __: Request) -> Response:
        """Figures for Prometheus."""
        return Response(self.measures.text(), media_type="text/plain; version=0.0.4")

    def _document(self) -> dict[str, Any]:
        return document(ROUTES, len(self.keys) > 0, self.recommender.stock.catalog.columns)

    async def openapi(self, _: None, __: Request) -> Response:
        """This description, as OpenAPI."""
        return Response(m.encoded(self._document()), media_type=JSON)

    async def docs(self, _: None, __: Request) -> Response:
        """This description, as a page."""
        return Response(page(self._document()), media_type="text/html", headers={"content-security-policy": CSP})


ROUTES = (
    Door("POST", "/v1/events", "write", m.EventsRequest, Server.events),
    Door("POST", "/v1/recommend", "read", m.RecommendRequest, Server.recommend),
    Door("POST", "/v1/observe", "write", m.ObserveRequest, Server.observe, refuses=(409, 429)),
    Door("GET", "/v1/export/{user_id:path}", "admin", None, userdoors.export),
    Door("GET", "/v1/users/{user_id:path}", "read", None, userdoors.user),
    Door("DELETE", "/v1/users/{user_id:path}", "admin", None, userdoors.forget, status=204),
    Door("GET", "/v1/forgotten", "admin", None, userdoors.forgotten),
    Door("GET", "/v1/model", "read", None, modeldoors.model, refuses=(409,)),
    Door("POST", "/v1/model", "admin", m.SwapRequest, modeldoors.swap, refuses=(409,)),
    Door("POST", "/v1/model/rollback", "admin", None, modeldoors.rollback, refuses=(409,)),
    Door("POST", "/v1/items", "admin", itemdoors.ItemsRequest, itemdoors.put, itemdoors.BODY, refuses=(409,)),
    Door("POST", "/v1/items/withdraw", "admin", itemdoors.WithdrawRequest, itemdoors.withdraw, refuses=(409,)),
    Door("POST", "/v1/items/restore", "admin", itemdoors.RestoreRequest, itemdoors.restore),
    Door("DELETE", "/v1/items/{item_id:path}", "admin", None, itemdoors.withdraw_one, refuses=(409,), status=204),
    Door("GET", "/v1/items", "read", None, pagedoors.items, query=pagedoors.ItemsQuery),
    Door("POST", "/v1/beside", "read", pagedoors.BesideRequest, pagedoors.lists),
    Door("GET", "/v1/access", None, None, pagedoors.access),
    Door("GET", "/", None, None, pagedoors.page, media="text/html"),
    Door("GET", "/page/{name}", None, None, pagedoors.page, media="*/*"),
    Door("GET", "/livez", None, None, Server.live, refuses=(503,)),
    Door("GET", "/readyz", None, None, Server.is_ready, refuses=(503,)),
    Door("GET", "/metrics", None, None, Server.metrics, media="text/plain"),
    Door("GET", "/openapi.json", None, None, Server.openapi, media=JSON),
    Door("GET", "/docs", None, None, Server.docs, media="text/html"),
)
# What waits for the next batch.
_CALLS = Server.events, Server.recommend, Server.observe
_WAITING = {(door.method.encode(), door.path.encode()) for door in ROUTES if door.call in _CALLS}


def _answered(by: Recommender, found: Chosen) -> tuple[list[m.Ranked], m.Source, m.Reason | msgspec.UnsetType]:
    items = [m.Ranked(*one) for one in by.stock.listed(found.best)]
    if not items:
        return items, "cold", "none_left"
    return items, "cold" if found.source == "popular" else "model", msgspec.UNSET


async def _refused_by_routing(request: Request, error: HTTPException) -> Response:
    phrase = HTTPStatus(error.status_code).phrase
    answer = problem(error.status_code, m.Fault(phrase.lower().replace(" ", "_"), f"{phrase}. See /docs."))
    if error.status_code == 405:
        routes = [route for route in request.app.routes if route.matches(request.scope)[0] != Match.NONE]
        # A path that could be an id as well is what it says.
        routes = [route for route in routes if route.path == routes[0].path]
        answer.headers["allow"] = ", ".join(sorted({method for route in routes for method in route.methods}))
    return answer


async def _unforeseen(_: Request, error: Exception) -> Response:
    return problem(500, m.Fault("fault", "Something failed that should not; the log of the server says what."))
