"""Functions that invalidate: what `@invalidate_cache` makes of one.

    resolve types and owner -> run the function -> returned: invalidate, shielded from cancellation
                                                 -> cancelled: invalidate too, its outcome is unknown
                                                 -> raised: nothing, unless `on_error`

What can be wrong in a call (an unknown type, an id that is none) is said before the function runs. What can only be known afterwards, such
as `{result.category}` of a result that is None, widens the invalidation instead of losing it.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiocache_aura import cache_manager as desk
from aiocache_aura import keys
from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.context import Id, Identity, id_text, identity
from aiocache_aura.deferral import to_the_end
from aiocache_aura.desk import listed
from aiocache_aura.errors import BackendError, CacheError, ConfigurationError, MissingTenantError, MissingUserError
from aiocache_aura.generations import tag_extra
from aiocache_aura.owner import distinct, ids_among, owner_of
from aiocache_aura.resilience.threads import call_plain, is_async, settled
from aiocache_aura.settings import Settings
from aiocache_aura.signatures import CallSignature
from aiocache_aura.templates import RESULT, Template
from aiocache_aura.types import ALL, MISSING, Call, Everyone

log = logging.getLogger("aiocache_aura.decorators")

Texts = Iterable[str] | Callable[[Call], Iterable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class InvalidateOptions:
    """What the decorator was given."""

    cache_types: tuple[str, ...]
    tags: Texts = ()
    keys: Texts = ()
    tenant: Id | Everyone | None = None
    user: Id | Everyone | None = None
    keep_stale: bool = False
    on_error: bool = False
    manager: Any = None


class _Owner(NamedTuple):
    """Whose entries to clear: ids that were told (ALL: everybody's), and whether the scope counts beside them.

    `named` are those that arguments name without being told to count: a function with the same arguments has them in its keys.
    """

    told: tuple[str, ...] | Everyone
    scope_counts: bool
    named: tuple[str, ...] = ()

    def ids(self, in_scope: str | None) -> tuple[str, ...]:
        if isinstance(self.told, Everyone):
            return ()
        return distinct(self.told, in_scope if self.scope_counts else None)


class Invalidating:
    """One function after which entries are invalidated."""

    def __init__(self, function: Callable[..., Any], options: InvalidateOptions) -> None:
        self.function, self.options = function, options
        self._is_async = is_async(function)
        self.signature = CallSignature(function, owner=None, exclude=inspect.signature(function).parameters)  # nothing is in a key
        self._tags, self._keys = self._texts("tags", options.tags), self._texts("keys", options.keys)
        self._tenant, self._user = self._id("tenant", options.tenant), self._id("user", options.user)
        self._check()

    def __repr__(self) -> str:
        return f"<Invalidating {self.signature.name}: {', '.join(self.options.cache_types) or 'any type'}>"

    # Decoration

    def _texts(self, what: str, given: Texts) -> list[Template] | Callable[[Call], Iterable[str]]:
        if callable(given):
            return given
        if isinstance(given, str):
            raise ConfigurationError(f"{what}={given!r}: they are a list, such as {what}=[{given!r}]")
        return [Template(text, (*self.signature.names, RESULT), what=what) for text in given]

    def _id(self, what: str, given: Id | Everyone | None) -> Template | str | Everyone | None:
        if given is None or isinstance(given, Everyone):
            return given
        if isinstance(given, str) and "{" in given:
            return Template(given, (*self.signature.names, RESULT), what=what)
        return id_text(given, what)

    def _check(self) -> None:
        options = self.options
        for name in options.cache_types:
            if not isinstance(name, str):
                raise ConfigurationError(f"invalidate_cache({name!r:.60}): name the cache types, such as @invalidate_cache('menu')")
        if self._keys and not options.cache_types:
            raise ConfigurationError("invalidate_cache(keys=...): a key belongs to a cache type; name it first")
        if self._keys and ALL in (options.tenant, options.user):
            raise ConfigurationError("invalidate_cache(keys=..., tenant=ALL): a key is one tenant's; use tags= for everybody's")
        if not isinstance(options.keep_stale, bool):
            raise ConfigurationError(f"invalidate_cache(keep_stale={options.keep_stale!r}): it is True or False")
        if self._keys and options.keep_stale:
            raise ConfigurationError(
                "invalidate_cache(keys=..., keep_stale=True): keys are deleted; use tags= for what is to stay as stale"
            )
        if self._tags and options.user is not None and options.user is not ALL:
            raise TypeError("invalidate_cache takes user= or tags=, not both: tags belong to a type and its tenants")
        if not (options.cache_types or self._tags or options.tenant is not None or options.user is not None):
            raise ConfigurationError("invalidate_cache() says nothing to invalidate: name cache types, tags=, tenant= or user=")

    # A call

    async def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        manager = desk.cache_manager if self.options.manager is None else self.options.manager
        if issubclass(type(manager), CacheManager):
            for name in self.options.cache_types:
                manager.policy(name)
        arguments = self.signature.arguments(self.signature.bind(*args, **kwargs))
        known, after = identity.get(), self._after(manager, arguments)
        try:
            result = await (self.function(*args, **kwargs) if self._is_async else call_plain(self.function, *args, **kwargs))
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) or self.options.on_error:
                await to_the_end(after(known, MISSING))
            raise
        await to_the_end(after(known, result))
        return result

    def _after(self, manager: Any, arguments: Mapping[str, Any]) -> Callable[[Identity, Any], Any]:
        """What will be done, with all that can be known before the function runs already worked out."""
        tenant = user = None
        if not _asks_result(self._tenant) and not _asks_result(self._user):
            tenant, user = self._owners(manager, arguments)

        async def invalidate(known: Identity, result: Any) -> None:
            told = {**arguments, RESULT: result}
            try:
                of_tenant, of_user = (tenant, user) if tenant and user else self._owners(manager, told)
                tags, wanted = self._filled(self._tags, told, tag_extra), self._filled(self._keys, told, keys.user_tail)
            except Exception as error:
                level = logging.DEBUG if result is MISSING else logging.WARNING  # that a cancelled function gave no result is no news
                why = error if isinstance(error, CacheError) else type(error).__name__  # whose text may hold a value
                log.log(level, "%s: cannot tell what to invalidate (%s): everything of the types is", self.signature.name, why)
                of_tenant, of_user = tenant or _Owner(ALL, scope_counts=False), _Owner(ALL, scope_counts=False)
                tags, wanted = None, None
            if issubclass(type(manager), CacheManager):
                await self._through_manager(manager, of_tenant, of_user, known, tags, wanted)
            else:
                await self._through_stranger(manager, of_tenant, known, tags, wanted)

        return invalidate

    def _owners(self, manager: Any, told: Mapping[str, Any]) -> tuple[_Owner, _Owner]:
        settings = manager.settings if issubclass(type(manager), CacheManager) else Settings()
        tenant = _filled_id(self._tenant, told, "tenant")
        is_known = self._tenant is None and not self._is_of_any_type  # tags of any type are of any tenant, too
        if is_known:
            tenant = ids_among(told, settings.tenant_args, "tenant")
        named = ids_among(told, settings.user_args, "user") if self._keys and self._user is None else ()
        return _Owner(tenant, is_known), _Owner(_filled_id(self._user, told, "user"), scope_counts=False, named=named)

    @property
    def _is_of_any_type(self) -> bool:
        return bool(self._tags) and not self.options.cache_types

    def _filled(
        self, texts: list[Template] | Callable[[Call], Iterable[str]], told: Mapping[str, Any], check: Callable[[str], object]
    ) -> list[str] | None:
        """The texts of this call, `check`ed; None where none were asked for."""
        if not texts:
            return None
        filled = listed(texts(Call(told, told[RESULT])), "tags and keys") if callable(texts) else [text.fill(told) for text in texts]
        for text in filled:
            check(text)
        return filled

    async def _through_manager(
        self, manager: CacheManager, tenant: _Owner, user: _Owner, known: Identity, tags: list[str] | None, wanted: list[str] | None
    ) -> None:
        tenants, users = tenant.ids(known.tenant), user.ids(known.user)
        scopes: list[bytes] = []
        for name in self._types(manager, tags, bool(tenants or users)):
            told = wanted is not None and await self._delete(manager, name, tenant, user, known, wanted)
            if not told or tags is not None:
                scopes += manager.addresses.to_invalidate(name, *_narrowest(name, tenants, users, tags))
                if name is not None:
                    manager.recorder.invalidating(name)
        if scopes and tags != []:
            await manager.drop(tuple(dict.fromkeys(scopes)), f"what {self.signature.name} invalidates", soft=self.options.keep_stale)

    def _types(self, manager: CacheManager, tags: list[str] | None, is_narrowed: bool) -> Iterable[str | None]:
        """The types, or None where what narrows crosses them all."""
        if self.options.cache_types:
            return self.options.cache_types
        return [None] if tags is not None or (is_narrowed and not self._tags) else list(manager.caches)

    async def _delete(
        self, manager: CacheManager, name: str | None, tenant: _Owner, user: _Owner, known: Identity, wanted: Iterable[str]
    ) -> bool:
        """Remove entries by key; False where the type wants to know whose they are, and nobody does."""
        assert name is not None  # keys come with types
        policy = manager.policy(name)
        seen = Identity(known.tenant if tenant.scope_counts else None, None if user.told else known.user)
        owners, missing = set(), ""
        for users in (_texts(user), user.named or _texts(user)):
            try:
                owners.add(owner_of(_texts(tenant), users, seen, policy.tenant_aware, policy.user_aware, self.signature.name))
            except (MissingTenantError, MissingUserError) as error:
                missing = str(error)
        if not owners:
            log.warning("%s: cannot tell whose keys to delete (%s): everything of the type is invalidated", self.signature.name, missing)
            return False
        addresses = [manager.addresses.address(name, owner, keys.user_tail(key)) for owner in owners for key in wanted]
        try:
            await manager.caches[name].delete_at(addresses)
        except BackendError as error:
            log.error("what %s deletes was not delivered: %s", self.signature.name, error)
        return True

    async def _through_stranger(
        self, manager: Any, tenant: _Owner, known: Identity, tags: list[str] | None, wanted: list[str] | None
    ) -> None:
        """A stand-in for the manager: told as a manager would be; whatever it raises, the function's result stands."""
        tenants = tenant.ids(known.tenant)
        more = {"keep_stale": True} if self.options.keep_stale else {}
        try:
            for name in self.options.cache_types:
                if wanted:
                    await settled(manager.delete(name, *wanted))
                else:
                    await settled(manager.invalidate(name, tenant=tenants[0] if tenants else None, tags=tags or (), **more))
        except Exception as error:
            log.warning("%s went on without the cache: the manager raised %r", self.signature.name, error)


def _asks_result(told: object) -> bool:
    return isinstance(told, Template) and RESULT in told.fields


def _filled_id(told: Template | str | Everyone | None, arguments: Mapping[str, Any], what: str) -> tuple[str, ...] | Everyone:
    if isinstance(told, Everyone):
        return told
    value = told.value(arguments) if isinstance(told, Template) else told
    return () if value is None else (id_text(value, what),)


def _narrowest(
    name: str | None, tenants: tuple[str, ...], users: tuple[str, ...], tags: list[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...], list[str]]:
    """Tenants, users and tags to clear: those that narrow a type; across types nothing is of two kinds at once, so only the narrowest."""
    users = users if tags is None else ()
    return () if name is None and (tags or users) else tenants, users, tags or []


def _texts(owner: _Owner) -> tuple[str, ...]:
    return () if isinstance(owner.told, Everyone) else owner.told


def make_invalidating(function: Any, options: InvalidateOptions) -> Any:
    """The function, async whatever it was; in a class body it binds as any function does, under or over classmethod and staticmethod."""
    if isinstance(function, classmethod | staticmethod):
        return type(function)(make_invalidating(function.__func__, options))
    if not callable(function):
        raise TypeError(f"invalidate_cache takes a function, not {type(function).__name__}; write @invalidate_cache('menu')")
    inner = inspect.unwrap(function)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise TypeError(f"{inner!r:.80} is a generator or a context manager, which is not done when it returns: invalidate where it ends")
    call = Invalidating(function, options).call

    @functools.wraps(function)
    async def invalidating(*args: Any, **kwargs: Any) -> Any:
        return await call(args, kwargs)

    return invalidating
