"""Keys: readable, bounded, and injective - no two different calls share one.

A key is  prefix:type[:t<tenant>][:u<user>]:@function:name=value:name=value  or, for a key that the user spells,
          prefix:type[:t<tenant>][:u<user>]:=key
Segments are separated by colons, and every text between them is escaped, so that none can pose as another. What follows the owner is
bounded: past `TAIL_BYTES` the readable part is cut and a blake2b hash of the whole takes its place behind a `~`, which is escaped
everywhere else. Braces are escaped too: they would move a key to another slot of a cluster.

An argument is written as a letter for its kind and its value, from a closed list of exact types: `1`, `"1"`, `True`, `1.0`, `(1,)` and
`[1]` all differ. Nothing is ever taken from `repr`.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from enum import Enum
from pathlib import PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from aiocache_aura.errors import ConfigurationError, KeyPartError

T = TypeVar("T")

TAIL_BYTES = 160
ID_BYTES = 48
_HASH_BYTES = 16

_UNSAFE_IN_KEYS = re.compile(r"[%{}~\x00-\x20\x7f\ud800-\udfff]")
_UNSAFE_IN_PARTS = re.compile(r"[%{}~\x00-\x20\x7f\ud800-\udfff:,()\[\]<>=+;]")
_ESCAPE = re.compile(r"%(?:u([0-9A-F]{4})|([0-9A-F]{2}))")
_GLOB = re.compile(r"(?P<any>\*+)|(?P<one>\?)|\[(?P<not>\^?)(?P<set>(?:\\.|[^\]]-.|[^\]])*+)\]?|\\(?P<literal>.)|(?P<char>.)", re.DOTALL)
_IN_SET = re.compile(r"\\(.)|(.)-(.)|(.)", re.DOTALL)
_TYPE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


def _percent(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"%{code:02X}" if code < 256 else f"%u{code:04X}"


def escape_key(text: str) -> str:
    """A user's own key as it stands in Redis; colons stay."""
    return _UNSAFE_IN_KEYS.sub(_percent, text)


def escape_part(text: str) -> str:
    """A text between separators: an id, a tag, a string argument."""
    return _UNSAFE_IN_PARTS.sub(_percent, text)


def escape_chars(text: str, chars: str) -> str:
    """Only these."""
    return re.sub(f"[{re.escape(chars)}]", _percent, text)


def unescape(text: str) -> str:
    return _ESCAPE.sub(lambda m: chr(int(m[1] or m[2], 16)), text)


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=_HASH_BYTES).hexdigest()


def bounded(text: str, limit: int) -> str:
    """`text`, or as much of it as leaves room for a hash of the whole behind a `~`. The text must be escaped."""
    raw = text.encode()
    if len(raw) <= limit:
        return text
    return raw[: limit - 2 * _HASH_BYTES - 1].decode(errors="ignore") + "~" + digest(text)


def segment(text: str) -> str:
    """An id, tag or name as one bounded segment."""
    return bounded(escape_part(text), ID_BYTES)


def check_prefix(prefix: str) -> str:
    if not isinstance(prefix, str) or not prefix or len(prefix) > 64:
        raise ConfigurationError(f"prefix={prefix!r}: it is text of 1 to 64 characters, one for each application that shares the server")
    return escape_part(prefix).replace("!", "%21")  # behind a "!" stand generations and permits


def check_type_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a cache type is named by text such as 'menu', not {type(name).__name__} {name!r}")
    if not _TYPE_NAME.fullmatch(name):
        raise ConfigurationError(
            f"not a name for a cache type: {name!r}; use letters, digits, '_', '-' and '.', at most 64, a letter first"
        )
    return name


def owner_segments(tenants: Iterable[str], users: Iterable[str]) -> str:
    """The part of a key that says whose entry it is, with a colon behind each segment."""
    tenant, user = "+".join(map(segment, tenants)), "+".join(map(segment, users))
    return (f"t{tenant}:" if tenant else "") + (f"u{user}:" if user else "")


def user_tail(key: object) -> str:
    """The tail of a key that the user spells."""
    if not isinstance(key, str):
        raise KeyPartError(f"a key is text, not {type(key).__name__}; spell it, for example f'item:{{item_id}}'")
    return bounded("=" + escape_key(key), TAIL_BYTES)


def call_tail(function: str, parts: Iterable[tuple[str, str]]) -> str:
    """The tail of the key of a call: the function, and its arguments as (name, encoded value)."""
    return bounded(":".join(("@" + function, *(f"{name}={part}" for name, part in parts))), TAIL_BYTES)


def function_name(name: str, version: object = None) -> str:
    """A function as a segment of its calls' keys."""
    return escape_part(name) if version is None else f"{escape_part(name)};{escape_part(str(version))}"


def logical_key(rest: str) -> str:
    """What a pattern is matched with: the key that a user spelled, or function and arguments; of a hashed tail the readable part."""
    return unescape(rest[1:].partition("~")[0])


def split_owner(rest: str) -> tuple[str | None, str | None, str]:
    """(tenants, users, tail) of what follows `prefix:type:`; the inverse of `owner_segments`."""
    tenants = users = None
    while rest[:1] in ("t", "u"):
        head, _, rest = rest.partition(":")
        if head[0] == "t":
            tenants = head[1:]
        else:
            users = head[1:]
    return tenants, users, rest


def pattern_matcher(pattern: str) -> Callable[[str], bool]:
    """Redis' own glob style as a predicate: `*`, `?`, `[abc]`, `[^a]`, `[a-z]`, and a backslash before what is meant literally."""
    first, *rest = "".join(map(_as_regex, _GLOB.finditer(pattern))).split("\0*")
    tail = "".join(f"(?>.*?{text})" for text in rest[:-1]) + ".*" + rest[-1] if rest else ""  # what a star let pass is not tried again
    match = re.compile(first + tail, re.DOTALL).fullmatch
    return lambda text: match(text) is not None


def _as_regex(piece: re.Match[str]) -> str:
    if piece["any"] or piece["one"]:
        return "\0*" if piece["any"] else "."
    if piece["set"] is None:
        return re.escape(piece["literal"] or piece["char"])
    ranges = [sorted((low, high)) if high else (one or escaped,) * 2 for escaped, low, high, one in _IN_SET.findall(piece["set"])]
    within = f"[{''.join(f'{re.escape(low)}-{re.escape(high)}' for low, high in ranges)}]" if ranges else "(?!)."
    return f"(?!{within})." if piece["not"] else within


def glob_literal(name: bytes) -> bytes:
    """A glob that matches just this."""
    return b"".join(b"\\" + bytes((byte,)) if byte in b"*?[]\\^" else bytes((byte,)) for byte in name)


# Arguments -----------------------------------------------------------------------------------------------------------------------------

_registered: dict[type, Callable[[Any], object]] = {}


def register_key_type(cls: type[T], function: Callable[[T], object]) -> None:
    """Say what stands for instances of a class in keys.

    `function(instance)` returns a value of a type that keys know, such as an id or a tuple. It covers subclasses; their name is in the key.
    """
    if cls in _WRITERS:
        raise ConfigurationError(f"keys know what stands for {cls.__name__}: its value; give a subclass or a class of your own")
    _registered[cls] = function


def part_of(value: object, name: str) -> str:
    """An argument as text: a letter for its kind, then its value. KeyPartError names the parameter."""
    try:
        return _part(value)
    except _NotAPart as error:
        raise KeyPartError(
            f"parameter {name!r} cannot be part of a key: {error}. Leave it out with exclude=[{name!r}], "
            "give its class a __cache_key__() method, or say what stands for it with register_key_type(cls, function)"
        ) from None
    except RecursionError:
        raise KeyPartError(f"parameter {name!r} cannot be part of a key: it is nested too deeply or contains itself") from None


class _NotAPart(Exception):
    pass


def _part(value: Any) -> str:
    write = _WRITERS.get(type(value))  # not __class__, which a mock or a proxy can claim to be
    if write is not None:
        return write(value)
    if issubclass(type(value), type):
        return "C" + class_name(value)
    own = getattr(type(value), "__cache_key__", None)
    if own is not None:
        return f"k{class_name(type(value))}({_part(own(value))})"
    for cls in type(value).__mro__:
        if cls in _registered:
            return f"r{class_name(type(value))}({_part(_registered[cls](value))})"
    if issubclass(type(value), Enum):
        name = f"={value._value_}" if value._name_ is None else escape_part(value._name_)  # flags without a name
        return f"e{class_name(type(value))}={name}"
    raise _NotAPart(f"{class_name(type(value))} is not a type that keys know")


def class_name(cls: type) -> str:
    return f"{escape_part(cls.__module__)}.{escape_part(cls.__qualname__).replace('.', ';')}"


def _zone(zone: dt.tzinfo | None) -> str:
    if zone is None:
        return ""
    if type(zone) is dt.timezone:
        return f"Z{zone.utcoffset(None).total_seconds()};{escape_part(zone.tzname(None))}"
    if isinstance(zone, ZoneInfo) and zone.key:
        return ("z" if type(zone) is ZoneInfo else f"z{class_name(type(zone))};") + escape_part(zone.key)
    return _part(zone)  # one that says what stands for it, since two zones of a class may have the same offset


def _datetime(value: dt.datetime) -> str:
    return f"D{escape_part(value.replace(tzinfo=None).isoformat())};{value.fold}{_zone(value.tzinfo)}"


def _time(value: dt.time) -> str:
    return f"o{escape_part(value.replace(tzinfo=None).isoformat())};{value.fold}{_zone(value.tzinfo)}"


def _path(value: PurePath) -> str:
    return f"p{type(value).__name__};{escape_part(str(value))}"


def _int(value: int) -> str:
    return f"i{value}" if value.bit_length() <= 256 else f"x{value:x}"


def _sequence(letter: str, values: Iterable[object]) -> str:
    return f"{letter}({','.join(map(_part, values))})"


def _unordered(letter: str, values: Iterable[object]) -> str:
    return f"{letter}({','.join(sorted(map(_part, values)))})"


def _mapping(value: Mapping[object, object]) -> str:
    return f"M({','.join(sorted(f'{_part(k)}={_part(v)}' for k, v in value.items()))})"


_WRITERS: dict[type, Callable[[Any], str]] = {
    str: lambda v: "s" + escape_part(v),
    int: _int,
    bool: lambda v: "T" if v else "F",
    type(None): lambda v: "N",
    float: lambda v: f"f{v!r}".replace("+", ""),
    bytes: lambda v: "b" + v.hex(),
    UUID: lambda v: "u" + v.hex,
    dt.datetime: _datetime,
    dt.date: lambda v: "d" + v.isoformat(),
    dt.time: _time,
    dt.timedelta: lambda v: f"P{v.days};{v.seconds};{v.microseconds}",
    Decimal: lambda v: "c" + escape_part(str(v)),
    tuple: lambda v: _sequence("t", v),
    list: lambda v: _sequence("l", v),
    set: lambda v: _unordered("S", v),
    frozenset: lambda v: _unordered("Z", v),
    dict: _mapping,
    **dict.fromkeys((PurePosixPath, PureWindowsPath, PosixPath, WindowsPath), _path),
}
