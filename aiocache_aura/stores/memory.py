"""The memory store: what `memory://` is, and the shape that every other store has to match.

One store belongs to a manager and may be used from several event loops, in several threads too: a lock makes each method one step. The same
protocol runs over it as over Redis - generations, permits, fenced fills - so what is right there is right here. Nothing waits for anything.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence

from aiocache_aura.clock import Clock
from aiocache_aura.codecs.envelope import FRONT
from aiocache_aura.errors import BackendError
from aiocache_aura.freshness import HARD_BYTES
from aiocache_aura.stores.base import TOKEN_BYTES, Claim, Fill, Scopes, Tokens, Verdict
from aiocache_aura.stores.boards import Boards
from aiocache_aura.stores.rota import Rota
from aiocache_aura.stores.sieve import Sieve
from aiocache_aura.stores.statistics import Connection

OVERHEAD_BYTES = 400  # of one entry beside its key and value: nodes, dict slots, object headers
MAX_TOKENS = 200_000


class MemoryStore:
    """Stored bytes by key, tokens by scope, permits by key; bounded by bytes and entries."""

    def __init__(self, clock: Clock, *, max_bytes: int | None, max_entries: int | None) -> None:
        self._now = clock.time
        self._lock = threading.RLock()  # who is told of an eviction may ask
        self._on_evict: Callable[[str, str], None] | None = None
        self.values: Sieve[bytes, bytes] = Sieve(max_weight=max_bytes, max_items=max_entries, group=_type_of, on_evict=self._evicted)
        self._tokens: Sieve[bytes, bytes] = Sieve(max_items=MAX_TOKENS)
        self._permits: Sieve[bytes, bytes] = Sieve(max_items=MAX_TOKENS)
        self.notes = Boards(clock.time)
        self.jobs = Rota(clock.time)

    def __repr__(self) -> str:
        return f"MemoryStore({self.values!r})"

    @property
    def leases(self) -> None:
        """No other process loads what is in here."""

    @property
    def probes(self) -> None:
        """There is no server."""

    async def lookup(self, key: bytes, scopes: Scopes) -> tuple[bytes | None, Tokens]:
        with self._lock:
            now = self._now()
            return self.values.get(key, now), self._read(scopes, now)

    async def claim(
        self, keys: Sequence[tuple[bytes, Scopes]], *, life: float | None, timeout: float, within: float | None = None
    ) -> list[Claim]:
        with self._lock:
            now = self._now()
            return [Claim(self._permit(key, now), self._plant(scopes, now)) for key, scopes in keys]

    async def fill(self, fills: Sequence[Fill], *, written: Callable[[], None], timeout: float) -> list[Verdict]:
        with self._lock:
            written()
            now = self._now()
            return [Verdict(self._fill(fill, now), self._read(fill.scopes, now)) for fill in fills]

    async def generations(self, scopes: Scopes, *, life: float | None, timeout: float) -> Tokens:
        with self._lock:
            return self._plant(scopes, self._now())

    async def store(self, items: Sequence[tuple[bytes, bytes, float | None]], *, timeout: float) -> None:
        with self._lock:
            now = self._now()
            for key, _, _ in items:
                self._permits.pop(key)
            taken = [self._put(key, raw, life, now) for key, raw, life in items]
        if not all(taken):
            raise BackendError(f"an entry is larger than the whole memory of {self!r}; raise l1_bytes or store less")

    async def store_if(self, key: bytes, raw: bytes, life: float | None, *, seen: bytes | None, timeout: float) -> bool:
        with self._lock:
            now = self._now()
            if not self._holds(key, seen, now):
                return False
            self._permits.pop(key)
            return self._put(key, raw, life, now)

    async def expire(self, key: bytes, raw: bytes, life: float | None, *, seen: bytes, timeout: float) -> bool:
        with self._lock:
            now = self._now()
            if not self._holds(key, seen, now):
                return False
            return self._put(key, raw, life, now)

    async def look(self, keys: Sequence[bytes], scopes: Scopes, *, timeout: float) -> tuple[list[bytes | None], Tokens]:
        with self._lock:
            now = self._now()
            return [self.values.get(key, now) for key in keys], self._read(scopes, now)

    async def plant(
        self, items: Sequence[tuple[bytes, bytes, float | None, bytes | None]], scopes: Scopes, *, timeout: float
    ) -> tuple[list[bool], Tokens]:
        with self._lock:
            now = self._now()
            written = [self._holds(key, seen, now) and self._put(key, raw, life, now) for key, raw, life, seen in items]
            return written, self._read(scopes, now)

    async def delete(self, keys: Sequence[bytes], *, timeout: float) -> int:
        with self._lock:
            now = self._now()
            there = sum(self.values.get(key, now) is not None for key in dict.fromkeys(keys))
            for key in keys:
                self._permits.pop(key)
                self.values.pop(key)
            return there

    async def invalidate(self, scopes: Iterable[bytes], *, timeout: float, soft: bool = False) -> None:
        with self._lock:
            for scope in scopes:
                token = self._tokens.pop(scope)
                if soft and token is not None:
                    self._tokens.put(scope, token[:HARD_BYTES] + os.urandom(TOKEN_BYTES - HARD_BYTES))

    async def purge(self, glob: bytes, matches: Callable[[bytes], bool], *, timeout: float) -> int:
        with self._lock:
            now = self._now()
            for key in filter(matches, self._permits):
                self._permits.pop(key)
            matching = [key for key in self.values if matches(key)]
            there = sum(self.values.get(key, now) is not None for key in matching)
            for key in matching:
                self.values.pop(key)
            return there

    def usage(self) -> dict[str, tuple[int, int]]:
        """By cache type, the entries there are, expired ones that nobody has come upon too, and the bytes that they take."""
        with self._lock:
            return {group.decode(): held for group, held in self.values.groups.items() if isinstance(group, bytes)}

    def connections(self) -> list[Connection]:
        return []

    def on_evict(self, tell: Callable[[str, str], None]) -> None:
        """Call this with the cache type of what is thrown out, and why. It is called under the lock of the store."""
        self._on_evict = tell

    def _evicted(self, key: bytes, reason: str) -> None:
        if self._on_evict is not None:
            self._on_evict(_type_of(key).decode(), reason)

    async def aclose(self) -> None:
        return None

    def forget(self) -> None:
        return None

    def clear(self) -> None:
        with self._lock:
            self.values.clear()
            self._permits.clear()
            self.notes.clear()
            self.jobs.clear()

    def _holds(self, key: bytes, seen: bytes | None, now: float) -> bool:
        there = self.values.get(key, now)
        return there is None if seen is None else there is not None and there[FRONT] == seen[FRONT]

    def _put(self, key: bytes, raw: bytes, life: float | None, now: float) -> bool:
        expires = float("inf") if life is None else now + life
        return self.values.put(key, raw, weight=len(key) + len(raw) + OVERHEAD_BYTES, expires=expires)

    def _permit(self, key: bytes, now: float) -> bytes:
        permit = self._permits.get(key, now)
        if permit is None:
            permit = os.urandom(TOKEN_BYTES)
            self._permits.put(key, permit)
        return permit

    def _fill(self, fill: Fill, now: float) -> bool:
        if self._permits.get(fill.key, now) != fill.permit:
            return False
        # The permit stays: whoever shares it may fill too, until something voids it (M9).
        return self._put(fill.key, fill.raw, fill.life, now)

    def _read(self, scopes: Scopes, now: float) -> Tokens:
        return Tokens({scope: self._tokens.get(scope, now) for scope in scopes})

    def _plant(self, scopes: Scopes, now: float) -> Tokens:
        for scope in scopes:
            if self._tokens.get(scope, now) is None:
                self._tokens.put(scope, os.urandom(TOKEN_BYTES))
        return self._read(scopes, now)


def _type_of(key: bytes) -> bytes:
    """The cache type in a key: what stands between the first colons; prefixes and types have none in them."""
    return key.split(b":", 2)[1] if b":" in key else b""
