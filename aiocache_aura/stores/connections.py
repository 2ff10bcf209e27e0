"""All that touches redis-py's insides: connections that are safe to use, and taking over the transport of one.

redis-py connects, authenticates, selects the database, negotiates TLS and RESP3. What it does not do, and what this module adds:

- A handshake that is interrupted, by a cancellation or by an exception of a credential provider, leaves a connection that counts as
  connected: on database 0, as the default user. Ours closes it, whatever the exception.
- Maintenance notifications, on by default from redis-py 7, switch off the check for unread replies: pools then hand out dirty connections.
  They are off in everything that is made here.
- Its retries multiply every timeout. Here a connection tries once; who waits for how long is decided above.

redis-py 5.3 to 8 are supported: an option is passed only where the signature has it.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import os
import selectors
import socket
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

import redis.asyncio as redis_asyncio
from redis.asyncio import connection as redis_connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from aiocache_aura.errors import BackendError, ConfigurationError
from aiocache_aura.stores.replies import told
from aiocache_aura.stores.statistics import Pool

CONNECT_TIMEOUT = 2.0
SCHEMES = {"redis": "redis", "rediss": "rediss", "unix": "unix", "valkey": "redis", "valkeys": "rediss"}
_LATER = ("redis+sentinel", "redis+cluster")


class Resp3RefusedError(BackendError):
    """The server, or a proxy before it, does not speak RESP3: only a client made with protocol=2 can use it."""


@cache
def safe_class(base: Any) -> Any:
    """A connection class whose interrupted handshake closes the connection."""
    names = [name for name in ("connect", "connect_check_health") if hasattr(base, name)]
    return type(f"Safe{base.__name__}", (base,), {name: _guarded(getattr(base, name), is_old=len(names) == 1) for name in names})


def _guarded(connect: Any, *, is_old: bool) -> Any:
    @wraps(connect)
    async def guarded(self: Any, *args: Any, **kwargs: Any) -> None:
        interval = self.health_check_interval
        if is_old:  # redis-py 5 checks the health of a connection with a PING before it has logged in
            self.health_check_interval = 0
        try:
            await connect(self, *args, **kwargs)
        except BaseException:
            self._close()
            raise
        finally:
            self.health_check_interval = interval

    return guarded


_STANDARD = (redis_connection.Connection, redis_connection.SSLConnection, redis_connection.UnixDomainSocketConnection)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server and how to log in to it. Its text never shows a credential."""

    connection_class: Any
    options: Mapping[str, Any]

    def __repr__(self) -> str:
        where = self.options.get("path") or f"{self.options.get('host', 'localhost')}:{self.options.get('port', 6379)}"
        return f"{where}/{self.options.get('db', 0)}"

    @classmethod
    def from_url(cls, url: str) -> Endpoint:
        """redis:// rediss:// unix:// valkey:// valkeys:// as redis-py reads them; ConfigurationError for anything else."""
        scheme, colon, rest = url.partition("://")
        if scheme in _LATER:
            raise ConfigurationError(f"{scheme}:// is not in this version yet; use one of {', '.join(f'{s}://' for s in SCHEMES)}")
        if not colon or scheme not in SCHEMES:
            raise ConfigurationError(
                f"not a URL of a server: {scheme if colon else ''}...; it starts with one of {', '.join(f'{s}://' for s in SCHEMES)}"
            )
        try:
            options: dict[str, Any] = dict(redis_connection.parse_url(f"{SCHEMES[scheme]}://{rest}"))
        except ValueError:  # whose text may hold a part of the password
            raise ConfigurationError(
                f"the {scheme}:// URL cannot be read: its port and database are numbers; "
                "in a user and password anything but letters and digits is percent-encoded, as urllib.parse.quote does"
            ) from None
        endpoint = cls(options.pop("connection_class", redis_connection.Connection), options)
        unknown = sorted(set(options) - _parameters(endpoint.connection_class) - {*_POOL_ONLY})
        if unknown:
            raise ConfigurationError(f"the {scheme}:// URL has an option that redis-py does not know: {unknown[0]}=")
        return endpoint

    @classmethod
    def from_client(cls, client: Any) -> Endpoint | None:
        """The endpoint of a redis.asyncio client, or None for one that only its own API can serve: fakeredis, RESP2, Sentinel, Cluster."""
        pool: Any = getattr(client, "connection_pool", None)
        if type(pool) not in (redis_connection.ConnectionPool, redis_connection.BlockingConnectionPool):
            return None
        standard = next((base for base in _STANDARD if pool.connection_class in (base, safe_class(base))), None)
        if standard is None:
            return None
        options = dict(pool.connection_kwargs)
        return None if str(options.get("protocol")) == "2" else cls(standard, options)

    def connection_options(self) -> dict[str, Any]:
        """What a connection of ours is made with."""
        ours: dict[str, Any] = {
            "protocol": 3,
            "decode_responses": False,
            "driver_info": None,
            "lib_name": None,
            "lib_version": None,
            "maint_notifications_config": _no_maintenance(),
            "socket_timeout": None,  # `take_over` has one for all; theirs is a wait_for, which loses cancellations before Python 3.12
            "socket_connect_timeout": CONNECT_TIMEOUT,
            "retry_on_timeout": False,
            "retry_on_error": [],
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 0,
        }
        if "driver_info" in _parameters(self.connection_class):
            del ours["lib_name"], ours["lib_version"]  # deprecated where driver_info has taken their place
        known = _parameters(self.connection_class)
        given = {name: value for name, value in self.options.items() if name not in _POOL_ONLY}
        return given | {name: value for name, value in ours.items() if name in known}


_POOL_ONLY = (
    "max_connections",
    "timeout",
    "maint_notifications_pool_handler",
    "orig_host_address",
    "orig_socket_timeout",
    "orig_socket_connect_timeout",
)


@cache
def _parameters(cls: Any) -> frozenset[str]:
    """The options that a connection class, or a base of it, names."""
    return frozenset(name for base in cls.__mro__ if "__init__" in base.__dict__ for name in inspect.signature(base).parameters)


def _no_maintenance() -> Any:
    try:
        from redis.maint_notifications import MaintNotificationsConfig
    except ImportError:  # before redis-py 7 there is nothing to switch off
        return None
    return MaintNotificationsConfig(enabled=False)


def pool_of(endpoint: Endpoint, *, max_connections: int, timeout: float, **options: Any) -> redis_asyncio.BlockingConnectionPool:
    """A pool whose callers wait for a connection, at most `timeout` seconds, instead of failing; made of safe connections."""
    ours = {"maint_notifications_config": _no_maintenance(), "driver_info": None}
    known = _parameters(endpoint.connection_class)
    given = {name: value for name, value in {**endpoint.options, **options}.items() if name not in _POOL_ONLY}
    if unknown := sorted(set(given) - known):
        raise ConfigurationError(f"a connection of redis-py has no option {unknown[0]!r}")
    chosen = given | {name: value for name, value in ours.items() if name in known}
    return redis_asyncio.BlockingConnectionPool(
        connection_class=safe_class(endpoint.connection_class), max_connections=max_connections, timeout=timeout, **chosen
    )


def told_of(pool: Any) -> Pool:
    """What a pool of redis-py's is like now."""
    waiting = getattr(getattr(pool, "_condition", None), "_waiters", ())
    in_use, idle = len(getattr(pool, "_in_use_connections", ())), len(getattr(pool, "_available_connections", ()))
    return Pool(in_use, idle, int(pool.max_connections), len(waiting))


class Keeper:
    """Calls `let_go` once: when it is closed, or when the running loop ends.

    `asyncio.run` closes the generators that are open before it closes its loop; a transport that is still open then would warn. Who closes
    a loop otherwise leaves us nothing but the end of the process, when `forget` is called.
    """

    __slots__ = ("__weakref__", "_generator", "forget", "loop")

    def __init__(self, let_go: Callable[[], Awaitable[None]], forget: Callable[[], None]) -> None:
        self.loop, self.forget = asyncio.get_running_loop(), forget
        self._generator = _until_closed(let_go)
        _keepers.add(self)
        try:
            self._generator.__anext__().send(None)
        except StopIteration:
            pass

    async def aclose(self) -> None:
        _keepers.discard(self)
        await self._generator.aclose()


_keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()


@atexit.register
def _forget_closed_loops() -> None:
    for keeper in list(_keepers):
        if keeper.loop.is_closed():
            keeper.forget()


async def _until_closed(let_go: Callable[[], Awaitable[None]]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await let_go()


def forget(transport: Any, pid: int) -> None:
    """Let go of a connection of a closed loop, or of the process `pid` that this one was forked from, without touching the loop.

    A closed loop's transports can do nothing, and closing one in a fork would take it out of the parent's selector. So its socket is closed
    beneath it, and the server is told only if it is this process that leaves.
    """
    while transport is not None:
        raw = getattr(transport, "_sock", None)
        if raw is None:
            _forgotten.append(transport)
        else:
            with suppress(OSError):
                if pid == os.getpid():
                    raw.shutdown(socket.SHUT_RDWR)
            raw.close()
        for name, value in (("_sock", None), ("_closing", True), ("_closed", True)):  # else it warns when it is collected
            if hasattr(transport, name):
                setattr(transport, name, value)
        transport = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)


_forgotten: list[object] = []  # transports of other loops than asyncio's, kept for good: collected, they might close themselves


def forget_connection(connection: Any, pid: int) -> None:
    """`forget` for a connection of redis-py's."""
    writer, connection._writer, connection._reader = getattr(connection, "_writer", None), None, None
    if isinstance(writer, asyncio.StreamWriter):
        forget(writer.transport, pid)


def forget_pool(pool: Any, pid: int) -> None:
    """`forget` for all connections of a pool."""
    for connection in (*getattr(pool, "_available_connections", ()), *getattr(pool, "_in_use_connections", ())):
        forget_connection(connection, pid)


class Takeover:
    """A connection whose transport now belongs to a protocol of ours."""

    __slots__ = ("_connection", "_old", "_pid", "transport", "version")

    def __init__(self, connection: Any, old: asyncio.BaseProtocol, transport: asyncio.Transport) -> None:
        self._connection, self._old, self.transport, self._pid = connection, old, transport, os.getpid()
        self.version: str | None = None

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the protocol that was there: redis-py waits for it when it closes."""
        self._old.connection_lost(error)
        self._connection._writer = self._connection._reader = None

    def has_unread(self) -> bool:
        """Whether something has come that the loop has not had the time to read."""
        ours = self.transport.get_extra_info("socket")
        if ours is None or self.transport.is_closing():
            return False
        with selectors.DefaultSelector() as selector:
            selector.register(ours.fileno(), selectors.EVENT_READ)
            return bool(selector.select(0))

    def abort(self) -> None:
        """Close without waiting: a TLS goodbye to a silent server takes 30 seconds."""
        self.transport.abort()

    def forget(self) -> None:
        """Let go, without touching the loop."""
        forget_connection(self._connection, self._pid)


async def take_over(endpoint: Endpoint, protocol: asyncio.Protocol) -> Takeover:
    """Connect as redis-py does, then put `protocol` in its place; BackendError says what failed.

    Bytes that came behind the handshake are handed on; half a message in redis-py's parser cannot be, and counts as a failure.
    """
    try:
        connection = safe_class(endpoint.connection_class)(**endpoint.connection_options())
    except (TypeError, ValueError, RedisError) as error:
        raise _explained(endpoint, error) from told(error)[1]
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await connection.connect()
            version = await _require_resp3(endpoint, connection)
        takeover = _exchange(endpoint, connection, protocol)
        takeover.version = version
        return takeover
    except BackendError:
        connection._close()
        raise
    except BaseException as error:
        connection._close()
        if not isinstance(error, Exception):
            raise
        raise _explained(endpoint, error) from told(error)[1]  # whatever it is: a credential provider may raise anything


def _explained(endpoint: Endpoint, error: Exception) -> BackendError:
    root: BaseException = error  # redis-py wraps what it has not foreseen, and does not always say what it was
    while root.__cause__ is not None or root.__context__ is not None:
        root = root.__cause__ or root.__context__ or root
    if isinstance(root, asyncio.CancelledError):
        return BackendError(f"no connection to {endpoint!r}: it did not answer within {CONNECT_TIMEOUT} s")
    text, beneath = told(error)[0] or type(error).__name__, told(root)[0] or type(root).__name__
    if beneath not in text:
        text = f"{text} ({beneath})"
    if isinstance(root, AuthenticationError):
        return BackendError(f"{endpoint!r} refuses the login: {text}; check the user and password")
    if isinstance(error, ResponseError) and "unknown command" in text.lower():
        return Resp3RefusedError(
            f"{endpoint!r} does not speak RESP3 ({text}): it takes Redis 6.2 or later, or CacheManager(client=Redis(..., protocol=2))"
        )
    return BackendError(f"no connection to {endpoint!r}: {text}")


async def _require_resp3(endpoint: Endpoint, connection: Any) -> str:
    """The server's name and version, as it says."""
    await connection.send_command("HELLO", check_health=False)
    said = await connection.read_response()
    if not isinstance(said, dict) or said.get(b"proto") != 3:
        raise Resp3RefusedError(f"{endpoint!r} did not switch to RESP3: is it a Redis or Valkey server?")
    words = (said.get(word) for word in (b"server", b"version"))
    return " ".join(word.decode(errors="replace") for word in words if isinstance(word, bytes))


def _exchange(endpoint: Endpoint, connection: Any, protocol: asyncio.Protocol) -> Takeover:
    transport, reader = connection._writer.transport, connection._reader
    if connection._parser._reader.has_data() or reader.at_eof():
        raise BackendError(f"no connection to {endpoint!r}: it ended, or left half a message behind, while it was taken over")
    early = bytes(reader._buffer)
    takeover = Takeover(connection, transport.get_protocol(), transport)
    transport.set_protocol(protocol)
    if reader._paused:
        transport.resume_reading()
    protocol.connection_made(transport)
    if early:
        protocol.data_received(early)
    return takeover
