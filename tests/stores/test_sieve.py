"""SIEVE against a plain dict with a clock, and against the paper's algorithm written with a list."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiocache_aura.stores.sieve import Sieve

FOREVER = math.inf
KEYS = "abcdefghij"
BOUNDS = [(None, 5), (None, 4), (12, None), (20, 6), (7, 2), (None, 1), (1, None), (None, 0), (0, None), (None, None)]
LIVES = [FOREVER] * 6 + [5.0, 1.0, 0.0, -1.0]


@dataclass
class Item:
    key: str
    value: object
    weight: int
    expires: float
    visited: bool = False


class Reference:
    """Zhang et al. 2024, Algorithm 1, on a list whose first item is the newest; the hand is an item, None is the tail."""

    def __init__(self, max_weight, max_items):
        self.max_weight, self.max_items = max_weight, max_items
        self.items, self.hand, self.evicted = [], None, []

    def find(self, key):
        return next((item for item in self.items if item.key == key), None)

    def weight(self):
        return sum(item.weight for item in self.items)

    def newer(self, item):
        place = self.items.index(item)
        return self.items[place - 1] if place else None

    def remove(self, item):
        if self.hand is item:
            self.hand = self.newer(item)
        self.items.remove(item)

    def evict(self):
        item = self.hand or self.items[-1]
        while item.visited:
            item.visited = False
            item = self.newer(item) or self.items[-1]
        self.hand = item
        self.evicted.append(item.key)
        self.remove(item)

    def is_full(self, weight):
        too_heavy = self.max_weight is not None and self.weight() + weight > self.max_weight
        return too_heavy or (self.max_items is not None and len(self.items) >= self.max_items)

    def put(self, key, value, weight, expires):
        there = self.find(key)
        if there is not None:
            self.remove(there)
        if (self.max_weight is not None and weight > self.max_weight) or self.max_items == 0:
            return False
        while self.is_full(weight):
            self.evict()
        self.items.insert(0, Item(key, value, weight, expires))
        return True


class Machine(RuleBasedStateMachine):
    """Every method against two models: a dict says what may be found, the list what is thrown out."""

    @initialize(bounds=st.sampled_from(BOUNDS))
    def begin(self, bounds):
        max_weight, max_items = bounds
        self.sieve = Sieve(max_weight=max_weight, max_items=max_items)
        self.reference = Reference(max_weight, max_items)
        self.model = {}
        self.now, self.puts, self.since_empty, self.evicted = 100.0, 0, 0, 0

    @rule(key=st.sampled_from(KEYS), weight=st.integers(0, 8), life=st.sampled_from(LIVES))
    def put(self, key, weight, life):
        self.puts += 1
        self.since_empty += 1
        stored = self.sieve.put(key, self.puts, weight=weight, expires=self.now + life)
        assert stored is self.reference.put(key, self.puts, weight, self.now + life)
        self.model.pop(key, None)
        if stored:
            self.model[key] = self.puts, self.now + life
        for gone in self.reference.evicted:
            if gone != key or not stored:
                self.model.pop(gone, None)
        assert stored or key not in self.sieve

    @rule(key=st.sampled_from(KEYS))
    def get(self, key):
        value, expires = self.model.get(key, (None, FOREVER))
        item = self.reference.find(key)
        if self.now >= expires:
            del self.model[key]
            self.reference.remove(item)
            value = None
        elif item is not None:
            item.visited = True
        assert self.sieve.get(key, self.now) == value

    @rule(keys=st.sets(st.sampled_from(KEYS), min_size=2))
    def get_many(self, keys):
        for key in sorted(keys):
            self.get(key)

    @rule(key=st.sampled_from(KEYS))
    def pop(self, key):
        item = self.reference.find(key)
        if item is not None:
            self.reference.remove(item)
        assert self.sieve.pop(key) == self.model.pop(key, (None,))[0]

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0]))
    def wait(self, seconds):
        self.now += seconds

    @precondition(lambda self: self.since_empty > 15)
    @rule()
    def clear(self):
        self.since_empty = 0
        self.sieve.clear()
        self.model.clear()
        self.reference.items, self.reference.hand = [], None

    @precondition(lambda self: self.since_empty > 15)
    @rule()
    def change_while_iterating(self):
        self.since_empty = 0
        seen = []
        for key in self.sieve:
            seen.append(key)
            self.pop(key)
        assert not self.sieve._nodes
        assert len(seen) == len(set(seen))

    @invariant()
    def it_holds_what_the_models_hold(self):
        if not hasattr(self, "sieve"):
            return
        self.reference.evicted, evicted = [], self.reference.evicted
        self.evicted += len(evicted)
        assert self.sieve.evictions == self.evicted
        assert set(self.sieve) == set(self.model) == {item.key for item in self.reference.items}
        assert len(self.sieve) == len(self.model)
        assert f"Sieve({len(self.model)} items, weight {self.reference.weight()}, {self.evicted} evictions)" == repr(self.sieve)

    @invariant()
    def its_docstring_is_kept(self):
        """The list holds the mapping's items, in both directions; weight is their sum; bounds hold; the hand is in the list."""
        if not hasattr(self, "sieve"):
            return
        sieve, node, found = self.sieve, self.sieve._head, []
        assert node is None or node.newer is None
        while node is not None:
            found.append(node)
            assert sieve._nodes[node.key] is node
            assert node.older is None or node.older.newer is node
            node = node.older
        assert sieve._tail is (found[-1] if found else None)
        assert [(node.key, node.visited) for node in found] == [(item.key, item.visited) for item in self.reference.items]
        assert sieve.weight == sum(node.weight for node in found)
        assert sieve.max_weight is None or sieve.weight <= sieve.max_weight
        assert sieve.max_items is None or len(sieve) <= sieve.max_items
        assert sieve._hand is None or sieve._hand in found
        assert (sieve._hand and sieve._hand.key) == (self.reference.hand and self.reference.hand.key)


class TestMachine(Machine.TestCase):
    settings = settings(max_examples=300, stateful_step_count=60)


# Limits


@pytest.mark.parametrize("limit", [1, 2, 7])
@pytest.mark.parametrize("by", [-1, 0, 1])
def test_r27_the_limit_of_items(limit, by):
    """R27: up to the limit nothing is thrown out, one more throws out one, and the count never passes the limit."""
    sieve = Sieve(max_items=limit)
    for n in range(limit + by):
        assert sieve.put(n, n) is True
        assert sieve.get(n, 0.0) == n
        assert len(sieve) <= limit
    assert (len(sieve), sieve.evictions) == (min(limit + by, limit), max(by, 0))


@pytest.mark.parametrize("by", [-1, 0, 1])
def test_r27_the_limit_of_weight(by):
    """R27: items that just fill the bound stay; one unit more throws out as many as it needs, and no more."""
    sieve = Sieve(max_weight=10)
    for n, weight in enumerate((3, 3, 4 + by)):
        assert sieve.put(n, n, weight=weight) is True
    assert (list(sieve), sieve.weight, sieve.evictions) == (([0, 1, 2], 10 + by, 0) if by <= 0 else ([1, 2], 8, 1))


@pytest.mark.parametrize("by", [-1, 0, 1])
def test_r27_the_weight_of_one_item(by):
    """R27: an item of the whole bound replaces all the others; a heavier one takes out what was under its key, and nothing else."""
    sieve = Sieve(max_weight=10)
    for key in "ab":
        sieve.put(key, key, weight=1)
    assert sieve.put("a", "heavy", weight=10 + by) is (by <= 0)
    assert list(sieve) == {-1: ["b", "a"], 0: ["a"], 1: ["b"]}[by]


@pytest.mark.parametrize("bounds", [{"max_items": 0}, {"max_weight": 0}])
def test_a_bound_of_nothing(bounds):
    """Nothing is stored, nothing loops, and it is said."""
    sieve = Sieve(**bounds)
    assert sieve.put("a", 1) is False
    assert len(sieve) == sieve.weight == sieve.evictions == 0


def test_no_bound():
    """Without a bound it is a dictionary."""
    sieve = Sieve()
    for n in range(10_000):
        sieve.put(n, n, weight=10**6)
    assert (len(sieve), sieve.weight, sieve.evictions) == (10_000, 10**10, 0)


@pytest.mark.parametrize(("now", "found"), [(9.999, 1), (10.0, None), (10.001, None)])
def test_the_end_of_a_life(now, found):
    """A life is over at its end, not after it; what is over is taken out when it is asked for, and its weight with it."""
    sieve = Sieve()
    sieve.put("a", 1, weight=3, expires=10.0)
    assert sieve.get("a", now) == found
    assert sieve.weight == (3 if found else 0)
    assert sieve.pop("a") == found


def test_a_new_value_has_its_own_weight_and_life():
    """Writing over an item leaves nothing of the old one behind, and throws nothing out where there is room."""
    sieve = Sieve(max_weight=10)
    sieve.put("a", 1, weight=9, expires=1.0)
    sieve.put("a", 2, weight=10, expires=9.0)
    assert (sieve.get("a", 5.0), sieve.weight, len(sieve), sieve.evictions) == (2, 10, 1, 0)


# What it is for


def test_r29_a_hot_key_survives_a_scan():
    """R29: the key that was asked for most stays, though its life is the shortest; a scan of a hundred times the room passes through."""
    sieve = Sieve(max_items=100)
    sieve.put("hot", "hot", expires=10.0)
    for n in range(99):
        sieve.put(n, n, expires=1000.0)
    assert sieve.get("hot", 0.0) == "hot"
    for n in range(100, 10_100):
        sieve.put(n, n, expires=1000.0)
    assert sieve.get("hot", 9.0) == "hot"
    assert sieve.evictions == 10_000


def test_hot_keys_of_any_weight_survive_while_they_are_asked_for():
    """A working set of half the room, asked for between, stays whole in a stream of keys that are asked for once."""
    sieve = Sieve(max_weight=1000)
    hot = {f"hot {n}": 1 + n % 20 for n in range(48)}
    assert sum(hot.values()) < 500
    for key, weight in hot.items():
        sieve.put(key, key, weight=weight)
        sieve.get(key, 0.0)
    for n in range(20_000):
        sieve.put(n, n, weight=1 + n % 7)
        if n % 10 == 0:
            key = f"hot {n // 10 % 48}"
            assert sieve.get(key, 0.0) == key, f"{key} was thrown out by {n} keys that nobody asks for"


def test_the_hand_goes_round():
    """Beyond the newest item the hand goes on at the oldest, and not at where it began."""
    sieve = Sieve(max_items=4)
    for key in "abcd":
        sieve.put(key, key)
    sieve.get("a", 0.0)
    sieve.put("e", "e")
    assert set(sieve) == set("acde")
    for key in "cde":
        sieve.get(key, 0.0)
    sieve.put("f", "f")
    assert set(sieve) == set("cdef")


def test_what_nobody_asks_for_goes_first_and_a_mark_counts_once():
    """The hand passes who was asked for, takes the next who was not, and remembers where it was."""
    sieve = Sieve(max_items=4)
    for key in "abcd":
        sieve.put(key, key)
    for key in "ab":
        sieve.get(key, 0.0)
    gone = []
    for key in "efghi":
        before = set(sieve)
        sieve.put(key, key)
        gone += before - set(sieve)
    assert gone == ["c", "d", "e", "f", "g"]
    assert set(sieve) == {"a", "b", "h", "i"}
