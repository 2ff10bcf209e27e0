"""The Redis store: what it writes, in which groups, and what it makes of the replies."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis
import pytest
from redis._parsers.base import BaseParser
from redis.crc import key_slot

from aiocache_aura.errors import BackendError, BackendTimeoutError
from aiocache_aura.resilience.single_flight import Tick
from aiocache_aura.stores import scripts
from aiocache_aura.stores.base import Command, Ear, Fill, Handler
from aiocache_aura.stores.connections import Endpoint
from aiocache_aura.stores.lanes import LaneLink
from aiocache_aura.stores.redis import BATCH_BYTES, RedisPort
from aiocache_aura.stores.scripts import life_ms
from tests.servers import Server

SOON = 5.0
TOKEN = bytes(range(16))
SCOPES = (b"p!g:y:menu", b"p!g:f:m.load")


@dataclass
class Group:
    commands: Sequence[Command]
    handler: Handler
    timeout: float
    repeatable: bool
    patient: bool

    @property
    def names(self) -> list[str]:
        return [str(command[0]) for command in self.commands]


@dataclass
class FakeLane:
    """Keeps what is put; a tick ends, and replies come, when the test says so. With `answer`, at the end of the tick."""

    groups: list[Group] = field(default_factory=list)
    answer: Callable[[Command], object] | None = None
    collects: list[Callable[[], None]] = field(default_factory=list)
    closed: BackendError | None = None

    def wake(self, collect: Callable[[], None], /) -> None:
        self.collects.append(collect)

    def put(self, commands: Sequence[Command], handler: Handler, *, timeout: float, repeatable: bool, patient: bool = False) -> None:
        if self.closed is not None:
            raise self.closed
        self.groups.append(Group(commands, handler, timeout, repeatable, patient))
        if self.answer is not None:
            asyncio.get_running_loop().call_soon(self._answer, self.groups[-1])

    def send(
        self, commands: Sequence[Command], *, timeout: float, repeatable: bool = False, patient: bool = False
    ) -> Awaitable[list[object]]:
        raise NotImplementedError

    def end_tick(self) -> list[Group]:
        collects, self.collects = self.collects, []
        for collect in collects:
            collect()
        for group in self.groups:
            group.handler.written()
        return self.groups

    def _answer(self, group: Group) -> None:
        assert self.answer is not None
        group.handler.written()
        group.handler.deliver([self.answer(command) for command in group.commands])


class FakeLink:
    def __init__(self, lanes: int = 1) -> None:
        self.reads = [FakeLane() for _ in range(lanes)]
        self.writes = FakeLane()
        self.closes, self.forgotten = 0, False

    def listen(self, channel: bytes, ear: Ear) -> None:
        return None

    async def aclose(self) -> None:
        self.closes += 1

    def forget(self) -> None:
        self.forgotten = True


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


@pytest.fixture
def tick() -> Tick:
    return Tick()


@pytest.fixture
def port(link: FakeLink, tick: Tick) -> RedisPort:
    return RedisPort(link, "p", budget=0.25, tick=tick, permit_life=30.0)


def _ok(command: Command) -> object:
    match command[0]:
        case "MGET":
            return [TOKEN] * (len(command) - 1)
        case "EVALSHA" if command[1] == scripts.PERMIT.sha1:
            return b"permit"
        case "EVALSHA" if command[1] == scripts.PLANT.sha1:
            return [TOKEN] * int(command[2])
        case "SCAN":
            return [b"0", []]
        case "SET" | "SCRIPT":
            return b"OK"
        case _:
            return 1


# Lookups


async def test_a_tick_is_one_mget(port: RedisPort, link: FakeLink, tick: Tick) -> None:
    """All lookups of a tick leave in one MGET, each key and each scope once, values first; the tick is taken when it is written."""
    futures = [port.lookup(key, SCOPES) for key in (b"p:a", b"p:b", b"p:a")]
    assert len(link.reads[0].collects) == 1
    (group,) = link.reads[0].end_tick()
    assert list(group.commands) == [("MGET", b"p:a", b"p:b", *SCOPES)]
    assert (group.timeout, group.repeatable, tick.now) == (0.25, True, 1)
    group.handler.deliver([[b"A", None, TOKEN, None]])
    found = [future.result() for future in futures]
    assert [raw for raw, _ in found] == [b"A", None, b"A"]
    assert len({id(tokens) for _, tokens in found}) == 1
    assert found[0][1].found == dict(zip(SCOPES, (TOKEN, None), strict=True))


async def test_a_later_tick_shares_nothing(port: RedisPort, link: FakeLink) -> None:
    """A lookup after the batch has left is never answered by it (M1)."""
    early = port.lookup(b"p:a", ())
    link.reads[0].end_tick()
    late = port.lookup(b"p:a", ())
    link.reads[0].groups[0].handler.deliver([[b"old"]])
    assert early.done()
    assert not late.done()
    assert len(link.reads[0].end_tick()) == 2


@pytest.mark.parametrize(("keys", "batches"), [(509, 1), (510, 1), (511, 2), (1021, 3)])
async def test_the_limit_of_a_batch(port: RedisPort, link: FakeLink, keys: int, batches: int) -> None:
    """A batch holds 512 keys and scopes; a fuller one is sealed, and all leave in the same tick with the scopes that they need."""
    for number in range(keys):
        port.lookup(b"p:%d" % number, SCOPES)
    port.lookup(b"p:%d" % (keys - 1), SCOPES)  # there already: needs no room
    groups = link.reads[0].end_tick()
    assert len(groups) == batches
    assert all(len(group.commands[0]) <= 513 and group.commands[0][-2:] == SCOPES for group in groups)
    assert sum(len(group.commands[0]) - 3 for group in groups) == keys


async def test_the_bytes_of_a_batch(port: RedisPort, link: FakeLink) -> None:
    """A batch holds 256 KiB of keys; a lookup that alone is above the limit still leaves, alone."""
    quarter = BATCH_BYTES // 4
    for letter in (b"a", b"b", b"c", b"d", b"e"):
        port.lookup(letter * quarter, ())
    port.lookup(b"f" * (BATCH_BYTES + 1), ())
    port.lookup(b"g", ())
    assert [len(group.commands[0]) - 1 for group in link.reads[0].end_tick()] == [4, 1, 1, 1]


async def test_a_lookup_of_very_many_scopes(port: RedisPort, link: FakeLink) -> None:
    """A key and its scopes are never parted, however many they are."""
    scopes = tuple(b"s%d" % number for number in range(600))
    port.lookup(b"p:a", SCOPES)
    port.lookup(b"p:b", scopes)
    port.lookup(b"p:c", SCOPES)
    assert [len(group.commands[0]) for group in link.reads[0].end_tick()] == [4, 602, 4]


async def test_different_scopes_in_one_batch(port: RedisPort, link: FakeLink) -> None:
    """Lookups with different scopes share a batch, each scope once, whatever their order."""
    for scopes in (SCOPES, SCOPES[:1], SCOPES, (*SCOPES, b"s"), ()):
        port.lookup(b"p:a", scopes)
    (group,) = link.reads[0].end_tick()
    assert list(group.commands) == [("MGET", b"p:a", *SCOPES, b"s")]


async def test_several_lanes(tick: Tick) -> None:
    """Over several read lanes a key always takes the same one, and every lane is used."""
    link = FakeLink(lanes=3)
    port = RedisPort(link, "p", budget=0.25, tick=tick)
    for number in range(200):
        port.lookup(b"p:%d" % number, ())
        port.lookup(b"p:%d" % number, SCOPES)
    groups = [group for lane in link.reads for group in lane.end_tick()]
    assert len(groups) == 3
    assert sum(len(group.commands[0]) - 3 for group in groups) == 200


WRONG = [
    [hiredis.ReplyError("LOADING Redis is loading the dataset in memory")],
    [[b"too", b"many", b"replies", b"by", b"far"]],
    [b"OK"],
    [None],
    [],
]


@pytest.mark.parametrize("replies", WRONG)
async def test_no_answer_fails_everybody(port: RedisPort, link: FakeLink, replies: list[object]) -> None:
    """An error, or a reply that is none to an MGET, is a BackendError for each caller, an object of its own."""
    futures = [port.lookup(key, SCOPES) for key in (b"p:a", b"p:b", b"p:a")]
    link.reads[0].end_tick()[0].handler.deliver(list(replies))
    errors = [future.exception() for future in futures]
    assert {type(error) for error in errors} == {BackendError}
    assert len({id(error) for error in errors}) == 3


async def test_a_lost_connection_fails_everybody(port: RedisPort, link: FakeLink) -> None:
    """What the lane says has happened reaches each caller, with its class and its cause."""
    futures = [port.lookup(key, SCOPES) for key in (b"p:a", b"p:a")]
    error = BackendTimeoutError("no answer")
    error.__cause__ = TimeoutError()
    link.reads[0].end_tick()[0].handler.fail(error)
    for future in futures:
        failed = future.exception()
        assert isinstance(failed, BackendTimeoutError)
        assert (str(failed), failed.__cause__) == ("no answer", error.__cause__)


async def test_a_lane_that_takes_nothing(port: RedisPort, link: FakeLink) -> None:
    """A lane that refuses a batch fails its callers; none is left waiting."""
    future = port.lookup(b"p:a", ())
    link.reads[0].closed = BackendError("closed")
    link.reads[0].end_tick()
    with pytest.raises(BackendError, match="closed"):
        await future


@pytest.mark.parametrize("replies", [[[b"A", b"B"]], [hiredis.ReplyError("ERR no")]])
async def test_cancelled_callers(port: RedisPort, link: FakeLink, replies: list[object]) -> None:
    """A caller that was cancelled is passed over; the others of its batch and of its key are answered."""
    cancelled, twin, other = port.lookup(b"p:a", ()), port.lookup(b"p:a", ()), port.lookup(b"p:b", ())
    cancelled.cancel()
    link.reads[0].end_tick()[0].handler.deliver(replies)
    assert cancelled.cancelled()
    assert all(future.done() and (future.exception() is None) == isinstance(replies[0], list) for future in (twin, other))


# What is written


async def test_a_claim_is_one_group(port: RedisPort, link: FakeLink) -> None:
    """A claim is a PERMIT for each key and one PLANT over all scopes, written once: planted twice it would come back to life (M6)."""
    link.writes.answer = _ok
    claims = await port.claim([(b"p:a", SCOPES), (b"p:b", SCOPES[:1])], life=60.0, timeout=1.0)
    (group,) = link.writes.groups
    assert group.names == ["EVALSHA"] * 3
    assert group.commands[0][1:4] + group.commands[0][5:] == (scripts.PERMIT.sha1, 1, b"p!p:{p:a}", 30_000)
    assert group.commands[2][:7] == ("EVALSHA", scripts.PLANT.sha1, 2, *SCOPES, 120_000, 240_000)
    assert (group.repeatable, group.patient) == (False, False)
    assert [claim.permit for claim in claims] == [b"permit", b"permit"]
    assert claims[0].tokens is claims[1].tokens


async def test_random_tokens_are_used_once(port: RedisPort, link: FakeLink) -> None:
    """No two claims, keys or scopes are ever offered the same bytes."""
    link.writes.answer = _ok
    for _ in range(2):
        await port.claim([(b"p:a", SCOPES), (b"p:b", SCOPES)], life=None, timeout=1.0)
    offered = [group.commands[at][4] for group in link.writes.groups for at in (0, 1)]
    offered += [token for group in link.writes.groups for token in group.commands[2][-2:]]
    assert len(set(offered)) == 8
    assert {len(token) for token in offered if isinstance(token, bytes)} == {16}


async def test_a_fill_is_one_group(port: RedisPort, link: FakeLink, tick: Tick) -> None:
    """Fills and the look at their generations are one write; `written` is called when it leaves, the tick taken when it is answered."""
    fills = [Fill(key, b"raw", 1.5, b"permit", SCOPES) for key in (b"p:a", b"p:b")]
    calls: list[str] = []
    task = asyncio.ensure_future(port.fill(fills, written=lambda: calls.append("written"), timeout=1.0))
    await asyncio.sleep(0)
    (group,) = link.writes.groups
    assert group.commands[0] == ("EVALSHA", scripts.FILL.sha1, 2, b"p:a", b"p!p:{p:a}", b"permit", b"raw", 1500)
    assert group.commands[2] == ("MGET", *SCOPES)
    assert (group.names, group.repeatable, calls) == (["EVALSHA", "EVALSHA", "MGET"], True, [])
    group.handler.written()
    assert (calls, tick.now) == (["written"], 0)
    group.handler.deliver([1, 0, [TOKEN, TOKEN]])
    assert tick.now == 1
    assert [verdict.accepted for verdict in await task] == [True, False]


async def test_what_a_write_may_wait_for(port: RedisPort, link: FakeLink) -> None:
    """Removing and overwriting may be repeated, and wait for a connection; what depends on what is there is written once."""
    link.writes.answer = _ok
    await port.store([(b"p:a", b"raw", None), (b"p:b", b"raw", 0.25)], timeout=1.0)
    await port.delete([b"p:a", b"p:b"], timeout=1.0)
    await port.invalidate(SCOPES, timeout=1.0)
    await port.store_if(b"p:a", b"raw", None, seen=None, timeout=1.0)
    await port.expire(b"p:a", b"raw", None, seen=b"raw", timeout=1.0)
    await port.generations(SCOPES, life=None, timeout=1.0)
    groups = link.writes.groups
    assert groups[0].commands == [
        ("UNLINK", b"p!p:{p:a}", b"p!p:{p:b}"),
        ("SET", b"p:a", b"raw"),
        ("SET", b"p:b", b"raw", "PX", 250),
    ]
    assert groups[1].commands == [("UNLINK", b"p!p:{p:a}", b"p!p:{p:b}"), ("UNLINK", b"p:a", b"p:b")]
    assert groups[2].commands == [("DEL", *SCOPES)]
    assert [(group.repeatable, group.patient) for group in groups] == [(True, True)] * 3 + [(False, True)] * 2 + [(False, False)]


async def test_every_write_takes_the_tick(port: RedisPort, link: FakeLink, tick: Tick) -> None:
    """The tick is taken once for each answer, before whoever waits for it runs (M21)."""
    link.writes.answer = _ok
    for done, write in enumerate((port.store([(b"p:a", b"r", None)], timeout=1.0), port.delete([b"p:a"], timeout=1.0)), start=1):
        await write
        assert tick.now == done


async def test_a_purge_scans_twice(port: RedisPort, link: FakeLink) -> None:
    """Permits are swept before values (M11); keys that are not values of the prefix are never removed, whatever `matches` says."""
    found = {b"p!p:{*}": [b"p!p:{p:a}", b"p!p:{p:b}", b"p!p:odd"], b"*": [b"p:a", b"p!g:y:menu", b"p!p:{p:c}", b"q:a"]}
    link.writes.answer = lambda command: [b"0", found[bytes(command[3])]] if command[0] == "SCAN" else len(command) - 1  # type: ignore[arg-type]
    assert await port.purge(b"*", lambda key: key != b"p:b", timeout=1.0) == 1
    assert [command for group in link.writes.groups for command in group.commands] == [
        ("SCAN", b"0", "MATCH", b"p!p:{*}", "COUNT", 500),
        ("UNLINK", b"p!p:{p:a}"),
        ("SCAN", b"0", "MATCH", b"*", "COUNT", 500),
        ("UNLINK", b"p:a"),
    ]


async def test_a_purge_is_not_carried_over(port: RedisPort, link: FakeLink) -> None:
    """A cursor means nothing to another server: a sweep under way neither waits for a connection nor is written again."""
    replies = iter([[b"17", [b"p!p:{p:a}"]], [b"0", []], [b"0", []]])
    link.writes.answer = lambda command: next(replies) if command[0] == "SCAN" else 1
    await port.purge(b"p:*", lambda key: True, timeout=1.0)
    assert [(group.names, group.repeatable, group.patient) for group in link.writes.groups] == [
        (["SCAN"], False, True),
        (["UNLINK", "SCAN"], False, False),
        (["SCAN"], False, True),
    ]


async def test_a_prefix_with_glob_characters(link: FakeLink, tick: Tick) -> None:
    """A prefix is meant literally in the pattern for permits."""
    link.writes.answer = _ok
    await RedisPort(link, r"a*b?c\d", budget=0.25, tick=tick).purge(b"glob*", lambda key: True, timeout=1.0)
    assert link.writes.groups[0].commands[0][3] == rb"a\*b\?c\\d!p:{glob*}"


def test_a_key_and_its_permit_share_a_slot(port: RedisPort) -> None:
    """On a cluster the scripts that touch both find them on one node."""
    for key in (b"p:menu:=a", "p:menu:=ключ".encode(), b"p:x:" + os.urandom(8).hex().encode()):
        assert key_slot(port._permit(key)) == key_slot(key)


async def test_closing(port: RedisPort, link: FakeLink) -> None:
    """Closing and forgetting are the link's; what was gathered and has not left is forgotten with it."""
    port.lookup(b"p:a", ())
    port.forget()
    assert link.forgotten
    assert link.reads[0].end_tick() == []
    await port.aclose()
    assert link.closes == 1


# Errors


def _parsed(error: str) -> Exception:
    """What redis-py makes of an error reply; the version installed may or may not keep its code."""
    return BaseParser.parse_error(error)


ADVISED = [
    (hiredis.ReplyError("OOM command not allowed when used memory > 'maxmemory'."), "OOM", "maxmemory-policy"),
    (_parsed("OOM command not allowed when used memory > 'maxmemory'."), "OOM command", "maxmemory"),
    (_parsed("NOPERM User app has no permissions to run the 'unlink' command"), "NOPERM", "allow this user"),
    (hiredis.ReplyError("NOPERM User app has no permissions to run the 'unlink' command"), "NOPERM", "allow this user"),
    (hiredis.ReplyError("READONLY You can't write against a read only replica."), "READONLY", "master"),
    (_parsed("LOADING Redis is loading the dataset in memory"), "LOADING", "try again"),
    (hiredis.ReplyError("WRONGTYPE Operation against a key holding the wrong kind of value"), "WRONGTYPE", "prefix"),
    (hiredis.ReplyError("ERR something new"), "ERR something new", ""),
]


@pytest.mark.parametrize(("error", "said", "advice"), ADVISED)
async def test_what_the_server_said(port: RedisPort, link: FakeLink, error: Exception, said: str, advice: str) -> None:
    """An error reply anywhere is a BackendError that names the command, what the server said, and what to do if that is clear."""
    link.writes.answer = lambda command: error if command[0] == "UNLINK" else _ok(command)
    with pytest.raises(BackendError) as raised:
        await port.store([(b"p:a", b"raw", None)], timeout=1.0)
    assert type(raised.value) is BackendError
    assert str(raised.value).startswith(f"UNLINK: the server said: {said}")
    assert advice in str(raised.value)
    assert raised.value.__cause__ is error


async def test_a_script_is_named(port: RedisPort, link: FakeLink) -> None:
    """An error of a script names the script."""
    link.writes.answer = lambda command: hiredis.ReplyError("BUSY Redis is busy running a script")
    with pytest.raises(BackendError, match=r"^FILL \(EVALSHA\): the server said: BUSY .*SCRIPT KILL"):
        await port.fill([Fill(b"p:a", b"raw", None, b"permit", ())], written=lambda: None, timeout=1.0)


@pytest.mark.parametrize("reply", [b"OK", None, [TOKEN], [TOKEN] * 3])
async def test_tokens_of_the_wrong_shape(port: RedisPort, link: FakeLink, reply: object) -> None:
    """A reply that cannot be the tokens of these scopes is an error, and its content is not shown."""
    link.writes.answer = lambda command: reply
    with pytest.raises(BackendError, match="unexpected"):
        await port.generations(SCOPES, life=None, timeout=1.0)


@pytest.mark.parametrize("reply", [b"OK", [b"0"], [0, []], [b"0", [1]]])
async def test_a_scan_of_the_wrong_shape(port: RedisPort, link: FakeLink, reply: object) -> None:
    """So is a reply that is none to a SCAN."""
    link.writes.answer = lambda command: reply
    with pytest.raises(BackendError, match="SCAN"):
        await port.purge(b"p:*", lambda key: True, timeout=1.0)


async def test_unknown_scripts_are_sent_again(port: RedisPort, link: FakeLink) -> None:
    """Only scripts that the server did not know are sent again, each source once, and behind them the look at the generations."""
    known: set[object] = set()

    def answer(command: Command) -> object:
        if command[0] == "SCRIPT":
            known.add(command[2])
        if command[0] == "EVALSHA" and scripts.FILL.source not in known and command[3] != b"p:b":
            return _parsed("NOSCRIPT No matching script.")
        return _ok(command)

    link.writes.answer = answer
    fills = [Fill(key, b"raw", None, b"permit", SCOPES) for key in (b"p:a", b"p:b", b"p:c")]
    verdicts = await port.fill(fills, written=lambda: None, timeout=1.0)
    assert [verdict.accepted for verdict in verdicts] == [True] * 3
    first, second = link.writes.groups
    assert second.commands == [scripts.FILL.load(), first.commands[0], first.commands[2], first.commands[3]]
    assert second.timeout <= first.timeout


async def test_a_script_that_stays_unknown(port: RedisPort, link: FakeLink) -> None:
    """A server that forgets the script at once is an error, not a loop."""
    link.writes.answer = lambda command: hiredis.ReplyError("NOSCRIPT No matching script") if command[0] == "EVALSHA" else b"OK"
    with pytest.raises(BackendError, match="PLANT"):
        await port.generations(SCOPES, life=None, timeout=1.0)
    assert len(link.writes.groups) == 2


@pytest.mark.parametrize(
    ("life", "expected"), [(None, 0), (0.0, 1), (-5.0, 1), (0.0001, 1), (0.0015, 2), (1.0, 1000), (1e30, 10**14), (float("inf"), 10**14)]
)
def test_life_in_milliseconds(life: float | None, expected: int) -> None:
    """A life is a whole number of milliseconds that every server takes; 0 stands for ever."""
    assert life_ms(life) == expected
    assert type(life_ms(life)) is int


# On real servers


@pytest.fixture
async def served(server: Server, tick: Tick) -> AsyncIterator[RedisPort]:
    port = RedisPort(LaneLink(Endpoint.from_url(server.url)), "p", budget=SOON, tick=tick, permit_life=30.0)
    yield port
    await port.aclose()


async def test_commands_of_a_load(served: RedisPort, server: Server) -> None:
    """A hit is one command; a miss without a lease five in three round trips: MGET; EVALSHA, EVALSHA; EVALSHA, MGET."""
    await _load(served)  # the scripts are known now
    with server.client() as client:
        client.config_resetstat()
        await served.delete([b"p:a"], timeout=SOON)
        await _load(served)
        await served.lookup(b"p:a", SCOPES)
        stats: dict[str, Any] = client.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}
    expected = {"mget": 1 + 1 + 1 + 1, "evalsha": 3, "unlink": 2}  # one MGET is PLANT's own
    assert {name: calls[name] for name in expected} == expected


async def _load(port: RedisPort) -> None:
    await port.lookup(b"p:a", SCOPES)
    (claim,) = await port.claim([(b"p:a", SCOPES)], life=60.0, timeout=SOON)
    await port.fill([Fill(b"p:a", b"raw", 60.0, claim.permit, SCOPES)], written=lambda: None, timeout=SOON)


async def test_script_flush(served: RedisPort, server: Server) -> None:
    """After SCRIPT FLUSH every script is sent again, and its call succeeds."""
    with server.client() as client:
        for _ in range(2):
            client.script_flush()
            (claim,) = await served.claim([(b"p:a", SCOPES)], life=60.0, timeout=SOON)
            client.script_flush()
            fill = Fill(b"p:a", b"raw", 60.0, claim.permit, SCOPES)
            (verdict,) = await served.fill([fill], written=lambda: None, timeout=SOON)
            assert verdict.accepted
            assert verdict.tokens.fingerprint(SCOPES) == claim.tokens.fingerprint(SCOPES)
            client.script_flush()
            assert await served.store_if(b"p:a", b"new", 60.0, seen=b"raw", timeout=SOON)
            client.script_flush()
            assert await served.expire(b"p:a", b"newer", 60.0, seen=b"new", timeout=SOON)
            assert client.get("p:a") == b"newer"


async def test_the_life_of_tokens(served: RedisPort, server: Server) -> None:
    """A token lives twice as long as entries and a minute; it is prolonged only when less than one such life is left (M8)."""
    (scope,) = scopes = SCOPES[:1]
    with server.client() as client:
        await served.generations(scopes, life=40.0, timeout=SOON)
        assert 199_000 < client.pttl(scope) <= 200_000
        client.pexpire(scope, 101_000)
        await served.generations(scopes, life=40.0, timeout=SOON)
        assert client.pttl(scope) <= 101_000
        client.pexpire(scope, 99_000)
        before = client.get(scope)
        await served.generations(scopes, life=40.0, timeout=SOON)
        assert 199_000 < client.pttl(scope) <= 200_000
        await served.generations(scopes, life=1.0, timeout=SOON)
        assert client.pttl(scope) > 199_000
        await served.generations(scopes, life=None, timeout=SOON)
        assert client.pttl(scope) == -1
        await served.generations(scopes, life=1.0, timeout=SOON)
        assert client.pttl(scope) == -1
        assert client.get(scope) == before


async def test_the_life_of_a_softened_token(served: RedisPort, server: Server) -> None:
    """A soft invalidation keeps a token's time to live, plants nothing, and leaves alone what is no token."""
    with server.client() as client:
        await served.generations(SCOPES, life=60.0, timeout=SOON)
        client.pexpire(SCOPES[0], 50_000)
        await served.invalidate([*SCOPES, b"p!g:none"], timeout=SOON, soft=True)
        assert 45_000 < client.pttl(SCOPES[0]) <= 50_000
        assert client.exists("p!g:none") == 0
        for odd in (b"short", bytes(15), bytes(17)):
            client.set(SCOPES[0], odd)
            await served.invalidate(SCOPES, timeout=SOON, soft=True)
            assert client.get(SCOPES[0]) == odd
        client.delete(SCOPES[0])
        client.rpush(SCOPES[0], "x")
        before = client.get(SCOPES[1])
        await served.invalidate(SCOPES, timeout=SOON, soft=True)
        assert client.llen(SCOPES[0]) == 1
        assert client.get(SCOPES[1]) != before


async def test_a_permit_ends(served: RedisPort, server: Server) -> None:
    """A load that takes longer than a permit lives is refused; each claim of the key renews it."""
    (claim,) = await served.claim([(b"p:a", ())], life=60.0, timeout=SOON)
    fill = Fill(b"p:a", b"raw", 60.0, claim.permit, ())
    with server.client() as client:
        (permit,) = client.keys("p!p:*")
        for _ in range(2):
            assert 20_000 < client.pttl(permit) <= 30_000
            client.pexpire(permit, 20_000)
            assert (await served.claim([(b"p:a", ())], life=60.0, timeout=SOON))[0].permit == claim.permit
        assert 20_000 < client.pttl(permit) <= 30_000
        assert (await served.fill([fill], written=lambda: None, timeout=SOON))[0].accepted
        client.pexpire(permit, 1)
        while client.exists(permit):
            await asyncio.sleep(0.001)
    assert not (await served.fill([fill], written=lambda: None, timeout=SOON))[0].accepted


async def test_a_permit_lasts_for_the_longest_load(served: RedisPort, server: Server) -> None:
    """Of those who share a permit the one that may take longest decides how long it is good."""
    with server.client() as client:
        for within in (None, 40.0, None, 20.0):
            await served.claim([(b"p:a", ())], life=60.0, timeout=SOON, within=within)
        assert 35_000 < client.pttl("p!p:{p:a}") <= 40_000


async def test_what_is_not_ours(served: RedisPort, server: Server) -> None:
    """A key of another kind in a value's place is a miss, and is left alone by what compares; in a scope's place it is replaced."""
    with server.client() as client:
        for key in (b"p:a", *SCOPES):
            client.rpush(key, "x")
        raw, tokens = await served.lookup(b"p:a", SCOPES)
        assert (raw, tokens.missing(SCOPES)) == (None, list(SCOPES))
        for seen in (None, b"", b"x"):
            assert not await served.store_if(b"p:a", b"raw", 60.0, seen=seen, timeout=SOON)
        assert not await served.expire(b"p:a", b"raw", 60.0, seen=b"x", timeout=SOON)
        client.set(SCOPES[1], "a text")
        assert (await served.generations(SCOPES, life=60.0, timeout=SOON)).fingerprint(SCOPES) is not None
        await _load(served)
        assert client.get("p:a") == b"raw"


async def test_a_server_without_memory(own_server: Callable[..., Server]) -> None:
    """A server that is out of memory refuses claims, in words that help, and still answers lookups and removes."""
    server = own_server("--maxmemory", "1mb", "--maxmemory-policy", "noeviction")
    port = RedisPort(LaneLink(Endpoint.from_url(server.url)), "p", budget=SOON, tick=Tick())
    with pytest.raises(BackendError, match="OOM.*maxmemory-policy"):
        await port.claim([(b"p:a", SCOPES)], life=60.0, timeout=SOON)
    assert (await port.lookup(b"p:a", SCOPES))[0] is None
    await port.invalidate(SCOPES, timeout=SOON)
    assert await port.delete([b"p:a"], timeout=SOON) == 0
    await port.aclose()


async def test_a_user_without_rights(own_server: Callable[..., Server]) -> None:
    """A command that the user may not run is named, with what to do about it."""
    server = own_server()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~p*", "+@all", "-unlink")
    port = RedisPort(LaneLink(Endpoint.from_url(server.url.replace("//", "//app:pw@"))), "p", budget=SOON, tick=Tick())
    with pytest.raises(BackendError, match="UNLINK: the server said: NOPERM.*ACL SETUSER"):
        await port.delete([b"p:a"], timeout=SOON)
    await port.aclose()


async def test_loads_against_everything(served: RedisPort) -> None:
    """Whatever loads, deletes, sets and purges cross, once one of these has returned no value from before it is there (P3)."""
    source, floor = 0, 0

    async def load() -> None:
        for _ in range(60):
            (claim,) = await served.claim([(b"p:a", SCOPES)], life=60.0, timeout=SOON)
            loaded = source
            await asyncio.sleep(0)
            await served.fill([Fill(b"p:a", b"%d" % loaded, 60.0, claim.permit, SCOPES)], written=lambda: None, timeout=SOON)

    async def void() -> None:
        nonlocal source, floor
        for number in range(60):
            source += 1
            now = source
            if number % 3 == 0:
                await served.delete([b"p:a"], timeout=SOON)
            elif number % 3 == 1:
                await served.store([(b"p:a", b"%d" % now, 60.0)], timeout=SOON)
            else:
                await served.purge(b"p:*", lambda key: True, timeout=SOON)
            floor = now
            raw, _ = await served.lookup(b"p:a", SCOPES)
            assert raw is None or int(raw) >= floor

    await asyncio.gather(load(), load(), load(), void())
