"""Writes: explicit ones, which win over loads begun before them, and invalidations.

M10: the value of a `set` was computed before the call, so the generations stored with it must be no younger: those that this process saw
when it missed the key, else those there are when it asks. An invalidation by this process closes the flights it covers at the call and at
the answer. It voids a `set` that is still asking, and one that follows a miss from before it (`get`, load, `set` by hand is a load like any
other): a token that was missing then could not tell. At worst the value is not stored, a miss.

What is deleted or set here is told to the sources of warmers that read meanwhile, at the call, before anything is asked of the store: what
they have read of it is not stored any more (see `planting`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aiocache_aura import keys
from aiocache_aura.codecs.envelope import seal
from aiocache_aura.counting import log
from aiocache_aura.entries import REMEMBERED, Entries, finite
from aiocache_aura.errors import BackendError
from aiocache_aura.generations import Address
from aiocache_aura.removals import Watched
from aiocache_aura.stores.base import Scopes, Tokens
from aiocache_aura.terms import FOR_EVER, Terms

REMEMBER_FOR = 30.0  # seconds that a miss of this process vouches for a later `set` of the key


class _Miss(NamedTuple):
    """A read of this process that found nothing: when it began, by the tick and by the clock, and the generations that it saw."""

    began: int
    tokens: Tokens
    when: float


class Writes(Entries):
    """What writes and invalidates."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._missed: dict[tuple[bytes, int], _Miss] = {}  # by key and task; 0 is the key's last, whoever missed it
        self._dropped: dict[bytes, int] = {}  # when, by the tick, this process last invalidated a scope
        self._dropped_until = -1  # the latest of what is no longer in there
        self._removed = Watched()

    async def set(self, items: Sequence[tuple[Address, Any]], terms: Terms) -> bool:
        """Write values over whatever is there, and void the loads under way (M10); False if an invalidation has voided one of them."""
        encoded = [(address, self._encode_explicit(terms, value)) for address, value in items]
        addresses = [address for address, _ in items]
        started = self._monotonic()
        if not terms.life:
            await self.delete(addresses, terms)
            return True
        missed = {address.key: self._recall(address) for address in addresses}
        self._removed.add(address.key for address in addresses)
        self.flights.close(address.key for address in addresses)
        try:
            prints = await self._fingerprints(addresses, terms, missed)
            void = {address.key for address in addresses if self._was_dropped(address, missed[address.key].began)}
            writes = [self._write(terms, address, sealed, prints[address.key]) for address, sealed in encoded if address.key not in void]
            if void:
                await self._port.delete(list(void), timeout=self._budget)
            await self._port.store(writes, timeout=self._budget)
        finally:
            self.flights.close(address.key for address in addresses)
        written = [address for address in addresses if address.key not in void]
        told = [
            (address, len(raw), FOR_EVER if life is None else life - terms.stale)
            for address, (_, raw, life) in zip(written, writes, strict=True)
        ]
        self._count_sets(terms, told, started)
        return not void

    def _write(self, terms: Terms, address: Address, sealed: tuple[int, bytes], fingerprint: bytes) -> tuple[bytes, bytes, float | None]:
        entry = self._entry(terms, address, sealed, fingerprint, self._time(), 0.0, life=terms.life)
        return address.key, seal(address.checksum, entry), finite(entry.ttl + entry.stale)

    def _encode_explicit(self, terms: Terms, value: Any) -> tuple[int, bytes]:
        return self._encode(terms, terms.serializer.convert(value) if terms.convert else value)

    async def _fingerprints(self, addresses: Sequence[Address], terms: Terms, missed: Mapping[bytes, _Miss]) -> dict[bytes, bytes]:
        """Of each key, the generations that a `set` of it stores: those this process saw missing it, else those there are now (M10)."""
        scopes = tuple(dict.fromkeys(scope for address in addresses for scope in address.scopes))
        asked = (await self._port.generations(scopes, life=finite(terms.reach), timeout=self._budget)).found  # and live as long (M8)
        prints = {}
        for address in addresses:
            known = missed[address.key].tokens.found
            tokens = {scope: known.get(scope) or asked.get(scope) for scope in address.scopes}
            fingerprint = Tokens(tokens).fingerprint(address.scopes)
            if fingerprint is None:
                raise BackendError(f"{terms.label}: the server does not keep generations; is its memory full?")
            prints[address.key] = fingerprint
        return prints

    def _remember_miss(self, address: Address, tokens: Tokens, began: int) -> None:
        miss = _Miss(began, tokens, self._monotonic())
        for place in ((address.key, _this_task()), (address.key, 0)):
            self._missed.pop(place, None)
            self._missed[place] = miss
        while len(self._missed) > 2 * REMEMBERED:
            del self._missed[next(iter(self._missed))]

    def _recall(self, address: Address) -> _Miss:
        """This task's miss of the key, or else the process's last, if recent; else as if it had been missed now, and nothing had been seen.

        A younger miss of another task must not vouch for an older value (own_writes: last_miss_of_the_key).
        """
        now, last = self._monotonic(), self._missed.get((address.key, 0))
        miss = self._missed.pop((address.key, _this_task()), last)
        if miss is last:
            self._missed.pop((address.key, 0), None)
        return _Miss(self._tick.now, Tokens({}), now) if miss is None or now - miss.when >= REMEMBER_FOR else miss

    def _was_dropped(self, address: Address, since: int) -> bool:
        """Whether this process has invalidated the entry since then."""
        return since <= self._dropped_until or any(self._dropped.get(scope, -1) >= since for scope in address.scopes)

    async def add(self, address: Address, value: Any, terms: Terms) -> bool:
        """Write only if a read would find nothing; whether it was written."""
        sealed = self._encode_explicit(terms, value)
        if not terms.life:
            return False
        began, started = self._tick.now, self._monotonic()
        held, sight = await self._look(address, terms)
        if held is not None and held.is_fresh and held.error is None:
            return False
        miss = self._recall(address)
        if miss.began > began or self._was_dropped(address, miss.began):  # what it found itself is newer, and all that an `add` claims
            miss = _Miss(began, sight.tokens, miss.when)
        fingerprint = (await self._fingerprints([address], terms, {address.key: miss}))[address.key]
        if self._was_dropped(address, miss.began):
            return False
        self._removed.add([address.key])
        self.flights.close([address.key])
        key, fresh, life = self._write(terms, address, sealed, fingerprint)
        written = await self._port.store_if(key, fresh, life, seen=sight.raw, timeout=self._budget)
        self.flights.close([address.key])
        self._count_sets(terms, [(address, len(fresh), terms.life)] if written else [], started)
        return written

    async def touch(self, address: Address, life: float, terms: Terms) -> bool:
        """Give an entry that a read would find `life` seconds from now; False if there is none."""
        sight = await self._examine(address, terms)
        if not sight.has_value:
            return False
        if not life:
            return bool(await self.delete([address], terms))
        return await self._renew(address, sight, life)

    async def delete(self, addresses: Sequence[Address], terms: Terms | None = None) -> int:
        """Remove values and void the loads under way; how many were stored."""
        started = self._monotonic()
        self._removed.add(address.key for address in addresses)
        self.flights.close(address.key for address in addresses)
        try:
            gone = await self._port.delete([address.key for address in addresses], timeout=self._budget)
        finally:
            self.flights.close(address.key for address in addresses)
        if terms is not None and addresses:
            self._count_deletes(terms, addresses, gone, started)
        if log.isEnabledFor(logging.DEBUG):
            for address in addresses:
                log.debug("deleted %s", self.shown(address))
        return gone

    async def invalidate(self, scopes: Scopes, *, soft: bool = False) -> bool:
        """Drop these generations, or, `soft`, leave their entries as stale; False if the store did not take it, which is logged.

        Never raises for the store.
        """
        meant = frozenset(scopes)
        self._close_meant(meant)
        try:
            await self._port.invalidate(scopes, timeout=self._budget, soft=soft)
        except BackendError as error:
            log.error("an invalidation of %d scopes was not delivered: %s", len(scopes), error)
            return False
        finally:
            self._close_meant(meant)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("invalidated %s", self.shown_scopes(scopes))
        return True

    def _close_meant(self, meant: frozenset[bytes]) -> None:
        self.flights.close_where(lambda flight: not flight.scopes.isdisjoint(meant))
        tick = self._tick.take()
        for scope in meant:
            self._dropped.pop(scope, None)
            self._dropped[scope] = tick
        while len(self._dropped) > REMEMBERED:
            self._dropped_until = self._dropped.pop(next(iter(self._dropped)))

    async def purge(self, cache_type: str, pattern: str, tenant: str | None = None, user: str | None = None) -> int:
        """Remove the entries of a type whose logical key matches, and void the loads under way; how many were stored (M11)."""
        head = f"{self._addresses.prefix}:{cache_type}:".encode()
        is_match = keys.pattern_matcher(pattern)

        def matches(key: bytes) -> bool:
            if not key.startswith(head):
                return False
            tenants, users, tail = keys.split_owner(key[len(head) :].decode())
            meant = _among(tenant, tenants) and _among(user, users)
            return meant and is_match(keys.logical_key(tail))

        self._removed.add_where(head, matches)
        self.flights.close_where(lambda flight: matches(flight.key))
        try:
            gone = await self._port.purge(keys.glob_literal(head) + b"*", matches, timeout=self._budget)
        finally:
            self.flights.close_where(lambda flight: matches(flight.key))
        log.debug("invalidated %d entries of %s by a pattern", gone, cache_type)
        return gone


def _this_task() -> int:
    """The current task; one that has its number after it has ended is judged by an older miss, which is safe."""
    return id(asyncio.current_task())


def _among(wanted: str | None, found: str | None) -> bool:
    return wanted is None or (found is not None and keys.segment(wanted) in found.split("+"))
