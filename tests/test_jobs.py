"""Jobs in virtual time: when they run, what becomes of failures, and that a fleet runs each due time once whatever its network does.

Time is the loop's (`tests.leased.VirtualLoop`): an hour takes milliseconds. A `Member` is one process of a fleet over one rota: its
requests may be late, lost before they are executed or after, and it may die or be paused. Real processes over a real server are in
tests/test_fleet_jobs.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aiocache_aura import BackendError, CacheManager, CachePolicy, ConfigurationError, current_tenant, tenant_scope
from aiocache_aura.cache_warmer import CacheWarmer, schedule_cache_warming
from aiocache_aura.context import identity
from aiocache_aura.errors import CacheError
from aiocache_aura.jobs import PATIENCE, PAUSE_MOST, POLL, RENEWED_EVERY, Job, Run
from aiocache_aura.schedules import Schedule, at
from aiocache_aura.scheduling import MARGIN
from aiocache_aura.stores.rota import LEASE, Rota
from tests.leased import VirtualLoop
from tests.servers import Server
from tests.steps import soon

START = 1_000_000.0  # when a virtual loop begins
MINUTE = Schedule(interval=60)


def virtually(life: Callable[[], Awaitable[Any]]) -> Any:
    """Run it in virtual time; nothing may be left at its end."""

    async def whole() -> Any:
        result = await life()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        return result

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(whole())  # type: ignore[arg-type]


def manager_here() -> CacheManager:
    """A manager over memory, by the virtual loop's clock."""
    return CacheManager(clock=asyncio.get_running_loop().clock)  # type: ignore[attr-defined]


def seconds_now() -> float:
    return asyncio.get_running_loop().time() - START


class Work:
    """Work that takes so long, and remembers when it was done and for which due time."""

    def __init__(self, takes: float = 0.0) -> None:
        self.takes = takes
        self.begun: list[float] = []
        self.ended: list[float] = []
        self.runs: list[Run] = []
        self.cancelled = 0
        self.error: BaseException | None = None

    async def __call__(self, run: Run) -> str:
        self.begun.append(seconds_now())
        self.runs.append(run)
        try:
            await asyncio.sleep(self.takes)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        self.ended.append(seconds_now())
        return f"run {len(self.ended)}"


# Schedules


def us(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1e6)


class TestSchedule:
    @pytest.mark.parametrize(
        ("due", "now", "expected"),
        [(0, 0, 10), (0, 1, 10), (0, 9_999_999, 10), (0, 10_000_000, 20), (0, 35_000_000, 40), (50_000_000, 12_000_000, 20), (3, 3, 10)],
    )
    def test_the_next_point_of_the_grid(self, due, now, expected):
        """The next due time is the first one after now that is a whole number of intervals away."""
        assert Schedule(interval=10).after(due, now) == expected * 1_000_000 + due % 10_000_000

    def test_a_grid_does_not_drift(self):
        """A million intervals of a tenth of a second are 100,000 seconds."""
        schedule, due = Schedule(interval=0.1), 0
        for _ in range(1000):
            due = schedule.after(due, due)
        assert due == 100_000_000
        assert schedule.after(0, 10**11) == 10**11 + 100_000

    @pytest.mark.parametrize(
        ("cron", "zone", "now", "expected"),
        [
            ("*/30 * * * *", "UTC", "2026-01-01T10:00:00+00:00", "2026-01-01T10:30:00+00:00"),
            ("*/30 * * * *", "UTC", "2026-01-01T10:29:59.999999+00:00", "2026-01-01T10:30:00+00:00"),
            ("*/30 * * * *", "UTC", "2026-01-01T10:30:00.000001+00:00", "2026-01-01T11:00:00+00:00"),
            ("0 4 * * *", "Europe/Vienna", "2026-01-01T00:00:00+00:00", "2026-01-01T03:00:00+00:00"),
            ("0 4 * * *", "Europe/Vienna", "2026-07-01T00:00:00+00:00", "2026-07-01T02:00:00+00:00"),
            ("30 2 * * *", "Europe/Vienna", "2026-03-28T12:00:00+00:00", "2026-03-29T01:00:00+00:00"),  # 02:30 is not there: at 03:00
            ("30 2 * * *", "Europe/Vienna", "2026-10-24T12:00:00+00:00", "2026-10-25T00:30:00+00:00"),  # 02:30 is there twice: the first
            ("30 2 * * *", "Europe/Vienna", "2026-10-25T00:30:00+00:00", "2026-10-26T01:30:00+00:00"),
            ("*/15 * * * * *", "UTC", "2026-01-01T10:00:01+00:00", "2026-01-01T10:00:15+00:00"),
        ],
    )
    def test_cron_is_of_its_time_zone(self, cron, zone, now, expected):
        """A cron expression's due times are local ones, also where summer time begins and ends."""
        assert at(Schedule(cron=cron, timezone=zone).after(0, us(now)), UTC) == datetime.fromisoformat(expected)

    @pytest.mark.parametrize("cron", ["*/30 * * * *", "30 2 * * *", "15 3 25 10 *", "0 0 1 1 *"])
    def test_without_a_zone_it_is_this_machines(self, cron):
        """The local time zone gives the due times of the same zone by name, through both changes of a year."""
        code = (
            "from aiocache_aura.schedules import Schedule\n"
            f"one, two = Schedule(cron={cron!r}), Schedule(cron={cron!r}, timezone='Europe/Vienna')\n"
            "for start in range(1_764_547_200, 1_796_083_200, 7_213 * 24):\n"
            "    now = start * 1_000_000 + 17\n"
            "    assert one.after(0, now) == two.after(0, now), start\n"
            "for change in (1_774_746_000, 1_792_890_000):\n"
            "    for now in range((change - 9000) * 10**6, (change + 9000) * 10**6, 599 * 10**6):\n"
            "        assert one.after(0, now) == two.after(0, now), now\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TZ": "Europe/Vienna"}, timeout=60)

    @pytest.mark.parametrize(
        "options",
        [
            {}, {"interval": 60, "cron": "* * * * *"}, {"interval": 0}, {"interval": -1}, {"interval": float("nan")}, {"interval": True},
            {"interval": float("inf")}, {"interval": "60"}, {"interval": 60, "jitter": -1}, {"interval": 60, "jitter": 60},
            {"interval": 60, "jitter": "1"},
            {"interval": 60, "timezone": "UTC"}, {"cron": ""}, {"cron": "* * * *"}, {"cron": "61 * * * *"}, {"cron": "0 0 30 2 *"},
            {"cron": "x"}, {"cron": 5}, {"cron": "* * * * *", "timezone": "Mars/Base"}, {"cron": "* * * * *", "timezone": "../etc"},
            {"cron": "* * * * *", "jitter": float("inf")},
        ],
    )  # fmt: skip
    def test_what_cannot_work_is_an_error_at_once(self, options):
        """A schedule that has no next due time is a ConfigurationError when it is made."""
        with pytest.raises(ConfigurationError):
            Schedule(**options)

    def test_the_limit_of_jitter(self):
        """Jitter may be anything that is less than the interval."""
        assert Schedule(interval=60, jitter=59.999).jitter == 59.999

    def test_a_missing_cronsim_says_how_to_install_it(self):
        """Without the extra, cron= is a ConfigurationError that names it; an interval works."""
        code = (
            "import sys; sys.modules['cronsim'] = None\n"
            "from aiocache_aura.schedules import Schedule\n"
            "Schedule(interval=60)\n"
            "try: Schedule(cron='* * * * *')\n"
            "except ValueError as error: print(error)\n"
        )
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
        assert "pip install 'aiocache-aura[cron]'" in said

    def test_it_says_what_it_is(self):
        """Its text is the same for the same due times, and another one for others."""
        assert str(Schedule(interval=60)) == str(Schedule(interval=60.0, jitter=3)) == "every 60 s"
        assert str(Schedule(cron="0  4 * * *")) == "cron 0 4 * * *"
        assert str(Schedule(cron="0 4 * * *", timezone="UTC")) == "cron 0 4 * * * UTC"


# One process


def test_the_first_run_is_at_once_and_the_others_on_the_grid():
    """Runs begin when they are due, to the millisecond, however long they take."""

    async def life() -> None:
        async with manager_here() as manager:
            work = Work(takes=7.7)
            job = Job(work, MINUTE, name="j", manager=manager)
            assert (job.name, job.next_run, job.last_run, job.last_report, job.runs) == ("j", None, None, None, 0)
            await asyncio.sleep(60 * 20 + 30)
            assert work.begun == pytest.approx([60.0 * n for n in range(21)], abs=0.01)
            assert job.runs == 21
            assert job.last_report == "run 21"
            assert job.next_run == at(round((START + 60 * 21) * 1e6))
            assert job.last_run == pytest.approx(at(round((START + 60 * 20) * 1e6)), abs=timedelta(milliseconds=10))
            assert job.next_run.tzinfo is not None
            assert repr(job) == "<Job 'j' every 60 s, waiting, 21 runs>"

    virtually(life)


def test_a_run_is_told_what_is_known_of_it():
    """Work is given its due time, the seconds until the next one, and how long the last run took."""

    async def life() -> None:
        async with manager_here() as manager:
            work = Work(takes=2.5)
            Job(work, Schedule(interval=60, jitter=1), name="j", manager=manager)
            await asyncio.sleep(100)
            first, second = work.runs
            assert (first.job, first.due, first.took, first.jitter) == ("j", at(round(START * 1e6)), 0.0, 1.0)
            assert second.due == at(round((START + 60) * 1e6))
            assert second.took == pytest.approx(2.5, abs=0.01)
            assert first.until_next == pytest.approx(60, abs=0.01)
            assert 59 <= second.until_next <= 60.01

    virtually(life)


def test_a_run_that_takes_longer_leaves_out_what_it_missed():
    """A run of two and a half intervals is followed by the next due time of the same grid: no overlap, no catching up."""

    async def life() -> None:
        async with manager_here() as manager:
            work = Work(takes=25)
            Job(work, Schedule(interval=10), name="j", manager=manager)
            await asyncio.sleep(100)
            assert work.begun == pytest.approx([0, 30, 60, 90], abs=0.01)

    virtually(life)


def test_a_failing_run_is_survived(caplog):
    """What a run raises is logged and kept; the next due time is the same as ever, and a good run clears the error."""

    async def life() -> None:
        async with manager_here() as manager:
            work, reports = Work(takes=1), []
            job = Job(work, MINUTE, name="j", manager=manager, on_report=reports.append)
            work.error = ZeroDivisionError("no tables")
            await asyncio.sleep(90)
            assert work.begun == pytest.approx([0, 60], abs=0.01)
            assert job.last_error is work.error
            assert (job.last_report, job.runs, reports) == (None, 2, [])
            work.error = None
            await asyncio.sleep(60)
            assert (job.last_error, job.last_report, job.runs, reports) == (None, "run 1", 3, ["run 1"])
            work.error = asyncio.CancelledError()
            await asyncio.sleep(60)
            assert isinstance(job.last_error, asyncio.CancelledError)
            work.error = None
            await asyncio.sleep(60)
            assert work.begun == pytest.approx([60 * n for n in range(5)], abs=0.01)

    virtually(life)
    assert "job 'j' failed, and is run again when it is due: ZeroDivisionError: no tables" in caplog.text


@pytest.mark.parametrize("is_async", [False, True])
def test_who_is_told_of_a_report_cannot_break_the_job(caplog, is_async):
    """on_report may be plain or async, and raise."""

    async def life() -> None:
        heard = []

        def plain(report: str) -> None:
            heard.append(report)
            raise ValueError("told too much")

        async def slow(report: str) -> None:
            await asyncio.sleep(1)
            plain(report)

        async with manager_here() as manager:
            job = Job(Work(), MINUTE, name="j", manager=manager, on_report=slow if is_async else plain)
            await asyncio.sleep(150)
            assert heard == ["run 1", "run 2", "run 3"]
            assert job.last_error is None

    virtually(life)
    assert "on_report failed: told too much" in caplog.text


def test_jitter_puts_runs_off_and_leaves_the_grid_alone():
    """Each run but the first begins up to `jitter` after its due time, evenly, and the due times stay on the grid."""

    async def life() -> None:
        async with manager_here() as manager:
            work = Work(takes=0.5)
            Job(work, Schedule(interval=60, jitter=20), name="j", manager=manager)
            await asyncio.sleep(60 * 300 + 30)
            late = [begun - 60 * n for n, begun in enumerate(work.begun)]
            assert len(late) == 301
            assert all(0 <= one <= 20.01 for one in late)
            assert 8 < sum(late) / len(late) < 12
            assert min(late[1:]) < 1
            assert max(late) > 19
            assert [run.due for run in work.runs] == [at(round((START + 60 * n) * 1e6)) for n in range(301)]

    random.seed(1)
    virtually(life)


def test_cron_jobs_run_at_once_and_then_by_the_calendar():
    """A cron job's first run is at once; the others are when the expression says."""

    async def life() -> None:
        async with manager_here() as manager:
            work = Work()
            Job(work, Schedule(cron="*/10 * * * *", timezone="UTC"), name="j", manager=manager)
            await asyncio.sleep(3600)
            assert [run.due.astimezone(UTC).strftime("%H:%M:%S") for run in work.runs] == [
                "13:46:40", "13:50:00", "14:00:00", "14:10:00", "14:20:00", "14:30:00", "14:40:00",
            ]  # fmt: skip
            assert work.begun == pytest.approx([(run.due.timestamp() - START) for run in work.runs], abs=0.01)

    virtually(life)


def test_jobs_of_one_name_share_the_runs_and_others_do_not():
    """Four jobs of one name run each due time once among them; another name, or another schedule, is another job."""

    async def life() -> None:
        async with manager_here() as manager:
            shared, other, slower = Work(takes=1), Work(), Work()
            for _ in range(4):
                Job(shared, MINUTE, name="j", manager=manager)
            Job(other, MINUTE, name="k", manager=manager)
            Job(slower, Schedule(interval=120), name="j", manager=manager)
            await asyncio.sleep(60 * 20 + 30)
            assert shared.begun == pytest.approx([60.0 * n for n in range(21)], abs=0.01)
            assert other.begun == pytest.approx([60.0 * n for n in range(21)], abs=0.01)
            assert slower.begun == pytest.approx([120.0 * n for n in range(11)], abs=0.01)

    virtually(life)


def test_who_joins_later_waits_for_the_next_due_time():
    """A process that comes while the next run is in the future does not run at once, and knows when it is due."""

    async def life() -> None:
        async with manager_here() as manager:
            first, second = Work(), Work()
            job = Job(first, MINUTE, name="j", manager=manager)
            await asyncio.sleep(20)
            joined = Job(second, MINUTE, name="j", manager=manager)
            await asyncio.sleep(1)
            assert joined.next_run == job.next_run == at(round((START + 60) * 1e6))
            await job.cancel()
            await asyncio.sleep(60)
            assert (first.begun, second.begun) == ([0.0], pytest.approx([60], abs=0.01))

    virtually(life)


# Being ended


def test_cancel_ends_a_run_under_way_and_another_process_goes_on():
    """A cancelled run is given back: another job of the name runs the same due time within a lease, and the grid stays."""

    async def life() -> None:
        async with manager_here() as manager:
            one, two = Work(takes=10), Work(takes=10)
            first = Job(one, MINUTE, name="j", manager=manager)
            await asyncio.sleep(1)
            Job(two, MINUTE, name="j", manager=manager)
            await asyncio.sleep(1)
            assert first.is_running
            assert repr(first) == "<Job 'j' every 60 s, running, 0 runs>"
            await first.cancel()
            await first.cancel()
            assert (one.cancelled, one.ended, first.runs, first.next_run, first.is_running) == (1, [], 0, None, False)
            assert repr(first) == "<Job 'j' every 60 s, ended, 0 runs>"
            await asyncio.sleep(70)
            assert two.begun[0] <= 1 + LEASE + 0.01
            assert two.begun[1] == pytest.approx(60, abs=0.01)
            assert one.runs[0].due == two.runs[0].due

    virtually(life)


def test_a_manager_ends_its_jobs_before_its_engines():
    """`aclose` cancels a run under way and waits for its end; what that stores still finds the store."""

    async def life() -> None:
        manager = manager_here()
        last: list[bool] = []

        async def work(run: Run) -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                await asyncio.sleep(5)
                last.append(await manager.set("menu", "last", 1))

        job = Job(work, MINUTE, name="j", manager=manager)
        await asyncio.sleep(1)
        await manager.aclose()
        assert last == [True]
        assert len(manager._engines) == 0
        assert repr(job) == "<Job 'j' every 60 s, ended, 0 runs>"
        await manager.aclose()
        await job.cancel()

    virtually(life)


def test_a_job_may_be_ended_from_within():
    """Work, or who is told of a report, may cancel the job, or close the manager, without waiting for itself."""

    async def life() -> None:
        for how in ("cancel", "aclose"):
            for where in ("work", "on_report"):
                manager, jobs = manager_here(), []

                async def end(job: Job, manager: CacheManager = manager, how: str = how) -> None:
                    await (job.cancel() if how == "cancel" else manager.aclose())

                async def work(run: Run, jobs: list[Job] = jobs, where: str = where) -> None:
                    if where == "work":
                        await end(jobs[0])

                async def on_report(report: Any, jobs: list[Job] = jobs) -> None:
                    await end(jobs[0])

                jobs.append(Job(work, MINUTE, name="j", manager=manager, on_report=on_report))
                await asyncio.sleep(200)
                assert repr(jobs[0]).split(", ")[1] == "ended", (how, where)
                await manager.aclose()

    virtually(life)


async def test_a_manager_that_is_closed_in_another_loop_ends_a_job_in_its_own():
    """Closed from another loop's thread, a manager has the job's run cancelled in the loop that it belongs to."""
    manager, begun, told = CacheManager(), threading.Event(), []

    async def elsewhere() -> None:
        ended = asyncio.Event()

        async def work(run: Run) -> None:
            begun.set()
            try:
                await asyncio.sleep(60)
            finally:
                told.append(asyncio.get_running_loop())
                ended.set()

        job = Job(work, MINUTE, name="j", manager=manager)
        await asyncio.wait_for(ended.wait(), 10)
        await asyncio.wait({job._task})
        told.append(asyncio.get_running_loop())

    thread = threading.Thread(target=asyncio.run, args=(elsewhere(),))
    thread.start()
    await asyncio.to_thread(begun.wait, 10)
    await manager.aclose()
    await asyncio.to_thread(thread.join, 10)
    assert len(told) == 2
    assert told[0] is told[1]


async def test_a_job_is_cancelled_from_another_loop():
    """`cancel` may be awaited in any loop; `run_now` only in the job's."""
    async with CacheManager() as manager:
        job = Job(Work(), MINUTE, name="j", manager=manager)
        with pytest.raises(ConfigurationError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(job.run_now()))
        await asyncio.to_thread(lambda: asyncio.run(job.cancel()))
        assert repr(job).split(", ")[1] == "ended"


def test_a_fork_runs_no_job():
    """A forked child has no part in its parent's jobs: neither ending them there nor closing the manager touches those; its own run."""
    code = """
import asyncio, os
from aiocache_aura import CacheManager
from aiocache_aura.jobs import Job
from aiocache_aura.schedules import Schedule

def told(what):
    os.write(1, f"{what}\\n".encode())

async def main():
    manager = CacheManager()
    parent = os.getpid()
    async def work(run):
        told("parent" if os.getpid() == parent else "copy")
    async def own(run):
        told("child")
    job = Job(work, Schedule(interval=0.1), name="j", manager=manager)
    await asyncio.sleep(0.25)

    async def child():
        Job(own, Schedule(interval=60), name="own", manager=manager)
        await asyncio.sleep(0.25)
        async with asyncio.timeout(5):
            await job.cancel()
            await manager.aclose()
        told("child is done")

    if os.fork() == 0:
        try:
            asyncio.run(child())
        finally:
            os._exit(0)
    os.wait()
    told("parent goes on")
    await asyncio.sleep(0.25)
    told(repr(job))
    await manager.aclose()
    told(repr(job))

asyncio.run(main())
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.split("\n")
    assert "copy" not in said
    assert said.count("child") == said.count("child is done") == 1
    assert "parent" in said[said.index("parent goes on") :]
    assert [line.split(", ")[1] for line in said if line.startswith("<Job 'j'")] == ["waiting", "ended"]


def test_outside_a_loop_it_says_where_to_schedule():
    """Without a running loop a job is a ConfigurationError that says where to make it."""
    with pytest.raises(ConfigurationError, match="lifespan"):
        Job(Work(), MINUTE, name="j", manager=CacheManager())
    with pytest.raises(ConfigurationError, match="lifespan"):
        schedule_cache_warming(interval_minutes=1, manager=CacheManager())


@pytest.mark.parametrize("name", ["", "x" * 501])
async def test_a_job_has_a_name(name):
    """A name is not empty, and not longer than 500 characters."""
    with pytest.raises(ConfigurationError, match="1 to 500"):
        Job(Work(), MINUTE, name=name, manager=CacheManager())


async def test_scheduling_is_use():
    """After a job was scheduled its manager can no longer be configured, which would leave the job to nobody."""
    async with CacheManager() as manager:
        await Job(Work(), MINUTE, name="x" * 500, manager=manager).cancel()
        with pytest.raises(ConfigurationError, match="in use"):
            manager.configure(prefix="other")


def test_work_is_nobodys():
    """A job that is scheduled by a request works neither for its tenant nor past the cache."""

    async def life() -> None:
        found = []

        async def work(run: Run) -> None:
            found.append((current_tenant(), identity.get().bypass))

        async with manager_here() as manager:
            with tenant_scope(7), manager.bypass():
                async with manager.deferred():
                    Job(work, MINUTE, name="j", manager=manager)
                    await asyncio.sleep(1)
        assert found == [(None, False)]

    virtually(life)


# Running now


def test_run_now_runs_before_it_is_due_and_leaves_that_due():
    """`run_now` returns what the work returned; the next due time is run as ever."""

    async def life() -> None:
        async with manager_here() as manager:
            work = Work(takes=1)
            job = Job(work, MINUTE, name="j", manager=manager)
            await asyncio.sleep(20)
            assert await job.run_now() == "run 2"
            assert seconds_now() == pytest.approx(21, abs=0.01)
            assert await asyncio.gather(job.run_now(), job.run_now()) == ["run 3", "run 3"]
            await asyncio.sleep(60)
            assert work.begun == pytest.approx([0, 20, 21, 60], abs=0.01)

    virtually(life)


def test_run_now_waits_for_a_run_under_way_and_runs_once_more():
    """Who calls while a run is under way, here or in another process, gets one that begins afterwards."""

    async def life() -> None:
        async with manager_here() as manager:
            here, there = Work(takes=10), Work(takes=1)
            job = Job(here, MINUTE, name="j", manager=manager)
            await asyncio.sleep(1)
            other = Job(there, MINUTE, name="j", manager=manager)
            await asyncio.sleep(1)
            elsewhere, mine = await asyncio.gather(other.run_now(), job.run_now())
            assert (elsewhere, mine) == ("run 1", "run 2")
            spans = sorted([*zip(here.begun, here.ended, strict=True), *zip(there.begun, there.ended, strict=True)])
            assert len(spans) == 3
            assert all(one[1] <= two[0] for one, two in zip(spans, spans[1:], strict=False))
            assert spans[0] == pytest.approx((0, 10), abs=0.01)

    virtually(life)


def test_run_now_raises_what_the_work_raises_and_that_the_job_has_ended():
    """A failing run's error, or that the job ends meanwhile, is the caller's to see; one who has left is not missed."""

    async def life() -> None:
        async with manager_here() as manager:
            work = Work(takes=1)
            job = Job(work, MINUTE, name="j", manager=manager)
            await asyncio.sleep(5)
            work.error = KeyError("gone")
            with pytest.raises(KeyError):
                await job.run_now()
            work.error = None
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await job.run_now()
            for wait in (0.0, 0.5):
                waiting = asyncio.create_task(job.run_now())
                await asyncio.sleep(wait)
                if wait:
                    await job.cancel()
                    with pytest.raises(CacheError, match="has ended"):
                        await waiting
                else:
                    await waiting
            with pytest.raises(CacheError, match="has ended"):
                await job.run_now()

    virtually(life)


# A store that does not answer


async def test_nobody_runs_while_the_store_is_down(own_server: Callable[..., Server], caplog):
    """Without a server nothing runs and the job lives; run_now says so; once the server is there it runs, and at once if that is empty."""
    server = own_server()
    server.kill()
    ran = asyncio.Event()

    async def work(run: Run) -> int:
        ran.set()
        return 1

    async with CacheManager(server.url) as manager:
        job = Job(work, Schedule(interval=3600), name="j", manager=manager)
        with pytest.raises(BackendError):
            await soon(job.run_now())
        assert not ran.is_set()
        assert (job.runs, job.next_run) == (0, None)
        server.start()
        await soon(ran.wait())
        server.kill()
        with pytest.raises(BackendError):
            await soon(job.run_now())
        server.start()
        ran.clear()
        assert await soon(job.run_now()) == 1
    assert "asking whose turn it is failed" in caplog.text


# A fleet in virtual time


class Wire:
    """A process's way to the rota: requests take a while, and may be lost before they are executed, or after."""

    def __init__(self, rota: Rota, rng: random.Random) -> None:
        self.rota, self.rng = rota, rng
        self.loss = self.slow = 0.0
        self.is_dead = False
        self.failed = 0  # requests without an answer
        self.going = asyncio.Event()
        self.going.set()
        self.sent: list[tuple[str, bytes]] = []

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        verb = getattr(self.rota, name)

        async def ask(job: str, token: bytes, *args: Any, timeout: float, **options: Any) -> Any:
            self.sent.append((name, token))
            there, back = (self.rng.choice([0.0, 0.001, self.rng.expovariate(1 / self.slow) if self.slow else 0.0]) for _ in range(2))
            lost_there, lost_back = (self.rng.random() < self.loss for _ in range(2))
            done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

            async def travel() -> None:
                await asyncio.sleep(there)
                if lost_there or self.is_dead:
                    return
                answer = await verb(job, token, *args, timeout=timeout, **options)
                await asyncio.sleep(back)
                if not lost_back and not done.done():
                    done.set_result(answer)

            travelling = asyncio.get_running_loop().create_task(travel())
            _travelling.add(travelling)
            travelling.add_done_callback(_travelling.discard)
            try:
                async with asyncio.timeout(timeout):
                    answer = await done
            except TimeoutError:
                self.failed += 1
                await self.going.wait()
                raise BackendError("no answer") from None
            await self.going.wait()
            return answer

        return ask


_travelling: set[asyncio.Task[None]] = set()


class Member:
    """One process of a fleet: what a job asks of its manager."""

    def __init__(self, rota: Rota, rng: random.Random) -> None:
        self.jobs = Wire(rota, rng)
        self.settings = CacheManager().settings
        self.tasks: list[asyncio.Task[Any]] = []

    async def engine(self) -> Any:
        return self

    def own(self, task: asyncio.Task[Any]) -> None:
        self.tasks.append(task)


class Process:
    """A member and its job, and what it did."""

    def __init__(self, world: World, n: int) -> None:
        self.world, self.n = world, n
        self.member = Member(world.rota, world.rng)
        self.job: Job = Job(self.work, world.schedule, name="j", manager=self.member, on_report=self.done)  # type: ignore[arg-type]
        self.begun: Beginning | None = None
        self.is_gone = False  # dead or cancelled, perhaps between a claim and its beginning

    @property
    def wire(self) -> Wire:
        return self.member.jobs

    async def work(self, run: Run) -> Beginning:
        world = self.world
        self.begun = mine = Beginning(self, run.due, seconds_now(), world.epoch)
        world.begin(mine)
        try:
            left = world.rng.choice([0.0, 0.3, 2.0, 5.0, world.rng.uniform(0, 25)])
            await asyncio.sleep(left)
            while not self.wire.going.is_set():
                await self.wire.going.wait()
            if world.rng.random() < 0.2:
                raise RuntimeError("a failing run")
        finally:
            mine.is_over = True
        return mine

    def done(self, mine: Beginning) -> None:
        self.world.ended.append((mine.epoch, mine.due))

    async def die(self) -> None:
        self.wire.is_dead = self.is_gone = True
        if self.begun is not None:
            self.begun.is_excused = True
        self.wire.going.set()
        self.job._token = None  # nobody gives anything back
        self.job._task.cancel()
        await asyncio.wait({self.job._task})


class Beginning:
    def __init__(self, who: Process, due: datetime, when: float, epoch: int) -> None:
        self.who, self.due, self.when, self.epoch = who, due, when, epoch
        self.failures = who.wire.failed
        self.is_excused = self.is_over = False

    def __repr__(self) -> str:
        return f"{self.due.timestamp() - START:.3f} by {self.who.n} at {self.when:.3f}"

    @property
    def has_excuse(self) -> bool:
        """Its process has died or was paused meanwhile, or was cut off, or its record was lost."""
        world = self.who.world
        if self.who.is_gone:
            return True
        was_lost = self.epoch != world.epoch or self.when - world.lost_at < LEASE
        return self.is_excused or self.who.wire.failed > self.failures or was_lost


class World:
    """A fleet in one loop, whose members die, pause and are cut off, and what must hold whatever they do."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        loop = asyncio.get_running_loop()
        self.rota = Rota(loop.time)
        self.schedule = Schedule(interval=self.rng.choice([1.0, 7.0, 20.0]), jitter=self.rng.choice([0.0, 0.0, 0.9]))
        self.epoch = 0
        self.lost_at = -LEASE  # when the record was last lost: a claim from before that may still be on its way
        self.beginnings: list[Beginning] = []
        self.ended: list[tuple[int, datetime]] = []
        self.wrong: list[str] = []
        self.wanted: set[datetime] = set()
        self.members = [Process(self, n) for n in range(self.rng.choice([2, 3, 4]))]
        self.born = len(self.members)

    def begin(self, mine: Beginning) -> None:
        before = [one for one in self.beginnings if one.epoch == self.epoch]
        early = (mine.due.timestamp() - START) - mine.when
        if early > 0.002:
            self.wrong.append(f"early: {mine!r}")
        for one in before:
            if one.due == mine.due and not one.has_excuse:
                self.wrong.append(f"twice: {one!r}, then {mine!r}")
            if not one.is_over and not one.has_excuse:
                self.wrong.append(f"overlap: {one!r}, and {mine!r}")
        self.beginnings.append(mine)

    async def happen(self, kinds: list[str]) -> None:
        rng, member = self.rng, self.rng.choice(self.members)
        match rng.choice(kinds):
            case "die" if len(self.members) > 1:
                self.members.remove(member)
                await member.die()
            case "join" if len(self.members) < 5:
                self.members.append(Process(self, self.born))
                self.born += 1
            case "cancel" if len(self.members) > 1:
                self.members.remove(member)
                member.is_gone = True
                member.wire.going.set()  # one that is paused does nothing, ending included
                await member.job.cancel()
            case "pause":
                member.wire.going.clear()
                if member.begun is not None:
                    member.begun.is_excused = True
            case "go on":
                for one in self.members:
                    one.wire.going.set()
            case "flush":
                self.rota.clear()
                self.epoch += 1
                self.lost_at = seconds_now()
            case "lossy":
                member.wire.loss = rng.choice([0.0, 0.1, 0.5])
            case "slow":
                member.wire.slow = rng.choice([0.0, 0.05, 0.5, 3.0])
            case _:
                pass


def live(seed: int) -> World:
    """A random history, then a calm time in which every due time is run once."""

    async def life() -> World:
        world = World(seed)
        rng = world.rng
        kinds = rng.sample(["die", "join", "cancel", "pause", "go on", "flush", "lossy", "slow"], rng.choice([1, 3, 5, 8]))
        for _ in range(60):
            await asyncio.sleep(rng.choice([0.0, 0.4, 1.5, rng.uniform(0, 10)]))
            await world.happen([*kinds, *(["go on", "go on"] if "pause" in kinds else [])])
        for member in world.members:
            member.wire.loss = member.wire.slow = 0.0
            member.wire.going.set()
        await asyncio.sleep(60)
        calm = len(world.beginnings)
        await asyncio.sleep(200)
        dues = [one.due for one in world.beginnings[calm:]]
        steps = [(two - one).total_seconds() / (world.schedule.interval or 1) for one, two in zip(dues, dues[1:], strict=False)]
        if not dues or any(abs(step - round(step)) > 1e-6 or step < 0.5 for step in steps):
            world.wrong.append(f"the grid: {steps}")
        for one, two in zip(world.beginnings[calm:], world.beginnings[calm + 1 :], strict=False):
            if two.when - one.when > 26 + 2 * (world.schedule.interval or 0) + 1:
                world.wrong.append(f"nothing from {one!r} to {two!r}")
        for member in world.members:
            await member.job.cancel()
        if _travelling:
            await asyncio.wait(set(_travelling))
        twice = {one for one in world.ended if world.ended.count(one) > 1}
        if twice:
            world.wrong.append(f"ended twice: {twice}")
        return world

    return virtually(life)  # type: ignore[no-any-return]


@pytest.mark.parametrize("seeds", [range(n, n + 25) for n in range(0, 200, 25)], ids=str)
def test_random_histories(seeds: range, caplog):
    """Whatever dies, pauses, is lost or late: no due time is begun twice without a reason, none early, none ended twice, and it goes on."""
    caplog.set_level(logging.CRITICAL + 1)
    for seed in seeds:
        world = live(seed)
        assert not world.wrong, (seed, world.wrong[:5])
        assert world.ended


def fleet_of(count: int, work: Work, schedule: Schedule = MINUTE) -> tuple[Rota, list[Member], list[Job]]:
    rota = Rota(asyncio.get_running_loop().time)
    members = [Member(rota, random.Random(n)) for n in range(count)]
    return rota, members, [Job(work, schedule, name="j", manager=member) for member in members]  # type: ignore[arg-type]


def test_a_claim_whose_answer_is_lost_is_made_again_with_its_token():
    """The lease that nobody heard of is not waited for: the same token claims it."""

    async def life() -> None:
        work = Work()
        _, (member,), (job,) = fleet_of(1, work)
        member.jobs.loss = 0.0
        original, count = member.jobs.rng.random, iter([1.0, 0.0])
        member.jobs.loss, member.jobs.rng.random = 0.5, lambda: next(count, 1.0)  # type: ignore[method-assign]
        await asyncio.sleep(PATIENCE + PAUSE_MOST)
        member.jobs.rng.random = original  # type: ignore[method-assign]
        claims = [token for name, token in member.jobs.sent if name == "claim"]
        assert len(work.begun) == 1
        assert claims[0] == claims[1]
        assert work.begun[0] <= PATIENCE + 0.25 + 0.01
        await job.cancel()

    virtually(life)


def test_an_answer_that_took_a_third_of_a_lease_is_not_used():
    """A claim that is answered so late that its first renewal would be, too, is made again with its token before anything runs."""

    async def life() -> None:
        work, tokens = Work(), []
        rota, (member,), (job,) = fleet_of(1, work)
        verb, late = rota.claim, iter([LEASE, RENEWED_EVERY, RENEWED_EVERY - 0.01])

        async def slow(*args: Any, **options: Any) -> Any:
            tokens.append(args[1])
            turn = await verb(*args, **options)
            await asyncio.sleep(next(late, 0.0))
            return turn

        member.jobs.__dict__["claim"] = slow
        await asyncio.sleep(10)
        assert work.begun == pytest.approx([LEASE + 2 * RENEWED_EVERY - 0.01], abs=0.01)
        assert len(set(tokens)) == 1 and len(tokens) == 3
        await job.cancel()

    virtually(life)


def test_a_runner_that_hears_nothing_for_a_lease_ends_its_run():
    """Cut off from the store, a run is ended after about a lease, does not count, and is taken over by who is not."""

    async def life() -> None:
        works = [Work(takes=20), Work(takes=20)]
        rota = Rota(asyncio.get_running_loop().time)
        members = [Member(rota, random.Random(n)) for n in range(2)]
        jobs = [Job(work, MINUTE, name="j", manager=member) for work, member in zip(works, members, strict=True)]  # type: ignore[arg-type]
        await asyncio.sleep(0.5)
        first = 0 if works[0].begun else 1
        members[first].jobs.loss = 1.0
        await asyncio.sleep(LEASE + 2.5)
        assert works[first].cancelled == 1
        assert isinstance(jobs[first].last_error, CacheError)
        assert "lease was lost" in str(jobs[first].last_error)
        assert jobs[first].runs == 0
        assert works[1 - first].begun[0] <= LEASE + 1
        await asyncio.sleep(25)
        assert len(works[1 - first].ended) == 1
        for job in jobs:
            await job.cancel()

    virtually(life)


def test_a_lost_record_is_noticed_within_a_poll():
    """Waiting processes ask at least every POLL seconds: after the record is lost the job runs within that, once."""

    async def life() -> None:
        work = Work()
        rota, _, jobs = fleet_of(3, work, Schedule(interval=3600))
        await asyncio.sleep(100)
        rota.clear()
        await asyncio.sleep(POLL + 0.1)
        assert len(work.begun) == 2
        await asyncio.sleep(3580)
        assert len(work.begun) == 2
        await asyncio.sleep(30)
        assert len(work.begun) == 3
        for job in jobs:
            await job.cancel()

    virtually(life)


def test_waiting_costs_little():
    """A process that waits asks four to six times in a minute."""

    async def life() -> None:
        _, (member,), (job,) = fleet_of(1, Work(), Schedule(interval=3600))
        await asyncio.sleep(3000)
        assert 3000 / POLL <= len(member.jobs.sent) <= 3000 / POLL / 0.7 + 2
        await job.cancel()

    virtually(life)


def test_the_next_due_time_is_run_on_time_though_its_last_runner_is_dead():
    """The other processes ask when the next run is due, even if they were told a moment ago that one is under way."""

    async def life() -> None:
        work = Work()
        _, members, jobs = fleet_of(3, work, Schedule(interval=1.0))
        for n in range(20):
            await asyncio.sleep(n + 0.5 - seconds_now())
            assert len(work.begun) == n + 1
            if n in (5, 12):
                dead = next(k for k, member in enumerate(members) if any(name == "end" for name, _ in member.jobs.sent[-2:]))
                members[dead].jobs.is_dead = True
                jobs[dead]._task.cancel()
                jobs[dead]._token = None
                await asyncio.wait({jobs[dead]._task})
        assert work.begun == pytest.approx(range(20), abs=0.01)
        for job in jobs:
            await job.cancel()

    virtually(life)


# schedule_cache_warming


def warmed(manager: CacheManager, keys: int = 20) -> tuple[CacheWarmer[Any], list[float]]:
    warmer: CacheWarmer[Any] = CacheWarmer(manager=manager)
    times: list[float] = []

    @warmer.source("menu")
    async def menus(tenant_id: Any) -> Any:
        times.append(seconds_now())
        for n in range(keys):
            await asyncio.sleep(0.2)
            yield f"item:{n}", {"tenant": tenant_id, "at": seconds_now()}

    return warmer, times


@pytest.mark.parametrize("jitter", [0.0, 25.0])
@pytest.mark.parametrize("ttl", [61, 100, 3600])
def test_a_warmed_key_never_goes_cold(ttl, jitter):
    """Read every half second for an hour, what is warmed each minute is always there after the first run, if it lives longer than that."""

    async def life() -> None:
        async with manager_here() as manager:
            manager.register("menu", CachePolicy(ttl=ttl + jitter))
            warmer, times = warmed(manager)
            schedule_cache_warming(1, 1, jitter=jitter, warmer=warmer)
            await asyncio.sleep(10)
            with tenant_scope(1):
                while seconds_now() < 3600:
                    for n in (0, 10, 19):
                        assert await manager.exists("menu", f"item:{n}", tenant=1), (seconds_now(), n, times[-2:])
                    await asyncio.sleep(0.5)
            assert len(times) in (60, 61)  # the last one is due when this ends

    random.seed(3)
    virtually(life)


def test_what_lives_long_enough_is_not_warmed_again():
    """A key that outlives the next run by far is left as it is until a run before its end."""

    async def life() -> None:
        async with manager_here() as manager:
            manager.register("menu", CachePolicy(ttl=600))
            warmer, _ = warmed(manager, keys=5)
            job = schedule_cache_warming(1, 1, warmer=warmer)
            written = []
            for _ in range(21):
                await asyncio.sleep(60)
                written.append(job.last_report.loaded + job.last_report.refreshed)
            assert written[0] == 5 and set(written) == {0, 5}
            assert sum(written) <= 5 * 4

    virtually(life)


def test_a_warming_job_hands_its_report_on():
    """The report of a run is `last_report`, and on_report's; `types` and the tenant are the warmer's."""

    async def life() -> None:
        async with manager_here() as manager:
            warmer, _ = warmed(manager)
            heard: list[Any] = []
            job = schedule_cache_warming(7, 30, types=["menu"], warmer=warmer, on_report=heard.append)
            assert repr(job) == "<Job 'warm tenant 7: menu' every 1800 s, waiting, 0 runs>"
            await asyncio.sleep(10)
            assert heard == [job.last_report]
            assert list(job.last_report.types) == ["menu"]
            assert job.last_report.tenant_id == "7"
            assert (await manager.get("menu", "item:3", tenant=7))["tenant"] == 7
            assert job.next_run == at(round((START + 1800) * 1e6))

    virtually(life)


class Telling:
    """A warmer that only remembers what it was told."""

    def __init__(self, manager: CacheManager) -> None:
        self.manager, self.told = manager, []

    async def warm_all(self, **told: Any) -> str:
        self.told.append(told)
        await asyncio.sleep(4)
        return "warmed"


def test_what_is_renewed_reaches_to_the_end_of_the_next_run():
    """`refresh_within` is the time to the next run, its delay, twice what the last run took, and what a takeover takes."""

    async def life() -> None:
        async with manager_here() as manager:
            warmer = Telling(manager)
            schedule_cache_warming(None, 0.5, jitter=3, warmer=warmer)  # type: ignore[arg-type]
            await asyncio.sleep(45)
            first, second = warmer.told
            assert (first["tenant_id"], first["types"]) == (None, None)
            assert first["refresh_within"] == pytest.approx(30 + 3 + MARGIN, abs=0.01)
            assert 27 + 3 + 8 + MARGIN - 0.1 < second["refresh_within"] < 30 + 3 + 8 + MARGIN + 0.1

    virtually(life)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "interval_minutes=30, or cron"),
        ({"interval_minutes": 1, "cron": "* * * * *"}, "not both"),
        ({"interval_minutes": 0}, "above 0"),
        ({"interval_minutes": -1}, "above 0"),
        ({"interval_minutes": True}, "above 0"),
        ({"interval_minutes": "1"}, "above 0"),
        ({"interval_minutes": float("nan")}, "above 0"),
        ({"interval_minutes": float("inf")}, "above 0"),
        ({"cron": "every day"}, "no cron expression"),
        ({"interval_minutes": 1, "jitter": 60}, "less than the 60"),
        ({"interval_minutes": 1, "types": "menu"}, "list of names"),
        ({"interval_minutes": 1, "types": ["menus"]}, "menu"),
        ({"interval_minutes": 1, "name": ""}, "1 to 500"),
    ],
)
async def test_options_that_cannot_work(options, said):
    """What cannot work is refused by the call, with what would."""
    with pytest.raises((ConfigurationError, CacheError), match=said):
        schedule_cache_warming(manager=CacheManager(), **options)


async def test_the_warmers_manager_is_the_jobs():
    """A job belongs to the manager that its warmer stores in; another one is refused."""
    async with CacheManager() as one, CacheManager() as two:
        with pytest.raises(ConfigurationError, match="CacheWarmer"):
            schedule_cache_warming(interval_minutes=1, warmer=CacheWarmer(manager=one), manager=two)
        job = schedule_cache_warming(interval_minutes=1, warmer=CacheWarmer(manager=one), name="mine")
        assert len(one._engines._owned) == 1
        assert job.name == "mine"
        await job.cancel()
        await asyncio.sleep(0)
        assert not one._engines._owned
