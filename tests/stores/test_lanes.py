"""A multiplexed lane against a server that says what the test tells it to, and against a real one behind a proxy that breaks things."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import time
import traceback
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import hiredis
import pytest

from aiocache_aura import CacheManager, cache
from aiocache_aura.errors import BackendError, BackendTimeoutError
from aiocache_aura.stores import connections, lanes
from aiocache_aura.stores.base import Command
from aiocache_aura.stores.commands import COMMANDS
from aiocache_aura.stores.connections import Endpoint
from aiocache_aura.stores.lanes import LaneLink, MultiplexedLane, State
from tests.clocks import running_time
from tests.proxy import HELLO, FaultProxy, ScriptedServer, array, bulk, echo, flipped, greet, silent
from tests.servers import Server

SOON = 10.0
GET = [("GET", b"k")]


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as made:
        yield made


@pytest.fixture
async def lane(server: ScriptedServer) -> AsyncIterator[MultiplexedLane]:
    made = MultiplexedLane(Endpoint.from_url(server.url))
    yield made
    await made.aclose()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes that lose patience, and try again, ten times sooner."""
    monkeypatch.setattr(lanes, "STUCK_AFTER", 0.1)
    monkeypatch.setattr(lanes, "LATE_AFTER", 0.5)
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT", 2.0)
    monkeypatch.setattr(lanes, "BACKOFF_FIRST", 0.005)
    monkeypatch.setattr(lanes, "BACKOFF_MOST", 0.02)


class Told:
    """A handler that keeps what it is told."""

    def __init__(self, *, believes: bool = True) -> None:
        self.believes = believes
        self.writes = 0
        self.ends: list[Any] = []
        self.ended = asyncio.Event()

    def written(self) -> None:
        self.writes += 1

    def deliver(self, replies: list[object]) -> bool:
        self.ends.append(replies)
        self.ended.set()
        return self.believes

    def fail(self, error: BackendError) -> None:
        self.ends.append(error)
        self.ended.set()


class Spy:
    """Counts what a lane writes."""

    def __init__(self, lane: MultiplexedLane) -> None:
        assert lane._transport is not None
        self._transport, self.writes = lane._transport, 0
        lane._transport = self  # type: ignore[assignment]

    def write(self, data: bytes) -> None:
        self.writes += 1
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def ready(lane: MultiplexedLane) -> MultiplexedLane:
    assert await lane.send([("PING",)], timeout=SOON) != []
    return lane


# Writing and matching


async def test_nothing_is_connected_before_the_first_command(server: ScriptedServer, lane: MultiplexedLane) -> None:
    """A lane is idle until it is used, and then connects once for all who ask."""
    assert lane.state is State.IDLE
    assert server.peers == []
    replies = await asyncio.gather(*(lane.send([("GET", b"%d" % n)], timeout=SOON) for n in range(100)))
    assert replies == [[b"%d" % n] for n in range(100)]
    assert len(server.peers) == 1
    assert lane.state is State.READY


async def test_a_tick_is_one_write(lane: MultiplexedLane) -> None:
    """What is put and collected in one tick of the loop leaves in one write, in order; what is put later in another."""
    await ready(lane)
    spy = Spy(lane)
    first, last = Told(), Told()
    lane.put([("GET", b"a"), ("GET", b"b")], first, timeout=SOON, repeatable=False)
    lane.wake(lambda: lane.put([("GET", b"d")], last, timeout=SOON, repeatable=False))
    single = lane.send([("GET", b"c")], timeout=SOON)
    assert await single == [b"c"]
    await last.ended.wait()
    assert (first.ends, last.ends) == ([[b"a", b"b"]], [[b"d"]])
    assert spy.writes == 1
    await lane.send(GET, timeout=SOON)
    assert spy.writes == 2


async def test_a_collector_that_raises_does_not_stop_the_lane(lane: MultiplexedLane) -> None:
    """The tick of a collector that raises is lost, the lane is not."""
    await ready(lane)
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: said.append(context))
    lane.wake(lambda: 1 / 0)
    await asyncio.sleep(0)
    assert await lane.send(GET, timeout=SOON) == [b"k"]
    assert [type(context["exception"]) for context in said] == [ZeroDivisionError]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_replies_in_pieces(server: ScriptedServer, lane: MultiplexedLane, size: int) -> None:
    """Replies that come in pieces of any size, across group boundaries, reach their groups in order."""
    await ready(lane)
    server.answer = silent
    groups = [lane.send([("GET", b"%d" % n)] * (n % 3 + 1), timeout=SOON) for n in range(6)]
    peer = await server.heard(1 + sum(n % 3 + 1 for n in range(6)))
    stream = b"".join(map(echo, peer.commands[1:]))
    for start in range(0, len(stream), size):
        lane.data_received(stream[start : start + size])
    assert [await group for group in groups] == [[b"%d" % n] * (n % 3 + 1) for n in range(6)]


async def test_replies_of_every_kind(server: ScriptedServer, lane: MultiplexedLane) -> None:
    """Every RESP3 type is one reply: `#f` and null among them, and errors are values, inside arrays too."""
    kinds = [
        b"#f\r\n",
        b"#t\r\n",
        b"_\r\n",
        b":5\r\n",
        b",1.5\r\n",
        b"+OK\r\n",
        b"$0\r\n\r\n",
        b"*0\r\n",
        b"%1\r\n+a\r\n:1\r\n",
        b"~1\r\n:1\r\n",
    ]
    errors = [b"-ERR no\r\n", b"*2\r\n-ERR inner\r\n$1\r\nx\r\n"]
    await ready(lane)
    said = iter([*kinds, *errors, bulk(b"last")])
    server.answer = lambda command: next(said)
    futures = [lane.send([("GET", b"%d" % n)], timeout=SOON) for n in range(len(kinds) + len(errors) + 1)]
    replies = [(await future)[0] for future in futures]
    assert replies[:10] == [False, True, None, 5, 1.5, b"OK", b"", [], {b"a": 1}, [1]]
    assert isinstance(replies[10], hiredis.ReplyError)
    assert isinstance(replies[11], list)
    assert isinstance(replies[11][0], hiredis.ReplyError)
    assert (str(replies[11][0]), replies[11][1], replies[12]) == ("ERR inner", b"x", b"last")


async def test_pushes_are_no_replies(server: ScriptedServer) -> None:
    """Push frames before, between and behind replies go to the push hook, or nowhere, and shift nothing."""
    push = b">2\r\n+invalidate\r\n*1\r\n+key\r\n"
    server.answer = lambda command: push + (echo(command) or b"") + push
    for on_push in (None, list[object]().append):
        lane = MultiplexedLane(Endpoint.from_url(server.url), on_push=on_push)
        assert await asyncio.gather(*(lane.send([("GET", b"%d" % n)], timeout=SOON) for n in range(3))) == [[b"0"], [b"1"], [b"2"]]
        if on_push is not None:
            assert len(on_push.__self__) == 6  # type: ignore[attr-defined]
        await lane.aclose()


async def test_a_push_that_comes_before_anything_is_asked(server: ScriptedServer, lane: MultiplexedLane) -> None:
    """A push right behind the handshake does not end up as the first reply: that connection is given up, the next one serves."""
    server.greet = lambda command: HELLO + b">1\r\n+hello\r\n" if command == [b"HELLO"] and len(server.peers) == 1 else greet(command)
    with pytest.raises(BackendError, match="taken over"):
        await lane.send(GET, timeout=SOON)
    await server.until(lambda: server.last.lost)
    assert await lane.send(GET, timeout=SOON, patient=True) == [b"k"]


async def test_a_late_reply_is_swallowed(server: ScriptedServer, lane: MultiplexedLane) -> None:
    """A group whose time is up fails alone and in time; its reply, when it comes, is given to nobody else."""
    await ready(lane)
    server.answer = silent
    late = lane.send([("GET", b"late"), ("GET", b"late2")], timeout=0.02)
    other = lane.send([("GET", b"other")], timeout=SOON)
    peer = await server.heard(4)
    with pytest.raises(BackendTimeoutError):
        await late
    peer.say(bulk(b"late"), bulk(b"late2"), bulk(b"other"))
    assert await other == [b"other"]
    assert lane.state is State.READY


async def test_a_cancelled_caller_leaves_its_place(server: ScriptedServer, lane: MultiplexedLane) -> None:
    """Cancelled before or after the write, a caller's reply goes nowhere and the others' come to them."""
    await ready(lane)
    calls = [lane.send([("GET", b"%d" % n)], timeout=SOON) for n in range(6)]
    calls[1].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    calls[4].cancel()
    kept = [0, 2, 3, 5]
    assert [await calls[n] for n in kept] == [[b"%d" % n] for n in kept]


async def test_each_handler_is_told_once(server: ScriptedServer, lane: MultiplexedLane) -> None:
    """A handler hears of one end only: the deadline, the late reply, a loss and the close add up to one failure."""
    await ready(lane)
    server.answer = silent
    told = Told()
    lane.put(GET, told, timeout=0.01, repeatable=True)
    await told.ended.wait()
    server.last.say(bulk(b"k"))
    server.last.transport.abort()
    await server.until(lambda: server.last.lost)
    await lane.aclose()
    assert len(told.ends) == 1
    assert isinstance(told.ends[0], BackendTimeoutError)
    assert told.writes == 1


async def test_one_timer(server: ScriptedServer, lane: MultiplexedLane) -> None:
    """However many groups wait, the lane has one timer, at the earliest of their deadlines; each fails at its own."""
    timeouts = [0.6, 0.2, 0.4]
    await ready(lane)
    server.answer = silent
    before = {handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()}  # type: ignore[attr-defined]
    began, ran = time.perf_counter(), running_time()
    ends: dict[float, tuple[float, float]] = {}
    groups = []
    for timeout in timeouts:
        future = lane.send(GET, timeout=timeout)
        future.add_done_callback(lambda done, at=timeout: ends.update({at: (time.perf_counter() - began, running_time() - ran)}))
        groups.append(future)
        await asyncio.sleep(0)
    timers = [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled() and handle not in before]  # type: ignore[attr-defined]
    assert len(timers) == 1
    for group in groups:
        with pytest.raises(BackendTimeoutError):
            await group
    await asyncio.sleep(0)
    assert sorted(ends) == sorted(timeouts)
    assert all(passed >= timeout - 0.01 and ran < timeout + 0.15 for timeout, (passed, ran) in ends.items())


# Refusals


@pytest.mark.parametrize(
    "name", ["BLPOP", "SUBSCRIBE", "WAIT", "HELLO", "RESET", "MULTI", "SELECT", "AUTH", "MONITOR", "get", "XREAD", "CLIENT"]
)
async def test_commands_that_are_not_for_a_lane(server: ScriptedServer, lane: MultiplexedLane, name: str) -> None:
    """What blocks, changes the connection, or is not answered by one reply is refused before anything is written."""
    with pytest.raises(ValueError, match=name):
        lane.send([("GET", b"k"), (name, b"x")], timeout=SOON)
    assert server.peers == []
    assert await lane.send(GET, timeout=SOON) == [b"k"]
    assert server.names == ["GET"]


async def test_every_command_of_the_list_is_answered_by_one_reply(valkey: Server) -> None:
    """Each listed command, even with arguments that the server refuses, gets exactly one reply from a real server."""
    lane = MultiplexedLane(Endpoint.from_url(valkey.url))
    for name in sorted(COMMANDS):
        replies = await lane.send([(name, b"x"), ("ECHO", name.encode())], timeout=SOON)
        assert replies[1] == name.encode()
    await lane.aclose()


@pytest.mark.parametrize("argument", [None, True, 1.5j, bytearray(b"x"), ["x"]])
async def test_arguments_that_cannot_be_packed(lane: MultiplexedLane, argument: Any) -> None:
    """An argument that is no text, bytes or number is the caller's error, at once, and harms no other group."""
    group = lane.send(GET, timeout=SOON)
    with pytest.raises((TypeError, ValueError)):
        lane.send([("GET", argument)], timeout=SOON)
    assert await group == [b"k"]


# Lost connections


async def test_lost_before_the_answer(server: ScriptedServer, lane: MultiplexedLane) -> None:
    """Of the groups that were written, the repeatable ones are written again over the next connection, once each and in order; the others
    fail, having been written once."""
    await ready(lane)
    server.answer = silent
    one, again, other = Told(), Told(), Told()
    lane.put([("SET", b"one", b"1")], one, timeout=SOON, repeatable=False)
    lane.put([("GET", b"a"), ("GET", b"b")], again, timeout=SOON, repeatable=True)
    lane.put([("GET", b"c")], other, timeout=SOON, repeatable=True)
    peer = await server.heard(5)
    peer.say(b"+OK\r\n", bulk(b"stale"))  # the first group is answered, the second one half
    await one.ended.wait()
    lost = Told()
    lane.put([("SET", b"two", b"2")], lost, timeout=SOON, repeatable=False)
    await server.heard(6)
    server.answer = echo
    peer.transport.abort()
    await asyncio.gather(again.ended.wait(), other.ended.wait(), lost.ended.wait())
    assert (one.ends, again.ends, other.ends) == ([[b"OK"]], [[b"a", b"b"]], [[b"c"]])
    assert isinstance(lost.ends[0], BackendError)
    assert (one.writes, again.writes, other.writes, lost.writes) == (1, 2, 2, 1)
    assert server.last.commands == [[b"GET", b"a"], [b"GET", b"b"], [b"GET", b"c"]]


async def test_lost_before_the_write(server: ScriptedServer, lane: MultiplexedLane) -> None:
    """What was not written yet when the connection went is written over the next one, repeatable or not."""
    await ready(lane)
    server.last.transport.abort()
    await server.until(lambda: server.last.lost)
    replies = await asyncio.gather(*(lane.send([("SET", b"%d" % n, b"v")], timeout=SOON, repeatable=bool(n)) for n in range(2)))
    assert replies == [[b"OK"], [b"OK"]]
    assert server.names == ["PING", "SET", "SET"]


@pytest.mark.parametrize("end", ["abort", "close", "eof"])
async def test_many_connections_in_turn(server: ScriptedServer, lane: MultiplexedLane, end: str) -> None:
    """However often the connection is lost, the next one works and stays, and none of the old ones is left."""
    for n in range(8):
        assert await lane.send([("GET", b"%d" % n)], timeout=SOON, repeatable=True) == [b"%d" % n]
        gc.collect()
        for _ in range(3):
            await asyncio.sleep(0)
            assert await lane.send([("GET", b"again")], timeout=SOON) == [b"again"]
        assert len(server.peers) == n + 1
        peer = server.last
        {"abort": peer.transport.abort, "close": peer.transport.close, "eof": peer.transport.write_eof}[end]()
        await server.until(lambda: lane.state is not State.READY or peer.lost)
        while lane.state is State.READY:
            await asyncio.sleep(0)
    assert all(peer.lost for peer in server.peers)


async def test_a_lane_that_was_closed_by_the_server_while_idle(server: ScriptedServer, lane: MultiplexedLane) -> None:
    """A lost connection is not made anew until somebody asks."""
    await ready(lane)
    server.last.transport.close()
    await server.until(lambda: server.last.lost)
    while lane.state is State.READY:
        await asyncio.sleep(0)
    assert lane.state is State.IDLE
    assert len(server.peers) == 1
    await ready(lane)
    assert len(server.peers) == 2


async def test_a_connection_that_is_never_answered_counts_as_a_failure(server: ScriptedServer, lane: MultiplexedLane, quick: None) -> None:
    """Where every connection is cut at the first command, attempts come with a backoff, not as fast as the loop turns."""
    server.answer = lambda command: server.last.transport.abort()
    began = running_time()
    errors = []
    while running_time() - began < 0.3:
        try:
            await lane.send(GET, timeout=0.1, repeatable=True)
        except BackendError as error:
            errors.append(error)
            await asyncio.sleep(0.001)
    assert len(server.peers) <= 0.3 / 0.0025 + 5  # of which three come with stalls
    assert len(errors) > 10
    server.answer = echo
    await asyncio.sleep(0.03)
    assert await lane.send(GET, timeout=SOON) == [b"k"]


# Down


async def test_a_refused_connection(server: ScriptedServer, lane: MultiplexedLane) -> None:
    """While the server is known to be down groups fail at once, without an attempt each; the patient wait until it is back, within their
    time."""
    await ready(lane)
    await server.refuse()
    with pytest.raises(BackendError):
        await lane.send(GET, timeout=SOON)
    assert lane.state is State.DOWN
    connecting = lane._connecting
    began = running_time()
    failures = 0
    while lane.state is State.DOWN and failures < 200:
        refused = lane.send(GET, timeout=SOON)
        if lane._loop.time() < lane._not_before:
            assert refused.done()
        with pytest.raises(BackendError):
            await refused
        failures += 1
    assert running_time() - began < 1.0
    assert connecting is None
    patient, hasty = lane.send(GET, timeout=SOON, patient=True), lane.send(GET, timeout=0.1, patient=True)
    with pytest.raises(BackendError):
        await hasty
    await server.listen()
    assert await patient == [b"k"]
    assert lane.state is State.READY


async def test_backoff(monkeypatch: pytest.MonkeyPatch, server: ScriptedServer, lane: MultiplexedLane) -> None:
    """The pause after a failed attempt doubles from 50 ms to one second, with chance taking off up to a half; an answer resets it; it is
    right after thousands of failures too."""
    await ready(lane)
    await server.refuse()
    pauses = []
    for failures in [*range(7), 20, 5000]:
        lane._failures, lane._not_before = failures, 0.0
        began = lane._loop.time()
        with pytest.raises(BackendError):
            await lane.send(GET, timeout=SOON)
        assert lane.state is State.DOWN
        pauses.append((lane._not_before - began, lane._not_before - lane._loop.time()))
    for (longer, shorter), most in zip(pauses, [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0], strict=True):
        assert most / 2 <= longer
        assert shorter <= most
    await server.listen()
    lane._not_before = 0.0
    await ready(lane)
    server.last.transport.abort()
    while lane.state is State.READY:
        await asyncio.sleep(0)
    assert lane._failures == 0


async def test_back_within_a_second(server: ScriptedServer, lane: MultiplexedLane) -> None:
    """However long the server was away, a caller that asks every few milliseconds is served within a second of its return."""
    await ready(lane)
    await server.refuse()
    with pytest.raises(BackendError):
        await lane.send(GET, timeout=SOON)
    lane._failures, lane._not_before = 50, 0.0
    with pytest.raises(BackendError):
        await lane.send(GET, timeout=SOON)
    assert lane._failures == 51
    await server.listen()
    began = running_time()
    while True:
        try:
            assert await lane.send(GET, timeout=0.25) == [b"k"]
            break
        except BackendError:
            await asyncio.sleep(0.005)
    assert running_time() - began < 1.1


async def test_errors_of_an_outage_do_not_grow(server: ScriptedServer, lane: MultiplexedLane) -> None:
    """Each caller gets an error of its own: one that everybody raises would collect all their tracebacks."""
    await ready(lane)
    await server.refuse()
    lane._failures = 50
    errors = []
    for _ in range(50):
        with pytest.raises(BackendError) as raised:
            await lane.send(GET, timeout=SOON)
        errors.append(raised.value)
    assert len(set(map(id, errors))) == 50
    assert max(len(traceback.extract_tb(error.__traceback__)) for error in errors) <= 2


async def test_a_slow_handshake_is_not_thrown_away(server: ScriptedServer, lane: MultiplexedLane) -> None:
    """Callers that give up, or are cancelled, while the lane connects leave the attempt alone; the next one finds it done."""
    held: list[list[bytes]] = []
    server.greet = lambda command: held.append(command)  # type: ignore[func-returns-value,return-value]
    impatient = [lane.send(GET, timeout=0.02) for _ in range(3)]
    impatient[0].cancel()
    await server.until(lambda: held)
    for call in impatient[1:]:
        with pytest.raises(BackendTimeoutError):
            await call
    assert lane.state is State.CONNECTING
    server.greet = greet
    server.last.say(HELLO)
    assert await lane.send(GET, timeout=SOON) == [b"k"]
    assert len(server.peers) == 1


@pytest.mark.parametrize("steps", range(12))
async def test_a_connecting_task_that_is_cancelled_by_somebody(server: ScriptedServer, lane: MultiplexedLane, steps: int) -> None:
    """A program that cancels all tasks cancels the lane's attempt too, at whatever step it is: its callers fail at once, and the next one
    connects."""
    server.greet = lambda command: None
    waiting = lane.send(GET, timeout=SOON)
    while lane._connecting is None:
        await asyncio.sleep(0)
    for _ in range(steps):
        await asyncio.sleep(0)
    assert lane._connecting is not None
    lane._connecting.cancel()
    with pytest.raises(BackendError, match="cancelled"):
        await waiting
    await server.until(lambda: all(peer.lost for peer in server.peers))
    server.greet = greet
    assert await lane.send(GET, timeout=SOON, patient=True) == [b"k"]


@pytest.mark.parametrize(
    "said",
    [
        b"-ERR max number of clients reached\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$3\r\nabc\r\n",
        b"+OK\r\n",
        b"%1\r\n$5\r\nproto\r\n:2\r\n",
        b"",
    ],
)
async def test_a_handshake_that_goes_wrong(server: ScriptedServer, lane: MultiplexedLane, said: bytes) -> None:
    """Whatever stands in for the answer to HELLO, the connection is closed, callers get a BackendError, and nothing was asked of it."""

    def answer(command: list[bytes]) -> bytes:
        if not said:
            server.last.transport.abort()
        return said

    server.greet = answer
    with pytest.raises(BackendError, match="127.0.0.1"):
        await lane.send(GET, timeout=SOON)
    await server.until(lambda: server.last.lost)
    assert server.names == []
    assert lane.state is State.DOWN
    server.greet = greet
    assert await lane.send(GET, timeout=SOON, patient=True) == [b"k"]


async def test_the_server_speaks_resp2_only(server: ScriptedServer, lane: MultiplexedLane) -> None:
    """A server without HELLO is refused by name, with what to do about it."""
    server.greet = lambda command: b"-ERR unknown command 'HELLO'\r\n"
    with pytest.raises(connections.Resp3RefusedError, match="protocol=2"):
        await lane.send(GET, timeout=SOON)


@pytest.mark.parametrize("stops_after", [0, 1])
async def test_a_handshake_that_never_ends(
    monkeypatch: pytest.MonkeyPatch, server: ScriptedServer, lane: MultiplexedLane, stops_after: int
) -> None:
    """An attempt that is not answered ends by itself; the lane is down, and tries again when somebody asks."""
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT", 0.05)
    heard: list[object] = []

    def answer(command: list[bytes]) -> bytes | None:
        heard.append(command)
        return greet(command) if len(heard) <= stops_after else None

    server.greet = answer
    with pytest.raises(BackendError):
        await lane.send(GET, timeout=SOON)
    assert lane.state is State.DOWN
    await server.until(lambda: server.last.lost)
    server.greet = greet
    assert await lane.send(GET, timeout=SOON, patient=True) == [b"k"]


# Silence


async def test_a_stuck_lane_is_made_anew(server: ScriptedServer, lane: MultiplexedLane, quick: None) -> None:
    """A lane that owes an answer and is silent too long is aborted; repeatable groups whose time is not up are answered by the next
    connection, the others fail."""
    await ready(lane)
    server.answer = silent
    expired, one = lane.send(GET, timeout=0.01), None
    await server.heard(2)
    with pytest.raises(BackendTimeoutError):
        await expired
    again, one = lane.send([("GET", b"again")], timeout=SOON, repeatable=True), lane.send([("SET", b"k", b"v")], timeout=SOON)
    stuck = await server.heard(4)
    server.answer = echo
    with pytest.raises(BackendError, match="answered nothing"):
        await one
    assert await again == [b"again"]
    await server.until(lambda: stuck.lost)
    assert len(server.peers) == 2


async def test_deadlines_hold_while_a_stuck_lane_reconnects(server: ScriptedServer, lane: MultiplexedLane, quick: None) -> None:
    """A group that was taken back from a stuck lane fails at its deadline, though the next connection does not come up."""
    await ready(lane)
    server.answer = silent
    first = lane.send(GET, timeout=0.01)
    with pytest.raises(BackendTimeoutError):
        await first
    server.greet = lambda command: None
    began, ran = time.perf_counter(), running_time()
    second = lane.send(GET, timeout=0.2, repeatable=True)
    with pytest.raises(BackendTimeoutError):
        await second
    assert running_time() - ran < 0.5
    assert time.perf_counter() - began >= 0.19
    assert len(server.peers) == 2


async def test_no_lane_is_stuck_before_its_time(
    server: ScriptedServer, lane: MultiplexedLane, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence is no reason to abort while the oldest group's own time is not up, nor are pauses in an answer that is coming in."""
    monkeypatch.setattr(lanes, "STUCK_AFTER", 1.2)
    monkeypatch.setattr(lanes, "LATE_AFTER", 60.0)
    await ready(lane)
    server.answer = silent
    slow = lane.send(GET, timeout=SOON)
    peer = await server.heard(2)
    await asyncio.sleep(1.3)
    peer.say(bulk(b"slow"))
    assert await slow == [b"slow"]
    long, behind = lane.send(GET, timeout=0.01), lane.send(GET, timeout=SOON)
    await server.heard(4)
    peer.say(b"$6\r\n")
    for letter in b"abcdef":
        await asyncio.sleep(0.21)
        peer.say(bytes([letter]))
    peer.say(b"\r\n", bulk(b"behind"))
    assert await behind == [b"behind"]
    assert isinstance(long.exception(), BackendTimeoutError)
    assert len(server.peers) == 1


async def test_a_lane_that_answers_one_group_too_late(server: ScriptedServer, lane: MultiplexedLane, quick: None) -> None:
    """Where every reply comes only with the next request, as after a garbled length, the lane is given up though bytes keep coming in."""
    await ready(lane)
    held: list[bytes] = []

    def answer(command: list[bytes]) -> bytes | None:
        if len(server.peers) > 1:
            return echo(command)
        held.append(echo(command))
        return held.pop(0) if len(held) > 1 else None

    server.answer = answer
    began = running_time()
    first = lane._transport
    while lane._transport is first:
        (said,) = await asyncio.gather(lane.send(GET, timeout=0.02), return_exceptions=True)
        assert isinstance(said, BackendError) or lane._transport is not first
    assert running_time() - began < 2.0
    assert await lane.send(GET, timeout=SOON) == [b"k"]


async def test_nothing_is_owed(server: ScriptedServer, lane: MultiplexedLane, quick: None) -> None:
    """A lane that owes no answer may be silent for as long as it likes."""
    await ready(lane)
    await lane.send(GET, timeout=1.5)
    await asyncio.sleep(1.7)
    assert await lane.send(GET, timeout=SOON) == [b"k"]
    assert len(server.peers) == 1


# What is no reply


@pytest.mark.parametrize("said", [b"?what\r\n", b":x\r\n", b"!21\r\nERR\r\n", b"%1\r\n*0\r\n:1\r\n", b"\x00" * 64])
async def test_a_broken_stream_is_closed(
    server: ScriptedServer, lane: MultiplexedLane, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes that are no RESP3 close the connection: nobody is given anything from behind them, and the repeatable ask again."""
    await ready(lane)
    server.answer = silent
    once, again = lane.send(GET, timeout=SOON), lane.send([("GET", b"again")], timeout=SOON, repeatable=True)
    peer = await server.heard(3)
    server.answer = echo
    peer.say(said, bulk(b"wrong"), bulk(b"wrong"), bulk(b"wrong"))
    with pytest.raises(BackendError):
        await once
    assert await again == [b"again"]
    assert "remade" in caplog.text


async def test_a_reply_that_nobody_asked_for(server: ScriptedServer, lane: MultiplexedLane) -> None:
    """An unasked reply closes the connection: it can only be that everything is shifted by one."""
    await ready(lane)
    peer = server.last
    peer.say(bulk(b"extra"))
    await server.until(lambda: peer.lost)
    assert await lane.send(GET, timeout=SOON) == [b"k"]
    assert len(server.peers) == 2


async def test_a_handler_that_does_not_believe_it(server: ScriptedServer, lane: MultiplexedLane) -> None:
    """A handler that says of its replies that they cannot be its own has the connection remade, before anybody gets what follows."""
    await ready(lane)
    server.answer = silent
    doubter = Told(believes=False)
    lane.put(GET, doubter, timeout=SOON, repeatable=True)
    behind = lane.send([("GET", b"behind")], timeout=SOON, repeatable=True)
    peer = await server.heard(3)
    server.answer = echo
    peer.say(array(), bulk(b"k"))
    assert await behind == [b"behind"]
    assert (doubter.ends, doubter.writes) == ([[[]]], 1)


# Pressure


async def test_pause_writing(server: ScriptedServer, lane: MultiplexedLane) -> None:
    """While the transport is full nothing is handed to it; what expires meanwhile is never written, the rest leaves in order."""
    await ready(lane)
    spy = Spy(lane)
    lane.pause_writing()
    kept = [lane.send([("GET", b"%d" % n)], timeout=SOON) for n in range(2)]
    expired = lane.send([("GET", b"expired")], timeout=0.01)
    with pytest.raises(BackendTimeoutError):
        await expired
    assert spy.writes == 0
    lane.resume_writing()
    assert [await call for call in kept] == [[b"0"], [b"1"]]
    assert spy.writes == 1
    assert [b"GET", b"expired"] not in server.last.commands


async def test_a_server_that_does_not_read(server: ScriptedServer, lane: MultiplexedLane, quick: None) -> None:
    """Callers of a server that has stopped reading fail in time, and what is buffered for it stays bounded; the next connection serves."""
    await ready(lane)
    stuck = server.last
    stuck.transport.pause_reading()
    transport = lane._transport
    assert transport is not None
    lane.put([("ECHO", b"unanswered")], Told(), timeout=0.01, repeatable=False)
    big = b"x" * 2**23
    most = 0
    while lane._transport is transport:
        (said,) = await asyncio.gather(lane.send([("SET", b"k", big)], timeout=0.01), return_exceptions=True)
        assert isinstance(said, BackendError) or lane._transport is not transport
        most = max(most, transport.get_write_buffer_size())
    assert 0 < most <= 2 * 2**23
    assert await lane.send(GET, timeout=SOON, patient=True) == [b"k"]
    assert server.last is not stuck


async def test_a_big_reply_behind_a_paused_writer(server: ScriptedServer) -> None:
    """Requests and replies of megabytes in both directions at once do not deadlock."""
    lane = MultiplexedLane(Endpoint.from_url(server.url))
    blob = random.Random(1).randbytes(4 * 2**20)
    replies = await asyncio.gather(*(lane.send([("ECHO", blob)], timeout=20) for _ in range(8)))
    assert all(reply == [blob] for reply in replies)
    await lane.aclose()


# The end


async def test_aclose_in_every_state(monkeypatch: pytest.MonkeyPatch, server: ScriptedServer) -> None:
    """Closed idle, connecting, ready with answers owed, stuck, down with patient groups, lost, or closed: everybody who waits is told, the
    connection ends, and a closed lane refuses what comes."""

    async def idle(lane: MultiplexedLane) -> None:
        return None

    async def connecting(lane: MultiplexedLane) -> None:
        server.greet = lambda command: None
        lane.put(GET, Told(), timeout=SOON, repeatable=True)
        await server.until(lambda: server.peers)

    async def about_to_connect(lane: MultiplexedLane) -> None:
        lane.put(GET, Told(), timeout=SOON, repeatable=True)
        await asyncio.sleep(0)

    async def owing(lane: MultiplexedLane) -> None:
        await ready(lane)
        server.answer = silent

    async def expired(lane: MultiplexedLane) -> None:
        await owing(lane)
        with pytest.raises(BackendTimeoutError):
            await lane.send(GET, timeout=0.01)

    async def down(lane: MultiplexedLane) -> None:
        await server.refuse()
        with pytest.raises(BackendError):
            await lane.send(GET, timeout=SOON)

    async def lost(lane: MultiplexedLane) -> None:
        await ready(lane)
        server.last.transport.abort()
        await server.until(lambda: server.last.lost)

    async def closed(lane: MultiplexedLane) -> None:
        await lane.aclose()

    began = running_time()
    for state in (idle, connecting, about_to_connect, owing, expired, down, lost, closed):
        server.greet, server.answer = greet, echo
        server.peers.clear()
        lane = MultiplexedLane(Endpoint.from_url(server.url))
        await state(lane)
        waiting = [lane.send(GET, timeout=SOON, repeatable=again, patient=patient) for again in (True, False) for patient in (True, False)]
        await asyncio.sleep(0)
        await asyncio.gather(lane.aclose(), lane.aclose())
        assert all(isinstance(call.exception(), BackendError) for call in waiting), state.__name__
        with pytest.raises(BackendError, match="closed"):
            await lane.send(GET, timeout=SOON, patient=True)
        assert lane.state is State.CLOSED
        await server.until(lambda: all(peer.lost for peer in server.peers))
        if state is down:
            await server.listen()
    assert running_time() - began < 1.0


async def test_a_lane_says_what_it_is_and_no_secret(server: ScriptedServer) -> None:
    """Its repr shows the address, the state and what is under way, never a credential; so do its errors."""
    lane = MultiplexedLane(Endpoint.from_url(server.url.replace("//", "//app:hush@") + "/3"))
    server.answer = silent
    waiting = lane.send(GET, timeout=SOON)
    await server.heard(1)
    assert repr(lane) == f"<Lane to 127.0.0.1:{server.port}/3, ready, 1 pending, 0 queued>"
    await lane.aclose()
    assert "hush" not in str(waiting.exception())


async def test_a_link_of_several_lanes(valkey: Server) -> None:
    """A link has as many reading lanes as it is told, and one to write; one that is busy does not hold up another."""
    link = LaneLink(Endpoint.from_url(valkey.url), lanes=3)
    assert len(link.reads) == 3
    blocked = link.writes.send([("EVAL", "while redis.call('TIME')[1] == '0' do end return 1", 0)], timeout=SOON)
    assert await asyncio.gather(*(lane.send([("ECHO", b"x")], timeout=SOON) for lane in link.reads)) == [[b"x"]] * 3
    assert await blocked == [1]
    await link.aclose()
    await link.aclose()


async def test_a_closed_lane_is_collected(server: ScriptedServer) -> None:
    """Nothing keeps a lane that was closed."""
    lane = await ready(MultiplexedLane(Endpoint.from_url(server.url)))
    await lane.aclose()
    gone = weakref.ref(lane)
    del lane
    await asyncio.sleep(0)
    gc.collect()
    assert gone() is None


# A real server, and a wire that breaks


@pytest.fixture
async def proxy(valkey: Server) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(valkey.port) as made:
        yield made


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.getLogger("aiocache_aura").setLevel(logging.WARNING)
    yield
    logging.getLogger("aiocache_aura").setLevel(logging.NOTSET)


async def _whole_reply(valkey: Server, commands: Sequence[Command]) -> tuple[list[object], int]:
    async with FaultProxy(valkey.port) as proxy:
        lane = MultiplexedLane(Endpoint.from_url(proxy.url))
        await lane.send([("PING",)], timeout=SOON)
        before = proxy.reply_bytes
        replies = await lane.send(commands, timeout=SOON)
        await lane.aclose()
        return replies, proxy.reply_bytes - before


async def test_reset_at_every_byte_of_a_reply(valkey: Server, proxy: FaultProxy) -> None:
    """N6: whatever byte of a reply the connection is reset after, the caller gets the whole value or a BackendError; a repeatable group
    always the value."""
    with valkey.client() as client:
        client.set("a", b"x" * 30 + b"\r\n$3\r\nabc\r\n")
        client.set("b", "12")
    commands: list[Command] = [("MGET", b"a", b"missing", b"b"), ("GET", b"b"), ("STRLEN", b"a")]
    whole, size = await _whole_reply(valkey, commands)
    outcomes = []
    for cut in range(size + 1):
        lane = MultiplexedLane(Endpoint.from_url(proxy.url))
        await lane.send([("PING",)], timeout=SOON)
        proxy.cut = cut
        once = asyncio.gather(lane.send(commands, timeout=SOON), return_exceptions=True)
        (result,) = await once
        proxy.cut = None
        assert isinstance(result, BackendError) or result == whole, cut
        outcomes.append(result == whole)
        assert await lane.send(commands, timeout=SOON, repeatable=True) == whole
        proxy.cut = cut
        again = lane.send(commands, timeout=SOON, repeatable=True)
        await asyncio.sleep(0)
        while proxy.cut:
            await asyncio.sleep(0)
        proxy.cut = None
        assert await again == whole
        await lane.aclose()
    assert outcomes == [False] * size + [True]


async def test_reset_at_every_byte_of_a_handshake(valkey: Server, proxy: FaultProxy, quick: None) -> None:
    """Cut anywhere in the handshake, a connection is never used: the caller gets a BackendError, and the next one its value."""
    with valkey.client(db=3) as client:
        client.set("where", "three")
    lane = MultiplexedLane(Endpoint.from_url(proxy.url[:-1] + "3"))
    await lane.send([("GET", b"where")], timeout=SOON)
    size = proxy.reply_bytes
    await lane.aclose()
    for cut in range(0, size, 3):
        lane = MultiplexedLane(Endpoint.from_url(proxy.url[:-1] + "3"))
        proxy.cut = cut
        (result,) = await asyncio.gather(lane.send([("GET", b"where")], timeout=SOON), return_exceptions=True)
        proxy.cut = None
        assert isinstance(result, BackendError), (cut, result)
        assert await lane.send([("GET", b"where")], timeout=SOON, repeatable=True, patient=True) == [b"three"]
        await lane.aclose()


@pytest.mark.parametrize("direction", ["replies", "requests"])
async def test_bit_flips_on_the_whole_path(valkey: Server, direction: str, quick: None) -> None:
    """N7: with bits flipped at random in either direction, a decorated function never returns a wrong value nor raises, and once the wire
    is whole again it hits."""
    rng = random.Random(7)
    flips = 0

    def garbled(data: bytes) -> bytes:
        nonlocal flips
        if not data or rng.random() < 0.7:
            return data
        flips += 1
        return flipped(data, [rng.randrange(len(data) * 8) for _ in range(rng.choice((1, 1, 1, 2, 5)))])

    async with FaultProxy(valkey.port) as proxy, CacheManager(proxy.url, prefix=f"flip-{direction}", budget=0.05) as manager:

        @cache(cache_type="test", manager=manager, name="flips")
        async def value_of(key: int) -> dict[str, Any]:
            return {"key": key, "is": ["the value of", key] * 3}

        async def ask(key: int) -> None:
            assert await value_of(key) == {"key": key, "is": ["the value of", key] * 3}

        logging.getLogger("aiocache_aura").setLevel(logging.CRITICAL)
        await asyncio.gather(*(ask(key) for key in range(20)))
        setattr(proxy, f"garble_{direction}", garbled)
        ends = running_time() + 1.5
        while running_time() < ends or flips <= 20:
            await asyncio.gather(*(ask(rng.randrange(30)) for _ in range(rng.choice((1, 5, 20)))))
        setattr(proxy, f"garble_{direction}", bytes)
        assert flips > 20
        hits = manager.stats()["test"]["hits"]
        ends = time.monotonic() + SOON
        while manager.stats()["test"]["hits"] == hits and time.monotonic() < ends:
            await ask(1)
            await asyncio.sleep(0.01)
        assert manager.stats()["test"]["hits"] > hits


async def test_a_shifted_stream_serves_no_old_value(server: ScriptedServer) -> None:
    """N7: a bit that makes an array one shorter shifts all that follows; the lookups behind it are asked again, not answered by it."""
    stored: dict[bytes, bytes] = {}
    shortened = 0

    def answer(command: list[bytes]) -> bytes | None:
        nonlocal shortened
        if command[0] != b"MGET" or shortened != 1:
            return _fake_server(command, stored)
        shortened = 2
        return b"*1" + _fake_server(command, stored)[2:]

    server.answer = answer
    async with CacheManager(server.url, prefix="shift") as manager:
        assert await manager.set("test", "a", "old")
        assert await manager.get("test", "a") == "old"
        shortened = 1
        values = await asyncio.gather(*(manager.get("test", "a") for _ in range(3)))
        assert set(values) <= {"old", None}
        assert await manager.set("test", "a", "new")
        assert [await manager.get("test", "a") for _ in range(5)] == ["new"] * 5
        assert (shortened, len(server.peers)) == (2, 3)


@pytest.mark.parametrize("wrong", [b",1.5\r\n", b":1\r\n", b"*0\r\n", b"#t\r\n", b"%0\r\n", b"-ERR x\r\n"])
@pytest.mark.parametrize("where", [0, 1])
async def test_a_find_that_is_no_string(server: ScriptedServer, wrong: bytes, where: int) -> None:
    """N7: what stands where a value or a generation should, and is no string, is a fault of the stream and never reaches a decoder."""
    stored: dict[bytes, bytes] = {}
    faults = 0

    def answer(command: list[bytes]) -> bytes | None:
        nonlocal faults
        if command[0] != b"MGET" or not faults:
            return _fake_server(command, stored)
        faults = 0
        return array(*(wrong if n == where else bulk(stored[key]) for n, key in enumerate(command[1:])))

    server.answer = answer
    async with CacheManager(server.url, prefix="string") as manager:
        assert await manager.set("test", "a", "value")
        assert await manager.get("test", "a") == "value"
        faults, peers = 1, len(server.peers)
        assert await manager.get("test", "a") is None
        assert await manager.get_or_load("test", "a", lambda: "loaded") == "value"
        assert manager.stats()["test"]["errors"] == 1
        assert len(server.peers) == peers + 1


def _fake_server(command: list[bytes], stored: dict[bytes, bytes]) -> bytes:
    match command[0]:
        case b"MGET":
            return array(*(bulk(stored[key]) if key in stored else b"_\r\n" for key in command[1:]))
        case b"EVALSHA":
            keys = command[3 : 3 + int(command[2])]
            for key, token in zip(keys, command[3 + len(keys) + 2 :], strict=True):
                stored.setdefault(key, token)
            return array(*(bulk(stored[key]) for key in keys))
        case b"SET":
            stored[command[1]] = command[2]
            return b"+OK\r\n"
        case _:
            return b":0\r\n"


async def test_a_value_of_20_mb(valkey: Server) -> None:
    """A value of 20 MB goes in and comes back, and callers beside it get theirs."""
    async with CacheManager(valkey.url, prefix="big", budget=10.0) as manager:
        manager.override("test", max_value_bytes=32 * 2**20)
        blob = random.Random(3).randbytes(20 * 2**20)
        assert await manager.set("test", "big", blob)
        assert await manager.set("test", "small", "s")
        big, *small = await asyncio.gather(manager.get("test", "big"), *(manager.get("test", "small") for _ in range(10)))
        assert big == blob
        assert small == ["s"] * 10


async def test_replies_that_have_come_are_read_before_time_is_up(valkey: Server) -> None:
    """Where this process was busy past a deadline, and the answer is there, in several reads, it is delivered: the server was not late."""
    blob = random.Random(4).randbytes(3 * 2**20)
    lane = MultiplexedLane(Endpoint.from_url(valkey.url))
    await lane.send([("SET", b"blob", blob)], timeout=SOON)
    for _ in range(3):
        reply = lane.send([("GET", b"blob")], timeout=0.5)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        time.sleep(0.6)
        assert await reply == [blob]
    await lane.aclose()


async def test_a_batch_of_5000_keys(valkey: Server) -> None:
    """`get_many` and `mset` of 5,000 keys work and go out in bounded commands."""
    async with CacheManager(valkey.url, prefix="many", budget=10.0) as manager:
        items = {f"k{n}": n for n in range(5000)}
        assert await manager.mset("test", items)
        assert await manager.get_many("test", items) == items
        assert await manager.mget("test", items) == list(range(5000))
        with valkey.client() as client:
            slow: Callable[..., Any] = client.info
            calls = slow("commandstats")["cmdstat_mget"]["calls"]
        assert calls >= 2 * 10
