"""Invalidations that wait for the end of a block: those of a transaction, until it has committed.

Invariants
- A block holds what is put off in its task and in those started inside, until it ends; what comes later goes to the block around it, if
  that is still open, else out at once. Closing takes everything in one stretch: a closed block holds nothing, and nothing is lost.
- A block that ends well hands what it holds to the block around it, or sends it. One that raises, or is never left, sends nothing.
- A block belongs to one manager, and to the process that opened it: for a fork it is closed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import anyio

from aiocache_aura.errors import BackendError
from aiocache_aura.generations import Address
from aiocache_aura.stores.base import Scopes

log = logging.getLogger("aiocache_aura.manager")

Delete: TypeAlias = Callable[[Sequence[Address]], Coroutine[Any, Any, object]]
Send: TypeAlias = Callable[[Scopes, str, bool], Coroutine[Any, Any, object]]


class Held:
    """What waits, each once: generations to drop, entries to delete by who deletes them, and calls to make."""

    __slots__ = ("_calls", "_deletes", "_hard", "_soft")

    def __init__(self) -> None:
        self._hard: dict[bytes, None] = {}
        self._soft: dict[bytes, None] = {}
        self._deletes: dict[Delete, dict[bytes, Address]] = {}
        self._calls: dict[tuple[Callable[..., Coroutine[Any, Any, object]], tuple[Hashable, ...]], None] = {}

    def __repr__(self) -> str:
        keys = sum(map(len, self._deletes.values()))
        return f"<Held {len(self._hard)} scopes, {len(self._soft)} softly, {keys} keys, {len(self._calls)} calls>"

    def __bool__(self) -> bool:
        return bool(self._hard or self._soft or self._deletes or self._calls)

    def drop(self, scopes: Iterable[bytes], *, soft: bool = False) -> None:
        """These generations; one that is dropped both ways is dropped hard."""
        (self._soft if soft else self._hard).update(dict.fromkeys(scopes))

    def delete(self, delete: Delete, addresses: Iterable[Address]) -> None:
        """These entries; those of one function to delete them go in one call of it."""
        self._deletes.setdefault(delete, {}).update({address.key: address for address in addresses})

    def call(self, function: Callable[..., Coroutine[Any, Any, object]], *args: Hashable) -> None:
        """This call; once, however often it is put off."""
        self._calls[function, args] = None

    def merge(self, other: Held) -> None:
        """What another holds."""
        self._hard.update(other._hard)
        self._soft.update(other._soft)
        for delete, addresses in other._deletes.items():
            self.delete(delete, addresses.values())
        self._calls.update(other._calls)

    def drops(self) -> Iterator[tuple[Scopes, bool]]:
        """(scopes, whether softly), at most one of each kind."""
        soft = tuple(scope for scope in self._soft if scope not in self._hard)
        yield from ((scopes, is_soft) for scopes, is_soft in ((tuple(self._hard), False), (soft, True)) if scopes)

    async def deliver(self, send: Send) -> None:
        """All at once, each whatever becomes of the others. What the store does not take has been logged where it was sent."""
        drops = [send(scopes, "what a deferred() block held back", soft) for scopes, soft in self.drops()]
        deletes = [delete(list(addresses.values())) for delete, addresses in self._deletes.items()]
        calls = [function(*args) for function, args in self._calls]
        for outcome in await asyncio.gather(*drops, *deletes, *calls, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, BackendError):
                raise outcome


class Deferral:
    """One block of one manager. Worker threads may put off, too: what is held changes hands under a lock."""

    __slots__ = ("_held", "_lock", "_pid", "owner")

    def __init__(self, owner: object) -> None:
        self.owner, self._pid, self._lock = owner, os.getpid(), threading.Lock()
        self._held: Held | None = Held()

    def __repr__(self) -> str:
        return f"<Deferral {self._held or 'of nothing'}{'' if self.is_open else ', closed'}>"

    @property
    def is_open(self) -> bool:
        return self._held is not None and self._pid == os.getpid()

    def take(self, put: Callable[[Held], None]) -> bool:
        """Hold what `put` puts there; False if the block has ended."""
        if self._pid != os.getpid():  # the lock may have been held when this process was forked
            return False
        with self._lock:
            if self._held is None:
                return False
            put(self._held)
            return True

    def close(self) -> Held:
        """The end of the block: what it held."""
        with self._lock:
            held, self._held = self._held, None
        return Held() if held is None else held


_blocks: ContextVar[tuple[Deferral, ...]] = ContextVar("aiocache_aura_deferrals", default=())


def put_off(owner: object, put: Callable[[Held], None]) -> bool:
    """Have the innermost open block of this task hold it; False if there is none."""
    return _taken(_blocks.get(), owner, put)


def _taken(blocks: Sequence[Deferral], owner: object, put: Callable[[Held], None]) -> bool:
    return any(block.owner is owner and block.take(put) for block in reversed(blocks))


@asynccontextmanager
async def deferring(owner: object, send: Send) -> AsyncIterator[None]:
    """A block of this manager, which sends scopes by `send`.

    Which blocks are open is known to the context and not to tokens of it: a block may be left in another task than it was entered in.
    """
    around = tuple(block for block in _blocks.get() if block.is_open)
    block = Deferral(owner)
    _blocks.set((*around, block))
    try:
        yield
    except BaseException:
        log.debug("a deferred() block failed, nothing is sent: %r", block.close())
        raise
    finally:
        _blocks.set(tuple(one for one in _blocks.get() if one is not block))
    held = block.close()
    if held and not _taken(around, owner, lambda outer: outer.merge(held)):
        await to_the_end(held.deliver(send))


async def to_the_end(work: Awaitable[object]) -> None:
    """Wait for it whatever happens to the caller, who is cancelled afterwards; the budget of the store bounds it."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as error:
                cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
