"""Who the current task works for: the tenant and the user, and whether it reads past the cache.

Tenant and user are one context variable, so that the way of a read asks once. Tasks inherit it; a load behind a caller carries it along.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import NamedTuple, TypeAlias
from uuid import UUID

Id: TypeAlias = int | str | UUID


class Identity(NamedTuple):
    """The tenant and the user of a task, as text, None where none is known; whether it reads past the cache, and for which warmer it
    works."""

    tenant: str | None
    user: str | None
    bypass: bool = False
    warming: object = None


NOBODY = Identity(None, None)
identity: ContextVar[Identity] = ContextVar("aiocache_aura_identity", default=NOBODY)


def id_text(value: object, what: str) -> str:
    """A tenant's or user's id as the text it is compared by; TypeError for what cannot be one."""
    if isinstance(value, str) and value:
        return str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__repr__(value)
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"a {what} id is an int, a UUID or text that is not empty, not {type(value).__name__} {value!r:.40}")


class _Scope(AbstractContextManager[None]):
    """Changes what its arguments name, for as long as it is open in this context; the innermost counts.

    Which scopes are open is known to the context and not to the scope: many tasks may use the same one, close in any order, and leaving
    never raises, not even in another task, where there is nothing to leave.
    """

    __slots__ = ("bypass", "change")

    def __init__(self, *, bypass: bool = False, **change: object) -> None:
        self.bypass, self.change = bypass, change

    def __enter__(self) -> None:
        self._open((*_scopes.get(), self))

    def __exit__(self, *exc: object) -> None:
        scopes = list(_scopes.get())
        for n in reversed(range(len(scopes))):
            if scopes[n] is self:
                del scopes[n]
                self._open(tuple(scopes))
                return

    @staticmethod
    def _open(scopes: tuple[_Scope, ...]) -> None:
        _scopes.set(scopes)
        known = NOBODY
        for scope in scopes:
            known = known._replace(**scope.change)  # type: ignore[arg-type]
        identity.set(known._replace(bypass=any(scope.bypass for scope in scopes)))


_scopes: ContextVar[tuple[_Scope, ...]] = ContextVar("aiocache_aura_scopes", default=())


def tenant_scope(tenant: Id) -> AbstractContextManager[None]:
    """The block's cached calls work for this tenant.

    An id is an int, a UUID or text, compared as text; anything else, None and "" too, is a TypeError.
    """
    return _Scope(tenant=id_text(tenant, "tenant"))


def user_scope(user: Id) -> AbstractContextManager[None]:
    """The block's cached calls work for this user; ids as in `tenant_scope`."""
    return _Scope(user=id_text(user, "user"))


def owner_scope(tenant: str | None, user: str | None) -> AbstractContextManager[None]:
    """The block's cached calls work for these, or for none, whatever is known around it; ids as text."""
    return _Scope(tenant=tenant, user=user)


def current_tenant() -> str | None:
    """The tenant of this task, as text, or None."""
    return identity.get().tenant


def current_user() -> str | None:
    """The user of this task, as text, or None."""
    return identity.get().user


def warming_scope(run: object) -> AbstractContextManager[None]:
    """Cached calls of the block are made for a warmer's run; None: for nobody's."""
    return _Scope(warming=run)


def bypass_scope() -> AbstractContextManager[None]:
    """This task, and those that it starts meanwhile, read past the cache."""
    return _Scope(bypass=True)
