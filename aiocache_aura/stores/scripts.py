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
    # KEYS scopes. ARGV for each eight random bytes. What is not there stays so: a half token could come back (V18). They are added to the
    # soft half that is there, so that the same command sent again makes another one, and none comes back (V19).
    """
for i, key in ipairs(KEYS) do
  if redis.pcall('STRLEN', key) == 16 then
    local old, new = redis.call('GETRANGE', key, 8, 15), {}
    for at = 1, 8 do
      new[at] = string.char((string.byte(old, at) + string.byte(ARGV[i], at)) % 256)
    end
    redis.call('SETRANGE', key, 8, table.concat(new))
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
  elseif #there > 81 and string.sub(there, 1, 1) == 'L' then
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

# Leases: what the permit's key holds while one process loads for all (M9). The byte that says that somebody follows comes last, so
# that "still mine" compares what stands before it. A permit has 16 bytes, and so is none of these. Numbers have 16 digits, times are in
# microseconds:
#   lease     L token(16) attempt(1) chain upto until front(15) scopes(12 each) followed(1)
#   failure   F attempts(1) chain upto until reason
#   mark      A upto until
# Chains of attempts are numbered upwards; whoever waited for one up to `upto` has nothing to wait for, since its value was not to be
# stored. Until `until` nobody refreshes who has a value to go on with. Both outlast the lease in which they stand. `front` is what the
# value began with that a forced load sets out to replace. Of each scope: 4 bytes of its name's checksum, and the half of its token that
# every invalidation replaces.

LEASE_HEAD: Final = 81
LEASE_ATTEMPT: Final = slice(17, 18)
FAILURE_HEAD: Final = 50

_LEASES = """
local function number(text, from)
  return tonumber(string.sub(text, from, from + 15)) or 0
end
local function spelt(number)
  return string.format('%016.0f', number)
end
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
local function is_mine(there, lease)
  return type(there) == 'string' and #there == #lease + 1 and string.sub(there, 1, -2) == lease
end
local function wake(channel, key)
  redis.pcall('PUBLISH', channel, key)
end
"""  # who may publish nothing on the channel wakes nobody

ACQUIRE: Final = Script(
    "ACQUIRE",
    # KEYS value, lease, scopes. ARGV one life, two lives, how the value seen began, token, the scopes' names' checksums, chain, PX,
    # "force" "content" or "", then a fresh token for each scope. An answer is its kind, the scopes' tokens, and what the kind has to say
    # (M6, M12 to M15).
    _PLANTED
    + _LEASES
    + """
local seen, token, names, asked, px, mode = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]) or 0, ARGV[7], ARGV[8]
local found, tokens, scopes = redis.call('MGET', unpack(KEYS, 2)), {}, {}
for i = 1, #KEYS - 2 do
  tokens[i] = planted(KEYS[i + 2], found[i + 1], ARGV[i + 8])
  scopes[i] = string.sub(names, i * 4 - 3, i * 4) .. string.sub(tokens[i], 9)
end
local front = redis.pcall('GETRANGE', KEYS[1], 0, 14)
if mode ~= 'force' and type(front) == 'string' and front ~= '' and front ~= seen then
  return {'found', tokens, redis.call('GET', KEYS[1])}
end
local there, kind, left, time = found[1] or '', '', 0, now()
if #there > 16 then
  kind, left = string.sub(there, 1, 1), redis.call('PTTL', KEYS[2])
end
local attempt, chain, upto, till, followed, reason = '1', 0, 0, 0, '0', ''
if left > 0 and kind == 'L' and #there > 81 then
  chain, upto, till, followed = number(there, 19), number(there, 35), number(there, 51), string.sub(there, -1)
elseif left > 0 and kind == 'F' and #there >= 50 then
  chain, upto, till, reason = number(there, 3), number(there, 19), number(there, 35), string.sub(there, 51)
elseif left > 0 and kind == 'A' and #there == 33 then
  upto, till = number(there, 2), number(there, 18)
else
  kind = ''
end
if mode ~= 'force' then
  local pause, doomed = math.max(till - time, 0) / 1000, false
  if asked > 0 and asked <= upto then
    return {'alone', tokens}
  elseif mode == 'content' and pause > 0 and kind ~= 'L' then
    return {'failed', tokens, reason, math.ceil(pause)}
  elseif kind == 'L' then
    local own = {}
    for _, scope in ipairs(scopes) do
      own[string.sub(scope, 1, 4)] = string.sub(scope, 5)
    end
    for at = 82, #there - 12, 12 do
      local half = own[string.sub(there, at, at + 3)]
      doomed = doomed or (half and half ~= string.sub(there, at + 4, at + 11))
    end
    if not doomed then
      if followed ~= '1' then
        redis.pcall('SETRANGE', KEYS[2], #there - 1, '1')
      end
      return {'held', tokens, spelt(chain), left}
    elseif mode == 'content' and pause > 0 then
      return {'failed', tokens, '', math.ceil(pause)}
    end
  elseif kind == 'F' and asked > 0 and chain == asked then
    if string.sub(there, 2, 2) ~= '1' then
      return {'failed', tokens, reason, math.ceil(pause)}
    end
    attempt = '2'
  end
end
if attempt == '1' then
  chain = math.max(chain, upto, time) + 1
end
if mode ~= 'force' or type(front) ~= 'string' or #front < 15 then
  front = string.rep('-', 15)
end
local lease = 'L' .. token .. attempt .. spelt(chain) .. spelt(upto) .. spelt(till) .. front .. table.concat(scopes)
redis.call('SET', KEYS[2], lease .. followed, 'PX', px)
return {'leased', tokens, lease}
""",
)

FILL_LEASED: Final = Script(
    "FILL_LEASED",
    # KEYS value, lease. ARGV lease, raw, life, channel. As FILL, and the lease goes. Sent again, it finds its own value there. A forced
    # load that is refused takes away what it set out to replace. A lease that is not there any more may still be followed by who saw it.
    _LEASES
    + """
local lease = redis.pcall('GET', KEYS[2])
if not is_mine(lease, ARGV[1]) then
  local front = redis.pcall('GETRANGE', KEYS[1], 0, 14)
  if front == string.sub(ARGV[2], 1, 15) then
    return 1
  elseif front == string.sub(ARGV[1], 67, 81) then
    redis.call('DEL', KEYS[1])
  end
  wake(ARGV[4], KEYS[1])
  return 0
end
"""
    + _PUT
    + """
redis.call('DEL', KEYS[2])
if string.sub(lease, -1) == '1' then
  wake(ARGV[4], KEYS[1])
end
return 1
""",
)

END: Final = Script(
    "END",
    # KEYS lease. ARGV lease or what it begins with, channel, key, "fail" "alone" or "", least PX of a mark, throttle in microseconds,
    # reason, and "all" to wake who follows it though it is gone. A server without memory takes the mark behind a DEL, or takes none: the
    # lease ends all the same.
    _LEASES
    + """
local lease = redis.pcall('GET', KEYS[1])
if type(lease) ~= 'string' or #lease < 82 or string.sub(lease, 1, #ARGV[1]) ~= ARGV[1] then
  if ARGV[8] == 'all' then
    wake(ARGV[2], ARGV[3])
  end
  return 0
end
local how, time, upto, till, mark = ARGV[4], now(), number(lease, 35), number(lease, 51), ''
if how == 'fail' then
  till = math.max(till, time + tonumber(ARGV[6]))
  mark = 'F' .. string.sub(lease, 18, 34) .. spelt(upto) .. spelt(till) .. ARGV[7]
elseif how == 'alone' or upto > 0 or till > time then
  upto = how == 'alone' and number(lease, 19) or upto
  mark = 'A' .. spelt(upto) .. spelt(till)
end
redis.call('DEL', KEYS[1])
if mark ~= '' then
  redis.pcall('SET', KEYS[1], mark, 'PX', math.max(tonumber(ARGV[5]), math.ceil((till - time) / 1000)))
end
if string.sub(lease, -1) == '1' then
  wake(ARGV[2], ARGV[3])
end
return 1
""",
)

RENEW: Final = Script(
    "RENEW",
    # KEYS leases. ARGV PX, then the lease that each has to be. Which of them are held.
    _LEASES
    + """
local there, held = redis.call('MGET', unpack(KEYS)), {}
for i, key in ipairs(KEYS) do
  held[i] = is_mine(there[i], ARGV[i + 1]) and redis.call('PEXPIRE', key, ARGV[1]) or 0
end
return held
""",
)

# A board is a hash of names to notes: 16 digits of the time when a note's life is over, in microseconds, then its payload.
_NOTES = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local function standing()
  local all, gone, left = redis.call('HGETALL', KEYS[1]), {}, {}
  for i = 1, #all, 2 do
    if (tonumber(string.sub(all[i + 1], 1, 16)) or 0) > now then
      left[#left + 1] = all[i]
      left[#left + 1] = string.sub(all[i + 1], 17)
    else
      gone[#gone + 1] = all[i]
    end
  end
  for i = 1, #gone do
    redis.pcall('HDEL', KEYS[1], gone[i])
  end
  return left
end
"""

POST: Final = Script(
    "POST",
    # KEYS board. ARGV name, payload, PX, most notes. 0 if the board is full, 1 if no note of that name stood, 2 if one did. Redis drops a
    # board once the last note's life is over.
    _NOTES
    + """
local there = redis.call('HGET', KEYS[1], ARGV[1])
if not there and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) and #standing() / 2 >= tonumber(ARGV[4]) then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%016.0f', now + tonumber(ARGV[3]) * 1000) .. ARGV[2])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return there and (tonumber(string.sub(there, 1, 16)) or 0) > now and 2 or 1
""",
)

READ_NOTES: Final = Script(
    "READ_NOTES",
    # KEYS board. Names and payloads in turn; those whose life is over are removed.
    _NOTES + "return standing()\n",
)

# The record of a job: due, at, until, took (16 digits each, microseconds), the token of the last run that ended (16 bytes), and the token
# of who holds it, if anybody does. Rules are in stores/jobs.py.
_JOBS = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local due, at, till, took, last, holder = now, now, 0, 0, string.rep('-', 16), ''
local there = redis.pcall('GET', KEYS[1])
local is_there = type(there) == 'string' and (#there == 80 or #there == 96) and string.match(string.sub(there, 1, 64), '^%d+$')
if is_there then
  due, at = tonumber(string.sub(there, 1, 16)), tonumber(string.sub(there, 17, 32))
  till, took = tonumber(string.sub(there, 33, 48)), tonumber(string.sub(there, 49, 64))
  last, holder = string.sub(there, 65, 80), string.sub(there, 81)
end
local is_mine = holder ~= '' and holder == ARGV[1]
local function put(spare)
  local record = string.format('%016.0f%016.0f%016.0f%016.0f', due, at, till, took) .. last .. holder
  redis.call('SET', KEYS[1], record, 'PX', string.format('%.0f', math.ceil((math.max(at, till) - now) / 1000) + math.max(spare, 1)))
end
"""

CLAIM_RUN: Final = Script(
    "CLAIM_RUN",
    # KEYS job. ARGV token, lease in microseconds, PX beyond the due time, "at once" or "". An answer is its kind, due, at, now, until and
    # took.
    _JOBS
    + """
if not is_mine then
  if holder ~= '' and till > now then
    return {'held', due, at, now, till, took}
  elseif at > now and ARGV[4] == '' then
    return {'wait', due, at, now, till, took}
  end
end
holder, till = ARGV[1], now + tonumber(ARGV[2])
put(tonumber(ARGV[3]))
return {'run', due, at, now, till, took}
""",
)

RENEW_RUN: Final = Script(
    "RENEW_RUN",
    # KEYS job. ARGV token, lease in microseconds, PX beyond the due time.
    _JOBS
    + """
if not is_mine then
  return 0
end
till = now + tonumber(ARGV[2])
put(tonumber(ARGV[3]))
return 1
""",
)

END_RUN: Final = Script(
    "END_RUN",
    # KEYS job. ARGV token, PX beyond the due time, then due, at, took; none of them to give the run back.
    _JOBS
    + """
if not is_mine then
  return is_there and last == ARGV[1] and 1 or 0
end
holder, till = '', 0
if ARGV[3] then
  due, at, took, last = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[1]
end
put(tonumber(ARGV[2]))
return 1
""",
)

SCRIPTS: Final = (
    PLANT, SOFTEN, PERMIT, FILL, STORE_IF, EXPIRE, ACQUIRE, FILL_LEASED, END, RENEW, POST, READ_NOTES, CLAIM_RUN, RENEW_RUN, END_RUN,
)  # fmt: skip
LOAD_ALL: Final = tuple(script.load() for script in SCRIPTS)
BY_SHA1: Final = {script.sha1: script for script in SCRIPTS}
