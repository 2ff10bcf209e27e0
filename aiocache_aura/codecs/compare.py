"""The same thing: equal in structure and in exact types, never by `==`, for which [1, True] equals [1.0, 1.0]."""

from __future__ import annotations

import datetime as dt
import struct
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from types import MemberDescriptorType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo


def difference(a: Any, b: Any) -> str | None:
    """Where `b` is not the same as `a`, as a path into the value; None where it is."""
    found = _differs(a, b)
    return None if found is None else f"value{found}"


def _differs(a: Any, b: Any) -> str | None:
    """The path below `a`, which is "" for `a` itself: put together on the way out, as there is none in nearly every case."""
    if a is b:
        return None
    kind = type(a)  # never `__class__`: proxies and mocks lie about that
    if kind is not type(b):
        return ""
    compare = _COMPARE.get(kind)
    if compare is not None:
        return compare(a, b)
    if issubclass(kind, Enum):
        return None if a.name == b.name and a.value == b.value else ""
    mine, theirs = state_of(a), state_of(b)
    if issubclass(kind, tuple):
        found = _sequences(a, b)
        return _states(mine, theirs) if found is None else found
    return _states(mine, theirs) if mine or theirs else _by_equality(a, b)


def _by_equality(a: Any, b: Any) -> str | None:
    return None if a == b else ""


def _floats(a: float, b: float) -> str | None:
    return None if struct.pack("d", a) == struct.pack("d", b) or (a != a and b != b) else ""


def _complexes(a: complex, b: complex) -> str | None:
    return _sequences((a.real, a.imag), (b.real, b.imag)) and ""


def _decimals(a: Decimal, b: Decimal) -> str | None:
    return None if a.as_tuple() == b.as_tuple() else ""


def _sequences(a: Any, b: Any) -> str | None:
    if len(a) != len(b):
        return ""
    for n, (x, y) in enumerate(zip(a, b, strict=True)):
        found = _differs(x, y)
        if found is not None:
            return f"[{n}]{found}"
    return None


def _dicts(a: dict[Any, Any], b: dict[Any, Any]) -> str | None:
    if len(a) != len(b):
        return ""
    for (key, x), (other, y) in zip(a.items(), b.items(), strict=True):
        found = _differs(key, other)
        if found is not None:
            return f".key{found}"
        found = _differs(x, y)
        if found is not None:
            return f"[{key!r:.40}]{found}"
    return None


def _sets(a: Any, b: Any) -> str | None:
    there = {y: y for y in b}
    return None if a == b and all(_differs(x, there[x]) is None for x in a) else ""  # {1} and {True} are equal sets


def _moments(a: Any, b: Any) -> str | None:
    same = a.replace(tzinfo=None) == b.replace(tzinfo=None) and a.fold == b.fold and a.utcoffset() == b.utcoffset()
    return None if same and _zone(a.tzinfo) == _zone(b.tzinfo) else ""


def _zone(zone: Any) -> Any:
    if isinstance(zone, ZoneInfo):
        return ZoneInfo, zone.key
    if isinstance(zone, dt.timezone):
        return dt.timezone, zone.utcoffset(None), zone.tzname(None), type(zone.tzname(None))
    return zone


def _states(mine: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """Objects of the user's classes: everything that is in them."""
    if mine.keys() != theirs.keys():
        return ""
    for name in mine:
        found = _differs(mine[name], theirs[name])
        if found is not None:
            return f".{name}{found}"
    return None


def state_of(value: Any) -> dict[str, Any]:
    """All attributes of an instance, in its `__dict__` or in slots; but not by which alias it was made, as in `Box[int](1)`."""
    state = dict(getattr(value, "__dict__", ()))
    state.pop("__orig_class__", None)
    kind: Any = type(value)
    for name in _slots_of(kind):
        part = getattr(value, name, _UNSET)
        if part is not _UNSET:
            state[name] = part
    return state


@lru_cache(maxsize=1024)
def _slots_of(cls: type) -> tuple[str, ...]:
    members = (name for base in cls.__mro__ for name, member in vars(base).items() if isinstance(member, MemberDescriptorType))
    return tuple(dict.fromkeys((*members, *getattr(cls, "__struct_fields__", ()))))


_UNSET = object()
_COMPARE: dict[type, Callable[[Any, Any], str | None]] = {
    **dict.fromkeys((type(None), bool, int, str, bytes, bytearray, dt.date, dt.timedelta, UUID), _by_equality),
    float: _floats,
    complex: _complexes,
    Decimal: _decimals,
    list: _sequences,
    tuple: _sequences,
    dict: _dicts,
    set: _sets,
    frozenset: _sets,
    dt.datetime: _moments,
    dt.time: _moments,
}
