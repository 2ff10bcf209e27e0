"""What a server says: whether it can be the answer to what it was asked, and what to tell who asked if it is none."""

from __future__ import annotations

from typing import Final

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
)

from aiocache_aura.errors import BackendError
from aiocache_aura.stores.base import Command
from aiocache_aura.stores.scripts import ACQUIRE, BY_SHA1, CLAIM_RUN, PERMIT, PLANT, READ_NOTES, RENEW

_ADVICE: Final = {
    "NOAUTH": "put a user and password into the URL",
    "WRONGPASS": "check the user and password in the URL",
    "NOPERM": "allow this user the command, on the keys that begin with the prefix (ACL SETUSER)",
    "OOM": "raise its maxmemory, or set a maxmemory-policy that evicts, such as allkeys-lru",
    "READONLY": "this is a replica: point the URL at the master",
    "NOREPLICAS": "too few of its replicas are connected for min-replicas-to-write",
    "MISCONF": "it cannot save to its disk and refuses writes: see its log",
    "LOADING": "it has just started and is reading its data: try again soon",
    "BUSY": "a script of somebody's is running for too long: SCRIPT KILL ends it",
    "CLUSTERDOWN": "some of the cluster's slots have no master",
    "MOVED": "this is one node of a cluster: use a redis+cluster:// URL",
    "CROSSSLOT": "this is one node of a cluster: use a redis+cluster:// URL",
    "WRONGTYPE": "another program writes to this prefix: give each application its own",
}
_SHOWN: Final = 200
_PERMIT, _PLANT, _ACQUIRE, _RENEW, _READ_NOTES, _CLAIM_RUN = (
    (script.sha1, script.source) for script in (PERMIT, PLANT, ACQUIRE, RENEW, READ_NOTES, CLAIM_RUN)
)
_STANDINGS: Final[dict[object, tuple[type, ...]]] = {
    b"leased": (bytes,),
    b"found": (bytes,),
    b"held": (bytes, int),
    b"failed": (bytes, int),
    b"alone": (),
}
STRINGS: Final = frozenset((bytes, type(None)))  # what an MGET finds

# The classes for which redis-py takes the code out of the text; before version 7 it keeps it nowhere else.
_CODES: Final[dict[type, str]] = {
    AuthenticationError: "NOAUTH",
    BusyLoadingError: "LOADING",
    NoPermissionError: "NOPERM",
    NoScriptError: "NOSCRIPT",
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
}


def told(error: BaseException) -> tuple[str, BaseException | None]:
    """What an error says, and itself as a cause to name; without the arguments that servers repeat: keys, values, passwords."""
    text, repeated, _ = str(error).partition(", with args beginning with")
    return text, None if repeated else error


def code_of(error: Exception) -> str:
    """The word that an error reply begins with."""
    return str(getattr(error, "status_code", None) or _CODES.get(type(error)) or str(error).partition(" ")[0])


def refused(command: Command, reply: object) -> BackendError:
    """What to raise for a reply that is an error, or not what this command answers."""
    script = BY_SHA1.get(str(command[1])) if command[0] == "EVALSHA" else None
    name = f"{script.name} (EVALSHA)" if script is not None else str(command[0])
    if not isinstance(reply, Exception):
        return BackendError(f"the server answered {name} with an unexpected {type(reply).__name__}: is it a Redis or Valkey server?")
    code, (text, cause) = code_of(reply), told(reply)
    said = text[:_SHOWN] if text.startswith(code) else f"{code} {text[:_SHOWN]}"
    advice = _ADVICE.get(code)
    error = BackendError(f"{name}: the server said: {said}" + (f"; {advice}" if advice else ""))
    error.__cause__, error.code = cause, code
    return error


def is_answer(command: Command, reply: object) -> bool:
    """Whether a reply can be the one to this command. A garbled stream shifts replies, and then none that follows is its command's."""
    if isinstance(reply, Exception):
        return True
    match command[0]:
        case "SET" | "SCRIPT":
            return reply is None or isinstance(reply, bytes)
        case "MGET":
            return isinstance(reply, list) and len(reply) == len(command) - 1 and STRINGS.issuperset(map(type, reply))
        case "EVALSHA" | "EVAL" if command[1] in _PERMIT:
            return isinstance(reply, bytes)
        case "EVALSHA" | "EVAL" if command[1] in _PLANT:
            return isinstance(reply, list) and len(reply) == command[2] and all(isinstance(one, bytes) for one in reply)
        case "EVALSHA" | "EVAL" if command[1] in _ACQUIRE:
            return _is_standing(reply, int(command[2]) - 2)
        case "EVALSHA" | "EVAL" if command[1] in _RENEW:
            return isinstance(reply, list) and len(reply) == command[2] and all(isinstance(one, int) for one in reply)
        case "EVALSHA" | "EVAL" if command[1] in _READ_NOTES:
            return isinstance(reply, list) and all(isinstance(one, bytes) for one in reply)
        case "EVALSHA" | "EVAL" if command[1] in _CLAIM_RUN:
            return isinstance(reply, list) and [type(one) for one in reply] == [bytes, int, int, int, int, int]
        case "SCAN":
            return isinstance(reply, list)
        case _:
            return isinstance(reply, int)


def _is_standing(reply: object, scopes: int) -> bool:
    match reply:
        case [bytes() as kind, list() as tokens, *said]:
            return (
                len(tokens) == scopes and all(isinstance(one, bytes) for one in tokens) and _STANDINGS.get(kind) == tuple(map(type, said))
            )
        case _:
            return False
