"""Whose entry it is: which tenants and users are in a key, and which are left out.

The rules, for tenants (for users with `user_aware`):

| `tenant_aware` | one is known                                            | none is known        |
|----------------|---------------------------------------------------------|----------------------|
| "known"        | in the key and in what the entry depends on             | "none known"         |
| True           | the same                                                | MissingTenantError   |
| False          | left out: the one way to share an entry                 | left out             |

Known is what arguments say and what the scope says; if they differ, the entry belongs to each. An argument that names a user always
counts, `user_aware=False` leaves out the scope's only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from aiocache_aura.context import Identity, id_text
from aiocache_aura.errors import KeyPartError, MissingTenantError, MissingUserError
from aiocache_aura.policy import Aware

TENANT_LEFT_OUT = 1
USER_LEFT_OUT = 2
LEFT_OUT = TENANT_LEFT_OUT | USER_LEFT_OUT


class Owner(NamedTuple):
    """The tenants and users of an entry, and as flags which of the two it has nothing to do with."""

    tenants: tuple[str, ...]
    users: tuple[str, ...]
    flags: int


def owner_of(
    of_tenants: Iterable[str], of_users: Iterable[str], known: Identity, tenant_aware: Aware, user_aware: Aware, what: str
) -> Owner:
    """Whose an entry is, from the arguments' tenants and users (as text) and the scopes'; `what` is named in errors."""
    tenants = distinct(of_tenants, known.tenant) if tenant_aware is not False else ()
    users = distinct(of_users, known.user if user_aware is not False else None)
    if tenant_aware is True and not tenants:
        raise MissingTenantError(
            f"{what} is tenant_aware and no tenant is known: pass tenant_id (restaurant_id), enter tenant_scope(...), "
            "or say tenant_aware=False if all tenants may share the entry"
        )
    if user_aware is True and not users:
        raise MissingUserError(f"{what} is user_aware and no user is known: pass user_id, enter user_scope(...), or say user_aware=False")
    flags = (TENANT_LEFT_OUT if tenant_aware is False else 0) | (USER_LEFT_OUT if user_aware is False and not users else 0)
    return Owner(tenants, users, flags)


def distinct(given: Iterable[str], scope: str | None) -> tuple[str, ...]:
    """Whoever is known, each once."""
    return tuple(dict.fromkeys(given if scope is None else (*given, scope)))


def ids_among(arguments: Mapping[str, object], names: Iterable[str], what: str) -> tuple[str, ...]:
    """The ids that these arguments give, as text; None counts as absent. KeyPartError for what is no id."""
    found = []
    for name in names:
        value = arguments.get(name)
        if value is not None:
            try:
                found.append(id_text(value, what))
            except TypeError as error:
                raise KeyPartError(f"parameter {name!r}: {error}") from None
    return tuple(found)
