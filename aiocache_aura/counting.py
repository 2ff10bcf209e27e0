"""Counting and telling: what the engine does, as it is written down for monitors, listeners and logs.

A hit is counted by its way itself, which calls `_hit` only for the hits that are timed and while somebody listens to them. All that is
slower anyway - misses, loads, writes - is always timed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from aiocache_aura.clock import Clock
from aiocache_aura.codecs.envelope import cost_of
from aiocache_aura.context import identity
from aiocache_aura.errors import BackendError
from aiocache_aura.events import Deleted, Fault, Hit, Load, Miss, StaleServed, Stored
from aiocache_aura.generations import Address
from aiocache_aura.recorder import Recorder
from aiocache_aura.resilience.fail_safe import FaultLog
from aiocache_aura.stores.base import Scopes
from aiocache_aura.terms import Terms

log = logging.getLogger("aiocache_aura.engine")


class Counting:
    """What one event loop adds to a manager's figures."""

    def __init__(self, clock: Clock, recorder: Recorder | None, *, log_keys: bool) -> None:
        self._time, self._monotonic = clock.time, clock.monotonic
        self._recorder = Recorder(clock) if recorder is None else recorder
        self._events = self._recorder.events
        self._faults = FaultLog(log, clock=clock)
        self._log_keys = log_keys
        self.unstorable: dict[str, str] = {}

    def _add(self, terms: Terms, name: str, amount: float) -> None:
        for counts in (terms.counts, terms.own):
            if counts is not None:
                setattr(counts, name, getattr(counts, name) + amount)

    def _happens(self, terms: Terms, name: str) -> None:
        """Count something that happens now, and that nobody has timed."""
        self._recorder.touch(self._monotonic())
        self._add(terms, name, 1)

    # Reads

    def _hit(self, address: Address, terms: Terms, raw: bytes, started: float, args: tuple[Any, ...]) -> None:
        """Time a plain hit that is about to be counted, if it is one of those, and tell of it."""
        counts, now = terms.counts, self._monotonic()
        seconds = now - started
        if not counts.hits & counts.mask:
            self._recorder.touch(now)
            counts.took("get", seconds, self._sample(address, terms, raw, args))
            if seconds >= self._recorder.slow_threshold:
                self._recorder.slow(address.cache_type, "get", self.shown(address), seconds, len(raw))
        self._tell_hit(address, raw, seconds)

    def _count_hit(
        self, address: Address, terms: Terms, raw: bytes | None, seconds: float, args: tuple[Any, ...] = (), *, stale: bool = False
    ) -> None:
        """A hit on another way than the plain one, whose lookup took so many seconds and is timed already."""
        if not terms.counts.hits & terms.counts.mask:
            self._sample(address, terms, raw or b"", args)
        self._tell_hit(address, raw or b"", seconds, stale=stale)
        self._add(terms, "hits", 1)

    def _sample(self, address: Address, terms: Terms, raw: bytes, args: tuple[Any, ...]) -> int:
        """Put down what a hit has saved, and what the hits that are not looked at have; for how many it stands."""
        times = self._recorder.sampled(terms.counts)
        saved = cost_of(raw) * times
        if saved:
            terms.counts.saved_seconds += saved
            recall = None if terms.recall is None or not args else partial(terms.recall, *args)
            self._recorder.heat.offer(address.cache_type, address.key.decode(), saved, recall)
        return times

    def _recipe(self, address: Address, terms: Terms, load: object) -> bytes | None:
        """What makes a call again that is about to be loaded, unless that is known, or it is no call."""
        if terms.recall is None or not isinstance(load, partial) or self._recorder.heat.knows(address.cache_type, address.key.decode()):
            return None
        return terms.recall(*load.args)

    def _heat(self, address: Address, cost: float, recipe: bytes | None) -> None:
        """A user's read has missed, and took a load of so many seconds: the next one is saved it."""
        if identity.get().warming is None:
            recall = None if recipe is None else lambda: recipe
            self._recorder.heat.offer(address.cache_type, address.key.decode(), cost, recall)

    def _tell_hit(self, address: Address, raw: bytes, seconds: float, *, stale: bool = False) -> None:
        debug = log.isEnabledFor(logging.DEBUG)
        if self._events.look(debug=debug):
            if self._events.wants(Hit):
                self._events.tell(Hit(**self._told(address), seconds=seconds, size=len(raw), stale=stale))
            if debug:
                log.debug("hit %s", self.shown(address))

    def _looked(self, address: Address, terms: Terms, started: float) -> float:
        """A lookup that gave no plain hit is over; the seconds that it took."""
        now = self._monotonic()
        self._recorder.touch(now)
        self._took(address, terms, "get", now - started)
        return now - started

    def _took(self, address: Address, terms: Terms, operation: str, seconds: float, size: int = 0) -> None:
        terms.counts.took(operation, seconds)
        if seconds >= self._recorder.slow_threshold:
            self._recorder.slow(address.cache_type, operation, self.shown(address), seconds, size)

    def _count_miss(self, terms: Terms, address: Address, *, coalesced: bool, seconds: float = 0.0) -> None:
        self._recorder.touch(self._monotonic())
        self._add(terms, "misses", 1)
        self._add(terms, "coalesced", int(coalesced))
        if self._events.wants(Miss):
            self._events.tell(Miss(**self._told(address), seconds=seconds, coalesced=coalesced))
        debug = log.isEnabledFor(logging.DEBUG)
        self._events.look(debug=debug)
        if debug:
            log.debug("miss %s%s", self.shown(address), ", joins a load" if coalesced else "")

    def _count_stale(self, address: Address, terms: Terms, reason: str) -> None:
        """A stale value is given: it is "refreshing", or there was a "timeout" or an "error", or the load is "paused"."""
        self._happens(terms, f"stale_{reason}")
        if self._events.wants(StaleServed):
            self._events.tell(StaleServed(**self._told(address), reason=reason))

    # Loads and writes

    def _count_load(self, address: Address, terms: Terms, seconds: float, error: BaseException | None) -> None:
        self._recorder.touch(self._monotonic())
        self._add(terms, "loads", 1)
        self._add(terms, "load_seconds", seconds)
        self._took(address, terms, "load" if error is None else "load_error", seconds)
        if self._events.wants(Load):
            self._events.tell(Load(**self._told(address), seconds=seconds, error=error))

    def _count_sets(self, terms: Terms, written: Sequence[tuple[Address, int, float]], started: float) -> None:
        """Entries were written in one go: where each is, its size in bytes, its life in seconds."""
        now = self._monotonic()
        self._recorder.touch(now)
        self._add(terms, "sets", len(written))
        if written:
            self._took(written[0][0], terms, "set", now - started, sum(size for _, size, _ in written))
        if self._events.wants(Stored):
            for address, size, life in written:
                self._events.tell(Stored(**self._told(address), seconds=now - started, size=size, ttl=life))

    def _count_deletes(self, terms: Terms, addresses: Sequence[Address], gone: int, started: float) -> None:
        now = self._monotonic()
        self._recorder.touch(now)
        self._add(terms, "deletes", gone)
        self._took(addresses[0], terms, "delete", now - started)
        if self._events.wants(Deleted):
            self._events.tell(Deleted(**self._told(addresses[0]), seconds=now - started, count=gone))

    # Faults

    def _fault(self, error: BackendError, terms: Terms, address: Address | None = None) -> None:
        self._recorder.touch(self._monotonic())
        for counts in (terms.counts, terms.own):
            if counts is not None:
                counts.failed(error)
        if self._events.wants(Fault):
            where = {"cache_type": terms.cache_type, "at": self._time()} if address is None else self._told(address)
            self._events.tell(Fault(**where, error=error))
        self._faults.report(error, terms.label)

    def _note_unstorable(self, terms: Terms, error: Exception) -> None:
        self._happens(terms, "unstorable")
        if terms.label not in self.unstorable:
            self.unstorable[terms.label] = str(error)
            log.warning("%s is returned but not cached: %s", terms.label, error)

    # Telling

    def _told(self, address: Address) -> dict[str, Any]:
        return {"cache_type": address.cache_type, "key": self.shown(address), "at": self._time()}

    def shown(self, address: Address) -> str:
        return shown(address, self._log_keys)

    def shown_scopes(self, scopes: Scopes) -> str:
        """Scopes as logs may show them: tenants, users and tags hashed, unless `log_keys`."""
        names = [scope.decode().partition("!g:")[2] for scope in scopes]
        return ", ".join(names if self._log_keys else map(_hashed, names))


def shown(address: Address, log_keys: bool) -> str:
    """A key as logs may show it: arguments hashed, unless `log_keys`."""
    if log_keys:
        return address.key.decode()
    return hidden(address.cache_type, address.tail, address.key)


def hidden(cache_type: str, tail: str, key: bytes) -> str:
    """A key without its arguments: its type and function, and what tells it from others."""
    name = tail.partition(":")[0] if tail.startswith("@") else "="
    return f"{cache_type}:{name}#{hashlib.blake2b(key, digest_size=6).hexdigest()}"


def _hashed(name: str) -> str:
    """`y:menu:t1` as `y:menu#...`, `g:promo` as `g:#...`; a type and a function as they are."""
    kind, _, rest = name.partition(":")
    head, _, ids = {"f": (rest, "", ""), "y": rest.partition(":")}.get(kind, ("", "", rest))
    return f"{kind}:{head}" + (f"#{hashlib.blake2b(ids.encode(), digest_size=6).hexdigest()}" if ids else "")


__all__ = ["Counting", "hidden", "log", "shown"]
