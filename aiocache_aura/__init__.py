"""aiocache_aura: the asyncio cache on Redis and Valkey."""

from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.cache_warmer import CacheWarmer, schedule_cache_warming
from aiocache_aura.cached_function import BoundCached, CachedFunction
from aiocache_aura.clock import Clock
from aiocache_aura.codecs.serializers import register_type
from aiocache_aura.context import current_tenant, current_user, tenant_scope, user_scope
from aiocache_aura.decorators import (
    cache,
    cache_analytics,
    cache_api,
    cache_menu,
    cache_permissions,
    cache_reports,
    cache_search,
    cache_settings,
    cache_static,
    invalidate_cache,
)
from aiocache_aura.errors import (
    BackendError,
    BackendTimeoutError,
    CacheError,
    ConfigurationError,
    KeyPartError,
    LoadDeadlineError,
    LoadFailedError,
    LoadTimeoutError,
    MissingTenantError,
    MissingUserError,
    RecursiveLoadError,
    SerializationError,
    UnknownCacheTypeError,
    ValueTooLargeError,
)
from aiocache_aura.events import (
    Deleted,
    Events,
    Evicted,
    Fault,
    Happening,
    Hit,
    Invalidated,
    Load,
    Miss,
    SlowOperation,
    StaleServed,
    Stored,
)
from aiocache_aura.health import Health, HealthLimits
from aiocache_aura.integrations.asgi import TenantMiddleware
from aiocache_aura.jobs import Job
from aiocache_aura.keys import register_key_type
from aiocache_aura.loaders import warm_loader
from aiocache_aura.monitoring import CacheMonitor, cache_monitor
from aiocache_aura.namespace import Cache
from aiocache_aura.policy import CachePolicy
from aiocache_aura.redis_client import RedisClient
from aiocache_aura.report import CacheReport, Metrics
from aiocache_aura.sources import warm_source
from aiocache_aura.types import (
    ALL,
    FOREVER,
    MISSING,
    TTL,
    CacheEntry,
    CacheInfo,
    CacheParameters,
    CacheTTL,
    Call,
    Explanation,
    ManagerLike,
    Uncached,
)
from aiocache_aura.warm_report import TypeReport, WarmProgress, WarmReport

__all__ = [
    "ALL",
    "FOREVER",
    "MISSING",
    "TTL",
    "BackendError",
    "BackendTimeoutError",
    "BoundCached",
    "Cache",
    "CacheEntry",
    "CacheError",
    "CacheInfo",
    "CacheManager",
    "CacheMonitor",
    "CacheParameters",
    "CachePolicy",
    "CacheReport",
    "CacheTTL",
    "CacheWarmer",
    "CachedFunction",
    "Call",
    "Clock",
    "ConfigurationError",
    "Deleted",
    "Events",
    "Evicted",
    "Explanation",
    "Fault",
    "Happening",
    "Health",
    "HealthLimits",
    "Hit",
    "Invalidated",
    "Job",
    "KeyPartError",
    "Load",
    "LoadDeadlineError",
    "LoadFailedError",
    "LoadTimeoutError",
    "ManagerLike",
    "Metrics",
    "Miss",
    "MissingTenantError",
    "MissingUserError",
    "RecursiveLoadError",
    "RedisClient",
    "SerializationError",
    "SlowOperation",
    "StaleServed",
    "Stored",
    "TenantMiddleware",
    "TypeReport",
    "Uncached",
    "UnknownCacheTypeError",
    "ValueTooLargeError",
    "WarmProgress",
    "WarmReport",
    "cache",
    "cache_analytics",
    "cache_api",
    "cache_menu",
    "cache_monitor",
    "cache_permissions",
    "cache_reports",
    "cache_search",
    "cache_settings",
    "cache_static",
    "current_tenant",
    "current_user",
    "invalidate_cache",
    "register_key_type",
    "register_type",
    "schedule_cache_warming",
    "tenant_scope",
    "user_scope",
    "warm_loader",
    "warm_source",
]
