"""CONTRACT.md 1-3: what every verb of a manager and of a `Cache` answers, over every store."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from aiocache_aura.cache_manager import CacheManager
from aiocache_aura.codecs.compare import difference
from aiocache_aura.context import tenant_scope, user_scope
from aiocache_aura.errors import (
    CacheError,
    ConfigurationError,
    KeyPartError,
    MissingTenantError,
    MissingUserError,
    SerializationError,
    UnknownCacheTypeError,
    ValueTooLargeError,
)
from aiocache_aura.policy import NOT_YET, CachePolicy
from aiocache_aura.stats import Counts
from aiocache_aura.types import FOREVER, MISSING, CacheTTL
from tests.clocks import ManualClock, running_time
from tests.contract.conftest import STORES, Store


class Through:
    """The verbs of one cache type, asked of the manager: each has the type in front."""

    def __init__(self, manager: CacheManager) -> None:
        self._manager = manager

    def __getattr__(self, verb: str) -> Any:
        return functools.partial(getattr(self._manager, verb), "menu")


WAYS: dict[str, Callable[[CacheManager], Any]] = {"manager": Through, "cache": lambda manager: manager.caches["menu"]}


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest) -> Callable[[CacheManager], Any]:
    """The verbs of `menu`, asked of the manager and of its `Cache`."""
    return WAYS[request.param]


def verbs_of(store: Store, manager: CacheManager) -> Any:
    """The verbs of `menu`: of one store asked of the manager, of the next of its `Cache`, to which the manager passes them on."""
    return WAYS["cache" if STORES.index(store.kind) % 2 else "manager"](manager)


@pytest.fixture
def menu(store, manager):
    return verbs_of(store, manager)


@pytest.fixture
def still(store, clocked):
    """As `menu`, with a clock that moves when it is told to."""
    return verbs_of(store, clocked)


class TestAnswers:
    async def test_each_verb_says_what_it_did(self, menu, manager):
        """`set`, `add`, `touch` a bool; `delete`, `invalidate_pattern` a count; `ttl` seconds or None; `invalidate` whether delivered."""
        assert await menu.get("a") is None
        assert await menu.exists("a") is False
        assert await menu.ttl("a") is None
        assert await menu.touch("a") is False
        assert await menu.delete("a") == 0
        assert await menu.set("a", {"name": "Pizza"}) is True
        assert await menu.get("a") == {"name": "Pizza"}
        assert await menu.add("a", 2) is False
        assert await menu.exists("a") is True
        assert await menu.touch("a") is True
        left = await menu.ttl("a")
        assert isinstance(left, float)
        assert 3595 < left <= 3600
        assert await menu.mset({"b": 1, "c": 2}) is True
        assert await menu.mget(["c", "x", "b"]) == [2, None, 1]
        assert await menu.get_many(["c", "x", "b"]) == {"c": 2, "b": 1}
        assert await menu.get_or_load("b", lambda: 9) == 1
        assert await menu.get_or_load_many(["b", "d"], lambda keys: dict.fromkeys(keys, 9)) == {"b": 1, "d": 9}
        assert await menu.delete("a", "b", "a", "nothing") == 2
        assert await menu.invalidate_pattern("?") == 2
        assert await menu.add("a", 2) is True
        assert await menu.invalidate() is True
        assert await menu.exists("a") is False
        assert await manager.caches["menu"].clear_namespace() is True

    async def test_types_are_apart(self, manager):
        """The same key in another type is another entry, for every verb."""
        await manager.set("menu", "a", 1)
        assert await manager.get("api", "a") is None
        assert await manager.exists("api", "a") is False
        assert await manager.delete("api", "a") == 0
        assert await manager.touch("api", "a") is False
        assert await manager.invalidate_pattern("api", "*") == 0
        await manager.invalidate("api")
        await manager.caches["api"].clear_namespace()
        assert await manager.add("api", "a", 2) is True
        assert (await manager.get("menu", "a"), await manager.get("api", "a")) == (1, 2)

    @pytest.mark.parametrize("value", [None, 0, "", False, [], {}, b"", (), frozenset(), 0.0, Decimal(0), dt.timedelta(0)], ids=repr)
    async def test_falsy_values_and_none_are_hits_in_every_verb(self, manager, value):
        """Nothing asks whether a value is true: a stored None, too, is a value."""

        def load(*args):
            raise AssertionError("it is stored")

        menu, none = manager.caches["menu"], object()
        await menu.set("a", value)
        found = [
            await menu.get("a", default=none),
            *await menu.mget(["a"], default=none),
            (await menu.get_many(["a"]))["a"],
            await menu.get_or_load("a", load),
            (await menu.get_or_load_many(["a"], load))["a"],
        ]
        assert [difference(value, one) for one in found] == [None] * 5
        assert await menu.exists("a") is True
        assert await menu.add("a", 1) is False
        assert menu.stats()["misses"] == 0

    async def test_default_is_given_back_as_the_very_object(self, menu):
        default = object()
        assert await menu.get("a", default=default) is default
        assert await menu.mget(["a", "b"], default=default) == [default, default]
        assert await menu.get("a", default=None) is None
        await menu.set("a", None)
        assert await menu.get("a", default=default) is None

    async def test_as_type_narrows_and_another_type_is_a_miss(self, menu):
        """A stored `int` is no `str`; what was stored without a type is served to those for whose type it is one."""
        await menu.set("n", 5)
        assert await menu.get("n", as_type=int) == 5
        assert await menu.get("n", as_type=str) is None
        assert await menu.get("n", as_type=str, default="none") == "none"
        assert await menu.get("n", as_type=bool) is None
        assert await menu.get_many(["n"], as_type=int) == {"n": 5}
        assert await menu.get_many(["n"], as_type=str) == {}
        assert await menu.mget(["n", "x"], as_type=str, default="") == ["", ""]
        assert await menu.get_or_load("n", lambda: "five", as_type=str) == "five"
        assert await menu.get("n", as_type=str) == "five"
        await menu.set("l", [1, 2], as_type=list[int])
        assert await menu.get("l") == [1, 2]
        assert await menu.get("l", as_type=list[str]) is None

    async def test_each_answer_is_the_caller_s_own(self, menu):
        """Changing what was set, or what was got, changes nobody else's."""
        given = {"sizes": [1]}
        await menu.set("a", given)
        given["sizes"].append(2)
        one, two = await menu.mget(["a", "a"])
        assert one == two == {"sizes": [1]}
        one["sizes"].append(3)
        assert two == await menu.get("a") == (await menu.get_many(["a"]))["a"] == {"sizes": [1]}

    async def test_mset_is_refused_whole(self, menu):
        """One value that cannot be stored: none is, and what was there stays."""
        await menu.set("a", "old")
        with pytest.raises(SerializationError, match=r"value\['x'\]"):
            await menu.mset({"a": "new", "b": {"x": object()}})
        with pytest.raises(ValueTooLargeError):
            await menu.mset({"a": "new", "b": "x" * 100}, max_value_bytes=50)
        with pytest.raises(KeyPartError):
            await menu.mset({"a": "new", 5: "five"})
        assert await menu.mget(["a", "b"]) == ["old", None]


LIVES: dict[str, tuple[Any, float]] = {
    "enum": (CacheTTL.MENU_ITEMS, 3600),
    "timedelta": (dt.timedelta(minutes=2), 120),
    "90s": ("90s", 90),
    "5m": ("5m", 300),
    "2h": ("2h", 7200),
    "1d": ("1d", 86400),
    "1h30m": ("1h30m", 5400),
    "float": (0.5, 0.5),
    "int": (90, 90),
    "forever": (FOREVER, math.inf),
    "none": (None, 3600),
}
WRONG_LIVES: dict[str, Any] = {
    "negative": -1,
    "small": -0.001,
    "true": True,
    "false": False,
    "past": dt.timedelta(-1),
    "nan": math.nan,
    "inf": math.inf,
    "unit": "5x",
    "bare": "90",
    "empty": "",
    "sign": "-5m",
    "space": "5 m",
    "list": [5],
    "callable": lambda result: 5,
}


class TestLives:
    @pytest.mark.parametrize(("ttl", "seconds"), LIVES.values(), ids=LIVES)
    async def test_every_form_in_every_verb(self, still, ttl, seconds):
        """Seconds, a timedelta, a `CacheTTL`, text, FOREVER; None is the policy's."""
        await still.set("set", 1, ttl=ttl)
        await still.add("add", 1, ttl=ttl)
        await still.mset({"mset": 1}, ttl=ttl)
        await still.get_or_load("load", lambda: 1, ttl=ttl)
        await still.get_or_load_many(["many"], lambda keys: {"many": 1}, ttl=ttl)
        await still.set("touch", 1, ttl=5)
        assert await still.touch("touch", ttl) is True
        assert [await still.ttl(key) for key in ("set", "add", "mset", "load", "many", "touch")] == [pytest.approx(seconds)] * 6

    @pytest.mark.parametrize("ttl", WRONG_LIVES.values(), ids=WRONG_LIVES)
    async def test_what_is_no_ttl_is_a_value_error_and_changes_nothing(self, clock, ttl):
        def load(*args):
            raise AssertionError("it is refused before")

        async with CacheManager(clock=clock) as manager:
            menu = manager.caches["menu"]
            await menu.set("a", "old", ttl=50)
            for use in (
                menu.set("a", 1, ttl=ttl),
                menu.add("b", 1, ttl=ttl),
                menu.mset({"a": 1}, ttl=ttl),
                menu.touch("a", ttl),
                menu.get_or_load("b", load, ttl=ttl),
                menu.get_or_load_many(["b"], load, ttl=ttl),
            ):
                with pytest.raises(ValueError, match="TTL") as caught:
                    await use
                assert isinstance(caught.value, CacheError)
            for setting in (lambda: CachePolicy(ttl=ttl), lambda: manager.override("menu", ttl=ttl)):
                with pytest.raises(ValueError, match="TTL"):
                    setting()
            assert await menu.ttl("a") == 50
            assert await menu.mget(["a", "b"]) == ["old", None]

    async def test_a_life_ends_when_it_is_over_and_not_before(self, still, clock):
        """A hit until just before the end, absent for every verb at the end."""
        await still.set("a", 1, ttl=10)
        clock.advance(9.999)
        assert await still.get("a") == 1
        assert await still.exists("a") is True
        assert await still.ttl("a") == pytest.approx(0.001)
        clock.advance(0.001)
        assert await still.get("a") is None
        assert (await still.exists("a"), await still.ttl("a"), await still.touch("a", 60)) == (False, None, False)
        assert await still.get_many(["a"]) == {}
        assert await still.add("a", 2, ttl=10) is True
        assert await still.get("a") == 2

    async def test_touch_counts_from_now(self, still, clock):
        await still.set("a", 1, ttl=10, tags=["x"])
        clock.advance(8)
        assert await still.touch("a", 5) is True
        clock.advance(4)
        assert (await still.get("a"), await still.ttl("a")) == (1, pytest.approx(1))
        assert await still.touch("a", FOREVER) is True
        clock.advance(10**8)
        assert (await still.get("a"), await still.ttl("a")) == (1, math.inf)
        assert await still.touch("a", "5s") is True
        assert await still.ttl("a") == pytest.approx(5)
        assert await still.invalidate(tags=["x"]) is True
        assert await still.get("a") is None

    async def test_the_server_lets_go_of_what_has_expired(self, remote):
        """A life is the server's too, so that nothing stays behind; a FOREVER entry has none."""
        manager, client = remote.open(), remote.client()
        await manager.set("menu", "for ever", 1, ttl=FOREVER)
        for give in (
            manager.set("menu", "a", 1, ttl=0.03),
            manager.add("menu", "b", 1, ttl=0.03),
            manager.get_or_load("menu", "c", lambda: 1, ttl=0.03),
        ):
            await give
        await manager.set("menu", "d", 1, ttl=FOREVER)
        await manager.touch("menu", "d", 0.03)
        with client:
            started = running_time()
            values = {b"shop:menu:=a", b"shop:menu:=b", b"shop:menu:=c", b"shop:menu:=d"}
            while any(client.exists(value) for value in values):
                assert running_time() - started < 3
                await asyncio.sleep(0.005)
            assert client.pttl("shop:menu:=for%20ever") == -1
        assert await manager.mget("menu", ["a", "b", "c", "d", "for ever"]) == [None] * 4 + [1]

    @pytest.mark.parametrize("jitter", [0, 0.25, 0.9])
    async def test_jitter_only_shortens(self, still, jitter):
        """By chance, by at most its share of the ttl; an explicit ttl is no exception."""
        keys = [str(n) for n in range(60)]
        await still.mset(dict.fromkeys(keys, 1), ttl=100, jitter=jitter)
        await still.get_or_load_many(["load", "many"], lambda keys: dict.fromkeys(keys, 1), ttl=100, jitter=jitter)
        left = [await still.ttl(key) for key in (*keys, "load", "many")]
        assert all(100 * (1 - jitter) - 0.001 <= one <= 100.001 for one in left)
        assert (len(set(left)) > 30) is (jitter > 0)
        assert min(left) < 100 - 40 * jitter or not jitter

    async def test_a_ttl_of_0_stores_nothing_and_removes_what_was_there(self, menu):
        await menu.mset({"a": 1, "b": 1, "c": 1, "d": 1, "e": 1})
        assert await menu.set("a", 2, ttl=0) is True
        assert await menu.mset({"b": 2, "x": 2}, ttl="0s") is True
        assert await menu.touch("c", dt.timedelta(0)) is True
        assert await menu.mget(["a", "b", "c", "x"]) == [None] * 4
        assert await menu.get_or_load("d", lambda: 2, ttl=0) == 1
        assert await menu.get_or_load("y", lambda: 2, ttl=0) == 2
        assert await menu.get_or_load_many(["e", "z"], lambda keys: dict.fromkeys(keys, 2), ttl=0) == {"e": 1, "z": 2}
        await menu.add("w", 2, ttl=0)
        assert await menu.get_many(["d", "e", "w", "x", "y", "z"]) == {"d": 1, "e": 1}

    async def test_a_loaded_life_counts_from_the_load_s_start(self, still, clock):
        async def load():
            clock.advance(7)
            return 1

        await still.get_or_load("a", load, ttl=10)
        assert await still.ttl("a") == pytest.approx(3)

    async def test_a_policy_s_ttl_in_every_form(self, store, clock):
        manager = store.open(clock=clock)
        for n, (ttl, seconds) in enumerate(LIVES.values()):
            if ttl is not None:
                cache = manager.register(f"type{n}", CachePolicy(ttl=ttl))
                await cache.set("a", 1)
                assert await cache.ttl("a") == pytest.approx(seconds)
        manager.register("none", CachePolicy(ttl=0))
        assert await manager.set("none", "a", 1) is True
        assert await manager.exists("none", "a") is False


async def _by_type(manager: CacheManager, store: Store) -> None:
    await manager.invalidate("menu")


async def _by_tag(manager: CacheManager, store: Store) -> None:
    await manager.invalidate("menu", tags=["x"])


async def _by_tag_everywhere(manager: CacheManager, store: Store) -> None:
    await manager.invalidate_tags("x")


async def _by_the_none_known_twin(manager: CacheManager, store: Store) -> None:
    await manager.invalidate("menu", tenant="anybody")


async def _by_garbage(manager: CacheManager, store: Store) -> None:
    with store.client() as client:
        client.set("shop:menu:=a", b"AU\x01 of another program")


async def _by_truncation(manager: CacheManager, store: Store) -> None:
    with store.client() as client:
        client.set("shop:menu:=a", client.get("shop:menu:=a")[:-1])


async def _by_another_key_s_entry(manager: CacheManager, store: Store) -> None:
    await manager.set("menu", "b", "b's")
    with store.client() as client:
        client.set("shop:menu:=a", client.get("shop:menu:=b"))


VOIDED = [_by_type, _by_tag, _by_tag_everywhere, _by_the_none_known_twin]
SPOILT = [_by_garbage, _by_truncation, _by_another_key_s_entry]


class TestAbsent:
    """An entry that a read would not serve is absent for `add`, `exists`, `ttl`, `touch`; `delete` counts what was stored."""

    @staticmethod
    async def check(menu: Any, make: Callable[[], Any]) -> None:
        await make()
        assert await menu.get("a", default=MISSING) is MISSING
        assert (await menu.exists("a"), await menu.ttl("a"), await menu.touch("a", 60)) == (False, None, False)
        assert await menu.get("a", default=MISSING) is MISSING
        assert await menu.add("a", "new") is True
        assert (await menu.get("a"), await menu.exists("a")) == ("new", True)
        assert await menu.add("a", "newer") is False
        await make()
        assert await menu.delete("a") == 1
        assert await menu.delete("a") == 0

    @pytest.mark.parametrize("void", VOIDED, ids=lambda one: one.__name__[1:])
    async def test_invalidated(self, menu, manager, store, void):
        async def make():
            await manager.set("menu", "a", "old", tags=["x"])
            await void(manager, store)

        await self.check(menu, make)

    @pytest.mark.parametrize("void", VOIDED, ids=lambda one: one.__name__[1:])
    async def test_invalidated_by_another_process(self, menu, manager, peer, store, void):
        async def make():
            await manager.set("menu", "a", "old", tags=["x"])
            await void(peer, store)

        await self.check(menu, make)

    @pytest.mark.parametrize("spoil", SPOILT, ids=lambda one: one.__name__[1:])
    async def test_not_ours(self, remote, spoil):
        manager = remote.open()

        async def make():
            await manager.set("menu", "a", "old")
            await spoil(manager, remote)

        await self.check(verbs_of(remote, manager), make)
        assert manager.stats()["menu"]["undecodable"] > 0

    async def test_of_another_declared_type(self, menu):
        """What a read with `as_type=` would not serve, `add` with it replaces; without one, some read would serve it."""
        await menu.set("a", [1], as_type=list[int])
        assert await menu.add("a", ["x"], as_type=list[int]) is False
        assert await menu.add("a", ["x"]) is False
        assert await menu.add("a", ["x"], as_type=list[str]) is True
        assert await menu.get("a", as_type=list[str]) == ["x"]
        assert (await menu.exists("a"), await menu.touch("a", 60)) == (True, True)

    async def test_a_value_of_another_kind_at_our_key(self, remote):
        """A hash that somebody put there by hand is no entry: it is absent, and can be set over and deleted."""
        menu = verbs_of(remote, remote.open())
        with remote.client() as client:
            client.hset("shop:menu:=a", "field", "value")
            assert await menu.get("a") is None
            assert (await menu.exists("a"), await menu.ttl("a"), await menu.touch("a", 60)) == (False, None, False)
            assert await menu.get_or_load("a", lambda: 1) == 1
            assert await menu.set("a", 2) is True
            assert await menu.get("a") == 2
            client.delete("shop:menu:=a")
            client.hset("shop:menu:=a", "field", "value")
            assert await menu.delete("a") == 1


class TestAdd:
    @pytest.mark.parametrize("before", ["nothing", "an invalidated entry", "garbage"])
    async def test_exactly_one_of_50_wins(self, store, manager, peer, before):
        """Only if absent, whoever asks, in whatever process, at the same moment."""
        if before == "an invalidated entry":
            await manager.set("menu", "a", "old")
            await peer.invalidate("menu")
        if before == "garbage" and not store.is_memory:
            with store.client() as client:
                client.set("shop:menu:=a", "garbage")
        won = await asyncio.gather(*((manager, peer)[n % 2].add("menu", "a", n) for n in range(50)))
        assert won.count(True) == 1
        assert won.count(False) == 49
        assert await manager.get("menu", "a") == await peer.get("menu", "a") == won.index(True)

    async def test_one_that_loses_changes_nothing(self, still, clock):
        await still.set("a", "old", ttl=10, tags=["x"])
        clock.advance(1)
        assert await still.add("a", "new", ttl=100, tags=["y"]) is False
        assert (await still.get("a"), await still.ttl("a")) == ("old", pytest.approx(9))
        await still.invalidate(tags=["y"])
        assert await still.get("a") == "old"

    async def test_after_a_delete_by_another_process(self, manager, peer):
        await manager.add("menu", "a", 1)
        assert await peer.add("menu", "a", 2) is False
        assert await peer.delete("menu", "a") == 1
        assert await manager.add("menu", "a", 3) is True
        assert await peer.get("menu", "a") == 3

    async def test_what_cannot_be_stored_is_refused_before_it_is_looked(self, menu):
        await menu.set("a", 1)
        with pytest.raises(SerializationError):
            await menu.add("a", object())
        with pytest.raises(ValueTooLargeError):
            await menu.add("a", "x" * 100, max_value_bytes=50)


USES: dict[str, Callable[[Any, str], Any]] = {
    "get": lambda m, t: m.get(t, "a"),
    "set": lambda m, t: m.set(t, "a", 1),
    "add": lambda m, t: m.add(t, "a", 1),
    "get_or_load": lambda m, t: m.get_or_load(t, "a", lambda: 1),
    "mget": lambda m, t: m.mget(t, ["a"]),
    "mset": lambda m, t: m.mset(t, {"a": 1}),
    "get_many": lambda m, t: m.get_many(t, ["a"]),
    "get_or_load_many": lambda m, t: m.get_or_load_many(t, ["a"], dict.fromkeys),
    "delete": lambda m, t: m.delete(t, "a"),
    "exists": lambda m, t: m.exists(t, "a"),
    "ttl": lambda m, t: m.ttl(t, "a"),
    "touch": lambda m, t: m.touch(t, "a"),
    "invalidate": lambda m, t: m.invalidate(t),
    "invalidate_pattern": lambda m, t: m.invalidate_pattern(t, "*"),
}


class TestRefusals:
    @pytest.mark.parametrize("use", USES.values(), ids=USES)
    async def test_an_unknown_type_names_the_closest_and_is_a_key_error(self, use):
        async with CacheManager() as manager:
            for name in ("mneu", "menus", "Menu"):
                with pytest.raises(KeyError) as caught:
                    await use(manager, name)
                assert isinstance(caught.value, UnknownCacheTypeError)
                assert "did you mean 'menu'?" in str(caught.value)
                assert f"register({name!r}" in str(caught.value)
            with pytest.raises(UnknownCacheTypeError, match="there are: .*menu"):
                await use(manager, "zzzzzzzz")
            manager.register("mneu", CachePolicy())
            await use(manager, "mneu")

    async def test_an_unknown_type_in_the_mapping_and_in_settings(self):
        async with CacheManager() as manager:
            for use in (
                lambda: manager.caches["mneu"],
                lambda: manager.override("mneu", ttl=5),
                lambda: manager.policy("mneu"),
                lambda: manager.counts("mneu"),
            ):
                with pytest.raises(UnknownCacheTypeError, match="'menu'"):
                    use()

    @pytest.mark.parametrize(
        "use",
        [
            lambda menu, **options: menu.set("a", 1, **options),
            lambda menu, **options: menu.add("a", 1, **options),
            lambda menu, **options: menu.mset({"a": 1}, **options),
            lambda menu, **options: menu.get_or_load("a", lambda: 1, **options),
            lambda menu, **options: menu.get_or_load_many(["a"], lambda keys: dict.fromkeys(keys, 1), **options),
        ],
        ids=["set", "add", "mset", "get_or_load", "get_or_load_many"],
    )
    async def test_options_that_are_unknown_or_not_built_yet(self, way, use):
        """Refused and never ignored; one that says what is so anyway passes."""
        given = {
            "l1": True,
            "l1_ttl": 5,
            "l1_bytes": 5,
            "l1_entries": 5,
            "codec": "json",
            "compress_over": 5,
            "encrypt": True,
        }
        assert given.keys() == NOT_YET.keys()
        async with CacheManager() as manager:
            menu = way(manager)
            for name, value in given.items():
                with pytest.raises(ConfigurationError, match=f"^{name}=.* not in this version"):
                    await use(menu, **{name: value})
            for unknown in ("tll", "expire", "namespace", "default"):
                with pytest.raises(TypeError, match=unknown):
                    await use(menu, **{unknown: 5})
            assert await menu.get("a") is None
            await use(menu, sliding=False, stale=0, lease=False, l1=False, encrypt=False)
            assert await menu.exists("a") is True

    @pytest.mark.parametrize(
        ("options", "name"),
        [
            ({"jitter": 1}, "jitter"),
            ({"jitter": -0.1}, "jitter"),
            ({"jitter": True}, "jitter"),
            ({"jitter": "0.1"}, "jitter"),
            ({"jitter": math.nan}, "jitter"),
            ({"share": 1}, "share"),
            ({"share": None}, "share"),
            ({"max_value_bytes": 0}, "max_value_bytes"),
            ({"max_value_bytes": 1.5}, "max_value_bytes"),
            ({"max_value_bytes": True}, "max_value_bytes"),
            ({"tenant_aware": "yes"}, "tenant_aware"),
            ({"tenant_aware": None}, "tenant_aware"),
            ({"tenant_aware": 1}, "tenant_aware"),
            ({"user_aware": 0}, "user_aware"),
            ({"user_aware": "Known"}, "user_aware"),
        ],
        ids=str,
    )
    async def test_policy_options_out_of_their_range(self, options, name):
        """In a policy, in a call, in an override; what merely equals True or False is neither."""
        async with CacheManager() as manager:
            for use in (
                lambda: CachePolicy(**options),
                lambda: manager.override("menu", **options),
            ):
                with pytest.raises(ConfigurationError, match=name):
                    use()
            with pytest.raises(ConfigurationError, match=name):
                await manager.set("menu", "a", 1, **options)

    async def test_verbs_without_a_policy_take_none(self, menu):
        for use in (
            lambda: menu.get("a", ttl=5),
            lambda: menu.mget(["a"], ttl=5),
            lambda: menu.get_many(["a"], default=5),
            lambda: menu.delete("a", ttl=5),
            lambda: menu.exists("a", ttl=5),
            lambda: menu.ttl("a", as_type=int),
            lambda: menu.touch("a", 5, jitter=0.5),
            lambda: menu.invalidate(ttl=5),
        ):
            with pytest.raises(TypeError):
                await use()

    @pytest.mark.parametrize("key", [5, None, b"a", ("a",), True, 1.5, MISSING], ids=repr)
    async def test_a_key_is_text_for_every_verb(self, way, key):
        async with CacheManager() as manager:
            menu = way(manager)
            for use in (
                menu.get(key),
                menu.set(key, 1),
                menu.add(key, 1),
                menu.get_or_load(key, lambda: 1),
                menu.mget([key]),
                menu.get_many([key]),
                menu.delete("a", key),
                menu.exists(key),
                menu.ttl(key),
                menu.touch(key),
            ):
                with pytest.raises(KeyPartError, match=rf"not {type(key).__name__}.*f'item:"):
                    await use

    async def test_one_text_in_place_of_a_list(self, menu):
        """It would be taken letter by letter."""
        for use in (
            menu.mget("abc"),
            menu.mget(b"abc"),
            menu.get_many("abc"),
            menu.get_or_load_many("abc", dict.fromkeys),
            menu.set("a", 1, tags="abc"),
            menu.add("a", 1, tags="abc"),
            menu.mset({"a": 1}, tags="abc"),
            menu.get_or_load("a", lambda: 1, tags="abc"),
            menu.get_or_load_many(["a"], dict.fromkeys, tags="abc"),
            menu.invalidate(tags="abc"),
        ):
            with pytest.raises(TypeError, match=r"list of texts, not one text: \["):
                await use
        assert await menu.get("a") is None

    @pytest.mark.parametrize("tag", [5, None, b"x", "", ("x",)], ids=repr)
    async def test_a_tag_is_text_that_is_not_empty(self, menu, manager, tag):
        for use in (
            menu.set("a", 1, tags=[tag]),
            menu.add("a", 1, tags=["x", tag]),
            menu.get_or_load("a", lambda: 1, tags=[tag]),
            menu.invalidate(tags=[tag]),
            manager.invalidate_tags(tag),
        ):
            with pytest.raises(TypeError, match="tag"):
                await use
        assert await menu.get("a") is None


class TestPolicies:
    async def test_a_call_overrides_what_its_type_says(self, store, clock):
        """For that call alone, and the type's policy may be changed under those who hold its `Cache`."""
        manager = store.open(clock=clock, policies={"orders": CachePolicy(ttl=10, max_value_bytes=50)})
        orders = manager.caches["orders"]
        await orders.set("a", 1, ttl=20)
        await orders.set("b", 1)
        assert (await orders.ttl("a"), await orders.ttl("b")) == (pytest.approx(20), pytest.approx(10))
        with pytest.raises(ValueTooLargeError, match="max_value_bytes=50"):
            await orders.set("c", "x" * 60)
        assert await orders.set("c", "x" * 60, max_value_bytes=100) is True
        manager.override("orders", ttl=30)
        await orders.set("a", 1)
        assert await orders.ttl("a") == pytest.approx(30)
        assert orders.policy.max_value_bytes == 50
        assert await orders.touch("b") is True
        assert await orders.ttl("b") == pytest.approx(30)

    @pytest.mark.parametrize("over", [-1, 0, 1])
    async def test_a_value_at_its_limit(self, menu, over):
        """`max_value_bytes` is what the value takes once serialised: at the limit it is stored, above it is not."""
        value = "x" * (98 + over)
        if over > 0:
            with pytest.raises(ValueTooLargeError, match="101 bytes"):
                await menu.set("a", value, max_value_bytes=100)
            assert await menu.get_or_load("a", lambda: value, max_value_bytes=100) == value
            assert await menu.get("a") is None
        else:
            await menu.set("a", value, max_value_bytes=100)
            assert await menu.get("a") == value

    async def test_tenant_aware_by_call(self, menu):
        """Only `False`, said in so many words, shares; such an entry goes with no tenant's invalidation."""
        with tenant_scope(1):
            await menu.set("a", "everybody's", tenant_aware=False)
            assert await menu.get("a") is None
        assert await menu.get("a") == "everybody's"
        await menu.invalidate(tenant=1)
        assert await menu.get("a") == "everybody's"
        await menu.invalidate()
        assert await menu.get("a") is None
        with pytest.raises(MissingTenantError, match="tenant_scope"):
            await menu.set("a", 1, tenant_aware=True)
        with pytest.raises(MissingUserError, match="user_scope"):
            await menu.get_or_load("a", lambda: 1, user_aware=True)
        assert await menu.set("a", 1, tenant=1, user=5, tenant_aware=True, user_aware=True) is True

    async def test_user_aware_by_call(self, menu):
        with user_scope(5):
            await menu.set("a", "five's", user_aware="known")
            await menu.set("b", "everybody's")
        assert await menu.mget(["a", "b"]) == [None, "everybody's"]
        assert await menu.get("a", user=5) == "five's"
        await menu.invalidate(user=5)
        assert await menu.get("a", user=5) is None
        assert await menu.get("b") == "everybody's"

    async def test_every_verb_takes_the_owner(self, manager):
        """`tenant=` and `user=` override the scope in each of them."""
        menu, whose = manager.caches["menu"], {"tenant": 1, "user": 5}
        with tenant_scope(2), user_scope(6):
            await menu.set("a", 1, **whose)
            await menu.mset({"b": 2}, **whose)
            assert await menu.add("c", 3, **whose) is True
            assert await menu.add("c", 3, **whose) is False
            await menu.get_or_load("d", lambda: 4, **whose)
            await menu.get_or_load_many(["e"], lambda keys: {"e": 5}, **whose)
            assert await menu.mget(list("abcde"), **whose) == [1, 2, 3, 4, 5]
            assert await menu.mget(list("abcde")) == [None] * 5
            assert len(await menu.get_many(list("abcde"), **whose)) == 5
            assert (await menu.get("a", **whose), await menu.exists("a", **whose), await menu.touch("a", 9, **whose)) == (1, True, True)
            assert 0 < await menu.ttl("a", **whose) <= 9
            assert await menu.delete("a", "b", **whose) == 2
            assert await menu.delete("c") == 0
        with tenant_scope(1), user_scope(5):
            assert await menu.get("c") is None
            assert await menu.get("c", **whose) == 3

    async def test_a_number_and_its_text_are_one_id(self, menu):
        """Ids are compared as text; a UUID as it is usually written."""
        await menu.set("a", 1, tenant=7)
        await menu.set("b", 1, tenant=UUID(int=7))
        assert await menu.get("a", tenant="7") == 1
        assert await menu.get("b", tenant=str(UUID(int=7))) == 1
        await menu.invalidate(tenant="7")
        assert (await menu.get("a", tenant=7), await menu.get("b", tenant=UUID(int=7))) == (None, 1)


ODD_KEYS = [
    *("", " ", "a", "A", "a ", "a:b", "a::b", ":", "=a", "@a", "{a}", "{", "}", "%", "%41", "~", "*", "?", "[a]", "\\", "\n", "\0", "t1:"),
    *("é", "e\u0301", "日本", "\U0001f355", "\ud800", "a" * 200, "a" * 201, "a" * 300 + "b", "a" * 300 + "c", "é" * 300, "shop:menu:=a"),
]


class TestKeys:
    async def test_odd_keys_are_each_their_own(self, menu):
        """Any text is a key, of any length; answers come under the text that was asked for."""
        items = {key: n for n, key in enumerate(ODD_KEYS)}
        assert len(items) == len(ODD_KEYS)
        await menu.mset(items)
        assert await menu.mget(ODD_KEYS) == list(range(len(ODD_KEYS)))
        assert await menu.get_many(ODD_KEYS) == items
        for key, n in items.items():
            assert await menu.get(key) == n
            assert await menu.add(key, "other") is False
        assert await menu.delete(*ODD_KEYS) == len(ODD_KEYS)

    async def test_text_of_a_subclass_is_text(self, menu):
        class Name(str):
            __slots__ = ()

            def __str__(self) -> str:
                return "something else"

            def __format__(self, spec: str) -> str:
                return "something else"

        await menu.set(Name("a"), 1)
        assert await menu.get("a") == 1
        assert await menu.get_many([Name("a")]) == {"a": 1}

    async def test_lists_of_keys_may_be_any_iterable(self, menu):
        await menu.mset({"a": 1, "b": 2}, tags=(tag for tag in ("x", "x")))
        assert await menu.mget(key for key in "ab") == [1, 2]
        assert await menu.get_many({"a": 0, "b": 0}.keys()) == {"a": 1, "b": 2}
        assert await menu.get_or_load_many((key for key in "abca"), lambda keys: dict.fromkeys(keys, 3)) == {"a": 1, "b": 2, "c": 3}
        assert await menu.mget([]) == []
        assert await menu.get_many([]) == {}
        assert await menu.get_or_load_many([], dict.fromkeys) == {}
        assert await menu.mset({}) is True
        assert await menu.delete() == 0
        await menu.invalidate(tags={"x"})
        assert await menu.mget("ab"[n] for n in range(2)) == [None, None]

    async def test_a_thousand_keys_at_once(self, menu):
        """More than one batch holds, with values of their own."""
        items = {f"item:{n}": {"n": n} for n in range(1100)}
        assert await menu.mset(items) is True
        assert await menu.mget(items) == list(items.values())
        assert await menu.get_or_load_many([*items, "new"], lambda keys: dict.fromkeys(keys, 0)) == {**items, "new": 0}
        assert await menu.delete(*items) == 1100


class Point(NamedTuple):
    x: int
    y: float


VALUES: dict[str, Any] = {
    "none": None,
    "bools": [True, False, 1, 0, 1.0, 0.0, -0.0],
    "ints": [2**63, 2**64, -(2**63) - 1, 2**200],
    "floats": [0.1, 1e308, 5e-324, math.inf, -math.inf, math.nan],
    "text": ["", "é", "\U0001f355", "\ud800", "\0", '"\\'],
    "aware": dt.datetime(2026, 11, 1, 1, 30, tzinfo=ZoneInfo("America/New_York"), fold=1),
    "offset": dt.datetime(2026, 11, 1, 1, 30, 0, 5, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=45), "NPT")),
    "naive": dt.datetime(2026, 11, 1, 1, 30),
    "date": dt.date(2026, 11, 1),
    "time": dt.time(12, 30, tzinfo=dt.UTC),
    "delta": dt.timedelta(days=-1, microseconds=1),
    "decimal": [Decimal("1.10"), Decimal("1.1"), Decimal("-0"), Decimal("1E+5")],
    "uuid": UUID(int=7),
    "tuple": (1, (2, [3, (4,)])),
    "sets": [{1, 2}, frozenset({"a"}), set()],
    "bytes": [b"\x00\xff", bytearray(b"ab")],
    "complex": complex(1, -0.0),
    "keys": {1: "a", "1": "b", (1, 2): "c", None: "d", b"x": {"$": ["t", [1]]}},
    "order": {"b": 1, "a": 2},
    "deep": {"menu": [{"price": Decimal("12.50"), "at": dt.date(2026, 1, 1), "tags": {"hot"}}] * 3},
}


class TestSameValueFromEveryStore:
    @pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
    async def test_it_comes_back_equal_and_of_the_same_types(self, manager, peer, value):
        """To whoever sets and gets it, in this process and in another, and to whoever loads it."""
        await manager.set("menu", "set", value)
        loaded = await manager.get_or_load("menu", "load", lambda: value)
        batch = await manager.get_or_load_many("menu", ["many"], lambda keys: {"many": value})
        added = await manager.add("menu", "add", value)
        assert added is True
        got = [loaded, batch["many"], *await peer.mget("menu", ["set", "add", *([] if value is None else ["load", "many"])])]
        assert [difference(value, one) for one in got] == [None] * len(got)

    async def test_what_cannot_be_stored_is_refused_alike(self, menu):
        """By the same error, before anything is asked of a store, with the path in the value."""

        class Odd(dict):
            pass

        for value, path in (
            (object(), "value is"),
            ({"a": [1, object()]}, r"value\['a'\]\[1\]"),
            (Odd(), "Odd"),
            ([Point(1, 2.0)], r"value\[0\]"),
            (iter([]), "iterator"),
            (ValueError("x"), "ValueError"),
        ):
            with pytest.raises(SerializationError, match=path) as caught:
                await menu.set("a", value)
            assert "as_type=" in str(caught.value)
            assert await menu.get_or_load("a", lambda value=value: value) is value
        assert await menu.get("a") is None
        ring: list[Any] = []
        ring.append(ring)
        with pytest.raises(SerializationError, match="contains itself"):
            await menu.set("a", ring)

    async def test_own_classes_with_as_type(self, menu):
        await menu.set("a", [Point(1, 2.0)], as_type=list[Point])
        got = await menu.get("a", as_type=list[Point])
        assert (got, type(got[0])) == ([Point(1, 2.0)], Point)
        assert await menu.get("a") is None


class TestCounting:
    async def test_every_counter(self, store, manager, peer):
        """Hits and misses by key; sets that were written; deletes by entry; loads, those that joined, those that failed."""
        menu = manager.caches["menu"]

        async def load():
            await asyncio.sleep(0)
            return 1

        async def fail():
            raise LookupError

        await asyncio.gather(*(menu.get_or_load("a", load) for _ in range(5)))
        stats = menu.stats()
        assert (stats["misses"], stats["coalesced"], stats["loads"], stats["sets"], stats["hits"]) == (5, 4, 1, 1, 0)
        with pytest.raises(LookupError):
            await menu.get_or_load("b", fail)
        assert await menu.mget(["a", "a", "x"]) == [1, 1, None]
        await menu.get_many(["a", "x"])
        await menu.add("a", 2)
        await menu.add("c", 2)
        await menu.mset({"d": 1, "e": 1})
        await menu.delete("d", "e", "f")
        await menu.get_or_load("odd", lambda: object())
        await menu.invalidate()
        await menu.clear_namespace()
        stats = menu.stats()
        wanted = {"hits": 3, "misses": 9, "loads": 3, "load_errors": 1, "sets": 4, "deletes": 2, "unstorable": 1, "invalidations": 2}
        assert {name: stats[name] for name in wanted} == wanted
        assert (stats["errors"], stats["undecodable"]) == (0, 0)
        assert stats["hit_rate"] == 3 / 12
        assert stats["load_seconds"] > 0
        assert manager.stats()["menu"] == stats
        if not store.is_memory:
            assert peer.stats()["menu"] == Counts().snapshot()

    async def test_looking_counts_nothing(self, manager):
        """`exists`, `ttl` and `touch` are no reads."""
        menu = manager.caches["menu"]
        await menu.set("a", 1)
        await menu.exists("a"), await menu.ttl("b"), await menu.touch("a")
        assert (menu.stats()["hits"], menu.stats()["misses"]) == (0, 0)
        assert menu.stats()["hit_rate"] == 0.0


class TestSwitches:
    async def test_disabled_reads_and_writes_nothing_but_clears(self, store, manager, peer):
        """Every verb but those that clear does nothing, and refuses what it always refuses."""
        await manager.mset("menu", {"a": 1, "b": 1, "c": 1})
        with manager.disabled():
            assert await manager.get("menu", "a", default=MISSING) is MISSING
            assert await manager.set("menu", "a", 2) is False
            assert await manager.mset("menu", {"x": 2}) is False
            assert await manager.add("menu", "x", 2) is False
            assert await manager.get_or_load("menu", "x", lambda: 2) == 2
            with pytest.raises(UnknownCacheTypeError):
                await manager.get("mneu", "a")
            with pytest.raises(ValueError, match="TTL"):
                await manager.set("menu", "a", 1, ttl=-1)
            assert await manager.delete("menu", "b") == 1
            if not store.is_memory:
                assert await peer.get("menu", "a") == 1
            assert await manager.invalidate_pattern("menu", "c") == 1
        assert await peer.mget("menu", ["a", "b", "c", "x"]) == [1, None, None, None]
        with manager.disabled():
            assert await manager.invalidate("menu") is True
        assert await peer.get("menu", "a") is None

    async def test_bypass_is_of_this_task_and_those_it_starts(self, manager):
        """It reads past the cache; what others load meanwhile is not joined, and what it loads is not stored."""
        await manager.set("menu", "a", "stored")
        begun, go = asyncio.Event(), asyncio.Event()

        async def load():
            begun.set()
            await go.wait()
            return "theirs"

        async with asyncio.TaskGroup() as group:
            other = group.create_task(manager.get_or_load("menu", "b", load))
            await begun.wait()
            with manager.bypass():
                child = group.create_task(manager.get("menu", "a"))
                assert await manager.get_or_load("menu", "b", lambda: "mine") == "mine"
                assert await manager.get_or_load_many("menu", ["a", "b"], lambda keys: dict.fromkeys(keys, "mine")) == {
                    "a": "mine",
                    "b": "mine",
                }
                assert (await manager.exists("menu", "a"), await manager.ttl("menu", "a")) == (False, None)
                assert await manager.set("menu", "c", 1) is True
            go.set()
        assert (child.result(), other.result()) == (None, "theirs")
        assert await manager.mget("menu", ["a", "b", "c"]) == ["stored", "theirs", 1]

    async def test_configure_is_for_before_the_first_use(self):
        """In place, then never again; any verb is a use."""
        for use in (
            lambda m: m.get("menu", "a"),
            lambda m: m.invalidate_tags("x"),
            lambda m: m.caches["menu"].delete("a"),
        ):
            manager = CacheManager()
            manager.configure(prefix="other", policies={"menu": CachePolicy(ttl=5)})
            assert (manager.policy("menu").life, manager.settings.prefix) == (5, "other")
            await use(manager)
            with pytest.raises(ConfigurationError, match="before its first use"):
                manager.configure(prefix="shop")
            await manager.aclose()

    async def test_a_clock_of_one_s_own_decides_about_lives(self, store):
        """Two processes whose clocks differ agree on what is stored, and differ by no more than their clocks do."""
        ahead, behind = store.open(clock=ManualClock(1_000_030.0)), store.open(clock=ManualClock())
        if store.is_memory:
            ahead = behind
        await behind.set("menu", "a", 1, ttl=60)
        assert await ahead.get("menu", "a") == 1
        assert await ahead.ttl("menu", "a") == pytest.approx(60 if store.is_memory else 30)
