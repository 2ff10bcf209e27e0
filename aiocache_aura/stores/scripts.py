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
SPARE_LIFE: Final = 60.0  # seconds that a token is good for beyond the entries that carry it
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


def token_lives(life: float | None) -> tuple[int, int]:
    """What a token that entries of this life carry is to have left, and what it is given: once, and twice as long as they, with some to
    spare (M8)."""
    return (FOR_EVER, FOR_EVER) if life is None else (life_ms(life + SPARE_LIFE), life_ms(2 * (life + SPARE_LIFE)))


# ARGV one life, two lives. Extended rarely: that empties every L1 of the scope (M8).
_PLANTED = """
local one, two = tonumber(ARGV[1]), ARGV[2]
local function planted(key, token, fresh)
  if not token or #token ~= 16 then
    if one == 0 then
      redis.call('SET', key, fresh)
    else
      redis.call('SET', key, fresh, 'PX', two)
    end
    return fresh
  end
  local left = redis.call('PTTL', key)
  if left >= 0 and one == 0 then
    redis.call('PERSIST', key)
  elseif left >= 0 and left < one then
    redis.call('PEXPIRE', key, two)
  end
  return token
end
"""

PLANT: Final = Script(
    "PLANT",
    # KEYS scopes. ARGV one life, two lives, then a fresh token for each scope.
    _PLANTED
    + """
local tokens = redis.call('MGET', unpack(KEYS))
for i, key in ipairs(KEYS) do
  tokens[i] = planted(key, tokens[i], ARGV[i + 2])
end
return tokens
""",
)

SOFTEN: Final = Script(
    "SOFTEN",
    # KEYS scopes. ARGV for each a fresh soft half. What is not there stays so: a half token could come back (V18).
    """
for i, key in ipairs(KEYS) do
  if redis.pcall('STRLEN', key) == 16 then
    redis.call('SETRANGE', key, 8, ARGV[i])
  end
end
return #KEYS
""",
)

_PUT = """
if ARGV[3] == '0' then
  redis.call('SET', KEYS[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
"""
_SET = _PUT + "return 1\n"

PERMIT: Final = Script(
    "PERMIT",
    # KEYS permit. ARGV a fresh one, PX. Who loads at the same time shares it, until the last may fill. A lease is as good, and its time is
    # its holder's; the mark of one that has ended is not (see below).
    """
local there = redis.pcall('GET', KEYS[1])
if type(there) == 'string' then
  if #there == 16 then
    if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
      redis.call('PEXPIRE', KEYS[1], ARGV[2])
    end
    return there
  elseif #there == 58 and string.sub(there, 1, 1) == 'L' then
    return there
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
""",
)

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

# Leases: what the permit's key holds while one process loads for all (M9). The byte that says that somebody follows comes last, so that
# "still mine" compares what stands before it. A permit has 16 bytes, and so is none of these:
#   lease     L token(16) set of scopes(8) digest(15) attempt(1) chain(16) followed(1)
#   failure   F attempts(1) chain(16) milliseconds of its life that are left when its pause is over(15) reason
#   alone     A chain(16)

LEASE_BYTES: Final = 57  # that are compared
MARK_BYTES: Final = 33  # before the reason

ACQUIRE: Final = Script(
    "ACQUIRE",
    # KEYS value, lease, scopes. ARGV one life, two lives, how the value seen began, token, set, chain, PX, "force" "content" or "", then a
    # fresh token for each scope. An answer is its kind, the scopes' tokens, and what the kind has to say (M6, M12, M14, M15).
    # The digest is the sum of what is in the soft halves, which every invalidation replaces: any change of any token changes it.
    _PLANTED
    + """
local seen, token, set, asked, px, mode = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local found, tokens, sum = redis.call('MGET', unpack(KEYS, 2)), {}, 0
for i = 3, #KEYS do
  local scope = planted(KEYS[i], found[i - 1], ARGV[i + 6])
  local a, b, c, d, e, f = string.byte(scope, 9, 14)
  sum = (sum + ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f) % 281474976710656
  tokens[i - 2] = scope
end
if mode ~= 'force' then
  local front = redis.pcall('GETRANGE', KEYS[1], 0, 14)
  if type(front) == 'string' and front ~= '' and front ~= seen then
    return {'found', tokens, redis.call('GET', KEYS[1])}
  end
end
local digest = string.format('%015.0f', sum)
local attempt, chain, followed, there = '1', token, '0', found[1] or ''
if #there > 16 then
  local kind, left = string.sub(there, 1, 1), redis.call('PTTL', KEYS[2])
  if kind == 'L' and #there == 58 and left > 0 then
    followed = string.sub(there, 58)
    local doomed = string.sub(there, 18, 25) == set and string.sub(there, 26, 40) ~= digest
    if mode ~= 'force' and not doomed then
      if followed ~= '1' then
        redis.pcall('SETRANGE', KEYS[2], 57, '1')
      end
      return {'held', tokens, string.sub(there, 42, 57), left}
    end
  elseif mode ~= 'force' and kind == 'F' and #there >= 33 and left > 0 then
    local pause = math.max(left - (tonumber(string.sub(there, 19, 33)) or left), 0)
    local failed, own = string.sub(there, 2, 2), string.sub(there, 3, 18) == asked
    if (mode == 'content' and pause > 0) or (own and failed ~= '1') then
      return {'failed', tokens, string.sub(there, 34), pause}
    elseif own then
      attempt, chain = '2', asked
    end
  elseif mode ~= 'force' and kind == 'A' and #there == 17 and left > 0 and string.sub(there, 2) == asked then
    return {'alone', tokens}
  end
end
local lease = 'L' .. token .. set .. digest .. attempt .. chain
redis.call('SET', KEYS[2], lease .. followed, 'PX', px)
return {'leased', tokens, lease}
""",
)

# A lease that is not there any more may be followed still, by those who saw it. Who may publish nothing on the channel wakes nobody.
_WOKEN = """
local function wake(channel, key)
  redis.pcall('PUBLISH', channel, key)
end
"""

FILL_LEASED: Final = Script(
    "FILL_LEASED",
    # KEYS value, lease. ARGV lease, raw, life, channel. As FILL, and the lease goes. Sent again, it finds its own value there.
    _WOKEN
    + """
local lease = redis.pcall('GET', KEYS[2])
if type(lease) ~= 'string' or #lease ~= 58 or string.sub(lease, 1, 57) ~= ARGV[1] then
  if redis.pcall('GETRANGE', KEYS[1], 0, 14) == string.sub(ARGV[2], 1, 15) then
    return 1
  end
  wake(ARGV[4], KEYS[1])
  return 0
end
"""
    + _PUT
    + """
redis.call('DEL', KEYS[2])
if string.sub(lease, 58) == '1' then
  wake(ARGV[4], KEYS[1])
end
return 1
""",
)

END: Final = Script(
    "END",
    # KEYS lease. ARGV lease or what it begins with, channel, key, the mark to leave or "", its PX, and "all" to wake who follows it though
    # it is gone. A server without memory takes the mark behind a DEL, or takes none: the lease ends all the same.
    _WOKEN
    + """
local lease = redis.pcall('GET', KEYS[1])
if type(lease) ~= 'string' or #lease ~= 58 or string.sub(lease, 1, #ARGV[1]) ~= ARGV[1] then
  if ARGV[6] == 'all' then
    wake(ARGV[2], ARGV[3])
  end
  return 0
end
redis.call('DEL', KEYS[1])
if ARGV[4] ~= '' then
  redis.pcall('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
end
if string.sub(lease, 58) == '1' then
  wake(ARGV[2], ARGV[3])
end
return 1
""",
)

RENEW: Final = Script(
    "RENEW",
    # KEYS leases. ARGV PX, then the lease that each has to be. Which of them are held.
    """
local there, held = redis.call('MGET', unpack(KEYS)), {}
for i, key in ipairs(KEYS) do
  held[i] = 0
  if there[i] and string.sub(there[i], 1, 57) == ARGV[i + 1] then
    held[i] = redis.call('PEXPIRE', key, ARGV[1])
  end
end
return held
""",
)

SCRIPTS: Final = (PLANT, SOFTEN, PERMIT, FILL, STORE_IF, EXPIRE, ACQUIRE, FILL_LEASED, END, RENEW)
LOAD_ALL: Final = tuple(script.load() for script in SCRIPTS)
BY_SHA1: Final = {script.sha1: script for script in SCRIPTS}
