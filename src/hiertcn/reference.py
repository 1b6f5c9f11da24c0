"""The page at /docs: an OpenAPI document for people, without a script and without anything from elsewhere."""

from __future__ import annotations

__all__ = ["CSP", "page"]

import base64
import hashlib
import json
from collections.abc import Iterable
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
section { border-top: 1px solid #8886; margin-top: 1.5rem }
h2, h3, code { overflow-wrap: anywhere }
h2 { font-size: 1.15rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8883 }
code { font-size: .95em }
"""
CSP = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_NAMES = {"string": "text", "integer": "whole number", "object": "object"}
_LIMITS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
    "minLength": "characters ≥",
    "maxLength": "characters ≤",
    "maxItems": "at most",
}


def page(document: dict[str, Any]) -> str:
    """HTML of what `openapi.document` gives."""
    info = document["info"]
    calls = [
        _call(method.upper(), path, stated)
        for path, methods in document["paths"].items()
        for method, stated in methods.items()
    ]
    types = [_type(name, schema) for name, schema in sorted(document["components"]["schemas"].items())]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(info["title"])} API</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<main><h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])} "
        '<a href="openapi.json">The same as OpenAPI</a>.</p>'
        f"{''.join(calls)}{''.join(types)}</main></html>"
    )


def _call(method: str, path: str, stated: dict[str, Any]) -> str:
    out = f"<section><h2>{method} <code>{escape(path)}</code></h2><p>{escape(stated['summary'])}"
    out += f" {escape(stated['description'])}</p>" if "description" in stated else "</p>"
    if "x-role" in stated:
        key = ", with a key of that role in <code>Authorization: Bearer KEY</code>" if "security" in stated else ""
        out += f"<p>Role: {escape(stated['x-role'])}{key}.</p>"
    if "requestBody" in stated:
        out += f"<p>Takes {_content(stated['requestBody'])}.</p>"
    rows = [
        (status, f"{escape(answer['description'])}{': ' if 'content' in answer else ''}{_content(answer)}")
        for status, answer in stated["responses"].items()
    ]
    return out + _table(("status", "answer"), rows) + "</section>"


def _content(stated: dict[str, Any]) -> str:
    return ", ".join(f"{_kind(one['schema'])} ({kind})" for kind, one in stated.get("content", {}).items())


def _type(name: str, schema: dict[str, Any]) -> str:
    needed = schema.get("required", [])
    rows = [
        (f"<code>{escape(field)}</code>{'' if field in needed else ' (optional)'}", _field(stated))
        for field, stated in schema.get("properties", {}).items()
    ]
    head = f'<section><h3 id="{escape(name)}">{escape(name)}</h3><p>{escape(schema.get("description", ""))}</p>'
    return head + _table(("field", "what it holds"), rows) + "</section>"


def _field(schema: dict[str, Any]) -> str:
    default = schema.get("default")
    return _kind(schema) + (f"; by default {escape(json.dumps(default))}" if default is not None else "")


def _kind(schema: dict[str, Any]) -> str:
    """A schema in words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f"<code>{escape(str(one))}</code>" for one in schema["enum"])
    limits = [f"{word} {schema[key]:,}" for key, word in _LIMITS.items() if key in schema]
    if schema.get("type") == "array":
        out = f"list of ({_kind(schema['items'])})"
    elif schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        out = f"object of ({_kind(schema['additionalProperties'])})"
    else:
        kind = schema.get("type", "anything")
        out = _NAMES.get(kind, kind)
    limits += [schema["description"]] if "description" in schema else []
    return f"{out} {escape(', '.join(limits))}" if limits else out


def _table(head: Iterable[str], rows: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><td>{first}<td>{second}" for first, second in rows)
    return f"<table><thead><tr>{''.join(f'<th scope=col>{name}' for name in head)}<tbody>{lines}</table>"
