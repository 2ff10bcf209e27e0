"""What a load gave: handed out as a copy for each caller, stored, or raised; and what other processes' loads gave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from aiocache_aura.codecs import failures
from aiocache_aura.codecs.envelope import IS_NONE
from aiocache_aura.codecs.serializers import Undecodable
from aiocache_aura.entries import Held
from aiocache_aura.errors import CacheError, LoadFailedError
from aiocache_aura.resilience.single_flight import RETRY
from aiocache_aura.terms import Terms


class Loaded:
    """What a load gave, in this process or another: handed out as a copy for each caller, or as the one object, or raised."""

    __slots__ = ("_schema", "_sealed", "error", "unstored", "value")

    def __init__(self, value: Any, sealed: tuple[int, bytes | memoryview] | None, schema: int, error: Exception | None = None) -> None:
        self.value, self._sealed, self._schema, self.error = value, sealed, schema, error
        self.unstored: Exception | None = None  # why it is not stored, although it was to be

    def take(self, terms: Terms) -> Any:
        """It, as a read of the store by these terms gives it; RETRY where such a read would miss, for another type is declared."""
        if self.error is not None:
            raise self.error
        serializer = terms.serializer
        same = self._schema == serializer.schema
        if self._sealed is None:
            return self.value if same or self.value is None else RETRY
        codec, payload = self._sealed
        try:
            return serializer.decode(codec, self._schema, payload)
        except Undecodable:
            return self.value if same else RETRY  # a class of the user's may refuse at its second reading what it took at the first


class Sealed:
    """What is to be stored of a load."""

    __slots__ = ("body", "kind", "life")

    def __init__(self, body: tuple[int, bytes], kind: int, life: float) -> None:
        self.body, self.kind, self.life = body, kind, life


Result: TypeAlias = tuple[Loaded, Sealed | None]


class Refused:
    """An error that is to be cached, in the place of a value."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


class Misjudged(CacheError):
    """What the user gave to judge a result by has raised."""


def judged(judge: Callable[[Any], Any] | None, value: Any, otherwise: Any) -> Any:
    """What the user's function says of a result; where it raises, the result is given all the same."""
    if judge is None:
        return otherwise
    try:
        return judge(value)
    except Exception as error:
        raise Misjudged(f"store_if= or ttl= raised {type(error).__name__}") from error


def loaded_elsewhere(held: Held) -> Loaded:
    entry = held.sight.entry
    if held.error is not None or entry is None or entry.flags & IS_NONE:
        return Loaded(held.value, None, 0, held.error)
    return Loaded(held.value, (entry.codec, entry.payload), entry.schema)


def as_it_failed(reason: bytes, terms: Terms) -> Exception:
    """The error that a load has failed with in another process."""
    error = failures.rebuilt(reason, terms.cache_errors)
    if error is None:  # not "or": an error may be false
        error = failures.found_again(reason)
    if error is None:
        error = LoadFailedError(f"{terms.label}: the load has failed in other processes, with {failures.told(reason)}; see their logs")
    return error
