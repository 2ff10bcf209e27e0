"""The envelope: whatever is under a key and was not sealed for it is a miss, counted, never an exception and never a wrong value."""

from __future__ import annotations

import builtins
import copy
import logging
import math
import os
import random
import struct
import sys
from dataclasses import replace
from typing import Any
from uuid import uuid4
from zlib import crc32

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiocache_aura import CacheManager, cache
from aiocache_aura.codecs.envelope import COVERED_FROM, HEAD, ID, MAGIC, MAX_EXTRAS, VERSION, Entry, key_checksum, open_fresh, seal, unseal
from aiocache_aura.codecs.serializers import PLAIN, TAGGED, Undecodable, serializer_for
from aiocache_aura.context import tenant_scope
from tests.codecs import same

KEY = b"shop:menu:=item"
CHECKSUM = key_checksum(KEY)
PRINT = bytes(range(16))
VALUE = {"name": "Margherita", "price": 12.5, "tags": ["a", "b"]}
ENTRY = Entry(PLAIN, 0, 1_000.0, 60.0, 0.0, 0.25, 0, PRINT, b"g:promo\0g:x", orjson.dumps(VALUE))
ENTRIES = [
    ENTRY,
    replace(ENTRY, codec=TAGGED, payload=b'{"$":["t",[1]]}', extras=b"", schema=2**64 - 1, flags=3),
    replace(ENTRY, ttl=math.inf, payload=b"", cost=0.0),
]


def opened(raw: bytes, checksum: int = CHECKSUM, **asked: Any) -> Any:
    """What the hit path makes of it, asked for as ENTRY is."""
    given = {"flags": ENTRY.flags, "extras": ENTRY.extras, "fingerprint": PRINT, "now": 1_001.0} | asked
    return open_fresh(raw, checksum, given["flags"], given["extras"], given["fingerprint"], given["now"])


def value_of(entry: Entry | None) -> Any:
    return None if entry is None else serializer_for().decode(entry.codec, entry.schema, entry.payload)


class TestFormat:
    @pytest.mark.parametrize("entry", ENTRIES)
    def test_what_was_sealed_is_unsealed(self, entry):
        """Every field as it was."""
        raw = seal(CHECKSUM, entry)
        back = unseal(CHECKSUM, raw)
        assert replace(back, payload=bytes(back.payload)) == entry
        assert (back.is_fresh(1_059.9), back.is_fresh(1_060.0)) == (True, entry.ttl == math.inf)

    def test_the_head_is_what_is_documented(self):
        """Offsets that scripts and other versions rely on: magic, version, id, checksum over the key and all that follows."""
        raw = seal(CHECKSUM, ENTRY)
        assert (raw[:2], raw[2], HEAD.size, COVERED_FROM) == (b"AU", 1, 71, 15)
        assert (ID.start, ID.stop) == (3, 11)
        assert struct.unpack_from("<I", raw, 11)[0] == crc32(KEY + raw[15:])
        assert struct.unpack_from("<BBddd", raw, 15) == (PLAIN, 0, 1_000.0, 60.0, 0.0)
        assert raw[69:71] == len(ENTRY.extras).to_bytes(2, "little")
        assert raw[71:] == ENTRY.extras + ENTRY.payload

    def test_every_fill_has_an_id_of_its_own(self):
        """Scripts compare it; everything else is the same."""
        many = [seal(CHECKSUM, ENTRY) for _ in range(1_000)]
        assert len({raw[ID] for raw in many}) == 1_000
        assert len({raw[: ID.start] + raw[ID.stop :] for raw in many}) == 1

    def test_the_hit_path_opens_the_plain_case_only(self):
        """Fresh, of these flags, extras and generations: all else is left to `unseal`."""
        raw = seal(CHECKSUM, ENTRY)
        codec, schema, payload = opened(raw)
        assert (codec, schema, bytes(payload)) == (PLAIN, 0, ENTRY.payload)
        assert opened(raw, now=1_059.99) is not None
        others = (
            {"now": 1_060.0},
            {"flags": 1},
            {"extras": b""},
            {"extras": b"g:promo"},
            {"fingerprint": None},
            {"fingerprint": PRINT[::-1]},
        )
        assert all(opened(raw, **other) is None for other in others)
        assert opened(raw, CHECKSUM ^ 1) is None

    @pytest.mark.parametrize("length", [0, 1, MAX_EXTRAS])
    def test_extras_up_to_their_limit(self, length):
        """Their length has 16 bits."""
        entry = replace(ENTRY, extras=b"x" * length)
        assert unseal(CHECKSUM, seal(CHECKSUM, entry)).extras == entry.extras


class TestBytesThatAreNotOurs:
    @settings(max_examples=500)
    @given(st.binary(max_size=300))
    @example(b"")
    @example(MAGIC)
    @example(MAGIC + bytes([VERSION]) + bytes(68))
    def test_random_bytes(self, raw):
        """Neither way of opening takes them, or raises."""
        assert unseal(CHECKSUM, raw) is None
        assert opened(raw) is None

    @settings(max_examples=500)
    @given(st.binary(min_size=12, max_size=200))
    def test_random_bytes_behind_our_own_front(self, rest):
        """The right magic, version, and place for an id are not enough."""
        raw = MAGIC + bytes([VERSION]) + bytes(8) + rest
        assert unseal(CHECKSUM, raw) is None
        assert opened(raw) is None

    @settings(max_examples=300)
    @given(st.binary(min_size=56, max_size=200))
    def test_random_heads_with_a_right_checksum(self, body):
        """Whoever computes a checksum still cannot make us raise: lengths that lie, names that are no text, times that are no numbers."""
        raw = MAGIC + bytes([VERSION]) + bytes(8) + crc32(body, CHECKSUM).to_bytes(4, "little") + body
        entry = unseal(CHECKSUM, raw)
        if entry is not None:
            assert len(raw) == HEAD.size + len(entry.extras) + len(entry.payload)
            assert isinstance(entry.extras.decode(), str)
            entry.is_fresh(1_001.0)
            _decoded(entry.codec, entry.schema, entry.payload)
        codec, flags, _, _, _, _, _, fingerprint, length = struct.unpack_from("<BBdddfQ16sH", body)
        found = opened(raw, flags=flags, fingerprint=fingerprint, extras=raw[71 : 71 + length])
        if found is not None:
            _decoded(*found)

    def test_times_that_are_no_numbers_are_not_fresh(self):
        """nan compares to nothing: neither way serves such an entry."""
        for entry in (replace(ENTRY, created=math.nan), replace(ENTRY, ttl=math.nan), replace(ENTRY, created=-math.inf, ttl=math.inf)):
            raw = seal(CHECKSUM, entry)
            assert opened(raw) is None
            assert not unseal(CHECKSUM, raw).is_fresh(1_001.0)

    @pytest.mark.parametrize("entry", ENTRIES)
    def test_truncations(self, entry):
        """At every length; and with bytes behind."""
        raw = seal(CHECKSUM, entry)
        for length in range(len(raw)):
            assert unseal(CHECKSUM, raw[:length]) is None
            assert opened(raw[:length], flags=entry.flags, extras=entry.extras) is None
        for more in (b"\0", b" ", raw, os.urandom(40)):
            assert unseal(CHECKSUM, raw + more) is None
            assert opened(raw + more, flags=entry.flags, extras=entry.extras) is None
            assert unseal(CHECKSUM, more + raw) is None

    @pytest.mark.parametrize("entry", ENTRIES)
    def test_flipped_bits(self, entry):
        """Every single one: a miss, except in the entry id, which is outside the checksum, and where the value is still right."""
        raw = bytearray(seal(CHECKSUM, entry))
        for bit in range(8 * len(raw)):
            raw[bit // 8] ^= 1 << bit % 8
            found = unseal(CHECKSUM, bytes(raw))
            if bit // 8 in range(ID.start, ID.stop):
                assert replace(found, payload=bytes(found.payload)) == entry
                assert bytes(opened(bytes(raw), flags=entry.flags, extras=entry.extras)[2]) == entry.payload
            else:
                assert found is None
                assert opened(bytes(raw), flags=entry.flags, extras=entry.extras) is None
            raw[bit // 8] ^= 1 << bit % 8

    @settings(max_examples=300)
    @given(st.data())
    def test_several_changes(self, data):
        """Bytes overwritten, removed, doubled, swapped: a miss, or what was sealed."""
        raw = bytearray(seal(CHECKSUM, ENTRY))
        for _ in range(data.draw(st.integers(1, 4))):
            at, to = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(0, len(raw) - 1))
            change = data.draw(st.sampled_from(["set", "cut", "double", "swap"]))
            if change == "set":
                raw[at] = data.draw(st.integers(0, 255))
            elif change == "cut" and len(raw) > 20:
                del raw[at]
            elif change == "double":
                raw.insert(at, raw[at])
            else:
                raw[at], raw[to] = raw[to], raw[at]
        assert value_of(unseal(CHECKSUM, bytes(raw))) in (None, VALUE)
        found = opened(bytes(raw))
        assert found is None or orjson.loads(found[2]) == VALUE

    @settings(max_examples=200)
    @given(st.binary(min_size=1, max_size=40))
    def test_entries_of_another_key(self, key):
        """The full key is under the checksum."""
        raw = seal(CHECKSUM, ENTRY)
        assert (unseal(key_checksum(key), raw) is None) == (key != KEY)
        assert (opened(raw, key_checksum(key)) is None) == (key != KEY)

    @pytest.mark.parametrize("version", [0, 2, 255])
    def test_other_versions(self, version):
        """An older or newer format is a miss, even with a checksum that fits."""
        raw = bytearray(seal(CHECKSUM, ENTRY))
        raw[2] = version
        assert unseal(CHECKSUM, bytes(raw)) is None
        assert opened(bytes(raw)) is None


def _decoded(codec: int, schema: int, payload: bytes | memoryview, annotation: Any = dict[str, int]) -> None:
    for serializer in (serializer_for(), serializer_for(annotation)):
        try:
            serializer.decode(codec, schema, payload)
        except Undecodable:
            pass


_JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=6)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.just("$"), st.text(max_size=3)), inner, max_size=3),
        st.builds(lambda tag, content: {"$": [tag, content]}, st.sampled_from("odtsfinSbBcDTePNu$"), inner),
    ),
    max_leaves=8,
)


class TestPayloads:
    """What stands behind a right checksum may still be anybody's: the decoder gives a value or says Undecodable, and nothing else."""

    @settings(max_examples=600)
    @given(_JSON, st.sampled_from([PLAIN, TAGGED, 2, 255]))
    def test_any_json(self, value, codec):
        """Tags with any content, unknown tags, unknown codecs."""
        for schema in (0, 1, serializer_for(dict[str, int]).schema):
            _decoded(codec, schema, orjson.dumps(value))

    @settings(max_examples=300)
    @given(st.binary(max_size=40), st.sampled_from([PLAIN, TAGGED, 2]))
    def test_any_bytes(self, payload, codec):
        """No JSON at all."""
        _decoded(codec, 0, payload)

    @pytest.mark.parametrize(
        "payload",
        [
            b"[" * 5_000 + b"]" * 5_000,
            b'{"$":["t",[' * 400 + b"]]}" * 400,
            b'{"$":["N","1E+99999999999999999999"]}',
            b'{"$":["D",["9999-99-99",0,null]]}',
            b'{"$":["D",["2026-11-25",0,"../../../etc/passwd"]]}',
            b'{"$":["D",["2026-11-25",0,"No/Where"]]}',
            b'{"$":["D",["2026-11-25",0,""]]}',
            b'{"$":["T",["12:00",0,[99999999999999,null]]]}',
            b'{"$":["P",[99999999999,0,0]]}',
            b'{"$":["s",[[1]]]}',
            b'{"$":["d",[[{"a":1},1]]]}',
            b'{"$":["o",["os.system","ls"]]}',
            b'{"$":[["t"],1]}',
            b'{"$":[]}',
            b'{"$":null}',
            b'{"$":["t",[1]],"x":1}',
            b'{"$":["S","zz"]}',
            b'{"$":["b","\\u00e9"]}',
            b'{"$":["n","1"]}',
            b'{"$":["u","1"]}',
            b"",
            b"nan",
            b'"\xff"',
        ],
        ids=lambda payload: repr(payload[:30]),
    )
    def test_hostile_payloads(self, payload):
        """Each is Undecodable: what it claims to be it cannot be."""
        with pytest.raises(Undecodable):
            serializer_for().decode(TAGGED, 0, payload)

    def test_another_declared_type_is_undecodable(self):
        """Plain or tagged; what was stored without a word is, where it does not conform."""
        for value in ([1], (1,)):
            codec, payload = serializer_for(list[int]).encode(value)
            for other in (list[str], list[int] | None, dict[str, int], int, list[bool]):
                with pytest.raises(Undecodable):
                    serializer_for(other).decode(codec, serializer_for(list[int]).schema, payload)
            assert same(serializer_for().decode(codec, serializer_for(list[int]).schema, payload), value)


# Through the manager, on a real server and in memory


@pytest.fixture(params=["memory", "valkey"])
async def house(request, valkey):
    """A manager, and the store behind it, to change by hand."""
    url = "memory://" if request.param == "memory" else valkey.url
    async with CacheManager(url, prefix="envelope", strict=True, budget=5) as manager:
        with valkey.client() as client:
            yield manager, (Memory(manager) if request.param == "memory" else client)


class Memory:
    """A memory store, looking like a client."""

    def __init__(self, manager: CacheManager) -> None:
        self._manager = manager

    @property
    def _values(self) -> Any:
        return self._manager._memory.values

    def get(self, key: bytes) -> bytes | None:
        return self._values.get(key, self._manager.settings.clock.time())

    def set(self, key: bytes, value: bytes) -> None:
        self._values.put(key, value, weight=1, expires=math.inf)

    def scan_iter(self, match: str) -> list[bytes]:
        return [key for key in self._values if key.startswith(match[:-1].encode())]


def key_of(store: Any) -> bytes:
    """The one key of type `test` that is stored."""
    (key,) = store.scan_iter(match="envelope:test:*")
    return key


def forged(key: bytes, raw: bytes, **changes: Any) -> bytes:
    """The same entry with other content, sealed as we would."""
    return seal(key_checksum(key), replace(unseal(key_checksum(key), raw), **changes))


def garbage(key: bytes, raw: bytes) -> list[bytes]:
    """What somebody else may have put there."""
    flipped = [raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :] for at in range(len(raw)) if at not in range(ID.start, ID.stop)]
    others = [raw[:2] + bytes([version]) + raw[3:] for version in (0, 2, 255)]
    foreign = [b"", b"x", b"hello", b'{"a":1}', b"1", b"\x80\x05N.", raw + b"\0", raw[1:], bytes(len(raw)), os.urandom(len(raw))]
    tags = [
        forged(key, raw, extras=b"\xff\xfe"),
        forged(key, raw, codec=2),
        forged(key, raw, payload=b"{"),
        forged(key, raw, codec=TAGGED, payload=b'{"$":1}'),
    ]
    return [*flipped, *others, *foreign, *tags, *(raw[:length] for length in range(0, len(raw), 3))]


class TestThroughTheManager:
    async def test_garbage_under_the_real_key_is_a_miss_and_counted(self, house):
        """Every flip of a bit, truncation, foreign value: get gives the default, `undecodable` goes up by one, nothing is raised."""
        manager, store = house
        await manager.set("test", "item", VALUE)
        key = key_of(store)
        raw = store.get(key)
        assert await manager.get("test", "item") == VALUE
        for bad in garbage(key, raw):
            store.set(key, bad)
            before = copy.copy(manager.stats()["test"])
            assert await manager.get("test", "item", default="none") == "none", bad
            after = manager.stats()["test"]
            assert after["undecodable"] == before["undecodable"] + 1, bad
            assert (after["misses"], after["hits"], after["errors"]) == (before["misses"] + 1, before["hits"], 0)
        store.set(key, raw)
        assert await manager.get("test", "item") == VALUE

    async def test_a_changed_entry_id_changes_no_value(self, house):
        """It is outside the checksum by design."""
        manager, store = house
        await manager.set("test", "item", VALUE)
        key = key_of(store)
        raw = store.get(key)
        for _ in range(50):
            store.set(key, raw[: ID.start] + random.randbytes(8) + raw[ID.stop :])
            assert await manager.get("test", "item") == VALUE
        assert manager.stats()["test"]["undecodable"] == 0

    async def test_every_other_verb_takes_garbage_for_nothing(self, house):
        """mget, exists, ttl, touch, add, get_or_load, and decorated functions, which load and store anew."""
        manager, store = house
        menu = manager.caches["test"]
        await menu.set("item", 1)
        key = key_of(store)
        for bad in garbage(key, store.get(key))[::7]:
            store.set(key, bad)
            assert await menu.mget(["item"]) == [None]
            assert await menu.get_many(["item"]) == {}
            assert not await menu.exists("item")
            assert await menu.ttl("item") is None
            assert not await menu.touch("item")
            assert await menu.add("item", 2)
            assert await menu.get("item") == 2
            store.set(key, bad)
            assert await menu.get_or_load("item", lambda: 3) == 3
            assert await menu.get("item") == 3
            store.set(key, bad)
            assert await menu.get_or_load_many(["item"], lambda keys: {"item": 4}) == {"item": 4}
            assert await menu.get("item") == 4
            store.set(key, bad)
            assert await menu.set("item", 5)
            assert await menu.get("item") == 5
            store.set(key, bad)
            assert await menu.delete("item") == 1

    async def test_a_decorated_function_loads_anew(self, house, caplog):
        """Once for each garbage, and is a hit again afterwards; the log shows neither key nor value."""
        manager, store = house
        loads = []

        async def load() -> dict[str, int]:
            loads.append(1)
            return {"a": len(loads)}

        function = cache(cache_type="test", manager=manager, name="load")(load)
        assert await function() == {"a": 1}
        key = key_of(store)
        raw, count = store.get(key), 1
        with caplog.at_level(logging.DEBUG, "aiocache_aura"):
            for bad in garbage(key, raw)[::3]:
                store.set(key, bad)
                count += 1
                assert await function() == {"a": count}
                assert await function() == {"a": count}
        assert len(loads) == count
        assert manager.stats()["test"]["undecodable"] == count - 1
        assert not any('"a":' in record.getMessage() or key.decode() in record.getMessage() for record in caplog.records)

    async def test_entries_moved_to_another_key_are_a_miss(self, house):
        """To another key, another tenant, another function: nobody else's data, not even by hand."""
        manager, store = house
        await manager.set("test", "mine", "mine")
        mine = key_of(store)
        raw = store.get(mine)
        await manager.set("test", "yours", "yours")
        with tenant_scope(7):
            await manager.set("test", "mine", "of 7")
        for other in set(store.scan_iter(match="envelope:test:*")) - {mine}:
            store.set(other, raw)
        assert await manager.get("test", "mine") == "mine"
        assert await manager.get("test", "yours") is None
        with tenant_scope(7):
            assert await manager.get("test", "mine") is None
        assert manager.stats()["test"]["undecodable"] == 2

    async def test_an_entry_of_another_declared_type_is_a_miss(self, house):
        """get(as_type=) of what was stored as something else; and what was stored without a word, if it is not that."""
        manager, _ = house
        for stored_as, read_as, value, found in (
            (list[int], list[str], [1], False),
            (list[int], list[int], [1], True),
            (list[int], None, [1], True),
            (None, list[int], [1], True),
            (None, list[int], [True], False),
            (None, list[float], [1, True], False),
            (tuple[int, ...], list[int], (1,), False),
        ):
            await manager.set("test", "item", value, as_type=stored_as)
            before = manager.stats()["test"]["undecodable"]
            assert await manager.get("test", "item", as_type=read_as, default="none") == (value if found else "none")
            assert manager.stats()["test"]["undecodable"] == before + (not found)

    async def test_a_class_name_in_the_store_is_never_imported(self, house, tmp_path, monkeypatch):
        """A well-formed entry that names a class which nobody registered: a miss, and its module is not loaded."""
        manager, store = house
        name = f"trap_{uuid4().hex}"
        (tmp_path / f"{name}.py").write_text(
            "import builtins; builtins.sprung = True\nfrom dataclasses import dataclass\n@dataclass\nclass Trap:\n    a: int = 1\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        await manager.set("test", "item", (1,))
        key = key_of(store)
        raw = store.get(key)
        loaded = set(sys.modules)
        for said in (f"{name}.Trap", f"{name}.Trap#00000000", "wave.Wave_read", "decimal.Decimal", "builtins.eval", "", "$"):
            for state in ({"a": 1}, {}, "A", [1], ['{"a":1}', []], None):
                for payload in ({"$": ["o", [said, state]]}, [{"k": {"$": ["t", [{"$": ["o", [said, state]]}]]}}]):
                    store.set(key, forged(key, raw, payload=orjson.dumps(payload)))
                    before = manager.stats()["test"]["undecodable"]
                    assert await manager.get("test", "item", default="none") == "none"
                    assert await manager.get("test", "item", default="none", as_type=dict[str, int]) == "none"
                    assert manager.stats()["test"]["undecodable"] == before + 2
        store.set(key, forged(key, raw, payload=orjson.dumps({"$": ["D", ["2026-11-25", 0, f"{name}/Trap"]]})))
        assert await manager.get("test", "item", default="none") == "none"
        assert not any(module.startswith((name, "wave")) for module in set(sys.modules) - loaded)
        assert not hasattr(builtins, "sprung")

    async def test_a_forged_entry_of_ours_is_served(self, house):
        """What shows that the forgeries above reach the decoder: the same with content that is right."""
        manager, store = house
        await manager.set("test", "item", (1,))
        key = key_of(store)
        store.set(key, forged(key, store.get(key), payload=b'{"$":["t",[2,{"$":["u","00000000000000000000000000000007"]}]]}'))
        assert str(await manager.get("test", "item")).startswith("(2, UUID(")

    async def test_another_kind_of_key_in_the_server_is_a_miss(self, valkey):
        """A list, a hash, a set under our key: read as nothing, written over by set."""
        async with CacheManager(valkey.url, prefix="envelope", strict=True, budget=5) as manager:
            await manager.set("test", "item", 1)
            with valkey.client() as client:
                key = key_of(client)
                for make in (lambda: client.rpush(key, "a"), lambda: client.hset(key, "a", "b"), lambda: client.sadd(key, "a")):
                    client.delete(key)
                    make()
                    assert await manager.get("test", "item", default="none") == "none"
                    assert await manager.set("test", "item", 2)
                    assert await manager.get("test", "item") == 2
                    client.delete(key)
                    make()
                    assert await manager.get_or_load("test", "item", lambda: 3) == 3
                    assert await manager.get("test", "item") == 3
                    client.delete(key)
                    make()
                    assert await manager.delete("test", "item") == 1
