"""SIEVE: a bounded mapping that throws out what nobody has asked for since the hand last passed.

Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024. New items enter at the head and a hit only sets a mark. To make room, a hand walks
from the tail towards the head, clears the marks it meets and takes out the first item without one. Beyond the paper: a weight for each
item and a bound on their sum, and an end of life for each item.

Invariants: the linked list holds exactly the items of the mapping; `weight` is the sum of theirs, and `groups` are the sums by group;
neither bound is ever exceeded when a method returns; the hand is None or an item of the list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class _Node(Generic[K, V]):
    __slots__ = ("expires", "key", "newer", "older", "value", "visited", "weight")

    def __init__(self, key: K, value: V, weight: int, expires: float) -> None:
        self.key, self.value, self.weight, self.expires = key, value, weight, expires
        self.visited = False
        self.newer: _Node[K, V] | None = None
        self.older: _Node[K, V] | None = None


class Sieve(Generic[K, V]):
    """A mapping bounded by `max_weight` and `max_items` (None: no bound). Not thread-safe; times are the caller's.

    Items may be counted in groups: `group` gives that of a key. `on_evict` is called with a key that is thrown out and the bound that it
    was thrown out for, "entries" or "bytes", or "too large" for what is not taken at all.
    """

    def __init__(
        self,
        *,
        max_weight: int | None = None,
        max_items: int | None = None,
        group: Callable[[K], object] | None = None,
        on_evict: Callable[[K, str], None] | None = None,
    ) -> None:
        self.max_weight, self.max_items = max_weight, max_items
        self._group, self._on_evict = group, on_evict
        self.groups: dict[object, tuple[int, int]] = {}
        self.weight = 0
        self.evictions = 0
        self._nodes: dict[K, _Node[K, V]] = {}
        self._head: _Node[K, V] | None = None
        self._tail: _Node[K, V] | None = None
        self._hand: _Node[K, V] | None = None

    def __repr__(self) -> str:
        return f"Sieve({len(self._nodes)} items, weight {self.weight}, {self.evictions} evictions)"

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[K]:
        """The keys there are, expired ones too, as they are now: changes meanwhile are allowed."""
        return iter(list(self._nodes))

    def get(self, key: K, now: float) -> V | None:
        """The value, marked as asked for; None if it is not there or its life is over."""
        node = self._nodes.get(key)
        if node is None:
            return None
        if now >= node.expires:
            self._remove(node)
            return None
        node.visited = True
        return node.value

    def put(self, key: K, value: V, *, weight: int = 1, expires: float = float("inf")) -> bool:
        """Store over what is there; False, and nothing is there any more, if it alone is above the bound."""
        self.pop(key)
        if (self.max_weight is not None and weight > self.max_weight) or self.max_items == 0:
            if self._on_evict is not None:
                self._on_evict(key, "too large")
            return False
        self._make_room(weight)
        node = self._nodes[key] = _Node(key, value, weight, expires)
        self._link(node)
        self._weigh(key, 1, weight)
        return True

    def pop(self, key: K) -> V | None:
        """Take out; the value that was there, expired or not."""
        node = self._nodes.get(key)
        if node is None:
            return None
        self._remove(node)
        return node.value

    def clear(self) -> None:
        self._nodes.clear()
        self.groups.clear()
        self._head = self._tail = self._hand = None
        self.weight = 0

    def _make_room(self, weight: int) -> None:
        while (self.max_items is not None and len(self._nodes) >= self.max_items) or (
            self.max_weight is not None and self.weight + weight > self.max_weight
        ):
            self._evict()

    def _evict(self) -> None:
        node = self._hand or self._tail
        while node is not None and node.visited:
            node.visited = False
            node = node.newer or self._tail
        if node is not None:
            self._remove(node)
            self._hand = node.newer
            self.evictions += 1
            if self._on_evict is not None:
                self._on_evict(node.key, "entries" if len(self._nodes) + 1 == self.max_items else "bytes")

    def _weigh(self, key: K, items: int, weight: int) -> None:
        self.weight += weight
        if self._group is not None:
            group = self._group(key)
            there, weighs = self.groups.get(group, (0, 0))
            if there + items:
                self.groups[group] = there + items, weighs + weight
            else:
                del self.groups[group]

    def _link(self, node: _Node[K, V]) -> None:
        node.older = self._head
        if self._head is not None:
            self._head.newer = node
        self._head = node
        if self._tail is None:
            self._tail = node

    def _remove(self, node: _Node[K, V]) -> None:
        del self._nodes[node.key]
        self._weigh(node.key, -1, -node.weight)
        if self._hand is node:
            self._hand = node.newer
        if node.newer is None:
            self._head = node.older
        else:
            node.newer.older = node.older
        if node.older is None:
            self._tail = node.newer
        else:
            node.older.newer = node.newer
