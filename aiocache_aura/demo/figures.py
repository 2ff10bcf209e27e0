"""What an evening came to, in figures and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiocache_aura.demo.ledger import Ledger
from aiocache_aura.demo.lives import Lives
from aiocache_aura.demo.requests import QUESTIONS, UPDATE
from aiocache_aura.demo.traffic import Traffic

HEADING = """\
                       database queries          loads        p50 ms            p99 ms
type            asked   without    with   hits   saved   without    with   without    with"""

LIVES_HEADING = """\
                  asked    loads   waited for   callers who waited     p99 ms"""

READ_ON = """
Read   aiocache_aura/demo/restaurants.py - the back end that you saw: plain functions, SQL and decorators
Try    python -m aiocache_aura demo --url redis://localhost:6379/0 - a cache of yours, or memory://; --help has more
Next   docs/quickstart.md - from nothing to a cache of your own"""


@dataclass(slots=True)
class Evening:
    """What came of making the requests once: the callers' side, the ledger's, the database's and the cache's."""

    traffic: Traffic
    ledger: Ledger
    queries: int
    stats: dict[str, dict[str, Any]]

    def waits(self, kinds: Sequence[str]) -> list[float]:
        """How long the requests of these kinds took, in seconds, the quickest first."""
        return sorted(wait for kind in kinds for wait in self.traffic.waits.get(kind, ()))

    def counted(self, counter: str, kinds: Sequence[str] = tuple(QUESTIONS)) -> int:
        """What the cache counted for these types, such as "hits"."""
        return sum(self.stats[kind][counter] for kind in kinds)


def say(text: str, end: str = "\n") -> None:
    """Print at once."""
    print(text, end=end, flush=True)


def violations(without: Evening, with_cache: Evening, lives: Sequence[Lives] = ()) -> list[str]:
    """Every answer that was wrong at any time; and that the cache has miscounted, if the database counted otherwise."""
    ledgers = without.ledger, with_cache.ledger, *(one.ledger for one in lives)
    found = [wrong for ledger in ledgers for wrong in ledger.violations]
    if with_cache.queries != with_cache.counted("loads"):
        found.append(f"the database was asked {with_cache.queries} times, the cache counted {with_cache.counted('loads')} loads")
    return found


def tell_figures(without: Evening, with_cache: Evening) -> None:
    """The table: by cache type, all of them, and the updates."""
    say(HEADING)
    for kind in QUESTIONS:
        _tell_row(kind, [kind], without, with_cache)
    _tell_row("all", list(QUESTIONS), without, with_cache)
    slow, quick = without.waits([UPDATE]), with_cache.waits([UPDATE])
    say(f"{UPDATE:<14}{len(quick):>7,}{'':33}{_columns(slow, quick)}\n")


def _tell_row(name: str, kinds: Sequence[str], without: Evening, with_cache: Evening) -> None:
    slow, quick = without.waits(kinds), with_cache.waits(kinds)
    hits, misses, loads = (with_cache.counted(counter, kinds) for counter in ("hits", "misses", "loads"))
    rate = hits / max(hits + misses, 1)
    say(f"{name:<14}{len(quick):>7,}{len(slow):>10,}{loads:>8,}{rate:>7.0%}{len(quick) - loads:>8,}{_columns(slow, quick)}")


def _columns(slow: Sequence[float], quick: Sequence[float]) -> str:
    return "".join(f"{1000 * quantile(waits, share):>{width}.1f}" for share in (0.5, 0.99) for waits, width in ((slow, 10), (quick, 8)))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that this share of the others does not exceed; 0.0 of none."""
    return ordered[round(share * (len(ordered) - 1))] if ordered else 0.0


def tell_lives(lives: Sequence[Lives]) -> None:
    """Who waits when lives end."""
    least = min(one.asked_least for one in lives)
    say(f"When lives end, here after {lives[0].life:g} s: the questions asked most, each at least {least:.0f} times a life; no updates.")
    say(LIVES_HEADING)
    for one in lives:
        waits = sorted(wait for kind in one.traffic.waits.values() for wait in kind)
        p99 = 1000 * quantile(waits, 0.99)
        say(f"  {one.way:<14}{one.traffic.made:>7,}{one.loads:>9,}{one.waited_for:>13,}{one.misses:>21,}{p99:>11.1f}")
    say("")


def tell_verdict(without: Evening, with_cache: Evening, lives: Sequence[Lives], audited: int) -> None:
    """What the figures mean, and whether any answer was wrong."""
    shared = with_cache.counted("coalesced")
    say(
        f"Queries: {without.queries:,} without the cache, {with_cache.queries:,} with it, which started empty, by the database's own count."
    )
    say(f"{shared:,} callers found their question being asked already, and shared the answer: one load, however many wait.")
    if errors := with_cache.counted("errors"):
        say(f"The cache failed {errors:,} times; the database was asked instead.")
    checked, control = with_cache.ledger.checked, without.ledger.checked
    say(f"Answers checked: {checked:,}, none may be older than an update that had returned before the question was asked,")
    say(f"and all {audited:,} different ones were compared with the database. (As a control, {control:,} without the cache.)")
    wrong = violations(without, with_cache, lives)
    say(f"Violations: {len(wrong)}")
    for one in wrong[:5]:
        say(f"  {one}")
