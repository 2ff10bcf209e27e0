"""The Redis store: lookups that share round trips, and writes that void what has to be void before they return.

What a call costs, in round trips and server commands: a hit one MGET, shared by all lookups of its tick; a miss one script for
the lease (without leases: one for the permit and one for the generations) before the load, one script and one MGET after it, in one round
trip each.

Invariants
- A lookup is answered by a request that was written after it began (M1), and by one that carries its key and all its scopes.
- The tick is taken when a batch of lookups is written and when the answer to a write is parsed, before anybody who waits runs.
- Random tokens are sent once: what plants them is never written again after a lost connection (M6). What only removes or overwrites may be,
  and what makes another one each time that it is executed (V19).
- Every key that a command touches is declared, and a value and its permit are in one slot of a cluster.
- Nothing but BackendError comes out.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias, TypeVar

from aiocache_aura.codecs.envelope import FRONT
from aiocache_aura.errors import BackendError
from aiocache_aura.freshness import HARD_BYTES
from aiocache_aura.keys import glob_literal
from aiocache_aura.resilience.single_flight import Tick
from aiocache_aura.stores.base import TOKEN_BYTES, Claim, Command, Fill, Lane, Link, Scopes, Tokens, Verdict, own_copy
from aiocache_aura.stores.jobs import RedisJobs
from aiocache_aura.stores.leases import RedisLeases
from aiocache_aura.stores.notes import RedisNotes
from aiocache_aura.stores.probes import RedisProbes
from aiocache_aura.stores.replies import STRINGS, refused
from aiocache_aura.stores.requests import Writes
from aiocache_aura.stores.scripts import EXPIRE, FILL, FOR_EVER, PERMIT, PLANT, SOFTEN, STORE_IF, life_ms, token_lives
from aiocache_aura.stores.statistics import Connection

Found: TypeAlias = tuple[bytes | None, Tokens]
T = TypeVar("T")

BATCH_KEYS: Final = 512
BATCH_BYTES: Final = 256 * 1024  # of keys
REMOVED_AT_ONCE: Final = 1000
SCAN_COUNT: Final = 500


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


class _Batch:
    """The lookups of one tick that leave in one MGET: each key and each scope once. Handler of its reply."""

    __slots__ = ("_lookups", "bytes_left", "keys_left", "known", "noted", "scopes", "twins", "values")

    def __init__(self, lookups: Lookups, key: bytes, scopes: Scopes, future: asyncio.Future[Found]) -> None:
        self._lookups = lookups
        self.values = {key: future}
        self.scopes: dict[bytes, None] = dict.fromkeys(scopes)
        self.noted = scopes
        self.known: set[Scopes] | None = None
        self.twins: dict[bytes, list[asyncio.Future[Found]]] | None = None
        self.keys_left = BATCH_KEYS - 1 - len(scopes)
        self.bytes_left = BATCH_BYTES - len(key) - sum(map(len, scopes))

    def __repr__(self) -> str:
        return f"<_Batch {len(self.values)} keys, {len(self.scopes)} scopes>"

    def notes(self, key: bytes, scopes: Scopes) -> bool:
        """Ask for these scopes too, unless the batch would be too full with them and the key."""
        if self.known is None:
            self.known = {self.noted}
        if scopes not in self.known:
            new = [scope for scope in scopes if scope not in self.scopes]
            more = key not in self.values
            size = sum(map(len, new))
            if len(new) + more > self.keys_left or size + more * len(key) > self.bytes_left:
                return False
            self.known.add(scopes)
            self.scopes.update(dict.fromkeys(new))
            self.keys_left -= len(new)
            self.bytes_left -= size
        self.noted = scopes
        return True

    def adds(self, key: bytes, future: asyncio.Future[Found]) -> bool:
        """Ask for this key too, unless the batch is full."""
        if key in self.values:
            if self.twins is None:
                self.twins = {}
            self.twins.setdefault(key, []).append(future)
            return True
        if self.keys_left <= 0 or self.bytes_left < len(key):
            return False
        self.values[key] = future
        self.keys_left -= 1
        self.bytes_left -= len(key)
        return True

    def command(self) -> Command:
        return ("MGET", *self.values, *self.scopes)

    def written(self) -> None:
        self._lookups.tick.take()

    def deliver(self, replies: list[Any]) -> bool:
        found: Any = replies[0] if len(replies) == 1 else None
        count = len(self.values)
        if found.__class__ is not list or len(found) != count + len(self.scopes) or not STRINGS.issuperset(map(type, found)):
            self.fail(refused(("MGET",), found))
            return isinstance(found, Exception)
        tokens = self._lookups.tokens(dict(zip(self.scopes, found[count:], strict=True)))
        for future, raw in zip(self.values.values(), found, strict=False):
            if not future.done():
                future.set_result((raw, tokens))
        if self.twins is not None:
            raws = dict(zip(self.values, found, strict=False))
            for key, futures in self.twins.items():
                for future in futures:
                    if not future.done():
                        future.set_result((raws[key], tokens))
        return True

    def fail(self, error: BackendError) -> None:
        for futures in (self.values.values(), *(self.twins or {}).values()):
            for future in futures:
                if not future.done():
                    future.set_exception(own_copy(error))


class Lookups:
    """What is looked up over one read lane."""

    __slots__ = ("_batch", "_budget", "_lane", "_loop", "_sealed", "_tokens", "tick")

    def __init__(self, lane: Lane, tick: Tick, budget: float) -> None:
        self._lane, self.tick, self._budget = lane, tick, budget
        self._loop: asyncio.AbstractEventLoop | None = None
        self._batch: _Batch | None = None
        self._sealed: list[_Batch] = []
        self._tokens = Tokens({})

    def __repr__(self) -> str:
        return f"<Lookups {[*self._sealed, self._batch] if self._batch else 'none'}>"

    def add(self, key: bytes, scopes: Scopes) -> asyncio.Future[Found]:
        """Have this looked up with whatever else is asked for in this tick."""
        loop, batch = self._loop, self._batch
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Found] = loop.create_future()
        if batch is None:
            self._lane.wake(self._leave)
        elif (scopes is batch.noted or batch.notes(key, scopes)) and batch.adds(key, future):
            return future
        else:
            self._sealed.append(batch)
        self._batch = _Batch(self, key, scopes, future)
        return future

    def tokens(self, found: dict[bytes, bytes | None]) -> Tokens:
        """Tokens as they were just found; those of the last answer, with the fingerprints worked out, if nothing has changed since."""
        if found != self._tokens.found:
            self._tokens = Tokens(found)
        return self._tokens

    def forget(self) -> None:
        self._batch, self._sealed = None, []

    def _leave(self) -> None:
        batches, self._sealed = self._sealed, []
        if self._batch is not None:
            batches.append(self._batch)
            self._batch = None
        for batch in batches:
            try:
                self._lane.put((batch.command(),), batch, timeout=self._budget, repeatable=True)
            except BackendError as error:
                batch.fail(error)


class RedisPort:
    """One event loop's way to a Redis or Valkey server. `prefix` is already escaped; times in seconds.

    `budget` is how long a lookup may take, `permit_life` how long a load without a lease may take at least and still
    store its value.
    """

    def __init__(self, link: Link, prefix: str, *, budget: float, tick: Tick, permit_life: float = 30.0) -> None:
        self._link, self._tick = link, tick
        self._lookups = [Lookups(lane, tick, budget) for lane in link.reads]
        self._lanes = len(self._lookups)
        self._writes = Writes(link.writes, tick)
        self._permit_life = permit_life
        self._values = f"{prefix}:".encode()
        self._permits = f"{prefix}!p:{{".encode()
        self._notes = RedisNotes(self._writes, f"{prefix}!n:".encode())
        self._jobs = RedisJobs(self._writes, f"{prefix}!j:".encode())
        self._probes = RedisProbes(link, self._writes, prefix.encode())
        self._leases = RedisLeases(link, self._writes, self._permit, f"{prefix}!w".encode(), budget=budget)

    def __repr__(self) -> str:
        return f"<RedisPort {self._values.decode()!r} over {self._link!r}>"

    @property
    def leases(self) -> RedisLeases:
        return self._leases

    @property
    def notes(self) -> RedisNotes:
        return self._notes

    @property
    def jobs(self) -> RedisJobs:
        return self._jobs

    @property
    def probes(self) -> RedisProbes:
        return self._probes

    # Reads

    def lookup(self, key: bytes, scopes: Scopes) -> asyncio.Future[Found]:
        return self._lookups[hash(key) % self._lanes].add(key, scopes)

    # Loads

    async def claim(
        self, keys: Sequence[tuple[bytes, Scopes]], *, life: float | None, timeout: float, within: float | None = None
    ) -> list[Claim]:
        permit_life = life_ms(max(within or 0.0, self._permit_life))
        commands = [PERMIT.run((self._permit(key),), os.urandom(TOKEN_BYTES), permit_life) for key, _ in keys]
        scopes = list(dict.fromkeys(scope for _, scopes in keys for scope in scopes))
        commands.extend(_plant(scopes, life))
        if not commands:
            return []
        replies = await self._writes.run(commands, timeout=timeout)
        tokens = _tokens(scopes, replies[len(keys) :])
        return [Claim(permit, tokens) for permit in replies[: len(keys)]]

    async def generations(self, scopes: Scopes, *, life: float | None, timeout: float) -> Tokens:
        wanted = list(dict.fromkeys(scopes))
        if not wanted:
            return Tokens({})
        return _tokens(wanted, await self._writes.run(list(_plant(wanted, life)), timeout=timeout))

    async def fill(self, fills: Sequence[Fill], *, written: Callable[[], None], timeout: float) -> list[Verdict]:
        if not fills:
            written()
            return []
        commands = [self._leases.fill(fill) if fill.leased else self._fill(fill) for fill in fills]
        scopes = list(dict.fromkeys(scope for fill in fills for scope in fill.scopes))
        reads: list[Command] = [("MGET", *chunk) for chunk in chunks(scopes, BATCH_KEYS)]
        try:
            # Safe to repeat: what voided it in between took the permit, and an invalidation makes it match nothing.
            replies = await self._writes.run([*commands, *reads], timeout=timeout, repeatable=True, last=len(reads), written=written)
        except BackendError:
            for fill in fills:
                if fill.leased:
                    self._leases.release(fill.key, fill.permit)
            raise
        tokens = _tokens(scopes, replies[len(fills) :])
        return [Verdict(reply == 1, tokens) for reply in replies[: len(fills)]]

    def _fill(self, fill: Fill) -> Command:
        return FILL.run((fill.key, self._permit(fill.key)), fill.permit, fill.raw, life_ms(fill.life))

    # Explicit writes

    async def store(self, items: Sequence[tuple[bytes, bytes, float | None]], *, timeout: float) -> None:
        if not items:
            return
        commands = list(_unlink([self._permit(key) for key, _, _ in items]))
        for key, raw, life in items:
            commands.append(("SET", key, raw) if life is None else ("SET", key, raw, "PX", life_ms(life)))
        await self._writes.run(commands, timeout=timeout, repeatable=True, patient=True)

    async def store_if(self, key: bytes, raw: bytes, life: float | None, *, seen: bytes | None, timeout: float) -> bool:
        front, there = (b"", "absent") if seen is None else (seen[FRONT], "there")
        command = STORE_IF.run((key, self._permit(key)), front, raw, life_ms(life), there)
        return bool((await self._writes.run([command], timeout=timeout, patient=True))[0] == 1)

    async def expire(self, key: bytes, raw: bytes, life: float | None, *, seen: bytes, timeout: float) -> bool:
        command = EXPIRE.run((key,), seen[FRONT], raw, life_ms(life), "there")
        return bool((await self._writes.run([command], timeout=timeout, patient=True))[0] == 1)

    async def look(self, keys: Sequence[bytes], scopes: Scopes, *, timeout: float) -> tuple[list[bytes | None], Tokens]:
        wanted = [*keys, *scopes]
        if not wanted:
            return [], Tokens({})
        commands: list[Command] = [("MGET", *chunk) for chunk in chunks(wanted, BATCH_KEYS)]
        replies = await self._writes.run(commands, timeout=timeout, repeatable=True, patient=True)
        found = [one for reply in replies for one in reply]
        return found[: len(keys)], Tokens(dict(zip(scopes, found[len(keys) :], strict=True)))

    async def plant(
        self, items: Sequence[tuple[bytes, bytes, float | None, bytes | None]], scopes: Scopes, *, timeout: float
    ) -> tuple[list[bool], Tokens]:
        lives = {life: life_ms(life) for life in {item[2] for item in items}}
        commands = [_planted(key, raw, lives[life], seen) for key, raw, life, seen in items]
        asked: list[Command] = [("MGET", *chunk) for chunk in chunks(scopes, BATCH_KEYS)]
        if not commands and not asked:
            return [], Tokens({})
        # Not to be repeated: a second SET NX could undo a delete.
        replies = await self._writes.run([*commands, *asked], timeout=timeout, patient=True, last=len(asked))
        written = [reply is not None and reply != 0 for reply in replies[: len(commands)]]
        return written, _tokens(scopes, replies[len(commands) :])

    async def delete(self, keys: Sequence[bytes], *, timeout: float) -> int:
        distinct = list(dict.fromkeys(keys))
        if not distinct:
            return 0
        permits = list(_unlink([self._permit(key) for key in distinct]))
        replies = await self._writes.run([*permits, *_unlink(distinct)], timeout=timeout, repeatable=True, patient=True)
        return sum(replies[len(permits) :])

    async def invalidate(self, scopes: Iterable[bytes], *, timeout: float, soft: bool = False) -> None:
        distinct = dict.fromkeys(scopes)
        if distinct and soft:
            halves = (os.urandom(TOKEN_BYTES - HARD_BYTES) for _ in distinct)
            await self._writes.run([SOFTEN.run(list(distinct), *halves)], timeout=timeout, repeatable=True, patient=True)
        elif distinct:
            await self._writes.run([("DEL", *distinct)], timeout=timeout, repeatable=True, patient=True)

    async def purge(self, glob: bytes, matches: Callable[[bytes], bool], *, timeout: float) -> int:
        values, permits = self._values, self._permits

        def is_permit(name: bytes) -> bool:
            return name.startswith(permits) and name.endswith(b"}") and matches(name[len(permits) : -1])

        def is_value(name: bytes) -> bool:
            return name.startswith(values) and matches(name)

        await self._sweep(glob_literal(permits) + glob + b"}", is_permit, timeout)
        return await self._sweep(glob, is_value, timeout)

    def usage(self) -> None:
        """The entries are in the server."""

    def connections(self) -> list[Connection]:
        return self._link.connections()

    async def aclose(self) -> None:
        await self._leases.aclose()
        await self._link.aclose()

    def forget(self) -> None:
        self._leases.forget()
        for lookups in self._lookups:
            lookups.forget()
        self._link.forget()

    def _permit(self, key: bytes) -> bytes:
        return b"%b%b}" % (self._permits, key)

    async def _sweep(self, glob: bytes, is_meant: Callable[[bytes], bool], timeout: float) -> int:
        """Remove what a whole SCAN finds; how many. A cursor means nothing to another server, so nothing of it is sent again."""
        removed: int = 0
        cursor = b"0"
        found: list[bytes] = []
        while True:
            commands: list[Command] = [*_unlink(found), ("SCAN", cursor, "MATCH", glob, "COUNT", SCAN_COUNT)]
            replies = await self._writes.run(commands, timeout=timeout, patient=cursor == b"0")
            removed += sum(replies[:-1])
            cursor, names = _scanned(replies[-1])
            found = [name for name in names if is_meant(name)]
            if cursor == b"0":
                break
        if found:
            removed += sum(await self._writes.run(list(_unlink(found)), timeout=timeout, repeatable=True, patient=True))
        return removed


def _planted(key: bytes, raw: bytes, ms: int, seen: bytes | None) -> Command:
    """Write where nothing is, in a plain command, which costs the server a fifth of a script; or in the place of what was seen."""
    if seen is not None:
        return EXPIRE.run((key,), seen[FRONT], raw, ms, "there")
    return ("SET", key, raw, "PX", ms, "NX") if ms != FOR_EVER else ("SET", key, raw, "NX")


def _plant(scopes: Sequence[bytes], life: float | None) -> Iterator[Command]:
    one, two = token_lives(life)
    for chunk in chunks(scopes, BATCH_KEYS):
        yield PLANT.run(chunk, one, two, *(os.urandom(TOKEN_BYTES) for _ in chunk))


def _tokens(scopes: Sequence[bytes], replies: Sequence[object]) -> Tokens:
    """The tokens in the replies to MGETs or PLANTs over these scopes."""
    found: list[bytes | None] = []
    for reply in replies:
        if not isinstance(reply, list):
            raise refused(("MGET",), reply)
        found.extend(reply)
    if len(found) != len(scopes):
        raise refused(("MGET",), replies)
    return Tokens(dict(zip(scopes, found, strict=True)))


def _unlink(keys: Sequence[bytes]) -> Iterator[Command]:
    return (("UNLINK", *chunk) for chunk in chunks(keys, REMOVED_AT_ONCE))


def _scanned(reply: object) -> tuple[bytes, list[bytes]]:
    match reply:
        case [bytes() as cursor, list() as names] if all(isinstance(name, bytes) for name in names):
            return cursor, names
        case _:
            raise refused(("SCAN",), reply)
