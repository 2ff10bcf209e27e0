"""A cache type as one object: its policy, its counters, and the key verbs, which the manager passes on to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar, Unpack, overload

from aiocache_aura import keys
from aiocache_aura.codecs.serializers import serializer_for
from aiocache_aura.context import Id, Identity, id_text, identity
from aiocache_aura.desk import Desk, Who, explained, listed, narrowed, refuse_awaitable, unshared, unwrapped, warming_run
from aiocache_aura.errors import BackendError
from aiocache_aura.generations import Address, tag_extra
from aiocache_aura.owner import owner_of
from aiocache_aura.policy import CachePolicy, PolicyOverrides, seconds
from aiocache_aura.renewing import Engine
from aiocache_aura.resilience.threads import call_any
from aiocache_aura.terms import Terms
from aiocache_aura.types import MISSING, TTL, CacheEntry, Explanation

T = TypeVar("T")
D = TypeVar("D")
R = TypeVar("R")

_PLANS = 256


class Plan(NamedTuple):
    """A policy, with the engine's terms worked out from it."""

    policy: CachePolicy
    terms: Terms


class Cache:
    """The entries of one cache type.

    The key verbs work for the tenant and user of the task (`tenant_scope`, `user_scope`), or for those given as `tenant=` and `user=`;
    options of the policy may be overridden by name. A store that fails is counted, logged, and then as if nothing were cached: reads give
    their default, writes False; with `strict=True` on the manager they raise BackendError.
    """

    def __init__(self, desk: Desk, name: str, policy: CachePolicy) -> None:
        self._desk, self.name, self._policy = desk, name, policy
        self.counts = desk.recorder.counts(name)
        self._plans: dict[object, Plan] = {}

    def __repr__(self) -> str:
        return f"Cache({self.name!r}, {self.counts!r})"

    @property
    def policy(self) -> CachePolicy:
        """How entries of this type live, where nothing else is said."""
        return self._policy

    @policy.setter
    def policy(self, policy: CachePolicy) -> None:
        self._policy = policy
        self._plans.clear()
        self._desk.restamp()

    # Reading

    @overload
    async def get(self, key: str, *, tenant: Id | None = None, user: Id | None = None) -> Any: ...
    @overload
    async def get(self, key: str, *, default: D, tenant: Id | None = None, user: Id | None = None) -> Any | D: ...
    @overload
    async def get(self, key: str, *, as_type: type[T], tenant: Id | None = None, user: Id | None = None) -> T | None: ...
    @overload
    async def get(self, key: str, *, as_type: type[T], default: D, tenant: Id | None = None, user: Id | None = None) -> T | D: ...
    async def get(self, key: str, *, default: Any = None, as_type: Any = None, tenant: Id | None = None, user: Id | None = None) -> Any:
        """The stored value, or `default`.

        `as_type` says what to give it back as, which values of your own classes need; an entry of another type is a miss.
        """
        plan = self._plan(as_type, {})
        address = self._address(plan, key, tenant, user)
        if self._is_past:
            return default
        value = await self._ask("get", MISSING, lambda engine: engine.get(address, plan.terms))
        return default if value is MISSING else value

    @overload
    async def mget(self, keys: Iterable[str], *, tenant: Id | None = None, user: Id | None = None) -> list[Any]: ...
    @overload
    async def mget(self, keys: Iterable[str], *, default: D, tenant: Id | None = None, user: Id | None = None) -> list[Any | D]: ...
    @overload
    async def mget(self, keys: Iterable[str], *, as_type: type[T], tenant: Id | None = None, user: Id | None = None) -> list[T | None]: ...
    @overload
    async def mget(
        self, keys: Iterable[str], *, as_type: type[T], default: D, tenant: Id | None = None, user: Id | None = None
    ) -> list[T | D]: ...
    async def mget(
        self, keys: Iterable[str], *, default: Any = None, as_type: Any = None, tenant: Id | None = None, user: Id | None = None
    ) -> list[Any]:
        """The stored values in the order of the keys, `default` for those that are not there; one round trip."""
        values = await self._many(listed(keys), as_type, tenant, user)
        return [default if value is MISSING else value for value in values]

    @overload
    async def get_many(self, keys: Iterable[str], *, tenant: Id | None = None, user: Id | None = None) -> dict[str, Any]: ...
    @overload
    async def get_many(
        self, keys: Iterable[str], *, as_type: type[T], tenant: Id | None = None, user: Id | None = None
    ) -> dict[str, T]: ...
    async def get_many(
        self, keys: Iterable[str], *, as_type: Any = None, tenant: Id | None = None, user: Id | None = None
    ) -> dict[str, Any]:
        """The stored values by key, without those that are not there; one round trip."""
        wanted = list(dict.fromkeys(listed(keys)))
        values = await self._many(wanted, as_type, tenant, user)
        return {key: value for key, value in zip(wanted, values, strict=True) if value is not MISSING}

    async def _many(self, wanted: list[str], as_type: Any, tenant: Id | None, user: Id | None) -> list[Any]:
        plan = self._plan(as_type, {})
        addresses = [self._address(plan, key, tenant, user) for key in wanted]
        missing: list[Any] = [MISSING] * len(wanted)
        if self._is_past or not wanted:
            return missing
        return await self._ask("get", missing, lambda engine: engine.get_many(addresses, plan.terms))

    @overload
    async def entry(self, key: str, *, tenant: Id | None = None, user: Id | None = None) -> CacheEntry[Any] | None: ...
    @overload
    async def entry(self, key: str, *, as_type: type[T], tenant: Id | None = None, user: Id | None = None) -> CacheEntry[T] | None: ...
    async def entry(self, key: str, *, as_type: Any = None, tenant: Id | None = None, user: Id | None = None) -> CacheEntry[Any] | None:
        """What is stored, fresh or stale, with its age; None if a read would find nothing. A stored None is an entry."""
        plan = self._plan(as_type, {})
        address = self._address(plan, key, tenant, user)
        if self._is_past:
            return None
        return await self._ask("entry", None, lambda engine: engine.entry(address, plan.terms))

    async def exists(self, key: str, *, tenant: Id | None = None, user: Id | None = None) -> bool:
        """Whether a read would find it."""
        return await self.ttl(key, tenant=tenant, user=user) is not None

    async def ttl(self, key: str, *, tenant: Id | None = None, user: Id | None = None) -> float | None:
        """Seconds that the entry has left, `math.inf` if it is FOREVER; None if a read would not find it."""
        plan = self._plan(None, {})
        address = self._address(plan, key, tenant, user)
        if self._is_past:
            return None
        return await self._ask("ttl", None, lambda engine: engine.ttl(address, plan.terms))

    # Reading, or loading

    @overload
    async def get_or_load(
        self,
        key: str,
        loader: Callable[[], Awaitable[T]],
        *,
        tags: Iterable[str] = (),
        as_type: type[T] | None = None,
        tenant: Id | None = None,
        user: Id | None = None,
        **policy: Unpack[PolicyOverrides],
    ) -> T: ...
    @overload
    async def get_or_load(
        self,
        key: str,
        loader: Callable[[], T],
        *,
        tags: Iterable[str] = (),
        as_type: type[T] | None = None,
        tenant: Id | None = None,
        user: Id | None = None,
        **policy: Unpack[PolicyOverrides],
    ) -> T: ...
    @overload
    async def get_or_load(
        self,
        key: str,
        loader: T,
        *,
        tags: Iterable[str] = (),
        as_type: type[T] | None = None,
        tenant: Id | None = None,
        user: Id | None = None,
        **policy: Unpack[PolicyOverrides],
    ) -> T: ...
    async def get_or_load(
        self,
        key: str,
        loader: Any,
        *,
        tags: Iterable[str] = (),
        as_type: Any = None,
        tenant: Id | None = None,
        user: Id | None = None,
        **policy: Unpack[PolicyOverrides],
    ) -> Any:
        """The stored value, or what the loader gives, which is then stored; one load for all who wait for it.

        The loader is an async function, a plain one (run in a worker thread), or the value itself. Its errors are raised, and not stored
        unless the policy says so; what it returns as `Uncached(value)` is not stored.
        """
        refuse_awaitable(loader)
        plan = self._plan(as_type, policy)
        address = self._address(plan, key, tenant, user, tags)

        async def load() -> Any:
            return await call_any(loader) if callable(loader) else loader

        engine = await self._engine_or_none("get_or_load")
        if engine is None:
            return unwrapped(await unshared(load, plan.policy.fallback))
        run = warming_run()
        if run is not None:
            return await run.call(engine, address, plan.terms, load)
        return await engine.get_or_load(address, plan.terms, load)

    async def get_or_load_many(
        self,
        keys: Iterable[str],
        loader: Callable[[list[str]], Awaitable[Mapping[str, T]]] | Callable[[list[str]], Mapping[str, T]],
        *,
        tags: Iterable[str] = (),
        as_type: type[T] | None = None,
        tenant: Id | None = None,
        user: Id | None = None,
        **policy: Unpack[PolicyOverrides],
    ) -> dict[str, T]:
        """Values by key: the stored ones, and for all others what one call of the loader gives.

        The loader is given the keys that are missing and that nobody loads yet. A key that it leaves out is absent.
        """
        wanted, tags = list(dict.fromkeys(listed(keys))), listed(tags, "tags")
        plan = self._plan(as_type, policy)
        addresses = [self._address(plan, key, tenant, user, tags) for key in wanted]
        if not wanted:
            return {}

        async def load(positions: list[int]) -> dict[int, Any]:
            found = await call_any(loader, [wanted[n] for n in positions])
            if not isinstance(found, Mapping):
                raise TypeError(f"the loader of get_or_load_many returns a mapping of keys to values, not {type(found).__name__}")
            return {n: found[wanted[n]] for n in positions if wanted[n] in found}

        engine = await self._engine_or_none("get_or_load_many")
        if engine is None:
            loaded = await load(list(range(len(wanted))))
            return {wanted[n]: unwrapped(value) for n, value in loaded.items()}
        run = warming_run()
        ask = engine.get_or_load_many if run is None else partial(run.many, engine)
        values = await ask(addresses, plan.terms, load)
        return {key: value for key, value in zip(wanted, values, strict=True) if value is not MISSING}

    async def _engine_or_none(self, what: str) -> Engine | None:
        """The engine, or None where the caller loads for itself alone: disabled, bypassed, or not to be had in time."""
        if self._is_past:
            return None
        try:
            return await self.engine()
        except BackendError as error:
            self._note(error, what, may_raise=False)
            return None

    # Writing

    async def set(
        self,
        key: str,
        value: object,
        *,
        tags: Iterable[str] = (),
        as_type: Any = None,
        tenant: Id | None = None,
        user: Id | None = None,
        **policy: Unpack[PolicyOverrides],
    ) -> bool:
        """Store a value over whatever is there; whether the store took it.

        Loads of the key that are under way will not overwrite it. `ttl=0` removes what was there. Raises SerializationError or
        ValueTooLargeError for a value that cannot be stored.
        """
        return await self.mset({key: value}, tags=tags, as_type=as_type, tenant=tenant, user=user, **policy)

    async def mset(
        self,
        items: Mapping[str, object],
        *,
        tags: Iterable[str] = (),
        as_type: Any = None,
        tenant: Id | None = None,
        user: Id | None = None,
        **policy: Unpack[PolicyOverrides],
    ) -> bool:
        """`set` for many, in one go."""
        plan = self._plan(as_type, policy)
        tags = listed(tags, "tags")
        addressed = [(self._address(plan, key, tenant, user, tags), value) for key, value in items.items()]
        if self._desk.is_off:
            return False
        return await self._ask("set", False, lambda engine: engine.set(addressed, plan.terms)) if addressed else True

    async def add(
        self,
        key: str,
        value: object,
        *,
        tags: Iterable[str] = (),
        as_type: Any = None,
        tenant: Id | None = None,
        user: Id | None = None,
        **policy: Unpack[PolicyOverrides],
    ) -> bool:
        """Store a value only if a read would find nothing; whether it was stored."""
        plan = self._plan(as_type, policy)
        address = self._address(plan, key, tenant, user, tags)
        if self._desk.is_off:
            return False
        return await self._ask("add", False, lambda engine: engine.add(address, value, plan.terms))

    async def touch(self, key: str, ttl: TTL | None = None, *, tenant: Id | None = None, user: Id | None = None) -> bool:
        """Give an entry a new life from now, the policy's if none is said; False if a read would not find it."""
        plan = self._plan(None, {})
        address = self._address(plan, key, tenant, user)
        life = plan.terms.life if ttl is None else seconds(ttl)
        if self._desk.is_off:
            return False
        return await self._ask("touch", False, lambda engine: engine.touch(address, life, plan.terms))

    async def delete(self, *keys: str, tenant: Id | None = None, user: Id | None = None) -> int:
        """Remove entries; how many were stored.

        Loads of these keys that are under way will not bring them back. Goes out inside `disabled()`, too; inside `deferred()` at its end.
        """
        plan = self._plan(None, {})
        return await self.delete_at([self._address(plan, key, tenant, user) for key in keys])

    async def delete_at(self, addresses: Sequence[Address]) -> int:
        """`delete`, for entries whose owner is already worked out."""
        if not addresses or self._desk.put_off(lambda held: held.delete(self._delete, addresses)):
            return 0
        return await self._delete(addresses)

    async def _delete(self, addresses: Sequence[Address]) -> int:
        terms = self._plan(None, {}).terms
        return await self._ask("delete", 0, lambda engine: engine.delete(addresses, terms))

    # Invalidating

    async def invalidate(self, *, tenant: Who = None, user: Who = None, tags: Iterable[str] = (), keep_stale: bool = False) -> bool:
        """Void the type's entries, or those of a tenant, a user, or with one of these tags; whether it was delivered.

        The cost does not depend on how many there are. It clears what it is told: the scope of the task does not count, and None and ALL do
        not narrow. Conditions narrow one another; `user` with `tags` is a TypeError. Never raises for the store.

        `keep_stale=True` leaves them as stale: readers whose policy has `stale` are given them while they are refreshed, others miss.
        """
        tenants, users, tags = narrowed(tenant, "tenant"), narrowed(user, "user"), listed(tags, "tags")
        if users and tags:
            raise TypeError("invalidate takes user= or tags=, not both: tags belong to a type and its tenants")
        scopes = self._desk.addresses.to_invalidate(self.name, tenants, users, tags)
        self._desk.recorder.invalidating(self.name)
        return await self._desk.drop(scopes, f"invalidate of cache type {self.name!r}", soft=keep_stale)

    async def invalidate_pattern(self, pattern: str, *, tenant: Who = None, user: Who = None) -> int:
        """Remove the entries whose key matches a glob such as "item:*"; how many there were.

        The store is searched in bounded batches: the cost grows with all its keys, so prefer tags. What is matched is the key as it was
        given to `set` (of a function: its name and arguments), for the tenant and user given, or all.
        """
        if not isinstance(pattern, str):
            raise TypeError(f"a pattern is text such as 'item:*', not {type(pattern).__name__}")
        (of_tenant,), (of_user,) = narrowed(tenant, "tenant") or (None,), narrowed(user, "user") or (None,)
        self._desk.recorder.invalidating(self.name)
        if self._desk.put_off(lambda held: held.call(self._purge, pattern, of_tenant, of_user)):
            return 0
        return await self._purge(pattern, of_tenant, of_user)

    async def _purge(self, pattern: str, of_tenant: str | None, of_user: str | None) -> int:
        try:
            return await (await self.engine()).purge(self.name, pattern, of_tenant, of_user)
        except BackendError as error:
            self._note(error, "invalidate_pattern", may_raise=False)
            return 0

    async def clear_namespace(self, *, reclaim: bool = False) -> bool:
        """Void every entry of this type, and nobody else's, at a cost that does not depend on their number; whether it was delivered.

        `reclaim=True` also frees their memory, in a task behind the caller's back that the manager's `aclose` waits for; else they go as
        they expire. It removes what it finds: entries that are written while it is at work may go, too, and are misses.
        """
        delivered = await self.invalidate()
        if reclaim and not self._desk.put_off(lambda held: held.call(self._reclaim)):
            await self._reclaim()
        return delivered

    async def _reclaim(self) -> None:
        await self._desk.behind(self._purge_all())

    async def _purge_all(self) -> None:
        try:
            await (await self.engine()).purge(self.name, "*", None, None)
        except BackendError as error:
            self._note(error, "reclaim", may_raise=False)

    # Looking

    async def explain(self, key: str, *, as_type: Any = None, tenant: Id | None = None, user: Id | None = None) -> Explanation:
        """What is stored under a key, and why a read would be a hit, stale or a miss. `print` shows it in lines."""
        plan = self._plan(as_type, {})
        address = self._address(plan, key, tenant, user)
        return await explained(self._desk, address, plan.terms, f"explain of cache type {self.name!r}")

    def stats(self) -> dict[str, Any]:
        """What happened to this type in this process: hits, misses, hit_rate, sets, loads, ..."""
        return self.counts.snapshot()

    # Behind the verbs

    @property
    def _is_past(self) -> bool:
        return self._desk.is_off or identity.get().bypass

    async def engine(self) -> Engine:
        """This loop's way to the store; may raise BackendError."""
        engine = self._desk.engine_now()
        return await self._desk.engine() if engine is None else engine

    async def _ask(self, what: str, otherwise: R, act: Callable[[Engine], Awaitable[R]]) -> R:
        try:
            return await act(await self.engine())
        except BackendError as error:
            self._note(error, what)
            return otherwise

    def _note(self, error: BackendError, what: str, *, may_raise: bool = True) -> None:
        self._desk.recorder.fault(self.name, error)
        try:
            self._desk.fault(error, f"{what} of cache type {self.name!r}")
        except BackendError:
            if may_raise:
                raise

    def place(
        self,
        key: str,
        *,
        tags: Iterable[str] = (),
        as_type: Any = None,
        tenant: Id | None = None,
        user: Id | None = None,
        **policy: Unpack[PolicyOverrides],
    ) -> tuple[Address, Terms]:
        """Where `set` would store this key, and under which terms."""
        plan = self._plan(as_type, policy)
        return self._address(plan, key, tenant, user, tags), plan.terms

    def _plan(self, as_type: Any, overrides: Mapping[str, Any]) -> Plan:
        asked = (as_type, *((name, type(value), id(value) if name == "fallback" else value) for name, value in overrides.items()))
        try:
            plan = self._plans.get(asked)
        except TypeError:  # something in it cannot be hashed
            return self._make_plan(as_type, overrides)
        if plan is None:
            plan = self._make_plan(as_type, overrides)
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            self._plans[asked] = plan  # and with it its fallback, whose id is nobody else's for as long
        return plan

    def _make_plan(self, as_type: Any, overrides: Mapping[str, Any]) -> Plan:
        policy = self._policy.merged(overrides)
        terms = Terms.of(
            policy,
            serializer=serializer_for() if as_type is None else serializer_for(as_type),
            counts=self.counts,
            cache_type=self.name,
            label=f"cache type {self.name!r}",
        )
        return Plan(policy, terms)

    def _address(self, plan: Plan, key: str, tenant: Id | None, user: Id | None, tags: Iterable[str] = ()) -> Address:
        known = identity.get()
        if tenant is not None or user is not None:
            known = Identity(known.tenant if tenant is None else None, known.user if user is None else None)
        owner = owner_of(
            () if tenant is None else (id_text(tenant, "tenant"),),
            () if user is None else (id_text(user, "user"),),
            known,
            plan.policy.tenant_aware,
            plan.policy.user_aware,
            plan.terms.label,
        )
        return self._desk.addresses.address(self.name, owner, keys.user_tail(key), list(map(tag_extra, listed(tags, "tags"))))
