"""What stores tell of themselves at one moment: connections, pools, keys."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Connection:
    """What a lane is like at one moment."""

    role: str  # what it is for: "read", "write" or "listen"
    state: str  # "idle", "connecting", "ready", "down" or "closed"
    pending: int = 0  # requests that were written and are not answered
    queued: int = 0  # and those that are not written yet
    reconnects: int = 0  # how often it was made anew
    failures: int = 0  # attempts in a row that were in vain
    last_error: str | None = None  # why it is down, or what it may not
    waiting_seconds: float = 0.0  # for how long the oldest request that was written is not answered
    version: str | None = None  # what the server called itself when it was connected


@dataclass(frozen=True, slots=True)
class Pool:
    """What a pool of connections is like at one moment."""

    in_use: int
    idle: int
    most: int
    waiting: int  # callers for whom there is none


@dataclass(frozen=True, slots=True)
class Sample:
    """Some of the keys under a prefix: how many, and of those without an end each name and how its value begins, None for no string."""

    keys: int
    lasting: list[tuple[bytes, bytes | None]] = field(repr=False)
