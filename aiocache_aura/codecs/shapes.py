"""How instances of the user's classes are taken apart and put together again.

Rebuilding restores state and runs no `__init__` or `__post_init__`; whether it restored all of it is checked by the caller, at each store.
pydantic, msgspec and attrs are never imported here: a class of theirs can only be met where they are loaded already.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable
from enum import Enum, Flag
from typing import Any, Protocol


class PartWriter(Protocol):
    def at(self, step: str, value: Any, /) -> Any: ...


class PartReader(Protocol):
    def read(self, value: Any, /) -> Any: ...


class Shape(Protocol):
    """One class of the user's."""

    name: str

    def write(self, value: Any, writer: PartWriter, /) -> Any: ...

    def read(self, state: Any, reader: PartReader, /) -> Any: ...

    def description(self) -> object:
        """What makes the stored form of this class: changed, it is another schema."""


def name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


class _EnumShape:
    def __init__(self, cls: type[Enum]) -> None:
        self.name, self._cls = name_of(cls), cls

    def write(self, value: Enum, writer: PartWriter) -> Any:
        return writer.at(".value", value.value) if isinstance(value, Flag) else value.name

    def read(self, state: Any, reader: PartReader) -> Any:
        return self._cls(reader.read(state)) if issubclass(self._cls, Flag) else self._cls[state]

    def description(self) -> object:
        return [(member.name, repr(member.value)) for member in self._cls.__members__.values()]


class _FieldShape:
    """dataclasses, attrs classes and named tuples: fields in order."""

    def __init__(self, cls: type, fields: Iterable[str], build: Callable[[dict[str, Any]], Any]) -> None:
        self.name, self._fields, self._build = name_of(cls), tuple(fields), build
        self._types = {name: _shown(kind) for name, kind in getattr(cls, "__annotations__", {}).items()}

    def write(self, value: Any, writer: PartWriter) -> Any:
        return {name: writer.at(f".{name}", getattr(value, name)) for name in self._fields if hasattr(value, name)}

    def read(self, state: Any, reader: PartReader) -> Any:
        if not set(state) <= set(self._fields):
            raise ValueError(f"{self.name} has no such fields")
        return self._build({name: reader.read(part) for name, part in state.items()})

    def description(self) -> object:
        return [(name, self._types.get(name, "")) for name in self._fields]


class _ModelShape:
    """pydantic models: their own JSON, and which fields were set."""

    def __init__(self, cls: Any) -> None:
        self.name, self._cls = name_of(cls), cls

    def write(self, value: Any, writer: PartWriter) -> Any:
        unset = sorted(set(type(value).model_fields) - value.model_fields_set)
        return [value.model_dump_json(round_trip=True, warnings=False), unset]

    def read(self, state: Any, reader: PartReader) -> Any:
        text, unset = state
        model = self._cls.model_validate_json(text)
        model.model_fields_set.difference_update(unset)
        return model

    def description(self) -> object:
        return [(name, _shown(field.annotation)) for name, field in self._cls.model_fields.items()]


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


def _shown(kind: object) -> str:
    return name_of(kind) if isinstance(kind, type) and not hasattr(kind, "__origin__") and not hasattr(kind, "__args__") else str(kind)
