"""Looking: reads that load nothing, and what is told about an entry."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

from aiocache_aura.codecs.envelope import IS_ERROR, IS_NONE
from aiocache_aura.entries import Held, Sight
from aiocache_aura.freshness import Standing
from aiocache_aura.generations import Address
from aiocache_aura.stores.base import Holder, Scopes, Tokens
from aiocache_aura.terms import Terms
from aiocache_aura.types import MISSING, CacheEntry, Explanation
from aiocache_aura.writes import Writes

_CODECS = {0: "JSON", 1: "tagged JSON"}


class Looking(Writes):
    """What reads, and loads nothing. Every method may raise BackendError."""

    async def get(self, address: Address, terms: Terms, *, count: bool = True) -> Any:
        """The stored value, or MISSING."""
        return (await self.get_many([address], terms, count=count))[0]

    async def get_many(self, addresses: Sequence[Address], terms: Terms, *, count: bool = True) -> list[Any]:
        """The stored values in order, MISSING for those that are not there, or are an error that was cached; one round trip."""
        began, started = self._tick.now, self._monotonic()
        values = []
        looks = await self._look_at_all(addresses, terms)
        seconds = self._looked(addresses[0], terms, started) if count and addresses else 0.0
        for address, (held, sight) in zip(addresses, looks, strict=True):
            is_hit = held is not None and held.is_fresh and held.error is None
            values.append(held.value if held is not None and is_hit else MISSING)
            if held is not None and is_hit:
                self._slide(address, held, terms)
            else:
                self._remember_miss(address, sight.tokens, began)
            if count and is_hit:
                self._count_hit(address, terms, sight.raw, seconds)
            elif count:
                self._count_miss(terms, address, coalesced=False, seconds=seconds)
        return values

    async def _look_at_all(self, addresses: Sequence[Address], terms: Terms) -> list[tuple[Held | None, Sight]]:
        lookups = [self._port.lookup(address.key, self._hints.get(address.key, address.scopes)) for address in addresses]
        answers = await _all_answers(lookups)
        return [await self._look(address, terms, answer) for address, answer in zip(addresses, answers, strict=True)]

    async def ttl(self, address: Address, terms: Terms) -> float | None:
        """Seconds left of an entry that a read would be served from, inf for ever; None if there is none."""
        sight = await self._examine(address, terms)
        return sight.entry.left(self._time()) if sight.entry is not None and sight.has_value else None

    async def entry(self, address: Address, terms: Terms) -> CacheEntry[Any] | None:
        """What a read may be given, fresh or stale, with its age."""
        held, sight = await self._look(address, terms)
        if held is None or held.error is not None or sight.entry is None:
            return None
        now = self._time()
        left = max(sight.entry.left(now), 0.0) if held.is_fresh else 0.0
        return CacheEntry(held.value, max(now - sight.entry.created, 0.0), left, held.is_fresh)

    async def explain(self, address: Address, terms: Terms) -> Explanation:
        """What is stored, and what a read would make of it."""
        held, sight = await self._look(address, terms)
        leases = self._port.leases
        holder = None if leases is None else await leases.holder(address.key, timeout=self._budget)
        entry, now = sight.entry, self._time()
        scopes = address.scopes if entry is None else self._scopes_of(address, entry)
        told = dict[str, Any](
            key=address.key.decode(),
            scopes={_named(scope): sight.tokens.found.get(scope) is not None for scope in scopes},
            holder=_told_of(holder),
        )
        if entry is None:
            return Explanation(verdict="miss", why=self._why_nothing(sight), **told)
        verdict, why = self._verdict(held, sight, scopes, terms)
        return Explanation(
            verdict=verdict,  # type: ignore[arg-type]
            why=why,
            size=len(sight.raw or b""),
            codec="none" if entry.flags & IS_NONE else "error" if entry.flags & IS_ERROR else _CODECS.get(entry.codec, str(entry.codec)),
            age=max(now - entry.created, 0.0),
            ttl=entry.ttl,
            left=entry.left(now),
            stale_left=entry.left(now) + min(entry.stale, terms.stale),
            cost=entry.cost,
            **told,
        )

    @staticmethod
    def _why_nothing(sight: Sight) -> str:
        if sight.raw is None:
            return "nothing is stored under this key"
        return "what is stored was not written by this library under this key, or by another version of it"

    def _verdict(self, held: Held | None, sight: Sight, scopes: Scopes, terms: Terms) -> tuple[str, str]:
        entry, tokens = sight.entry, sight.tokens
        assert entry is not None
        if held is not None and held.is_fresh:
            return "hit", f"it is fresh for {entry.left(self._time()):.1f} s more, and nothing that it depends on was invalidated"
        was_invalidated = tokens.fingerprint(scopes) != entry.fingerprint
        what = "it was invalidated, and left as stale" if was_invalidated else "its life is over"
        if held is not None:
            return "stale", f"{what}; it stands in while it is refreshed"
        if sight.standing is not Standing.DEAD:
            return "miss", "it was stored as another type than the one that is declared here, or as an error that is not cached here"
        missing = [scope for scope in scopes if tokens.found.get(scope) is None]
        if missing:
            return "miss", f"the generation of {', '.join(map(_named, missing))} is gone: it was invalidated, or evicted"
        if was_invalidated:
            return "miss", "something that it depends on was invalidated after its load had begun"
        return "miss", f"its life was over {-entry.left(self._time()):.1f} s ago" + (", its stale life too" if entry.stale else "")


def _named(scope: bytes) -> str:
    return scope.decode().partition("!g:")[2]


def _told_of(holder: Holder | None) -> str | None:
    if holder is None:
        return None
    what = "has failed in" if holder.failed else "is loaded in"
    return f"it {what} process {holder.token[:4].hex()}, attempt {holder.attempt}; {holder.left:.1f} s left"


async def _all_answers(lookups: Sequence[Awaitable[tuple[bytes | None, Tokens]]]) -> list[tuple[bytes | None, Tokens]]:
    """Every answer, or the first error once all have come: none is left behind unread."""
    answers = await asyncio.gather(*lookups, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if not isinstance(answer, BaseException)]
