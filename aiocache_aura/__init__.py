"""aiocache_aura: the asyncio cache on Redis and Valkey."""
