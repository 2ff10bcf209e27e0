"""Planting: what a warmer has, stored in bulk where a read would find nothing.

A warmer's values come from a query that began long before they are stored, and nobody asked for them; so they give way to everything.

    capture   before the source is opened: the generations that its entries will depend on, planted where they are missing (M6)
    look      at each batch, in one round trip: what is stored under the keys, and the generations as they are now. What a read would be
              given, and is not due, or is younger than the source, is left as it is
    store     in one round trip: where nothing was seen, if there still is nothing; where something was seen, if it still is that. The
              answer has the generations as they are behind it
    at once   where little or nothing was there of the batch before: store without a look, where there is nothing; then look at what is left

Invariants
- Entries carry generations that were captured before the source began to read: an invalidation since then makes them match nothing,
  whenever they are stored (P3). As soon as a look or the answer to a store has other ones, the source is `Voided`, and begins again.
- A scope that is first named with a value (a tenant, a tag) was not captured in time: what depends on it is left for a second reading of
  the source, which begins after the capture.
- What was stored since the look, by a user's load or `set`, is younger than ours and stays; so does what was stored since the source
  began, whether or not a read would be given it: an error that was cached says that there is no such thing any more.
  No permit and no lease is taken away (M9): a load that is under way stores over what was planted, unless something has voided it.
- What is gone again leaves nothing behind that a look could see. What this process has deleted or set since the source began, a key or a
  pattern of keys, is remembered, and asked for in the same synchronous stretch that writes: none of it is stored. If there was more than
  can be remembered, the source is `Voided`.
- Two holes are left where the source is older than what another process (or event loop) has done to a key, and both are closed for
  sources that yield calls of cached functions, which are loads like any other: a `delete` or `invalidate_pattern` there, or a `set` whose
  value has expired, is not seen; nor is, by a renewal of everything, that a `set` is younger, if the clocks differ by more than its age.
- Generations are kept alive while the source runs, and for as long as what was planted lives (M8).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeAlias

from aiocache_aura import keys
from aiocache_aura.codecs.envelope import Entry, covered, key_checksum, sealed
from aiocache_aura.entries import finite
from aiocache_aura.errors import BackendError, CacheError, ConfigurationError, SerializationError, ValueTooLargeError
from aiocache_aura.events import Stored
from aiocache_aura.freshness import Standing
from aiocache_aura.generations import Address
from aiocache_aura.looking import Looking
from aiocache_aura.policy import jittered
from aiocache_aura.removals import Removals
from aiocache_aura.stores.base import Scopes, Tokens
from aiocache_aura.terms import FOR_EVER, Terms

PATIENCE: Final = 5.0  # seconds that a batch may take: nobody waits for it
AT_ONCE: Final = 4  # values that are encoded before others may go on
REQUEST_BYTES: Final = 64 * 1024
REQUEST_KEYS: Final = 128
KEPT_ALIVE: Final = 30.0  # seconds after which generations are looked after again
MOST_SCOPES: Final = 10_000  # that a source names with its values, and that are remembered

Breathe: TypeAlias = Callable[[], Awaitable[None]]


class Voided(CacheError):
    """Something that a source's entries depend on was invalidated while it ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """Which stored values are renewed, times in seconds: those with at most `within` left, those `older` than that; all of them."""

    within: float = 0.0
    older: float = FOR_EVER
    everything: bool = False

    def is_due(self, entry: Entry, now: float) -> bool:
        return self.everything or entry.left(now) <= self.within or now - entry.created >= self.older


class Bed:
    """Where values of one owner, with the same tags and terms, are planted: their addresses, but for the key."""

    __slots__ = ("_address", "_head", "extras", "flags", "scopes", "terms")

    def __init__(self, address: Address, terms: Terms) -> None:
        """`address` is that of any key."""
        self._address, self.terms = address, terms
        self._head = address.key[: -len(address.tail.encode())]
        self.scopes, self.extras, self.flags = address.scopes, address.extras, address.flags

    def key(self, key: str) -> bytes:
        return self._head + keys.user_tail(key).encode()

    def address(self, key: bytes) -> Address:
        return replace(self._address, key=key, checksum=key_checksum(key), tail=key[len(self._head) :].decode())


class Pair(NamedTuple):
    """A value to store, and where."""

    key: bytes
    value: Any
    bed: Bed


class Ground:
    """The generations that the entries of a source carry, captured before it began, what it has named since, and what this process has
    removed since."""

    __slots__ = ("began", "life", "looked_after", "new", "removed", "tokens")

    def __init__(self) -> None:
        self.tokens: dict[bytes, bytes | None] = {}
        self.new: dict[bytes, bytes | None] = {}
        self.life = self.began = self.looked_after = 0.0
        self.removed: Removals | None = None

    def __repr__(self) -> str:
        return f"<Ground {len(self.tokens)} scopes, {len(self.new)} new>"

    def covers(self, scopes: Scopes) -> bool:
        return all(scope in self.tokens for scope in scopes)

    def settle(self) -> frozenset[bytes]:
        """What was named is captured for the next reading; which scopes those are."""
        named = frozenset(self.new)
        self.tokens.update(self.new)
        self.new = {}
        return named


class Planted(NamedTuple):
    """What became of a batch: how many were stored anew, in the place of another value, left alone; those that are to come again, since
    they name a scope for the first time; what could not be stored. `size` is what it took, in bytes."""

    loaded: int
    refreshed: int
    skipped: int
    unsure: int
    refused: list[Exception]
    size: int


class _Item(NamedTuple):
    key: bytes
    raw: bytes
    life: float | None
    seen: bytes | None
    ttl: float
    pair: Pair


class _Sowing:
    """A batch that is being stored, and what has become of it. Its entries carry the generations as they were captured."""

    __slots__ = ("_tokens", "failure", "ground", "left", "loaded", "refreshed", "refused", "scopes", "size")

    def __init__(self, ground: Ground, scopes: Scopes) -> None:
        self.ground, self.scopes = ground, scopes
        self._tokens = Tokens({scope: ground.tokens[scope] for scope in scopes})
        self.loaded = self.refreshed = self.size = 0
        self.refused: list[Exception] = []
        self.left: list[Pair] = []  # something else was there
        self.failure: Exception | None = None

    def fingerprint(self, scopes: Scopes) -> bytes:
        fingerprint = self._tokens.fingerprint(scopes)
        if fingerprint is None:
            raise BackendError("the server does not keep generations; is its memory full?")
        return fingerprint

    def check(self, tokens: Tokens) -> None:
        """Raises Voided if generations are not what was captured."""
        if any(tokens.found[scope] != self._tokens.found[scope] for scope in self.scopes):
            raise Voided("what its entries depend on was invalidated, or evicted, while it ran")


_NOTHING: Final[tuple[bytes, float, float | None]] = b"", 0.0, None


class Planting(Looking):
    """What stores in bulk. Every method may raise BackendError."""

    async def capture(self, cache_type: str, scopes: Iterable[bytes], life: float, ground: Ground | None = None) -> Ground:
        """The generations as they are now, for entries of this type that live so long, and for what a source reads from now on."""
        ground = Ground() if ground is None else ground
        ground.life = max(ground.life, life)
        ground.looked_after = self._monotonic()
        await self._hold(ground, tuple(dict.fromkeys((*scopes, *ground.tokens))), ground.tokens)
        ground.began, ground.removed = self._time(), self._removed.since_now(f"{self._addresses.prefix}:{cache_type}:".encode())
        return ground

    async def _hold(self, ground: Ground, scopes: Scopes, into: dict[bytes, bytes | None]) -> None:
        """Plant these generations where they are missing, and have them live as long as what depends on them."""
        if scopes:
            into.update((await self._port.generations(scopes, life=finite(ground.life), timeout=PATIENCE)).found)

    async def plant(self, batch: Sequence[Pair], ground: Ground, renewal: Renewal, breathe: Breathe, *, at_once: bool = False) -> Planted:
        """Store what is not there or due; raises Voided if a captured generation is not what it was. `breathe` lets others go on.

        `at_once`: most of it is not there, it seems, so store where there is nothing, and look at what is left.
        """
        beds = dict.fromkeys(pair.bed for pair in batch)
        known = {bed for bed in beds if ground.covers(bed.scopes)}
        await self._tend(ground, beds, known)
        unsure = 0 if len(known) == len(beds) else sum(pair.bed not in known for pair in batch)
        lively = {bed for bed in known if bed.terms.life}
        sure = batch if len(lively) == len(beds) else [pair for pair in batch if pair.bed in lively]
        scopes = tuple(dict.fromkeys(scope for bed in known for scope in bed.scopes))
        sowing = _Sowing(ground, scopes)
        if at_once and sure:
            await self._store_all([(pair, None) for pair in sure], sowing, breathe)
            sure = sowing.left
        there: list[bytes | None] = []
        if sure:
            there, tokens = await self._port.look([pair.key for pair in sure], scopes, timeout=PATIENCE)
            sowing.check(tokens)
            wanted = []
            for n, (pair, seen) in enumerate(zip(sure, there, strict=True)):
                if seen is not None:
                    if n % AT_ONCE == AT_ONCE - 1:
                        await breathe()
                    if await self._is_kept(pair, seen, tokens, ground, renewal):
                        continue
                wanted.append((pair, seen))
            await self._store_all(wanted, sowing, breathe)
        skipped = len(batch) - unsure - sowing.loaded - sowing.refreshed - len(sowing.refused)
        size = max(sowing.size, sum(len(raw) for raw in there if raw is not None))
        return Planted(sowing.loaded, sowing.refreshed, skipped, unsure, sowing.refused, size)

    async def _tend(self, ground: Ground, beds: Iterable[Bed], known: set[Bed]) -> None:
        """Have the generations live long enough, and those captured that are named for the first time."""
        reach = max(bed.terms.reach for bed in beds)
        now = self._monotonic()
        if reach > ground.life:
            ground.life, ground.looked_after = reach, -FOR_EVER  # until it is done
        if now - ground.looked_after >= KEPT_ALIVE:
            # What is missing by now is planted anew: not what was captured, as the look will tell.
            await self._hold(ground, tuple(ground.tokens), {})
            ground.looked_after = now
        named = [scope for bed in beds if bed not in known for scope in bed.scopes if scope not in ground.tokens]
        new = tuple(dict.fromkeys(scope for scope in named if scope not in ground.new))
        if len(ground.new) + len(new) > MOST_SCOPES:
            raise ConfigurationError(
                f"a source names more than {MOST_SCOPES:,} tenants and tags with its pairs: name the tags in tags=[...] of the source, "
                "warm for a tenant at a time, or yield calls of cached functions"
            )
        if new:
            await self._hold(ground, new, ground.new)

    async def _store_all(self, wanted: Sequence[tuple[Pair, bytes | None]], sowing: _Sowing, breathe: Breathe) -> None:
        """Encode and store, in requests of bounded size: the server stores one while the next is encoded."""
        async with asyncio.TaskGroup() as requests:
            async for items in self._encoded(wanted, sowing, breathe):
                requests.create_task(self._store_some(items, sowing))
        if sowing.failure is not None:
            raise sowing.failure

    async def _encoded(
        self, wanted: Sequence[tuple[Pair, bytes | None]], sowing: _Sowing, breathe: Breathe
    ) -> AsyncGenerator[list[_Item], None]:
        """What is to be stored, by request."""
        items: list[_Item] = []
        waiting = 0
        created, ids = self._time(), os.urandom(8 * len(wanted))
        commons: dict[tuple[Bed, int], tuple[bytes, float, float | None]] = {}
        for n, (pair, seen) in enumerate(wanted):
            if n % AT_ONCE == AT_ONCE - 1:
                await breathe()
            key, value, bed = pair
            terms = bed.terms
            try:
                codec, payload = self._encode_explicit(terms, value)
            except (SerializationError, ValueTooLargeError) as error:
                sowing.refused.append(error)
                continue
            common, ttl, life = commons.get((bed, codec), _NOTHING)
            if not common:
                ttl = jittered(terms.life, terms.jitter)
                head = (codec, bed.flags, created, ttl, terms.stale, 0.0, terms.serializer.schema, sowing.fingerprint(bed.scopes))
                common, life = covered(head, bed.extras), finite(ttl + terms.stale)
                if not terms.jitter:
                    commons[bed, codec] = common, ttl, life
            raw = sealed(ids[8 * n : 8 * n + 8], key_checksum(key), common, payload)
            items.append(_Item(key, raw, life, seen, ttl, pair))
            waiting += len(raw)
            if waiting >= REQUEST_BYTES or len(items) >= REQUEST_KEYS:
                yield items
                sowing.size, waiting, items = sowing.size + waiting, 0, []
        sowing.size += waiting
        if items:
            yield items

    async def _store_some(self, items: Sequence[_Item], sowing: _Sowing) -> None:
        """Store a request's, unless another has failed."""
        try:
            if sowing.failure is None:
                await self._write_some(items, sowing)
        except (BackendError, Voided) as error:
            sowing.failure = sowing.failure or error

    async def _write_some(self, items: Sequence[_Item], sowing: _Sowing) -> None:
        """Nothing is awaited between asking what was removed and writing: what is removed next is removed behind it, on the same lane."""
        removed = sowing.ground.removed
        if removed:
            if removed.is_full:
                raise Voided("this process has deleted or set more keys than can be remembered while it ran")
            items = [item for item in items if item.key not in removed]
        if not items:
            return
        started = self._monotonic()
        written, tokens = await self._port.plant([item[:4] for item in items], sowing.scopes, timeout=PATIENCE)
        sowing.check(tokens)
        stored = [item for item, is_written in zip(items, written, strict=True) if is_written]
        again = sum(item.seen is not None for item in stored)
        sowing.loaded += len(stored) - again
        sowing.refreshed += again
        now = self._monotonic()
        seconds = now - started
        self._recorder.touch(now)
        for item in stored:
            item.pair.bed.terms.counts.sets += 1
        if stored:
            stored[0].pair.bed.terms.counts.took("set", seconds)
        if self._events.wants(Stored):
            for item in stored:
                told = self._told(item.pair.bed.address(item.key))
                self._events.tell(Stored(**told, seconds=seconds, size=len(item.raw), ttl=item.ttl))
        sowing.left += [item.pair for item, is_written in zip(items, written, strict=True) if not is_written]

    async def _is_kept(self, pair: Pair, seen: bytes, tokens: Tokens, ground: Ground, renewal: Renewal) -> bool:
        """Whether what is there is younger than the source, or a read would be given it and it is not due."""
        sight = await self._examine(pair.bed.address(pair.key), pair.bed.terms, (seen, tokens))
        if sight.entry is None:
            return False
        younger_by = sight.entry.created - ground.began
        if younger_by > 0 or (younger_by == 0 and sight.standing is not Standing.DEAD):  # what a first reading has planted is dead, at most
            return True
        return sight.has_value and not renewal.is_due(sight.entry, self._time())
