"""The door over HTTP: parse, call, answer. What is asked goes to the service; here are limits, roles and shapes."""

from __future__ import annotations

__all__ = ["ROUTES", "Server"]

import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
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
from hiertcn.answers import Recommendation
from hiertcn.deployment import Deployment
from hiertcn.door import Ask, Event, checked_id, pick_of
from hiertcn.errors import ArtifactError, InputError, StorageError
from hiertcn.incoming import body_of, event_id_in
from hiertcn.keys import Keys, Role
from hiertcn.measures import Measures
from hiertcn.openapi import JSON, Door, document
from hiertcn.recommender import Recommender
from hiertcn.reference import CSP, page
from hiertcn.service import Overloaded, Service, Work

SKEW = 120
RETENTION = 400 * 86_400


class Server:
    """The ASGI application of a service.

    now: the wall clock, seconds since 1970. allowance: of each user. deployment: of the service's recommender, where
    another model may take over
    """

    def __init__(
        self,
        service: Service,
        keys: Keys | None = None,
        now: Callable[[], float] = time.time,
        allowance: Allowance | None = None,
        deployment: Deployment | None = None,
    ) -> None:
        self.service, self.keys, self.now = service, keys or Keys(), now
        self._allowance, self.deployment = allowance, deployment
        self.measures = Measures(lambda: service.waiting, lambda: service.set_aside)
        self.ready = True
        routes = [Route(door.path, self._endpoint(door), methods=[door.method]) for door in ROUTES]
        handlers: dict[Any, Any] = {HTTPException: _refused_by_routing, Exception: _unforeseen}
        self.app = Starlette(routes=routes, exception_handlers=handlers)
        # To where is made of the Host that a client named.
        self.app.router.redirect_slashes = False

    @property
    def recommender(self) -> Recommender:
        """The one that answers now."""
        return self.service.recommender

    def _endpoint(self, door: Door) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            begun = time.perf_counter()
            try:
                self._check_role(request, door.role)
                given = None if door.takes is None else m.decoded(await body_of(request, door.body), door.takes)
                found = await door.call(self, given, request)
                answer = found if isinstance(found, Response) else Response(m.encoded(found), media_type=JSON)
            except m.Refused as refused:
                answer = _problem(refused.status, refused.fault, refused.retry)
            except InputError as error:
                answer = _problem(422, m.Fault("invalid", str(error)))
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
        """Checked, so that it can spoil no batch. Raises Refused for a time that can't be, or a user who writes too
        much, InputError for an id."""
        now = self.now()
        if given.time > now + SKEW:
            raise m.Refused(422, "clock_skew", f"The time is {given.time - now:.0f} s ahead of the clock here.", "time")
        event = Event(given.user_id, given.item_id, given.time, given.event_id, given.shown)
        checked_id(event.user, "user")
        pick_of(event)
        if self._allowance is not None and (wait := self._allowance.take(str(event.user))):
            message = f"The user wrote {self._allowance.per_minute:,} events in a minute. Send it again in {wait} s."
            raise m.Refused(429, "limited", message, retry=wait)
        return event

    def _passed(self, given: m.EventMessage) -> m.Result | None:
        """What becomes of an event that is not to be taken in, too old or without consent; None for any other."""
        outcome: m.Outcome = "expired" if given.time < self.now() - RETENTION else "not_stored"
        if outcome == "not_stored" and given.consent:
            return None
        self.measures.event(outcome)
        return m.Result(given.event_id, outcome)

    def _check(self, ask: Ask) -> None:
        """So that it can spoil no batch. Raises InputError."""
        for item in (ask.user, *(ask.candidates or ())):
            checked_id(item, "user or candidate")
        self.recommender.stock.catalog.check(ask.filter or {})

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
                stated = m.decoded(raw, m.EventMessage)
                event = self._event(stated)
                if (passed := self._passed(stated)) is not None:
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
            work = await self.service.do(Work(events))
            results |= {place: self._result(work, number) for number, place in enumerate(places)}
        return m.EventsAnswer([results[number] for number in range(len(given.events))])

    async def recommend(self, given: m.RecommendRequest, _: Request) -> m.Answer:
        """What a user will pick next."""
        ask = Ask(
            given.user_id, given.k, given.exclude_seen, given.as_of or self._clock(), given.candidates, given.filter
        )
        self._check(ask)
        try:
            work = await self.service.do(Work(ask=ask))
        except (StorageError, ArtifactError):
            # Read once: another may take over.
            by = self.recommender
            found = by.popular(ask)
            return m.Answer(given.user_id, _ranked(found), "degraded", by.name, _reason(found))
        assert work.by is not None
        return m.Answer(given.user_id, _ranked(work.found), _source(work.found), work.by.name, _reason(work.found))

    async def observe(self, given: m.ObserveRequest, _: Request) -> m.ObserveAnswer:
        """Take in one event, then say what its user will pick next."""
        event = self._event(given.event)
        clock = max(given.event.time, self._clock() or 0)
        ask = Ask(event.user, given.k, given.exclude_seen, clock, given.candidates, given.filter)
        self._check(ask)
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
        return m.ObserveAnswer(result, event.user, _ranked(found), _source(found), work.by.name, _reason(found))

    def _clock(self) -> float | None:
        """The time of the last event of anybody."""
        return self.recommender.clock

    async def live(self, _: None, __: Request) -> Response:
        """Whether the process gets on."""
        stuck = time.monotonic() - self.service.beat > 5 and self.service.waiting
        if stuck:
            raise m.Refused(503, "stuck", "What waits does not get on.")
        return Response()

    async def is_ready(self, _: None, __: Request) -> Response:
        """Whether requests are taken."""
        if not self.ready:
            raise m.Refused(503, "not_ready", "It is about to stop.")
        return Response()

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


def _ranked(found: list[Recommendation]) -> list[m.Ranked]:
    return [m.Ranked(one.item, one.score, one.title) for one in found]


def _source(found: list[Recommendation]) -> m.Source:
    return "cold" if not found or found[0].source == "popular" else "model"


def _reason(found: list[Recommendation]) -> m.Reason | msgspec.UnsetType:
    return msgspec.UNSET if found else "none_left"


def _problem(status: int, fault: m.Fault, retry: int | None = None) -> Response:
    headers = {} if retry is None else {"retry-after": str(retry)}
    return Response(m.encoded(m.Problem(fault)), status_code=status, media_type=JSON, headers=headers)


async def _refused_by_routing(request: Request, error: HTTPException) -> Response:
    phrase = HTTPStatus(error.status_code).phrase
    answer = _problem(error.status_code, m.Fault(phrase.lower().replace(" ", "_"), f"{phrase}. See /docs."))
    if error.status_code == 405:
        routes = [route for route in request.app.routes if route.matches(request.scope)[0] != Match.NONE]
        # A path that could be an id as well is what it says.
        routes = [route for route in routes if route.path == routes[0].path]
        answer.headers["allow"] = ", ".join(sorted({method for route in routes for method in route.methods}))
    return answer


async def _unforeseen(_: Request, error: Exception) -> Response:
    return _problem(500, m.Fault("fault", "Something failed that should not; the log of the server says what."))
