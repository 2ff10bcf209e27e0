"""Who asks the restaurants: hundreds of callers at once, each of whom takes the next request of the list."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from aiocache_aura.demo.ledger import Ledger
from aiocache_aura.demo.requests import Request
from aiocache_aura.demo.restaurants import Restaurants


@dataclass(slots=True)
class Traffic:
    """What became of the requests: how many were made, in how many seconds, and how long those of each kind had to wait."""

    made: int = 0
    seconds: float = 0.0
    waits: dict[str, list[float]] = field(default_factory=dict)


async def run(
    back_end: Restaurants,
    requests: Iterable[Request],
    ledger: Ledger,
    *,
    callers: int,
    seconds: float = float("inf"),
    tell: Callable[[int], None] = lambda made: None,
) -> Traffic:
    """Have the requests made, in their order; after so many seconds no more begin."""
    traffic, started, rest = Traffic(), time.perf_counter(), iter(requests)

    async def caller() -> None:
        while time.perf_counter() < started + seconds and (request := next(rest, None)) is not None:
            await asyncio.sleep(request.pause)
            wait = await _make(back_end, request, ledger)
            traffic.waits.setdefault(request.kind, []).append(wait)
            traffic.made += 1
            tell(traffic.made)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    traffic.seconds = time.perf_counter() - started
    return traffic


async def _make(back_end: Restaurants, request: Request, ledger: Ledger) -> float:
    """Make one request under the eyes of the ledger; the seconds that its caller waited."""
    method = getattr(back_end, request.method)
    oldest = ledger.begins(request)
    started = time.perf_counter()
    result = await method(*request.args)
    wait = time.perf_counter() - started
    if request.is_change:
        ledger.changed(request, result.version)
    else:
        ledger.check(request, result, oldest)
    return wait
