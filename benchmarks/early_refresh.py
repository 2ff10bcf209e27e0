"""Early refresh against plain TTL: how many loads a caller waits for, and how many there are.

    python -m benchmarks.early_refresh [--asks 100 200 1000] [--costs 0 0.01 0.05] [--calls 40000] [--seed 1]
    python -m benchmarks.early_refresh --real 10 [--server] [--asks 100] [--costs 0.01]

Each key is asked for at random (Poisson) moments, so many times per TTL on average, by callers who do not wait for one another; a load
takes the given share of the TTL. Both policies get the same moments, after two TTLs of warm-up. A load is waited for if a call that it
answered had begun before it was done: the load at a miss, and the early one that a caller has run into because the life was over.

The engine is the real one, over memory:// in virtual time; with --real, both policies side by side by the wall clock, for so many TTLs of
5 s, over memory:// or a Valkey server of its own. Wanted: at least 95 % fewer loads that are waited for, at most 15 % more loads.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from aiocache_aura import CacheManager, CachePolicy
from aiocache_aura.clock import Clock, SystemClock
from aiocache_aura.testing.server import EmbeddedServer
from benchmarks.virtual import VirtualClock, run

AT_ONCE = 2_000  # asks per TTL, of all keys together
WARM_UP = 2  # TTLs
FEWER_WAITED, MORE_LOADS = 0.95, 0.15
VIRTUAL_TTL, REAL_TTL = 100.0, 5.0


@dataclass(frozen=True, slots=True)
class Case:
    """So many asks per TTL and key; a load takes this share of the TTL; measured for so many TTLs."""

    asks: float
    cost: float
    ttls: float
    ttl: float

    @property
    def keys(self) -> int:
        return max(2, round(AT_ONCE / self.asks))


@dataclass(slots=True)
class Tally:
    """What came of a run: by key, how many loads have begun and been done; and, since the warm-up, what is compared."""

    begun: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    loads: int = 0
    waited_loads: set[tuple[str, int]] = field(default_factory=set)
    calls: int = 0
    calls_that_waited: int = 0


async def measure(case: Case, clock: Clock, url: str, seed: int, *, early: bool) -> Tally:
    """One policy under the traffic of one case."""
    policies = {"asked": CachePolicy(ttl=case.ttl, early_refresh=early)}
    prefix = f"bench-early-{os.getpid()}-{seed}-{case.asks}-{case.cost}-{early}"
    async with CacheManager(url, prefix=prefix, policies=policies, clock=clock, budget=5.0) as manager:
        tally = Tally()
        counts_from = clock.monotonic() + WARM_UP * case.ttl
        end = counts_from + case.ttls * case.ttl

        async def load(key: str) -> int:
            tally.begun[key] += 1
            tally.loads += clock.monotonic() >= counts_from
            number = tally.begun[key]
            await asyncio.sleep(case.cost * case.ttl)
            tally.done[key] = number
            return number

        async def ask(key: str) -> None:
            began, known = clock.monotonic(), tally.done[key]
            number = await manager.get_or_load("asked", key, partial(load, key))
            if began >= counts_from:
                tally.calls += 1
                if number > known:
                    tally.calls_that_waited += 1
                    tally.waited_loads.add((key, number))

        await asyncio.gather(*[_ask_at(partial(ask, f"k{n}"), _moments(Random(f"{seed} {n}"), case, clock, end)) for n in range(case.keys)])
    return tally


async def _moments(rng: Random, case: Case, clock: Clock, end: float) -> AsyncIterator[None]:
    """A step for each ask of a key, at its moment, the first of them at some moment of the first TTL. What is late is made up for."""
    due = clock.monotonic() + rng.uniform(0, case.ttl)
    while (due := due + rng.expovariate(case.asks / case.ttl)) < end:
        await asyncio.sleep(max(due - clock.monotonic(), 0.0))
        yield


async def _ask_at(ask: Callable[[], Awaitable[None]], moments: AsyncIterator[None]) -> None:
    async with asyncio.TaskGroup() as group:
        async for _ in moments:
            group.create_task(ask())


def compare(case: Case, seed: int, url: str, *, real: bool) -> tuple[Tally, Tally]:
    """(plain TTL, early refresh), one after the other in virtual time, side by side by the wall clock."""
    if not real:
        random.seed(seed)  # the library's dice: without them, and in virtual time, everything is as it was the last time
        clocks = VirtualClock(), VirtualClock()
        plain, early = (
            run(clock, measure(case, clock, url, seed, early=early)) for clock, early in zip(clocks, (False, True), strict=True)
        )
        return plain, early
    return asyncio.run(_both(case, seed, url))


async def _both(case: Case, seed: int, url: str) -> Any:
    return await asyncio.gather(*[measure(case, SystemClock(), url, seed, early=early) for early in (False, True)])


def report(case: Case, plain: Tally, early: Tally) -> None:
    """A row of the table."""
    fewer = 1 - len(early.waited_loads) / max(len(plain.waited_loads), 1)
    more = early.loads / max(plain.loads, 1) - 1
    is_met = fewer >= FEWER_WAITED and more <= MORE_LOADS
    print(
        f"{case.asks:7.0f} {case.cost:6.0%} {early.calls:8,} {plain.loads:8,} {early.loads:7,} {more:+7.1%}"
        f" {len(plain.waited_loads):9,} {len(early.waited_loads):7,} {-fewer:+7.1%}"
        f" {plain.calls_that_waited:9,} {early.calls_that_waited:7,}   {'yes' if is_met else 'NO'}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--asks", type=float, nargs="+", default=[100, 200, 1000], help="per TTL and key")
    parser.add_argument("--costs", type=float, nargs="+", default=[0, 0.01, 0.05], help="of a load, in TTLs")
    parser.add_argument("--calls", type=int, default=40_000, help="of each case and policy, in virtual time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--real", type=float, metavar="TTLS", help="by the wall clock, for so many TTLs")
    parser.add_argument("--server", action="store_true", help="with --real: over a server, not over memory://")
    options = parser.parse_args()
    if options.server and options.real is None:
        parser.error("--server needs --real: a server's time is not virtual")
    with ExitStack() as stack:
        url = stack.enter_context(EmbeddedServer()).tcp_url if options.server else "memory://"
        tell(options, url)


def tell(options: argparse.Namespace, url: str) -> None:
    is_real = options.real is not None
    print(f"{'by the wall clock' if is_real else 'in virtual time'}, over {'a Valkey server' if options.server else url}")
    print(f"wanted: loads {MORE_LOADS:+.0%} at most, loads waited for {-FEWER_WAITED:+.0%} or better\n")
    print("   asks   load             loads                   loads waited for        calls that waited")
    print("per ttl of ttl    calls    plain   early    more     plain   early    more     plain   early   as wanted")
    for asks in options.asks:
        for cost in options.costs:
            case = Case(asks, cost, options.real or options.calls / AT_ONCE, REAL_TTL if is_real else VIRTUAL_TTL)
            report(case, *compare(case, options.seed, url, real=is_real))


if __name__ == "__main__":
    main()
