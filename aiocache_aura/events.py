"""Happenings: what the cache did, handed to plain callables as frozen objects.

Nobody listening costs nothing: no object is made of a kind that nobody asked for. A callable is called where the thing happened, in the
task that caused it, before that goes on; so it has to be quick, and what it raises is logged and harms nobody: a CancelledError, too, which
nobody can have meant for a task that is not waiting. The idea and its form are stamina's and structlog's instrumentation hooks.
"""

from __future__ import annotations

import inspect
import logging
import threading
from asyncio import CancelledError
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from aiocache_aura.clock import Clock
from aiocache_aura.resilience.fail_safe import FaultLog

log = logging.getLogger("aiocache_aura.events")


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """Something that happened; `at` is in seconds since the epoch, when it was over.

    `key` is shown as in logs: arguments hashed, unless the manager has `log_keys=True`.
    """

    cache_type: str
    key: str = ""
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit(Happening):
    """A read was given what is stored; `seconds` are those of the lookup, `size` is of the stored entry, in bytes.

    `stale`: past its life.
    """

    seconds: float
    size: int = 0
    stale: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss(Happening):
    """A read found nothing that it could be given. `coalesced`: it waits for a load that was under way."""

    seconds: float = 0.0
    coalesced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Load(Happening):
    """A function or loader ran for so many seconds; `error` is what it raised, None if it gave a value."""

    seconds: float
    error: BaseException | None = field(default=None, repr=False)

    @property
    def outcome(self) -> str:
        return "error" if self.error is not None else "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleServed(Happening):
    """A stale value stood in; `reason` is "refreshing", "timeout", "error" or "paused"."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored(Happening):
    """An entry was written, by hand or with a load; `ttl` in seconds, until it is stale, `size` in bytes; 0 where it is not known."""

    seconds: float
    size: int = 0
    ttl: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted(Happening):
    """Keys were deleted; `count` is how many of them were stored."""

    seconds: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Invalidated(Happening):
    """Something was invalidated; `what` says what, `delivered` whether the store has taken it. The `cache_type` is "" for all types."""

    what: str
    seconds: float
    delivered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault(Happening):
    """The store failed an operation."""

    error: BaseException = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evicted(Happening):
    """The in-process store threw an entry out; `reason` is "entries", "bytes" or "too large"."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowOperation(Happening):
    """An operation took longer than the recorder's `slow_threshold`; `size` in bytes, 0 where it is not known."""

    operation: str
    seconds: float
    size: int = 0


Listener: TypeAlias = Callable[[Any], object]
L = TypeVar("L", bound=Listener)


class Listening(AbstractContextManager["Listening"]):
    """One listener, until `stop()` or the end of its `with` block."""

    __slots__ = ("_events", "callback", "kinds", "when")

    def __init__(self, events: Events, callback: Listener, kinds: tuple[type[Happening], ...], when: Callable[[], bool] | None) -> None:
        self._events, self.callback, self.kinds, self.when = events, callback, kinds, when

    def __repr__(self) -> str:
        return f"<Listening to {', '.join(kind.__name__ for kind in self.kinds)}: {self.callback!r:.80}>"

    def stop(self) -> None:
        """Hear nothing any more; idempotent."""
        self._events._stop(self)  # noqa: SLF001

    def __exit__(self, *exc: object) -> None:
        self.stop()


class Events:
    """Who listens to what. `hits` says whether hits are to be told, to a listener or to the log: all that their way asks.

    DEBUG is looked at when a hit is timed and when something misses, so of a busy type's hits the first few dozen may go unlogged.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._listening: list[Listening] = []
        self._heard: dict[type[Happening], tuple[Listener, ...]] = {}
        self._only_when: dict[type[Happening], tuple[Callable[[], bool], ...]] = {}
        self._lock = threading.Lock()
        self._faults = FaultLog(log, clock=clock)
        self._debug = False
        self.hits = False

    def __repr__(self) -> str:
        return f"<Events, {len(self._listening)} listeners>"

    def listen(self, callback: Listener, *kinds: type[Happening], when: Callable[[], bool] | None = None) -> Listening:
        """Have a plain callable called with each happening of these kinds, of all kinds if none is said; at once, hits too.

        What nobody else listens to is not even made where `when`, which is asked in the same task, says no.
        """
        if inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(getattr(callback, "__call__", None)):  # noqa: B004
            raise TypeError(f"{callback!r:.80} is async; listeners are plain functions, called where the thing happens")
        if not callable(callback):
            raise TypeError(f"a listener is a callable of one happening, not {type(callback).__name__}")
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, Happening)):
                raise TypeError(f"{kind!r:.80} is no kind of happening; there are: {', '.join(one.__name__ for one in KINDS)}")
        listening = Listening(self, callback, kinds or (Happening,), when)
        with self._lock:
            self._listening.append(listening)
            self._sort()
        return listening

    def on(self, *kinds: type[Happening]) -> Callable[[L], L]:
        """`listen`, as a decorator."""
        if any(not isinstance(kind, type) for kind in kinds):
            raise TypeError("on(...) takes kinds of happenings: @events.on(Load), or @events.on() for all")

        def decorate(callback: L) -> L:
            self.listen(callback, *kinds)
            return callback

        return decorate

    def wants(self, kind: type[Happening]) -> bool:
        """Whether anybody listens to this kind, now and here."""
        if kind not in self._heard:
            return False
        conditions = self._only_when.get(kind)
        return conditions is None or any(map(self._is_met, conditions))

    def look(self, *, debug: bool) -> bool:
        """Take notice of whether DEBUG is on, which shows hits; whether hits are to be told."""
        if debug is not self._debug:
            self._debug = debug
            self.hits = debug or Hit in self._heard
        return self.hits

    def tell(self, happening: Happening) -> None:
        """Hand it to those who listen."""
        for callback in self._heard.get(type(happening), ()):
            try:
                callback(happening)
            except (Exception, CancelledError) as error:
                self._faults.report(error, f"a listener, {_named(callback)},")

    def _is_met(self, condition: Callable[[], bool]) -> bool:
        try:
            return condition()
        except (Exception, CancelledError) as error:
            self._faults.report(error, f"the condition of a listener, {_named(condition)},")
            return False

    def _stop(self, listening: Listening) -> None:
        with self._lock:
            self._listening = [one for one in self._listening if one is not listening]
            self._sort()

    def _sort(self) -> None:
        heard = {kind: [one for one in self._listening if issubclass(kind, one.kinds)] for kind in KINDS}
        conditions = {kind: tuple(one.when for one in listening if one.when is not None) for kind, listening in heard.items()}
        self._heard = {kind: tuple(one.callback for one in listening) for kind, listening in heard.items() if listening}
        self._only_when = {kind: asked for kind, asked in conditions.items() if asked and len(asked) == len(heard[kind])}
        self.hits = self._debug or Hit in self._heard


def _named(called: object) -> str:
    """A callable as logs show it, by its class where its repr raises."""
    try:
        return f"{called!r:.80}"
    except (Exception, CancelledError):
        return f"of {type(called).__name__}"


KINDS: tuple[type[Happening], ...] = (
    Hit,
    Miss,
    Load,
    StaleServed,
    Stored,
    Deleted,
    Invalidated,
    Fault,
    Evicted,
    SlowOperation,
)
