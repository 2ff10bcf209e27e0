"""One load in the fleet: the traps of leases, forced, over a real server. Each fails when its rule is taken out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from aiocache_aura.errors import LoadDeadlineError, LoadFailedError
from aiocache_aura.stores import leases
from aiocache_aura.stores.base import Command
from aiocache_aura.types import MISSING
from tests.clocks import ManualClock
from tests.servers import Server
from tests.steps import ADDRESSES, SOON, Fleet, Leases, Process, Source, Step, address, soon, terms

KEY, OTHER = address("k"), address("other")
SHORT = 0.4


@pytest.fixture
async def fleet(valkey: Server, clock: ManualClock) -> AsyncIterator[Fleet]:
    fleet = Fleet(valkey.url, clock)
    yield fleet
    await fleet.aclose()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that are good for less long than a test is."""
    monkeypatch.setattr(leases, "LEASE", SHORT)


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that are good for so long that whoever waits for the end of one fails."""
    monkeypatch.setattr(leases, "LEASE", 10 * SOON)


def leased(fleet: Fleet, count: int) -> list[Process]:
    return [fleet.process(leased=True) for _ in range(count)]


def leases_of(process: Process) -> Leases:
    assert process.port.leases is not None
    return process.port.leases


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON):
        while not is_so():
            await asyncio.sleep(0.005)


async def follows(process: Process, times: int = 1) -> None:
    """Until it waits for another's load."""
    await until(lambda: len(leases_of(process).waits) >= times)


def aboard(process: Process) -> int:
    """How many wait for the load of the key."""
    flight = process.engine.flights.get(KEY.key)
    return 0 if flight is None else len(flight.waiters)


async def test_p1_one_load_for_callers_in_many_processes(fleet: Fleet) -> None:
    """However many processes miss a key, one loads it, and all callers get what it gave."""
    source = Source(held=True)
    fleet_of = leased(fleet, 4)
    reads = [process.read(source, KEY) for process in fleet_of for _ in range(10)]
    load = await source.begun()
    await until(lambda: sum(bool(leases_of(process).waits) for process in fleet_of) == 3)
    load.finish()
    assert await soon(asyncio.gather(*reads)) == [1] * 40
    assert source.loads == 1


async def test_v1_what_is_found_instead_of_a_lease_serves_no_read_that_began_after_it_was_asked_for(fleet: Fleet) -> None:
    """The lease is asked for, and v1 found, which another process has stored; v2, invalidated; who joins that flight now gets v2."""
    ours, other = leased(fleet, 2)
    source = Source()
    leases_of(ours).hold("acquire")
    first = ours.read(source, KEY)
    asked = await leases_of(ours).arrived("acquire")
    assert await soon(other.read(source, KEY)) == 1
    await asked.execute()
    leases_of(ours).held.clear()
    source.version = 2
    assert await other.invalidate_type()
    second = ours.read(source, KEY)
    await until(lambda: aboard(ours) == 2)
    asked.answer()
    assert await soon(first) == 1
    assert await soon(second) == 2


async def under_way(fleet: Fleet, change: Callable[[Process], Awaitable[object]]) -> object:
    """What is stored once a leased load of v1 has ended, while which v2 came and another process made a change."""
    ours, other = leased(fleet, 2)
    source = Source(held=True)
    first = ours.read(source, KEY)
    load = await source.begun()
    source.version = 2
    await change(other)
    load.finish()
    assert await soon(first) == 1
    return await other.engine.get(KEY, terms())


async def test_v4_a_leased_load_does_not_bring_back_what_was_deleted(fleet: Fleet) -> None:
    """Its lease went with the key, so its fill is refused."""
    assert await under_way(fleet, lambda other: other.engine.delete([KEY])) is MISSING


@pytest.mark.parametrize("verb", ["set", "add"])
async def test_v5_a_leased_load_does_not_overwrite_what_was_written(fleet: Fleet, verb: str) -> None:
    """A write takes the lease away, too."""
    writes = {"set": lambda other: other.engine.set([(KEY, 2)], terms()), "add": lambda other: other.engine.add(KEY, 2, terms())}
    assert await under_way(fleet, writes[verb]) == 2


async def test_v7_a_pattern_voids_the_leases_of_keys_that_are_cold(fleet: Fleet) -> None:
    """A pattern that finds no value finds the lease under which one is being loaded."""
    assert await under_way(fleet, lambda other: other.engine.purge("menu", "k*")) is MISSING


async def test_v8_who_gets_the_lease_looks_again(fleet: Fleet) -> None:
    """B misses; A loads, fills and is done; B asks for the lease, which is free: it is given the value, and does not load."""
    ours, other = leased(fleet, 2)
    source = Source()
    leases_of(ours).hold("acquire")
    read = ours.read(source, KEY)
    asked = await leases_of(ours).arrived("acquire")
    assert await soon(other.read(source, KEY)) == 1
    await asked.go()
    assert await soon(read) == 1
    assert source.loads == 1


async def test_v8_two_refreshes_of_one_value_are_one_load(fleet: Fleet, clock: ManualClock) -> None:
    """Both find the value stale; the second one's lease is free again, and the value is another than the one it saw: it leaves it."""
    ours, other = leased(fleet, 2)
    source, how = Source(), terms(stale=600.0)
    assert await soon(ours.read(source, KEY, how)) == 1
    clock.advance(61)
    source.version = 2
    leases_of(ours).hold("acquire")
    assert await soon(ours.read(source, KEY, how)) == 1
    asked = await leases_of(ours).arrived("acquire")
    assert await soon(other.read(source, KEY, how)) == 1
    await until(lambda: source.loads == 2 and not len(other.engine.flights))
    await asked.go()
    await until(lambda: not len(ours.engine.flights))
    assert await soon(ours.read(source, KEY, how)) == 2
    assert source.loads == 2


async def test_v8_two_early_refreshes_of_one_value_are_one_load(fleet: Fleet) -> None:
    """Both find a value that is good and due: the first loads, though there is a value; the second finds another one, and leaves it."""
    ours, other = leased(fleet, 2)
    source, due = Source(), terms(early=1e9, is_plain=False)
    assert await soon(ours.read(source, KEY)) == 1
    source.version = 2
    leases_of(ours).hold("acquire")
    assert await soon(ours.read(source, KEY, due)) == 1
    asked = await leases_of(ours).arrived("acquire")
    assert await soon(other.read(source, KEY, due)) == 1
    await until(lambda: source.loads == 2 and not len(other.engine.flights))
    await asked.go()
    await until(lambda: not len(ours.engine.flights))
    assert await soon(ours.read(source, KEY)) == 2
    assert source.loads == 2


async def test_v9_who_takes_over_carries_the_generations_of_then(fleet: Fleet) -> None:
    """B misses and waits for A; an invalidation; B loads: what it stores is a hit for everybody, and not dead on arrival."""
    ours, other, third = leased(fleet, 3)
    source = Source(held=True)
    first = other.read(source, KEY)
    old = await source.begun()
    second = ours.read(source, KEY)
    await follows(ours)
    source.version = 2
    assert await third.invalidate_type()
    leases_of(other).is_mute = True
    late = third.read(source, KEY)  # finds the lease doomed
    new = await source.begun()
    new.finish()
    assert await soon(late) == 2
    assert await soon(second) == 2
    old.finish()
    assert await soon(first) == 1
    assert await soon(ours.read(source, KEY)) == await soon(third.read(source, KEY)) == 2
    assert source.loads == 2


async def test_v9_who_is_promoted_after_a_wait_captures_then(fleet: Fleet) -> None:
    """B misses, with every generation there, and waits for A; an invalidation; A gives up, and what B loads now is a hit for everybody."""
    ours, other, third = leased(fleet, 3)
    source = Source(held=True)
    first = other.read(source, KEY)
    await source.begun()
    second = ours.read(source, KEY)
    await follows(ours)
    source.version = 2
    assert await third.invalidate_type()
    first.cancel()
    (await source.begun()).finish()
    assert await soon(second) == 2
    source.held = False
    assert await soon(ours.read(source, KEY)) == await soon(third.read(source, KEY)) == 2
    assert source.loads == 2


class Failing:
    """A loader that fails, one after the other."""

    def __init__(self, make: Callable[[int], Exception]) -> None:
        self.loads, self._make = 0, make
        self.go_on = asyncio.Event()

    async def load(self) -> int:
        self.loads += 1
        error = self._make(self.loads)
        await self.go_on.wait()
        raise error


async def test_v10_a_loader_that_fails_is_tried_twice_in_the_fleet(fleet: Fleet) -> None:
    """Four processes wait for a load that fails: one of those who wait tries once more, and then all of them get that error."""
    failing = Failing(lambda n: ConnectionError("attempt", n))
    fleet_of = leased(fleet, 4)
    reads = [process.start(process.engine.get_or_load(KEY, terms(), failing.load)) for process in fleet_of for _ in range(3)]
    await until(lambda: sum(bool(leases_of(process).waits) for process in fleet_of) == 3)
    failing.go_on.set()
    errors = await soon(asyncio.gather(*reads, return_exceptions=True))
    assert all(type(error) is ConnectionError for error in errors), errors
    assert sorted(error.args for error in errors) == [("attempt", 1)] * 3 + [("attempt", 2)] * 9
    assert failing.loads == 2


async def test_v10_who_misses_the_wake_ups_is_told_of_both_failures(fleet: Fleet, short: None) -> None:
    """Two attempts fail before one of those who wait asks again: the mark of that is still there, under the number that it waits for."""
    ours, other, deaf = leased(fleet, 3)
    leases_of(deaf).is_deaf = True
    failing, how = Failing(lambda n: ConnectionError("attempt", n)), terms(throttle=0.0)
    reads = [ours.start(ours.engine.get_or_load(KEY, how, failing.load))]
    await until(lambda: failing.loads == 1)
    reads += [process.start(process.engine.get_or_load(KEY, how, failing.load)) for process in (other, deaf)]
    await follows(other), await follows(deaf)
    failing.go_on.set()
    errors = await soon(asyncio.gather(*reads, return_exceptions=True))
    assert [error.args for error in errors] == [("attempt", 1), ("attempt", 2), ("attempt", 2)]
    assert failing.loads == 2


async def test_v10_an_error_that_cannot_be_told_is_named(fleet: Fleet) -> None:
    """An error whose arguments JSON does not hold is a LoadFailedError in the processes that did not see it, and names its class."""
    failing = Failing(lambda n: OSError({n}, object()))
    fleet_of = leased(fleet, 3)
    reads = [process.start(process.engine.get_or_load(KEY, terms(), failing.load)) for process in fleet_of]
    await until(lambda: sum(bool(leases_of(process).waits) for process in fleet_of) == 2)
    failing.go_on.set()
    errors = await soon(asyncio.gather(*reads, return_exceptions=True))
    assert sorted(type(error).__name__ for error in errors) == ["LoadFailedError", "OSError", "OSError"]
    assert [str(error) for error in errors if isinstance(error, LoadFailedError)][0].count("OSError") == 1
    assert failing.loads == 2


async def test_p3_an_error_from_before_an_invalidation_is_not_given_to_who_began_after_it(fleet: Fleet) -> None:
    """A load fails twice elsewhere; who began after an invalidation, and joined a flight that waited for it before, loads for itself."""
    first, ours, second = leased(fleet, 3)
    source = Source(held=True)
    reads = [first.read(source, KEY)]
    attempt = await source.begun()
    reads += [ours.read(source, KEY), second.read(source, KEY)]
    await follows(ours)
    await follows(second)
    leases_of(ours).hold("acquire")
    attempt.fail(ConnectionError(1))
    attempt = await source.begun()
    asked = await leases_of(ours).arrived("acquire")
    source.version = 2
    assert await first.invalidate_type()
    late = ours.read(source, KEY)
    await until(lambda: len(ours.engine.flights.by_key[KEY.key].waiters) == 2)
    attempt.fail(ConnectionError(2))
    with pytest.raises(ConnectionError):
        await soon(reads[2])
    leases_of(ours).held.clear()
    await asked.go()
    (await source.begun()).finish()
    assert await soon(late) == 2
    assert [error.args for error in await asyncio.gather(*reads, return_exceptions=True)] == [(1,), (2,), (2,)]


async def test_v10_a_newcomer_after_a_failure_loads(fleet: Fleet) -> None:
    """Who did not wait for what has failed tries for itself."""
    ours, other = leased(fleet, 2)
    failing, source = Failing(lambda n: ConnectionError(n)), Source()
    failing.go_on.set()
    with pytest.raises(ConnectionError):
        await ours.engine.get_or_load(KEY, terms(), failing.load)
    assert await soon(other.read(source, KEY)) == 1
    assert (failing.loads, source.loads) == (1, 1)


@pytest.mark.parametrize("who", ["the same process", "another process"])
async def test_v11_who_asks_after_an_invalidation_does_not_wait_for_the_load_before_it(fleet: Fleet, who: str) -> None:
    """A load hangs; an invalidation; a reader after it loads at once, in the same process too, and the old load stores nothing."""
    ours, other = leased(fleet, 2)
    source = Source(held=True)
    first = ours.read(source, KEY)
    old = await source.begun()
    source.version = 2
    assert await (ours if who == "the same process" else other).invalidate_type()
    second = (ours if who == "the same process" else other).read(source, KEY)
    (await source.begun()).finish()
    assert await soon(second) == 2
    old.finish()
    assert await soon(first) == 1
    assert await soon(ours.read(source, KEY)) == await soon(other.read(source, KEY)) == 2
    assert source.loads == 2


@pytest.mark.parametrize("verb", ["delete", "set"])
async def test_v11_nor_after_a_delete_or_a_set_of_its_key(fleet: Fleet, verb: str) -> None:
    """The lease goes with the key, so the old load is refused, and who asks now does not follow it."""
    ours, other = leased(fleet, 2)
    source = Source(held=True)
    first = ours.read(source, KEY)
    old = await source.begun()
    source.version = 2
    if verb == "delete":
        await other.engine.delete([KEY])
        second = other.read(source, KEY)
        (await source.begun()).finish()
    else:
        assert await other.engine.set([(KEY, 2)], terms())
        second = other.read(source, KEY)
    assert await soon(second) == 2
    old.finish()
    assert await soon(first) == 1
    assert await soon(ours.read(source, KEY)) == 2


async def test_v11_a_lease_over_other_scopes_is_not_judged(fleet: Fleet) -> None:
    """Whose load depends on other scopes cannot tell whether the holder's generations are old: it follows."""
    ours, other = leased(fleet, 2)
    source = Source(held=True)
    first = ours.read(source, KEY)
    load = await source.begun()
    second = other.read(source, address("k", tags=["x"]))
    await follows(other)
    load.finish()
    assert await soon(first) == 1
    second.cancel()


async def test_v11_nor_is_one_over_more_scopes(fleet: Fleet) -> None:
    """Nor can one who does not depend on all that the holder's load depends on: a scope that it does not know proves nothing."""
    ours, other = leased(fleet, 2)
    source = Source(held=True)
    first = ours.read(source, address("k", tags=["x"]))
    load = await source.begun()
    second = other.read(source, KEY)
    await follows(other)
    load.finish()
    assert await soon(first) == 1
    second.cancel()


async def test_v11_who_waits_already_overtakes_when_it_asks_again(fleet: Fleet, short: None) -> None:
    """A load hangs, with its lease renewed, and another process follows it; an invalidation: that one sees it the next time it asks."""
    ours, other, third = leased(fleet, 3)
    source = Source(held=True)
    first = other.read(source, KEY)
    old = await source.begun()
    second = ours.read(source, KEY)
    await follows(ours)
    source.version = 2
    assert await third.invalidate_type()
    (await source.begun()).finish()
    assert await soon(second) == 2
    old.finish()
    assert await soon(first) == 1
    assert await soon(other.read(source, KEY)) == 2
    assert source.loads == 2


async def test_v12_the_lease_of_a_process_that_died_runs_out(fleet: Fleet, short: None) -> None:
    """A holder dies: nothing is published, and one of those who follow loads once its lease is over; the others get that."""
    dying, ours, other = leased(fleet, 3)
    source = Source(held=True)
    dying.read(source, KEY)
    await source.begun()
    reads = [process.read(source, KEY) for process in (ours, other)]
    await follows(ours), await follows(other)
    leases_of(dying).is_mute = True
    dying.port.inner.leases.forget()  # type: ignore[union-attr]
    began = asyncio.get_running_loop().time()
    (await source.begun()).finish()
    assert asyncio.get_running_loop().time() - began <= SHORT + 1
    assert await soon(asyncio.gather(*reads)) == [1, 1]
    assert source.loads == 2


async def test_v12_a_wake_up_that_is_lost_is_made_up_for(fleet: Fleet, short: None) -> None:
    """The message that the load has ended does not arrive: the value is found when the lease would have run out."""
    ours, other = leased(fleet, 2)
    leases_of(other).is_deaf = True
    source = Source(held=True)
    first = ours.read(source, KEY)
    load = await source.begun()
    second = other.read(source, KEY)
    await follows(other)
    load.finish()
    assert await soon(first) == await soon(second) == 1
    assert source.loads == 1


async def test_v12_a_wake_up_before_the_wait_is_not_lost(fleet: Fleet, long: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told that another loads; that one is done, and says so; only then does the wait begin: it ends at once, and not with the lease."""
    ours, other = leased(fleet, 2)
    followers, heard = leases_of(ours).inner.followers, list[bytes]()  # type: ignore[attr-defined]
    source = Source(held=True)
    reads = [other.read(source, OTHER)]
    load = await source.begun()
    reads.append(ours.read(source, OTHER))
    await follows(ours)
    await until(lambda: bool(followers.era))  # the subscription is there
    load.finish()
    assert await soon(asyncio.gather(*reads)) == [1, 1]
    hear = followers.heard
    monkeypatch.setattr(followers, "heard", lambda payload: (heard.append(payload), hear(payload)))
    leases_of(ours).hold("acquire")
    reads = [other.read(source, KEY)]
    load = await source.begun()
    reads.append(ours.read(source, KEY))
    asked = await (await leases_of(ours).arrived("acquire")).execute()
    leases_of(ours).held.clear()
    load.finish()
    await until(lambda: KEY.key in heard)
    asked.answer()
    assert await soon(asyncio.gather(*reads)) == [1, 1]
    assert source.loads == 2


async def test_m9_a_lease_is_renewed_while_its_load_runs(fleet: Fleet, short: None) -> None:
    """A load that takes several times as long as a lease is good for is neither repeated nor refused."""
    ours, other = leased(fleet, 2)
    source = Source(held=True)
    first = ours.read(source, KEY)
    load = await source.begun()
    second = other.read(source, KEY)
    await follows(other, times=4)
    load.finish()
    assert await soon(first) == await soon(second) == 1
    assert await soon(other.read(source, KEY)) == 1
    assert source.loads == 1


async def test_m9_a_lease_that_was_lost_stores_nothing(fleet: Fleet, short: None) -> None:
    """A holder pauses for longer than its lease; another loads; the first one's value is its own callers' only."""
    paused, other = leased(fleet, 2)
    source = Source(held=True)
    first = paused.read(source, KEY)
    old = await source.begun()
    paused.port.inner.leases.forget()  # type: ignore[union-attr]
    source.version = 2
    await asyncio.sleep(SHORT * 1.5)
    second = other.read(source, KEY)
    (await source.begun()).finish()
    assert await soon(second) == 2
    old.finish()
    assert await soon(first) == 1
    assert await soon(paused.read(source, KEY)) == await soon(other.read(source, KEY)) == 2


async def test_m17_who_leaves_gives_the_lease_back(fleet: Fleet) -> None:
    """The last caller of a load leaves: it is cancelled, and another process loads at once and not when the lease is over."""
    ours, other = leased(fleet, 2)
    source = Source(held=True)
    first = ours.read(source, KEY)
    await source.begun()
    second = other.read(source, KEY)
    await follows(other)
    began = asyncio.get_running_loop().time()
    first.cancel()
    (await source.begun()).finish()
    assert asyncio.get_running_loop().time() - began < leases.LEASE - 0.5
    assert await soon(second) == 1
    assert source.cancelled == [1]


async def test_p2_a_caller_that_waits_for_another_process_can_leave(fleet: Fleet) -> None:
    """Cancelling a follower, the only one of its process or one of two, hurts nobody and leaves no flight."""
    ours, other = leased(fleet, 2)
    source = Source(held=True)
    first = ours.read(source, KEY)
    load = await source.begun()
    one, two = other.read(source, KEY), other.read(source, KEY)
    await follows(other)
    one.cancel()
    load.finish()
    assert await soon(first) == await soon(two) == 1
    three = other.read(source, OTHER)
    await source.begun()
    three.cancel()
    await asyncio.gather(three, return_exceptions=True)
    await until(lambda: repr(other.engine.flights) == "<Flights 0 open, 0 tasks>")


async def test_a_load_past_its_deadline_frees_the_key_for_the_fleet(fleet: Fleet) -> None:
    """A loader that hangs and does not heed its cancellation: its callers are told, and one of those who wait elsewhere tries."""
    ours, other = leased(fleet, 2)
    source = Source(held=True)
    is_over = asyncio.Event()

    async def hang() -> int:
        while not is_over.is_set():
            try:
                await is_over.wait()
            except asyncio.CancelledError:
                continue
        return 0

    first = ours.start(ours.engine.get_or_load(KEY, terms(deadline=0.3), hang))
    await until(lambda: leases_of(ours).inner.__repr__().startswith("<RedisLeases 1 held"))
    second = other.read(source, KEY)
    with pytest.raises(LoadDeadlineError):
        await soon(first)
    (await source.begun()).finish()
    assert await soon(second) == 1
    is_over.set()
    await until(lambda: repr(ours.engine.flights) == "<Flights 0 open, 0 tasks>")
    assert await soon(ours.read(source, KEY)) == 1


@pytest.mark.parametrize("value", [None, object()], ids=["none", "unstorable"])
async def test_what_is_not_stored_is_loaded_by_each_process_at_once(fleet: Fleet, value: object) -> None:
    """There is nothing to share: those who waited load for themselves, all at the same time."""
    fleet_of = leased(fleet, 4)
    running = most = 0
    go_on = asyncio.Event()

    async def load() -> object:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go_on.wait()
        if most > 1 or running == 1:
            await asyncio.sleep(0.05)
        running -= 1
        return value

    reads = [process.start(process.engine.get_or_load(KEY, terms(), load)) for process in fleet_of]
    await until(lambda: sum(bool(leases_of(process).waits) for process in fleet_of) == 3)
    go_on.set()
    assert await soon(asyncio.gather(*reads)) == [value] * 4
    assert most == 3


async def test_refresh_loads_although_another_process_is_loading(fleet: Fleet) -> None:
    """`refresh` loads anew: what began before it, elsewhere, will not do, and does not overwrite what it has loaded."""
    ours, other = leased(fleet, 2)
    source = Source(held=True)
    first = other.read(source, KEY)
    old = await source.begun()
    source.version = 2
    second = ours.start(ours.engine.refresh(KEY, terms(), source.load))
    (await source.begun()).finish()
    assert await soon(second) == 2
    old.finish()
    assert await soon(first) == 1
    assert await soon(other.read(source, KEY)) == 2


async def test_a_fresh_read_takes_nothing_from_a_load_that_is_older(fleet: Fleet) -> None:
    """`fresh=True` joins no flight of its process that began before it, and does not follow its lease either."""
    (ours,) = leased(fleet, 1)
    source = Source(held=True)
    first = ours.read(source, KEY)
    old = await source.begun()
    source.version = 2
    second = ours.read(source, KEY, terms(fresh=True))
    (await source.begun()).finish()
    assert await soon(second) == 2
    old.finish()
    assert await soon(first) == 1
    assert await soon(ours.read(source, KEY)) == 2


async def key_by_key(asked: Sequence[tuple[Process, Step]]) -> None:
    """Have held acquires executed as if they crossed: each one's first key, then each one's second; then answer them all."""
    for _, step in asked:
        step.write()
        step.result = []
    for n in range(max(len(step.what) for _, step in asked)):
        for process, step in asked:
            wants = step.what[n : n + 1]
            step.result += await leases_of(process).inner.acquire(wants, timeout=SOON, written=lambda: None)
    for _, step in asked:
        step.is_executed = True
        step.answer()


async def test_v23_batches_that_overlap_crosswise_do_not_wait_in_a_circle(fleet: Fleet) -> None:
    """Batch (a, b) leads a and follows b; batch (b, a) leads b and follows a: each loads what it leads at once, and nothing else."""
    ours, other = leased(fleet, 2)
    source, loaded = Source(held=True), list[str]()

    def batch(process: Process, *names: str) -> asyncio.Task[list[int]]:
        async def load(positions: list[int]) -> dict[int, int]:
            loaded.extend(names[n] for n in positions)
            return dict.fromkeys(positions, await source.load())

        leases_of(process).hold("acquire")
        return process.start(process.engine.get_or_load_many([address(name) for name in names], terms(), load))

    batches = [batch(ours, "a", "b"), batch(other, "b", "a")]
    asked = [(process, await leases_of(process).arrived("acquire")) for process in (ours, other)]
    for process in ours, other:
        leases_of(process).held.clear()
    await key_by_key(asked)
    loads = [await source.begun(), await source.begun()]
    await follows(ours), await follows(other)
    for load in loads:
        load.finish()
    assert await soon(asyncio.gather(*batches)) == [[1, 1], [1, 1]]
    assert sorted(loaded) == ["a", "b"]


@pytest.mark.parametrize("who", ["the same process", "another process"])
async def test_v23_a_batch_loads_what_it_leads_while_the_load_that_it_waits_for_hangs(fleet: Fleet, who: str) -> None:
    """Its own keys are loaded and there for everybody, before the others have come; what their leader gives up, it loads by itself."""
    ours, other = leased(fleet, 2)
    holder = ours if who == "the same process" else other
    source = Source(held=True)
    a, b = address("a"), address("b")
    hanging = holder.read(source, b)
    hung = await source.begun()
    batch = ours.batch(source, b, a)
    (await source.begun()).finish()
    assert await soon(other.read(source, a)) == 1
    assert not batch.done()
    if who == "the same process":
        hung.finish()
        assert await soon(hanging) == 1
    else:
        await follows(ours)
        hanging.cancel()
        (await source.begun()).finish()
    assert await soon(batch) == [1, 1]
    assert source.loads == (2 if who == "the same process" else 3)


@pytest.mark.parametrize("voided", ["a", "b"])
async def test_v23_each_key_of_a_batch_has_a_verdict_of_its_own(fleet: Fleet, voided: str) -> None:
    """Of two keys that a batch loads one is deleted elsewhere: the other is stored, and who is late for this one loads it anew."""
    ours, other = leased(fleet, 2)
    source = Source(held=True)
    where = {name: address(name) for name in "ab"}
    batch = ours.batch(source, *where.values())
    load = await source.begun()
    source.version = 2
    await other.engine.delete([where[voided]])
    late = {name: ours.read(source, where[name]) for name in where}
    await until(lambda: all(len(flight.waiters) == 2 for flight in ours.engine.flights.by_key.values()))
    source.held = False
    load.finish()
    assert await soon(batch) == [1, 1]
    assert {name: await soon(read) for name, read in late.items()} == {name: 2 if name == voided else 1 for name in where}
    assert source.loads == 2


async def test_v23_batches_and_single_gets_load_no_key_twice(fleet: Fleet) -> None:
    """Two batches that overlap and a single get, in three processes: every key is loaded once."""
    ours, other, third = leased(fleet, 3)
    loaded: list[int] = []
    places = [address(str(n)) for n in range(6)]

    def batch(process: Process, wanted: list[int]) -> asyncio.Task[list[int]]:
        async def load(positions: list[int]) -> dict[int, int]:
            loaded.extend(wanted[n] for n in positions)
            await asyncio.sleep(0.05)
            return {n: wanted[n] for n in positions}

        return process.start(process.engine.get_or_load_many([places[n] for n in wanted], terms(), load))

    async def load_one() -> int:
        loaded.append(2)
        await asyncio.sleep(0.05)
        return 2

    reads = [
        batch(ours, [0, 1, 2, 3]),
        batch(other, [3, 2, 4, 5]),
        third.start(third.engine.get_or_load(places[2], terms(), load_one)),
        batch(ours, [5, 0]),
    ]
    assert await soon(asyncio.gather(*reads)) == [[0, 1, 2, 3], [3, 2, 4, 5], 2, [5, 0]]
    assert sorted(loaded) == [0, 1, 2, 3, 4, 5]


async def test_explain_tells_who_holds_the_lease(fleet: Fleet) -> None:
    """While a key is loaded, `explain` says so, and afterwards what is stored."""
    ours, other = leased(fleet, 2)
    source = Source(held=True)
    read = ours.read(source, KEY)
    load = await source.begun()
    told = await other.engine.explain(KEY, terms())
    assert told.verdict == "miss"
    assert told.holder is not None
    assert "attempt 1" in told.holder
    load.finish()
    await soon(read)
    told = await other.engine.explain(KEY, terms())
    assert (told.verdict, told.holder) == ("hit", None)
    assert set(told.scopes) == {scope.decode().partition("!g:")[2] for scope in KEY.scopes}
    assert await other.engine.invalidate(ADDRESSES.to_invalidate("menu"))
    told = await other.engine.explain(KEY, terms())
    assert told.verdict == "miss"
    assert "y:menu is gone" in told.why


async def test_who_begins_after_a_load_has_failed_elsewhere_is_not_given_that_error(fleet: Fleet) -> None:
    """The answer that both attempts have failed is on its way to a flight; who joins it now looks again, and loads."""
    ours, other, third = leased(fleet, 3)
    failing, source = Failing(lambda n: ConnectionError(n)), Source()
    reads = [process.start(process.engine.get_or_load(KEY, terms(), failing.load)) for process in (other,)]
    await until(lambda: failing.loads == 1)
    first, retry = (process.start(process.engine.get_or_load(KEY, terms(), failing.load)) for process in (ours, third))
    await follows(ours), await follows(third)
    leases_of(ours).hold("acquire")
    failing.go_on.set()
    for failed in (*reads, retry):
        with pytest.raises(ConnectionError):
            await soon(failed)
    asked = await (await leases_of(ours).arrived("acquire")).execute()
    leases_of(ours).held.clear()
    late = ours.read(source, KEY)
    await asyncio.sleep(0.01)
    asked.answer()
    with pytest.raises(ConnectionError):
        await soon(first)
    assert await soon(late) == 1
    assert (failing.loads, source.loads) == (2, 1)


async def test_a_miss_is_three_round_trips_and_a_hit_is_one(fleet: Fleet) -> None:
    """Lookup; lease, generations and another look at the value; fill, wake-up and another look at the generations."""
    (ours,) = leased(fleet, 1)
    source, written = Source(), list[list[str]]()
    await soon(ours.read(source, OTHER))

    def counted(put: Callable[..., None]) -> Callable[..., None]:
        def count(commands: Sequence[Command], *args: object, **options: object) -> None:
            written.append([str(command[0]) for command in commands])
            put(commands, *args, **options)

        return count

    for lane in (fleet.links[0].reads[0], fleet.links[0].writes):
        lane.inner.put = counted(lane.inner.put)
    assert await soon(ours.read(source, KEY)) == 1
    assert written == [["MGET"], ["EVALSHA"], ["EVALSHA", "MGET"]]
    assert await soon(ours.read(source, KEY)) == 1
    assert written[3:] == [["MGET"]]
