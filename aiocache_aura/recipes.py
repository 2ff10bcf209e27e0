"""Recipes: how a call of a cached function can be made again, by another process or after a restart.

A recipe is plain data: the name under which the function is cached, its arguments in our codec, the tenant and the user of the task. It is
made of calls that any process can repeat: not of methods, whose object is not in it, nor of functions with `secret=` parameters, whose
values are written nowhere, nor of those that need something of their caller's (`exclude=` without `provide=`). What reads one calls nothing
but cached functions that this process has declared itself: a name found in the store is looked up, never imported.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from aiocache_aura.codecs.serializers import Undecodable, serializer_for
from aiocache_aura.context import identity
from aiocache_aura.errors import SerializationError
from aiocache_aura.signatures import CallSignature

MOST_BYTES = 1024


class Recipe(NamedTuple):
    """A call: of the function of this name, with these arguments, for this tenant and user."""

    name: str
    arguments: dict[str, Any]
    tenant: str | None
    user: str | None

    def encode(self) -> bytes | None:
        """It as bytes that bring back the very same arguments, None if there are none."""
        try:
            codec, payload = serializer_for().encode([self.name, self.arguments, self.tenant, self.user])
        except SerializationError:
            return None
        return bytes([codec]) + bytes(payload) if len(payload) < MOST_BYTES else None

    @classmethod
    def decode(cls, raw: bytes) -> Recipe | None:
        """What `encode` gave; None for whatever else."""
        serializer = serializer_for()
        try:
            name, arguments, tenant, user = serializer.decode(raw[0], serializer.schema, raw[1:])
        except (Undecodable, IndexError, TypeError, ValueError):
            return None
        is_one = isinstance(name, str) and isinstance(arguments, dict) and all(isinstance(key, str) for key in arguments)
        ids = all(one is None or (isinstance(one, str) and one) for one in (tenant, user))
        return cls(name, arguments, tenant, user) if is_one and ids else None


def is_repeatable(signature: CallSignature) -> bool:
    """Whether any process that has the function can make a call of it again."""
    return not (signature.owner or signature.is_personal or signature.secret)


def recipe_of(name: str, signature: CallSignature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes | None:
    """The recipe of a call that has just been made, in this task."""
    known = identity.get()
    arguments = signature.arguments(signature.bind(*args, **kwargs))
    return Recipe(name, {each: arguments[each] for each in signature.included}, known.tenant, known.user).encode()
