"""What the recorder is told, how often it times hits, and many threads at once."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aiocache_aura import CacheManager
from aiocache_aura.errors import BackendError, SerializationError
from aiocache_aura.events import Evicted, Fault, Invalidated, SlowOperation
from aiocache_aura.generations import Address
from aiocache_aura.recorder import ALL_TIMED, MOST_SLOW, Recorder
from aiocache_aura.stats import INTS, Counts
from aiocache_aura.terms import Terms
from aiocache_aura.timeline import DAY, SLOT
from aiocache_aura.warm_report import TypeReport
from tests.clocks import ManualClock

PAUSE = 3600.0  # seconds
LATER = SLOT + 1


@pytest.fixture
def recorder(clock: ManualClock) -> Recorder:
    return Recorder(clock)


class TestCounting:
    def test_a_fault_is_counted_by_its_class_and_told(self, recorder: Recorder, clock: ManualClock) -> None:
        """It is one error; nothing else is."""
        heard: list[Fault] = []
        recorder.events.listen(heard.append, Fault)
        for error in (BackendError("gone"), OSError(), BackendError("gone")):
            recorder.fault("menu", error)
        total = recorder.total("menu")
        assert (total.errors, total.by_error) == (3, {"BackendError": 2, "OSError": 1})
        assert [(one.cache_type, one.at, type(one.error)) for one in heard[:2]] == [
            ("menu", clock.now, BackendError),
            ("menu", clock.now, OSError),
        ]

    def test_evictions_are_counted_by_reason_and_told(self, recorder: Recorder) -> None:
        """Each reason for itself."""
        heard: list[Evicted] = []
        recorder.events.listen(heard.append, Evicted)
        for reason in ("entries", "bytes", "entries"):
            recorder.evicted("menu", reason)
        assert recorder.total("menu").evictions == {"entries": 2, "bytes": 1}
        assert [one.reason for one in heard] == ["entries", "bytes", "entries"]

    def test_an_invalidation_is_told_for_each_type(self, recorder: Recorder) -> None:
        """Of none, of one, of two: each type has its duration, and is told; one of no type is told once."""
        heard: list[Invalidated] = []
        recorder.events.listen(heard.append, Invalidated)
        for names in ([], ["menu"], ["menu", "api"]):
            recorder.invalidated(names, "everything", 0.5, delivered=True)
        assert [one.cache_type for one in heard] == ["", "menu", "menu", "api"]
        assert [recorder.total(name).times["invalidate"].count for name in ("menu", "api")] == [2, 1]
        assert [one.cache_type for one in recorder.slow_operations] == ["", "menu", ""]

    def test_the_last_slow_operations_are_kept(self, recorder: Recorder) -> None:
        """The oldest go first; all are told."""
        heard: list[SlowOperation] = []
        recorder.events.listen(heard.append, SlowOperation)
        for n in range(MOST_SLOW + 20):
            recorder.slow("menu", "get", "key", float(n))
        assert [one.seconds for one in recorder.slow_operations] == [float(n) for n in range(20, MOST_SLOW + 20)]
        assert len(heard) == MOST_SLOW + 20

    def test_reads_are_hits_and_misses_of_all_types(self, recorder: Recorder) -> None:
        """Loads and writes are none."""
        recorder.counts("menu").hits, recorder.counts("api").misses, recorder.counts("api").sets = 3, 4, 5
        assert recorder.reads() == 7
        assert sorted(recorder.cache_types) == ["api", "menu"]

    def test_warm_runs_add_up(self, recorder: Recorder, clock: ManualClock) -> None:
        """By type; what is given is nobody else's."""
        for _ in range(2):
            recorder.warm_run(TypeReport(cache_type="menu"))
        warmed = recorder.warmed
        assert list(warmed) == ["menu"]
        warmed.clear()
        assert list(recorder.warmed) == ["menu"]

    def test_another_clock(self, recorder: Recorder) -> None:
        """What is counted after a restart is told by the new clock."""
        other = ManualClock(5.0)
        recorder.restart(other)
        recorder.fault("menu", OSError())
        other.advance(LATER)
        assert recorder.window("menu", 60).errors == 1
        other.advance(PAUSE)
        assert recorder.window("menu", 60).errors == 0


class TestAfterAPause:
    """Whatever is counted is told as of then, and not as of the last thing before."""

    HAPPENINGS: dict[str, tuple[Callable[[Any, Address, Terms], object], str]] = {
        "a stale value": (lambda engine, address, terms: engine._count_stale(address, terms, "timeout"), "stale_timeout"),
        "a fault": (lambda engine, address, terms: engine._fault(BackendError("gone"), terms, address), "errors"),
        "what cannot be stored": (lambda engine, address, terms: engine._note_unstorable(terms, SerializationError("no")), "unstorable"),
        "an overrun": (lambda engine, address, terms: engine._overrun([], terms, lambda error: None), "overruns"),
        "a miss": (lambda engine, address, terms: engine._count_miss(terms, address, coalesced=False), "misses"),
        "a load": (lambda engine, address, terms: engine._count_load(address, terms, 1.0, None), "loads"),
        "an explicit fault": (lambda engine, address, terms: engine._recorder.fault("menu", BackendError("gone")), "errors"),
        "an invalidation": (lambda engine, address, terms: engine._recorder.invalidating("menu"), "invalidations"),
    }

    @pytest.mark.parametrize("what", HAPPENINGS)
    async def test_what_is_counted_after_a_pause(self, what: str, clock: ManualClock) -> None:
        """An hour after the last thing: a window of a minute has it for a minute, and not longer than a slot more."""
        happens, figure = self.HAPPENINGS[what]
        async with CacheManager("memory://", clock=clock) as manager:
            await manager.set("menu", "a", 1)
            engine: Any = await manager.engine()
            address, terms = manager.caches["menu"].place("a")
            clock.advance(PAUSE)
            happens(engine, address, terms)
            clock.advance(LATER)
            window = manager.recorder.window("menu", 60)
            assert {name: n for name in INTS if (n := getattr(window, name))} == {figure: 1}
            clock.advance(60 + SLOT)
            assert getattr(manager.recorder.window("menu", 60), figure) == 0
            assert getattr(manager.recorder.window("menu", DAY), figure) == 1

    def test_evictions_after_a_pause(self, recorder: Recorder, clock: ManualClock) -> None:
        """They are told as of then."""
        clock.advance(PAUSE)
        recorder.evicted("menu", "bytes")
        clock.advance(LATER)
        assert recorder.window("menu", 60).evictions == {"bytes": 1}


class TestSampling:
    def hits(self, recorder: Recorder, number: int) -> tuple[int, int]:
        """So many hits, as the engine counts them: how many were timed, and for how many these stand."""
        counts = recorder.counts("menu")
        timed = stands_for = 0
        for _ in range(number):
            if not counts.hits & counts.mask:
                recorder.touch(recorder.clock.monotonic())
                stands_for += recorder.sampled(counts)
                timed += 1
            counts.hits += 1
        return timed, stands_for

    def test_a_quiet_type_is_timed_again_once_somebody_has_asked(self, recorder: Recorder, clock: ManualClock) -> None:
        """The few hits of a type that was busy are not timed, so the question has to see that it is quiet; the first one after it is."""
        self.hits(recorder, 100_000)
        counts = recorder.counts("menu")
        assert counts.mask == 63
        for _ in range(2):
            clock.advance(LATER)
            recorder.window("menu", 60)
        assert counts.mask == 0
        timed, _ = self.hits(recorder, 5)
        assert timed == 5
        assert recorder.window("menu", 5).hits == 5

    def test_a_busy_type_stays_sampled_when_somebody_asks(self, recorder: Recorder, clock: ManualClock) -> None:
        """Where questions close all slots, hits are timed as they are where hits do."""
        for _ in range(4):
            self.hits(recorder, 50_000)
            clock.advance(LATER)
            recorder.window("menu", 60)
            assert recorder.counts("menu").mask == 63
        timed, stands_for = self.hits(recorder, 50_000)
        assert timed <= 50_000 // 64 + 1
        assert stands_for == pytest.approx(50_000, rel=0.01)

    @pytest.mark.parametrize(("hits", "mask"), [(ALL_TIMED, 0), (ALL_TIMED * 5, 15), (ALL_TIMED * 30, 63)])
    def test_how_many_are_timed_after_a_slot(self, recorder: Recorder, clock: ManualClock, hits: int, mask: int) -> None:
        """All after up to a thousand, then one in 16, then one in 64; whether a hit or a question closes the slot."""
        for closes in (lambda: recorder.touch(clock.now), lambda: recorder.window("menu", 60)):
            recorder.counts("menu").hits += hits
            clock.advance(LATER)
            closes()
            assert recorder.counts("menu").mask == mask


class TestThreads:
    @pytest.fixture(autouse=True)
    def often(self) -> Iterator[None]:
        """Threads take turns a thousand times as often as usual."""
        usual = sys.getswitchinterval()
        sys.setswitchinterval(5e-6)
        yield
        sys.setswitchinterval(usual)

    def test_a_collection_of_garbage_in_the_middle(self, recorder: Recorder, clock: ManualClock) -> None:
        """It may let another thread count something new, or finalisers do: wherever it comes, nobody who reads is given an error."""
        for n in range(30):
            for operation in range(30):
                recorder.counts(f"type{n}").took(f"operation{operation}", 0.001)
        earlier, found = recorder.total("type0"), []

        def count(phase: str, info: dict[str, int]) -> None:
            turns[0] += 1
            if len(found) >= left[0] or turns[0] % 3:
                return
            found.append(phase)
            counts = recorder.counts("type0")
            counts.took(f"new{len(found)}", 0.001)
            counts.took("operation0", 1e-6 * 1.01 ** len(found))
            recorder.fault("type0", type(f"Error{len(found)}", (Exception,), {})())
            recorder.evicted("type0", f"reason{len(found)}")
            recorder.counts(f"new{len(found)}")

        counts, left, turns, held = recorder.counts("type0"), [0], [0], []
        reads: list[Callable[[], object]] = [
            lambda: recorder.window("type0", 60),
            recorder.reads,
            lambda: repr(recorder._timeline),
            lambda: recorder.total("type0"),
            lambda: counts.differs(Counts()),
            lambda: counts.minus(earlier),
            lambda: Counts().absorb(counts),
            counts.snapshot,
            lambda: counts.times["operation0"].percentile(99),
            lambda: counts.times["operation0"].below([0.1, 1.0]),
        ]
        usual = gc.get_threshold()
        gc.callbacks.append(count)
        gc.freeze()
        gc.set_threshold(3, 1000, 1000)
        try:
            for read in reads:
                for _ in range(3):
                    clock.advance(LATER)
                    held.append([(n, n) for n in range(3000)])  # the interpreter has no pair left, so a new one may have it collect
                    left[0] = len(found) + 50
                    read()
        finally:
            gc.set_threshold(*usual)
            gc.callbacks.remove(count)
            gc.unfreeze()
        assert len(found) >= len(reads)

    def test_nobody_is_given_an_error_and_nothing_is_told_twice(self, recorder: Recorder, clock: ManualClock) -> None:
        """Four threads count, each a type of its own exactly, and all of them one; three ask. A day's window is what was counted."""
        errors: list[BaseException] = []
        done = threading.Event()

        def guarded(work: Callable[[], None]) -> Callable[[], None]:
            def run() -> None:
                try:
                    work()
                except BaseException as error:
                    errors.append(error)

            return run

        def count(mine: str) -> None:
            for n in range(2500):
                recorder.touch(clock.now)
                for name in (mine, "shared", f"{mine}{n % 400}"):
                    counts = recorder.counts(name)
                    counts.hits += 1
                    counts.took(("get", "set", "load")[n % 3], 1e-6 * 1.008**n)
                    recorder.fault(name, type(f"Error{n // 4}", (Exception,), {})())
                    recorder.evicted(name, f"reason{n % 7}")
                if n % 500 == 499:
                    recorder.counts(f"{mine}{n % 400}").reset()
                clock.advance(0.5)

        def ask() -> None:
            while not done.is_set():
                for name in ["shared", *recorder.cache_types[:40]]:
                    window = recorder.window(name, 60)
                    assert min(getattr(window, figure) for figure in INTS) >= 0
                    recorder.total(name).snapshot()

        def sum_up() -> None:
            while not done.is_set():
                assert recorder.reads() >= 0
                assert "types" in repr(recorder) + repr(recorder._timeline)

        writers = [threading.Thread(target=guarded(lambda mine=mine: count(mine))) for mine in "abcd"]  # type: ignore[misc]
        readers = [threading.Thread(target=guarded(work)) for work in (ask, ask, sum_up)]
        for thread in (*writers, *readers):
            thread.start()
        for thread in writers:
            thread.join()
        done.set()
        for thread in readers:
            thread.join()
        assert errors == []
        for name in "abcd":
            window = recorder.window(name, DAY)
            assert (window.hits, window.errors, sum(window.by_error.values()), sum(window.evictions.values())) == (2500,) * 4
            assert sum(took.count for took in window.times.values()) == 2500
        assert 0 < recorder.window("shared", DAY).hits <= 10_000
