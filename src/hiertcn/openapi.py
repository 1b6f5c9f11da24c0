"""What the door over HTTP takes and answers, as an OpenAPI 3.1 document, made of the types and routes that serve."""

from __future__ import annotations

__all__ = ["BODY", "JSON", "Door", "document"]

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from inspect import getdoc, isclass
from re import findall, sub
from typing import Any, get_type_hints

import msgspec
from msgspec import Struct

from hiertcn import __version__
from hiertcn import messages as m
from hiertcn.keys import Role

JSON = "application/json"
BODY = 1 << 20
_SCHEMA = "#/components/schemas/{name}"
_WAITS = {"Retry-After": {"description": "seconds after which to try again", "schema": {"type": "integer"}}}


@dataclass(frozen=True)
class Door:
    """One way in: what it takes (None: no body), and who may use it (None: everybody).

    body:    bytes that it takes at most
    refuses: statuses of errors, beside those of every door that takes such things
    query:   what its URL may hold
    status:  of what it answers: the type that `call` returns; a Response has the media type `media` (None: no body)
    """

    method: str
    path: str
    role: Role | None
    takes: type[Struct] | None
    call: Callable[..., Awaitable[Any]]
    body: int = BODY
    refuses: tuple[int, ...] = ()
    query: type[Struct] | None = None
    status: int = 200
    media: str | None = None

    @property
    def stated_path(self) -> str:
        """As OpenAPI writes it: parameters by name alone."""
        return sub(r"{(\w+):\w+}", r"{\1}", self.path)

    @property
    def answers(self) -> type[Struct] | None:
        """The type of what it answers, if that is JSON of a type."""
        found = get_type_hints(self.call)["return"]
        return found if isclass(found) and issubclass(found, Struct) else None

    def errors(self, keys: bool) -> list[int]:
        """The statuses of its errors. keys: whether there are any."""
        found = {*self.refuses}
        found |= {400, 408, 413, 415, 422} if self.takes else set()
        found |= {404, 422} if "{" in self.path else set()
        found |= {422} if self.query else set()
        found |= {503} if self.role else set()
        if keys:
            found |= {401, 403} if self.role else set()
        else:
            # By another name, or by a page of another host.
            found |= {400} if self.method == "GET" else {400, 403}
        return sorted(found)


def document(doors: Sequence[Door], keys: bool, columns: Mapping[str, type]) -> dict[str, Any]:
    """The OpenAPI document of `doors`, ready for JSON. keys: whether those with a role ask for one; columns: those of
    the catalog, str or int, that items can be filtered by."""
    types = [kind for door in doors for kind in (door.takes, door.answers) if kind is not None]
    _, schemas = msgspec.json.schema_components([*types, m.EventMessage, m.Problem], ref_template=_SCHEMA)
    for schema in schemas.values():
        if "filter" in schema["properties"]:
            schema["properties"]["filter"] = _filter(columns)
    paths: dict[str, dict[str, Any]] = {}
    for door in doors:
        paths.setdefault(door.stated_path, {})[door.method.lower()] = _operation(door, keys)
    components: dict[str, Any] = {"schemas": schemas}
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hiertcn",
            "version": __version__,
            "description": "Next-item recommendations that follow every event.",
        },
        "paths": paths,
        "components": components,
    }


def _filter(columns: Mapping[str, type]) -> dict[str, Any]:
    """Narrower than the type: which columns there are, the catalog says."""
    properties = {}
    for name, kind in columns.items():
        # A column may hold signs that no id may.
        one = {"type": "string", "minLength": 1, "maxLength": 256} if kind is str else m.ID_WHOLE
        properties[name] = {"anyOf": [one, {"type": "array", "items": one, "maxItems": m.MOST_CANDIDATES}]}
    stated = {"type": "object", "properties": properties, "additionalProperties": False}
    return {"anyOf": [stated, {"type": "null"}], "default": None}


def _operation(door: Door, keys: bool) -> dict[str, Any]:
    summary, _, description = (getdoc(door.call) or "").partition("\n\n")
    named = "_".join([door.method.lower(), *findall(r"\w+", door.stated_path)])
    out: dict[str, Any] = {"operationId": named, "summary": summary.replace("\n", " ")}
    if description:
        out["description"] = description
    names = findall(r"{(\w+)}", door.stated_path)
    stated = [{"name": name, "in": "path", "required": True, "schema": m.ID_TEXT} for name in names]
    if parameters := stated + _query(door.query):
        out["parameters"] = parameters
    if door.takes is not None:
        out["requestBody"] = {"required": True, "content": {JSON: {"schema": _ref(door.takes)}}}
    out["responses"] = {str(door.status): _answer(door)} | {str(status): _error(status) for status in door.errors(keys)}
    if door.role is not None:
        out["x-role"] = door.role
        if keys:
            out["security"] = [{"key": []}]
    return out


def _query(kind: type[Struct] | None) -> list[dict[str, Any]]:
    if kind is None:
        return []
    properties = msgspec.json.schema_components([kind])[1][kind.__name__]["properties"]
    return [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]


def _answer(door: Door) -> dict[str, Any]:
    out: dict[str, Any] = {"description": HTTPStatus(door.status).phrase}
    if door.answers is not None:
        out["content"] = {JSON: {"schema": _ref(door.answers)}}
    elif door.media is not None:
        out["content"] = {door.media: {"schema": {"type": "object" if door.media == JSON else "string"}}}
    return out


def _error(status: int) -> dict[str, Any]:
    out: dict[str, Any] = {"description": HTTPStatus(status).phrase, "content": {JSON: {"schema": _ref(m.Problem)}}}
    return {**out, "headers": _WAITS} if status in (429, 503) else out


def _ref(kind: type[Struct]) -> dict[str, str]:
    return {"$ref": _SCHEMA.format(name=kind.__name__)}
