"""Leases: one process in the fleet loads a key, the others follow it (M9, M12-M15).

What a key's lease is on the server, `P!p:{KEY}`, and what changes it; a permit of loads without a lease lives in the same place, and is
overtaken like nothing:

    nothing --acquire--> lease, attempt 1 --fill, release--> nothing      (whoever follows is woken, and asks again)
                           |  ^  \\--leave_alone--> alone
                           |  |                      \\-- acquire: for its chain Alone, for others as nothing
                           |  \\--acquire by its chain: attempt 2 -- failed once
                           \\--fail--> failed once or twice --/
                                       \\-- acquire: for its chain, twice: Failed; before its pause is over, for content askers: Failed;
                                           for others as nothing
    any of these --delete, set, purge, its time is up, eviction--> nothing
    lease --acquire by who sees another token of a scope that both depend on, force--> the lease of another

`acquire` is one script: it reads the generations, then the value (another one than the asker knows is the answer), then the lease.
What outlasts a lease stands in it as well, and whoever takes it hands that on: until when nobody refreshes who has a value to go on with,
and up to which chain there is nothing to wait for. A lease that is given back while either is in force leaves a mark of them.

What crosses, and why it is safe
- A holder pauses beyond its lease: another takes it, and the fence refuses the first one's fill; those who followed it are woken.
- The holder fills while another is about to ask: the script finds the value, and no second load begins (V8).
- The holder ends while another is about to wait: the lease says that somebody follows from the moment that this one was told to; the
  wake-up is remembered by the follower, which was there before (M13).
- A wake-up is lost: nobody waits longer than the lease is good for; the mark of a failure is on the server (M14).
- An invalidation while a load is under way: its lease tells which generations it has read, so the next asker overtakes it (M15).
- A newcomer's lease takes the place of a mark before those have seen it whom it was for: it hands on what the mark said.
- A forced load is refused, since a later one has taken its lease, and that one fails: what it set out to replace goes all the same.
- The answer to `acquire` is lost, or its caller is: the lease is given back by its token; if that is lost too, its time is soon up.
- A fill is written again after a lost connection: its lease is gone, and its own value, known by its id, is there.

Invariants
- A lease is proof of a load that begins after the generations in it were read; "still mine" compares all of it but the mark of followers.
- Renewals are one write for all leases that are held, every `LEASE / 3` seconds, on a timer of the loop; none is armed while none is held.
  What is held no more is not renewed again, nor is what is ended, whether or not the end arrives.
- What ends a lease is written in the same tick, behind its caller's back, and may be written again: it does nothing twice.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final
from zlib import crc32

from aiocache_aura.codecs.envelope import FRONT
from aiocache_aura.errors import BackendError
from aiocache_aura.stores.base import (
    TOKEN_BYTES,
    Alone,
    CallHandler,
    Claim,
    Command,
    Failed,
    Fill,
    Found,
    HeldElsewhere,
    Holder,
    Link,
    Standing,
    Tokens,
    Want,
)
from aiocache_aura.stores.followers import Followers, KeyFollower
from aiocache_aura.stores.replies import code_of
from aiocache_aura.stores.requests import Writes, spelt_out
from aiocache_aura.stores.scripts import (
    ACQUIRE,
    END,
    FAILURE_HEAD,
    FILL_LEASED,
    LEASE_ATTEMPT,
    LEASE_HEAD,
    RENEW,
    life_ms,
    token_lives,
)

LEASE: Final = 3.0
RENEWED_AT_ONCE: Final = 500
MARK: Final = LEASE + 1.0  # seconds that word of what became of a load is kept at least: for longer than anybody waits before asking again
_TOKEN, _FAILED_ATTEMPTS, _FAILED_CHAIN = slice(1, 17), slice(1, 2), slice(2, 18)


class RedisLeases:
    """One event loop's leases. `place` is where the lease of a key is, `channel` where who follows is woken."""

    def __init__(self, link: Link, writes: Writes, place: Callable[[bytes], bytes], channel: bytes, *, budget: float) -> None:
        self._writes, self._place, self._channel = writes, place, channel
        self._lane = link.writes
        self._patience = max(budget, LEASE)
        self._budget = budget
        self._held: dict[bytes, bytes] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._ending = 0
        self._ended: asyncio.Future[None] | None = None
        self.followers = Followers(link, channel)

    def __repr__(self) -> str:
        return f"<RedisLeases {len(self._held)} held, {self.followers!r}>"

    def follow(self, key: bytes) -> KeyFollower:
        return self.followers.follow(key)

    # Acquiring

    async def acquire(self, wants: Sequence[Want], *, timeout: float, written: Callable[[], None]) -> list[Standing]:
        if not wants:
            return []
        was_written = False

        def on_write() -> None:
            nonlocal was_written
            was_written = True
            written()

        tokens = [os.urandom(TOKEN_BYTES) for _ in wants]
        scopes = [list(dict.fromkeys(want.scopes)) for want in wants]
        commands = [self._ask(*each) for each in zip(wants, tokens, scopes, strict=True)]
        try:
            replies = await self._writes.run(commands, timeout=timeout, written=on_write)
        except BackendError:
            if was_written:
                self._give_back(wants, tokens)
            raise
        except asyncio.CancelledError:
            self._give_back(wants, tokens)
            raise
        standings = [_standing(*each) for each in zip(scopes, replies, strict=True)]
        self._hold({one.permit: want.key for want, one in zip(wants, standings, strict=True) if isinstance(one, Claim)})
        return standings

    def _ask(self, want: Want, token: bytes, scopes: Sequence[bytes]) -> Command:
        mode = "force" if want.force else "content" if want.content else ""
        front = b"" if want.seen is None else want.seen[FRONT]
        lives, random = token_lives(want.life), os.urandom(TOKEN_BYTES * len(scopes))
        fresh = (random[n : n + TOKEN_BYTES] for n in range(0, len(random), TOKEN_BYTES))
        keys = (want.key, self._place(want.key), *scopes)
        return ACQUIRE.run(keys, *lives, front, token, _names_of(scopes), want.chain, life_ms(LEASE), mode, *fresh)

    def _give_back(self, wants: Sequence[Want], tokens: Sequence[bytes]) -> None:
        """Whatever was taken, unknown to anybody."""
        for want, token in zip(wants, tokens, strict=True):
            self._end(want.key, b"L" + token, "", wakes_all=False)

    # Ending

    def fill(self, fill: Fill) -> Command:
        """What stores a loaded value and ends its lease, which is renewed no more."""
        self._let_go(fill.permit)
        return FILL_LEASED.run((fill.key, self._place(fill.key)), fill.permit, fill.raw, life_ms(fill.life), self._channel)

    def release(self, key: bytes, lease: bytes) -> None:
        self._let_go(lease)
        self._end(key, lease, "")

    def fail(self, key: bytes, lease: bytes, reason: bytes, *, throttle: float) -> None:
        self._let_go(lease)
        self._end(key, lease, "fail", throttle=throttle, reason=reason)

    def leave_alone(self, key: bytes, lease: bytes) -> None:
        self._let_go(lease)
        self._end(key, lease, "alone")

    def _end(self, key: bytes, lease: bytes, how: str, *, throttle: float = 0.0, reason: bytes = b"", wakes_all: bool = True) -> None:
        if len(lease) <= TOKEN_BYTES:  # no lease, and what everything begins with
            return
        pause = 1000 * life_ms(throttle) if throttle > 0 else 0
        whom = "all" if wakes_all else ""
        self._put([END.run((self._place(key),), lease, self._channel, key, how, life_ms(MARK), pause, reason, whom)])

    def _put(self, commands: Sequence[Command]) -> None:
        self._ending += 1

        def then(replies: Sequence[object]) -> None:
            if any(isinstance(reply, Exception) and code_of(reply) == "NOSCRIPT" for reply in replies) and commands[0][0] == "EVALSHA":
                self._put(spelt_out(commands))
            self._ending -= 1
            if not self._ending and self._ended is not None and not self._ended.done():
                self._ended.set_result(None)

        handler = CallHandler(then)
        try:
            self._lane.put(commands, handler, timeout=self._patience, repeatable=True, patient=True)
        except BackendError as error:
            handler.fail(error)

    # Holding

    def _hold(self, taken: dict[bytes, bytes]) -> None:
        self._held.update(taken)
        if self._held and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LEASE / 3, self._renew)

    def _let_go(self, lease: bytes) -> None:
        if self._held.pop(lease, None) is not None and not self._held and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _renew(self) -> None:
        self._timer = None
        for chunk in list(_in_chunks(self._held)):
            command = RENEW.run([self._place(key) for _, key in chunk], life_ms(LEASE), *(lease for lease, _ in chunk))
            self._put_renewal(command, [lease for lease, _ in chunk])
        self._hold({})

    def _put_renewal(self, command: Command, leases: Sequence[bytes]) -> None:
        def then(replies: Sequence[Any]) -> None:
            match replies:
                case [list() as held]:
                    for lease, is_held in zip(leases, held, strict=False):
                        if not is_held:
                            self._let_go(lease)
                case [Exception() as error] if code_of(error) == "NOSCRIPT" and command[0] == "EVALSHA":
                    self._put_renewal(spelt_out([command])[0], leases)

        with suppress(BackendError):
            self._lane.put([command], CallHandler(then), timeout=LEASE / 3, repeatable=True)

    # Looking

    async def holder(self, key: bytes, *, timeout: float) -> Holder | None:
        place = self._place(key)
        (there,), left = await self._writes.run([("MGET", place), ("PTTL", place)], timeout=timeout, repeatable=True)
        seconds = max(left, 0) / 1000
        match there:
            case bytes() if len(there) > LEASE_HEAD and there.startswith(b"L"):
                return Holder(there[_TOKEN], _number(there[LEASE_ATTEMPT]), False, seconds)
            case bytes() if len(there) >= FAILURE_HEAD and there.startswith(b"F"):
                return Holder(there[_FAILED_CHAIN], _number(there[_FAILED_ATTEMPTS]), True, seconds)
            case _:
                return None

    # The end

    async def aclose(self) -> None:
        """Give back what is held, for at most a moment, and let those go on who follow."""
        self.followers.close()
        for lease, key in list(self._held.items()):
            self.release(key, lease)
        if self._ending:
            self._ended = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._ended}, timeout=min(self._budget, 1.0))

    def forget(self) -> None:
        self._held.clear()
        self._timer = None
        self.followers.forget()


def _standing(scopes: Sequence[bytes], reply: list[Any]) -> Standing:
    kind, found, *said = reply
    tokens = Tokens(dict(zip(scopes, found, strict=True)))
    match kind:
        case b"leased":
            return Claim(said[0], tokens, leased=True)
        case b"found":
            return Found(said[0], tokens)
        case b"held":
            return HeldElsewhere(said[0], said[1] / 1000)
        case b"failed":
            return Failed(said[0], said[1] / 1000)
        case _:
            return Alone()


def _names_of(scopes: Sequence[bytes]) -> bytes:
    """What tells scopes apart: a load that depends on one and sees another token of it knows that its holder's is old (M15)."""
    return b"".join(crc32(scope).to_bytes(4, "little") for scope in scopes)


def _in_chunks(held: dict[bytes, bytes]) -> Iterator[list[tuple[bytes, bytes]]]:
    items = iter(held.items())
    while chunk := list(islice(items, RENEWED_AT_ONCE)):
        yield chunk


def _number(digit: bytes) -> int:
    return int(digit) if digit.isdigit() else 0
