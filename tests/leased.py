"""A fleet with leases in one event loop and in virtual time: a reference of what the server makes of leases, in plain Python.

`LeasedStore` is a memory store in whose place for permits leases live, too: what voids a permit - delete, set, purge, eviction - voids a
lease, and a fill by lease passes the same fence. `Lessee` is one process's leases over it: it renews what it holds, and everything that
would cross a network (asking, ending, renewing, waking) is a step that can be held, lost, or executed after its caller has gone.

What a key's place holds, and what an asker is told (M12-M15)
    force                                  -> the lease, whatever is there
    another value than the asker knows     -> Found
    chain <= `upto`                        -> Alone, also after a newcomer's lease has replaced the mark
    a lease, none of whose scopes that the asker depends on, too, has another token now  -> HeldElsewhere
    content, before `until`                -> Failed, also while the place is free or its lease is doomed
    the asker's chain has failed twice     -> Failed; once -> the lease, attempt 2
    else                                   -> the lease, attempt 1 of a new chain
A chain is a number, greater than all before it in this place. `upto`, `until` and "somebody follows" go from holder to holder.

Time is the loop's: `VirtualLoop` jumps to its next timer when there is nothing else to do.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiocache_aura.codecs.envelope import FRONT
from aiocache_aura.errors import BackendError
from aiocache_aura.resilience.single_flight import Tick
from aiocache_aura.stores import base
from aiocache_aura.stores.followers import Followers, KeyFollower
from aiocache_aura.stores.memory import MemoryStore
from tests.clocks import ManualClock
from tests.steps import OPERATIONS, Fleet, Holder, Port, Process, Step

LEASE: Final = 3.0
MARK_LIFE: Final = LEASE + 1.0
OVER_A_NETWORK: Final = ("acquire", "end", "renew", "wake")


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time is a clock's, and passes only while nothing else can happen: `asyncio.sleep(60)` takes no time."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        super().__init__()

    def time(self) -> float:
        return self.clock.now

    def _run_once(self) -> None:
        if not self._ready:  # type: ignore[attr-defined]
            timers = [timer.when() for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
            if not timers:
                raise RuntimeError("nothing is left to happen, and somebody waits")
            self.clock.now = max(self.clock.now, min(timers))
        super()._run_once()  # type: ignore[misc]


@dataclass
class Place:
    """What a key's place holds beside its proof: a lease, a failure, or only what goes on."""

    kind: str  # "lease", "failed" or "rest"
    proof: bytes
    captured: dict[bytes, bytes | None] = field(default_factory=dict)
    attempt: int = 1
    chain: int = 0
    is_followed: bool = False
    upto: int = 0
    upto_ends: float = 0.0
    until: float = 0.0
    reason: bytes = b""


class LeasedStore(MemoryStore):
    """The server that all processes of a fleet share."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock, max_bytes=None, max_entries=None)
        self.places: dict[bytes, Place] = {}
        self.lessees: list[Lessee] = []
        self._forced: dict[bytes, bytes] = {}  # of each forced lease, how the value began that was there

    def place(self, key: bytes) -> Place | None:
        """What is there, if anything is and it is no permit."""
        place = self.places.get(key)
        if place is not None and self._permits.get(key, self._now()) == place.proof:
            return place
        self.places.pop(key, None)
        return None

    def left(self, key: bytes) -> float:
        return self._permits._nodes[key].expires - self._now()

    def leased(self) -> list[bytes]:
        """The keys that somebody holds."""
        return [key for key in list(self.places) if (place := self.place(key)) is not None and place.kind == "lease"]

    def _settle_in(self, key: bytes, place: Place, life: float) -> None:
        self.places[key] = place
        self._permits.put(key, place.proof, expires=self._now() + life)

    def publish(self, key: bytes) -> None:
        for lessee in self.lessees:
            lessee.hear(key)

    # Asking

    def acquire(self, want: base.Want, proof: bytes) -> base.Standing:
        now = self._now()
        tokens = self._plant(want.scopes, now)
        raw = self.values.get(want.key, now)
        place = self.place(want.key) or Place("rest", b"")
        is_lease, asked = place.kind == "lease", int(want.chain or b"0")
        is_retry = place.kind == "failed" and place.chain == asked
        if not want.force:
            if self._is_news(want, raw):
                assert raw is not None
                return base.Found(raw, tokens)
            if 0 < asked <= place.upto and now < place.upto_ends:
                return base.Alone()
            if is_lease and not self._is_doomed(place, tokens):
                place.is_followed = True
                return base.HeldElsewhere(b"%d" % place.chain, self.left(want.key))
            if (want.content and now < place.until) or (is_retry and place.attempt > 1):
                return base.Failed(place.reason, max(place.until - now, 0.0))
        elif raw is not None:
            self._forced[proof] = raw[FRONT]
        is_retry = is_retry and not want.force
        chain = asked if is_retry else max(max(place.chain, place.upto) + 1, int(now * 1e6))
        taken = Place("lease", proof, dict(tokens.found), 2 if is_retry else 1, chain, is_lease and place.is_followed)
        taken.upto, taken.upto_ends, taken.until, taken.reason = place.upto, place.upto_ends, place.until, place.reason
        self._settle_in(want.key, taken, LEASE)
        return base.Claim(proof, tokens, leased=True)

    def _is_news(self, want: base.Want, raw: bytes | None) -> bool:
        """Whether a value is there that the asker does not know (M12)."""
        return raw is not None and raw[FRONT] != (want.seen or b"")[FRONT]

    def _is_doomed(self, place: Place, tokens: base.Tokens) -> bool:
        """Whether the holder's value will be dead to the asker: another token in a scope that both depend on (M15)."""
        return any(token != tokens.found[scope] for scope, token in place.captured.items() if scope in tokens.found)

    # Ending

    def end(self, key: bytes, proof: bytes, what: str, reason: bytes, throttle: float, *, wakes_all: bool) -> None:
        """`what` is "release", "fail" or "leave_alone"."""
        place, now = self.place(key), self._now()
        if place is None or place.kind != "lease" or place.proof != proof:
            if wakes_all:
                self.publish(key)
            return
        was_followed = place.is_followed
        place.is_followed, place.proof = False, b"mark" + os.urandom(13)
        if what == "leave_alone":
            place.upto, place.upto_ends = max(place.upto, place.chain), now + MARK_LIFE
        if what == "fail":
            place.kind, place.until, place.reason = "failed", max(place.until, now + throttle), reason
            self._settle_in(key, place, max(place.until - now, MARK_LIFE))
        elif max(place.until, place.upto_ends) > now:
            place.kind = "rest"
            self._settle_in(key, place, max(place.until, place.upto_ends) - now)
        else:
            self._permits.pop(key)
        if was_followed:
            self.publish(key)

    async def fill(self, fills: Sequence[base.Fill], *, written: Callable[[], None], timeout: float) -> list[base.Verdict]:
        written()
        return [await self._fill_one(fill, timeout) for fill in fills]

    async def _fill_one(self, fill: base.Fill, timeout: float) -> base.Verdict:
        if fill.leased and self._begins(fill.key, fill.raw[FRONT]):  # it was sent again
            return base.Verdict(True, self._read(fill.scopes, self._now()))
        place = self.place(fill.key)
        (verdict,) = await super().fill([fill], written=lambda: None, timeout=timeout)
        if not fill.leased:
            return verdict
        if verdict.accepted:
            self._permits.pop(fill.key)
        elif fill.permit in self._forced and self._begins(fill.key, self._forced[fill.permit]):
            self.values.pop(fill.key)
        if not verdict.accepted or (place is not None and place.is_followed):
            self.publish(fill.key)
        return verdict

    def _begins(self, key: bytes, front: bytes) -> bool:
        raw = self.values.get(key, self._now())
        return raw is not None and raw[FRONT] == front

    def renew(self, key: bytes, proof: bytes) -> bool:
        place = self.place(key)
        if place is None or place.kind != "lease" or place.proof != proof:
            return False
        self._settle_in(key, place, LEASE)
        return True


class Impatient(Holder):
    """A holder whose steps fail when their time is up. What had left by then, or when its caller left, may still be executed: `late`."""

    budget = 0.25

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.late: list[Step] = []
        self.lost = 0

    def add(self, step: Step, seconds: float | None = None) -> Step:
        super().add(step)
        timer = asyncio.get_running_loop().call_later(self.budget if seconds is None else max(seconds, 0.0), step.fail)

        def over(future: asyncio.Future[Any]) -> None:
            timer.cancel()
            if future.cancelled() or future.exception() is not None:
                self.lost += 1
                if step.is_written and not step.is_executed:
                    self.late.append(step)

        step.future.add_done_callback(over)
        return step


class Lessee(Impatient):
    """One process's leases: `base.Leases` over the store. Its followers are the library's own, over a subscription of ours."""

    def __init__(self, store: LeasedStore, tick: Tick) -> None:
        super().__init__()
        self.store, self._tick = store, tick
        self.holds: dict[bytes, bytes] = {}  # keys by proof
        self.wire = Wire()
        self.followers = Followers(self.wire, b"woken")  # type: ignore[arg-type]
        self.is_dead = False
        self._timer: asyncio.TimerHandle | None = None
        store.lessees.append(self)

    def __repr__(self) -> str:
        return f"<Lessee of {len(self.holds)}, {self.followers!r}>"

    def follow(self, key: bytes) -> KeyFollower:
        return self.followers.follow(key)

    async def acquire(self, wants: Sequence[base.Want], *, timeout: float, written: Callable[[], None]) -> list[base.Standing]:
        proofs = [b"L" + os.urandom(16) for _ in wants]

        async def run() -> list[base.Standing]:
            return [self.store.acquire(*each) for each in zip(wants, proofs, strict=True)]

        step = Step("acquire", tuple(wants), run)
        step.on_write, step.on_answer = written, self._take_tick
        try:
            standings = await self._ask(step, timeout)
        except (BackendError, asyncio.CancelledError) as error:
            if step.is_written or isinstance(error, asyncio.CancelledError):
                for want, proof in zip(wants, proofs, strict=True):
                    self._end(want.key, proof, wakes_all=False)
            raise
        self._hold({one.permit: want.key for want, one in zip(wants, standings, strict=True) if isinstance(one, base.Claim)})
        return standings  # type: ignore[no-any-return]

    def _take_tick(self) -> None:
        self._tick.take()

    def _ask(self, step: Step, timeout: float) -> Awaitable[Any]:
        if step.name in self.held:
            return self.add(step, timeout).future
        return self._answered(step)

    async def _answered(self, step: Step) -> Any:
        return (await step.go()).result

    # Ending

    def release(self, key: bytes, lease: bytes) -> None:
        self._end(key, lease)

    def fail(self, key: bytes, lease: bytes, reason: bytes, *, throttle: float) -> None:
        self._end(key, lease, "fail", reason, throttle)

    def leave_alone(self, key: bytes, lease: bytes) -> None:
        self._end(key, lease, "leave_alone")

    def _end(
        self, key: bytes, lease: bytes, what: str = "release", reason: bytes = b"", throttle: float = 0.0, *, wakes_all: bool = True
    ) -> None:
        self.let_go(lease)
        if self.is_dead:
            return
        if "end" not in self.held:
            self.store.end(key, lease, what, reason, throttle, wakes_all=wakes_all)
            return

        async def run() -> None:
            self.store.end(key, lease, what, reason, throttle, wakes_all=wakes_all)

        self._behind(Step("end", (key, what), run), LEASE)

    def _behind(self, step: Step, seconds: float) -> Step:
        """Nobody waits for it."""
        self.add(step, seconds).write()
        step.future.add_done_callback(lambda future: future.cancelled() or future.exception())
        return step

    # Holding

    def _hold(self, taken: dict[bytes, bytes]) -> None:
        self.holds.update(taken)
        if self.holds and self._timer is None and not self.is_dead:
            self._timer = asyncio.get_running_loop().call_later(LEASE / 3, self._renew)

    def let_go(self, lease: bytes) -> None:
        if self.holds.pop(lease, None) is not None and not self.holds and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _renew(self) -> None:
        self._timer = None
        meant = dict(self.holds)

        def renew() -> None:
            for lease in [lease for lease, key in meant.items() if not self.store.renew(key, lease)]:
                self.let_go(lease)

        if "renew" not in self.held:
            renew()
        else:

            async def run() -> None:
                renew()

            self._behind(Step("renew", tuple(meant.values()), run), LEASE / 3)
        self._hold({})

    # Hearing

    def hear(self, key: bytes) -> None:
        """A wake-up is on its way to this process."""
        if self.is_dead or self.wire.is_deaf or not self.wire.is_live:
            return
        if "wake" not in self.held:
            self.followers.heard(key)
            return

        async def run() -> None:
            if self.wire.is_live:
                self.followers.heard(key)

        Holder.add(self, Step("wake", (key,), run)).write()

    async def holder(self, key: bytes, *, timeout: float) -> base.Holder | None:
        place = self.store.place(key)
        if place is None or place.kind == "rest":
            return None
        return base.Holder(place.proof, place.attempt, place.kind == "failed", self.left(key))

    def left(self, key: bytes) -> float:
        return self.store.left(key)

    # The end

    def die(self) -> None:
        """From now on nothing is heard of this process, and it hears nothing."""
        self.is_dead = True
        self.wire.is_cut = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for step in self.waiting():
            if step.name != "acquire":
                step.future.cancel()
        self.late.clear()

    def close(self) -> None:
        self.followers.close()
        for lease, key in list(self.holds.items()):
            self.release(key, lease)


class Wire:
    """A subscription: a `base.Listener`, and the link that it is had from. It can be cut, which is noticed, and be deaf, which is not."""

    def __init__(self) -> None:
        self.is_live = self.is_cut = self.is_deaf = False
        self._ear: base.Ear | None = None

    def listen(self, channel: bytes, ear: base.Ear) -> Wire:
        self._ear = ear
        return self

    def check(self, timeout: float) -> None:
        asyncio.get_running_loop().call_soon(self._subscribe)

    def _subscribe(self) -> None:
        if not self.is_live and not self.is_cut and self._ear is not None:
            self.is_live = True
            self._ear.began()

    def hang_up(self) -> None:
        self.cut(for_good=False)

    def cut(self, *, for_good: bool = True) -> None:
        self.is_cut = self.is_cut or for_good
        if self.is_live and self._ear is not None:
            self.is_live = False
            self._ear.ended()

    def mend(self) -> None:
        self.is_cut = self.is_deaf = False


class LeasedPort(Impatient, Port):
    """A process's way to the store, with leases."""

    def __init__(self, store: LeasedStore, tick: Tick) -> None:
        super().__init__(store, tick)
        self.lessee = Lessee(store, tick)
        self.leases = self.lessee  # type: ignore[assignment]

    async def fill(self, fills: Sequence[base.Fill], **options: Any) -> Any:
        for fill in fills:
            self.lessee.let_go(fill.permit)
        try:
            return await super().fill(fills, **options)
        except BackendError:
            for fill in fills:
                if fill.leased:
                    self.lessee.release(fill.key, fill.permit)
            raise

    async def aclose(self) -> None:
        self.lessee.close()

    def forget(self) -> None:
        self.lessee.die()


class LeasedFleet(Fleet):
    """Processes that share a store with leases."""

    memory: LeasedStore

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(None, clock)
        self.memory = LeasedStore(clock)

    def _open(self, tick: Tick) -> base.Port:
        return LeasedPort(self.memory, tick)

    def process(self, *hold: str, budget: float = 0.25, leased: bool = True) -> Process:
        """A process, of which these operations are held, those of its leases, too."""
        process = super().process(*[name for name in hold if name in OPERATIONS], budget=budget)
        port = process.port
        assert isinstance(port, LeasedPort)
        port.budget = port.lessee.budget = budget
        port.lessee.hold(*[name for name in hold if name in OVER_A_NETWORK])
        return process
