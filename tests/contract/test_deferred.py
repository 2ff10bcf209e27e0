"""CONTRACT.md 3: what `manager.deferred()` holds back, when it goes out, and what becomes of it; over memory and Valkey.

`peer` is another process: what it sees has gone out. Over memory it is the same manager.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any
from unittest.mock import AsyncMock

import anyio
import pytest

from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.context import tenant_scope, user_scope
from aiocache_aura.decorators import cache_menu, invalidate_cache
from aiocache_aura.deferral import Held, _blocks
from aiocache_aura.errors import BackendError, KeyPartError, MissingTenantError, UnknownCacheTypeError
from aiocache_aura.policy import PRESETS
from tests.contract.conftest import PATIENT, Store, opened
from tests.steps import Port, Source, address, settled, soon

WHERE: dict[str, Any] = {"tenant": 1, "user": 5}


class RollbackError(Exception): ...


@pytest.fixture(params=["memory", "valkey-tcp"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    async for one in opened(request):
        yield one


@dataclass
class World:
    """One entry, `dish:7` of tenant 1 and user 5 with the tag x, made by a function; and functions that invalidate it."""

    manager: CacheManager
    peer: CacheManager

    def __post_init__(self) -> None:
        @cache_menu(manager=self.manager, key="dish:{n}", tags=["x"], name="dish")
        async def dish(restaurant_id: int, user_id: int, n: int) -> int:
            return await self.load()

        @invalidate_cache("menu", manager=self.manager)
        async def update(restaurant_id: int) -> str:
            return "updated"

        @invalidate_cache("menu", "api", tags=["x"], manager=self.manager)
        async def tagged(restaurant_id: int) -> str:
            return "updated"

        @invalidate_cache("menu", keys=["dish:{n}"], manager=self.manager)
        async def keyed(restaurant_id: int, user_id: int, n: int) -> str:
            return "updated"

        @invalidate_cache("menu", on_error=True, manager=self.manager)
        async def failing(restaurant_id: int) -> str:
            raise RollbackError

        self.dish, self.update, self.tagged, self.keyed, self.failing = dish, update, tagged, keyed, failing

    async def load(self) -> int:
        return 1

    async def fill(self) -> None:
        await done_behind(self.manager)
        assert await self.dish(1, 5, 7) == 1
        assert await self.is_there()

    async def is_there(self, key: str = "dish:7") -> bool:
        """Whether both processes find it; they never differ."""
        here, there = [await one.exists("menu", key, **WHERE) for one in (self.manager, self.peer)]
        assert here is there
        return here

    async def fails_by_itself(self) -> bool:
        with pytest.raises(RollbackError):
            await self.failing(1)
        return False


@pytest.fixture
async def world(manager: CacheManager, peer: CacheManager) -> World:
    world = World(manager, peer)
    await world.fill()
    return world


VERBS: dict[str, tuple[Callable[[World], Awaitable[Any]], object]] = {
    "invalidate": (lambda w: w.manager.invalidate("menu"), False),
    "invalidate a tenant of a type": (lambda w: w.manager.invalidate("menu", tenant=1), False),
    "invalidate a user of a type": (lambda w: w.manager.invalidate("menu", user=5), False),
    "invalidate a tag of a type": (lambda w: w.manager.invalidate("menu", tenant=1, tags=["x"]), False),
    "invalidate_menu": (lambda w: w.manager.invalidate_menu(1), False),
    "invalidate_tags": (lambda w: w.manager.invalidate_tags("x", "y"), False),
    "invalidate_tenant": (lambda w: w.manager.invalidate_tenant(1), False),
    "invalidate_user": (lambda w: w.manager.invalidate_user(5), False),
    "invalidate_pattern": (lambda w: w.manager.invalidate_pattern("menu", "dish:*", tenant=1), 0),
    "clear_namespace": (lambda w: w.manager.clear_namespace("menu"), False),
    "clear_namespace with its memory": (lambda w: w.manager.clear_namespace("menu", reclaim=True), False),
    "delete": (lambda w: w.manager.delete("menu", "dish:7", "dish:8", **WHERE), 0),
    "a namespace's invalidate": (lambda w: w.manager.caches["menu"].invalidate(user=5), False),
    "a namespace's invalidate_pattern": (lambda w: w.manager.caches["menu"].invalidate_pattern("*"), 0),
    "a namespace's clear_namespace": (lambda w: w.manager.caches["menu"].clear_namespace(reclaim=True), False),
    "a namespace's delete": (lambda w: w.manager.caches["menu"].delete("dish:7", **WHERE), 0),
    "fn.invalidate": (lambda w: w.dish.invalidate(1, 5, 7), False),
    "fn.cache_clear": (lambda w: w.dish.cache_clear(), False),
    "@invalidate_cache": (lambda w: w.update(1), "updated"),
    "@invalidate_cache with tags": (lambda w: w.tagged(1), "updated"),
    "@invalidate_cache with keys": (lambda w: w.keyed(1, 5, 7), "updated"),
    "@invalidate_cache of a function that fails": (lambda w: w.fails_by_itself(), False),
}


def same(answer: object, expected: object) -> bool:
    return type(answer) is type(expected) and answer == expected


@pytest.mark.parametrize(("verb", "answer"), VERBS.values(), ids=VERBS)
class TestEachVerb:
    async def test_it_goes_out_when_the_block_ends_well(self, world, verb, answer):
        """Inside it answers False or 0 and nobody sees anything of it; afterwards the entry is gone for everybody."""
        async with world.manager.deferred():
            assert same(await verb(world), answer)
            assert await world.is_there()
        assert not await world.is_there()

    async def test_nothing_is_sent_when_the_block_raises(self, world, verb, answer):
        """Not then, and not by a later block or verb."""
        with pytest.raises(RollbackError):
            async with world.manager.deferred():
                assert same(await verb(world), answer)
                raise RollbackError
        async with world.manager.deferred():
            await world.manager.invalidate("api")
        assert await world.is_there()

    async def test_nothing_is_sent_when_the_block_is_cancelled(self, world, verb, answer):
        """A task that is cancelled inside has not committed."""
        inside = asyncio.Event()

        async def work() -> None:
            async with world.manager.deferred():
                await verb(world)
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await soon(inside.wait())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await world.is_there()

    async def test_afterwards_it_goes_out_at_once(self, world, verb, answer):
        """A block leaves nothing behind, however it ended."""
        for error in (None, RollbackError):
            try:
                async with world.manager.deferred():
                    if error:
                        raise error
            except RollbackError:
                pass
            await world.fill()
            await verb(world)
            assert not await world.is_there()

    async def test_a_load_under_way_at_the_end_is_not_stored(self, world, verb, answer):
        """The reader between invalidation and commit: what it loads of the old row serves nobody who asks after the block."""
        source = Source(held=True)
        world.load = source.load
        await world.manager.delete("menu", "dish:7", **WHERE)
        async with world.manager.deferred():
            await verb(world)
            early = asyncio.create_task(world.dish(1, 5, 7))
            load = await source.begun()
            source.version = 2  # the commit
        source.held = False
        late = asyncio.create_task(world.dish(1, 5, 7))
        await settled()
        load.finish()
        assert await soon(early) == 1
        assert (await soon(late), await world.dish(1, 5, 7)) == (2, 2)
        await done_behind(world.manager)


WRONG: dict[str, tuple[Callable[[CacheManager], Awaitable[Any]], type[Exception]]] = {
    "type": (lambda m: m.invalidate("mneu"), UnknownCacheTypeError),
    "tenant": (lambda m: m.invalidate("menu", tenant=1.5), TypeError),
    "user and tags": (lambda m: m.invalidate("menu", user=5, tags=["x"]), TypeError),
    "tag": (lambda m: m.invalidate_tags(""), TypeError),
    "pattern": (lambda m: m.invalidate_pattern("menu", b"*"), TypeError),
    "key": (lambda m: m.delete("menu", "a", 5), KeyPartError),
    "whose": (lambda m: m.delete("orders", "a"), MissingTenantError),
}


@pytest.mark.parametrize("cache_type", PRESETS)
async def test_the_verb_of_every_built_in_type_waits(manager, peer, cache_type):
    """All nine."""
    await manager.set(cache_type, "a", 1, **WHERE)
    async with manager.deferred():
        assert await getattr(manager, f"invalidate_{cache_type}")(tenant=1) is False
        assert await peer.get(cache_type, "a", **WHERE) == 1
    assert await peer.get(cache_type, "a", **WHERE) is None


class TestInside:
    async def test_counters_count_at_the_call(self, world):
        """`invalidations` as outside; `deletes`, which says how many there were, when they go."""
        manager = world.manager
        counts = manager.counts("menu")
        with pytest.raises(RollbackError):
            async with manager.deferred():
                await manager.invalidate("menu")
                await manager.invalidate_pattern("menu", "*")
                await manager.clear_namespace("menu")
                await world.update(1)
                assert counts.invalidations == 4
                raise RollbackError
        assert counts.invalidations == 4
        async with manager.deferred():
            await manager.delete("menu", "dish:7", **WHERE)
            await world.dish.invalidate(1, 5, 7)
            assert counts.deletes == 0
        assert counts.deletes == 1
        assert world.dish.cache_info().misses == 1
        async with manager.deferred():
            await world.dish.cache_clear()
            assert world.dish.cache_info().misses == 0

    @pytest.mark.parametrize(("wrong", "error"), WRONG.values(), ids=WRONG)
    async def test_what_is_wrong_is_said_at_the_call(self, manager, wrong, error):
        """Where it was written, not at the end of the block; what else was told stands."""
        manager.register("orders", PRESETS["menu"].merged({"tenant_aware": True}))
        await manager.set("menu", "a", 1)
        async with manager.deferred():
            await manager.invalidate("menu")
            with pytest.raises(error):
                await wrong(manager)
        assert await manager.get("menu", "a") is None

    async def test_writes_are_not_held_back(self, manager, peer):
        """`set`, `add`, `touch`, a `ttl=0` too; an invalidation of the block, being later, covers what they wrote."""
        await manager.set("menu", "gone", 1)
        async with manager.deferred():
            await manager.invalidate_tags("x")
            assert await manager.set("menu", "a", 1, tags=["x"])
            assert await manager.add("menu", "b", 2)
            assert await manager.touch("menu", "b", 500)
            assert await manager.set("menu", "gone", 1, ttl=0)
            assert await peer.mget("menu", ["a", "b", "gone"]) == [1, 2, None]
            assert await manager.delete("menu", "b") == 0
            assert await manager.set("menu", "b", 3)
        assert await peer.mget("menu", ["a", "b"]) == [None, None]

    async def test_nothing_to_delete_is_nothing(self, manager):
        """No keys, no tags: as outside."""
        async with manager.deferred():
            assert await manager.delete("menu") == 0
            assert await manager.invalidate_tags() is True

    async def test_whose_entry_is_meant_is_what_the_task_says_at_the_call(self, manager, peer):
        """A scope that has been left when the block ends counts all the same, and one that was entered later does not."""
        for tenant in (1, 2):
            await manager.set("menu", "a", tenant, tenant=tenant)
        with tenant_scope(2), user_scope(9):
            async with manager.deferred():
                with tenant_scope(1):
                    await manager.delete("menu", "a")
        assert [await peer.get("menu", "a", tenant=tenant) for tenant in (1, 2)] == [None, 2]

    @pytest.mark.parametrize("past", ["disabled", "bypass"])
    async def test_past_the_cache_it_waits_and_goes_as_well(self, world, past):
        """Invalidations and deletes still go inside `disabled()` and `bypass()`."""
        with getattr(world.manager, past)():
            async with world.manager.deferred():
                assert await world.manager.delete("menu", "dish:7", **WHERE) == 0
                assert await world.manager.invalidate("api") is False
        assert not await world.is_there()

    async def test_the_memory_behind_is_freed_after_the_end(self, world):
        """`clear_namespace(reclaim=True)`: behind the block's back, once, and nothing is left for a pattern to find."""
        port = await spied(world.manager)
        async with world.manager.deferred():
            for _ in range(3):
                await world.manager.clear_namespace("menu", reclaim=True)
            await done_behind(world.manager)
            assert port.steps == []
        await done_behind(world.manager)
        assert sorted(step.name for step in port.steps) == ["invalidate", "purge"]
        assert await world.peer.invalidate_pattern("menu", "*") == 0

    async def test_a_function_cancelled_half_way_invalidates_with_the_block(self, world):
        """Its outcome is unknown; the block that goes on, and ends well, sends it."""
        begun = asyncio.Event()

        @invalidate_cache("menu", manager=world.manager)
        async def slow(restaurant_id: int) -> None:
            begun.set()
            await asyncio.Event().wait()

        async with world.manager.deferred():
            task = asyncio.create_task(slow(1))
            await soon(begun.wait())
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await world.is_there()
        assert not await world.is_there()

    async def test_a_function_may_have_the_block_inside(self, world):
        """What its decorator does comes after the block, at once."""

        @invalidate_cache("menu", manager=world.manager)
        async def update(restaurant_id: int) -> None:
            async with world.manager.deferred():
                await world.manager.invalidate("api")

        await update(1)
        assert not await world.is_there()

    async def test_a_stand_in_is_told_at_once(self, world):
        """What is no CacheManager knows of no block."""
        stranger = AsyncMock()

        @invalidate_cache("menu", manager=stranger)
        async def update(restaurant_id: int) -> None: ...

        async with world.manager.deferred():
            await update(1)
            stranger.invalidate.assert_awaited_once_with("menu", tenant="1", tags=())


class TestTogether:
    async def test_one_command_drops_all_that_was_invalidated(self, store, manager):
        """A DEL of the generations, an UNLINK of permits and one of values; nothing at all for a block that is empty or fails."""
        if store.is_memory:
            port = await spied(manager)
            async with manager.deferred():
                await many(manager)
            assert [step.name for step in port.steps] == ["invalidate", "delete"]
            return
        await manager.set("menu", "a", 1)
        with store.client() as client:
            client.config_resetstat()
            async with manager.deferred():
                pass
            with pytest.raises(RollbackError):
                async with manager.deferred():
                    await many(manager)
                    raise RollbackError
            assert calls(client) == {}
            async with manager.deferred():
                await many(manager)
            assert calls(client) == {"del": 1, "unlink": 2}

    async def test_what_is_told_twice_goes_once(self, manager):
        """Scopes, keys and patterns: each once, in the order in which they were first told."""
        port = await spied(manager)
        async with manager.deferred():
            for _ in range(3):
                await manager.invalidate_tags("x", "y")
                await manager.invalidate_tags("y", "z")
                await manager.delete("menu", "a", "b")
                await manager.delete("menu", "b", "c")
                await manager.invalidate_pattern("menu", "a*", tenant=1)
                await manager.invalidate_pattern("menu", "a*")
        dropped, deleted, *purged = port.steps
        assert [scope.decode() for scope in dropped.what[0]] == [f"shop!g:g:{tag}" for tag in "xyz"]
        assert [key.decode().rpartition(":=")[2] for key in deleted.what[0]] == ["a", "b", "c"]
        assert [step.name for step in purged] == ["purge", "purge"]

    async def test_many_thousands(self, manager, peer):
        """A block of a bulk import."""
        await manager.set("menu", "last", 1, tags=["19999"])
        async with manager.deferred():
            for n in range(20_000):
                await manager.invalidate_tags(str(n))
        assert await peer.get("menu", "last") is None

    async def test_what_is_dropped_softly_is_dropped_apart(self, manager):
        """Two kinds of drop, one command each; nested, too."""
        port = await spied(manager)
        async with manager.deferred():
            await manager.drop((b"a", b"b"), "a test", soft=True)
            async with manager.deferred():
                await manager.drop((b"c",), "a test", soft=True)
                await manager.drop((b"b", b"d"), "a test")
        assert port.dropped == [((b"b", b"d"), False), ((b"a", b"c"), True)]

    def test_hard_and_soft_are_merged_separately(self):
        """What is dropped both ways, here or in a block inside, is dropped hard; a kind that has nothing is not sent."""
        outer, inner = Held(), Held()
        outer.drop([b"a", b"b"], soft=True)
        assert list(outer.drops()) == [((b"a", b"b"), True)]
        inner.drop([b"b", b"c"])
        inner.drop([b"c", b"d"], soft=True)
        outer.merge(inner)
        assert list(outer.drops()) == [((b"b", b"c"), False), ((b"a", b"d"), True)]
        inner.drop([b"e"])
        assert b"e" not in dict(outer.drops())

    def test_what_waits_can_be_printed(self):
        """Numbers, and no names: keys hold arguments."""

        async def act(*_: object) -> None: ...

        held = Held()
        assert not held
        held.drop([b"secret"])
        held.delete(act, [address("secret"), address("other")])
        held.delete(act, [address("secret")])
        held.call(act, "secret")
        assert repr(held) == "<Held 1 scopes, 0 softly, 2 keys, 1 calls>"
        assert held


class TestNested:
    async def test_an_inner_block_that_ends_well_goes_with_the_outer(self, world):
        """Nothing is sent before the outermost one ends."""
        async with world.manager.deferred():
            async with world.manager.deferred():
                async with world.manager.deferred():
                    await world.manager.delete("menu", "dish:7", **WHERE)
                assert await world.is_there()
            assert await world.is_there()
        assert not await world.is_there()

    @pytest.mark.parametrize(("verb", "answer"), VERBS.values(), ids=VERBS)
    async def test_what_an_inner_block_held_goes_with_the_outer(self, world, verb, answer):
        """Whatever it is."""
        async with world.manager.deferred():
            async with world.manager.deferred():
                assert same(await verb(world), answer)
            assert await world.is_there()
        assert not await world.is_there()
        await done_behind(world.manager)

    @pytest.mark.parametrize(("verb", "answer"), VERBS.values(), ids=VERBS)
    async def test_what_an_inner_block_held_fails_with_the_outer(self, world, verb, answer):
        """Though the inner one ended well."""
        with pytest.raises(RollbackError):
            async with world.manager.deferred():
                async with world.manager.deferred():
                    await verb(world)
                raise RollbackError
        assert await world.is_there()

    async def test_an_inner_block_that_fails_takes_only_its_own_along(self, world):
        """As a savepoint that is rolled back."""
        manager = world.manager
        await manager.mset("menu", dict.fromkeys("abcd", 1), **WHERE)
        async with manager.deferred():
            await manager.delete("menu", "a", **WHERE)
            with pytest.raises(RollbackError):
                async with manager.deferred():
                    async with manager.deferred():
                        await manager.delete("menu", "b", **WHERE)
                    await manager.delete("menu", "c", **WHERE)
                    raise RollbackError
            await manager.delete("menu", "d", **WHERE)
        assert [await world.is_there(key) for key in "abcd"] == [False, True, True, False]

    async def test_inner_and_outer_go_out_as_one(self, manager):
        """The generations of both, the keys of both, the patterns of both."""
        port = await spied(manager)
        async with manager.deferred():
            await manager.invalidate_tags("a")
            await manager.delete("menu", "a")
            await manager.invalidate_pattern("menu", "a")
            async with manager.deferred():
                await manager.invalidate_tags("b")
                await manager.delete("menu", "b")
                await manager.invalidate_pattern("menu", "b")
            await manager.delete("menu", "c")
        dropped, deleted, *purged = port.steps
        assert [scope.decode() for scope in dropped.what[0]] == ["shop!g:g:a", "shop!g:g:b"]
        assert [key.decode().rpartition(":=")[2] for key in deleted.what[0]] == ["a", "b", "c"]
        assert [step.name for step in purged] == ["purge", "purge"]

    async def test_blocks_of_two_managers_do_not_mix(self, store, manager, peer):
        """Each holds its own manager's, however they are nested; the end or the failure of one is nothing to the other."""
        other = store.open(prefix="other")
        for one in (manager, other):
            await one.mset("menu", {"a": 1, "b": 1, "c": 1})
        async with manager.deferred():
            await other.delete("menu", "a")
            assert await other.mget("menu", list("abc")) == [None, 1, 1]
            with pytest.raises(RollbackError):
                async with other.deferred():
                    await other.delete("menu", "b")
                    async with manager.deferred():
                        await manager.delete("menu", "a")
                        await other.delete("menu", "c")
                    raise RollbackError
            assert await peer.mget("menu", list("abc")) == [1, 1, 1]
        assert await peer.mget("menu", list("abc")) == [None, 1, 1]
        assert await other.mget("menu", list("abc")) == [None, 1, 1]


class TestTasks:
    async def test_tasks_started_inside_share_the_block(self, world):
        """All of a task group's goes out with the block, or with it not at all."""
        manager = world.manager
        for error in (RollbackError, None):
            try:
                async with manager.deferred():
                    async with asyncio.TaskGroup() as group:
                        group.create_task(world.update(1))
                        group.create_task(manager.delete("menu", "dish:7", **WHERE))
                        group.create_task(world.dish.invalidate(1, 5, 7))
                    assert await world.is_there()
                    if error is not None:
                        raise error
            except RollbackError:
                assert await world.is_there()
        assert not await world.is_there()

    async def test_a_task_of_before_is_not_in_it(self, world):
        """A block belongs to the task that opened it and to what that starts, not to the process."""
        go_on = asyncio.Event()

        async def other() -> int:
            await go_on.wait()
            return await world.manager.delete("menu", "dish:7", **WHERE)

        task = asyncio.create_task(other())
        await settled()
        async with world.manager.deferred():
            go_on.set()
            assert await soon(task) == 1
            assert not await world.is_there()

    async def test_two_tasks_have_two_blocks(self, world):
        """The failure of one is nothing to the other, though they are open at the same time."""
        manager = world.manager
        await manager.mset("menu", {"a": 1, "b": 1}, **WHERE)
        both = asyncio.Barrier(2)

        async def work(key: str, *, fails: bool) -> None:
            async with manager.deferred():
                await manager.delete("menu", key, **WHERE)
                await both.wait()
                if fails:
                    raise RollbackError

        outcomes = await soon(asyncio.gather(work("a", fails=True), work("b", fails=False), return_exceptions=True))
        assert [type(outcome) for outcome in outcomes] == [RollbackError, type(None)]
        assert [await world.is_there(key) for key in "ab"] == [True, False]

    @pytest.mark.parametrize("fails", [False, True])
    async def test_a_task_that_outlives_its_block_sends_at_once(self, world, fails):
        """Its block is closed, however it ended: nobody would send what it held."""
        go_on = asyncio.Event()

        async def straggler() -> int:
            await go_on.wait()
            return await world.manager.delete("menu", "dish:7", **WHERE)

        try:
            async with world.manager.deferred():
                task = asyncio.create_task(straggler())
                if fails:
                    raise RollbackError
        except RollbackError:
            pass
        go_on.set()
        assert await soon(task) == 1
        assert not await world.is_there()

    @pytest.mark.parametrize("fails", [False, True])
    async def test_the_block_around_takes_what_a_straggler_sends(self, world, fails):
        """As long as that one is open."""
        go_on = asyncio.Event()

        async def straggler() -> bool:
            await go_on.wait()
            return await world.manager.invalidate("menu")

        async with world.manager.deferred():
            try:
                async with world.manager.deferred():
                    task = asyncio.create_task(straggler())
                    if fails:
                        raise RollbackError
            except RollbackError:
                pass
            go_on.set()
            assert await soon(task) is False
            assert await world.is_there()
        assert not await world.is_there()

    async def test_a_block_that_outlives_the_one_around_it_sends_by_itself(self, world):
        """It was opened inside, by a task that is left when the outer one has ended."""
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def straggler() -> None:
            async with world.manager.deferred():
                await world.manager.invalidate("menu")
                inside.set()
                await go_on.wait()

        async with world.manager.deferred():
            task = asyncio.create_task(straggler())
            await soon(inside.wait())
        assert await world.is_there()
        go_on.set()
        await soon(task)
        assert not await world.is_there()

    async def test_a_block_that_a_straggler_opens_is_one_of_its_own(self, world):
        """Blocks that are closed count for nothing there."""
        go_on = asyncio.Event()

        async def straggler() -> None:
            await go_on.wait()
            async with world.manager.deferred():
                await world.manager.invalidate("menu")
                assert await world.is_there()

        async with world.manager.deferred():
            task = asyncio.create_task(straggler())
        go_on.set()
        await soon(task)
        assert not await world.is_there()

    async def test_it_may_be_left_in_another_task(self, world):
        """As fixtures and dependencies are; the task that entered it has no block any more."""
        manager = world.manager
        stack = AsyncExitStack()
        await stack.enter_async_context(manager.deferred())
        await manager.invalidate("menu")
        await asyncio.create_task(stack.aclose())
        assert not await world.is_there()
        await world.fill()
        assert await manager.invalidate("menu") is True
        assert not await world.is_there()

    async def test_a_task_that_has_left_its_blocks_keeps_none(self, manager):
        """However many a task of long life opens, and however they end."""
        before = copy_context().get(_blocks, ())
        for _ in range(3):
            async with manager.deferred():
                async with manager.deferred():
                    await manager.invalidate("menu")
            with pytest.raises(RollbackError):
                async with manager.deferred():
                    raise RollbackError
        assert copy_context().get(_blocks, ()) == before == ()

    async def test_a_block_that_is_never_left_sends_nothing_and_swallows_nothing(self, world):
        """An abandoned generator: what was held is lost with its transaction, what comes afterwards goes out."""

        async def rows() -> AsyncIterator[int]:
            async with world.manager.deferred():
                await world.manager.invalidate("menu")
                yield 1

        generator = rows()
        assert await anext(generator) == 1
        del generator
        gc.collect()
        await settled()
        assert await world.is_there()
        assert await world.manager.invalidate("menu") is True
        assert not await world.is_there()

    async def test_worker_threads_and_their_loops_share_the_block(self, world):
        """A thread with a loop of its own, started inside: what it invalidates goes out with the block."""

        def work() -> bool:
            async def invalidate() -> bool:
                return await world.manager.invalidate("menu")

            return asyncio.run(invalidate())

        async with world.manager.deferred():
            assert await asyncio.to_thread(work) is False
            assert await world.is_there()
        assert not await world.is_there()

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    async def test_for_a_fork_the_block_is_closed(self, world):
        """A process that was forked inside sends by itself: the end of the block is in the parent."""
        async with world.manager.deferred():
            child = os.fork()
            if not child:
                os._exit(world.manager.put_off(lambda held: held.drop([b"a"])))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert world.manager.put_off(lambda held: held.drop([b"a"]))


class TestTheEnd:
    """Sending, when it is cancelled or fails."""

    async def test_the_exit_waits_until_all_is_sent(self, world):
        """Who goes on after the block reads nothing older."""
        port = await spied(world.manager, hold=True)
        task = asyncio.create_task(everything(world.manager))
        steps = [await port.arrived() for _ in range(3)]
        assert sorted(step.name for step in steps) == ["delete", "invalidate", "purge"]
        for step in steps:
            assert not task.done()
            await step.go()
            await settled()
        await soon(task)

    async def test_cancelling_who_waits_at_the_exit_cancels_nothing_of_it(self, world):
        """The transaction has committed: all is sent, and then the task is cancelled; twice does not help."""
        await fill_all(world.manager)
        port = await spied(world.manager, hold=True)
        task = asyncio.create_task(everything(world.manager))
        steps = [await port.arrived() for _ in range(3)]
        for step in steps:
            task.cancel()
            await settled()
            assert not task.done()
            await step.go()
        with pytest.raises(asyncio.CancelledError):
            await soon(task)
        assert await world.peer.mget("menu", list("abc")) == [None, None, None]

    async def test_nor_does_a_cancel_scope(self, world):
        """anyio's, which cancels in every turn of the loop, is kept out until all is sent."""
        await fill_all(world.manager)
        port = await spied(world.manager, hold=True)

        async def work(scope: anyio.CancelScope) -> bool:
            with scope:
                await everything(world.manager)
            return scope.cancelled_caught

        scope = anyio.CancelScope()
        task = asyncio.create_task(work(scope))
        steps = [await port.arrived() for _ in range(3)]
        scope.cancel()
        for _ in range(20):  # a scope that is cancelled keeps the loop busy
            await asyncio.sleep(0)
        assert not task.cancelling()
        for step in steps:
            await step.go()
        await soon(task)
        assert await world.peer.mget("menu", list("abc")) == [None, None, None]

    async def test_a_cancellation_on_its_way_does_not_keep_it_from_being_sent(self, world):
        """The block had ended when the task would have heard of it."""

        async def work() -> None:
            async with world.manager.deferred():
                await world.manager.invalidate("menu")
                asyncio.current_task().cancel()

        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(work())
        assert not await world.is_there()

    @pytest.mark.parametrize("strict", [False, True])
    @pytest.mark.parametrize("failing", ["invalidate", "delete", "purge"])
    async def test_one_that_fails_keeps_no_other_back(self, store, failing, strict, caplog):
        """It is logged, with `strict=True` too, and the block does not raise: what it guarded has been done."""
        manager = store.open(strict=strict)
        await fill_all(manager)
        port = await spied(manager, hold=True)
        with caplog.at_level(logging.WARNING, "aiocache_aura"):
            task = asyncio.create_task(everything(manager))
            for step in [await port.arrived() for _ in range(3)]:
                if step.name == failing:
                    step.fail(BackendError("no answer"))
                else:
                    await step.go()
            await soon(task)
        (said,) = [record.getMessage() for record in caplog.records]
        assert "no answer" in said
        kept = {"invalidate": "a", "delete": "b", "purge": "c"}[failing]
        assert [key for key in "abc" if await manager.exists("menu", key)] == [kept]

    async def test_a_mistake_is_raised_when_the_others_have_gone(self, manager):
        """What is no failure of the store is not swallowed."""
        await fill_all(manager)
        port = await spied(manager, hold=True)
        task = asyncio.create_task(everything(manager))
        for step in [await port.arrived() for _ in range(3)]:
            if step.name == "invalidate":
                step.fail(ZeroDivisionError())
            else:
                await step.go()
        with pytest.raises(ZeroDivisionError):
            await soon(task)
        assert [key for key in "abc" if await manager.exists("menu", key)] == ["a"]

    @pytest.mark.parametrize("strict", [False, True])
    @pytest.mark.parametrize(("verb", "answer"), VERBS.values(), ids=VERBS)
    async def test_a_server_that_is_gone_at_the_exit(self, verb, answer, strict, caplog):
        """Logged, and the block does not raise; a task that is waited for is not left behind."""
        async with CacheManager("redis://127.0.0.1:1/0", budget=0.02, strict=strict) as manager:
            world = World(manager, manager)
            with caplog.at_level(logging.WARNING, "aiocache_aura"):
                async with manager.deferred():
                    assert same(await verb(world), answer)
                    assert caplog.records == []
            assert [record for record in caplog.records if "127.0.0.1:1" in record.getMessage()]

    async def test_a_server_that_dies_inside(self, own_server, caplog):
        """The commit stands; what was not delivered is said, and the next block is."""
        server = own_server()
        async with CacheManager(server.url, budget=1) as manager:
            with caplog.at_level(logging.ERROR, "aiocache_aura"):
                async with manager.deferred():
                    assert await manager.set("menu", "a", 1)
                    await manager.invalidate("menu")
                    server.kill()
            assert "not delivered" in caplog.text
            server.start()
            await reachable(manager)
            async with manager.deferred():
                await manager.invalidate("menu")
            assert await manager.get("menu", "a") is None

    async def test_after_aclose_inside_it_opens_again(self, world):
        """A later use opens a manager again, and the end of a block is one."""
        async with world.manager.deferred():
            await world.manager.invalidate("menu")
            await world.manager.aclose()
        assert not await world.is_there()

    async def test_what_is_told_while_it_is_sent_goes_out_at_once(self, world):
        """A child task that is late by a hair: the block is closed before it sends."""
        port = await spied(world.manager, hold=True)
        go_on = asyncio.Event()

        async def late() -> bool:
            await go_on.wait()
            return await world.manager.invalidate("menu")

        async def block() -> asyncio.Task[bool]:
            async with world.manager.deferred():
                await world.manager.invalidate("api")
                return asyncio.create_task(late())

        task = asyncio.create_task(block())
        first = await port.arrived("invalidate")
        go_on.set()
        second = await port.arrived("invalidate")
        await first.go()
        await second.go()
        assert await soon(await soon(task)) is True

    async def test_a_failed_block_says_so_at_debug(self, manager, caplog):
        """How much was not sent, and nothing of what."""
        with caplog.at_level(logging.DEBUG, "aiocache_aura.manager"), pytest.raises(RollbackError):
            async with manager.deferred():
                await manager.invalidate_tags("secret")
                raise RollbackError
        assert "<Held 1 scopes" in caplog.text
        assert "secret" not in caplog.text


async def done_behind(manager: CacheManager) -> None:
    """What works behind callers' backs has ended."""
    tasks = manager._engines.place().behind
    if tasks:
        await asyncio.wait(set(tasks))


async def many(manager: CacheManager) -> None:
    for n in range(10):
        await manager.invalidate("menu", tenant=n)
        await manager.invalidate_tags(f"tag:{n}")
        await manager.invalidate_user(n)
        await manager.delete("menu", f"dish:{n}", f"dish:{n + 1}")


async def fill_all(manager: CacheManager) -> None:
    for key in "abc":
        assert await manager.set("menu", key, 1, tags=[key])


async def everything(manager: CacheManager) -> None:
    """A block with an invalidation of a, a delete of b, a pattern of c."""
    async with manager.deferred():
        await manager.invalidate("menu", tags=["a"])
        await manager.delete("menu", "b")
        await manager.invalidate_pattern("menu", "c")


class Spy(Port):
    """A port that remembers what was cleared through it."""

    def __init__(self, inner: Any, tick: Any) -> None:
        super().__init__(inner, tick)
        self.dropped: list[tuple[Any, bool]] = []

    def waiting(self) -> list[Any]:
        return list(self.steps)

    async def invalidate(self, scopes: Any, **options: Any) -> Any:
        self.dropped.append((scopes, options["soft"]))
        return await super().invalidate(scopes, **options)


async def spied(manager: CacheManager, *, hold: bool = False) -> Spy:
    """What clears, from here on: held, or done at once."""
    engine = await manager.engine()
    spy = Spy(engine._port, engine._tick)
    spy.hold("invalidate", "delete", "purge")
    if not hold:
        add = spy.add

        def add_and_go(step: Any) -> Any:
            asyncio.get_running_loop().create_task(step.go())
            return add(step)

        spy.add = add_and_go  # type: ignore[method-assign]
    engine._port = spy
    return spy


async def reachable(manager: CacheManager) -> None:
    """A server that is back has been found."""
    async with asyncio.timeout(PATIENT):
        while not await manager.set("api", "a", 1):
            await asyncio.sleep(0.01)


def calls(client: Any) -> dict[str, int]:
    """How often each command that clears has been executed."""
    stats = client.info("commandstats")
    named = {name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("del", "unlink", "scan", "evalsha", "eval")}
    return {name: count for name, count in named.items() if count}
