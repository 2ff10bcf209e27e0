"""Windows over counters, against a list of all that happened and when."""

from __future__ import annotations

import random
import threading
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocache_aura.histogram import Histogram
from aiocache_aura.ledger import length_at
from aiocache_aura.recorder import ALL_TIMED, Recorder
from aiocache_aura.stats import Counts
from aiocache_aura.timeline import DAY, SLOT, Timeline
from tests.clocks import ManualClock

TYPES = ["menu", "api"]

OPERATIONS = {"miss": "get", "load": "load"}

# (seconds since the last happening, what, of which type); "ask" is a question
steps = st.lists(
    st.tuples(
        st.one_of(st.floats(0, 3), st.floats(3, 200), st.floats(200, 9000), st.sampled_from([SLOT, 60.0, 600.0, 30_000.0])),
        st.sampled_from(["hit", "hit", "miss", "load", "ask"]),
        st.sampled_from(TYPES),
    ),
    min_size=1,
    max_size=120,
)


class History:
    """A recorder under virtual time, and a plain list of what happened."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.recorder = Recorder(self.clock)
        self.happened: list[tuple[float, str, str]] = []

    def happens(self, what: str, name: str) -> None:
        self.recorder.touch(self.clock.now)
        counts = self.recorder.counts(name)
        if what == "hit":
            counts.hits += 1
        elif what == "miss":
            counts.misses += 1
            counts.took("get", 0.001 * (len(self.happened) % 7 + 1))
        else:
            counts.loads += 1
            counts.load_seconds += 0.2
            counts.took("load", 0.2)
        self.happened.append((self.clock.now, what, name))

    def number(self, what: str, name: str, since: float) -> int:
        return sum(at > since and (kind, of) == (what, name) for at, kind, of in self.happened)


def check(history: History, seconds: float) -> None:
    """A window has all that happened in its time, and of what came before at most what one slot of its age may hold."""
    now = history.clock.now
    for name in TYPES:
        window = history.recorder.window(name, seconds)
        for what, told in (("hit", window.hits), ("miss", window.misses), ("load", window.loads)):
            least = history.number(what, name, now - seconds)
            most = history.number(what, name, now - seconds - length_at(seconds) - 1e-6)
            assert least <= told <= most, (what, name, seconds)
        for what, told in (("miss", window.misses), ("load", window.loads)):
            took = window.times.get(OPERATIONS[what], Histogram())
            assert took.count == sum(took.buckets.values()) == told
        assert window.load_seconds == pytest.approx(0.2 * window.loads)


@given(steps)
def test_a_window_tells_what_happened_in_it(taken) -> None:
    """Whatever happens, pauses and all, a window has all of its time, and of what came before at most one slot of that age."""
    history = History()
    for passed, what, name in taken:
        history.clock.advance(passed)
        if what == "ask":
            for seconds in (1.0, 60.0, 300.0, 3600.0):
                check(history, seconds)
        else:
            history.happens(what, name)
    for seconds in (15.0, 60.0, 600.0, 3600.0, 6000.0, 6 * 3600.0, DAY):
        check(history, seconds)


@pytest.mark.parametrize("seed", range(4))
def test_a_window_tells_what_happened_in_it_in_two_days_of_bursts_and_pauses(seed) -> None:
    """Long enough for every length of slot: windows of every length, asked for at any time, have their figures between the same bounds."""
    chance = random.Random(seed)
    history = History()
    while history.clock.now < 1_000_000 + 2 * DAY:
        for _ in range(chance.randrange(1, 60)):
            history.clock.advance(chance.expovariate(1 / chance.choice((0.5, 8.0, 60.0))))
            history.happens(chance.choice(("hit", "miss", "load")), chance.choice(TYPES))
        if chance.random() < 0.1:
            history.clock.advance(chance.uniform(0, 20))
            check(history, chance.choice((20.0, 60.0, 599.0, 600.0, 3600.0, 6001.0, 20_000.0, DAY)))
        history.clock.advance(chance.expovariate(1 / chance.choice((30.0, 700.0, 5000.0))))
    for seconds in (10.0, 60.0, 1800.0, 6000.0, DAY / 2, DAY):
        check(history, seconds)


@pytest.mark.parametrize("asked", [False, True], ids=["nobody asked", "asked in the pause"])
def test_what_came_before_a_pause_is_not_told_as_of_after_it(asked) -> None:
    """A burst, an hour of nothing, and one miss: a window right after it has the miss alone."""
    history = History()
    for _ in range(30):
        history.clock.advance(0.5)
        history.happens("hit", "menu")
    history.clock.advance(1800.0)
    if asked:
        assert history.recorder.window("menu", 60).hits == 0
    history.clock.advance(1800.0)
    assert history.recorder.window("menu", 60).hits == 0
    history.happens("miss", "menu")
    window = history.recorder.window("menu", 60)
    assert (window.hits, window.misses) == (0, 1)
    assert history.recorder.window("menu", DAY).hits == 30


def test_counters_that_begin_anew() -> None:
    """A reset is no loss of what windows have, and none of what comes after, however much that is: nothing is counted twice or below 0."""
    history = History()
    counts = history.recorder.counts("menu")
    for _ in range(30):
        history.clock.advance(1.0)
        history.happens("miss", "menu")
    history.clock.advance(SLOT)
    assert history.recorder.window("menu", DAY).misses == 30
    for so_far in (30, 75):
        counts.reset()
        if so_far == 30:  # the other time nobody looks until it has more than before
            assert history.recorder.window("menu", DAY).misses == so_far
        for _ in range(45):
            history.happens("miss", "menu")
        assert history.recorder.window("menu", DAY).misses == so_far + 45
        history.clock.advance(3 * SLOT)
        history.recorder.touch(history.clock.now)
    assert history.recorder.window("menu", DAY).times["get"].count == 120
    assert history.recorder.window("menu", 2 * SLOT).misses == 0


def test_a_figure_that_goes_down_has_gained_nothing() -> None:
    """Two threads may lose an increment, and a hand may set a figure back: what comes after is counted from there, and nothing twice."""
    history = History()
    counts = history.recorder.counts("menu")
    history.happens("hit", "menu")
    counts.hits = 1_000_000
    history.clock.advance(2 * SLOT)
    history.recorder.touch(history.clock.now)
    counts.hits -= 3
    assert history.recorder.window("menu", DAY).hits == 1_000_000
    assert history.recorder.window("menu", SLOT).hits == 0
    counts.hits += 5
    assert history.recorder.window("menu", SLOT).hits == 5
    counts.hits = 0
    history.clock.advance(2 * SLOT)
    history.recorder.touch(history.clock.now)
    counts.hits += 7
    assert history.recorder.window("menu", SLOT).hits == 7
    assert history.recorder.window("menu", DAY).hits == 1_000_012


def test_a_busy_day_takes_little_room_and_no_time() -> None:
    """A day of durations of three operations, each spread over some seventy buckets: about 1 MB, and a day's window within 5 ms."""
    history, chance = History(), random.Random(1)
    durations = [[chance.lognormvariate(-6 + n, 1.0) for _ in range(500)] for n in range(3)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for n in range(9000):
            history.clock.advance(SLOT)
            history.recorder.touch(history.clock.now)
            counts = history.recorder.counts("menu")
            counts.hits += 900
            for operation, took in zip(("get", "set", "load"), durations, strict=True):
                counts.took(operation, took[n % 500])
        room = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert room < 1_200_000
    assert history.recorder.window("menu", DAY).times["get"].count >= DAY / SLOT
    times = []
    for _ in range(20):
        started = time.perf_counter()
        history.recorder.window("menu", DAY)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.005


def test_a_busy_day_is_kept_in_few_slots() -> None:
    """Something each second for more than a day: fewer than 310 slots, and the last day's figures but for one slot."""
    history = History()
    for _ in range(int(DAY) + 7200):
        history.clock.advance(1.0)
        history.recorder.touch(history.clock.now)
        history.recorder.counts("menu").hits += 1
    assert len(history.recorder._timeline) < 300
    assert DAY - 1 <= history.recorder.window("menu", DAY).hits <= DAY + 600
    assert 59 <= history.recorder.window("menu", 60).hits <= 60 + SLOT + 1
    assert 3599 <= history.recorder.window("menu", 3600).hits <= 3600 + 60


def test_what_is_older_than_a_day_goes() -> None:
    """A day and a slot after it happened it is in no window, and takes no slot."""
    history = History()
    history.happens("hit", "menu")
    history.clock.advance(SLOT)
    history.happens("hit", "menu")
    history.clock.advance(DAY + 700)
    history.happens("miss", "menu")
    history.clock.advance(SLOT)
    history.happens("miss", "menu")
    window = history.recorder.window("menu", DAY)
    assert (window.hits, window.misses) == (0, 2)
    assert history.recorder.total("menu").hits == 2


def test_a_type_that_nobody_asked_for_has_nothing() -> None:
    """An unknown name is no error: nothing happened to it."""
    assert Recorder(ManualClock()).window("menu", 60).hits == 0
    assert Recorder(ManualClock()).total("menu").hits == 0


def test_hits_are_timed_by_samples_when_there_are_many() -> None:
    """Of a slot's hits the first thousand are timed, then one in 16, then one in 64; a quiet slot later all of them again."""
    clock = ManualClock()
    recorder = Recorder(clock)
    counts = recorder.counts("menu")
    timed, stood_for = 0, 0
    for _ in range(200_000):
        if not counts.hits & counts.mask:
            recorder.touch(clock.now)
            timed += 1
            stood_for += recorder.sampled(counts)
        counts.hits += 1
    assert timed < 2 * ALL_TIMED + 200_000 / 60
    assert stood_for == pytest.approx(200_000, rel=0.01)
    assert counts.mask == 63
    for _ in range(2):
        clock.advance(SLOT + 1)
        recorder.touch(clock.now)
    assert counts.mask == 0


def test_threads_that_count_while_one_asks() -> None:
    """Counting in two threads while a third reads windows: no reader is ever given an error."""
    clock = ManualClock()
    recorder = Recorder(clock)
    stop, errors = threading.Event(), []

    def count(name: str) -> None:
        n = 0
        while not stop.is_set():
            n += 1
            recorder.touch(clock.now)
            counts = recorder.counts(f"{name}{n % 8}")
            counts.hits += 1
            counts.took(f"op{n % 9}", 1e-6 * (n % 99 + 1))
            counts.by_error[f"E{n % 30}"] = n
            clock.advance(0.5)

    threads = [threading.Thread(target=count, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    try:
        for n in range(15):
            for name in recorder.cache_types[:20]:
                try:
                    recorder.window(name, 60 * (n + 1))
                    recorder.total(name).snapshot()
                except RuntimeError as error:
                    errors.append(error)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []


def test_a_timeline_says_what_it_holds() -> None:
    """The repr tells the types and the slots."""
    timeline = Timeline({"menu": Counts()}, 0.0)
    assert repr(timeline) == "<Timeline of 1 types, 0 marks>"
