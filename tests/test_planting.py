"""Planting, attacked: what a run must survive at every await, and what it must never store; each was found broken once."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from aiocache_aura import CacheManager, CacheWarmer, cache_menu, current_tenant, removals, tenant_scope
from aiocache_aura import planting as planting_module
from aiocache_aura.planting import Renewal
from aiocache_aura.sources import registered
from aiocache_aura.stores.base import Tokens
from tests.contract.test_warming import figures
from tests.steps import soon


@pytest.fixture(autouse=True)
def _no_sources_of_modules() -> Iterator[None]:
    registered.forget()
    yield
    registered.forget()


@pytest.fixture
async def manager() -> AsyncIterator[CacheManager]:
    async with CacheManager("memory://") as one:
        yield one


async def cancelled_by_itself() -> None:
    """Await what somebody else has cancelled: CancelledError, and nobody has cancelled this task."""
    other = asyncio.get_running_loop().create_future()
    other.cancel()
    await other


class TestCancelled:
    async def test_a_source_that_awaits_what_was_cancelled_has_failed(self, manager):
        """It is no timeout, and it stops no other."""
        warmer = CacheWarmer(manager=manager)

        @warmer.source("menu")
        async def source():
            yield "a", 1
            await cancelled_by_itself()

        @warmer.source("menu")
        async def next_one():
            yield "b", 1

        report = await soon(warmer.warm_menu_cache())
        assert (figures(report), report["menu"].ended) == ((2, 0, 0, 0), "failed")
        assert "CancelledError" in report.errors[0]

    async def test_calls_that_never_began_give_their_places_back(self, manager):
        """A task that is cancelled before its first step runs no line: another source would wait for its place for ever."""
        warmer, ended = CacheWarmer(manager=manager, concurrency=1), asyncio.Event()

        @cache_menu(manager=manager, name="placed")
        async def placed(n: int) -> int:
            return n

        @warmer.source("menu")
        async def broken():
            yield placed(1)
            ended.set()
            raise asyncio.CancelledError

        @warmer.source("settings")
        async def good():
            await ended.wait()
            for n in range(10, 14):
                yield placed(n)

        report = await soon(warmer.warm_all())
        assert figures(report, "settings") == (4, 0, 0, 0)
        gc.collect()  # a coroutine that nobody awaited would warn

    @pytest.mark.parametrize("lent", [False, True], ids=["side by side", "in turn"])
    async def test_a_call_that_awaits_what_was_cancelled_is_counted(self, manager, lent):
        """It has failed, and the others are made."""

        async def load(n: int) -> int:
            if n == 1:
                await cancelled_by_itself()
            return n

        calls = [(n,) for n in range(3)]
        if lent:

            @cache_menu(manager=manager, exclude=["db"], name="cancelled", warm=calls)
            async def with_session(n: int, db: Any) -> int:
                return await load(n)

        else:

            @cache_menu(manager=manager, name="cancelled", warm=calls)
            async def without(n: int) -> int:
                return await load(n)

        report = await soon(CacheWarmer("db", manager=manager).warm_menu_cache())
        assert (figures(report), report["menu"].ended) == ((2, 0, 0, 1), "done")


class TestRuns:
    async def test_calls_in_turn_are_made_in_the_scope_in_which_they_were_given(self, manager):
        """A plain `warm=` may open a tenant's scope round what it gives, whether or not the calls share a session."""
        seen = []

        def calls():
            for tenant in (1, 2):
                with tenant_scope(tenant):
                    yield (tenant,)

        @cache_menu(manager=manager, exclude=["db"], name="scoped", warm=calls)
        async def scoped(n: int, db: Any) -> int:
            seen.append((n, current_tenant()))
            return n

        assert figures(await soon(CacheWarmer("db", manager=manager).warm_menu_cache())) == (2, 0, 0, 0)
        assert seen == [(1, "1"), (2, "2")]
        with tenant_scope(2):
            assert await scoped(2, None) == 2
        assert len(seen) == 2

    async def test_beginning_anew_forgets_nothing_of_other_sources(self, manager):
        """What another source of the type has stored or could not store stays in the report."""
        warmer, readings = CacheWarmer(manager=manager), []

        @warmer.source("menu")
        async def first():
            yield "a", 1
            yield "b", object()

        @warmer.source("menu", tags=["promo"])
        async def second():
            readings.append(1)
            yield "c", 1, {"tags": ["promo"]}
            if len(readings) == 1:
                await manager.invalidate("menu", tags=["promo"])

        report = await soon(warmer.warm_menu_cache())
        assert len(readings) == 2
        assert figures(report) == (2, 0, 0, 1)
        assert len(report["menu"].errors) == 1

    async def test_generations_are_looked_after_while_new_ones_are_named(self, manager):
        """A source that names a new tag with each batch has the others kept alive all the same."""
        engine, asked = await manager.engine(), []
        bed = planting_module.Bed(*manager.caches["menu"].place("any"))
        ground = await engine.capture("menu", bed.scopes, bed.terms.reach)
        ground.looked_after -= 29.0
        generations = engine.port.generations

        async def watched(scopes: Any, **options: Any) -> Tokens:
            asked.append(scopes)
            return await generations(scopes, **options)

        engine.port.generations = watched
        try:
            for n in range(2):
                ground.looked_after -= 15.0 * n
                tagged = planting_module.Bed(*manager.caches["menu"].place("any", tags=[f"t{n}"]))
                await engine.plant([planting_module.Pair(tagged.key("a"), 1, tagged)], ground, Renewal(), breathe)
        finally:
            del engine.port.generations
        assert set(bed.scopes) in [set(scopes) for scopes in asked]


class TestRemoved:
    @pytest.mark.parametrize(
        "verb", ["delete", "deleted behind a look", "pattern", "set to nothing", "set that expires", "add that expires"]
    )
    async def test_what_this_process_has_taken_away_is_not_stored_by_an_older_source(self, clock, verb):
        """The source has read the old value; nothing in the store tells that it was taken away. What else it gives is stored."""
        async with CacheManager("memory://", clock=clock) as manager:
            warmer = CacheWarmer(manager=manager)

            async def take_away() -> None:
                if "delete" in verb:
                    await manager.delete("menu", "a")
                elif verb == "pattern":
                    await manager.invalidate_pattern("menu", "a*")
                elif verb == "set to nothing":
                    await manager.set("menu", "a", "new", ttl=0)
                else:
                    put = manager.set if verb == "set that expires" else manager.add
                    assert await put("menu", "a", "new", ttl=1, stale=0)
                    clock.advance(2)

            @warmer.source("menu")
            async def source():
                if "behind" not in verb:
                    await take_away()
                yield "a", "old"
                yield "b", 1

            if "behind" in verb:
                behind_the_look(await manager.engine(), take_away)
            assert figures(await soon(warmer.warm_menu_cache())) == (1, 0, 1, 0)
            assert await manager.mget("menu", ["a", "b"]) == [None, 1]

    async def test_a_refresh_that_finds_nothing_is_not_undone(self, clock):
        """It takes the old value away, which the source has read before."""
        async with CacheManager("memory://", clock=clock) as manager:
            warmer = CacheWarmer(manager=manager)
            await manager.set("menu", "a", "old")

            @cache_menu(manager=manager, key="a", name="gone", cache_none=False)
            async def gone() -> None:
                return None

            @warmer.source("menu")
            async def source():
                clock.advance(1)
                assert await gone.refresh() is None
                assert await manager.get("menu", "a") is None
                yield "a", "old"

            await soon(warmer.warm_menu_cache())
            assert await manager.get("menu", "a") is None

    @pytest.mark.parametrize("what", ["MOST_KEYS", "MOST_PATTERNS"])
    async def test_more_than_can_be_remembered_begins_the_source_anew(self, manager, monkeypatch, what):
        """And of other types nothing is remembered; nor is anything when the run is over."""
        monkeypatch.setattr(removals, what, 2)
        warmer, readings = CacheWarmer(manager=manager), []

        @warmer.source("menu")
        async def source():
            readings.append(1)
            for n in range(3):
                await manager.delete("settings", f"gone:{n}")
                await manager.invalidate_pattern("settings", f"gone:{n}")
                if len(readings) == 1 and what == "MOST_KEYS":
                    await manager.delete("menu", f"gone:{n}")
                elif len(readings) == 1:
                    await manager.invalidate_pattern("menu", f"gone:{n}")
            yield "a", len(readings)

        assert figures(await soon(warmer.warm_menu_cache())) == (1, 0, 0, 0)
        assert await manager.get("menu", "a") == 2
        gc.collect()
        assert repr((await manager.engine())._removed) == "<Watched by 0>"

    async def test_an_error_that_was_cached_since_the_source_began_stays(self, clock):
        """It says that what the source has read is gone. One from before is replaced."""
        async with CacheManager("memory://", clock=clock) as manager:
            warmer, is_there = CacheWarmer(manager=manager), False

            @cache_menu(manager=manager, key="a", name="item", cache_errors=(LookupError,))
            async def item() -> str:
                if not is_there:
                    raise LookupError("gone")
                return "there"

            @warmer.source("menu")
            async def source():
                if not is_there:
                    clock.advance(1)
                    with pytest.raises(LookupError):
                        await asyncio.create_task(item())
                yield "a", "there"

            assert figures(await soon(warmer.warm_menu_cache()))[:2] == (1, 0)
            with pytest.raises(LookupError):
                await item()
            is_there = True
            clock.advance(1)
            assert figures(await soon(warmer.warm_menu_cache())) == (0, 1, 0, 0)
            assert await item() == "there"


def behind_the_look(engine: Any, act: Callable[[], Awaitable[None]]) -> None:
    """Have this done once, between a look and what is written for it."""
    look = engine.port.look

    async def looking(*args: Any, **options: Any) -> Any:
        engine.port.look = look
        found = await look(*args, **options)
        await act()
        return found

    engine.port.look = looking


async def breathe() -> None:
    await asyncio.sleep(0)
