"""How jobs end, in virtual time: whoever wants a run is told, whenever the end comes, and no failure goes unheard."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from aiocache_aura.errors import CacheError
from aiocache_aura.jobs import Job, Run
from aiocache_aura.stores.rota import LEASE, Rota
from tests.test_jobs import MINUTE, Member, Work, manager_here, seconds_now, virtually


class Far:
    """A rota behind a network: each request takes so long, half of it before it is executed."""

    def __init__(self, takes: float) -> None:
        self.rota, self.takes = Rota(asyncio.get_running_loop().time), takes

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def ask(*args: Any, **options: Any) -> Any:
            await asyncio.sleep(self.takes / 2)
            answer = await getattr(self.rota, name)(*args, **options)
            await asyncio.sleep(self.takes / 2)
            return answer

        return ask


def far_job(work: Callable[[Run], Awaitable[Any]], takes: float = 0.2, **options: Any) -> Job:
    """A job whose every request takes so long."""
    far = Far(takes)
    member = Member(far.rota, random.Random(0))
    member.jobs = far  # type: ignore[assignment]
    return Job(work, MINUTE, name="j", manager=member, **options)  # type: ignore[arg-type]


def unheard() -> list[str]:
    """What the loop has to tell because nobody else did, from now on."""
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["message"]))
    return told


# Everybody is told


@pytest.mark.parametrize("how", ["cancel", "aclose"])
def test_whenever_a_job_ends_whoever_wants_a_run_is_told(how):
    """Wanted at every moment round the end, which comes at every moment of a run, each run ends: with its result, or with CacheError."""

    async def life(moment: float) -> None:
        async def work(run: Run) -> str:
            try:
                await asyncio.sleep(0.3)
            finally:
                await asyncio.sleep(0.3)
            return "a result"

        async def on_report(report: str) -> None:
            await asyncio.sleep(0.3)

        async def want(after: float) -> str:
            await asyncio.sleep(after)
            return await job.run_now()

        job = far_job(work, on_report=on_report)
        wanted = [asyncio.create_task(want(n * 0.07)) for n in range(90) for _ in range(2)]
        await asyncio.sleep(moment)
        if how == "cancel":
            await job.cancel()
        else:
            job._task.cancel()  # as the manager does that owns it
            await asyncio.wait({job._task})
        for _ in range(5):
            await asyncio.sleep(0)
        begun = int(seconds_now() / 0.07) * 2
        left = [n for n, one in enumerate(wanted[:begun]) if not one.done()]
        for one in wanted if left else ():
            one.cancel()
        said = await asyncio.gather(*wanted, return_exceptions=True)
        assert not left, f"ended at {moment}, and nobody told those of {[n // 2 * 0.07 for n in left]}"
        assert all(one == "a result" or (isinstance(one, CacheError) and "has ended" in str(one)) for one in said), (moment, said)

    for n in range(60):
        virtually(lambda n=n: life(n * 0.05 + 0.001))


def test_a_job_that_ends_before_it_has_begun_tells_as_well():
    """A job that is ended in the moment of its making has had no chance to tell anybody; whoever wants a run hears of it all the same."""

    async def life() -> None:
        async with manager_here() as manager:
            job = Job(Work(), MINUTE, name="j", manager=manager)
            asking = job.run_now()
            waits = asking.send(None)  # it waits before the job's task has begun
            await manager.aclose()
            assert waits.done()
            with pytest.raises(CacheError, match="has ended"):
                asking.send(None)

    virtually(life)


@pytest.mark.parametrize("how", ["cancel", "aclose", "lost"])
def test_work_that_wants_a_run_as_it_is_ended_is_told(how):
    """What the work does last may want a run: the job, which waits for the work, does not have that wait for the job."""

    async def life() -> None:
        said = []

        async def work(run: Run) -> None:
            try:
                await asyncio.sleep(100)
            finally:
                try:
                    await job.run_now()
                except CacheError as error:
                    said.append(str(error))

        job = far_job(work)
        await asyncio.sleep(0.5)
        if how == "lost":
            job._manager.jobs.rota.clear()  # type: ignore[attr-defined]
            await asyncio.sleep(LEASE)
        ended = asyncio.create_task(job.cancel() if how == "cancel" else _cancelled(job))
        await asyncio.wait({ended}, timeout=50)
        was_done = ended.done()
        for one in asyncio.all_tasks() - {asyncio.current_task()}:
            one.cancel()
        await asyncio.sleep(1)
        assert was_done
        assert said == ["job 'j' has ended"] or said == ["job 'j' has ended; schedule it again"]

    virtually(life)


async def _cancelled(job: Job) -> None:
    job._task.cancel()
    await asyncio.wait({job._task})


# on_report


def test_who_is_told_of_a_report_cannot_keep_the_job_alive():
    """An on_report that takes no notice of its cancellation is waited for, and then the job has ended."""

    async def life() -> None:
        heard = []

        async def on_report(report: str) -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(10)
            await asyncio.sleep(2)
            heard.append(seconds_now())

        async with manager_here() as manager:
            work = Work()
            job = Job(work, MINUTE, name="j", manager=manager, on_report=on_report)
            await asyncio.sleep(1)
            async with asyncio.timeout(200):
                await job.cancel()
            assert seconds_now() == pytest.approx(3, abs=0.01)
            assert heard == pytest.approx([3], abs=0.01)
            assert len(work.begun) == 1

    virtually(life)


def test_who_is_told_of_a_report_may_come_upon_a_cancelled_task(caplog):
    """An on_report that awaits what somebody has cancelled ends itself, and not the job."""

    async def life() -> None:
        async def on_report(report: str) -> None:
            other = asyncio.create_task(asyncio.sleep(10))
            asyncio.get_running_loop().call_later(1, other.cancel)
            await other

        async with manager_here() as manager:
            work = Work()
            Job(work, MINUTE, name="j", manager=manager, on_report=on_report)
            await asyncio.sleep(150)
            assert work.begun == pytest.approx([0, 60, 120], abs=0.01)

    virtually(life)
    assert "on_report failed: it was cancelled" in caplog.text


def test_a_run_that_counts_is_reported_whenever_the_job_ends():
    """A plain on_report is called for each run that counts, also if the job is cancelled in that very moment."""

    async def life(ticks: int) -> int:
        heard: list[str] = []
        over = asyncio.Event()

        async def work(run: Run) -> str:
            over.set()
            return "a result"

        job = far_job(work, takes=0.0, on_report=heard.append)
        await over.wait()
        for _ in range(ticks):
            await asyncio.sleep(0)
        await job.cancel()
        assert len(heard) == job.runs, ticks
        return job.runs

    assert [virtually(lambda ticks=ticks: life(ticks)) for ticks in (0, 30)] == [0, 1]
    for ticks in range(30):
        virtually(lambda ticks=ticks: life(ticks))


def test_who_is_told_of_a_report_is_heard_as_the_job_ends(caplog):
    """What an on_report raises while it is cancelled is logged by the job."""

    async def life() -> None:
        told = unheard()

        async def on_report(report: str) -> None:
            try:
                await asyncio.sleep(10)
            finally:
                raise ZeroDivisionError("no tables")

        job = far_job(Work(), on_report=on_report)
        await asyncio.sleep(1)
        await job.cancel()
        del job
        gc.collect()
        assert told == []

    virtually(life)
    assert "on_report failed: no tables" in caplog.text


# Ended twice


def test_a_run_has_ended_when_the_job_has_however_often_that_is_cancelled():
    """Whoever cancels a job waits until its work has ended, also if somebody else cancels it meanwhile; the run is given back."""

    async def life() -> None:
        ended = []

        async def work(run: Run) -> None:
            try:
                await asyncio.sleep(100)
            finally:
                await asyncio.sleep(2)
                ended.append(seconds_now())

        async with manager_here() as manager:
            job = Job(work, MINUTE, name="j", manager=manager)
            await asyncio.sleep(1)
            enders = []
            for how in (job.cancel, manager.aclose, job.cancel):
                enders.append(asyncio.create_task(how()))
                await asyncio.sleep(0.5)
            await asyncio.wait(enders, return_when=asyncio.FIRST_COMPLETED)
            assert ended == pytest.approx([3], abs=0.01)
            await asyncio.gather(*enders)

    virtually(life)


# Nothing is left to the loop to tell


@pytest.mark.parametrize("when", ["working", "telling", "reporting"])
def test_work_that_fails_as_the_job_ends_is_heard(when, caplog):
    """What the work raises while it is cancelled, or raised just before the store could be told, is logged by the job."""

    async def life() -> None:
        told = unheard()

        async def work(run: Run) -> None:
            try:
                await asyncio.sleep(100 if when == "working" else 0.1)
            finally:
                raise ZeroDivisionError("no tables")

        job = far_job(work)
        await asyncio.sleep({"working": 0.5, "telling": 0.35, "reporting": 0.6}[when])
        await job.cancel()
        assert job.runs == (1 if when == "reporting" else 0)
        del job
        gc.collect()
        assert told == []

    virtually(life)
    assert caplog.text.count("ZeroDivisionError: no tables\n") == 2  # in its line, and in the traceback


@pytest.mark.parametrize("when", ["working", "telling"])
def test_work_that_fails_as_its_lease_is_lost_is_heard(when, caplog):
    """A run that does not count because another has taken over may have failed: that is logged, too."""

    async def life() -> None:
        told = unheard()

        async def work(run: Run) -> None:
            try:
                await asyncio.sleep(100 if when == "working" else 0.5)
            finally:
                raise ZeroDivisionError("no tables")

        job = far_job(work)
        await asyncio.sleep(0.4)
        job._manager.jobs.rota.clear()  # type: ignore[attr-defined]
        await asyncio.sleep(LEASE - 1.5)
        await job.cancel()
        del job
        gc.collect()
        assert told == []

    virtually(life)
    assert "its lease was lost" in caplog.text
    assert "failed in a run that does not count: ZeroDivisionError: no tables" in caplog.text


@pytest.mark.parametrize("outcome", ["failed", "ended"])
def test_whoever_has_left_need_not_hear(outcome):
    """A run_now that was thrown away while it waited leaves no error behind that nobody has retrieved."""

    async def life() -> None:
        told = unheard()
        work = Work(takes=1)
        job = far_job(work)
        await asyncio.sleep(5)
        work.error = KeyError("gone")
        asking = job.run_now()
        asking.send(None)
        await asyncio.sleep(0.5)
        asking.close()
        if outcome == "failed":
            await asyncio.sleep(2)
            assert isinstance(job.last_error, KeyError)
        await job.cancel()
        del job, work, asking
        gc.collect()
        assert told == []

    virtually(life)
