"""Promise P6: a value is returned equal and of exactly the same type, or storing it raises; by the codec and by the public API."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import functools
import logging
import math
import operator
import os
import subprocess
import sys
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from decimal import Decimal
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar
from unittest.mock import MagicMock
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import orjson
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiocache_aura import CacheManager, SerializationError, ValueTooLargeError, cache, register_type
from aiocache_aura.codecs.serializers import ANY, PLAIN, TAGGED, Serializer, serializer_for
from tests.codecs import picture, same

T = TypeVar("T")


class Size(enum.Enum):
    SMALL = "s"
    LARGE = "l"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Level(enum.IntEnum):
    LOW = 1


class Mood(enum.StrEnum):
    GOOD = "good"


@dataclass
class Dish:
    name: str
    price: Decimal
    tags: set[str] = field(default_factory=set)
    photo: bytes = b"\xff"
    sold: dt.datetime | None = None


class Point(NamedTuple):
    x: int
    y: int


class MenuOut(pydantic.BaseModel):
    name: str
    price: Decimal
    tags: list[str] = []


class Order(msgspec.Struct):
    number: int
    placed: dt.datetime


@attrs.define
class Table:
    number: int
    seats: tuple[int, ...] = ()


@dataclass
class Box(Generic[T]):
    item: T


BERLIN = ZoneInfo("Europe/Berlin")
INDIA = dt.timezone(dt.timedelta(hours=5, minutes=30))
MENU = {"id": 1, "name": "Margherità \U0001f355", "price": 12.5, "veg": True, "note": None, "sizes": [1, 2.0, {"s": []}], "": {}}

# name, values, annotation: R26, the table of LIBRARIES.md 1.2
KINDS: dict[str, tuple[list[Any], Any]] = {
    "JSON": ([MENU, [], "", "\x00\u2028", 0, -(2**63), 2**64 - 1, 1.5, -0.0, 1e308, 5e-324, True, None], Any),
    "aware datetime": (
        [
            dt.datetime(2026, 11, 25, 12, 0, 0, 7, tzinfo=dt.UTC),
            dt.datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN),
            dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN),
            dt.datetime(1, 1, 1, tzinfo=INDIA),
            dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(seconds=-1, microseconds=1), "odd")),
            dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(0), "GMT")),
        ],
        dt.datetime,
    ),
    "naive datetime": ([dt.datetime(2026, 11, 25), dt.datetime.min, dt.datetime.max, dt.datetime(2026, 1, 1, fold=1)], dt.datetime),
    "date": ([dt.date(2026, 11, 25), dt.date.min], dt.date),
    "time": ([dt.time(12, 30), dt.time(0, fold=1), dt.time(1, 2, 3, 4, tzinfo=dt.UTC), dt.time(5, tzinfo=BERLIN)], dt.time),
    "timedelta": ([dt.timedelta(minutes=5), dt.timedelta.min, dt.timedelta.max, dt.timedelta(microseconds=-1)], dt.timedelta),
    "Decimal": (list(map(Decimal, ["12.50", "-0", "1E+400", "sNaN123", "-Infinity", "1E-30"])), Decimal),
    "UUID": ([UUID(int=7), UUID("12345678-1234-5678-1234-567812345678")], UUID),
    "tuple": ([(), (1,), (1, "a", (True, 1.0))], tuple),
    "set": ([set(), {1, 2}, {True}, {1.0, "a", (b"x", None)}], set),
    "frozenset": ([frozenset(), frozenset({frozenset({1}), -1, -2})], frozenset),
    "bytes": ([b"", b"\x00\xff", bytes(range(256))], bytes),
    "big int": ([2**64, -(2**63) - 1, 10**4400, -(10**30)], int),
    "dict with int keys": ([{1: "a", 2: {3: 4}}, {True: 0}, {1.5: None, None: 1}], dict),
    "dict with tuple keys": ([{(1, 2): "a", (1, True): "b", ((), "x"): [()]}], dict),
    "float beyond JSON": ([math.nan, math.inf, -math.inf], float),
    "Enum": ([Size.SMALL, Size.LARGE], Size),
    "dataclass": (
        [Dish("Marinara", Decimal("9.00"), {"red", "hot"}), Dish("x", Decimal(1), sold=dt.datetime(2026, 1, 1, tzinfo=BERLIN))],
        Dish,
    ),
    "NamedTuple": ([Point(1, 2)], Point),
    "pydantic model": ([MenuOut(name="a", price="9.00"), MenuOut(name="b", price=1, tags=["c"])], MenuOut),
    "msgspec Struct": ([Order(7, dt.datetime(2026, 11, 25, tzinfo=dt.UTC))], Order),
}
OTHERS: dict[str, tuple[list[Any], Any]] = {
    "complex": ([1j, complex(-0.0, math.inf), complex(math.nan, 1)], complex),
    "bytearray": ([bytearray(b"\xff")], bytearray),
    "Flag": ([Right.READ, Right.READ | Right.WRITE, Right(0)], Right),
    "IntEnum": ([Level.LOW], Level),
    "StrEnum": ([Mood.GOOD], Mood),
    "attrs class": ([Table(4), Table(5, (1, 2))], Table),
    "generic dataclass": ([Box(1), Box[int](2)], Box[int]),
}
OF_THE_USER = ("Enum", "dataclass", "NamedTuple", "pydantic model", "msgspec Struct")
OWN = OF_THE_USER + ("Flag", "IntEnum", "StrEnum", "attrs class", "generic dataclass")
ALL = KINDS | OTHERS
STANDARD = [name for name in ALL if name not in OWN]

POSITIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "top-level": (lambda v: v, "value"),
    "in a list": (lambda v: ["a", v], "value[1]"),
    "in a dict": (lambda v: {"k": v}, "value['k']"),
    "in a tuple": (lambda v: (v,), "value[0]"),
    "deep": (lambda v: {"a": [({"$": [v]},)]}, "value['a'][0][0]['$'][0]"),
}

HOLDERS: dict[str, Callable[[Any], tuple[Any, Callable[[Any], Any]]]] = {  # annotation -> (its annotation, what makes a value of it)
    "X": lambda x: (x, lambda v: v),
    "list[X]": lambda x: (list[x], lambda v: [v, v]),
    "dict[str, X]": lambda x: (dict[str, x], lambda v: {"k": v, "$": v}),
    "X | None": lambda x: (x | None, lambda v: v),
    "tuple[X, ...]": lambda x: (tuple[x, ...], lambda v: (v, v)),
    "tuple[X, int]": lambda x: (tuple[x, int], lambda v: (v, 1)),
    "dict[str, list[X | None]]": lambda x: (dict[str, list[x | None]], lambda v: {"k": [None, v]}),
    "dataclass": lambda x: _holder(make_dataclass("HeldByDataclass", [("item", x)])),
    "frozen dataclass with slots": lambda x: _holder(make_dataclass("HeldBySlots", [("item", x)], frozen=True, slots=True)),
    "generic dataclass": lambda x: (Box[x], lambda v: Box[x](v)),
    "TypedDict": lambda x: (TypedDict("HeldByTypedDict", {"item": x}), lambda v: {"item": v}),
    "NamedTuple": lambda x: _holder(NamedTuple("HeldByNamedTuple", [("item", x)])),
    "attrs class": lambda x: _holder(attrs.make_class("HeldByAttrs", {"item": attrs.field(type=x)}, slots=True)),
    "Struct": lambda x: _holder(msgspec.defstruct("HeldByStruct", [("item", x)])),
    "model": lambda x: _holder(pydantic.create_model("HeldByModel", __config__=ARBITRARY, item=(x, ...))),
}
ARBITRARY = pydantic.ConfigDict(arbitrary_types_allowed=True)


def _holder(cls: Any) -> tuple[Any, Callable[[Any], Any]]:
    return cls, lambda value: cls(item=value)


def back(value: Any, annotation: Any = ANY) -> Any:
    """The value after its way through the bytes; read by another serializer, as in another process."""
    writer, reader = Serializer(annotation), Serializer(annotation)
    codec, payload = writer.encode(value)
    assert writer.schema == reader.schema
    return reader.decode(codec, reader.schema, memoryview(payload))


def refused(value: Any, annotation: Any = ANY) -> str:
    with pytest.raises(SerializationError) as caught:
        Serializer(annotation).encode(value)
    return str(caught.value)


def same_or_refused(value: Any, annotation: Any = ANY) -> bool:
    """Whether it was stored; then it came back, and unchanged."""
    before = picture(value)
    try:
        again = back(value, annotation)
    except SerializationError as error:
        assert "value" in str(error)
        return False
    assert picture(again) == before
    assert picture(value) == before
    return True


class TestKinds:
    def test_r26_orjson_alone_changes_8_of_the_21_kinds_and_refuses_12(self):
        """What the library is measured against: the figures of LIBRARIES.md 1.2, seen again."""
        changed, raised = set(), set()
        for name, (values, _) in KINDS.items():
            try:
                again = orjson.loads(orjson.dumps(values[0]))
            except TypeError:
                raised.add(name)
            else:
                changed |= set() if same(again, values[0]) else {name}
        assert len(KINDS) == 21
        assert (len(changed), len(raised)) == (8, 12)

    @pytest.mark.parametrize("position", POSITIONS)
    @pytest.mark.parametrize("name", STANDARD)
    def test_r26_a_kind_of_the_standard_library_comes_back_without_an_annotation(self, name, position):
        """Equal and of exactly the same type, at the top and nested."""
        for value in ALL[name][0]:
            held = POSITIONS[position][0](value)
            again = back(held)
            assert same(again, held)
            assert again is not held or not isinstance(held, list | dict | set)

    @pytest.mark.parametrize("position", POSITIONS)
    @pytest.mark.parametrize("name", OWN)
    def test_r26_a_class_of_the_users_without_a_declaration_is_refused_by_its_path(self, name, position):
        """The error names the path in the value, the class, and each of the four fixes."""
        for value in ALL[name][0]:
            held, path = POSITIONS[position][0](value), POSITIONS[position][1]
            said = refused(held)
            assert said.startswith(f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which would not come back as it is; ")
            assert all(fix in said for fix in ("return annotation", "returns=", "as_type=", "register_type("))

    @pytest.mark.parametrize("holder", HOLDERS)
    @pytest.mark.parametrize("name", [name for name in ALL if name != "JSON"])
    def test_r26_every_kind_comes_back_as_it_is_declared(self, name, holder):
        """Equal and of exactly the same type, with each kind of annotation round it."""
        values, kind = ALL[name]
        if (holder, name) == ("model", "msgspec Struct"):
            kind = Any  # pydantic has no schema for it; what is declared otherwise is in the table all the same
            register_type(Order)
        for value in values:
            if holder == "model" and isinstance(value, Decimal) and not value.is_finite():
                continue  # a Decimal field of pydantic's takes none
            annotation, hold = HOLDERS[holder](kind)
            assert same(back(hold(value), annotation), hold(value))

    def test_none_comes_back_where_it_may_be(self):
        """X | None holds None, too."""
        for _, kind in ALL.values():
            assert back(None, kind | None) is None

    def test_json_is_stored_as_plain_json(self):
        """What JSON holds exactly is JSON in the store, readable by anybody."""
        assert serializer_for().encode(MENU) == (PLAIN, orjson.dumps(MENU))
        assert serializer_for().encode([MENU, 2**64])[0] == TAGGED


class TestLookAlikes:
    """What declares several classes, or the same class in several ways."""

    def test_classes_of_a_union_that_look_alike_are_told_apart(self):
        """Same fields, same values: the class is what it was."""
        twins = [make_dataclass(f"Twin{n}", [("item", int)]) for n in range(3)]
        twins += [msgspec.defstruct("TwinStruct", [("item", int)]), pydantic.create_model("TwinModel", item=(int, ...))]
        declared = list[functools.reduce(operator.or_, twins)]
        value = [twin(item=1) for twin in reversed(twins)]
        assert same(back(value, declared), value)

    def test_text_and_what_looks_like_it_are_told_apart(self):
        """In a union of kinds that JSON writes alike."""
        uuid, day, number = UUID(int=1), dt.date(2026, 1, 1), Decimal("1.0")
        value = [uuid, str(uuid), day, day.isoformat(), dt.datetime(2026, 1, 1), number, "1.0", 1.0, 1, True, b"1", Mood.GOOD, "good"]
        value.append(Level.LOW)
        assert same(back(value, list[UUID | str | dt.date | dt.datetime | Decimal | float | int | bytes | Mood | Level]), value)

    def test_a_value_is_not_bent_to_its_annotation(self):
        """[1, True] declared as list[float] stays what it is, and so do values of another type than declared."""
        for value in ([1, True], [1.0, -0.0], ["1"], (1,), {"item": 1}, None, b"x"):
            for annotation in (list[float], list[int], tuple[str, ...], MenuOut, Dish, Table, Order, Point):
                assert same(back(value, annotation), value)

    def test_a_derived_class_that_is_not_declared_is_refused(self):
        """Never its base class instead: as a field, too."""

        @dataclass
        class Pizza(Dish):
            size: int = 1

        class Derived(MenuOut):
            secret: int = 1

        assert refused([Pizza("a", Decimal(1))], list[Dish]).startswith("value[0] is a tests.codecs.test_serializers.TestLookAlikes.")
        holder = pydantic.create_model("HoldsABase", item=(MenuOut, ...))
        assert refused(holder(item=Derived(name="a", price=1)), holder).startswith("value.item is a ")
        annotation, hold = HOLDERS["dataclass"](Dish)
        assert refused(hold(Pizza("a", Decimal(1))), annotation).startswith("value.item is a ")
        assert same_or_refused(hold(Pizza("a", Decimal(1))), annotation | Pizza)

    def test_two_classes_of_one_name_are_never_mixed_up(self):
        """Classes made anew, as by a reloader, have the same name: each comes back as itself, or not at all."""

        def make() -> Any:
            @dataclass
            class Twin:
                item: int

            return Twin

        first, second = make(), make()
        assert type(back(first(1), first)) is first
        refused([first(1), second(1)], list[first | second])
        register_type(second)
        assert type(back(first(1), first)) is first
        assert type(back(second(1))) is second


class TestModels:
    """pydantic models: everything that is in them, whatever their own JSON keeps of it."""

    def test_fields_that_were_not_set_stay_unset_in_nested_models(self):
        """`model_fields_set` decides what `exclude_unset` gives."""
        outer = pydantic.create_model("Outer", one=(MenuOut, ...), many=(dict[str, list[MenuOut]], {}), note=(str, "n"))
        a, b = MenuOut(name="a", price=1), MenuOut(name="b", price=2, tags=[])
        value = outer(one=a, many={"x": [a, b], "y": []})
        assert same(back(value, outer), value)
        assert back(value, outer).model_dump(exclude_unset=True) == value.model_dump(exclude_unset=True)

    def test_zones_of_datetimes_stay(self):
        """pydantic reads an aware datetime from JSON with a zone class of its own."""
        model = pydantic.create_model("Dated", at=(dt.datetime, ...))
        for zone in (None, dt.UTC, INDIA, BERLIN):
            value = model(at=dt.datetime(2026, 10, 25, 2, 30, tzinfo=zone))
            assert same(back(value, model), value)
            assert same(back([value], list[model]), [value])
        parsed = model.model_validate_json('{"at": "2026-11-25T12:00:00Z"}')
        assert same(back(parsed, model), parsed)

    def test_aliases(self):
        """Models in camelCase come back, whether they may be populated by name or not, whatever they are serialised by."""

        class Camel(pydantic.BaseModel):
            model_config = pydantic.ConfigDict(alias_generator=lambda name: name.upper())
            some_name: str

        class Crossed(pydantic.BaseModel):
            a: int = pydantic.Field(validation_alias="x", serialization_alias="y")
            inner: Camel

        class ByAlias(Camel):
            model_config = pydantic.ConfigDict(serialize_by_alias=True)

        camel = Camel(SOME_NAME="a")
        for value in (camel, Crossed(x=1, inner=camel), ByAlias(SOME_NAME="b")):
            assert same(back(value, type(value)), value)

    def test_what_its_json_leaves_out_or_changes(self):
        """Extra and private attributes, excluded fields, values that validation changes, values of no JSON kind: kept."""

        class Extra(pydantic.BaseModel, extra="allow"):
            a: int
            _note: Any = None

        class Odd(pydantic.BaseModel):
            hidden: int = pydantic.Field(1, exclude=True)
            doubled: int = 0
            anything: Any = None

            @pydantic.field_validator("doubled")
            @classmethod
            def double(cls, value: int) -> int:
                return 2 * value

            @pydantic.model_serializer
            def nonsense(self) -> dict[str, Any]:
                return {"doubled": 9}

        extra = Extra(a=1, b=Decimal("1.0"), c=(1,))
        extra._note = {1: b"\xff"}
        for value in (extra, Extra(a=2), Odd(hidden=7, doubled=3, anything=(1, {2})), Odd.model_construct(doubled="not even an int")):
            assert same(back(value, type(value)), value)

    def test_generic_and_root_models(self):
        """Parametrised models are classes of their own; a root model is one value."""

        class Page(pydantic.BaseModel, Generic[T]):
            items: list[T]

        for value in (Page[MenuOut](items=[MenuOut(name="a", price=1)]), pydantic.RootModel[dict[int, dt.date]]({1: dt.date(2026, 1, 1)})):
            assert same(back(value, type(value)), value)

    def test_types_that_pydantic_knows(self):
        """Its JSON holds what ours does not: addresses, networks, URLs."""
        import ipaddress

        model = pydantic.create_model("Host", url=(pydantic.HttpUrl, ...), address=(ipaddress.IPv4Address, ...))
        value = model(url="https://example.com/a", address="10.0.0.1")
        again = back(value, model)
        assert again == value
        assert [type(part) for part in again.__dict__.values()] == [type(part) for part in value.__dict__.values()]

    def test_a_secret_is_refused_not_starred(self):
        """SecretStr writes itself as stars: never what comes back."""
        model = pydantic.create_model("Account", user=(str, ...), password=(pydantic.SecretStr, ...))
        said = refused([model(user="a", password="hunter2")], list[model])
        assert said.startswith("value[0].password is a pydantic.types.SecretStr")
        assert "hunter2" not in said

    def test_a_model_that_contains_itself_is_refused(self):
        """As any other value that does."""
        model = pydantic.create_model("Ring", item=(Any, None))
        ring = model()
        ring.item = [ring]
        assert "contains itself" in refused(ring, model)


class TestOwnClasses:
    """Dataclasses, attrs classes, named tuples, Structs: everything that is in them, and nothing of theirs is run."""

    def test_nothing_is_run_that_made_it(self):
        """Neither __init__ nor __post_init__: they may have defaults, effects and checks."""
        made = []

        @dataclass
        class Counted:
            item: int
            twice: int = field(init=False)

            def __post_init__(self) -> None:
                made.append(self)
                self.twice = 2 * self.item

        value = Counted(1)
        value.twice = 7
        assert same(back(value, Counted), value)
        assert len(made) == 1

    def test_attributes_beside_the_fields_are_not_lost_in_silence(self):
        """Refused, in each kind of class: a note on an instance is a part of it."""

        class Noted(Point):
            pass

        dish, point = Dish("a", Decimal(1)), Noted(1, 2)
        assert same(back(point, Noted), point)
        for value in (dish, point):
            value.note = 1
            assert "would not come back" in refused(value, type(value))

    def test_a_field_that_is_gone_stays_gone_or_is_refused(self):
        """Deleted attributes do not come back as their defaults."""
        dish, table = Dish("a", Decimal(1)), Table(1)
        del dish.photo, table.seats
        assert not same_or_refused(dish, Dish)
        assert not hasattr(back(table, Table), "seats")

    def test_classes_derived_from_built_in_ones_are_refused(self):
        """Their content is not in their fields."""
        for base in (dict, list, str, int, set, Exception, UUID, dt.date, collections.deque):

            @dataclass(eq=False)
            class Odd(base):
                item: int = 1

            value = base.__new__(Odd, *((2026, 1, 1) if base is dt.date else ()))
            if base is UUID:
                UUID.__init__(value, int=7)
            object.__setattr__(value, "item", 2)
            if base is dict:
                value["lost"] = 1
            assert not same_or_refused(value, Odd)

    def test_generics_do_not_depend_on_how_they_were_made(self):
        """Box[int](1) and Box(1) are the same thing."""
        assert same(back([Box[int](1), Box(1), Box[str]("a")], list[Box[Any]]), [Box(1), Box(1), Box("a")])

    def test_slots_frozen_private_and_inherited_fields(self):
        """However a class keeps its fields."""

        @attrs.frozen(slots=True)
        class Base:
            _a: int
            __b: int = 2

        @attrs.frozen(slots=True)
        class Derived(Base):
            c: Any = (1,)

        @dataclass(frozen=True, slots=True)
        class Slots:
            __x: int
            y: Any = b""

        for value in (Derived(1, c={2}), Slots(1, {1: 2})):
            assert same(back(value, type(value)), value)

    def test_structs_of_every_make(self):
        """Frozen, renamed, tagged, as arrays, derived."""

        class Base(msgspec.Struct, rename="camel", tag=True):
            some_item: Any

        class Derived(Base, frozen=True, array_like=True, kw_only=True):
            more: Any = ()

        for value in (Base((1,)), Derived(some_item={1}, more=(2,))):
            assert same(back(value, type(value)), value)

    def test_comparisons_of_the_users_are_not_asked(self):
        """A class that equals everything, or nothing, or raises, is compared by what is in it."""

        @dataclass(eq=False)
        class Liar:
            item: Any

            def __eq__(self, other: object) -> bool:
                raise RuntimeError("not me")

            __hash__ = None

        assert type(back(Liar(1), Liar).item) is int
        assert type(back(Liar(True), Liar).item) is bool
        empty = make_dataclass("Empty", [], namespace={"__eq__": Liar.__eq__}, eq=False)
        assert not same_or_refused(empty(), empty)

    def test_a_class_that_makes_something_else_of_its_parts_is_refused(self):
        """Wherever it stands, also where Python compares it by ==: in a set, or as a key."""

        class Rounded(Point):
            def __new__(cls, x: int, y: int) -> Rounded:
                return tuple.__new__(cls, (float(x), float(y)))

        whole, odd = Rounded(1, 2), tuple.__new__(Rounded, (1, 2))
        assert whole == odd
        for hold in (lambda v: v, lambda v: {v}, lambda v: frozenset({v}), lambda v: {v: 1}, lambda v: [(v,)]):
            assert same_or_refused(hold(whole), Rounded)
            assert not same_or_refused(hold(odd), Rounded)

    def test_aliases_and_odd_values_of_enums(self):
        """A member is stored by name, so its value may be anything."""

        class Odd(enum.Enum):
            FIRST = object()
            SECOND = [1]
            AGAIN = FIRST
            name_ = "n"

        for member in Odd:
            assert back({"k": [member]}, dict[str, list[Odd]])["k"][0] is member


class Text(str):
    pass


class Number(int):
    pass


class Fraction_(float):
    pass


class Raw(bytes):
    pass


class Listed(list):
    pass


class Mapped(dict):
    pass


class Pair(tuple):
    pass


class Day(dt.date):
    pass


class Moment(dt.datetime):
    pass


class Zone(dt.tzinfo):
    def utcoffset(self, when):
        return dt.timedelta(hours=1)

    def tzname(self, when):
        return "x"

    def dst(self, when):
        return None


def inside(value: Any) -> Any:
    (item,) = vars(value).values() if isinstance(value, Box) else value.values() if isinstance(value, dict) else value
    return item


class TestNeverAnotherType:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: Text("a"), lambda: Number(1), lambda: Fraction_(1.0), lambda: Raw(b"a"), lambda: Listed([1]), lambda: Mapped(a=1),
            lambda: Pair((1,)), lambda: Day(2026, 1, 1), lambda: Moment(2026, 1, 1), lambda: type("S", (set,), {})({1}),
            lambda: type("D", (Decimal,), {})("1.0"), lambda: type("U", (UUID,), {})(int=1), lambda: type("P", (dt.timedelta,), {})(1),
            lambda: collections.OrderedDict(a=1), lambda: collections.defaultdict(list, a=[1]), lambda: collections.Counter("a"),
            lambda: collections.deque([1]), lambda: range(3), lambda: memoryview(b"a"), lambda: types.MappingProxyType({"a": 1}),
            lambda: {"a": 1}.keys(), lambda: iter([1]), lambda: (x for x in [1]), lambda: map(str, [1]), lambda: pydantic.SecretStr("a"),
            lambda: Size, lambda: int, lambda: list[int], lambda: len, lambda: lambda: 1, lambda: ..., lambda: NotImplemented,
            lambda: ValueError("a"), lambda: object(), lambda: sys, lambda: orjson.Fragment(b"[1]"), lambda: types.SimpleNamespace(a=1),
            lambda: dt.datetime(2026, 1, 1, tzinfo=Zone()), lambda: dt.time(1, tzinfo=Zone()), lambda: (lambda: 1).__code__,
        ],
    )  # fmt: skip
    def test_what_is_of_no_kind_is_refused(self, make):
        """Subclasses of built-in types, iterators, views, classes, secrets: at the top, nested, and as keys where they can be."""
        value = make()
        for position, path in POSITIONS.values():
            said = refused(position(value))
            assert said.startswith(path + " ")
        if getattr(type(value), "__hash__", None) and not isinstance(value, dict | list | set):
            assert refused({value: 1}).startswith("value.key ")
            assert refused({value}).startswith("value[0] ")

    def test_proxies_and_mocks_do_not_pass_for_what_they_imitate(self):
        """`__class__` is what they say, not what they are."""

        class Target(list):
            __slots__ = ("__weakref__",)

        target = Target()
        imitations = [MagicMock(spec=kind) for kind in (list, dict, str, int, set, tuple, Dish, dt.date)] + [weakref.proxy(target)]
        for imitation in imitations:
            assert "MagicMock" in refused([imitation], list[Dish]) or "weakref" in refused([imitation])

    def test_zones_without_a_name_or_with_other_rules_are_refused_or_kept(self):
        """A ZoneInfo is stored by its key: one that has none, or another's, does not come back as that zone."""
        import importlib.resources

        def load(name: str, **key: str) -> ZoneInfo:
            with (importlib.resources.files("tzdata") / "zoneinfo" / name).open("rb") as file:
                return ZoneInfo.from_file(file, **key)

        assert "time zone" in refused(dt.datetime(2026, 1, 1, tzinfo=load("Europe/Berlin")))
        assert not same_or_refused(dt.datetime(2026, 1, 1, tzinfo=load("Asia/Tokyo", key="Europe/Berlin")))

    def test_zones_keep_their_names(self):
        """Two zones of one offset are two zones."""
        hour = dt.timedelta(hours=1)
        for zone in (dt.timezone(hour), dt.timezone(hour, "CET"), dt.timezone(dt.timedelta(0)), dt.timezone(dt.timedelta(0), "Z")):
            value = dt.datetime(2026, 1, 1, tzinfo=zone)
            assert back(value).tzname() == value.tzname()
            assert same(back(value), value)
        assert not same_or_refused(dt.datetime(2026, 1, 1, tzinfo=dt.timezone(hour, Text("CET"))))

    @pytest.mark.parametrize("text", ["\ud800", "a\udfff\U0001f355", "\udc80abc", "\x00", "\u2028\u2029\x7f", "\ufeff", "$", "e\u0301"])
    def test_every_text_comes_back(self, text):
        """Lone surrogates, controls, combining marks: as values, as keys, in sets and enums' values."""
        for value in (text, [text], {text: text}, {"k": {text: [text]}}, {text}, (text,), {(text,): 1}):
            assert same(back(value), value)

    def test_what_looks_like_a_tag_comes_back(self):
        """A dict of the user's is never taken for one of ours."""
        for inner in (["t", [1]], ["o", ["os.system", []]], [], None, {"$": 1}, ["d", [[1, 2]]]):
            for value in ({"$": inner}, {"$": inner, "a": 1}, [{"$": {"$": inner}}], ({"$": inner},), {1: {"$": inner}}):
                assert same(back(value), value)

    def test_the_order_of_a_dict_stays(self):
        """Plain and tagged; and keys that are equal in JSON only."""
        plain = {str(n): n for n in (3, 1, 2, 10, 0)}
        tagged = {n: n for n in (3, 1, 2)} | {"1": 0, "": 0, None: 0, (1,): 0, "null": 0, 1.5: 0}
        for value in (plain, tagged, {"x": tagged, "a": plain}, {"z": (1,), "a": 1}):
            assert same(back(value), value)

    def test_members_of_a_set_keep_their_types(self):
        """{1}, {1.0} and {True} are equal sets and three things."""
        for member in (1, 1.0, True, (1,), (True,), Decimal(1), 0, -0.0, 0.0, False):
            for value in ({member}, frozenset({member}), {frozenset({member})}, {member: member}, {(member,): {member}}):
                assert same(back(value), value)

    def test_a_set_with_nan_is_the_same_or_refused(self):
        """A nan equals only itself, so a set may hold many: they are never made fewer."""
        assert same_or_refused({math.nan, 1})
        assert not same_or_refused({float("nan"), float("nan")})
        assert same_or_refused({math.nan: 1, "a": [math.nan, complex(0, math.nan)]})

    @pytest.mark.parametrize("depth", [100, 250, 400, 10_000])
    @pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"k": v}, lambda v: (v,), lambda v: {1: v}, Box])
    def test_nesting_is_the_same_or_refused(self, depth, wrap):
        """However deep: an error in words, never a RecursionError, never a crash."""
        value: Any = 1
        for _ in range(depth):
            value = wrap(value)
        try:
            again = back(value, Box[Any])
        except SerializationError as error:
            assert depth > 100
            assert any(words in str(error) for words in ("nested too deeply", "cannot be written", "cannot be read back"))
        else:
            assert depth < 1_000
            for _ in range(depth):
                assert type(again) is type(value)
                again, value = inside(again), inside(value)
            assert again == 1
            return
        for _ in range(depth):  # taken apart by hand: a long chain of instances is freed recursively
            value = inside(value)

    def test_a_deep_value_never_reaches_orjson(self):
        """It overruns its buffer there: at every depth, whatever stands inside, in front and behind, memory stays whole."""
        code = (
            "from aiocache_aura.codecs.serializers import serializer_for\n"
            "encode, count = serializer_for().encode, 0\n"
            "for depth in (60, 190, 245, 253):\n"
            "    for wrap in (lambda v: [v], lambda v: {'k': v}, lambda v: (v,)):\n"
            "        for inner in (1, [], ['a'] * 90):\n"
            "            value = inner\n"
            "            for _ in range(depth): value = wrap(value)\n"
            "            for n in (1, 5, 13, 29):\n"
            "                try: count += len(encode([1] * n + [value] * n)[1]) > 0\n"
            "                except TypeError: pass\n"
            "print(count)"
        )
        environment = {**os.environ, "PYTHONMALLOC": "debug"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-500:]
        assert int(done.stdout) >= 2 * 4 * 3 * 4

    def test_what_contains_itself_is_refused(self):
        """Through any container."""
        ring: list[Any] = []
        ring.append(ring)
        box, knot = Box(None), {"k": None}
        box.item, knot["k"] = [box], (knot,)
        for value in (ring, [ring], {"k": ring}, (ring,), box, knot, {1: ring}):
            assert "contains itself" in refused(value, Box[Any])

    def test_a_large_set_is_compared_in_one_pass(self):
        """Each member is hashed a few times, not once for every other: else a set of 100,000 would hold up the event loop for minutes."""
        hashed = 0

        @dataclass(frozen=True)
        class Member:
            item: int

            def __hash__(self) -> int:
                nonlocal hashed
                hashed += 1
                return hash(self.item)

        value = {Member(n) for n in range(1_000)}
        hashed = 0
        assert back(value, set[Member]) == value
        assert hashed < 12 * len(value)

    def test_an_exception_of_a_class_of_the_users_is_a_serialization_error(self):
        """A repr, a property, a hash that raises: storing raises what says so, and nothing else."""

        @dataclass(frozen=True)
        class Rude:
            item: Any = 1

            def __repr__(self) -> str:
                raise RuntimeError("secret value")

            def __hash__(self) -> int:
                return 1

        assert same(back({Rude(): 1}, Rude), {Rude(): 1})
        assert "secret value" not in refused({Rude(): object()}, Rude)

        class Grumpy(pydantic.BaseModel):
            item: Any

            @pydantic.model_serializer
            def out(self) -> Any:
                raise KeyError("secret value")

            def __getstate__(self) -> Any:
                raise KeyError("secret value")

        assert "secret value" not in refused([Grumpy(item=1)], list[Grumpy])


# Hypothesis: any value at all

_FINITE = st.floats(allow_nan=False)
_ZONES = st.one_of(st.none(), st.timezones(), st.sampled_from([dt.UTC, INDIA, dt.timezone(dt.timedelta(minutes=-7), "odd")]))
_ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
_HASHABLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    _FINITE,
    st.complex_numbers(allow_nan=False),
    _ANY_TEXT,
    st.sampled_from(["$", "a", "", "1", "\x7f"]),
    st.binary(max_size=6),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.dates(),
    st.timedeltas(),
    st.builds(lambda moment, fold: moment.replace(fold=fold), st.datetimes(timezones=_ZONES), st.integers(0, 1)),
    st.builds(lambda moment, fold: moment.replace(fold=fold), st.times(timezones=_ZONES), st.integers(0, 1)),
)
_KEYS = st.recursive(_HASHABLE, lambda inner: st.one_of(st.tuples(inner, inner), st.frozensets(inner, max_size=3)), max_leaves=4)
_LEAVES = st.one_of(_HASHABLE, st.floats(), st.decimals(), st.binary(max_size=4).map(bytearray))
_FOREIGN = st.one_of(
    st.sampled_from([Size.SMALL, Right.READ, Level.LOW, Mood.GOOD, Dish("a", Decimal(1)), Point(1, 2), Order(1, dt.datetime(2026, 1, 1))]),
    st.builds(Text, _ANY_TEXT),
    st.builds(Number, st.integers()),
    st.builds(Fraction_, st.floats()),
    st.builds(Raw, st.binary(max_size=3)),
    st.builds(pydantic.SecretStr, st.text(max_size=3)),
    st.builds(lambda value: MenuOut(name=value, price=1), st.text(max_size=3)),
)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=4), inner, max_size=4),
        st.dictionaries(_KEYS, inner, max_size=4),
        st.sets(_KEYS, max_size=4),
        st.frozensets(_KEYS, max_size=4),
    )


def _with_subclasses(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        _containers(inner),
        st.lists(inner, max_size=2).map(Listed),
        st.lists(inner, max_size=2).map(Pair),
        st.dictionaries(st.text(max_size=2), inner, max_size=2).map(Mapped),
        st.dictionaries(st.text(max_size=2).map(Text), inner, max_size=2),
        st.dictionaries(st.sampled_from([Level.LOW, Mood.GOOD, Size.SMALL]), inner, max_size=2),
        st.builds(Box, inner),
    )


ORDINARY = st.recursive(_LEAVES, _containers, max_leaves=12)
ANYTHING = st.recursive(st.one_of(_LEAVES, _FOREIGN), _with_subclasses, max_leaves=12)
DECLARED = Size | Right | Level | Mood | Dish | Point | Order | MenuOut | Box[Any] | list[float] | dict[str, int] | None


class TestAnyValue:
    @settings(max_examples=300)
    @given(ORDINARY)
    def test_what_is_made_of_the_standard_librarys_kinds_comes_back(self, value):
        """Always, and the same."""
        assert same_or_refused(value)

    @settings(max_examples=300)
    @given(ANYTHING)
    def test_anything_is_the_same_or_refused(self, value):
        """Undeclared, declared as what it may hold, declared as what it is not: the same thing back, or SerializationError."""
        same_or_refused(value)
        same_or_refused(value, DECLARED)
        same_or_refused(value, list[float])

    @settings(max_examples=200)
    @given(st.lists(st.one_of(st.booleans(), st.integers(), st.floats(), st.none(), st.text(max_size=2)), max_size=6))
    def test_plain_lists_come_back_whatever_they_are_declared_as(self, value):
        """[1, True] as list[float]; nan, -0.0, and what overflows."""
        for annotation in (list[float], list[int], list[bool | int], list[str | None]):
            assert same_or_refused(value, annotation)


# Through the public API


@pytest.fixture(params=["memory", "valkey"])
async def manager(request, valkey):
    url = "memory://" if request.param == "memory" else valkey.url
    async with CacheManager(url, prefix="codecs", strict=True, budget=5) as made:
        yield made


def decorated(manager: CacheManager, name: str, value: Any, annotation: Any, **options: Any) -> tuple[Any, list[int]]:
    loads: list[int] = []

    async def load() -> Any:
        loads.append(1)
        return value

    if annotation is not ANY:
        load.__annotations__ = {"return": annotation}
    return cache(cache_type="test", manager=manager, name=name, **options)(load), loads


class TestThroughTheManager:
    async def test_r26_standard_kinds_without_an_annotation(self, manager):
        """By set and get, mset and mget, get_or_load, and decorated functions: the same back, and a hit."""
        for n, name in enumerate(STANDARD):
            for m, value in enumerate(ALL[name][0]):
                key = f"{n}:{m}"
                await manager.set("test", key, value)
                assert same(await manager.get("test", key, default="none"), value)
                function, loads = decorated(manager, f"plain{key}", value, ANY)
                for _ in range(2):
                    assert same(await function(), value)
                    assert same(await manager.get_or_load("test", key + "l", lambda value=value: value), value)
                assert len(loads) == (2 if value is None else 1)
        assert manager.counts("test").unstorable == manager.counts("test").undecodable == 0

    async def test_r26_declared_kinds(self, manager):
        """As as_type=, as a return annotation and as returns=: the same back, and a hit."""
        for name, (values, kind) in ALL.items():
            if name == "JSON":
                continue
            for m, value in enumerate(values):
                key = f"{name}:{m}"
                await manager.set("test", key, value, as_type=kind)
                assert same(await manager.get("test", key, as_type=kind), value)
                assert same(await manager.caches["test"].mget([key, "no"], as_type=kind), [value, None])
                for annotation, held in ((kind, value), (list[kind], [value]), (dict[str, kind], {"k": value})):
                    function, loads = decorated(manager, f"{key}:{annotation}", held, annotation)
                    assert same(await function(), held)
                    assert same(await function(), held)
                    assert len(loads) == 1
        assert manager.counts("test").unstorable == manager.counts("test").undecodable == 0

    @pytest.mark.parametrize("name", [name for name in ALL if name != "JSON"])
    async def test_r26_returns_keeps_what_is_of_the_declared_type(self, manager, name):
        """`returns=` converts; what is of the type already comes back the same, and is a hit."""
        values, kind = ALL[name]
        for m, value in enumerate(values):
            function, loads = decorated(manager, f"returns:{m}", value, ANY, returns=kind)
            first = await function()
            assert type(first) is type(value)
            assert same(await function(), first)
            assert len(loads) == 1

    async def test_r26_registered_classes(self, manager):
        """register_type in place of a declaration: nested anywhere."""
        classes = [
            register_type(make_dataclass("Registered", [("item", Any)])),
            register_type(attrs.make_class("RegisteredAttrs", {"item": attrs.field(type=object)})),
            register_type(msgspec.defstruct("RegisteredStruct", [("item", Any)])),
            register_type(pydantic.create_model("RegisteredModel", item=(Any, ...))),
            register_type(NamedTuple("RegisteredTuple", [("item", Any)])),
        ]
        member = register_type(enum.Enum("RegisteredEnum", "ONE TWO"))
        for n, cls in enumerate(classes):
            value = {"k": [cls(item=member.TWO), (cls(item={1: cls(item=None)}),)]}
            await manager.set("test", f"{n}", value)
            assert same(await manager.get("test", f"{n}"), value)
            function, loads = decorated(manager, f"registered{n}", value, ANY)
            assert same([await function(), await function()], [value, value])
            assert len(loads) == 1

    async def test_what_cannot_be_stored_is_refused_by_verbs_and_returned_by_functions(self, manager, caplog):
        """set, mset and add raise; a decorated function and get_or_load give the very object, uncached, warned about once, counted."""
        value = {"rows": [Size.SMALL]}
        for verb in (manager.set, manager.add):
            with pytest.raises(SerializationError, match=r"^value\['rows'\]\[0\] is a .*Size"):
                await verb("test", "a", value)
        with pytest.raises(SerializationError):
            await manager.caches["test"].mset({"a": 1, "b": value})
        assert await manager.get("test", "a") is None
        function, loads = decorated(manager, "unstorable", value, ANY)
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert await function() is value
        assert await manager.get_or_load("test", "a", lambda: value) is value
        assert len(loads) == 3
        assert manager.counts("test").unstorable == 4
        warned = [record.getMessage() for record in caplog.records if "not cached" in record.getMessage()]
        assert len([line for line in warned if "value['rows'][0]" in line and "returns=" in line]) == 2

    @pytest.mark.parametrize(("over", "stored"), [(-1, True), (0, True), (1, False)])
    async def test_the_limit_of_a_value(self, manager, over, stored):
        """max_value_bytes is the largest payload that is stored; above it verbs raise and functions go uncached."""
        limit = 100
        for value in ("x" * (limit - 2 + over), (1, "y" * (limit - 18 + over))):
            assert len(serializer_for().encode(value)[1]) == limit + over
            if stored:
                assert await manager.set("test", "a", value, max_value_bytes=limit)
                assert same(await manager.get("test", "a"), value)
            else:
                with pytest.raises(ValueTooLargeError, match=r"101 bytes .* max_value_bytes=100"):
                    await manager.set("test", "a", value, max_value_bytes=limit)
                with pytest.raises(ValueTooLargeError):
                    await manager.add("test", "b", value, max_value_bytes=limit)
            function, loads = decorated(manager, f"large{type(value).__name__}", value, ANY, max_value_bytes=limit)
            assert same([await function(), await function()], [value, value])
            assert len(loads) == (1 if stored else 2)

    async def test_tags_that_do_not_fit_into_the_head_are_refused(self, manager):
        """Their names stand in the entry: 65,535 bytes of them, and no more, in words."""
        tags = [f"{n:029d}" for n in range(2_048)]  # "g:", the tag, and one byte between them: 32 each
        assert await manager.set("test", "a", 1, tags=tags)
        assert await manager.get("test", "a") == 1
        with pytest.raises(ValueTooLargeError, match=r"65,536 bytes, above 65,535"):
            await manager.set("test", "a", 2, tags=[*tags[1:], "x" * 30])
        assert await manager.get("test", "a") == 1

    async def test_what_a_class_refuses_at_its_second_reading_is_the_one_object(self, manager):
        """A validator that depends on more than the value: the function is answered all the same, never an error of the cache's."""
        may_read = [True]

        class Moody(pydantic.BaseModel):
            item: int

            @pydantic.field_validator("item")
            @classmethod
            def check(cls, value: int) -> int:
                if not may_read[0]:
                    raise ValueError("no more")
                return value

        value = Moody(item=1)

        async def load() -> Moody:
            return value

        function = cache(cache_type="test", manager=manager, name="moody", returns=Moody)(load)
        serializer = serializer_for(Moody)
        real, serializer.encode = serializer.encode, lambda value: (real(value), may_read.__setitem__(0, False))[0]
        try:
            assert await function() is value
        finally:
            serializer.encode = real
        assert await function.peek() is None
        assert manager.counts("test").undecodable == 1

    async def test_callers_own_what_they_get(self, manager):
        """A hit, a load's own caller and its followers: nobody's change is seen by another."""
        function, _ = decorated(manager, "owned", {"k": [1]}, ANY)
        for _ in range(3):
            got = await function()
            assert got == {"k": [1]}
            got["k"].append(2)
