"""Hot keys: told to the fleet, kept in files, and loaded again, the hottest first.

What is hot is learned by each process (see `heat`), and most of it is lost where it is needed most: a new process knows nothing, and an
emptied Redis is asked for everything at once. So processes post what is hot for them, with the recipe of each call; whoever warms takes it
all together.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import orjson

from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.cached import Cached, cached_named
from aiocache_aura.context import tenant_scope, user_scope
from aiocache_aura.errors import BackendError, ConfigurationError
from aiocache_aura.heat import HotKey, merged
from aiocache_aura.recipes import Recipe
from aiocache_aura.types import MISSING
from aiocache_aura.warming import Run

BOARD = "heat"
LIFE = 3600.0  # seconds that what was hot for a process stands after it has gone
MOST_BYTES = 64 * 1024
FORMAT = "aiocache_aura hot keys 1"


def encode(keys: Sequence[HotKey]) -> bytes:
    """As many of them as have room, the hottest first."""
    lines, room = [], MOST_BYTES
    for one in keys:
        line = _line(one)
        room -= len(line) + 1
        if room < 0:
            break
        lines.append(line)
    return b"\n".join(lines)


def decode(raw: bytes) -> list[HotKey]:
    """What was encoded; what is not that is left out, whoever wrote it."""
    return [one for line in raw.splitlines() if (one := _key(line)) is not None]


def _line(one: HotKey) -> bytes:
    recipe = None if one.recipe is None else one.recipe.decode("latin-1")
    return orjson.dumps([one.cache_type, one.key, one.seconds, one.error, recipe])


def _key(line: bytes) -> HotKey | None:
    try:
        cache_type, key, seconds, error, recipe = orjson.loads(line)
        packed = None if recipe is None else recipe.encode("latin-1")
        if isinstance(cache_type, str) and isinstance(key, str) and 0 <= error <= seconds < float("inf"):
            return HotKey(cache_type, key, float(seconds), float(error), packed)
    except (ValueError, TypeError, AttributeError):
        pass
    return None


async def publish(manager: CacheManager, process: str) -> None:
    """Post what is hot for this process. May raise BackendError."""
    note = encode(manager.recorder.heat.hottest(limit=1000))
    if note:
        await (await manager.engine()).port.notes.post(BOARD, process, note, life=LIFE, timeout=manager.settings.budget)


async def of_fleet(manager: CacheManager, process: str) -> list[HotKey]:
    """What is hot for this process and, by what they have posted, for the others; the hottest first."""
    found = manager.recorder.heat.hottest(limit=1000)
    try:
        notes = await (await manager.engine()).port.notes.read(BOARD, timeout=manager.settings.budget)
    except BackendError:
        notes = {}
    return merged([*found, *(one for name, note in notes.items() if name != process for one in decode(note))])


def save(path: str | os.PathLike[str], keys: Iterable[HotKey]) -> int:
    """Write them to a file that only its owner may read, in one step; how many."""
    lines = [_line(one) for one in keys]
    target = Path(path)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.name, delete=False) as file:
        try:
            file.write(b"\n".join([orjson.dumps(FORMAT), *lines]) + b"\n")
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(target)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    return len(lines)


def restore(path: str | os.PathLike[str]) -> list[HotKey]:
    """What `save` has written; ConfigurationError for a file that is something else, or is damaged. OSError if it cannot be read."""
    head, *lines = Path(path).read_bytes().splitlines() or [b""]
    keys = [_key(line) for line in lines]
    if head != orjson.dumps(FORMAT) or any(one is None for one in keys):
        raise ConfigurationError(f"{os.fspath(path)!r} holds no hot keys of this version, or is damaged; save_hot(...) writes one")
    return [one for one in keys if one is not None]


async def warm(manager: CacheManager, keys: Sequence[HotKey], run_of: Callable[[str], Run], concurrency: int) -> int:
    """Make the calls of these keys again, in their order, several at once; how many can't be, here."""
    lost = 0
    room = anyio.Semaphore(concurrency)
    async with anyio.create_task_group() as calls:
        for one in keys:
            call = _call_of(manager, one)
            if call is None:
                lost += 1
                continue
            await room.acquire()
            calls.start_soon(_make, call, run_of(one.cache_type), room)
    return lost


def _call_of(manager: CacheManager, one: HotKey) -> tuple[Cached, Recipe] | None:
    recipe = None if one.recipe is None else Recipe.decode(one.recipe)
    cached = None if recipe is None else cached_named(recipe.name, manager)
    return None if recipe is None or cached is None else (cached, recipe)


async def _make(call: tuple[Cached, Recipe], run: Run, room: anyio.Semaphore) -> None:
    cached, recipe = call
    try:
        await run.finish(_called(cached, recipe))
    finally:
        room.release()


async def _called(cached: Cached, recipe: Recipe) -> Any:
    signature = cached.signature
    arguments: dict[str, Any] = {**dict.fromkeys(signature.provided, MISSING), **recipe.arguments}
    with ExitStack() as scopes:
        if recipe.tenant is not None:
            scopes.enter_context(tenant_scope(recipe.tenant))
        if recipe.user is not None:
            scopes.enter_context(user_scope(recipe.user))
        try:
            positional, named = signature.spread(arguments)
        except KeyError as error:
            raise ConfigurationError(f"{cached.name} has other parameters than when this call was made: {error}") from None
        call: Awaitable[Any] = cached.call(tuple(positional), named)
        return await call
