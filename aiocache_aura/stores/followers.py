"""Followers: who waits in this loop for loads of others, and the one subscription that they share (M13).

    follower made -> key asked for -> wait -> key asked for again -> wait -> ... -> closed

A wake-up is published on the prefix's channel, its payload is the key. One may be missed: while the subscription is not there yet, or its
connection is lost or made anew. An era is a time in which none is missed; a follower that was not there when the era began cannot know
what was published before it, and so its key is asked for once more before it waits.

Invariants
- `wait` returns at once if the key was woken, or the era has changed, since the key was last asked for. It never takes longer than told.
- Without a live subscription (not yet, not now, refused, or a client's own connections, over which there is none) it returns after about
  `POLL` seconds: then whoever follows asks again and again.
- The subscription is made by the first who waits, looked after every `CHECK` seconds while somebody does, and left after `IDLE` seconds
  in which nobody did: a connection for each loop, and every wake-up of the fleet, is more than one cold start should cost for good.
- A follower that never waits costs two operations on dictionaries.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from aiocache_aura.stores.base import Link, Listener

POLL: Final = 1.0
CHECK: Final = 2.0
IDLE: Final = 60.0


class KeyFollower:
    """One who follows a key. `era` is that of the subscription when its key was last to be asked for, 0 for none."""

    __slots__ = ("_all", "_future", "_is_woken", "era", "key")

    def __init__(self, all_: Followers, key: bytes, era: int) -> None:
        self._all, self.key, self.era = all_, key, era
        self._is_woken = False
        self._future: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<KeyFollower era {self.era}{', waiting' if self._future else ''}{', woken' if self._is_woken else ''}>"

    async def wait(self, seconds: float) -> None:
        all_ = self._all
        all_.enter(self)
        try:
            if not self._is_woken and self.era == all_.era and not all_.is_closed:
                await self._sleep(seconds if all_.era else min(seconds, POLL * random.uniform(0.8, 1.2)))  # noqa: S311
        finally:
            self._is_woken, self.era = False, all_.era
            all_.leave()

    async def _sleep(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._future = loop.create_future()
        timer = loop.call_later(seconds, self.stir)
        try:
            await self._future
        finally:
            timer.cancel()
            self._future = None

    def wake(self) -> None:
        self._is_woken = True
        self.stir()

    def stir(self) -> None:
        """Whoever waits is to ask again."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def close(self) -> None:
        self._all.discard(self)


class Followers:
    """All who follow a key in this loop. An `Ear` of the channel."""

    def __init__(self, link: Link, channel: bytes) -> None:
        self._link, self._channel = link, channel
        self._by_key: dict[bytes, list[KeyFollower]] = {}
        self._listener: Listener | None = None
        self._has_asked = self.is_closed = False
        self.era, self._eras = 0, 0  # no era: wake-ups are missed
        self._waiting, self._idle = 0, 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Followers of {len(self._by_key)} keys, {self._waiting} waiting, era {self.era}>"

    def follow(self, key: bytes) -> KeyFollower:
        follower = KeyFollower(self, key, self.era)
        if self.era:
            self._by_key.setdefault(key, []).append(follower)
        return follower

    def discard(self, follower: KeyFollower) -> None:
        there = self._by_key.get(follower.key)
        if there is not None and follower in there:
            there.remove(follower)
            if not there:
                del self._by_key[follower.key]

    def enter(self, follower: KeyFollower) -> None:
        """It waits."""
        self._waiting += 1
        there = self._by_key.setdefault(follower.key, [])
        if follower not in there:
            there.append(follower)
        if not self._has_asked:
            self._has_asked = True
            self._listener = self._link.listen(self._channel, self)
        if self._listener is not None and not self.is_closed:
            if not self.era:
                self._listener.check(CHECK)
            if self._timer is None:
                self._arm()

    def leave(self) -> None:
        self._waiting -= 1

    # The subscription

    def began(self) -> None:
        self._eras += 1
        self.era = self._eras
        self._stir_all()

    def heard(self, payload: bytes) -> None:
        for follower in self._by_key.get(payload, ()):
            follower.wake()

    def ended(self) -> None:
        self.era = 0
        self._stir_all()

    def _stir_all(self) -> None:
        for followers in self._by_key.values():
            for follower in followers:
                follower.stir()

    def _arm(self, idle: float = 0.0) -> None:
        self._idle = idle
        self._timer = asyncio.get_running_loop().call_later(CHECK, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        if self._listener is None:
            return
        if self._waiting:
            self._listener.check(CHECK)
            self._arm()
        elif self._idle < IDLE:
            self._arm(self._idle + CHECK)
        else:
            self._listener.hang_up()

    # The end

    def close(self) -> None:
        """Who waits goes on at once, and nobody waits any more."""
        self.is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._stir_all()

    def forget(self) -> None:
        self.is_closed, self._timer = True, None
        self._by_key.clear()
