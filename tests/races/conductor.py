"""Starts, kills, pauses and restarts workers over a server of their own, then has their history judged.

A run is named by its seed: what each caller does, in which order, and what befalls processes when, are a function of it. What crosses what
is not: the same seed crosses differently on another day, so a violation that was seen once may take several runs to be seen again.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.proxy import FaultProxy
from tests.races.check import Rules, Violation, answered_after_fill, check
from tests.races.history import SECOND, History, Life, read_logs
from tests.races.plan import JITTER, LIVES, PROFILES, Profile, Trouble, items, troubles
from tests.races.source import Source
from tests.races.worker import PREFIX, ROUND, Orders, keys_of, open_source
from tests.servers import Server

ROOT = Path(__file__).parents[2]
LEASES, PERMITS = f"{PREFIX}!l:", f"{PREFIX}!p:"
PROOF_LIFE = 30_000  # milliseconds that a permit or lease may live at most
SETTLED = SECOND // 4  # what is older than this is in every log
now = time.monotonic_ns


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run. `until_violation`: end as soon as there is one. `keep` the logs, and say where they are."""

    seed: int = 1
    seconds: float = 60.0
    processes: int = 4
    profile: str = "mixed"
    one_load: str = "fleet"
    plant: str | None = None
    budget: float = 15.0
    lease: float = 3.0
    until_violation: bool = False
    keep: bool = False

    @property
    def rules(self) -> Rules:
        profile = PROFILES[self.profile]
        lives = {item.index: LIVES[item.cache_type] * (1 - JITTER[item.cache_type]) for item in items(profile.items)}
        longest = {item.index: LIVES[item.cache_type] for item in items(profile.items)}
        quiet = range(profile.items, keys_of(profile))
        return Rules(
            one_load=self.one_load, lives=lives, longest=longest, patience=self.patience, lease=self.lease, rounds=frozenset(quiet[::2]),
            failing_rounds=frozenset(quiet[1::2]),
        )  # fmt: skip

    @property
    def patience(self) -> float:
        """Seconds that a read may take: the budget, two loads of its own process, and in a fleet two of others behind dead leases."""
        profile = PROFILES[self.profile]
        longest = max(profile.hang if profile.hanging else 0.0, profile.slowest, 0.1)
        others = 2 * (longest + (self.lease + 1 if profile.troubles else 0)) if self.one_load == "fleet" else 0.0
        return self.budget + 2 * longest + others


@dataclass(slots=True)
class Report:
    """What came of a run."""

    plan: Plan
    history: History
    violations: list[Violation]
    seconds: float
    told: str = ""  # what workers said on stderr
    waits: list[float] = field(default_factory=list)
    directory: Path | None = None

    def __str__(self) -> str:
        history = self.history
        happened = [life.what for life in history.lives]
        errors = sum(end.left.get("errors", 0) for end in history.ends)
        how = f"{self.plan.profile}, {self.plan.processes} processes, {self.seconds:.0f} s, one load in each {self.plan.one_load}"
        done = f"{len(history.reads):,} reads, {len(history.loads):,} loads, {len(history.acts):,} writes"
        befell = f"{happened.count('killed')} kills, {happened.count('paused')} pauses, {errors} errors"
        lines = [f"seed {self.plan.seed} ({how}): {done}, {befell}, {len(self.violations)} violations"]
        if self.waits:
            waits = sorted(self.waits)
            lines.append(
                f"answers after the load's end: median {waits[len(waits) // 2]:.1f} ms, p99 {waits[len(waits) * 99 // 100]:.1f} ms"
            )
        lines += map(str, self.violations[:10])
        if len(self.violations) > 10:
            lines.append(f"... and {len(self.violations) - 10} more")
        if self.plan.keep:
            lines.append(f"logs: {self.directory}")
        if self.told:
            lines.append(f"said by workers:\n{self.told[-3000:]}")
        return "\n".join(lines)


class _Slot:
    """One worker, and those that took its place."""

    def __init__(self, number: int) -> None:
        self.number, self.incarnation = number, -1
        self.child: asyncio.subprocess.Process | None = None
        self.orders: list[Orders] = []

    @property
    def process(self) -> str:
        return self.orders[-1].process

    @property
    def is_running(self) -> bool:
        return self.child is not None and self.child.returncode is None


class Conductor:
    """One run."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.profile = plan, PROFILES[plan.profile]
        self.directory = Path(tempfile.mkdtemp(prefix="aura-races-"))
        self.slots = [_Slot(n) for n in range(plan.processes)]
        self.lives: list[Life] = []
        self.urls: list[str] = []
        self.begins = self.ends = 0

    async def run(self) -> Report:
        source = open_source(self.directory, self.profile, workers=self.plan.processes)
        server = Server()
        try:
            async with AsyncExitStack() as stack:
                self.urls = [await self._way(server, slot, stack) for slot in self.slots]
                report = await self._run(server, source)
        finally:
            await self._end_all(0.0)
            server.close()
            source.close()
            if not self.plan.keep:
                shutil.rmtree(self.directory, ignore_errors=True)
        return report

    async def _run(self, server: Server, source: Source) -> Report:
        began, rounds = now(), self.profile.rounds
        seconds = 60 + 10 * rounds * ROUND if rounds else self.plan.seconds  # rounds end by themselves
        for slot in self.slots:
            await self._start(slot)
        await self._all_there()
        self.begins = now() + SECOND // 10
        self.ends = self.begins + int(seconds * SECOND)
        source.begin(self.begins, self.ends)
        befalling = asyncio.ensure_future(self._befall(seconds))
        is_seen = True
        try:
            is_seen = await self._watch()
        finally:
            source.stop(now(), urgently=is_seen)
            befalling.cancel()
            await asyncio.wait({befalling})
        await self._end_all(self.plan.patience + 10)
        left = await self._left_in_redis(server)
        history = self.history()
        violations = sorted([*check(history, self.plan.rules), *left, *self._codes()], key=lambda one: one.at)
        waits = answered_after_fill(history, self.plan.rules.rounds)
        return Report(self.plan, history, violations, (now() - began) / SECOND, self._told(), waits, self.directory)

    async def _way(self, server: Server, slot: _Slot, stack: AsyncExitStack) -> str:
        """The URL for a worker: straight to the server; every second one's answers are late, if the profile says so."""
        if not self.profile.delay or slot.number % 2 == 0:
            return server.url
        proxy = await stack.enter_async_context(FaultProxy(server.port))
        proxy.delay = self.profile.delay
        return proxy.url

    # Processes

    async def _start(self, slot: _Slot) -> None:
        slot.incarnation += 1
        plan = self.plan
        orders = Orders(
            url=self.urls[slot.number], directory=str(self.directory), seed=plan.seed, profile=plan.profile, worker=slot.number,
            incarnation=slot.incarnation, workers=plan.processes, budget=plan.budget, one_load=plan.one_load, plant=plan.plant,
            patience=plan.patience,
        )  # fmt: skip
        slot.orders.append(orders)
        told = self.directory / f"{orders.process}.json"
        told.write_text(orders.dumps())
        with (self.directory / f"{orders.process}.err").open("wb") as err:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            command = (sys.executable, "-m", "tests.races.worker", str(told))
            slot.child = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=err, stderr=err
            )
        self._note(slot, "started")

    async def _all_there(self) -> None:
        """Every worker has been imported, and waits for the beginning."""
        async with asyncio.timeout(60):
            while not all(slot.orders[-1].log.exists() for slot in self.slots):
                if not all(slot.is_running for slot in self.slots):
                    raise RuntimeError(f"a worker did not come to work: {self._told()[-2000:]}")
                await asyncio.sleep(0.02)

    def _note(self, slot: _Slot, what: str) -> None:
        self.lives.append(Life(slot.process, what, now()))

    async def _befall(self, seconds: float) -> None:
        """Troubles, one after the other, each at its time."""
        for trouble in troubles(self.plan.seed, self.profile, seconds, self.plan.processes):
            await asyncio.sleep(max((self.begins - now()) / SECOND + trouble.at, 0))
            slot = self.slots[trouble.worker]
            if slot.is_running:
                await self._befalls(slot, trouble)

    async def _befalls(self, slot: _Slot, trouble: Trouble) -> None:
        assert slot.child is not None
        if trouble.what == "kill":
            slot.child.kill()
            await slot.child.wait()
            self._note(slot, "killed")
            await self._start(slot)
            return
        self._note(slot, "paused")
        try:
            slot.child.send_signal(signal.SIGSTOP)
            await asyncio.sleep(trouble.seconds)
        finally:
            slot.child.send_signal(signal.SIGCONT)
            self._note(slot, "continued")

    async def _watch(self) -> bool:
        """Until the time is over; until a violation is seen, if that is wanted. Whether one was."""
        while now() < self.ends and any(slot.is_running for slot in self.slots):
            await asyncio.sleep(min(0.5, max((self.ends - now()) / SECOND, 0.01)))
            if self.plan.until_violation:
                before = now() - SETTLED
                if check(self.history().until(before), self.plan.rules):
                    return True
        return False

    async def _end_all(self, patience: float) -> None:
        """Wait for every worker to end by itself; who does not is lost, and killed."""
        running = [slot for slot in self.slots if slot.is_running]
        waits = [asyncio.ensure_future(slot.child.wait()) for slot in running if slot.child is not None]
        if waits:
            await asyncio.wait(waits, timeout=patience)
        for slot in running:
            if slot.is_running and slot.child is not None:
                slot.child.kill()
                self._note(slot, "lost")
        if waits:
            await asyncio.wait(waits)

    def _codes(self) -> list[Violation]:
        """Workers that ended with an error of their own."""
        codes = [(slot.process, slot.child.returncode) for slot in self.slots if slot.child is not None]
        return [Violation("end", None, now(), f"{process} ended with code {code}") for process, code in codes if code]

    # Afterwards

    def history(self) -> History:
        return read_logs([(orders.process, orders.log) for slot in self.slots for orders in slot.orders], self.lives)

    def _told(self) -> str:
        texts = [(orders.process, orders.log.with_suffix(".err").read_text()) for slot in self.slots for orders in slot.orders]
        return "\n".join(f"{process}: {text.strip()}" for process, text in texts if text.strip())

    async def _left_in_redis(self, server: Server) -> list[Violation]:
        """Connections that stayed open, proofs that outlive what they prove, anything of ours without an end."""
        found = []
        with server.client() as admin:
            for _ in range(50):
                others = len(admin.client_list()) - 1
                if not others:
                    break
                await asyncio.sleep(0.02)
            if others:
                found.append(f"{others} connections are still open")
            lives = {name.decode(): admin.pttl(name) for name in admin.scan_iter(count=1000)}
        stray = [name for name in lives if not name.startswith(PREFIX)]
        endless = [name for name, life in lives.items() if life == -1]
        proofs = [name for name, life in lives.items() if name.startswith((LEASES, PERMITS)) and life > PROOF_LIFE]
        for what, names in (("outside the prefix", stray), ("without an end", endless), ("longer than any load may take", proofs)):
            if names:
                found.append(f"{len(names)} keys live {what}: {sorted(names)[:3]}")
        return [Violation("end", None, now(), f"Redis: {text}") for text in found]


async def run(plan: Plan) -> Report:
    """Run it, and judge it."""
    return await Conductor(plan).run()


__all__ = ["Conductor", "Plan", "Profile", "Report", "run"]
