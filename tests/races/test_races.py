"""Several real processes over one real server: what is right passes, and what is planted is caught."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from tests.races.conductor import ROOT, Plan, run
from tests.races.faults import FAULTS
from tests.races.history import Log, read_logs
from tests.races.plan import PROFILES, Item, Target, actions, items, troubles
from tests.races.source import Source

NAMED_BY_THE_ISSUE = {
    "fill_without_fence", "generations_after_load", "join_after_fill_written", "verdict_ignored", "wakeup_lost", "unshielded_wait",
    "lease_not_renewed", "set_keeps_lease",
}  # fmt: skip


async def test_a_clean_run() -> None:
    """Four processes, with failing, slow and hanging loads, leaving callers, a kill and pauses: thousands of reads, no violation."""
    plan = Plan(seed=3, seconds=6, profile="mixed")
    befell = [trouble.what for trouble in troubles(plan.seed, PROFILES[plan.profile], plan.seconds, plan.processes)]
    assert {"kill", "pause"} <= set(befell), "choose another seed"
    report = await run(plan)
    assert not report.violations, str(report)
    assert len(report.history.reads) > 500
    assert {read.outcome for read in report.history.reads} >= {"ok", "miss", "failed", "left"}
    assert {load.outcome for load in report.history.loads} >= {"ok", "failed"}
    assert len({act.kind for act in report.history.acts}) > 10
    assert "Traceback" not in report.told


@pytest.mark.parametrize("one_load", ["process", "fleet"])
async def test_cold_keys_in_peace(one_load: str) -> None:
    """Four processes, 50 callers each, ask for a cold key at once: one load in each process, or in the fleet, where one
    that fails is tried once more. The counting is the checker's."""
    plan = Plan(seed=1, profile="herd", one_load=one_load)
    report = await run(plan)
    assert not report.violations, str(report)
    assert len(report.history.reads) == 2 * PROFILES["herd"].rounds * 4 * 50
    rules = plan.rules
    assert {load.key for load in report.history.loads} == rules.rounds | rules.failing_rounds


@pytest.mark.parametrize("name", FAULTS)
async def test_a_planted_fault_is_caught(name: str) -> None:
    """Each rule that is taken out of the library is seen by the checker, as a breach of what it serves."""
    fault = FAULTS[name]
    how = Plan(seed=1, seconds=fault.seconds, profile=fault.profile, one_load=fault.one_load, budget=fault.budget)
    report = await run(replace(how, plant=name, until_violation=True))
    assert fault.breaks in {violation.rule for violation in report.violations}, str(report)


def test_every_fault_that_the_issue_names() -> None:
    """Is planted."""
    assert set(FAULTS) >= NAMED_BY_THE_ISSUE


# The plan


@pytest.mark.parametrize("profile", PROFILES)
def test_a_plan_is_a_function_of_its_seed(profile: str) -> None:
    """The same seed, process and caller do the same; any other does something else."""

    def first(seed: int, process: str, caller: int) -> list[object]:
        return list(islice(actions(seed, process, caller, PROFILES[profile], items()), 50))

    same = first(3, "w1.0", 2)
    assert first(3, "w1.0", 2) == same
    assert all(other != same for other in (first(4, "w1.0", 2), first(3, "w2.0", 2), first(3, "w1.1", 2), first(3, "w1.0", 3)))


def test_troubles_are_a_function_of_the_seed() -> None:
    """They leave the last second in peace, and a calm profile has none."""
    befell = troubles(3, PROFILES["deaths"], 60, 4)
    assert befell == troubles(3, PROFILES["deaths"], 60, 4) != troubles(4, PROFILES["deaths"], 60, 4)
    assert {trouble.what for trouble in befell} == {"kill", "pause"}
    assert all(trouble.at < 58.5 for trouble in befell)
    assert troubles(3, PROFILES["calm"], 60, 4) == []


@pytest.mark.parametrize(
    ("target", "covered"),
    [
        (Target("type", "alpha"), "key price session"),
        (Target("tenant", tenant=1), "key price session"),
        (Target("user", user=5), "key page"),
        (Target("tag", tag="red"), "key page price session"),
        (Target("type_tenant", "brief", tenant=1), "key page"),
        (Target("type_user", "brief", user=5), "key page"),
        (Target("function", function="races.price"), "price"),
        (Target("pattern", "brief", pattern="pag*"), "page"),
        (Target("pattern", "alpha", pattern="*"), "key price session"),
        (Target("key", index=3), "price"),
    ],
    ids=str,
)
def test_what_a_target_covers(target: Target, covered: str) -> None:
    """Entries of these families, and not all there are."""
    all_items = items()
    meant = [item for item in all_items if target.covers(item)]
    assert {item.family for item in meant} == set(covered.split())
    assert 0 < len(meant) < len(all_items)


def test_a_tenant_of_a_type_covers_entries_with_none_known() -> None:
    """But the tenant of every type does not."""
    nobody = Item(1, "key", "alpha", None, None, "red")
    assert Target("type_tenant", "alpha", tenant=1).covers(nobody)
    assert not Target("tenant", tenant=1).covers(nobody)


# The source and the logs


@pytest.fixture
def source(tmp_path: Path) -> Iterator[list[Source]]:
    """The source as three processes see it."""
    made = [Source(tmp_path / "source", slots=3, keys=4, slot=slot) for slot in range(3)]
    yield made
    for one in made:
        one.close()


def test_the_source_is_shared(source: list[Source]) -> None:
    """A version counts what all processes have written, key by key."""
    assert [one.write(2) for one in source] == [1, 2, 3]
    assert source[0].write(3) == 1
    assert [[one.version(key) for key in range(4)] for one in source] == [[0, 0, 3, 1]] * 3


def test_the_time_of_the_run_is_shared(source: list[Source]) -> None:
    """It begins for all at once, and a stop only ever brings the end nearer."""
    assert [one.begins for one in source] == [0, 0, 0]
    source[0].begin(5, 100)
    source[1].stop(200)
    assert (source[2].begins, source[2].ends, source[2].is_urgent) == (5, 100, False)
    source[1].stop(50, urgently=True)
    assert (source[2].ends, source[2].is_urgent) == (50, True)


def test_a_torn_line_was_never_written(tmp_path: Path) -> None:
    """What comes before it counts."""
    log = Log(tmp_path / "log")
    log.write("read", 1, 7, 10, 20, 3, "load", "ok", "")
    log.close()
    with (tmp_path / "log").open("ab") as file:
        file.write(b'["read",2,7,1')
    (read,) = read_logs([("a", tmp_path / "log")]).reads
    assert (read.process, read.key, read.version) == ("a", 7, 3)


def test_a_process_without_a_log_did_nothing(tmp_path: Path) -> None:
    """It may have been killed before it had begun."""
    assert read_logs([("a", tmp_path / "none")]).reads == []


def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    """A process that is killed the moment after it wrote has written."""
    code = (
        "import os, signal, sys; from pathlib import Path; from tests.races.history import Log; from tests.races.source import Source\n"
        "directory = Path(sys.argv[1]); Source(directory / 'source', slots=1, keys=1).write(0)\n"
        "Log(directory / 'log').write('act', 1, 'key', '0', 5, [0], [1]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    (act,) = read_logs([("a", tmp_path / "log")]).acts
    assert (act.floors, act.returned, act.delivered) == ({0: 1}, None, None)
    source = Source(tmp_path / "source", slots=1, keys=1)
    assert source.version(0) == 1
    source.close()
