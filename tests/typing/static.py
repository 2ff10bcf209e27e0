# pyright: strict
"""Static and class methods under and over the decorators, through the class and through instances; typed, and `main` runs."""

from __future__ import annotations

import asyncio
from typing import TypeVar, assert_type

from aiocache_aura import cache, invalidate_cache
from aiocache_aura.cache_manager import cache_manager

T = TypeVar("T")


class A:
    @staticmethod
    @cache(cache_type="api")
    async def s1(x: int) -> str:
        return "s1"

    @cache(cache_type="api")
    @staticmethod
    async def s2(x: int) -> str:
        return "s2"

    @cache(cache_type="api")
    @staticmethod
    def s3(x: int) -> str:
        return "s3"

    @classmethod
    @cache(cache_type="api")
    async def c1(cls, x: int) -> str:
        return f"c1 of {cls.__name__}"

    @cache(cache_type="api")
    @classmethod
    async def c2(cls, x: int) -> str:
        return f"c2 of {cls.__name__}"

    @cache(cache_type="api")
    @classmethod
    def c3(cls, x: int) -> str:
        return f"c3 of {cls.__name__}"

    @classmethod
    @cache(cache_type="api")
    async def c4(cls, x: T) -> T:
        return x

    @cache(cache_type="api")
    async def m(self, x: int) -> str:
        return "m"

    @cache(cache_type="api")
    def ms(self, x: int) -> str:
        return "ms"

    @staticmethod
    @invalidate_cache("menu")
    async def i1(x: int) -> str:
        return "i1"

    @classmethod
    @invalidate_cache("menu")
    async def i2(cls, x: int) -> str:
        return f"i2 of {cls.__name__}"


class B(A): ...


async def by_class() -> None:
    assert_type(await A.s1(1), str)
    assert_type(await A.s2(1), str)
    assert_type(await A.s3(1), str)
    assert_type(await A.c1(1), str)
    assert_type(await A.c2(x=1), str)
    assert_type(await B.c1(1), str)
    assert_type(await B.c2(1), str)
    assert_type(await B.c3(1), str)
    assert_type(await A.c4("x"), str)
    assert_type(await A.m(A(), 1), str)
    assert_type(await A.ms(B(), 1), str)
    assert_type(await A.i1(1), str)
    assert_type(await B.i2(1), str)
    assert (await A.s1(1), await A.s2(1), await A.s3(1)) == ("s1", "s2", "s3")
    assert (await B.c1(1), await B.c2(1), await B.c3(1)) == ("c1 of B", "c2 of B", "c3 of B")
    assert (await A.c1(1), await A.c2(1), await A.c3(1)) == ("c1 of A", "c2 of A", "c3 of A")
    assert await B.i2(1) == "i2 of B"


async def verbs_by_class() -> None:
    assert_type(await A.s1.invalidate(1), bool)
    assert_type(await A.s2.peek(1), str | None)
    assert_type(await A.s3.exists(1), bool)
    assert_type(await A.c1.invalidate(1), bool)
    assert_type(await A.c2.refresh(1), str)
    assert_type(await B.c3.set_value("x", 1), bool)
    assert_type(A.c2.cache_key(1), str)
    assert_type(await A.m.invalidate(A(), 1), bool)
    assert_type(await A.ms.set_value("x", A(), 1), bool)
    assert_type(await A.m.cache_clear(), bool)
    assert_type(A.c1.cache_info().hits, int)
    assert A.c2.cache_key(1) != B.c2.cache_key(1)
    assert A.s1.cache_key(1) == B.s1.cache_key(1)


async def by_instance() -> None:
    a, b = A(), B()
    assert_type(await a.c1(1), str)
    assert_type(await b.c2(1), str)
    assert_type(await b.c3(1), str)
    assert_type(await a.m(1), str)
    assert_type(await b.ms(x=1), str)
    assert_type(await a.m.invalidate(1), bool)
    assert_type(await a.ms.peek(1), str | None)
    assert_type(await b.i2(1), str)
    assert await b.c1(1) == "c1 of B"


async def main() -> None:
    async with cache_manager:
        await by_class()
        await verbs_by_class()
        await by_instance()
        a = A()  # a static method through an instance: mypy takes its first argument away (prototypes/typing), pyright does not
        assert await a.s1(1) == "s1"  # type: ignore[call-arg,arg-type,unused-ignore]
        assert await a.s2(1) == "s2"  # type: ignore[call-arg,arg-type,unused-ignore]


if __name__ == "__main__":
    asyncio.run(main())
