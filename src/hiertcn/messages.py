"""What goes over HTTP: strict types of requests and answers."""

from __future__ import annotations

__all__ = [
    "ID_TEXT",
    "ID_WHOLE",
    "Answer",
    "EventMessage",
    "EventsAnswer",
    "EventsRequest",
    "Fault",
    "ModelAnswer",
    "ObserveAnswer",
    "ObserveRequest",
    "Problem",
    "Ranked",
    "ReadyAnswer",
    "RecommendRequest",
    "Refused",
    "Result",
    "Sent",
    "SessionAnswer",
    "SwapRequest",
    "UserAnswer",
    "encoded",
]

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from hiertcn.door import LATEST

MOST_EVENTS = 1000
MOST_CANDIDATES = 1000

# What a schema can say of a text that a log can hold; `door.checked_id` counts its bytes.
_TEXT: dict[str, Any] = {
    "description": "at most 256 bytes of UTF-8, no control characters",
    "pattern": r"^[^\u0000-\u001f\u007f-\u009f]+$",
}
ID_WHOLE = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
ID_TEXT = {"type": "string", "minLength": 1, "maxLength": 256, **_TEXT}
Text = Annotated[str, Meta(min_length=1, max_length=256, extra_json_schema=_TEXT)]
Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Id = Text | Whole
# By column of the catalog the value, or the values, that an item may have.
Filter = dict[str, Text | Whole | Annotated[list[Id], Meta(max_length=MOST_CANDIDATES)]]
Seconds = Annotated[int, Meta(description="seconds since 1970 UTC, before 2200", gt=0, lt=LATEST)]
K = Annotated[int, Meta(ge=1, le=500)]
_EVENTS = {"items": {"anyOf": [{"$ref": "#/components/schemas/EventMessage"}, {}]}}
Source = Literal["model", "cold", "degraded"]
# Of candidates, filter, what is withdrawn and what the user had, nothing is left that may be given.
Reason = Literal["none_left"]
Outcome = Literal[
    "applied", "duplicate", "late", "expired", "unknown_item", "conflict", "limited", "invalid", "not_stored"
]


class Fault(Struct):
    """What is wrong, and where."""

    code: str
    message: str
    field: str | msgspec.UnsetType | None = msgspec.UNSET


class Problem(Struct):
    """The one shape of errors."""

    error: Fault


class Sent(Struct, forbid_unknown_fields=True, kw_only=True):
    """What clients send: a field that nobody knows is refused, as it may be a mistyped one. extensions: what a client
    has to say beyond this; nothing reads it."""

    extensions: dict[str, msgspec.Raw] = msgspec.field(default_factory=dict)


class EventMessage(Sent):
    """That a user picked an item. An event_id counts once. shown: what else was there to pick. consent: whether it may
    be stored; if not, the answer to this request alone reads it."""

    event_id: Text
    user_id: Id
    item_id: Id
    time: Seconds
    shown: Annotated[list[Id], Meta(max_length=200)] = msgspec.field(default_factory=list)
    consent: bool = True


class EventsRequest(Sent):
    """Up to 1,000 events, each judged by itself: what is no event is answered as invalid."""

    events: Annotated[list[msgspec.Raw], Meta(max_length=MOST_EVENTS, extra_json_schema=_EVENTS)]


class Result(Struct):
    """What became of an event. ahead: seconds that its time was ahead of the clock of the server, which took it as of
    now."""

    event_id: str | None
    status: Outcome
    error: Fault | msgspec.UnsetType = msgspec.UNSET
    ahead: int | msgspec.UnsetType = msgspec.UNSET


class EventsAnswer(Struct):
    """In the order of the events."""

    results: list[Result]


class RecommendRequest(Sent):
    """as_of: the moment asked about, no earlier than the user's last event; by default that of the last event of
    anybody."""

    user_id: Id
    k: K = 10
    exclude_seen: bool = False
    candidates: Annotated[list[Id], Meta(max_length=MOST_CANDIDATES)] | None = None
    filter: Filter | None = None
    as_of: Seconds | None = None


class ObserveRequest(Sent):
    """One event, and then what its user will pick next."""

    event: EventMessage
    k: K = 10
    exclude_seen: bool = False
    candidates: Annotated[list[Id], Meta(max_length=MOST_CANDIDATES)] | None = None
    filter: Filter | None = None


class Ranked(Struct, omit_defaults=True):
    """An item, by its id as it stands in the log."""

    item_id: str | int
    score: float
    title: str | None = None


class Answer(Struct):
    """The best first. source: "cold" where nothing is known of the user; model: which one answered; reason: why there
    is no item."""

    user_id: str | int
    items: list[Ranked]
    source: Source
    model: str
    reason: Reason | msgspec.UnsetType = msgspec.UNSET


class ObserveAnswer(Struct):
    """What became of the event, and the answer after it."""

    result: Result
    user_id: str | int
    items: list[Ranked]
    source: Source
    model: str
    reason: Reason | msgspec.UnsetType = msgspec.UNSET


class SessionAnswer(Struct):
    """Of a session the events that are kept."""

    items: list[str | int]
    times: list[float]


class UserAnswer(Struct):
    """What is kept of a user. idle_seconds: since the last event, by the clock of events."""

    user_id: str | int
    sessions: list[SessionAnswer]
    events: int
    bytes: int
    idle_seconds: float | None


class ReadyAnswer(Struct):
    """Requests are taken; degraded: the store refused the last one that asked it."""

    status: Literal["ready", "degraded"]


class SwapRequest(Sent):
    """model: its name, that of a folder. allow_shrink: take one that lacks most of the items recommended now, too."""

    model: Annotated[str, Meta(min_length=1, max_length=100)]
    allow_shrink: bool = False


class ModelAnswer(Struct):
    """Which model answers: by the name of its folder, and as answers name it; the one before it; all that are there."""

    name: str
    model: str
    previous: str | None
    models: list[str]


class Refused(Exception):
    """A request that can't be followed; `status` is HTTP's, `retry` the seconds after which it may be."""

    def __init__(
        self, status: int, code: str, message: str, field: str | None = None, retry: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.retry, self.fault = status, retry, Fault(code, message, field or msgspec.UNSET)


_encoder = msgspec.json.Encoder()


def encoded(answer: Any) -> bytes:
    """An answer as JSON."""
    return _encoder.encode(answer)
