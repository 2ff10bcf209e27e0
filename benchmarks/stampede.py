"""A thousand callers in four processes ask for one key that is not there.

    python -m benchmarks.stampede [--rounds 100] [--processes 4] [--callers 250] [--kills 3]

1. Rounds: all callers ask for a new key at one moment; the loader takes 100 ms. Told are the loads in each round, and how long after the
   load was done each caller of another process had its answer: the fill, the wake-up, the value, and decoding it for each. Those in the
   process that loads need no wake-up: they tell what the machine can do. Wanted: exactly one load; 20 ms at the median.
2. Waiting: one load of 3 s; what the server is sent in 2 s of it (INFO commandstats), renewals of the lease included. Wanted: at most 2
   commands in a second for each process that waits.
3. Death: the loading process is killed (SIGKILL) in the middle of its load; how long until another one loads. Wanted: at most the lease
   (3 s) and a second.

All over one Valkey server of its own. The rounds are repeated with the locks of cashews and aiocache, where they are installed, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import redis

from aiocache_aura import CacheManager, CachePolicy
from aiocache_aura.testing.server import EmbeddedServer
from benchmarks.fleet import Fleet

LOAD, LONG_LOAD = 0.1, 3.0
LEASE = 3.0
FOLLOWERS_WAIT, COMMANDS, TAKE_OVER = 0.02, 2.0, LEASE + 1.0
LOADS = "this process loads"
BEFORE_DEATH = 1.1  # when a lease has just been renewed, which is the worst moment
SOON = 0.1  # from when a round is told until it begins
Ask = Callable[[str, Callable[[], Awaitable[Any]]], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Round:
    """To ask for a key at a moment, with a loader that takes so long."""

    subject: str
    key: str
    at: float
    load: float


@dataclass(frozen=True, slots=True)
class Asked:
    """What became of a round in one process: its loads; and how long after the load its callers had the answer, by who has loaded."""

    loads: int
    waits: list[float]  # another process has
    at_home: list[float]  # this one has
    errors: int


async def aura(url: str, stack: AsyncExitStack) -> Ask:
    policies = {"cold": CachePolicy(ttl="1h")}
    manager = await stack.enter_async_context(CacheManager(url, prefix="bench", policies=policies, budget=5.0))
    await manager.exists("cold", "a connection")
    return lambda key, load: manager.get_or_load("cold", key, load)


async def cashews(url: str, stack: AsyncExitStack) -> Ask:
    from cashews import Cache

    peer = Cache()
    peer.setup(url, client_side=False)
    stack.push_async_callback(peer.close)
    loads: dict[str, Callable[[], Awaitable[Any]]] = {}

    @peer(ttl="1h", key="cashews:{key}", lock=True)
    async def cold(key: str) -> Any:
        return await loads[key]()

    def ask(key: str, load: Callable[[], Awaitable[Any]]) -> Awaitable[Any]:
        loads[key] = load
        return cold(key)

    return ask


async def aiocache(url: str, stack: AsyncExitStack) -> Ask:
    from aiocache import cached_stampede
    from aiocache.backends.redis import RedisCache
    from aiocache.serializers import JsonSerializer

    host, _, port = url.removeprefix("redis://").partition("/")[0].partition(":")
    loads: dict[str, Callable[[], Awaitable[Any]]] = {}

    @cached_stampede(lease=10, ttl=3600, cache=RedisCache, endpoint=host, port=int(port), serializer=JsonSerializer(), pool_max_size=50)
    async def cold(key: str) -> Any:
        return await loads[key]()

    stack.push_async_callback(cold.cache.close)

    def ask(key: str, load: Callable[[], Awaitable[Any]]) -> Awaitable[Any]:
        loads[key] = load
        return cold(key)

    return ask


SUBJECTS = {"aiocache_aura": aura, "cashews": cashews, "aiocache": aiocache}


async def member(number: int, line: Connection, url: str, callers: int) -> None:
    """A process of the fleet: tells which subjects there are, then makes each round that it is told."""
    async with AsyncExitStack() as stack:
        asks: dict[str, Ask] = {}
        for name, make in SUBJECTS.items():
            with contextlib.suppress(ImportError):
                asks[name] = await make(url, stack)
        line.send(list(asks))
        while (one := await asyncio.to_thread(line.recv)) is not None:
            line.send(await _round(asks[one.subject], one, callers, line))


async def _round(ask: Ask, one: Round, callers: int, line: Connection) -> Asked:
    waits: list[float] = []
    at_home: list[float] = []
    loads = errors = 0

    async def load() -> dict[str, float]:
        nonlocal loads
        loads += 1
        line.send(LOADS)
        await asyncio.sleep(one.load)
        return {"pid": os.getpid(), "done": time.monotonic()}

    async def caller() -> None:
        nonlocal errors
        try:
            answer = await ask(one.key, load)
        except Exception:  # a failure is a figure here
            errors += 1
        else:
            (at_home if answer["pid"] == os.getpid() else waits).append(time.monotonic() - answer["done"])

    await asyncio.sleep(max(one.at - time.monotonic(), 0.0))
    await asyncio.gather(*[caller() for _ in range(callers)])
    return Asked(loads, waits, at_home, errors)


class Stampede:
    """A fleet, and the server that it is over."""

    def __init__(self, fleet: Fleet, server: EmbeddedServer) -> None:
        self.fleet = fleet
        self.client = redis.Redis(port=server.port)
        self.subjects: list[str] = fleet.hear_from_each()[0]

    def begin(self, subject: str, load: float) -> Round:
        one = Round(subject, f"k{time.monotonic_ns()}", time.monotonic() + SOON, load)
        self.fleet.tell(one)
        return one

    def end(self) -> list[Asked]:
        """What became of a round in each process that is left."""
        asked: list[Asked] = []
        while len(asked) < len(self.fleet.lines):
            heard = self.fleet.hear(60)
            if heard is None:
                raise SystemExit("a round has not ended")
            if isinstance(heard[1], Asked):
                asked.append(heard[1])
        return asked

    def round(self, subject: str, load: float = LOAD) -> list[Asked]:
        self.begin(subject, load)
        return self.end()

    def commands_while_waiting(self, subject: str, seconds: float) -> dict[str, int]:
        """What the server is sent in the middle of a long load."""
        one = self.begin(subject, LONG_LOAD)
        time.sleep(max(one.at + (LONG_LOAD - seconds) / 2 - time.monotonic(), 0.0))
        self.client.config_resetstat()
        time.sleep(seconds)
        stats: dict[str, Any] = self.client.info("commandstats")
        self.end()
        ours = ("cmdstat_config|resetstat", "cmdstat_info")
        return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items() if name not in ours}

    def take_over(self, subject: str) -> float | None:
        """Kill the process that loads; seconds until another one does. None if they all did before."""
        self.begin(subject, 2 * TAKE_OVER)
        leader = self._first_load()
        if leader is None:
            raise SystemExit("nobody loads")
        if self._first_load(BEFORE_DEATH) is not None:
            return None
        process = self.fleet.processes[leader]
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        killed = time.monotonic()
        return None if self._first_load() is None else time.monotonic() - killed

    def _first_load(self, timeout: float = 3 * TAKE_OVER) -> int | None:
        """Which process says next that it loads, None if none does in time."""
        until = time.monotonic() + timeout
        while heard := self.fleet.hear(until - time.monotonic()):
            if heard[1] == LOADS:
                return heard[0]
        return None


def rounds(stampede: Stampede, count: int) -> None:
    results: dict[str, list[list[Asked]]] = {subject: [] for subject in stampede.subjects}
    for subject in stampede.subjects:
        stampede.round(subject)  # connections, scripts
    for _ in range(count):
        for subject, done in results.items():
            done.append(stampede.round(subject))
    print("                 loads in a round               an answer after the load was done: in other processes   in the one that loads")
    print("                 fewest  median    most  errors        p50        p99        max        p50        p99        max")
    for subject, done in results.items():
        loads = [sum(asked.loads for asked in one) for one in done]
        errors = sum(asked.errors for one in done for asked in one)
        waits = [wait for one in done for asked in one for wait in asked.waits]
        at_home = [wait for one in done for asked in one for wait in asked.at_home]
        shown = " ".join(f"{1000 * quantile(kind, share):7.1f} ms" for kind in (waits, at_home) for share in (0.5, 0.99, 1.0))
        print(f"  {subject:14s} {min(loads):6} {statistics.median(loads):7.0f} {max(loads):7} {errors:7} {shown}")
    ours = results["aiocache_aura"]
    ones = sum(sum(asked.loads for asked in one) == 1 for one in ours)
    is_soon = quantile([wait for one in ours for asked in one for wait in asked.waits], 0.5) <= FOLLOWERS_WAIT
    print(f"  exactly one load in {ones} of {count} rounds   wanted: all   {told(ones == count)}")
    print(f"  the median answer within {1000 * FOLLOWERS_WAIT:.0f} ms   {told(is_soon)}")


def waiting(stampede: Stampede, processes: int, seconds: float = 2.0) -> None:
    for subject in stampede.subjects:
        seen = stampede.commands_while_waiting(subject, seconds)
        rate = sum(seen.values()) / seconds / (processes - 1)
        print(f"  {subject:14s} {rate:8.2f} commands/s for each waiting process   {told(rate <= COMMANDS)}   {seen}")


def deaths(url: str, server: EmbeddedServer, processes: int, callers: int, kills: int) -> None:
    times = []
    for _ in range(kills):
        with Fleet(processes, member, url, callers) as fleet:
            times.append(Stampede(fleet, server).take_over("aiocache_aura"))
    shown = ", ".join("every process loads for itself" if one is None else f"{one:.2f} s" for one in times)
    is_soon = all(one is not None and one <= TAKE_OVER for one in times)
    print(f"  another process loads after: {shown}   wanted: {TAKE_OVER:.0f} s at most   {told(is_soon)}")


def told(is_so: bool) -> str:
    return "yes" if is_so else "NO"


def quantile(waits: list[float], share: float) -> float:
    """The value that this share of them does not exceed; not a number if there are none."""
    return sorted(waits)[min(int(share * len(waits)), len(waits) - 1)] if waits else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--callers", type=int, default=250, help="in each process")
    parser.add_argument("--kills", type=int, default=3)
    options = parser.parse_args()
    with EmbeddedServer() as server:
        url = server.tcp_url
        print(f"{options.processes} processes x {options.callers} callers on one cold key; {os.cpu_count()} cores")
        with Fleet(options.processes, member, url, options.callers) as fleet:
            stampede = Stampede(fleet, server)
            rounds(stampede, options.rounds)
            print("\nwhile they wait")
            waiting(stampede, options.processes)
            fleet.tell(None)
        print("\nthe loading process is killed")
        deaths(url, server, options.processes, options.callers, options.kills)


if __name__ == "__main__":
    main()
