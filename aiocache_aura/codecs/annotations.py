"""What a declared type says: the classes in it, its canonical description, and whether a value conforms to it."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from aiocache_aura.codecs.shapes import Shape, name_of, shape_of


class AnyType(Enum):
    ANY = "ANY"


ANY = AnyType.ANY
_NOTHING_SAID = (ANY, Any, object, typing.NoReturn)


def says_nothing(annotation: object) -> bool:
    return any(annotation is nothing for nothing in _NOTHING_SAID) or isinstance(annotation, TypeVar | str)


def shapes_in(annotation: object) -> dict[type, Shape]:
    """Every class of the user's in an annotation, through generics, unions and the fields of what is found."""
    found: dict[type, Shape] = {}
    todo, seen = [annotation], set()
    while todo:
        kind = todo.pop()
        if id(kind) in seen:
            continue
        seen.add(id(kind))
        todo.extend(_parts(kind))
        cls = get_origin(kind) if isinstance(get_origin(kind), type) else kind
        if isinstance(cls, type) and cls not in found:
            shape = shape_of(cls)
            if shape is not None:
                found[cls] = shape
            todo.extend(_field_types(cls))
    return found


def _parts(kind: object) -> Iterable[object]:
    supertype = getattr(kind, "__supertype__", None)  # NewType
    value = getattr(kind, "__value__", None) if type(kind).__name__ == "TypeAliasType" else None
    return (*get_args(kind), *(part for part in (supertype, value) if part is not None))


def _field_types(cls: type) -> Iterable[object]:
    described = dataclasses.is_dataclass(cls) or hasattr(cls, "__struct_fields__") or hasattr(cls, "__attrs_attrs__")
    if not (described or hasattr(cls, "model_fields") or typing.is_typeddict(cls) or hasattr(cls, "_fields")):
        return ()
    try:
        return typing.get_type_hints(cls, include_extras=True).values()
    except (NameError, TypeError, AttributeError):
        return [field.annotation for field in getattr(cls, "model_fields", {}).values()]


def description(annotation: object, table: Mapping[type, Shape]) -> str:
    """The same text for the same type in every process; another when a class in it has changed."""
    classes = sorted((shape.name, str(shape.description())) for shape in table.values())
    return f"{described(annotation)}|{classes}"


def described(kind: object) -> str:
    if kind is None or kind is types.NoneType:
        return "None"
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"Literal[{sorted(map(repr, args))}]"
    if origin is Union or origin is types.UnionType:
        return f"Union[{sorted(map(described, args))}]"
    if origin is typing.Annotated:
        return described(args[0])
    if origin is not None:
        return f"{described(origin)}[{', '.join(map(described, args))}]"
    if typing.is_typeddict(kind):
        return f"{name_of(typing.cast(type, kind))}{sorted((k, described(v)) for k, v in typing.get_type_hints(kind).items())}"
    if isinstance(kind, type):
        return name_of(kind)
    parts = list(_parts(kind))
    return described(parts[0]) if parts else str(kind)


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
        return any(value.__class__ is arg.__class__ and value == arg for arg in args)
    if origin is typing.Annotated:
        return conforms(value, args[0])
    if typing.is_typeddict(kind):
        return _is_typed_dict(value, kind)
    if origin is not None:
        return _is_generic(value, origin, args)
    if isinstance(kind, type):
        return value.__class__ is kind or (kind in (float, complex) and value.__class__ is int) or _is_abstract(value, kind)
    return all(conforms(value, part) for part in _parts(kind))


def _is_abstract(value: object, kind: type) -> bool:
    """A protocol or abstract class: `Sequence` for a list, a base class for what is derived from it; but True is no int."""
    try:
        return isinstance(value, kind) and not isinstance(value, bool)
    except TypeError:
        return True


def _is_typed_dict(value: object, kind: Any) -> bool:
    if value.__class__ is not dict:
        return False
    items: Any = value
    hints = typing.get_type_hints(kind)
    return kind.__required_keys__ <= items.keys() <= hints.keys() and all(conforms(item, hints[key]) for key, item in items.items())


def _is_generic(value: Any, origin: Any, args: tuple[Any, ...]) -> bool:
    if not conforms(value, origin):
        return False
    if isinstance(value, tuple) and origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return all(conforms(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(conforms, value, args))
    if isinstance(value, dict) and len(args) == 2:
        return all(conforms(key, args[0]) and conforms(item, args[1]) for key, item in value.items())
    if isinstance(value, Sequence | set | frozenset) and len(args) == 1 and not isinstance(value, str | bytes):
        return all(conforms(item, args[0]) for item in _items(value))
    return True


def _items(value: Iterable[Any]) -> Iterator[Any]:
    return iter(value)
