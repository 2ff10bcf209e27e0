"""Redis, where it is asked for: importing this module imports redis. Nothing is connected before the first command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiocache_aura.errors import ConfigurationError
from aiocache_aura.resilience.single_flight import Tick
from aiocache_aura.settings import Settings
from aiocache_aura.stores.base import Link, Port
from aiocache_aura.stores.connections import Endpoint
from aiocache_aura.stores.lanes import LaneLink
from aiocache_aura.stores.pooled import PooledLink
from aiocache_aura.stores.redis import RedisPort

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster


def open_port(settings: Settings, prefix: str, tick: Tick) -> Port:
    """The running loop's way to the server that the settings name."""
    return RedisPort(_open_link(settings), prefix, budget=settings.budget, tick=tick)


def check(settings: Settings) -> None:
    """ConfigurationError for a URL that redis-py cannot read, before anybody waits for it."""
    if settings.url is not None:
        Endpoint.from_url(settings.url)


def _open_link(settings: Settings) -> Link:
    if settings.url is not None:
        return LaneLink(Endpoint.from_url(settings.url), lanes=settings.lanes)
    return _link_of_client(settings.client, settings.lanes)


def _link_of_client(client: Redis | RedisCluster | None, lanes: int) -> Link:
    """Lanes of our own to the server of a client, or its public API where only that will do (fakeredis, RESP2)."""
    if client is None:
        raise ConfigurationError("neither a URL nor a client was given")
    endpoint = Endpoint.from_client(client)
    return PooledLink(client) if endpoint is None else LaneLink(endpoint, lanes=lanes)
