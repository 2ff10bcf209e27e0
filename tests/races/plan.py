"""What is done in a run, as a function of its seed: the items there are, each caller's actions in their order, what befalls processes.

When things happen is not a function of anything: the same plan on another day crosses differently.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

TENANTS, USERS, TAGS = (1, 2, 3), (5, 6), ("red", "blue", "green")
LIVES = {"alpha": 60.0, "brief": 0.4}
JITTER = {"alpha": 0.0, "brief": 0.1}
PRICE, PAGE, SESSION = "races.price", "races.page", "races.session"


@dataclass(frozen=True, slots=True)
class Item:
    """One entry that can be cached, and what it depends on. `family` says how it is read: key, price, page, session."""

    index: int
    family: str
    cache_type: str
    tenant: int | None
    user: int | None
    tag: str

    @property
    def function(self) -> str | None:
        return {"price": PRICE, "page": PAGE, "session": SESSION}.get(self.family)

    @property
    def name(self) -> str:
        """The key that the manager's verbs take, of a key and of a page."""
        return f"page:{self.index}:{self.tag}" if self.family == "page" else f"k:{self.index}"

    @property
    def has_name(self) -> bool:
        return self.family in ("key", "page")


def items(count: int = 40) -> list[Item]:
    """So many items: of both types, with and without tenant and user, under each tag, and of all families."""
    made = []
    for n in range(count):
        kind = n % 8
        tag = TAGS[n // 8 % 3]
        tenant = TENANTS[n // 8 % 3]
        if kind == 3:
            made.append(Item(n, "price", "alpha", tenant, None, tag))
        elif kind == 5:
            made.append(Item(n, "page", "brief", None, USERS[n // 8 % 2], tag))
        elif kind == 7:
            made.append(Item(n, "session", "alpha", tenant, None, tag))
        else:  # two and two are alike, so that batches have something to ask for at once
            user = USERS[n // 8 % 2] if kind == 6 else None
            made.append(Item(n, "key", "brief" if kind in (4, 6) else "alpha", None if kind == 2 else tenant, user, tag))
    return made


@dataclass(frozen=True, slots=True)
class Target:
    """An invalidation: of a type, tenant, user, tag..., each None that does not narrow; or of a function, a pattern, one key."""

    kind: str
    cache_type: str | None = None
    tenant: int | None = None
    user: int | None = None
    tag: str | None = None
    function: str | None = None
    pattern: str | None = None
    index: int | None = None

    def __str__(self) -> str:
        told = (self.cache_type, self.tenant, self.user, self.tag, self.function, self.pattern, self.index)
        return " ".join(str(one) for one in told if one is not None)

    def covers(self, item: Item) -> bool:
        """Whether the contract says that this clears that. A type's tenant clears entries with none known, too."""
        if self.index is not None:
            return item.index == self.index
        if self.function is not None:
            return item.function == self.function
        if self.cache_type not in (None, item.cache_type):
            return False
        if self.pattern is not None:
            return self.pattern == "*" or (item.has_name and fnmatchcase(item.name, self.pattern))
        none_known = (None,) if self.cache_type is not None else ()
        if self.tenant is not None and item.tenant not in (self.tenant, *none_known):
            return False
        return self.user in (None, item.user) and self.tag in (None, item.tag)


@dataclass(frozen=True, slots=True)
class Manner:
    """How a load goes: it takes so many seconds, then gives what it read when it began, or fails."""

    seconds: float = 0.0
    fails: bool = False


@dataclass(frozen=True, slots=True)
class Action:
    """What one caller does next. `manner` is that of the load, if it falls to this caller; `leave` seconds after which it is cancelled."""

    verb: str
    item: Item
    manner: Manner = Manner()
    leave: float | None = None
    target: Target | None = None
    pause: float = 0.0  # afterwards


@dataclass(frozen=True, slots=True)
class Profile:
    """What a run is made of; probabilities, and seconds."""

    name: str = "mixed"
    items: int = 40
    hot: float = 3.0  # 1: every item alike; more: the first ones are asked for more often
    families: tuple[str, ...] = ("key", "price", "page", "session")
    callers: int = 16
    writes: float = 0.03
    kinds: tuple[str, ...] = (
        "type", "clear", "tenant", "user", "tag", "type_tag", "type_tenant", "type_tenant_tag", "type_user", "function", "pattern",
        *("key",) * 6, *("set",) * 6, "old_set", "old_set", "add", "add", "touch", "touch",
    )  # fmt: skip
    verbs: tuple[str, ...] = ("load",) * 12 + ("get", "get", "batch", "batch", "many", "refresh")
    slow: float = 0.3
    slowest: float = 0.05
    failing: float = 0.05
    hanging: float = 0.005
    hang: float = 1.0
    leaving: float = 0.08
    pause: float = 0.004
    delay: float = 0.0  # of the server's answers to every second process, which then only reads
    troubles: float = 0.0  # kills and pauses of processes a second
    rounds: int = 0  # quiet: so many herds on cold keys, and nothing else


CALM = Profile()
PROFILES: dict[str, Profile] = {
    "mixed": replace(CALM, troubles=0.3),
    "calm": CALM,
    "fences": Profile(
        "fences", items=8, hot=1.0, families=("key", "price"), writes=0.12, slow=0.9, slowest=0.02, failing=0.0, hanging=0.0,
        kinds=("key", "key", "set", "set", "pattern", "add", "touch"), leaving=0.0, verbs=("load",),
    ),
    "scopes": Profile(
        "scopes", items=8, hot=1.0, writes=0.12, kinds=("type", "tenant", "tag", "type_tenant", "type_tag", "function"), slow=0.9,
        slowest=0.02, failing=0.0, hanging=0.0, leaving=0.0, verbs=("load", "load", "batch"),
    ),
    "lives": replace(CALM, name="lives", items=8, hot=1.0, writes=0.002),
    "joins": Profile(
        "joins", items=4, hot=1.0, families=("key", "price"), callers=48, writes=0.02, kinds=("key", "tag", "type"), slow=0.3,
        slowest=0.005, failing=0.0, hanging=0.0, leaving=0.0, verbs=("load",), pause=0.06, delay=0.02,
    ),
    "leavers": Profile(
        "leavers", items=8, hot=1.0, writes=0.1, kinds=("key", "type"), slow=0.9, failing=0.0, hanging=0.0, leaving=0.3,
        verbs=("load", "batch"),
    ),
    "long": Profile(
        "long", items=4, hot=1.0, families=("key", "price"), callers=8, writes=0.1, kinds=("key",), slow=0.0, failing=0.0, hanging=0.9,
        hang=1.5, leaving=0.0, verbs=("load",), pause=0.05,
    ),
    "deaths": Profile(
        "deaths", items=16, hot=1.0, slow=0.6, slowest=0.3, hanging=0.03, hang=2.0, writes=0.05, troubles=1.0,
    ),
    "herd": Profile("herd", callers=50, rounds=8),
    "quiet": Profile("quiet", callers=250, rounds=100),
}  # fmt: skip


def profile_of(name: str, worker: int) -> Profile:
    """What a worker makes of a profile."""
    profile = PROFILES[name]
    return replace(profile, writes=0.0) if profile.delay and worker % 2 else profile


def actions(seed: int, process: str, caller: int, profile: Profile, among: list[Item]) -> Iterator[Action]:
    """Everything that this caller of this process would ever do."""
    rng = random.Random(f"{seed}/{process}/{caller}")
    mine = [item for item in among if item.family in profile.families]
    while True:
        item = mine[int(len(mine) * rng.random() ** profile.hot)]
        manner = _manner(rng, profile)
        leave = rng.random() ** 2 * profile.slowest if rng.random() < profile.leaving else None
        pause = rng.random() * profile.pause
        if rng.random() >= profile.writes:
            yield Action(rng.choice(profile.verbs), item, manner, leave, None, pause)
            continue
        kind = rng.choice(profile.kinds)
        target = _target(rng, kind, item)
        verb = kind if kind in ("set", "old_set", "add", "touch") else "invalidate"
        yield Action(verb, item, manner, None if rng.random() < 0.9 else leave, target, pause)


def _manner(rng: random.Random, profile: Profile) -> Manner:
    chance, share = rng.random(), rng.random()
    if chance < profile.hanging:
        return Manner(profile.hang * (0.5 + share / 2))
    seconds = profile.slowest * share if rng.random() < profile.slow else 0.0
    return Manner(seconds, chance < profile.hanging + profile.failing)


def _target(rng: random.Random, kind: str, item: Item) -> Target:
    tenant = item.tenant if item.tenant is not None else rng.choice(TENANTS)
    user = item.user if item.user is not None else rng.choice(USERS)
    match kind:
        case "type" | "clear":
            return Target(kind, item.cache_type)
        case "tenant":
            return Target(kind, tenant=tenant)
        case "user":
            return Target(kind, user=user)
        case "tag":
            return Target(kind, tag=item.tag)
        case "type_tag":
            return Target(kind, item.cache_type, tag=item.tag)
        case "type_tenant":
            return Target(kind, item.cache_type, tenant=tenant)
        case "type_tenant_tag":
            return Target(kind, item.cache_type, tenant=tenant, tag=item.tag)
        case "type_user":
            return Target(kind, item.cache_type, user=user)
        case "function" if item.function is not None:
            return Target(kind, function=item.function)
        case "pattern" if item.has_name:
            return Target(kind, item.cache_type, pattern=rng.choice((item.name, item.name[:3] + "*", "*")))
        case _:
            return Target("key", index=item.index)


@dataclass(frozen=True, slots=True)
class Trouble:
    """What befalls a process: killed, or paused for so many seconds."""

    at: float
    worker: int
    what: str
    seconds: float = 0.0


def troubles(seed: int, profile: Profile, seconds: float, workers: int) -> list[Trouble]:
    """Kills and pauses over the run; the last second and a half is left in peace."""
    rng, found, at = random.Random(f"{seed}/troubles"), list[Trouble](), 0.5
    while profile.troubles:
        at += rng.expovariate(profile.troubles)
        if at >= seconds - 1.5:
            break
        what = rng.choice(("kill", "pause", "pause"))
        found.append(Trouble(at, rng.randrange(workers), what, rng.choice((0.05, 0.3, 1.2)) if what == "pause" else 0.0))
    return found
