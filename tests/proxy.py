"""Servers that misbehave: one that says what a test tells it to, and a proxy before a real one that delays, cuts, swallows and garbles."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Self

import hiredis

HELLO = b"%1\r\n$5\r\nproto\r\n:3\r\n"
HANDSHAKE = ("HELLO", "CLIENT", "SELECT", "AUTH")
Answer = Callable[[list[bytes]], bytes | None]


def bulk(text: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text)


def array(*items: bytes) -> bytes:
    return b"*%d\r\n" % len(items) + b"".join(items)


def echo(command: list[bytes]) -> bytes:
    """GET answers with its key, MGET with its keys, anything else with OK."""
    match command[0]:
        case b"GET" | b"ECHO":
            return bulk(command[1])
        case b"MGET":
            return array(*map(bulk, command[1:]))
        case _:
            return b"+OK\r\n"


def silent(command: list[bytes]) -> None:
    return None


class Peer(asyncio.Protocol):
    """One connection to a scripted server: the handshake is answered, then `commands` fill."""

    def __init__(self, server: ScriptedServer) -> None:
        self._server = server
        self._reader = hiredis.Reader()
        self.commands: list[list[bytes]] = []
        self.handshake: list[list[bytes]] = []
        self.ready = self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._server.peers.append(self)
        self._server.changed()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        out = []
        while (command := self._reader.gets()) is not False:
            out.append(self._heard(command))
        self._server.changed()
        if said := b"".join(one for one in out if one):
            self.transport.write(said)

    def _heard(self, command: list[bytes]) -> bytes | None:
        if command[0].decode() in HANDSHAKE:
            self.handshake.append(command)
            said = self._server.greet(command)
            self.ready = self.ready or (said is not None and command == [b"HELLO"])
            return said
        self.commands.append(command)
        return self._server.answer(command)

    def say(self, *replies: bytes) -> None:
        self.transport.write(b"".join(replies))

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._server.changed()


def greet(command: list[bytes]) -> bytes | None:
    return HELLO if command[0] == b"HELLO" else b"+OK\r\n"


class ScriptedServer:
    """Listens on a port of its own, in this loop. `greet` answers the handshake, `answer` everything else; None is silence."""

    def __init__(self, answer: Answer = echo) -> None:
        self.answer, self.greet = answer, greet
        self.peers: list[Peer] = []
        self._waiting: list[asyncio.Future[None]] = []
        self.port = 0

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def listen(self) -> None:
        """Begin, or begin again on the same port."""
        self._server = await asyncio.get_running_loop().create_server(lambda: Peer(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Stop listening, and drop who is connected."""
        self._server.close()
        for peer in self.peers:
            peer.transport.abort()
        await self.until(lambda: all(peer.lost for peer in self.peers))

    async def __aexit__(self, *exc: object) -> None:
        await self.refuse()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def last(self) -> Peer:
        return self.peers[-1]

    @property
    def names(self) -> list[str]:
        return [command[0].decode() for peer in self.peers for command in peer.commands]

    def changed(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait for something to be so; it is looked at whenever something happens here."""
        async with asyncio.timeout(10):
            while not holds():
                future = asyncio.get_running_loop().create_future()
                self._waiting.append(future)
                await future

    async def heard(self, commands: int) -> Peer:
        """The latest connection, once that many commands came over it."""
        await self.until(lambda: self.peers and len(self.last.commands) >= commands)
        return self.last


class FaultProxy:
    """A TCP proxy before a server, in this loop; with `tls` it is the server's TLS.

    delay: seconds that each chunk of replies is late.
    swallow_replies, swallow_requests: read and thrown away.
    cut: connections are reset once so many more bytes of replies went through.
    garble_replies, garble_requests: what comes out of a chunk.
    """

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._target, self._tls = port, tls
        self.delay = 0.0
        self.swallow_replies = self.swallow_requests = False
        self.cut: int | None = None
        self.garble_replies: Callable[[bytes], bytes] = bytes
        self.garble_requests: Callable[[bytes], bytes] = bytes
        self.connections = self.reply_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        self.drop()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def url(self) -> str:
        return f"{'redis' if self._tls is None else 'rediss'}://127.0.0.1:{self.port}/0"

    def drop(self) -> None:
        """Reset every connection that there is."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        writers = [writer]
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
            writers.append(up_writer)
            self._writers.update(writers)
            await self._until_one_ends(self._pump(reader, up_writer, self._request), self._pump(up_reader, writer, self._reply))
        except OSError:
            pass
        finally:
            self._writers.difference_update(writers)
            for one in writers:
                one.transport.abort()

    async def _until_one_ends(self, *ways: object) -> None:
        tasks = [asyncio.ensure_future(way) for way in ways]  # type: ignore[arg-type]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Callable[[bytes], bytes]) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if change == self._reply and self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(change(data))
                if self.cut == 0:
                    await writer.drain()
                    return
                await writer.drain()

    def _request(self, data: bytes) -> bytes:
        return b"" if self.swallow_requests else self.garble_requests(data)

    def _reply(self, data: bytes) -> bytes:
        if self.swallow_replies:
            return b""
        if self.cut is not None:
            data = data[: self.cut]
            self.cut -= len(data)
        self.reply_bytes += len(data)
        return self.garble_replies(data)


def flipped(data: bytes, bits: Iterable[int]) -> bytes:
    """With these bits, counted from the first, the other way round."""
    out = bytearray(data)
    for bit in bits:
        out[bit // 8] ^= 1 << bit % 8
    return bytes(out)
