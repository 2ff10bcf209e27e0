"""Whose entry it is: python examples/02_multi_tenant.py"""

import asyncio

from aiocache_aura import CacheManager, MissingTenantError, cache, tenant_scope, user_scope

manager = CacheManager("memory://", prefix="shop")
REVENUE = {1: 100, 2: 200}


@cache(cache_type="analytics", manager=manager)
async def revenue(restaurant_id: int) -> int:
    return REVENUE[restaurant_id]


@cache(cache_type="permissions", tenant_aware=True, user_aware=True, manager=manager)
async def rights() -> list[str]:
    return ["read", "write"]


async def main() -> None:
    print("by argument:", revenue.cache_key(1), await revenue(1), await revenue(2))

    with tenant_scope(1), user_scope("ann"):
        print("by scope:", rights.cache_key(), await rights())
    with tenant_scope(2), user_scope("ann"):
        print("another tenant's ann is cached:", await rights.exists())
    try:
        await rights()
    except MissingTenantError as error:
        print("nobody known:", type(error).__name__)

    REVENUE[1] = REVENUE[2] = 0
    await manager.invalidate_analytics(1)
    print("tenant 1 cleared:", await revenue(1), "- tenant 2 untouched:", await revenue(2))

    await manager.invalidate_user("ann")
    with tenant_scope(1), user_scope("ann"):
        print("ann logged out, cached:", await rights.exists())
    await manager.aclose()


asyncio.run(main())
