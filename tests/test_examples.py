"""The examples run as they stand, with warnings as errors, and say what they are there to show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PATIENTLY = """
import runpy, sys
from aiocache_aura.settings import Settings
Settings.__init__.__kwdefaults__["budget"] = 10.0  # for a machine that stalls
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def output(name: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AURA_")}
    command = [sys.executable, "-W", "error", "-c", PATIENTLY, f"examples/{name}.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_tested_and_says_how_to_run_it(path: Path) -> None:
    """Under 60 lines, its own command in its docstring, and a test in this module."""
    text = path.read_text()
    assert text.count("\n") < 60
    assert f"python examples/{path.name}" in text.split('"""')[1]
    assert f'output("{path.stem}")' in Path(__file__).read_text()


def test_a_hundred_callers_one_load() -> None:
    """One load for 100 callers, of whom the first leaves; a hit; one more load after an update."""
    assert output("00_hello") == [
        "100 callers, 1 load, 99 answers",
        "once more: 1 load",
        "after an update: 2 loads",
        "hits and misses: (1, 101)",
    ]


def test_routes_and_tenants() -> None:
    """A route's second answer comes from the cache, per tenant; an update clears its tenant's alone."""
    said = output("01_fastapi")
    assert [re.sub(r".*'tenant': '(\d)'.*'query': (\d).*", r"\1 \2", line) for line in said] == [
        "1 1",
        "1 1",
        "2 2",
        "updated by tenant 1",
        "1 3",
        "2 2",
    ]


def test_tenants_and_users_are_kept_apart() -> None:
    """Keys name the tenant and the user; nobody known is an error where one must be; clearing touches nobody else's."""
    assert output("02_multi_tenant") == [
        "by argument: shop:analytics:t1:@__main__.revenue:restaurant_id=i1 100 200",
        "by scope: shop:permissions:t1:uann:@__main__.rights ['read', 'write']",
        "another tenant's ann is cached: False",
        "nobody known: MissingTenantError",
        "tenant 1 cleared: 0 - tenant 2 untouched: 200",
        "ann logged out, cached: False",
    ]


def test_tags_clear_what_shows_the_dish() -> None:
    """One update clears the entries with its tags, in two types, and nothing else."""
    assert output("03_tags") == [
        "['Margherita', 'Marinara', 'Penne'] ['Margherita', 'Marinara'] ['Penne']",
        "['Margherita', 'Diavola', 'Penne'] ['Margherita', 'Diavola'] ['Penne']",
        "5 entries, 2 loaded again: dish 2 and its category",
    ]


def test_the_function_answers_without_its_server() -> None:
    """With the server gone every call is answered by the function, within the budget, and the invalidation says it was not delivered."""
    first, second, third, last = output("04_redis_down")
    assert first == "with the server: 2 calls, 1 load"
    slowest = re.fullmatch(r"without it: 100 calls answered by 100 loads, the slowest in (\d+) ms", second)
    assert slowest
    assert int(slowest[1]) < 5_000  # the budget is 1,000; the machine may be busy
    assert third == "errors counted: 100"
    assert last == "an invalidation says so: False"


def test_orm_rows_are_stored_as_models() -> None:
    """`returns=` makes models of rows for every caller; the entry is read without a session, and goes with the update."""
    dish = "DishOut(id=1, name='Margherita', price=Decimal('12.50'))"
    assert output("05_sqlalchemy") == [f"[{dish}] True (2, 1)", "13.00 (2, 2)"]


def test_a_reader_before_the_commit_keeps_nothing_old() -> None:
    """What it loads between invalidation and commit stays without `deferred()`, and is gone with it."""
    assert output("06_transactions") == [
        "without deferred() - cached: 10 in the database: 12",
        "with deferred() - cached: 14 in the database: 14",
    ]
