"""What a function is declared to return, and how that is stored."""

from __future__ import annotations

import inspect
import logging
import types
import typing
from collections.abc import Callable
from functools import reduce
from operator import or_
from types import SimpleNamespace
from typing import Any

from aiocache_aura.codecs.serializers import ANY, Serializer, serializer_for
from aiocache_aura.types import Uncached

log = logging.getLogger("aiocache_aura.decorators")


def declared(function: Callable[..., Any]) -> Serializer:
    """The codec for what is declared to be returned; an annotation that cannot be resolved warns and counts as absent."""
    try:
        return serializer_for(_return_annotation(function))
    except Exception as error:
        log.warning("the return annotation of %s cannot be resolved (%s) and counts as absent", function, error)
        return serializer_for()


def _return_annotation(function: Callable[..., Any]) -> Any:
    declared = getattr(function, "__annotations__", {})
    if "return" not in declared:
        return ANY
    alone = SimpleNamespace(  # parameters may have types that only type checkers can import
        __annotations__={"return": declared["return"]}, __type_params__=getattr(function, "__type_params__", ())
    )
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    annotation = typing.get_type_hints(alone, globalns=scope, include_extras=True)["return"]
    origin = typing.get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, typing.Awaitable) and not inspect.iscoroutinefunction(function):
        annotation = typing.get_args(annotation)[-1]
    return _cached_part(annotation)


def _cached_part(annotation: Any) -> Any:
    """What callers get: `R` of `R | Uncached[R]` and of `Uncached[R]`."""
    if typing.get_origin(annotation) is Uncached:
        return typing.get_args(annotation)[0]
    if annotation is Uncached:
        return ANY
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation
    members = typing.get_args(annotation)
    kept = [member for member in members if member is not Uncached and typing.get_origin(member) is not Uncached]
    if len(kept) == len(members):
        return annotation
    return reduce(or_, kept) if kept else ANY


__all__ = ["declared"]
