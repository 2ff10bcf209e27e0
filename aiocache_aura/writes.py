"""Writes: explicit ones, which win over loads begun before them, and invalidations.

M10: the value of a `set` was computed before the call, so the generations stored with it must be no younger: those that this process saw
when it missed the key, else those there are when it asks. At worst the entry is void, a miss. An invalidation by this process closes the
flights it covers at the call and at the answer, and voids a `set` that is still asking.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from aiocache_aura import keys
from aiocache_aura.clock import Clock
from aiocache_aura.codecs.envelope import seal
from aiocache_aura.entries import REMEMBERED, Entries, Terms, finite, log
from aiocache_aura.errors import BackendError
from aiocache_aura.generations import Address, Addresses
from aiocache_aura.resilience.single_flight import Tick
from aiocache_aura.stores.base import Port, Scopes, Tokens
from aiocache_aura.types import MISSING

REMEMBER_FOR = 30.0  # seconds that a miss of this process vouches for a later `set` of the key


class Writes(Entries):
    """What writes and invalidates."""

    def __init__(self, port: Port, addresses: Addresses, clock: Clock, *, budget: float, tick: Tick, log_keys: bool = False) -> None:
        super().__init__(port, addresses, clock, budget=budget, tick=tick, log_keys=log_keys)
        self._missed: dict[bytes, tuple[float, Tokens]] = {}
        self._invalidated: list[tuple[int, frozenset[bytes]]] = []
        self._sets_under_way = 0

    async def ttl(self, address: Address, terms: Terms) -> float | None:
        """Seconds left of an entry that a read would be served from, inf for ever; None if there is none."""
        entry, _, _ = await self._examine(address, None, terms)
        return None if entry is None else entry.left(self._time())

    async def set(self, items: Sequence[tuple[Address, Any]], terms: Terms) -> None:
        """Write values over whatever is there, and void the loads under way (M10)."""
        encoded = [(address, self._encode_explicit(terms, value)) for address, value in items]
        addresses = [address for address, _ in items]
        if not terms.life:
            await self.delete(addresses, terms)
            return
        began = self._tick.now
        self.flights.close(address.key for address in addresses)
        self._sets_under_way += 1
        try:
            prints = await self._fingerprints(addresses, terms)
            if self._invalidated_since(began, addresses):
                await self._port.delete([address.key for address in addresses], timeout=self._budget)
            else:
                writes = [self._write(terms, address, sealed, prints[address.key]) for address, sealed in encoded]
                await self._port.store(writes, timeout=self._budget)
        finally:
            self._end_set()
            self.flights.close(address.key for address in addresses)
        self._add(terms, "sets", len(items))

    def _end_set(self) -> None:
        self._sets_under_way -= 1
        if not self._sets_under_way:
            self._invalidated.clear()

    def _write(self, terms: Terms, address: Address, sealed: tuple[int, bytes], fingerprint: bytes) -> tuple[bytes, bytes, float | None]:
        entry = self._entry(terms, address, sealed, fingerprint, self._time(), 0.0)
        return address.key, seal(address.checksum, entry), finite(entry.ttl)

    def _encode_explicit(self, terms: Terms, value: Any) -> tuple[int, bytes]:
        return self._encode(terms, terms.serializer.convert(value) if terms.convert else value)

    async def _fingerprints(self, addresses: Sequence[Address], terms: Terms) -> dict[bytes, bytes]:
        """Of each key, the generations that a `set` of it stores: those this process saw missing it, else those there are now (M10)."""
        known = {address.key: self._recall(address) for address in addresses}
        scopes = tuple(dict.fromkeys(scope for address in addresses for scope in address.scopes))
        asked = (await self._port.generations(scopes, life=finite(terms.life), timeout=self._budget)).found  # and live as long (M8)
        prints = {}
        for address in addresses:
            tokens = {scope: known[address.key].get(scope) or asked.get(scope) for scope in address.scopes}
            fingerprint = Tokens(tokens).fingerprint(address.scopes)
            if fingerprint is None:
                raise BackendError(f"{terms.label}: the server does not keep generations; is its memory full?")
            prints[address.key] = fingerprint
        return prints

    def _remember_miss(self, address: Address, tokens: Tokens) -> None:
        if len(self._missed) >= REMEMBERED:
            del self._missed[next(iter(self._missed))]
        self._missed[address.key] = self._monotonic(), tokens

    def _recall(self, address: Address) -> Mapping[bytes, bytes | None]:
        when, tokens = self._missed.pop(address.key, (0.0, None))
        return tokens.found if tokens is not None and self._monotonic() - when < REMEMBER_FOR else {}

    def _invalidated_since(self, began: int, addresses: Sequence[Address]) -> bool:
        return any(tick >= began and not scopes.isdisjoint(a.scopes) for tick, scopes in self._invalidated for a in addresses)

    async def add(self, address: Address, value: Any, terms: Terms) -> bool:
        """Write only if a read would find nothing; whether it was written."""
        sealed = self._encode_explicit(terms, value)
        if not terms.life:
            return False
        began = self._tick.now
        self._sets_under_way += 1
        try:
            entry, raw, tokens = await self._examine(address, None, terms)
            if entry is not None and self._decoded(address, entry, terms) is not MISSING:
                return False
            if address.key not in self._missed:
                self._remember_miss(address, tokens)
            fingerprint = (await self._fingerprints([address], terms))[address.key]
            if self._invalidated_since(began, [address]):
                return False
            self.flights.close([address.key])
            key, fresh, life = self._write(terms, address, sealed, fingerprint)
            written = await self._port.store_if(key, fresh, life, seen=raw, timeout=self._budget)
            self.flights.close([address.key])
        finally:
            self._end_set()
        self._add(terms, "sets", int(written))
        return written

    async def touch(self, address: Address, life: float, terms: Terms) -> bool:
        """Give an entry that a read would find `life` seconds from now; False if there is none."""
        entry, raw, _ = await self._examine(address, None, terms)
        if entry is None or raw is None:
            return False
        if not life:
            return bool(await self.delete([address], terms))
        scopes = self._scopes_of(address, entry)
        generations = await self._port.generations(scopes, life=finite(life), timeout=self._budget)  # which have to live as long (M8)
        if generations.fingerprint(scopes) != entry.fingerprint:
            return False
        renewed = seal(address.checksum, entry.renewed(self._time(), life))
        return await self._port.expire(address.key, renewed, finite(life), seen=raw, timeout=self._budget)

    async def delete(self, addresses: Sequence[Address], terms: Terms | None = None) -> int:
        """Remove values and void the loads under way; how many were stored."""
        self.flights.close(address.key for address in addresses)
        try:
            gone = await self._port.delete([address.key for address in addresses], timeout=self._budget)
        finally:
            self.flights.close(address.key for address in addresses)
        if terms is not None:
            self._add(terms, "deletes", gone)
        if log.isEnabledFor(logging.DEBUG):
            for address in addresses:
                log.debug("deleted %s", self.shown(address))
        return gone

    async def invalidate(self, scopes: Scopes) -> bool:
        """Drop these generations; False if the store did not take it, which is logged. Never raises for the store."""
        meant = frozenset(scopes)
        self._close_meant(meant)
        try:
            await self._port.invalidate(scopes, timeout=self._budget)
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
        self._missed.clear()
        if self._sets_under_way:
            self._invalidated.append((self._tick.take(), meant))

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

        self.flights.close_where(lambda flight: matches(flight.key))
        try:
            gone = await self._port.purge(_glob_literal(head) + b"*", matches, timeout=self._budget)
        finally:
            self.flights.close_where(lambda flight: matches(flight.key))
        log.debug("invalidated %d entries of %s by a pattern", gone, cache_type)
        return gone


def _among(wanted: str | None, found: str | None) -> bool:
    return wanted is None or (found is not None and keys.segment(wanted) in found.split("+"))


def _glob_literal(text: bytes) -> bytes:
    return b"".join(b"\\" + bytes([c]) if c in b"*?[]\\^" else bytes([c]) for c in text)
