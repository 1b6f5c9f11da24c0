"""What a schema can't say of a request, for Schemathesis, which loads this as its hooks (SCHEMATHESIS_HOOKS)."""

from __future__ import annotations

from typing import Any

import schemathesis


def _held(value: Any) -> Any:
    """The same, with whole numbers as such: to JSON Schema 1.0 is one, to a log it is none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_held(one) for one in value]
    if isinstance(value, dict):
        return {key: _held(one) for key, one in value.items()}
    return value


def _texts(value: Any) -> list[str]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value] if isinstance(value, str) else [text for one in inner for text in _texts(one)]


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    return _held(body)


@schemathesis.hook
def filter_body(context: Any, body: Any) -> bool:
    # A schema counts signs, a log the bytes of UTF-8.
    return all(len(text) > 256 or len(text.encode("utf-8", "replace")) <= 256 for text in _texts(body))


@schemathesis.hook
def filter_path_parameters(context: Any, path_parameters: Any) -> bool:
    return filter_body(context, list((path_parameters or {}).values()))
