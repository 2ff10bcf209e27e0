"""Entries: what is stored made readable, and values made storable. Shared by reads and writes; no loading, no fences.

Compare on read (M2): an entry serves only if the token of each scope that it depends on is there and their fingerprint is the one it
carries. Which scopes those are, the call knows for its own entries; for others the entry's head says, at the price of a second round trip,
and is remembered.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from aiocache_aura.clock import Clock
from aiocache_aura.codecs.envelope import Entry, unseal
from aiocache_aura.codecs.serializers import Undecodable
from aiocache_aura.errors import BackendError, ValueTooLargeError
from aiocache_aura.generations import Address, Addresses
from aiocache_aura.policy import jittered
from aiocache_aura.resilience.fail_safe import FaultLog
from aiocache_aura.resilience.single_flight import Flights, Tick
from aiocache_aura.stores.base import Port, Scopes, Tokens
from aiocache_aura.terms import Terms
from aiocache_aura.types import MISSING

log = logging.getLogger("aiocache_aura.engine")

FOR_EVER = float("inf")
REMEMBERED = 1024


class Entries:
    """One manager's entries, as one event loop sees them."""

    def __init__(self, port: Port, addresses: Addresses, clock: Clock, *, budget: float, tick: Tick, log_keys: bool = False) -> None:
        self._port, self._addresses = port, addresses
        self._time, self._monotonic = clock.time, clock.monotonic
        self._budget, self._tick, self._log_keys = budget, tick, log_keys
        self._faults = FaultLog(log, clock=clock)
        self.flights = Flights(tick, patience=budget)
        self._under_way = self.flights.by_key
        self.unstorable: dict[str, str] = {}
        self._hints: dict[bytes, Scopes] = {}

    async def _find(self, address: Address, terms: Terms, answer: tuple[bytes | None, Tokens] | None) -> Any:
        entry, _, _ = await self._examine(address, answer, terms)
        return MISSING if entry is None else self._decoded(address, entry, terms)

    def _decoded(self, address: Address, entry: Entry, terms: Terms) -> Any:
        """The value, or MISSING for an entry of another declared type."""
        try:
            return terms.serializer.decode(entry.codec, entry.schema, entry.payload)
        except Undecodable as reason:
            self._add(terms, "undecodable", 1)
            log.debug("undecodable %s: %s", self.shown(address), reason)
            return MISSING

    async def _examine(
        self, address: Address, answer: tuple[bytes | None, Tokens] | None, terms: Terms
    ) -> tuple[Entry | None, bytes | None, Tokens]:
        """(the entry if a read may be served from it, the bytes that are there, the generations seen with them)."""
        raw, tokens = answer or await self._port.lookup(address.key, self._hints.get(address.key, address.scopes))
        while raw is not None:
            entry = unseal(address.checksum, raw)
            if entry is None:
                self._add(terms, "undecodable", 1)
                break
            needed = self._scopes_of(address, entry)
            if any(scope not in tokens.found for scope in needed):
                self._hint(address.key, tuple(dict.fromkeys((*address.scopes, *needed))))
                raw, tokens = await self._port.lookup(address.key, self._hints[address.key])
                continue
            servable = entry.is_fresh(self._time()) and tokens.fingerprint(needed) == entry.fingerprint
            return (entry if servable else None), raw, tokens
        return None, raw, tokens

    def _scopes_of(self, address: Address, entry: Entry) -> Scopes:
        if entry.extras == address.extras and entry.flags == address.flags:
            return address.scopes
        return self._addresses.scopes_of_entry(address, entry.flags, entry.extras)

    def _hint(self, key: bytes, scopes: Scopes) -> None:
        """Remember what to ask for with this key: tags that only its entry names."""
        if len(self._hints) >= REMEMBERED:
            del self._hints[next(iter(self._hints))]
        self._hints[key] = scopes

    def _encode(self, terms: Terms, value: Any) -> tuple[int, bytes]:
        codec, payload = terms.serializer.encode(value)
        if len(payload) > terms.max_value_bytes:
            raise ValueTooLargeError(
                f"{terms.label}: {len(payload):,} bytes once serialised, above max_value_bytes={terms.max_value_bytes:,}; "
                "store less or raise it"
            )
        return codec, payload

    def _entry(self, terms: Terms, address: Address, sealed: tuple[int, bytes], fingerprint: bytes, created: float, cost: float) -> Entry:
        return Entry(
            codec=sealed[0],
            flags=address.flags,
            created=created,
            ttl=jittered(terms.life, terms.jitter),
            stale=0.0,
            cost=cost,
            schema=terms.serializer.schema,
            fingerprint=fingerprint,
            extras=address.extras,
            payload=sealed[1],
        )

    # Counting and telling

    def _add(self, terms: Terms, name: str, amount: float) -> None:
        for counts in (terms.counts, terms.own):
            if counts is not None:
                setattr(counts, name, getattr(counts, name) + amount)

    def _count_hit(self, terms: Terms, address: Address) -> None:
        self._add(terms, "hits", 1)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("hit %s", self.shown(address))

    def _count_miss(self, terms: Terms, address: Address, *, coalesced: bool) -> None:
        self._add(terms, "misses", 1)
        self._add(terms, "coalesced", int(coalesced))
        if log.isEnabledFor(logging.DEBUG):
            log.debug("miss %s%s", self.shown(address), ", joins a load" if coalesced else "")

    def _fault(self, error: BackendError, terms: Terms) -> None:
        self._add(terms, "errors", 1)
        self._faults.report(error, terms.label)

    def _note_unstorable(self, terms: Terms, error: Exception) -> None:
        self._add(terms, "unstorable", 1)
        if terms.label not in self.unstorable:
            self.unstorable[terms.label] = str(error)
            log.warning("%s is returned but not cached: %s", terms.label, error)

    def shown(self, address: Address) -> str:
        return shown(address, self._log_keys)

    def shown_scopes(self, scopes: Scopes) -> str:
        """Scopes as logs may show them: tenants, users and tags hashed, unless `log_keys`."""
        names = [scope.decode().partition("!g:")[2] for scope in scopes]
        return ", ".join(names if self._log_keys else map(_hashed, names))


def shown(address: Address, log_keys: bool) -> str:
    """A key as logs may show it: arguments hashed, unless `log_keys`."""
    if log_keys:
        return address.key.decode()
    name = address.tail.partition(":")[0] if address.tail.startswith("@") else "="
    return f"{address.cache_type}:{name}#{hashlib.blake2b(address.key, digest_size=6).hexdigest()}"


def _hashed(name: str) -> str:
    """`y:menu:t1` as `y:menu#...`, `g:promo` as `g:#...`; a type and a function as they are."""
    kind, _, rest = name.partition(":")
    head, _, ids = {"f": (rest, "", ""), "y": rest.partition(":")}.get(kind, ("", "", rest))
    return f"{kind}:{head}" + (f"#{hashlib.blake2b(ids.encode(), digest_size=6).hexdigest()}" if ids else "")


def finite(life: float) -> float | None:
    """A life as stores take it: None for ever."""
    return None if life == FOR_EVER else life
