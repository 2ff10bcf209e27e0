"""Entries: what is stored made readable, and values made storable. Shared by reads and writes; no loading, no fences.

Compare on read (M2): an entry serves only if the token of each scope that it depends on is there and their fingerprint is the one it
carries. Which scopes those are, the call knows for its own entries; for others the entry's head says, at the price of a second round trip,
and is remembered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from aiocache_aura.clock import Clock
from aiocache_aura.codecs import failures
from aiocache_aura.codecs.envelope import IS_ERROR, IS_NONE, KIND, Entry, seal, unseal
from aiocache_aura.codecs.serializers import Undecodable
from aiocache_aura.counting import Counting, log
from aiocache_aura.errors import BackendError, ValueTooLargeError
from aiocache_aura.freshness import Standing, is_used, standing
from aiocache_aura.generations import Address, Addresses
from aiocache_aura.policy import jittered
from aiocache_aura.recorder import Recorder
from aiocache_aura.resilience.single_flight import Flights, Tick
from aiocache_aura.stores.base import Port, Scopes, Tokens
from aiocache_aura.terms import FOR_EVER, Terms

REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Sight:
    """What a lookup of a key came to: the entry that is there, the bytes of it, and the generations seen with it."""

    standing: Standing
    entry: Entry | None
    raw: bytes | None = field(repr=False)
    tokens: Tokens

    @property
    def has_value(self) -> bool:
        """Whether a fresh value is there, of whatever type; an error that was cached is none."""
        return self.entry is not None and self.standing is Standing.FRESH and not self.entry.flags & IS_ERROR


@dataclass(frozen=True, slots=True)
class Held:
    """A stored value that a read may be given, and what it was found in. An `error` is what the load raised: it was cached as such."""

    value: Any = field(repr=False)
    error: Exception | None = field(repr=False)
    sight: Sight

    @property
    def is_fresh(self) -> bool:
        return self.sight.standing is Standing.FRESH


class Entries(Counting):
    """One manager's entries, as one event loop sees them."""

    def __init__(
        self,
        port: Port,
        addresses: Addresses,
        clock: Clock,
        *,
        budget: float,
        tick: Tick,
        log_keys: bool = False,
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__(clock, recorder, log_keys=log_keys)
        self._port, self._addresses = port, addresses
        self._budget, self._tick = budget, tick
        self.flights = Flights(tick, patience=budget)
        self._under_way = self.flights.by_key
        self._hints: dict[bytes, Scopes] = {}
        self._sliding: set[bytes] = set()
        self._chores: set[asyncio.Task[Any]] = set()

    async def _look(self, address: Address, terms: Terms, answer: tuple[bytes | None, Tokens] | None = None) -> tuple[Held | None, Sight]:
        """What a read may be given, fresh or stale, and what was found."""
        sight = await self._examine(address, terms, answer)
        return self._held(address, sight, terms), sight

    def _held(self, address: Address, sight: Sight, terms: Terms) -> Held | None:
        """The value, None for what must not be given and for an entry of another declared type."""
        entry = sight.entry
        if entry is None or sight.standing is Standing.DEAD:
            return None
        if entry.flags & IS_ERROR:
            error = failures.rebuilt(entry.payload, terms.cache_errors)
            return None if error is None else Held(None, error, sight)
        if entry.flags & IS_NONE:
            return Held(None, None, sight)
        try:
            return Held(terms.serializer.decode(entry.codec, entry.schema, entry.payload), None, sight)
        except Undecodable as reason:
            self._happens(terms, "undecodable")
            log.debug("undecodable %s: %s", self.shown(address), reason)
            return None

    async def _examine(self, address: Address, terms: Terms, answer: tuple[bytes | None, Tokens] | None = None) -> Sight:
        raw, tokens = answer or await self._port.lookup(address.key, self._hints.get(address.key, address.scopes))
        while raw is not None:
            entry = unseal(address.checksum, raw)
            if entry is None:
                self._happens(terms, "undecodable")
                break
            needed = self._scopes_of(address, entry)
            if any(scope not in tokens.found for scope in needed):
                self._hint(address.key, tuple(dict.fromkeys((*address.scopes, *needed))))
                raw, tokens = await self._port.lookup(address.key, self._hints[address.key])
                continue
            return Sight(standing(entry, self._time(), tokens.fingerprint(needed), terms.stale), entry, raw, tokens)
        return Sight(Standing.DEAD, None, raw, tokens)

    def _may_stand_in(self, address: Address, sight: Sight) -> bool:
        """Whether some reader may be given what was found, if not this one."""
        entry = sight.entry
        if entry is None:
            return False
        fingerprint = sight.tokens.fingerprint(self._scopes_of(address, entry))
        return standing(entry, self._time(), fingerprint, entry.stale) is not Standing.DEAD

    def _scopes_of(self, address: Address, entry: Entry) -> Scopes:
        if entry.extras == address.extras and entry.flags & ~KIND == address.flags:
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

    def _entry(
        self,
        terms: Terms,
        address: Address,
        sealed: tuple[int, bytes],
        fingerprint: bytes,
        created: float,
        cost: float,
        *,
        life: float,
        kind: int = 0,
    ) -> Entry:
        return Entry(
            codec=sealed[0],
            flags=address.flags | kind,
            created=created,
            ttl=jittered(life, terms.jitter),
            stale=0.0 if kind & IS_ERROR else terms.stale,
            cost=cost,
            schema=terms.serializer.schema,
            fingerprint=fingerprint,
            extras=address.extras,
            payload=sealed[1],
        )

    async def _renew(self, address: Address, sight: Sight, life: float) -> bool:
        """Give the entry that was seen a new life, unless another is there by now, or its generations are not what they were."""
        entry = sight.entry
        if entry is None or sight.raw is None:
            return False
        scopes = self._scopes_of(address, entry)
        reach = finite(life + entry.stale)
        generations = await self._port.generations(scopes, life=reach, timeout=self._budget)  # which have to live as long (M8)
        if generations.fingerprint(scopes) != entry.fingerprint:
            return False
        renewed = seal(address.checksum, entry.renewed(self._time(), life))
        return await self._port.expire(address.key, renewed, reach, seen=sight.raw, timeout=self._budget)

    def _slide(self, address: Address, held: Held, terms: Terms) -> None:
        """A hit renews the life, behind the caller's back; not with every hit of a crowd, and not that of an error."""
        entry = held.sight.entry
        if terms.sliding and held.error is None and entry is not None and is_used(entry, self._time()) and address.key not in self._sliding:
            self._sliding.add(address.key)
            self._behind(self._slid(address, held.sight, entry.ttl, terms))

    async def _slid(self, address: Address, sight: Sight, life: float, terms: Terms) -> None:
        try:
            await self._renew(address, sight, life)
        except BackendError as error:
            self._fault(error, terms)
        finally:
            self._sliding.discard(address.key)

    def _behind(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do it without anybody waiting for it; `aclose` does."""
        task = asyncio.get_running_loop().create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


def finite(life: float) -> float | None:
    """A life as stores take it: None for ever."""
    return None if life == FOR_EVER else life
