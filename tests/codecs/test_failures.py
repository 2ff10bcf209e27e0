"""Errors as they are stored: what comes back is the same error, or nothing; what is only named is never imported."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from types import ModuleType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from aiocache_aura.codecs import failures
from aiocache_aura.codecs.compare import difference
from aiocache_aura.errors import KeyPartError, LoadDeadlineError


class NotFound(Exception):
    """As most applications write it."""


class NoSuchMenu(NotFound):
    """A subclass, with an attribute besides."""

    def __init__(self, menu: int, *, restaurant: int | None = None) -> None:
        super().__init__(menu)
        self.restaurant = restaurant


class Wordy(Exception):
    """Its arguments are not those of its constructor."""

    def __init__(self, code: int) -> None:
        super().__init__(f"error {code}")


class Demanding(Exception):
    def __init__(self, message: str, *, response: object) -> None:
        super().__init__(message)
        self.response = response


class Reduced(Exception):
    """Says itself how it is to be made."""

    def __reduce__(self) -> Any:
        return _make, ()


class Hostile(Exception):
    """Raises wherever it is looked at."""

    made = 0

    def __init__(self, *args: object) -> None:
        type(self).made += 1
        if args == ("raise",):
            raise ZeroDivisionError
        super().__init__(*args)

    def __reduce__(self) -> Any:
        raise ZeroDivisionError


class Shifty(Exception):
    """Another thing at each making."""

    def __new__(cls, *args: object) -> Any:
        return super().__new__(cls, *args) if not args else NotFound(*args)


class Outer:
    class Inner(Exception):
        pass


def _make() -> Exception:
    return Reduced()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def same(one: BaseException, other: BaseException | None) -> bool:
    """Whether it is the same error: by class, arguments, attributes and text, in exact types."""
    return (
        type(one) is type(other)
        and difference(list(one.args), list(other.args)) is None
        and difference(sorted(vars(one).items()), sorted(vars(other).items())) is None
        and str(one) == str(other)
    )


@given(st.lists(JSON, max_size=3).map(tuple))
def test_what_is_encoded_comes_back_the_same(args: tuple[Any, ...]) -> None:
    """Arguments that JSON holds exactly come back as they were, in exact types, by either way."""
    error = NotFound(*args)
    raw = failures.encode(error)
    assert raw is not None
    assert same(error, failures.rebuilt(raw, (NotFound,)))
    assert same(error, failures.found_again(raw))


@pytest.mark.parametrize(
    "error",
    [
        KeyError("menu"),
        LookupError(),
        TimeoutError("late", 3),
        NoSuchMenu(7, restaurant=1),
        NoSuchMenu(7),
        HTTPException(404, "no such menu"),
        HTTPException(404, detail="no such menu", headers={"Retry-After": "3"}),
        FileNotFoundError(2, "No such file", "menu.json"),
        ImportError("no module", name="menus"),
        LoadDeadlineError("too late"),
        KeyPartError("a key"),
        Outer.Inner("nested", [1, {"a": None}]),
    ],
    ids=lambda error: f"{type(error).__name__}-{len(error.args)}-{len(vars(error))}",
)
def test_an_error_comes_back_with_what_its_arguments_do_not_tell(error: Exception) -> None:
    """The usual errors of applications and of the standard library keep their text and attributes."""
    raw = failures.encode(error)
    assert raw is not None
    for back in (failures.rebuilt(raw, (Exception,)), failures.rebuilt(raw, (KeyError, type(error))), failures.found_again(raw)):
        assert same(error, back)
        assert getattr(error, "filename", None) == getattr(back, "filename", None)
        assert getattr(error, "name", None) == getattr(back, "name", None)


def test_notes_come_back() -> None:
    """What was added to an error on its way is told, too."""
    error = NotFound("x")
    error.add_note("while reading the menu")
    back = failures.rebuilt(failures.encode(error) or b"", (NotFound,))
    assert back is not None
    assert back.__notes__ == ["while reading the menu"]


@pytest.mark.parametrize(
    "error",
    [
        NotFound(object()),
        NotFound(dt.date(2026, 11, 1)),
        NotFound(UUID(int=1)),
        NotFound(b"bytes"),
        NotFound((1, 2)),
        NotFound({1: 2}),
        NotFound(float("nan")),
        NotFound(float("inf")),
        NotFound(2**64),
        NotFound("\ud800"),
        NotFound(type("Text", (str,), {})("x")),
        Wordy(5),
        Demanding("x", response=object()),
        Reduced(),
        Hostile("x"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        SyntaxError("bad", ("menu.py", 1, 1, "x")),
        ExceptionGroup("two", [KeyError(1)]),
        KeyboardInterrupt("stop"),
        GeneratorExit(),
    ],
    ids=lambda error: f"{type(error).__name__}-{'-'.join(type(arg).__name__ for arg in error.args)}",
)
def test_what_would_come_back_as_another_is_not_encoded(error: BaseException) -> None:
    """Whatever JSON or the class would change, and what is no Exception, is refused: nothing is stored as something else."""
    assert failures.encode(error) is None


def test_attributes_that_json_does_not_hold_are_not_left_out() -> None:
    """An error that carries a session is not stored without it."""
    error = NotFound("x")
    error.session = object()  # type: ignore[attr-defined]
    assert failures.encode(error) is None


def test_an_argument_that_holds_itself_is_refused() -> None:
    """A circle is not encoded, and does not hang."""
    circle: list[Any] = []
    circle.append(circle)
    assert failures.encode(NotFound(circle)) is None


class TestRebuilt:
    RAW = failures.encode(NoSuchMenu(7)) or b""

    def test_only_classes_that_are_declared_and_their_subclasses(self) -> None:
        """A reader that does not list the class misses."""
        assert same(NoSuchMenu(7), failures.rebuilt(self.RAW, (NotFound,)))
        assert same(NoSuchMenu(7), failures.rebuilt(self.RAW, (NoSuchMenu,)))
        assert failures.rebuilt(self.RAW, (KeyError, Outer.Inner)) is None
        assert failures.rebuilt(self.RAW, ()) is None
        assert failures.rebuilt(failures.encode(NotFound(7)) or b"", (NoSuchMenu,)) is None

    def test_a_name_alone_makes_nothing(self) -> None:
        """Where the arguments are not known, no error is raised that pretends to have none."""
        raw = failures.told_of(KeyError(object()))
        assert failures.rebuilt(raw, (KeyError,)) is None
        assert failures.found_again(raw) is None
        assert failures.told(raw) == "KeyError"

    def test_many_classes_are_gone_through_once(self) -> None:
        """A class that two declared ones share is not looked at twice: `Exception` and all below it take no time that grows."""

        class Left(Exception):
            pass

        class Right(Exception):
            pass

        class Both(Left, Right):
            pass

        raw = failures.encode(Both("x"))
        assert raw is not None
        assert same(Both("x"), failures.rebuilt(raw, (Left, Right, Exception)))

    def test_a_memoryview_is_read(self) -> None:
        """As it is cut out of an entry."""
        assert same(NoSuchMenu(7), failures.rebuilt(memoryview(b"head" + self.RAW)[4:], (NotFound,)))


HOSTILE = [
    b"",
    b"null",
    b"[]",
    b"[1]",
    b"[[]]",
    b"{}",
    b'"builtins:KeyError"',
    b'["builtins:KeyError"]',
    b'["builtins:KeyError",{}]',
    b'["builtins:KeyError","x"]',
    b'["builtins:KeyError",[],[]]',
    b'["builtins:KeyError",[],{},1]',
    b'["builtins:eval",["1"]]',
    b'["builtins:KeyError.__init__",[]]',
    b'["builtins:KeyboardInterrupt",[]]',
    b'["builtins:SystemExit",[1]]',
    b'["os:system",["true"]]',
    b'["sys:modules",[]]',
    b'[":",[]]',
    b'["",[]]',
    b'["builtins:",[]]',
    b'["builtins",[]]',
    b'["builtins:.KeyError",[]]',
    b'["builtins:KeyError",[],{"__class__":"x"}]',
    b'["builtins:KeyError",[],{"__dict__":1}]',
    b'["builtins:KeyError",[],{"args":["other"]}]',
    b'["builtins:KeyError",[],{"__traceback__":1}]',
    b'["builtins:KeyError",[],{"__cause__":null}]',
    b'["builtins:UnicodeDecodeError",["utf-8"]]',
    b'["builtins:OSError",[2,"x"]]',
    b"[" * 5000 + b"]" * 5000,
    b'["builtins:KeyError",[' + b"[" * 1500 + b"]" * 1500 + b"]]",
    b"\xff\xfe",
    b'["\xff",[]]',
    f'["{__name__}:Hostile",["raise"]]'.encode(),
    f'["{__name__}:Hostile",["x"]]'.encode(),
    f'["{__name__}:Shifty",["x"]]'.encode(),
    f'["{__name__}:Wordy",["error 5"]]'.encode(),
    f'["{__name__}:NotFound.__class__",[]]'.encode(),
]


@pytest.mark.parametrize("raw", HOSTILE, ids=lambda raw: repr(raw[:40]))
def test_hostile_bytes_make_nothing(raw: bytes) -> None:
    """Bytes that `encode` did not write are no error, and raise none."""
    assert failures.found_again(raw) is None
    assert failures.rebuilt(raw, (Exception,)) is None
    assert isinstance(failures.told(raw), str)


@given(st.binary(max_size=40) | JSON.map(lambda whole: json.dumps(whole).encode()))
def test_any_bytes_are_read(raw: bytes) -> None:
    """Whatever is there, reading it raises nothing."""
    assert failures.found_again(raw) is None
    assert failures.rebuilt(raw, (LookupError,)) is None
    assert failures.told(raw)


def test_a_module_that_is_not_loaded_is_not_imported() -> None:
    """In a fresh process: an error of a module that is not loaded is not found, and the module stays unloaded."""
    code = (
        "import sys\nfrom aiocache_aura.codecs import failures\n"
        "raw = b'[\"antigravity:Error\",[]]'\n"
        "inner = b'[\"xml.dom:NotFoundErr\",[]]'\n"
        "print(failures.found_again(raw), failures.rebuilt(raw, (Exception,)), failures.found_again(inner), failures.told(raw))\n"
        "print('antigravity' in sys.modules, 'xml.dom' in sys.modules)\n"
        "import xml.dom\nprint(repr(failures.found_again(inner)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == ["None None None Error", "False False", "NotFoundErr()"]


def test_a_module_that_imports_when_it_is_asked_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules with `__getattr__` load what they are asked for: bytes must not make them."""
    asked: list[str] = []

    class Lazy(ModuleType):
        Error = NotFound

        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return NotFound

    monkeypatch.setitem(sys.modules, "lazy_menus", Lazy("lazy_menus"))
    assert failures.found_again(b'["lazy_menus:Thing",[]]') is None
    assert failures.found_again(b'["lazy_menus:Thing.Inner",[]]') is None
    assert asked == []


def test_an_error_under_another_name_is_not_taken() -> None:
    """A module may have the class of another: what is found has to be what was named."""
    name = f"{__name__}:HTTPException"
    assert failures.found_again(json.dumps([name, [404]]).encode()) is None


def test_an_error_of_a_function_is_found_where_it_is_declared() -> None:
    """A class that no module names comes back for those who declare it."""

    class Local(Exception):
        pass

    raw = failures.encode(Local("x")) or b""
    assert same(Local("x"), failures.rebuilt(raw, (Local,)))
    assert failures.found_again(raw) is None
    assert failures.told(raw).endswith("Local")
