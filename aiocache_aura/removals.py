"""Removals: what this process has taken away, or set, since a source began to read. What is gone leaves no trace in the store."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Final

MOST_KEYS: Final = 100_000
MOST_PATTERNS: Final = 100


class Removals:
    """Keys that begin with `head` and were removed or set, and patterns of such, since this was made. `is_full`: there were more."""

    __slots__ = ("__weakref__", "_head", "_keys", "_patterns", "is_full")

    def __init__(self, head: bytes) -> None:
        self._head, self.is_full = head, False
        self._keys: set[bytes] = set()
        self._patterns: list[Callable[[bytes], bool]] = []

    def __repr__(self) -> str:
        return f"<Removals {len(self._keys)} keys, {len(self._patterns)} patterns{', full' if self.is_full else ''}>"

    def __bool__(self) -> bool:
        return self.is_full or bool(self._keys or self._patterns)

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys or any(matches(key) for matches in self._patterns)

    def add(self, keys: Iterable[bytes]) -> None:
        self._keys.update(key for key in keys if key.startswith(self._head))
        if len(self._keys) > MOST_KEYS:
            self.is_full = True
            self._keys.clear()

    def add_where(self, head: bytes, matches: Callable[[bytes], bool]) -> None:
        """What `matches`, of keys that all begin with `head`."""
        if head == self._head:
            self._patterns.append(matches)
        if len(self._patterns) > MOST_PATTERNS:
            self.is_full = True
            self._patterns.clear()


class Watched:
    """Those that are to be told what is removed, for as long as anybody holds them."""

    __slots__ = ("_all",)

    def __init__(self) -> None:
        self._all: weakref.WeakSet[Removals] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"<Watched by {len(self._all)}>"

    def since_now(self, head: bytes) -> Removals:
        removals = Removals(head)
        self._all.add(removals)
        return removals

    def add(self, keys: Iterable[bytes]) -> None:
        if self._all:
            keys = list(keys)
            for one in list(self._all):
                one.add(keys)

    def add_where(self, head: bytes, matches: Callable[[bytes], bool]) -> None:
        for one in list(self._all):
            one.add_where(head, matches)
