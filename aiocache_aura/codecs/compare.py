"""The same thing: equal in structure and in exact types, never by `==`, for which [1, True] equals [1.0, 1.0]."""

from __future__ import annotations

import datetime as dt
import struct
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo


def difference(a: Any, b: Any, path: str = "value") -> str | None:
    """Where `b` is not the same as `a`, as a path into the value; None where it is."""
    if a.__class__ is not b.__class__:
        return path
    compare = _COMPARE.get(a.__class__)
    if compare is not None:
        return compare(a, b, path)
    if isinstance(a, Enum):
        return None if a is b or (a.name == b.name and a.value == b.value) else path
    if isinstance(a, tuple):
        return _sequences(a, b, path)
    return _states(a, b, path)


def _by_equality(a: Any, b: Any, path: str) -> str | None:
    return None if a == b else path


def _floats(a: float, b: float, path: str) -> str | None:
    return None if struct.pack("d", a) == struct.pack("d", b) or (a != a and b != b) else path


def _decimals(a: Decimal, b: Decimal, path: str) -> str | None:
    return None if a.as_tuple() == b.as_tuple() else path


def _sequences(a: Any, b: Any, path: str) -> str | None:
    if len(a) != len(b):
        return path
    pairs = enumerate(zip(a, b, strict=True))
    return next((found for n, (x, y) in pairs if (found := difference(x, y, f"{path}[{n}]"))), None)


def _dicts(a: dict[Any, Any], b: dict[Any, Any], path: str) -> str | None:
    if len(a) != len(b):
        return path
    for (key, x), (other, y) in zip(a.items(), b.items(), strict=True):
        found = difference(key, other, f"{path}.key") or difference(x, y, f"{path}[{key!r:.40}]")
        if found:
            return found
    return None


def _sets(a: Any, b: Any, path: str) -> str | None:
    if len(a) != len(b):
        return path
    for x in a:  # what equals x in b must be the same as x: {1} and {True} are equal sets
        if not any(x == y and difference(x, y) is None for y in b if y.__hash__ is not None and hash(x) == hash(y)) and x == x:
            return path
    return None


def _moments(a: Any, b: Any, path: str) -> str | None:
    same = a.replace(tzinfo=None) == b.replace(tzinfo=None) and a.fold == b.fold
    return None if same and _zone(a.tzinfo) == _zone(b.tzinfo) else path


def _zone(zone: Any) -> Any:
    if isinstance(zone, ZoneInfo):
        return ZoneInfo, zone.key
    if isinstance(zone, dt.timezone):
        return dt.timezone, zone.utcoffset(None), zone.tzname(None)
    return zone


def _states(a: Any, b: Any, path: str) -> str | None:
    """Objects of the user's classes: everything that is in them."""
    mine, theirs = state_of(a), state_of(b)
    if mine.keys() != theirs.keys() or not mine:
        return path if mine or theirs or a != b else None
    return next((found for name in mine if (found := difference(mine[name], theirs[name], f"{path}.{name}"))), None)


def state_of(value: Any) -> dict[str, Any]:
    """All attributes of an instance: its `__dict__`, its slots, a Struct's fields."""
    state = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            name = f"_{cls.__name__.lstrip('_')}{slot}" if slot.startswith("__") and not slot.endswith("__") else slot
            if slot not in ("__dict__", "__weakref__") and hasattr(value, name):
                state[name] = getattr(value, name)
    for name in getattr(type(value), "__struct_fields__", ()):
        state[name] = getattr(value, name)
    return state


_COMPARE: dict[type, Callable[[Any, Any, str], str | None]] = {
    **dict.fromkeys((type(None), bool, int, str, bytes, bytearray, dt.date, dt.timedelta, UUID), _by_equality),
    float: _floats,
    complex: lambda a, b, path: _floats(a.real, b.real, path) or _floats(a.imag, b.imag, path),
    Decimal: _decimals,
    list: _sequences,
    tuple: _sequences,
    dict: _dicts,
    set: _sets,
    frozenset: _sets,
    dt.datetime: _moments,
    dt.time: _moments,
}
