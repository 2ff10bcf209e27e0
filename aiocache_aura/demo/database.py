"""SQLite, and the restaurants in it.

Each restaurant has a version, which every change raises in the same transaction; every question reads it in the same snapshot as its rows.
That is how an answer can be told to be old.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

DISHES = {
    "pizza": ("Margherita", "Marinara", "Diavola", "Quattro Formaggi"),
    "pasta": ("Carbonara", "Arrabbiata", "Cacio e Pepe", "Lasagne"),
    "salad": ("Caprese", "Caesar", "Greek", "Rucola e Parmigiano"),
    "dessert": ("Tiramisu", "Panna Cotta", "Gelato", "Cannoli"),
    "drinks": ("Lemonade", "Espresso", "Sparkling Water", "Iced Tea"),
}
ROLES = {"owner": "menu orders reports settings staff", "manager": "menu orders reports", "waiter": "orders", "cook": "menu"}
ALLERGENS = "celery crustaceans egg fish gluten lupin milk molluscs mustard nuts peanuts sesame soya sulphites".split()
STAFF = 8
TODAY = "2026-12-31"
DAYS = [str(date.fromisoformat(TODAY) - timedelta(days=n)) for n in range(365)]
MONTHS = sorted({day[:7] for day in DAYS})

SCHEMA = """
CREATE TABLE restaurants (id INTEGER PRIMARY KEY, name TEXT, currency TEXT, closes TEXT, version INTEGER NOT NULL DEFAULT 0);
CREATE TABLE dishes (id INTEGER PRIMARY KEY, restaurant_id INTEGER, category TEXT, name TEXT, cents INTEGER);
CREATE TABLE staff (restaurant_id INTEGER, user_id INTEGER, role TEXT, PRIMARY KEY (restaurant_id, user_id));
CREATE TABLE roles (role TEXT, permission TEXT);
CREATE TABLE allergens (code INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE orders (
    id INTEGER PRIMARY KEY, restaurant_id INTEGER, dish_id INTEGER, quantity INTEGER, cents INTEGER, day TEXT, hour INTEGER
);
"""
INDEXES = """
CREATE INDEX dishes_of ON dishes (restaurant_id, category);
CREATE INDEX orders_of ON orders (restaurant_id, day);
ANALYZE;
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question found, and the version of the restaurant's data that it saw."""

    restaurant_id: int
    as_of: int
    rows: list[dict[str, Any]]


class Database:
    """A connection for each thread, and one writer at a time. It counts what it is asked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._here = threading.local()
        self._opened: list[tuple[sqlite3.Connection, threading.Lock]] = []
        self._writing, self._counting = threading.Lock(), threading.Lock()
        self._closed = False
        self.queries = 0

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *exc: object) -> None:
        with self._counting:
            self._closed = True
        for connection, in_use in self._opened:
            with in_use:  # SQLite does not survive being closed in the middle of a query; Ctrl-C does not wait for threads
                connection.close()

    def ask(self, sql: str, *, restaurant_id: int = 0, **parameters: object) -> Answer:
        """The rows that a query finds and the restaurant's version, both of one moment."""
        with self._counting:
            self.queries += 1
        with self._connection() as connection, connection:
            connection.execute("BEGIN")
            version = connection.execute("SELECT version FROM restaurants WHERE id = ?", (restaurant_id,)).fetchone()
            rows = [dict(row) for row in connection.execute(sql, {"restaurant_id": restaurant_id, **parameters})]
        return Answer(restaurant_id, version[0] if version else 0, rows)

    @contextmanager
    def changing(self, restaurant_id: int) -> Iterator[tuple[sqlite3.Connection, int]]:
        """A transaction, and the version that it gives the restaurant's data; undone if the block raises."""
        with self._writing, self._connection() as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE restaurants SET version = version + 1 WHERE id = ?", (restaurant_id,))
            (version,) = connection.execute("SELECT version FROM restaurants WHERE id = ?", (restaurant_id,)).fetchone()
            yield connection, version

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection, which is not closed before it is given back."""
        with self._counting:
            if self._closed:
                raise sqlite3.ProgrammingError("the database is closed")
            if not hasattr(self._here, "opened"):
                connection = sqlite3.connect(self._path, isolation_level=None, timeout=30, check_same_thread=False)
                connection.row_factory = sqlite3.Row
                self._here.opened = connection, threading.Lock()
                self._opened.append(self._here.opened)
            connection, in_use = self._here.opened
            in_use.acquire()
        try:
            yield connection
        finally:
            in_use.release()


def zipf(count: int) -> list[float]:
    """Cumulative weights of the numbers from 1 to `count`: a few are chosen often, most hardly ever."""
    return list(accumulate(1 / rank for rank in range(1, count + 1)))


def dishes_of(restaurant_id: int) -> list[tuple[int, str, str]]:
    """(id, category, name) of a restaurant's dishes."""
    named = [(category, name) for category, names in DISHES.items() for name in names]
    first = len(named) * (restaurant_id - 1) + 1
    return [(first + n, category, name) for n, (category, name) in enumerate(named)]


def staff_of(restaurant_id: int) -> range:
    """The ids of the users who work for a restaurant."""
    return range(restaurant_id * STAFF, (restaurant_id + 1) * STAFF)


def build(path: Path, orders: int, restaurants: int, seed: int) -> None:
    """Make the database: a year of orders, most of them of the few restaurants that everybody knows."""
    rng, ids = Random(seed), range(1, restaurants + 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;" + SCHEMA + "BEGIN;")
        names = [(n, f"Trattoria {n}", rng.choice(["EUR", "USD", "CHF"]), "23:00") for n in ids]
        dishes = [(dish, n, category, name, rng.randrange(300, 2500, 50)) for n in ids for dish, category, name in dishes_of(n)]
        connection.executemany("INSERT INTO restaurants (id, name, currency, closes) VALUES (?, ?, ?, ?)", names)
        connection.executemany("INSERT INTO dishes VALUES (?, ?, ?, ?, ?)", dishes)
        staff = [(n, user, rng.choice(list(ROLES))) for n in ids for user in staff_of(n)]
        connection.executemany("INSERT INTO staff VALUES (?, ?, ?)", staff)
        permissions = [(role, permission) for role, all_of_them in ROLES.items() for permission in all_of_them.split()]
        connection.executemany("INSERT INTO roles VALUES (?, ?)", permissions)
        connection.executemany("INSERT INTO allergens (name) VALUES (?)", [(name,) for name in ALLERGENS])
        rows = _orders(rng, orders, ids, {dish: cents for dish, _, _, _, cents in dishes})
        sql = "INSERT INTO orders (restaurant_id, dish_id, quantity, cents, day, hour) VALUES (?, ?, ?, ?, ?, ?)"
        connection.executemany(sql, rows)
        connection.execute("COMMIT")
        connection.executescript(INDEXES)


def _orders(rng: Random, count: int, ids: Sequence[int], prices: dict[int, int]) -> Iterator[tuple[int, int, int, int, str, int]]:
    menus = {n: [dish for dish, _, _ in dishes_of(n)] for n in ids}
    chosen = rng.choices(ids, cum_weights=zipf(len(ids)), k=count)
    for n, dish, quantity, day, hour in zip(
        chosen,
        rng.choices(range(len(menus[1])), k=count),
        rng.choices([1, 2, 3], k=count),
        sorted(rng.choices(DAYS, k=count)),
        rng.choices(range(11, 23), k=count),
        strict=True,
    ):
        dish_id = menus[n][dish]
        yield n, dish_id, quantity, quantity * prices[dish_id], day, hour
