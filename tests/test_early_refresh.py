"""Early refresh: when a hit near the end of an entry's life is due, and what comes of it."""

from __future__ import annotations

from random import Random

import pytest

from aiocache_aura.codecs.envelope import Entry
from aiocache_aura.freshness import EARLIEST, is_due

TTL = 100.0
CYCLES = 1_500


def entry(cost: float, created: float = 0.0) -> Entry:
    return Entry(codec=0, flags=0, created=created, ttl=TTL, stale=0.0, cost=cost, schema=0, fingerprint=b"", extras=b"", payload=b"")


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("cost", [0.0, 1.0, 20.0])
def test_the_cost_and_a_bounded_throw_before_the_end(monkeypatch: pytest.MonkeyPatch, cost: float, factor: float) -> None:
    """Due is, times the factor: with the smallest throw what has its cost left, with the largest a bounded share of the ttl more."""
    for number, before_the_end in ((0.0, factor * cost), (1 - 2**-53, factor * (cost + EARLIEST * TTL))):
        monkeypatch.setattr("aiocache_aura.freshness.random.random", lambda number=number: number)
        assert is_due(entry(cost), TTL - before_the_end + 1e-6, factor)
        assert not is_due(entry(cost), TTL - before_the_end - 1e-6, factor)


def life_after_life(rng: Random, asks: float, cost: float) -> tuple[float, float]:
    """(loads in a ttl, those of them that somebody waits for) of a key that is asked for at random moments, so often in each ttl."""
    began = waited = 0.0
    for _ in range(CYCLES):
        stored, now = entry(cost, began), began + cost
        while stored.is_fresh(now) and not is_due(stored, now, 1.0):
            now += rng.expovariate(asks / TTL)
        without = now + cost - began - TTL  # seconds from the end of the life to the end of the load
        waited += not stored.is_fresh(now) or (without > 0 and rng.expovariate(asks / TTL) < without)
        began = now
    return CYCLES / (began / TTL), waited / (began / TTL)


@pytest.mark.parametrize("cost", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("asks", [100, 300, 1_000])
def test_few_wait_and_few_loads_are_added(monkeypatch: pytest.MonkeyPatch, asks: int, cost: float) -> None:
    """From 100 asks in a ttl on, and for loads of up to 5 % of it: at least 95 % fewer are waited for, for at most 15 % more loads."""
    rng = Random(asks + cost)
    monkeypatch.setattr("aiocache_aura.freshness.random.random", rng.random)
    plain = 1 / (1 + 1 / asks)  # a life, and the time to the next ask
    loads, waited = life_after_life(rng, asks, cost)
    assert loads <= 1.15 * plain
    assert waited <= 0.05 * plain
