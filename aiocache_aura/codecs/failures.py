"""Errors as they are stored and told from process to process: the name of the class, and arguments that JSON holds exactly.

A class that is only named is never imported: it is found among those that the reader declares, and their subclasses, or among modules that
are loaded already. It is made from its arguments, as pickle does, and taken only if it then is what was stored.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import orjson

from aiocache_aura.codecs.compare import difference


def encode(error: BaseException) -> bytes | None:
    """What `rebuilt` and `found_again` take; None for an error that would not come back as it is."""
    whole = [_name(type(error)), list(error.args)]
    try:
        raw = orjson.dumps(whole)
    except (TypeError, ValueError, RecursionError):
        return None
    return raw if difference(whole, orjson.loads(raw)) is None and _made(type(error), error.args) is not None else None


def named(error: BaseException) -> bytes:
    """What only `told` takes."""
    return orjson.dumps([_name(type(error))])


def rebuilt(raw: bytes | memoryview, among: Iterable[type[Exception]]) -> Exception | None:
    """The error, if its class is one of these or a subclass."""
    name, args = _parsed(raw)
    pending = list(among)
    for cls in pending:
        if _name(cls) == name:
            return _made(cls, args)
        pending.extend(sub for sub in cls.__subclasses__() if sub not in pending)
    return None


def found_again(raw: bytes) -> Exception | None:
    """The error, if its class is in a module that this process has loaded."""
    name, args = _parsed(raw)
    if raw == orjson.dumps([name]):
        return None
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for step in path.split("."):
        found = getattr(found, step, None)
    is_error = isinstance(found, type) and issubclass(found, Exception) and _name(found) == name
    return _made(found, args) if is_error else None


def told(raw: bytes) -> str:
    """The name of its class, for messages."""
    return _parsed(raw)[0].partition(":")[2] or "an error"


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _parsed(raw: bytes | memoryview) -> tuple[str, tuple[Any, ...]]:
    try:
        match orjson.loads(raw):
            case [str() as name, list() as args]:
                return name, tuple(args)
            case [str() as name]:
                return name, ()
    except ValueError:
        pass
    return "", ()


def _made(cls: type[BaseException], args: tuple[Any, ...]) -> Exception | None:
    """An instance made from these arguments, or None where that is not the same error."""
    try:
        error: Any = cls(*args)
    except Exception:
        return None
    return error if type(error) is cls and isinstance(error, Exception) and error.args == args else None
