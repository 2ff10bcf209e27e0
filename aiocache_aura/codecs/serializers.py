"""Values to bytes and back: returned equal and of the same type, or refused.

PLAIN is JSON, for what JSON holds exactly; TAGGED is JSON with tags, for the rest of the standard library's values and for the classes that
an annotation or `register_type` names. Every store is checked. For PLAIN the check is at C speed: marshal writes by exact type and refuses
everything else, so the decoded structure is the same exactly when both are the same bytes to it. (Version 2: no references, which would
depend on counts, and no interning flags. It also writes foreign buffers as bytes, but JSON refuses those.)

orjson does not see what is nested deeply: it writes closing brackets without making room for them, over the end of its buffer from depth
34 (3.10.18 to 3.11) or 230 (3.12, 3.13) on, and neither counts tuples (3.12, 3.13). The standard library's encoder writes such values.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import json
import marshal
from collections.abc import Callable
from functools import lru_cache
from itertools import compress
from typing import Any, TypeVar

import orjson

from aiocache_aura.codecs.annotations import ANY, conforms, description, says_nothing, shapes_in
from aiocache_aura.codecs.compare import difference
from aiocache_aura.codecs.shapes import Shape, is_model, name_of, shape_of
from aiocache_aura.codecs.tagged import FIXES, Reader, Refused, Writer
from aiocache_aura.errors import SerializationError

PLAIN, TAGGED = 0, 1
DEEP = 200 if tuple(map(int, orjson.__version__.split(".")[:2])) >= (3, 12) else 30
T = TypeVar("T")

_registered: dict[type, Shape] = {}


class Undecodable(Exception):
    """Bytes that are no value of ours, or not of the type that is expected: a miss."""


def register_type(cls: type[T]) -> type[T]:
    """Let values without a declared type contain instances of this class; also a decorator.

    Register it in every process that reads them: a name found in the store is looked up among registered classes, never imported.
    """
    shape = shape_of(cls)
    if shape is None:
        raise SerializationError(f"{name_of(cls)} is no Enum, dataclass, NamedTuple, attrs class, Struct or pydantic model")
    _registered[cls] = shape
    return cls


class Serializer:
    """The codec for values declared to be of one type, or of any."""

    def __init__(self, annotation: object) -> None:
        self.annotation = ANY if says_nothing(annotation) else annotation
        self._shapes: dict[type, Shape] = {} if self.annotation is ANY else shapes_in(annotation)
        self.schema = 0 if self.annotation is ANY else _fingerprint(description(annotation, self._shapes))
        self._named: dict[type, tuple[str, Shape]] = {}
        self._by_name: dict[str, Shape] = {}
        self._knows = -1
        self._convert: Callable[[object], Any] | None = None

    def __repr__(self) -> str:
        return f"Serializer({self.annotation!r})"

    def encode(self, value: object) -> tuple[int, bytes]:
        """(codec number, payload); SerializationError names the path in the value that would not come back."""
        try:
            plain = _plain(value)
            return (TAGGED, self._tagged(value)) if plain is None else (PLAIN, plain)
        except RecursionError:
            raise SerializationError(f"value is nested too deeply or contains itself; {FIXES}") from None

    def _tagged(self, value: object) -> bytes:
        self._learn()
        writer = Writer(self._named)
        try:
            payload = _dumps(writer.write(value))
        except RecursionError:
            raise
        except Refused as error:
            raise SerializationError(f"{writer.path} {error}; {FIXES}") from None
        except Exception as error:  # a model's own serializer; its text may hold the value, which logs never show
            raise SerializationError(f"{writer.path} cannot be written ({type(error).__name__}); {FIXES}") from error
        try:
            path = difference(value, self._read(payload))
        except RecursionError:
            raise
        except Exception as error:
            raise SerializationError(f"value cannot be read back ({type(error).__name__}); {FIXES}") from error
        if path is not None:
            raise SerializationError(f"{path} would not come back as it is; {FIXES}")
        return payload

    def decode(self, codec: int, schema: int, payload: bytes | memoryview) -> Any:
        """The value; Undecodable for whatever is not one, or is not of the declared type."""
        if schema != self.schema and schema and self.schema:
            raise Undecodable("stored for another declared type")
        try:
            if codec == PLAIN and schema == self.schema:
                return orjson.loads(payload)
            if codec == PLAIN:
                value = orjson.loads(payload)
            elif codec == TAGGED:
                value = self._read(payload)
            else:
                raise Undecodable(f"codec {codec} is not known to this version")
        except Undecodable:
            raise
        except Exception as error:
            raise Undecodable(f"{type(error).__name__} while it was read") from error
        if schema != self.schema and self.schema and not conforms(value, self.annotation):
            raise Undecodable("stored without a declared type, and not of the one that is expected")
        return value

    def _read(self, payload: bytes | memoryview) -> Any:
        self._learn()
        return Reader(self._by_name).read(orjson.loads(payload))

    def _learn(self) -> None:
        """The stored names of the classes that are known by now, those of the annotation before registered ones."""
        if self._knows != len(_registered):
            shapes = _registered | self._shapes
            self._named = {cls: (_stored_name(cls), shape) for cls, shape in shapes.items()}
            self._by_name = dict(self._named.values())
            self._knows = len(_registered)

    def convert(self, value: object) -> Any:
        """The value as the declared type, by pydantic or msgspec: what `returns=` does with ORM rows."""
        try:
            if self._convert is None:
                self._convert = _converter(self)
            return self._convert(value)
        except SerializationError:
            raise
        except Exception as error:
            if conforms(value, self.annotation):  # it is one already, of a type that they do not know
                return value
            raise SerializationError(f"the value cannot be converted to {self.annotation}: {error}") from error

    def has_models(self) -> bool:
        return any(is_model(cls) for cls in self._shapes)


def serializer_for(annotation: object = ANY) -> Serializer:
    """The codec for a declared type; ANY, typing.Any and object declare nothing."""
    try:
        return _cached(annotation)
    except TypeError:  # an annotation with something unhashable in it
        return Serializer(annotation)


@lru_cache(maxsize=1024)
def _cached(annotation: object) -> Serializer:
    return Serializer(annotation)


def _plain(value: Any) -> bytes | None:
    """A value as JSON, if JSON holds all of it.

    What marshal takes is made of built-in types and nothing else, and of those that orjson takes, it gives all back as they were, but for
    tuples and for floats that are no numbers, which come back as something else: equal is the same, here.
    """
    try:
        seen = marshal.dumps(value, 2)
        if len(seen) < 5 * DEEP:  # 5 bytes for each level, at least
            payload = orjson.dumps(value)
            return payload if orjson.loads(payload) == value else None
        payload = _dumps(value)
        return payload if marshal.dumps(orjson.loads(payload), 2) == seen else None
    except (TypeError, ValueError):
        return None


def _dumps(value: Any) -> bytes:
    if _is_deep(value):
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return orjson.dumps(value)


def _is_deep(value: object) -> bool:
    level: list[Any] = [value]
    for _ in range(DEEP):
        level = gc.get_referents(*compress(level, map(_HOLDERS.__contains__, map(type, level))))  # what is in them, at C speed
        if not level:
            return False
    return True


_HOLDERS = frozenset((list, tuple, dict))


@lru_cache(maxsize=1024)
def _stored_name(cls: type) -> str:
    """Ends in what the class looks like at its first use, with all that its fields may hold: a changed class is another one."""
    return f"{name_of(cls)}#{_fingerprint(description(cls, shapes_in(cls))):016x}"[:-8]


def _converter(serializer: Serializer) -> Callable[[object], Any]:
    annotation: Any = serializer.annotation
    if serializer.has_models() or importlib.util.find_spec("msgspec") is None:
        if importlib.util.find_spec("pydantic") is None:
            raise SerializationError("returns= converts by msgspec or pydantic: pip install 'aiocache-aura[msgspec]'")
        from pydantic import TypeAdapter

        adapter = TypeAdapter(annotation)
        return lambda value: adapter.validate_python(value, from_attributes=True)
    import msgspec

    return lambda value: msgspec.convert(value, annotation, from_attributes=True)


def _fingerprint(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


__all__ = ["ANY", "PLAIN", "TAGGED", "Serializer", "Undecodable", "register_type", "serializer_for"]
