"""One contract for every store: what `Port` promises, over memory, real servers and fakeredis.

The races of docs/protocol.md are played here step by step at the store's level: a load is a claim and a fill, and what comes between voids
it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis

from aiocache_aura.freshness import HARD_BYTES
from aiocache_aura.resilience.single_flight import Tick
from aiocache_aura.stores.base import TOKEN_BYTES, Fill, Link, Port, Tokens
from aiocache_aura.stores.connections import Endpoint
from aiocache_aura.stores.lanes import LaneLink
from aiocache_aura.stores.memory import MemoryStore
from aiocache_aura.stores.pooled import PooledLink
from aiocache_aura.stores.redis import RedisPort
from tests.clocks import ManualClock
from tests.servers import ENGINES, Server

SOON = 10.0
RAW = b"AU\x01" + bytes(range(256)) + b"\r\n$-1\r\n\x00{}"


# The stores under test


@dataclass
class Subject:
    """A store under test, and the hands of a tester: what no `Port` does."""

    port: Port
    prefix: str
    passes: Callable[[float], Awaitable[None]]
    evict_scope: Callable[[bytes], Awaitable[Any]]
    evict_permit: Callable[[bytes], Awaitable[Any]]

    def key(self, name: str = "k") -> bytes:
        return f"{self.prefix}:menu:={name}".encode()

    def scope(self, name: str = "menu") -> bytes:
        return f"{self.prefix}!g:y:{name}".encode()

    async def get(self, name: str = "k") -> bytes | None:
        return (await self.port.lookup(self.key(name), ()))[0]

    async def claim(self, name: str = "k", *scopes: bytes) -> tuple[bytes, Tokens]:
        (claim,) = await self.port.claim([(self.key(name), scopes)], life=60.0, timeout=SOON)
        return claim.permit, claim.tokens

    async def fill(self, permit: bytes, raw: bytes = RAW, name: str = "k", *scopes: bytes, life: float | None = 60.0) -> bool:
        (verdict,) = await self.port.fill([Fill(self.key(name), raw, life, permit, scopes)], written=_nothing, timeout=SOON)
        return verdict.accepted

    async def store(self, raw: bytes = RAW, name: str = "k", life: float | None = 60.0) -> None:
        await self.port.store([(self.key(name), raw, life)], timeout=SOON)

    async def purge(self, named: str = "") -> int:
        glob = f"{self.prefix}:menu:={named}*".encode()
        return await self.port.purge(glob, lambda key: key.startswith(glob[:-1]), timeout=SOON)


def _nothing() -> None:
    pass


def _memory() -> Subject:
    clock = ManualClock()
    store = MemoryStore(clock, max_bytes=None, max_entries=None)

    async def passes(seconds: float) -> None:
        clock.advance(seconds)

    async def evict_scope(scope: bytes) -> None:
        store._tokens.pop(scope)

    async def evict_permit(key: bytes) -> None:
        store._permits.pop(key)

    return Subject(store, "p", passes, evict_scope, evict_permit)


def over_link(link: Link) -> Subject:
    prefix = "t" + os.urandom(6).hex()
    port = RedisPort(link, prefix, budget=SOON, tick=Tick())

    async def remove(name: bytes) -> None:
        await link.writes.send([("DEL", name)], timeout=SOON)

    async def passes(seconds: float) -> None:
        await asyncio.sleep(seconds)

    return Subject(port, prefix, passes, remove, lambda key: remove(f"{prefix}!p:{{".encode() + key + b"}"))


@pytest.fixture(params=["memory", "fakeredis", *ENGINES])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "memory":
        made = _memory()
    elif request.param == "fakeredis":
        made = over_link(PooledLink(FakeAsyncRedis()))
    else:
        servers: dict[str, Server] = request.getfixturevalue("_servers")
        if request.param not in servers:
            servers[request.param] = Server(request.param)
        made = over_link(LaneLink(Endpoint.from_url(servers[request.param].url), lanes=2))
    yield made
    await made.port.aclose()
    await made.port.aclose()  # idempotent


# Reading


async def test_lookup_of_nothing(subject: Subject) -> None:
    """A key that is not there is None, a scope that is not there is missing and has no fingerprint."""
    raw, tokens = await subject.port.lookup(subject.key(), (subject.scope(),))
    assert raw is None
    assert tokens.missing([subject.scope()]) == [subject.scope()]
    assert tokens.fingerprint((subject.scope(),)) is None


async def test_lookup_without_scopes(subject: Subject) -> None:
    """A lookup may ask for no scopes; the fingerprint of none is sixteen zeros."""
    await subject.store()
    raw, tokens = await subject.port.lookup(subject.key(), ())
    assert raw == RAW
    assert tokens.fingerprint(()) == bytes(16)


@pytest.mark.parametrize("count", [1, 510, 511, 512, 513, 1025])
async def test_lookups_of_one_tick(subject: Subject, count: int) -> None:
    """However many lookups share a tick, at and around the limit of a batch, each gets its own value and its own tokens."""
    scopes = (subject.scope(),)
    await subject.port.generations(scopes, life=60.0, timeout=SOON)
    await subject.port.store([(subject.key(str(i)), b"v%d" % i, 60.0) for i in range(count)], timeout=SOON)
    found = await asyncio.gather(*(_lookup(subject, str(i), *scopes) for i in range(count)))
    assert [raw for raw, _ in found] == [b"v%d" % i for i in range(count)]
    assert len({tokens.fingerprint(scopes) for _, tokens in found} - {None}) == 1


async def _lookup(subject: Subject, name: str, *scopes: bytes) -> tuple[bytes | None, Tokens]:
    return await subject.port.lookup(subject.key(name), scopes)


async def test_lookups_of_the_same_key(subject: Subject) -> None:
    """Lookups of one key in one tick, with different scopes, all have the value and the tokens they asked for."""
    one, two = subject.scope("a"), subject.scope("b")
    await subject.port.generations((one,), life=None, timeout=SOON)
    await subject.store()
    (raw, first), (same, second) = await asyncio.gather(_lookup(subject, "k", one), _lookup(subject, "k", one, two))
    assert raw == same == RAW
    assert first.fingerprint((one,)) is not None
    assert second.missing((one, two)) == [two]


# Generations


async def test_planting(subject: Subject) -> None:
    """A claim plants what is missing; whoever asks then finds the same tokens, by whatever method."""
    scopes = (subject.scope("a"), subject.scope("b"))
    _, planted = await subject.claim("k", *scopes)
    expected = planted.fingerprint(scopes)
    assert expected is not None
    assert (await subject.port.lookup(subject.key(), scopes))[1].fingerprint(scopes) == expected
    assert (await subject.port.generations(scopes, life=60.0, timeout=SOON)).fingerprint(scopes) == expected
    assert (await subject.claim("other", *scopes))[1].fingerprint(scopes) == expected


async def test_each_scope_has_its_own_token(subject: Subject) -> None:
    """Two scopes planted together differ."""
    tokens = await subject.port.generations((subject.scope("a"), subject.scope("b")), life=None, timeout=SOON)
    assert len(set(tokens.found.values())) == 2


async def test_invalidate(subject: Subject) -> None:
    """An invalidated scope is missing, and planted with another token afterwards; other scopes stay (M7)."""
    gone, stays = subject.scope("gone"), subject.scope("stays")
    before = await subject.port.generations((gone, stays), life=60.0, timeout=SOON)
    await subject.port.invalidate([gone], timeout=SOON)
    _, found = await subject.port.lookup(subject.key(), (gone, stays))
    assert found.missing((gone, stays)) == [gone]
    after = await subject.port.generations((gone, stays), life=60.0, timeout=SOON)
    assert after.found[stays] == before.found[stays]
    assert after.found[gone] not in (None, before.found[gone])


async def test_soft_invalidation(subject: Subject) -> None:
    """A soft invalidation replaces the soft half of a token and keeps the hard one: what is stored matches by that half only (M7)."""
    softened, stays = subject.scope("softened"), subject.scope("stays")
    before = (await subject.port.generations((softened, stays), life=60.0, timeout=SOON)).found
    await subject.port.invalidate([softened], timeout=SOON, soft=True)
    _, tokens = await subject.port.lookup(subject.key(), (softened, stays))
    assert tokens.found[stays] == before[stays]
    old, new = before[softened], tokens.found[softened]
    assert old is not None
    assert new is not None
    assert new[:HARD_BYTES] == old[:HARD_BYTES]
    assert len(new) == TOKEN_BYTES
    assert new[HARD_BYTES:] != old[HARD_BYTES:]
    assert (await subject.port.generations((softened,), life=60.0, timeout=SOON)).found[softened] == new


async def test_a_soft_invalidation_after_a_hard_one(subject: Subject) -> None:
    """A soft invalidation of what is not there leaves it missing: a half token could come back (V18). What is planted then is all new."""
    scopes = (subject.scope(),)
    old = (await subject.port.generations(scopes, life=60.0, timeout=SOON)).found[scopes[0]]
    for soft in (True, False, True, True):
        await subject.port.invalidate(scopes, timeout=SOON, soft=soft)
    assert (await subject.port.lookup(subject.key(), scopes))[1].missing(scopes) == list(scopes)
    new = (await subject.port.generations(scopes, life=60.0, timeout=SOON)).found[scopes[0]]
    assert old is not None
    assert new is not None
    assert new[:HARD_BYTES] != old[:HARD_BYTES]
    assert new[HARD_BYTES:] != old[HARD_BYTES:]


async def test_soft_halves_differ(subject: Subject) -> None:
    """Each soft invalidation, and each scope in it, has a soft half of its own."""
    scopes = tuple(subject.scope(str(n)) for n in range(5))
    await subject.port.generations(scopes, life=60.0, timeout=SOON)
    halves = []
    for _ in range(3):
        await subject.port.invalidate(scopes, timeout=SOON, soft=True)
        found = (await subject.port.lookup(subject.key(), scopes))[1].found
        halves += [token[HARD_BYTES:] for token in found.values() if token is not None]
    assert len(set(halves)) == len(halves) == 15


async def test_a_soft_invalidation_prolongs_nothing(subject: Subject) -> None:
    """A softened token lives as long as it would have; one that has gone meanwhile stays missing."""
    scopes = (subject.scope(),)
    await subject.port.generations(scopes, life=None, timeout=SOON)
    await subject.port.invalidate(scopes, timeout=SOON, soft=True)
    await subject.passes(0.02)
    assert (await subject.port.lookup(subject.key(), scopes))[1].missing(scopes) == []
    await subject.evict_scope(scopes[0])
    await subject.port.invalidate(scopes, timeout=SOON, soft=True)
    assert (await subject.port.lookup(subject.key(), scopes))[1].missing(scopes) == list(scopes)


async def test_softened_while_loading(subject: Subject) -> None:
    """A load that a soft invalidation crosses may fill; its verdict shows that the generations have changed, by their soft halves."""
    scopes = (subject.scope("a"), subject.scope("b"))
    permit, captured = await subject.claim("k", *scopes)
    await subject.port.invalidate(scopes[:1], timeout=SOON, soft=True)
    (verdict,) = await subject.port.fill([Fill(subject.key(), RAW, 60.0, permit, scopes)], written=_nothing, timeout=SOON)
    assert verdict.accepted
    before, after = captured.fingerprint(scopes), verdict.tokens.fingerprint(scopes)
    assert before is not None
    assert after is not None
    assert before[:HARD_BYTES] == after[:HARD_BYTES]
    assert before[HARD_BYTES:] != after[HARD_BYTES:]


@pytest.mark.parametrize("count", [1, 513])
async def test_many_are_softened(subject: Subject, count: int) -> None:
    """Any number of scopes is softened at once, those that are missing among them; none at all is no error."""
    scopes = tuple(subject.scope(str(n)) for n in range(count))
    before = (await subject.port.generations(scopes, life=60.0, timeout=SOON)).found
    await subject.port.invalidate([subject.scope("none"), *scopes, *scopes], timeout=SOON, soft=True)
    await subject.port.invalidate([], timeout=SOON, soft=True)
    after = (await subject.port.lookup(subject.key(), (subject.scope("none"), *scopes)))[1].found
    assert after.pop(subject.scope("none")) is None
    assert all(new != before[scope] for scope, new in after.items())


async def test_an_evicted_token_is_missing(subject: Subject) -> None:
    """A token that was evicted equals nothing: not what was captured, and not what is planted in its place (M2)."""
    scopes = (subject.scope("a"), subject.scope("b"))
    captured = (await subject.claim("k", *scopes))[1].fingerprint(scopes)
    await subject.evict_scope(scopes[0])
    assert (await subject.port.lookup(subject.key(), scopes))[1].fingerprint(scopes) is None
    assert (await subject.port.generations(scopes, life=60.0, timeout=SOON)).fingerprint(scopes) not in (None, captured)


@pytest.mark.parametrize("count", [511, 512, 513])
async def test_many_scopes(subject: Subject, count: int) -> None:
    """Any number of scopes can be planted, looked up and invalidated at once."""
    scopes = tuple(subject.scope(str(i)) for i in range(count))
    planted = await subject.port.generations(scopes, life=60.0, timeout=SOON)
    assert planted.missing(scopes) == []
    assert (await subject.port.lookup(subject.key(), scopes))[1].found == planted.found
    await subject.port.invalidate(scopes, timeout=SOON)
    assert len((await subject.port.lookup(subject.key(), scopes))[1].missing(scopes)) == count


# The fence


async def test_fill(subject: Subject) -> None:
    """A fill with the permit of its claim is accepted, and its verdict shows the generations as captured."""
    scopes = (subject.scope(),)
    permit, captured = await subject.claim("k", *scopes)
    calls: list[str] = []
    fill = Fill(subject.key(), RAW, 60.0, permit, scopes)
    (verdict,) = await subject.port.fill([fill], written=lambda: calls.append("written"), timeout=SOON)
    assert verdict.accepted
    assert verdict.tokens.fingerprint(scopes) == captured.fingerprint(scopes)
    assert set(calls) == {"written"}
    assert await subject.get() == RAW


async def test_fill_without_a_claim(subject: Subject) -> None:
    """A permit that was never there is no proof, nor is an empty one (M9)."""
    assert not await subject.fill(os.urandom(16))
    assert not await subject.fill(b"")
    assert await subject.get() is None


async def test_a_permit_is_for_its_key(subject: Subject) -> None:
    """The permit of one key does not open another."""
    permit, _ = await subject.claim("a")
    await subject.claim("b")
    assert not await subject.fill(permit, RAW, "b")


async def test_a_permit_is_shared(subject: Subject) -> None:
    """Concurrent loaders of a key share its permit, and each may fill: nothing was voided between them."""
    first, _ = await subject.claim()
    second, _ = await subject.claim()
    assert first == second
    assert await subject.fill(first, b"first")
    assert await subject.fill(second, b"second")
    assert await subject.get() == b"second"


async def test_an_evicted_permit_refuses(subject: Subject) -> None:
    """With the permit gone the fill is refused: absence proves nothing. The next claim has another permit."""
    permit, _ = await subject.claim()
    await subject.evict_permit(subject.key())
    assert not await subject.fill(permit)
    assert (await subject.claim())[0] != permit
    assert not await subject.fill(permit)


async def test_fills_are_judged_one_by_one(subject: Subject) -> None:
    """Of several fills in one round trip each has its own verdict, in order."""
    claims = await subject.port.claim([(subject.key(name), ()) for name in "abc"], life=60.0, timeout=SOON)
    await subject.port.delete([subject.key("b")], timeout=SOON)
    fills = [Fill(subject.key(name), name.encode(), None, claim.permit, ()) for name, claim in zip("abc", claims, strict=True)]
    verdicts = await subject.port.fill(fills, written=_nothing, timeout=SOON)
    assert [verdict.accepted for verdict in verdicts] == [True, False, True]
    assert [await subject.get(name) for name in "abc"] == [b"a", None, b"c"]


async def _delete(subject: Subject) -> None:
    await subject.port.delete([subject.key()], timeout=SOON)


async def _set(subject: Subject) -> None:
    await subject.store(b"set")


async def _set_if(subject: Subject) -> None:
    assert await subject.port.store_if(subject.key(), b"set", 60.0, seen=None, timeout=SOON)


async def _purge(subject: Subject) -> None:
    await subject.purge()


@pytest.mark.parametrize("voids", [_delete, _set, _set_if, _purge])
async def test_what_voids_a_load(subject: Subject, voids: Callable[[Subject], Awaitable[None]]) -> None:
    """delete, set and purge refuse a load under way on a cold key, and leave what they wrote (V3, V4, V5, V7). Later loads may fill."""
    permit, _ = await subject.claim()
    await voids(subject)
    left = await subject.get()
    assert not await subject.fill(permit, b"old")
    assert await subject.get() == left
    permit, _ = await subject.claim()
    assert await subject.fill(permit, b"new")
    assert await subject.get() == b"new"


@pytest.mark.parametrize("voids", [_delete, _set, _purge])
async def test_a_load_is_void_for_all_who_share_it(subject: Subject, voids: Callable[[Subject], Awaitable[None]]) -> None:
    """After one loader has filled, delete, set and purge still refuse the others that shared its permit."""
    permit, _ = await subject.claim()
    assert await subject.fill(permit, b"first")
    await voids(subject)
    left = await subject.get()
    assert not await subject.fill(permit, b"old")
    assert await subject.get() == left


async def test_invalidated_while_loading(subject: Subject) -> None:
    """A fill after an invalidation is accepted, and its verdict says that the generations have changed: nobody late may take it (V2)."""
    scopes = (subject.scope(),)
    permit, captured = await subject.claim("k", *scopes)
    await subject.port.invalidate(scopes, timeout=SOON)
    (verdict,) = await subject.port.fill([Fill(subject.key(), RAW, 60.0, permit, scopes)], written=_nothing, timeout=SOON)
    assert verdict.tokens.fingerprint(scopes) is None
    _, replanted = await subject.claim("k", *scopes)
    assert replanted.fingerprint(scopes) not in (None, captured.fingerprint(scopes))


async def test_set_asks_before_an_invalidation(subject: Subject) -> None:
    """Generations asked for before an invalidation match nothing after it: the set is void, and never stamped anew (V6)."""
    scopes = (subject.scope(),)
    asked = await subject.port.generations(scopes, life=60.0, timeout=SOON)
    await subject.port.invalidate(scopes, timeout=SOON)
    await subject.store(b"with the old fingerprint")
    _, tokens = await subject.port.lookup(subject.key(), scopes)
    assert tokens.fingerprint(scopes) != asked.fingerprint(scopes)


# Writing


async def test_bytes_come_back_as_they_were(subject: Subject) -> None:
    """Values and keys are bytes, whatever they hold; every way to write is binary safe."""
    for name in ("plain", "ключ", "a\\b*?"):
        permit, _ = await subject.claim(name)
        assert await subject.fill(permit, RAW, name)
        assert await subject.get(name) == RAW
        assert await subject.port.store_if(subject.key(name), RAW[::-1], None, seen=RAW, timeout=SOON)
        assert await subject.port.expire(subject.key(name), RAW, None, seen=RAW[::-1], timeout=SOON)
        assert await subject.get(name) == RAW


async def test_life(subject: Subject) -> None:
    """What is stored or filled with a life is gone when it is over; None is for ever."""
    permits = {name: (await subject.claim(name))[0] for name in ("filled", "kept")}
    await subject.store(name="stored", life=0.08)
    await subject.store(name="for ever", life=None)
    assert await subject.fill(permits["filled"], RAW, "filled", life=0.08)
    assert await subject.fill(permits["kept"], RAW, "kept", life=None)
    assert await subject.port.store_if(subject.key("conditional"), RAW, 0.08, seen=None, timeout=SOON)
    await subject.passes(0.15)
    names = ("stored", "filled", "conditional", "for ever", "kept")
    assert [await subject.get(name) is not None for name in names] == [False, False, False, True, True]


async def test_no_life_left(subject: Subject) -> None:
    """A life of nothing, or less, is no error: the value is gone at once."""
    await subject.store(life=0.0)
    await subject.store(name="past", life=-1.0)
    await subject.passes(0.01)
    assert await subject.get() is None
    assert await subject.get("past") is None


async def test_a_very_long_life(subject: Subject) -> None:
    """A life of thousands of years is stored, not refused."""
    await subject.store(life=1e13)
    permit, _ = await subject.claim()
    assert await subject.fill(permit, RAW, life=1e13)
    await subject.port.generations((subject.scope(),), life=1e13, timeout=SOON)
    assert await subject.get() == RAW


async def test_store_writes_over(subject: Subject) -> None:
    """`store` replaces what is there, life included."""
    await subject.store(b"old", life=0.05)
    await subject.store(b"new", life=None)
    await subject.passes(0.1)
    assert await subject.get() == b"new"


async def test_store_if_empty(subject: Subject) -> None:
    """With `seen=None` only an empty slot is written; an expired value is an empty slot."""
    assert await subject.port.store_if(subject.key(), b"one", 60.0, seen=None, timeout=SOON)
    assert not await subject.port.store_if(subject.key(), b"two", 60.0, seen=None, timeout=SOON)
    assert await subject.get() == b"one"
    assert await subject.port.store_if(subject.key("short"), b"one", 0.05, seen=None, timeout=SOON)
    await subject.passes(0.1)
    assert await subject.port.store_if(subject.key("short"), b"two", 60.0, seen=None, timeout=SOON)


async def test_store_if_seen(subject: Subject) -> None:
    """With `seen` only a slot that begins as it did is written: the first fifteen bytes say which entry it is."""
    front = b"AU\x01" + os.urandom(12)
    await subject.store(front + b"body")
    other = front[:-1] + bytes([front[-1] ^ 1])
    assert not await subject.port.store_if(subject.key(), b"x", 60.0, seen=other + b"body", timeout=SOON)
    assert await subject.get() == front + b"body"
    assert await subject.port.store_if(subject.key(), b"x", 60.0, seen=front + b"whatever", timeout=SOON)
    assert await subject.get() == b"x"
    assert not await subject.port.store_if(subject.key("none"), b"x", 60.0, seen=front, timeout=SOON)


async def test_an_empty_value_is_there(subject: Subject) -> None:
    """No bytes at all are still a value: not an empty slot, and seen as such."""
    await subject.store(b"")
    assert await subject.get() == b""
    assert not await subject.port.store_if(subject.key(), b"x", 60.0, seen=None, timeout=SOON)
    assert not await subject.port.store_if(subject.key("none"), b"x", 60.0, seen=b"", timeout=SOON)
    assert await subject.port.store_if(subject.key(), b"x", 60.0, seen=b"", timeout=SOON)


async def test_a_refused_store_if_voids_nothing(subject: Subject) -> None:
    """A `store_if` that does not write leaves the permit of a load under way."""
    await subject.store(b"there")
    permit, _ = await subject.claim()
    assert not await subject.port.store_if(subject.key(), b"x", 60.0, seen=None, timeout=SOON)
    assert await subject.fill(permit)


async def test_expire(subject: Subject) -> None:
    """`expire` gives what was seen a new life, and does nothing to anything else; loads under way go on."""
    await subject.store(b"value", life=1.5)
    permit, _ = await subject.claim()
    assert not await subject.port.expire(subject.key(), b"touched", 60.0, seen=b"another", timeout=SOON)
    assert await subject.port.expire(subject.key(), b"touched", 60.0, seen=b"value", timeout=SOON)
    assert not await subject.port.expire(subject.key("none"), b"touched", 60.0, seen=b"value", timeout=SOON)
    await subject.passes(1.6)
    assert await subject.get() == b"touched"
    assert await subject.fill(permit)


# Removing


async def test_delete(subject: Subject) -> None:
    """`delete` counts the values that were there, each once, and nothing that was expired or never there."""
    await subject.store(name="a")
    await subject.store(name="b")
    await subject.store(name="expired", life=0.02)
    await subject.passes(0.05)
    keys = [subject.key(name) for name in ("a", "a", "b", "none", "expired")]
    assert await subject.port.delete(keys, timeout=SOON) == 2
    assert await subject.get("a") is None
    assert await subject.port.delete(keys, timeout=SOON) == 0


@pytest.mark.parametrize("count", [999, 1000, 1001, 2001])
async def test_delete_many(subject: Subject, count: int) -> None:
    """Any number of keys is deleted in one call, and the count is right across the bounds of its commands."""
    keys = [subject.key(str(i)) for i in range(count)]
    await subject.port.store([(key, b"v", 60.0) for key in keys], timeout=SOON)
    claims = await subject.port.claim([(keys[0], ()), (keys[-1], ())], life=60.0, timeout=SOON)
    assert await subject.port.delete(keys, timeout=SOON) == count
    fills = [Fill(key, b"old", 60.0, claim.permit, ()) for key, claim in zip((keys[0], keys[-1]), claims, strict=True)]
    assert [v.accepted for v in await subject.port.fill(fills, written=_nothing, timeout=SOON)] == [False, False]


async def test_purge(subject: Subject) -> None:
    """`purge` removes and counts the values that match, and leaves values, loads and generations that do not."""
    for name in ("item:1", "item:2", "other"):
        await subject.store(name=name)
    await subject.port.generations((subject.scope(),), life=60.0, timeout=SOON)
    loading, _ = await subject.claim("item:3")
    unmatched, _ = await subject.claim("another")
    assert await subject.purge("item:") == 2
    assert [await subject.get(name) for name in ("item:1", "item:2", "other")] == [None, None, RAW]
    assert not await subject.fill(loading, RAW, "item:3")
    assert await subject.fill(unmatched, RAW, "another")
    assert (await _lookup(subject, "other", subject.scope()))[1].missing([subject.scope()]) == []
    assert await subject.purge("item:") == 0


async def test_purge_goes_by_matches(subject: Subject) -> None:
    """The glob narrows, `matches` decides: it is asked about value keys only, the keys of loads under way among them."""
    await subject.store(name="a1")
    await subject.store(name="a2")
    await subject.claim("a3")
    asked: list[bytes] = []

    def matches(key: bytes) -> bool:
        asked.append(key)
        return key.endswith(b"1")

    assert await subject.port.purge(f"{subject.prefix}:menu:=a*".encode(), matches, timeout=SOON) == 1
    assert set(asked) == {subject.key(name) for name in ("a1", "a2", "a3")}
    assert await subject.get("a2") == RAW


async def test_purge_of_everything(subject: Subject) -> None:
    """Thousands of values are removed, in bounded steps, and the count is exact."""
    await subject.port.store([(subject.key(str(i)), b"v", 60.0) for i in range(2500)], timeout=SOON)
    assert await subject.purge() == 2500
    assert await subject.purge() == 0


async def test_nothing_to_do(subject: Subject) -> None:
    """Nothing asked for, nothing done: every method takes an empty sequence."""
    assert await subject.port.claim([], life=60.0, timeout=SOON) == []
    assert await subject.port.fill([], written=_nothing, timeout=SOON) == []
    await subject.port.store([], timeout=SOON)
    assert await subject.port.delete([], timeout=SOON) == 0
    await subject.port.invalidate([], timeout=SOON)
    assert (await subject.port.generations((), life=60.0, timeout=SOON)).fingerprint(()) == bytes(16)


# Notes


async def test_a_note_stands_for_its_life(subject: Subject) -> None:
    """A note is read by its name on its board only, is replaced by the next of that name, and goes when its life is over."""
    notes = subject.port.notes
    assert await notes.read("fleet", timeout=SOON) == {}
    assert await notes.post("fleet", "a", RAW, life=60.0, timeout=SOON)
    assert await notes.post("fleet", "b", b"", life=0.2, timeout=SOON)
    assert await notes.post("heat", "a", b"other", life=60.0, timeout=SOON)
    assert await notes.read("fleet", timeout=SOON) == {"a": RAW, "b": b""}
    assert await notes.post("fleet", "a", b"new", life=60.0, timeout=SOON)
    await subject.passes(0.3)
    assert await notes.read("fleet", timeout=SOON) == {"a": b"new"}
    assert await notes.read("heat", timeout=SOON) == {"a": b"other"}


async def test_a_short_note_does_not_end_a_long_one(subject: Subject) -> None:
    """The board stands as long as the note with the longest life, whichever was posted last."""
    notes = subject.port.notes
    await notes.post("fleet", "long", b"1", life=60.0, timeout=SOON)
    await notes.post("fleet", "short", b"2", life=0.1, timeout=SOON)
    await subject.passes(0.2)
    assert await notes.read("fleet", timeout=SOON) == {"long": b"1"}


async def test_a_note_is_taken_down(subject: Subject) -> None:
    """Dropping takes a note down; dropping what does not stand is nothing."""
    notes = subject.port.notes
    await notes.post("fleet", "a", b"1", life=60.0, timeout=SOON)
    await notes.drop("fleet", "a", timeout=SOON)
    await notes.drop("fleet", "a", timeout=SOON)
    await notes.drop("empty", "a", timeout=SOON)
    assert await notes.read("fleet", timeout=SOON) == {}


async def test_a_board_is_bounded(subject: Subject) -> None:
    """The 1,000th note is taken and the next refused; one of a name that stands is taken, and a new one when another is over."""
    notes = subject.port.notes
    for n in range(999):
        assert await notes.post("fleet", str(n), b"x", life=600.0, timeout=SOON)
    assert await notes.post("fleet", "the last", b"x", life=5.0, timeout=SOON)
    assert not await notes.post("fleet", "one more", b"x", life=60.0, timeout=SOON)
    assert await notes.post("fleet", "the last", b"y", life=0.1, timeout=SOON)
    await subject.passes(0.2)
    assert await notes.post("fleet", "one more", b"x", life=60.0, timeout=SOON)
    assert len(await notes.read("fleet", timeout=SOON)) == 1000


async def test_a_note_that_another_program_wrote_is_no_note(valkey: Server) -> None:
    """What stands in a board's hash without a time is taken away, not read."""
    subject = over_link(LaneLink(Endpoint.from_url(valkey.url)))
    with valkey.client() as client:
        client.hset(f"{subject.prefix}!n:fleet", mapping={"a": b"garbage", "b": b"", "c": b"9" * 16 + b"real"})
    assert await subject.port.notes.read("fleet", timeout=SOON) == {"c": b"real"}
    await subject.port.aclose()
