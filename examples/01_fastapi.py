"""Cached routes and their tenants in FastAPI: python examples/01_fastapi.py

The application asks itself, so nothing listens anywhere. With AURA_CACHE_URL=redis://... it caches there.
"""

import asyncio

import httpx
from fastapi import FastAPI

from aiocache_aura import TenantMiddleware, cache_menu, current_tenant, invalidate_cache
from aiocache_aura.cache_manager import cache_manager

app = FastAPI(lifespan=cache_manager.lifespan)
app.add_middleware(TenantMiddleware, tenant="x-tenant-id")
queries = 0


@app.get("/menu")
@cache_menu(tenant_aware=True)
async def menu(section: str = "all") -> dict:
    global queries
    queries += 1
    return {"tenant": current_tenant(), "section": section, "query": queries}


@app.post("/menu")
@invalidate_cache("menu")
async def update(data: dict) -> str:
    return "updated"


async def main() -> None:
    asking = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop")
    async with app.router.lifespan_context(app), asking as client:
        for tenant in ("1", "1", "2"):
            print((await client.get("/menu", headers={"x-tenant-id": tenant})).json())
        print((await client.post("/menu", json={}, headers={"x-tenant-id": "1"})).json(), "by tenant 1")
        for tenant in ("1", "2"):
            print((await client.get("/menu", headers={"x-tenant-id": tenant})).json())


asyncio.run(main())
