"""What a schedule of warming comes to: when it runs, what each run renews, and what its job is called in the whole fleet."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import tzinfo
from typing import Final

from aiocache_aura.context import Id, id_text
from aiocache_aura.errors import ConfigurationError
from aiocache_aura.jobs import Run
from aiocache_aura.schedules import Schedule
from aiocache_aura.stores.rota import LEASE
from aiocache_aura.types import is_number

MARGIN: Final = LEASE + 2.0  # seconds by which a run may be late because the process died that began it


def within(run: Run) -> float:
    """What has no longer than this to live may expire before the next run has come to it."""
    return run.until_next + run.jitter + 2 * run.took + MARGIN


def schedule_of(minutes: float | None, cron: str | None, timezone: str | tzinfo | None, jitter: float) -> Schedule:
    if minutes is None and cron is None:
        raise ConfigurationError("when is it to warm? Give interval_minutes=30, or cron='*/30 * * * *'")
    if minutes is not None and cron is not None:
        raise ConfigurationError("give either interval_minutes= or cron=, not both")
    if minutes is not None and (not is_number(minutes) or not minutes > 0):
        raise ConfigurationError(f"interval_minutes={minutes!r}: it is a number above 0")
    return Schedule(interval=None if minutes is None else minutes * 60, cron=cron, timezone=timezone, jitter=jitter)


def names_of(types: Iterable[str]) -> list[str]:
    if isinstance(types, str):
        raise ConfigurationError(f"types={types!r}: they are a list of names, such as [{types!r}]")
    return list(types)


def job_name(tenant_id: Id | None, types: list[str] | None) -> str:
    whose = "all" if tenant_id is None else f"tenant {id_text(tenant_id, 'tenant')}"
    return f"warm {whose}: {'every type' if types is None else ', '.join(types)}"
