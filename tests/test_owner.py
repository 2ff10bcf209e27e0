"""Whose entry it is: who shares one, who clears it, and who is refused; to the letter of the contract, as a table.

The rules are said here a second time, without the library, in `Rules` and `is_cleared`. Every row of the table - how aware the function is,
what its arguments and its scopes say - is played on a real store: by functions with and without parameters that name an owner, and by the
manager's verbs.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
from typing import NamedTuple
from uuid import UUID

import pytest

from aiocache_aura import (
    ALL,
    CacheManager,
    CachePolicy,
    KeyPartError,
    MissingTenantError,
    MissingUserError,
    cache,
    cache_menu,
    cache_permissions,
    current_tenant,
    current_user,
    invalidate_cache,
    tenant_scope,
    user_scope,
)

AWARE = (False, "known", True)
LEFT_OUT = "left out"


class Caller(NamedTuple):
    """What a call says of its owner: by arguments (None: says nothing) and by scopes (None: there is none)."""

    tenant: object
    user: object
    in_tenant: object
    in_user: object

    def scopes(self):
        stack = contextlib.ExitStack()
        if self.in_tenant is not None:
            stack.enter_context(tenant_scope(self.in_tenant))
        if self.in_user is not None:
            stack.enter_context(user_scope(self.in_user))
        return stack


class Rules(NamedTuple):
    """The contract: how aware, and whether what is given stands instead of the scope, as in verbs, or beside it."""

    tenant_aware: object
    user_aware: object
    instead: bool = False

    def known(self, given, scope):
        """Argument and scope, as text, each once; both of them if they differ."""
        scope = None if self.instead and given is not None else scope
        return tuple(dict.fromkeys(str(one) for one in (given, scope) if one is not None))

    def owner(self, caller):
        """(tenants, users) of the caller's entry, either may be LEFT_OUT; or the error that it gets."""
        tenants = self.known(caller.tenant, caller.in_tenant) if self.tenant_aware is not False else LEFT_OUT
        users = self.known(caller.user, caller.in_user if self.user_aware is not False else None)
        if self.tenant_aware is True and not tenants:
            return MissingTenantError
        if self.user_aware is True and not users:
            return MissingUserError
        return tenants, users if users or self.user_aware is not False else LEFT_OUT


def is_cleared(owner, cleared):
    """Whether an entry of this owner goes with an invalidation."""
    for ids, told in zip(owner, (cleared.tenant, cleared.user), strict=True):
        of_nobody_known = ids == () and not cleared.all_types  # goes with anybody's of its type, and only of its type
        if told is not None and (ids == LEFT_OUT or not (str(told) in ids or of_nobody_known)):
            return False
    return cleared.all_types or cleared.cache_type == "mine"


class Cleared(NamedTuple):
    """An invalidation: of a type (of all types: `invalidate_tenant`, `invalidate_user`), narrowed to a tenant and a user."""

    cache_type: str | None = "mine"
    tenant: object = None
    user: object = None

    @property
    def all_types(self):
        return self.cache_type is None

    async def run(self, manager):
        if not self.all_types:
            return await manager.invalidate(self.cache_type, tenant=self.tenant, user=self.user)
        return await (manager.invalidate_user(self.user) if self.tenant is None else manager.invalidate_tenant(self.tenant))


TENANTS, USERS = (1, "2"), (5, "6")  # in scope; by argument the other way round of writing: "1", 2, "5", 6
CALLERS = [
    Caller(tenant, user, in_tenant, in_user)
    for tenant, user in itertools.product((None, "1", 2), (None, "5", 6))
    for in_tenant, in_user in itertools.product((None, *TENANTS), (None, *USERS))
]
CLEARED = [
    Cleared(),
    Cleared("other"),
    Cleared("other", tenant=1),
    *(Cleared(tenant=tenant) for tenant in (1, "2", 9, "None", "-", ALL)),
    *(Cleared(user=user) for user in ("5", 6, 9, ALL)),
    *(Cleared(tenant=tenant, user=user) for tenant in (1, 9) for user in (5, 9)),
    *(Cleared(None, tenant=tenant) for tenant in (1, "2", 9)),
    *(Cleared(None, user=user) for user in (5, "6", 9)),
]


class Subject:
    """A function, or a verb, that is asked by callers; its answer is the number of the load that made it."""

    def __init__(self, manager, rules, how):
        self.manager, self.rules, self.how = manager, Rules(*rules, instead=how == "verbs"), how
        self.loads = itertools.count()
        aware = dict(zip(("tenant_aware", "user_aware"), rules, strict=True))
        manager.register("mine", CachePolicy(**aware) if how in ("verbs", "no parameters") else CachePolicy())
        manager.register("other", CachePolicy())

        async def of_tenant(tenant_id=None, user_id=None):
            return next(self.loads)

        async def of_restaurant(restaurant_id=None, user_id=None):
            return next(self.loads)

        async def of_nobody():
            return next(self.loads)

        function = {"tenant_id": of_tenant, "restaurant_id": of_restaurant}.get(how, of_nobody)
        names = () if function is of_nobody else (how, "user_id")
        options = {} if how == "no parameters" else aware  # said by the type's policy, or by the decorator
        self.fn = cache(cache_type="mine", manager=manager, exclude=names, **options)(function)

    def callers(self):
        if self.how == "no parameters":
            return [caller for caller in CALLERS if caller[:2] == (None, None)]
        return CALLERS[::5] if self.how == "restaurant_id" else CALLERS

    def arguments(self, caller):
        return () if self.how == "no parameters" else caller[:2]

    async def ask(self, caller):
        with caller.scopes():
            if self.how != "verbs":
                return await self.fn(*self.arguments(caller))
            return await self.manager.get_or_load("mine", "k", lambda: next(self.loads), tenant=caller.tenant, user=caller.user)

    async def has(self, caller):
        with caller.scopes():
            if self.how != "verbs":
                return await self.fn.exists(*self.arguments(caller))
            return await self.manager.exists("mine", "k", tenant=caller.tenant, user=caller.user)


@pytest.fixture
async def manager():
    async with CacheManager("memory://", prefix="p") as made:
        yield made


@pytest.fixture(params=["tenant_id", "restaurant_id", "no parameters", "verbs"])
def how(request):
    return request.param


table = pytest.mark.parametrize(
    "rules", [*itertools.product(AWARE, AWARE)], ids=lambda rules: f"tenant_aware={rules[0]}-user_aware={rules[1]}"
)


@table
async def test_who_shares_an_entry(manager, rules, how):
    """Two callers get the same entry if and only if it has the same owner; who is refused is told so, and nothing is loaded."""
    subject = Subject(manager, rules, how)
    entries, owners = {}, {}
    for caller in subject.callers() * 2:
        owner = subject.rules.owner(caller)
        if isinstance(owner, type):
            with pytest.raises(owner, match="tenant_aware" if owner is MissingTenantError else "user_aware"):
                await subject.ask(caller)
            continue
        found = await subject.ask(caller)
        assert entries.setdefault(owner, found) == found, f"{caller} has another entry than those before it of {owner}"
        assert owners.setdefault(found, owner) == owner, f"{caller} of {owner} is given the entry of {owners[found]}"
    assert next(subject.loads) == len(entries)


@table
async def test_who_clears_an_entry(manager, rules, how):
    """Each invalidation takes just the entries of its type that are its tenant's, its user's, or nobody's known; never others."""
    subject = Subject(manager, rules, how)
    owned = [(caller, owner) for caller in subject.callers() if not isinstance(owner := subject.rules.owner(caller), type)]
    for cleared in CLEARED:
        for caller, _ in owned:
            await subject.ask(caller)
        assert await cleared.run(manager) is True
        narrowed = cleared._replace(
            tenant=None if cleared.tenant is ALL else cleared.tenant, user=None if cleared.user is ALL else cleared.user
        )
        for caller, owner in owned:
            assert await subject.has(caller) is not is_cleared(owner, narrowed), f"{caller}, entry of {owner}, after {cleared}"


@pytest.mark.parametrize("side", ["tenant", "user"])
async def test_who_is_refused_is_refused_by_every_verb(manager, side):
    """With `..._aware=True` and nobody known, no verb of a function or of the manager works for a shared entry, and nothing runs."""
    error = MissingTenantError if side == "tenant" else MissingUserError
    manager.register("mine", CachePolicy(**{f"{side}_aware": True}))
    fn = cache(cache_type="mine", manager=manager, name="f")(lambda: 1 / 0)
    uses = [fn, fn.peek, fn.exists, fn.invalidate, fn.refresh, lambda: fn.set_value(1), fn.cache_key]
    verbs = manager.caches["mine"]
    uses += [lambda verb=verb: getattr(verbs, verb)("k") for verb in ("get", "exists", "ttl", "touch", "delete")]
    uses += [lambda: verbs.set("k", 1), lambda: verbs.add("k", 1), lambda: verbs.get_or_load("k", fn.__wrapped__)]
    uses += [lambda: verbs.mget(["k"]), lambda: verbs.get_or_load_many(["k"], fn.__wrapped__)]
    for use in uses:
        with pytest.raises(error, match=f"{side}_scope"):
            await use()


# Ids


class Number(enum.IntEnum):
    SEVEN = 7


class Name(enum.StrEnum):
    SEVEN = "7"


class Text(str):
    __slots__ = ()

    def __str__(self):
        return "another"


SAME = [[7, "7", Number.SEVEN, Name.SEVEN, Text("7")], [UUID(int=7), str(UUID(int=7))], [-7, "-7"], [" 7"], ["07"], ["None"], ["0"], ["é"]]
NO_IDS = ["", True, False, 1.0, 1.5, b"7", [7], (7,), {"id": 7}, object()]


async def test_ids_are_compared_as_text(manager):
    """An int, a UUID and their text are one tenant, wherever they are said; everything else is another."""

    @cache(manager=manager, exclude=["tenant_id"], user_aware="known")
    async def of(tenant_id=None):
        return f"{tenant_id!r} {current_tenant()}"

    found = {}
    for n, same in enumerate(SAME):
        for one in same:
            await manager.add("menu", "k", n, tenant=one)
            assert await manager.get("menu", "k", tenant=one) == n
            with tenant_scope(one), user_scope(one):
                assert current_tenant() == current_user() == same[-1]
                assert await manager.get("menu", "k") == n
                assert found.setdefault(n, await of()) == await of(one)
            await manager.invalidate("menu", tenant=one)
            assert await manager.exists("menu", "k", tenant=one) is False
            await manager.set("menu", "k", n, tenant=one)
            await manager.invalidate_tenant(one)
            assert await manager.exists("menu", "k", tenant=one) is False
    assert len(set(found.values())) == len(SAME)


@pytest.mark.parametrize("wrong", NO_IDS, ids=lambda wrong: type(wrong).__name__)
@pytest.mark.parametrize("aware", AWARE)
async def test_what_is_no_id_is_a_type_error(manager, wrong, aware):
    """Empty text, bools, floats and objects: refused as an argument, in a scope, by every verb; also where the owner is left out."""
    manager.register("mine", CachePolicy(tenant_aware=aware, user_aware=aware))

    async def of(tenant_id=None, user_id=None):
        return 1

    fn = cache(cache_type="mine", manager=manager, name="of")(of)
    with tenant_scope(1), user_scope(5):
        for side in ("tenant", "user"):
            with pytest.raises(KeyPartError, match=f"parameter '{side}_id'.* {side} id "):
                await fn(**{f"{side}_id": wrong})
            for ask in (manager.get, manager.exists, manager.delete, manager.ttl, manager.touch):
                with pytest.raises(TypeError, match=f"{side} id"):
                    await ask("mine", "k", **{side: wrong})
            with pytest.raises(TypeError, match=f"{side} id"):
                await manager.set("mine", "k", 1, **{side: wrong})
            with pytest.raises(TypeError, match=f"{side} id"):
                await manager.invalidate("mine", **{side: wrong})
        for refuse in (manager.invalidate_tenant, manager.invalidate_user):
            with pytest.raises(TypeError, match=" id "):
                await refuse(wrong)
    for scope in (tenant_scope, user_scope):
        with pytest.raises(TypeError, match=" id "):
            scope(wrong)


@pytest.mark.parametrize("nobody", [None, ALL], ids=repr)
async def test_nobody_is_no_id_either(manager, nobody):
    """A scope of None would be no scope, an invalidation of tenant None would be anybody's."""
    for use in (tenant_scope, user_scope):
        with pytest.raises(TypeError, match=" id "):
            use(nobody)
    for use in (manager.invalidate_tenant, manager.invalidate_user):
        with pytest.raises(TypeError, match=" id "):
            await use(nobody)


async def test_r10_never_a_shared_none_entry(manager):
    """R10: a missing tenant is not the text "None": what is loaded for nobody known is given to no tenant; templates refuse it."""

    @cache_menu(manager=manager)
    async def menu(restaurant_id=None):
        return f"{restaurant_id} {current_tenant()}"

    @cache_menu(manager=manager, key="menu:{restaurant_id}")
    async def spelled(restaurant_id=None):
        return f"{restaurant_id} {current_tenant()}"

    assert await menu() == "None None"
    for tenant in (1, 2, "None"):
        with tenant_scope(tenant):
            assert await menu() == f"None {tenant}"
        assert await menu(tenant) == f"{tenant} None"
    assert len({menu.cache_key(), menu.cache_key(1), menu.cache_key("None"), menu.cache_key("1")}) == 4
    assert menu.cache_key().startswith("p:menu:@")
    for scope in (contextlib.nullcontext(), tenant_scope(1)):
        with scope, pytest.raises(KeyPartError, match="None"):
            await spelled()
    await manager.set("menu", "k", "nobody's")
    with tenant_scope("None"):
        assert await manager.get("menu", "k") is None


@pytest.mark.parametrize("tenant", ["-", "~", "+", "t", "x" * 60])
async def test_no_id_spells_nobody(manager, tenant):
    """A tenant or user of a strange name is somebody: its entries don't go with another's, as those of nobody known do."""
    await manager.set("menu", "k", 1, tenant=tenant, user=tenant)
    await manager.invalidate("menu", tenant=9)
    await manager.invalidate("menu", user=9)
    await manager.invalidate("menu", tenant=9, user=9)
    assert await manager.exists("menu", "k", tenant=tenant, user=tenant)
    await manager.invalidate("menu", tenant=tenant)
    assert not await manager.exists("menu", "k", tenant=tenant, user=tenant)


async def test_an_entry_depends_on_what_it_was_made_with(manager):
    """Found under the same key by one that is otherwise aware, a shared entry stays shared, and one of nobody known stays that."""
    shared = cache_menu(manager=manager, key="k", tenant_aware=False, name="shared")(lambda: "shared")
    assert await shared() == await manager.get("menu", "k") == "shared"
    await manager.invalidate("menu", tenant=9)
    assert await manager.get("menu", "k") == "shared"
    await manager.set("menu", "k", "nobody's")
    assert await shared() == "nobody's"
    await manager.invalidate("menu", tenant=9)
    assert await shared() == "shared"
    await manager.set("menu", "k", "set for all", tenant_aware=False)
    await manager.invalidate("menu", tenant=9)
    assert await manager.get("menu", "k") == await manager.get_or_load("menu", "k", "loaded") == "set for all"


# What the guide does


async def test_the_guides_decorators_and_invalidations_fit(manager):
    """`cache_menu()` with `invalidate_menu(1)`, a log-out's `invalidate_user(5)`, permissions of whoever is in scope: no word more."""

    @cache_menu(manager=manager)
    async def menu(restaurant_id):
        return restaurant_id

    @cache_menu(manager=manager)
    async def dishes():
        return ["pizza"]

    @cache_permissions(manager=manager)
    async def permissions():
        return [current_user()]

    @cache(manager=manager)
    async def profile(user_id):
        return user_id

    async def fill():
        for n in (1, 2):
            await menu(n)
        await dishes()
        for user in (5, 6):
            await profile(user)
            with tenant_scope(1), user_scope(user):
                assert await permissions() == [str(user)]

    async def left():
        found = [await menu.exists(1), await menu.exists(2), await dishes.exists(), await profile.exists(5), await profile.exists(6)]
        with tenant_scope(1):
            for user in (5, 6):
                with user_scope(user):
                    found.append(await permissions.exists())
        return found

    for invalidate, expected in [
        (lambda: manager.invalidate_menu(1), [0, 1, 0, 1, 1, 1, 1]),
        (lambda: manager.invalidate_user(5), [1, 1, 1, 0, 1, 0, 1]),
        (lambda: manager.invalidate_tenant(1), [0, 1, 1, 1, 1, 0, 0]),
        (lambda: manager.invalidate_permissions(user=5), [1, 1, 1, 1, 1, 0, 1]),
        (lambda: manager.invalidate_permissions(tenant=1, user=6), [1, 1, 1, 1, 1, 1, 0]),
        (lambda: manager.invalidate_api(), [1, 1, 1, 0, 0, 1, 1]),
    ]:
        await fill()
        assert await invalidate() is True
        assert await left() == [bool(one) for one in expected]


@pytest.mark.parametrize(
    ("argument", "scope", "tenant", "cleared"),
    [
        (None, None, None, [1, 2, 3, "nobody", "shared"]),
        (1, None, None, [1, "nobody"]),
        (None, 1, None, [1, "nobody"]),
        (1, 1, None, [1, "nobody"]),
        (1, 2, None, [1, 2, "nobody"]),
        (1, 2, ALL, [1, 2, 3, "nobody", "shared"]),
        (1, 2, 3, [3, "nobody"]),
        (1, 2, "{other_id}", [3, "nobody"]),
    ],
)
async def test_what_a_function_that_invalidates_clears(manager, argument, scope, tenant, cleared):
    """With a tenant known, by argument or scope, that tenant's entries only; without one the type's; `tenant=` stands instead."""
    told = {} if tenant is None else {"tenant": tenant}

    @invalidate_cache("menu", manager=manager, **told)
    async def update(restaurant_id=None, other_id=3):
        return None

    @cache_menu(manager=manager, tenant_aware=False)
    async def shared():
        return 1

    for whose in (1, 2, 3):
        await manager.set("menu", "k", 1, tenant=whose)
    await manager.set("menu", "k", 1)
    await shared()
    with tenant_scope(scope) if scope else contextlib.nullcontext():
        await update(argument)
    there = {whose: await manager.exists("menu", "k", tenant=whose) for whose in (1, 2, 3)}
    there |= {"nobody": await manager.exists("menu", "k"), "shared": await shared.exists()}
    assert [whose for whose, is_there in there.items() if not is_there] == cleared


# Scopes


def scopes_now():
    return current_tenant(), current_user()


def test_scopes_nest_and_each_is_one_half():
    """The innermost counts, tenant and user are apart, and leaving puts back what was there, after an error, too."""
    with tenant_scope(1):
        with user_scope(5), pytest.raises(ZeroDivisionError), tenant_scope("2"), user_scope(6):
            assert scopes_now() == ("2", "6")
            raise ZeroDivisionError
        assert scopes_now() == ("1", None)
    assert scopes_now() == (None, None)
    again = tenant_scope(7)
    with again, tenant_scope(8):
        with again:
            assert scopes_now() == ("7", None)
        assert scopes_now() == ("8", None)


async def test_leaving_never_raises_not_even_in_another_task():
    """A scope that was entered elsewhere, or never, or left already, is left without an error, and nothing else is touched."""
    scope = tenant_scope(1)

    def leave():
        scope.__exit__(None, None, None)

    leave()
    await asyncio.to_thread(scope.__enter__)  # as in another task: in a copy of this context
    with user_scope(5):
        leave()
        assert scopes_now() == (None, "5")
    scope.__enter__()
    await asyncio.to_thread(leave)
    assert scopes_now() == ("1", None)
    leave()
    leave()
    assert scopes_now() == (None, None)


async def test_scopes_that_are_not_left_in_order():
    """Whichever goes first: what remains is what is still open."""
    one, two, five = tenant_scope(1), tenant_scope(2), user_scope(5)
    for scope in (one, five, two):
        scope.__enter__()
    one.__exit__(None, None, None)
    assert scopes_now() == ("2", "5")
    two.__exit__(None, None, None)
    assert scopes_now() == (None, "5")
    five.__exit__(None, None, None)
    assert scopes_now() == (None, None)


async def test_one_scope_object_may_be_used_by_many_tasks():
    """Entered and left in any order by tasks at once, none of them stays in it or falls out of it."""
    scope = tenant_scope(7)
    inside, outside = [asyncio.Event() for _ in range(3)], [asyncio.Event() for _ in range(3)]

    async def work(n):
        with scope, scope:
            inside[n].set()
            await outside[n].wait()
            assert current_tenant() == "7"
        assert current_tenant() is None

    tasks = [asyncio.create_task(work(n)) for n in range(3)]
    for n in (1, 0, 2):
        await inside[n].wait()
        outside[n].set()
        await tasks[n]
    assert current_tenant() is None


async def test_a_generator_that_is_closed_elsewhere():
    """As pytest and frameworks do it: a fixture's scope is entered in one task and left in another."""

    async def fixture():
        with tenant_scope(3):
            yield current_tenant()

    generator = fixture()
    assert await asyncio.create_task(anext(generator)) == "3"
    await asyncio.create_task(generator.aclose())
    assert current_tenant() is None


async def test_tasks_threads_and_loads_work_for_whoever_started_them(manager):
    """A task keeps the scopes it was started in; plain functions, in their threads, and loads run in the caller's."""

    @cache(manager=manager, user_aware="known")
    def plain():
        return scopes_now()

    with tenant_scope(1), user_scope(5):
        begun = asyncio.create_task(asyncio.sleep(0, result=None))
        inner = asyncio.create_task(plain())
        loaded = await manager.get_or_load("permissions", "k", scopes_now)
    assert await inner == loaded == ("1", "5")
    await begun
    assert scopes_now() == (None, None)
