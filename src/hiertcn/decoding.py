"""From bytes to a request: JSON of the types that it is to have, or what is wrong with it."""

from __future__ import annotations

__all__ = ["decoded"]

import json
import re
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar, cast

import msgspec

from hiertcn.messages import Refused

MOST_KEYS = 20_000
_KEY = re.compile(rb'"\s*:')
_NAMED_KEY, _SHORT = re.compile(rb'"([^"]*)"\s*:'), 1 << 12
T = TypeVar("T")
_UNKNOWN, _PLACE = "Object contains unknown field", " - at `"
_NESTED = 400, "invalid_json", "The body is nested too deeply. Send a request as documented."
_NO_TEXT = 422, "invalid_text", "The body holds text that is no UTF-8. Send UTF-8."
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def decoded(body: bytes | msgspec.Raw, kind: type[T]) -> T:
    """A request out of JSON. Raises Refused: 400 for what is no JSON, 422 for JSON that is no such request."""
    if kind not in _decoders:
        _decoders[kind] = msgspec.json.Decoder(kind)
    try:
        found: T = _decoders[kind].decode(body)
    except msgspec.ValidationError as error:
        message, _, place = str(error).rpartition(_PLACE) if _PLACE in str(error) else (str(error), "", "")
        field = place.rstrip("`").removeprefix("$").lstrip(".") or None
        names = _fields(cast(Any, kind), field or "") if message.startswith(_UNKNOWN) else ""
        allowed = f" It may have {names}." if names else ""
        raise Refused(422, "invalid", f"{message}.{allowed}", field) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = str(error)
        if "utf-8" in text.lower() or _halves(bytes(body)):
            raise Refused(*_NO_TEXT) from None
        raise Refused(400, "invalid_json", f"The body is no JSON: {text}.") from None
    except RecursionError:
        raise Refused(*_NESTED) from None
    _refuse_duplicates(bytes(body))
    return found


@lru_cache
def _fields(kind: Any, place: str) -> str:
    """The names of the fields that an object at `place` of a request of `kind` may have; none for a place that is not
    one of its: a client's own name of a field may look like one."""
    for name in place.split(".") if place else ():
        kind = next((field.type for field in msgspec.structs.fields(kind) if field.encode_name == name), None)
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            return ""
    return ", ".join(field.encode_name for field in msgspec.structs.fields(kind))


def _halves(body: bytes) -> bool:
    """Whether it would be JSON but for half a pair of surrogates."""
    try:
        json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return False
    return True


def _no_number(_: str) -> None:
    raise ValueError


def _refuse_duplicates(body: bytes) -> None:
    """Two readers of one body could take different ones of two keys; so neither is taken. What nobody has read yet, as
    the events of a request, is no better than the rest: it may be nested, long or no UTF-8."""

    def unique(pairs: list[tuple[str, Any]]) -> None:
        if len(dict(pairs)) == len(pairs):
            return
        seen = set()
        for key, _ in pairs:
            if key in seen:
                name = key[:80].encode(errors="replace").decode()
                raise Refused(400, "duplicate_key", f"The key {name!r} is there twice. Send it once.", name)
            seen.add(key)

    # Nearly all requests are short and plain, and have no key twice at any depth.
    if len(body) <= _SHORT and body.isascii() and b"\\" not in body:
        keys = _NAMED_KEY.findall(body)
        # A key that begins with a colon hides others from the pattern, but not its own colons.
        if len(set(keys)) == len(keys) == len(_KEY.findall(body)):
            return
    # A request of 1,000 events has some 5,000; to tell two of a hundred thousand apart takes longer than it may.
    if next(islice(_KEY.finditer(body), MOST_KEYS, None), None):
        raise Refused(400, "too_many_keys", f"The body has more than {MOST_KEYS:,} keys. Send a request as documented.")
    try:
        # Numbers stay text: Python takes its time with long ones, then refuses them.
        json.loads(body, object_pairs_hook=unique, parse_int=str, parse_float=str)
    except RecursionError:
        raise Refused(*_NESTED) from None
    except UnicodeDecodeError:
        raise Refused(*_NO_TEXT) from None
