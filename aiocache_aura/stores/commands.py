"""The commands that a lane may carry, as bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import hiredis

from aiocache_aura.stores.base import Command

COMMANDS = frozenset(
    "GET MGET GETEX GETRANGE SET DEL UNLINK EXISTS TTL PTTL EXPIRE PEXPIRE PERSIST TOUCH EVAL EVALSHA SCRIPT SCAN "
    "PING ECHO INFO DBSIZE MEMORY TYPE STRLEN ROLE HDEL".split()
)

pack: Callable[[Any], bytes] = hiredis.pack_command


def packed(commands: Sequence[Command]) -> bytes:
    """These commands in one write; ValueError for one that would block, or is answered by something else than one reply."""
    for command in commands:
        if command[0] not in COMMANDS:
            raise ValueError(f"{command[0]!r} is not a command for a lane; use RedisClient for it")
    if len(commands) == 1:
        return pack(commands[0])
    return b"".join(map(pack, commands))
