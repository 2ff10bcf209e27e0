"""One contract for the jobs of every store: who runs, who waits, and what becomes of a run whose holder has gone."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from aiocache_aura.stores.base import Turn
from aiocache_aura.stores.jobs import SPARE, RedisJobs
from aiocache_aura.stores.replies import is_answer
from aiocache_aura.stores.rota import LEASE
from aiocache_aura.stores.scripts import CLAIM_RUN
from tests.servers import Server
from tests.stores.test_port_contract import Subject, subject

__all__ = ["subject"]

SOON = 10.0
A, B, C = (bytes([65 + n]) * 16 for n in range(3))
MINUTE = 60_000_000
LEASE_US = round(LEASE * 1e6)


class Hands:
    """A job of one store, and a tester's hands on its record."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.jobs = subject, subject.port.jobs

    async def claim(self, token: bytes, *, at_once: bool = False) -> Turn:
        return await self.jobs.claim("warm", token, at_once=at_once, timeout=SOON)

    async def renew(self, token: bytes) -> bool:
        return await self.jobs.renew("warm", token, timeout=SOON)

    async def end(self, token: bytes, due: int, *, at: int | None = None, took: int = 0) -> bool:
        return await self.jobs.end("warm", token, due, due if at is None else at, took, timeout=SOON)

    async def give_back(self, token: bytes) -> bool:
        return await self.jobs.give_back("warm", token, timeout=SOON)

    async def command(self, *command: Any) -> Any:
        assert isinstance(self.jobs, RedisJobs)
        return await self.jobs._writes.run([command], timeout=SOON)

    async def lapse(self) -> None:
        """The lease is over."""
        if isinstance(self.jobs, RedisJobs):
            key = self.jobs._key("warm")
            ((record,),) = await self.command("MGET", key)
            await self.command("SET", key, record[:32] + b"0" * 16 + record[48:])
        else:
            await self.subject.passes(LEASE)

    async def lose(self) -> None:
        if isinstance(self.jobs, RedisJobs):
            await self.command("DEL", self.jobs._key("warm"))
        else:
            self.jobs.clear()  # type: ignore[attr-defined]


@pytest.fixture
def job(subject: Subject) -> Hands:
    return Hands(subject)


async def test_the_first_claim_runs_at_once_and_others_are_told_for_how_long_it_is_held(job: Hands) -> None:
    """Where there is no record the claimer runs what is due now; another one is told who much of the lease is left."""
    mine, other = await job.claim(A), await job.claim(B)
    assert mine.kind == "run"
    assert mine.due == mine.at == mine.now
    assert mine.took == 0
    assert other.kind == "held"
    assert (other.due, other.at) == (mine.due, mine.at)
    assert 0 < other.until - other.now <= LEASE_US
    assert other.until == mine.now + LEASE_US


async def test_a_claim_may_be_made_again(job: Hands) -> None:
    """A claimer whose answer was lost claims again with the same token, and may run; its lease begins anew."""
    first = await job.claim(A)
    again = await job.claim(A)
    assert (again.kind, again.due) == ("run", first.due)
    assert again.until >= first.until


async def test_of_many_claims_one_runs(job: Hands) -> None:
    """Of 200 who claim together one runs."""
    turns = await asyncio.gather(*(job.claim(os.urandom(16)) for _ in range(200)))
    assert sorted(turn.kind for turn in turns) == ["held"] * 199 + ["run"]


async def test_an_end_says_when_the_next_run_is_due(job: Hands) -> None:
    """After an end everybody waits for the next due time and what puts it off, and knows how long the run took."""
    turn = await job.claim(A)
    assert await job.end(A, turn.due + MINUTE, at=turn.due + MINUTE + 7, took=1234567)
    for token in (A, B):
        waiting = await job.claim(token)
        assert (waiting.kind, waiting.due, waiting.at, waiting.took) == ("wait", turn.due + MINUTE, turn.due + MINUTE + 7, 1234567)


async def test_what_is_overdue_is_run_with_its_own_due_time(job: Hands) -> None:
    """A due time that has come is run, by whoever asks, as the due time that it is; not before the delay is over."""
    turn = await job.claim(A)
    assert await job.end(A, turn.now - 5, at=turn.now - 5)
    assert (await job.claim(B)).due == turn.now - 5
    assert await job.end(B, turn.now - 4, at=turn.now + MINUTE)
    assert (await job.claim(A)).kind == "wait"


async def test_a_run_before_it_is_due_keeps_what_is_due(job: Hands) -> None:
    """`at_once` claims a job that is free, not one that is held; given back, the due time is what it was."""
    turn = await job.claim(A)
    assert (await job.claim(B, at_once=True)).kind == "held"
    assert await job.end(A, turn.due + MINUTE)
    early = await job.claim(B, at_once=True)
    assert (early.kind, early.due) == ("run", turn.due + MINUTE)
    assert (await job.claim(A)).kind == "held"
    assert await job.give_back(B)
    assert (await job.claim(A)).kind == "wait"


async def test_what_is_given_back_is_run_by_another(job: Hands) -> None:
    """A run that was given back is due at once, for anybody, with the same due time."""
    turn = await job.claim(A)
    assert await job.give_back(A)
    assert not await job.give_back(A)
    taken = await job.claim(B)
    assert (taken.kind, taken.due) == ("run", turn.due)


async def test_a_holder_that_was_late_is_refused_once_another_has_taken_over(job: Hands) -> None:
    """Who takes over runs the same due time; the first one can neither renew, nor end, nor give back, now or after the second one's end."""
    turn = await job.claim(A)
    await job.lapse()
    taken = await job.claim(B)
    assert (taken.kind, taken.due) == ("run", turn.due)
    for _ in range(2):
        assert not await job.renew(A)
        assert not await job.end(A, turn.due + MINUTE)
        assert not await job.give_back(A)
        await job.end(B, turn.due + MINUTE)
    waiting = await job.claim(C)
    assert (waiting.kind, waiting.due) == ("wait", turn.due + MINUTE)


async def test_a_holder_that_was_late_goes_on_if_nobody_has_taken_over(job: Hands) -> None:
    """A lease that is over is still its holder's to renew, and to end, as long as nobody else has claimed it."""
    turn = await job.claim(A)
    await job.lapse()
    assert await job.renew(A)
    assert (await job.claim(B)).kind == "held"
    await job.lapse()
    assert await job.end(A, turn.due + MINUTE)


async def test_an_end_may_be_sent_again(job: Hands) -> None:
    """An end whose answer was lost is known again, also while another holds the job; it changes nothing the second time."""
    turn = await job.claim(A)
    assert await job.end(A, turn.now - 1)
    assert await job.end(A, turn.due + MINUTE)
    taken = await job.claim(B)
    assert (taken.kind, taken.due) == ("run", turn.now - 1)
    assert await job.end(A, turn.due + MINUTE)
    assert (await job.claim(C)).kind == "held"


async def test_a_record_that_is_lost_is_begun_anew(job: Hands) -> None:
    """Without its record a job is nobody's: who held it is refused, and who asks runs at once."""
    turn = await job.claim(A)
    await job.lose()
    assert not await job.renew(A)
    assert not await job.end(A, turn.due + MINUTE)
    assert not await job.give_back(A)
    new = await job.claim(B)
    assert new.kind == "run"
    assert new.due >= turn.due


async def test_jobs_are_told_apart_by_their_names(job: Hands) -> None:
    """What one job does is nothing to another."""
    await job.claim(A)
    assert (await job.jobs.claim("warm 2", B, timeout=SOON)).kind == "run"
    assert not await job.jobs.renew("warm 2", A, timeout=SOON)


# On a server


@pytest.fixture
async def remote(subject: Subject) -> Hands:
    return Hands(subject)


@pytest.mark.parametrize("subject", ["valkey"], indirect=True)
@pytest.mark.parametrize("garbage", [b"", b"x", b"7" * 79, b"x" * 80, b"7" * 81, b"-" * 96, b"1e3 " * 20, b"7" * 63 + b"x" + b"7" * 32])
async def test_what_is_no_record_counts_as_none(job: Hands, garbage: bytes) -> None:
    """Whatever stands in a record's place, the job runs, and the record is whole afterwards."""
    key = job.jobs._key("warm")  # type: ignore[attr-defined]
    await job.command("SET", key, garbage)
    assert not await job.renew(A)
    assert (await job.claim(A)).kind == "run"
    assert (await job.claim(B)).kind == "held"


async def test_another_kind_of_key_is_overwritten(valkey: Server, subject_of_valkey: Hands) -> None:
    """A hash in a record's place counts as none."""
    key = subject_of_valkey.jobs._key("warm")  # type: ignore[attr-defined]
    with valkey.client() as client:
        client.hset(key, "a", "b")
        assert (await subject_of_valkey.claim(A)).kind == "run"
        assert client.type(key) == b"string"


async def test_a_record_outlives_its_due_time_and_goes_by_itself(valkey: Server, subject_of_valkey: Hands) -> None:
    """A record is kept for SPARE seconds after what it is about: the lease, or the due time; never for good."""
    job = subject_of_valkey
    key = job.jobs._key("warm")  # type: ignore[attr-defined]
    with valkey.client() as client:

        def left() -> float:
            return client.pttl(key) / 1000

        turn = await job.claim(A)
        assert SPARE < left() <= SPARE + LEASE + 0.01
        client.pexpire(key, 50_000)
        assert await job.renew(A)
        assert SPARE < left() <= SPARE + LEASE + 0.01
        assert await job.end(A, turn.due + 100 * MINUTE, at=turn.due + 101 * MINUTE)
        assert SPARE + 6000 < left() <= SPARE + 6060.01
        await job.claim(B, at_once=True)
        assert await job.give_back(B)
        assert SPARE + 6000 < left() <= SPARE + 6060.01


async def test_scripts_are_sent_again_to_a_server_that_has_lost_them(valkey: Server, subject_of_valkey: Hands) -> None:
    """A server that was told to forget its scripts is told them again."""
    job = subject_of_valkey
    with valkey.client() as client:
        client.script_flush()
        turn = await job.claim(A)
        client.script_flush()
        assert await job.renew(A)
        client.script_flush()
        assert await job.end(A, turn.due + MINUTE)


@pytest.fixture
async def subject_of_valkey(valkey: Server) -> Any:
    from aiocache_aura.stores.connections import Endpoint
    from aiocache_aura.stores.lanes import LaneLink
    from tests.stores.test_port_contract import over_link

    made = over_link(LaneLink(Endpoint.from_url(valkey.url)))
    yield Hands(made)
    await made.port.aclose()


@pytest.mark.parametrize(
    "reply", [1, b"run", [], [b"run"], [b"run", 1, 2, 3, 4], [b"run", 1, 2, 3, 4, b"5"], ["run", 1, 2, 3, 4, 5], [b"run", 1, 2, 3, 4, 5, 6]]
)
def test_what_a_claim_cannot_answer_is_no_answer(reply: object) -> None:
    """A reply of another shape tells the lane that the stream is garbled."""
    command = CLAIM_RUN.run((b"k",), A, 1, 1, "")
    assert not is_answer(command, reply)
    assert is_answer(command, [b"run", 1, 2, 3, 4, 5])
