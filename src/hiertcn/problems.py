"""Errors as they are answered, in their one shape."""

from __future__ import annotations

__all__ = ["BUSY", "problem"]

from starlette.responses import Response

from hiertcn.messages import Fault, Problem, encoded
from hiertcn.openapi import JSON


def problem(status: int, fault: Fault, retry: int | None = None) -> Response:
    """The answer that says so. retry: seconds after which it may be asked again."""
    headers = {} if retry is None else {"retry-after": str(retry)}
    return Response(encoded(Problem(fault)), status_code=status, media_type=JSON, headers=headers)


BUSY = problem(503, Fault("overloaded", "Too much waits. Come back in a second."), retry=1)
