"""The middleware: whose request it is."""

from __future__ import annotations

import asyncio

import pytest

from aiocache_aura.context import current_tenant, current_user, tenant_scope
from aiocache_aura.errors import ConfigurationError
from aiocache_aura.integrations.asgi import TenantMiddleware


async def seen_by_app(scope, **options):
    seen = []

    async def app(scope, receive, send):
        seen.append((current_tenant(), current_user()))

    await TenantMiddleware(app, **options)(scope, None, None)
    assert (current_tenant(), current_user()) == (None, None)
    return seen[0]


def request(*headers, kind="http", **more):
    return {"type": kind, "headers": [(name.encode(), value.encode()) for name, value in headers], **more}


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_callables_are_given_the_scope(kind):
    scope = request(kind=kind, path="/7", user={"id": 5})
    assert await seen_by_app(scope, tenant=lambda s: s["path"][1:], user=lambda s: s["user"]["id"]) == ("7", "5")


async def test_callables_may_be_async():
    async def tenant(scope):
        await asyncio.sleep(0)
        return 7

    assert await seen_by_app(request(), tenant=tenant) == ("7", None)


async def test_names_of_headers():
    scope = request(("x-tenant-id", "7"), ("x-user", "ann"))
    assert await seen_by_app(scope, tenant="X-Tenant-ID", user="x-user") == ("7", "ann")


@pytest.mark.parametrize("headers", [(), (("x-tenant", ""),), (("x-tenant", "  "),)])
async def test_an_absent_or_empty_header_is_nobody(headers):
    assert await seen_by_app(request(*headers), tenant="x-tenant") == (None, None)


async def test_a_header_sent_twice_is_neither_of_the_two():
    assert (await seen_by_app(request(("x-tenant", "1"), ("x-tenant", "2")), tenant="x-tenant"))[0] not in (None, "1", "2")


async def test_none_leaves_what_is_known():
    with tenant_scope(3):
        seen = []

        async def app(scope, receive, send):
            seen.append(current_tenant())

        await TenantMiddleware(app, tenant=lambda scope: None)(request(), None, None)
        assert seen == ["3"]


async def test_lifespan_passes_through():
    def tenant(scope):
        raise AssertionError("a lifespan has no tenant")

    assert await seen_by_app({"type": "lifespan"}, tenant=tenant) == (None, None)


@pytest.mark.parametrize("wrong", ["", True, 1.5])
async def test_what_is_no_id_is_a_type_error(wrong):
    with pytest.raises(TypeError):
        await seen_by_app(request(), tenant=lambda scope: wrong)


async def test_an_error_of_the_app_ends_the_scope():
    async def app(scope, receive, send):
        raise LookupError("x")

    with pytest.raises(LookupError):
        await TenantMiddleware(app, tenant=lambda scope: 1)(request(), None, None)
    assert current_tenant() is None


async def test_requests_at_the_same_time_do_not_mix():
    both = asyncio.Barrier(2)
    seen = {}

    async def app(scope, receive, send):
        await both.wait()
        seen[scope["n"]] = current_tenant()
        await both.wait()

    middleware = TenantMiddleware(app, tenant=lambda scope: scope["n"])
    await asyncio.gather(middleware(request(n=1), None, None), middleware(request(n=2), None, None))
    assert seen == {1: "1", 2: "2"}


@pytest.mark.parametrize("options", [{}, {"tenant": 5}, {"user": b"x-user"}])
def test_options_that_cannot_work(options):
    with pytest.raises(ConfigurationError):
        TenantMiddleware(None, **options)


async def test_in_starlette():
    import httpx
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def whose(request):
        return PlainTextResponse(f"{current_tenant()} {current_user()}")

    app = Starlette(routes=[Route("/", whose)], middleware=[Middleware(TenantMiddleware, tenant="x-tenant", user="x-user")])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        assert (await client.get("/", headers={"X-Tenant": "7"})).text == "7 None"
        assert (await client.get("/", headers={"X-User": "5"})).text == "None 5"
