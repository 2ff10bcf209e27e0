"""The seams of the store floor: what the engine asks of a store, and what the Redis store asks of a connection.

`Port` is what the engine sees: one event loop's way to stored bytes, generations and permits; `Leases` what it sees of a store that several
processes share. `Lane` is what the Redis store sees: a way to
write groups of commands and have their replies in order, whether over a multiplexed connection of ours or over a client's public API.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, Protocol, TypeAlias

from aiocache_aura.errors import BackendError
from aiocache_aura.stores.statistics import Connection, Sample

Command: TypeAlias = tuple[str | bytes | int, ...]
Scopes: TypeAlias = tuple[bytes, ...]

TOKEN_BYTES = 16


class Handler(Protocol):
    """Who waits for the replies to one group of commands."""

    def written(self) -> None:
        """The group leaves now; called again if it is sent again after a lost connection."""

    def deliver(self, replies: list[object]) -> bool:
        """One reply for each command, in order; an error of the server is a value among them, an instance of Exception.

        False if these cannot be the replies to these commands: then those that follow are not those of theirs, and the connection is made
        anew.
        """
        ...

    def fail(self, error: BackendError) -> None:
        """No reply will be used: the time is up or the connection is gone. Called at most once, and never after `deliver`."""


class FutureHandler:
    """A handler that is a future."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: asyncio.Future[list[object]] = asyncio.get_running_loop().create_future()

    def written(self) -> None:
        return None

    def deliver(self, replies: list[object]) -> bool:
        if not self.future.done():
            self.future.set_result(replies)
        return True

    def fail(self, error: BackendError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class NoHandler:
    """A handler for what nobody waits for."""

    __slots__ = ()

    def written(self) -> None:
        return None

    def deliver(self, replies: list[object]) -> bool:
        return True

    def fail(self, error: BackendError) -> None:
        return None


class CallHandler:
    """A handler that calls somebody at the end: with the replies, or with none if they cannot be had."""

    __slots__ = ("_then",)

    def __init__(self, then: Callable[[Sequence[object]], None]) -> None:
        self._then = then

    def written(self) -> None:
        return None

    def deliver(self, replies: list[object]) -> bool:
        self._then(replies)
        return True

    def fail(self, error: BackendError) -> None:
        self._then(())


def own_copy(error: BackendError) -> BackendError:
    """The same error for one more caller: a traceback grows with each that raises it."""
    copy = error.__class__(*error.args)
    copy.__cause__, copy.code = error.__cause__, error.code
    return copy


class Lane(Protocol):
    """One ordered way to a server and back, for one event loop."""

    def wake(self, collect: Callable[[], None], /) -> None:
        """Call `collect` once, at the end of this tick, before what was put is written; it may `put` more."""

    def put(self, commands: Sequence[Command], handler: Handler, *, timeout: float, repeatable: bool, patient: bool = False) -> None:
        """Write `commands` at the end of this tick.

        `timeout` is in seconds, from now to the replies. A `repeatable` group is written again, once the connection is back, if it was lost
        before the answer came. A `patient` group waits, within its timeout, for a connection that is known to be down; others fail at once.
        """

    def send(
        self, commands: Sequence[Command], *, timeout: float, repeatable: bool = False, patient: bool = False
    ) -> Awaitable[list[object]]:
        """`put` with a future: the replies, or BackendError."""
        ...

    def hasten(self) -> None:
        """Let the next that asks try to connect, however lately that has failed."""


class Ear(Protocol):
    """Who listens to a channel."""

    def began(self) -> None:
        """All that is published from now on is heard."""

    def heard(self, payload: bytes) -> None: ...

    def ended(self) -> None:
        """What is published from now on may not be heard."""


class Listener(Protocol):
    """A subscription to one channel, for one event loop."""

    @property
    def is_live(self) -> bool: ...

    def check(self, timeout: float) -> None:
        """Subscribe, if it has not; else see whether the connection is alive. Both take at most `timeout` seconds, and go on behind."""

    def hang_up(self) -> None:
        """Leave the channel until the next check."""


class Link(Protocol):
    """One event loop's lanes to one server: reads never wait behind writes."""

    @property
    def reads(self) -> Sequence[Lane]: ...

    @property
    def writes(self) -> Lane: ...

    def listen(self, channel: bytes, ear: Ear) -> Listener | None:
        """A subscription, which is closed with the link; None where the connections cannot have one."""
        ...

    def connections(self) -> list[Connection]:
        """How the lanes are now; may be asked from any thread."""
        ...

    async def aclose(self) -> None:
        """Close the connections; idempotent."""

    def forget(self) -> None:
        """Let go of everything without a word to the server: the loop is closed, or this process is a fork."""


class Tokens:
    """Generation tokens as one round trip found them.

    A fingerprint of several tokens is their XOR: they are random and used once, so any change of any of them changes it, and the order
    does not matter. None stands for "at least one is missing", which equals nothing (M2).
    """

    __slots__ = ("_prints", "found")

    def __init__(self, found: dict[bytes, bytes | None]) -> None:
        self.found = found
        self._prints: dict[Scopes, bytes | None] = {}

    def fingerprint(self, scopes: Scopes) -> bytes | None:
        """What an entry that depends on exactly `scopes` must carry; computed once per round trip."""
        try:
            return self._prints[scopes]
        except KeyError:
            print_ = self._prints[scopes] = self._mix(scopes)
            return print_

    def _mix(self, scopes: Scopes) -> bytes | None:
        mixed = 0
        for scope in scopes:
            token = self.found.get(scope)
            if token is None or len(token) != TOKEN_BYTES:
                return None
            mixed ^= int.from_bytes(token, "little")
        return mixed.to_bytes(TOKEN_BYTES, "little")

    def missing(self, scopes: Iterable[bytes]) -> list[bytes]:
        return [scope for scope in scopes if self.found.get(scope) is None]


@dataclass(frozen=True, slots=True)
class Claim:
    """What a load needs before it begins: the permit of its key, or the lease, and its generations as they are now."""

    permit: bytes
    tokens: Tokens
    leased: bool = False


@dataclass(frozen=True, slots=True)
class Want:
    """A key that one process in the fleet is to load."""

    key: bytes
    scopes: Scopes
    life: float | None  # seconds that an entry of it may be there, None for ever
    seen: bytes | None = field(default=None, repr=False)  # the stored bytes that the asker knows: other ones are an answer (M12)
    chain: bytes = b""  # the attempts that the asker has waited for (M14)
    force: bool = False  # whoever holds the lease
    content: bool = False  # has a value to go on with: does not load before a failure's pause is over


@dataclass(frozen=True, slots=True)
class Found:
    """Another value than the one that was seen, and the generations as they are with it."""

    raw: bytes = field(repr=False)
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class HeldElsewhere:
    """Somebody loads the key: which chain of attempts that is, and for how many seconds the lease is good."""

    chain: bytes
    left: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The load has failed: what `Leases.fail` was told, and the seconds until a content asker may try."""

    reason: bytes
    pause: float


@dataclass(frozen=True, slots=True)
class Alone:
    """Whoever loaded the key has nothing to share: each process loads for itself."""


Standing: TypeAlias = Claim | Found | HeldElsewhere | Failed | Alone


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a key's lease: for messages."""

    token: bytes
    attempt: int
    failed: bool
    left: float  # seconds


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a fill: whether the fence let it in, and the generations as they are after it."""

    accepted: bool
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Fill:
    """A loaded value on its way into the store."""

    key: bytes
    raw: bytes = field(repr=False)
    life: float | None  # seconds, None for ever
    permit: bytes
    scopes: Scopes
    leased: bool = False  # the permit is a lease: it goes with the fill, and who follows it is woken


class Follower(Protocol):
    """A place among those who want to be told when the load of a key has ended. Taken before the key is asked for (M13)."""

    async def wait(self, seconds: float) -> None:
        """Until the key is to be asked for again: its holder has ended, the time is up, or wake-ups could have been missed so far."""

    def close(self) -> None:
        """Leave it."""


class Leases(Protocol):
    """One event loop's leases: who in the fleet loads a key. They are renewed as long as they are held."""

    def follow(self, key: bytes) -> Follower: ...

    async def acquire(self, wants: Sequence[Want], *, timeout: float, written: Callable[[], None]) -> list[Standing]:
        """Where each key stands, in one round trip: a Claim is a lease that is now held (M12, M14, M15). May raise BackendError.

        `written` is called each time that the request is written: what it finds serves only reads that began before.
        """
        ...

    def release(self, key: bytes, lease: bytes) -> None:
        """Give a lease back, at once and behind the caller's back; who follows it is woken. Nothing if it is held no more."""

    def fail(self, key: bytes, lease: bytes, reason: bytes, *, throttle: float) -> None:
        """As `release`, but leave word of a failure (M14): content askers pause for `throttle` seconds."""

    def leave_alone(self, key: bytes, lease: bytes) -> None:
        """As `release`, but leave word that there is nothing to share."""

    async def holder(self, key: bytes, *, timeout: float) -> Holder | None:
        """Who holds the key's lease. May raise BackendError."""
        ...


class Posted(IntEnum):
    """What became of a note: the board is full, no note of that name stood there, or one did and was replaced."""

    FULL = 0
    NEW = 1
    REPLACED = 2


class Notes(Protocol):
    """Boards of small notes that the processes of a fleet post for one another: figures, what is hot. Every method may raise BackendError.

    A note stands under a name on a board for its life, in seconds by the store's clock; an emptied store has none. At most 1,000 stand on
    a board.
    """

    async def post(self, board: str, name: str, payload: bytes, *, life: float, timeout: float) -> Posted:
        """Put a note up, in place of the one of that name; not if the board is full."""
        ...

    async def read(self, board: str, *, timeout: float) -> dict[str, bytes]:
        """The notes that stand on a board."""
        ...

    async def drop(self, board: str, name: str, *, timeout: float) -> None:
        """Take a note down, if it stands."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Where a job stands. Times are microseconds since the epoch by the store's clock."""

    kind: Literal["run", "wait", "held"]
    due: int  # the due time of the grid that is run next, or is being run
    at: int  # when it may begin: the due time, and by how much it is put off by chance
    now: int
    until: int  # when the lease ends, if it is held
    took: int  # microseconds that the last run took, 0 if there was none


class Jobs(Protocol):
    """Jobs of a fleet: one process runs each due time. Rules are in `aiocache_aura.stores.jobs`; every method may raise BackendError.

    A `token` is random, and stands for one attempt to run: it is used until its fate is known. Each verb may be sent again.
    """

    async def claim(self, job: str, token: bytes, *, at_once: bool = False, timeout: float) -> Turn:
        """Whether this process is to run now: then the job is held, under this token. `at_once`: before it is due, too."""
        ...

    async def renew(self, job: str, token: bytes, *, timeout: float) -> bool:
        """Hold it for another `LEASE` seconds; False if it is held under this token no more."""
        ...

    async def end(self, job: str, token: bytes, due: int, at: int, took: int, *, timeout: float) -> bool:
        """The run has ended, and the job is due next then; False if it was held under this token no more."""
        ...

    async def give_back(self, job: str, token: bytes, *, timeout: float) -> bool:
        """Let another process run the same due time; False if it was held under this token no more."""
        ...


class Probes(Protocol):
    """What is asked for the sake of health. Every method may raise BackendError, and gives a server that is down another try at once."""

    async def read(self, *, timeout: float) -> None:
        """Look a key up over each lane, as lookups do."""

    async def write(self, *, timeout: float) -> None:
        """Write a key of our own plainly and by script, and remove it, as explicit writes, loads and invalidations do."""

    async def ask(self, commands: Sequence[Command], *, timeout: float) -> list[Any]:
        """The replies, behind what is being written; what is refused is a BackendError among them, with its code."""
        ...

    async def sample(self, *, timeout: float) -> Sample:
        """Look at some keys under the prefix, in bounded steps."""
        ...


class Port(Protocol):
    """One event loop's way to stored bytes, generations and permits. Every method may raise BackendError."""

    @property
    def leases(self) -> Leases | None:
        """None where no other process can load the same keys."""
        ...

    @property
    def notes(self) -> Notes: ...

    @property
    def jobs(self) -> Jobs: ...

    @property
    def probes(self) -> Probes | None:
        """None where there is no server."""
        ...

    def lookup(self, key: bytes, scopes: Scopes) -> Awaitable[tuple[bytes | None, Tokens]]:
        """The value of `key` and the tokens of `scopes`; lookups of one tick share a round trip (M1)."""
        ...

    async def claim(
        self, keys: Sequence[tuple[bytes, Scopes]], *, life: float | None, timeout: float, within: float | None = None
    ) -> list[Claim]:
        """A permit for each key and its generations, planted where missing, in one round trip (M6, M9).

        A load that takes up to `within` seconds may still fill; None for as long as the store thinks fit.
        """
        ...

    async def fill(self, fills: Sequence[Fill], *, written: Callable[[], None], timeout: float) -> list[Verdict]:
        """Store each value whose permit is still there, then look at its generations again (M3, M9)."""
        ...

    async def generations(self, scopes: Scopes, *, life: float | None, timeout: float) -> Tokens:
        """The tokens of `scopes`, planted where missing: what a `set` stores (M10)."""
        ...

    async def store(self, items: Sequence[tuple[bytes, bytes, float | None]], *, timeout: float) -> None:
        """Remove the permits of these keys, then write (key, raw, life) over whatever is there (M10)."""

    async def store_if(self, key: bytes, raw: bytes, life: float | None, *, seen: bytes | None, timeout: float) -> bool:
        """`store` for one key, only if its slot still holds `seen` (None: is empty); whether it was written."""
        ...

    async def look(self, keys: Sequence[bytes], scopes: Scopes, *, timeout: float) -> tuple[list[bytes | None], Tokens]:
        """What is stored under the keys, and the tokens of `scopes`: a lookup that no reader waits for."""
        ...

    async def plant(
        self, items: Sequence[tuple[bytes, bytes, float | None, bytes | None]], scopes: Scopes, *, timeout: float
    ) -> tuple[list[bool], Tokens]:
        """Write each (key, raw, life, seen) whose slot still holds `seen` (None: is empty), and void no load; which were written, and the
        tokens of these scopes behind that."""
        ...

    async def delete(self, keys: Sequence[bytes], *, timeout: float) -> int:
        """Remove permits, then values; how many values were there (M9)."""
        ...

    async def invalidate(self, scopes: Iterable[bytes], *, timeout: float, soft: bool = False) -> None:
        """Drop the tokens of these scopes: one command, whatever depends on them (M7). `soft`: replace only their soft halves."""

    async def expire(self, key: bytes, raw: bytes, life: float | None, *, seen: bytes, timeout: float) -> bool:
        """Put `raw` in place of `seen` with a new life; False if something else is there now."""
        ...

    async def purge(self, glob: bytes, matches: Callable[[bytes], bool], *, timeout: float) -> int:
        """Remove every permit, then every value, whose key matches; how many values (M11). In bounded batches."""
        ...

    def usage(self) -> dict[str, tuple[int, int]] | None:
        """By cache type, the entries there are and the bytes that they take in this process; None where they are elsewhere."""
        ...

    def connections(self) -> list[Connection]:
        """How the connections are now; none where there is no server. May be asked from any thread."""
        ...

    async def aclose(self) -> None:
        """Let go of connections; idempotent."""

    def forget(self) -> None:
        """Let go without a word: the loop is closed, or this process is a fork."""
