"""The demo: sets everything up, has the same requests made without and with the cache, and tells what came of it."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from aiocache_aura import CacheManager, ConfigurationError
from aiocache_aura.cache_manager import cache_manager
from aiocache_aura.demo.database import Database, build
from aiocache_aura.demo.figures import READ_ON, Evening, say, tell_figures, tell_lives, tell_verdict, violations
from aiocache_aura.demo.ledger import Ledger
from aiocache_aura.demo.lives import WAYS, Lives, busiest, live
from aiocache_aura.demo.requests import Request, plan
from aiocache_aura.demo.restaurants import Restaurants
from aiocache_aura.demo.traffic import run
from aiocache_aura.settings import MEMORY_URL, shown_url
from aiocache_aura.testing.server import EmbeddedServer

BUDGET = 5.0
"""Seconds that the cache may take: all runs on this one machine, where a slow moment is no outage. What the library promises of an
invalidation, it promises of those that reached the server."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the demo."""
    add = parser.add_argument
    add("--rows", type=_count, default=200_000, help="orders in the database (%(default)s)")
    add("--restaurants", type=_count, default=100, help="tenants (%(default)s)")
    add("--requests", type=_count, default=12_000, help="made once without and once with the cache (%(default)s)")
    add("--seconds", type=float, default=20.0, help="no longer without the cache, whatever --requests says (%(default)s)")
    add("--callers", type=_count, default=300, help="who make requests at the same time (%(default)s)")
    add("--pause", type=float, default=0.15, help="seconds between two requests of a caller, on average (%(default)s)")
    add("--life", type=float, default=1.0, help="seconds that entries live in the part where lives end (%(default)s)")
    add("--seed", type=int, default=7, help="another one gives other requests (%(default)s)")
    add("--url", help="a cache of yours, such as redis://localhost:6379/0 or memory://; else a Valkey server is started")


def main(options: argparse.Namespace) -> int:
    """Run the demo; 0 if every answer was right, 1 if not, 2 if there is no such cache, 130 if it was interrupted."""
    try:
        return _demo(options)
    except ConfigurationError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("\nStopped.")
        return 130


def _demo(options: argparse.Namespace) -> int:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aura-demo-")))
        say("aiocache_aura: an evening on a restaurant platform, without the cache and with it\n")
        _open_cache(stack, options.url)
        _build_database(directory, options)
        requests = plan(options.requests, restaurants=options.restaurants, pause=options.pause, seed=options.seed)
        say(f"The evening   {len(requests):,} requests by {options.callers} callers, some of them updates; the same both times")
        without, with_cache, lives = asyncio.run(_evenings(cache_manager, directory, requests, options))
        audited = _audit(directory, with_cache.ledger)
    tell_figures(without, with_cache)
    tell_lives(lives)
    tell_verdict(without, with_cache, lives, audited)
    say(READ_ON)
    return int(bool(violations(without, with_cache, lives)))


def _open_cache(stack: ExitStack, url: str | None) -> None:
    """Have the process-wide manager use the URL given, a server of our own, or this process's memory."""
    what = "as you said"
    if url is None:
        try:
            url, what = stack.enter_context(EmbeddedServer()).url, "a real Valkey server, started for the demo"
        except (ConfigurationError, OSError) as error:
            url, what = MEMORY_URL, f"in this process, because: {error}"
    cache_manager.configure(url=url, prefix=f"aura-demo-{os.getpid()}", budget=BUDGET)
    say(f"The cache     {shown_url(url)}, {what}")


def _build_database(directory: Path, options: argparse.Namespace) -> None:
    say(f"The database  {options.rows:,} orders of {options.restaurants} restaurants in SQLite ...", end="")
    started = time.perf_counter()
    build(directory / "first.db", options.rows, options.restaurants, options.seed)
    for copy in ("without.db", "with.db"):
        shutil.copyfile(directory / "first.db", directory / copy)
    say(f" built in {time.perf_counter() - started:.1f} s")


async def _evenings(
    manager: CacheManager, directory: Path, requests: Sequence[Request], options: argparse.Namespace
) -> tuple[Evening, Evening, list[Lives]]:
    """One without the cache; then one with it, of as many requests as there was time for; then what happens when lives end."""
    async with manager:
        if not await manager.set("test", "is anybody there?", True):
            raise ConfigurationError(f"the cache at {shown_url(manager.settings.url)} does not answer")
        try:
            with manager.disabled():
                without = await _evening("without it", manager, directory / "without.db", requests, options, options.seconds)
            made = requests[: without.traffic.made]
            with_cache = await _evening("with it", manager, directory / "with.db", made, options)
            return without, with_cache, await _lives(manager, directory / "first.db", requests, options)
        finally:
            if options.url is not None:
                await _clear(manager)


async def _clear(manager: CacheManager) -> None:
    """Leave no entry behind in somebody else's server; the small tokens by which they are invalidated expire by themselves."""
    for cache in manager.caches.values():
        await cache.clear_namespace(reclaim=True)


async def _evening(
    name: str,
    manager: CacheManager,
    path: Path,
    requests: Sequence[Request],
    options: argparse.Namespace,
    seconds: float = float("inf"),
) -> Evening:
    ledger = Ledger()
    say(f"  {name:<12}", end="")
    with Database(path) as database:
        traffic = await run(Restaurants(database), requests, ledger, callers=options.callers, seconds=seconds, tell=_dots(len(requests)))
        stats = manager.stats()
    say(f" {traffic.made:,} in {traffic.seconds:.1f} s" + (", as --seconds said" if traffic.made < len(requests) else ""))
    return Evening(traffic, ledger, database.queries, stats)


async def _lives(manager: CacheManager, path: Path, requests: Sequence[Request], options: argparse.Namespace) -> list[Lives]:
    """Nothing is updated in this part: it may read the database that the audit begins with."""
    say("  when lives end", end="")
    asked, done = busiest(requests), []
    with Database(path) as database:
        for way in WAYS:
            say(".", end="")
            done.append(await live(way, manager, Restaurants(database), asked, callers=-(-options.callers // 2), life=options.life))
    say(f" {len(done)} times {done[0].traffic.seconds:.1f} s")
    return done


def _audit(directory: Path, ledger: Ledger) -> int:
    say("The audit     every update once more, on the database as it was at first, and every question at each version ...", end="")
    started = time.perf_counter()
    with Database(directory / "first.db") as database:
        audited = ledger.audit(Restaurants(database))
    say(f" {time.perf_counter() - started:.1f} s\n")
    return audited


def _dots(count: int) -> Callable[[int], None]:
    """Progress: forty dots, if all the requests are made."""

    def tell(made: int) -> None:
        if made * 40 // count > (made - 1) * 40 // count:
            say(".", end="")

    return tell


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a number from 1 on, not {text!r}")
    return int(text)
