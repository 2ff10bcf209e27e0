"""The server-side scripts: what has to look and write in one step. Each declares all its keys, and all of one key's share a slot.

Numbers come from Python as text, so that Lua never has to spell one: lives are whole milliseconds, "0" is for ever.
Strings are compared as bytes. A script is run by its digest; the store sends the source where the server does not know it yet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from aiocache_aura.stores.base import Command

FOR_EVER: Final = 0
_LONGEST_MS: Final = 10**14  # three thousand years: what a server can still add to the time of day, and Lua spell


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the digest that the server knows it by."""

    name: str
    source: str
    sha1: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha1", hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest())

    def run(self, keys: Sequence[bytes], *args: str | bytes | int) -> Command:
        return ("EVALSHA", self.sha1, len(keys), *keys, *args)

    def load(self) -> Command:
        return ("SCRIPT", "LOAD", self.source)


def life_ms(life: float | None) -> int:
    """Seconds as what PX takes, at least one millisecond; FOR_EVER for None."""
    if life is None:
        return FOR_EVER
    return round(min(max(life * 1000.0, 1.0), _LONGEST_MS))


PLANT: Final = Script(
    "PLANT",
    # KEYS scopes. ARGV one life, two lives, then a fresh token for each scope. Extended rarely: that empties every L1 of the scope (M8).
    """
local one, two = tonumber(ARGV[1]), ARGV[2]
local tokens = redis.call('MGET', unpack(KEYS))
for i, key in ipairs(KEYS) do
  local token = tokens[i]
  if not token or #token ~= 16 then
    tokens[i] = ARGV[i + 2]
    if one == 0 then
      redis.call('SET', key, ARGV[i + 2])
    else
      redis.call('SET', key, ARGV[i + 2], 'PX', two)
    end
  else
    local left = redis.call('PTTL', key)
    if left >= 0 and one == 0 then
      redis.call('PERSIST', key)
    elseif left >= 0 and left < one then
      redis.call('PEXPIRE', key, two)
    end
  end
end
return tokens
""",
)

SOFTEN: Final = Script(
    "SOFTEN",
    # KEYS scopes. ARGV for each a fresh soft half. What is not there stays so: a half token could come back (V18).
    """
for i, key in ipairs(KEYS) do
  if redis.call('STRLEN', key) == 16 then
    redis.call('SETRANGE', key, 8, ARGV[i])
  end
end
return #KEYS
""",
)

_SET = """
if ARGV[3] == '0' then
  redis.call('SET', KEYS[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
"""

FILL: Final = Script(
    "FILL",
    # KEYS value, permit. ARGV permit, raw, life. The permit stays: whoever shares it may fill too, until something voids it (M9).
    """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return 0
end
"""
    + _SET,
)

# ARGV what the value began with, raw, life, and "absent" if there must be none. What is no string is not ours: leave it.
_UNLESS_CHANGED = """
local there = redis.call('EXISTS', KEYS[1]) == 1
if there == (ARGV[4] == 'absent') then
  return 0
end
if there then
  local front = redis.pcall('GETRANGE', KEYS[1], 0, 14)
  if front ~= ARGV[1] then
    return 0
  end
end
"""

STORE_IF: Final = Script(
    "STORE_IF",
    # KEYS value, permit: it goes first (M10).
    _UNLESS_CHANGED + "redis.call('DEL', KEYS[2])\n" + _SET,
)

EXPIRE: Final = Script(
    "EXPIRE",
    # KEYS value. A new life is no new value, so the permit stays and loads under way go on.
    _UNLESS_CHANGED + _SET,
)

SCRIPTS: Final = (PLANT, SOFTEN, FILL, STORE_IF, EXPIRE)
LOAD_ALL: Final = tuple(script.load() for script in SCRIPTS)
BY_SHA1: Final = {script.sha1: script for script in SCRIPTS}
