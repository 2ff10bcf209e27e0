"""What a declared type says: the classes in it, its canonical description, and whether a value conforms to it."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from aiocache_aura.codecs.shapes import Shape, is_model, name_of, shape_of
from aiocache_aura.codecs.tagged import KINDS


class AnyType(Enum):
    ANY = "ANY"


ANY = AnyType.ANY
_NOTHING_SAID = (ANY, Any, object, typing.NoReturn)
_UNRESOLVED = (NameError, TypeError, AttributeError, SyntaxError)


def says_nothing(annotation: object) -> bool:
    return any(annotation is nothing for nothing in _NOTHING_SAID) or isinstance(annotation, TypeVar | str)


def shapes_in(annotation: object) -> dict[type, Shape]:
    """Every class of the user's in an annotation, through generics, unions and the fields of what is found."""
    found: dict[type, Shape] = {}
    todo: list[object] = [annotation]
    seen: dict[int, object] = {}  # keeps what it has seen: the id of what is gone may be that of the next
    while todo:
        kind = todo.pop()
        if id(kind) in seen:
            continue
        seen[id(kind)] = kind
        todo.extend(_parts(kind))
        cls = _class_of(kind)
        if cls is not None and cls not in found:
            shape = shape_of(cls)
            if shape is not None:
                found[cls] = shape
            todo.extend(_field_types(cls))
    return found


def _class_of(kind: object) -> type | None:
    if isinstance(kind, Enum):  # from a Literal
        return type(kind)
    origin = get_origin(kind)
    cls = origin if isinstance(origin, type) else kind
    return cls if isinstance(cls, type) else None


def _parts(kind: object) -> Iterable[object]:
    supertype = getattr(kind, "__supertype__", None)  # NewType
    value = getattr(kind, "__value__", None) if type(kind).__name__ == "TypeAliasType" else None
    return (*get_args(kind), *(part for part in (supertype, value) if part is not None))


def _field_types(cls: type) -> Iterable[object]:
    if is_model(cls):  # it has resolved them itself, type variables too
        return [field.annotation for field in getattr(cls, "model_fields", {}).values()]
    described = dataclasses.is_dataclass(cls) or hasattr(cls, "__struct_fields__") or hasattr(cls, "__attrs_attrs__")
    return _hints(cls).values() if described or typing.is_typeddict(cls) or hasattr(cls, "_fields") else ()


def _hints(cls: object, *, extras: bool = False) -> dict[str, Any]:
    """The resolved annotations of a class; none where one of them cannot be resolved."""
    try:
        return typing.get_type_hints(cls, include_extras=extras)
    except _UNRESOLVED:
        return {}


def description(annotation: object, table: Mapping[type, Shape]) -> str:
    """The same text for the same type in every process; another when a class in it has changed."""
    classes = sorted((shape.name, _members(shape)) for shape in table.values())
    return f"{described(annotation)}|{classes}"


def _members(shape: Shape) -> str:
    return str([(name, kind if isinstance(kind, str) else described(kind)) for name, kind in shape.description()])


def described(kind: object, within: tuple[object, ...] = ()) -> str:
    if kind is None or kind is types.NoneType:
        return "None"
    if any(kind is outer for outer in within):  # a type that contains itself
        return str(kind)
    origin, args, inside = get_origin(kind), get_args(kind), (*within, kind)
    if origin is Literal:
        return f"Literal[{sorted(f'{name_of(type(a))}.{a.name}' if isinstance(a, Enum) else repr(a) for a in args)}]"
    if origin is Union or origin is types.UnionType:
        return f"Union[{sorted(described(arg, inside) for arg in args)}]"
    if origin is typing.Annotated:
        return described(args[0], inside)
    if origin is not None:
        return f"{described(origin, inside)}[{', '.join(described(arg, inside) for arg in args)}]"
    if typing.is_typeddict(kind):
        return f"{name_of(typing.cast(type, kind))}{sorted((k, described(v, inside)) for k, v in _hints(kind).items())}"
    if isinstance(kind, type):
        return name_of(kind)
    parts = list(_parts(kind))
    return described(parts[0], inside) if parts else str(kind)


def conforms(value: object, kind: object) -> bool:
    """Whether a value is what an annotation says, by structure and exact types; what an annotation cannot say is let through."""
    if says_nothing(kind):
        return True
    origin, args = get_origin(kind), get_args(kind)
    if kind is None or kind is types.NoneType:
        return value is None
    if origin is Union or origin is types.UnionType:
        return any(conforms(value, arg) for arg in args)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin is typing.Annotated:
        return conforms(value, args[0])
    if typing.is_typeddict(kind):
        return _is_typed_dict(value, kind)
    if origin is not None:  # typing.Tuple says nothing of its items, tuple[()] does
        return _is_generic(value, origin, args) if args or kind == tuple[()] else conforms(value, origin)
    if isinstance(kind, type):
        return type(value) in (kind, *_PROMOTED.get(kind, ())) or (kind not in KINDS and _is_instance(value, kind))
    return all(conforms(value, part) for part in _parts(kind))


_PROMOTED: dict[type, tuple[type, ...]] = {float: (int,), complex: (int, float)}  # what type checkers let pass


def _is_instance(value: object, kind: type) -> bool:
    """A protocol or abstract class, such as `Sequence` for a list; or a base class for what is derived from it."""
    try:
        return isinstance(value, kind)
    except TypeError:
        return True


def _is_typed_dict(value: Any, kind: Any) -> bool:
    hints, marked = _hints(kind), _hints(kind, extras=True)
    if type(value) is not dict or not hints:
        return type(value) is dict
    required = {name for name, hint in marked.items() if _is_required(hint, name in kind.__required_keys__)}
    return required <= value.keys() <= hints.keys() and all(conforms(item, hints[key]) for key, item in value.items())


def _is_required(hint: object, otherwise: bool) -> bool:
    marks: dict[Any, bool] = {typing.Required: True, typing.NotRequired: False}
    return marks.get(get_origin(hint), otherwise)


def _is_generic(value: Any, origin: Any, args: tuple[Any, ...]) -> bool:
    """The items of the built-in collections; those of a generic class of the user's are what they are."""
    if not conforms(value, origin):
        return False
    if type(value) is tuple and origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return all(conforms(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(conforms, value, args))
    if type(value) is dict and len(args) == 2 and not typing.is_typeddict(origin):
        return all(conforms(key, args[0]) and conforms(item, args[1]) for key, item in value.items())
    if type(value) in (list, tuple, set, frozenset) and len(args) == 1:
        return all(conforms(item, args[0]) for item in value)
    return True
