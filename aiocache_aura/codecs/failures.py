"""Errors as they are stored and told from process to process: the name of the class, and arguments and attributes that JSON holds exactly.

A class that is only named is never imported: it is found among those that the reader declares, and their subclasses, or among modules that
are loaded already. It is made from its arguments and attributes, as pickle does, and taken only if it then is what was stored.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any, TypeAlias

import orjson

from aiocache_aura.codecs.compare import difference

SHORT = 4096  # bytes of an error that are told from process to process

Parts: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of an error's class, and the attributes that they do not tell of."""


def encode(error: BaseException) -> bytes | None:
    """What `rebuilt` and `found_again` take; None for an error that would not come back as it is."""
    parts = _parts(error)
    if parts is None or _made(type(error), parts) is None:
        return None
    args, attributes = parts
    whole = [_name(type(error)), list(args), *([attributes] if attributes else [])]
    try:
        raw = orjson.dumps(whole)
    except (TypeError, ValueError, RecursionError):
        return None
    return raw if difference(whole, orjson.loads(raw)) is None else None


def told_of(error: BaseException) -> bytes:
    """As `encode`, and only the name, which `told` takes, of an error that would not come back or is longer than SHORT."""
    raw = encode(error)
    return orjson.dumps([_name(type(error))]) if raw is None or len(raw) > SHORT else raw


def rebuilt(raw: bytes | memoryview, among: Iterable[type[Exception]]) -> Exception | None:
    """The error, if its class is one of these or a subclass."""
    name, parts = _parsed(raw)
    pending = dict.fromkeys(among)
    while parts is not None and pending:
        for cls in pending:
            if _name(cls) == name:
                return _made(cls, parts)
        pending = dict.fromkeys(sub for cls in pending for sub in cls.__subclasses__())
    return None


def found_again(raw: bytes) -> Exception | None:
    """The error, if its class is in a module that this process has loaded."""
    name, parts = _parsed(raw)
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for step in path.split("."):
        found = vars(found).get(step) if isinstance(found, ModuleType | type) else None  # getattr would ask modules that import lazily
    is_error = isinstance(found, type) and issubclass(found, Exception) and _name(found) == name
    return _made(found, parts) if is_error and parts is not None else None


def told(raw: bytes) -> str:
    """The name of its class, for messages."""
    return _parsed(raw)[0].partition(":")[2] or "an error"


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _parsed(raw: bytes | memoryview) -> tuple[str, Parts | None]:
    """The name, and what to make the error from: None if only the name was told."""
    try:
        match orjson.loads(raw):
            case [str() as name, list() as args]:
                return name, (tuple(args), {})
            case [str() as name, list() as args, dict() as attributes]:
                return name, (tuple(args), attributes)
            case [str() as name]:
                return name, None
    except ValueError:
        pass
    return "", None


def _parts(error: BaseException) -> Parts | None:
    """What an error is made from; None for one that has a way of its own."""
    try:
        match error.__reduce__():
            case (made_by, tuple() as args, *attributes) if made_by is type(error):
                return args, dict(sorted(attributes[0].items())) if attributes else {}
    except Exception:
        return None
    return None


def _made(cls: type[BaseException], parts: Parts) -> Exception | None:
    """An instance made from these, or None where that is not the same error."""
    args, attributes = parts
    try:
        error: Any = cls(*args)
        if attributes:
            error.__setstate__(attributes)
        is_same = type(error) is cls and difference(parts, _parts(error)) is None
    except Exception:
        return None
    return error if is_same and isinstance(error, Exception) else None
