"""ORM rows, stored as plain models by returns=: python examples/05_sqlalchemy.py  (sqlalchemy, aiosqlite, pydantic)"""

import asyncio
from decimal import Decimal

from pydantic import BaseModel
from sqlalchemy import Numeric, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from aiocache_aura import CacheManager, cache_menu, invalidate_cache

manager = CacheManager("memory://", prefix="shop")


class Base(DeclarativeBase): ...


class Dish(Base):
    __tablename__ = "dishes"
    id: Mapped[int] = mapped_column(primary_key=True)
    restaurant_id: Mapped[int]
    name: Mapped[str]
    price: Mapped[Decimal] = mapped_column(Numeric(8, 2))


class DishOut(BaseModel):
    id: int
    name: str
    price: Decimal


@cache_menu(returns=list[DishOut], exclude=["db"], manager=manager)
async def dishes(db: AsyncSession, restaurant_id: int) -> list:
    return list(await db.scalars(select(Dish).where(Dish.restaurant_id == restaurant_id)))


@invalidate_cache("menu", manager=manager)
async def reprice(db: AsyncSession, restaurant_id: int, dish_id: int, price: Decimal) -> None:
    (await db.get_one(Dish, dish_id)).price = price
    await db.commit()  # the invalidation follows


async def main() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as db:
        db.add(Dish(id=1, restaurant_id=7, name="Margherita", price=Decimal("12.50")))
        await db.commit()
        print(await dishes(db, 7), await dishes(db, 7) == await dishes(db, 7), dishes.cache_info()[:2])
        await reprice(db, 7, 1, Decimal("13.00"))
        print((await dishes(db, 7))[0].price, dishes.cache_info()[:2])
    await engine.dispose()
    await manager.aclose()


asyncio.run(main())
