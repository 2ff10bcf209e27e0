"""Leases over real servers: each branch of what decides who loads, what ends a lease, and how those who wait hear of it.

A "process" is a port of its own with connections of its own; the fleet of a test shares one server and one prefix.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer

from aiocache_aura.resilience.single_flight import Tick
from aiocache_aura.stores import leases
from aiocache_aura.stores.base import Claim, Fill, Found, Held, Link, Standing, Want
from aiocache_aura.stores.connections import Endpoint
from aiocache_aura.stores.lanes import LaneLink
from aiocache_aura.stores.pooled import PooledLink
from aiocache_aura.stores.redis import RedisPort
from tests.servers import ENGINES, Server

SOON = 5.0
OLD = b"AU\x01" + b"1" * 12 + b"the old value"
NEW = b"AU\x01" + b"2" * 12 + b"the new value"


def nothing() -> None:
    pass


class Fleet:
    """Processes over one server, and the hands of a tester."""

    def __init__(self, make: Callable[[], Link], run: Callable[..., Any]) -> None:
        self.make, self.run = make, run
        self.prefix = "t" + os.urandom(6).hex()
        self.ports: list[RedisPort] = []
        self.key = f"{self.prefix}:menu:=k".encode()
        self.place = f"{self.prefix}!p:{{".encode() + self.key + b"}"
        self.channel = f"{self.prefix}!w".encode()

    def process(self, link: Link | None = None) -> Process:
        self.ports.append(RedisPort(link or self.make(), self.prefix, budget=SOON, tick=Tick()))
        return Process(self, self.ports[-1])

    def scope(self, name: str = "menu") -> bytes:
        return f"{self.prefix}!g:y:{name}".encode()

    async def aclose(self) -> None:
        for port in self.ports:
            await port.aclose()


class Process:
    """One process of the fleet, which loads the fleet's one key."""

    def __init__(self, fleet: Fleet, port: RedisPort) -> None:
        self.fleet, self.port, self.leases, self.key = fleet, port, port.leases, fleet.key

    async def ask(self, *scopes: bytes, life: float | None = 60.0, **options: Any) -> Standing:
        want = Want(self.key, scopes or (self.fleet.scope(),), life, **options)
        (standing,) = await self.leases.acquire([want], timeout=SOON, written=nothing)
        return standing

    async def take(self, *scopes: bytes, **options: Any) -> Claim:
        standing = await self.ask(*scopes, **options)
        assert isinstance(standing, Claim), standing
        assert standing.leased
        return standing

    async def held(self, *scopes: bytes, **options: Any) -> Held:
        standing = await self.ask(*scopes, **options)
        assert isinstance(standing, Held), standing
        return standing

    async def fill(self, claim: Claim, raw: bytes = NEW, life: float | None = 60.0) -> bool:
        fill = Fill(self.key, raw, life, claim.permit, (self.fleet.scope(),), leased=claim.leased)
        (verdict,) = await self.port.fill([fill], written=nothing, timeout=SOON)
        return verdict.accepted

    async def get(self) -> bytes | None:
        return (await self.port.lookup(self.key, ()))[0]

    async def settle(self) -> None:
        """What was put behind the callers' backs has been answered: the write lane answers in order."""
        await self.port.generations((self.fleet.scope("settle"),), life=None, timeout=SOON)


def over_lanes(server: Server) -> Fleet:
    def run(*command: Any) -> Any:
        with server.client() as client:
            return client.execute_command(*command)

    return Fleet(lambda: LaneLink(Endpoint.from_url(server.url)), run)


def over_fakeredis() -> Fleet:
    server = FakeServer()

    def run(*command: Any) -> Any:
        from fakeredis import FakeRedis

        return FakeRedis(server=server).execute_command(*command)

    return Fleet(lambda: PooledLink(FakeAsyncRedis(server=server)), run)


@pytest.fixture(params=["fakeredis", *ENGINES])
async def fleet(request: pytest.FixtureRequest) -> AsyncIterator[Fleet]:
    if request.param == "fakeredis":
        made = over_fakeredis()
    else:
        servers: dict[str, Server] = request.getfixturevalue("_servers")
        if request.param not in servers:
            servers[request.param] = Server(request.param)
        made = over_lanes(servers[request.param])
    yield made
    await made.aclose()


@pytest.fixture
async def served(server: Server) -> AsyncIterator[Fleet]:
    made = over_lanes(server)
    yield made
    await made.aclose()


# Acquire


async def test_one_takes_and_others_follow(fleet: Fleet) -> None:
    """Of several processes that want a key one has its lease, and the others are told of whose chain it is and how long it is good."""
    one, two = fleet.process(), fleet.process()
    claim = await one.take()
    assert claim.tokens.missing((fleet.scope(),)) == []
    held = await two.held()
    assert 0 < held.left <= leases.LEASE
    assert held.chain == (await two.held()).chain == (await one.held()).chain
    assert await one.fill(claim)
    found = await two.ask()
    assert isinstance(found, Found)
    assert found.raw == NEW
    assert found.tokens.fingerprint((fleet.scope(),)) == claim.tokens.fingerprint((fleet.scope(),)) is not None
