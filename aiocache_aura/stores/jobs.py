"""Jobs in Redis: each due time of a job is run by one process of the fleet, on time, whatever dies, pauses or is lost on the way.

What a job's record is on the server, `P!j:JOB`, and what changes it; times are the server's, so processes' clocks do not matter:

    nothing --claim--> held: due now             (the first run, and the one after the record was lost)
    waiting --claim, once it is due--> held      (before: the claimer is told when to ask again)
    held --renew, each second of a lease of three--> held
    held --end--> waiting for the next due time  (the first one of the grid that is not over: what a long run missed is left out)
    held --give back--> waiting, for the same due time: another process goes on
    held, its lease over --claim--> held by another, for the same due time
    any of these --nobody has the job any more, FLUSHALL, eviction--> nothing

A holder is known by its token: 16 random bytes, made for one attempt to run and used until the fate of that is known.

What crosses, and why it is safe
- The answer to a claim is lost: it is made again with the same token, and is answered with "run" again. If its maker has gone, the lease
  ends.
- The answer to a claim comes late, when another may have run meanwhile, or may be about to: what was asked a third of `LEASE` ago is not
  used. The claim is made again with the same token, which begins the lease anew if it is still held.
- The holder dies: its lease ends, and whoever asks next runs the same due time. Who was told "held" asks at the end of the lease, or when
  the next due time has come, whichever is sooner.
- The holder pauses beyond its lease, and goes on: its renewal and its end are refused, since the token is another one, or none. It cancels
  its run. What it did until it heard of it, it did beside the other; no lease can do more.
- The holder was late, but nobody has taken over: the token is still there, and its renewal or end counts.
- The answer to an end is lost: it is sent again, and known by its token, which the record keeps until the next run has ended. Not by the
  due time that it sets: who took over sets the same.
- The record is lost while nobody runs: whoever asks first runs at once. Waiting processes ask every 15 seconds or so, so somebody does.
- The record is lost in mid-run: as if the holder had paused. The new run begins beside the old one, which ends with its next renewal.
- A run is wanted before it is due: it is claimed as any other, so it runs beside none; what is due next stays due.
- The server does not answer: nobody runs, for what they would fill is not there. Who runs already goes on for a lease's time.

Invariants (the model is tests/model/models/jobs.py, with the shortcuts that break them)
- No two runs of one due time begin, unless the first one's process died, was paused or cancelled, or the record was lost.
- One runner of a due time is told that it has ended it; nobody who was not paused, and whose record was not lost, is refused.
- None begins before it is due, and what is due is run as long as a process lives that has the job.
- A record outlives its due time by `SPARE`, which is long enough for a fleet to be restarted, and then goes by itself.
"""

from __future__ import annotations

from typing import Any, Final

from aiocache_aura.stores.base import Command, Turn
from aiocache_aura.stores.requests import Writes
from aiocache_aura.stores.rota import LEASE
from aiocache_aura.stores.scripts import CLAIM_RUN, END_RUN, RENEW_RUN, life_ms

SPARE: Final = 3600.0  # seconds that a record is kept beyond its due time
_LEASE, _SPARE = round(LEASE * 1e6), life_ms(SPARE)


class RedisJobs:
    """The jobs under one prefix of a server."""

    __slots__ = ("_prefix", "_writes")

    def __init__(self, writes: Writes, prefix: bytes) -> None:
        self._writes, self._prefix = writes, prefix

    def __repr__(self) -> str:
        return f"<RedisJobs {self._prefix.decode()!r}>"

    async def claim(self, job: str, token: bytes, *, at_once: bool = False, timeout: float) -> Turn:
        command = CLAIM_RUN.run((self._key(job),), token, _LEASE, _SPARE, "at once" if at_once else "")
        kind, due, at, now, until, took = await self._ask(command, timeout)
        return Turn(kind.decode(), due, at, now, until, took)

    async def renew(self, job: str, token: bytes, *, timeout: float) -> bool:
        return bool(await self._ask(RENEW_RUN.run((self._key(job),), token, _LEASE, _SPARE), timeout))

    async def end(self, job: str, token: bytes, due: int, at: int, took: int, *, timeout: float) -> bool:
        return bool(await self._ask(END_RUN.run((self._key(job),), token, _SPARE, due, at, took), timeout))

    async def give_back(self, job: str, token: bytes, *, timeout: float) -> bool:
        return bool(await self._ask(END_RUN.run((self._key(job),), token, _SPARE), timeout))

    async def _ask(self, command: Command, timeout: float) -> Any:
        """Safe to write again: each is the same the second time, or finds that it has been done."""
        return (await self._writes.run([command], timeout=timeout, repeatable=True, patient=True))[0]

    def _key(self, job: str) -> bytes:
        return self._prefix + job.encode()
