"""What happens when lives end: who waits for the next load. An evening is too short for that, so here lives are, too.

The questions that are asked most are asked over and over, by half as many callers as in the evening. Nothing is updated meanwhile, for what
an update makes old has to be waited for, whatever the policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from aiocache_aura import CacheManager
from aiocache_aura.demo.ledger import Ledger
from aiocache_aura.demo.requests import Request
from aiocache_aura.demo.restaurants import Restaurants
from aiocache_aura.demo.traffic import Traffic, run

LIVES = 5
KINDS = ("menu", "settings", "static")
QUESTIONS_ASKED = 5
WAYS: dict[str, dict[str, Any]] = {"ttl alone": {}, "early_refresh": {"early_refresh": True}, "stale": {"stale": "1m"}}


@dataclass(frozen=True, slots=True)
class Lives:
    """What came of one way to live. Counted from when every question had been asked once."""

    way: str
    life: float
    traffic: Traffic
    ledger: Ledger
    loads: int
    misses: int
    coalesced: int
    asked_least: float  # in a life

    @property
    def waited_for(self) -> int:
        """How many loads a caller waited for, at most: those at a miss, and, if anybody has, those begun early that somebody ran into."""
        at_a_miss = self.misses - self.coalesced
        return at_a_miss + min(self.coalesced, self.loads - at_a_miss)


def busiest(requests: Sequence[Request]) -> list[Request]:
    """Those of the requests that ask what is asked most."""
    often = Counter(request for request in requests if request.kind in KINDS).most_common(QUESTIONS_ASKED)
    questions = {request for request, _ in often}
    return [request for request in requests if request in questions]


async def live(way: str, manager: CacheManager, back_end: Restaurants, requests: Sequence[Request], *, callers: int, life: float) -> Lives:
    """Have the requests made, again and again, while entries live for so many seconds."""
    policies = {kind: manager.policy(kind) for kind in KINDS}
    try:
        for kind in KINDS:
            manager.override(kind, ttl=life, **WAYS[way])
            await manager.invalidate(kind)
        questions, ledger = Counter(requests), Ledger()
        await run(back_end, list(questions), ledger, callers=callers)
        before = _counted(manager)
        traffic = await run(back_end, cycle(requests), ledger, callers=callers, seconds=LIVES * life)
        loads, misses, coalesced = (after - first for first, after in zip(before, _counted(manager), strict=True))
    finally:
        await manager.aclose()  # and with it the refreshes behind, which use the database
        for kind, policy in policies.items():
            manager.register(kind, policy)
    share = min(questions.values()) / len(requests)
    return Lives(way, life, traffic, ledger, loads, misses, coalesced, share * traffic.made * life / traffic.seconds)


def _counted(manager: CacheManager) -> list[int]:
    """Loads, misses, and those of the misses that found a load under way."""
    return [sum(getattr(manager.counts(kind), name) for kind in KINDS) for name in ("loads", "misses", "coalesced")]
