"""Leases over real servers: each branch of what decides who loads, what ends a lease, and how those who wait hear of it.

A "process" is a port of its own with connections of its own; the fleet of a test shares one server and one prefix.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeRedis, FakeServer

from aiocache_aura.errors import BackendError
from aiocache_aura.resilience.single_flight import Tick
from aiocache_aura.stores import followers as followers_module
from aiocache_aura.stores import lanes, leases, scripts
from aiocache_aura.stores.base import Alone, Claim, Failed, Fill, Found, HeldElsewhere, Holder, Link, Standing, Want
from aiocache_aura.stores.connections import Endpoint
from aiocache_aura.stores.followers import KeyFollower
from aiocache_aura.stores.lanes import LaneLink
from aiocache_aura.stores.pooled import PooledLink
from aiocache_aura.stores.redis import RedisPort
from aiocache_aura.stores.replies import is_answer
from tests import steps
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

    async def held(self, *scopes: bytes, **options: Any) -> HeldElsewhere:
        standing = await self.ask(*scopes, **options)
        assert isinstance(standing, HeldElsewhere), standing
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


# Acquire: the value


@pytest.mark.parametrize("seen", [None, OLD[:15] + b"another body", OLD])
async def test_the_value_that_is_known_is_no_answer(fleet: Fleet, seen: bytes | None) -> None:
    """An asker is given the value unless it is the one that it has seen, known by its first fifteen bytes (M12)."""
    one = fleet.process()
    fleet.run("SET", one.key, OLD)
    standing = await one.ask(seen=seen)
    assert isinstance(standing, Found if seen is None else Claim)
    fleet.run("SET", one.key, NEW)
    found = await one.ask(seen=seen)
    assert isinstance(found, Found)
    assert found.raw == NEW
    assert found.tokens.missing((fleet.scope(),)) == []


async def test_a_value_that_has_gone_is_no_answer(fleet: Fleet) -> None:
    """Whoever saw a value that is there no more takes the lease."""
    await fleet.process().take(seen=OLD)


@pytest.mark.parametrize("command", [("SET", b""), ("RPUSH", b"x")])
async def test_what_is_no_value_of_ours(fleet: Fleet, command: tuple[str, bytes]) -> None:
    """An empty string, or a key of another kind, in the value's place is no answer; it is left alone until the fill."""
    one = fleet.process()
    fleet.run(command[0], one.key, command[1])
    claim = await one.take()
    assert fleet.run("EXISTS", one.key) == 1
    assert await one.fill(claim)
    assert fleet.run("GET", one.key) == NEW


# Acquire: generations


async def test_tokens_are_captured(fleet: Fleet) -> None:
    """An acquire gives the tokens as they are, plants what is missing, and replaces what is none (M6)."""
    one, scopes = fleet.process(), tuple(fleet.scope(name) for name in "dbca")
    kept = await one.port.generations(scopes[:2], life=60.0, timeout=SOON)
    fleet.run("SET", scopes[2], "a text")
    claim = await one.take(*scopes)
    assert claim.tokens.missing(scopes) == []
    assert {scope: claim.tokens.found[scope] for scope in scopes[:2]} == kept.found
    now = await one.port.generations(scopes, life=60.0, timeout=SOON)
    assert now.fingerprint(scopes) == claim.tokens.fingerprint(scopes) is not None


async def test_the_life_of_tokens(fleet: Fleet) -> None:
    """Tokens live as those that a claim plants: twice an entry's life and a minute, prolonged when less than one is left (M8)."""
    one, scope = fleet.process(), fleet.scope()
    await one.take(life=40.0)
    assert 195_000 < fleet.run("PTTL", scope) <= 200_000
    fleet.run("PEXPIRE", scope, 105_000)
    await one.held(life=40.0)
    assert fleet.run("PTTL", scope) <= 105_000
    fleet.run("PEXPIRE", scope, 95_000)
    await one.held(life=40.0)
    assert fleet.run("PTTL", scope) > 195_000
    await one.held(life=None)
    assert fleet.run("PTTL", scope) == -1
    await one.held(life=40.0)
    assert fleet.run("PTTL", scope) == -1


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("which", [0, 1, 2])
async def test_a_doomed_holder_is_overtaken(fleet: Fleet, which: int, soft: bool) -> None:
    """A lease whose holder has read other generations than there are now is taken, whichever changed, and by which half (M15)."""
    one, two, scopes = fleet.process(), fleet.process(), tuple(fleet.scope(name) for name in "abc")
    old = await one.take(*scopes)
    await two.held(*scopes)
    await two.held(*reversed(scopes))
    await one.port.invalidate([scopes[which]], timeout=SOON, soft=soft)
    new = await two.take(*reversed(scopes))
    assert new.tokens.fingerprint(scopes) != old.tokens.fingerprint(scopes)
    await one.held(*scopes)
    assert not await one.fill(old, OLD)
    assert await two.fill(new)
    assert await one.get() == NEW


async def test_an_evicted_token_dooms(fleet: Fleet) -> None:
    """A token that was evicted is planted anew: what is loading then would match nothing."""
    one, two = fleet.process(), fleet.process()
    await one.take()
    fleet.run("DEL", fleet.scope())
    await two.take()


async def test_scopes_that_both_depend_on_tell(fleet: Fleet) -> None:
    """Whether a lease is doomed is judged by the scopes that both depend on, in whatever order; others say nothing."""
    one, two = fleet.process(), fleet.process()
    await one.take(fleet.scope("a"), fleet.scope("b"))
    await one.port.invalidate([fleet.scope("a"), fleet.scope("c")], timeout=SOON)
    await two.held(fleet.scope("b"))
    await two.held(fleet.scope("b"), fleet.scope("c"))
    await two.take(fleet.scope("c"), fleet.scope("b"), fleet.scope("a"))
    await one.held(fleet.scope("a"), fleet.scope("b"))


async def test_no_scopes(fleet: Fleet) -> None:
    """A key without scopes is loaded by one process like any other."""
    one = fleet.process()
    want = Want(one.key, (), 60.0)
    (claim,) = await one.leases.acquire([want], timeout=SOON, written=nothing)
    (held,) = await one.leases.acquire([want], timeout=SOON, written=nothing)
    assert isinstance(claim, Claim)
    assert isinstance(held, HeldElsewhere)


# Acquire: what is in the lease's place

WHOLE = b"L" + bytes(scripts.LEASE_HEAD - 1) + b"0"
JUNK = {
    "empty": b"",
    "short": b"L",
    "a permit": os.urandom(16),
    "a permit that begins as a lease": b"L" * 16,
    "a lease without its end": WHOLE[:-1],
    "of no kind": b"X" + WHOLE[1:],
    "an alone mark of somebody": b"A" + bytes(32),
    "a failure mark cut short": b"F1" + bytes(30),
    "a failure mark without numbers": b"F1" + b"x" * 48 + b"why",
}


@pytest.mark.parametrize("name", JUNK)
@pytest.mark.parametrize("content", [False, True])
async def test_what_is_no_lease_is_overtaken(fleet: Fleet, name: str, content: bool) -> None:
    """Permits, and whatever else is no lease, stand in nobody's way; the lease that is taken is a whole one."""
    one = fleet.process()
    fleet.run("SET", fleet.place, JUNK[name], "PX", 60_000)
    claim = await one.take(chain=b"0" * 15 + b"7", content=content)
    assert 0 < fleet.run("PTTL", fleet.place) <= 3000
    assert len(claim.permit) == scripts.LEASE_HEAD + 12
    assert await one.fill(claim)
    assert fleet.run("EXISTS", fleet.place) == 0


async def test_a_lease_of_another_kind(fleet: Fleet) -> None:
    """A list in the lease's place is overtaken, refuses fills and is left alone by what ends leases."""
    one = fleet.process()
    claim = await one.take()
    fleet.run("DEL", fleet.place)
    fleet.run("RPUSH", fleet.place, "x")
    assert not await one.fill(claim)
    one.leases.release(one.key, claim.permit)
    await one.settle()
    assert fleet.run("LLEN", fleet.place) == 1
    assert await one.leases.holder(one.key, timeout=SOON) is None
    await one.take()


async def test_a_lease_that_would_never_end(fleet: Fleet) -> None:
    """A lease that has lost its end is nobody's."""
    one = fleet.process()
    await one.take()
    fleet.run("PERSIST", fleet.place)
    await one.take()


async def test_a_permit_and_a_lease(fleet: Fleet) -> None:
    """A load without a lease whose permit was overtaken may not fill; one that comes later shares the proof that is there."""
    one = fleet.process()
    (permit,) = await one.port.claim([(one.key, ())], life=60.0, timeout=SOON)
    claim = await one.take()
    assert not await one.fill(permit, OLD)
    (later,) = await one.port.claim([(one.key, ())], life=60.0, timeout=SOON, within=3600.0)
    assert 0 < fleet.run("PTTL", fleet.place) <= 3000  # whoever follows it waits no longer for a holder that died
    assert await one.fill(later, OLD)
    assert await one.fill(claim)
    assert not await one.fill(later, OLD)


async def test_a_permit_and_a_mark(fleet: Fleet) -> None:
    """A load without a lease goes past the mark of one that failed or had nothing to share, and past what is none: it may fill."""
    one = fleet.process()
    for end in ("fail", "leave_alone"):
        await _end(one, await one.take(force=True), end)
        (permit,) = await one.port.claim([(one.key, ())], life=60.0, timeout=SOON)
        assert len(permit.permit) == 16
        assert await one.fill(permit, OLD)
    for junk in (b"", WHOLE[:-1], b"X" + WHOLE[1:]):
        fleet.run("SET", fleet.place, junk)
        (permit,) = await one.port.claim([(one.key, ())], life=60.0, timeout=SOON)
        assert await one.fill(permit, OLD)
    fleet.run("DEL", fleet.place)
    fleet.run("RPUSH", fleet.place, "x")
    (permit,) = await one.port.claim([(one.key, ())], life=60.0, timeout=SOON)
    assert await one.fill(permit, OLD)


# Failures, and nothing to share


async def test_one_retry_for_a_chain(fleet: Fleet) -> None:
    """Who waited for a load that failed tries once more, one for all; when that fails too each of them is told why (M14)."""
    one, two = fleet.process(), fleet.process()
    first = await one.take()
    chain = (await two.held()).chain
    one.leases.fail(one.key, first.permit, b"first", throttle=0.0)
    await one.settle()
    second = await two.take(chain=chain)
    assert (await one.held(chain=chain)).chain == chain
    two.leases.fail(two.key, second.permit, b"second", throttle=0.0)
    await two.settle()
    assert await one.ask(chain=chain) == await two.ask(chain=chain) == Failed(b"second", 0.0)


@pytest.mark.parametrize("attempts", [1, 2])
async def test_a_newcomer_begins_another_chain(fleet: Fleet, attempts: int) -> None:
    """Who comes after a failure, however often it failed, loads: with two attempts again, and those of the old chain follow it."""
    one, two = fleet.process(), fleet.process()
    claim = await one.take()
    old = (await two.held()).chain
    for chain in (old, b"")[:attempts]:
        one.leases.fail(one.key, claim.permit, b"why", throttle=0.0)
        await one.settle()
        claim = await one.take(chain=chain)
    if attempts == 1:
        one.leases.fail(one.key, claim.permit, b"why", throttle=0.0)
        await one.settle()
        claim = await one.take(chain=b"another chain...")
    holder = await one.leases.holder(one.key, timeout=SOON)
    assert holder is not None
    assert holder.attempt == 1
    assert (await two.held(chain=old)).chain == (await two.held()).chain != old


async def test_content_askers_pause(fleet: Fleet) -> None:
    """Who has a value to go on with does not load before the pause is over, whatever its chain; who has none does."""
    one, two = fleet.process(), fleet.process()
    claim = await one.take()
    chain = (await two.held()).chain
    one.leases.fail(one.key, claim.permit, b"why", throttle=30.0)
    await one.settle()
    for asked in (b"", chain, b"another chain..."):
        failed = await two.ask(chain=asked, content=True)
        assert isinstance(failed, Failed)
        assert failed.reason == b"why"
        assert 25.0 < failed.pause <= 30.0
    await two.take()


async def test_a_pause_outlasts_the_leases_that_take_the_place_of_its_mark(fleet: Fleet) -> None:
    """A newcomer takes a lease while refreshes pause, and gives it back: they pause as before; if it fails, for the longer time."""
    one, two = fleet.process(), fleet.process()
    one.leases.fail(one.key, (await one.take()).permit, b"why", throttle=30.0)
    await one.settle()
    newcomer = await two.take()
    await two.port.invalidate([fleet.scope()], timeout=SOON)
    doomed = await one.ask(content=True)
    assert isinstance(doomed, Failed)
    two.leases.release(two.key, newcomer.permit)
    await two.settle()
    again = await one.ask(content=True)
    assert isinstance(again, Failed)
    assert 25.0 < again.pause <= 30.0
    two.leases.fail(two.key, (await two.take()).permit, b"why", throttle=1.0)
    await two.settle()
    still = await one.ask(content=True)
    assert isinstance(still, Failed)
    assert 20.0 < still.pause <= 30.0


async def test_nothing_to_share_outlasts_the_lease_that_takes_the_place_of_its_mark(fleet: Fleet) -> None:
    """A newcomer takes a lease before the mark was seen by whom it was for: they need not wait for its load, too."""
    one, two, three = (fleet.process() for _ in range(3))
    claim = await one.take()
    chain = (await two.held()).chain
    one.leases.leave_alone(one.key, claim.permit)
    await one.settle()
    newcomer = await three.take()
    assert await two.ask(chain=chain) == Alone()
    later = (await one.held()).chain
    assert later > chain
    await one.held(chain=later)
    three.leases.release(three.key, newcomer.permit)
    await three.settle()
    assert await two.ask(chain=chain) == Alone()
    await one.take(chain=later)


async def test_a_forced_load_that_is_refused_takes_away_what_it_set_out_to_replace(fleet: Fleet) -> None:
    """Two refreshes: the first is refused, the second fails. What was there before either is gone; what came since is not touched."""
    one, two = fleet.process(), fleet.process()
    assert await one.fill(await one.take(), OLD)
    first = await one.take(force=True)
    second = await two.take(force=True)
    assert not await one.fill(first, NEW)
    assert await one.get() is None
    two.leases.fail(two.key, second.permit, b"why", throttle=0.0)
    await two.settle()
    assert await one.fill(await one.take(), OLD)
    third = await one.take(force=True)
    assert await two.fill(await two.take(force=True), NEW)
    assert not await one.fill(third, OLD)
    assert await one.get() == NEW


async def test_a_pause_that_is_shorter_than_the_mark(fleet: Fleet) -> None:
    """A mark stays for those who waited, a lease and a second; for content askers it counts only as long as their pause."""
    one = fleet.process()
    claim = await one.take()
    one.leases.fail(one.key, claim.permit, b"why", throttle=0.4)
    await one.settle()
    assert 3500 < fleet.run("PTTL", fleet.place) <= 4000
    failed = await one.ask(content=True)
    assert isinstance(failed, Failed)
    assert 0 < failed.pause <= 0.4
    await asyncio.sleep(failed.pause)
    await one.take(content=True)


async def test_nothing_to_share(fleet: Fleet) -> None:
    """Who waited for a load that has nothing to share loads for itself, without a lease; others begin anew."""
    one, two = fleet.process(), fleet.process()
    claim = await one.take()
    chain = (await two.held()).chain
    one.leases.leave_alone(one.key, claim.permit)
    await one.settle()
    assert await two.ask(chain=chain) == await two.ask(chain=chain, content=True) == Alone()
    assert (await two.take(chain=b"another chain...")).permit != claim.permit


async def test_force(fleet: Fleet) -> None:
    """Who forces takes the lease, whoever holds it and whatever is stored or was left there; the other may not fill."""
    one, two = fleet.process(), fleet.process()
    fleet.run("SET", one.key, OLD)
    old = await one.take(seen=OLD)
    new = await two.take(force=True)
    assert not await one.fill(old)
    two.leases.fail(two.key, new.permit, b"why", throttle=30.0)
    await two.settle()
    assert await two.fill(await two.take(force=True, content=True, chain=new.permit[1:17]))


# Fill, and what voids it


async def _delete(process: Process) -> None:
    await process.port.delete([process.key], timeout=SOON)


async def _set(process: Process) -> None:
    await process.port.store([(process.key, OLD, 60.0)], timeout=SOON)


async def _set_if(process: Process) -> None:
    assert await process.port.store_if(process.key, OLD, 60.0, seen=None, timeout=SOON)


async def _purge(process: Process) -> None:
    await process.port.purge(process.key, lambda key: key == process.key, timeout=SOON)


async def _evict(process: Process) -> None:
    process.fleet.run("DEL", process.fleet.place)


VOIDS = [_delete, _set, _set_if, _purge, _evict]


@pytest.mark.parametrize("voids", VOIDS)
async def test_what_voids_a_lease(fleet: Fleet, voids: Callable[[Process], Awaitable[None]]) -> None:
    """delete, set and purge take the lease away: the fill of who held it is refused and changes nothing (V3-V5, V7)."""
    one, two = fleet.process(), fleet.process()
    claim = await one.take()
    await voids(two)
    left = await one.get()
    assert not await one.fill(claim)
    assert await one.get() == left
    assert await one.fill(await one.take(seen=left))
    assert await one.get() == NEW


@pytest.mark.parametrize("voids", VOIDS)
async def test_what_voids_a_mark(fleet: Fleet, voids: Callable[[Process], Awaitable[None]]) -> None:
    """delete, set and purge take a failure's mark away too: whoever asks then loads."""
    one = fleet.process()
    claim = await one.take()
    one.leases.fail(one.key, claim.permit, b"why", throttle=30.0)
    await one.settle()
    await voids(one)
    await one.take(seen=await one.get(), content=True)


@pytest.mark.parametrize("end", ["fill", "release", "fail", "leave_alone"])
async def test_nobody_ends_the_lease_of_another(fleet: Fleet, end: str) -> None:
    """Whoever has lost its lease leaves the next holder's, and its value, as they are."""
    one, two = fleet.process(), fleet.process()
    lost = await one.take()
    await _delete(two)
    claim = await two.take()
    assert not await _end(one, lost, end)
    await two.held()
    assert await two.fill(claim)


async def _end(process: Process, claim: Claim, end: str) -> bool:
    if end == "fill":
        return await process.fill(claim, OLD)
    if end == "fail":
        process.leases.fail(process.key, claim.permit, b"why", throttle=1.0)
    else:
        getattr(process.leases, end)(process.key, claim.permit)
    await process.settle()
    return False


@pytest.mark.parametrize("permit", [b"", b"L", bytes(range(16)), b"L" * 16, bytes(scripts.LEASE_HEAD)])
async def test_what_is_no_lease_fills_nothing(fleet: Fleet, permit: bytes) -> None:
    """A leased fill without the lease is refused, and ends nothing, whatever it brings."""
    one = fleet.process()
    claim = await one.take()
    assert not await one.fill(Claim(permit, claim.tokens, leased=True))
    for end in ("release", "fail", "leave_alone"):
        assert not await _end(one, Claim(permit, claim.tokens, leased=True), end)
    assert await one.fill(claim)


async def test_a_fill_that_is_sent_again(fleet: Fleet) -> None:
    """A fill that was executed, and is written again after a lost connection, is accepted as long as its value is the one that is there."""
    one = fleet.process()
    claim = await one.take()
    assert await one.fill(claim)
    assert await one.fill(claim)
    await _set(one)
    assert not await one.fill(claim)
    await _delete(one)
    assert not await one.fill(claim)
    assert await one.get() is None


async def test_the_life_of_a_leased_fill(fleet: Fleet) -> None:
    """A leased fill stores with the life that it says, or for ever; its verdict shows the generations as they are."""
    one, scopes = fleet.process(), (fleet.scope(),)
    claim = await one.take()
    (verdict,) = await one.port.fill([Fill(one.key, NEW, 5.0, claim.permit, scopes, leased=True)], written=nothing, timeout=SOON)
    assert verdict.tokens.fingerprint(scopes) == claim.tokens.fingerprint(scopes)
    assert 4000 < fleet.run("PTTL", one.key) <= 5000
    assert await one.fill(await one.take(force=True), life=None)
    assert fleet.run("PTTL", one.key) == -1


async def test_many_keys_at_once(fleet: Fleet) -> None:
    """One acquire asks for many keys; each stands for itself, in order, and permits and leases are filled side by side."""
    one, two = fleet.process(), fleet.process()
    keys = [one.key + b"%d" % n for n in range(6)]
    wants = [Want(key, (fleet.scope(),), 60.0) for key in keys]
    fleet.run("SET", keys[1], OLD)
    (held,) = await two.leases.acquire(wants[2:3], timeout=SOON, written=nothing)
    assert isinstance(held, Claim)
    calls: list[str] = []
    got = await one.leases.acquire(wants[:4], timeout=SOON, written=lambda: calls.append("written"))
    assert [type(standing) for standing in got] == [Claim, Found, HeldElsewhere, Claim]
    assert set(calls) == {"written"}
    permits = await one.port.claim([(key, ()) for key in keys[4:]], life=60.0, timeout=SOON)
    claims = [got[0], *permits, got[3]]
    await two.port.delete([keys[0], keys[5]], timeout=SOON)
    fills = [Fill(k, NEW, 60.0, c.permit, (), leased=c.leased) for k, c in zip([keys[0], *keys[4:], keys[3]], claims, strict=True)]  # type: ignore[union-attr]
    assert [v.accepted for v in await one.port.fill(fills, written=nothing, timeout=SOON)] == [False, True, False, True]
    assert await one.leases.acquire([], timeout=SOON, written=nothing) == []


async def test_who_holds_it(fleet: Fleet) -> None:
    """`holder` tells who loads a key, in which attempt and for how long, or that it failed; for anything else nobody."""
    one = fleet.process()
    assert await one.leases.holder(one.key, timeout=SOON) is None
    claim = await one.take()
    holder = await one.leases.holder(one.key, timeout=SOON)
    assert holder == Holder(claim.permit[1:17], 1, False, holder.left if holder else 0)
    assert 0 < holder.left <= 3.0
    one.leases.fail(one.key, claim.permit, b"why", throttle=30.0)
    await one.settle()
    failed = await one.leases.holder(one.key, timeout=SOON)
    assert failed is not None
    assert (failed.attempt, failed.failed) == (1, True)
    assert 25.0 < failed.left <= 30.0
    for junk in JUNK.values():
        fleet.run("SET", fleet.place, junk)
        await one.leases.holder(one.key, timeout=SOON)
    fleet.run("SET", fleet.place, JUNK["a permit"])
    assert await one.leases.holder(one.key, timeout=SOON) is None


# Time


async def test_an_expired_lease_is_taken(fleet: Fleet) -> None:
    """When a holder's lease has run out the next asker leads, and the first one's fill is refused."""
    one, two = fleet.process(), fleet.process()
    dead = await one.take()
    left = (await two.held()).left
    fleet.run("PEXPIRE", fleet.place, 1)
    await asyncio.sleep(0.01)
    assert left > 0
    claim = await two.take()
    assert not await one.fill(dead, OLD)
    assert await two.fill(claim)


async def test_leases_are_renewed_while_they_are_held(fleet: Fleet) -> None:
    """Every third of a lease's time all that are held are given all of it again; one that is no longer held is not."""
    one, two = fleet.process(), fleet.process()
    await one.take()
    await _delete(two)
    kept = await one.take()
    (other,) = await one.leases.acquire([Want(one.key + b"2", (), 60.0)], timeout=SOON, written=nothing)
    assert isinstance(other, Claim)
    fleet.run("PEXPIRE", fleet.place, 2000)
    before = time.monotonic()
    while fleet.run("PTTL", fleet.place) <= 2000:
        await asyncio.sleep(0.05)
        assert time.monotonic() - before < SOON
    await one.settle()
    assert repr(one.leases).startswith("<RedisLeases 2 held")
    assert await one.fill(kept)
    one.leases.release(one.key + b"2", other.permit)
    assert repr(one.leases).startswith("<RedisLeases 0 held")
    assert one.leases._timer is None


@pytest.mark.parametrize("end", ["fill", "release", "fail", "leave_alone", "lost"])
async def test_renewal_ends(fleet: Fleet, end: str) -> None:
    """After a lease has ended in any way, or is seen to be lost, nothing is renewed and no timer is left."""
    one, two = fleet.process(), fleet.process()
    claim = await one.take()
    assert one.leases._timer is not None
    if end == "lost":
        await _delete(two)
        await two.take()
        fleet.run("PEXPIRE", fleet.place, 2000)
        one.leases._renew()
        await one.settle()
        assert fleet.run("PTTL", fleet.place) <= 2000
    else:
        await _end(one, claim, end)
    assert repr(one.leases).startswith("<RedisLeases 0 held")
    assert one.leases._timer is None


async def test_a_renewal_makes_no_lease(fleet: Fleet) -> None:
    """A renewal of what is gone brings nothing back, and keeps the mark of who follows."""
    one = fleet.process()
    await one.take()
    await one.held()
    one.leases._renew()
    await one.settle()
    assert fleet.run("GET", fleet.place)[-1:] == b"1"
    fleet.run("DEL", fleet.place)
    one.leases._renew()
    await one.settle()
    assert fleet.run("EXISTS", fleet.place) == 0


async def test_renewals_are_one_command(served: Fleet) -> None:
    """However many leases are held, up to hundreds, one command renews them all."""
    one = served.process()
    wants = [Want(one.key + b"%d" % n, (), 60.0) for n in range(leases.RENEWED_AT_ONCE + 1)]
    await one.leases.acquire(wants, timeout=SOON, written=nothing)
    served.run("CONFIG", "RESETSTAT")
    one.leases._renew()
    await one.settle()
    stats = served.run("INFO", "commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 2 + 1  # and `settle`


# What goes wrong


async def test_a_server_that_has_forgotten_the_scripts(served: Fleet) -> None:
    """After SCRIPT FLUSH everything works, what is sent behind the callers' backs included."""
    one = served.process()
    claim = await one.take()
    served.run("SCRIPT", "FLUSH")
    await one.held()
    served.run("SCRIPT", "FLUSH")
    served.run("PEXPIRE", served.place, 1000)
    one.leases._renew()
    await one.settle()
    await one.settle()
    assert served.run("PTTL", served.place) > 1000
    served.run("SCRIPT", "FLUSH")
    assert await one.fill(claim)
    claim = await one.take(force=True)
    served.run("SCRIPT", "FLUSH")
    one.leases.release(one.key, claim.permit)
    await one.settle()
    await one.settle()
    assert served.run("EXISTS", served.place) == 0


@pytest.mark.parametrize("steps_before", range(8))
async def test_a_caller_that_leaves_while_it_acquires(fleet: Fleet, steps_before: int) -> None:
    """Whenever an acquire is cancelled, its lease is given back at once: another process leads before the lease is up."""
    one, two = fleet.process(), fleet.process()
    await one.settle()  # connected
    task = asyncio.ensure_future(one.take())
    for _ in range(steps_before):
        await asyncio.sleep(0)
    left = not task.done() and task.cancel()
    await asyncio.wait({task})
    if left and task.cancelled():
        await one.settle()
        assert repr(one.leases).startswith("<RedisLeases 0 held")
        await two.take()


async def test_an_acquire_whose_answer_comes_too_late(own_server: Callable[..., Server]) -> None:
    """An acquire that was not answered in time, and is executed all the same, is given back: nobody waits for its lease."""
    server = own_server()
    fleet = over_lanes(server)
    one, two = fleet.process(), fleet.process()
    await one.settle()
    server.stop()
    with pytest.raises(BackendError):
        await one.leases.acquire([Want(one.key, (), 60.0)], timeout=0.1, written=nothing)
    server.cont()
    await one.settle()
    await two.take()
    await fleet.aclose()


async def test_a_fill_that_cannot_be_stored(own_server: Callable[..., Server]) -> None:
    """A server without memory refuses the fill, and the lease is given back all the same; a failure ends it too."""
    server = own_server()
    fleet = over_lanes(server)
    one = fleet.process()
    for end in ("fill", "fail"):
        claim = await one.take()
        fleet.run("CONFIG", "SET", "maxmemory", "1mb")
        if end == "fill":
            with pytest.raises(BackendError, match="OOM"):
                await one.fill(claim)
        else:
            one.leases.fail(one.key, claim.permit, b"why", throttle=30.0)
        holder = await one.leases.holder(one.key, timeout=SOON)
        assert holder is None or (end == "fail" and holder.failed)
        fleet.run("CONFIG", "SET", "maxmemory", "0")
    await fleet.aclose()


async def test_a_server_that_is_gone(own_server: Callable[..., Server]) -> None:
    """With the server gone an acquire fails with BackendError and ends are dropped in silence; the same port serves the next one."""
    server = own_server()
    fleet = over_lanes(server)
    one = fleet.process()
    claim = await one.take()
    server.kill()
    with pytest.raises(BackendError):
        await one.leases.acquire([Want(one.key, (), 60.0)], timeout=0.2, written=nothing)
    with pytest.raises(BackendError):
        await one.leases.holder(one.key, timeout=0.2)
    one.leases._renew()
    one.leases.release(one.key, claim.permit)
    one.leases.release(one.key, b"L" * scripts.LEASE_HEAD)
    server.start()
    async with asyncio.timeout(SOON):
        while True:
            try:
                (standing,) = await one.leases.acquire([Want(one.key, (), 60.0)], timeout=0.5, written=nothing)
                break
            except BackendError:
                await asyncio.sleep(0.02)
    assert isinstance(standing, Claim)
    await fleet.aclose()


async def test_closing_gives_back(fleet: Fleet) -> None:
    """A port that is closed gives back what it holds, and what was to be ended in the same tick is; both at once for others."""
    one, two, three = fleet.process(), fleet.process(), fleet.process()
    (first,) = await one.leases.acquire([Want(one.key + b"2", (), 60.0)], timeout=SOON, written=nothing)
    assert isinstance(first, Claim)
    await one.take()
    one.leases.release(one.key + b"2", first.permit)
    await one.port.aclose()
    (second,) = await two.leases.acquire([Want(one.key + b"2", (), 60.0)], timeout=SOON, written=nothing)
    assert isinstance(second, Claim)
    await three.take()
    with pytest.raises(BackendError):
        await one.ask()


@pytest.mark.parametrize(
    "reply",
    [1, None, b"OK", [], [b"leased"], [b"leased", [b"t" * 16]], [b"leased", [], b"l"], [b"leased", [None], b"l"],
     [b"held", [b"t"], b"c", b"1"], [b"odd", [b"t" * 16]], [b"alone", [b"t" * 16], b"x"], [b"found", [b"t" * 16], None]],
    ids=repr,
)  # fmt: skip
def test_what_is_no_answer(reply: object) -> None:
    """What an acquire or a renewal cannot answer is told from what it can."""
    acquire = scripts.ACQUIRE.run((b"v", b"l", b"s"), 1)
    assert not is_answer(acquire, reply)
    assert not is_answer(("EVAL", scripts.ACQUIRE.source, *acquire[2:]), reply)
    assert not is_answer(scripts.RENEW.run((b"a", b"b"), 1), reply)


def test_what_is_an_answer() -> None:
    """Every kind of standing, and a renewal's list, is an answer, and so is an error."""
    acquire, tokens = scripts.ACQUIRE.run((b"v", b"l", b"s"), 1), [b"t" * 16]
    for said in (
        [b"leased", tokens, b"l"],
        [b"found", tokens, b""],
        [b"held", tokens, b"c", 3],
        [b"failed", tokens, b"", 0],
        [b"alone", tokens],
    ):
        assert is_answer(acquire, said)
    assert is_answer(acquire, Exception("ERR"))
    assert is_answer(scripts.RENEW.run((b"a", b"b"), 1), [0, 1])


# Wake-ups


@pytest.fixture
async def ear(served: Fleet, server: Server) -> AsyncIterator[Callable[[], Awaitable[list[bytes]]]]:
    """What was published on the fleet's channel since the last call."""
    with server.client() as client:
        pubsub = client.pubsub()
        pubsub.subscribe(served.channel)
        assert pubsub.get_message(timeout=SOON)["type"] == "subscribe"

        async def heard() -> list[bytes]:
            found: list[bytes] = []
            served.run("PUBLISH", served.channel, "the end")
            while (payload := pubsub.get_message(timeout=SOON)["data"]) != b"the end":
                found.append(payload)
            return found

        yield heard
        pubsub.close()


ENDS = ["fill", "release", "fail", "leave_alone"]


@pytest.mark.parametrize("end", ENDS)
async def test_only_who_is_followed_publishes(served: Fleet, ear: Callable[[], Awaitable[list[bytes]]], end: str) -> None:
    """An end publishes its key, once, if somebody follows, and nothing if nobody does."""
    one, two = served.process(), served.process()
    await _end(one, await one.take(force=True), end)
    assert await ear() == []
    claim = await one.take(force=True)
    await two.held(seen=await two.get())
    await two.held(seen=await two.get())
    await _end(one, claim, end)
    assert await ear() == [one.key]
    await _end(one, await one.take(force=True), end)
    assert await ear() == []


@pytest.mark.parametrize("end", ENDS)
async def test_who_lost_its_lease_wakes_its_followers(served: Fleet, ear: Callable[[], Awaitable[list[bytes]]], end: str) -> None:
    """A delete wakes nobody; the end of the load that it voided does, for those who had followed it wait for a lease that is gone."""
    one, two = served.process(), served.process()
    claim = await one.take()
    await two.held()
    await _delete(two)
    assert await ear() == []
    await _end(one, claim, end)
    assert await ear() == [one.key]


async def test_who_overtakes_inherits_the_followers(served: Fleet, ear: Callable[[], Awaitable[list[bytes]]]) -> None:
    """The lease that overtakes a doomed one, or is forced, wakes who followed the first, though nobody has asked since."""
    one, two = served.process(), served.process()
    await one.take()
    await two.held()
    await one.port.invalidate([served.scope()], timeout=SOON)
    assert await two.fill(await two.take())
    assert await ear() == [one.key]
    await one.take(seen=NEW)
    await two.held(seen=NEW)
    assert await two.fill(await two.take(force=True))
    assert await ear() == [one.key]


async def test_what_nobody_knew_of_is_given_back_in_silence(served: Fleet, ear: Callable[[], Awaitable[list[bytes]]]) -> None:
    """An acquire that was cancelled, and had taken nothing, wakes nobody."""
    one, two = served.process(), served.process()
    await two.take()
    await one.settle()
    task = asyncio.ensure_future(one.ask())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    await one.settle()
    assert await ear() == []


def subscribers(fleet: Fleet) -> list[dict[str, str]]:
    lines = [dict(item.split("=", 1) for item in line.split(" ")) for line in fleet.run("CLIENT", "LIST").decode().splitlines()]
    return [line for line in lines if line["sub"] != "0"]


async def listening(process: Process, key: bytes | None = None) -> KeyFollower:
    """A follower that hears of everything from now on."""
    follower = process.leases.follow(key or process.key)
    async with asyncio.timeout(SOON):
        while not follower.era:
            await follower.wait(SOON)
    return follower


@pytest.fixture
def one_connection_each(server: Server) -> None:
    """Those of other tests are gone."""
    with server.client() as client:
        client.client_kill_filter(_type="pubsub")


async def test_a_follower_is_woken(served: Fleet) -> None:
    """Each end of the load that it follows wakes a follower, far before its time is up."""
    one, two = served.process(), served.process()
    follower = await listening(two)
    for end in (*ENDS, *ENDS):
        claim = await one.take(force=True)
        await two.held(seen=await two.get())
        waiting = asyncio.ensure_future(follower.wait(60.0))
        await steps.settled()
        assert not waiting.done()
        await _end(one, claim, end)
        await steps.soon(waiting)
    follower.close()


async def test_a_wake_up_that_comes_before_the_wait(served: Fleet) -> None:
    """A wake-up that came since the key was asked for ends the next wait at once, and only that one (M13)."""
    one, two = served.process(), served.process()
    follower, after = await listening(two), await listening(two)
    claim = await one.take()
    await two.held()
    assert await one.fill(claim)
    await steps.soon(after.wait(60.0))  # it has been heard
    await steps.soon(follower.wait(60.0))
    again = asyncio.ensure_future(follower.wait(60.0))
    await steps.settled()
    assert not again.done()
    again.cancel()
    await asyncio.wait({again})
    follower.close()
    after.close()


async def test_a_follower_hears_of_its_own_key_only(served: Fleet) -> None:
    """The end of another key's load, or of the same key under another prefix, wakes nobody here."""
    two = served.process()
    follower, other = await listening(two), await listening(two, b"other")
    waiting, others = asyncio.ensure_future(follower.wait(60.0)), asyncio.ensure_future(other.wait(60.0))
    await steps.settled()
    served.run("PUBLISH", b"another prefix!w", two.key)
    served.run("PUBLISH", served.channel, b"other")
    await steps.soon(others)
    assert not waiting.done()
    served.run("PUBLISH", served.channel, two.key)
    await steps.soon(waiting)
    follower.close()
    other.close()


@pytest.mark.usefixtures("one_connection_each")
async def test_one_subscription_for_a_process(served: Fleet) -> None:
    """Nothing subscribes before somebody waits; then one connection serves all who do; another port has its own."""
    one, two = served.process(), served.process()
    for _ in range(100):
        one.leases.follow(one.key).close()
    await one.take()
    assert subscribers(served) == []
    followers = await asyncio.gather(*(listening(one, b"%d" % (n % 50)) for n in range(100)))
    assert [line["sub"] for line in subscribers(served)] == ["1"]
    await listening(two)
    assert [line["sub"] for line in subscribers(served)] == ["1", "1"]
    assert repr(one.leases.followers) == "<Followers of 50 keys, 0 waiting, era 1>"
    for follower in followers:
        follower.close()
        follower.close()
    assert repr(one.leases.followers) == "<Followers of 0 keys, 0 waiting, era 1>"


async def test_before_the_subscription_is_there(served: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first wait ends as soon as the subscription is confirmed, for a wake-up may have been missed; the next is a real one."""
    monkeypatch.setattr(followers_module, "POLL", 60.0)
    one, two = served.process(), served.process()
    claim = await one.take()
    follower = two.leases.follow(two.key)
    await two.held()
    assert await one.fill(claim)  # nobody hears it
    await steps.soon(follower.wait(60.0))
    assert isinstance(await two.ask(), Found)
    waiting = asyncio.ensure_future(follower.wait(60.0))
    late = two.leases.follow(two.key)
    lates = asyncio.ensure_future(late.wait(60.0))
    await steps.settled()
    assert (waiting.done(), lates.done()) == (False, False)
    served.run("PUBLISH", served.channel, two.key)
    await steps.soon(asyncio.gather(waiting, lates))
    follower.close()
    late.close()


@pytest.mark.usefixtures("one_connection_each")
async def test_a_lost_subscription(served: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the connection is lost all who wait ask again; it comes back at once, by itself, and then wakes them as before."""
    monkeypatch.setattr(followers_module, "CHECK", 60.0)
    monkeypatch.setattr(followers_module, "POLL", 60.0)
    one, two = served.process(), served.process()
    followers = [await listening(two, b"%d" % n) for n in range(3)]
    idle = await listening(two)
    for _ in range(3):
        waits = [asyncio.ensure_future(follower.wait(60.0)) for follower in followers]
        await steps.settled()
        served.run("CLIENT", "KILL", "ID", subscribers(served)[0]["id"])
        await steps.soon(asyncio.gather(*waits))
        await steps.soon(idle.wait(60.0))  # it was not there when it was lost
        async with asyncio.timeout(SOON):
            while not (idle.era and all(follower.era for follower in followers)):
                await asyncio.gather(idle.wait(60.0), *(follower.wait(60.0) for follower in followers if not follower.era))
        waiting = asyncio.ensure_future(idle.wait(60.0))
        await steps.settled()
        claim = await one.take(force=True)
        await two.held()
        await _end(one, claim, "release")
        await steps.soon(waiting)


async def test_a_server_that_is_restarted(own_server: Callable[..., Server]) -> None:
    """Over the end of a server nobody waits longer than told; the next server wakes as the first did."""
    server = own_server()
    fleet = over_lanes(server)
    one = fleet.process()
    follower = await listening(one)
    waiting = asyncio.ensure_future(follower.wait(60.0))
    await steps.settled()
    server.kill()
    await steps.soon(waiting)
    waiting = asyncio.ensure_future(follower.wait(0.3))
    await steps.soon(waiting)
    server.start()
    async with asyncio.timeout(SOON):
        while not follower.era:
            await follower.wait(60.0)
    waiting = asyncio.ensure_future(follower.wait(60.0))
    await steps.settled()
    fleet.run("PUBLISH", fleet.channel, one.key)
    await steps.soon(waiting)
    await fleet.aclose()


async def test_a_link_that_is_dead(own_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody waits the connection is looked after; one that answers no more counts as lost."""
    monkeypatch.setattr(followers_module, "CHECK", 0.1)
    monkeypatch.setattr(lanes, "STUCK_AFTER", 0.1)
    server = own_server()
    fleet = over_lanes(server)
    follower = await listening(fleet.process())
    server.stop()
    await steps.soon(follower.wait(60.0))
    server.cont()
    await fleet.aclose()


@pytest.mark.usefixtures("one_connection_each")
async def test_nobody_waits_any_more(served: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscription that nobody has used for a while is left, its timer with it; the next who waits makes it anew."""
    monkeypatch.setattr(followers_module, "CHECK", 0.02)
    monkeypatch.setattr(followers_module, "IDLE", 0.05)
    one = served.process()
    for _ in range(2):
        follower = await listening(one)
        waiting = asyncio.ensure_future(follower.wait(0.3))
        await asyncio.sleep(0.2)
        assert len(subscribers(served)) == 1
        await waiting
        async with asyncio.timeout(SOON):
            while one.leases.followers.era or one.leases.followers._timer:
                await asyncio.sleep(0.01)
        assert subscribers(served) == []
        follower.close()


async def test_what_waiting_costs(served: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a process waits, for however many keys, the server is sent a PING now and then and nothing else."""
    monkeypatch.setattr(followers_module, "CHECK", 0.2)
    one = served.process()
    followers = [await listening(one, b"%d" % n) for n in range(20)]
    waits = [asyncio.ensure_future(follower.wait(1.0)) for follower in followers]
    await steps.settled()
    served.run("CONFIG", "RESETSTAT")
    await asyncio.gather(*waits)
    calls = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in served.run("INFO", "commandstats").items()}
    assert set(calls) - {"config|resetstat", "client|setinfo", "hello"} == {"ping"}
    assert 1 <= calls["ping"] <= 6


@pytest.mark.parametrize("seconds", [0.0, 0.05])
async def test_no_wait_takes_longer_than_told(fleet: Fleet, seconds: float) -> None:
    """A wait ends when its time is up, subscribed or not."""
    follower = fleet.process().leases.follow(fleet.key)
    for _ in range(3):
        await steps.soon(follower.wait(seconds))
    follower.close()


async def test_without_a_subscription(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a client's own connections nothing is subscribed to: a wait ends after a moment, and whoever waits asks again."""
    monkeypatch.setattr(followers_module, "POLL", 0.05)
    fleet = over_fakeredis()
    one, two = fleet.process(), fleet.process()
    claim = await one.take()
    follower = two.leases.follow(two.key)
    await two.held()
    await steps.soon(follower.wait(60.0))
    await two.held()
    assert await one.fill(claim)
    await steps.soon(follower.wait(60.0))
    assert isinstance(await two.ask(), Found)
    follower.close()
    await fleet.aclose()


@pytest.mark.parametrize("rights", ["", "-script", "-subscribe -publish"])
async def test_a_user_with_few_rights(
    own_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rights: str
) -> None:
    """Without the right to the channel loads go on and waits end after a moment; it is said once, and not tried again and again."""
    monkeypatch.setattr(followers_module, "POLL", 0.05)
    server = own_server()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "resetchannels", "+@all", *rights.split())
    url = server.url.replace("//", "//app:pw@")
    fleet = over_lanes(server)
    one, two = (fleet.process(LaneLink(Endpoint.from_url(url))) for _ in range(2))
    claim = await one.take()
    follower = two.leases.follow(two.key)
    await two.held()
    for _ in range(5):
        await steps.soon(follower.wait(60.0))
    assert sum("cannot subscribe" in message for message in caplog.messages) == 1
    assert await one.fill(claim)
    for end in ENDS:
        await _end(one, await one.take(force=True), end)
        assert (await one.leases.holder(one.key, timeout=SOON) is None) == (end != "fail")
    follower.close()
    await fleet.aclose()


async def test_a_right_that_is_given_later(own_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that refused the subscription is asked again after a while, and the waits are real ones from then on."""
    monkeypatch.setattr(followers_module, "POLL", 0.02)
    monkeypatch.setattr(lanes, "REFUSED_FOR", 0.1)
    server = own_server()
    fleet = over_lanes(server)
    fleet.run("ACL", "SETUSER", "app", "on", ">pw", "~*", "resetchannels", "+@all")
    one = fleet.process(LaneLink(Endpoint.from_url(server.url.replace("//", "//app:pw@"))))
    follower = one.leases.follow(one.key)
    for _ in range(20):
        await steps.soon(follower.wait(60.0))
        assert not follower.era
    fleet.run("ACL", "SETUSER", "app", "allchannels")
    async with asyncio.timeout(SOON):
        while not follower.era:
            await follower.wait(60.0)
    waiting = asyncio.ensure_future(follower.wait(60.0))
    await steps.settled()
    fleet.run("PUBLISH", fleet.channel, one.key)
    await steps.soon(waiting)
    follower.close()
    await fleet.aclose()


async def test_closing_wakes_who_waits(fleet: Fleet) -> None:
    """A port that is closed lets everybody who waits go on at once, and lets nobody wait any more."""
    one = fleet.process()
    followers = [one.leases.follow(b"%d" % n) for n in range(3)]
    waits = [asyncio.ensure_future(follower.wait(60.0)) for follower in followers]
    await steps.settled()
    await one.port.aclose()
    await asyncio.wait_for(asyncio.gather(*waits), 0.5)
    await steps.soon(followers[0].wait(60.0))
    assert one.leases.followers._timer is None


def test_forgetting(valkey: Server) -> None:
    """The leases of a loop that was closed are forgotten with their connections, the subscription's among them, without a word."""
    loop, fleet = asyncio.new_event_loop(), over_lanes(valkey)

    async def use() -> Process:
        one = fleet.process()
        await listening(one)
        await one.take()
        return one

    one = loop.run_until_complete(use())
    before = len(subscribers(fleet))
    loop.close()
    one.port.forget()
    assert repr(one.leases).startswith("<RedisLeases 0 held, <Followers of 0 keys, 0 waiting")
    deadline = time.monotonic() + SOON
    while len(subscribers(fleet)) == before:
        assert time.monotonic() < deadline
    assert fleet.run("EXISTS", fleet.place) == 1  # until its time is up


async def test_a_follower_that_is_cancelled(served: Fleet) -> None:
    """A wait may be cancelled at any moment; the follower can wait again, and closing it leaves nothing."""
    one = served.process()
    follower = await listening(one)
    for step in range(4):
        waiting = asyncio.ensure_future(follower.wait(60.0))
        for _ in range(step):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
    assert repr(one.leases.followers) == "<Followers of 1 keys, 0 waiting, era 1>"
    follower.close()
    assert repr(one.leases.followers) == "<Followers of 0 keys, 0 waiting, era 1>"


# All of it


async def _get(process: Process, loads: list[bytes], how: Callable[[], str]) -> bytes:
    """A reader as the engine is one: asks, loads if it leads, follows if not."""
    follower, chain = process.leases.follow(process.key), b""
    try:
        while True:
            standing = await process.ask(chain=chain)
            match standing:
                case Found():
                    return standing.raw
                case HeldElsewhere():
                    chain = standing.chain
                    await follower.wait(standing.left)
                case Failed():
                    return standing.reason
                case Alone():
                    return b"alone"
                case Claim():
                    raw = b"AU\x01" + os.urandom(12)
                    loads.append(raw)
                    await asyncio.sleep(0.002)
                    outcome = how()
                    if outcome == "fill":
                        await process.fill(standing, raw)
                    elif outcome == "fail":
                        process.leases.fail(process.key, standing.permit, b"failed", throttle=0.0)
                    elif outcome == "leave_alone":
                        process.leases.leave_alone(process.key, standing.permit)
                    else:
                        process.leases.release(process.key, standing.permit)
                        continue
                    return raw
    finally:
        follower.close()


async def test_one_load_for_a_fleet(served: Fleet) -> None:
    """On a cold key exactly one process loads, and all others have its value long before its lease would have been up."""
    fleet = [served.process() for _ in range(6)]
    for one in fleet:
        await listening(one)
    for _ in range(30):
        loads: list[bytes] = []
        began = asyncio.get_running_loop().time()
        got = await asyncio.gather(*(_get(one, loads, lambda: "fill") for one in fleet))
        assert len(loads) == 1
        assert set(got) == set(loads)
        assert asyncio.get_running_loop().time() - began < leases.LEASE - 1.0
        await _delete(fleet[0])


async def test_a_load_that_fails_in_a_fleet(served: Fleet) -> None:
    """When the loader fails there is one retry in the fleet for all who waited, who are then told; when a leader leaves, one follows it."""
    fleet = [served.process() for _ in range(6)]
    for outcome, expected in (("fail", 2), ("leave_alone", 1)):
        loads: list[bytes] = []
        asked = [await one.held() if n else await one.take() for n, one in enumerate(fleet)]
        assert isinstance(asked[0], Claim)
        others = [asyncio.ensure_future(_get(one, loads, lambda outcome=outcome: outcome)) for one in fleet[1:]]  # type: ignore[misc]
        await asyncio.gather(*(one.held() for one in fleet[1:]))
        await _end(fleet[0], asked[0], outcome)
        got = await steps.soon(asyncio.gather(*others))
        assert len(loads) == expected - 1
        assert set(got) - set(loads) == ({b"failed"} if outcome == "fail" else {b"alone"})
        await _delete(fleet[0])


@pytest.mark.parametrize("seed", range(3))
async def test_everything_crosses(fleet: Fleet, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever loads, fails, leaves, deletes and invalidates cross, every reader has an answer soon and nothing is held at the end."""
    monkeypatch.setattr(followers_module, "POLL", 0.05)
    chance = random.Random(seed)
    processes = [fleet.process() for _ in range(4)]
    done = 0

    async def reader(one: Process) -> None:
        nonlocal done
        for _ in range(15):
            await steps.soon(_get(one, [], lambda: chance.choice([*ENDS, "fill", "fill"])))
            done += 1

    async def writer(one: Process) -> None:
        while done < 4 * 15:
            await chance.choice([_delete, _purge, _evict, _invalidate, _kill])(one)
            await asyncio.sleep(0.005)

    await asyncio.gather(writer(processes[0]), *map(reader, processes))
    assert [repr(one.leases).split(",")[0] for one in processes] == ["<RedisLeases 0 held"] * 4
    assert {one.leases._timer for one in processes} == {None}


async def _invalidate(process: Process) -> None:
    await process.port.invalidate([process.fleet.scope()], timeout=SOON, soft=True)


async def _kill(process: Process) -> None:
    process.fleet.run("PUBLISH", process.fleet.channel, process.key)
