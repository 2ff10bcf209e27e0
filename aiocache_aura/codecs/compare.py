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


def difference(a: Any, b: Any, path: str = "value") -> str | None:
    """Where `b` is not the same as `a`, as a path into the value; None where it is."""
    kind = type(a)  # never `__class__`: proxies and mocks lie about that
    if kind is not type(b):
        return path
    compare = _COMPARE.get(kind)
    if compare is not None:
        return compare(a, b, path)
    if issubclass(kind, Enum):
        return None if a is b or (a.name == b.name and a.value == b.value) else path
    if issubclass(kind, tuple):
        return _sequences(a, b, path) or _states(state_of(a), state_of(b), path)
    mine, theirs = state_of(a), state_of(b)
    if not mine and not theirs:
        return _by_equality(a, b, path)
    return _states(mine, theirs, path)


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
    there = {y: y for y in b}
    if a != b or any(difference(x, there[x]) for x in a):  # {1} and {True} are equal sets
        return path
    return None


def _moments(a: Any, b: Any, path: str) -> str | None:
    same = a.replace(tzinfo=None) == b.replace(tzinfo=None) and a.fold == b.fold and a.utcoffset() == b.utcoffset()
    return None if same and _zone(a.tzinfo) == _zone(b.tzinfo) else path


def _zone(zone: Any) -> Any:
    if isinstance(zone, ZoneInfo):
        return ZoneInfo, zone.key
    if isinstance(zone, dt.timezone):
        return dt.timezone, zone.utcoffset(None), zone.tzname(None), type(zone.tzname(None))
    return zone


def _states(mine: dict[str, Any], theirs: dict[str, Any], path: str) -> str | None:
    """Objects of the user's classes: everything that is in them."""
    if mine.keys() != theirs.keys():
        return path
    return next((found for name in mine if (found := difference(mine[name], theirs[name], f"{path}.{name}"))), None)


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
