"""Faults to plant: each takes one rule out of the library, in the process that asks for it. The checker has to see every one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from aiocache_aura.engine import Engine
from aiocache_aura.resilience import single_flight
from aiocache_aura.resilience.single_flight import Flight, Flights
from aiocache_aura.stores import leases, redis, scripts
from aiocache_aura.stores.base import Verdict
from aiocache_aura.stores.followers import Followers, KeyFollower


@dataclass(frozen=True, slots=True)
class Fault:
    """How it is planted, the profile of work that brings it out, and what the checker calls what it breaks."""

    plant: Callable[[], None]
    profile: str
    breaks: str
    one_load: str = "process"
    seconds: float = 25.0
    budget: float = 5.0


def fill_without_fence() -> None:
    """A fill is stored whatever became of its permit or lease (M9)."""
    source = """
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
if ARGV[4] then
  local lease = redis.call('GET', KEYS[2])
  if lease and string.sub(lease, 1, 17) == string.sub(ARGV[1], 1, 17) then
    redis.call('DEL', KEYS[2])
  end
  redis.call('PUBLISH', ARGV[4], KEYS[1])
end
return 1
"""
    unfenced = scripts.Script("UNFENCED", source)
    scripts.BY_SHA1[unfenced.sha1] = unfenced
    redis.FILL = leases.FILL_LEASED = unfenced  # type: ignore[misc]


def generations_after_load() -> None:
    """The generations that a load stores are those there are when it has ended (M6)."""
    fill = Engine._fill

    async def captured_late(
        self: Any, flights: Any, addresses: Any, results: Any, claims: Any, terms: Any, made: Any, left: float
    ) -> list[bool]:
        if any(claims) and left > 0:
            scopes = [scope for address in addresses for scope in address.scopes]
            late = await self._port.generations(scopes, life=60.0, timeout=left)
            claims = [claim and replace(claim, tokens=late) for claim in claims]
        return await fill(self, flights, addresses, results, claims, terms, made, left)

    Engine._fill = captured_late  # type: ignore[method-assign]


def join_after_fill_written() -> None:
    """Who joins while the answer to the fill is on its way takes the result, too (M3, V2)."""
    board = Flight.board

    def boards(self: Flight, *args: Any, **options: Any) -> single_flight.Waiter:
        waiter = board(self, *args, **options)
        waiter.early = True
        return waiter

    Flight.board = boards  # type: ignore[method-assign]


def verdict_ignored() -> None:
    """A late caller asks only whether generations have changed, not whether the fence took the fill (M3, V3)."""
    fill = redis.RedisPort.fill

    async def always_taken(self: Any, fills: Any, **how: Any) -> list[Verdict]:
        return [Verdict(True, verdict.tokens) for verdict in await fill(self, fills, **how)]

    redis.RedisPort.fill = always_taken  # type: ignore[method-assign]


def unshielded_wait() -> None:
    """A caller that is cancelled takes the load with it (P2)."""

    async def leave(self: Flight, waiter: Any) -> None:
        self.waiters.pop(waiter, None)
        crew = self._crew
        if crew is not None and crew.task is not None:
            crew.task.cancel()

    Flight.leave = leave  # type: ignore[method-assign]


def set_keeps_lease() -> None:
    """An explicit set leaves the permit of the load under way where it is (M10, V5)."""

    async def keeping(self: Any, items: Any, *, timeout: float) -> None:
        commands = [("SET", key, raw, "PX", redis.life_ms(life)) for key, raw, life in items]
        await self._writes.run(commands, timeout=timeout, repeatable=True, patient=True)

    redis.RedisPort.store = keeping  # type: ignore[method-assign]


def wakeup_lost() -> None:
    """Who follows a load of another process hears of no wake-up, and neither the lease's end nor a poll makes it ask again (M13)."""

    async def sleep(self: KeyFollower, seconds: float) -> None:
        self._future = asyncio.get_running_loop().create_future()
        await self._future

    KeyFollower._sleep = sleep  # type: ignore[method-assign]
    Followers.heard = lambda self, payload: None  # type: ignore[method-assign]


def lease_not_renewed() -> None:
    """A lease ends while its load goes on (M9); a short one, so that it does not take long."""
    leases.LEASE = 0.5  # type: ignore[misc]
    leases.RedisLeases._renew = lambda self: None  # type: ignore[method-assign]


def no_flights() -> None:
    """Nobody finds the flight that is under way, so everybody loads (P1)."""
    Flights.get = lambda self, key: None  # type: ignore[method-assign,assignment]


def fill_forgotten() -> None:
    """A lookup that missed does not look again when the key was filled meanwhile (M4, V25)."""
    Engine._was_filled = lambda self, key, asked: False  # type: ignore[method-assign,assignment]


def invalidation_unsent() -> None:
    """An invalidation works in its own process, and says that it was delivered (M7)."""

    async def unsent(self: Any, scopes: Any, **how: Any) -> None:
        await asyncio.sleep(0)

    redis.RedisPort.invalidate = unsent  # type: ignore[method-assign]


def answer_forgotten() -> None:
    """Now and then a caller of a flight is never told the result (P2)."""
    end = Flight._end

    def forgetful(self: Flight) -> list[Any]:
        waiting = end(self)
        return waiting[:-1] if len(waiting) > 2 else waiting

    Flight._end = forgetful  # type: ignore[method-assign]


def flight_stays() -> None:
    """A flight that was left by all is not taken out of the registry (M17)."""

    def abandon(self: Flight) -> None:
        if self._crew is not None and self._running is None:
            self._crew.lose(self)

    Flight._abandon = abandon  # type: ignore[method-assign]
    Flight._end_once = Flight._end  # type: ignore[attr-defined]

    def end(self: Flight) -> list[Any]:
        if self.waiters:
            return self._end_once()  # type: ignore[attr-defined,no-any-return]
        self.phase = single_flight.Phase.DONE
        return []

    Flight._end = end  # type: ignore[method-assign]


def connection_stays() -> None:
    """`aclose` leaves the connections open."""

    async def kept(self: Any) -> None:
        await asyncio.sleep(0)

    redis.RedisPort.aclose = kept  # type: ignore[method-assign]


FAULTS: dict[str, Fault] = {
    "fill_without_fence": Fault(fill_without_fence, "fences", "P3", one_load="fleet"),
    "generations_after_load": Fault(generations_after_load, "scopes", "P3", one_load="fleet"),
    "join_after_fill_written": Fault(join_after_fill_written, "joins", "P3"),
    "verdict_ignored": Fault(verdict_ignored, "fences", "P3", one_load="fleet"),
    "wakeup_lost": Fault(wakeup_lost, "fences", "P2", one_load="fleet", budget=1.0),
    "unshielded_wait": Fault(unshielded_wait, "leavers", "P2", one_load="fleet"),
    "lease_not_renewed": Fault(lease_not_renewed, "long", "P1", one_load="fleet"),
    "set_keeps_lease": Fault(set_keeps_lease, "fences", "P3", one_load="fleet"),
    "no_flights": Fault(no_flights, "calm", "P1"),
    "invalidation_unsent": Fault(invalidation_unsent, "scopes", "P3", one_load="fleet"),
    "answer_forgotten": Fault(answer_forgotten, "calm", "P2", budget=1.0),
    "flight_stays": Fault(flight_stays, "leavers", "P2", budget=1.0),
    "connection_stays": Fault(connection_stays, "calm", "end", one_load="fleet", seconds=0.5),
}
"""Those of one_load "process" take out what leases would hide, or break what has nothing to do with them."""


def plant(name: str) -> None:
    """Take this rule out, in this process."""
    FAULTS[name].plant()
