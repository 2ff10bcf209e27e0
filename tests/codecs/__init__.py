"""What these tests compare by: not by the library's own comparison, and never by `==`, for which 1, 1.0 and True are one."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

_BY_REPR = (type(None), bool, str, bytes, bytearray, dt.date, dt.timedelta, UUID)


def picture(value: Any) -> Any:
    """Everything there is to see of a value, with its exact types, as classes and texts only: values are the same if their pictures are."""
    if isinstance(value, type):
        return type(value), value
    kind = type(value)
    if kind in _BY_REPR:
        return kind, repr(value)
    if kind is int:
        return kind, hex(value)
    if kind is float:
        return kind, value.hex()
    if kind is complex:
        return kind, value.real.hex(), value.imag.hex()
    if kind is Decimal:
        return kind, repr(value.as_tuple())
    if kind in (dt.datetime, dt.time):
        return kind, value.replace(tzinfo=None, fold=0).isoformat(), str(value.fold), _zone(value.tzinfo), str(value.utcoffset())
    if kind in (list, tuple):
        return kind, [picture(part) for part in value]
    if kind is dict:
        return kind, [(picture(key), picture(part)) for key, part in value.items()]
    if kind in (set, frozenset):
        return kind, sorted((picture(part) for part in value), key=repr)
    return _object(value, kind)


def _object(value: Any, kind: type) -> Any:
    if issubclass(kind, Enum):
        return kind, str(value.name), picture(value.value)
    if kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__:
        _, (_, *arguments), state, *items = value.__reduce_ex__(2)[:5]
        items = [list(part) for part in items if part is not None]
    else:
        reduced = value.__reduce_ex__(2)
        arguments, state, items = list(reduced[1]), reduced[2] if len(reduced) > 2 else None, []
    if isinstance(state, dict):
        state = {name: part for name, part in sorted(state.items()) if name != "__orig_class__"}
    return kind, picture(arguments), picture(state), picture(items)


def _zone(zone: Any) -> Any:
    if isinstance(zone, ZoneInfo):
        return ZoneInfo, zone.key
    return type(zone), repr(zone and zone.utcoffset(None)), repr(zone and zone.tzname(None))


def same(a: Any, b: Any) -> bool:
    return picture(a) == picture(b)
