"""Templates of keys, tags and owners: text with fields in braces, filled from the arguments of a call, every field escaped."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from decimal import Decimal
from string import Formatter
from typing import Any
from uuid import UUID

from aiocache_aura.errors import ConfigurationError, KeyPartError
from aiocache_aura.keys import escape_part

RESULT = "result"
_PLAIN = (int, str, UUID, Decimal, dt.date, dt.datetime)
_formatter = Formatter()


class Template:
    """`"customers:{restaurant_id}:{page}"`. `{user.id}` reads an attribute; `{page:03d}` formats."""

    __slots__ = ("_parts", "fields", "text")

    def __init__(self, text: str, parameters: Iterable[str], *, what: str) -> None:
        self.text = text
        try:
            self._parts = list(_formatter.parse(text))
        except ValueError as error:
            raise ConfigurationError(f"{what}={text!r} cannot be read: {error}; a brace that is meant literally is doubled") from None
        self.fields = {_root(field) for _, field, _, _ in self._parts if field is not None}
        unknown = sorted(self.fields - set(parameters))
        if unknown:
            known = ", ".join(parameters) or "none"
            raise ConfigurationError(f"{what}={text!r} has a field {unknown[0]!r} that is no parameter; there are: {known}")

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    def fill(self, arguments: Mapping[str, Any]) -> str:
        """The text; KeyPartError for a field that is None or has no plain text form."""
        filled = []
        for literal, field, spec, _ in self._parts:
            filled.append(literal)
            if field is not None:
                filled.append(self._field(field, spec or "", arguments))
        return "".join(filled)

    def value(self, arguments: Mapping[str, Any]) -> Any:
        """The value of a template that is one field and nothing else; its text otherwise."""
        if len(self._parts) == 1 and self._parts[0][0] == "" and self._parts[0][1] is not None:
            return _formatter.get_field(self._parts[0][1], (), arguments)[0]
        return self.fill(arguments)

    def _field(self, field: str, spec: str, arguments: Mapping[str, Any]) -> str:
        value = _formatter.get_field(field, (), arguments)[0]
        if value is None:
            raise KeyPartError(f"{{{field}}} in {self.text!r} is None: an entry for nobody in particular would be shared; pass a value")
        if isinstance(value, bool) or not isinstance(value, _PLAIN):
            raise KeyPartError(f"{{{field}}} in {self.text!r} is a {type(value).__name__}; name an attribute of it, such as {{{field}.id}}")
        return escape_part(format(value, spec) if spec else value if isinstance(value, str) else _text(value))


def _root(field: str) -> str:
    return field.split(".")[0].split("[")[0]


def _text(value: Any) -> str:
    return str(value.isoformat() if isinstance(value, dt.date) else value)
