"""What a load is provided with: `provide={"db": session_factory}`, opened for each load and closed after it.

A factory is called without arguments. What it gives is entered if it is a context manager, run to its `yield` if it is a generator (async
or not), awaited if it has to be; anything else is the value itself. What was opened last is closed first, whatever becomes of the load:
its error is thrown into what was opened, as `async with` does, and raised afterwards, even where something swallows it.

For an async function all of that happens in its event loop. A plain one runs in a worker thread, and what plain factories give is opened
and closed in that very thread, as drivers that know their thread want it.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import Any, TypeAlias

from aiocache_aura.errors import ConfigurationError
from aiocache_aura.resilience.threads import call_plain, is_async
from aiocache_aura.signatures import CallSignature

Factory: TypeAlias = Callable[[], Any]


class Provided:
    """A function that is called with its caller's arguments, but for those that its loads are provided with."""

    def __init__(self, function: Callable[..., Any], signature: CallSignature, factories: Mapping[str, Factory]) -> None:
        self._function, self._signature, self._is_async = function, signature, is_async(function)
        self._in_loop = {name: factory for name, factory in factories.items() if self._is_async or _is_async_factory(factory)}
        self._in_thread = {name: factory for name, factory in factories.items() if name not in self._in_loop}

    def __repr__(self) -> str:
        return f"<Provided {self._signature.name}: {', '.join([*self._in_loop, *self._in_thread])}>"

    async def load(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One load, with what it opens for itself."""
        arguments = self._signature.arguments(self._signature.bind(*args, **kwargs))
        async with raising(AsyncExitStack()) as stack:
            for name, factory in self._in_loop.items():
                arguments[name] = await opened(stack, factory())
            if self._in_thread:
                return await self._load_in_thread(arguments)
            ready, named = self._signature.spread(arguments)
            return await (self._function(*ready, **named) if self._is_async else call_plain(self._function, *ready, **named))

    async def _load_in_thread(self, arguments: dict[str, Any]) -> Any:
        kept = _Kept()
        try:
            answer = await call_plain(self._run, kept, arguments)
            return answer if kept.awaitable is None else await kept.awaitable
        except BaseException as error:
            kept.error = error
            raise
        finally:
            if kept.awaitable is not None:
                await call_plain(kept.close)

    def _run(self, kept: _Kept, arguments: dict[str, Any]) -> Any:
        try:
            for name, factory in self._in_thread.items():
                arguments[name] = self._opened_plainly(kept.stack, name, factory())
            ready, named = self._signature.spread(arguments)
            answer = self._function(*ready, **named)
            if inspect.isawaitable(answer):
                kept.awaitable = answer
                return None
        except BaseException as error:
            kept.error = error
            raise
        finally:
            if kept.awaitable is None:
                kept.close()
        return answer

    def _opened_plainly(self, stack: ExitStack, name: str, made: Any) -> Any:
        if inspect.isgenerator(made):
            made = contextmanager(lambda: made)()
        if hasattr(type(made), "__enter__") and hasattr(type(made), "__exit__"):
            return stack.enter_context(made)
        if inspect.isawaitable(made) or inspect.isasyncgen(made) or hasattr(type(made), "__aenter__"):
            if inspect.iscoroutine(made):
                made.close()
            raise ConfigurationError(
                f"provide={{{name!r}: ...}} gave {type(made).__name__}, which is to be awaited, and {self._signature.name} is a plain "
                "function, which runs in a thread: make one of the two like the other"
            )
        return made


class _Kept:
    """What a plain function was given, and the awaitable that it returned, for which that is kept open."""

    __slots__ = ("awaitable", "error", "stack")

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.awaitable: Awaitable[Any] | None = None
        self.error: BaseException | None = None

    def close(self) -> None:
        if inspect.iscoroutine(self.awaitable):
            self.awaitable.close()  # which the load left before it awaited it; of one that is done, this does nothing
        error = self.error
        self.stack.__exit__(None if error is None else type(error), error, None if error is None else error.__traceback__)


@asynccontextmanager
async def raising(stack: AsyncExitStack) -> AsyncIterator[AsyncExitStack]:
    """The stack, whose error is raised even where something in it swallows it: there is no result then."""
    swallowed: BaseException | None = None
    async with stack:
        try:
            yield stack
        except BaseException as error:
            swallowed = error
            raise
    if swallowed is not None:
        raise swallowed


async def opened(stack: AsyncExitStack, made: Any) -> Any:
    """What a factory made, entered, run to its `yield`, or awaited, until the stack is closed."""
    if inspect.isasyncgen(made):
        made = asynccontextmanager(lambda: made)()
    elif inspect.isgenerator(made):
        made = contextmanager(lambda: made)()
    if isinstance(made, AbstractAsyncContextManager):
        return await stack.enter_async_context(made)
    if hasattr(type(made), "__enter__") and hasattr(type(made), "__exit__"):
        return stack.enter_context(made)
    return await opened(stack, await made) if inspect.isawaitable(made) else made


def _is_async_factory(factory: Factory) -> bool:
    inner = inspect.unwrap(factory)
    return is_async(factory) or inspect.isasyncgenfunction(inner) or inspect.iscoroutinefunction(inner)


def check(provide: object) -> None:
    """ConfigurationError for what is no mapping of factories."""
    if not isinstance(provide, Mapping):
        raise ConfigurationError(f"provide={provide!r:.60}: it is a mapping of parameters to functions, such as {{'db': open_session}}")
    for name, factory in provide.items():
        if not callable(factory):
            raise ConfigurationError(f"provide={{{name!r}: {factory!r:.40}}}: give a function that makes one for each load; do not call it")


__all__ = ["Factory", "Provided", "check", "opened", "raising"]
