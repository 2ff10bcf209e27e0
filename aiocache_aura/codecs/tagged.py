"""Values that JSON does not hold exactly, as JSON with tags; and back, to the same type.

A tagged value is an object with the one key "$": {"$": [tag, content]}. An object of the user's that could be mistaken for one, or whose
keys are not text, is written as {"$": ["d", [[key, value], ...]]}. Classes of the user's are written by a name, which ends in a fingerprint
of what they look like, and which is looked up in a table made from an annotation or by `register_type`: a class that has changed since is
not found. Nothing found in stored bytes is ever imported.
"""

from __future__ import annotations

import base64
import datetime as dt
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from aiocache_aura.codecs.shapes import Shape

MARK = "$"
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
FIXES = (
    "declare what is returned (a return annotation, returns= or as_type=) with that class in it, "
    "call register_type(cls), or return plain values"
)


class Refused(Exception):
    """A part of a value that would not come back; says why."""


class Writer:
    """Encodes one value. `path` says where an error came from: its steps are noted on the way out."""

    def __init__(self, table: Mapping[type, tuple[str, Shape]]) -> None:
        self._table = table
        self._steps: list[str] = []

    @property
    def path(self) -> str:
        return "value" + "".join(reversed(self._steps))

    def write(self, value: Any) -> Any:
        write = _WRITERS.get(type(value))  # never `__class__`: proxies and mocks lie about that
        if write is not None:
            return write(self, value)
        named = self._table.get(type(value))
        if named is None:
            cls = f"{type(value).__module__}.{type(value).__qualname__}"
            raise Refused(f"is {'an' if cls[0] in 'AEIOUaeiou' else 'a'} {cls}, which would not come back as it is")
        name, shape = named
        return {MARK: ["o", [name, shape.write(value, self)]]}

    def at(self, step: str, value: Any) -> Any:
        """`write` for a part of the value, which errors call `step`."""
        try:
            return self.write(value)
        except BaseException:
            self._steps.append(step)
            raise

    def item(self, key: Any, value: Any) -> Any:
        """`write` for what is under a key or a position."""
        try:
            return self.write(value)
        except BaseException:
            self._steps.append(f"[{key!r:.40}]")
            raise

    def sequence(self, values: Any) -> list[Any]:
        return [self.item(n, value) for n, value in enumerate(values)]

    def int(self, value: int) -> Any:
        return value if _INT_MIN <= value <= _INT_MAX else {MARK: ["i", f"{value:x}"]}

    def float(self, value: float) -> Any:
        return value if math.isfinite(value) else {MARK: ["n", repr(value)]}

    def str(self, value: str) -> Any:
        try:
            value.encode()
        except UnicodeEncodeError:
            return {MARK: ["S", value.encode("utf-8", "surrogatepass").hex()]}
        return value

    def dict(self, value: dict[Any, Any]) -> Any:
        if all(type(key) is str and key.isprintable() for key in value) and MARK not in value:
            return {key: self.item(key, item) for key, item in value.items()}
        return {MARK: ["d", [[self.at(".key", key), self.item(key, item)] for key, item in value.items()]]}

    def zone(self, zone: dt.tzinfo | None) -> Any:
        if zone is None:
            return None
        if type(zone) is ZoneInfo and zone.key:
            return zone.key
        if isinstance(zone, dt.timezone):  # a final class
            offset = zone.utcoffset(None)
            name = zone.tzname(None)
            given = name if dt.timezone(offset).tzname(None) != name else None
            return [offset // dt.timedelta(microseconds=1), given]
        raise Refused(f"has a time zone of {type(zone).__module__}.{type(zone).__qualname__}; use datetime.timezone or zoneinfo")

    def datetime(self, value: dt.datetime) -> Any:
        return {MARK: ["D", [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, self.zone(value.tzinfo)]]}

    def time(self, value: dt.time) -> Any:
        return {MARK: ["T", [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, self.zone(value.tzinfo)]]}


def _tag(tag: str, content: Callable[[Any], Any]) -> Callable[[Writer, Any], Any]:
    return lambda writer, value: {MARK: [tag, content(value)]}


def _tagged_sequence(tag: str) -> Callable[[Writer, Any], Any]:
    return lambda writer, value: {MARK: [tag, writer.sequence(value)]}


_WRITERS: dict[type, Callable[[Writer, Any], Any]] = {
    type(None): lambda writer, value: None,
    bool: lambda writer, value: value,
    int: Writer.int,
    float: Writer.float,
    str: Writer.str,
    list: Writer.sequence,
    dict: Writer.dict,
    tuple: _tagged_sequence("t"),
    set: _tagged_sequence("s"),
    frozenset: _tagged_sequence("f"),
    bytes: _tag("b", lambda value: base64.b64encode(value).decode()),
    bytearray: _tag("B", lambda value: base64.b64encode(value).decode()),
    complex: _tag("c", lambda value: [value.real.hex(), value.imag.hex()]),
    dt.datetime: Writer.datetime,
    dt.time: Writer.time,
    dt.date: _tag("e", lambda value: value.isoformat()),
    dt.timedelta: _tag("P", lambda value: [value.days, value.seconds, value.microseconds]),
    Decimal: _tag("N", str),
    UUID: _tag("u", lambda value: value.hex),
}
KINDS = frozenset(_WRITERS)


class Reader:
    """Decodes what a `Writer` wrote; raises whatever it likes for anything else."""

    def __init__(self, table: Mapping[str, Shape]) -> None:
        self._table = table

    def read(self, value: Any) -> Any:
        if type(value) is list:
            return [self.read(item) for item in value]
        if type(value) is not dict:
            return value
        if MARK not in value:
            return {key: self.read(item) for key, item in value.items()}
        ((tag, content),) = value.values()
        return _READERS[tag](self, content)

    def object(self, content: Any) -> Any:
        name, state = content
        return self._table[name].read(state, self)


def _read_zone(zone: Any) -> dt.tzinfo | None:
    if zone is None:
        return None
    if isinstance(zone, str):
        return ZoneInfo(zone)
    offset, name = zone
    delta = dt.timedelta(microseconds=offset)
    if name is not None:
        return dt.timezone(delta, name)
    return dt.timezone(delta) if delta else dt.UTC


def _read_moment(cls: type[dt.datetime] | type[dt.time]) -> Callable[[Reader, Any], Any]:
    def read(reader: Reader, content: Any) -> Any:
        text, fold, zone = content
        return cls.fromisoformat(text).replace(fold=fold, tzinfo=_read_zone(zone))

    return read


def _bytes(content: str) -> bytes:
    return base64.b64decode(content, validate=True)


_READERS: dict[str, Callable[[Reader, Any], Any]] = {
    "o": Reader.object,
    "d": lambda reader, content: {reader.read(key): reader.read(item) for key, item in content},
    "t": lambda reader, content: tuple(map(reader.read, content)),
    "s": lambda reader, content: set(map(reader.read, content)),
    "f": lambda reader, content: frozenset(map(reader.read, content)),
    "i": lambda reader, content: int(content, 16),
    "n": lambda reader, content: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content],
    "S": lambda reader, content: bytes.fromhex(content).decode("utf-8", "surrogatepass"),
    "b": lambda reader, content: _bytes(content),
    "B": lambda reader, content: bytearray(_bytes(content)),
    "c": lambda reader, content: complex(*map(float.fromhex, content)),
    "D": _read_moment(dt.datetime),
    "T": _read_moment(dt.time),
    "e": lambda reader, content: dt.date.fromisoformat(content),
    "P": lambda reader, content: dt.timedelta(*content),
    "N": lambda reader, content: Decimal(content),
    "u": lambda reader, content: UUID(content),
}
