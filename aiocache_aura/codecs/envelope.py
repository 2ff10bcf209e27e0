"""The envelope: what stands before every stored value.

    offset  bytes
    0       2      magic "AU"
    2       1      version
    3       8      entry id, random for each fill: scripts compare it, so it is outside the checksum and its place never changes
    11      4      crc32 over the full key, the rest of the head, the extras and the payload
    15      1      codec of the payload
    16      1      flags: which side of the owner is left out (1, 2); a loaded None (64), an error that the load raised (128)
    17      8 x 3  created (seconds since the epoch, when its load began), ttl, stale (seconds; ttl is inf for ever)
    41      4      cost of the load (seconds)
    45      8      schema of the declared type, 0 for none
    53      16     fingerprint of the generations
    69      2      length of the extras: functions and tags that the call cannot tell, NUL between them
    71             extras, then payload

The checksum is what makes "bytes that are not ours" a miss: a value that was moved to another key, cut short, or altered does not match.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass, field, replace
from zlib import crc32

MAGIC = b"AU"
VERSION = 1
HEAD = struct.Struct("<2sB8sIBBdddfQ16sH")
_COVERED = struct.Struct("<BBdddfQ16sH")
_FRONT = struct.Struct("<2sB8sI")
_COST = struct.Struct("<f")
COVERED_FROM = _FRONT.size
ID = slice(3, 11)
FRONT = slice(0, COVERED_FROM)
MAX_EXTRAS = 2**16 - 1
IS_NONE, IS_ERROR = 64, 128
KIND = IS_NONE | IS_ERROR


def key_checksum(key: bytes) -> int:
    """The start of every checksum of entries under `key`."""
    return crc32(key)


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored value with all that its head says; times in seconds."""

    codec: int
    flags: int
    created: float
    ttl: float
    stale: float
    cost: float
    schema: int
    fingerprint: bytes
    extras: bytes
    payload: bytes | memoryview = field(repr=False)

    def is_fresh(self, now: float) -> bool:
        return now < self.created + self.ttl

    def left(self, now: float) -> float:
        return self.created + self.ttl - now

    def renewed(self, now: float, ttl: float) -> Entry:
        """The same entry with `ttl` seconds from now on."""
        return replace(self, created=now, ttl=ttl)


def seal(checksum: int, entry: Entry) -> bytes:
    """The bytes of an entry, under the key that `checksum` was made from."""
    covered = _COVERED.pack(
        entry.codec, entry.flags, entry.created, entry.ttl, entry.stale, entry.cost, entry.schema, entry.fingerprint, len(entry.extras)
    )
    body = b"".join((covered, entry.extras, entry.payload))
    return _FRONT.pack(MAGIC, VERSION, os.urandom(8), crc32(body, checksum)) + body


def covered(head: tuple[int, int, float, float, float, float, int, bytes], extras: bytes) -> bytes:
    """What entries that are sealed together have in common: codec, flags, created, ttl, stale, cost, schema, fingerprint; extras."""
    return _COVERED.pack(*head, len(extras)) + extras


def sealed(entry_id: bytes, checksum: int, common: bytes, payload: bytes) -> bytes:
    """As `seal`, for many at once: `common` is `covered(...)`, the id are 8 random bytes."""
    body = common + payload
    return _FRONT.pack(MAGIC, VERSION, entry_id, crc32(body, checksum)) + body


def cost_of(raw: bytes) -> float:
    """The load seconds that the head of an entry tells; 0.0 where it tells none."""
    try:
        cost: float = _COST.unpack_from(raw, 41)[0]
    except struct.error:
        return 0.0
    return cost if 0.0 < cost < math.inf else 0.0


def unseal(checksum: int, raw: bytes) -> Entry | None:
    """The entry in `raw`, or None for whatever was not sealed by us under that key."""
    if len(raw) < HEAD.size:
        return None
    magic, version, _, crc, codec, flags, created, ttl, stale, cost, schema, fingerprint, extras = HEAD.unpack_from(raw)
    if magic != MAGIC or version != VERSION or crc32(memoryview(raw)[COVERED_FROM:], checksum) != crc:
        return None
    end = HEAD.size + extras
    names = raw[HEAD.size : end]
    if len(names) != extras or not _is_text(names):  # a checksum proves no author
        return None
    return Entry(codec, flags, created, ttl, stale, cost, schema, fingerprint, names, memoryview(raw)[end:])


def _is_text(names: bytes) -> bool:
    try:
        names.decode()
    except UnicodeDecodeError:
        return False
    return True


def open_fresh(
    raw: bytes, checksum: int, flags: int, extras: bytes, fingerprint: bytes | None, now: float
) -> tuple[int, int, memoryview] | None:
    """(codec, schema, payload) of the plain case: an entry that is fresh, of these flags, extras and generations.

    None says nothing but that it is not that case: `unseal` finds out which it is. This is the hit path, hence one function.
    """
    try:
        magic, version, _, crc, codec, found, created, ttl, _, _, schema, carried, length = HEAD.unpack_from(raw)
    except struct.error:
        return None
    if carried != fingerprint or found != flags or not now < created + ttl or magic != MAGIC or version != VERSION:
        return None
    view = memoryview(raw)
    if crc32(view[15:], checksum) != crc:
        return None
    end = 71 + length
    if (length or extras) and raw[71:end] != extras:
        return None
    return codec, schema, view[end:]
