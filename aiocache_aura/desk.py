"""What a namespace asks of its manager, and how verbs read what they are given."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, cast

from aiocache_aura.context import Id, id_text, identity
from aiocache_aura.deferral import Held
from aiocache_aura.errors import BackendError
from aiocache_aura.generations import Address, Addresses
from aiocache_aura.recorder import Recorder
from aiocache_aura.renewing import Engine
from aiocache_aura.stores.base import Scopes
from aiocache_aura.terms import Terms, fall_back
from aiocache_aura.types import Everyone, Explanation, Uncached

Who: TypeAlias = Id | Everyone | None


class Desk(Protocol):
    """What a namespace asks of its manager."""

    @property
    def addresses(self) -> Addresses: ...

    @property
    def is_off(self) -> bool: ...

    @property
    def recorder(self) -> Recorder: ...

    def engine_now(self) -> Engine | None: ...

    def restamp(self) -> None:
        """A policy has changed: what was worked out from it is void."""

    async def engine(self) -> Engine: ...

    def fault(self, error: BackendError, what: str) -> None:
        """Log it; under `strict`, raise it."""

    async def drop(self, scopes: Scopes, what: str, *, soft: bool = False) -> bool:
        """Invalidate these generations, or, `soft`, leave their entries as stale; whether it was delivered."""
        ...

    def put_off(self, put: Callable[[Held], None]) -> bool:
        """Have the `deferred()` block that this task is in hold it; False if there is none."""
        ...

    async def behind(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run it in this loop, behind the caller's back."""


class WarmingRun(Protocol):
    """A warmer's run, as the calls that its source makes see it."""

    @property
    def is_over(self) -> bool: ...

    async def call(self, engine: Engine, address: Address, terms: Terms, load: Callable[[], Awaitable[Any]]) -> Any:
        """What is stored, or a load of lowest priority."""
        ...

    async def many(
        self, engine: Engine, addresses: Sequence[Address], terms: Terms, load: Callable[[list[int]], Awaitable[Any]]
    ) -> list[Any]:
        """`call` for a batch: its values by position, MISSING where there is none."""
        ...


def warming_run() -> WarmingRun | None:
    """The run that this task works for."""
    run = cast("WarmingRun | None", identity.get().warming)
    return None if run is None or run.is_over else run


def listed(texts: Iterable[str], what: str = "keys") -> list[str]:
    """Keys or tags as a list; a single text, which would be taken letter by letter, is a TypeError."""
    if isinstance(texts, str | bytes):
        raise TypeError(f"{what} are a list of texts, not one text: [{texts!r:.40}]")
    return list(texts)


def narrowed(given: Who, what: str) -> tuple[str] | tuple[()]:
    """The one id to narrow to, as text; nothing for None and ALL."""
    return () if given is None or isinstance(given, Everyone) else (id_text(given, what),)


def refuse_awaitable(loader: object) -> None:
    """A coroutine in the place of a loader: on a hit nobody would await it."""
    if not inspect.isawaitable(loader):
        return
    if inspect.iscoroutine(loader):
        loader.close()
    raise TypeError("the loader is a function, so that a hit does not call it: pass `load` or `lambda: load(1)`, not `load(1)`")


async def unshared(load: Callable[[], Awaitable[Any]], fallback: Any) -> Any:
    """What a load gives, or its fallback, for one caller who reads past the cache; an `Uncached` is still one."""
    try:
        return await load()
    except Exception as error:
        return await fall_back(fallback, error)


def unwrapped(value: Any) -> Any:
    """What callers get."""
    return value.value if isinstance(value, Uncached) else value


async def explained(desk: Desk, address: Address, terms: Terms, what: str) -> Explanation:
    """What is stored there and what a read would make of it, or that nothing can be told."""
    try:
        told = await (await desk.engine()).explain(address, terms)
    except BackendError as error:
        desk.fault(error, what)
        return Explanation(key=address.key.decode(), verdict="miss", why=f"the store did not answer: {error}")
    if desk.is_off or identity.get().bypass:
        return replace(
            told, verdict="miss", why=f"this task reads past the cache (disabled, or bypass); else it would be a {told.verdict}: {told.why}"
        )
    return told
