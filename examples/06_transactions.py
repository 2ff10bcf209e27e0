"""A reader between invalidation and commit, with and without deferred(): python examples/06_transactions.py  (sqlalchemy, aiosqlite)"""

import asyncio
import tempfile

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from aiocache_aura import CacheManager, cache_menu, invalidate_cache

manager = CacheManager("memory://", prefix="shop")


class Base(DeclarativeBase): ...


class Dish(Base):
    __tablename__ = "dishes"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int]


@cache_menu(tags=["dish:{dish_id}"], exclude=["sessions"], manager=manager)
async def price_of(sessions: async_sessionmaker[AsyncSession], dish_id: int) -> int:
    async with sessions() as db:
        return (await db.get_one(Dish, dish_id)).price


@invalidate_cache("menu", tags=["dish:{dish_id}"], manager=manager)
async def reprice(db: AsyncSession, dish_id: int, price: int) -> None:
    await db.execute(update(Dish).where(Dish.id == dish_id).values(price=price))  # its caller commits


async def main(url: str) -> None:
    engine = create_async_engine(url)
    sessions = async_sessionmaker(engine)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with sessions.begin() as db:
        db.add(Dish(id=1, price=10))

    async with sessions.begin() as db:
        await reprice(db, 1, 12)
        await price_of(sessions, 1)  # a reader, before the commit
    async with sessions() as db:
        print("without deferred() - cached:", await price_of(sessions, 1), "in the database:", await db.scalar(select(Dish.price)))

    async with manager.deferred(), sessions.begin() as db:
        await reprice(db, 1, 14)
        await price_of(sessions, 1)
    async with sessions() as db:
        print("with deferred() - cached:", await price_of(sessions, 1), "in the database:", await db.scalar(select(Dish.price)))
    await manager.aclose()
    await engine.dispose()


with tempfile.TemporaryDirectory() as directory:
    asyncio.run(main(f"sqlite+aiosqlite:///{directory}/shop.db"))
