"""ASGI: whose request it is."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import ExitStack
from typing import Any, TypeAlias

from aiocache_aura.context import Id, tenant_scope, user_scope
from aiocache_aura.errors import ConfigurationError

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Finder: TypeAlias = Callable[[Scope], Id | Awaitable[Id | None] | None]


class TenantMiddleware:
    """Runs each request and websocket in its tenant's and user's scope.

    `tenant` and `user` are names of headers, or callables (async ones too) that are given the ASGI scope and return an id, or None
    where there is none. A header is only as good as who sets it: use one that your gateway overwrites. None, or a header that is absent
    or empty, leaves things as they are; anything else that is no id is a TypeError.
    """

    def __init__(self, app: App, tenant: Finder | str | None = None, user: Finder | str | None = None) -> None:
        if tenant is None and user is None:
            raise ConfigurationError("TenantMiddleware needs tenant= or user=: a callable (scope -> id) or the name of a header")
        self.app = app
        self._tenant, self._user = _finder(tenant, "tenant"), _finder(user, "user")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        tenant, user = await _found(self._tenant, scope), await _found(self._user, scope)
        with ExitStack() as stack:
            if tenant is not None:
                stack.enter_context(tenant_scope(tenant))
            if user is not None:
                stack.enter_context(user_scope(user))
            await self.app(scope, receive, send)


def _finder(given: Finder | str | None, what: str) -> Finder | None:
    if isinstance(given, str):
        return _header(given)
    if given is None or callable(given):
        return given
    raise ConfigurationError(f"{what}={given!r}: it is a callable (scope -> id) or the name of a header")


def _header(name: str) -> Finder:
    wanted = name.lower().encode("latin-1")

    def find(scope: Scope) -> str | None:
        values = [value for header, value in scope["headers"] if header.lower() == wanted]
        # Sent twice, it is one list (RFC 9110, 5.3): an id that nobody has, rather than the first or the last.
        return b",".join(values).decode("latin-1").strip() or None

    return find


async def _found(finder: Finder | None, scope: Scope) -> Id | None:
    if finder is None:
        return None
    found = finder(scope)
    return await found if inspect.isawaitable(found) else found
