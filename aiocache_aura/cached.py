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
import typing
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from aiocache_aura import cache_manager as desk
from aiocache_aura import keys
from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.codecs.serializers import ANY, Serializer, serializer_for
from aiocache_aura.context import Identity, identity
from aiocache_aura.desk import listed
from aiocache_aura.engine import Engine
from aiocache_aura.entries import shown
from aiocache_aura.errors import BackendError, ConfigurationError
from aiocache_aura.generations import Address, function_extra, tag_extra
from aiocache_aura.owner import Owner, ids_among, owner_of
from aiocache_aura.policy import PRESETS, Aware, CachePolicy
from aiocache_aura.resilience.threads import call_plain, is_async, settled
from aiocache_aura.settings import Settings
from aiocache_aura.signatures import CallSignature, warn_user
from aiocache_aura.stats import Counts
from aiocache_aura.templates import Template
from aiocache_aura.terms import Terms
from aiocache_aura.types import MISSING, CacheInfo, CacheParameters, Call

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
    secret: tuple[str, ...] = ()
    self_key: Callable[[Any], object] | None = None
    name: str | None = None
    version: object = None
    returns: Any = MISSING
    policy: Mapping[str, Any] = field(default_factory=dict)


class _State:
    """What a function is under one manager, while its type's policy stays what it is."""

    __slots__ = ("manager", "stamp", "memo", "policy", "source", "terms", "user_args", "tenant_args", "ignored", "lookup")  # noqa: RUF023

    def __init__(self, manager: CacheManager, source: CachePolicy, policy: CachePolicy, terms: Terms) -> None:
        self.manager, self.source, self.policy, self.terms = manager, source, policy, terms
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
        self.signature = CallSignature(function, owner=owner, exclude=options.exclude, secret=options.secret, self_key=options.self_key)
        self.name = keys.function_name(options.name or _full_name(function), options.version)
        self._outside = set(self.signature.names) - set(self.signature.included)
        self._key = self._key_template()
        self._tags = self._tag_templates()
        self._lookup = None if self._depends_on_more() else self.signature.lookup
        CachePolicy().merged(options.policy)  # says what is wrong at decoration
        self._state: _State | None = None
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
        template = Template(key, self.signature.names, what="key", secret=self.signature.secret)
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
        return [Template(tag, self.signature.names, what="tags", secret=self.signature.secret) for tag in tags]

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
        state = self._state
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
            return await self._through_stranger(manager, args, kwargs)
        state = self._state_under(manager)
        address = self._address(state, args, kwargs)
        if identity.get().bypass or manager.is_off:
            return await self._load(args, kwargs)
        engine = manager.engine_now()
        if engine is None:
            engine = await self._open(manager)
            if engine is None:
                return await self._load(args, kwargs)
        return await engine.get_or_load(address, state.terms, self._load, args, kwargs)

    async def _load(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._is_async:
            return await self.function(*args, **kwargs)
        return await call_plain(self.function, *args, **kwargs)

    async def _open(self, manager: CacheManager) -> Engine | None:
        try:
            return await manager.engine()
        except BackendError as error:
            log.debug("%s is called uncached: %s", self.name, error)
            return None

    def _address(self, state: _State, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Address:
        known, lookup = identity.get(), state.lookup
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
            if self.signature.is_memo_safe(values) and not (state.ignored or known.bypass or "~" in address.tail):
                if len(state.memo) >= MEMO:
                    state.memo.clear()
                state.memo[call] = address
        return address

    def _new_address(self, state: _State, values: tuple[Any, ...], known: Identity) -> Address:
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

    def _new_state(self, manager: CacheManager) -> _State:
        source = manager.policy(self.options.cache_type)
        policy = source.merged(self.options.policy)
        terms = Terms.of(
            policy,
            serializer=self._its_serializer(),
            counts=manager.counts(self.options.cache_type),
            own=self._counts.setdefault(manager, Counts()),
            label=keys.unescape(self.name),
            convert=self.options.returns is not MISSING,
            personal=self.signature.is_personal or bool(manager.settings.exclude_types),
        )
        state = _State(manager, source, policy, terms)
        if isinstance(self._key, Template):
            self._check_places(self._key, state.tenant_args, state.user_args, policy.tenant_aware)
        if not self._outside & {*state.tenant_args, *state.user_args}:
            state.lookup = self._lookup
        self._state = state
        return state

    def _its_serializer(self) -> Serializer:
        if self._serializer is None:
            returns = self.options.returns
            self._serializer = _declared(self.function) if returns is MISSING else serializer_for(returns)
        return self._serializer

    async def place(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[CacheManager, Engine | None, Address, Terms]:
        """Where a verb acts; no engine where the store cannot be had."""
        state = self.current_state()
        return state.manager, await self._open(state.manager), self._address(state, args, kwargs), state.terms

    def current_state(self) -> _State:
        manager = desk.cache_manager if self._manager is None else self._manager
        if not issubclass(type(manager), CacheManager):
            raise ConfigurationError(f"this needs a CacheManager; the manager is a {type(manager).__name__}")
        return self._state_under(manager)

    def _state_under(self, manager: CacheManager) -> _State:
        state, stamp = self._state, manager.stamp
        if state is None or state.manager is not manager or manager.policy(self.options.cache_type) is not state.source:
            state = self._new_state(manager)
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
        return await load() if engine is None or _is_past(manager) else await engine.refresh(address, terms, load)

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
        life = self.current_state().policy.life
        return {"cache_type": self.options.cache_type, "maxsize": None, "typed": True, "ttl": None if life == float("inf") else life}

    # Strangers

    async def _through_stranger(self, manager: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A stand-in for the manager: asked with the key as text; whatever it raises, the function is called."""
        key, ttl = self._stranger_key(self.signature.bind(*args, **kwargs))
        try:
            value = await settled(manager.get(self.options.cache_type, key))
            if value is not None:
                return value
        except Exception as error:
            log.warning("%s went on without the cache: the manager's get raised %r", self.name, error)
        value = await self._load(args, kwargs)
        if value is not None:
            try:
                await settled(manager.set(self.options.cache_type, key, value, ttl=ttl))
            except Exception as error:
                log.warning("%s went on without the cache: the manager's set raised %r", self.name, error)
        return value

    def _stranger_key(self, values: tuple[Any, ...]) -> tuple[str, float]:
        policy = PRESETS.get(self.options.cache_type, CachePolicy()).merged(self.options.policy)
        arguments = self.signature.arguments(values)
        owner = self._owner(arguments, identity.get(), policy, ("tenant_id", "restaurant_id"), ("user_id",))
        tail = self._tail(arguments, values)[1:]
        placed = isinstance(self._key, Template) and self._key.fields & {"tenant_id", "restaurant_id"}
        life = int(policy.life) if policy.life == int(min(policy.life, 2**53)) else policy.life
        return (tail if placed else keys.owner_segments(owner.tenants, owner.users) + tail), life


_namesakes: weakref.WeakValueDictionary[tuple[int, str], Cached] = weakref.WeakValueDictionary()
_clashed: set[tuple[int, str]] = set()


def _is_past(manager: CacheManager) -> bool:
    return manager.is_off or identity.get().bypass


def _full_name(function: Callable[..., Any]) -> str:
    qualname = getattr(function, "__qualname__", None)
    if qualname is None or "<lambda>" in qualname:
        raise ConfigurationError(f"{function!r:.80} has no name to be cached under; give it name=")
    return f"{function.__module__}.{qualname}"


def _declared(function: Callable[..., Any]) -> Serializer:
    """The codec for what is declared to be returned; an annotation that cannot be resolved warns and counts as absent."""
    try:
        return serializer_for(_return_annotation(function))
    except Exception as error:
        log.warning("the return annotation of %s cannot be resolved (%s) and counts as absent", function, error)
        return serializer_for()


def _return_annotation(function: Callable[..., Any]) -> Any:
    declared = getattr(function, "__annotations__", {})
    if "return" not in declared:
        return ANY
    alone = SimpleNamespace(  # parameters may have types that only type checkers can import
        __annotations__={"return": declared["return"]}, __type_params__=getattr(function, "__type_params__", ())
    )
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    annotation = typing.get_type_hints(alone, globalns=scope, include_extras=True)["return"]
    origin = typing.get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, typing.Awaitable) and not inspect.iscoroutinefunction(function):
        return typing.get_args(annotation)[-1]
    return annotation


def check_cacheable(function: object) -> None:
    """TypeError for what gives its values bit by bit, or gives something that is to be entered."""
    inner = inspect.unwrap(function) if callable(function) else function
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise TypeError(f"{inner!r:.80} is a generator or a context manager: there is no one value to cache; return a list instead")
    if not callable(function):
        raise TypeError(f"a cache decorator takes a function, not {type(function).__name__}")


__all__ = ["CacheOptions", "Cached", "check_cacheable"]
