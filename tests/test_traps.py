"""The traps of PROTOCOL.md, section 2, each with its shortest interleaving, forced step by step.

Two engines over one store are two processes. What a user must see: no read that began after an invalidation had returned gets anything
older, and nothing older is left in the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from aiocache_aura.entries import REMEMBERED
from aiocache_aura.errors import LoadTimeoutError
from aiocache_aura.resilience.single_flight import Waiter
from aiocache_aura.terms import Terms
from aiocache_aura.types import MISSING
from tests.clocks import ManualClock
from tests.servers import Server
from tests.steps import ADDRESSES, SOON, TERMS, Fleet, Process, Source, address, settled, soon

KEY = address()
STALE = replace(TERMS, stale=600.0, stale_on=(TimeoutError,))
PATIENT = replace(STALE, soft=SOON)
KINDS = pytest.mark.parametrize("kind", ["single", "batch"])
WHO = pytest.mark.parametrize("who", ["same process", "another process"])


@pytest.fixture(params=["memory", "valkey"])
async def fleet(request: pytest.FixtureRequest, clock: ManualClock) -> AsyncIterator[Fleet]:
    """Processes over a memory store, or over a real server."""
    fleet = Fleet(request.getfixturevalue("valkey").url if request.param == "valkey" else None, clock)
    yield fleet
    await fleet.aclose()


@pytest.fixture
async def served(valkey: Server, clock: ManualClock) -> AsyncIterator[Fleet]:
    """Processes over a real server, whose lanes can be held."""
    fleet = Fleet(valkey.url, clock)
    yield fleet
    await fleet.aclose()


def pair(fleet: Fleet, who: str = "another process") -> tuple[Process, Process]:
    """(the process that reads, the process that changes)"""
    ours = fleet.process()
    return ours, ours if who == "same process" else fleet.process()


def aboard(process: Process) -> list[Waiter]:
    """Who waits for the load of the key."""
    flight = process.engine.flights.get(KEY.key)
    return [] if flight is None else list(flight.waiters)


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until it is."""
    async with asyncio.timeout(SOON):
        while not is_so():
            await asyncio.sleep(0.001)


async def sees(process: Process, source: Source, version: int) -> bool:
    """Whether a read that begins now gets this version, or a newer one."""
    source.held = False
    return bool(await soon(process.read(source, KEY)) >= version)


# V1


@KINDS
async def test_v1_an_answer_serves_no_read_that_began_after_its_request_was_executed(fleet: Fleet, kind: str) -> None:
    """A lookup is executed; elsewhere the value is invalidated; who begins now is not given that lookup's reply."""
    ours, other = pair(fleet)
    source = Source()
    assert await soon(ours.read(source, KEY)) == 1
    ours.port.hold("lookup")
    first = ours.read(source, KEY)
    looked = await (await ours.port.arrived("lookup")).execute()
    ours.port.release()
    source.version = 2
    assert await other.invalidate_type()
    second = ours.read(source, KEY, kind=kind)
    await settled()
    looked.answer()
    assert await soon(first) == 1
    assert await soon(second) == 2


async def test_v1_a_lane_does_not_share_a_lookup_that_is_written(served: Fleet) -> None:
    """The same on the wire: a lookup of a key whose MGET is executed and not answered is written anew."""
    ours, other = pair(served)
    lane = served.links[0].reads[0]
    source = Source()
    assert await soon(ours.read(source, KEY)) == 1
    lane.hold("MGET")
    first = ours.read(source, KEY)
    asked = await (await lane.arrived("MGET")).execute()
    source.version = 2
    assert await other.invalidate_type()
    lane.release()
    second = ours.read(source, KEY)
    await settled()
    asked.answer()
    assert await soon(first) == 1
    assert await soon(second) == 2


async def test_v1_lookups_of_one_tick_share_one_request(served: Fleet) -> None:
    """What began in the same tick, before the request was written, is answered by it."""
    ours = served.process()
    lane = served.links[0].reads[0]
    source = Source()
    assert await soon(ours.read(source, KEY)) == 1
    lane.hold("MGET")
    reads = [ours.read(source, KEY) for _ in range(3)]
    await (await lane.arrived("MGET")).go()
    assert await soon(asyncio.gather(*reads)) == [1, 1, 1]
    assert lane.steps[1:] == []


# V2, V3


@KINDS
async def test_v2_who_joins_after_the_fill_was_written_does_not_take_its_value(fleet: Fleet, kind: str) -> None:
    """Fill and second look executed, "unchanged" on its way; invalidated; who joins now loads anew."""
    ours, other = pair(fleet)
    source = Source()
    ours.port.hold("fill")
    first = ours.read(source, KEY)
    filled = await (await ours.port.arrived("fill")).execute()
    ours.port.release()
    source.version = 2
    assert await other.invalidate_type()
    ours.port.hold("lookup")
    second = ours.read(source, KEY, kind=kind)
    if kind == "batch":
        await (await ours.port.arrived("lookup")).go()
    ours.port.release()
    await settled()
    assert not second.done()
    filled.answer()
    assert await soon(first) == 1
    assert await soon(second) == 2


@KINDS
@pytest.mark.parametrize("how", ["delete", "invalidate"])
async def test_v3_who_is_late_does_not_take_a_value_that_was_voided(fleet: Fleet, kind: str, how: str) -> None:
    """A load of v1 is under way; elsewhere the key is deleted, which changes no generation, or its type invalidated, which the fence does
    not see; who joins the load now loads v2."""
    ours, other = pair(fleet)
    source = Source(held=True)
    first = ours.read(source, KEY)
    load = await source.begun()
    source.version = 2
    await (other.engine.delete([KEY]) if how == "delete" else other.invalidate_type())
    ours.port.hold("lookup")
    second = ours.read(source, KEY, kind=kind)
    if kind == "batch":
        await (await ours.port.arrived("lookup")).go()
    ours.port.release()
    await settled()
    flight = ours.engine.flights.get(KEY.key)
    assert flight is not None
    assert len(flight.waiters) == 2
    load.finish()
    assert await soon(first) == 1
    (await source.begun()).finish()
    assert await soon(second) == 2
    assert source.loads == 2


async def test_v3_who_is_late_takes_a_value_that_was_accepted_and_is_unchanged(fleet: Fleet) -> None:
    """The fence accepted it and every generation is the captured one: everybody who began before the fill was written takes it."""
    ours = fleet.process("fill")
    source = Source(held=True)
    first = ours.read(source, KEY)
    load = await source.begun()
    late = [ours.read(source, KEY) for _ in range(3)]
    await settled()
    load.finish()
    ours.port.hold("lookup")
    await (await ours.port.arrived("fill")).go()
    assert await soon(asyncio.gather(first, *late)) == [1, 1, 1, 1]
    assert source.loads == 1
    assert ours.port.waiting() == []


async def test_v3_without_a_verdict_who_is_late_loads_anew(fleet: Fleet) -> None:
    """A fill whose answer is lost counts as changed: founders take the value, late ones look again."""
    ours, other = pair(fleet)
    source = Source(held=True)
    first = ours.read(source, KEY)
    load = await source.begun()
    source.version = 2
    assert await other.invalidate_type()
    ours.port.hold("fill")
    late = ours.read(source, KEY)
    await settled()
    load.finish()
    filled = await (await ours.port.arrived("fill")).execute()
    ours.port.release()
    filled.fail()
    assert await soon(first) == 1
    (await source.begun()).finish()
    assert await soon(late) == 2


# V4, V5, V7


@WHO
async def test_v4_a_load_under_way_does_not_bring_back_what_was_deleted(fleet: Fleet, who: str) -> None:
    """Miss, load of v1, delete returns, fill: refused."""
    ours, changer = pair(fleet, who)
    source = Source(held=True)
    first = ours.read(source, KEY)
    load = await source.begun()
    source.version = 2
    await changer.engine.delete([KEY])
    load.finish()
    assert await soon(first) == 1
    assert await changer.engine.get(KEY, TERMS) is MISSING
    assert await sees(ours, source, 2)


@WHO
async def test_v4_nor_does_a_fill_that_was_asked_for_before_the_delete_and_executed_after_it(fleet: Fleet, who: str) -> None:
    """The fill is on its way when the key is deleted: it comes too late."""
    ours, changer = pair(fleet, who)
    source = Source()
    ours.port.hold("fill")
    first = ours.read(source, KEY)
    fill = (await ours.port.arrived("fill")).write()
    ours.port.release()
    source.version = 2
    await changer.engine.delete([KEY])
    await fill.go()
    assert await soon(first) == 1
    assert await changer.engine.get(KEY, TERMS) is MISSING
    assert await sees(ours, source, 2)


async def test_v4_nor_when_the_permit_that_was_captured_has_been_replaced(fleet: Fleet) -> None:
    """After the delete somebody else begins a load, with a permit of his own: the old load's fill is refused all the same."""
    ours, other = pair(fleet)
    source = Source(held=True)
    old = ours.read(source, KEY)
    old_load = await source.begun()
    source.version = 2
    await other.engine.delete([KEY])
    new = other.read(source, KEY)
    new_load = await source.begun()
    old_load.finish()
    assert await soon(old) == 1
    assert await other.engine.get(KEY, TERMS) is MISSING
    new_load.finish()
    assert await soon(new) == 2
    assert await ours.engine.get(KEY, TERMS) == 2


@WHO
async def test_v5_a_load_under_way_does_not_overwrite_what_was_set(fleet: Fleet, who: str) -> None:
    """Load of v1 under way, set of v2 returns: v2 stays."""
    ours, changer = pair(fleet, who)
    source = Source(held=True)
    first = ours.read(source, KEY)
    load = await source.begun()
    source.version = 2
    await changer.engine.set([(KEY, 2)], TERMS)
    load.finish()
    assert await soon(first) == 1
    assert await ours.engine.get(KEY, TERMS) == 2
    assert await changer.engine.get(KEY, TERMS) == 2


@WHO
async def test_v5_nor_what_was_added(fleet: Fleet, who: str) -> None:
    """The same with `add`, which writes because nothing is stored yet."""
    ours, changer = pair(fleet, who)
    source = Source(held=True)
    first = ours.read(source, KEY)
    load = await source.begun()
    source.version = 2
    assert await changer.engine.add(KEY, 2, TERMS)
    load.finish()
    assert await soon(first) == 1
    assert await ours.engine.get(KEY, TERMS) == 2


# V6


@pytest.mark.parametrize("verb", ["set", "add"])
async def test_v6_a_write_after_a_miss_stores_the_generations_of_that_miss(fleet: Fleet, verb: str) -> None:
    """A miss, a value made from v1, the write begins; elsewhere v2, invalidated: what is stored is void, not v1 under the new token."""
    ours, other = pair(fleet)
    source = Source()
    await soon(ours.read(source, address("another key of these scopes")))
    assert await ours.engine.get(KEY, TERMS) is MISSING
    ours.port.hold("lookup", "generations", "store", "store_if")
    writing = ours.start(ours.engine.set([(KEY, 1)], TERMS) if verb == "set" else ours.engine.add(KEY, 1, TERMS))
    first = await ours.port.arrived()
    source.version = 2
    assert await other.invalidate_type()
    ours.port.release()
    await first.go()
    await soon(writing)
    assert await other.engine.get(KEY, TERMS) is MISSING
    assert await sees(ours, source, 2)


@pytest.mark.parametrize("verb", ["set", "add"])
@WHO
async def test_v6_the_writing_itself_stamps_no_generation(fleet: Fleet, verb: str, who: str) -> None:
    """Nothing known, so the write asks; invalidated after that was executed: what is stored is void."""
    ours, changer = pair(fleet, who)
    source = Source()
    ours.port.hold("generations")
    writing = ours.start(ours.engine.set([(KEY, 1)], TERMS) if verb == "set" else ours.engine.add(KEY, 1, TERMS))
    asked = await (await ours.port.arrived("generations")).execute()
    source.version = 2
    assert await changer.invalidate_type()
    ours.port.release()
    asked.answer()
    await soon(writing)
    assert await changer.engine.get(KEY, TERMS) is MISSING
    assert await sees(ours, source, 2)


@pytest.mark.parametrize("verb", ["set", "add"])
@pytest.mark.parametrize("step", [0, 1, 2])
async def test_v6_an_invalidation_by_the_same_process_voids_a_write_under_way(fleet: Fleet, verb: str, step: int) -> None:
    """Whichever of its requests the write is waiting with, this process sees nothing older than its own invalidation."""
    ours = fleet.process("lookup", "generations", "store", "store_if", "delete")
    source = Source()
    writing = ours.start(ours.engine.set([(KEY, 1)], TERMS) if verb == "set" else ours.engine.add(KEY, 1, TERMS))
    await settled()
    for _ in range(step):
        await (await ours.port.arrived()).go()
        await settled()
    assert writing.done() == (verb == "set" and step == 2)
    ours.port.release()
    source.version = 2
    assert await ours.invalidate_type()
    for held in ours.port.waiting():
        await held.go()
    await soon(writing)
    assert await ours.engine.get(KEY, TERMS) is MISSING
    assert await sees(ours, source, 2)


async def test_v6_an_invalidation_by_the_same_process_voids_a_set_that_its_miss_came_before(fleet: Fleet) -> None:
    """Cache-aside by hand, nothing planted yet: a miss, v1 is read, v2 and invalidated here, v1 is set: no read is served it."""
    ours = fleet.process()
    source = Source()
    assert await ours.engine.get(KEY, TERMS) is MISSING
    source.version = 2
    assert await ours.invalidate_type()
    assert await ours.engine.set([(KEY, 1)], TERMS) is False
    assert await ours.engine.get(KEY, TERMS) is MISSING
    assert await ours.engine.set([(KEY, 2)], TERMS) is True
    assert await ours.engine.get(KEY, TERMS) == 2


async def test_v6_a_later_miss_of_another_task_does_not_vouch_for_an_older_value(fleet: Fleet) -> None:
    """Two tasks miss, an invalidation between them: the first one's value is void, the second one's is stored."""
    ours = fleet.process()
    go_on, missed = asyncio.Event(), asyncio.Queue[int]()

    async def by_hand(version: int) -> bool:
        assert await ours.engine.get(KEY, TERMS) is MISSING
        missed.put_nowait(version)
        await go_on.wait()
        return await ours.engine.set([(KEY, version)], TERMS)

    first = ours.start(by_hand(1))
    await soon(missed.get())
    assert await ours.invalidate_type()
    second = ours.start(by_hand(2))
    await soon(missed.get())
    go_on.set()
    assert await soon(first) is False
    assert await soon(second) is True
    assert await ours.engine.get(KEY, TERMS) == 2


async def test_v6_more_invalidations_than_are_remembered_void_rather_than_pass(fleet: Fleet) -> None:
    """The memory of own invalidations is bounded; a miss from before what was forgotten counts as invalidated."""
    ours = fleet.process()
    assert await ours.engine.get(KEY, TERMS) is MISSING
    assert await ours.invalidate_type()
    for n in range(REMEMBERED):
        assert await ours.engine.invalidate((b"scope %d" % n,))
    assert await ours.engine.set([(KEY, 1)], TERMS) is False
    assert await ours.engine.get(KEY, TERMS) is MISSING


# V7


@WHO
async def test_v7_a_pattern_voids_the_loads_of_keys_that_are_cold(fleet: Fleet, who: str) -> None:
    """A load of v1 is under way and nothing is stored yet: invalidate_pattern leaves nothing of it."""
    ours, changer = pair(fleet, who)
    source = Source(held=True)
    first = ours.read(source, KEY)
    load = await source.begun()
    source.version = 2
    await changer.engine.purge("menu", "k*")
    load.finish()
    assert await soon(first) == 1
    assert await changer.engine.get(KEY, TERMS) is MISSING
    assert await sees(ours, source, 2)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("gap", range(5))
async def test_v7_a_fill_between_any_two_requests_of_the_scan_does_not_survive_it(served: Fleet, gap: int, warm: bool) -> None:
    """Permits go in a pass of their own, and first: wherever the fill of v1 falls, it is refused or its value is found."""
    ours, other = pair(served)
    source = Source(held=not warm)
    if warm:
        assert await soon(ours.read(source, KEY)) == 1
        source.held = True
        first = ours.start(ours.engine.refresh(KEY, TERMS, source.load))
    else:
        first = ours.read(source, KEY)
    load = await source.begun()
    source.version = 2
    lane = served.links[1].writes
    lane.hold("SCAN", "UNLINK")
    purging = other.start(other.engine.purge("menu", "*"))
    step = await lane.arrived()
    for _ in range(gap):
        await step.go()
        await settled()
        if purging.done():
            break
        step = await lane.arrived()
    load.finish()
    assert await soon(first) == 1
    lane.release()
    if not step.future.done() and not purging.done():
        await step.go()
    await soon(purging)
    assert await other.engine.get(KEY, TERMS) is MISSING
    assert await sees(ours, source, 2)


# V18


async def soften(process: Process) -> bool:
    return await process.engine.invalidate(ADDRESSES.to_invalidate("menu"), soft=True)


@pytest.mark.parametrize("gone", ["invalidated", "evicted"])
@WHO
async def test_v18_a_soft_invalidation_of_nothing_makes_no_half_token_that_comes_back(fleet: Fleet, who: str, gone: str) -> None:
    """Nothing planted: softly invalidated; v1 is stored; v2, invalidated (or evicted); softly invalidated again: v1 does not stand in."""
    ours, changer = pair(fleet, who)
    source = Source()
    assert await soften(changer)
    assert await soon(ours.read(source, KEY, PATIENT)) == 1
    source.version = 2
    if gone == "invalidated":
        assert await changer.invalidate_type()
    else:
        await changer.port.invalidate(ADDRESSES.to_invalidate("menu"), timeout=SOON)
    assert await soften(changer)
    assert await changer.engine.entry(KEY, PATIENT) is None
    assert await soon(ours.read(source, KEY, PATIENT)) == 2


@WHO
async def test_v18_a_soft_invalidation_that_is_sent_again_revives_nothing(fleet: Fleet, who: str) -> None:
    """Asked for before a hard one and executed after it, and twice: what was stored before the hard one stays dead."""
    ours, changer = pair(fleet, who)
    source = Source()
    assert await soon(ours.read(source, KEY, PATIENT)) == 1
    changer.port.hold("invalidate")
    softening = changer.start(soften(changer))
    sent = await changer.port.arrived("invalidate")
    changer.port.release()
    source.version = 2
    assert await changer.invalidate_type()
    await sent.execute()
    await (await sent.execute()).go()
    assert await soon(softening)
    assert await changer.engine.entry(KEY, PATIENT) is None
    assert await soon(ours.read(source, KEY, PATIENT)) == 2


@WHO
async def test_v18_a_load_that_a_soft_invalidation_has_overtaken_is_stored_as_stale_at_most(fleet: Fleet, who: str) -> None:
    """Loaded before, filled after: no strict read gets it, though it may stand in."""
    ours, changer = pair(fleet, who)
    source = Source(held=True)
    first = ours.read(source, KEY, PATIENT)
    load = await source.begun()
    source.version = 2
    assert await soften(changer)
    load.finish()
    assert await soon(first) == 1
    assert await changer.engine.get(KEY, PATIENT) is MISSING
    source.held = False
    assert await soon(changer.read(source, KEY, PATIENT.altered(fresh=True))) == 2


# V19


async def test_v19_an_invalidation_that_is_sent_again_revives_nothing(fleet: Fleet) -> None:
    """Executed, answer lost; a load stores what it finds; another invalidation returns; the first is sent again."""
    first, second = pair(fleet)
    source = Source()
    first.port.hold("invalidate")
    invalidating = first.start(first.invalidate_type())
    sent = await (await first.port.arrived("invalidate")).execute()
    assert await soon(second.read(source, KEY)) == 1
    source.version = 2
    assert await second.invalidate_type()
    await (await sent.execute()).go()
    assert await soon(invalidating)
    assert await first.engine.get(KEY, TERMS) is MISSING
    assert await sees(second, source, 2)


async def test_v19_the_bytes_that_a_lane_sends_again_revive_nothing(served: Fleet) -> None:
    """The same on the wire, where the very same command is written twice."""
    first, second = pair(served)
    source = Source()
    lane = served.links[0].writes
    lane.hold("DEL", "SET", "EVALSHA", "UNLINK", "MSET")
    invalidating = first.start(first.invalidate_type())
    sent = await (await lane.arrived()).execute()
    assert await soon(second.read(source, KEY)) == 1
    source.version = 2
    assert await second.invalidate_type()
    await (await sent.execute()).go()
    assert await soon(invalidating)
    lane.release()
    assert await first.engine.get(KEY, TERMS) is MISSING
    assert await sees(second, source, 2)


async def test_v19_a_soft_invalidation_whose_bytes_are_sent_again_revives_nothing(served: Fleet) -> None:
    """Executed, answer lost; a load stores what it finds; another soft one returns; the first is sent again: that stays stale."""
    first, second = pair(served)
    source = Source()
    assert await soon(second.read(source, KEY, PATIENT)) == 1
    assert await soften(second)  # and the server knows the script
    lane = served.links[0].writes
    lane.hold("EVALSHA")
    softening = first.start(soften(first))
    sent = await (await lane.arrived()).execute()
    source.version = 2
    assert await soon(second.read(source, KEY, PATIENT.altered(fresh=True))) == 2
    assert await second.engine.get(KEY, PATIENT) == 2
    source.version = 3
    assert await soften(second)
    await (await sent.execute()).go()
    assert await soon(softening)
    lane.release()
    assert await first.engine.get(KEY, PATIENT) is MISSING
    assert await soon(second.read(source, KEY, PATIENT.altered(fresh=True))) == 3


# V22


async def held_stale(fleet: Fleet, source: Source) -> tuple[Process, Process]:
    """(ours, another), with v1 stored and past its life."""
    ours, other = pair(fleet)
    assert await soon(ours.read(source, KEY, PATIENT)) == 1
    fleet.clock.advance(PATIENT.life + 1)
    return ours, other


@pytest.mark.parametrize("how", ["invalidate", "delete"])
@pytest.mark.parametrize("moment", ["claiming", "loading"])
async def test_v22_a_flight_hands_its_stale_value_to_nobody(fleet: Fleet, moment: str, how: str) -> None:
    """Who holds v1 waits for a refresh; v2, invalidated elsewhere; who joins that refresh now gets its error when it fails, never v1."""
    source = Source()
    ours, other = await held_stale(fleet, source)
    source.held = True
    ours.port.hold("claim")
    first = ours.read(source, KEY, PATIENT)
    claim = await (await ours.port.arrived("claim")).execute()
    ours.port.release()
    load = None
    if moment == "loading":
        claim.answer()
        load = await source.begun()
    source.version = 2
    await (other.invalidate_type() if how == "invalidate" else other.engine.delete([KEY]))
    second = ours.read(source, KEY, PATIENT)
    await until(lambda: len(aboard(ours)) == 2)
    if load is None:
        claim.answer()
        load = await source.begun()
    load.fail(TimeoutError("slow"))
    assert await soon(first) == 1
    if moment == "loading":  # late for that load: it has one of its own
        (await source.begun()).fail(TimeoutError("slow"))
    with pytest.raises(TimeoutError, match="slow"):
        await soon(second)
    assert await sees(other, source, 2)


async def test_v22_who_waits_no_longer_takes_what_it_found_itself(fleet: Fleet) -> None:
    """Two readers of one refresh, before and after an invalidation elsewhere: when time is up, one has a value to take, one has none."""
    source = Source()
    ours, other = await held_stale(fleet, source)
    source.held = True
    first = ours.read(source, KEY, replace(PATIENT, soft=0.05))
    load = await source.begun()
    source.version = 2
    assert await other.invalidate_type()
    second = ours.read(source, KEY, replace(PATIENT, soft=0.01, hard=0.05))
    assert await soon(first) == 1
    with pytest.raises(LoadTimeoutError):
        await soon(second)
    load.finish()
    await until(lambda: ours.engine.flights.get(KEY.key) is None)
    assert await sees(ours, source, 2)


@pytest.mark.parametrize("terms", [STALE, PATIENT], ids=["behind", "waited for"])
async def test_v22_a_failed_refresh_writes_nothing(fleet: Fleet, terms: Terms) -> None:
    """v1 is being refreshed; v2, deleted elsewhere; the refresh fails: nothing is written, so v1 does not come back."""
    source = Source()
    ours, other = await held_stale(fleet, source)
    source.held = True
    ours.port.hold("fill", "store", "store_if", "expire")
    first = ours.read(source, KEY, terms)
    load = await source.begun()
    source.version = 2
    await other.engine.delete([KEY])
    load.fail(TimeoutError("slow"))
    assert await soon(first) == 1
    await until(lambda: ours.engine.flights.get(KEY.key) is None)
    assert ours.port.waiting() == []
    ours.port.release()
    assert await sees(ours, source, 2)


@pytest.mark.parametrize("soft", [False, True])
async def test_v22_a_refresh_behind_that_was_overtaken_is_given_to_nobody_as_fresh(fleet: Fleet, soft: bool) -> None:
    """v1 is stale, and v2 loading behind it; v3, invalidated elsewhere: no strict read, and no read that misses, is given v2."""
    source = Source()
    ours, other = await held_stale(fleet, source)
    source.held, source.version = True, 2
    assert await soon(ours.read(source, KEY, STALE)) == 1
    load = await source.begun()
    source.version = 3
    assert await (soften(other) if soft else other.invalidate_type())
    load.finish()
    await until(lambda: ours.engine.flights.get(KEY.key) is None)
    assert await ours.engine.get(KEY, STALE) is MISSING
    source.held = False
    for process in ours, other:
        assert await soon(process.read(source, KEY, STALE.altered(fresh=True))) == 3
    assert await soon(ours.read(source, KEY, STALE)) == 3


# V24, V25


@pytest.mark.parametrize("how", ["delete", "set", "invalidate", "purge", "refresh"])
async def test_v24_the_end_of_a_closed_flight_leaves_its_successor_alone(fleet: Fleet, how: str) -> None:
    """A flight is closed and another opened; the first ends; a newcomer joins the second, and nothing is loaded a third time."""
    ours = fleet.process()
    source = Source(held=True)
    first = ours.read(source, KEY)
    old = await source.begun()
    source.version = 2
    if how == "refresh":
        second = ours.start(ours.engine.refresh(KEY, TERMS, source.load))
    else:
        changes = {
            "delete": lambda: ours.engine.delete([KEY]),
            "set": lambda: ours.engine.set([(KEY, 2)], TERMS),
            "invalidate": ours.invalidate_type,
            "purge": lambda: ours.engine.purge("menu", "*"),
        }
        await soon(changes[how]())
        if how == "set":
            await soon(ours.invalidate_type())
        second = ours.read(source, KEY)
    new = await source.begun()
    old.finish()
    assert await soon(first) == 1
    third = ours.read(source, KEY)
    await settled()
    new.finish()
    assert await soon(second) == 2
    assert await soon(third) == 2
    assert source.loads == 2


async def test_v24_nobody_joins_a_flight_that_is_being_cancelled(fleet: Fleet) -> None:
    """The last caller leaves, and the load takes its time to end: who comes meanwhile gets a load of his own."""
    ours = fleet.process()
    source, cleaned = Source(held=True), asyncio.Event()

    async def slow_to_end() -> int:
        try:
            return await source.load()
        finally:
            await cleaned.wait()

    first = ours.start(ours.engine.get_or_load(KEY, TERMS, slow_to_end))
    await source.begun()
    first.cancel()
    same_tick = ours.read(source, KEY)
    load = await source.begun()
    later = ours.read(source, KEY)
    await settled()
    cleaned.set()
    load.finish()
    assert await soon(same_tick) == 1
    assert await soon(later) == 1
    assert first.cancelled()
    assert source.loads == 2


@KINDS
async def test_v25_a_miss_that_the_fill_has_overtaken_looks_again(fleet: Fleet, kind: str) -> None:
    """The lookup misses; somebody else loads, fills and is done; then the miss arrives: it is not loaded a second time."""
    ours = fleet.process("lookup")
    source = Source()
    second = ours.read(source, KEY, kind=kind)
    missed = await (await ours.port.arrived("lookup")).execute()
    ours.port.release()
    assert await soon(ours.read(source, KEY)) == 1
    missed.answer()
    assert await soon(second) == 1
    assert source.loads == 1


@KINDS
async def test_v25_a_miss_that_arrives_while_the_fill_is_under_way_waits_for_its_verdict(fleet: Fleet, kind: str) -> None:
    """As above, with the fill not answered yet (M4)."""
    ours = fleet.process("lookup", "fill")
    source = Source()
    second = ours.read(source, KEY, kind=kind)
    missed = await (await ours.port.arrived("lookup")).execute()
    ours.port.release("lookup")
    first = ours.read(source, KEY)
    filled = await (await ours.port.arrived("fill")).execute()
    missed.answer()
    await settled()
    filled.answer()
    assert await soon(first) == 1
    assert await soon(second) == 1
    assert source.loads == 1


@KINDS
async def test_v25_who_comes_while_the_fill_is_under_way_waits_for_its_verdict(fleet: Fleet, kind: str) -> None:
    """Its own lookup could overtake the fill: it waits, and then looks (M4)."""
    ours = fleet.process("fill")
    source = Source()
    first = ours.read(source, KEY)
    fill = (await ours.port.arrived("fill")).write()
    second = ours.read(source, KEY, kind=kind)
    await settled()
    await fill.go()
    assert await soon(first) == 1
    assert await soon(second) == 1
    assert source.loads == 1


# M6


@WHO
@pytest.mark.parametrize("moment", ["claimed", "loading", "filling"])
async def test_m6_what_was_loaded_before_an_invalidation_is_not_stored(fleet: Fleet, who: str, moment: str) -> None:
    """The generations were captured before the load began: whenever the invalidation falls, a read after it loads anew."""
    ours, changer = pair(fleet, who)
    source = Source(held=True)
    ours.port.hold("claim", "fill")
    first = ours.read(source, KEY)
    claimed = await (await ours.port.arrived("claim")).execute()

    async def change() -> None:
        source.version += 1
        assert await changer.invalidate_type()

    if moment == "claimed":
        await change()
    claimed.answer()
    load = await source.begun()
    if moment == "loading":
        await change()
    load.finish()
    await settled()
    if moment == "filling":
        fill = (await ours.port.arrived("fill")).write()
        await change()
        await fill.go()
    ours.port.release()
    for step in ours.port.waiting():
        await step.go()
    assert await soon(first) == load.version
    assert await changer.engine.get(KEY, TERMS) is MISSING
    assert await sees(ours, source, 2)
