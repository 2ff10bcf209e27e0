"""The words of the public API: sentinels, times to live, and what callables are given."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypedDict, TypeGuard, TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")


class CacheTTL(enum.IntEnum):
    """The lives of the built-in types, in seconds. The two 300s are one member under two names."""

    MENU_ITEMS = 3600
    USER_PERMISSIONS = 300
    RESTAURANT_SETTINGS = 600
    ANALYTICS_AGGREGATIONS = 300
    API_RESPONSE = 60
    SEARCH_RESULTS = 180
    REPORT_DATA = 900
    STATIC_CONTENT = 86400


class Forever(enum.Enum):
    """A life without end, which must be said by name."""

    FOREVER = "FOREVER"


class Missing(enum.Enum):
    """Nothing there: told from a stored None by identity."""

    MISSING = "MISSING"

    def __bool__(self) -> Literal[False]:
        return False


class Everyone(enum.Enum):
    """All tenants or all users of a type, where None would mean "the one known"."""

    ALL = "ALL"


FOREVER: Final = Forever.FOREVER
MISSING: Final = Missing.MISSING
ALL: Final = Everyone.ALL

TTL: TypeAlias = float | timedelta | str | Forever
"""Seconds, a timedelta, a CacheTTL, text like "90s", "5m", "2h", "1d", or FOREVER. A bool is refused at run time."""


class Call:
    """The arguments of one call by name, and its result where there is one.

    What a callable `key=` or `tags=` is given. `call["x"]` is the argument x, its default filled in.
    """

    __slots__ = ("_arguments", "result")

    def __init__(self, arguments: Mapping[str, Any], result: Any = MISSING) -> None:
        self._arguments = arguments
        self.result = result

    def __getitem__(self, name: str, /) -> Any:
        return self._arguments[name]

    def __repr__(self) -> str:
        return f"Call({', '.join(self._arguments)})"


class Uncached(Generic[T]):
    """`return Uncached(value)` from a cached function: its callers get the value, and it is not stored.

    A function that is typed to return the value says `return Uncached.of(value)`, which type checkers take for the value.
    """

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    @staticmethod
    def of(value: R) -> R:
        """`Uncached(value)`, typed as what the callers of the cached function get."""
        return cast("R", Uncached(value))

    def __repr__(self) -> str:
        return f"Uncached({self.value!r})"


@dataclass(frozen=True, slots=True)
class CacheEntry(Generic[T]):
    """What is stored for a call: `await fn.entry(...)`, which tells a cached None from a miss. Times in seconds.

    `left` is what is left of its life, `math.inf` for ever; a stale value, which a read may be given while it is refreshed, has none.
    """

    value: T
    age: float
    left: float
    is_fresh: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What is stored under a key, and what a read would make of it: `await manager.explain(...)`. Times in seconds, sizes in bytes.

    `verdict` is "hit", "stale" or "miss", and `why` says it in a sentence. `scopes` are what the entry depends on: whether each has a
    generation now. `holder` tells who is loading it, if somebody does.
    """

    key: str
    verdict: Literal["hit", "stale", "miss"]
    why: str
    size: int | None = None
    codec: str | None = None
    age: float | None = None
    ttl: float | None = None
    left: float | None = None
    stale_left: float | None = None
    cost: float | None = None
    scopes: Mapping[str, bool] = field(default_factory=dict)
    holder: str | None = None

    def __str__(self) -> str:
        """The verdict, then a line for each thing that is known."""
        told = {
            "value": _joined(None if self.size is None else f"{self.size:,} bytes", self.codec),
            "life": _joined(
                _seconds(self.age, "old"),
                _seconds(self.ttl, "to live"),
                None if self.left is None else "past its life" if self.left <= 0 else _seconds(self.left, "left"),
                _more(self.left, self.stale_left),
            ),
            "cost": _seconds(self.cost, "to load"),
            "loading": self.holder,
        }
        lines = [f"{self.key}", f"  {self.verdict}: {self.why}", *(f"  {name}: {text}" for name, text in told.items() if text)]
        width = max(map(len, self.scopes), default=0)
        scopes = [f"    {scope:{width}} {'has a generation' if known else 'has none'}" for scope, known in self.scopes.items()]
        return "\n".join([*lines, *(["  depends on:", *scopes] if scopes else [])])


def _more(left: float | None, stale_left: float | None) -> str | None:
    """What comes after its life."""
    more = 0.0 if left is None or stale_left is None or left == math.inf else stale_left - max(left, 0.0)
    return _seconds(more, "more as stale") if more > 0 else None


def _joined(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)


def _seconds(number: float | None, what: str) -> str | None:
    if number is None:
        return None
    return f"for ever {what}" if number == math.inf else f"{number:,.3f}".rstrip("0").rstrip(".") + f" s {what}"


class CallOptions(TypedDict, total=False):
    """What one call may ask for: `await fn.using(fresh=True)(...)`."""

    fresh: bool
    max_stale: TTL | None
    refresh: bool
    l1: bool
    ttl: TTL | None


class CacheInfo(NamedTuple):
    """What `functools.lru_cache` reports, for one function in this process."""

    hits: int
    misses: int
    maxsize: int | None
    currsize: int | None


class CacheParameters(TypedDict):
    """How a function is cached; `ttl` in seconds, None for ever."""

    cache_type: str
    maxsize: int | None
    typed: bool
    ttl: float | None


class ManagerLike(Protocol):
    """What a decorator asks of a stand-in for the manager, such as a mock."""

    def get(self, cache_type: str, key: str, /) -> Any: ...

    def set(self, cache_type: str, key: str, value: Any, /, *, ttl: Any = None) -> Any: ...


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
