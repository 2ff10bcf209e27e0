"""Early refresh: when a hit near the end of an entry's life is due."""

from __future__ import annotations

import math

import pytest

from aiocache_aura import FOREVER, CacheManager, CachePolicy
from aiocache_aura.codecs.envelope import Entry
from aiocache_aura.freshness import EARLIEST, is_due
from tests.clocks import ManualClock

TTL = 100.0


def entry(*, ttl: float = TTL, cost: float = 0.0) -> Entry:
    return Entry(codec=0, flags=0, created=0.0, ttl=ttl, stale=0.0, cost=cost, schema=0, fingerprint=b"", extras=b"", payload=b"")


def throw(monkeypatch: pytest.MonkeyPatch, number: float) -> None:
    """Have chance give this number."""
    monkeypatch.setattr("aiocache_aura.freshness.random.random", lambda: number)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("cost", [0.0, 1.0, 20.0])
def test_the_cost_and_a_bounded_throw_before_the_end(monkeypatch: pytest.MonkeyPatch, cost: float, factor: float) -> None:
    """Due is, times the factor: with the smallest throw what has its cost left, with the largest a bounded share of the ttl more."""
    for number, before_the_end in ((0.0, factor * cost), (1 - 2**-53, factor * (cost + EARLIEST * TTL))):
        throw(monkeypatch, number)
        assert is_due(entry(cost=cost), TTL - before_the_end + 1e-6, factor)
        assert not is_due(entry(cost=cost), TTL - before_the_end - 1e-6, factor)


def test_what_lives_for_ever_is_never_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry without end is not due, whatever chance gives."""
    for number in (0.0, 0.5, 1 - 2**-53):
        throw(monkeypatch, number)
        assert not is_due(entry(ttl=math.inf, cost=1.0), 1e9, 1.0)


async def test_hits_on_what_lives_for_ever_load_nothing() -> None:
    """FOREVER with early refresh is loaded once, however often it is asked for."""
    loads = 0

    async def load() -> int:
        nonlocal loads
        loads += 1
        return loads

    clock = ManualClock()
    policies = {"kept": CachePolicy(ttl=FOREVER, early_refresh=True)}
    async with CacheManager("memory://", policies=policies, clock=clock, budget=10) as manager:
        for _ in range(20):
            assert await manager.get_or_load("kept", "a", load) == 1
            clock.advance(1e6)
    assert loads == 1
