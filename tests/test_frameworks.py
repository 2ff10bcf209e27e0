"""Web frameworks: routes and dependencies of FastAPI, Starlette and Litestar take decorated functions; tenants are kept apart."""

from __future__ import annotations

import asyncio
import copy
import inspect
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated

import anyio.from_thread
import anyio.to_thread
import httpx
import litestar
import pytest
import redis
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request
from litestar.di import NamedDependency, Provide
from litestar.middleware import DefineMiddleware
from litestar.params import FromPath, FromQuery, JSONBody
from pydantic import BaseModel, ConfigDict
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from aiocache_aura import (
    CachedFunction,
    CacheManager,
    KeyPartError,
    TenantMiddleware,
    cache,
    cache_api,
    cache_menu,
    cache_search,
    current_tenant,
    current_user,
    tenant_scope,
)
from aiocache_aura.cache_manager import cache_manager
from aiocache_aura.decorators import cache_settings, invalidate_cache

# FastAPI keeps the functions of every application that was ever made, so those of the test before are namesakes of these.
pytestmark = pytest.mark.filterwarnings("ignore:a second function is cached")

NAME = "aiocache_aura.cache_manager.cache_manager"


class Dish(BaseModel):
    id: int
    name: str


class DishIn(BaseModel):
    name: str


class Plain:
    def dishes(self, n: int) -> int:
        return n


class Session:
    """What a request opens, and what must not be used once it has ended."""

    opened: list[Session] = []

    def __init__(self) -> None:
        self.is_open, self.queries = True, 0
        self.opened.append(self)

    async def query(self) -> None:
        assert self.is_open
        self.queries += 1
        await asyncio.sleep(0)
        assert self.is_open


async def session() -> AsyncIterator[Session]:
    one = Session()
    try:
        yield one
    finally:
        one.is_open = False


SessionOf = Annotated[Session, Depends(session)]
Limit = Annotated[int, Query(ge=1, le=100, description="how many")]


@pytest.fixture(params=["memory", "valkey"])
async def manager(request, monkeypatch):
    url = "memory://" if request.param == "memory" else request.getfixturevalue("valkey").url
    async with CacheManager(url, prefix="web") as manager:
        monkeypatch.setattr(NAME, manager)
        Session.opened = []
        yield manager


def asking(app) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop")


class TestFastAPI:
    async def test_a_route_is_validated_and_cached(self, manager):
        """Path and query are parsed and validated as without the decorator; the second request does not run the function."""
        app, calls = FastAPI(), []

        @app.get("/menus/{restaurant_id}")
        @cache_menu()
        async def menu(restaurant_id: int, section: str = "all", limit: Limit = 10) -> list[Dish]:
            calls.append((restaurant_id, section, limit))
            return [Dish(id=limit, name=section)]

        async with asking(app) as client:
            for _ in range(2):
                answer = await client.get("/menus/1?section=pizza&limit=5")
                assert (answer.status_code, answer.json()) == (200, [{"id": 5, "name": "pizza"}])
            assert (await client.get("/menus/1")).json() == (await client.get("/menus/1?section=all&limit=10")).json()
            wrong = await client.get("/menus/x?limit=0")
            assert wrong.status_code == 422
            assert [error["loc"] for error in wrong.json()["detail"]] == [["path", "restaurant_id"], ["query", "limit"]]
        assert calls == [(1, "pizza", 5), (1, "all", 10)]
        assert isinstance(await menu.peek(1, "pizza", 5), list) and await menu.exists(1, section="all")

    async def test_the_schema_shows_the_parameters(self, manager):
        """OpenAPI has name, parameters, result and docstring of the function, and nothing of what a dependency gives."""
        app = FastAPI()

        @app.get("/menus/{restaurant_id}")
        @cache_menu(exclude=["db"])
        async def menu(restaurant_id: int, db: SessionOf, limit: Limit = 10) -> list[Dish]:
            """The dishes of a restaurant."""
            return []

        @app.post("/menus/{restaurant_id}")
        @invalidate_cache("menu")
        def add(restaurant_id: int, dish: DishIn) -> Dish:
            return Dish(id=1, name=dish.name)

        got, posted = (app.openapi()["paths"]["/menus/{restaurant_id}"][verb] for verb in ("get", "post"))
        assert (got["summary"], got["description"]) == ("Menu", "The dishes of a restaurant.")
        assert [(p["name"], p["in"], p["required"]) for p in got["parameters"]] == [
            ("restaurant_id", "path", True),
            ("limit", "query", False),
        ]
        limit = got["parameters"][1]["schema"]
        assert (limit["minimum"], limit["maximum"], limit["default"], got["parameters"][1]["description"]) == (1, 100, 10, "how many")
        assert got["responses"]["200"]["content"]["application/json"]["schema"]["items"] == {"$ref": "#/components/schemas/Dish"}
        assert posted["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/DishIn"}
        assert posted["responses"]["200"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Dish"}

    async def test_a_session_by_dependency(self, manager):
        """`exclude=["db"]`: each request has its session, closed after it; the function uses that of the request that loads."""
        app = FastAPI()

        @app.get("/menus/{restaurant_id}")
        @cache_menu(exclude=["db"])
        async def menu(restaurant_id: int, db: SessionOf) -> list[Dish]:
            await db.query()
            return [Dish(id=restaurant_id, name="Pizza")]

        @app.get("/old/{restaurant_id}")
        @cache_menu(exclude=["db"])
        async def spelt_as_default(restaurant_id: int, db: Session = Depends(session)) -> str:
            await db.query()
            return "old"

        async with asking(app) as client:
            answers = await asyncio.gather(*(client.get(f"/menus/{n % 2}") for n in range(10)))
            assert {(answer.status_code, answer.text) for answer in answers} == {
                (200, '[{"id":0,"name":"Pizza"}]'),
                (200, '[{"id":1,"name":"Pizza"}]'),
            }
            assert len(Session.opened) == 10 and sum(one.queries for one in Session.opened) == 2
            assert (await client.get("/old/1")).json() == (await client.get("/old/1")).json() == "old"
        assert sum(one.queries for one in Session.opened) == 3
        assert not any(one.is_open for one in Session.opened)

    async def test_a_client_that_leaves_takes_its_load_along(self, manager):
        """The load ends before the leaving request's session is closed; who waited for it loads with a session of their own."""
        app, used, began, may, open_at_end = FastAPI(), [], asyncio.Event(), asyncio.Event(), []

        @app.get("/menu")
        @cache_menu(exclude=["db"])
        async def menu(db: SessionOf) -> str:
            used.append(db)
            began.set()
            try:
                await may.wait()
            finally:
                open_at_end.append(db.is_open)
            return "menu"

        async with asking(app) as client:
            leaving = asyncio.create_task(client.get("/menu"))
            await began.wait()
            began.clear()
            staying = asyncio.create_task(client.get("/menu"))
            while manager.stats()["menu"]["coalesced"] < 1:
                await asyncio.sleep(0)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            async with asyncio.timeout(10):
                await began.wait()
            may.set()
            assert (await staying).json() == "menu"
        assert used == Session.opened and len(used) == 2
        assert open_at_end == [True, True]
        assert not any(one.is_open for one in Session.opened)

    async def test_a_decorated_function_as_dependency(self, manager):
        """It has its own parameters and dependencies, which are validated, and is loaded once."""
        app, loads = FastAPI(), []

        @cache_settings(exclude=["db"])
        async def settings_of(restaurant_id: int, db: SessionOf, zone: str = "UTC") -> dict:
            await db.query()
            loads.append(restaurant_id)
            return {"zone": zone}

        @cache_settings()
        def currency_of(restaurant_id: int) -> str:
            loads.append(restaurant_id)
            return "EUR"

        @app.get("/price/{restaurant_id}")
        async def price(settings: dict = Depends(settings_of), currency: str = Depends(currency_of)) -> str:
            return f"{currency} at {settings['zone']}"

        async with asking(app) as client:
            for _ in range(3):
                assert (await client.get("/price/1?zone=CET")).json() == "EUR at CET"
            assert (await client.get("/price/x")).status_code == 422
        assert loads == [1, 1]
        names = [parameter["name"] for parameter in app.openapi()["paths"]["/price/{restaurant_id}"]["get"]["parameters"]]
        assert names == ["restaurant_id", "zone"]

    async def test_a_plain_function_as_route(self, manager):
        """It runs in a thread, not in the loop, once."""
        app, threads = FastAPI(), []

        @app.get("/report/{year}")
        @cache_api()
        def report(year: int) -> dict:
            threads.append(threading.current_thread())
            return {"year": year}

        async with asking(app) as client:
            assert [(await client.get("/report/2026")).json() for _ in range(2)] == [{"year": 2026}] * 2
            assert (await client.get("/report/x")).status_code == 422
        assert len(threads) == 1 and threads[0] is not threading.current_thread()

    async def test_a_post_route_that_invalidates(self, manager):
        """After the update succeeded the next request loads anew; not after one that was refused, by validation or by the function."""
        app, calls = FastAPI(), []

        @app.get("/menus/{restaurant_id}")
        @cache_menu()
        async def menu(restaurant_id: int) -> list[Dish]:
            calls.append(restaurant_id)
            return [Dish(id=len(calls), name="Pizza")]

        @app.post("/menus/{restaurant_id}", status_code=201)
        @invalidate_cache("menu")
        async def add(restaurant_id: int, dish: DishIn, db: SessionOf) -> Dish:
            await db.query()
            if dish.name == "Pizza":
                raise HTTPException(409, "there is one")
            return Dish(id=9, name=dish.name)

        async def ids(client) -> list[int]:
            return [(await client.get(f"/menus/{n}")).json()[0]["id"] for n in (1, 2)]

        async with asking(app) as client:
            assert await ids(client) == [1, 2]
            assert (await client.post("/menus/1", json={})).status_code == 422
            assert (await client.post("/menus/1", json={"name": "Pizza"})).status_code == 409
            assert await ids(client) == [1, 2]
            made = await client.post("/menus/1", json={"name": "Pasta"})
            assert (made.status_code, made.json()) == (201, {"id": 9, "name": "Pasta"})
            assert await ids(client) == [3, 2]
        assert not any(one.is_open for one in Session.opened)

    async def test_errors_of_a_route_are_its_own(self, manager):
        """An HTTPException of a cached route is its answer each time, and is not cached."""
        app, calls = FastAPI(), []

        @app.get("/dishes/{dish_id}")
        @cache_menu()
        async def dish(dish_id: int) -> Dish:
            calls.append(dish_id)
            if len(calls) < 3:
                raise HTTPException(404, "no such dish")
            return Dish(id=dish_id, name="Pizza")

        async with asking(app) as client:
            assert [(await client.get("/dishes/1")).status_code for _ in range(4)] == [404, 404, 200, 200]
        assert calls == [1, 1, 1]

    async def test_requests_for_the_same_share_one_load(self, manager):
        """A hundred requests at once for what is cold: the function runs once."""
        app, calls, may = FastAPI(), [], asyncio.Event()

        @app.get("/search")
        @cache_search()
        async def search(q: str) -> list[str]:
            calls.append(q)
            await may.wait()
            return [q]

        async with asking(app) as client:
            asked = [asyncio.create_task(client.get("/search?q=pizza")) for _ in range(100)]
            while manager.stats()["search"]["misses"] < 100:
                await asyncio.sleep(0)
            may.set()
            assert {(await answer).text for answer in asked} == {'["pizza"]'}
        assert calls == ["pizza"] and manager.stats()["search"]["coalesced"] == 99

    async def test_the_request_itself_is_no_part_of_a_key(self, manager):
        """Undeclared it is an error that names the parameter and `exclude=`; with `exclude_types` of the manager it is in no key."""
        app = FastAPI()

        @app.get("/undeclared")
        @cache_api()
        async def undeclared(request: Request, page: int = 1) -> str:
            return "never"

        with pytest.raises(KeyPartError, match=r"'request'.*exclude="):
            async with asking(app) as client:
                await client.get("/undeclared")

        async with CacheManager("memory://", exclude_types=(Request, Session)) as own:

            @app.get("/declared")
            @cache_api(manager=own)
            async def declared(request: Request, db: SessionOf, page: int = 1) -> str:
                await db.query()
                return f"{request.url.path} {page}"

            async with asking(app) as client:
                for _ in range(2):
                    assert (await client.get("/declared?page=2")).json() == "/declared 2"
        assert sum(one.queries for one in Session.opened) == 1

    async def test_a_scope_opened_by_a_dependency(self, manager):
        """A dependency may open the tenant's scope for the request; one that runs in threads, which cannot, does no harm."""

        async def of_header(x_tenant: Annotated[str, Header()]) -> AsyncIterator[None]:
            with tenant_scope(x_tenant):
                yield

        def in_threads(x_tenant: Annotated[str, Header()]) -> Iterator[None]:
            with tenant_scope(x_tenant):
                yield

        app = FastAPI()

        @app.get("/own", dependencies=[Depends(of_header)])
        @cache(cache_type="settings", tenant_aware=True)
        async def own() -> str | None:
            return current_tenant()

        @app.get("/threads", dependencies=[Depends(in_threads)])
        @cache(cache_type="settings")
        async def threads() -> str:
            return str(current_tenant())

        async with asking(app) as client:
            for n in (1, 2, 1):
                assert (await client.get("/own", headers={"x-tenant": str(n)})).json() == str(n)
                assert (await client.get("/threads", headers={"x-tenant": str(n)})).json() == "None"
        assert current_tenant() is None
        assert manager.stats()["settings"]["loads"] == 3

    async def test_bound_methods(self, manager):
        """A method of a service may be a route and a dependency: bound, it has its own parameters without self."""
        calls = []

        class Menu:
            @cache_menu()
            async def dishes(self, restaurant_id: int, limit: Limit = 10) -> list[Dish]:
                calls.append(restaurant_id)
                return [Dish(id=limit, name="Pizza")]

            @cache_menu()
            def count(self, restaurant_id: int) -> int:
                return restaurant_id

        app, menu = FastAPI(), Menu()
        app.get("/menus/{restaurant_id}")(menu.dishes)

        @app.get("/counts/{restaurant_id}")
        async def counts(count: int = Depends(menu.count)) -> int:
            return count

        async with asking(app) as client:
            for _ in range(2):
                assert (await client.get("/menus/1?limit=3")).json() == [{"id": 3, "name": "Pizza"}]
            assert (await client.get("/menus/1?limit=0")).status_code == 422
            assert (await client.get("/counts/4")).json() == 4
            app.dependency_overrides[menu.count] = lambda: 99
            assert (await client.get("/counts/4")).json() == 99
        assert calls == [1]
        schema = app.openapi()["paths"]["/menus/{restaurant_id}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert schema["items"] == {"$ref": "#/components/schemas/Dish"}

    async def test_bound_methods_are_as_python_s(self, manager):
        """A bound method equals itself, and not that of another object or class; who asks is told that it is async."""

        class Menu:
            @cache_menu()
            async def dishes(self, restaurant_id: int) -> int:
                return restaurant_id

        class Other(Menu): ...

        one, other = Menu(), Other()
        assert one.dishes == one.dishes and hash(one.dishes) == hash(one.dishes)
        assert len({one.dishes, one.dishes, Menu().dishes, other.dishes, Menu.dishes, Menu.dishes}) == 4
        assert Menu.dishes == Other.dishes != one.dishes
        assert copy.deepcopy(one.dishes) == one.dishes and copy.copy(Menu.dishes) == Menu.dishes
        assert asyncio.iscoroutinefunction(one.dishes) and asyncio.iscoroutinefunction(Menu.dishes)
        assert inspect.signature(one.dishes) == inspect.signature(Menu().dishes) and "-> 'int'" in str(inspect.signature(one.dishes))
        alone = cache_api(name="web.dishes")(Plain().dishes)
        assert inspect.iscoroutinefunction(alone) and await alone(3) == 3


class Endpoint(HTTPEndpoint):
    @cache_api(exclude=["request"])
    async def text(self, request) -> str:
        return "got"

    async def get(self, request) -> Response:
        return JSONResponse(await self.text(request))

    @invalidate_cache("api")
    async def post(self, request) -> Response:
        return JSONResponse("posted")


class TestStarlette:
    async def test_routes(self, manager):
        """A decorated function that is given the request, and one called by a route, both over HTTP; errors of parameters stay errors."""
        calls = []

        @cache_search()
        async def search(restaurant_id: int, text: str) -> list[str]:
            calls.append(text)
            return [f"{text} at {restaurant_id}"]

        async def search_route(request):
            return JSONResponse(await search(int(request.path_params["restaurant_id"]), request.query_params["q"]))

        @invalidate_cache("search", tenant="{request.path_params[restaurant_id]}")
        async def reindex(request) -> Response:
            return Response(status_code=204)

        @invalidate_cache("search")
        def reindex_all(request) -> Response:
            return Response(status_code=204)

        @cache_api(key="{request.url.path}", exclude=["request"], tenant_aware=False)
        async def page(request) -> Response:
            calls.append(request.url.path)
            return JSONResponse({"page": request.url.path})

        app = Starlette(
            routes=[
                Route("/search/{restaurant_id:int}", search_route),
                Route("/search/{restaurant_id:int}", reindex, methods=["POST"]),
                Route("/search", reindex_all, methods=["POST"]),
                Route("/page", page),
                Route("/endpoint", Endpoint),
            ]
        )
        async with asking(app) as client:

            async def ask() -> list:
                return [(await client.get(f"/search/{n}?q=pizza")).json() for n in (1, 2)]

            assert await ask() == await ask() == [["pizza at 1"], ["pizza at 2"]]
            assert len(calls) == 2
            assert (await client.post("/search/1")).status_code == 204
            assert [await search.exists(n, "pizza") for n in (1, 2)] == [False, True]
            await ask()
            assert (await client.post("/search")).status_code == 204
            assert [await search.exists(n, "pizza") for n in (1, 2)] == [False, False]
            assert [(await client.get("/endpoint")).json(), (await client.post("/endpoint")).json()] == ["got", "posted"]
            # A response is no value that can be stored: each request has its own.
            assert [(await client.get("/page")).json() for _ in range(2)] == [{"page": "/page"}] * 2
        assert calls[-2:] == ["/page", "/page"]


class TestLitestar:
    async def test_a_route_is_validated_and_cached(self, manager):
        """Parameters are parsed and validated, dependencies given, the schema is the function's, and a POST route invalidates."""
        calls = []

        @litestar.get("/menus/{restaurant_id:int}")
        @cache_menu(exclude=["db"])
        async def menu(restaurant_id: FromPath[int], db: NamedDependency[Session], limit: FromQuery[int] = 10) -> list[Dish]:
            """The dishes of a restaurant."""
            await db.query()
            calls.append((restaurant_id, limit))
            return [Dish(id=limit, name="Pizza")]

        @litestar.get("/reports/{year:int}")
        @cache_api()
        def report(year: FromPath[int]) -> dict[str, int]:
            calls.append(year)
            return {"year": year}

        @litestar.post("/menus/{restaurant_id:int}")
        @invalidate_cache("menu")
        async def add(restaurant_id: FromPath[int], data: JSONBody[DishIn]) -> Dish:
            return Dish(id=9, name=data.name)

        app = litestar.Litestar([menu, report, add], dependencies={"db": Provide(session)}, logging_config=None)
        async with running(app), asking(app) as client:
            for _ in range(2):
                answer = await client.get("/menus/1?limit=5")
                assert (answer.status_code, answer.json()) == (200, [{"id": 5, "name": "Pizza"}])
                assert (await client.get("/reports/2026")).json() == {"year": 2026}
            assert calls == [(1, 5), 2026]
            assert (await client.get("/menus/1?limit=x")).status_code == 400
            assert (await client.post("/menus/1", json={})).status_code == 400
            await client.get("/menus/1?limit=5")
            assert len(calls) == 2
            assert (await client.post("/menus/1", json={"name": "Pasta"})).json() == {"id": 9, "name": "Pasta"}
            await client.get("/menus/1?limit=5")
            assert len(calls) == 3
        assert Session.opened and not any(one.is_open for one in Session.opened)
        operation = app.openapi_schema.to_schema()["paths"]["/menus/{restaurant_id}"]["get"]
        assert [(p["name"], p["in"]) for p in operation["parameters"]] == [("restaurant_id", "path"), ("limit", "query")]
        assert operation["responses"]["200"]["content"]["application/json"]["schema"]["type"] == "array"

    async def test_controllers(self, manager):
        """Routes of a controller, which Litestar copies, are cached methods and methods that invalidate."""
        calls = []

        class Menus(litestar.Controller):
            path = "/menus"

            @litestar.get("/{restaurant_id:int}")
            @cache_menu()
            async def menu(self, restaurant_id: FromPath[int], limit: FromQuery[int] = 10) -> list[Dish]:
                calls.append(restaurant_id)
                return [Dish(id=limit, name="Pizza")]

            @litestar.get("/{restaurant_id:int}/count")
            @cache_menu()
            def count(self, restaurant_id: FromPath[int]) -> int:
                calls.append(restaurant_id)
                return restaurant_id

            @litestar.post("/{restaurant_id:int}")
            @invalidate_cache("menu")
            async def add(self, restaurant_id: FromPath[int]) -> None: ...

        async with asking(litestar.Litestar([Menus], logging_config=None)) as client:
            for _ in range(2):
                assert (await client.get("/menus/1?limit=5")).json() == [{"id": 5, "name": "Pizza"}]
                assert (await client.get("/menus/1/count")).json() == 1
            assert calls == [1, 1]
            assert (await client.get("/menus/1?limit=x")).status_code == 400
            assert (await client.post("/menus/1")).status_code == 201
            await client.get("/menus/1?limit=5")
        assert calls == [1, 1, 1]


class WithMethods(BaseModel):
    """Pydantic takes what is no function for a field that lacks its annotation, if it is not told."""

    model_config = ConfigDict(ignored_types=(CachedFunction,))
    id: int

    @cache_menu(self_key=lambda self: self.id)
    async def dishes(self, n: int) -> int:
        return self.id + n


async def test_methods_of_pydantic_models(manager):
    """`ignored_types=(CachedFunction,)` is what it takes; `self_key=` tells the models apart."""
    assert [await WithMethods(id=n).dishes(1) for n in (1, 2, 1)] == [2, 3, 2]
    assert manager.stats()["menu"]["loads"] == 2


# Tenants


def fastapi_app(**options) -> FastAPI:
    app = FastAPI(lifespan=options.get("lifespan"))
    app.add_middleware(TenantMiddleware, tenant="x-tenant", user="x-user")
    app.get("/own")(options["own"])
    return app


def starlette_app(**options) -> Starlette:
    async def route(request):
        return JSONResponse(await options["own"]())

    middleware = [Middleware(TenantMiddleware, tenant="x-tenant", user="x-user")]
    return Starlette(routes=[Route("/own", route)], middleware=middleware, lifespan=options.get("lifespan"))


def litestar_app(**options) -> litestar.Litestar:
    lifespan = [options["lifespan"]] if "lifespan" in options else []
    middleware = [DefineMiddleware(TenantMiddleware, tenant="x-tenant", user="x-user")]
    return litestar.Litestar([litestar.get("/own")(options["own"])], middleware=middleware, lifespan=lifespan, logging_config=None)


APPS = [fastapi_app, starlette_app, litestar_app]


@pytest.mark.parametrize("make", APPS)
@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_tenants_at_once_never_mix(manager, make, kind):
    """Two tenants' requests, all under way at once: each is answered with its own, cold and warm; none without a tenant with theirs."""
    both = threading.Barrier(2)
    loads = []

    def load() -> dict[str, str]:
        both.wait(timeout=10)  # the loads of both tenants are under way at once
        loads.append(current_tenant())
        return {"tenant": str(current_tenant()), "user": str(current_user())}

    async def async_load() -> dict[str, str]:
        return await anyio.to_thread.run_sync(load)

    async_load.__qualname__ = load.__qualname__ = f"{make.__name__}_{kind}_own"
    own = cache(cache_type="settings", tenant_aware=True)(load if kind == "plain" else async_load)
    async with asking(make(own=own)) as client:

        async def ask(tenant: str) -> dict:
            return (await client.get("/own", headers={"x-tenant": tenant, "x-user": f"u{tenant}"})).json()

        for _ in range(2):
            answers = await asyncio.gather(*(ask(tenant) for tenant in ("1", "2") * 25))
            assert [answer["tenant"] for answer in answers] == ["1", "2"] * 25
        assert sorted(loads) == ["1", "2"]
    assert (current_tenant(), current_user()) == (None, None)
    with tenant_scope("1"):
        assert await own.peek() == {"tenant": "1", "user": "u1"}


async def test_a_request_without_a_tenant_is_refused_where_one_is_needed(manager):
    """`tenant_aware=True` and no header: the error is the application's to answer, and nothing is cached for nobody."""
    app = FastAPI()
    app.add_middleware(TenantMiddleware, tenant="x-tenant")

    @app.get("/own")
    @cache(cache_type="settings", tenant_aware=True)
    async def own() -> str:
        return "own"

    @app.exception_handler(LookupError)
    async def no_tenant(request: Request, error: LookupError) -> JSONResponse:
        return JSONResponse({"error": type(error).__name__}, status_code=400)

    async with asking(app) as client:
        assert (await client.get("/own", headers={"x-tenant": "1"})).json() == "own"
        refused = await client.get("/own")
        assert (refused.status_code, refused.json()) == (400, {"error": "MissingTenantError"})


# The life of an application


def others_of(plain: redis.Redis) -> list[dict]:
    """The server's connections beside this one."""
    return [one for one in plain.client_list() if one["id"] != str(plain.client_id())]


def left_over(plain: redis.Redis) -> list[dict]:
    """Those that are still there once the server has had the time to notice what was closed."""
    for _ in range(500):
        if not others_of(plain):
            break
        time.sleep(0.01)
    return others_of(plain)


@pytest.mark.parametrize("make", APPS)
async def test_lifespan_opens_and_closes(valkey, make, monkeypatch):
    """With `lifespan=manager.lifespan` the connections are there while the application runs, and not afterwards."""
    with valkey.client() as plain:
        manager = CacheManager(valkey.url, prefix="web")
        monkeypatch.setattr(NAME, manager)

        async def load() -> dict[str, str]:
            return {"tenant": str(current_tenant())}

        load.__qualname__ = f"{make.__name__}_lifespan"
        app = make(own=cache_settings()(load), lifespan=manager.lifespan)
        for _ in range(2):  # an application may be started again
            async with running(app), asking(app) as client:
                assert (await client.get("/own", headers={"x-tenant": "1"})).json() == {"tenant": "1"}
                assert others_of(plain)
            assert not left_over(plain)
        assert manager.stats()["settings"]["hits"] == 1


@asynccontextmanager
async def running(app) -> AsyncIterator[None]:
    """The application between its startup and its shutdown, by the protocol that servers speak."""
    asked: asyncio.Queue = asyncio.Queue()
    answered: asyncio.Queue = asyncio.Queue()
    task = asyncio.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, asked.get, answered.put))
    await asked.put({"type": "lifespan.startup"})
    assert (await answered.get())["type"] == "lifespan.startup.complete"
    try:
        yield
    finally:
        await asked.put({"type": "lifespan.shutdown"})
        assert (await answered.get())["type"] == "lifespan.shutdown.complete"
        await task


async def test_an_application_starts_without_its_server(own_server, monkeypatch):
    """Redis is down at startup: the application starts and answers; it is cached once there is a server."""
    server = own_server()
    server.kill()
    manager, calls = CacheManager(server.url, prefix="web"), []
    monkeypatch.setattr(NAME, manager)
    app = FastAPI(lifespan=manager.lifespan)

    @app.get("/n")
    @cache_api()
    async def n() -> int:
        calls.append(1)
        return len(calls)

    async with running(app), asking(app) as client:
        assert [(await client.get("/n")).json() for _ in range(2)] == [1, 2]
        server.start()
        async with asyncio.timeout(10):
            while not await n.exists():
                assert (await client.get("/n")).status_code == 200
        cached = len(calls)
        assert [(await client.get("/n")).json() for _ in range(2)] == [cached, cached]


def test_a_loop_for_each_request(valkey, monkeypatch):
    """As test clients do, every request is run in a loop of its own: they share the entries, and leave nothing open."""
    manager, calls = CacheManager(valkey.url, prefix="web"), []
    monkeypatch.setattr(NAME, manager)
    app = FastAPI()

    @app.get("/n/{n}")
    @cache_api()
    async def get(n: int) -> int:
        calls.append(n)
        return n

    @app.post("/n")
    @invalidate_cache("api")
    def clear() -> None: ...

    async def ask(method: str, path: str):
        async with asking(app) as client:
            return (await client.request(method, path)).json()

    assert [asyncio.run(ask("GET", f"/n/{n}")) for n in (1, 1, 2, 1)] == [1, 1, 2, 1]
    assert asyncio.run(ask("POST", "/n")) is None
    assert asyncio.run(ask("GET", "/n/1")) == 1
    assert calls == [1, 2, 1]
    with valkey.client() as plain:
        assert not left_over(plain)


def test_the_process_wide_manager_over_the_life_of_applications(monkeypatch):
    """`FastAPI(lifespan=cache_manager.lifespan)` with the real process-wide one: empty again after each application."""
    monkeypatch.delenv("AURA_CACHE_URL", raising=False)
    app, calls = FastAPI(lifespan=cache_manager.lifespan), []

    @app.get("/n")
    @cache_api()
    async def n() -> int:
        calls.append(1)
        return len(calls)

    async def live() -> list[int]:
        async with running(app), asking(app) as client:
            return [(await client.get("/n")).json() for _ in range(3)]

    assert [asyncio.run(live()), asyncio.run(live())] == [[1, 1, 1], [2, 2, 2]]


# Threads


async def test_r36_sync_routes_that_come_back_do_not_deadlock(manager):
    """Sync routes hold every thread of anyio's limiter and come back for a cached plain function: it has threads of its own.

    In anyio's shared limiter each would wait for a place that only the others can give.
    """
    places = int(anyio.to_thread.current_default_thread_limiter().total_tokens)
    all_inside = threading.Barrier(places)
    app = FastAPI()

    @cache_menu()
    def load(n: int) -> int:
        return n

    @cache_api()
    def outer(n: int) -> int:
        return anyio.from_thread.run(load, n) + 1

    @app.get("/sync/{n}")
    def sync(n: int) -> int:
        all_inside.wait(timeout=20)
        return anyio.from_thread.run(load, n)

    @app.get("/nested/{n}")
    def nested(n: int) -> int:
        all_inside.wait(timeout=20)
        return anyio.from_thread.run(outer, n)

    async with asking(app) as client, asyncio.timeout(30):
        for path, add in (("sync", 0), ("nested", 1)):
            asked = [n % (2 * places) for n in range(3 * places)]
            answers = await asyncio.gather(*(client.get(f"/{path}/{n}") for n in asked))
            assert [answer.json() for answer in answers] == [n + add for n in asked]
    assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 0


async def test_r36_a_cached_sync_route_comes_back_too(manager):
    """More cached plain routes at once than their limiter has places, each coming back for another cached plain function."""
    app = FastAPI()

    @cache_menu()
    def load(n: int) -> int:
        return n

    @app.get("/{n}")
    @cache_api()
    def route(n: int) -> int:
        return anyio.from_thread.run(load, n) + anyio.from_thread.run(load, n + 1)

    async with asking(app) as client, asyncio.timeout(30):
        answers = await asyncio.gather(*(client.get(f"/{n}") for n in range(150)))
    assert [answer.json() for answer in answers] == [2 * n + 1 for n in range(150)]


def test_r36_through_a_blocking_portal(manager_url):
    """Threads of anybody's, more than forty, that call through one portal."""
    manager = CacheManager(manager_url, prefix="web")

    @cache_menu(manager=manager)
    def load(n: int) -> int:
        return n

    answers: dict[int, int] = {}
    with anyio.from_thread.start_blocking_portal() as portal:

        def ask(n: int) -> None:
            answers[n] = portal.call(load, n % 60)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(120)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        portal.call(manager.aclose)
    assert answers == {n: n % 60 for n in range(120)}


@pytest.fixture(params=["memory", "valkey"])
def manager_url(request) -> str:
    return "memory://" if request.param == "memory" else request.getfixturevalue("valkey").url
