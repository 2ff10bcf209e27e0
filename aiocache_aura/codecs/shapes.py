"""How instances of the user's classes are taken apart and put together again.

Rebuilding restores state and runs no `__init__` or `__post_init__`; whether it restored all of it is checked by the caller, at each store.
pydantic, msgspec and attrs are never imported here: a class of theirs can only be met where they are loaded already.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, Flag
from typing import Any, Protocol

from aiocache_aura.codecs.compare import difference


class PartWriter(Protocol):
    def at(self, step: str, value: Any, /) -> Any: ...


class PartReader(Protocol):
    def read(self, value: Any, /) -> Any: ...


class Shape(Protocol):
    """One class of the user's."""

    name: str

    def write(self, value: Any, writer: PartWriter, /) -> Any: ...

    def read(self, state: Any, reader: PartReader, /) -> Any: ...

    def description(self) -> list[tuple[str, object]]:
        """What makes the stored form of this class, as names with types or texts: changed, it is another schema."""
        ...


def name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


class _EnumShape:
    def __init__(self, cls: type[Enum]) -> None:
        self.name, self._cls = name_of(cls), cls

    def write(self, value: Enum, writer: PartWriter) -> Any:
        return writer.at(".value", value.value) if isinstance(value, Flag) else value.name

    def read(self, state: Any, reader: PartReader) -> Any:
        return self._cls(reader.read(state)) if issubclass(self._cls, Flag) else self._cls[state]

    def description(self) -> list[tuple[str, object]]:
        return [(name, _steady(member.value)) for name, member in self._cls.__members__.items()]


class _FieldShape:
    """dataclasses, attrs classes and named tuples: fields in order."""

    def __init__(self, cls: type, fields: Iterable[str], build: Callable[[dict[str, Any]], Any]) -> None:
        self.name, self._fields, self._build = name_of(cls), tuple(fields), build
        bases = reversed(cls.__mro__)  # a field may be a base's
        self._types = {name: kind for base in bases for name, kind in getattr(base, "__annotations__", {}).items()}

    def write(self, value: Any, writer: PartWriter) -> Any:
        return {name: writer.at(f".{name}", getattr(value, name)) for name in self._fields if hasattr(value, name)}

    def read(self, state: Any, reader: PartReader) -> Any:
        if not set(state) <= set(self._fields):
            raise ValueError(f"{self.name} has no such fields")
        return self._build({name: reader.read(part) for name, part in state.items()})

    def description(self) -> list[tuple[str, object]]:
        return [(name, self._types.get(name, "")) for name in self._fields]


class _ModelShape:
    """pydantic models: their own JSON, and which fields were not set, of those in it too; where that gives another, their state.

    The JSON is read at C speed and knows pydantic's types, but loses what validation changes: zones, subclasses, private parts.
    """

    def __init__(self, cls: Any) -> None:
        self.name, self._cls = name_of(cls), cls
        spoken = inspect.signature(cls.model_validate_json).parameters
        self._names = {"by_alias": False, "by_name": True} if "by_name" in spoken else {}  # pydantic 2.11: whatever the fields' aliases

    def write(self, value: Any, writer: PartWriter) -> Any:
        written = self._json(value)
        return self._state(value, writer) if written is None else written

    def _json(self, value: Any) -> list[Any] | None:
        try:
            written = [value.model_dump_json(round_trip=True, by_alias=False, warnings=False), _unset(value)]
            inner = [[n, _unset(model)] for n, model in enumerate(_inner_models(value)) if _unset(model)]
            written.extend([inner] if inner else [])
            return written if difference(value, self._from_json(*written)) is None else None
        except (ValueError, TypeError, AttributeError, LookupError):  # its own serializers and validators
            return None

    def _from_json(self, text: str, unset: Iterable[str], inner: Iterable[tuple[int, Iterable[str]]] = ()) -> Any:
        model = self._cls.model_validate_json(text, **self._names)
        models = list(_inner_models(model)) if inner else []
        for one, names in ((model, unset), *((models[n], names) for n, names in inner)):
            one.model_fields_set.difference_update(names)
        return model

    def _state(self, value: Any, writer: PartWriter) -> Any:
        state = value.__getstate__()
        private = state.get("__pydantic_private__")
        return {
            "fields": {name: writer.at(f".{name}", part) for name, part in state["__dict__"].items()},
            "set": sorted(state["__pydantic_fields_set__"]),
            "extra": writer.at(".model_extra", state.get("__pydantic_extra__")),
            "private": private and {name: writer.at(f".{name}", part) for name, part in private.items()},
        }

    def read(self, state: Any, reader: PartReader) -> Any:
        if isinstance(state, list):
            return self._from_json(*state)
        model = self._cls.__new__(self._cls)
        private = state["private"]
        model.__setstate__(
            {
                "__dict__": {name: reader.read(part) for name, part in state["fields"].items()},
                "__pydantic_fields_set__": set(state["set"]),
                "__pydantic_extra__": reader.read(state["extra"]),
                "__pydantic_private__": private and {name: reader.read(part) for name, part in private.items()},
            }
        )
        return model

    def description(self) -> list[tuple[str, object]]:
        return [(name, field.annotation) for name, field in self._cls.model_fields.items()]


def _unset(model: Any) -> list[str]:
    return sorted(set(type(model).model_fields) - model.model_fields_set)


def _inner_models(value: Any) -> Iterator[Any]:
    """The models in a model, in an order that its JSON keeps."""
    parts = value.__dict__.values() if is_model(type(value)) else value.values() if type(value) is dict else value
    for part in parts:
        if is_model(type(part)):
            yield part
        if is_model(type(part)) or type(part) in (dict, list, tuple):
            yield from _inner_models(part)


def _steady(value: object) -> str:
    """A text for an enum's value that is the same in every process: no addresses, no order of a set."""
    if isinstance(value, tuple | list):
        return f"{name_of(type(value))}{[_steady(part) for part in value]}"
    if isinstance(value, set | frozenset):
        return f"{name_of(type(value))}{sorted(map(_steady, value))}"
    return repr(value) if type(value) in _STEADY else name_of(type(value))


_STEADY = (type(None), bool, int, float, complex, str, bytes)


def shape_of(cls: type) -> Shape | None:
    """The shape of a class, or None for one that has none."""
    if issubclass(cls, Enum):
        return _EnumShape(cls)
    if is_model(cls):
        return _ModelShape(cls)
    if dataclasses.is_dataclass(cls):
        return _FieldShape(cls, (field.name for field in dataclasses.fields(cls)), _restorer(cls))
    if hasattr(cls, "__struct_fields__"):
        return _FieldShape(cls, cls.__struct_fields__, lambda state: cls(**state))
    if hasattr(cls, "__attrs_attrs__"):
        return _FieldShape(cls, (field.name for field in cls.__attrs_attrs__), _restorer(cls))
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return _FieldShape(cls, getattr(cls, "_fields"), lambda state: cls(**state))  # noqa: B009 - no checker knows it
    return None


def is_model(cls: object) -> bool:
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(cls, type) and issubclass(cls, pydantic.BaseModel)


def _restorer(cls: type) -> Callable[[dict[str, Any]], Any]:
    def restore(state: dict[str, Any]) -> Any:
        value: Any = object.__new__(cls)
        for name, part in state.items():
            object.__setattr__(value, name, part)  # frozen classes too
        return value

    return restore
