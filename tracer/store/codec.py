"""Dataclasses as plain values, and back: what is read is checked, whoever wrote it.

``encode`` turns a dataclass into what JSON can hold, ``decode`` makes it again by the types of its fields. A field that
the writer did not know gets its default, one that the reader does not know is passed over: so recordings outlive
changes of the report.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

MAX_INT = 1 << 64
# Seconds, bytes per second: what is larger is no measurement, and would overflow where it is rounded or summed.
MAX_FLOAT = 1e18
_MAX_TEXT = 1 << 20


class DecodeError(ValueError):
    """What was read is not what it should be."""


def encode(value: Any) -> Any:
    """Plain values: numbers, text, None, lists and dictionaries. Bytes become text (latin-1)."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, datetime):
        return value.isoformat()
    return value.decode("latin-1") if isinstance(value, bytes) else value


def decode(kind: Any, value: Any) -> Any:
    """The value of type ``kind`` that ``encode`` made ``value`` of. Raises DecodeError."""
    if is_dataclass(kind):
        return _dataclass(kind, value)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        return decode(next(each for each in get_args(kind) if each is not type(None)), value)
    if origin is Literal:
        return _expect(value in get_args(kind) and isinstance(value, str), value, kind)
    if origin is tuple:
        return _tuple(get_args(kind), value)
    if origin is not None and issubclass(origin, Mapping):
        _expect(isinstance(value, dict), value, kind)
        return {decode(get_args(kind)[0], key): decode(get_args(kind)[1], item) for key, item in value.items()}
    return _scalar(kind, value)


def _dataclass(kind: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        raise DecodeError(f"no {kind.__name__}")
    known = {}
    for field, hint in _hints(kind):
        if field.name in value:
            known[field.name] = decode(hint, value[field.name])
        elif field.default is MISSING and field.default_factory is MISSING:
            raise DecodeError(f"{kind.__name__} without {field.name}")
    return kind(**known)


@lru_cache(maxsize=64)
def _hints(kind: type) -> tuple[tuple[Field[Any], Any], ...]:
    hints = get_type_hints(kind)
    return tuple((field, hints[field.name]) for field in fields(kind))


def _tuple(of: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    _expect(isinstance(value, list), value, of)
    if len(of) == 2 and of[1] is Ellipsis:
        return tuple(decode(of[0], item) for item in value)
    _expect(len(value) == len(of), value, of)
    return tuple(decode(each, item) for each, item in zip(of, value, strict=True))


def _scalar(kind: Any, value: Any) -> Any:
    if kind is bool:  # columns hold 0 and 1
        return bool(_expect(value in (0, 1) and isinstance(value, int), value, kind))
    if kind is int:
        return _expect(isinstance(value, int) and not isinstance(value, bool) and abs(value) < MAX_INT, value, kind)
    if kind is float:
        return float(_expect(_is_number(value), value, kind))
    if kind is str:
        return _expect(isinstance(value, str) and len(value) <= _MAX_TEXT, value, kind)
    if kind is bytes:
        return _bytes(value)
    if kind is datetime:
        return _time(value)
    raise TypeError(f"no codec for {kind}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_FLOAT


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return bytes(_expect(isinstance(value, str), value, bytes), "latin-1")
    except UnicodeEncodeError:
        raise DecodeError("no bytes") from None


def _time(value: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(_expect(isinstance(value, str), value, datetime))
    except (ValueError, OverflowError):
        raise DecodeError("no time") from None
    # Near the ends of the calendar a time cannot be told in another zone, nor anything added to it.
    _expect(1970 <= moment.year < 9000 and moment.tzinfo is not None, value, datetime)
    return moment


def _expect(condition: bool, value: Any, kind: Any) -> Any:
    if not condition:
        shown = repr(value)
        raise DecodeError(f"{shown[:40]} is no {getattr(kind, '__name__', kind)}")
    return value
