"""What a declared type says: the classes in it, the same description in every process, and which values conform to it."""
# ruff: noqa: UP006, UP007, UP035, UP045 - every spelling of a type is meant

from __future__ import annotations

import datetime as dt
import enum
import os
import subprocess
import sys
import types
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from decimal import Decimal
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    List,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Required,
    Tuple,
    TypedDict,
    TypeVar,
    Union,
)  # fmt: skip
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from typing_extensions import TypeAliasType

from aiocache_aura import CacheManager, cache
from aiocache_aura.codecs import serializers
from aiocache_aura.codecs.annotations import ANY, conforms, described, description, says_nothing, shapes_in
from aiocache_aura.codecs.serializers import Serializer, Undecodable, serializer_for
from aiocache_aura.codecs.shapes import shape_of

if TYPE_CHECKING:
    from nowhere import Absent  # type: ignore[import-not-found]

T = TypeVar("T")
U = TypeVar("U")


class Size(enum.Enum):
    SMALL = "s"


class Palette(enum.Enum):
    """Values whose repr is another in every process: a set's order, an object's address."""

    WARM = frozenset({"red", "orange", "yellow", "pink", "brown"})
    COLD = (1, object(), lambda: 1)
    NEITHER = 1.5


@dataclass
class Leaf:
    size: Size


class Node(msgspec.Struct):
    leaves: dict[str, list[Leaf | None]]
    parent: Node | None = None


class Tree(TypedDict):
    root: Node
    children: list[Tree]


class Partial(TypedDict, total=False):
    name: Required[str]
    note: str


class Whole(TypedDict):
    name: str
    note: NotRequired[int]


class Page(TypedDict, Generic[T, U]):
    items: list[T]
    more: U


@attrs.define
class Row:
    tree: Tree
    node: Node


class Line(NamedTuple):
    row: Row


class Pair(NamedTuple, Generic[T]):
    x: T
    name: str


class Inner(pydantic.BaseModel):
    size: Size


class Outer(pydantic.BaseModel, Generic[T]):
    items: list[T]
    checked: dict[str, Annotated[str, pydantic.AfterValidator(lambda text: text)]] = {}


@dataclass
class Box(Generic[T]):
    item: T


@dataclass
class Unresolved:
    item: Absent
    size: Size


class UnresolvedDict(TypedDict):
    item: Absent


Alias = TypeAliasType("Alias", Union[Leaf, list["Alias"]])
RowId = NewType("RowId", UUID)
Named = NewType("Named", Leaf)


class _Recursive:
    """What `type Json = ...` of Python 3.12 makes: its value holds the alias itself."""

    __value__: Any

    def __repr__(self) -> str:
        return "Json"


_Recursive.__name__ = "TypeAliasType"
JSON = _Recursive()
JSON.__value__ = Union[int, str, None, types.GenericAlias(list, (JSON,)), types.GenericAlias(dict, (str, JSON))]

EVERY = [
    Size, Palette, Leaf, Node, Tree, Partial, Whole, Page[int, str], Row, Line, Pair[int], Inner, Outer[Inner], Box[Leaf], Box, Unresolved,
    UnresolvedDict, Alias, RowId, Named, JSON, Literal["a", 1, Size.SMALL], Literal[b"x", True], list[Leaf], dict[str, Row | None],
    tuple[int, ...], tuple[()], Annotated[Leaf, "note"], Optional[Size], Mapping[str, Sequence[Leaf]], None, Hashable, int | str,
    type[Leaf],
]  # fmt: skip


def made(name: str, **fields: Any) -> Any:
    """A dataclass as a module of that name would have it: another version of it has the same name."""
    cls = make_dataclass(name, list(fields.items()))
    cls.__module__ = "shop"
    return cls


def schema(annotation: Any) -> int:
    return Serializer(annotation).schema


class TestShapes:
    @pytest.mark.parametrize(
        ("annotation", "classes"),
        [
            (list[Leaf], {Leaf, Size}),
            (Node, {Node, Leaf, Size}),
            (Tree, {Node, Leaf, Size}),
            (list[Tree], {Node, Leaf, Size}),
            (Line, {Line, Row, Node, Leaf, Size}),
            (dict[str, tuple[Row | None, ...]], {Row, Node, Leaf, Size}),
            (Outer[Inner], {Outer[Inner], Inner, Size}),
            (Box[Inner], {Box, Inner, Size}),
            (Pair[list[Leaf]], {Pair, Leaf, Size}),
            (Page[Leaf, Inner], {Leaf, Inner, Size}),
            (Annotated[list[Annotated[Leaf, 1]], 2], {Leaf, Size}),
            (Alias, {Leaf, Size}),
            (Named, {Leaf, Size}),
            (Literal["a", Size.SMALL], {Size}),
            (dict[str, Literal[Palette.WARM]], {Palette}),
            (Mapping[Size, Sequence[Leaf]], {Leaf, Size}),
            (Unresolved, {Unresolved}),
            (UnresolvedDict, set()),
            (RowId, set()),
            (JSON, set()),
            (int, set()),
            (None, set()),
            (list[T], set()),
        ],
    )
    def test_the_classes_in_an_annotation(self, annotation, classes):
        """Through generics, unions, aliases, literals, and the fields of all that is found."""
        assert set(shapes_in(annotation)) == classes

    def test_every_class_of_a_large_house_is_found(self):
        """Annotations that are resolved from text are gone when the next is made, at the same address: each is looked at all the same."""
        count = 60
        source = ["from __future__ import annotations\nfrom dataclasses import dataclass\n"]
        for n in range(count):
            following = " | ".join(f"list[K{m}]" for m in range(n + 1, min(n + 3, count))) or "int"
            source.append(f"@dataclass\nclass K{n}:\n    a: {following}\n    b: dict[str, int]\n    c: tuple[list[int], list[str]]\n")
        house = types.ModuleType("a_large_house")
        sys.modules[house.__name__] = house
        try:
            exec("".join(source), house.__dict__)
            assert {cls.__name__ for cls in shapes_in(house.K0)} == {f"K{n}" for n in range(count)}
        finally:
            del sys.modules[house.__name__]

    @pytest.mark.parametrize("cls", [int, dict, object, Decimal, types.SimpleNamespace, Hashable, Tree, Exception])
    def test_other_classes_have_no_shape(self, cls):
        """Only what can be taken apart and put together again."""
        assert shape_of(cls) is None


class TestDescription:
    def test_it_is_the_same_in_every_process(self):
        """Whatever the hash seed and the addresses: else no process would find what another has stored."""
        code = "from tests.codecs.test_annotations import EVERY, schema; print(list(map(schema, EVERY)))"
        seen = {str(list(map(schema, EVERY)))}
        for seed in ("1", "2"):
            environment = {**os.environ, "PYTHONHASHSEED": seed}
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
            seen.add(done.stdout.strip())
        assert len(seen) == 1

    def test_no_two_types_share_one(self):
        """Each of these is another type."""
        others = [int, bool, float, list[int], list[bool], list[float], set[int], dict[str, int], dict[int, str], Literal[1], Literal[True]]
        every = EVERY + others + [list[Literal[1]], list[Literal[True]], tuple[int, str], tuple[str, int], Box[int], Optional[int]]
        every = [kind for kind in every if kind not in (Annotated[Leaf, "note"], Named)]  # these two are Leaf
        texts = [description(kind, shapes_in(kind)) for kind in every]
        assert len(set(texts)) == len(texts)

    @pytest.mark.parametrize(
        ("a", "b"),
        [
            (list[int], List[int]),
            (Optional[Leaf], Leaf | None),
            (Union[int, str], str | int),
            (Annotated[Leaf, "note"], Leaf),
            (Literal["a", "b"], Literal["b", "a"]),
            (NewType("Other", UUID), UUID),
            (TypeAliasType("Other", Leaf), Leaf),
        ],
    )
    def test_two_spellings_of_one_type_share_one(self, a, b):
        """What is stored for the one is found by the other."""
        assert schema(a) == schema(b)

    def test_nothing_said_is_schema_0(self):
        """And something said is not."""
        for nothing in (ANY, Any, object, T, "text"):
            assert says_nothing(nothing)
            assert schema(nothing) == 0
        assert all(schema(kind) for kind in EVERY)

    def test_types_that_contain_themselves(self):
        """TypedDicts and aliases: described once, by name inside."""
        for kind in (Tree, JSON, Alias, Node, list[Tree]):
            assert len(described(kind)) < 500
            assert schema(kind)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (made("R", a=int), made("R", a=int, b=int)),
            (made("R", a=int, b=int), made("R", a=int)),
            (made("R", a=int), made("R", a=str)),
            (made("R", a=list[int]), made("R", a=list[str])),
            (made("R", a=int, b=str), made("R", b=str, a=int)),
            (made("R", a=made("Q", x=int)), made("R", a=made("Q", x=int, y=int))),
            (made("R", a=list[dict[str, made("Q", x=int)]]), made("R", a=list[dict[str, made("Q", x=str)]])),
            (enum.Enum("E", "A B", module="shop"), enum.Enum("E", "A B C", module="shop")),
            (enum.Enum("E", {"A": 1, "B": 2}, module="shop"), enum.Enum("E", {"A": 2, "B": 1}, module="shop")),
            (enum.Enum("E", {"A": (1, 2)}, module="shop"), enum.Enum("E", {"A": (1, 2.0)}, module="shop")),
            (enum.Enum("E", {"A": 1, "B": 1}, module="shop"), enum.Enum("E", {"A": 1}, module="shop")),
            (msgspec.defstruct("S", [("a", int)], module="shop"), msgspec.defstruct("S", [("a", float)], module="shop")),
            (pydantic.create_model("M", a=(int, ...), __module__="shop"), pydantic.create_model("M", a=(str, ...), __module__="shop")),
        ],
    )
    def test_another_version_of_a_class_is_another_schema(self, old, new):
        """Its fields, their types and order, the members of an enum and their values, and those of every class inside."""
        assert old.__name__ == new.__name__
        for wrap in (lambda kind: kind, lambda kind: list[kind], lambda kind: dict[str, kind | None]):
            assert schema(wrap(old)) != schema(wrap(new))
        assert schema(old) == schema(old)

    def test_inherited_fields_count(self):
        """A base's field that changes its type changes the class."""

        def version(kind: Any) -> Any:
            base = made("Base", a=kind)
            return make_dataclass("Derived", [("b", int)], bases=(base,))

        assert schema(version(int)) == schema(version(int))
        assert schema(version(int)) != schema(version(str))

    def test_models_inside_generic_models_count(self):
        """pydantic resolves the type variable; a changed item changes the page."""

        def version(kind: Any) -> Any:
            return Outer[pydantic.create_model("Item", a=(kind, ...), __module__="shop")]

        assert schema(version(int)) == schema(version(int))
        assert schema(version(int)) != schema(version(str))

    def test_literals_of_different_kinds_have_serializers_of_their_own(self):
        """1 equals True, and so might what is remembered by annotation."""
        assert serializer_for(list[Literal[1]]) is not serializer_for(list[Literal[True]])
        assert serializer_for(Literal[0]).schema != serializer_for(Literal[False]).schema


YES, NO = True, False


class TestConforms:
    @pytest.mark.parametrize(
        ("value", "kind", "answer"),
        [
            (1, int, YES), (True, int, NO), (1, bool, NO), (1, float, YES), (True, float, NO), (1.0, int, NO), (1, complex, YES),
            (1.5, complex, YES), ("a", str, YES), (b"a", str, NO), (bytearray(b"a"), bytes, NO), (None, None, YES), (0, None, NO),
            (None, type(None), YES), (dt.datetime(2026, 1, 1), dt.date, NO), (dt.date(2026, 1, 1), dt.date, YES),
            (dt.date(2026, 1, 1), dt.datetime, NO), (Size.SMALL, Size, YES), ("s", Size, NO), (Pair(1, "a"), tuple, NO),
            (1, int | str, YES), (1.0, int | str, NO), (None, Optional[int], YES), (True, Optional[int], NO), (1, Literal[1, "a"], YES),
            (True, Literal[1, "a"], NO), ("a", Literal[1, "a"], YES), (Size.SMALL, Literal[Size.SMALL], YES), ([1], list, YES),
            ([1], list[int], YES), ([True], list[int], NO), ([1, True], list[float], NO), ((1,), list[int], NO), ([], list[int], YES),
            ([1], List[int], YES), (["a"], List, YES), ([[1], []], list[list[int]], YES), ([["a"]], list[list[int]], NO),
            ((1, "a"), tuple[int, str], YES), ((1,), tuple[int, str], NO), ((1, "a", 2), tuple[int, str], NO),
            ((1, 2), tuple[int, ...], YES), ((), tuple[int, ...], YES), ((1, "a"), tuple[int, ...], NO), ((), tuple[()], YES),
            ((1,), tuple[()], NO), ((1,), tuple, YES), ((1,), Tuple, YES), ([1], Tuple, NO), ({1}, set[int], YES),
            ({"a"}, set[int], NO), (frozenset({1}), set[int], NO), (frozenset({1}), frozenset[int], YES),
            ({"a": 1}, dict[str, int], YES), ({1: 1}, dict[str, int], NO), ({"a": "b"}, dict[str, int], NO), ({}, dict[str, int], YES),
            ({"a": 1}, Mapping[str, int], YES), ({"a": 1}, Mapping[int, int], NO), ([1], Sequence[int], YES),
            ((1,), Sequence[int], YES), (["a"], Sequence[int], NO), ({1}, Sequence[int], NO), ("ab", Sequence[str], YES),
            ([1], Iterable[int], YES), (True, Hashable, YES), ([], Hashable, NO), (UUID(int=1), RowId, YES), ("1", RowId, NO),
            (1, Annotated[int, "x"], YES), (True, Annotated[int, "x"], NO), (1, T, YES), (object(), Any, YES), ([1], list[Any], YES),
            ([1, None], list[T], YES), (Leaf(Size.SMALL), Leaf, YES), ({"size": 1}, Leaf, NO), (Box(1), Box[int], YES),
            (Leaf(1), Box[int], NO), (Pair(1, "a"), Pair[int], YES), ({"name": "a"}, Partial, YES),
            ({"name": "a", "note": "b"}, Partial, YES), ({"note": "b"}, Partial, NO), ({"name": "a", "other": 1}, Partial, NO),
            ({"name": "a"}, Whole, YES), ({"name": "a", "note": 1}, Whole, YES), ({"name": "a", "note": "1"}, Whole, NO),
            ({"note": 1}, Whole, NO), ({1: 2}, Whole, NO), ([], Whole, NO), ({"items": [1], "more": "a"}, Page[int, str], YES),
            ({"items": 1, "more": "a"}, Page[int, str], NO), ({"root": 1, "children": []}, Tree, NO),
            ({"item": 1}, UnresolvedDict, YES), ([1], UnresolvedDict, NO), (Leaf(Size.SMALL), Alias, YES), (1, Alias, NO),
            ({"a": [1, {"b": None}]}, JSON, YES), ({"a": [1.5]}, JSON, NO), (1, type[int], NO), (1, "int", YES),
        ],
    )  # fmt: skip
    def test_by_structure_and_exact_types(self, value, kind, answer):
        """True is no int, a datetime no date, a NamedTuple no tuple; what an annotation cannot say is let through."""
        assert conforms(value, kind) is answer

    def test_a_value_without_a_declared_type_is_read_as_one_if_it_conforms(self):
        """What `set` stored without a word, `get(as_type=...)` gives if it is that, and else not at all."""
        for value, kind, answer in (
            ([1], list[int], YES),
            ([True], list[int], NO),
            ({"a": (1,)}, dict[str, tuple[int]], YES),
            (b"", str, NO),
        ):
            codec, payload = serializer_for().encode(value)
            if answer:
                assert serializer_for(kind).decode(codec, 0, payload) == value
            else:
                with pytest.raises(Undecodable):
                    serializer_for(kind).decode(codec, 0, payload)


class TestOtherVersions:
    """Bytes that another version of a class has written are a miss: never half an object, never another value."""

    VERSIONS = [
        (made("V", a=int)(1), made("V", a=int, b=int)),
        (made("V", a=int, b=int)(1, 2), made("V", a=int)),
        (made("V", a=int)(1), made("V", a=str)),
        (enum.Enum("V", "A B", module="shop").B, enum.Enum("V", "B A", module="shop")),
        (
            attrs.make_class("V", {"a": attrs.field(type=int)})(1),
            attrs.make_class("V", {"a": attrs.field(type=int), "b": attrs.field(default=1)}),
        ),
        (msgspec.defstruct("V", [("a", int)], module="shop")(1), msgspec.defstruct("V", [("a", int), ("b", int, 1)], module="shop")),
        (
            pydantic.create_model("V", a=(int, 1), __module__="shop")(),
            pydantic.create_model("V", a=(int, 1), b=(int, 2), __module__="shop"),
        ),
        (NamedTuple("V", [("a", int)])(1), NamedTuple("V", [("a", int), ("b", int)])),
    ]

    @pytest.mark.parametrize(("value", "new"), VERSIONS, ids=lambda one: getattr(one, "__name__", "value"))
    @pytest.mark.parametrize("wrap", [lambda kind: kind, lambda kind: list[kind]])
    def test_of_a_declared_class(self, value, new, wrap):
        """The schema in the head is another."""
        old = wrap(type(value))
        held = value if old is type(value) else [value]
        codec, payload = Serializer(old).encode(held)
        with pytest.raises(Undecodable):
            Serializer(wrap(new)).decode(codec, schema(old), payload)

    @pytest.mark.parametrize(("value", "new"), VERSIONS, ids=lambda one: getattr(one, "__name__", "value"))
    def test_of_a_registered_class(self, value, new, monkeypatch):
        """The name in the payload is another: register_type has no schema in the head."""
        old = type(value)
        monkeypatch.setattr(serializers, "_registered", {old: shape_of(old)})
        codec, payload = Serializer(ANY).encode({"k": value})
        assert Serializer(ANY).decode(codec, 0, payload) == {"k": value}
        declared = Serializer(dict[str, old])
        assert declared.decode(*_parts(declared, {"k": value})) == {"k": value}
        assert Serializer(ANY).decode(*_parts(declared, {"k": value})) == {"k": value}
        monkeypatch.setattr(serializers, "_registered", {new: shape_of(new)})
        for written in ((codec, 0, payload), _parts(declared, {"k": value})):
            with pytest.raises(Undecodable):
                Serializer(ANY).decode(*written)

    def test_of_a_model_inside_a_registered_model(self, monkeypatch):
        """Its JSON would be read by the new class, with a default for what it does not hold."""

        def version(**fields: Any) -> Any:
            inner = pydantic.create_model("Inner", **fields, __module__="shop")
            return pydantic.create_model("Outer", inner=(inner, ...), __module__="shop"), inner

        (old, inner), (new, _) = version(a=(int, 1)), version(a=(int, 1), b=(int, 2))
        monkeypatch.setattr(serializers, "_registered", {old: shape_of(old)})
        codec, payload = Serializer(ANY).encode(old(inner=inner()))
        monkeypatch.setattr(serializers, "_registered", {new: shape_of(new)})
        with pytest.raises(Undecodable):
            Serializer(ANY).decode(codec, 0, payload)


def _parts(serializer: Serializer, value: Any) -> tuple[int, int, bytes]:
    codec, payload = serializer.encode(value)
    return codec, serializer.schema, payload


class TestDecoratedFunctions:
    """The annotation decides the decoder at the first call, whatever it is: never an error of the cache's."""

    @pytest.mark.parametrize(
        ("annotation", "value"),
        [
            (Tree, {"root": Node({}), "children": []}),
            (JSON, {"a": [1, None]}),
            (UnresolvedDict, {"item": 1}),
            (list[Unresolved], [Unresolved(1, None)]),
            ("Absent", [1]),
            ("list of dishes", [1]),
            ("[", [1]),
            ({"a": int}, [1]),
            (5, [1]),
            (Literal[Size.SMALL], Size.SMALL),
            (dict[str, Palette], {"k": Palette.COLD}),
            (Tuple, (1, "a")),
            (Any, (1,)),
        ],
        ids=lambda part: repr(part).partition(": (")[0],
    )
    async def test_any_annotation_will_do(self, annotation, value):
        """One that cannot be resolved, is no type, or contains itself: the value is cached all the same."""

        async def load() -> Any:
            return value

        load.__annotations__ = {"return": annotation}
        async with CacheManager("memory://", prefix="annotated") as manager:
            function = cache(cache_type="test", manager=manager, name="load")(load)
            for _ in range(3):
                assert await function() == value
            assert function.cache_info()[:2] == (2, 1)
