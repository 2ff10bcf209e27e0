"""What is the same call: a function's arguments, bound at C speed, as parts of a key.

For each function two functions are generated from its signature, as dataclasses generate `__init__`: one binds the arguments and fills in
defaults, the other makes the tuple under which the address of the call is remembered, each value beside its class, since `1 == True`.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import inspect
import itertools
import linecache
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn
from uuid import UUID

from aiocache_aura import keys
from aiocache_aura.errors import ConfigurationError
from aiocache_aura.types import MISSING

MEMO_SAFE = frozenset({int, str, bool, bytes, type(None), UUID, dt.date})
"""Classes whose equal instances mean the same call; 0.0 == -0.0, (1,) == (True,), and equal datetimes of two zones do not."""

_SUSPICIOUS = re.compile(r"passw|secret|token|api_?key|credential|private_key|authorization", re.IGNORECASE)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_STARS: dict[object, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
_REQUIRED = object()
_numbers = itertools.count()


class CallSignature:
    """The parameters of one function, and which of them are in its keys."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        owner: str | None,
        exclude: Iterable[str] = (),
        secret: Iterable[str] = (),
        self_key: Callable[[Any], object] | None = None,
        provided: Iterable[str] = (),
    ) -> None:
        """`owner` is "self" or "cls" for a function in a class body whose first parameter is the instance or the class.

        Parameters that are `provided` are excluded, and callers need not give them.
        """
        self.name = getattr(function, "__qualname__", type(function).__qualname__)
        signature = inspect.signature(function)
        self._parameters, self._returned = list(signature.parameters.values()), signature.return_annotation
        self.names = tuple(parameter.name for parameter in self._parameters)
        self.owner = self.names[0] if owner is not None and self.names else None
        self._owner_is_class = owner == "cls"
        self._self_key = self_key
        if self_key is not None and (self.owner is None or self._owner_is_class):
            raise ConfigurationError(f"self_key= of {self.name}: it is for methods, whose first parameter is self")
        self.provided = self._known("provide", provided)
        whole = {parameter.name for parameter in self._parameters if parameter.kind not in _VARIADIC} - {self.owner}
        if not self.provided <= whole:
            raise ConfigurationError(f"provide= of {self.name}: {min(self.provided - whole)!r} is not a parameter that a load can be given")
        self.excluded = self._known("exclude", exclude) | self.provided
        self.secret = self._known("secret", secret)
        self.included = tuple(name for name in self.names if name not in self.excluded and name != self.owner)
        self._warn_of_secrets()
        self.bind, self.lookup = self._generate(getattr(function, "__name__", "call"))

    def __repr__(self) -> str:
        return f"CallSignature({self.name}, {', '.join(self.included)})"

    @property
    def is_personal(self) -> bool:
        """Whether a load uses arguments that are not in the key, which belong to its caller."""
        return bool(self.excluded - self.provided)

    def spread(self, arguments: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """All arguments as they are to be passed."""
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for parameter in self._parameters:
            value = arguments[parameter.name]
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                positional.extend(value)
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                named.update(value)
            elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                named[parameter.name] = value
            else:
                positional.append(value)
        return positional, named

    @property
    def of_bound(self) -> inspect.Signature:
        """What a caller sees who has not to pass self or cls."""
        return inspect.Signature(self._parameters[1:], return_annotation=self._returned)

    def _known(self, option: str, names: Iterable[str]) -> frozenset[str]:
        if isinstance(names, str):
            raise ConfigurationError(f"{option}={names!r}: it is a list of parameter names, such as {option}=[{names!r}]")
        chosen = frozenset(names)
        unknown = sorted(chosen - set(self.names))
        if unknown:
            raise ConfigurationError(f"{option}={unknown}: {self.name} has the parameters {', '.join(self.names) or 'none'}")
        return chosen

    def _warn_of_secrets(self) -> None:
        for name in self.included:
            if _SUSPICIOUS.search(name) and name not in self.secret:
                warn_user(
                    f"parameter {name!r} of {self.name} looks like a secret and would stand readable in keys: "
                    f"name it in secret=[{name!r}], which hashes it, or in exclude="
                )

    def arguments(self, values: Sequence[Any]) -> dict[str, Any]:
        """All arguments by name."""
        return dict(zip(self.names, values, strict=True))

    def parts(self, values: Sequence[Any], ignored: tuple[type, ...] = ()) -> list[tuple[str, str]]:
        """(name, encoded value) of what is in the key, in the order of parameters."""
        arguments = self.arguments(values)
        included = [name for name in self.included if not (ignored and isinstance(arguments[name], ignored))]
        parts = [(name, self._part(name, arguments[name])) for name in included]
        return parts if self.owner is None else [(self.owner, self._owner_part(arguments[self.owner])), *parts]

    def _part(self, name: str, value: object) -> str:
        part = keys.part_of(value, name)
        return "h" + hashlib.blake2b(f"{name}\0{part}".encode(), digest_size=16).hexdigest() if name in self.secret else part

    def _owner_part(self, value: Any) -> str:
        """The class of self, and what stands for the instance if anything does."""
        if self._owner_is_class and isinstance(value, type):
            return keys.class_name(value)
        own = self._self_key or getattr(type(value), "__cache_key__", None)
        cls = keys.class_name(type(value))
        return cls if own is None else f"{cls}({keys.part_of(own(value), 'self')})"

    def is_memo_safe(self, values: Sequence[Any]) -> bool:
        """Whether the address of this call may be remembered under `lookup`'s tuple."""
        if self.lookup is None:
            return False
        arguments = self.arguments(values)
        if self.owner is not None and (self._self_key or hasattr(type(arguments[self.owner]), "__cache_key__")):
            return False
        return all(arguments[name].__class__ in MEMO_SAFE for name in self.included)

    def _generate(self, name: str) -> tuple[Callable[..., tuple[Any, ...]], Callable[..., tuple[Any, ...]] | None]:
        name = name if name.isidentifier() else "call"
        defaults: dict[str, Any] = {}
        heading = _heading(self._parameters, self.provided, defaults)
        required = [each for n, each in enumerate(self.names) if defaults.get(f"_aura_default_{n}") is _REQUIRED]
        bind = _compiled(name, heading, _tuple(self.names), defaults, self.name, required)
        if any(parameter.kind in _VARIADIC for parameter in self._parameters):
            return bind, None
        owner = [] if self.owner is None else [self.owner if self._owner_is_class else f"{self.owner}.__class__"]
        looked_up = [*owner, *(part for each in self.included for part in (f"{each}.__class__", each))]
        return bind, _compiled(name, heading, _tuple(looked_up), defaults, self.name)


def _miss(function: str, name: str) -> NoReturn:
    raise TypeError(f"{function}() missing 1 required argument: {name!r}")


def warn_user(message: str) -> None:
    """Warn of the line outside this package that led here."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __name__.partition(".")[0]:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _tuple(expressions: Iterable[str]) -> str:
    return "(" + "".join(f"{expression}, " for expression in expressions) + ")"


def _heading(parameters: Sequence[inspect.Parameter], provided: frozenset[str], defaults: dict[str, Any]) -> str:
    """The parameters as they are written in a `def`; defaults are put into `defaults`, under names of ours.

    What is provided need not be given. A parameter behind it, which Python would not let be without a default then, has `_REQUIRED`.
    """
    written: list[str] = []
    kinds = [parameter.kind for parameter in parameters]
    for n, parameter in enumerate(parameters):
        text = _STARS.get(parameter.kind, "") + parameter.name
        default = _default(parameter, provided, optional=bool(defaults))
        if default is not inspect.Parameter.empty:
            defaults[f"_aura_default_{n}"] = default
            text += f"=_aura_default_{n}"
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in written and inspect.Parameter.VAR_POSITIONAL not in kinds:
            written.append("*")
        written.append(text)
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY and inspect.Parameter.POSITIONAL_ONLY not in kinds[n + 1 :]:
            written.append("/")
    return ", ".join(written)


def _default(parameter: inspect.Parameter, provided: frozenset[str], *, optional: bool) -> Any:
    if parameter.default is not inspect.Parameter.empty:
        return parameter.default
    if parameter.name in provided:
        return MISSING
    is_positional = parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return _REQUIRED if is_positional and optional else inspect.Parameter.empty


def _compiled(
    name: str, heading: str, result: str, defaults: Mapping[str, Any], origin: str, required: Iterable[str] = ()
) -> Callable[..., tuple[Any, ...]]:
    checks = "".join(f"    if {each} is _aura_required: _aura_miss({each!r})\n" for each in required)
    source = f"def {name}({heading}):\n{checks}    return {result}\n"
    file = f"<aiocache_aura {origin} {next(_numbers)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    scope: dict[str, Any] = {**defaults, "_aura_required": _REQUIRED, "_aura_miss": partial(_miss, origin)}
    exec(compile(source, file, "exec"), scope)  # noqa: S102 - of identifiers only
    generated: Callable[..., tuple[Any, ...]] = scope[name]
    return generated
