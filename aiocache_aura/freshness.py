"""How fresh an entry is: two lives, and a throw of dice.

An entry is fresh for `ttl` seconds from when its load began, and may stand in for `stale` seconds more. An invalidation ends both lives, a
soft one the first only: generations have two halves, and the soft one alone is replaced (M7).
"""

from __future__ import annotations

import math
import random
from enum import Enum

from aiocache_aura.codecs.envelope import Entry

HARD_BYTES = 8  # of a token, and so of a fingerprint, from the front, that only a hard invalidation replaces
EARLY = 0.06  # of the ttl: how long before it has to begin, on average, a refresh may begin by chance
EARLIEST = 0.07  # of the ttl: and at most, however often the key is asked for


class Standing(Enum):
    FRESH = "fresh"
    STALE = "stale"
    DEAD = "dead"


def standing(entry: Entry, now: float, fingerprint: bytes | None, stale: float) -> Standing:
    """What an entry is at a time, by the generations that are found; `stale` is how many seconds past its life the reader takes it."""
    if fingerprint is None or fingerprint[:HARD_BYTES] != entry.fingerprint[:HARD_BYTES]:
        return Standing.DEAD
    if fingerprint == entry.fingerprint and entry.is_fresh(now):
        return Standing.FRESH
    return Standing.STALE if min(entry.stale, stale) > 0 and stands_in_for(entry, now, stale) > 0 else Standing.DEAD


def stands_in_for(entry: Entry, now: float, stale: float) -> float:
    """For how many seconds an entry may still be given, as a stale one in the end."""
    return entry.left(now) + min(entry.stale, stale)


def is_due(entry: Entry, now: float, factor: float) -> bool:
    """Whether to refresh before the end, by chance: the likelier, the nearer the end and the dearer the load.

    "XFetch" of Vattani, Chierichetti and Lowenstein, "Optimal Probabilistic Cache Stampede Prevention" (VLDB 2015), changed twice. The cost
    is added to the throw, which it does not scale: what begins later than that before the end is waited for. And the throw is bounded: of
    ever more throws the largest grows without end, so that what is asked for more often would be loaded more often.
    """
    if entry.ttl == math.inf:
        return False
    throw = min(-math.log(1.0 - random.random()) * EARLY, EARLIEST)  # noqa: S311 - nothing secret about it
    return entry.left(now) <= factor * (entry.cost + throw * entry.ttl)


def is_used(entry: Entry, now: float) -> bool:
    """Whether so much of its life is over that renewing it is worth a write: a twentieth, or a second."""
    return entry.ttl < math.inf and now - entry.created >= min(1.0, entry.ttl / 20)
