"""The back end of a restaurant platform: one question for each built-in cache type, and the changes that make answers old.

These are plain functions with plain SQL. The decorators make them awaitable, run them in worker threads, keep what they return, run them
once however many callers ask at once, and forget the right answers after a change.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiocache_aura import (
    cache_analytics,
    cache_api,
    cache_menu,
    cache_permissions,
    cache_reports,
    cache_search,
    cache_settings,
    cache_static,
    invalidate_cache,
)
from aiocache_aura.demo.database import MONTHS, TODAY, Answer, Database

SOLD_LAST_MONTH = f"""WITH sales AS (
    SELECT dish_id, SUM(quantity) AS sold FROM orders
    WHERE restaurant_id = :restaurant_id AND day BETWEEN '{MONTHS[-2]}-01' AND '{MONTHS[-2]}-31' GROUP BY dish_id)"""


@dataclass(frozen=True, slots=True)
class Change:
    """What an update did: the version it gave the restaurant's data, and what it touched."""

    version: int
    category: str | None = None
    month: str | None = None


class Restaurants:
    """What the platform's API would call. `restaurant_id` is the tenant: it is in the key, and entries can be forgotten by it."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # Questions

    @cache_menu(tags=["category:{category}"])
    def menu(self, restaurant_id: int, category: str) -> Answer:
        """The dishes of a category, favourites first. The tag lets a change of price forget this category and no other."""
        sql = f"""{SOLD_LAST_MONTH} SELECT name, cents, sold FROM dishes LEFT JOIN sales ON dish_id = id
                  WHERE restaurant_id = :restaurant_id AND category = :category ORDER BY sold DESC, name"""
        return self.database.ask(sql, restaurant_id=restaurant_id, category=category)

    @cache_permissions
    def permissions(self, restaurant_id: int, user_id: int) -> Answer:
        """What a member of the staff may do. `user_id` says whose entry it is, as `restaurant_id` does."""
        sql = """SELECT role, permission FROM staff JOIN roles USING (role)
                 WHERE restaurant_id = :restaurant_id AND user_id = :user_id ORDER BY permission"""
        return self.database.ask(sql, restaurant_id=restaurant_id, user_id=user_id)

    @cache_settings
    def settings(self, restaurant_id: int) -> Answer:
        """Name, currency and closing time."""
        return self.database.ask("SELECT name, currency, closes FROM restaurants WHERE id = :restaurant_id", restaurant_id=restaurant_id)

    @cache_analytics(jitter=0.1)
    def busy_hours(self, restaurant_id: int) -> Answer:
        """Orders and revenue by hour, over a whole year. The jitter keeps entries made together from expiring together."""
        sql = """SELECT hour, COUNT(*) AS orders, SUM(cents) AS cents FROM orders
                 WHERE restaurant_id = :restaurant_id GROUP BY hour ORDER BY hour"""
        return self.database.ask(sql, restaurant_id=restaurant_id)

    @cache_api(key="orders:{restaurant_id}:{page}", ttl="30s")
    def latest_orders(self, restaurant_id: int, page: int) -> Answer:
        """A page of orders, under a key of one's own choice and with a shorter life than the type's."""
        sql = """SELECT day, hour, name, quantity, orders.cents FROM orders JOIN dishes ON dishes.id = dish_id
                 WHERE orders.restaurant_id = :restaurant_id ORDER BY day DESC, orders.id DESC LIMIT 20 OFFSET 20 * :page"""
        return self.database.ask(sql, restaurant_id=restaurant_id, page=page)

    @cache_search
    def search(self, restaurant_id: int, text: str) -> Answer:
        """Dishes whose name contains a text, favourites first."""
        sql = f"""{SOLD_LAST_MONTH} SELECT name, category, cents, sold FROM dishes LEFT JOIN sales ON dish_id = id
                  WHERE restaurant_id = :restaurant_id AND name LIKE '%' || :text || '%' ORDER BY sold DESC, name"""
        return self.database.ask(sql, restaurant_id=restaurant_id, text=text)

    @cache_reports(tags=["month:{month}"])
    def best_sellers(self, restaurant_id: int, month: str) -> Answer:
        """The dishes that sold best in a month such as "2026-11"."""
        sql = """SELECT name, SUM(quantity) AS sold, SUM(orders.cents) AS cents FROM orders JOIN dishes ON dishes.id = dish_id
                 WHERE orders.restaurant_id = :restaurant_id AND day BETWEEN :month || '-01' AND :month || '-31'
                 GROUP BY dish_id ORDER BY sold DESC, name LIMIT 10"""
        return self.database.ask(sql, restaurant_id=restaurant_id, month=month)

    @cache_static(tenant_aware=False)
    def allergens(self) -> Answer:
        """The list that every menu refers to: shared by all restaurants, which has to be said in so many words."""
        return self.database.ask("SELECT code, name FROM allergens ORDER BY code")

    # Changes: what they make old is forgotten after they have succeeded, for this restaurant only

    @invalidate_cache("search")
    @invalidate_cache("menu", tags=["category:{result.category}"])
    def change_price(self, restaurant_id: int, dish_id: int, cents: int) -> Change:
        """Makes old: searches, and the menu of the dish's category, which only the result tells."""
        with self.database.changing(restaurant_id) as (connection, version):
            connection.execute("UPDATE dishes SET cents = ? WHERE id = ?", (cents, dish_id))
            (category,) = connection.execute("SELECT category FROM dishes WHERE id = ?", (dish_id,)).fetchone()
        return Change(version, category=category)

    @invalidate_cache("api", "analytics")
    @invalidate_cache("reports", tags=["month:{result.month}"])
    def place_order(self, restaurant_id: int, dish_id: int, quantity: int, hour: int) -> Change:
        """Makes old: the pages of orders, the busy hours, and the report of this month; those of other months stay."""
        sql = """INSERT INTO orders (restaurant_id, dish_id, quantity, cents, day, hour)
                 SELECT restaurant_id, id, ?, ? * cents, ?, ? FROM dishes WHERE id = ?"""
        with self.database.changing(restaurant_id) as (connection, version):
            connection.execute(sql, (quantity, quantity, TODAY, hour, dish_id))
        return Change(version, month=TODAY[:7])

    @invalidate_cache("permissions", user="{user_id}")
    def change_role(self, restaurant_id: int, user_id: int, role: str) -> Change:
        """Makes old: what this user may do in this restaurant."""
        with self.database.changing(restaurant_id) as (connection, version):
            connection.execute("UPDATE staff SET role = ? WHERE restaurant_id = ? AND user_id = ?", (role, restaurant_id, user_id))
        return Change(version)

    @invalidate_cache("settings")
    def close_at(self, restaurant_id: int, closes: str) -> Change:
        """Makes old: the restaurant's settings."""
        with self.database.changing(restaurant_id) as (connection, version):
            connection.execute("UPDATE restaurants SET closes = ? WHERE id = ?", (closes, restaurant_id))
        return Change(version)
