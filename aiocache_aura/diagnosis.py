"""Diagnosis: what answers and errors of a server say about its health, and what to do. Nothing is asked here.

A check is "ok", a "warning", "failed", or "unknown" where it could not be made. An issue is a sentence that names the trouble and what to
do about it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from aiocache_aura.codecs.envelope import HEAD, MAGIC
from aiocache_aura.errors import BackendError, ConfigurationError
from aiocache_aura.stats import Counts
from aiocache_aura.types import is_number

CHECKS: Final = (
    "reads", "writes", "server", "memory", "eviction", "expiry", "replication", "connections", "loop",
    "hit_rate", "errors", "unstorable", "warmers", "tracking", "breaker", "journal",
)  # fmt: skip
STATES: Final = ("ok", "warning", "failed", "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthLimits:
    """From where on `check_health` names an issue. Times are in seconds; checks that are named in `ignore` are not made.

    `hit_rate` is looked at of types that were asked at least `asks` times in the last `window` seconds, and `error_rate` where the store
    failed at least `errors` times in the last `error_window`; `memory` is the share of its maximum that a server which evicts nothing has
    in use; `waiting` is how long a connection may owe an answer.
    """

    round_trip: float = 0.1
    memory: float = 0.9
    hit_rate: float = 0.5
    asks: int = 100
    window: float = 300.0
    error_rate: float = 0.01
    errors: int = 5
    error_window: float = 60.0
    replication_lag: float = 10.0
    loop_lag: float = 0.1
    warmer_lag: float = 60.0
    waiting: float = 1.0
    ignore: Collection[str] = ()

    def __post_init__(self) -> None:
        for one in fields(self)[:-1]:
            value = getattr(self, one.name)
            if not is_number(value) or not value >= 0:
                raise ConfigurationError(f"{one.name}={value!r}: it is a number that is not below 0")
        if isinstance(self.ignore, str) or not set(self.ignore) <= set(CHECKS):
            raise ConfigurationError(f"ignore={self.ignore!r}: it is a list of checks, of {', '.join(CHECKS)}")


@dataclass(frozen=True, slots=True)
class Check:
    """What came of one check. `is_open`: its issue counts, for something can be done about it."""

    status: str
    value: Any = None
    issue: str | None = None
    is_open: bool = True
    is_silence: bool = False  # the server gave no answer

    def told(self, seconds: float) -> dict[str, Any]:
        return {"status": self.status, "value": self.value, "issue": self.issue, "seconds": round(seconds, 6)}


def sound(value: Any = None) -> Check:
    return Check("ok", value)


def judged(value: Any, issue: str | None) -> Check:
    """A warning if there is an issue."""
    return sound(value) if issue is None else Check("warning", value, issue)


def not_here(what: str = "not in this version") -> Check:
    """What there is nothing to check of."""
    return Check("ok", what)


# Errors --------------------------------------------------------------------------------------------------------------------------------

_BY_CODE: Final = {
    "NOPERM": "not permitted",
    "NOAUTH": "login refused",
    "WRONGPASS": "login refused",
    "OOM": "memory full",
    "READONLY": "read-only replica",
    "NOREPLICAS": "too few replicas",
    "MISCONF": "cannot save",
    "LOADING": "loading",
    "BUSY": "busy script",
    "MASTERDOWN": "master lost",
    "CLUSTERDOWN": "cluster down",
    "MOVED": "cluster",
    "CROSSSLOT": "cluster",
}
# What names an error that has no code: classes of errors beneath it, and words of its text; the first that fits.
_SIGNS: Final[tuple[tuple[frozenset[str], tuple[str, ...], str, str], ...]] = (
    (frozenset({"AuthenticationError", "AuthenticationWrongNumberOfArgsError"}), ("refuses the login",), "login refused", ""),
    (frozenset({"gaierror"}), ("name or service not known",), "host not found", "correct the host in the URL, or see to its DNS"),
    (
        frozenset({"SSLError", "SSLCertVerificationError", "SSLZeroReturnError", "SSLEOFError", "CertificateError"}),
        ("certificate", "ssl:"),
        "TLS failed",
        "see whether that port speaks TLS, and that its certificate is signed by who ssl_ca_certs= in the URL names",
    ),
    (
        frozenset({"MaxClientsError"}),
        ("max number of clients",),
        "too many clients",
        "raise its maxclients, or find who keeps connections open (CLIENT LIST)",
    ),
    (
        frozenset(),
        ("db index", "invalid database"),
        "no such database",
        "name a database in the URL that the server has (see its `databases`)",
    ),
    (frozenset({"FileNotFoundError"}), ("no such file",), "no such socket", "start the server, or correct the path in the URL"),
    (
        frozenset({"ConnectionRefusedError"}),
        ("connect call failed", "connection refused"),
        "connection refused",
        "start the server, or correct host and port in the URL",
    ),
    (frozenset({"Resp3RefusedError"}), (), "no RESP3", ""),
    (
        frozenset({"BackendTimeoutError", "TimeoutError"}),
        ("did not answer",),
        "no answer",
        "see whether it is stopped, overloaded, or blocked by a long command (SLOWLOG GET), and whether the network lets packets through",
    ),
)  # fmt: skip


def kind_of(error: BaseException) -> tuple[str, str]:
    """What kind of trouble an error is, and what to do about it where its text does not say so."""
    code = getattr(error, "code", "")
    if code in _BY_CODE:
        return _BY_CODE[code], ""
    classes, text = {type(one).__name__ for one in _beneath(error)}, str(error).lower()
    for names, words, kind, advice in _SIGNS:
        if classes & names or any(word in text for word in words):
            return kind, advice
    return ("refused", "") if code else ("unreachable", "see the server's log, and whether a proxy stands before it")


def _beneath(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def in_vain(error: BackendError, what: str) -> Check:
    """A way of users on which there was an error."""
    kind, advice = kind_of(error)
    text = f"{what}: {error}" if error.code else str(error)
    text = text.removesuffix(".")
    return Check("failed", {"trouble": kind}, f"{text}; {advice}" if advice else text, is_silence=not error.code)


def unasked(error: BaseException, what: str) -> Check:
    """A check that could not be made. That a server does not know a command cannot be helped."""
    if not isinstance(error, BackendError):
        return Check("unknown", None, f"{what} could not be checked: {type(error).__name__}: {error}")
    if error.code == "NOPERM":
        command = str(error).partition(":")[0]
        allow = f"ACL SETUSER <user> +{command.lower()}"
        return Check("unknown", None, f"{command} is not permitted to this user, so that {what} cannot be checked; allow it: {allow}")
    kind, advice = kind_of(error)
    text = f"{what} could not be checked: {error}" + (f"; {advice}" if advice else "")
    helpless = "unknown" in str(error).lower() or "unexpected" in str(error).lower()
    return Check("unknown", None, text, is_open=not helpless, is_silence=not error.code and kind != "refused" and not helpless)


# INFO ----------------------------------------------------------------------------------------------------------------------------------

Info = Mapping[str, str]


def info_of(reply: object) -> dict[str, str]:
    """The lines of an INFO as a dict; what is none is left out."""
    text = reply.decode(errors="replace") if isinstance(reply, bytes) else reply if isinstance(reply, str) else ""
    pairs = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: value.strip() for name, colon, value in pairs if colon}


def whole(text: str | None, default: int = 0) -> int:
    """A number of an INFO."""
    try:
        return int(text or default)
    except ValueError:
        return default


def version_of(info: Info) -> str | None:
    for name in ("valkey", "redis", "dragonfly", "keydb", "kvrocks"):
        if f"{name}_version" in info:
            return f"{name} {info[f'{name}_version']}"
    return None


def judge_memory(info: Info, limits: HealthLimits) -> Check:
    used = max(whole(info.get("used_memory")) - whole(info.get("mem_not_counted_for_evict")), 0)
    most, policy = whole(info.get("maxmemory")), info.get("maxmemory_policy")
    value = {"used_bytes": used, "max_bytes": most or None, "policy": policy}
    if not most or policy != "noeviction" or used <= most * limits.memory:
        return sound(value)  # with a policy that evicts, a memory that is full is as it should be
    return Check(
        "warning",
        value,
        f"the server has {used:,} of {most:,} bytes in use and evicts nothing, so that writes will fail; raise its maxmemory, or set a "
        "maxmemory-policy that evicts, such as allkeys-lru",
    )


def judge_eviction(info: Info) -> Check:
    most, policy = whole(info.get("maxmemory")), info.get("maxmemory_policy")
    value = {"policy": policy, "max_bytes": most or None}
    if policy is None:
        return Check("unknown", value, "the server does not tell its maxmemory-policy", is_open=False)
    if policy == "noeviction" and most:
        issue = "evicts nothing: once it is full writes fail; set a maxmemory-policy that evicts: CONFIG SET maxmemory-policy allkeys-lru"
    elif not most:
        issue = "has no maxmemory: it grows until the machine has no more; CONFIG SET maxmemory 1gb (what it may take), and "
        issue += "CONFIG SET maxmemory-policy allkeys-lru" if policy == "noeviction" else f"its maxmemory-policy, {policy}, evicts"
    else:
        return sound(value)
    return Check("warning", value, f"the server {issue}")


# Replication ---------------------------------------------------------------------------------------------------------------------------


def replication_of(info: Info) -> dict[str, Any]:
    """What an INFO tells of replication, in numbers."""
    if info.get("role") in ("slave", "replica"):
        is_up = info.get("master_link_status") == "up"
        silent = whole(info.get("master_last_io_seconds_ago" if is_up else "master_link_down_since_seconds"), -1)
        return {"role": "replica", "link": "up" if is_up else "down", "silent_seconds": max(silent, 0)}
    offset = whole(info.get("master_repl_offset"))
    replicas = [_pairs(value) for name, value in info.items() if name.startswith("slave") and name[5:].isdigit()]
    return {
        "role": info.get("role") or "master",
        "replicas": len(replicas),
        "not_online": sum(one.get("state") != "online" for one in replicas),
        "lag_seconds": max((whole(one.get("lag")) for one in replicas), default=0),
        "behind_bytes": max((max(offset - whole(one.get("offset"), offset), 0) for one in replicas), default=0),
    }


def _pairs(text: str) -> dict[str, str]:
    """What `ip=...,port=...,lag=0` says."""
    return {name: value for name, _, value in (pair.partition("=") for pair in text.split(","))}


def replication_of_role(reply: object) -> dict[str, Any] | None:
    """What the answer to ROLE tells, where INFO may not be asked."""
    match reply:
        case [b"master", int() as offset, list() as replicas]:
            behind = [offset - whole(one[2].decode()) for one in replicas if len(one) > 2 and isinstance(one[2], bytes)]
            known: dict[str, Any] = {"role": "master", "replicas": len(replicas), "not_online": 0, "lag_seconds": 0}
            return known | {"behind_bytes": max([0, *behind])}
        case [b"slave", _, _, bytes() as state, *_]:
            return {"role": "replica", "link": "up" if state == b"connected" else "down", "silent_seconds": 0}
        case _:
            return None


def judge_replication(known: Mapping[str, Any], limits: HealthLimits) -> Check:
    return judged(dict(known), _replication_issue(known, limits))


def _replication_issue(known: Mapping[str, Any], limits: HealthLimits) -> str | None:
    if known["role"] == "replica":
        if known["link"] == "down":
            return (
                f"this is a replica, and its link to its master has been down for {known['silent_seconds']} s: what it holds grows old; "
                "point the URL at the master, or promote this one (REPLICAOF NO ONE)"
            )
        return "this is a replica: a cache has to write; point the URL at the master"
    if known.get("not_online"):
        return f"{known['not_online']} of {known['replicas']} replicas are not in step yet: a failover now loses what was written last"
    if known.get("lag_seconds", 0) > limits.replication_lag:
        return (
            f"a replica is {known['lag_seconds']} s and {known['behind_bytes']:,} bytes behind: a failover may bring invalidated entries "
            "back; see its load and network, and set min-replicas-max-lag"
        )
    return None


# Keys ----------------------------------------------------------------------------------------------------------------------------------


def lives_for_ever(head: bytes | None) -> bool:
    """Whether a value is an entry of ours that was stored to have no end."""
    if head is None or len(head) < HEAD.size:
        return False
    magic, _, _, _, _, _, _, ttl, stale, *_ = HEAD.unpack_from(head)
    return bool(magic == MAGIC and ttl + stale == math.inf)


def judge_expiry(prefix: str, keys: int, lasting: Iterable[tuple[bytes, bytes | None]]) -> Check:
    """Keys without an end are ours where an entry was stored FOREVER, and its generations with it; others only pile up."""
    generations = f"{prefix}!g:".encode()
    found = list(lasting)
    strange = [name for name, head in found if not name.startswith(generations) and not lives_for_ever(head)]
    value = {"sampled": keys, "for_ever": len(found) - len(strange), "without_ttl": len(strange)}
    if not strange:
        return sound(value)
    kinds = sorted({_kind(prefix, name) for name in strange})
    return Check(
        "warning",
        value,
        f"{len(strange)} of {keys} keys looked at under the prefix {prefix!r} have no TTL, and are not of this library or were made to "
        f"stay by hand: {', '.join(kinds[:5])}{', ...' if len(kinds) > 5 else ''}; give every application a prefix of its own, and such "
        "keys an EXPIRE",
    )


def _kind(prefix: str, name: bytes) -> str:
    """Where a key is, without what may be somebody's data in it."""
    rest = name.decode(errors="replace")[len(prefix) + 1 :]
    head, colon, _ = rest.partition(":")
    return f"{prefix}{name[len(prefix) : len(prefix) + 1].decode()}{head[:40] if colon else ''}{':' if colon else ''}*"


# This process --------------------------------------------------------------------------------------------------------------------------


def judge_hit_rate(windows: Mapping[str, Counts], limits: HealthLimits) -> Check:
    asked = {name: counts for name, counts in windows.items() if counts.hits + counts.misses >= max(limits.asks, 1)}
    rates = {name: round(counts.hit_rate, 4) for name, counts in asked.items()}
    low = {name: rate for name, rate in rates.items() if rate < limits.hit_rate}
    if not low:
        return sound(rates)
    return Check(
        "warning",
        rates,
        f"few are hits in the last {limits.window:g} s: {', '.join(f'{name} {rate:.0%}' for name, rate in sorted(low.items()))} (below "
        f"{limits.hit_rate:.0%}); see whether the ttl is too short, invalidations are too wide, or keys hold what differs with each call",
    )


def judge_errors(windows: Mapping[str, Counts], limits: HealthLimits) -> Check:
    errors = sum(counts.errors for counts in windows.values())
    calls = sum(counts.hits + counts.misses + counts.sets + counts.deletes for counts in windows.values())
    by_error: dict[str, int] = {}
    for counts in windows.values():
        for name, times in counts.by_error.items():
            by_error[name] = by_error.get(name, 0) + times
    rate = errors / max(calls, errors, 1)
    value = {"errors": errors, "calls": calls, "rate": round(rate, 4), "by_error": by_error}
    if errors < max(limits.errors, 1) or rate <= limits.error_rate:
        return sound(value)
    kinds = ", ".join(f"{name} {times:,}" for name, times in sorted(by_error.items()))
    return Check(
        "warning",
        value,
        f"the store failed {errors:,} times in the last {limits.error_window:g} s ({kinds or 'see the log'}), in {rate:.0%} of the calls, "
        "which were answered uncached; the log of aiocache_aura says what failed",
    )


def judge_unstorable(found: Mapping[str, str]) -> Check:
    """Functions, and why what they return cannot be stored."""
    value = dict(found)
    if not value:
        return sound(value)
    told = [f"{name}: {why}" for name, why in list(value.items())[:5]]
    return Check("warning", value, f"returned but never cached ({len(value)}): {'; '.join(told)}{'; ...' if len(value) > 5 else ''}")


def judge_loop(seconds: float, limits: HealthLimits) -> Check:
    value = {"lag_ms": round(seconds * 1000, 1)}
    if seconds <= limits.loop_lag:
        return sound(value)
    return Check(
        "warning",
        value,
        f"the event loop was blocked for {seconds * 1000:.0f} ms, and everything in this process waited: find what does not await "
        "(asyncio.run(..., debug=True) names it), and give it to a thread (asyncio.to_thread)",
    )
