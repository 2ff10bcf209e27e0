"""Templates of keys, tags and owners: text with fields in braces, filled from the arguments of a call.

In keys, fields are escaped so that no two calls spell the same: "%", ":", and in text what stands between two fields of the template, such
as the "-" of "{first}-{second}". A tag stands as it is: whoever invalidates it by hand spells it so.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from decimal import Decimal
from string import Formatter
from typing import Any
from uuid import UUID

from aiocache_aura.errors import ConfigurationError, KeyPartError
from aiocache_aura.keys import digest, escape_chars

RESULT = "result"
_PLAIN = (int, str, UUID, Decimal, dt.date, dt.datetime)
_formatter = Formatter()


class Template:
    """`"customers:{restaurant_id}:{page}"`. `{user.id}` reads an attribute; `{page:03d}` formats."""

    __slots__ = ("_parts", "_secret", "_separators", "_what", "fields", "text")

    def __init__(self, text: str, parameters: Iterable[str], *, what: str, secret: Iterable[str] = ()) -> None:
        """Fields of `secret` parameters are hashed."""
        if not isinstance(text, str):
            raise ConfigurationError(f"{what}: a template is text such as 'dish:{{dish_id}}', not {type(text).__name__} {text!r:.40}")
        self.text, self._what, self._secret = text, what, frozenset(secret)
        try:
            self._parts = list(_formatter.parse(text))
        except ValueError as error:
            raise ConfigurationError(f"{what}={text!r} cannot be read: {error}; a brace that is meant literally is doubled") from None
        self.fields = {_root(field) for _, field, _, _ in self._parts if field is not None}
        unknown = sorted(self.fields - set(parameters))
        if unknown:
            known = ", ".join(parameters) or "none"
            raise ConfigurationError(f"{what}={text!r} has a field {unknown[0]!r} that is no parameter; there are: {known}")
        if any(conversion or "{" in (spec or "") for _, _, spec, conversion in self._parts):
            raise ConfigurationError(
                f"{what}={text!r}: a field is {{name}}, {{name.attribute}} or {{name:format}}, without '!' or more braces"
            )
        self._separators = "".join(map(self._separator, self._between())) if what in ("key", "keys") else ""

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

    def _between(self) -> list[str]:
        """The text between each two fields."""
        texts, text = [], ""
        for literal, field, _, _ in self._parts:  # a doubled brace ends a part, too
            text += literal
            if field is not None:
                texts.append(text)
                text = ""
        return texts[1:]

    def _separator(self, between: str) -> str:
        """A character of it that is escaped in text, and that an escape does not contain."""
        for char in sorted(between, key=str.isalnum):
            if char not in "%u0123456789ABCDEF":
                return char
        raise ConfigurationError(f"{self._what}={self.text!r}: calls would share an entry; put a separator such as ':' between the fields")

    def value(self, arguments: Mapping[str, Any]) -> Any:
        """The value of a template that is one field and nothing else; its text otherwise."""
        if len(self._parts) == 1 and self._parts[0][0] == "" and self._parts[0][1] is not None:
            return _formatter.get_field(self._parts[0][1], (), arguments)[0]
        return self.fill(arguments)

    def _field(self, field: str, spec: str, arguments: Mapping[str, Any]) -> str:
        try:
            value = _formatter.get_field(field, (), arguments)[0]
            text = format(value, spec) if spec and value is not None else ""
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise KeyPartError(f"{{{field}}} in {self.text!r} cannot be filled: {error}") from error
        if value is None:
            raise KeyPartError(f"{{{field}}} in {self.text!r} is None: an entry for nobody in particular would be shared; pass a value")
        if isinstance(value, bool) or not isinstance(value, _PLAIN):
            raise KeyPartError(f"{{{field}}} in {self.text!r} is a {type(value).__name__}; name an attribute of it, such as {{{field}.id}}")
        text = text if spec else str.__str__(value) if isinstance(value, str) else _text(value)
        if _root(field) in self._secret:
            return "h" + digest(f"{field}\0{text}")
        if self._what not in ("key", "keys"):
            return text
        return escape_chars(text, "%:" + self._separators if isinstance(value, str) else "%:")


def _root(field: str) -> str:
    return field.split(".")[0].split("[")[0]


def _text(value: Any) -> str:
    return str(value.isoformat() if isinstance(value, dt.date) else value)
