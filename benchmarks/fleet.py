"""Several processes over one server, for the benchmarks that need a fleet.

A member is a module-level coroutine function `member(url, number, line, *arguments)`, run in a process of its own. `line.send(...)` tells
the parent something, which finds it in the order of its arrival; what the member returns is the last that it tells.
All processes of one machine share `time.monotonic()`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
import traceback
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection, wait
from typing import Any

Member = Callable[..., Coroutine[Any, Any, Any]]
_SPAWN = multiprocessing.get_context("spawn")


class Fleet(AbstractContextManager["Fleet"]):
    """`with Fleet(4, member, url, ...) as fleet:`; whatever happens, no process is left behind."""

    def __init__(self, size: int, member: Member, *arguments: Any) -> None:
        self.lines: dict[int, Connection] = {}  # of those that are alive
        self.processes = []
        for number in range(size):
            ours, theirs = _SPAWN.Pipe()
            process = _SPAWN.Process(target=_run, args=(member, number, theirs, arguments), daemon=True)
            process.start()
            theirs.close()
            self.lines[number] = ours
            self.processes.append(process)

    def __exit__(self, *exc: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        for line in self.lines.values():
            line.close()

    def tell(self, message: Any) -> None:
        """Say it to every member, which finds it with `line.recv()`."""
        for line in self.lines.values():
            line.send(message)

    def hear_from_each(self) -> list[Any]:
        """The next word of each member."""
        return [_checked(line.recv()) for line in self.lines.values()]

    def hear(self, timeout: float) -> tuple[int, Any] | None:
        """(member, its word): the next word of any, None if none comes in time. A member that has died is counted out."""
        until = time.monotonic() + timeout
        while (left := until - time.monotonic()) > 0:
            ready = wait(self.lines.values(), left)
            for number, line in [(number, line) for number, line in self.lines.items() if line in ready]:
                try:
                    return number, _checked(line.recv())
                except EOFError:
                    self.lines.pop(number).close()
        return None


def _checked(word: Any) -> Any:
    if isinstance(word, _Broken):
        raise SystemExit(f"a process of the fleet failed:\n{word.trace}")
    return word


class _Broken:
    def __init__(self, trace: str) -> None:
        self.trace = trace


def _run(member: Member, number: int, line: Connection, arguments: tuple[Any, ...]) -> None:
    try:
        line.send(asyncio.run(member(number, line, *arguments)))
    except KeyboardInterrupt:
        pass
    except BaseException:
        line.send(_Broken(traceback.format_exc()))
