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

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from aiocache_aura.codecs.envelope import open_fresh, seal
from aiocache_aura.codecs.serializers import Serializer, Undecodable
from aiocache_aura.entries import finite, log
from aiocache_aura.errors import BackendError, SerializationError, ValueTooLargeError
from aiocache_aura.generations import Address
from aiocache_aura.resilience.single_flight import RETRY, Flight, Load, Waiter
from aiocache_aura.stores.base import Claim, Fill, Tokens
from aiocache_aura.terms import Terms
from aiocache_aura.types import MISSING
from aiocache_aura.writes import Writes


class Loaded:
    """What a load gave: handed out as a copy for each caller, or as the one object."""

    __slots__ = ("_sealed", "_serializer", "value")

    def __init__(self, value: Any, sealed: tuple[int, bytes] | None, serializer: Serializer) -> None:
        self.value, self._sealed, self._serializer = value, sealed, serializer

    def take(self, serializer: Serializer) -> Any:
        """It, as a read of the store by this serializer gives it; RETRY where such a read would miss, for another type is declared."""
        same = self._serializer.schema == serializer.schema
        if self._sealed is None:
            return self.value if same or self.value is None else RETRY
        codec, payload = self._sealed
        try:
            return serializer.decode(codec, self._serializer.schema, payload)
        except Undecodable:
            return self.value if same else RETRY  # a class of the user's may refuse at its second reading what it took at the first


class Engine(Writes):
    """One manager's way of reading and writing in one event loop."""

    def __repr__(self) -> str:
        return f"<Engine over {self._port!r}, {self.flights!r}>"

    # Reading

    async def get_or_load(self, address: Address, terms: Terms, load: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """The stored value, or what `load(*args)` gives: loaded once for all who wait. Never raises for the store."""
        began = self._tick.now
        if address.key in self._under_way:
            return await self._miss(address, terms, partial(load, *args), began, None)
        started = self._monotonic()
        try:
            answer = await self._port.lookup(address.key, address.scopes)
        except BackendError as error:
            self._fault(error, terms)
            return await self._miss(address, terms, partial(load, *args), began, None, left=0.0)
        raw, tokens = answer
        if raw is not None:
            fingerprint = tokens.fingerprint(address.scopes)
            found = open_fresh(raw, address.checksum, address.flags, address.extras, fingerprint, self._time())
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
        return await self._miss(address, terms, partial(load, *args), began, answer, left=self._budget - self._monotonic() + started)

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
            if (flight is None or flight.refreshes) and left > 0:
                asked = began if answer else self._tick.now
                try:
                    value = await self._find(address, terms, answer)
                except BackendError as error:
                    self._fault(error, terms)
                    left = 0.0
                else:
                    if value is not MISSING:
                        if not counted:
                            self._count_hit(terms, address)
                        return value
                answer = None
                flight = self.flights.get(address.key)
                if left > 0 and self._was_filled(address.key, asked):
                    continue
            if not counted:
                counted = True
                self._count_miss(terms, address, coalesced=flight is not None)
            if flight is None:
                flight, waiter = self._take_off(address, terms, load, began, left)
            else:
                waiter = flight.board(began, load if terms.personal else None)
            value = _taken(await flight.outcome(waiter), terms)
            if value is not RETRY and value is not MISSING:
                return value

    def _take_off(
        self, address: Address, terms: Terms, load: Load, began: int, left: float, *, refreshes: bool = False
    ) -> tuple[Flight, Waiter]:
        """A new flight, with its first caller aboard before it starts."""
        flight = self.flights.open(address.key, address.scopes, refreshes=refreshes)
        waiter = flight.board(began, load if terms.personal else None)
        self.flights.start([flight], partial(self._fly, flight, address, terms, load, left))
        return flight, waiter

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
            claims = await self._port.claim(wanted, life=finite(terms.life), timeout=left)
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
        if value is not None and terms.convert:
            value = terms.serializer.convert(value)
        if value is None:
            return Loaded(None, None, terms.serializer), None
        try:
            sealed = self._encode(terms, value)
        except (SerializationError, ValueTooLargeError) as error:
            self._note_unstorable(terms, error)
            return Loaded(value, None, terms.serializer), None
        return Loaded(value, None if terms.share else sealed, terms.serializer), sealed

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
                fills.append((n, Fill(address.key, raw, finite(entry.ttl), claims[n].permit, address.scopes), fingerprint))
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

    async def refresh(self, address: Address, terms: Terms, load: Load) -> Any:
        """Load anew, whatever is stored, and store it; shared only with callers that began before that load did."""
        began = self._tick.now
        flight = self.flights.get(address.key)
        while True:
            if flight is not None:
                flight.refuse_recursion()
            if flight is None or not flight.was_founded_by(began):
                flight, waiter = self._take_off(address, terms, load, began, self._budget, refreshes=True)
            else:
                waiter = flight.board(began, load if terms.personal else None)
            value = _taken(await flight.outcome(waiter), terms)
            if value is not RETRY and value is not MISSING:
                return value
            flight = None

    async def get(self, address: Address, terms: Terms, *, count: bool = True) -> Any:
        """The stored value, or MISSING; BackendError where the store cannot be asked."""
        return (await self.get_many([address], terms, count=count))[0]

    async def get_many(self, addresses: Sequence[Address], terms: Terms, *, count: bool = True) -> list[Any]:
        """The stored values in order, MISSING for those that are not there; one round trip."""
        began = self._tick.now
        lookups = [self._port.lookup(address.key, self._hints.get(address.key, address.scopes)) for address in addresses]
        answers = await _all_answers(lookups)
        values = [await self._find(address, terms, answer) for address, answer in zip(addresses, answers, strict=True)]
        for address, value, (_, tokens) in zip(addresses, values, answers, strict=True):
            if value is MISSING:
                self._remember_miss(address, tokens, began)
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
        wanted, counted = list(range(len(addresses))), set[int]()
        while wanted:
            asked = self._tick.now
            if left > 0:
                try:
                    found = await self.get_many([addresses[n] for n in wanted], terms, count=False)
                except BackendError as error:
                    self._fault(error, terms)
                    left = 0.0
                else:
                    values = _with(values, wanted, found)
            self._count_many(addresses, terms, [n for n in wanted if values[n] is not MISSING and n not in counted], hits=True)
            wanted = [n for n in wanted if values[n] is MISSING]
            if left > 0 and any(self._was_filled(addresses[n].key, asked) for n in wanted):
                continue
            self._count_many(addresses, terms, [n for n in wanted if n not in counted], hits=False)
            counted.update(wanted)
            aboard = self._board_all(addresses, wanted, terms, load, began, left)
            outcomes = await _all_outcomes(aboard)
            for n, outcome in outcomes.items():
                values[n] = _taken(outcome, terms)
            wanted = [n for n in outcomes if values[n] is RETRY]
            values = [MISSING if value is RETRY else value for value in values]
        return values

    def _was_filled(self, key: bytes, asked: int) -> bool:
        """Whether a lookup that began then and missed has been overtaken by a fill, and should look again (V25)."""
        return key not in self._under_way and self.flights.filled_since(key, asked)

    def _count_many(self, addresses: Sequence[Address], terms: Terms, positions: Sequence[int], *, hits: bool) -> None:
        for address in [addresses[n] for n in positions]:
            if hits:
                self._count_hit(terms, address)
            else:
                self._count_miss(terms, address, coalesced=address.key in self._under_way)

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
        for under_way in filter(None, [self.flights.get(addresses[n].key) for n in wanted]):
            under_way.refuse_recursion()  # before anything is joined or opened
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

    async def aclose(self) -> None:
        await self.flights.aclose()
        await self._port.aclose()

    def forget(self) -> None:
        self._port.forget()


async def _all_answers(lookups: Sequence[Awaitable[tuple[bytes | None, Tokens]]]) -> list[tuple[bytes | None, Tokens]]:
    """Every answer, or the first error once all have come: none is left behind unread."""
    answers = await asyncio.gather(*lookups, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if not isinstance(answer, BaseException)]


def _taken(outcome: Any, terms: Terms) -> Any:
    """What a caller may take of a flight's outcome: a value, or RETRY, or MISSING."""
    return outcome if outcome is RETRY or outcome is MISSING else outcome.take(terms.serializer)


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


__all__ = ["Engine"]
