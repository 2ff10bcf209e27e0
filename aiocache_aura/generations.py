"""Generations: invalidation at the same cost whatever the number of entries, without clocks and without indexes.

Every scope that can be invalidated has a key in the store that holds a random token, used once. An entry carries the fingerprint of the
tokens of the scopes it depends on, as they were before its load began (M6). To invalidate a scope is to delete its token (M7): the entries
that carry it match nothing any more, a load under way carries it too, and nothing has to be found, listed or remembered.

An entry of type Y, tenant T ("~": none known, which no id spells), user U depends on

    y:Y                          cleared with the type
    t:T, u:U                     cleared with the tenant, the user, whatever the type
    y:Y:tT, y:Y:uU, y:Y:tT:uU    cleared with a type's tenant, user, or both
    f:F                          cleared with the function that made it
    g:G, y:Y:g:G, y:Y:tT:g:G     cleared with a tag, of a type, of a tenant

A side that is left out (`tenant_aware=False`) is in none of them. Invalidating a type's tenant clears the "~" twin with it, since an entry
made with no tenant known may hold that tenant's data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from aiocache_aura import keys
from aiocache_aura.codecs.envelope import MAX_EXTRAS, key_checksum
from aiocache_aura.errors import ValueTooLargeError
from aiocache_aura.owner import LEFT_OUT, TENANT_LEFT_OUT, USER_LEFT_OUT, Owner
from aiocache_aura.stores.base import Scopes

NONE_KNOWN = ("~",)
_MEMO = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Address:
    """Where an entry is, and what it depends on.

    `scopes` are asked for with the value. An entry whose head names the same `extras` and `flags` depends on exactly them; for any other,
    what it depends on is worked out from its head.
    """

    key: bytes
    checksum: int
    cache_type: str
    owner: Owner
    scopes: Scopes
    extras: bytes
    tail: str
    flags: int


class Addresses:
    """Names keys and scopes under one prefix; pure, but for its memo."""

    def __init__(self, prefix: str) -> None:
        self.prefix = keys.check_prefix(prefix)
        self._scopes: dict[tuple[str, Owner, tuple[str, ...]], Scopes] = {}

    def __repr__(self) -> str:
        return f"Addresses({self.prefix!r})"

    def address(self, cache_type: str, owner: Owner, tail: str, extras: Sequence[str] = (), *, private: bool = False) -> Address:
        """The address of an entry. `extras` are functions ("f:...") and tags ("g:...").

        A `private` entry is read by nobody else, so its head needs not name them.
        """
        key = f"{self.prefix}:{cache_type}:{keys.owner_segments(owner.tenants, owner.users)}{tail}".encode()
        names = b"" if private else _join(extras)
        scopes = self.scopes(cache_type, owner, extras)
        return Address(key, key_checksum(key), cache_type, owner, scopes, names, tail, owner.flags)

    def scopes(self, cache_type: str, owner: Owner, extras: Iterable[str] = ()) -> Scopes:
        """The tokens that such an entry depends on, each once; the same tuple for the same question."""
        asked = (cache_type, owner, tuple(extras))
        scopes = self._scopes.get(asked)
        if scopes is None:
            if len(self._scopes) >= _MEMO:
                self._scopes.clear()
            names = (*_owner_scopes(cache_type, owner), *(name for extra in asked[2] for name in _extra_scopes(cache_type, owner, extra)))
            scopes = self._scopes[asked] = tuple(dict.fromkeys(map(self._scope, names)))
        return scopes

    def scopes_of_entry(self, address: Address, flags: int, extras: bytes) -> Scopes:
        """What an entry found at `address` depends on, by what its head says."""
        owner = Owner(address.owner.tenants, address.owner.users, flags & LEFT_OUT)
        return self.scopes(address.cache_type, owner, extras.decode().split("\0") if extras else ())

    def of_function(self, function: str) -> Scopes:
        return (self._scope(f"f:{function}"),)

    def to_invalidate(
        self, cache_type: str | None, tenants: Sequence[str] = (), users: Sequence[str] = (), tags: Sequence[str] = ()
    ) -> Scopes:
        """The tokens to drop; several tenants, users or tags mean any of them, the kinds narrow one another."""
        return tuple(map(self._scope, dict.fromkeys(_invalidated(cache_type, tenants, users, tags))))

    def _scope(self, name: str) -> bytes:
        return f"{self.prefix}!g:{name}".encode()


def tag_extra(tag: object) -> str:
    """A tag as it is named in heads and scopes; TypeError if it is not text."""
    if not isinstance(tag, str) or not tag:
        raise TypeError(f"a tag is text that is not empty, not {type(tag).__name__} {tag!r:.40}")
    return "g:" + keys.segment(tag)


def function_extra(function: str) -> str:
    return "f:" + function


def _join(extras: Iterable[str]) -> bytes:
    names = "\0".join(sorted(set(extras))).encode()
    if len(names) > MAX_EXTRAS:
        raise ValueTooLargeError(f"the tags of one entry take {len(names):,} bytes, above {MAX_EXTRAS:,}; give it fewer or shorter ones")
    return names


def _owner_scopes(cache_type: str, owner: Owner) -> Iterable[str]:
    tenants = list(map(keys.segment, owner.tenants))
    users = list(map(keys.segment, owner.users))
    yield f"y:{cache_type}"
    yield from (f"t:{tenant}" for tenant in tenants)
    yield from (f"u:{user}" for user in users)
    tenant_side = () if owner.flags & TENANT_LEFT_OUT else tenants or NONE_KNOWN
    user_side = () if owner.flags & USER_LEFT_OUT else users or NONE_KNOWN
    yield from (f"y:{cache_type}:t{tenant}" for tenant in tenant_side)
    yield from (f"y:{cache_type}:u{user}" for user in user_side)
    yield from (f"y:{cache_type}:t{tenant}:u{user}" for tenant, user in product(tenant_side, user_side))


def _extra_scopes(cache_type: str, owner: Owner, extra: str) -> Iterable[str]:
    yield extra
    if extra.startswith("g:"):
        yield f"y:{cache_type}:{extra}"
        tenants = list(map(keys.segment, owner.tenants)) or list(NONE_KNOWN)
        yield from (f"y:{cache_type}:t{tenant}:{extra}" for tenant in tenants if not owner.flags & TENANT_LEFT_OUT)


def _invalidated(cache_type: str | None, tenants: Sequence[str], users: Sequence[str], tags: Sequence[str]) -> Iterable[str]:
    extras = list(map(tag_extra, tags))
    tenant_side = [*map(keys.segment, tenants), *NONE_KNOWN]
    user_side = [*map(keys.segment, users), *NONE_KNOWN]
    if cache_type is None:
        yield from (*(f"t:{keys.segment(t)}" for t in tenants), *(f"u:{keys.segment(u)}" for u in users), *extras)
    elif extras and tenants:
        yield from (f"y:{cache_type}:t{tenant}:{extra}" for tenant, extra in product(tenant_side, extras))
    elif extras:
        yield from (f"y:{cache_type}:{extra}" for extra in extras)
    elif tenants and users:
        yield from (f"y:{cache_type}:t{tenant}:u{user}" for tenant, user in product(tenant_side, user_side))
    elif tenants:
        yield from (f"y:{cache_type}:t{tenant}" for tenant in tenant_side)
    elif users:
        yield from (f"y:{cache_type}:u{user}" for user in user_side)
    else:
        yield f"y:{cache_type}"


def types_of(scopes: Iterable[bytes]) -> list[str]:
    """The cache types that scopes name, each once."""
    names = (scope.partition(b"!g:")[2].decode() for scope in scopes)
    return list(dict.fromkeys(name.split(":")[1] for name in names if name.startswith("y:")))
