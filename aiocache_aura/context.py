"""Who the current task works for: the tenant and the user, and whether it reads past the cache.

Tenant and user are one context variable, so that the way of a read asks once. Tasks inherit it; a load behind a caller carries it along.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from typing import Generic, NamedTuple, TypeAlias, TypeVar
from uuid import UUID

T = TypeVar("T")
Id: TypeAlias = int | str | UUID


class Identity(NamedTuple):
    """The tenant and the user of a task, as text; None where none is known."""

    tenant: str | None
    user: str | None


NOBODY = Identity(None, None)
identity: ContextVar[Identity] = ContextVar("aiocache_aura_identity", default=NOBODY)
bypassing: ContextVar[bool] = ContextVar("aiocache_aura_bypassing", default=False)


def id_text(value: object, what: str) -> str:
    """A tenant's or user's id as the text it is compared by; TypeError for what cannot be one."""
    if isinstance(value, str) and value:
        return str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__repr__(value)
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"a {what} id is an int, a UUID or text that is not empty, not {type(value).__name__} {value!r:.40}")


class _Setting(AbstractContextManager[None], Generic[T]):
    """Sets a context variable for a while. Leaving never raises, not even in another task, where there is nothing to put back."""

    __slots__ = ("_tokens", "_value", "_variable")

    def __init__(self, variable: ContextVar[T], value: T) -> None:
        self._variable, self._value = variable, value
        self._tokens: list[Token[T]] = []

    def __enter__(self) -> None:
        self._tokens.append(self._variable.set(self._value))

    def __exit__(self, *exc: object) -> None:
        try:
            self._variable.reset(self._tokens.pop())
        except ValueError:
            return None  # entered in another context, which ended or goes on without us


class _Scope(AbstractContextManager[None]):
    """Changes one half of the identity, as the other half stands on entering."""

    __slots__ = ("_change", "_settings")

    def __init__(self, **change: str) -> None:
        self._change = change
        self._settings: list[_Setting[Identity]] = []

    def __enter__(self) -> None:
        setting = _Setting(identity, identity.get()._replace(**self._change))
        setting.__enter__()
        self._settings.append(setting)

    def __exit__(self, *exc: object) -> None:
        self._settings.pop().__exit__(*exc)


def tenant_scope(tenant: Id) -> AbstractContextManager[None]:
    """The block's cached calls work for this tenant.

    An id is an int, a UUID or text, compared as text; anything else, None and "" too, is a TypeError.
    """
    return _Scope(tenant=id_text(tenant, "tenant"))


def user_scope(user: Id) -> AbstractContextManager[None]:
    """The block's cached calls work for this user; ids as in `tenant_scope`."""
    return _Scope(user=id_text(user, "user"))


def current_tenant() -> str | None:
    """The tenant of this task, as text, or None."""
    return identity.get().tenant


def current_user() -> str | None:
    """The user of this task, as text, or None."""
    return identity.get().user


def bypass_scope() -> AbstractContextManager[None]:
    """This task, and those that it starts meanwhile, read past the cache."""
    return _Setting(bypassing, True)
