"""Keys: which calls are the same one, and that no two others, and nobody's else, ever share a key."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import itertools
import os
import string
import struct
import subprocess
import sys
from decimal import Decimal
from importlib.resources import files
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from unittest.mock import Mock
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from aiocache_aura import (
    CacheError,
    CacheManager,
    CachePolicy,
    ConfigurationError,
    KeyPartError,
    cache,
    register_key_type,
    tenant_scope,
    user_scope,
)
from aiocache_aura import keys as module
from aiocache_aura.generations import Addresses
from aiocache_aura.owner import Owner

ROOT = Path(__file__).parents[1]
MANAGER = CacheManager("memory://", prefix="p")
MANAGER.register("known", CachePolicy(user_aware="known"))
HEAD = "p:known:"
OWNERS_BYTES = 2 * (len("t+:") + 2 * module.ID_BYTES)


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


class Size(enum.IntEnum):
    RED = 1
    BIG = 2


class Mark(enum.StrEnum):
    RED = "RED"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


Odd = enum.Flag("Odd", {"0": 1, "a:b": 2})


# What is different, said without the library


def zone_shape(zone):
    if zone is None or isinstance(zone, ZoneInfo):
        return zone and (ZoneInfo, zone.key)
    return dt.timezone, zone.utcoffset(None), zone.tzname(None)


def shape(value):
    """Of two values: equal shapes if and only if they are the same argument, of the same kind at every depth."""
    kind = type(value)
    if kind is float:
        return kind, "nan" if value != value else struct.pack(">d", value)
    if kind is Decimal:
        return kind, value.as_tuple()
    if kind is dt.datetime:
        return kind, value.timetuple()[:6], value.microsecond, value.fold, zone_shape(value.tzinfo)
    if kind is dt.time:
        return kind, value.hour, value.minute, value.second, value.microsecond, value.fold, zone_shape(value.tzinfo)
    if isinstance(value, enum.Enum):
        return kind, value._name_, value._value_
    if isinstance(value, PurePath):
        return kind, str(value)
    if kind in (tuple, list):
        return kind, tuple(map(shape, value))
    if kind in (set, frozenset):
        return kind, frozenset(collections.Counter(map(shape, value)).items())
    if kind is dict:
        return kind, frozenset(collections.Counter((shape(k), shape(v)) for k, v in value.items()).items())
    return kind, value


# Values


ZONES = [
    None,
    dt.UTC,
    dt.timezone(dt.timedelta(0), "GMT"),
    dt.timezone(dt.timedelta(hours=1)),
    dt.timezone(dt.timedelta(hours=1), "CET"),
    ZoneInfo("Europe/Berlin"),
    ZoneInfo("Europe/Paris"),
    ZoneInfo("UTC"),
]
HOURS = [dt.datetime(2026, 10, 25, 2, 30), dt.datetime(2026, 10, 25, 0, 30), dt.datetime(2026, 1, 1)]
nasty = st.text(alphabet=":%~{},=+;()[]<>@!.ab1tuisé \n\x00\x7f\ud800→", max_size=6)
zones, folds = st.sampled_from(ZONES), st.sampled_from([0, 1])
moments = st.builds(
    lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold), st.one_of(st.sampled_from(HOURS), st.datetimes()), zones, folds
)
times = st.builds(
    lambda time, zone, fold: time.replace(tzinfo=zone, fold=fold), st.sampled_from([dt.time(0), dt.time(1, 2, 3, 4)]), zones, folds
)
numbers = st.one_of(
    st.integers(-2, 2),
    st.integers(),
    st.sampled_from([2**256 - 1, 2**256, -(2**256), 10**4000]),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e16, 1e-16, float("nan"), float("inf"), float("-inf")]),
    st.floats(),
    st.sampled_from([Decimal(text) for text in ("1", "1.0", "1.00", "10E-1", "0", "-0", "0E+2", "0E-2", "Infinity", "-Infinity")]),
    st.decimals(allow_nan=False),
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    nasty,
    st.text(max_size=4),
    st.sampled_from(["None", "True", "1", "i1", "s", "sa", "t(i1)", "t(i1,i2)", "%3A", ""]),
    st.binary(max_size=3),
    st.sampled_from([b"", b"a", b"61"]),
    st.uuids(),
    moments,
    times,
    st.sampled_from([dt.date(2026, 1, 1), dt.date(2026, 10, 25)]),
    st.timedeltas(),
    st.sampled_from([dt.timedelta(days=1), dt.timedelta(seconds=1), dt.timedelta(microseconds=1), dt.timedelta(days=-1, seconds=1)]),
    st.sampled_from([*Colour, *Size, *Mark, *Right, Right(0), Right(3), *Odd, Odd(0), Odd(3)]),
    st.sampled_from([PurePosixPath("a/b"), Path("a/b"), PureWindowsPath("a/b"), PurePosixPath("a\\b"), Path("/"), Path()]),
)
hashables = st.recursive(
    leaves, lambda inner: st.one_of(st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)), max_leaves=4
)
signalling = st.sampled_from([Decimal(text) for text in ("NaN", "-NaN", "NaN1", "sNaN")])
values = st.recursive(
    st.one_of(leaves, signalling),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.sets(hashables, max_size=3),
        st.frozensets(hashables, max_size=3),
        st.dictionaries(hashables, inner, max_size=3),
    ),
    max_leaves=6,
)


def assert_one_key_each(pairs):
    """Two things have the same key if and only if they are the same."""
    of_key, of_thing = {}, {}
    for thing, key in pairs:
        assert of_key.setdefault(key, thing) == thing, f"two different things share {key!r}"
        assert of_thing.setdefault(thing, key) == key, f"one thing has two keys: {key!r} and {of_thing[thing]!r}"


def assert_clean(key):
    """No byte that a cluster, a log line or a human would take for something else."""
    bad = {*range(0x21), 0x7F, *b"{}"}
    assert not bad & set(key if isinstance(key, bytes) else key.encode())


@settings(max_examples=250)
@given(st.lists(values, min_size=2, max_size=20))
@example([1, True, 1.0, "1", Decimal(1), b"1", (1,), (True,), [1], {1}, frozenset({1}), {1: None}, Size.RED, Colour.RED])
@example(["", None, b"", (), [], set(), frozenset(), {}, "None", 0, False, 0.0, -0.0, Decimal(0), Decimal("-0"), Path()])
@example([("a,sb",), ("a", "b"), ["a", ["b"]], [["a"], "b"], {"a": "b"}, {"a=sb": None}, {("a", "b"): None}])
@example([moment.replace(tzinfo=zone, fold=fold) for moment in HOURS for zone in ZONES for fold in (0, 1)])
@example([Odd(1), Odd(0), Odd(2), Right(0), Right(3), Colour.RED, Size.RED, Mark.RED, "RED", 1])
@example([[("a",), "b)"], [("a)", "b")], [["a"], "b]"], {"a=sb": "c"}, {"a": "b=sc"}, {"a": "b", "c": "d"}, {"a": "b,sc=sd"}])
@example(
    [
        UUID(int=255),
        UUID(int=255).hex,
        str(UUID(int=255)),
        255,
        b"\xff",
        "ff",
        2**256,
        -(2**256),
        2**256 - 1,
        f"{2**256:x}",
        2**256 % 10**60,
    ]
)
@example(
    [dt.timedelta(days=1), dt.timedelta(seconds=1), dt.timedelta(microseconds=1), dt.timedelta(0), dt.timedelta(days=1, microseconds=1)]
)
def test_values_share_no_text(batch):
    """Two arguments have the same text in a key if and only if they are the same, and of the same kind at every depth."""
    assert_one_key_each((shape(value), module.part_of(value, "x")) for value in batch)
    for value in batch:
        assert_clean(module.part_of(value, "x"))


# Calls


@cache(cache_type="known", manager=MANAGER, name="f")
async def plain(a, b=0, *, c=None):
    return None


@cache(cache_type="known", manager=MANAGER, name="f", version=1)
async def versioned(a, b=0, *, c=None):
    return None


@cache(cache_type="known", manager=MANAGER, name="f;1")
async def posing_as_versioned(a, b=0, *, c=None):
    return None


@cache(cache_type="known", manager=MANAGER, name="f:a=i1")
async def posing_as_a_call(b=0, *, c=None, a=1):
    return None


@cache(cache_type="known", manager=MANAGER, name="g")
async def variadic(a, /, *b, c=None, **d):
    return None


FUNCTIONS = [plain, versioned, posing_as_versioned, posing_as_a_call]
ids = st.one_of(st.none(), nasty.filter(bool), st.sampled_from(["a", "b", "a:ub", "ub", "a+b", "a:=x", "x" * 48, "x" * 49, "1"]))


@settings(max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 3), ids, ids, values, values, values), min_size=2, max_size=12))
def test_calls_share_no_key(calls):
    """Two calls have the same key if and only if function, tenant, user and arguments are the same; keys are bounded and clean."""
    seen = []
    for which, tenant, user, a, b, c in calls:
        with tenant_scope(tenant or "nobody"), user_scope(user or "nobody"):
            key = FUNCTIONS[which].cache_key(a=a, b=b, c=c)
        assert_clean(key)
        assert len(key.encode()) <= len(HEAD) + OWNERS_BYTES + module.TAIL_BYTES
        seen.append(((which, tenant or "nobody", user or "nobody", shape(a), shape(b), shape(c)), key))
    assert_one_key_each(seen)


@settings(max_examples=80)
@given(st.lists(st.tuples(leaves, st.lists(leaves, max_size=2), leaves, st.dictionaries(st.sampled_from("abd"), leaves)), max_size=12))
def test_variadic_calls_share_no_key(calls):
    """What stands in *args and **kwargs is told apart from what has a name of its own."""
    assert_one_key_each((tuple(map(shape, (a, b, c, d))), variadic.cache_key(a, *b, c=c, **d)) for a, b, c, d in calls)


@given(values, values, values, st.permutations("abc"))
def test_the_way_of_passing_makes_no_difference(a, b, c, order):
    """Arguments by position, by name and in any order are the same call, and so are defaults left out and written out."""
    given_by_name = {"a": a, "b": b, "c": c}
    key = plain.cache_key(a, b, c=c)
    assert plain.cache_key(**{name: given_by_name[name] for name in order}) == key
    assert plain.cache_key(a, c=c, b=b) == key
    assert plain.cache_key(a) == plain.cache_key(a, 0, c=None) == plain.cache_key(c=None, a=a)
    assert variadic.cache_key(a, x=b, y=c) == variadic.cache_key(a, y=c, x=b)


@given(st.dictionaries(hashables, values, max_size=5), st.lists(hashables, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_what_has_none_makes_no_difference(mapping, members, chance):
    """Sets, and dictionaries that are equal, have one key in whatever order they were filled."""
    items = list(mapping.items())
    chance.shuffle(items)
    assert plain.cache_key(dict(items)) == plain.cache_key(mapping)
    shuffled = members.copy()
    chance.shuffle(shuffled)
    if len(set(map(shape, members))) == len(set(members)):  # else which of two equal members stays depends on the order
        assert plain.cache_key(set(shuffled)) == plain.cache_key(set(members))


def test_r9_default_keys_do_not_collide():
    """R9: arguments that other libraries join into the same text are different calls, with default keys and with a template."""

    async def get_doc(user, doc):
        return None

    default = cache(cache_type="known", manager=MANAGER, name="r9")(get_doc)
    spelled = cache(cache_type="known", manager=MANAGER, name="r9 spelled", key="user:{user}:doc:{doc}")(get_doc)
    for cached in (default, spelled):
        assert cached.cache_key("alice", "1:doc:2") != cached.cache_key("alice:doc:1", "2")
    keys = [default.cache_key("alice", doc) for doc in (1, "1", True, 1.0, None, "", "None", 0, False)]
    assert len(set(keys)) == len(keys)


EQUAL_BUT_DIFFERENT = [
    [1, True, 1.0, Decimal(1), Size.RED],
    [0, False, 0.0, -0.0, Decimal("0.0"), Decimal("-0")],
    [Decimal("1.0"), Decimal("1.00")],
    ["RED", Mark.RED],
    [(1,), (True,), (1.0,)],
    [frozenset({1}), frozenset({True})],
    [(), frozenset(), "", b"", None],
    [moment.astimezone(zone) for moment in [HOURS[2].replace(tzinfo=dt.UTC)] for zone in ZONES if zone],
    [HOURS[0], HOURS[0].replace(fold=1)],
    [dt.time(0, tzinfo=zone) for zone in ZONES],
    [PurePosixPath("a"), Path("a")],
    [dt.date(2026, 1, 1), dt.datetime(2026, 1, 1)],
]


@pytest.mark.parametrize("alike", EQUAL_BUT_DIFFERENT, ids=lambda alike: repr(alike[0]))
async def test_equal_arguments_of_different_kinds_on_the_hot_path(alike):
    """Each call gets its own entry back, in whatever order the calls were made, the second time and the third."""
    for order in itertools.islice(itertools.permutations(alike), 24):
        async with CacheManager("memory://") as manager:
            loads = itertools.count()

            @cache(manager=manager, name="hot", exclude=["loads"])
            async def ask(value, loads=loads):
                return next(loads)

            found = [await ask(value) for value in order]
            assert found == list(range(len(order)))
            assert [await ask(value) for value in order * 2] == found * 2


# Whose


owners = st.builds(
    lambda tenants, users: Owner(tuple(dict.fromkeys(tenants)), tuple(dict.fromkeys(users)), 0),
    st.lists(ids.filter(bool), max_size=2),
    st.lists(ids.filter(bool), max_size=2),
)
user_keys = st.one_of(nasty, st.text(), st.sampled_from(["t1:=x", "u1:=x", "=x", "@f", "@f:a=i1", "x" * 160, "x" * 159, "~", "a:ub"]))


@settings(max_examples=150)
@given(st.lists(st.tuples(owners, user_keys), min_size=2, max_size=15))
@example([(Owner(("a:ub",), (), 0), "k"), (Owner(("a",), ("b",), 0), "k"), (Owner((), (), 0), "ta:ub:=k"), (Owner((), ("b",), 0), "k")])
@example([(Owner(("a", "b"), (), 0), "k"), (Owner(("a+b",), (), 0), "k"), (Owner(("b", "a"), (), 0), "k"), (Owner(("a",), (), 0), "b:=k")])
@example([(Owner((), (), 0), key) for key in ("a b", "a%20b", "a%2520b", "a{b", "a%7Bb", "a\ud800", "a%uD800", "a\xd8", "a%D8")])
def test_owners_and_keys_are_not_confused(entries):
    """No tenant, user and key that a user may spell can pose as another three; what is found in a key is what was put there."""
    addresses = Addresses("p")
    found = [(owner, key, addresses.address("known", owner, module.user_tail(key)).key) for owner, key in entries]
    assert_one_key_each(((owner, key), raw) for owner, key, raw in found)
    for owner, _, raw in found:
        assert_clean(raw)
        assert len(raw) <= len(HEAD) + OWNERS_BYTES + module.TAIL_BYTES
        tenants, users, tail = module.split_owner(raw.decode()[len(HEAD) :])
        assert (tenants or "").split("+") == [module.segment(one) for one in owner.tenants or [""]]
        assert (users or "").split("+") == [module.segment(one) for one in owner.users or [""]]
        assert tail.startswith("=")


async def test_entries_of_look_alike_owners_are_kept_apart():
    """Nobody reads what was set for another who spells alike."""
    texts = ["a", "b", "a:ub", "a+b", "a:ub:=k", "-", "~", "x" * 48, "x" * 49, "x" * 48 + "y"]
    whose = [(tenant, user) for tenant in (None, *texts) for user in (None, *texts)]
    async with CacheManager("memory://") as manager:
        for n, (tenant, user) in enumerate(whose):
            await manager.set("menu", "k", n, tenant=tenant, user=user)
        assert [await manager.get("menu", "k", tenant=tenant, user=user) for tenant, user in whose] == list(range(len(whose)))


@given(st.sampled_from(FUNCTIONS), values, st.sampled_from(["", "=", "@", "p:known:", "known:", ":", "%40"]), st.booleans())
def test_no_key_that_a_user_spells_is_a_functions(function, argument, before, whole):
    """Whatever is spelled, the full key of a call included, it is another entry than the call's."""
    key = function.cache_key(a=argument)
    spelled = before + (key if whole else key.removeprefix(HEAD))
    for text in (spelled, module.unescape(spelled), spelled.removeprefix("@")):
        assert Addresses("p").address("known", Owner((), (), 0), module.user_tail(text)).key != key.encode()


@given(user_keys)
def test_keys_of_calls_and_of_users_begin_differently(key):
    """The first byte behind the owner says who spelled it: that is why they never meet."""
    assert module.user_tail(key)[0] == "="
    assert module.call_tail(module.function_name(key, key), [])[0] == "@"


@pytest.mark.parametrize("prefix", ["p!g", "p!p", "p!", "!"])
def test_a_prefix_cannot_pose_as_the_scopes_of_another(prefix):
    """Generations and permits of one prefix stand where no key of another prefix can."""
    made = Addresses(prefix)
    assert "!" not in made.prefix
    scope = Addresses("p").scopes("menu", Owner((), (), 0), ["f:@x"])[-1]
    assert scope == b"p!g:f:@x"
    assert made.address("f", Owner((), (), 0), module.call_tail("x", [])).key != scope


# Bounds


@pytest.mark.parametrize("letter", ["x", "é", "→", "\U0001f355"])
@pytest.mark.parametrize("length", [module.TAIL_BYTES - 1, module.TAIL_BYTES, module.TAIL_BYTES + 1, 100_000])
def test_a_tail_is_readable_up_to_its_limit_and_hashed_beyond(letter, length):
    """At the limit a key stands as it is; a byte more and the readable part makes room for a hash of the whole."""
    wide = len(letter.encode())
    text = "a" * ((length - 1) % wide) + letter * ((length - 1) // wide)
    tail = module.user_tail(text)
    assert len(("=" + text).encode()) == length
    assert (tail == "=" + text) is (length <= module.TAIL_BYTES)
    assert ("~" in tail) is (length > module.TAIL_BYTES)
    assert module.TAIL_BYTES - 4 <= len(tail.encode()) <= module.TAIL_BYTES
    assert module.user_tail(text + "y") != tail
    assert module.user_tail("b" + text[1:]) != tail
    if length > module.TAIL_BYTES:
        assert text.startswith(module.logical_key(tail))
        assert module.user_tail(tail[1:]) != tail  # the hashed form itself cannot be spelled


@pytest.mark.parametrize("length", [module.ID_BYTES - 1, module.ID_BYTES, module.ID_BYTES + 1, 10_000])
def test_an_id_is_readable_up_to_its_limit_and_hashed_beyond(length):
    """Ids and tags are bounded as keys are."""
    segment = module.segment("x" * length)
    assert len(segment) <= module.ID_BYTES
    assert (segment == "x" * length) is (length <= module.ID_BYTES)
    assert segment != module.segment("x" * (length - 1) + "y")
    if length > module.ID_BYTES:
        assert module.segment(segment) != segment  # the hashed form cannot be spelled


@pytest.mark.parametrize("length", [module.TAIL_BYTES, 100_000])
def test_the_arguments_of_a_call_are_bounded_too(length):
    """However long arguments are, the key is not, and an argument that spells the hashed form of another call is another call."""
    tail = module.call_tail("f", [("a", module.part_of("x" * length, "a"))])
    assert len(tail) == module.TAIL_BYTES
    assert tail.startswith("@f:a=sxxx")
    posing = module.part_of(tail.removeprefix("@f:a=s"), "a")
    assert module.call_tail("f", [("a", posing)]) != tail


@given(st.one_of(nasty, st.text()))
def test_escaping_loses_nothing(text):
    """What was escaped, as a key or as a part of one, can be had back."""
    assert module.unescape(module.escape_key(text)) == text
    assert module.unescape(module.escape_part(text)) == text


@pytest.mark.parametrize("key", [1, None, b"a", ("a",), True, Decimal(1)])
def test_a_key_is_text(key):
    """A key of another kind is refused: `1` and "1" would be one."""
    with pytest.raises(KeyPartError, match="text"):
        module.user_tail(key)


@pytest.mark.parametrize("name", ["", "a:b", "1", "a b", "a\n", "=", "a" * 65, "é", "@f"])
def test_a_type_name_is_a_word(name):
    """A cache type cannot pose as a tenant, a key or another type's key."""
    with pytest.raises(ConfigurationError, match="cache type"):
        MANAGER.register(name, CachePolicy())


# Kinds that keys do not know


class Text(str):
    __slots__ = ()


class Moment(dt.datetime):
    pass


class Folder(type(Path())):
    pass


class Hours(dt.tzinfo):
    def __init__(self, name):
        self.name = name

    def utcoffset(self, moment):
        return dt.timedelta(hours=1)


Row = dataclasses.make_dataclass("Row", ["id"], frozen=True)
Pair = collections.namedtuple("Pair", "a b")
STRANGERS = [
    object(),
    Row(1),
    Pair(1, 2),
    Text("a"),
    Moment(2026, 1, 1),
    Folder("a"),
    bytearray(b"a"),
    memoryview(b"a"),
    1j,
    range(3),
    iter(()),
    collections.OrderedDict(a=1),
    collections.Counter("a"),
    print,
    Mock(spec=str),
    Mock(spec=bool),
    Mock(spec=int),
    dt.datetime(2026, 1, 1, tzinfo=Hours("Rome")),
    dt.time(1, tzinfo=Hours("Rome")),
]


@pytest.mark.parametrize("inside", [lambda v: v, lambda v: [1, (v,)], lambda v: {"a": {"b": v}}], ids=["bare", "in a list", "in a dict"])
@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda value: type(value).__name__)
async def test_what_keys_do_not_know_is_refused(stranger, inside):
    """KeyPartError names the parameter and the way out; the function is not run, and nothing is taken from `repr`."""
    for ask in (plain, plain.cache_key):
        with pytest.raises(KeyPartError, match=r"parameter 'b'.*exclude=\['b'\]") as caught:
            await ask(1, inside(stranger))
        assert isinstance(caught.value, CacheError)
        assert isinstance(caught.value, TypeError)


def test_what_contains_itself_is_refused():
    """Endless and very deep arguments are an error that names the parameter, not a RecursionError."""
    endless, deep = [], ()
    endless.append({"a": endless})
    for _ in range(5000):
        deep = (deep,)
    for value in (endless, deep):
        with pytest.raises(KeyPartError, match=r"parameter 'b'.*nested.*exclude=\['b'\]|parameter 'b'.*nested"):
            plain.cache_key(1, value)


def test_a_zone_that_has_no_name_is_refused():
    """A ZoneInfo read from a file does not say which it is: two of them would be one."""
    with files("tzdata").joinpath("zoneinfo", "Europe", "Rome").open("rb") as file:
        nameless = ZoneInfo.from_file(file)
    with pytest.raises(KeyPartError, match="ZoneInfo"):
        plain.cache_key(dt.datetime(2026, 1, 1, tzinfo=nameless))


class TestOwnKinds:
    """What an application says about its own classes."""

    @pytest.fixture(autouse=True)
    def registry(self, monkeypatch):
        monkeypatch.setattr(module, "_registered", {})

    def test_what_is_registered_stands_for_it(self):
        """The function's answer is the value; the class is in the key, so that neither the answer nor another class is the same call."""
        register_key_type(Row, lambda row: row.id)
        register_key_type(Pair, lambda pair: pair.a)
        keys = [plain.cache_key(value) for value in (Row(1), Row(2), Row("1"), Pair(1, 0), 1)]
        assert len(set(keys)) == 5
        assert plain.cache_key(Row(1)) == keys[0]
        assert plain.cache_key(Pair(1, 7)) == keys[3]

    def test_it_covers_subclasses_and_the_nearest_wins(self):
        """A subclass is another kind; what was said of it goes before what was said of its base."""
        child = type("Child", (Row,), {"__module__": __name__, "__qualname__": "Child"})
        register_key_type(Row, lambda row: row.id)
        assert plain.cache_key(child(1)) != plain.cache_key(Row(1))
        before = plain.cache_key(child(1))
        register_key_type(child, lambda row: ("child", row.id))
        assert plain.cache_key(child(1)) != before

    def test_a_zone_of_ones_own(self):
        """A tzinfo class may be registered, and then tells its zones apart."""
        register_key_type(Hours, lambda zone: zone.name)
        rome, oslo = (dt.datetime(2026, 1, 1, tzinfo=Hours(name)) for name in ("Rome", "Oslo"))
        assert plain.cache_key(rome) != plain.cache_key(oslo)

    def test_what_stands_for_it_must_be_known_too(self):
        """The answer is checked like any argument."""
        register_key_type(Row, lambda row: object())
        with pytest.raises(KeyPartError, match="parameter 'a'"):
            plain.cache_key(Row(1))

    @pytest.mark.parametrize("cls", [int, str, dict, dt.datetime, type(None), PurePosixPath])
    def test_what_keys_know_cannot_be_said_otherwise(self, cls):
        """A registration that would have no effect is refused."""
        with pytest.raises(ConfigurationError, match=cls.__name__):
            register_key_type(cls, lambda value: 0)

    def test_cache_key_method(self):
        """`__cache_key__()` stands for the instance; the class is in the key; its answer is checked."""

        class Dish:
            def __init__(self, number):
                self.number = number

            def __cache_key__(self):
                return self.number

        class Drink(Dish):
            pass

        keys = [plain.cache_key(value) for value in (Dish(1), Dish("1"), Dish((1,)), Drink(1), 1, Dish, Drink)]
        assert len(set(keys)) == 7
        assert plain.cache_key(Dish(1)) == keys[0]
        for wrong in (object(), Dish):
            dish = Dish(1)
            dish.number = dish if wrong is Dish else wrong
            with pytest.raises(KeyPartError, match="parameter 'a'"):
                plain.cache_key(dish)


def test_nested_classes_and_modules_are_not_confused():
    """Class C of module a.b is not class b.C of module a."""
    inner = type("C", (), {"__module__": "a.b", "__qualname__": "C"})
    nested = type("C", (), {"__module__": "a", "__qualname__": "b.C"})
    assert plain.cache_key(inner) != plain.cache_key(nested)


class Repository:
    table = ""

    @cache(manager=MANAGER, name="by id")
    async def by_id(self, number):
        return f"{self.table} {number}"

    @cache(manager=MANAGER, name="first")
    @classmethod
    async def first(cls):
        return f"{cls.table} first"

    @classmethod
    @cache(manager=MANAGER, name="last")
    async def last(cls):
        return f"{cls.table} last"


class Orders(Repository):
    table = "order"


class Menus(Repository):
    table = "menu"


async def test_r34_an_inherited_method_has_entries_of_each_class():
    """R34: a method cached once and inherited by two classes has two sets of entries, also as a class method, and on the hot path."""
    async with MANAGER:
        before = MANAGER.stats()["api"]["loads"]
        for _ in range(3):
            for cls in (Orders, Menus):
                assert await cls().by_id(1) == await cls.by_id(cls(), 1) == f"{cls.table} 1"
                assert await cls.first() == await cls().first() == f"{cls.table} first"
                assert await cls.last() == await cls().last() == f"{cls.table} last"
        assert MANAGER.stats()["api"]["loads"] - before == 6
    key = Orders().by_id.cache_key(1)
    assert "~" not in key  # hashed ones are not remembered
    assert Orders().by_id.cache_key(1) == key != Menus().by_id.cache_key(1)


def test_keys_are_the_same_in_every_process():
    """Nothing of a key depends on hash seeds, addresses or the order in which a set happens to be."""
    mixed = "{'a', 'b', 'c', 1, None, UUID(int=1)}, {'x': {1, 'y'}, 2: t.Right(3)}, c=[t.Colour.RED, t.Odd(0), str]"
    code = f"from tests import test_keys as t; from uuid import UUID; print(t.plain.cache_key({mixed}))"
    keys = set()
    for seed in ("0", "1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
        keys.add(run.stdout)
    assert len(keys) == 1
    assert keys.pop().startswith(HEAD + "@f:a=S(")


# Patterns


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text("ab-^][*?\\!", max_size=8), st.lists(st.text("ab-^][*?\\!", min_size=1, max_size=4), min_size=1, max_size=8, unique=True))
@example("[!a]", ["a", "!", "b"])
@example("\\[^a", ["[^a", "[!a"])
@example("[b-a]", ["a", "b", "-"])
def test_a_pattern_means_what_it_means_to_redis(valkey, pattern, texts):
    """A glob of `invalidate_pattern` matches just the keys that the server's own KEYS would find."""
    with valkey.client() as client:
        client.flushall()
        client.mset(dict.fromkeys(texts, "1"))
        found = {key.decode() for key in client.keys(pattern)}
    assert set(filter(module.pattern_matcher(pattern), texts)) == found


def test_a_pattern_of_many_stars_is_not_slow():
    """What a star let pass is not tried again: the time does not explode with the stars."""
    assert not module.pattern_matcher("*a" * 40 + "b")("a" * 5000)


@pytest.mark.parametrize("letter", string.printable)
def test_a_pattern_sees_the_key_as_it_was_spelled(letter):
    """Escapes are not seen by patterns: every character can be matched by itself, behind a backslash."""
    seen = module.logical_key(module.user_tail(f"x{letter}y"))
    assert module.pattern_matcher(f"x\\{letter}y")(seen)
    assert module.pattern_matcher("x?y")(seen)
