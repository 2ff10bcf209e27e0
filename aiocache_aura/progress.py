"""Progress of a warming run, drawn in the terminal by rich where somebody asks for it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from aiocache_aura.errors import ConfigurationError
from aiocache_aura.warm_report import WarmProgress


@contextmanager
def bar(progress: Callable[[WarmProgress], object] | Literal["bar"] | None) -> Iterator[Callable[[WarmProgress], object] | None]:
    """What to tell of progress: the callable itself; for "bar" one that draws a line for each cache type while the block is open."""
    if progress != "bar":
        yield progress
        return
    try:
        rich: Any = importlib.import_module("rich.progress")
    except ImportError as exc:
        raise ConfigurationError("progress=\"bar\" needs rich: pip install 'aiocache-aura[cli]'") from exc
    columns = (
        rich.SpinnerColumn(),
        rich.TextColumn("{task.description}"),
        rich.TextColumn("{task.completed:,.0f} keys"),
        rich.TimeElapsedColumn(),
    )
    lines: dict[str, Any] = {}
    with rich.Progress(*columns) as drawn:

        def draw(so_far: WarmProgress) -> None:
            line = lines.get(so_far.cache_type)
            if line is None:
                line = lines[so_far.cache_type] = drawn.add_task(so_far.cache_type, total=None)
            done = so_far.loaded + so_far.refreshed + so_far.skipped + so_far.failed
            drawn.update(line, completed=done, **({"total": done or 1} if so_far.is_over else {}))

        yield draw
