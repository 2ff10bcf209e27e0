"""Reports: every section as plain values and as text."""

from __future__ import annotations

import asyncio
import json

import pytest

from aiocache_aura import CacheManager, CacheMonitor, CacheReport, CacheWarmer, cache_menu, schedule_cache_warming, tenant_scope
from aiocache_aura.report import WIDTH, _many
from tests.steps import SOON

SECTIONS = ["by type", "health", "memory", "connections", "hot keys", "slow operations", "warmers", "advice"]


@pytest.fixture
async def manager(clock):
    async with CacheManager("memory://", clock=clock) as manager:
        yield manager


def report(**changes) -> CacheReport:
    """A report of nothing, but for the sections given."""
    summary = {
        "cache_type": None, "last_minutes": 60, "hits": 0, "misses": 0, "hit_rate": 0.0, "loads": 0, "load_seconds": 0.0, "saved_loads": 0,
        "saved_seconds": 0.0, "stale_served": 0, "errors": 0, "latency_ms": {"avg": 0.0, "p50": 0.0, "p95": 0.0, "p99": 0.0},
    }  # fmt: skip
    empty = {
        "process": "host-1-abc", "at": 0.0, "last_minutes": 60, "fleet": None, "summary": summary, "types": {},
        "health": {"status": "healthy", "issues": [], "checks": {}}, "connections": [], "hot_keys": [], "slow_operations": [],
        "memory": {"where": "process", "types": {}, "used_bytes": None, "max_bytes": None, "policy": None}, "warmers": [], "warmed": {},
        "advice": [],
    }  # fmt: skip
    return CacheReport({**empty, **changes})


def sections(text: str) -> dict[str, list[str]]:
    """The lines of a report by the title that they stand under; those of the head by ""."""
    head, *others = text.split("\n\n")
    found = {"": head.splitlines()}
    for part in others:
        title, *lines = part.splitlines()
        assert not title.startswith(" ") and all(line.startswith("  ") for line in lines)
        found[title] = lines
    return found


async def busy(manager) -> None:
    """Something for every section."""
    manager.recorder.slow_threshold = 0.0

    @cache_menu(manager=manager)
    async def get_menu(restaurant_id: int) -> dict:
        return {"id": restaurant_id}

    for _ in range(2):
        await get_menu(1)
    manager.recorder.heat.offer("menu", "aura:menu:=item", 12.0, None)
    warmer = CacheWarmer(manager=manager)

    @warmer.source("menu")
    async def source(db, tenant_id):
        yield "item", 1

    done = asyncio.Event()
    schedule_cache_warming(interval_minutes=30, warmer=warmer, on_report=lambda report: done.set())
    async with asyncio.timeout(SOON):
        await done.wait()
    await manager.get("menu", "nothing", tenant=3)


class TestSections:
    async def test_over_a_server(self, valkey):
        """Everything is there: the server's memory, both lanes, and what was warmed; as text each section has its title."""
        async with CacheManager(valkey.url, prefix="aura") as manager:
            await busy(manager)
            made = await CacheMonitor(manager).get_cache_report()
            assert set(made) >= {*"summary types health memory connections hot_keys slow_operations warmers warmed advice fleet".split()}
            assert list(made["types"]) == ["menu"] and made["types"]["menu"]["hits"] == made["summary"]["hits"] == 1
            assert made["health"]["status"] == "degraded" and made["health"]["checks"]["reads"]["status"] == "ok"
            assert made["memory"]["where"] == "server" and made["memory"]["used_bytes"] > 0 and made["memory"]["types"] == {}
            assert {one["role"]: one["state"] for one in made["connections"]}.items() >= {"read": "ready", "write": "ready"}.items()
            assert [one["cache_type"] for one in made["hot_keys"]][:1] == ["menu"]
            assert {one["operation"] for one in made["slow_operations"]} >= {"get", "load", "set"}
            assert [(one["runs"], one["last_error"]) for one in made["warmers"]] == [(1, None)] and made["warmed"]["menu"]["loaded"] == 1
            found = sections(str(made))
            assert list(found) == ["", *SECTIONS]
            assert found[""][0] == f"cache report of process {made['process']}, last 60 minutes" and len(found[""]) == 5
            assert found["health"][0] == "  degraded" and "maxmemory" in found["health"][1]
            assert found["advice"] == ["  see the issues of the health"]

    async def test_over_memory(self, manager):
        """Memory is by type, and there are no connections; what there is nothing of has no section."""
        await manager.set("menu", "a", "x" * 1000)
        await manager.set("api", "b", 1)
        made = await CacheMonitor(manager).get_cache_report()
        memory = made["memory"]
        assert memory["where"] == "process" and memory["types"]["menu"]["entries"] == memory["types"]["api"]["entries"] == 1
        assert memory["types"]["menu"]["bytes"] > 1000 and memory["used_bytes"] == sum(one["bytes"] for one in memory["types"].values())
        assert made["connections"] == [] and made["health"]["status"] == "healthy"
        found = sections(str(made))
        assert list(found) == ["", "by type", "health", "memory", "advice"]
        assert found["advice"] == ["  nothing to do"] and found["health"] == ["  healthy"]
        assert found["memory"][-1] == f"  all: {memory['used_bytes']:,} bytes used, of 67,108,864"

    async def test_a_cache_that_nobody_used(self, manager):
        """Its report says so."""
        made = await CacheMonitor(manager).get_cache_report()
        assert made["types"] == {} and made["advice"] == []
        assert sections(str(made))["by type"] == ["  nothing was asked for"]

    async def test_it_is_json(self, valkey):
        """It comes back from JSON as it was, and prints the same."""
        async with CacheManager(valkey.url, prefix="aura") as manager:
            await busy(manager)
            made = await CacheMonitor(manager).get_cache_report(fleet=True)
        back = CacheReport(json.loads(json.dumps(made)))
        assert back == made and str(back) == str(made)

    async def test_slow_operations_are_of_the_window(self, manager, clock):
        """Those that are older than the report's minutes are left out."""
        manager.recorder.slow_threshold = 0.0
        await manager.set("menu", "a", 1)
        clock.advance(600)
        await manager.get("menu", "a")
        monitor = CacheMonitor(manager)
        assert [one["operation"] for one in (await monitor.get_cache_report(5))["slow_operations"]] == ["get"]
        assert [one["operation"] for one in (await monitor.get_cache_report(60))["slow_operations"]] == ["set", "get"]


class TestHotKeys:
    @pytest.mark.parametrize("key", ["plain", "with:@alice", "t5:u6:@x", "k" * 500], ids=str)
    @pytest.mark.parametrize("tenant", [None, 7])
    async def test_they_are_shown_as_logs_show_them(self, manager, key, tenant):
        """A key hides what the user put in it, and can be found in the log: by the same text."""
        shown = []
        with manager.events.listen(lambda one: shown.append(one.key)):
            await manager.set("menu", key, 1, tenant=tenant)
        await manager.get("menu", key, tenant=tenant)
        raw = (await manager.explain("menu", key, tenant=tenant)).key
        manager.recorder.heat.offer("menu", raw, 1.0, None)
        (one,) = (await CacheMonitor(manager).get_cache_report())["hot_keys"]
        assert one["key"] == shown[0] and one["key"].startswith("menu:=#") and "alice" not in one["key"]

    async def test_a_function_is_named(self, manager):
        """Of a call the function is told, and no argument."""
        shown = []

        @cache_menu(manager=manager, name="get_menu")
        async def get_menu(restaurant_id: int, guest: str) -> int:
            return 1

        with tenant_scope("t9"), manager.events.listen(lambda one: shown.append(one.key)):
            await get_menu(7, "alice")
            manager.recorder.heat.offer("menu", get_menu.cache_key(7, "alice"), 1.0, None)
        (one,) = (await CacheMonitor(manager).get_cache_report())["hot_keys"]
        assert one["key"] == shown[0] and one["key"].startswith("menu:@get_menu#") and "alice" not in one["key"]

    async def test_in_the_open(self, clock):
        """With `log_keys=True` they are as they are in the store."""
        async with CacheManager("memory://", clock=clock, log_keys=True) as manager:
            manager.recorder.heat.offer("menu", "aura:menu:=item:7", 1.0, None)
            (one,) = (await CacheMonitor(manager).get_cache_report())["hot_keys"]
        assert one == {"cache_type": "menu", "key": "aura:menu:=item:7", "seconds": 1.0}

    async def test_the_hottest_twenty(self, manager):
        """The report has twenty of them, its text ten, the hottest first."""
        for n in range(30):
            manager.recorder.heat.offer("menu", f"aura:menu:=k{n}", float(n + 1), None)
        made = await CacheMonitor(manager).get_cache_report()
        assert [one["seconds"] for one in made["hot_keys"]] == [float(n) for n in range(30, 10, -1)]
        assert len(sections(str(made))["hot keys"]) == 10


class TestText:
    def test_it_fits(self):
        """However long names, keys, errors and sentences are, no line has more than 100 columns, and no sentence is cut."""
        long = "a " * 300 + "end"
        figures = {
            "hits": 10**14,
            "misses": 10**12,
            "hit_rate": 1.0,
            "loads": 10**15,
            "latency_ms": {"p95": 99_999.99},
            "stale_served": 10**9,
        }
        made = report(
            process="p" * 300,
            types={"t" * 64: {**figures, "errors": 10**9, "saved_seconds": 1e15}, "menu": {**figures, "errors": 0, "saved_seconds": 0.04}},
            health={"status": "unhealthy", "issues": ["first " + long], "checks": {}},
            memory={"where": "server", "types": {}, "used_bytes": 10**40, "max_bytes": 10**60, "policy": "p" * 90},
            connections=[
                {"role": "read", "state": "down", "pending": 0, "last_error": "e" * 200, "waiting_seconds": 0.123456, "version": "v"}
            ],
            hot_keys=[{"cache_type": "menu", "key": "k" * 300, "seconds": 1e9}],
            slow_operations=[{"operation": "invalidate", "key": "k" * 300, "cache_type": "menu", "seconds": 1e5, "size": 10**9}],
            warmers=[{"name": "n" * 20, "is_running": False, "next_run": None, "last_error": "boom " + long}],
            warmed={"menu": {"loaded": 10**9, "refreshed": 0, "skipped": 3, "failed": 0, "ended": {"done": 3, "timeout": 1}}},
            advice=["first " + long, "second " + long],
        )
        text = str(made)
        assert max(map(len, text.splitlines())) == WIDTH
        found = sections(text)
        assert list(found) == ["", *SECTIONS]
        for title, start in (("health", "first"), ("warmers", "boom"), ("advice", "second")):
            assert f"{start} {long}" in " ".join(" ".join(found[title]).split())
        assert "first" not in " ".join(found["advice"]), "an issue of the health is told once"
        assert len({len(line) for line in found["by type"]}) == 1, "columns stand under one another"
        assert found["connections"][0].startswith("  read: down, last error ")
        assert found["warmers"][-1] == "  - menu: 1,000,000,000 loaded, 3 skipped; runs: 3 done, 1 timeout"

    def test_a_terminal_gets_no_orders(self):
        """Line breaks and escape sequences in keys and errors are shown, not sent."""
        made = report(
            hot_keys=[{"cache_type": "menu", "key": "a\nadvice\n  nothing\x1b[2J\u202e", "seconds": 1.0}],
            advice=["line\r\nbreak \x07"],
        )
        text = str(made)
        assert all(char.isprintable() or char == "\n" for char in text)
        assert list(sections(text)) == ["", "by type", "health", "hot keys", "advice"]
        assert r"a\nadvice\n  nothing\x1b[2J\u202e" in text and r"line\r\nbreak \x07" in text

    @pytest.mark.parametrize(
        ("fleet", "head"),
        [
            (None, "process host-1-abc"),
            ({"processes": 1, "oldest_seconds": 0.0, "unhealthy": [], "error": None}, "1 process, figures at most 0 s old"),
            (
                {"processes": 4, "oldest_seconds": 9.6, "unhealthy": ["a"], "error": None},
                "4 processes, 1 of them unhealthy, figures at most 10 s old",
            ),
            (
                {"processes": 1, "oldest_seconds": 0.0, "unhealthy": [], "error": "gone"},
                "this process alone, for the others' figures cannot be had (gone)",
            ),
        ],
        ids=["one", "a fleet of one", "a fleet", "a fleet that cannot be read"],
    )
    def test_whose_it_is(self, fleet, head):
        """This process's, so many processes', or this one's for want of the others'."""
        assert str(report(fleet=fleet)).splitlines()[0] == f"cache report of {head}, last 60 minutes"

    def test_memory(self):
        """Of a server: what is used, its bound and its policy, as far as they are known."""
        memory = {"where": "server", "types": {}, "used_bytes": 1500, "max_bytes": None, "policy": None}
        assert sections(str(report(memory=memory)))["memory"] == ["  the server: 1,500 bytes used, without a bound"]
        memory |= {"max_bytes": 2000, "policy": "allkeys-lru"}
        assert sections(str(report(memory=memory)))["memory"] == ["  the server: 1,500 bytes used, of 2,000, allkeys-lru"]

    @pytest.mark.parametrize(
        ("number", "text"),
        [(0, "0"), (0.04, "0.0"), (999.94, "999.9"), (12_345.6, "12,346"), (99_999, "99,999"), (100_000, "100.0k"),
         (99_999_999, "100,000k"), (10**8, "100.0M"), (1.5e9, "1,500M"), (10**15, "1,000T"), (10**20, "100,000,000T")],
    )  # fmt: skip
    def test_numbers_are_short(self, number, text):
        """Whole below 100,000, then in thousands, millions and so on."""
        assert _many(number) == text

    def test_lines_of_the_table(self):
        """A type is one line: its figures in the order of the head."""
        figures = {
            "hits": 75,
            "misses": 25,
            "hit_rate": 0.75,
            "loads": 25,
            "latency_ms": {"p95": 1.234},
            "stale_served": 1,
            "errors": 2,
            "saved_seconds": 3.0,
        }
        head, line = sections(str(report(types={"menu": figures})))["by type"]
        assert line.split() == ["menu", "75", "25", "75.0%", "25", "1.23", "1", "2", "3.0"]
        assert head.split() == ["hits", "misses", "hit", "rate", "loads", "p95", "ms", "stale", "errors", "saved", "s"]
