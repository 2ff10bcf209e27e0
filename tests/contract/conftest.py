"""The stores that the contract is held over: memory, fakeredis, each real engine over TCP, and one of them over a unix socket, too.

A test that asks for `manager` runs over every one of them. `peer` is another process of the same store; over memory, which belongs to its
manager, it is the same manager once more. `clocked` is a manager whose clock stands still, so that lives end where the test says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import fakeredis
import pytest
import redis

from aiocache_aura.cache_manager import CacheManager
from tests.conftest import _clean
from tests.servers import ENGINES, Server

REMOTE = ["fakeredis", *(f"{engine}-tcp" for engine in ENGINES), f"{ENGINES[0]}-unix"]
STORES = ["memory", *REMOTE]
PREFIX = "shop"
PATIENT = 10.0  # seconds: what is tested here is not how fast a machine is


class Store:
    """One of the stores, empty, and the managers that were opened over it."""

    def __init__(self, kind: str, server: Server | None) -> None:
        self.kind, self.server = kind, server
        self._fake = fakeredis.FakeServer()
        self._managers: list[CacheManager] = []

    def __repr__(self) -> str:
        return f"<Store {self.kind}>"

    @property
    def is_memory(self) -> bool:
        return self.kind == "memory"

    @property
    def is_real(self) -> bool:
        """Whether a server of its own is behind it."""
        return self.server is not None

    def open(self, **options: Any) -> CacheManager:
        """A manager of this store; over anything but memory, all of them see the same entries."""
        options = {"prefix": PREFIX, "budget": PATIENT, **options}
        if self.is_memory:
            made = CacheManager("memory://", **options)
        elif self.server is None:
            made = CacheManager(client=fakeredis.FakeAsyncRedis(server=self._fake), **options)
        else:
            made = CacheManager(self.server.unix_url if self.kind.endswith("unix") else self.server.url, **options)
        self._managers.append(made)
        return made

    def peer_of(self, manager: CacheManager) -> CacheManager:
        """Another process: what it does, `manager` hears of through the store alone."""
        return manager if self.is_memory else self.open(prefix=manager.settings.prefix, clock=manager.settings.clock)

    def client(self) -> redis.Redis:
        """A plain client, to look and to change by hand."""
        return fakeredis.FakeRedis(server=self._fake) if self.server is None else self.server.client()

    async def aclose(self) -> None:
        for manager in self._managers:
            await manager.aclose()
            if manager.settings.client is not None:
                await manager.settings.client.aclose()


async def opened(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    kind: str = request.param
    engine = kind.partition("-")[0]
    store = Store(kind, _clean(request.getfixturevalue("_servers"), engine) if engine in ENGINES else None)
    yield store
    await store.aclose()


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Each store in turn."""
    async for one in opened(request):
        yield one


@pytest.fixture(params=REMOTE)
async def remote(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Each store that processes share."""
    async for one in opened(request):
        yield one


@pytest.fixture
def manager(store: Store) -> CacheManager:
    return store.open()


@pytest.fixture
def peer(store: Store, manager: CacheManager) -> CacheManager:
    return store.peer_of(manager)


@pytest.fixture
def clocked(store: Store, clock: Any) -> CacheManager:
    return store.open(clock=clock)
