"""What the restaurants are asked: a list of requests, always the same for the same seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from aiocache_aura.demo.database import DISHES, MONTHS, ROLES, TODAY, dishes_of, staff_of, zipf

UPDATE = "updates"
QUESTIONS = {"menu": 40, "permissions": 15, "settings": 14, "search": 10, "api": 8, "static": 5, "analytics": 4, "reports": 4}
CHANGES = {"place_order": 12, "change_price": 4, "change_role": 2, "close_at": 2}
SHARE_OF_CHANGES = 0.03


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the back end. `about` is the data that a question is about, or that a change makes old."""

    kind: str
    method: str
    restaurant_id: int
    args: tuple[Any, ...]
    about: tuple[str, ...]
    pause: float = field(compare=False, default=0.0)

    @property
    def is_change(self) -> bool:
        """Whether it changes the database."""
        return self.kind == UPDATE

    def __str__(self) -> str:
        return f"{self.method}({', '.join(map(repr, self.args))})"


def plan(count: int, *, restaurants: int, pause: float, seed: int) -> list[Request]:
    """The requests that a seed gives: most of them to the few restaurants that everybody knows."""
    rng = Random(seed)
    chosen = rng.choices(range(1, restaurants + 1), cum_weights=zipf(restaurants), k=count)
    return [_request(rng, restaurant_id, rng.uniform(0, 2 * pause)) for restaurant_id in chosen]


def _request(rng: Random, restaurant_id: int, pause: float) -> Request:
    if rng.random() < SHARE_OF_CHANGES:
        (method,) = rng.choices(list(CHANGES), weights=list(CHANGES.values()))
        args, about = _change(rng, restaurant_id, method)
        return Request(UPDATE, method, restaurant_id, (restaurant_id, *args), about, pause)
    (kind,) = rng.choices(list(QUESTIONS), weights=list(QUESTIONS.values()))
    if kind == "static":
        return Request(kind, "allergens", 0, (), ("allergens",), pause)
    method, args, about = _question(rng, restaurant_id, kind)
    return Request(kind, method, restaurant_id, (restaurant_id, *args), about, pause)


def _question(rng: Random, restaurant_id: int, kind: str) -> tuple[str, tuple[Any, ...], tuple[str, ...]]:
    match kind:
        case "menu":
            category = rng.choice(list(DISHES))
            return "menu", (category,), (f"dishes of {category}",)
        case "permissions":
            user_id = rng.choice(staff_of(restaurant_id))
            return "permissions", (user_id,), (f"role of {user_id}",)
        case "settings":
            return "settings", (), ("settings",)
        case "search":
            return "search", (rng.choice(["ar", "ca", "to", "ella", "water"]),), ("dishes",)
        case "api":
            return "latest_orders", (min(int(rng.expovariate(1)), 4),), ("orders",)
        case "analytics":
            return "busy_hours", (), ("orders",)
        case _:
            month = MONTHS[-1 - min(int(rng.expovariate(0.7)), 5)]
            return "best_sellers", (month,), (f"orders of {month}",)


def _change(rng: Random, restaurant_id: int, method: str) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    dish_id, category, _ = rng.choice(dishes_of(restaurant_id))
    match method:
        case "place_order":
            return (dish_id, rng.randint(1, 3), rng.randint(11, 22)), ("orders", f"orders of {TODAY[:7]}")
        case "change_price":
            return (dish_id, rng.randrange(300, 2500, 50)), ("dishes", f"dishes of {category}")
        case "change_role":
            user_id = rng.choice(staff_of(restaurant_id))
            return (user_id, rng.choice(list(ROLES))), (f"role of {user_id}",)
        case _:
            return (f"{rng.randint(20, 23)}:{rng.choice(['00', '30'])}",), ("settings",)
