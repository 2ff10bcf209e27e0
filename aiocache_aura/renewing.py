"""Reads of warmers: what is there is left, unless it is to be renewed; what is missing is loaded as by anybody.

They go through the same flights and leases as users' reads: a load that is under way, here or elsewhere, is joined. A value that is to be
renewed is served meanwhile: its flight is one that refreshes, which does not take away the lease of another process. They are not counted
as hits and misses, which are users'.

Invariants
- A load takes a turn of its warmer; looking takes none. What was seen before the turn came is looked at again, if anything has happened
  since: a key that somebody has loaded meanwhile is not loaded twice (V25).
- A look and the decision that it leads to are one synchronous stretch, as with every read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from aiocache_aura import engine
from aiocache_aura.engine import Batch
from aiocache_aura.entries import Held
from aiocache_aura.generations import Address
from aiocache_aura.loading import LoadMany
from aiocache_aura.planting import Renewal
from aiocache_aura.resilience.single_flight import LEFT_OUT, RETRY, Load
from aiocache_aura.terms import Terms
from aiocache_aura.types import MISSING

Turn: TypeAlias = Callable[[], AbstractAsyncContextManager[Any]]


class Warmed(NamedTuple):
    """What a warmer's read came to: what was held before, and the value; `error` is why there is no newer one, or why it is not stored."""

    held: Held | None
    value: Any
    error: Exception | None = None


class Engine(engine.Engine):
    """The engine as managers have it: one that can be warmed, too."""

    async def warm(self, address: Address, terms: Terms, load: Load, renewal: Renewal, turn: Turn) -> Warmed:
        """What is stored, unless it is to be renewed; else a load, like any other, in the warmer's `turn`.

        One that is under way is joined, here or in another process. May raise BackendError, and what the load raises.
        """
        async with AsyncExitStack() as stack:
            is_my_turn = False
            while True:
                began = self._tick.now
                held, sight = await self._look(address, terms)
                if held is not None and self._is_kept_warm(held, renewal):
                    return Warmed(held, held.value)
                if held is None and self._was_filled(address.key, began):
                    continue
                if not is_my_turn:
                    is_my_turn, now = True, self._tick.now
                    await stack.enter_async_context(turn())
                    if self._tick.now != now:  # somebody may have loaded it meanwhile
                        continue
                flight = self.flights.get(address.key)
                if flight is None:
                    flight, waiter = self._take_off(address, terms, load, began, self._budget, sight, held=held)
                else:
                    waiter = flight.board(began, load if terms.personal else None, content=held is not None)
                try:
                    loaded: Any = await flight.outcome(waiter)
                    if loaded is RETRY or loaded is LEFT_OUT:
                        continue
                    value = loaded.take(terms)
                except Exception as error:
                    if held is None or held.error is not None or not self._stands_in(held, terms, error):
                        raise
                    return Warmed(held, held.value, error)
                if value is not RETRY:
                    return Warmed(held, value, loaded.unstored)

    async def warm_many(
        self, addresses: Sequence[Address], terms: Terms, load: LoadMany, renewal: Renewal, turn: Turn
    ) -> tuple[list[Any], set[int]]:
        """`warm` for many, as `get_or_load_many` is for many: the values, and the positions of those that were there before."""
        batch = Batch(addresses, replace(terms, soft=None, hard=None), load)
        values: list[Any] = [MISSING] * len(addresses)
        there, wanted = set[int](), list(range(len(addresses)))
        async with AsyncExitStack() as stack:
            is_my_turn = False
            while wanted:
                began, started = self._tick.now, self._monotonic()
                looks = dict(zip(wanted, await self._look_at_all([addresses[n] for n in wanted], terms), strict=True))
                held = {n: one for n, (one, _) in looks.items() if one is not None and one.error is None}
                there.update(held)
                kept = {n for n, one in held.items() if self._is_kept_warm(one, renewal)}
                values = [held[n].value if n in kept else value for n, value in enumerate(values)]
                wanted = [n for n in wanted if n not in kept]
                if wanted and not is_my_turn:
                    is_my_turn, now = True, self._tick.now
                    await stack.enter_async_context(turn())
                    if self._tick.now != now:
                        continue
                seen = {n: looks[n][1].raw for n in wanted}
                aboard = self._board_all(batch, wanted, began, self._budget, seen, content=held)
                outcomes = await self._all_outcomes(aboard, batch.terms, started)
                wanted = [n for n in wanted if outcomes[n] is RETRY]
                values = [outcomes.get(n, value) for n, value in enumerate(values)]
                values = [MISSING if value is RETRY or value is LEFT_OUT else value for value in values]
        return values, there

    def _is_kept_warm(self, held: Held, renewal: Renewal) -> bool:
        """Whether a warmer leaves what is stored as it is, an error that is cached too."""
        entry = held.sight.entry
        return held.is_fresh and entry is not None and not renewal.is_due(entry, self._time())


__all__ = ["Engine", "Turn", "Warmed"]
