"""What can go wrong, in words that say what to do about it.

Every error of this library derives from `CacheError` and none from redis-py's, so that application code never has to import a driver to
catch one. Each also derives from the built-in exception that a Python programmer would have expected in its place.
"""

from __future__ import annotations


class CacheError(Exception):
    """Base of every error raised by this library."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # KeyError would show the repr of its message


class ConfigurationError(CacheError, ValueError):
    """A setting, URL or option that cannot work; the message says which will."""


class UnknownCacheTypeError(CacheError, KeyError):
    """A cache type that nobody registered; the message names the closest one."""


class KeyPartError(CacheError, TypeError):
    """An argument that cannot be part of a key; the message names the parameter."""


class MissingTenantError(CacheError, LookupError):
    """`tenant_aware=True`, and neither an argument nor `tenant_scope` names a tenant."""


class MissingUserError(CacheError, LookupError):
    """`user_aware=True`, and neither an argument nor `user_scope` names a user."""


class SerializationError(CacheError, TypeError):
    """A value that would not come back as it was; the message names the path in the value."""


class ValueTooLargeError(CacheError, ValueError):
    """A value above `max_value_bytes` once it is serialised."""


class RecursiveLoadError(CacheError, RuntimeError):
    """A loader asked the cache for the very key it is loading: it would wait for itself."""


class LoadTimeoutError(CacheError, TimeoutError):
    """A caller's `hard_timeout` passed while the value was loading."""


class LoadDeadlineError(CacheError, TimeoutError):
    """A load ran past `load_deadline` and was cancelled."""


class LoadFailedError(CacheError, RuntimeError):
    """The load failed in other processes, with an error that cannot be raised here as it was; the message names its class."""


class BackendError(CacheError):
    """The server could not be reached, refused the command, or answered with an error.

    `code` is the word that the server's error began with, such as "OOM"; "" where it said none.
    """

    code: str = ""


class BackendTimeoutError(BackendError, TimeoutError):
    """The server did not answer within the budget of the operation."""
