"""Scheduled warming by real processes over a real server: each due time is run once, on time, whatever dies, pauses or is lost.

Times are the server's. `SLACK` is what a busy machine may add to anything; the rules are tested in virtual time, in test_jobs.py.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aiocache_aura.jobs import POLL
from aiocache_aura.stores.rota import LEASE
from tests.servers import Server

ROOT = Path(__file__).parents[1]
PROCESSES = 4
INTERVAL = 1.0  # seconds
SLACK = 0.9
PATIENCE = 60.0  # seconds for what must come; it comes in a few


@dataclass(frozen=True, slots=True)
class Event:
    """What a process has told: a run is "begun", then "ended" or "cancelled", and "counted"; of which due time, and when."""

    process: int
    what: str
    due: float
    time: float
    length: str = ""  # of a run that is begun: "short" or "long"
    runs: int = 0  # of a process that is "closed"


class Child:
    """A process of the fleet, and a thread that hears what it tells."""

    def __init__(self, number: int, fleet: Fleet, url: str, interval: float) -> None:
        self.number, self._fleet = number, fleet
        command = [sys.executable, "-m", "tests.fleet_worker", url, repr(interval)]
        self.popen = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._ear = threading.Thread(target=self._hear)
        self._ear.start()

    def _hear(self) -> None:
        assert self.popen.stdout is not None
        for line in iter(self.popen.stdout.readline, b""):
            self._fleet.add(Event(self.number, **json.loads(line)))

    def say(self, word: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(f"{word}\n".encode())

    def leave(self) -> None:
        """Have it end by itself."""
        assert self.popen.stdin is not None
        self.popen.stdin.close()

    def end(self) -> None:
        """Whatever it is doing, paused or not."""
        self.popen.kill()
        self.popen.wait()
        self._ear.join()
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()


class Fleet:
    """Processes with the same schedule, and what they have told."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.children: list[Child] = []
        self._events: list[Event] = []
        self._heard = threading.Condition()

    def start(self, interval: float = INTERVAL) -> None:
        """Have them all ready, then have them schedule at the same time."""
        self.prepare(interval)
        self.say("go", self.children)

    def prepare(self, interval: float) -> None:
        for number in range(PROCESSES):
            self.children.append(Child(number, self, self._server.url, interval))
        self.wait("all are ready", lambda: len(self.of("ready")) == PROCESSES)

    def add(self, event: Event) -> None:
        with self._heard:
            self._events.append(event)
            self._heard.notify_all()

    def of(self, what: str, after: float = 0.0) -> list[Event]:
        """What was told of this kind, later than `after`, in the order of the server's clock."""
        with self._heard:
            return sorted((one for one in self._events if one.what == what and one.time > after), key=lambda one: one.time)

    def wait(self, what: str, is_so: Callable[[], Any], patience: float = PATIENCE) -> None:
        with self._heard:
            assert self._heard.wait_for(is_so, patience), f"never: {what}; {self.told()}"

    def say(self, word: str, children: list[Child]) -> None:
        for child in children:
            child.say(word)

    def told(self) -> str:
        with self._heard:
            return "\n".join(map(str, sorted(self._events, key=lambda one: one.time)))

    def long_run(self) -> tuple[Event, Child]:
        """A run that does not end by itself, and who runs it; the others' next ones are short again."""
        self.say("long", self.children)
        self.wait("a long run", self._long)
        (begun,) = self._long()
        runner = self.children[begun.process]
        self.say("short", [child for child in self.children if child is not runner])
        return begun, runner

    def _long(self) -> list[Event]:
        return [one for one in self.of("begun") if one.length == "long"]

    def now(self) -> float:
        with self._server.client() as client:
            seconds, microseconds = client.time()
        return float(seconds + microseconds / 1e6)

    def runs_after(self, event: Event, count: int) -> list[Event]:
        """The first so many runs of later due times than that."""
        self.wait(f"{count} runs after {event}", lambda: len([one for one in self.of("counted") if one.due > event.due]) >= count)
        last = sorted({one.due for one in self.of("counted") if one.due > event.due})[count - 1]
        return [one for one in self.of("begun") if event.due < one.due <= last]

    def leave(self) -> None:
        """All but who was killed end by themselves, without an error; each says that it has done as many runs as it has told of."""
        living = [child for child in self.children if child.popen.returncode is None]
        for child in living:
            child.leave()
        assert [child.popen.wait(PATIENCE) for child in living] == [0] * len(living), self.told()
        self.wait("all have closed", lambda: len(self.of("closed")) == len(living))
        counted = Counter(one.process for one in self.of("counted"))
        assert {one.process: one.runs for one in self.of("closed")} == {child.number: counted[child.number] for child in living}

    def end(self) -> None:
        for child in self.children:
            child.end()


@pytest.fixture
def fleet(valkey: Server) -> Iterator[Fleet]:
    fleet = Fleet(valkey)
    try:
        yield fleet
    finally:
        fleet.end()


def check_runs(runs: list[Event], first: float, fleet: Fleet) -> None:
    """Each due time from `first` on was begun once, in its time."""
    dues = [round(one.due - first, 6) for one in runs]
    assert dues == [n * INTERVAL for n in range(len(runs))], (dues, fleet.told())
    late = [one.time - one.due for one in runs]
    assert all(0 <= one <= SLACK for one in late), (late, fleet.told())


def test_each_due_time_is_run_by_one_process(fleet: Fleet):
    """Four processes that begin at once run eight due times once each, on time, and count each of them once."""
    fleet.start()
    fleet.wait("eight runs", lambda: len(fleet.of("counted")) >= 8)
    runs = fleet.of("begun")[:8]
    check_runs(runs, runs[0].due, fleet)
    fleet.leave()
    counted = Counter(one.due for one in fleet.of("counted"))
    assert set(counted.values()) == {1}
    assert [counted[one.due] for one in runs] == [1] * 8


def test_the_run_of_a_killed_process_is_taken_over(fleet: Fleet):
    """What a process ran when it was killed is run by another one once its lease is over, and not before; then the grid goes on."""
    fleet.start()
    fleet.wait("a run", lambda: fleet.of("counted"))
    killed, runner = fleet.long_run()
    runner.popen.kill()
    runner.popen.wait()
    taken = check_takeover(fleet, killed, fleet.now())
    runs = fleet.runs_after(killed, 2)
    check_next(runs, taken, fleet)
    fleet.leave()
    assert Counter(one.due for one in fleet.of("counted")).most_common(1)[0][1] == 1
    assert not [one for one in fleet.of("counted") if one.process == killed.process and one.due == killed.due]


def test_a_process_that_was_paused_beyond_its_lease_ends_its_run(fleet: Fleet):
    """A runner that goes on after its lease was taken over is cancelled and does not count; no due time is run twice after that."""
    fleet.start()
    fleet.wait("a run", lambda: fleet.of("counted"))
    paused, runner = fleet.long_run()
    runner.popen.send_signal(signal.SIGSTOP)
    runner.say("short")
    taken = check_takeover(fleet, paused, fleet.now())
    fleet.wait("a run after that", lambda: [one for one in fleet.of("counted") if one.due > paused.due])
    assert not [one for one in fleet.of("cancelled") if one.process == paused.process]
    continued = fleet.now()
    runner.popen.send_signal(signal.SIGCONT)
    fleet.wait("the paused run is cancelled", lambda: fleet.of("cancelled"))
    (cancelled,) = fleet.of("cancelled")
    assert (cancelled.process, cancelled.due) == (paused.process, paused.due)
    assert cancelled.time - continued <= SLACK + 1.0
    last = fleet.of("counted")[-1]
    runs = fleet.runs_after(last, 2)
    check_next([one for one in fleet.of("begun") if paused.due < one.due <= runs[-1].due], taken, fleet)
    fleet.leave()
    counted = Counter(one.due for one in fleet.of("counted"))
    assert set(counted.values()) == {1}, fleet.told()
    assert [one.process for one in fleet.of("counted") if one.due == paused.due] == [taken.process]


def check_takeover(fleet: Fleet, begun: Event, stopped: float) -> Event:
    """Another process runs the same due time, once, when the lease is over of who began it and was stopped after that. That run."""
    fleet.wait("it is taken over", lambda: [one for one in fleet.of("counted") if one.due == begun.due])
    first, *others = [one for one in fleet.of("begun") if one.due == begun.due]
    assert first == begun
    assert len(others) == 1, fleet.told()
    assert others[0].process != begun.process
    assert begun.due + LEASE <= others[0].time <= stopped + LEASE + SLACK, fleet.told()
    return others[0]


def check_next(runs: list[Event], taken: Event, fleet: Fleet) -> None:
    """After a run that was taken over, the first due time that is not over then, and each one after it, are run once, in their time."""
    (ended,) = [one for one in fleet.of("ended") if one.due == taken.due]
    missed = (ended.time - taken.due) // INTERVAL
    steps = round((runs[0].due - taken.due) / INTERVAL, 6)
    assert steps in (missed + 1, missed + 2), (steps, missed, fleet.told())  # the second one if a due time came as it ended
    check_runs(runs, taken.due + steps * INTERVAL, fleet)


def test_after_the_server_has_lost_everything_it_is_run_within_a_poll(fleet: Fleet, valkey: Server):
    """A job of an hour, whose record is lost, is run anew before each process has waited for longer than POLL; by one, once."""
    fleet.prepare(interval=3600.0)
    fleet.say("go", fleet.children[:1])
    fleet.wait("the first run", lambda: fleet.of("counted"))
    fleet.say("go", fleet.children[1:])  # nobody has been told that a run goes on, and asks when that is to have ended
    fleet.wait("all are waiting", lambda: len(fleet.of("scheduled")) == PROCESSES)
    flushed = fleet.now()
    with valkey.client() as client:
        client.flushall()
    fleet.wait("a second run", lambda: len(fleet.of("counted")) > 1, POLL + SLACK)
    first, second = fleet.of("begun")[:2]
    assert 0 <= second.time - flushed <= POLL + SLACK
    assert first.due < flushed <= second.due <= second.time <= second.due + SLACK
    fleet.leave()
    assert len(fleet.of("begun")) == len(fleet.of("counted")) == 2, fleet.told()
