"""The decorators: `@cache` and one for each built-in type, and `@invalidate_cache`.

@cache_menu()
async def get_menu_items(restaurant_id: int) -> list[dict]: ...

@invalidate_cache("menu")
async def update_menu_item(item_id: int, restaurant_id: int, data: dict) -> None: ...
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, ParamSpec, Protocol, TypeVar, Unpack, overload

from aiocache_aura.cached import CacheOptions
from aiocache_aura.cached_function import AsyncWrapped, CachedFunction, make_cached
from aiocache_aura.context import Id
from aiocache_aura.errors import ConfigurationError
from aiocache_aura.invalidating import InvalidateOptions, make_invalidating
from aiocache_aura.policy import DecoratorOverrides
from aiocache_aura.types import MISSING, Call, Everyone, ManagerLike

P = ParamSpec("P")
R = TypeVar("R")

KeyOption = str | Callable[[Call], str] | None
TagsOption = Iterable[str] | Callable[[Call], Iterable[str]]
Warm = Iterable[Any] | Callable[..., Any] | None


class CacheDecorator(Protocol):
    """What `cache(...)` gives: takes a function, plain or async, and gives a `CachedFunction`."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> CachedFunction[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> CachedFunction[P, R]: ...


class NamedCacheDecorator(Protocol):
    """What `cache_menu` and the others are: bare, with empty brackets, or with the options of `cache`."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> CachedFunction[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> CachedFunction[P, R]: ...
    @overload
    def __call__(
        self,
        *,
        manager: ManagerLike | None = None,
        key: KeyOption = None,
        tags: TagsOption = (),
        exclude: Iterable[str] = (),
        provide: Mapping[str, Callable[[], Any]] | None = None,
        secret: Iterable[str] = (),
        self_key: Callable[[Any], object] | None = None,
        name: str | None = None,
        version: object = None,
        returns: Any = MISSING,
        warm: Warm = None,
        **policy: Unpack[DecoratorOverrides],
    ) -> CacheDecorator: ...


@overload
def cache(fn: Callable[P, Coroutine[Any, Any, R]], /) -> CachedFunction[P, R]: ...
@overload
def cache(fn: Callable[P, R], /) -> CachedFunction[P, R]: ...
@overload
def cache(
    *,
    cache_type: str = "api",
    manager: ManagerLike | None = None,
    key: KeyOption = None,
    tags: TagsOption = (),
    exclude: Iterable[str] = (),
    provide: Mapping[str, Callable[[], Any]] | None = None,
    secret: Iterable[str] = (),
    self_key: Callable[[Any], object] | None = None,
    name: str | None = None,
    version: object = None,
    returns: Any = MISSING,
    warm: Warm = None,
    **policy: Unpack[DecoratorOverrides],
) -> CacheDecorator: ...
def cache(fn: Any = None, /, **options: Any) -> Any:
    """Keep what a function returns, by its arguments, for the life that its cache type says.

    However many callers ask for a missing value at once, the function runs once. A plain function runs in a worker thread and is awaited
    like any other. Generators and context managers are a TypeError.

    Args:
        cache_type: A built-in type or one that the manager registered; "api" if none is said.
        manager: Instead of `aiocache_aura.cache_manager.cache_manager`, which is looked up at each call.
        key: A template such as "customers:{restaurant_id}:{page}", or a function of one `Call`. The entry is then exactly
            `manager.get(cache_type, key)`. Every parameter must be in the template, in `exclude`, or say whose the entry is.
        tags: Templates, or a function of one `Call`, to invalidate by.
        exclude: Parameters that make no difference, such as a session. They belong to their caller: its load ends with it.
        provide: Functions that make what each load uses instead of the caller's, by parameter: `{"db": session_factory}`. What they give is
            entered and left if it is a context manager, run to its `yield` if it is a generator, awaited if it has to be. Callers need not
            pass such a parameter, which is not in the key, and loads may outlive them.
        secret: Parameters that are hashed into the key.
        self_key: What stands for `self` in the key of a method; its class always is in it.
        name: Instead of the module and name of the function, in its keys; `version` is added to it.
        returns: The type to store the result as, instead of the return annotation; the result is converted to it for every caller.
        warm: The calls that warmers make of it: a list such as `[(1,), {"restaurant_id": 2}]`, or a function or generator, async or not, of
            `(db, tenant_id)` that gives them. A parameter in `exclude` that they leave out is given the warmer's session. Not of methods.
        policy: Fields of `CachePolicy`, such as `ttl="5m"`, `stale="1h"`, `tenant_aware=True`. `ttl` may be a function of the result.
    """
    if isinstance(fn, str):
        raise ConfigurationError(f"cache({fn!r}): a cache type is given as cache(cache_type={fn!r})")
    return _decorator("cache", None, fn, options)


def _named(cache_type: str) -> NamedCacheDecorator:
    name = f"cache_{cache_type}"

    def decorate(fn: Any = None, /, **options: Any) -> Any:
        if "cache_type" in options:
            raise TypeError(f"{name}() says the cache type already; use cache(cache_type=...) for another")
        return _decorator(name, cache_type, fn, options)

    decorate.__name__ = decorate.__qualname__ = name
    decorate.__doc__ = f"`cache(cache_type={cache_type!r}, ...)`; `@{name}` works bare, too."
    return decorate


cache_menu = _named("menu")
cache_permissions = _named("permissions")
cache_settings = _named("settings")
cache_analytics = _named("analytics")
cache_api = _named("api")
cache_search = _named("search")
cache_reports = _named("reports")
cache_static = _named("static")


_OWN = ("manager", "key", "tags", "exclude", "provide", "secret", "self_key", "name", "version", "returns", "warm")


def _decorator(name: str, cache_type: str | None, fn: Any, options: dict[str, Any]) -> Any:
    chosen = cache_type or options.pop("cache_type", "api")
    if not isinstance(chosen, str):
        raise ConfigurationError(f"{name}(cache_type={chosen!r}): a cache type is named by text such as 'menu'")
    own = {option: options.pop(option) for option in _OWN if option in options}
    for names in ("exclude", "secret", "tags"):
        if names in own and not isinstance(own[names], str) and not callable(own[names]):
            own[names] = tuple(own[names])  # an iterator would be empty for the next way in which a method is called
    decided = CacheOptions(cache_type=chosen, policy=options, **own)
    return (lambda function: make_cached(function, decided)) if fn is None else make_cached(fn, decided)


class InvalidateDecorator(Protocol):
    """What `invalidate_cache(...)` gives."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncWrapped[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> AsyncWrapped[P, R]: ...


def invalidate_cache(
    *cache_types: str,
    tags: TagsOption = (),
    keys: Iterable[str] | Callable[[Call], Iterable[str]] = (),
    tenant: Id | Everyone | str | None = None,
    user: Id | Everyone | str | None = None,
    keep_stale: bool = False,
    on_error: bool = False,
    manager: ManagerLike | None = None,
) -> InvalidateDecorator:
    """Invalidate after the function has succeeded; nothing if it raised.

    With a tenant known, from an argument or the scope, it clears that tenant's entries of these types; without one, the types. `tags` and
    `keys` narrow that. A function that is cancelled half-way invalidates too, since nobody knows how far it came. Once the function has
    returned, cancelling the caller does not stop the invalidation.

    Args:
        cache_types: The types to clear. None at all, with `tags`: these tags of every type and tenant.
        tags: Only entries with one of these tags; templates over the arguments and `{result...}`, or a function of one `Call`. Where they
            cannot be filled, all that they would have narrowed is cleared.
        keys: Only these keys, as `manager.delete` takes them, with and without a user that an argument names; templates likewise.
        tenant: Instead of the one known: `ALL` for every tenant, an id, or a template such as "{to_id}".
        user: Narrow to a user, by an id or a template such as "{user_id}"; by itself a user is not narrowed to.
        keep_stale: Leave the entries as stale, for readers whose policy has `stale`; not with `keys`, which are deleted.
        on_error: Also when the function raised.
        manager: Instead of `aiocache_aura.cache_manager.cache_manager`, which is looked up at each call.
    """
    options = InvalidateOptions(
        cache_types=cache_types,
        tags=tags,
        keys=keys,
        tenant=tenant,
        user=user,
        keep_stale=keep_stale,
        on_error=on_error,
        manager=manager,
    )
    return lambda function: make_invalidating(function, options)  # type: ignore[return-value,unused-ignore]


__all__ = [
    "cache",
    "cache_analytics",
    "cache_api",
    "cache_menu",
    "cache_permissions",
    "cache_reports",
    "cache_search",
    "cache_settings",
    "cache_static",
    "invalidate_cache",
]
