"""What a server counts of itself. Labels never hold ids of users or items."""

from __future__ import annotations

__all__ = ["Measures"]

from collections.abc import Callable
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.008, 0.012, 0.02, 0.05, 0.1, 0.5, 2.0)


class Measures:
    """waiting: how many requests do; set_aside: how many states were found damaged."""

    def __init__(self, waiting: Callable[[], int], set_aside: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "hiertcn_requests", "Requests, by route and HTTP status.", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "hiertcn_request_seconds", "Time to an answer.", ["route"], registry=self._registry, buckets=_SECONDS
        )
        self._events = Counter("hiertcn_events", "Events, by what became of them.", ["status"], registry=self._registry)
        Gauge("hiertcn_waiting", "Requests that wait.", registry=self._registry).set_function(waiting)
        damaged = Gauge("hiertcn_states_set_aside", "Damaged states, set aside.", registry=self._registry)
        damaged.set_function(set_aside)
        # To find what counts a label takes longer than to count.
        self._counted = cache(self._requests.labels)
        self._timed = cache(self._seconds.labels)
        self._became = cache(self._events.labels)

    def request(self, route: str, status: int, seconds: float | None = None) -> None:
        """Count one request. seconds: None for one that was refused unread, whose time would say nothing."""
        self._counted(route, status).inc()
        if seconds is not None:
            self._timed(route).observe(seconds)

    def event(self, status: str) -> None:
        """Count one event."""
        self._became(status).inc()

    def text(self) -> bytes:
        """All of it, in the text format of Prometheus."""
        return generate_latest(self._registry)
