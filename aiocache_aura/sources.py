"""Sources: where warmers have their keys and values from. Those of a module serve every warmer."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from aiocache_aura.context import current_user
from aiocache_aura.errors import ConfigurationError
from aiocache_aura.keys import check_type_name

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What fills a cache type. `tags`: those that its pairs may name; an invalidation of these while it runs is seen.

    One that `warm=` of a decorator declares gives the arguments of calls: of `calls`, whose parameter `lent` is given the session.
    `manager` is that of its entries: a function of no argument, since the process-wide one is looked up each time; None for any.
    """

    cache_type: str
    function: Callable[..., Any] = field(repr=False)
    name: str
    tags: tuple[str, ...] = ()
    calls: weakref.ref[Any] | None = None
    lent: str | None = None
    manager: Callable[[], Any] | None = None

    @property
    def makes_calls(self) -> bool:
        return self.calls is not None

    @property
    def takes_db(self) -> bool:
        return self.lent is not None or "db" in _roles(self.function).values()

    def serves(self, manager: Any) -> bool:
        """Whether its entries are this manager's; not once the function is gone whose calls it makes."""
        return (self.calls is None or self.calls() is not None) and (self.manager is None or self.manager() is manager)

    def bound(self, db: Any, tenant_id: Any) -> Callable[[], Any]:
        """The function with what it takes of the session, the tenant and the user of the task."""
        known = {"db": db, "tenant_id": tenant_id, "user_id": current_user()}
        parameters = inspect.signature(self.function).parameters
        told = {name: known[role] for name, role in _roles(self.function).items()}
        places = [told.pop(name) for name, one in parameters.items() if name in told and one.kind is one.POSITIONAL_ONLY]
        return functools.partial(self.function, *places, **told)

    def step(self, item: Any, db: Any) -> Any:
        """What its run is to do with what it gave: that itself, or a call with that."""
        function = None if self.calls is None else self.calls()
        if function is None:
            return item
        lent = {} if self.lent is None else {self.lent: db}
        if isinstance(item, Mapping):
            return function(**{**lent, **item})
        return function(*item, **lent) if isinstance(item, tuple | list) else function(item, **lent)


_ROLES = {"db": "db", "session": "db", "tenant_id": "tenant_id", "restaurant_id": "tenant_id", "user_id": "user_id"}


def _roles(function: Callable[..., Any]) -> dict[str, str]:
    """What a source's parameters are given: by their names, and else the first one the session and the next one the tenant."""
    parameters = [one for one in inspect.signature(function).parameters.values() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    roles = {one.name: _ROLES[one.name] for one in parameters if one.name in _ROLES}
    left = [role for role in ("db", "tenant_id") if role not in roles.values()]
    for one in parameters:
        if one.name in roles or one.kind is one.KEYWORD_ONLY or one.default is not one.empty:
            continue
        if not left:
            raise ConfigurationError(f"a source takes (db, tenant_id), or less; {function!r:.80} has a parameter {one.name!r} beside them")
        roles[one.name] = left.pop(0)
    return roles


class OfType(Protocol):
    """What is declared for a cache type."""

    @property
    def cache_type(self) -> str: ...


D = TypeVar("D", bound=OfType)


class ByType(Generic[D]):
    """What was declared, by cache type, in the order of declaration."""

    def __init__(self) -> None:
        self._by_type: dict[str, list[D]] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}: {len(found)}' for name, found in self._by_type.items())})"

    def add(self, declared: D) -> None:
        self._by_type.setdefault(declared.cache_type, []).append(declared)

    def forget(self) -> None:
        """Have nothing any more: for tests that declare their own."""
        self._by_type.clear()


class Sources(ByType[Source]):
    """Sources by cache type."""

    def of(self, cache_type: str, manager: Any) -> list[Source]:
        """Those of a type that serve this manager."""
        found = self._by_type.get(cache_type, [])
        found[:] = [source for source in found if source.calls is None or source.calls() is not None]
        return [source for source in found if source.serves(manager)]

    @property
    def types(self) -> list[str]:
        """The cache types that have a source."""
        return [name for name, found in self._by_type.items() if found]

    def all(self) -> list[Source]:
        """Each source, of whatever type."""
        return [source for found in self._by_type.values() for source in found]

    def __len__(self) -> int:
        return len(self.all())


registered = Sources()
"""The sources of modules."""


def decorator(sources: Sources, cache_type: str, tags: Iterable[str]) -> Callable[[F], F]:
    """Makes a function a source, and leaves it as it is."""
    check_type_name(cache_type)
    if isinstance(tags, str):
        raise ConfigurationError(f"tags={tags!r}: they are a list, such as tags=[{tags!r}]")
    told = tuple(tags)

    def declare(function: F) -> F:
        if not callable(function):
            raise TypeError(f"a source is a function, not {type(function).__name__}")
        _roles(function)
        name = getattr(function, "__qualname__", repr(function))
        sources.add(Source(cache_type=cache_type, function=function, name=name, tags=told))
        return function

    return declare


def warm_source(cache_type: str, /, *, tags: Iterable[str] = ()) -> Callable[[F], F]:
    """Declare a source of every warmer: an async generator of pairs, or of calls of cached functions that are not awaited.

    It is called with what it takes of the session and the tenant: `async def source(db, tenant_id)`. It yields `(key, value)`, or
    `(key, value, {"ttl": ..., "tags": [...]})` with the options of `manager.set`, or `get_menu(tenant_id)`. A plain generator runs in a
    worker thread; a function may as well return a mapping or a list of pairs, or await cached functions itself and return nothing.

    Pairs are planted: what is there and fresh stays, an invalidation that comes while the source runs begins it anew, and a key that this
    process has deleted meanwhile is left out. A `delete` or `invalidate_pattern` by another process that comes between the reading of a
    value and its storing is not seen; yield calls where that matters.

    Args:
        cache_type: The type of what it yields as pairs, and under which the report has it.
        tags: The tags that its pairs may name. With a tag, or a tenant, that was not known when it began, it is read a second time.
    """
    return decorator(registered, cache_type, tags)


def declare_calls(cached: Any, cache_type: str, warm: Any, *, lent: str | None, manager: Callable[[], Any]) -> None:
    """What `warm=` of a cached function declares: the calls of it that warmers make."""
    if not callable(warm) and (isinstance(warm, str | bytes | Mapping) or not isinstance(warm, Iterable)):
        raise ConfigurationError(f"warm={warm!r:.60}: it is a list of the calls to warm: [(1,), (2,)], or a function that gives one")
    if callable(warm):
        _roles(warm)
    name = f"warm= of {getattr(cached, '__qualname__', cached)}"
    function = warm if callable(warm) else _listed(tuple(warm))
    calls = weakref.ref(cached)
    registered.add(Source(cache_type=cache_type, function=function, name=name, calls=calls, lent=lent, manager=manager))


def _listed(calls: tuple[Any, ...]) -> Callable[[], Any]:
    async def listed() -> tuple[Any, ...]:
        return calls

    return listed
