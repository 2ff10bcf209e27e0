"""Requests over the write lane: groups of commands whose answers are looked at, with scripts made known where they are not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from aiocache_aura.resilience.single_flight import Tick
from aiocache_aura.stores.base import Command, FutureHandler, Lane
from aiocache_aura.stores.replies import code_of, is_answer, refused
from aiocache_aura.stores.scripts import BY_SHA1, Script


class _Answer(FutureHandler):
    """Handler of one write: takes the tick while its answer is parsed, then lets the caller go on."""

    __slots__ = ("_commands", "_tick", "_written")

    def __init__(self, commands: Sequence[Command], tick: Tick, written: Callable[[], None] | None) -> None:
        super().__init__()
        self._commands, self._tick, self._written = commands, tick, written

    def written(self) -> None:
        if self._written is not None:
            self._written()

    def deliver(self, replies: list[object]) -> bool:
        self._tick.take()
        for command, reply in zip(self._commands, replies, strict=False):
            if not is_answer(command, reply):
                self.fail(refused(command, reply))
                return False
        return super().deliver(replies)


class Writes:
    """Groups of commands over the write lane, with scripts made known to the server where it has not got them."""

    __slots__ = ("_lane", "_tick")

    def __init__(self, lane: Lane, tick: Tick) -> None:
        self._lane, self._tick = lane, tick

    async def run(
        self,
        commands: Sequence[Command],
        *,
        timeout: float,
        repeatable: bool = False,
        patient: bool = False,
        last: int = 0,
        written: Callable[[], None] | None = None,
    ) -> list[Any]:
        """The replies, none of them an error. The `last` so many commands look at what the others did: they are asked again behind scripts
        that had to be sent again."""
        deadline = asyncio.get_running_loop().time() + timeout
        replies = await self._ask(commands, timeout, repeatable, patient, written)
        failed = [at for at, reply in enumerate(replies) if isinstance(reply, Exception)]
        if not failed:
            return replies
        missing = [at for at in failed if code_of(replies[at]) == "NOSCRIPT"]
        if missing:
            again = [*missing, *range(len(commands) - last, len(commands))]
            answers = await self._with_scripts([commands[at] for at in again], deadline, repeatable, written)
            for at, answer in zip(again, answers, strict=True):
                replies[at] = answer
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, Exception):
                raise refused(command, reply)
        return replies

    async def _with_scripts(
        self, commands: Sequence[Command], deadline: float, repeatable: bool, written: Callable[[], None] | None
    ) -> list[Any]:
        """The replies once the server has been told the scripts: loaded for good, or run from their source where this user may not load."""
        time = asyncio.get_running_loop().time
        scripts = dict.fromkeys(BY_SHA1[str(command[1])] for command in commands if command[0] == "EVALSHA")
        load = [script.load() for script in scripts]
        answers = await self._ask([*load, *commands], max(deadline - time(), 0.0), repeatable, False, written)
        if any(isinstance(answer, Exception) and code_of(answer) == "NOPERM" for answer in answers[: len(load)]):
            return await self._ask(spelt_out(commands), max(deadline - time(), 0.0), repeatable, False, written)
        return answers[len(load) :]

    async def _ask(
        self, commands: Sequence[Command], timeout: float, repeatable: bool, patient: bool, written: Callable[[], None] | None
    ) -> list[Any]:
        answer = _Answer(commands, self._tick, written)
        self._lane.put(commands, answer, timeout=timeout, repeatable=repeatable, patient=patient)
        replies = await answer.future
        if len(replies) != len(commands):
            raise refused(commands[0], replies)
        return replies


def spelt_out(commands: Sequence[Command]) -> list[Command]:
    """With the source of each script at its first use, which makes it known for the others."""
    known: set[Script] = set()
    spelt: list[Command] = []
    for command in commands:
        script = BY_SHA1.get(str(command[1])) if command[0] == "EVALSHA" else None
        spelt.append(command if script is None or script in known else ("EVAL", script.source, *command[2:]))
        if script is not None:
            known.add(script)
    return spelt
