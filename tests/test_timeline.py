"""Windows over counters, against a list of all that happened and when."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiocache_aura.recorder import ALL_TIMED, Recorder
from aiocache_aura.stats import Counts
from aiocache_aura.timeline import DAY, SLOT, Timeline
from tests.clocks import ManualClock

TYPES = ["menu", "api"]

# (seconds since the last happening, what: "hit", "miss", "load" or a question, of which type)
steps = st.lists(
    st.tuples(
        st.one_of(st.floats(0, 3), st.floats(3, 200), st.floats(200, 9000)),
        st.sampled_from(["hit", "hit", "miss", "load", "ask"]),
        st.sampled_from(TYPES),
    ),
    min_size=1,
    max_size=120,
)


def age_of_slot(age: float) -> float:
    """How far a window's figures may reach back too far at that age."""
    return SLOT if age <= 500 else 60.0 + SLOT if age <= 4000 else 600.0 + 60.0


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
            counts.took("get", 0.001)
        else:
            counts.loads += 1
            counts.took("load", 0.2)
        self.happened.append((self.clock.now, what, name))

    def number(self, what: str, name: str, since: float) -> int:
        return sum(at > since and (kind, of) == (what, name) for at, kind, of in self.happened)


def check(history: History, seconds: float) -> None:
    now = history.clock.now
    for name in TYPES:
        window = history.recorder.window(name, seconds)
        for what, told in (("hit", window.hits), ("miss", window.misses), ("load", window.loads)):
            least = history.number(what, name, now - seconds)
            most = history.number(what, name, now - seconds - age_of_slot(seconds) - 1e-6)
            assert least <= told <= most, (what, name, seconds)
        assert (window.times["load"].count if "load" in window.times else 0) == window.loads
        assert (window.times["get"].count if "get" in window.times else 0) == window.misses


@given(steps)
def test_a_window_tells_what_happened_in_it(taken) -> None:
    """Whatever happens, pauses and all, a window has all of its time, and of what came before at most one slot of that age."""
    history = History()
    for passed, what, name in taken:
        history.clock.advance(passed)
        if what == "ask":
            for seconds in (60.0, 300.0, 3600.0):
                check(history, seconds)
        else:
            history.happens(what, name)
    for seconds in (60.0, 600.0, 3600.0, 6 * 3600.0):
        check(history, seconds)


def test_a_busy_day_is_kept_in_few_slots() -> None:
    """Something each second for more than a day: fewer than 310 slots, and the last day's figures but for one slot."""
    history = History()
    for _ in range(int(DAY) + 7200):
        history.clock.advance(1.0)
        history.recorder.touch(history.clock.now)
        history.recorder.counts("menu").hits += 1
    assert len(history.recorder._timeline) < 310
    assert DAY - 1 <= history.recorder.window("menu", DAY).hits <= DAY + 660
    assert 59 <= history.recorder.window("menu", 60).hits <= 60 + SLOT + 1
    assert 3599 <= history.recorder.window("menu", 3600).hits <= 3600 + 60 + SLOT + 1


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
    assert repr(timeline) == "<Timeline of 1 types, 0 slots>"
