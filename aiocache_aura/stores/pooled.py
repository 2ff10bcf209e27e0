"""The same lanes over a client's public API: for fakeredis, RESP2 servers, and clients that only their maker can connect.

Invariants
- Each lane has one pipeline under way; what is asked meanwhile leaves in the next, so order is kept and no pool is ever exhausted.
- The pool is our own, made as the client's was: for each process and loop, with replies as bytes, and without retries, which would send a
  group twice that may be sent only once. A pool of another kind than redis-py's own is used as it is.
- Connecting, and waiting for late replies, is done in the lane's own time: callers leave at their deadlines, but a connection that was cut
  off then would have to be made again, which over a slow line takes more than the next caller has.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any

import redis.asyncio as redis_asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from aiocache_aura.errors import BackendError, BackendTimeoutError, ConfigurationError
from aiocache_aura.stores.base import Command, Ear, FutureHandler, Handler, NoHandler, own_copy
from aiocache_aura.stores.connections import CONNECT_TIMEOUT, Endpoint, Keeper, forget_pool, pool_of
from aiocache_aura.stores.replies import told
from aiocache_aura.stores.scripts import LOAD_ALL
from aiocache_aura.stores.statistics import Connection

PAUSE = 0.05  # before another attempt for those that wait for a server that is down
STUCK_AFTER = 1.0  # beyond the last deadline


class _Group:
    __slots__ = ("commands", "deadline", "handler", "over", "patient", "repeatable", "timer", "tries")

    def __init__(self, commands: Sequence[Command], handler: Handler, deadline: float, repeatable: bool, patient: bool) -> None:
        self.commands, self.handler, self.deadline = commands, handler, deadline
        self.repeatable, self.patient = repeatable, patient
        self.over, self.tries = False, 0
        self.timer = asyncio.get_running_loop().call_at(deadline, self._expire)

    def may_go_again(self, *, sent: bool) -> bool:
        if self.over:
            return False
        return self.repeatable and (self.patient or self.tries < 2) if sent else self.patient

    def deliver(self, replies: list[object]) -> bool:
        if self.over:
            return True
        self._end()
        return self.handler.deliver(replies)

    def fail(self, error: BackendError) -> None:
        if not self.over:
            self._end()
            self.handler.fail(own_copy(error))

    def _expire(self) -> None:
        self.fail(BackendTimeoutError("the server did not answer in time"))

    def _end(self) -> None:
        self.over = True
        self.timer.cancel()


class PooledLane:
    """A lane that borrows a connection of the pool for each batch of groups. The `opening` commands go before the first."""

    def __init__(self, client: redis_asyncio.Redis, *, opening: Sequence[Command] = ()) -> None:
        self._client, self._opening = client, opening
        self._loop = asyncio.get_running_loop()
        self._collects: list[Callable[[], None]] = []
        self._queue: list[_Group] = []
        self._task: asyncio.Task[None] | None = None
        self._flushing = self._closed = False
        self._under_way: Sequence[_Group] = ()
        self._begun_at: float | None = None  # when what is under way was written
        self._error: BackendError | None = None
        self._failures = self._batches = 0

    def __repr__(self) -> str:
        return f"<PooledLane, {'closed' if self._closed else 'busy' if self._task else 'idle'}, {len(self._queue)} queued>"

    def wake(self, collect: Callable[[], None], /) -> None:
        self._collects.append(collect)
        self._schedule()

    def put(self, commands: Sequence[Command], handler: Handler, *, timeout: float, repeatable: bool, patient: bool = False) -> None:
        if self._closed:
            handler.fail(_closed())
            return
        self._queue.append(_Group(commands, handler, self._loop.time() + timeout, repeatable, patient))
        self._schedule()

    def send(
        self, commands: Sequence[Command], *, timeout: float, repeatable: bool = False, patient: bool = False
    ) -> asyncio.Future[list[object]]:
        handler = FutureHandler()
        self.put(commands, handler, timeout=timeout, repeatable=repeatable, patient=patient)
        return handler.future

    def hasten(self) -> None:
        """It tries each time."""

    def told(self, role: str) -> Connection:
        """What it is like now; may be asked from any thread. How often a connection was made anew, the pool knows."""
        error, begun = self._error, self._begun_at
        return Connection(
            role,
            self._state(),
            pending=len(self._under_way) if begun is not None else 0,
            queued=len(self._queue) + (len(self._under_way) if begun is None else 0),
            failures=self._failures,
            last_error=None if error is None else str(error),
            waiting_seconds=0.0 if begun is None else max(self._loop.time() - begun, 0.0),
        )

    def _state(self) -> str:
        if self._closed:
            return "closed"
        if self._error is not None:
            return "down"
        return "ready" if self._batches else "idle" if self._task is None else "connecting"

    def _schedule(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        collects, self._collects = self._collects, []
        try:
            for collect in collects:
                collect()
        finally:
            self._flushing = False
        if self._queue and self._task is None:
            if self._opening:
                self._queue.insert(0, _Group(self._opening, NoHandler(), self._loop.time() + CONNECT_TIMEOUT, True, False))
                self._opening = ()
            self._task = self._loop.create_task(self._work())

    async def _work(self) -> None:
        groups: list[_Group] = []
        try:
            while self._queue:
                self._under_way = groups = self._queue
                self._queue = []
                again, pause = await self._run(groups)
                self._queue[:0] = again
                if again and pause:
                    await asyncio.sleep(PAUSE)
        finally:
            self._task, self._under_way, self._begun_at = None, (), None
            for group in (*groups, *self._queue):  # none but when this task was cancelled
                group.fail(_closed())

    async def _run(self, groups: Sequence[_Group]) -> tuple[list[_Group], bool]:
        """Those to be sent again, and whether only after a pause."""
        failure = await self._attempt(self._connect(), self._loop.time() + CONNECT_TIMEOUT)
        self._ended(failure)
        if failure is not None:
            return _parted(groups, failure, sent=False), True
        groups = [group for group in groups if not group.over]
        if not groups:
            return [], False
        for group in groups:
            group.tries += 1
            group.handler.written()
        self._begun_at = self._loop.time()
        failure = await self._attempt(self._execute(groups), max(group.deadline for group in groups) + STUCK_AFTER)
        self._begun_at = None
        self._ended(failure)
        return ([], False) if failure is None else (_parted(groups, failure, sent=True), False)

    def _ended(self, failure: BackendError | None) -> None:
        """A step is over: it was in vain, or not."""
        self._error = failure
        self._failures = self._failures + 1 if failure else 0
        self._batches += not failure

    async def _attempt(self, what: Any, deadline: float) -> BackendError | None:
        try:
            async with asyncio.timeout_at(deadline):
                await what
        except (TimeoutError, RedisTimeoutError) as error:
            return _caused(BackendTimeoutError("the server did not answer in time"), error)
        except (RedisError, OSError) as error:
            text, cause = told(error)
            return _caused(BackendError(f"the server cannot be asked: {text or type(error).__name__}"), cause)
        return None

    async def _connect(self) -> None:
        """Have a connection in the pool that is ready: a pipeline that runs out of time while it connects would never get one."""
        pool: Any = self._client.connection_pool
        await pool.release(await pool.get_connection())

    async def _execute(self, groups: Sequence[_Group]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        pipeline.response_callbacks = {}  # replies as they come, as on a lane
        for group in groups:
            for command in group.commands:
                pipeline.execute_command(*command)
        replies: list[object] = await pipeline.execute(raise_on_error=False)
        at = 0
        for group in groups:
            if not group.deliver(replies[at : at + len(group.commands)]):
                await self._client.connection_pool.disconnect()
                raise RedisError("what came is no reply to what was asked")
            at += len(group.commands)

    async def aclose(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        for group in self._queue:
            group.fail(_closed())


def _parted(groups: Sequence[_Group], error: BackendError, *, sent: bool) -> list[_Group]:
    """Those to be sent again; the others fail."""
    again = [group for group in groups if group.may_go_again(sent=sent)]
    for group in groups:
        if group not in again:
            group.fail(error)
    return again


def _caused(error: BackendError, cause: BaseException | None) -> BackendError:
    error.__cause__ = cause
    return error


def _closed() -> BackendError:
    return BackendError("the connection is closed")


class PooledLink:
    """Reads and writes through one client, which stays its owner's to close."""

    def __init__(self, client: Any) -> None:
        own = own_pool(client)
        self._client = client if own is None else redis_asyncio.Redis(connection_pool=own)
        self._pid = os.getpid()
        self.reads = [PooledLane(self._client)]
        self.writes = PooledLane(self._client, opening=LOAD_ALL)
        self._keeper = Keeper(self._let_go, self.forget)
        self._is_own = own is not None

    def __repr__(self) -> str:
        return f"<PooledLink {self.reads!r} {self.writes!r}>"

    def listen(self, channel: bytes, ear: Ear) -> None:
        """None: a subscription keeps a connection, and the pool of a client that is used as it is may have no other."""
        return None

    def connections(self) -> list[Connection]:
        return [lane.told("read") for lane in self.reads] + [self.writes.told("write")]

    async def aclose(self) -> None:
        await self._keeper.aclose()

    async def _let_go(self) -> None:
        for lane in (*self.reads, self.writes):
            await lane.aclose()
        if self._is_own:
            await self._client.connection_pool.disconnect()

    def forget(self) -> None:
        if self._is_own:
            forget_pool(self._client.connection_pool, self._pid)


def own_pool(client: Any) -> redis_asyncio.ConnectionPool | None:
    """A pool of our own to a client's server; None where its pool is not one of redis-py's own kinds."""
    pool: Any = getattr(client, "connection_pool", None)
    if not isinstance(getattr(pool, "connection_kwargs", None), dict):
        raise ConfigurationError(f"client= takes a redis.asyncio.Redis, not {type(client).__name__}")
    if type(pool) not in (redis_asyncio.ConnectionPool, redis_asyncio.BlockingConnectionPool):
        return None
    no_retries = {"retry": Retry(NoBackoff(), 0), "retry_on_timeout": False, "retry_on_error": []}
    endpoint = Endpoint(pool.connection_class, {**pool.connection_kwargs, **no_retries, "decode_responses": False, "socket_timeout": None})
    return pool_of(endpoint, max_connections=2, timeout=CONNECT_TIMEOUT)
