"""The decorated function as its callers see it, and as type checkers do.

Outside a class it is a real `async def` function that carries these verbs, since frameworks ask whether a route is one. In a class body it
is a descriptor: through an instance it is bound, through the class its first argument is passed. The order of the overloads matters, and
what dispatches them is the instance alone: mypy does not check an overload's `self` against a ParamSpec.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, Unpack, overload

from aiocache_aura.cached import Cached, CacheOptions, check_cacheable
from aiocache_aura.errors import ConfigurationError
from aiocache_aura.sources import declare_calls
from aiocache_aura.types import CacheEntry, CacheInfo, CacheParameters, CallOptions, Explanation
from aiocache_aura.using import using

P = ParamSpec("P")
P2 = ParamSpec("P2")
R = TypeVar("R")
S = TypeVar("S")
B = TypeVar("B")


class _Family:
    """The ways in which one function can be called: each has its own parameters, all share its name."""

    __slots__ = ("_dresses", "_options", "_ways", "first", "function")

    def __init__(self, function: Callable[..., Any], options: CacheOptions, *, in_class: bool) -> None:
        self.function, self._options = function, options
        names = list(inspect.signature(function).parameters)
        self.first = names[0] if in_class and names and names[0] in ("self", "cls") else None
        self._ways: dict[str | None, Cached] = {}
        self._dresses: dict[str | None, dict[str, Any]] = {}
        self.way(self.first)

    def way(self, owner: str | None) -> Cached:
        """As a plain function (None), with an instance before the arguments ("self"), or a class ("cls")."""
        if owner not in self._ways:
            self._ways[owner] = Cached(self.function, self._options, owner=owner)
        return self._ways[owner]

    def bound(self, cls: type[B], owner: str, first: tuple[Any, ...]) -> B:
        """What an attribute of an instance or class is: made at each access, so nothing is worked out here twice."""
        if owner not in self._dresses:
            self._dresses[owner] = _dress(self.way(owner))
        bound = cls.__new__(cls)
        vars(bound).update(self._dresses[owner], _first=first)
        if first:
            vars(bound)["__signature__"] = self.way(owner).signature.of_bound
        return bound


class _Plain(Generic[P, R]):
    __wrapped__: Callable[..., Any]
    __name__: str
    __qualname__: str
    _core: Cached
    _first: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        """As of bound methods, which are made at each access, too: the same function of the same object."""
        return isinstance(other, _Plain) and type(self) is type(other) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """Itself, as of any function."""
        return self

    def _identity(self) -> tuple[int, ...]:
        return id(self._core), *map(id, self._first)

    def __repr__(self) -> str:
        return f"<cached {self._core.signature.name}>"

    def cache_info(self) -> CacheInfo:
        """Hits and misses of this function in this process."""
        return self._core.cache_info()

    async def cache_clear(self) -> bool:
        """Invalidate every entry that this function made; whether it was delivered. To be awaited, unlike functools' own."""
        return await self._core.cache_clear()

    def cache_parameters(self) -> CacheParameters:
        """How this function is cached."""
        return self._core.cache_parameters()


def _dress(core: Cached) -> dict[str, Any]:
    """The attributes that a wrapper of this function has."""
    function = core.function
    named = {name: getattr(function, name) for name in functools.WRAPPER_ASSIGNMENTS if hasattr(function, name)}
    return {**getattr(function, "__dict__", {}), **named, "__wrapped__": function, "_core": core, "_first": ()}


class BoundCached(_Plain[P, R]):
    """A cached function as a call site sees it: without self."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._core.call((*self._first, *args), kwargs)  # type: ignore[no-any-return]

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Remove the entry of this call; whether it was delivered."""
        return await self._core.invalidate((*self._first, *args), kwargs)

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Load anew and store, whatever is stored now."""
        return await self._core.refresh((*self._first, *args), kwargs)  # type: ignore[no-any-return]

    async def peek(self, *args: P.args, **kwargs: P.kwargs) -> R | None:
        """What is stored for this call, or None; never loads."""
        return await self._core.peek((*self._first, *args), kwargs)  # type: ignore[no-any-return]

    async def exists(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Whether this call would be a hit."""
        return await self._core.exists((*self._first, *args), kwargs)

    async def set_value(self, value: R, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Store a value for this call; whether it was written."""
        return await self._core.set_value(value, (*self._first, *args), kwargs)

    async def entry(self, *args: P.args, **kwargs: P.kwargs) -> CacheEntry[R] | None:
        """What is stored for this call, fresh or stale, with its age; None if a read would find nothing. A stored None is an entry."""
        return await self._core.entry((*self._first, *args), kwargs)

    async def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        """What is stored for this call, and why it would be a hit, stale or a miss."""
        return await self._core.explain((*self._first, *args), kwargs)

    def using(self, **options: Unpack[CallOptions]) -> BoundCached[P, R]:
        """This function, called under other terms: `await fn.using(fresh=True)(1)`. Its verbs are under these terms, too.

        Args:
            fresh: Nothing stale, and nothing from a load that began before the call.
            max_stale: At most so long past its life, where the policy's `stale` is longer.
            refresh: Load anew and store, whatever is stored.
            l1: False: past the in-process layer, which this version has over `memory://` only, where it is the store.
            ttl: The life of what is loaded or set.
        """
        return _like(BoundCached, self, using(self._core, options))

    def cache_key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key in the store of this call, for this task's tenant and user."""
        return self._core.cache_key((*self._first, *args), kwargs)


class ClassAccess(_Plain[P, R]):
    """`Class.f`: of a method (self is passed), a class method (cls is not) or a static method; mypy cannot tell which, so either passes."""

    @overload
    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def __call__(self: ClassAccess[Concatenate[Any, P2], R], *args: P2.args, **kwargs: P2.kwargs) -> R: ...
    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return await self._core.call((*self._first, *args), kwargs)

    @overload
    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool: ...
    @overload
    async def invalidate(self: ClassAccess[Concatenate[Any, P2], R], *args: P2.args, **kwargs: P2.kwargs) -> bool: ...
    async def invalidate(self, *args: Any, **kwargs: Any) -> Any:
        return await self._core.invalidate((*self._first, *args), kwargs)

    @overload
    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def refresh(self: ClassAccess[Concatenate[Any, P2], R], *args: P2.args, **kwargs: P2.kwargs) -> R: ...
    async def refresh(self, *args: Any, **kwargs: Any) -> Any:
        return await self._core.refresh((*self._first, *args), kwargs)

    @overload
    async def peek(self, *args: P.args, **kwargs: P.kwargs) -> R | None: ...
    @overload
    async def peek(self: ClassAccess[Concatenate[Any, P2], R], *args: P2.args, **kwargs: P2.kwargs) -> R | None: ...
    async def peek(self, *args: Any, **kwargs: Any) -> Any:
        return await self._core.peek((*self._first, *args), kwargs)

    @overload
    async def exists(self, *args: P.args, **kwargs: P.kwargs) -> bool: ...
    @overload
    async def exists(self: ClassAccess[Concatenate[Any, P2], R], *args: P2.args, **kwargs: P2.kwargs) -> bool: ...
    async def exists(self, *args: Any, **kwargs: Any) -> Any:
        return await self._core.exists((*self._first, *args), kwargs)

    @overload
    async def set_value(self, value: R, /, *args: P.args, **kwargs: P.kwargs) -> bool: ...
    @overload
    async def set_value(self: ClassAccess[Concatenate[Any, P2], R], value: R, /, *args: P2.args, **kwargs: P2.kwargs) -> bool: ...
    async def set_value(self, value: R, /, *args: Any, **kwargs: Any) -> Any:
        return await self._core.set_value(value, (*self._first, *args), kwargs)

    @overload
    async def entry(self, *args: P.args, **kwargs: P.kwargs) -> CacheEntry[R] | None: ...
    @overload
    async def entry(self: ClassAccess[Concatenate[Any, P2], R], *args: P2.args, **kwargs: P2.kwargs) -> CacheEntry[R] | None: ...
    async def entry(self, *args: Any, **kwargs: Any) -> Any:
        return await self._core.entry((*self._first, *args), kwargs)

    @overload
    async def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explanation: ...
    @overload
    async def explain(self: ClassAccess[Concatenate[Any, P2], R], *args: P2.args, **kwargs: P2.kwargs) -> Explanation: ...
    async def explain(self, *args: Any, **kwargs: Any) -> Any:
        return await self._core.explain((*self._first, *args), kwargs)

    def using(self, **options: Unpack[CallOptions]) -> ClassAccess[P, R]:
        """As `BoundCached.using`."""
        return _like(ClassAccess, self, using(self._core, options))

    @overload
    def cache_key(self, *args: P.args, **kwargs: P.kwargs) -> str: ...
    @overload
    def cache_key(self: ClassAccess[Concatenate[Any, P2], R], *args: P2.args, **kwargs: P2.kwargs) -> str: ...
    def cache_key(self, *args: Any, **kwargs: Any) -> Any:
        return self._core.cache_key((*self._first, *args), kwargs)


def _like(cls: type[B], plain: _Plain[Any, Any], core: Cached) -> B:
    """As the plain one, with another core."""
    made = cls.__new__(cls)
    vars(made).update(vars(plain), _core=core)
    for name in ("_family", "_kind"):
        vars(made).pop(name, None)
    return made


def _say_async(cls: type[Any]) -> None:
    """Schedulers and others ask `iscoroutinefunction` of a method before they await it."""
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(cls)
    else:
        cls._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]  # noqa: SLF001


_say_async(BoundCached)
_say_async(ClassAccess)


class CachedFunction(BoundCached[P, R]):
    """The decorated function; in a class body a descriptor."""

    def __init__(self, family: _Family, kind: str | None) -> None:
        """`kind` is "cls" or "static" where the decorator stands over @classmethod or @staticmethod."""
        self._family, self._kind = family, kind
        vars(self).update(_dress(family.way("cls" if kind == "cls" else None if kind == "static" else family.first)))

    @overload
    def __get__(self, instance: None, owner: type[Any], /) -> ClassAccess[P, R]: ...
    @overload
    def __get__(self: CachedFunction[Concatenate[S, P2], R], instance: S, owner: type[Any] | None = None, /) -> BoundCached[P2, R]: ...
    @overload
    def __get__(
        self: CachedFunction[Concatenate[type[S], P2], R], instance: S, owner: type[Any] | None = None, /
    ) -> BoundCached[P2, R]: ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None, /) -> Self: ...
    def __get__(self, instance: Any, owner: type[Any] | None = None, /) -> Any:
        if self._kind == "static":
            return self
        if self._kind == "cls":
            return self._family.bound(BoundCached, "cls", (owner if owner is not None else type(instance),))
        if instance is None:
            return self._family.bound(ClassAccess, "self", ())
        if isinstance(instance, type) and self._family.first == "cls":  # @classmethod stands over the decorator and binds the class
            return self._family.bound(BoundCached, "cls", (instance,))
        return self._family.bound(BoundCached, "self", (instance,))


def make_cached(function: Any, options: CacheOptions) -> Any:
    """The decorated form of a function, method, class method or static method."""
    kind = "cls" if isinstance(function, classmethod) else "static" if isinstance(function, staticmethod) else None
    inner: Any = function.__func__ if isinstance(function, classmethod | staticmethod) else function
    check_cacheable(inner)
    if kind or (is_in_class_body(inner) and not inspect.ismethod(inner)):
        if options.warm is not None:
            raise ConfigurationError(
                f"warm= of {inner.__qualname__}: it is for functions outside of classes; the calls of a method need its object: declare "
                f"them with @warm_source({options.cache_type!r})"
            )
        return CachedFunction(_Family(inner, options, in_class=True), kind)
    core = Cached(inner, options, owner=None)
    made = _as_function(core)
    if options.warm is not None:
        declare_calls(made, options.cache_type, options.warm, lent=_lent(core), manager=partial(_manager_of, weakref.ref(core)))
    return made


def _lent(core: Cached) -> str | None:
    """The parameter that a warmer gives its session to: the only one that is left out of the key and has to be given."""
    theirs = core.signature.excluded - core.signature.provided
    parameters = inspect.signature(core.function).parameters
    wanted = [name for name in theirs if parameters[name].default is inspect.Parameter.empty]
    return wanted[0] if len(wanted) == 1 else None


def _manager_of(core: weakref.ref[Cached]) -> Any:
    alive = core()
    return None if alive is None else alive.manager


_VERBS = (
    "invalidate",
    "refresh",
    "peek",
    "entry",
    "exists",
    "explain",
    "set_value",
    "using",
    "cache_key",
    "cache_info",
    "cache_clear",
    "cache_parameters",
)


def is_in_class_body(function: object) -> bool:
    parent = getattr(function, "__qualname__", "").rpartition(".")[0]
    return bool(parent) and not parent.endswith("<locals>")


def _as_function(core: Cached) -> Any:
    call = core.call

    @functools.wraps(core.function)
    async def cached(*args: Any, **kwargs: Any) -> Any:
        return await call(args, kwargs)

    verbs: BoundCached[Any, Any] = BoundCached.__new__(BoundCached)
    vars(verbs).update(_dress(core))
    for name in _VERBS:
        setattr(cached, name, getattr(verbs, name))
    return cached


class AsyncWrapped(Generic[P, R]):
    """A function that invalidates, as type checkers see it: awaited, and bound like a method. At run time it is an async function."""

    __wrapped__: Callable[..., Any]
    __name__: str
    __qualname__: str

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        raise TypeError("only type checkers see this class")

    @overload
    def __get__(self, instance: None, owner: type[Any], /) -> AsyncByClass[P, R]: ...
    @overload
    def __get__(
        self: AsyncWrapped[Concatenate[S, P2], R], instance: S, owner: type[Any] | None = None, /
    ) -> Callable[P2, Coroutine[Any, Any, R]]: ...
    @overload
    def __get__(
        self: AsyncWrapped[Concatenate[type[S], P2], R], instance: S, owner: type[Any] | None = None, /
    ) -> Callable[P2, Coroutine[Any, Any, R]]: ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None, /) -> Self: ...
    def __get__(self, instance: Any, owner: type[Any] | None = None, /) -> Any:
        raise TypeError("only type checkers see this class")


class AsyncByClass(Generic[P, R]):
    """`Class.f` of a function that invalidates, as type checkers see it: with and without a first argument, as `ClassAccess`."""

    __wrapped__: Callable[..., Any]
    __name__: str
    __qualname__: str

    @overload
    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def __call__(self: AsyncByClass[Concatenate[Any, P2], R], *args: P2.args, **kwargs: P2.kwargs) -> R: ...
    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("only type checkers see this class")
