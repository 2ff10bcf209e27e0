"""aiocache_aura: the asyncio cache on Redis and Valkey."""

from aiocache_aura.cache_manager import CacheManager
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
from aiocache_aura.integrations.asgi import TenantMiddleware
from aiocache_aura.keys import register_key_type
from aiocache_aura.namespace import Cache
from aiocache_aura.policy import CachePolicy
from aiocache_aura.redis_client import RedisClient
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
    "CacheParameters",
    "CachePolicy",
    "CacheTTL",
    "CachedFunction",
    "Call",
    "Clock",
    "ConfigurationError",
    "Explanation",
    "KeyPartError",
    "LoadDeadlineError",
    "LoadFailedError",
    "LoadTimeoutError",
    "ManagerLike",
    "MissingTenantError",
    "MissingUserError",
    "RecursiveLoadError",
    "RedisClient",
    "SerializationError",
    "TenantMiddleware",
    "Uncached",
    "UnknownCacheTypeError",
    "ValueTooLargeError",
    "cache",
    "cache_analytics",
    "cache_api",
    "cache_menu",
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
    "tenant_scope",
    "user_scope",
]
