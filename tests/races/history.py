"""What happened: what each process writes down, one line an event, and what is made of the lines afterwards.

A line is one write(2): it is there once the call has returned, even if the process is killed in the next moment. What licenses others to do
something (a load, an invalidation, a set) is written down before it is done. Times are of CLOCK_MONOTONIC, in nanoseconds: one clock for
all processes of a machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

SECOND = 1_000_000_000


@dataclass(slots=True)
class Read:
    """One key that one caller asked for.

    Outcomes: ok, miss, failed (the load's error), left (cancelled by us), late (it still waits). What must not be: cancelled (by nobody),
    unanswered, broke (another error), wrong (another key's value, or one that there was not yet).
    """

    process: str
    id: int
    key: int
    began: int
    ended: int
    version: int | None
    how: str = "load"
    outcome: str = "ok"
    detail: str = ""


@dataclass(slots=True)
class Load:
    """One call of the loader. `asked` is when the read began whose call runs it; `ended` None: still running, or its process was killed."""

    process: str
    id: int
    key: int
    begun: int
    version: int
    asked: int
    read: int = -1
    ended: int | None = None
    outcome: str = "open"


@dataclass(slots=True)
class Act:
    """An invalidation, delete or set: `floors` are the versions, by key, of which nothing older may be read once it has returned.

    `delivered`: True; False if it has done nothing, for sure; None if nobody knows.
    """

    process: str
    id: int
    kind: str
    what: str
    issued: int
    floors: dict[int, int]
    returned: int | None = None
    delivered: bool | None = None

    @property
    def is_write(self) -> bool:
        """Whether it puts a value there: that of its floor."""
        return self.kind in ("set", "add")


@dataclass(slots=True)
class Life:
    """What was done to a process: started, killed, paused, continued, ended, lost (it did not end by itself)."""

    process: str
    what: str
    at: int


@dataclass(slots=True)
class End:
    """What a process found when it had closed its manager."""

    process: str
    at: int
    left: dict[str, Any]


@dataclass(slots=True)
class History:
    reads: list[Read] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    acts: list[Act] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)

    def until(self, at: int) -> History:
        """The reads and loads of before, and everything that may license them: what can be judged while it all goes on."""
        reads = [read for read in self.reads if read.ended < at]
        return History(reads, [load for load in self.loads if load.begun < at], self.acts, self.lives, self.ends)


class Log:
    """Where a process writes down what it does."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *event: Any) -> None:
        os.write(self._file, orjson.dumps(event) + b"\n")

    def close(self) -> None:
        os.close(self._file)


def read_logs(logs: Iterable[tuple[str, Path]], lives: Iterable[Life] = ()) -> History:
    """The history in these logs of processes. A last line that is torn was never finished, and counts as not written."""
    history = History(lives=list(lives))
    for process, path in logs:
        if path.exists():
            _add(history, process, _events(path))
    history.reads.sort(key=lambda read: read.ended)
    history.loads.sort(key=lambda load: load.begun)
    history.acts.sort(key=lambda act: act.issued)
    return history


def _events(path: Path) -> Iterator[list[Any]]:
    lines = path.read_bytes().split(b"\n")
    return map(orjson.loads, lines[:-1])


def _add(history: History, process: str, events: Iterator[list[Any]]) -> None:
    loads: dict[int, Load] = {}
    acts: dict[int, Act] = {}
    for event in events:
        match event[0]:
            case "read":
                history.reads.append(Read(process, *event[1:]))
            case "load":
                load = loads[event[1]] = Load(process, *event[1:])
                history.loads.append(load)
            case "loaded":
                loads[event[1]].ended, loads[event[1]].outcome = event[2], event[3]
            case "act":
                act = acts[event[1]] = Act(process, *event[1:5], floors=dict(zip(event[5], event[6], strict=True)))
                history.acts.append(act)
            case "acted":
                acts[event[1]].returned, acts[event[1]].delivered = event[2], event[3]
            case "end":
                history.ends.append(End(process, event[1], event[2]))
