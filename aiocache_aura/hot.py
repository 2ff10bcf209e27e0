"""Hot keys: told to the fleet, kept in files, and loaded again, the hottest first.

What is hot is learned by each process (see `heat`), and most of it is lost where it is needed most: a new process knows nothing, and an
emptied Redis is asked for everything at once. So processes post what is hot for them, with the recipe of each call; whoever warms takes it
all together.

A call of a cached function brings its recipe, by which it is made again. A key that the user spelled brings its own text, and is loaded by
the loader that is declared for it (see `loaders`).
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import zlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import orjson

from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.cached import Cached, cached_named
from aiocache_aura.context import owner_scope
from aiocache_aura.errors import BackendError, ConfigurationError
from aiocache_aura.heat import MOST_KEY, MOST_PLACES, HotKey, merged
from aiocache_aura.keys import owner_segments, split_owner, unescape, user_tail
from aiocache_aura.loaders import Loader
from aiocache_aura.policy import Aware
from aiocache_aura.recipes import Recipe, is_repeatable
from aiocache_aura.resilience.threads import call_any, call_plain
from aiocache_aura.types import MISSING
from aiocache_aura.warming import Run

BOARD = "heat"
LIFE = 3600.0  # seconds that what was hot for a process stands after it has gone
MOST_KEYS = 2000  # of a process that the others are told
MOST_BYTES = 64 * 1024  # that they take, packed
MOST_UNPACKED = 4 * 1024 * 1024
MOST_SECONDS = 1e12  # of one key; the sum of all processes' is a number still
FORMAT = "aiocache_aura hot keys 1"

Call: TypeAlias = Callable[[], Awaitable[Any]]
LoaderOf: TypeAlias = Callable[[str, str], Loader | None]


def encode(keys: Sequence[HotKey]) -> bytes:
    """As many of them as have room, the hottest first, packed: keys of a type are much alike."""
    lines = [_line(one) for one in keys]
    while len(packed := zlib.compress(b"\n".join(lines), 1)) > MOST_BYTES:
        del lines[len(lines) * MOST_BYTES // len(packed) :]
    return packed


def decode(raw: bytes) -> list[HotKey]:
    """What was encoded; what is not that is left out, whoever wrote it."""
    try:
        lines = zlib.decompressobj().decompress(raw, MOST_UNPACKED).splitlines()[:MOST_KEYS]
    except zlib.error:
        return []
    return [one for line in lines if (one := _key(line)) is not None]


def _line(one: HotKey) -> bytes:
    recipe = None if one.recipe is None else one.recipe.decode("latin-1")
    return orjson.dumps([one.cache_type, one.key, _short(one.seconds), _short(one.error), recipe])


def _short(seconds: float) -> float:
    """To four digits, which are many for an estimate; never more than is read again."""
    return float(f"{min(seconds, MOST_SECONDS):.4g}")


def _key(line: bytes) -> HotKey | None:
    try:
        cache_type, key, seconds, error, recipe = orjson.loads(line)
        packed = None if recipe is None else recipe.encode("latin-1")
        if isinstance(cache_type, str) and isinstance(key, str) and len(key) <= MOST_KEY and 0 <= error <= seconds <= MOST_SECONDS:
            return HotKey(cache_type, key, float(seconds), float(error), packed)
    except (ValueError, TypeError, AttributeError):
        pass
    return None


async def publish(manager: CacheManager, process: str) -> None:
    """Post what is hot for this process. May raise BackendError."""
    keys = manager.recorder.heat.hottest(limit=MOST_KEYS)
    if keys:
        note = await call_plain(encode, keys)  # which takes up to a tenth of a second, of long keys
        await (await manager.engine()).port.notes.post(BOARD, process, note, life=LIFE, timeout=manager.settings.budget)


async def of_fleet(manager: CacheManager, process: str) -> list[HotKey]:
    """What is hot for this process and, by what they have posted, for the others; the hottest first, `MOST_PLACES` at most.

    The event loop has its turn after each note, and what is left out for want of room is the least hot so far.
    """
    found = manager.recorder.heat.hottest(limit=MOST_PLACES)
    try:
        notes = await (await manager.engine()).port.notes.read(BOARD, timeout=manager.settings.budget)
    except BackendError:
        notes = {}
    for name, note in notes.items():
        if name != process:
            found += decode(note)
            if len(found) > 2 * MOST_PLACES:
                found = merged(found)[:MOST_PLACES]
            await asyncio.sleep(0)
    return merged(found)[:MOST_PLACES]


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


async def warm(manager: CacheManager, keys: Sequence[HotKey], run_of: Callable[[str], Run], loader_of: LoaderOf, concurrency: int) -> int:
    """Load these keys again, in their order, several at once; how many can't be, here."""
    lost = 0
    room = anyio.Semaphore(concurrency)
    async with anyio.create_task_group() as calls:
        for one in keys:
            call = _call_of(manager, one, loader_of)
            if call is None:
                lost += 1
                await run_of(one.cache_type).breathe()
                continue
            await room.acquire()
            calls.start_soon(_make, call, run_of(one.cache_type), room)
    return lost


def _call_of(manager: CacheManager, one: HotKey, loader_of: LoaderOf) -> Call | None:
    """What loads a key again, None if nothing does."""
    if one.recipe is None:
        return _spelled(manager, one, loader_of)
    recipe = Recipe.decode(one.recipe)
    cached = None if recipe is None else cached_named(recipe.name, manager)
    if recipe is None or cached is None or not is_repeatable(cached.signature):  # whoever wrote it
        return None
    return partial(_called, cached, recipe)


async def _make(call: Call, run: Run, room: anyio.Semaphore) -> None:
    try:
        await run.finish(call())
    finally:
        room.release()


async def _called(cached: Cached, recipe: Recipe) -> Any:
    signature = cached.signature
    arguments: dict[str, Any] = {**dict.fromkeys(signature.provided, MISSING), **recipe.arguments}
    with owner_scope(recipe.tenant, recipe.user):
        try:
            positional, named = signature.spread(arguments)
        except KeyError as error:
            raise ConfigurationError(f"{cached.name} has other parameters than when this call was made: {error}") from None
        bound = signature.arguments(signature.bind(*positional, **named))
        if any(bound[name] is not MISSING for name in signature.provided):
            raise ConfigurationError(f"{cached.name} is not called with what a recipe says in the place of what is provided")
        call: Awaitable[Any] = cached.call(tuple(positional), named)
        return await call


def _spelled(manager: CacheManager, one: HotKey, loader_of: LoaderOf) -> Call | None:
    """The load of a key that the user spelled."""
    place = f"{manager.addresses.prefix}:{one.cache_type}:"
    tenant, user, tail = split_owner(one.key.removeprefix(place))
    tenants, users, key = _ids(tenant), _ids(user), unescape(tail[1:])
    if one.key != place + owner_segments(tenants, users) + user_tail(key):  # of a hashed one the text is lost; a forged one is nobody's
        return None
    loader = loader_of(one.cache_type, key)
    return None if loader is None else partial(_loaded, manager, loader, key, next(iter(tenants), None), next(iter(users), None))


async def _loaded(manager: CacheManager, loader: Loader, key: str, tenant: str | None, user: str | None) -> Any:
    async def load() -> Any:
        return await call_any(loader.function, key)

    policy = manager.policy(loader.cache_type).merged(loader.policy)
    whose = {"tenant_aware": _aware(policy.tenant_aware, tenant), "user_aware": _aware(policy.user_aware, user)}
    options: dict[str, Any] = {**loader.policy, **whose}
    with owner_scope(tenant, user):
        return await manager.get_or_load(loader.cache_type, key, load, tags=loader.tags_of(key), as_type=loader.as_type, **options)


def _aware(told: Aware, owner: str | None) -> Aware:
    """As the key has it, or it would be everybody's; of one without an owner, as is told, unless that asks for one."""
    if owner is not None:
        return True
    return False if told is True else told


def _ids(text: str | None) -> list[str]:
    return [] if text is None else [unescape(text)]
