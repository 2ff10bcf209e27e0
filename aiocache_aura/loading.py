"""Loads: the way of a flight, from the right to load to the fence that its value has to pass.

    standing   who is to load the key?
        Claim     we: load (a permit, where no other process can load the key or leases are off; else the lease of the key)
        Found     another value than the one that was seen: land with it, if it may be given; else ask again, having seen it (M12)
        Held      another process: follow it until its lease ends, a wake-up comes or its time is up, then ask again (M13); a flight that
                  nobody waits for leaves it to that process
        Failed    the attempts of this chain are used up (M14), or a failed refresh is too young: fail as it did
        Alone     what is loaded is not to be stored: each process loads for itself
        fault     the store does not answer: load, store nothing, let nobody late join the result
    loading    at most `load_deadline`; then the flight fails and the key is free at once, whether or not the loader heeds its cancellation
    filling    only with the claim that is still there (M9), the generations asked again in the same round trip (M3)
    end        a lease goes with the fill; else it is given back, with word of a failure or of there being nothing to share

Invariants
- What an answer of the store gives serves only reads that began before its request was written (M1): a flight that lands with a value found
  takes the tick of that request as the beginning of its load.
- Whoever got a lease ends it, on every way out, and as soon as its flight is closed; if this process dies, time does. The fence, not the
  lease, is what correctness rests on.
- A refresh that failed writes nothing into the entry (M19): the pause is kept in the lease's place, for the fleet, and in this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from functools import partial
from typing import Any, Final, TypeAlias

from aiocache_aura.codecs import failures
from aiocache_aura.codecs.envelope import IS_ERROR, IS_NONE, seal
from aiocache_aura.entries import REMEMBERED, finite
from aiocache_aura.errors import BackendError, LoadDeadlineError, LoadFailedError, SerializationError, ValueTooLargeError
from aiocache_aura.generations import Address
from aiocache_aura.loaded import Loaded, Misjudged, Refused, Result, Sealed, as_it_failed, judged, loaded_elsewhere
from aiocache_aura.planting import Planting
from aiocache_aura.resilience.single_flight import LEFT_OUT, RETRY, Flight, Load, NobodyLoads, Paused, Phase, Tick
from aiocache_aura.stores.base import Claim, Failed, Fill, Found, HeldElsewhere, Leases, Standing, Want
from aiocache_aura.terms import FOR_EVER, Terms, told_life
from aiocache_aura.types import Uncached

UNBOUNDED_LOAD = 3600.0  # seconds that a load without a deadline may take and still store its value
ASK_AGAIN = 0.02  # seconds after the end of a lease, which the server may see a little later than we do

LoadMany: TypeAlias = Callable[[list[int]], Awaitable[Any]]


class Landed(Enum):
    """A flight is over without a load."""

    LANDED = "LANDED"


LANDED: Final = Landed.LANDED


class Loading(Planting):
    """What loads."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pauses: dict[bytes, float] = {}

    def _leases(self, terms: Terms) -> Leases | None:
        return self._port.leases if terms.lease and terms.stores else None

    # The right to load

    async def _fly(self, flight: Flight, address: Address, terms: Terms, load: Load, left: float, seen: bytes | None) -> None:
        leases = self._leases(terms)
        if leases is None or left <= 0:
            claims, left = await self._claim([address], terms, left)
            claim = claims[0]
        else:
            stands = await self._lead(leases, flight, address, terms, left, seen)
            if stands is LANDED:
                return
            claim, left = stands
        if not terms.personal:
            flight.begin_load()
        run = flight.run_personal if terms.personal else load
        await self._carry([flight], [address], [claim], terms, run, left, lambda result: [result])

    async def _claim(self, addresses: Sequence[Address], terms: Terms, left: float) -> tuple[list[Claim | None], float]:
        """Permits and generations, and what is left of the budget; none where nothing can or need be stored."""
        none: list[Claim | None] = [None] * len(addresses)
        if left <= 0 or not terms.stores:
            return none, 0.0
        started = self._monotonic()
        wanted = [(address.key, address.scopes) for address in addresses]
        try:
            within = UNBOUNDED_LOAD if terms.deadline is None else terms.deadline
            claims = await self._port.claim(wanted, life=finite(terms.reach), timeout=left, within=within)
        except BackendError as error:
            self._fault(error, terms)
            return none, 0.0
        return [*claims], left - (self._monotonic() - started)

    async def _lead(
        self, leases: Leases, flight: Flight, address: Address, terms: Terms, left: float, seen: bytes | None
    ) -> tuple[Claim | None, float] | Landed:
        """The lease and what is left of the budget, once it is ours to load; LANDED if another process has loaded it, or is about to."""
        chain, held_at = b"", -1
        follower = leases.follow(address.key)
        try:
            while True:
                started, written = self._monotonic(), _Written(self._tick)
                want = self._want(flight, address, terms, seen, chain)
                stands = (await leases.acquire([want], timeout=left, written=written))[0]
                left -= self._monotonic() - started
                if isinstance(stands, HeldElsewhere):
                    if self._is_left(flight, address, terms, stands):
                        return LANDED
                    chain, held_at = stands.chain, written.tick
                    await follower.wait(stands.left + ASK_AGAIN)
                    left = self._budget
                elif isinstance(stands, Found):
                    if await self._lands(flight, address, terms, stands, written.tick):
                        return LANDED
                    seen = stands.raw
                else:
                    if isinstance(stands, Failed):
                        # Whoever began since then has not waited for what failed; nor is its lease known not to have been doomed.
                        flight.load_tick = written.tick if want.content else held_at
                    return self._resolved(stands, address, terms, content=want.content), left
        except BackendError as error:
            self._fault(error, terms)
            return None, 0.0
        finally:
            follower.close()

    def _is_left(self, flight: Flight, address: Address, terms: Terms, stands: Standing) -> bool:
        """Whether a flight that nobody waits for is left to the process that loads already; it is over, then."""
        if flight.waiters or not isinstance(stands, HeldElsewhere):
            return False
        self._happens(terms, "followed")
        self._pause(address.key, stands.left)
        flight.finish(RETRY, confirmed=False)
        return True

    def _want(self, flight: Flight, address: Address, terms: Terms, seen: bytes | None, chain: bytes) -> Want:
        content = flight.is_content and flight.refreshes
        return Want(address.key, address.scopes, finite(terms.reach), seen, chain, force=flight.anew, content=content)

    def _resolved(self, stands: Standing, address: Address, terms: Terms, *, content: bool) -> Claim | None:
        """The claim, if there is one, or None to load without; raises what the load has failed with elsewhere."""
        if isinstance(stands, Claim):
            return stands
        if isinstance(stands, Failed):
            if not content:
                raise as_it_failed(stands.reason, terms)
            self._pause(address.key, stands.pause)
            raise Paused("a refresh has just failed")
        return None

    async def _lands(self, flight: Flight, address: Address, terms: Terms, found: Found, asked: int) -> bool:
        """Whether the value that was found may be given; then it is."""
        held, _ = await self._look(address, terms, (found.raw, found.tokens))
        if held is None or not held.is_fresh:
            return False
        self._happens(terms, "followed")
        flight.load_tick = asked
        flight.finish(loaded_elsewhere(held), confirmed=False)
        return True

    # The load

    async def _carry(
        self,
        flights: Sequence[Flight],
        addresses: Sequence[Address],
        claims: Sequence[Claim | None],
        terms: Terms,
        run: Load,
        left: float,
        spread: Callable[[Any], list[Any]],
    ) -> None:
        """Load, store, and give each flight what `spread` makes of the result: LEFT_OUT for one that has none."""
        claims = [*claims]
        for n, flight in enumerate(flights):
            flight.let_go = partial(self._let_go, addresses[n], claims, n, terms)
            if not flight.is_open:
                flight.let_go()
        give_up = partial(self._give_up, flights, addresses, claims, terms)
        recipe = self._recipe(addresses[0], terms, run)  # now, for a function may change its arguments
        try:
            result, created, cost = await self._timed(flights, addresses[0], terms, run, give_up)
            if all(flight.phase is Phase.DONE for flight in flights):
                return
            results = [None if value is LEFT_OUT else self._loaded(terms, value) for value in spread(result)]
            confirmed = await self._fill(flights, addresses, results, claims, terms, (created, cost), left)
        except BaseException as error:
            give_up(error)
            raise
        for flight, address, one, sure in zip(flights, addresses, results, confirmed, strict=True):
            flight.finish(LEFT_OUT if one is None else one[0], confirmed=sure)
            if one is not None and one[1] is not None and not flight.refreshes:
                self._heat(address, cost, recipe)

    async def _timed(
        self, flights: Sequence[Flight], address: Address, terms: Terms, run: Load, give_up: Callable[[BaseException], None]
    ) -> tuple[Any, float, float]:
        """(what the load gave, when it began, seconds it took)."""
        created, started = self._time(), self._monotonic()
        timer: asyncio.TimerHandle | None = None
        failure: BaseException | None = None
        if terms.deadline is not None:
            timer = asyncio.get_running_loop().call_later(terms.deadline, self._overrun, flights, terms, give_up)
        try:
            value = await run()
        except (asyncio.CancelledError, NobodyLoads) as error:
            failure = error
            raise
        except BaseException as error:
            failure = error
            if not isinstance(error, terms.cache_errors) or _is_hidden(error, flights, terms):
                self._happens(terms, "load_errors")
                raise
            value = Refused(error)
        finally:
            if timer is not None:
                timer.cancel()
            cost = self._monotonic() - started
            self._count_load(address, terms, cost, failure)
        return value, created, cost

    def _overrun(self, flights: Sequence[Flight], terms: Terms, give_up: Callable[[BaseException], None]) -> None:
        error = LoadDeadlineError(f"{terms.label}: the load was not done after load_deadline={terms.deadline} s, and is cancelled")
        self._happens(terms, "overruns")
        give_up(error)
        for flight in flights:
            flight.overrun(error)

    def _give_up(
        self,
        flights: Sequence[Flight],
        addresses: Sequence[Address],
        claims: Sequence[Claim | None],
        terms: Terms,
        error: BaseException,
    ) -> None:
        """Let go of the leases, with word of a failure if it is one. Once it is done, doing it again does nothing."""
        failed = isinstance(error, Exception) and not isinstance(error, NobodyLoads)
        is_over = all(flight.phase is Phase.DONE for flight in flights)
        reason = failures.told_of(error) if failed and any(claim is not None and claim.leased for claim in claims) else None
        for flight, address, claim in zip(flights, addresses, claims, strict=True):
            if failed and not is_over and flight.refreshes:
                self._pause(address.key, terms.throttle)
            self._give_back(address, claim, terms, failure=reason)
        if failed and not is_over and not any(flight.waiters for flight in flights):
            what = f"a load of {terms.label} that nobody waited for"
            self._faults.report(LoadFailedError(f"the loader raised {type(error).__name__}"), what)

    # What it gave

    def _loaded(self, terms: Terms, value: Any) -> Result:
        """What to hand out, and what to store of it: None for what is not to be stored, and for what cannot be."""
        if isinstance(value, Uncached):
            value = value.value
            return Loaded(self._converted(terms, value), None, terms.serializer.schema), None
        if isinstance(value, Refused):
            return self._refused(terms, value.error)
        value = self._converted(terms, value)
        if value is None and not terms.stores_none:
            return Loaded(None, None, terms.serializer.schema), None
        try:
            sealed = self._sealed(terms, value)
        except (SerializationError, ValueTooLargeError, Misjudged) as error:
            self._note_unstorable(terms, error)
            loaded = Loaded(value, None, terms.serializer.schema)
            loaded.unstored = error
            return loaded, None
        copies = None if terms.share or sealed is None or sealed.kind else sealed.body
        return Loaded(value, copies, terms.serializer.schema), sealed

    def _converted(self, terms: Terms, value: Any) -> Any:
        return terms.serializer.convert(value) if terms.convert and value is not None else value

    def _sealed(self, terms: Terms, value: Any) -> Sealed | None:
        """What is stored of a value, None if the policy would have it not stored."""
        if not judged(bool, judged(terms.store_if, value, True), True):
            return None
        life = judged(partial(told_life, terms.life_of, terms.life), value, 0.0)
        if value is None:
            life = life if terms.negative_life is None else terms.negative_life
            return Sealed((0, b""), IS_NONE, life) if life else None
        return Sealed(self._encode(terms, value), 0, life) if life else None

    def _refused(self, terms: Terms, error: Exception) -> Result:
        """An error that is cached: as its class and its arguments."""
        raw = failures.encode(error)
        life = terms.life if terms.negative_life is None else terms.negative_life
        if raw is None or len(raw) > terms.max_value_bytes:
            self._note_unstorable(terms, SerializationError(f"{type(error).__name__}, which JSON does not hold exactly, or is too large"))
            raw = None
        return Loaded(None, None, 0, error), None if raw is None or not life else Sealed((0, raw), IS_ERROR, life)

    # The fill

    async def _fill(
        self,
        flights: Sequence[Flight],
        addresses: Sequence[Address],
        results: Sequence[Result | None],
        claims: Sequence[Claim | None],
        terms: Terms,
        made: tuple[float, float],
        left: float,
    ) -> list[bool]:
        """Store what was loaded, and give back the leases of what was not; for each flight whether it is confirmed for late callers."""
        confirmed = [False] * len(flights)
        fills: list[tuple[int, Fill, bytes]] = []
        lives: dict[int, float] = {}
        for n, (flight, address, result, claim) in enumerate(zip(flights, addresses, results, claims, strict=True)):
            sealed = result[1] if result else None
            print_ = claim.tokens.fingerprint(address.scopes) if claim and sealed and flight.is_open and left > 0 else None
            if claim and sealed and print_ is not None:
                entry = self._entry(terms, address, sealed.body, print_, *made, life=sealed.life, kind=sealed.kind)
                life, lives[n] = finite(entry.ttl + entry.stale), entry.ttl
                raw = seal(address.checksum, entry)
                fills.append((n, Fill(address.key, raw, life, claim.permit, address.scopes, leased=claim.leased), print_))
            elif claim:
                self._give_back(address, claim, terms, nothing_to_share=sealed is None and flight.is_open)
        started = self._monotonic()
        try:
            await self._drop_what_is_gone(flights, addresses, results, terms, left)
            if not fills:
                return confirmed
            await self._extend([fill for _, fill, _ in fills], terms, left)
            written = partial(_all_written, [flights[n] for n, _, _ in fills])
            verdicts = await self._port.fill([fill for _, fill, _ in fills], written=written, timeout=left)
        except BackendError as error:
            self._fault(error, terms)
            for n, _, _ in fills:
                self._give_back(addresses[n], claims[n], terms)
                if (result := results[n]) is not None:
                    result[0].unstored = error
            return confirmed
        taken = [(n, fill) for (n, fill, _), verdict in zip(fills, verdicts, strict=True) if verdict.accepted]
        self._count_sets(terms, [(addresses[n], len(fill.raw), lives[n]) for n, fill in taken], started)
        for (n, fill, print_), verdict in zip(fills, verdicts, strict=True):
            self.flights.note_fill(fill.key)
            confirmed[n] = verdict.accepted and verdict.tokens.fingerprint(fill.scopes) == print_
        return confirmed

    async def _drop_what_is_gone(
        self, flights: Sequence[Flight], addresses: Sequence[Address], results: Sequence[Result | None], terms: Terms, left: float
    ) -> None:
        """A refresh that finds nothing takes the old value away; one whose value is not to be stored is not repeated with each read."""
        gone = []
        for flight, address, result in zip(flights, addresses, results, strict=True):
            loaded, sealed = result or (None, None)
            if flight.refreshes and sealed is None:
                self._pause(address.key, terms.throttle)
                if flight.is_open and (loaded is None or (loaded.value is None and loaded.error is None)):
                    gone.append(address.key)
        if gone and left > 0:
            self._removed.add(gone)
            await self._port.delete(gone, timeout=left)

    async def _extend(self, fills: Sequence[Fill], terms: Terms, left: float) -> None:
        """Generations were planted for as long as could be foreseen; a life that only the result told may be longer (M8)."""
        longer = [fill for fill in fills if terms.life_of is not None and (fill.life is None or fill.life > terms.reach)]
        if longer:
            scopes = tuple(dict.fromkeys(scope for fill in longer for scope in fill.scopes))
            life = max(FOR_EVER if fill.life is None else fill.life for fill in longer)
            await self._port.generations(scopes, life=finite(life), timeout=left)

    def _give_back(
        self, address: Address, claim: Claim | None, terms: Terms, *, failure: bytes | None = None, nothing_to_share: bool = False
    ) -> None:
        """End a lease, with word of a failure, or of there being nothing to share, or of nothing."""
        leases = self._leases(terms)
        if leases is None or claim is None or not claim.leased:
            return
        if failure is not None:
            leases.fail(address.key, claim.permit, failure, throttle=terms.throttle)
        elif nothing_to_share:
            leases.leave_alone(address.key, claim.permit)
        else:
            leases.release(address.key, claim.permit)

    def _let_go(self, address: Address, claims: list[Claim | None], n: int, terms: Terms) -> None:
        """Give back a lease under which nothing will be stored, though the load goes on."""
        claim, claims[n] = claims[n], None
        self._give_back(address, claim, terms)

    # Behind the callers

    def _refresh_behind(self, address: Address, terms: Terms, load: Load, seen: bytes | None) -> None:
        """Load anew without anybody waiting for it, unless somebody is at it, or it has just failed, or there are too many of these."""
        if self._may_refresh(address.key):
            flight = self.flights.open(address.key, address.scopes, refreshes=True)
            self.flights.start([flight], partial(self._fly, flight, address, terms, load, self._budget, seen))
            flight.keep()

    def _may_refresh(self, key: bytes) -> bool:
        return key not in self._under_way and not self._is_paused(key) and self.flights.has_room_behind

    def _pause(self, key: bytes, seconds: float) -> None:
        """Let this process not refresh the key for so long."""
        self._pauses.pop(key, None)
        self._pauses[key] = self._monotonic() + seconds
        if len(self._pauses) > REMEMBERED:
            del self._pauses[next(iter(self._pauses))]

    def _is_paused(self, key: bytes) -> bool:
        until = self._pauses.get(key)
        if until is None:
            return False
        if self._monotonic() < until:
            return True
        del self._pauses[key]
        return False


class _Written:
    """Takes the tick when a request is written: what it finds serves whoever began before."""

    __slots__ = ("_tick", "tick")

    def __init__(self, tick: Tick) -> None:
        self._tick, self.tick = tick, -1

    def __call__(self) -> None:
        self.tick = self._tick.take()


def _is_hidden(error: Exception, flights: Sequence[Flight], terms: Terms) -> bool:
    """Whether the value that is being refreshed stands in for an error, which is not stored over it, then."""
    return isinstance(error, terms.stale_on) and any(flight.refreshes for flight in flights)


def _all_written(flights: Sequence[Flight]) -> None:
    for flight in flights:
        flight.fill_written()
