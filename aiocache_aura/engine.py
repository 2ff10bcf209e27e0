"""The way of a read, and nothing else: lookup, flight, load, fenced fill.

    hit      one lookup: value and generations in one round trip, shared by the whole tick
    miss     found or join the flight of the key -> claim (permit and generations, M6, M9) -> load -> fill (fenced), then the generations
             again (M3) -> everybody who may have the result takes its own copy
    fault    the store did not answer within the budget: the flight loads all the same, nothing is stored, nobody late may join the result

Rules, by their numbers in docs/protocol.md: M1 a lookup serves only reads that began before it was written, because each read waits for a
lookup of its own tick; M2 compare on read; M3, M4 and M17 are the flights'; M6 capture with the claim; M10 a `set` stores the generations
that were known when it began, or asks; an invalidation by this process closes its flights at the call and at the answer.

Values that cannot be stored are handed to all callers of the flight as the one object; every other caller owns what it gets.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiocache_aura import keys
from aiocache_aura.clock import Clock
from aiocache_aura.codecs.envelope import Entry, open_fresh, seal, unseal
from aiocache_aura.codecs.serializers import Serializer, Undecodable
from aiocache_aura.errors import BackendError, SerializationError, ValueTooLargeError
from aiocache_aura.generations import Address, Addresses
from aiocache_aura.policy import jittered
from aiocache_aura.resilience.fail_safe import FaultLog
from aiocache_aura.resilience.single_flight import RETRY, Flight, Flights, Load, Tick, Waiter
from aiocache_aura.stats import Counts
from aiocache_aura.stores.base import Claim, Fill, Port, Scopes, Tokens
from aiocache_aura.types import MISSING

log = logging.getLogger("aiocache_aura.engine")

FOR_EVER = float("inf")
REMEMBERED = 1024
REMEMBER_FOR = 30.0  # seconds that a miss of this process vouches for a later `set` of the key


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How the entries of one function or verb are made and given."""

    serializer: Serializer
    life: float
    jitter: float = 0.0
    share: bool = False
    max_value_bytes: int
    counts: Counts
    own: Counts | None = None
    label: str
    convert: bool = False
    personal: bool = False


class Loaded:
    """What a load gave: handed out as a copy for each caller, or as the one object."""

    __slots__ = ("_sealed", "_serializer", "value")

    def __init__(self, value: Any, sealed: tuple[int, bytes] | None, serializer: Serializer) -> None:
        self.value, self._sealed, self._serializer = value, sealed, serializer

    def take(self) -> Any:
        if self._sealed is None:
            return self.value
        codec, payload = self._sealed
        return self._serializer.decode(codec, self._serializer.schema, payload)


class Engine:
    """One manager's way of reading and writing in one event loop."""

    def __init__(self, port: Port, addresses: Addresses, clock: Clock, *, budget: float, tick: Tick, log_keys: bool = False) -> None:
        self._port, self._addresses = port, addresses
        self._time, self._monotonic = clock.time, clock.monotonic
        self._budget, self._tick, self._log_keys = budget, tick, log_keys
        self._faults = FaultLog(log, clock=clock)
        self.flights = Flights(tick, patience=budget)
        self.unstorable: dict[str, str] = {}
        self._hints: dict[bytes, Scopes] = {}
        self._missed: dict[bytes, tuple[float, Tokens]] = {}
        self._invalidated: list[tuple[int, frozenset[bytes]]] = []
        self._sets_under_way = 0

    def __repr__(self) -> str:
        return f"<Engine over {self._port!r}, {self.flights!r}>"

    # Reading

    async def get_or_load(self, address: Address, terms: Terms, load: Load) -> Any:
        """The stored value, or what `load` gives: loaded once for all who wait. Never raises for the store."""
        began = self._tick.now
        if self.flights.get(address.key) is not None:
            return await self._miss(address, terms, load, began, None)
        started = self._monotonic()
        try:
            answer = await self._port.lookup(address.key, address.scopes)
        except BackendError as error:
            self._fault(error, terms)
            return await self._miss(address, terms, load, began, None, left=0.0)
        raw, tokens = answer
        if raw is not None:
            fingerprint = tokens.fingerprint(address.scopes)
            found = open_fresh(raw, address.checksum, address.owner.flags, address.extras, fingerprint, self._time())
            if found is not None:
                try:
                    value = terms.serializer.decode(*found)
                except Undecodable:
                    pass  # counted where the whole entry is examined
                else:
                    terms.counts.hits += 1
                    if terms.own is not None:
                        terms.own.hits += 1
                    if log.isEnabledFor(logging.DEBUG):
                        log.debug("hit %s", self.shown(address))
                    return value
        return await self._miss(address, terms, load, began, answer, left=self._budget - self._monotonic() + started)

    async def _miss(
        self,
        address: Address,
        terms: Terms,
        load: Load,
        began: int,
        answer: tuple[bytes | None, Tokens] | None,
        *,
        left: float | None = None,
    ) -> Any:
        left = self._budget if left is None else left
        counted = False
        while True:
            flight = self.flights.get(address.key)
            if flight is None and left > 0:
                asked = began if answer else self._tick.now
                try:
                    value = await self._find(address, terms, answer)
                except BackendError as error:
                    self._fault(error, terms)
                    left = 0.0
                else:
                    if value is not MISSING:
                        self._count_hit(terms, address)
                        return value
                answer = None
                flight = self.flights.get(address.key)
                if flight is None and left > 0 and self.flights.filled_since(address.key, asked):
                    continue
            if not counted:
                counted = True
                self._count_miss(terms, address, coalesced=flight is not None)
            if flight is None:
                flight = self._take_off(address, terms, load, left)
            outcome = await flight.outcome(flight.board(began, load if terms.personal else None))
            if outcome is not RETRY and outcome is not MISSING:
                return outcome.take()

    def _take_off(self, address: Address, terms: Terms, load: Load, left: float) -> Flight:
        flight = self.flights.open(address.key, address.scopes)
        self.flights.start([flight], partial(self._fly, flight, address, terms, load, left))
        return flight

    async def _fly(self, flight: Flight, address: Address, terms: Terms, load: Load, left: float) -> None:
        claims, left = await self._claim([address], terms, left)
        if terms.personal:
            result = await self._timed(terms, flight.run_personal)
        else:
            flight.begin_load()
            result = await self._timed(terms, load)
        loaded = self._loaded(terms, result[0])
        confirmed = await self._fill([flight], [address], [loaded], claims, terms, result[1:], left)
        flight.finish(loaded[0], confirmed=confirmed[0])

    async def _claim(self, addresses: Sequence[Address], terms: Terms, left: float) -> tuple[list[Claim] | None, float]:
        """Permits and generations, and what is left of the budget; None where nothing can or need be stored."""
        if left <= 0 or not terms.life:
            return None, 0.0
        started = self._monotonic()
        wanted = [(address.key, address.scopes) for address in addresses]
        try:
            claims = await self._port.claim(wanted, life=_finite(terms.life), timeout=left)
        except BackendError as error:
            self._fault(error, terms)
            return None, 0.0
        return claims, left - (self._monotonic() - started)

    async def _timed(self, terms: Terms, load: Load) -> tuple[Any, float, float]:
        """(what the load gave, when it began, seconds it took)."""
        created, started = self._time(), self._monotonic()
        try:
            value = await load()
        except BaseException:
            self._add(terms, "load_errors", 1)
            raise
        finally:
            cost = self._monotonic() - started
            self._add(terms, "loads", 1)
            self._add(terms, "load_seconds", cost)
        return value, created, cost

    def _loaded(self, terms: Terms, value: Any) -> tuple[Loaded, tuple[int, bytes] | None]:
        """What to hand out, and what to store of it: None for a None, and for what cannot be stored."""
        if terms.convert:
            value = terms.serializer.convert(value)
        if value is None:
            return Loaded(None, None, terms.serializer), None
        try:
            sealed = self._encode(terms, value)
        except (SerializationError, ValueTooLargeError) as error:
            self._note_unstorable(terms, error)
            return Loaded(value, None, terms.serializer), None
        return Loaded(value, None if terms.share else sealed, terms.serializer), sealed

    def _encode(self, terms: Terms, value: Any) -> tuple[int, bytes]:
        codec, payload = terms.serializer.encode(value)
        if len(payload) > terms.max_value_bytes:
            raise ValueTooLargeError(
                f"{terms.label}: {len(payload):,} bytes once serialised, above max_value_bytes={terms.max_value_bytes:,}; store less or raise it"
            )
        return codec, payload

    async def _fill(
        self,
        flights: Sequence[Flight],
        addresses: Sequence[Address],
        loaded: Sequence[tuple[Loaded, tuple[int, bytes] | None] | Any],
        claims: list[Claim] | None,
        terms: Terms,
        made: tuple[float, float],
        left: float,
    ) -> list[bool]:
        """Store what was loaded; for each flight whether it is confirmed for late callers."""
        confirmed = [False] * len(flights)
        stored = _stored(loaded)
        fills: list[tuple[int, Fill, bytes]] = []
        for n, (flight, address, sealed) in enumerate(zip(flights, addresses, stored, strict=True)):
            fingerprint = claims[n].tokens.fingerprint(address.scopes) if claims and sealed and flight.is_open else None
            if claims and sealed and fingerprint is not None:
                entry = self._entry(terms, address, sealed, fingerprint, *made)
                raw = seal(address.checksum, entry)
                fills.append((n, Fill(address.key, raw, _finite(entry.ttl), claims[n].permit, address.scopes), fingerprint))
        if not fills or left <= 0:
            return confirmed
        filling = [flights[n] for n, _, _ in fills]
        try:
            verdicts = await self._port.fill([fill for _, fill, _ in fills], written=partial(_all_written, filling), timeout=left)
        except BackendError as error:
            self._fault(error, terms)
            return confirmed
        for (n, fill, fingerprint), verdict in zip(fills, verdicts, strict=True):
            self.flights.note_fill(fill.key)
            self._add(terms, "sets", int(verdict.accepted))
            confirmed[n] = verdict.accepted and verdict.tokens.fingerprint(fill.scopes) == fingerprint
        return confirmed

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

    async def refresh(self, address: Address, terms: Terms, load: Load) -> Any:
        """Load anew, whatever is stored, and store it; shared only with callers that began before that load did."""
        began = self._tick.now
        self._count_miss(terms, address, coalesced=False)
        flight = self.flights.get(address.key)
        if flight is None or not flight.was_founded_by(began):
            flight = self._take_off(address, terms, load, self._budget)
        while True:
            outcome = await flight.outcome(flight.board(began, load if terms.personal else None))
            if outcome is not RETRY and outcome is not MISSING:
                return outcome.take()
            flight = self._take_off(address, terms, load, self._budget)

    async def get(self, address: Address, terms: Terms, *, count: bool = True) -> Any:
        """The stored value, or MISSING; BackendError where the store cannot be asked."""
        return (await self.get_many([address], terms, count=count))[0]

    async def get_many(self, addresses: Sequence[Address], terms: Terms, *, count: bool = True) -> list[Any]:
        """The stored values in order, MISSING for those that are not there; one round trip."""
        lookups = [self._port.lookup(address.key, self._hints.get(address.key, address.scopes)) for address in addresses]
        answers = [await lookup for lookup in lookups]
        values = [await self._find(address, terms, answer) for address, answer in zip(addresses, answers, strict=True)]
        for address, value, (_, tokens) in zip(addresses, values, answers, strict=True):
            if value is MISSING:
                self._remember_miss(address, tokens)
            if count and value is MISSING:
                self._count_miss(terms, address, coalesced=False)
            elif count:
                self._count_hit(terms, address)
        return values

    async def get_or_load_many(
        self, addresses: Sequence[Address], terms: Terms, load: Callable[[list[int]], Awaitable[Mapping[int, Any]]]
    ) -> list[Any]:
        """As `get_or_load` for many: one call of `load` with the positions that are missing and that nobody loads yet.

        MISSING where the loader left a position out. Flights under way are joined; what is led is loaded at once, the followed are waited
        for afterwards (M16).
        """
        began, left = self._tick.now, self._budget
        values: list[Any] = [MISSING] * len(addresses)
        wanted = list(range(len(addresses)))
        while wanted:
            if left > 0:
                try:
                    found = await self.get_many([addresses[n] for n in wanted], terms)
                except BackendError as error:
                    self._fault(error, terms)
                    left = 0.0
                else:
                    values = _with(values, wanted, found)
            wanted = [n for n in wanted if values[n] is MISSING]
            aboard = self._board_all(addresses, wanted, terms, load, began, left)
            outcomes = await _all_outcomes(aboard)
            for n, outcome in outcomes.items():
                values[n] = outcome if outcome is RETRY or outcome is MISSING else outcome.take()
            wanted = [n for n, outcome in outcomes.items() if outcome is RETRY]
            values = [MISSING if value is RETRY else value for value in values]
        return values

    def _board_all(
        self,
        addresses: Sequence[Address],
        wanted: Sequence[int],
        terms: Terms,
        load: Callable[[list[int]], Awaitable[Mapping[int, Any]]],
        began: int,
        left: float,
    ) -> dict[int, tuple[Flight, Waiter]]:
        """Join the flights there are and lead one batch for the rest, in one synchronous stretch."""
        led: dict[int, Flight] = {}
        aboard: dict[int, tuple[Flight, Waiter]] = {}
        for n in wanted:
            flight = self.flights.get(addresses[n].key)
            if flight is None:
                flight = led[n] = self.flights.open(addresses[n].key, addresses[n].scopes)
            aboard[n] = flight, flight.board(began)
        if led:
            self.flights.start(list(led.values()), partial(self._fly_many, led, addresses, terms, load, left))
        return aboard

    async def _fly_many(
        self,
        led: dict[int, Flight],
        addresses: Sequence[Address],
        terms: Terms,
        load: Callable[[list[int]], Awaitable[Mapping[int, Any]]],
        left: float,
    ) -> None:
        positions, flights = list(led), list(led.values())
        targets = [addresses[n] for n in positions]
        claims, left = await self._claim(targets, terms, left)
        for flight in flights:
            flight.begin_load()
        result = await self._timed(terms, partial(load, positions))
        loaded = [self._loaded(terms, result[0][n]) if n in result[0] else MISSING for n in positions]
        confirmed = await self._fill(flights, targets, loaded, claims, terms, result[1:], left)
        for flight, one, sure in zip(flights, loaded, confirmed, strict=True):
            flight.finish(MISSING if one is MISSING else one[0], confirmed=sure)

    # What is stored

    async def _find(self, address: Address, terms: Terms, answer: tuple[bytes | None, Tokens] | None) -> Any:
        entry, _, _ = await self._examine(address, answer, terms)
        if entry is None:
            return MISSING
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

    async def ttl(self, address: Address, terms: Terms) -> float | None:
        """Seconds left of an entry that a read would be served from, inf for ever; None if there is none."""
        entry, _, _ = await self._examine(address, None, terms)
        return None if entry is None else entry.left(self._time())

    # Writing

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
            self._sets_under_way -= 1
            self.flights.close(address.key for address in addresses)
            if not self._sets_under_way:
                self._invalidated.clear()
        self._add(terms, "sets", len(items))

    def _write(self, terms: Terms, address: Address, sealed: tuple[int, bytes], fingerprint: bytes) -> tuple[bytes, bytes, float | None]:
        entry = self._entry(terms, address, sealed, fingerprint, self._time(), 0.0)
        return address.key, seal(address.checksum, entry), _finite(entry.ttl)

    def _encode_explicit(self, terms: Terms, value: Any) -> tuple[int, bytes]:
        return self._encode(terms, terms.serializer.convert(value) if terms.convert else value)

    async def _fingerprints(self, addresses: Sequence[Address], terms: Terms) -> dict[bytes, bytes]:
        """Of each key, the generations that a `set` of it stores: those this process saw missing it, else those there are now (M10)."""
        known = {address.key: self._recall(address) for address in addresses}
        unknown = dict.fromkeys(scope for a in addresses for scope in a.scopes if known[a.key].get(scope) is None)
        asked: dict[bytes, bytes | None] = {}
        if unknown:
            asked = (await self._port.generations(tuple(unknown), life=_finite(terms.life), timeout=self._budget)).found
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
        self.flights.close([address.key])
        entry, raw, _ = await self._examine(address, None, terms)
        if entry is not None:
            return False
        fingerprint = (await self._fingerprints([address], terms))[address.key]
        key, fresh, life = self._write(terms, address, sealed, fingerprint)
        written = await self._port.store_if(key, fresh, life, seen=raw, timeout=self._budget)
        self.flights.close([address.key])
        self._add(terms, "sets", int(written))
        return written

    async def touch(self, address: Address, life: float, terms: Terms) -> bool:
        """Give an entry that a read would find `life` seconds from now; False if there is none."""
        entry, raw, _ = await self._examine(address, None, terms)
        if entry is None or raw is None:
            return False
        if not life:
            return bool(await self.delete([address], terms))
        renewed = seal(address.checksum, entry.renewed(self._time(), life))
        return await self._port.expire(address.key, renewed, _finite(life), seen=raw, timeout=self._budget)

    async def delete(self, addresses: Sequence[Address], terms: Terms | None = None) -> int:
        """Remove values and void the loads under way; how many were stored."""
        self.flights.close(address.key for address in addresses)
        try:
            gone = await self._port.delete([address.key for address in addresses], timeout=self._budget)
        finally:
            self.flights.close(address.key for address in addresses)
        if terms is not None:
            self._add(terms, "deletes", gone)
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
        log.debug("invalidated %s", scopes)
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
            return await self._port.purge(_glob_literal(head) + b"*", matches, timeout=self._budget)
        finally:
            self.flights.close_where(lambda flight: matches(flight.key))

    async def aclose(self) -> None:
        await self.flights.aclose()
        await self._port.aclose()

    def forget(self) -> None:
        self._port.forget()

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
        """A key as logs may show it: arguments hashed, unless `log_keys`."""
        if self._log_keys:
            return address.key.decode()
        name = address.tail.partition(":")[0] if address.tail.startswith("@") else "="
        return f"{address.cache_type}:{name}#{hashlib.blake2b(address.key, digest_size=6).hexdigest()}"


def _finite(life: float) -> float | None:
    return None if life == FOR_EVER else life


def _stored(loaded: Sequence[Any]) -> list[tuple[int, bytes] | None]:
    return [None if one is MISSING else one[1] for one in loaded]


def _all_written(flights: Sequence[Flight]) -> None:
    for flight in flights:
        flight.fill_written()


def _with(values: list[Any], positions: Sequence[int], found: Sequence[Any]) -> list[Any]:
    changed = list(values)
    for n, value in zip(positions, found, strict=True):
        changed[n] = value
    return changed


async def _all_outcomes(aboard: dict[int, tuple[Flight, Waiter]]) -> dict[int, Any]:
    """Every flight's outcome; if one fails or the caller is cancelled, the others are left."""
    outcomes: dict[int, Any] = {}
    try:
        for n, (flight, waiter) in aboard.items():
            outcomes[n] = await flight.outcome(waiter)
    except BaseException:
        for flight, waiter in aboard.values():
            await flight.leave(waiter)
        raise
    return outcomes


def _among(wanted: str | None, found: str | None) -> bool:
    return wanted is None or (found is not None and keys.segment(wanted) in found.split("+"))


def _glob_literal(text: bytes) -> bytes:
    return b"".join(b"\\" + bytes([c]) if c in b"*?[]\\^" else bytes([c]) for c in text)


__all__ = ["Awaitable", "Engine", "Terms"]
