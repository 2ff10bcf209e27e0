"""Fixtures: real servers, and the check that a test leaves nothing running."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings

from aiocache_aura import loaders
from aiocache_aura.settings import Settings
from aiocache_aura.sources import registered
from tests.clocks import ManualClock
from tests.servers import ENGINES, Server

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")

# A machine may stall for a second at any point, and to a manager that is not patient that is a fault. A test of the budget gives its own.
Settings.__init__.__kwdefaults__["budget"] = 10.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test is called the same in every process, or pytest-xdist refuses to run any."""
    odd = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if odd:
        raise pytest.UsageError(f"give ids= to these parameters, whose repr is an address: {odd}")


@pytest.fixture(scope="session")
def _servers() -> Iterator[dict[str, Server]]:
    servers: dict[str, Server] = {}
    yield servers
    for server in servers.values():
        server.close()


def _clean(servers: dict[str, Server], engine: str) -> Server:
    if engine not in servers:
        servers[engine] = Server(engine)
    with servers[engine].client() as client:
        client.flushall()
    return servers[engine]


@pytest.fixture
def valkey(_servers: dict[str, Server]) -> Server:
    """A real Valkey server of this test process, empty; not to be stopped or reconfigured."""
    return _clean(_servers, "valkey")


@pytest.fixture(params=ENGINES)
def server(request: pytest.FixtureRequest, _servers: dict[str, Server]) -> Server:
    """As `valkey`, on every engine that is installed."""
    return _clean(_servers, request.param)


@pytest.fixture
def own_server() -> Iterator[Callable[..., Server]]:
    """Makes servers that the test may stop, kill and configure."""
    made: list[Server] = []

    def make(*options: str, engine: str = "valkey") -> Server:
        made.append(Server(engine, *options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(autouse=True)
def sources_of_the_test_only() -> Iterator[None]:
    """Sources and loaders that a test declares for every warmer serve no other test's."""
    before = registered.all()
    yield
    loaders.registered.forget()
    registered.forget()
    for source in before:
        registered.add(source)


@pytest.fixture
async def _no_task_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    left = {task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()}
    assert not left, f"tasks left running: {left}"


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> None:
    """At the end of each asynchronous test no task is pending but the runner's own."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("_no_task_left")
