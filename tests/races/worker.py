"""One process of a fleet: callers that do what the plan says, and write down what they saw.

`python -m tests.races.worker FILE` runs one, by the orders in that file.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from aiocache_aura import CacheManager, CachePolicy, cache
from tests.races.faults import plant
from tests.races.history import SECOND, Log
from tests.races.plan import JITTER, LIVES, PAGE, PRICE, SESSION, Action, Item, Manner, Profile, Target, actions, items, profile_of
from tests.races.source import Source

PREFIX = "races"
ROUND = 0.2  # seconds from one quiet round to the next
now = time.monotonic_ns


class SourceError(Exception):
    """The load that was told to fail has failed."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What the conductor tells a worker, as JSON."""

    url: str
    directory: str
    seed: int
    profile: str
    worker: int
    incarnation: int
    workers: int
    budget: float = 15.0
    one_load: str = "process"
    plant: str | None = None
    patience: float = 30.0

    @property
    def process(self) -> str:
        return f"w{self.worker}.{self.incarnation}"

    @property
    def log(self) -> Path:
        return Path(self.directory) / f"{self.process}.log"

    def dumps(self) -> str:
        return json.dumps(asdict(self))


def open_source(directory: Path, profile: Profile, *, workers: int, slot: int = 0) -> Source:
    return Source(directory / "source", slots=workers, keys=keys_of(profile), slot=slot)


def keys_of(profile: Profile) -> int:
    return profile.items + 2 * profile.rounds


@dataclass(slots=True)
class Asked:
    """The read that the current task makes: a load that runs in its context is its."""

    read: int
    began: int
    manner: Manner


asked: ContextVar[Asked] = ContextVar("races_asked")


class Worker:
    """All of one process. Ids count up within it."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.profile = profile_of(orders.profile, orders.worker)
        self.items = items(self.profile.items)
        self.source = open_source(Path(orders.directory), self.profile, workers=orders.workers, slot=orders.worker)
        self.log = Log(orders.log)
        self._ids = 0
        self.is_closing = False
        self.under_way: dict[int, tuple[int, int, str]] = {}  # by read: key, began, how
        lease = False if orders.one_load == "process" else None
        policies = {name: CachePolicy(ttl=life, jitter=JITTER[name], lease=lease, l1=False) for name, life in LIVES.items()}
        self.manager = CacheManager(orders.url, prefix=PREFIX, budget=orders.budget, policies=policies)
        self._make_functions()

    def _make_functions(self) -> None:
        load, among, manager = self.load, self.items, self.manager

        @cache(cache_type="alpha", manager=manager, tags=["{tag}"], name=PRICE)
        async def price(tenant_id: int, item: int, tag: str) -> dict[str, Any]:
            return await load(among[item])

        @cache(cache_type="brief", manager=manager, tags=["{tag}"], name=PAGE, key="page:{item}:{tag}")
        async def page(item: int, tag: str, user_id: int) -> dict[str, Any]:
            return await load(among[item])

        @cache(cache_type="alpha", manager=manager, tags=["{tag}"], name=SESSION, exclude=["db"])
        async def session(tenant_id: int, item: int, tag: str, db: object = None) -> dict[str, Any]:
            return await load(among[item])

        self.functions: dict[str, Any] = {"price": price, "page": page, "session": session}
        self.by_name: dict[str, Any] = {PRICE: price, PAGE: page, SESSION: session}

    def next_id(self) -> int:
        self._ids += 1
        return self._ids

    # The source

    async def load(self, item: Item) -> dict[str, Any]:
        """What every loader does: read the source, take its time, give what was read."""
        who, number = asked.get(), self.next_id()
        version = self.source.version(item.index)
        self.log.write("load", number, item.index, now(), version, who.began, who.read)
        outcome = "cancelled"
        try:
            if who.manner.seconds:
                await asyncio.sleep(who.manner.seconds)
            outcome = "failed" if who.manner.fails else "ok"
        finally:
            self.log.write("loaded", number, now(), outcome)
        if who.manner.fails:
            raise SourceError(f"load #{number} was told to fail")
        return value_of(item, version)

    async def load_many(self, wanted: dict[str, Item], names: list[str]) -> dict[str, Any]:
        found = await asyncio.gather(*(self.load(wanted[name]) for name in names), return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException):
                raise error
        return dict(zip(names, found, strict=True))

    # Reads

    async def read(self, action: Action) -> None:
        """One read, cancelled after a while if the plan says so."""
        among = self._alike(action.item) if action.verb in ("batch", "many") else [action.item]
        if action.item.family != "key" and len(among) == 1 and action.verb in ("batch", "many"):
            action = replace(action, verb="load")  # an entry of a function's is not a batch's
        number, began = self.next_id(), now()
        self.under_way[number] = action.item.index, began, action.verb
        asked.set(Asked(number, began, action.manner))
        values: list[Any] = [None] * len(among)
        outcome, detail = "ok", ""
        try:
            values = await _left_after(action.leave, self._ask(action, among))
        except asyncio.CancelledError:
            outcome = "unanswered" if self.is_closing else "cancelled"
        except _Left:
            outcome = "left"
        except SourceError as error:
            outcome, detail = "failed", str(error)
        except Exception as error:
            outcome, detail = "broke", repr(error)
        ended = now()
        del self.under_way[number]
        for item, value in zip(among, values, strict=True):
            version, said, why = self._looked_at(item, value, outcome, detail)
            self.log.write("read", number, item.index, began, ended, version, action.verb, said, why)

    def _looked_at(self, item: Item, value: Any, outcome: str, detail: str) -> tuple[int | None, str, str]:
        if outcome != "ok" or value is None:
            return None, "miss" if outcome == "ok" else outcome, detail
        try:
            version = value["version"]
            if value == value_of(item, version) and version <= self.source.version(item.index):
                return version, "ok", ""
        except (TypeError, KeyError):
            pass
        return None, "wrong", f"{value!r:.100}"

    async def _ask(self, action: Action, among: list[Item]) -> list[Any]:
        item = action.item
        match action.verb:
            case "batch" | "many":
                named = {one.name: one for one in among}
                who = _owner(item)
                if action.verb == "many":
                    return list(await self.manager.mget(item.cache_type, named, **who))
                load = partial(self.load_many, named)
                found = await self.manager.get_or_load_many(item.cache_type, named, load, tags=[item.tag], **who)
                return [found.get(name) for name in named]
            case "get":
                return [await self._get(item)]
            case "refresh" if item.function is not None:
                return [await self._refresh(item)]
            case _:
                return [await self._get_or_load(item)]

    async def _refresh(self, item: Item) -> Any:
        """Written down as an act, too: it is a reason for a load. It demands nothing."""
        number, done = self.next_id(), None
        self.log.write("act", number, "refresh", str(item.index), now(), [item.index], [-1])
        try:
            value = await self.functions[item.family].refresh(**_arguments(item))
            done = True
        finally:
            self.log.write("acted", number, now(), done)
        return value

    def _get_or_load(self, item: Item) -> Awaitable[Any]:
        if item.family == "key":
            return self.manager.get_or_load(item.cache_type, item.name, partial(self.load, item), tags=[item.tag], **_owner(item))
        return self.functions[item.family](**_arguments(item))  # type: ignore[no-any-return]

    def _get(self, item: Item) -> Awaitable[Any]:
        if item.has_name:
            return self.manager.get(item.cache_type, item.name, **_owner(item))
        return self.functions[item.family].peek(**_arguments(item))  # type: ignore[no-any-return]

    def _alike(self, item: Item) -> list[Item]:
        """The items that one batch can ask for."""
        if item.family != "key":
            return [item]
        mark = ("key", item.cache_type, item.tenant, item.user, item.tag)
        return [one for one in self.items if (one.family, one.cache_type, one.tenant, one.user, one.tag) == mark]

    # Writes

    async def invalidate(self, action: Action) -> None:
        """The source changes for all that the target covers, then they are invalidated."""
        target = action.target
        assert target is not None
        floors = {item.index: self.source.write(item.index) for item in self.items if target.covers(item)}
        await self._act(action, target.kind, str(target), floors, lambda: self._clear(target))

    async def _act(
        self, action: Action, kind: str, what: str, floors: dict[int, int], work: Callable[[], Coroutine[Any, Any, bool | None]]
    ) -> None:
        number = self.next_id()
        self.log.write("act", number, kind, what, now(), list(floors), list(floors.values()))
        delivered = None
        with suppress(_Left):
            delivered = await _left_after(action.leave, work())
        self.log.write("acted", number, now(), delivered)

    async def _clear(self, target: Target) -> bool | None:
        manager, cache_type = self.manager, target.cache_type or ""
        match target.kind:
            case "type":
                done = await manager.invalidate(cache_type)
            case "clear":
                done = await manager.clear_namespace(cache_type)
            case "tenant":
                done = await manager.invalidate_tenant(target.tenant or 0)
            case "user":
                done = await manager.invalidate_user(target.user or 0)
            case "tag":
                done = await manager.invalidate_tags(target.tag or "")
            case "function":
                done = await self.by_name[target.function or ""].cache_clear()
            case "type_user":
                done = await manager.invalidate(cache_type, user=target.user)
            case "type_tenant" | "type_tag" | "type_tenant_tag":
                done = await manager.invalidate(cache_type, tenant=target.tenant, tags=[target.tag] if target.tag else [])
            case "pattern":
                done = await self._without_errors(cache_type, manager.invalidate_pattern(cache_type, target.pattern or ""))
            case _:
                done = await self._delete(self.items[target.index or 0])
        return done or None  # False: nobody knows whether it will arrive

    async def _delete(self, item: Item) -> bool:
        if not item.has_name:
            return bool(await self.functions[item.family].invalidate(**_arguments(item)))
        return await self._without_errors(item.cache_type, self.manager.delete(item.cache_type, item.name, **_owner(item)))

    async def _without_errors(self, cache_type: str, work: Awaitable[Any]) -> bool:
        """Whether a verb that only counts was delivered: if nothing failed meanwhile."""
        before = self.manager.counts(cache_type).errors
        await work
        return self.manager.counts(cache_type).errors == before

    async def set(self, action: Action) -> None:
        """An explicit write: of a new version, or of one that was read a while before."""
        item = action.item
        if action.verb == "old_set":
            version = self.source.version(item.index)
            await asyncio.sleep(action.manner.seconds)
        else:
            version = self.source.write(item.index)
        kind = "set" if action.verb == "old_set" else action.verb
        await self._act(action, kind, str(item.index), {item.index: version}, lambda: self._put(item, kind, value_of(item, version)))

    async def _put(self, item: Item, kind: str, value: dict[str, Any]) -> bool | None:
        before = self.manager.counts(item.cache_type).errors
        if kind == "touch":
            await (self.manager.touch(item.cache_type, item.name, **_owner(item)) if item.has_name else asyncio.sleep(0))
            return True
        if item.family in ("session", "price") or (item.family == "page" and value["version"] % 2):
            done = await self.functions[item.family].set_value(value, **_arguments(item))
        elif kind == "add":
            done = await self.manager.add(item.cache_type, item.name, value, tags=[item.tag], **_owner(item))
        else:
            done = await self.manager.set(item.cache_type, item.name, value, tags=[item.tag], **_owner(item))
        return bool(done) if done or self.manager.counts(item.cache_type).errors == before else None

    # The life of a process

    async def run(self) -> None:
        orders, sockets = self.orders, _open_sockets()
        self.log.write("start", now())
        while not self.source.begins:
            await asyncio.sleep(0.01)
        async with self.manager:
            work = [self._quiet_rounds()] if self.profile.rounds else [self._caller(n) for n in range(self.profile.callers)]
            callers = [asyncio.ensure_future(one) for one in work]
            await self._until_over(callers)
            done, late = await asyncio.wait(callers, timeout=1 if self.source.is_urgent else orders.patience + 2)
            unfinished = [f"key {key} ({how}), for {(now() - began) / 1e9:.1f} s" for key, began, how in self.under_way.values()]
            crashed = [repr(task.exception()) for task in done if task.exception() is not None]
            self.is_closing = True
            for task in late:
                task.cancel()
            flights = await self._flights_left()
            counts = [self.manager.counts(name) for name in LIVES]
            left = {"callers without an answer": unfinished, "callers that broke": crashed, **flights}
        tasks = [repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task() and task not in late]
        left |= {"tasks": tasks, "connections": _open_sockets() - sockets, "undecodable values": sum(one.undecodable for one in counts)}
        self.log.write("end", now(), {**left, "errors": sum(one.errors for one in counts), "hits": sum(one.hits for one in counts)})

    async def _until_over(self, callers: list[asyncio.Future[None]]) -> None:
        """Until the time is over, or all is done. Meanwhile callers that wait for too long are written down, once."""
        told: set[int] = set()
        while not self.is_over and not all(caller.done() for caller in callers):
            await asyncio.sleep(0.05)
            at = now()
            for number, (key, began, how) in self.under_way.items():
                if at - began > self.orders.patience * SECOND and number not in told:
                    told.add(number)
                    self.log.write("read", number, key, began, at, None, how, "late", "it still waits")

    @property
    def is_over(self) -> bool:
        return now() >= self.source.ends

    async def _flights_left(self) -> dict[str, Any]:
        """What is still in the registry once nobody waits any more: loads that were left are given a moment to end."""
        engine = self.manager.engine_now()
        ends = now() + SECOND * (1 if self.source.is_urgent else 5)
        while engine is not None and (len(engine.flights) or engine.flights._tasks) and now() < ends:
            await asyncio.sleep(0.01)
        return {} if engine is None else {"flights": len(engine.flights), "tasks of flights": len(engine.flights._tasks)}

    async def _caller(self, caller: int) -> None:
        for action in actions(self.orders.seed, self.orders.process, caller, self.profile, self.items):
            if self.is_over:
                return
            match action.verb:
                case "invalidate":
                    await self.invalidate(action)
                case "set" | "old_set" | "add" | "touch":
                    await self.set(action)
                case _:
                    await self.read(action)
            await asyncio.sleep(action.pause)

    async def _quiet_rounds(self) -> None:
        """Each round, all callers of all processes ask for one cold key at the same moment; every second key's load fails."""
        for n in range(2 * self.profile.rounds):
            item = Item(self.profile.items + n, "key", "alpha", None, None, "red")
            at = self.source.begins + int(n * ROUND * SECOND)
            await asyncio.sleep(max((at - now()) / 1e9, 0))
            action = Action("load", item, Manner(0.02, fails=n % 2 == 1))
            await asyncio.gather(*(self.read(action) for _ in range(self.profile.callers)))
            if self.is_over:
                return


class _Left(Exception):
    """The caller was cancelled, as the plan says."""


async def _left_after(seconds: float | None, work: Coroutine[Any, Any, Any]) -> Any:
    """What comes of it; _Left if it was cancelled by us before it was done."""
    if seconds is None:
        return await work
    task = asyncio.ensure_future(work)
    await asyncio.wait({task}, timeout=seconds)
    asked_to_go = task.cancel()
    await asyncio.wait({task})
    if asked_to_go and task.cancelled():
        raise _Left
    return task.result()


def value_of(item: Item, version: int) -> dict[str, Any]:
    return {"item": item.index, "tenant": item.tenant, "user": item.user, "version": version, "pad": "x" * (item.index % 7 * 10)}


def _owner(item: Item) -> dict[str, Any]:
    return {name: one for name, one in (("tenant", item.tenant), ("user", item.user)) if one is not None}


def _arguments(item: Item) -> dict[str, Any]:
    own = {"user_id": item.user} if item.family == "page" else {"tenant_id": item.tenant}
    return {"item": item.index, "tag": item.tag, **own}


def _open_sockets() -> int:
    """The sockets that this process has open."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except OSError:
            continue
    return found


def main() -> None:
    orders = Orders(**json.loads(Path(sys.argv[1]).read_text()))
    if orders.plant is not None:
        plant(orders.plant)
    worker = Worker(orders)
    try:
        asyncio.run(worker.run())
    finally:
        worker.log.close()


if __name__ == "__main__":
    main()
