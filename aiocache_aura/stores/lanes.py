"""Lanes: one multiplexed connection each, for all callers of an event loop.

    idle -> connecting -> ready -> (lost) connecting -> ...
                 \\-> down -> (a caller comes, and the backoff is over) connecting
    closed is final

Invariants
- Commands of one event-loop tick leave in one write; replies are matched in order. A group whose time is up keeps its place in the order,
  so that its late reply is swallowed and nobody else is given it.
- Connecting is a task of the lane's own: a caller waits for it within its timeout and never cancels it. A lane that is known to be down
  fails groups at once; only patient ones wait for the next attempt. Attempts are made when somebody asks, with a backoff.
- A group that is not repeatable is written at most once. A repeatable one whose connection was lost before its answer is written again.
- One timer for each lane stands at its earliest deadline, never one for each group. While replies wait to be read it is this process that
  is late, not the server: they are read before anybody's time is up, else a crowd of callers would all be sent to their loaders.
- A lane that has answered nobody in time since a first answer was late is aborted and made anew: after `STUCK_AFTER` seconds of silence, or
  after `LATE_AFTER` though bytes come in, for a garbled length may have claimed what followed, and all replies come one group too late.
- A connection that was lost before it gave a single answer counts as a failed attempt: its successor is as short-lived, or soon will be.
- Only listed commands: anything that blocks, or is answered by something else than one reply, would shift or stall everybody's replies.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any

import hiredis

from aiocache_aura.errors import BackendError, BackendTimeoutError
from aiocache_aura.stores.base import CallHandler, Command, Ear, FutureHandler, Handler, NoHandler, own_copy
from aiocache_aura.stores.commands import pack, packed
from aiocache_aura.stores.connections import CONNECT_TIMEOUT, Endpoint, Keeper, Takeover, take_over
from aiocache_aura.stores.replies import refused
from aiocache_aura.stores.scripts import LOAD_ALL
from aiocache_aura.stores.statistics import Connection

log = logging.getLogger("aiocache_aura.lanes")

STUCK_AFTER, LATE_AFTER = 1.0, 5.0
MOMENT = 0.005  # to read what has come
BACKOFF_FIRST, BACKOFF_MOST = 0.05, 1.0
REFUSED_FOR = 60.0
_NOTHING = object()  # hiredis says False both for "no more" and for a reply of #f, unless told otherwise

_Push = hiredis.PushNotification


class State(Enum):
    IDLE = "idle"
    CONNECTING = "connecting"
    READY = "ready"
    DOWN = "down"
    CLOSED = "closed"


_READY = State.READY  # looked up at each flush


class _Group:
    __slots__ = ("count", "deadline", "handler", "over", "packed", "patient", "repeatable", "replies", "written_at")

    def __init__(self, packed: bytes, count: int, handler: Handler, deadline: float, repeatable: bool, patient: bool) -> None:
        self.packed, self.count, self.handler, self.deadline = packed, count, handler, deadline
        self.repeatable, self.patient = repeatable, patient
        self.replies: list[object] = []
        self.over = False
        self.written_at = 0.0

    def fail(self, error: BackendError) -> None:
        if not self.over:
            self.over = True
            self.handler.fail(own_copy(error))


class MultiplexedLane(asyncio.Protocol):
    """One connection; connects when it is first used. The `opening` commands go before all others over each connection."""

    def __init__(self, endpoint: Endpoint, *, on_push: Callable[[object], None] | None = None, opening: Sequence[Command] = ()) -> None:
        self._endpoint, self._on_push, self._opening = endpoint, on_push, opening
        self._loop = asyncio.get_running_loop()
        self.state = State.IDLE
        self._collects: list[Callable[[], None]] = []
        self._queue: deque[_Group] = deque()
        self._pending: deque[_Group] = deque()
        self._flushing = self._paused = False
        self._put_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._takeover: Takeover | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._error: BackendError | None = None
        self._failures, self._not_before = 0, 0.0
        self._made = 0  # connections, so far
        self._heard_at = 0.0  # on this connection
        self._late_since: float | None = None  # when the first of the groups was written that were not answered in time, none in between
        self._gone = asyncio.Event()
        self._gone.set()
        self._keeper: Keeper | None = None

    def __repr__(self) -> str:
        return f"<Lane to {self._endpoint!r}, {self.state.value}, {len(self._pending)} pending, {len(self._queue)} queued>"

    # Callers

    def wake(self, collect: Callable[[], None], /) -> None:
        self._collects.append(collect)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def put(self, commands: Sequence[Command], handler: Handler, *, timeout: float, repeatable: bool, patient: bool = False) -> None:
        raw = packed(commands)
        self._put_at = now = self._loop.time()
        if self.state is not _READY and self._refuses(patient, now):
            handler.fail(own_copy(self._error or BackendError(f"the connection to {self._endpoint!r} is closed")))
            return
        self._queue.append(_Group(raw, len(commands), handler, now + timeout, repeatable, patient))
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def send(
        self, commands: Sequence[Command], *, timeout: float, repeatable: bool = False, patient: bool = False
    ) -> asyncio.Future[list[object]]:
        handler = FutureHandler()
        self.put(commands, handler, timeout=timeout, repeatable=repeatable, patient=patient)
        return handler.future

    def _refuses(self, patient: bool, now: float) -> bool:
        return self.state is State.CLOSED or (self.state is State.DOWN and not patient and now < self._not_before)

    def hasten(self) -> None:
        self._not_before = 0.0

    def told(self, role: str) -> Connection:
        """What it is like now; may be asked from any thread."""
        pending, error, takeover = list(self._pending), self._error, self._takeover
        return Connection(
            role,
            self.state.value,
            pending=len(pending),
            queued=len(self._queue),
            reconnects=max(self._made - 1, 0),
            failures=self._failures,
            last_error=None if error is None else str(error),
            waiting_seconds=max(self._loop.time() - pending[0].written_at, 0.0) if pending else 0.0,
            version=None if takeover is None else takeover.version,
        )

    # Writing

    def _flush(self) -> None:
        collects, self._collects = self._collects, []
        try:
            for collect in collects:
                collect()
        finally:
            self._flushing = False
        queue = self._queue
        if not queue:
            return
        deadline = queue[0].deadline if len(queue) == 1 else min(group.deadline for group in queue)
        if self._timer is None or deadline < self._timer.when():
            self._arm(deadline)
        state = self.state
        if state is _READY:
            if not self._paused:
                self._write(self._put_at)
        elif state is not State.CONNECTING:
            self._connect_when_due()

    def _write(self, now: float) -> None:
        """Write what is queued; `now` is a time not later than this."""
        out = []
        for group in self._queue:
            if not group.over:
                group.written_at = now
                group.handler.written()
                self._pending.append(group)
                out.append(group.packed)
        self._queue.clear()
        if out and self._transport is not None:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    # Reading (asyncio.Protocol)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._heard_at, self._late_since, self._paused = 0.0, None, False
        self._gone.clear()

    def data_received(self, data: bytes) -> None:
        pending, gets = self._pending, self._reader.gets
        self._heard_at = self._loop.time()
        try:
            self._reader.feed(data)
            while True:
                reply = gets()
                if reply is _NOTHING:
                    return
                if type(reply) is _Push:
                    if self._on_push is not None:
                        self._on_push(reply)
                    continue
                group = pending[0]
                group.replies.append(reply)
                if len(group.replies) == group.count:
                    pending.popleft()
                    if not group.over:
                        group.over = True
                        self._late_since = None
                        if not group.handler.deliver(group.replies):
                            raise ValueError("it is of another kind")
        except (hiredis.HiredisError, IndexError, ValueError, TypeError) as error:
            log.warning("%r: what came is no reply to what was asked (%s); the connection is remade", self, error)
            self._abort()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._queue and self.state is State.READY:
            self._write(self._loop.time())

    def eof_received(self) -> None:
        self._abort()  # a transport that closes by itself waits until a silent server has read what was written

    def connection_lost(self, exc: Exception | None) -> None:
        takeover, self._takeover, self._transport = self._takeover, None, None
        self._gone.set()
        if takeover is not None:
            takeover.connection_lost(exc)
        if self.state is not State.READY:
            return
        error = self._error or BackendError(f"the connection to {self._endpoint!r} was lost" + (f": {exc}" if exc else ""))
        self.state = State.IDLE
        self._take_back(error)
        if self._heard_at:
            self._failures = 0
        elif self._failures:
            self._went_down(error)
            return
        else:
            self._failures = 1
        if self._queue:
            self._start_connecting()

    def _take_back(self, error: BackendError) -> None:
        """Queue again the written groups that may be written again; the others fail."""
        lost, self._pending = self._pending, deque()
        again = []
        for group in lost:
            if group.repeatable and not group.over:
                group.replies, group.written_at = [], 0.0
                again.append(group)
            else:
                group.fail(error)
        self._queue.extendleft(reversed(again))

    # Connecting

    def _connect_when_due(self) -> None:
        now = self._loop.time()
        if self.state is State.CLOSED:
            self._fail_everything(self._error or BackendError(f"the connection to {self._endpoint!r} is closed"))
        elif self.state is State.IDLE or now >= self._not_before:
            self._start_connecting()
        else:
            self._loop.call_at(self._not_before, self._try_for_the_patient)

    def _try_for_the_patient(self) -> None:
        if self.state is State.DOWN and any(not group.over for group in self._queue):
            self._start_connecting()

    def _start_connecting(self) -> None:
        self.state = State.CONNECTING
        if self._keeper is None:
            self._keeper = Keeper(self._let_go, self.forget)
        self._connecting = self._loop.create_task(self._connect())
        self._connecting.add_done_callback(self._never_begun)

    async def _connect(self) -> None:
        failure: BackendError | None = BackendError(f"connecting to {self._endpoint!r} was cancelled")
        try:
            self._takeover = await take_over(self._endpoint, self)
            failure = None
        except BackendError as error:
            failure = error
        finally:
            self._connected(failure)

    def _never_begun(self, task: asyncio.Task[None]) -> None:
        if self._connecting is task:  # cancelled before its first step
            self._connected(BackendError(f"connecting to {self._endpoint!r} was cancelled"))

    def _connected(self, failure: BackendError | None) -> None:
        self._connecting = None
        if self.state is State.CLOSED:
            self._abort()
        elif failure is not None:
            self._went_down(failure)
        elif self._transport is None or self._transport.is_closing():
            self._went_down(BackendError(f"{self._endpoint!r} closed the connection"))
        else:
            self.state, self._error = State.READY, None
            self._made += 1
            self._open(self._loop.time() + CONNECT_TIMEOUT)
            if self._queue and not self._paused:
                self._write(self._loop.time())

    def _open(self, until: float) -> None:
        """Put in front of all others what goes first over each connection."""
        if self._opening:
            self._put_first(_Group(packed(self._opening), len(self._opening), NoHandler(), until, False, False))

    def _put_first(self, group: _Group) -> None:
        self._queue.appendleft(group)
        self._arm(group.deadline)

    def _went_down(self, error: BackendError) -> None:
        self._failures += 1
        pause = min(BACKOFF_FIRST * 2 ** min(self._failures - 1, 10), BACKOFF_MOST) * random.uniform(0.5, 1)  # noqa: S311
        self.state, self._error = State.DOWN, error
        self._not_before = self._loop.time() + pause
        queue, self._queue = self._queue, deque(group for group in self._queue if group.patient and not group.over)
        for group in queue:
            if not group.patient:
                group.fail(error)
        if self._queue:
            self._loop.call_at(self._not_before, self._try_for_the_patient)

    # Time

    def _arm(self, deadline: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._on_time)
        elif deadline < self._timer.when():
            self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        now = self._loop.time()
        is_ours = self._is_late_itself(now)
        for group in self._queue if is_ours else (*self._pending, *self._queue):
            if group.deadline <= now and not group.over:
                if group.written_at and self._late_since is None:
                    self._late_since = group.written_at
                group.fail(BackendTimeoutError(f"{self._endpoint!r} did not answer in time"))
        self._queue = deque(group for group in self._queue if not group.over)
        times = [group.deadline for group in (*self._queue, *self._pending) if not group.over]
        if self._pending and self._pending[0].over and self._late_since is not None:
            given_up_at = min(max(self._pending[0].written_at, self._heard_at) + STUCK_AFTER, self._late_since + LATE_AFTER)
            if now >= given_up_at:
                self._error = BackendTimeoutError(f"{self._endpoint!r} has answered nothing in time for {now - self._late_since:.1f} s")
                self._abort()
            else:
                times.append(given_up_at)
        if times:
            self._arm(max(min(times), now + MOMENT) if is_ours else min(times))

    def _is_late_itself(self, now: float) -> bool:
        """Whether replies have come that were not read yet, for groups whose time is not long up."""
        deadline = next((group.deadline for group in self._pending if not group.over), now)
        return deadline <= now < deadline + STUCK_AFTER and self._takeover is not None and self._takeover.has_unread()

    # The end

    def _abort(self) -> None:
        self._paused = True  # until there is another connection
        if self._transport is not None:
            self._transport.abort()

    async def _let_go(self) -> None:
        """At the end of the loop, or of this lane."""
        self._keeper = None
        if self.state is not State.CLOSED:
            self.state = State.IDLE
        self._fail_everything(self._error or BackendError("the event loop has ended"))
        self._abort()

    async def aclose(self) -> None:
        self.state, self._error = State.CLOSED, BackendError(f"the connection to {self._endpoint!r} is closed")
        if self._timer is not None:
            self._timer.cancel()
        while self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait({self._connecting}, timeout=BACKOFF_FIRST)
        await (self._let_go() if self._keeper is None else self._keeper.aclose())
        with suppress(TimeoutError):
            async with asyncio.timeout(STUCK_AFTER):
                await self._gone.wait()

    def _fail_everything(self, error: BackendError) -> None:
        groups, self._queue, self._pending = [*self._pending, *self._queue], deque(), deque()
        for group in groups:
            group.fail(error)

    def forget(self) -> None:
        self.state = State.CLOSED
        self._queue.clear()
        self._pending.clear()
        if self._takeover is not None:
            self._takeover.forget()


class ListeningLane(MultiplexedLane):
    """A lane that subscribes to one channel over each connection, and hears it while it is live.

    The answer to SUBSCRIBE comes as a push, and takes the place of the reply that there is none of; behind it goes a PING, whose reply
    tells that nothing else was said. A server that refuses is asked again after `REFUSED_FOR` seconds.
    """

    def __init__(self, endpoint: Endpoint, channel: bytes, ear: Ear) -> None:
        super().__init__(endpoint, on_push=self._pushed)
        self._channel, self._ear = channel, ear
        self.is_live = self._is_checking = False
        self._refused_until = 0.0

    def check(self, timeout: float) -> None:
        if not self._is_checking and self._loop.time() >= self._refused_until:
            if self._refused_until:  # over this connection, and it is asked but once
                self._refused_until = 0.0
                self.hang_up()
            self._is_checking = True
            self.put([("PING",)], CallHandler(self._checked), timeout=timeout, repeatable=True, patient=True)

    def hang_up(self) -> None:
        self._abort()

    def connection_lost(self, exc: Exception | None) -> None:
        was_live, self.is_live = self.is_live, False
        super().connection_lost(exc)
        if was_live:
            self._ear.ended()

    def _open(self, until: float) -> None:
        raw = pack(("SUBSCRIBE", self._channel)) + pack(("PING",))
        self._put_first(_Group(raw, 2, CallHandler(self._opened), until, False, False))

    def _pushed(self, push: Any) -> None:
        if push[0] == b"message" and len(push) == 3:
            self._ear.heard(push[2])
        elif push[0] == b"subscribe" and self._pending:
            self._pending[0].replies.append(push)
            self.is_live = True
            self._ear.began()

    def _opened(self, replies: Sequence[object]) -> None:
        if replies and isinstance(replies[0], Exception):
            self._refused_until, self._error = self._loop.time() + REFUSED_FOR, refused(("SUBSCRIBE",), replies[0])
            log.warning(
                "%r cannot subscribe to %r (%s): who waits for another's load asks again and again", self, self._channel, replies[0]
            )
            self.hang_up()

    def _checked(self, replies: Sequence[object]) -> None:
        self._is_checking = False


class LaneLink:
    """Lanes to one server: `lanes` for reads, one for writes, which makes the scripts known: to ask again for those that are not takes a
    round trip, and over a slow line that is more than any call's budget, so that none would ever be known."""

    def __init__(self, endpoint: Endpoint, *, lanes: int = 1) -> None:
        self.endpoint = endpoint
        self.reads = [MultiplexedLane(endpoint) for _ in range(lanes)]
        self.writes = MultiplexedLane(endpoint, opening=LOAD_ALL)
        self._listeners: list[ListeningLane] = []

    def __repr__(self) -> str:
        return f"<LaneLink {self.reads!r} {self.writes!r}>"

    def listen(self, channel: bytes, ear: Ear) -> ListeningLane:
        self._listeners.append(ListeningLane(self.endpoint, channel, ear))
        return self._listeners[-1]

    def connections(self) -> list[Connection]:
        lanes = [(lane, "read") for lane in self.reads] + [(self.writes, "write")]
        return [lane.told(role) for lane, role in lanes] + [lane.told("listen") for lane in self._listeners]

    async def aclose(self) -> None:
        for lane in (*self.reads, self.writes, *self._listeners):
            await lane.aclose()

    def forget(self) -> None:
        for lane in (*self.reads, self.writes, *self._listeners):
            lane.forget()
