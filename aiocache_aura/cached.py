"""How one function is cached: from the arguments of a call to the address of its entry, and what can be done there.

The hot path is `Cached.call`: resolve the manager, find the address (remembered for arguments whose class makes "equal" mean "the same
call"), ask the engine. The manager is resolved at call time, so that patching `aiocache_aura.cache_manager.cache_manager` works; one that
is no `CacheManager` is asked through its own `get` and `set`, and nothing is remembered for it.
"""

from __future__ import annotations

import functools
import gc
import inspect
import logging
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from aiocache_aura import cache_manager as desk
from aiocache_aura import keys
from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.codecs.serializers import Serializer, serializer_for
from aiocache_aura.context import Identity, identity
from aiocache_aura.counting import shown
from aiocache_aura.declared import declared
from aiocache_aura.desk import explained, listed, unshared, unwrapped, warming_run
from aiocache_aura.errors import BackendError, ConfigurationError
from aiocache_aura.generations import Address, function_extra, tag_extra
from aiocache_aura.owner import Owner, ids_among, owner_of
from aiocache_aura.policy import PRESETS, Aware, CachePolicy
from aiocache_aura.providing import Factory, Provided, check
from aiocache_aura.recipes import is_repeatable, recipe_of
from aiocache_aura.renewing import Engine
from aiocache_aura.resilience.threads import call_plain, is_async, settled
from aiocache_aura.settings import Settings
from aiocache_aura.signatures import CallSignature, warn_user
from aiocache_aura.stats import Counts
from aiocache_aura.templates import Template
from aiocache_aura.terms import Terms, fall_back, told_life
from aiocache_aura.types import MISSING, TTL, CacheEntry, CacheInfo, CacheParameters, Call, Explanation, Uncached

log = logging.getLogger("aiocache_aura.decorators")

MEMO = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """What a decorator was given."""

    cache_type: str
    manager: Any = None
    key: str | Callable[[Call], str] | None = None
    tags: Iterable[str] | Callable[[Call], Iterable[str]] = ()
    exclude: tuple[str, ...] = ()
    provide: Mapping[str, Factory] | None = None
    secret: tuple[str, ...] = ()
    self_key: Callable[[Any], object] | None = None
    name: str | None = None
    version: object = None
    returns: Any = MISSING
    warm: Any = None
    policy: Mapping[str, Any] = field(default_factory=dict)


class State:
    """What a function is under one manager, while its type's policy stays what it is.

    `personal` are the terms of a call that has arguments of the manager's `exclude_types`, which belong to the caller.
    """

    __slots__ = ("manager", "stamp", "memo", "policy", "source", "terms", "personal", "user_args", "tenant_args", "ignored", "lookup")  # noqa: RUF023

    def __init__(self, manager: CacheManager, source: CachePolicy, policy: CachePolicy, terms: Terms) -> None:
        self.manager, self.source, self.policy, self.terms = manager, source, policy, terms
        self.personal = replace(terms, personal=True, recall=None)
        self.stamp: object = None
        self.memo: dict[Any, Address] = {}
        self.tenant_args, self.user_args = manager.settings.tenant_args, manager.settings.user_args
        self.ignored = manager.settings.exclude_types
        self.lookup: Callable[..., tuple[Any, ...]] | None = None

    async def delete(self, addresses: Sequence[Address]) -> bool:
        """Remove entries; whether it was delivered, which is logged if not."""
        try:
            await (await self.manager.engine()).delete(addresses, self.terms)
        except BackendError as error:
            log.error("entries of calls of %s were not deleted: %s", self.terms.label, error)
            return False
        return True


class Cached:
    """One function in one way of being called: as a function, a method, a class method."""

    def __init__(self, function: Callable[..., Any], options: CacheOptions, *, owner: str | None) -> None:
        self.function, self.options, self._manager = function, options, options.manager
        self._is_async = is_async(function)
        self._policy, self._life_of = _with_life_apart(options.policy)
        if options.provide is not None:
            check(options.provide)
        self.signature = CallSignature(
            function,
            owner=owner,
            exclude=options.exclude,
            secret=options.secret,
            self_key=options.self_key,
            provided=options.provide or (),
        )
        self._provided = Provided(function, self.signature, options.provide) if options.provide else None
        self.name = keys.function_name(options.name or _full_name(function), options.version)
        self._outside = set(self.signature.names) - set(self.signature.included)
        self._key = self._key_template()
        self._tags = self._tag_templates()
        self._lookup = None if self._depends_on_more() else self.signature.lookup
        self._check_policy(CachePolicy().merged(self._policy))  # says what is wrong at decoration
        self.state: State | None = None
        self.altered: dict[Any, Any] = {}
        self._counts: weakref.WeakKeyDictionary[CacheManager, Counts] = weakref.WeakKeyDictionary()
        self._serializer: Serializer | None = None
        self._warn_of_a_namesake()

    def __repr__(self) -> str:
        return f"<Cached {self.name} as {self.options.cache_type}>"

    # Decoration

    def _key_template(self) -> Template | Callable[[Call], str] | None:
        key = self.options.key
        if key is None or callable(key):
            return key
        template = Template(key, self._nameable, what="key", secret=self.signature.secret)
        manager = desk.cache_manager if self.options.manager is None else self.options.manager
        settings = manager.settings if issubclass(type(manager), CacheManager) else Settings()
        self._check_places(template, settings.tenant_args, settings.user_args, self.options.policy.get("tenant_aware"))
        return template

    def _check_places(self, template: Template, tenant_args: Iterable[str], user_args: Iterable[str], tenant_aware: Aware | None) -> None:
        """Asked again with what the manager and the type's policy say: a tenant that is left out must be in the key, too."""
        exempt = {*user_args, *(tenant_args if tenant_aware is not False else ())}
        unplaced = [name for name in self.signature.included if name not in template.fields | exempt]
        if unplaced:
            raise ConfigurationError(
                f"key={template.text!r} of {self.signature.name}: calls that differ in {unplaced[0]!r} would share an entry; "
                f"put {{{unplaced[0]}}} into the key, or name it in exclude=[{unplaced[0]!r}]"
            )

    def _tag_templates(self) -> list[Template] | Callable[[Call], Iterable[str]]:
        tags = self.options.tags
        if callable(tags):
            return tags
        if isinstance(tags, str):
            raise ConfigurationError(f"tags={tags!r}: they are a list, such as tags=[{tags!r}]")
        return [Template(tag, self._nameable, what="tags", secret=self.signature.secret) for tag in tags]

    @property
    def _nameable(self) -> list[str]:
        """The parameters that keys and tags may name: what is provided is not the caller's."""
        return [name for name in self.signature.names if name not in self.signature.provided]

    def _check_policy(self, policy: CachePolicy) -> None:
        if policy.keep_loading and self.signature.is_personal:
            theirs = min(self.signature.excluded - self.signature.provided)
            raise ConfigurationError(
                f"keep_loading=True of {self.signature.name}: {theirs!r} is its caller's, and a load ends with the caller whose it uses; "
                f"give the load its own, as provide={{{theirs!r}: ...}}"
            )

    def _depends_on_more(self) -> bool:
        """Whether an address depends on anything beside the arguments that are in the key."""
        if callable(self._tags) or (self._key is not None and not isinstance(self._key, Template)):
            return True
        templates = [*self._tags, *([self._key] if self._key is not None else [])]
        return any(template.fields & self._outside for template in templates)

    def _warn_of_a_namesake(self) -> None:
        manager = self.options.manager
        place = (0 if manager is None or manager is desk.cache_manager else id(manager), self.name)
        if self._has_namesake(place) and place not in _clashed:
            gc.collect()  # one that nobody can call any more is still there while a cycle of references holds it
        if self._has_namesake(place):
            _clashed.add(place)
            warn_user(
                f"a second function is cached as {self.name!r}: they would share entries, or be cleared together; give one of them name="
            )
        _namesakes[place] = self

    def _has_namesake(self, place: tuple[int, str]) -> bool:
        other = _namesakes.get(place)
        return other is not None and other.function is not self.function

    # A call

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        """The short way where nothing has changed since this very call was made before; else the whole way."""
        manager: Any = self._manager
        if manager is None:
            manager = desk.cache_manager
        state = self.state
        if state is not None and state.manager is manager and state.stamp is state.manager.stamp and state.lookup is not None:
            try:
                address = state.memo.get((state.lookup(*args, **kwargs), identity.get()))
            except TypeError:
                address = None
            if address is not None:
                engine: Engine | None = state.manager.engine_now()
                if engine is not None:
                    return engine.get_or_load(address, state.terms, self._load, args, kwargs)
        return self._call(manager, args, kwargs)

    async def _call(self, manager: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not issubclass(type(manager), CacheManager):
            return await self.through_stranger(manager, args, kwargs)
        state = self.state_under(manager)
        address = self._address(state, args, kwargs)
        engine = None if _is_past(manager) else manager.engine_now() or await self._open(manager)
        if engine is None:
            return await self._load_alone(state.policy, args, kwargs)
        run = warming_run()
        if run is not None:
            return await run.call(engine, address, self._terms(state, args, kwargs), functools.partial(self._load, args, kwargs))
        return await engine.get_or_load(address, self._terms(state, args, kwargs), self._load, args, kwargs)

    async def _load_alone(self, policy: CachePolicy, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return unwrapped(await unshared(functools.partial(self._load, args, kwargs), policy.fallback))

    async def _load(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._provided is not None:
            return await self._provided.load(args, kwargs)
        if self._is_async:
            return await self.function(*args, **kwargs)
        return await call_plain(self.function, *args, **kwargs)

    async def _open(self, manager: CacheManager) -> Engine | None:
        try:
            return await manager.engine()
        except BackendError as error:
            log.debug("%s is called uncached: %s", self.name, error)
            return None

    def _terms(self, state: State, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Terms:
        if not state.ignored or state.terms.personal:
            return state.terms
        arguments = self.signature.arguments(self.signature.bind(*args, **kwargs))
        has_theirs = any(isinstance(arguments[name], state.ignored) for name in self.signature.included)
        return state.personal if has_theirs else state.terms

    def _address(self, state: State, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Address:
        known, lookup = identity.get(), state.lookup
        is_kept = not (state.ignored or known.bypass or known.warming)  # calls of warmers are not, or all would be pushed out by them
        known = known._replace(warming=None)
        if lookup is None:
            return self._new_address(state, self.signature.bind(*args, **kwargs), known)
        try:
            call = (lookup(*args, **kwargs), known)
            address = state.memo.get(call)
        except TypeError:  # an unhashable argument, or arguments that do not fit, of which `bind` will tell
            return self._new_address(state, self.signature.bind(*args, **kwargs), known)
        if address is None:
            values = self.signature.bind(*args, **kwargs)
            address = self._new_address(state, values, known)
            if is_kept and "~" not in address.tail and self.signature.is_memo_safe(values):
                if len(state.memo) >= MEMO:
                    state.memo.clear()
                state.memo[call] = address
        return address

    def _new_address(self, state: State, values: tuple[Any, ...], known: Identity) -> Address:
        arguments = self.signature.arguments(values)
        owner = self._owner(arguments, known, state.policy, state.tenant_args, state.user_args)
        extras = [function_extra(self.name), *map(tag_extra, self._tags_of(arguments))]
        tail = self._tail(arguments, values, state.ignored)
        address = state.manager.addresses.address(self.options.cache_type, owner, tail, extras, private=self._key is None)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("key of a call of %s: %s", self.name, shown(address, state.manager.settings.log_keys))
        return address

    def _owner(
        self, arguments: Mapping[str, Any], known: Identity, policy: CachePolicy, tenant_args: Iterable[str], user_args: Iterable[str]
    ) -> Owner:
        tenants, users = ids_among(arguments, tenant_args, "tenant"), ids_among(arguments, user_args, "user")
        return owner_of(tenants, users, known, policy.tenant_aware, policy.user_aware, self.signature.name)

    def _tail(self, arguments: Mapping[str, Any], values: tuple[Any, ...], ignored: tuple[type, ...] = ()) -> str:
        key = self._key
        if key is None:
            return keys.call_tail(self.name, self.signature.parts(values, ignored))
        return keys.user_tail(key.fill(arguments) if isinstance(key, Template) else key(Call(arguments)))

    def _tags_of(self, arguments: Mapping[str, Any]) -> Iterable[str]:
        if callable(self._tags):
            return listed(self._tags(Call(arguments)), "tags")
        return [template.fill(arguments) for template in self._tags]

    # Under a manager

    def new_state(self, manager: CacheManager) -> State:
        source = manager.policy(self.options.cache_type)
        policy = source.merged(self._policy)
        terms = Terms.of(
            policy,
            serializer=self._its_serializer(),
            counts=manager.counts(self.options.cache_type),
            own=self._counts.setdefault(manager, Counts()),
            cache_type=self.options.cache_type,
            label=keys.unescape(self.name),
            convert=self.options.returns is not MISSING,
            personal=self.signature.is_personal,
            life_of=self._life_of,
            recall=functools.partial(recipe_of, self.name, self.signature) if is_repeatable(self.signature) else None,
        )
        state = State(manager, source, policy, terms)
        if isinstance(self._key, Template):
            self._check_places(self._key, state.tenant_args, state.user_args, policy.tenant_aware)
        if not self._outside & {*state.tenant_args, *state.user_args}:
            state.lookup = self._lookup
        self.state = state
        return state

    def _its_serializer(self) -> Serializer:
        if self._serializer is None:
            returns = self.options.returns
            self._serializer = declared(self.function) if returns is MISSING else serializer_for(returns)
        return self._serializer

    async def place(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[CacheManager, Engine | None, Address, Terms]:
        """Where a verb acts; no engine where the store cannot be had."""
        state = self.current_state()
        return state.manager, await self._open(state.manager), self._address(state, args, kwargs), self._terms(state, args, kwargs)

    @property
    def manager(self) -> Any:
        """The manager of the moment, or a stand-in: asked for at each call."""
        return desk.cache_manager if self._manager is None else self._manager

    def current_state(self) -> State:
        manager = self.manager
        if not issubclass(type(manager), CacheManager):
            raise ConfigurationError(f"this needs a CacheManager; the manager is a {type(manager).__name__}")
        return self.state_under(manager)

    def state_under(self, manager: CacheManager) -> State:
        state, stamp = self.state, manager.stamp
        if state is None or state.manager is not manager or manager.policy(self.options.cache_type) is not state.source:
            state = self.new_state(manager)
        state.stamp = None if manager.is_off else stamp
        return state

    # Verbs

    async def invalidate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        state = self.current_state()
        addresses = [self._address(state, args, kwargs)]
        return not state.manager.put_off(lambda held: held.delete(state.delete, addresses)) and await state.delete(addresses)

    async def refresh(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        manager, engine, address, terms = await self.place(args, kwargs)
        load = functools.partial(self._load, args, kwargs)
        return unwrapped(await load()) if engine is None or _is_past(manager) else await engine.refresh(address, terms, load)

    async def peek(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        manager, engine, address, terms = await self.place(args, kwargs)
        if engine is None or _is_past(manager):
            return None
        try:
            value = await engine.get(address, terms, count=False)
        except BackendError as error:
            manager.fault(error, f"a peek at {self.name}")
            return None
        return None if value is MISSING else value

    async def entry(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CacheEntry[Any] | None:
        manager, engine, address, terms = await self.place(args, kwargs)
        try:
            return None if engine is None or _is_past(manager) else await engine.entry(address, terms)
        except BackendError as error:
            manager.fault(error, f"a look at {self.name}")
            return None

    async def explain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Explanation:
        state = self.current_state()
        address, terms = self._address(state, args, kwargs), self._terms(state, args, kwargs)
        return await explained(state.manager, address, terms, f"an explanation of a call of {self.name}")

    async def exists(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        manager, engine, address, terms = await self.place(args, kwargs)
        try:
            return engine is not None and not _is_past(manager) and await engine.get(address, terms, count=False) is not MISSING
        except BackendError as error:
            manager.fault(error, f"a look at {self.name}")
            return False

    async def set_value(self, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        manager, engine, address, terms = await self.place(args, kwargs)
        if engine is None or manager.is_off:
            return False
        try:
            return await engine.set([(address, value)], terms)
        except BackendError as error:
            manager.fault(error, f"a value set for {self.name}")
            return False

    def cache_key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        return self._address(self.current_state(), args, kwargs).key.decode()

    async def cache_clear(self) -> bool:
        state = self.current_state()
        if state.terms.own is not None:
            state.terms.own.reset()
        return await state.manager.drop(state.manager.addresses.of_function(self.name), f"clearing {self.name}")

    def cache_info(self) -> CacheInfo:
        own = self.current_state().terms.own or Counts()
        return CacheInfo(own.hits, own.misses, None, None)

    def cache_parameters(self) -> CacheParameters:
        life = self.current_state().terms.life
        return {"cache_type": self.options.cache_type, "maxsize": None, "typed": True, "ttl": None if life == float("inf") else life}

    # Strangers

    async def through_stranger(self, manager: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, ask: bool = True) -> Any:
        """A stand-in for the manager: asked with the key as text; whatever it raises, the function is called."""
        policy = PRESETS.get(self.options.cache_type, CachePolicy()).merged(self._policy)
        key = self._stranger_key(policy, self.signature.bind(*args, **kwargs))
        try:
            value = await settled(manager.get(self.options.cache_type, key)) if ask else None
            if value is not None:
                return value
        except Exception as error:
            log.warning("%s went on without the cache: the manager's get raised %r", self.name, error)
        try:
            value = await self._load(args, kwargs)
        except Exception as error:
            return await fall_back(policy.fallback, error)
        if value is not None and not isinstance(value, Uncached) and (policy.store_if is None or policy.store_if(value)):
            life = told_life(self._life_of, policy.life, value)
            try:
                await settled(manager.set(self.options.cache_type, key, value, ttl=_whole(life)))
            except Exception as error:
                log.warning("%s went on without the cache: the manager's set raised %r", self.name, error)
        return unwrapped(value)

    def _stranger_key(self, policy: CachePolicy, values: tuple[Any, ...]) -> str:
        arguments = self.signature.arguments(values)
        owner = self._owner(arguments, identity.get(), policy, ("tenant_id", "restaurant_id"), ("user_id",))
        tail = self._tail(arguments, values)[1:]
        placed = isinstance(self._key, Template) and self._key.fields & {"tenant_id", "restaurant_id"}
        return tail if placed else keys.owner_segments(owner.tenants, owner.users) + tail


_namesakes: weakref.WeakValueDictionary[tuple[int, str], Cached] = weakref.WeakValueDictionary()
_clashed: set[tuple[int, str]] = set()


def cached_named(name: str, manager: CacheManager) -> Cached | None:
    """The function that is cached under a name on a manager in this process, if there is one."""
    places = ((id(manager), name), (0, name))
    return next((one for place in places if (one := _namesakes.get(place)) is not None and one.manager is manager), None)


def _is_past(manager: CacheManager) -> bool:
    return manager.is_off or identity.get().bypass


def _whole(life: float) -> float:
    return int(life) if life == int(min(life, 2**53)) else life


def _with_life_apart(policy: Mapping[str, Any]) -> tuple[Mapping[str, Any], Callable[[Any], TTL] | None]:
    """The fields of a policy, and the function of the result that stands in the place of `ttl`, if one does."""
    life: Any = policy.get("ttl")
    if isinstance(life, type) or not callable(life):
        return policy, None
    if is_async(life):
        raise ConfigurationError("ttl= is an async function; a function of the result is a plain one, that gives a TTL at once")
    return {name: value for name, value in policy.items() if name != "ttl"}, cast("Callable[[Any], TTL]", life)


def _full_name(function: Callable[..., Any]) -> str:
    qualname = getattr(function, "__qualname__", None)
    if qualname is None or "<lambda>" in qualname:
        raise ConfigurationError(f"{function!r:.80} has no name to be cached under; give it name=")
    return f"{function.__module__}.{qualname}"


def check_cacheable(function: object) -> None:
    """TypeError for what gives its values bit by bit, or gives something that is to be entered."""
    inner = inspect.unwrap(function) if callable(function) else function
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise TypeError(f"{inner!r:.80} is a generator or a context manager: there is no one value to cache; return a list instead")
    if not callable(function):
        raise TypeError(f"a cache decorator takes a function, not {type(function).__name__}")


__all__ = ["CacheOptions", "Cached", "check_cacheable"]
