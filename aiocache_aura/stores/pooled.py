"""The same lanes over a client's public API: for fakeredis, RESP2 servers, and clients that only their maker can connect.

One tick's groups go through a pipeline in one task of the link's own, in order. Slower than a multiplexed lane, and right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import redis.asyncio as redis_asyncio
from redis.exceptions import RedisError

from aiocache_aura.errors import BackendError, BackendTimeoutError, ConfigurationError
from aiocache_aura.stores.base import Command, Handler


class _Group:
    __slots__ = ("commands", "handler", "over", "timeout")

    def __init__(self, commands: Sequence[Command], handler: Handler, timeout: float) -> None:
        self.commands, self.handler, self.timeout = commands, handler, timeout
        self.over = False

    def fail(self, error: BackendError) -> None:
        if not self.over:
            self.over = True
            self.handler.fail(error)


class _Waiting:
    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: asyncio.Future[list[object]] = asyncio.get_running_loop().create_future()

    def written(self) -> None:
        return None

    def deliver(self, replies: list[object]) -> None:
        if not self.future.done():
            self.future.set_result(replies)

    def fail(self, error: BackendError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class PooledLane:
    """A lane that borrows a connection of the client's pool for each tick."""

    def __init__(self, client: redis_asyncio.Redis) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._collects: list[Callable[[], None]] = []
        self._queue: list[_Group] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._flushing = False

    def __repr__(self) -> str:
        return f"<PooledLane, {len(self._tasks)} under way, {len(self._queue)} queued>"

    def wake(self, collect: Callable[[], None], /) -> None:
        self._collects.append(collect)
        self._schedule()

    def put(self, commands: Sequence[Command], handler: Handler, *, timeout: float, repeatable: bool, patient: bool = False) -> None:
        self._queue.append(_Group(commands, handler, timeout))
        self._schedule()

    def send(
        self, commands: Sequence[Command], *, timeout: float, repeatable: bool = False, patient: bool = False
    ) -> asyncio.Future[list[object]]:
        handler = _Waiting()
        self.put(commands, handler, timeout=timeout, repeatable=repeatable, patient=patient)
        return handler.future

    def _schedule(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        collects, self._collects = self._collects, []
        for collect in collects:
            collect()
        self._flushing = False
        groups, self._queue = self._queue, []
        if groups:
            task = self._loop.create_task(self._run(groups))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, groups: list[_Group]) -> None:
        for group in groups:
            group.handler.written()
        try:
            async with asyncio.timeout(max(group.timeout for group in groups)):
                replies = await self._execute([command for group in groups for command in group.commands])
        except TimeoutError as error:
            _fail(groups, BackendTimeoutError("the server did not answer in time"), error)
        except (RedisError, OSError) as error:
            _fail(groups, BackendError(f"the server cannot be asked: {error or type(error).__name__}"), error)
        except BaseException as error:
            _fail(groups, BackendError("the connection is closed"), error)
            raise
        else:
            _deliver(groups, replies)

    async def _execute(self, commands: Sequence[Command]) -> list[object]:
        pipeline = self._client.pipeline(transaction=False)
        pipeline.response_callbacks = {}  # replies as they come, as on a lane
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[object] = await pipeline.execute(raise_on_error=False)
        return replies

    async def aclose(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _fail(groups: Sequence[_Group], error: BackendError, cause: BaseException) -> None:
    error.__cause__ = cause
    for group in groups:
        group.fail(error)


def _deliver(groups: Sequence[_Group], replies: list[object]) -> None:
    at = 0
    for group in groups:
        group.over = True
        group.handler.deliver(replies[at : at + len(group.commands)])
        at += len(group.commands)


class PooledLink:
    """Reads and writes through one client, which stays its owner's to close."""

    def __init__(self, client: Any) -> None:
        self._client = binary_client(client)
        self.reads = [PooledLane(self._client)]
        self.writes = PooledLane(self._client)

    def __repr__(self) -> str:
        return f"<PooledLink {self.reads!r} {self.writes!r}>"

    async def aclose(self) -> None:
        for lane in (*self.reads, self.writes):
            await lane.aclose()
        if self._client.connection_pool is not None and getattr(self._client, "_aura_owns", False):
            await self._client.connection_pool.disconnect()

    def forget(self) -> None:
        return None


def binary_client(client: Any) -> Any:
    """The client, or one beside it on the same server that leaves bytes as they are."""
    pool: Any = getattr(client, "connection_pool", None)
    kwargs = getattr(pool, "connection_kwargs", None)
    if not isinstance(kwargs, dict):
        raise ConfigurationError(f"client= takes a redis.asyncio.Redis, not {type(client).__name__}")
    if not kwargs.get("decode_responses"):
        return client
    own_pool = type(pool)(connection_class=pool.connection_class, **{**kwargs, "decode_responses": False})
    binary = type(client)(connection_pool=own_pool)
    binary._aura_owns = True
    return binary
