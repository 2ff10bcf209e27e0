"""The source fails for a minute: what callers are given meanwhile, how fast, and how often the source is asked.

    python -m benchmarks.outage [--seconds 60] [--processes 4] [--callers 50] [--rate 500] [--keys 10]

Every process reads the same keys over one Valkey server: `ttl` 1 s, `stale` an hour, `throttle` 1 s. First the source is up, for 10 s, then
each of its answers is a ConnectionError after 20 ms, then it is up again, with other values.

The callers are paced: so many calls a second in each process, at moments that were fixed beforehand, whatever the answers take. Told are
the time from the call to the answer, and the time from when the call was due, which has in it what the process was late: on fewer cores
than processes that is the machine's queue, not the cache's. What the same calls took while the source was up is the measure of what the
machine can do. Wanted: every caller is given the stale value, p99 below 5 ms; the source is asked for a key at most once in each throttle
period, by all processes together.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from random import Random

from aiocache_aura import CacheManager, CachePolicy
from aiocache_aura.testing.server import EmbeddedServer
from benchmarks.fleet import Fleet

TTL, STALE, THROTTLE = 1.0, 3600.0, 1.0
LOAD = 0.02  # seconds that the source takes to answer, or to fail
WARM_UP, UP, AFTER = 2.0, 10.0, 5.0
WANTED = 0.005
BUDGET = 2.0  # seconds: a slow moment of this machine is no outage of the server, which would leave nothing to stand in
BEFORE, RECOVERED = "before the outage", "after it"


@dataclass(frozen=True, slots=True)
class Plan:
    """What every process is to do, and when: times of `time.monotonic`."""

    url: str
    prefix: str
    keys: int
    callers: int
    rate: float
    begins: float
    fails: float
    recovers: float
    ends: float


@dataclass(slots=True)
class Seen:
    """What the callers of a process have seen."""

    waits: list[float] = field(default_factory=list)  # in the outage: from the call to the answer
    late: list[float] = field(default_factory=list)  # from when it was due to the answer
    up_waits: list[float] = field(default_factory=list)  # the same before it
    up_late: list[float] = field(default_factory=list)
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    asked: dict[str, list[float]] = field(default_factory=dict)  # when the source was, by key, in the outage
    first_fresh: dict[str, float] = field(default_factory=dict)  # when a caller was given a value of the recovered source, by key


async def member(number: int, line: Connection, plan: Plan) -> Seen:
    """A process of the fleet."""
    logging.disable()  # that a refresh has failed is what it would say
    seen = Seen()
    policies = {"asked": CachePolicy(ttl=TTL, stale=STALE, throttle=THROTTLE)}
    async with CacheManager(plan.url, prefix=plan.prefix, policies=policies, budget=BUDGET) as manager:
        await manager.exists("asked", "a connection")
        line.send("ready")
        callers = [_caller(manager, plan, seen, Random(f"{number} {n}")) for n in range(plan.callers)]
        await asyncio.gather(*callers)
    return seen


async def _caller(manager: CacheManager, plan: Plan, seen: Seen, rng: Random) -> None:
    due = plan.begins
    while (due := due + rng.expovariate(plan.rate / plan.callers)) < plan.ends:
        await asyncio.sleep(max(due - time.monotonic(), 0.0))
        await _call(manager, plan, seen, f"k{rng.randrange(plan.keys)}", due)


async def _call(manager: CacheManager, plan: Plan, seen: Seen, key: str, due: float) -> None:
    started = time.monotonic()
    try:
        answer = await manager.get_or_load("asked", key, partial(_source, plan, seen, key))
    except Exception as error:  # a call that fails is a figure here
        seen.errors[type(error).__name__] += 1
        return
    ended = time.monotonic()
    if plan.fails <= started and ended < plan.recovers:
        seen.waits.append(ended - started)
        seen.late.append(ended - due)
        seen.wrong += answer != BEFORE
    elif plan.fails - UP <= started and ended < plan.fails:
        seen.up_waits.append(ended - started)
        seen.up_late.append(ended - due)
    elif answer == RECOVERED:
        seen.first_fresh.setdefault(key, ended)


async def _source(plan: Plan, seen: Seen, key: str) -> str:
    now = time.monotonic()
    if plan.fails <= now < plan.recovers:
        seen.asked.setdefault(key, []).append(now)
        await asyncio.sleep(LOAD)
        raise ConnectionError("the source is down")
    await asyncio.sleep(LOAD)
    return BEFORE if now < plan.fails else RECOVERED


def report(plan: Plan, fleet: Sequence[Seen]) -> None:
    seconds = plan.recovers - plan.fails
    answers, wrong = sum(len(seen.waits) for seen in fleet), sum(seen.wrong for seen in fleet)
    errors = sum((seen.errors for seen in fleet), Counter[str]())
    print(
        f"{seconds:.0f} s of outage: {answers - wrong:,} calls were given the stale value, {wrong:,} another, {errors.total():,} an error",
        end="",
    )
    print(f" ({errors})" if errors else "")
    print("                             p50        p99      p99.9        max   p99 below", f"{1000 * WANTED:.0f} ms")
    _report_waits("call to answer", fleet, "waits")
    _report_waits("due to answer", fleet, "late")
    _report_waits("source up: call", fleet, "up_waits")
    _report_waits("source up: due", fleet, "up_late")
    _report_source(plan, fleet)
    _report_recovery(plan, fleet)


def _report_waits(name: str, fleet: Sequence[Seen], kind: str) -> None:
    ordered = sorted(wait for seen in fleet for wait in getattr(seen, kind))
    shown = " ".join(f"{1000 * quantile(ordered, share):7.2f} ms" for share in (0.5, 0.99, 0.999, 1.0))
    print(f"  {name:20s} {shown}   {'yes' if quantile(ordered, 0.99) < WANTED else 'NO'}")


def _report_source(plan: Plan, fleet: Sequence[Seen]) -> None:
    keys = {key for seen in fleet for key in seen.asked}
    asked = {key: sorted(when for seen in fleet for when in seen.asked.get(key, ())) for key in keys}
    total = sum(map(len, asked.values()))
    gaps = [later - earlier for moments in asked.values() for earlier, later in pairwise(moments)]
    periods = plan.keys * (plan.recovers - plan.fails) / THROTTLE
    too_soon = sum(gap < THROTTLE for gap in gaps)
    print(f"  the source was asked {total:,} times by all {len(fleet)} processes: {total / periods:.2f} times per key and throttle period")
    print(f"  sooner than that after the last time: {too_soon:,}   wanted: 0   {'NO' if too_soon else 'yes'}")
    print(f"  the shortest time between two: {min(gaps, default=float('nan')):.3f} s, with a throttle of {THROTTLE} s")


def _report_recovery(plan: Plan, fleet: Sequence[Seen]) -> None:
    fresh = [when - plan.recovers for seen in fleet for when in seen.first_fresh.values()]
    missing = plan.keys * len(fleet) - len(fresh)
    if fresh:
        print(f"  the source is up again: a fresh value after {min(fresh):.2f} s; of each key, in each process, after {max(fresh):.2f} s")
    if missing:
        print(f"  {missing} of these had none after {plan.ends - plan.recovers:.0f} s")


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="that the source fails")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--callers", type=int, default=50, help="in each process")
    parser.add_argument("--rate", type=float, default=500, help="calls a second in each process, at most")
    parser.add_argument("--keys", type=int, default=10)
    options = parser.parse_args()
    with EmbeddedServer() as server, contextlib.ExitStack() as stack:
        begins = time.monotonic() + 3 + options.processes  # importing takes a while, all at once
        fails = begins + WARM_UP + UP
        recovers = fails + options.seconds
        plan = Plan(
            server.tcp_url, f"bench-{os.getpid()}", options.keys, options.callers, options.rate, begins, fails, recovers, recovers + AFTER
        )
        fleet = stack.enter_context(Fleet(options.processes, member, plan))
        print(f"{options.processes} processes x {options.callers} callers, {options.rate:.0f} calls/s each; {os.cpu_count()} cores")
        fleet.hear_from_each()
        if time.monotonic() > begins:
            raise SystemExit("the processes took longer to start than was foreseen; try again")
        report(plan, fleet.hear_from_each())


if __name__ == "__main__":
    main()
