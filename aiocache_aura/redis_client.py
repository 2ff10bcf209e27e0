"""RedisClient: a shared redis-py client for everything that is not cached calls.

Pipelines, scripts by hand, blocking commands, pub/sub: redis-py's job, on a pool whose callers wait for a connection instead of failing.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from aiocache_aura.errors import ConfigurationError

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from aiocache_aura.stores.connections import Keeper
    from aiocache_aura.stores.statistics import Pool

DEFAULTS: dict[str, Any] = {
    "max_connections": 50,
    "socket_timeout": 5.0,
    "socket_connect_timeout": 5.0,
    "retry_on_timeout": True,
    "health_check_interval": 30,
    "pool_timeout": 20.0,
}


class RedisClient:
    """One redis.asyncio client for each process and event loop; see `get_client`."""

    _options: dict[str, Any] = dict(DEFAULTS)
    _clients: dict[tuple[int, asyncio.AbstractEventLoop | None], Redis] = {}
    _keepers: dict[asyncio.AbstractEventLoop, Keeper] = {}

    @classmethod
    def configure(cls, *, url: str | None = None, **options: Any) -> None:
        """Say where the server is and how the pool behaves, before the first `get_client`.

        Args:
            url: redis:// rediss:// unix:// valkey:// valkeys://; otherwise AURA_CACHE_URL is read.
            options: max_connections (50), socket_timeout and socket_connect_timeout (5 s), retry_on_timeout (True),
                health_check_interval (30 s), pool_timeout (how long a caller waits for a connection, 20 s), and any other option
                of a redis-py connection.
        """
        if cls._clients:
            raise ConfigurationError("RedisClient is in use already: call configure() before the first get_client(), or after aclose()")
        size = options.get("max_connections", 1)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigurationError(f"max_connections={size!r}: it is a number of connections, at least 1")
        cls._options = {**DEFAULTS, **options} | ({} if url is None else {"url": url})

    @classmethod
    def get_client(cls) -> Redis:
        """The client of this process and event loop; one made outside a loop belongs to the first loop that asks.

        Raises ConfigurationError, saying how to set one, where no URL of a Redis server is known.
        """
        pid, loop = os.getpid(), _running_loop()
        client = cls._clients.get((pid, loop))
        if client is None:
            client = cls._clients.pop((pid, None), None) or cls._make()
            cls._forget_the_dead(pid)
            cls._clients[pid, loop] = client
            if loop is not None:
                cls._keep(loop, client)
        return client

    @classmethod
    def pool(cls) -> Pool | None:
        """How busy the pool of this loop's client is: in use, idle, most, and callers that wait; None where nobody has used it."""
        client = cls._clients.get((os.getpid(), _running_loop()))
        if client is None:
            return None
        from aiocache_aura.stores.connections import told_of

        return told_of(client.connection_pool)

    @classmethod
    async def aclose(cls) -> None:
        """Close this loop's client; idempotent. The settings of `configure` stay."""
        pid, loop = os.getpid(), _running_loop()
        for key in ((pid, loop), (pid, None)):
            client = cls._clients.pop(key, None)
            if client is not None:
                await _close(client)
        keeper = None if loop is None else cls._keepers.pop(loop, None)
        if keeper is not None:
            await keeper.aclose()

    @classmethod
    def _keep(cls, loop: asyncio.AbstractEventLoop, client: Redis) -> None:
        """Have the client closed when its loop ends, if nobody has closed it until then."""
        from aiocache_aura.stores.connections import Keeper, forget_pool

        pid = os.getpid()

        async def let_go() -> None:
            cls._keepers.pop(loop, None)
            if cls._clients.get((pid, loop)) is client:
                del cls._clients[pid, loop]
                await _close(client)

        cls._keepers[loop] = Keeper(let_go, lambda: forget_pool(client.connection_pool, pid))

    @classmethod
    def _make(cls) -> Redis:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import ExponentialBackoff
        from redis.exceptions import TimeoutError as RedisTimeoutError

        from aiocache_aura.stores.connections import Endpoint, pool_of

        options = dict(cls._options)
        endpoint = Endpoint.from_url(options.pop("url", None) or _url_of_environment())
        options |= endpoint.options  # as in redis-py, what a URL says counts
        size, wait = options.pop("max_connections"), options.pop("timeout", options.pop("pool_timeout"))
        if options.pop("retry_on_timeout") and "retry" not in options:
            options["retry"] = Retry(ExponentialBackoff(cap=0.5, base=0.01), 1, supported_errors=(RedisTimeoutError,))
            options["retry_on_error"] = [*options.get("retry_on_error", ()), RedisTimeoutError]  # redis-py 5 asks for both
        return Redis(connection_pool=pool_of(endpoint, max_connections=size, timeout=wait, **options))

    @classmethod
    def _forget_the_dead(cls, pid: int) -> None:
        """Let go of the clients of closed loops; those of a parent process are kept, unused, so that nothing closes them."""
        from aiocache_aura.stores.connections import forget_pool

        for owner, loop in list(cls._clients):
            if owner == pid and loop is not None and loop.is_closed():
                forget_pool(cls._clients.pop((owner, loop)).connection_pool, pid)


async def _close(client: Redis) -> None:
    await client.aclose()
    await client.connection_pool.disconnect()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _url_of_environment() -> str:
    url = os.environ.get("AURA_CACHE_URL", "")
    if not url or url.startswith("memory:"):
        raise ConfigurationError(
            "RedisClient has no server to talk to: call RedisClient.configure(url='redis://localhost:6379/0'), or set AURA_CACHE_URL"
        )
    return url
