"""What is the same call, by a function's signature; templates of keys and tags; secrets, exclusions, self."""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import functools
import inspect
import linecache
import logging
import random
import string
import warnings
from decimal import Decimal
from types import SimpleNamespace
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiocache_aura import (
    CacheManager,
    CachePolicy,
    Call,
    ConfigurationError,
    KeyPartError,
    cache,
    cache_menu,
    invalidate_cache,
    tenant_scope,
    user_scope,
)
from aiocache_aura.signatures import CallSignature
from aiocache_aura.templates import Template

NAMES = "a b self cls args kwargs name value key call f print ñ match _ _aura_default_0 _aura_default_1".split()
KINDS = list(inspect._ParameterKind)


@pytest.fixture
async def manager():
    async with CacheManager("memory://", prefix="p") as made:
        yield made


# Binding


class Default(list):
    """A mutable default; written in a signature as where it is to be found."""

    def __repr__(self):
        return f"DEFAULTS[{self[0]!r}]"


DEFAULTS = {name: Default([name]) for name in NAMES}


def made(names, kinds, has_default):
    """A function of these parameters, in an order that Python accepts, that returns its arguments as Python binds them."""
    parameters, defaulted = {}, False
    for name, kind, default in sorted(zip(names, kinds, has_default, strict=True), key=lambda one: one[1]):
        if kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            parameters[kind] = inspect.Parameter(name, kind)
            continue
        if kind is not inspect.Parameter.KEYWORD_ONLY:
            default = defaulted = defaulted or default
        parameters[name] = inspect.Parameter(name, kind, default=DEFAULTS[name] if default else inspect.Parameter.empty)
    exec(f"def f{inspect.Signature(parameters.values())}: return locals()", scope := {"DEFAULTS": DEFAULTS})
    return scope["f"]


functions = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(KINDS), st.booleans()), max_size=6, unique_by=lambda one: one[0]
).map(lambda found: made(*zip(*found, strict=True)) if found else made((), (), ()))


@settings(max_examples=400)
@given(
    functions,
    st.lists(st.integers(), max_size=4),
    st.dictionaries(st.sampled_from([*NAMES, "other"]), st.integers(), max_size=4),
    st.booleans(),
)
def test_arguments_are_bound_as_python_binds_them(function, args, kwargs, fitting):
    """The generated functions take just the calls that the function takes, and give its very arguments, defaults filled in."""
    signature = CallSignature(function, owner=None)
    if fitting:  # most random calls do not fit: fill up by position and by name
        wanted = [p for p in inspect.signature(function).parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        args = [*args, 1, 2, 3, 4, 5, 6][: len(wanted)]
        kwargs = {p.name: 7 for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    try:
        arguments = function(*args, **kwargs)
    except TypeError as error:
        for generated in filter(None, (signature.bind, signature.lookup)):
            with pytest.raises(TypeError) as caught:
                generated(*args, **kwargs)
            assert str(caught.value) == str(error)
        return
    bound = signature.arguments(signature.bind(*args, **kwargs))
    assert bound == arguments
    assert all(bound[name] is value for name, value in arguments.items() if isinstance(value, Default))
    if signature.lookup is not None:
        found = signature.lookup(*args, **kwargs)
        assert found == tuple(part for name in signature.names for part in (arguments[name].__class__, arguments[name]))


def test_the_generated_source_can_be_read():
    """It is the function's own parameter list, known to linecache, so that tracebacks show it."""

    def dish(a, /, b=1, *, c, d=None):
        return None

    code = CallSignature(dish, owner=None).bind.__code__
    assert linecache.getline(code.co_filename, 1).startswith("def dish(a, /, b=_aura_default_1, *, c, d=_aura_default_3):")
    assert "dish" in code.co_filename


async def test_a_wrong_call_says_what_is_wrong_as_the_function_would(manager):
    """Arguments that do not fit raise Python's own TypeError, with the function's name, from the call and from its verbs."""

    @cache(manager=manager)
    async def dish(a, *, b=1):
        return None

    for use in (dish, dish.peek, dish.cache_key, dish.invalidate, dish.refresh, dish.exists):
        with pytest.raises(TypeError, match=r"dish\(\) missing 1 required positional argument: 'a'"):
            await use()
        with pytest.raises(TypeError, match=r"dish\(\) got an unexpected keyword argument 'c'"):
            await use(1, c=2)


async def test_a_default_that_changes(manager):
    """A mutable default is part of the key as it is at the call, and so is one that was passed."""

    @cache(manager=manager)
    async def basket(item, held=[]):
        return len(held)

    empty = basket.cache_key(1)
    assert basket.cache_key(1, []) == empty
    assert await basket(1) == 0
    basket.__wrapped__.__defaults__[0].append("x")
    assert await basket(1) == 1
    assert basket.cache_key(1) == basket.cache_key(1, ["x"]) != empty


async def test_callables_that_are_no_plain_functions(manager):
    """Lambdas and partials need name=; then they are bound as what they are."""

    async def add(a, b, *, c=0):
        return a + b + c

    for nameless in (lambda a: a, functools.partial(add, 1)):
        with pytest.raises(ConfigurationError, match="name="):
            cache(manager=manager)(nameless)
    plus_one = cache(manager=manager, name="plus one")(functools.partial(add, 1, c=5))
    assert await plus_one(2) == 8
    assert plus_one.cache_key(2) == plus_one.cache_key(b=2, c=5) != plus_one.cache_key(2, c=6)
    double = cache(manager=manager, name="double")(lambda number: 2 * number)
    assert await double(4) == await double(number=4) == 8


# Excluded and secret


@pytest.mark.parametrize("option", ["exclude", "secret"])
def test_names_that_are_no_parameters(option, manager):
    """exclude= and secret= name parameters: an unknown one, or one text in place of a list, is an error that names those there are."""

    async def search(text, db):
        return None

    with pytest.raises(ConfigurationError, match=rf"{option}=\['session'\].*text, db"):
        cache(manager=manager, **{option: ["db", "session"]})(search)
    with pytest.raises(ConfigurationError, match=rf"{option}='db'.*\['db'\]"):
        cache(manager=manager, **{option: "db"})(search)


async def test_excluded_arguments_make_no_difference(manager):
    """Whatever they are, unhashable and without a place in keys too; an iterator of names serves every way of calling."""

    class Repository:
        @cache(manager=manager, exclude=iter(["db"]))
        async def count(cls, table, db):
            return len(db)

        by_class = classmethod(count)

    for count in (Repository.by_class, functools.partial(Repository.count, Repository())):
        assert await count("a", [object()]) == 1
        assert await count("a", {}) == 1
        assert await count("b", {}) == 0


@pytest.mark.parametrize("name", ["tenant_id", "restaurant_id", "user_id"])
async def test_an_excluded_owner_is_still_the_owner(manager, name):
    """Leaving a tenant or user out of the arguments in the key does not share entries: not at the first call, nor on the hot path."""
    source = f"async def of(page, {name}):\n    return {name}"
    exec(source, scope := {"__name__": "shop"})
    of = cache(manager=manager, exclude=[name])(scope["of"])
    for _ in range(3):
        assert [await of(1, one) for one in (5, 6, "7")] == [5, 6, "7"]
    assert of.cache_key(1, 5) != of.cache_key(1, 6)


async def test_an_owner_of_another_name_that_is_excluded():
    """The names are the manager's, and known at the call only."""
    async with CacheManager("memory://", tenant_args=("shop",), user_args=("clerk",)) as manager:

        @cache(manager=manager, exclude=["shop", "clerk"])
        async def of(page, shop, clerk):
            return shop, clerk

        for _ in range(2):
            assert [await of(1, *who) for who in ((1, 1), (1, 2), (2, 1))] == [(1, 1), (1, 2), (2, 1)]


async def test_types_that_are_in_no_key():
    """`exclude_types` leaves arguments of a class and of its subclasses out of all keys; others at the same place count."""

    class Session:
        pass

    class Nested(Session):
        pass

    async with CacheManager("memory://", exclude_types=(Session,)) as manager:

        @cache(manager=manager, name="count")
        async def count(table, db=None):
            return type(db).__name__

        assert [await count("a", db) for db in (Session(), Session(), Nested())] == ["Session"] * 3
        assert [await count("a", db) for db in (None, 1, "1", None)] == ["NoneType", "int", "str", "NoneType"]
        assert await count("b", Nested()) == "Nested"
        with pytest.raises(KeyPartError, match="'db'"):
            await count("a", [Session()])


def stored(manager):
    """Every byte that a memory manager keeps."""
    memory = manager._memory
    return b"\n".join([*memory.values, *(memory.values.get(key, 0.0) or b"" for key in memory.values), *memory._tokens, *memory._permits])


@pytest.mark.parametrize(
    "options",
    [{}, {"key": "account:{api_key}:{page}"}, {"tags": ["of:{api_key}"]}, {"key": "a:{api_key:>20}:{page}"}],
    ids=["default key", "template", "tag", "format"],
)
async def test_a_secret_is_in_the_key_and_cannot_be_read_there(options, caplog):
    """Calls with two secrets differ, and neither is readable in keys, scopes, stored bytes, or the log that shows keys."""
    caplog.set_level(logging.DEBUG, "aiocache_aura")
    async with CacheManager("memory://", log_keys=True) as manager:

        @cache(manager=manager, secret=["api_key"], **options)
        async def account(api_key, page=1):
            return page

        assert await account("c0ffee") == await account("c0ffee") == 1
        assert await account(api_key="decade") == 1
        assert account.cache_info()[:2] == (1, 2)
        assert account.cache_key("c0ffee") == account.cache_key(api_key="c0ffee") != account.cache_key("decade")
        everything = stored(manager).decode(errors="replace") + caplog.text + account.cache_key("c0ffee")
        assert "account" in everything
        assert "c0ffee" not in everything
        assert "decade" not in everything


def test_secrets_keep_their_kind_and_their_name(manager):
    """A secret is hashed with its kind and its parameter: 1 is not "1", and two that are equal do not show it."""

    @cache(manager=manager, secret=["pin", "again"], name="check")
    async def check(pin, again):
        return None

    keys = {check.cache_key(*both) for both in ((1, 1), ("1", "1"), (True, True), (None, None), ([1], [1]))}
    assert len(keys) == 5
    first, second = (part.partition("=")[2] for part in check.cache_key(1, 1).split(":")[-2:])
    assert first != second
    with pytest.raises(KeyPartError, match="parameter 'pin'"):
        check.cache_key(object(), 1)


SECRETIVE = "password passwd user_password token access_token api_key apikey API_KEY client_secret credentials authorization".split()


@pytest.mark.parametrize("name", [*SECRETIVE, "page", "monkey", "key", "author"])
def test_a_name_like_a_secret_warns_at_decoration(manager, name):
    """In neither secret= nor exclude=, a parameter named like a secret warns once, of the user's line, whatever it is a parameter of."""

    def function():
        exec(f"async def login({name}): return 1", scope := {"__name__": "shop"})
        return scope["login"]

    decorators = [cache(manager=manager, name="1"), cache_menu(manager=manager, name="2")]
    for decorator in decorators:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            decorator(function())
        assert [(name in str(one.message), one.filename) for one in caught] == ([(True, __file__)] if name in SECRETIVE else [])
    for option in ("secret", "exclude"):
        cache(manager=manager, name=f"with {option}", **{option: [name]})(function())  # warnings are errors here


def test_a_method_warns_once_and_at_decoration(manager):
    """However a method is bound, the warning comes when the class is made, and not when it is used."""
    with pytest.warns(UserWarning, match="'token'") as caught:

        class Gate:
            @classmethod
            @cache(manager=manager)
            async def enter(cls, token):
                return None

            @cache(manager=manager)
            async def leave(self, token):
                return None

    assert [one.filename for one in caught] == [__file__] * 2
    assert len({Gate.enter.cache_key(1), Gate().enter.cache_key(1), Gate().leave.cache_key(1), Gate.leave.cache_key(Gate(), 1)}) == 2


def test_what_invalidates_has_no_key_to_warn_of():
    """`invalidate_cache` puts no argument into a key."""

    @invalidate_cache("menu")
    async def change(password):
        return None

    assert inspect.iscoroutinefunction(change)


# Self


class Shelf:
    def __init__(self, number):
        self.number = number


class Shop(Shelf):
    def __cache_key__(self):
        return self.number


async def test_self_is_not_in_the_key_unless_asked_for(manager):
    """Its class is. `self_key=`, else the class's `__cache_key__()`, tells instances apart, as they are at the call."""

    async def of(self, page):
        return self.number

    class Plain(Shelf):
        shared = cache(manager=manager, name="shared")(of)

    of.__qualname__ = "Shelf.of"  # as in a class body

    def bound(base, **options):
        decorated = cache(manager=manager, name=f"{base.__name__} {sorted(options)}", **options)(of)
        return type("Bound", (base,), {"of": decorated, "__module__": __name__, "__qualname__": "Bound"})

    shared, keyed, own, both = (
        bound(Shelf),
        bound(Shelf, self_key=lambda self: self.number),
        bound(Shop),
        bound(Shop, self_key=lambda self: 0),
    )
    for _ in range(2):
        assert [await shared(n).of(1) for n in (1, 2)] == [1, 1]
        assert [await keyed(n).of(1) for n in (1, 2, "1")] == [1, 2, "1"]
        assert [await own(n).of(1) for n in (1, 2, "1")] == [1, 2, "1"]
        assert [await both(n).of(1) for n in (1, 2)] == [1, 1]
    shelf = keyed(1)
    assert await shelf.of(1) == 1
    shelf.number = 2
    assert await shelf.of(1) == 2
    with pytest.raises(KeyPartError, match="'self'"):
        keyed(object()).of.cache_key(1)
    with pytest.raises(KeyPartError, match="'self'"):  # a function outside a class body: self is an argument like any other
        await Plain.shared(Shelf(1), 1)


def test_self_key_without_self_is_refused(manager):
    """An option that would have no effect: functions, static and class methods have no instance."""

    async def plain(a):
        return None

    with pytest.raises(ConfigurationError, match="self_key"):
        cache(manager=manager, self_key=id)(plain)
    for kind in (staticmethod, classmethod):

        async def method(cls):
            return None

        with pytest.raises(ConfigurationError, match="self_key"):
            cache(manager=manager, self_key=id)(kind(method))


# Templates


class Dish(enum.StrEnum):
    PIZZA = "pizza:large"


class Size(enum.IntEnum):
    LARGE = 3


NOON = dt.datetime(2026, 11, 25, 12)
FILLED = [
    ("item:{a}", 1, "item:1"),
    ("item:{a}", "x y", "item:x y"),
    ("item:{a}", "x:y%z", "item:x%3Ay%25z"),
    ("item:{a}", "", "item:"),
    ("item:{a}", "ünï→", "item:ünï→"),
    ("item:{a}", "{b}", "item:{b}"),
    ("{{{a}}}", 1, "{1}"),
    ("{a}", UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ("{a}", Decimal("1.50"), "1.50"),
    ("{a}", dt.date(2026, 11, 25), "2026-11-25"),
    ("{a}", NOON, "2026-11-25T12%3A00%3A00"),
    ("{a}", Dish.PIZZA, "pizza%3Alarge"),
    ("{a}", Size.LARGE, "3"),
    ("{a:03d}", 7, "007"),
    ("{a:%Y%m%d}", NOON, "20261125"),
    ("{a:.1f}", Decimal("1.25"), "1.2"),
    ("{a:>4}", "x", "   x"),
    ("{a.id}", SimpleNamespace(id=5), "5"),
    ("{a.owner.names[1]}", SimpleNamespace(owner=SimpleNamespace(names=["x", "y"])), "y"),
    ("{a[id]:02d}", {"id": 5}, "05"),
]


@pytest.mark.parametrize(("text", "value", "filled"), FILLED)
def test_what_fields_become(text, value, filled):
    """Plain values as text, attributes, items, formats; of a text, a colon and a percent sign are escaped, and nothing else."""
    assert Template(text, ["a"], what="key").fill({"a": value}) == filled


@pytest.mark.parametrize("what", ["key", "tags"])
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{a}", None),
        ("{a:>4}", None),
        ("{a.id}", None),
        ("{a.id}", SimpleNamespace(id=None)),
        ("{a.id}", SimpleNamespace()),
        ("{a[0]}", []),
        ("{a[x]}", {}),
        ("{a:03d}", "x"),
        ("{a:d}", True),
        ("{a}", True),
        ("{a}", 1.5),
        ("{a}", [1]),
        ("{a:>4}", [1]),
        ("{a}", b"x"),
        ("{a}", SimpleNamespace(id=1)),
    ],
)
async def test_what_fields_cannot_be(manager, text, value, what):
    """None, bools, floats, objects, what is not there and what does not fit its format are a KeyPartError that names the field."""

    @cache(manager=manager, **{what: text if what == "key" else [text]})
    async def of(a):
        return None

    with pytest.raises(KeyPartError, match=rf"\{{{text[1:].split(':')[0].rstrip('}').replace('[', chr(92) + '[')}"):
        await of(value)


WRONG = "{ } {a a} {} {0} {b} {b.id} {result} {a!r} {a!s} {a:{a}} {a}{a} {a}1{a} {a}%{a}".split()


@pytest.mark.parametrize("text", WRONG)
def test_a_template_that_cannot_work_is_refused_at_decoration(manager, text):
    """Braces that do not fit, unknown fields, conversions, braces in formats, and fields that nothing keeps apart."""

    async def of(a):
        return None

    with pytest.raises(ConfigurationError, match="key="):
        cache(manager=manager, key=text)(of)


def test_punctuation_is_preferred_as_separator():
    """Letters between two fields are escaped in a text only where nothing else keeps the fields apart."""
    fields = {"a": "page 2 of 3", "b": "o"}
    assert Template("{a}of-{b}", ["a", "b"], what="key").fill(fields) == "page 2 of 3of-o"
    assert Template("{a}of{b}", ["a", "b"], what="key").fill(fields) == "page 2 %6Ff 3of%6F"


def test_tags_may_stand_side_by_side():
    """A tag too many that is cleared does no harm, so tags are not held to what keys are."""
    assert Template("{a}{b}", ["a", "b"], what="tags").fill({"a": "x:", "b": 1}) == "x:1"
    with pytest.raises(ConfigurationError, match="tags="):
        Template("{c}", ["a", "b"], what="tags")


literals = st.text("-_:/x%Aé. ", max_size=3)
texts = st.text("-_:/x%Aé. 23uF", max_size=4)


@settings(max_examples=300)
@given(st.lists(literals, min_size=3, max_size=3), st.lists(st.tuples(texts, texts), min_size=2, max_size=12))
@example(["", "-", ""], [("1-2", "3"), ("1", "2-3")])
@example(["", "{{", "}}"], [("1{2", "3"), ("1", "2{3")])
@example(["", "x", ""], [("1x2", "3"), ("1", "2x3"), ("%78", "a"), ("x", "a")])
@example(["", "%é", ""], [("1", "3A%é2"), ("1:", "2"), ("1%C3%A9", "2")])
def test_no_separator_can_be_smuggled_in(around, calls):
    """Whatever stands between two fields: two calls spell the same key only if both texts are the same."""
    before, between, after = around
    try:
        template = Template(f"{before}{{a}}{between}{{b}}{after}", ["a", "b"], what="key")
    except ConfigurationError:
        assert not set(between) - set(string.digits + "%uABCDEF")
        return
    filled = {}
    for call in calls:
        assert filled.setdefault(template.fill(dict(zip("ab", call, strict=True))), call) == call


# Templates of keys: which parameters they need


def test_every_parameter_needs_a_place(manager):
    """One in neither template nor exclude= would make calls that differ share an entry: an error at decoration that names it."""

    async def orders(restaurant_id, user_id, day, page=1):
        return None

    with pytest.raises(ConfigurationError, match=r"key='orders:\{day\}' of .*orders.*\{page\}.*exclude=\['page'\]"):
        cache(manager=manager, key="orders:{day}")(orders)
    cache(manager=manager, name="1", key="orders:{day}", exclude=["page"])(orders)
    cache(manager=manager, name="2", key="orders:{day}:{page}")(orders)
    with pytest.raises(ConfigurationError, match="restaurant_id"):
        cache(manager=manager, name="3", key="orders:{day}:{page}", tenant_aware=False)(orders)
    cache(manager=manager, name="4", key="orders:{restaurant_id}:{day}:{page}", tenant_aware=False)(orders)


async def test_a_type_that_leaves_tenants_out_needs_them_in_the_template(manager):
    """The type's policy is known at the call: there a tenant that neither owner nor template keeps apart is refused, not shared."""
    manager.register("everyones", CachePolicy(tenant_aware=False))

    @cache(cache_type="everyones", manager=manager, key="menu:{page}")
    async def menu(restaurant_id, page):
        return restaurant_id

    for use in (menu, menu.peek, menu.cache_key):
        with pytest.raises(ConfigurationError, match="restaurant_id"):
            await use(1, 1)
    manager.override("everyones", tenant_aware="known")
    assert [await menu(restaurant, 1) for restaurant in (1, 2)] == [1, 2]


async def test_a_function_of_two_tenants_keeps_both_apart(manager):
    """tenant_id and restaurant_id are both the owner, so neither needs a place in the template, and either clears the entry."""

    @cache_menu(manager=manager, key="page:{page}")
    async def menu(tenant_id, restaurant_id, page=1):
        return f"{tenant_id} {restaurant_id}"

    calls = [(1, 10), (1, 20), (2, 10), (None, 10), (1, None)]
    for _ in range(2):
        assert [await menu(*call) for call in calls] == [f"{tenant} {restaurant}" for tenant, restaurant in calls]
    await manager.invalidate_menu(10)
    assert [await menu.exists(*call) for call in calls] == [False, True, False, False, True]


# Templates of keys: whose entry


class TestExactly:
    """With `key=` the entry is exactly `manager.get(type, key)`."""

    @pytest.fixture
    def page(self, manager):
        @cache(cache_type="api", manager=manager, key="customers:{restaurant_id}:{day}", exclude=["db"])
        async def page(restaurant_id, day, db=None):
            return f"loaded {day}"

        return page

    @pytest.mark.parametrize("day", ["monday", "first monday", "mon,day (1)", "{}", "~", "ü", "x" * 300])
    async def test_what_it_stores_is_found_and_what_is_set_is_taken(self, manager, page, day):
        """In both directions, whatever is in the text but a colon and a percent sign."""
        key = f"customers:1:{day}"
        assert await manager.get("api", key, tenant=1) is None
        assert await page(1, day) == f"loaded {day}"
        assert await manager.get("api", key, tenant=1) == f"loaded {day}"
        with tenant_scope("1"):
            assert await manager.get("api", key) == f"loaded {day}"
            await manager.set("api", key, "warmed", tags=["x"])
        assert await page(1, day) == "warmed"
        assert await manager.delete("api", key, tenant=1) == 1
        assert await page.exists(1, day) is False

    async def test_a_colon_in_a_value_is_escaped(self, manager, page):
        """So that it poses as no other key."""
        await page(1, "a:b")
        assert await manager.get("api", "customers:1:a:b", tenant=1) is None
        assert await manager.get("api", "customers:1:a%3Ab", tenant=1) == "loaded a:b"

    async def test_its_verbs_are_about_the_same_entry(self, manager, page):
        """set_value, invalidate and the tags of a `set` meet in it."""
        await page.set_value("mine", 1, "monday")
        assert await manager.get("api", "customers:1:monday", tenant=1) == "mine"
        await page.invalidate(1, "monday", db=object())
        assert await manager.exists("api", "customers:1:monday", tenant=1) is False
        await manager.set("api", "customers:1:monday", "tagged", tags=["x"], tenant=1)
        assert await page(1, "monday") == "tagged"
        await manager.invalidate("api", tags=["x"])
        assert await page(1, "monday") == "loaded monday"

    async def test_the_scope_is_the_owner(self, manager, page):
        """As of any verb: another tenant in scope is another entry."""
        await page(1, "monday")
        with tenant_scope(2):
            assert await page.exists(1, "monday") is False
            assert await manager.get("api", "customers:1:monday", tenant=1) == "loaded monday"
        with user_scope(5):
            assert await page.exists(1, "monday") is True

    async def test_a_key_of_no_field(self, manager):
        """A constant names one entry."""

        @cache(cache_type="settings", manager=manager, key="the settings")
        async def load():
            return {"currency": "EUR"}

        await load()
        assert await manager.get("settings", "the settings") == {"currency": "EUR"}

    async def test_a_function_as_key(self, manager):
        """It is given the call, defaults filled in and excluded arguments too, each time, and what it returns is text."""

        def spell(call: Call):
            return f"{call['text']}/{call['page']}/{call['db'].name}" if call["db"] else 5

        @cache(cache_type="search", manager=manager, key=spell, exclude=["db"])
        async def search(text, page=1, db=None):
            return db.name

        for name in ("a", "b", "a"):
            assert await search("x", db=SimpleNamespace(name=name)) == name
        assert await manager.mget("search", ["x/1/a", "x/1/b"]) == ["a", "b"]
        with pytest.raises(KeyPartError, match="text"):
            await search("x")

    async def test_a_field_of_an_excluded_argument(self, manager):
        """`exclude=` keeps it out of the arguments in the key, not out of the template: never remembered for another."""

        @cache(manager=manager, key="of:{user.id}", exclude=["user"])
        async def of(user):
            return user.id

        assert [await of(SimpleNamespace(id=n)) for n in (1, 2, 1)] == [1, 2, 1]
        assert await manager.get("api", "of:2") == 2

    async def test_a_field_of_self(self, manager):
        """A method's template may name an attribute of its instance."""

        class Table(Shelf):
            @cache(manager=manager, key="table:{self.number}:{seat}")
            async def at(self, seat):
                return f"{self.number} {seat}"

        assert [await Table(n).at(1) for n in (1, 2, 1)] == ["1 1", "2 1", "1 1"]
        assert await manager.get("api", "table:2:1") == "2 1"


# Templates of tags


async def test_a_tag_by_template_is_cleared_by_the_text_it_spells(manager):
    """Whoever invalidates by hand writes the tag as it reads, whatever is in the value."""

    @cache_menu(manager=manager, tags=["cat:{category}"])
    async def dishes(category):
        return category

    @invalidate_cache("menu", tags=["cat:{result}"], manager=manager)
    async def rename(category):
        return category

    for category in ("pizza", "Main dishes", "a:b", "50% off", "x" * 100, "{}"):
        await dishes(category)
        await dishes("other")
        assert await manager.invalidate("menu", tags=[f"cat:{category}"])
        assert [await dishes.exists(one) for one in (category, "other")] == [False, True]
        await dishes(category)
        await rename(category)
        assert [await dishes.exists(one) for one in (category, "other")] == [False, True]


async def test_keys_of_invalidate_cache_spell_as_keys_of_cache_do(manager):
    """The same template names the same entry in both decorators."""

    @cache(manager=manager, key="doc:{folder}/{name}")
    async def read(folder, name):
        return f"{folder} {name}"

    @invalidate_cache("api", keys=["doc:{folder}/{name}"], manager=manager)
    async def write(folder, name):
        return None

    calls = [("a/b", "c"), ("a", "b/c"), ("a:b", "c%2F"), ("", "")]
    assert [await read(*call) for call in calls] == [f"{folder} {name}" for folder, name in calls]
    for n, call in enumerate(calls):
        await write(*call)
        assert [await read.exists(*one) for one in calls] == [False] * (n + 1) + [True] * (len(calls) - n - 1)


# The hot path


async def test_the_memo_is_bounded_and_forgets_nothing_that_counts(manager, monkeypatch):
    """Beyond its limit remembered addresses are dropped and worked out again: the entries stay the same."""
    monkeypatch.setattr("aiocache_aura.cached.MEMO", 8)

    @cache(manager=manager, name="memo")
    async def of(number):
        return str(number)

    order = list(range(9)) * 3
    random.Random(1).shuffle(order)
    sizes = set()
    for number in order:
        assert await of(number) == str(number)
        sizes.add(len(of.cache_key.__self__._core.state.memo))
    assert of.cache_info()[:2] == (18, 9)
    assert sizes == set(range(1, 9))


async def test_concurrent_calls_of_one_function_in_many_scopes(manager):
    """The remembered address of a call belongs to the tenant and user of its task."""

    @cache(cache_type="permissions", manager=manager, name="may")
    async def may(what):
        await asyncio.sleep(0)
        return what

    async def as_(tenant, user):
        with tenant_scope(tenant), user_scope(user):
            return await may("edit") and may.cache_key("edit")

    who = [(tenant, user) for tenant in range(4) for user in range(4)]
    keys = await asyncio.gather(*(as_(*one) for one in who * 3))
    assert len(set(keys)) == len(who)
    assert keys[: len(who)] * 3 == keys
