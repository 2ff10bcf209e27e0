"""Health: a placeholder until the checks are here."""

from __future__ import annotations

from typing import Any

from aiocache_aura.cache_manager import CacheManager


class Health(dict[str, Any]):
    """status, issues, checks."""


async def check_health(manager: CacheManager, *, loop_lag: float = 0.0) -> Health:
    return Health(status="healthy", issues=[], checks={})
