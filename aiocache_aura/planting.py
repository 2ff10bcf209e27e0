"""Planting: what a warmer has, stored in bulk where a read would find nothing.

A warmer's values come from a query that began long before they are stored, and nobody asked for them; so they give way to everything.

    capture   before the source's first step: the generations that its entries will depend on, planted where they are missing (M6)
    look      of each batch, in one round trip: what is stored under the keys, and the generations as they are now. What a read would be
    given, and is not due to be renewed, is left as it is store     in one round trip: where nothing was seen, if there still is nothing;
    where something was seen, if it still is that

Invariants
- Entries carry the captured generations: an invalidation since the source began makes them match nothing, whenever they are stored (P3). A
  batch whose look finds other generations is not stored at all: the source is `Voided`, and has to begin again.
- What was stored since the look, by a user's load or `set`, is younger than ours and stays. No permit and no lease is taken away: a load
  that is under way stores over what was planted.
- What cannot be seen: a `delete` of one key since the source began, and an invalidation of a tag that was named first with a value. Sources
  that yield calls of cached functions do not have that hole: those are loads like any other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiocache_aura.codecs.envelope import Entry, seal
from aiocache_aura.entries import finite
from aiocache_aura.errors import CacheError, SerializationError, ValueTooLargeError
from aiocache_aura.generations import Address
from aiocache_aura.looking import Looking
from aiocache_aura.stores.base import Scopes, Tokens
from aiocache_aura.terms import FOR_EVER, Terms

PATIENCE = 5.0  # seconds that a batch may take: nobody waits for it
AT_ONCE = 8  # values that are encoded before others may go on


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


class Pair(NamedTuple):
    """A value to store, and where."""

    address: Address
    value: Any
    terms: Terms


class Planted(NamedTuple):
    """What became of a batch: how many were stored anew, in the place of another value, left alone; what could not be stored."""

    loaded: int
    refreshed: int
    skipped: int
    refused: list[tuple[Address, Exception]]


class Planting(Looking):
    """What stores in bulk. Every method may raise BackendError."""

    async def capture(self, scopes: Scopes, life: float) -> dict[bytes, bytes | None]:
        """The generations as they are now, for entries that live so long."""
        return dict((await self._port.generations(scopes, life=finite(life), timeout=PATIENCE)).found)

    async def plant(
        self, batch: Sequence[Pair], captured: dict[bytes, bytes | None], renewal: Renewal, breathe: Callable[[], Awaitable[None]]
    ) -> Planted:
        """Store what is not there or due; raises Voided if a captured generation is not what it was. `breathe` lets others go on."""
        started = self._monotonic()
        scopes = tuple(dict.fromkeys(scope for scopes in {pair.address.scopes for pair in batch} for scope in scopes))
        new = tuple(scope for scope in scopes if scope not in captured)
        if new:  # of tags that are named here for the first time
            captured.update(await self.capture(new, max(pair.terms.reach for pair in batch)))
        there, tokens = await self._port.look([pair.address.key for pair in batch], scopes, timeout=PATIENCE)
        if any(tokens.found[scope] != captured[scope] for scope in scopes):
            raise Voided("what its entries depend on was invalidated, or evicted, while it ran")
        wanted = [(pair, seen) for pair, seen in zip(batch, there, strict=True) if not await self._is_kept(pair, seen, tokens, renewal)]
        refused: list[tuple[Address, Exception]] = []
        items, created = [], self._time()
        for n, (pair, seen) in enumerate(wanted):
            if n % AT_ONCE == AT_ONCE - 1:
                await breathe()
            try:
                items.append(self._planted(pair, tokens, created, seen))
            except (SerializationError, ValueTooLargeError) as error:
                refused.append((pair.address, error))
        stored = await self._port.plant(items, timeout=PATIENCE)
        done = [item for item, written in zip(items, stored, strict=True) if written]
        if done:
            at = {pair.address.key: pair for pair in batch}
            told = [(at[key].address, len(raw), FOR_EVER if life is None else life - at[key].terms.stale) for key, raw, life, _ in done]
            self._count_sets(at[done[0][0]].terms, told, started)
        loaded = sum(seen is None for _, _, _, seen in done)
        return Planted(loaded, len(done) - loaded, len(batch) - len(done) - len(refused), refused)

    async def _is_kept(self, pair: Pair, seen: bytes | None, tokens: Tokens, renewal: Renewal) -> bool:
        """Whether a read would be given what is there, and it is not due."""
        if seen is None:
            return False
        sight = await self._examine(pair.address, pair.terms, (seen, tokens))
        return sight.has_value and sight.entry is not None and not renewal.is_due(sight.entry, self._time())

    def _planted(self, pair: Pair, tokens: Tokens, created: float, seen: bytes | None) -> tuple[bytes, bytes, float | None, bytes | None]:
        address, value, terms = pair
        fingerprint = tokens.fingerprint(address.scopes)
        assert fingerprint is not None  # what was captured is there
        entry = self._entry(terms, address, self._encode_explicit(terms, value), fingerprint, created, 0.0, life=terms.life)
        return address.key, seal(address.checksum, entry), finite(entry.ttl + entry.stale), seen
