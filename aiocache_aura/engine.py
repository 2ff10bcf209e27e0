"""The way of a read: lookup, flight, load, fenced fill.

    hit      one lookup: value and generations in one round trip, shared by the whole tick
    stale    the value is given at once, and refreshed behind; with a `soft_timeout` the caller waits that long for the refresh first
    miss     found or join the flight of the key -> load (see `loading`) -> everybody who may have the result takes its own copy
    fault    the store did not answer within the budget: the flight loads all the same, nothing is stored, nobody late may join the result

Rules, by their numbers in docs/protocol.md: M1 a lookup serves only reads that began before it was written, because each read waits for a
lookup of its own tick; M2 compare on read; M3, M4 and M17 are the flights'; M10 a `set` stores the generations that were known when it
began, or asks; M16 a batch loads at once what it leads, and what others load is waited for meanwhile; M19 what a read falls back on is what
its own lookup brought. An invalidation by this process closes its flights at the call and at the answer.

Values that cannot be stored are handed to all callers of the flight as the one object; every other caller owns what it gets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from aiocache_aura.codecs.envelope import open_fresh
from aiocache_aura.codecs.serializers import Undecodable
from aiocache_aura.entries import Held, Sight
from aiocache_aura.errors import BackendError, LoadTimeoutError
from aiocache_aura.freshness import is_due, stands_in_for
from aiocache_aura.generations import Address
from aiocache_aura.loading import Loading, LoadMany
from aiocache_aura.resilience.single_flight import LEFT_OUT, RETRY, Flight, Load, Paused, Waiter
from aiocache_aura.stores.base import Claim, Jobs, Port, Tokens
from aiocache_aura.terms import Terms, fall_back
from aiocache_aura.types import MISSING


class Batch(NamedTuple):
    """What a `get_or_load_many` was asked: positions are those of its addresses."""

    addresses: Sequence[Address]
    terms: Terms
    load: LoadMany


class Engine(Loading):
    """One manager's way of reading and writing in one event loop."""

    def __repr__(self) -> str:
        return f"<Engine over {self._port!r}, {self.flights!r}>"

    @property
    def jobs(self) -> Jobs:
        """Whose turn it is to run what the fleet runs once."""
        return self._port.jobs

    @property
    def port(self) -> Port:
        """The way to the store, for those who look after it."""
        return self._port

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
        if raw is not None and terms.is_plain:
            fingerprint = tokens.fingerprint(address.scopes)
            found = open_fresh(raw, address.checksum, address.flags, address.extras, fingerprint, self._time())
            if found is not None:
                try:
                    value = terms.serializer.decode(*found)
                except Undecodable:
                    pass  # counted where the whole entry is examined
                else:
                    counts = terms.counts
                    if not counts.hits & counts.mask or self._events.hits:
                        self._hit(address, terms, raw, started, args)
                    counts.hits += 1
                    if terms.own is not None:
                        terms.own.hits += 1
                    return value
        waited = self._looked(address, terms, started)
        return await self._miss(address, terms, partial(load, *args), began, answer, left=self._budget - waited, waited=waited)

    async def _miss(
        self,
        address: Address,
        terms: Terms,
        load: Load,
        began: int,
        answer: tuple[bytes | None, Tokens] | None,
        *,
        left: float | None = None,
        waited: float = 0.0,
    ) -> Any:
        started = self._monotonic()
        left = self._budget if left is None else left
        counted = False
        while True:
            held: Held | None = None
            sight: Sight | None = None
            flight = self._joinable(address.key, terms, began)
            if (flight is None or flight.refreshes) and left > 0:
                asked = began if answer else self._tick.now
                try:
                    held, sight = await self._look(address, terms, answer)
                except BackendError as error:
                    self._fault(error, terms)
                    left = 0.0
                answer = None
                if held is not None and self._serves(address, terms, load, held):
                    if not counted:
                        self._count_served(address, terms, held, waited)
                    return held.value if held.error is None else await self._instead(held.error, address, terms, None)
                flight = self._joinable(address.key, terms, began)
                if left > 0 and held is None and self._was_filled(address.key, asked):
                    continue
            if not counted:
                counted = True
                self._count_miss(terms, address, coalesced=flight is not None, seconds=waited)
            if flight is None:
                flight, waiter = self._take_off(address, terms, load, began, left, sight, held=held)
            else:
                waiter = flight.board(began, load if terms.personal else None, content=held is not None)
            try:
                value = await self._outcome(flight, waiter, terms, started, held)
            except Exception as error:
                return await self._instead(error, address, terms, held)
            if value is not RETRY and value is not LEFT_OUT:
                return value

    def _joinable(self, key: bytes, terms: Terms, began: int) -> Flight | None:
        """The flight of the key, if these terms let a read wait for it: `fresh` none that is older than the read."""
        flight = self.flights.get(key)
        return None if flight is not None and terms.fresh and not flight.was_founded_by(began) else flight

    def _serves(self, address: Address, terms: Terms, load: Load, held: Held) -> bool:
        """Whether a read is given what it found, without waiting; what is stale, or nearly so, is refreshed behind its back."""
        if held.is_fresh:
            self._slide(address, held, terms)
            if not self._is_due(held, terms):
                return True
        elif terms.soft is not None and not self._is_paused(address.key):
            return False
        if terms.personal:
            return not self._may_refresh(address.key)  # such a load needs its caller
        self._refresh_behind(address, terms, load, held.sight.raw)
        return True

    def _is_due(self, held: Held, terms: Terms) -> bool:
        """Whether a value that is fresh is to be refreshed all the same, by chance."""
        entry = held.sight.entry
        return bool(terms.early) and entry is not None and is_due(entry, self._time(), terms.early)

    def _take_off(
        self,
        address: Address,
        terms: Terms,
        load: Load,
        began: int,
        left: float,
        sight: Sight | None,
        *,
        held: Held | None = None,
        anew: bool = False,
    ) -> tuple[Flight, Waiter]:
        """A new flight, with its first caller aboard before it starts. `anew`: no value that another process loads will do."""
        older = self.flights.get(address.key)
        if older is not None:
            older.refuse_recursion()
        stands_in = held is not None or (sight is not None and self._may_stand_in(address, sight))  # if not for this reader, for others
        flight = self.flights.open(address.key, address.scopes, refreshes=anew or stands_in)
        flight.anew, flight.outlives = anew or older is not None, terms.keep_loading
        waiter = flight.board(began, load if terms.personal else None, content=held is not None)
        self.flights.start([flight], partial(self._fly, flight, address, terms, load, left, sight.raw if sight else None))
        return flight, waiter

    async def _outcome(self, flight: Flight, waiter: Waiter, terms: Terms, started: float, held: Held | None) -> Any:
        """What the flight gives this caller: a value, RETRY or LEFT_OUT, or its error; LoadTimeoutError once its patience has ended."""
        patience = self._patience(terms, started, held)
        outcome = await (flight.outcome(waiter) if patience is None else self._within(flight, waiter, terms, patience))
        return outcome if outcome is RETRY or outcome is LEFT_OUT else outcome.take(terms)

    def _patience(self, terms: Terms, started: float, held: Held | None) -> float | None:
        """Seconds that a caller waits from now on, None if it has no bound: with a stale value at hand, not past the life of that."""
        waited = self._monotonic() - started
        ends = [] if terms.hard is None else [terms.hard - waited]
        if terms.soft is not None and held is not None:
            ends += [terms.soft - waited, self._stands_in_for(held, terms)]
        return min(ends, default=None)

    async def _within(self, flight: Flight, waiter: Waiter, terms: Terms, seconds: float) -> Any:
        try:
            await asyncio.wait({waiter.future}, timeout=max(seconds, 0.0))
        except asyncio.CancelledError:
            await flight.leave(waiter)
            raise
        if waiter.future.done():
            return await flight.outcome(waiter)
        if terms.personal:
            await flight.leave(waiter)
        else:
            flight.part(waiter)
        raise LoadTimeoutError(f"{terms.label}: the value was still loading when the caller's time was up")

    async def _instead(self, error: Exception, address: Address, terms: Terms, held: Held | None) -> Any:
        """What a caller is given for a load that failed; raises the error where there is nothing."""
        if held is not None and self._stands_in(held, terms, error):
            if not held.is_fresh:
                self._count_stale(address, terms, _why(error))
            if held.error is None:
                return held.value
            error = held.error
        return await fall_back(terms.fallback, error)

    def _stands_in_for(self, held: Held, terms: Terms) -> float:
        entry = held.sight.entry
        return 0.0 if entry is None else stands_in_for(entry, self._time(), terms.stale)

    def _stands_in(self, held: Held, terms: Terms, error: Exception) -> bool:
        """Whether what a caller has found may be given instead of an error; it may have died while the caller waited."""
        if isinstance(error, LoadTimeoutError) and terms.soft is not None:
            return True  # which has not waited for longer than it lives
        hides = held.is_fresh or isinstance(error, (LoadTimeoutError, Paused, *terms.stale_on))
        return hides and self._stands_in_for(held, terms) > 0

    def _count_served(self, address: Address, terms: Terms, held: Held, seconds: float) -> None:
        self._count_hit(address, terms, held.sight.raw, seconds, stale=not held.is_fresh)
        if not held.is_fresh:
            self._count_stale(address, terms, "paused" if self._is_paused(address.key) else "refreshing")

    async def refresh(self, address: Address, terms: Terms, load: Load) -> Any:
        """Load anew, whatever is stored, and store it; shared only with callers that began before that load did."""
        began, started = self._tick.now, self._monotonic()
        flight = self.flights.get(address.key)
        while True:
            if flight is not None:
                flight.refuse_recursion()
            if flight is None or not (flight.anew and flight.was_founded_by(began)):
                flight, waiter = self._take_off(address, terms, load, began, self._budget, None, anew=True)
            else:
                waiter = flight.board(began, load if terms.personal else None)
            value = await self._outcome(flight, waiter, terms, started, None)
            if value is not RETRY and value is not LEFT_OUT:
                return value
            flight = None

    # Batches

    async def get_or_load_many(self, addresses: Sequence[Address], terms: Terms, load: LoadMany) -> list[Any]:
        """As `get_or_load` for many: one call of `load` with the positions that are missing and that nobody loads yet.

        MISSING where the loader left a position out. Flights under way are joined; what is led is loaded at once, the followed are waited
        for meanwhile (M16). Stale values are given at once, and refreshed by one call behind.
        """
        batch = Batch(addresses, terms, load)
        began, started, left = self._tick.now, self._monotonic(), self._budget
        values: list[Any] = [MISSING] * len(addresses)
        seen: dict[int, bytes | None] = {}
        wanted, counted = list(range(len(addresses))), set[int]()
        while wanted:
            asked, looked = self._tick.now, self._monotonic()
            if left > 0:
                try:
                    sights = await self._look_at_all([addresses[n] for n in wanted], terms)
                except BackendError as error:
                    self._fault(error, terms)
                    left = 0.0
                else:
                    seen = {n: sight.raw for n, (_, sight) in zip(wanted, sights, strict=True)}
                    held = {n: one for n, (one, _) in zip(wanted, sights, strict=True) if one is not None and one.error is None}
                    self._serve_many(batch, held, counted, self._looked(addresses[wanted[0]], terms, looked))
                    values = [held[n].value if n in held else value for n, value in enumerate(values)]
                    wanted = [n for n in wanted if n not in held]
            if left > 0 and any(self._was_filled(addresses[n].key, asked) for n in wanted):
                continue
            for n in wanted:
                if n not in counted:
                    self._count_miss(terms, addresses[n], coalesced=addresses[n].key in self._under_way)
            counted.update(wanted)
            aboard = self._board_all(batch, wanted, began, left, seen)
            try:
                outcomes = await self._all_outcomes(aboard, terms, started)
            except Exception as error:
                outcomes = {n: await self._instead(error, addresses[n], terms, None) for n in wanted}
            values = [outcomes.get(n, value) for n, value in enumerate(values)]
            wanted = [n for n in outcomes if values[n] is RETRY]
            values = [MISSING if value is RETRY or value is LEFT_OUT else value for value in values]
        return values

    def _serve_many(self, batch: Batch, held: Mapping[int, Held], counted: set[int], seconds: float) -> None:
        """Count what is served, and have one load behind for what is stale, or nearly so."""
        addresses, terms, _ = batch
        behind = []
        for n, one in held.items():
            if n not in counted:
                self._count_served(addresses[n], terms, one, seconds)
            if one.is_fresh:
                self._slide(addresses[n], one, terms)
            if (not one.is_fresh or self._is_due(one, terms)) and self._may_refresh(addresses[n].key):
                behind.append(n)
        if behind:
            flights = {n: self.flights.open(addresses[n].key, addresses[n].scopes, refreshes=True) for n in behind}
            seen = {n: held[n].sight.raw for n in behind}
            self.flights.start(list(flights.values()), partial(self._fly_many, batch, flights, self._budget, seen))
            for flight in flights.values():
                flight.keep()

    def _was_filled(self, key: bytes, asked: int) -> bool:
        """Whether a lookup that began then and missed has been overtaken by a fill, and should look again (V25)."""
        return key not in self._under_way and self.flights.filled_since(key, asked)

    def _board_all(
        self,
        batch: Batch,
        wanted: Sequence[int],
        began: int,
        left: float,
        seen: Mapping[int, bytes | None],
        content: Container[int] = (),
    ) -> dict[int, tuple[Flight, Waiter]]:
        """Join the flights there are and lead one batch for the rest, in one synchronous stretch; `content`: of which there is a value."""
        addresses, terms, _ = batch
        led: dict[int, Flight] = {}
        aboard: dict[int, tuple[Flight, Waiter]] = {}
        for under_way in filter(None, [self.flights.get(addresses[n].key) for n in wanted]):
            under_way.refuse_recursion()  # before anything is joined or opened
        for n in wanted:
            flight = self.flights.get(addresses[n].key)
            if flight is None:
                flight = led[n] = self.flights.open(addresses[n].key, addresses[n].scopes, refreshes=n in content)
                flight.outlives = terms.keep_loading
            aboard[n] = flight, flight.board(began, content=n in content)
        if led:
            self.flights.start(list(led.values()), partial(self._fly_many, batch, led, left, seen))
        return aboard

    async def _fly_many(self, batch: Batch, led: dict[int, Flight], left: float, seen: Mapping[int, bytes | None]) -> None:
        batch = batch._replace(terms=replace(batch.terms, cache_errors=()))  # an error of the loader is none of a key
        claims, left = await self._stand_all(batch, led, left, seen)
        positions = list(claims)
        if not positions:
            return
        flights = [led[n] for n in positions]
        for flight in flights:
            flight.begin_load()
        await self._carry(
            flights,
            [batch.addresses[n] for n in positions],
            [claims[n] for n in positions],
            batch.terms,
            partial(batch.load, positions),
            left,
            lambda result: [_given(result, n) for n in positions],
        )

    async def _stand_all(
        self, batch: Batch, led: dict[int, Flight], left: float, seen: Mapping[int, bytes | None]
    ) -> tuple[dict[int, Claim | None], float]:
        """What this batch is to load, each with its claim. What others load goes its own way from here, and lands by itself."""
        addresses, terms, load = batch
        leases = self._leases(terms)
        if leases is None or left <= 0:
            claims, left = await self._claim([addresses[n] for n in led], terms, left)
            return dict(zip(led, claims, strict=True)), left
        started = self._monotonic()
        wants = [self._want(flight, addresses[n], terms, seen.get(n), b"") for n, flight in led.items()]
        try:
            stands = await leases.acquire(wants, timeout=left, written=_nothing)
        except BackendError as error:
            self._fault(error, terms)
            return dict.fromkeys(led), 0.0
        ours: dict[int, Claim | None] = {}
        for (n, flight), one in zip(led.items(), stands, strict=True):
            if isinstance(one, Claim):
                ours[n] = one
            elif not self._is_left(flight, addresses[n], terms, one) and flight.is_wanted:
                self.flights.split(flight, partial(self._fly, flight, addresses[n], terms, _one_of(load, n), self._budget, seen.get(n)))
        return ours, left - (self._monotonic() - started)

    async def _all_outcomes(self, aboard: dict[int, tuple[Flight, Waiter]], terms: Terms, started: float) -> dict[int, Any]:
        """Every flight's outcome; if one fails or the caller is cancelled, the others are left."""
        outcomes: dict[int, Any] = {}
        try:
            for n, (flight, waiter) in aboard.items():
                outcomes[n] = await self._outcome(flight, waiter, terms, started, None)
        except BaseException as error:
            for flight, waiter in aboard.values():
                if isinstance(error, LoadTimeoutError):
                    flight.part(waiter)
                else:
                    await flight.leave(waiter)
            raise
        return outcomes

    async def aclose(self) -> None:
        await self.flights.aclose()
        if self._chores:
            await asyncio.wait(set(self._chores))
        await self._port.aclose()

    def forget(self) -> None:
        self._port.forget()


def _one_of(load: LoadMany, n: int) -> Load:
    """A batch's loader, asked for one position; LEFT_OUT if it gives nothing for it."""

    async def load_one() -> Any:
        return _given(await load([n]), n)

    return load_one


def _why(error: Exception) -> str:
    """Why a stale value stands in for the load that ended so; one that is Paused has failed elsewhere, while the caller waited for it."""
    return "timeout" if isinstance(error, LoadTimeoutError) else "error"


def _given(result: Mapping[int, Any], n: int) -> Any:
    value = result.get(n, MISSING)
    return LEFT_OUT if value is MISSING else value


def _nothing() -> None:
    return None


__all__ = ["Engine"]
