"""The judge, by histories made by hand: each kind of violation is reported, and what is allowed is not. Times in milliseconds."""

from __future__ import annotations

from typing import Any

import pytest

from tests.races.check import Rules, Violation, answered_after_fill, check
from tests.races.history import Act, End, History, Life, Load, Read

MS = 1_000_000
KEY = 7
PEACE = Rules(lives={KEY: 60.0})
FLEET = Rules(one_load="fleet", lives={KEY: 60.0}, lease=1.0)


def read(began: float, ended: float, version: int | None = None, *, process: str = "a", id: int = 1, **more: Any) -> Read:
    return Read(process, id, KEY, int(began * MS), int(ended * MS), version, **more)


def load(begun: float, ended: float | None, version: int = 1, *, process: str = "a", asked: float | None = None, **more: Any) -> Load:
    ends = None if ended is None else int(ended * MS)
    outcome = more.pop("outcome", "open" if ended is None else "ok")
    return Load(
        process, 1, KEY, int(begun * MS), version, int((begun if asked is None else asked) * MS), ended=ends, outcome=outcome, **more
    )


def act(kind: str, issued: float, returned: float | None, floor: int, *, delivered: bool | None = True, process: str = "b") -> Act:
    known = None if returned is None else delivered
    return Act(process, 1, kind, "menu", int(issued * MS), {KEY: floor}, None if returned is None else int(returned * MS), known)


def life(what: str, at: float, process: str = "a") -> Life:
    return Life(process, what, int(at * MS))


def judged(*events: Any, rules: Rules = PEACE) -> list[Violation]:
    kinds = {Read: "reads", Load: "loads", Act: "acts", Life: "lives", End: "ends"}
    history = History()
    for event in events:
        getattr(history, kinds[type(event)]).append(event)
    return check(history, rules)


def broken(*events: Any, rules: Rules = PEACE) -> list[str]:
    return [violation.rule for violation in judged(*events, rules=rules)]


# P3


@pytest.mark.parametrize("kind", ["type", "tenant", "user", "tag", "type_tenant", "function", "key", "pattern", "set", "add"])
def test_p3_an_old_version_after_it_has_returned(kind: str) -> None:
    """A read that began after an invalidation, delete or set had returned, and sees an older version than that demands."""
    assert broken(act(kind, 10, 12, 5), read(13, 14, 4)) == ["P3"]
    assert broken(act(kind, 10, 12, 5), read(13, 14, 5)) == []


def test_p3_only_from_its_return_on() -> None:
    """A read that began when it had not returned yet may see either."""
    returned = 12 * MS
    assert broken(act("type", 10, 12, 5), Read("a", 1, KEY, returned, returned + 9, 4)) == []
    assert broken(act("type", 10, 12, 5), Read("a", 1, KEY, returned + 1, returned + 9, 4)) == ["P3"]


@pytest.mark.parametrize("delivered", [False, None])
def test_p3_only_what_was_delivered(delivered: bool | None) -> None:
    """What was not delivered, or never returned, demands nothing."""
    assert broken(act("type", 10, 12, 5, delivered=delivered), read(13, 14, 4)) == []
    assert broken(act("type", 10, None, 5), read(13, 14, 4)) == []


def test_p3_the_highest_floor_counts() -> None:
    """Of several, whichever demands most, though another returned later."""
    assert broken(act("type", 10, 12, 9), act("key", 11, 13, 5), read(14, 15, 7)) == ["P3"]


def test_p3_a_miss_is_not_old() -> None:
    """Nothing is no old version."""
    assert broken(act("type", 10, 12, 5), read(13, 14, None, outcome="miss")) == []


def test_p3_a_set_carries_the_age_of_its_value() -> None:
    """An old value that was explicitly set may be read, if that set had not returned when the invalidation was issued."""
    after, across = act("set", 13, 14, 4, process="c"), act("set", 9, 11, 4, process="c")
    assert broken(act("type", 10, 12, 5), after, read(15, 16, 4)) == []
    assert broken(act("type", 10, 12, 5), across, read(15, 16, 4)) == []


def test_p3_a_set_that_had_returned_is_cleared() -> None:
    """A set that had returned before the invalidation was issued excuses nothing; nor does one of another value, or one that came later."""
    before, other, later = act("set", 7, 9, 4), act("set", 13, 14, 3), act("set", 17, 18, 4)
    for excuse in (before, other, later):
        assert broken(act("type", 10, 12, 5), excuse, read(15, 16, 4)) == ["P3"]


def test_p3_a_set_has_to_be_after_every_barrier() -> None:
    """A set across the first invalidation does not excuse what the second has cleared."""
    across = act("set", 9, 11, 4)
    assert broken(act("type", 10, 12, 5), across, act("type", 13, 14, 5), read(15, 16, 4)) == ["P3"]


def test_p3_a_set_that_nobody_knows_the_end_of_may_land_at_any_time() -> None:
    """A set that was given up, or whose process died, may still arrive; one that has done nothing, for sure, does not."""
    for delivered, found in ((None, []), (False, ["P3"])):
        assert broken(act("set", 7, 8, 4, delivered=delivered), act("type", 10, 12, 5), read(15, 16, 4)) == found
    assert broken(act("set", 7, None, 4), act("type", 10, 12, 5), read(15, 16, 4)) == []


def test_p3_two_sets_at_once() -> None:
    """Of two sets that overlap either may stay; of two in a row the second."""
    assert broken(act("set", 10, 13, 5), act("set", 11, 14, 6), read(15, 16, 5)) == []
    assert broken(act("set", 10, 13, 5), act("set", 14, 15, 6), read(16, 17, 5)) == ["P3"]


def test_p3_clearing_a_function_spares_what_was_set() -> None:
    """`cache_clear` clears what the function loaded, and spares what was set, whenever that was; not so any other invalidation."""
    assert broken(act("set", 7, 9, 4), act("function", 10, 12, 5), read(13, 14, 4)) == []
    assert broken(act("function", 10, 12, 5), read(13, 14, 4)) == ["P3"]
    assert broken(act("set", 7, 9, 4), act("function", 10, 12, 5), act("type", 10, 12, 5), read(13, 14, 4)) == ["P3"]


def test_p3_a_touch_neither_clears_nor_excuses() -> None:
    """A new life is no new value."""
    assert broken(act("touch", 10, 12, 5), read(13, 14, 4)) == []
    assert broken(act("type", 10, 12, 5), act("touch", 13, 14, 4), read(15, 16, 4)) == ["P3"]


# Life


def test_what_is_read_lives() -> None:
    """Nothing is served longer than an entry may live, from its load's beginning, its set, or the last touch."""
    rules = Rules(longest={KEY: 1.0})
    for made, last in ((load(10, 300), 10), (act("set", 10, 20, 1), 20), (act("add", 10, 20, 1), 20)):
        assert broken(made, read(last + 1010, last + 1011, 1), rules=rules) == []
        assert broken(made, read(last + 1011, last + 1012, 1), rules=rules) == ["life"]
        assert broken(made, act("touch", 900, 901, 5), read(last + 1011, last + 1012, 1), rules=rules) == []
        assert broken(made, act("touch", 3, 4, 5), read(last + 1011, last + 1012, 1), rules=rules) == ["life"]


def test_a_load_may_take_longer_than_its_value_lives() -> None:
    """Who joins it while it runs is given what it loads."""
    rules = Rules(longest={KEY: 1.0})
    assert broken(load(10, 2000), read(1500, 2001, 1), rules=rules) == []
    assert broken(load(10, 2000), read(2101, 2102, 1), rules=rules) == ["life"]


def test_what_is_read_was_made() -> None:
    """A version that nobody had loaded or set by then is from nowhere."""
    rules = Rules(longest={KEY: 60.0})
    assert broken(load(10, 12, 3), read(13, 14, 3), rules=rules) == []
    assert broken(load(10, 12, 3), read(13, 14, 4), rules=rules) == ["life"]
    assert broken(load(15, 16, 3), read(13, 14, 3), rules=rules) == ["life"]
    assert broken(act("set", 1, None, 3), read(13, 14, 3), rules=rules) == []


def test_a_violation_says_what_happened_around_it() -> None:
    """The events of that key around it, in their order; not those of long before."""
    events = (act("key", 1, 2, 1), load(5000, 5005, 4), act("type", 5006, 5007, 5), read(5008, 5009, 4, process="c"))
    (violation,) = judged(*events)
    assert "key 7: c read version 4 (load), having begun 1.0 ms after the type (menu) of b had returned, which demands 5" in str(violation)
    told = [line.split("ms  ")[1] for line in violation.around.splitlines()]
    assert told == [
        "a begins load #1, asked for 0.0 ms before, and reads version 4",
        "a ends load #1 of version 4: ok",
        "b issues type (menu) #1, which demands 5",
        "type (menu) #1 of b has returned",
        "c begins a read (load) ...",
        "... and ends it: ok, version 4",
    ]


# P1


def test_p1_a_second_load_in_one_process() -> None:
    """Two loads in succession, or at once, with nothing in between."""
    assert broken(load(10, 12), load(20, 22)) == ["P1"]
    assert broken(load(10, 30), load(20, 22)) == ["P1"]


@pytest.mark.parametrize("kind", ["type", "key", "set", "add", "pattern"])
def test_p1_a_reason_overlaps_the_time_from_the_first_read_to_the_second_load(kind: str) -> None:
    """Something that happened to the key before the first load was asked for, or after the second began, is no reason for the second."""
    first, second = load(10, 12, asked=8), load(20, 22)
    assert broken(first, second, act(kind, 15, 16, 2)) == []
    assert broken(first, second, act(kind, 7, 8, 2)) == []
    assert broken(first, second, act(kind, 19, 25, 2)) == []
    assert broken(first, second, act(kind, 6, 7, 2)) == ["P1"]
    assert broken(first, second, act(kind, 21, 25, 2)) == ["P1"]


def test_p1_a_touch_is_no_reason() -> None:
    """A new life removes nothing."""
    assert broken(load(10, 12), load(20, 22), act("touch", 15, 16, 2)) == ["P1"]


def test_p1_an_invalidation_that_was_given_up_may_still_arrive() -> None:
    """For a while after its caller has left, or its process has died; not for ever."""
    for undone in (act("type", 1, 2, 2, delivered=None), act("type", 1, None, 2)):
        dead = life("killed", 2, process="b")
        assert broken(undone, dead, load(10, 12), load(20, 22)) == []
        assert broken(undone, dead, load(5000, 5002), load(5010, 5012)) == ["P1"]


@pytest.mark.parametrize("outcome", ["failed", "cancelled", "open"])
def test_p1_a_load_that_gave_nothing_licenses_another(outcome: str) -> None:
    """One that failed, was cancelled, or died with its process."""
    for rules in (PEACE, FLEET):
        assert broken(load(10, 12, outcome=outcome), load(20, 22, process="b"), load(30, 32), rules=rules)[:-1] == []
        assert broken(load(10, 12, outcome=outcome), load(20, 22), rules=rules) == []


def test_p1_a_load_whose_last_caller_left_before_it_was_stored() -> None:
    """It ended well and its fill was cancelled, if one left meanwhile and none was answered with it."""
    loads, leaver = (load(810, 820), load(830, 832)), read(808, 821, outcome="left")
    assert broken(*loads, leaver) == []
    other = Load("a", 2, KEY + 1, 811 * MS, 1, 808 * MS, ended=820 * MS, outcome="failed")
    failed = read(808, 821, outcome="failed", how="batch"), Read("a", 1, KEY + 1, 808 * MS, 821 * MS, None, "batch", "failed")
    assert broken(*loads, *failed, other) == []
    assert broken(*loads, read(8, 819, outcome="left")) == []
    assert broken(*loads, read(8, 719, outcome="left")) == ["P1"]
    assert broken(*loads, read(808, 1829, outcome="left")) == []
    assert broken(*loads, read(808, 1831, outcome="left")) == ["P1"]
    assert broken(*loads, leaver, read(809, 822, 1, id=2)) == ["P1"]
    assert broken(*loads, leaver, read(809, 819, 1, id=2)) == []
    assert broken(*loads, read(808, 821, outcome="left", process="b")) == ["P1"]


def test_p1_a_life_that_may_be_over() -> None:
    """A second load when the first one's value may have expired, which counts from the load's beginning."""
    rules = Rules(lives={KEY: 1.0})
    assert broken(load(10, 500), load(1010, 1020), rules=rules) == []
    assert broken(load(10, 500), load(990, 1020), rules=rules) == ["P1"]


def test_p1_a_refresh_is_a_reason() -> None:
    """Who asks for a new value gets a load, and demands no version of others."""
    assert broken(load(10, 12), load(20, 22), act("refresh", 19, 23, -1), read(30, 31, 0)) == []


def test_p1_a_fill_that_was_doomed_may_land_on_a_good_one() -> None:
    """A load of another process that an invalidation had doomed stores what nobody can use over the first one's value."""
    doomed = load(5, 14, process="b", asked=4)
    assert broken(doomed, act("type", 6, 7, 2), load(10, 12, asked=9), load(20, 22)) == []
    early = load(5, 6, process="b", asked=4, read=3)
    assert broken(early, read(4, 7, 1, process="b", id=3), act("type", 7, 8, 2), load(10, 12, asked=9), load(20, 22)) == ["P1"]


def test_p1_each_process_may_load_once() -> None:
    """Where each process loads for itself: at the same time, too. Where one load serves the fleet: not."""
    events = load(10, 12), load(10, 12, process="b"), load(11, 13, process="c")
    assert broken(*events) == []
    assert broken(*events, rules=FLEET) == ["P1", "P1"]


def test_p1_what_is_stored_is_found_by_others() -> None:
    """A process that asked after another's caller had been answered, so that the value was stored, must not load."""
    first = load(10, 12, process="b", read=3), read(9, 13, 1, process="b", id=3)
    assert broken(*first, load(20, 22, asked=14)) == ["P1"]
    assert broken(*first, load(20, 22, asked=12)) == []
    assert broken(*first, load(20, 22, asked=14), act("type", 13, 15, 2)) == []


def test_p1_a_doomed_holder_that_begins_late() -> None:
    """In a fleet, who has the lease and is slow to begin is overtaken after an invalidation, and begins all the same."""
    overtaken = load(20, 22, asked=2), act("type", 4, 5, 2), load(12, 14, asked=10, process="b")
    assert broken(*overtaken, rules=FLEET) == []
    assert broken(*overtaken[1:], load(20, 22, asked=6), rules=FLEET) == ["P1"]


def test_p1_a_pause_beyond_the_lease() -> None:
    """In a fleet, a leader that was paused for longer than its lease is overtaken; one that was paused for a moment is not."""
    loads = load(10, 2000), load(1500, 1600, process="b")
    assert broken(*loads, life("paused", 20), life("continued", 1900), rules=FLEET) == []
    assert broken(*loads, life("paused", 20), life("continued", 120), rules=FLEET) == ["P1"]
    assert broken(*loads, life("paused", 20, "b"), life("continued", 1900, "b"), rules=FLEET) == ["P1"]


def test_p1_quiet_rounds_are_counted_exactly() -> None:
    """A cold key that all ask for at once: one load in each process, or in the fleet; none at all is as wrong as two."""
    rounds = frozenset({KEY})
    each, fleet = Rules(rounds=rounds), Rules(one_load="fleet", rounds=rounds)
    one, other = load(10, 12), load(10, 12, process="b")
    reason = act("type", 10, 11, 2)
    assert broken(one, other, rules=each) == []
    assert broken(one, load(11, 13), reason, rules=each) == ["P1"]
    assert broken(one, rules=fleet) == []
    assert broken(one, other, reason, rules=fleet) == ["P1"]
    assert broken(read(9, 13, 1), rules=fleet) == ["P1"]


def test_p1_a_failing_load_is_tried_twice_in_a_fleet() -> None:
    """Once more for all who wait, in most rounds: a process that asks too late begins anew, which cannot be seen from outside."""
    rules = Rules(one_load="fleet", failing_rounds=frozenset({KEY, KEY + 1}))

    def failing(key: int, *processes: str) -> list[Load]:
        return [Load(one, 1, key, n * MS, 1, 0, ended=n * MS + 1, outcome="failed") for n, one in enumerate(processes)]

    assert broken(*failing(KEY, "a", "b"), *failing(KEY + 1, "a", "b"), rules=rules) == []
    assert broken(*failing(KEY, "a", "b"), *failing(KEY + 1, "a", "b", "c"), rules=rules) == []
    assert broken(*failing(KEY, "a", "b", "c"), *failing(KEY + 1, "a", "b", "c"), rules=rules) == ["P1", "P1"]


# P2


@pytest.mark.parametrize(
    ("outcome", "says"),
    [
        ("cancelled", "was cancelled though nobody had cancelled it"),
        ("unanswered", "was not answered in 4.0 ms"),
        ("broke", "failed though no load of its key had: why"),
        ("failed", "failed though no load of its key had: why"),
        ("wrong", "got a value that cannot be: why"),
    ],
)
def test_p2_what_must_not_become_of_a_caller(outcome: str, says: str) -> None:
    """Each is reported with what it was."""
    (violation,) = judged(read(10, 14, outcome=outcome, detail="why"))
    assert violation.rule == "P2"
    assert says in violation.message


@pytest.mark.parametrize("outcome", ["ok", "miss", "left"])
def test_p2_what_may(outcome: str) -> None:
    """An answer, none stored, and a cancellation of our own."""
    assert broken(read(10, 14, outcome=outcome)) == []


def test_p2_the_error_of_a_load() -> None:
    """A read may fail with a load of its key that failed while it waited; in another process only where that serves the fleet."""
    failed = read(10, 14, outcome="failed")
    assert broken(load(11, 13, outcome="failed"), failed) == []
    assert broken(load(5, 9, outcome="failed"), failed) == ["P2"]
    assert broken(load(11, 13), failed) == ["P2"]
    elsewhere = load(11, 13, process="b", outcome="failed")
    assert broken(elsewhere, failed) == ["P2"]
    assert broken(elsewhere, failed, rules=FLEET) == []
    much_later = read(2014, 2020, outcome="failed")
    assert broken(elsewhere, read(1013, 1020, outcome="failed"), rules=FLEET) == []
    assert broken(elsewhere, much_later, rules=FLEET) == ["P2"]


def test_p2_a_batch_fails_as_a_whole() -> None:
    """The load of one key of a batch fails it for all of them."""
    other = Read("a", 1, KEY + 1, 10 * MS, 14 * MS, None, "batch", "failed")
    failing = load(11, 13, outcome="failed")
    assert broken(failing, read(10, 14, outcome="failed", how="batch"), other) == []
    assert broken(failing, read(10, 14, outcome="failed", how="batch", id=2), other) == ["P2"]


def test_p2_patience() -> None:
    """A read takes no longer than allowed; pauses are added: of its own process, and where one waits for another, of any."""
    rules, fleet = Rules(patience=1.0), Rules(one_load="fleet", patience=1.0)
    assert broken(read(10, 1010, 1), rules=rules) == []
    assert broken(read(10, 1011, 1), rules=rules) == ["P2"]
    assert broken(read(10, 1011, outcome="late"), rules=rules) == ["P2"]
    pause = life("paused", 100), life("continued", 200)
    assert broken(read(10, 1110, 1), *pause, rules=rules) == []
    assert broken(read(10, 1111, 1), *pause, rules=rules) == ["P2"]
    assert broken(read(10, 1110, 1, process="b"), *pause, rules=rules) == ["P2"]
    assert broken(read(10, 1110, 1, process="b"), *pause, rules=fleet) == []


# The end


@pytest.mark.parametrize("what", ["flights", "tasks", "connections", "callers without an answer", "undecodable values"])
def test_what_a_process_leaves(what: str) -> None:
    """Whatever is left is reported; figures are not."""
    assert broken(End("a", 10, {what: 0, "errors": 3, "hits": 5})) == []
    (violation,) = judged(End("a", 10, {what: 2, "errors": 3}))
    assert (violation.rule, violation.message) == ("end", f"a ended with {what}: 2")


def test_a_process_that_has_to_be_ended() -> None:
    """A worker that did not end by itself."""
    assert broken(life("started", 1), life("killed", 2)) == []
    assert broken(life("lost", 10)) == ["end"]


def test_violations_come_in_the_order_of_time() -> None:
    """The earliest first, whatever they are."""
    assert broken(End("a", 1, {"tasks": 1}), act("type", 10, 12, 5), read(20, 21, 4), load(2, 3), load(4, 5)) == ["end", "P1", "P3"]


def test_what_goes_on_can_be_judged() -> None:
    """Only reads and loads of before a moment are judged, by everything that is known to have been begun."""
    history = History([read(13, 14, 4), read(15, 26, 4)], [load(5, None), load(24, None)], [act("type", 10, 12, 5)])
    seen = history.until(20 * MS)
    assert ([one.ended // MS for one in seen.reads], [one.begun // MS for one in seen.loads], len(seen.acts)) == ([14], [5], 1)


def test_how_long_callers_waited_after_the_load() -> None:
    """From the end of the first load of a round to each answer."""
    history = History([read(9, 14, 1), read(9, 16, 1, process="b"), read(9, 16, outcome="failed")], [load(10, 12)])
    assert answered_after_fill(history, [KEY]) == [2.0, 4.0]
    assert answered_after_fill(history, []) == []
