"""Histories in, violations out: P1-P3 of the design, by what each process wrote down. Pure.

P3, fresh. A barrier is an invalidation, delete or set that returned delivered. A read that began after it returned sees no older version
than the barrier's floor: that of the source when it was issued, of a `set` the version that was set. What is allowed: a `set` carries the
age of its value, so an old version may be read if some `set` of it had not returned before each such barrier was issued; `cache_clear`
of a function spares what was `set`, whenever that was.

P1, one load. A load licenses no other of its key: the next one needs a reason, in the time from when the first was asked for until the
second begins. Reasons: an invalidation, delete, set, add or refresh of the key that overlaps it, even if it failed; a life that may have
ended; the first load failed, was cancelled, or died with its process; its last caller left before it was stored; a fill that such a thing
had doomed, and that landed in that time; in a fleet, such a thing had doomed the second one, which had the lease before the first one
took it over, and began late. Within one process that holds for every two loads in succession. Between processes it holds where
one load serves the fleet (a pause beyond the lease is a reason, too); where each process loads for itself, only if the first had been
stored, since its caller had been answered, before the read began for which the second was made. A cold key that all ask for at once, in
peace, is counted exactly (`rounds`).

P2, may leave. Nobody is cancelled whom we did not cancel; a failure is that of a load of this key under way during the read (in a fleet,
of one that ended shortly before: who joins those that wait for word of it is told with them); a read ends within the rules' `patience`,
pauses of its process (where one load serves the fleet, of any) added.

Life. What is read has been loaded or set, and no longer ago than an entry may live.

What can't be seen from outside is not judged: a `set` whose call began before an invalidation and returned after it may win or lose.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf

from tests.races.history import SECOND, Act, End, History, Life, Load, Read

SHOWN = 5
SLACK = SECOND // 100  # wall clocks, in which lives are counted, may drift by so much against ours


@dataclass(frozen=True, slots=True)
class Rules:
    """What is promised. Times in seconds: `lives` of entries at least, by key (none: for ever); `patience` that a read may take."""

    one_load: str = "process"  # or "fleet"
    lives: Mapping[int, float] = field(default_factory=dict)
    longest: Mapping[int, float] = field(default_factory=dict)  # that an entry of this key may be served; none: not judged
    patience: float = 30.0
    lease: float = 3.0
    linger: float = 2.0  # that something given up by its caller may still take effect afterwards
    rounds: frozenset[int] = frozenset()  # keys asked for in peace, each once
    failing_rounds: frozenset[int] = frozenset()  # the same, and each load fails


@dataclass(frozen=True, slots=True)
class Violation:
    """One promise that was broken: P1, P2, P3, or "end", and what happened to the key around it."""

    rule: str
    key: int | None
    at: int
    message: str
    around: str = ""

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}" + (f"\n{self.around}" if self.around else "")


def check(history: History, rules: Rules) -> list[Violation]:
    """Every violation, the earliest first."""
    found = [
        violation
        for key in _Key.of(history, rules)
        for violation in (*key.stale_reads(), *key.expired_reads(), *key.needless_loads(), *key.lost_callers())
    ]
    found += _uncounted(history, rules)
    found += [violation for end in history.ends for violation in _left_over(end)]
    found += [Violation("end", None, life.at, f"{life.process} did not end by itself") for life in history.lives if life.what == "lost"]
    return sorted(found, key=lambda violation: violation.at)


class _Spans:
    """Intervals, to be asked whether one of them overlaps another."""

    def __init__(self, spans: Iterable[tuple[float, float]]) -> None:
        ordered = sorted(spans)
        self._starts = [start for start, _ in ordered]
        self._latest = list(accumulate((end for _, end in ordered), max))

    def overlap(self, since: float, until: float) -> bool:
        before = bisect_right(self._starts, until)
        return before > 0 and self._latest[before - 1] >= since


class _Barriers:
    """What returned delivered, by when: the highest floor, and everything above a version."""

    def __init__(self, key: int, acts: Iterable[Act]) -> None:
        self._key = key
        self._acts = sorted((act for act in acts if act.delivered and act.returned is not None), key=lambda act: act.returned or 0)
        self._returned = [act.returned or 0 for act in self._acts]
        self._highest = list(accumulate((act.floors[key] for act in self._acts), max))

    def floor(self, at: int) -> int:
        """The highest floor of those that had returned before."""
        before = bisect_left(self._returned, at)
        return self._highest[before - 1] if before else -1

    def above(self, version: int, at: int) -> list[Act]:
        return [act for act in self._acts[: bisect_left(self._returned, at)] if act.floors[self._key] > version]


class _Lives:
    """When processes were killed and paused."""

    def __init__(self, lives: Iterable[Life]) -> None:
        self.killed = {life.process: life.at for life in lives if life.what == "killed"}
        self.pauses: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for life in sorted(lives, key=lambda one: one.at):
            if life.what == "paused":
                self.pauses[life.process].append((life.at, inf))
            elif life.what == "continued" and self.pauses[life.process]:
                self.pauses[life.process][-1] = (self.pauses[life.process][-1][0], life.at)

    def paused(self, since: float, until: float, process: str | None = None) -> float:
        """Nanoseconds of the pauses, of one process or of all, that overlap this."""
        of = [self.pauses.get(process, [])] if process is not None else self.pauses.values()
        return sum(end - start for pauses in of for start, end in pauses if start <= until and end >= since)

    def longest(self, process: str, since: float, until: float) -> float:
        return max((end - start for start, end in self.pauses.get(process, []) if start <= until and end >= since), default=0)


def _failing(history: History) -> dict[int, list[Load]]:
    """The loads that did not end well, by key."""
    failing = defaultdict[int, list[Load]](list)
    for load in history.loads:
        if load.outcome != "ok":
            failing[load.key].append(load)
    return failing


def _together(history: History) -> dict[tuple[str, int], list[int]]:
    """The keys that one failing read asked for: a batch fails as a whole."""
    together = defaultdict[tuple[str, int], list[int]](list)
    for read in history.reads:
        if read.outcome in ("failed", "broke"):
            together[read.process, read.id].append(read.key)
    return together


@dataclass(frozen=True, slots=True)
class _Run:
    """What the keys have in common."""

    lives: _Lives
    rules: Rules
    failing: dict[int, list[Load]]
    together: dict[tuple[str, int], list[int]]


class _Key:
    """What happened to one key."""

    def __init__(self, key: int, reads: list[Read], loads: list[Load], acts: list[Act], run: _Run) -> None:
        self.key, self.reads, self.loads, self.acts = key, reads, loads, acts
        self._run, self._lives, self._rules = run, run.lives, run.rules
        self._writes: dict[int, list[Act]] = defaultdict(list)
        for act in acts:
            if act.is_write:
                self._writes[act.floors[key]].append(act)
        self._by_id = {(read.process, read.id): read for read in reads}
        self._reads_of: dict[str, list[Read]] = {}
        self._shown = 0

    @classmethod
    def of(cls, history: History, rules: Rules) -> list[_Key]:
        reads, loads, acts = defaultdict[int, list[Read]](list), defaultdict[int, list[Load]](list), defaultdict[int, list[Act]](list)
        for read in history.reads:
            reads[read.key].append(read)
        for load in sorted(history.loads, key=lambda load: load.begun):
            loads[load.key].append(load)
        for act in history.acts:
            for key in act.floors:
                acts[key].append(act)
        run = _Run(_Lives(history.lives), rules, _failing(history), _together(history))
        return [cls(key, reads[key], loads[key], acts[key], run) for key in sorted(reads.keys() | loads.keys())]

    # P3

    def stale_reads(self) -> Iterable[Violation]:
        barriers = _Barriers(self.key, (act for act in self.acts if act.kind != "touch"))
        for read in self.reads:
            version = read.version
            if version is not None and version < barriers.floor(read.began):
                broken = [act for act in barriers.above(version, read.began) if not self._may_be_after(read, version, act)]
                last = max((act.issued for act in broken), default=None)
                if last is not None and not any(self._end(act) > last and act.issued < read.ended for act in self._writes[version]):
                    yield self._stale(read, version, max(broken, key=lambda act: act.issued))

    def _may_be_after(self, read: Read, version: int, barrier: Act) -> bool:
        """Whether what was explicitly set is spared by this: by the clearing of a function."""
        return barrier.kind == "function" and any(act.issued < read.ended for act in self._writes[version])

    def _end(self, write: Act) -> float:
        return write.returned if write.returned is not None and write.delivered is not None else inf

    def _stale(self, read: Read, version: int, barrier: Act) -> Violation:
        late = _ms(read.began - (barrier.returned or 0))
        message = (
            f"key {self.key}: {read.process} read version {version} ({read.how}), having begun {late} after the {barrier.kind} "
            f"({barrier.what}) of {barrier.process} had returned, which demands {barrier.floors[self.key]}"
        )
        return Violation("P3", self.key, read.ended, message, self.around(barrier.issued, read.ended, version, read))

    def expired_reads(self) -> Iterable[Violation]:
        """What is served after its life, which counts from the load's beginning; and what nobody has loaded or set."""
        if self.key not in self._rules.longest:
            return
        life = self._rules.longest[self.key] * SECOND + SLACK
        made: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for load in self.loads:
            made[load.version].append((load.begun, load.begun))
        for act in self.acts:
            if act.is_write:
                made[act.floors[self.key]].append((act.issued, self._end(act)))
        renewed = _Spans((act.issued, self._end(act)) for act in self.acts if act.kind == "touch")
        for read in self.reads:
            if read.version is not None and not renewed.overlap(read.began - life, read.ended):
                last = max((end for start, end in made.get(read.version, ()) if start <= read.ended), default=None)
                if last is None or (last + life < read.began and not self._joined(read)):
                    late = "that nobody had loaded or set" if last is None else f"{_ms(read.began - last)} old"
                    message = f"key {self.key}: {read.process} read version {read.version} ({read.how}), {late}"
                    yield Violation("life", self.key, read.ended, message, self.around(read.began, read.ended, read.version, read))

    def _joined(self, read: Read) -> bool:
        """Whether a load that takes longer than its value may live was still running, or not stored yet, when the read began."""
        return any(
            load.version == read.version and (load.ended is None or load.ended + SECOND // 10 >= read.began) and load.begun <= read.ended
            for load in self.loads
        )

    # P1

    def needless_loads(self) -> Iterable[Violation]:
        if not self.loads:
            return
        reasons = _Spans(self._reach(act) for act in self.acts if act.kind != "touch")
        settled = [self._settled(load) for load in self.loads]
        landed = list(accumulate(settled, max))
        before: dict[str, Load] = {}
        for n, load in enumerate(self.loads):
            firsts = [before.get(load.process), self._one_elsewhere(n)]
            needless = (one for one in firsts if one is not None and not self._has_reason(one, load, n, settled, landed, reasons))
            first = next(needless, None)
            if first is not None:
                yield self._needless(first, load)
            before[load.process] = load

    def _reach(self, act: Act) -> tuple[float, float]:
        """From when to when it may take effect."""
        if act.returned is not None and act.delivered is not None:
            return act.issued, act.returned
        given_up = act.returned if act.returned is not None else self._lives.killed.get(act.process, inf)
        return act.issued, given_up + self._rules.linger * SECOND

    def _one_elsewhere(self, n: int) -> Load | None:
        """The load that should have made this one needless: in a fleet the last, else the last of another process that had been stored
        before this one's read began, since its own caller had been answered."""
        if self._rules.one_load == "fleet":
            return self.loads[n - 1] if n else None
        load = self.loads[n]
        for one in reversed(self.loads[max(n - 64, 0) : n]):
            read = self._by_id.get((one.process, one.read))
            if (
                one.process != load.process
                and one.outcome == "ok"
                and read is not None
                and read.outcome == "ok"
                and read.ended < load.asked
            ):
                return one
        return None

    def _settled(self, load: Load) -> float:
        """When its fill can no longer land."""
        read = self._by_id.get((load.process, load.read))
        if load.ended is None:
            return self._lives.killed.get(load.process, inf)
        if read is not None and read.outcome == "ok":
            return read.ended
        spare = load.ended + SECOND
        return max(
            (end + SECOND for start, end in self._lives.pauses.get(load.process, []) if start <= spare and end >= load.ended), default=spare
        )

    def _has_reason(self, first: Load, second: Load, at: int, settled: list[float], landed: list[float], reasons: _Spans) -> bool:
        if first.outcome != "ok":
            return True
        since, created = first.asked, first.begun
        if self._rules.one_load == "fleet":
            since = min(since, second.asked)
        while at and landed[at - 1] >= first.begun:
            at -= 1
            if settled[at] >= first.begun:  # its fill may have landed on the first one's
                since, created = min(since, self.loads[at].asked), min(created, self.loads[at].begun)
        if reasons.overlap(since, second.begun) or self._was_left(first, second.begun):
            return True
        if second.begun - created >= self._rules.lives.get(self.key, inf) * SECOND - SLACK:
            return True
        is_beyond = self._lives.longest(first.process, first.asked, second.begun) >= self._rules.lease * SECOND / 2
        return is_beyond and self._rules.one_load == "fleet"

    def _was_left(self, load: Load, until: int) -> bool:
        """Whether its last caller may have left after its end, or so shortly before that it ended all the same, and took the fill with it:
        somebody left, as a batch does of which another key's load has failed, and nobody got its value."""
        if load.ended is None:
            return False
        since = load.ended - SECOND // 10  # and it may be a while, of a busy or paused process, until it writes down that it has left
        aboard = [read for read in self.reads_of(load.process) if read.began <= load.ended and since <= read.ended <= until + SECOND]
        if not any(read.outcome in ("left", "failed") for read in aboard):
            return False
        if any(other.version == load.version and other.begun < load.begun for other in self.loads):
            return True  # whoever got that version may have got it from what was stored before
        return not any(read.version == load.version and read.ended >= load.ended for read in aboard)

    def reads_of(self, process: str) -> list[Read]:
        if process not in self._reads_of:
            self._reads_of[process] = [read for read in self.reads if read.process == process]
        return self._reads_of[process]

    def _needless(self, first: Load, second: Load) -> Violation:
        ended = (
            "was still running"
            if first.ended is None or first.ended > second.begun
            else f"had ended {_ms(second.begun - first.ended)} before"
        )
        message = (
            f"key {self.key}: {second.process} loaded version {second.version} for no reason: the load by {first.process} that began "
            f"{_ms(second.begun - first.begun)} earlier {ended}, and nothing had happened to the key"
        )
        return Violation("P1", self.key, second.begun, message, self.around(first.asked, second.begun + 1, second.version))

    # P2

    def lost_callers(self) -> Iterable[Violation]:
        for read in self.reads:
            why = self._is_lost(read)
            if why:
                message = f"key {self.key}: a read ({read.how}) by {read.process} {why}"
                yield Violation("P2", self.key, read.ended, message, self.around(read.began, read.ended, read.version, read))

    def _is_lost(self, read: Read) -> str | None:
        if read.outcome == "cancelled":
            return "was cancelled though nobody had cancelled it"
        if read.outcome == "unanswered":
            return f"was not answered in {_ms(read.ended - read.began)}"
        if read.outcome == "wrong":
            return f"got a value that cannot be: {read.detail}"
        if read.outcome in ("failed", "broke") and not self._may_fail(read):
            return f"failed though no load of its key had: {read.detail}"
        fleet = self._rules.one_load == "fleet"
        allowed = self._rules.patience * SECOND + self._lives.paused(read.began, read.ended, None if fleet else read.process)
        if read.ended - read.began > allowed:
            return f"took {_ms(read.ended - read.began)}, where {_ms(allowed)} are allowed"
        return None

    def _may_fail(self, read: Read) -> bool:
        """Whether a load of what it asked for failed during the read, in the process or wherever loads are shared with."""
        shared = self._rules.one_load == "fleet"
        if read.outcome == "broke" and not shared:
            return False
        told = self._rules.linger * SECOND if shared else 0  # it joins a flight that has not been told yet
        return any(
            load.begun <= read.ended
            and (load.ended is None or load.ended >= read.began - told)
            and (shared or load.process == read.process)
            and (load.outcome == "failed" or (shared and load.outcome != "ok"))
            for key in self._run.together[read.process, read.id]
            for load in self._run.failing.get(key, ())
        )

    # For people

    def around(self, since: float, until: float, version: int | None, read: Read | None = None, *, most: int = 14) -> str:
        """The few events of this key that matter, with times from the first of them; for the first violations of a key only."""
        self._shown += 1
        if self._shown > SHOWN:
            return ""
        moments: list[tuple[int, str]] = []
        for load in self.loads:
            asked = f"asked for {_ms(load.begun - load.asked)} before"
            moments.append((load.begun, f"{load.process} begins load #{load.id}, {asked}, and reads version {load.version}"))
            if load.ended is not None:
                moments.append((load.ended, f"{load.process} ends load #{load.id} of version {load.version}: {load.outcome}"))
        moments += [(read.ended, f"{read.process} leaves a read ({read.how})") for read in self.reads if read.outcome == "left"]
        for act in self.acts:
            told = f"{act.kind} ({act.what}) #{act.id}"
            demands = f", which demands {act.floors[self.key]}" if act.floors[self.key] >= 0 else ""
            moments.append((act.issued, f"{act.process} issues {told}{demands}"))
            if act.returned is not None:
                moments.append((act.returned, f"{told} of {act.process} has returned{'' if act.delivered else ', not delivered'}"))
        early = SECOND // 10
        near = sorted(moment for moment in moments if since - early <= moment[0] <= until)
        origin = [moment for moment in moments if f"version {version}" in moment[1] and moment[0] < since - early][-2:]
        kept = near if len(near) <= most else [*near[: most // 2], (near[most // 2][0], "..."), *near[-most // 2 :]]
        if read is not None:
            kept.append((read.began, f"{read.process} begins a read ({read.how}) ..."))
            kept.append((read.ended, f"... and ends it: {read.outcome}, version {read.version} {read.detail}".rstrip()))
        told = sorted([*origin, *kept])
        return "\n".join(f"    {(at - told[0][0]) / 1e6:10.3f} ms  {text}" for at, text in told)


def _uncounted(history: History, rules: Rules) -> Iterable[Violation]:
    """Cold keys that all asked for at once: one load, or one in each process that asked.

    Of a load that fails, two in the fleet. But a process that was too busy to ask before the others had failed begins a chain of its own,
    which nobody can see from outside: what counts is that most rounds had no more than two.
    """
    keys = {key.key: key for key in _Key.of(history, rules)} if rules.rounds or rules.failing_rounds else {}
    each = rules.one_load != "fleet"
    exact = [keys[n] for n in sorted(rules.rounds | (rules.failing_rounds if each else frozenset())) if n in keys]
    for key in exact:
        allowed = len({load.process for load in key.loads}) if each else 1
        if not 0 < len(key.loads) <= allowed:
            yield _miscounted(key, allowed)
    failing = [keys[n] for n in sorted(rules.failing_rounds) if n in keys and not each]
    beyond = [key for key in failing if not 0 < len(key.loads) <= 2]
    if 2 * len(beyond) > len(failing):
        yield from (_miscounted(key, 2) for key in beyond)


def _miscounted(key: _Key, allowed: int) -> Violation:
    first, last = (key.loads[0].begun, key.loads[-1].begun) if key.loads else (0, 0)
    message = f"key {key.key}: {len(key.loads)} loads in a quiet round, where {allowed} are right"
    return Violation("P1", key.key, last, message, key.around(first, last + SECOND, None))


def _left_over(end: End) -> Iterable[Violation]:
    for what, count in end.left.items():
        if count and what not in TOLD:
            yield Violation("end", None, end.at, f"{end.process} ended with {what}: {count}")


TOLD = frozenset({"errors", "hits"})  # figures, not faults


def answered_after_fill(history: History, keys: Iterable[int]) -> list[float]:
    """Milliseconds from the end of the load to each caller's answer, in quiet rounds."""
    ends: dict[int, int] = {}
    for load in history.loads:
        if load.ended is not None and load.outcome == "ok":
            ends.setdefault(load.key, load.ended)
    wanted = ends.keys() & set(keys)
    return [(read.ended - ends[read.key]) / 1e6 for read in history.reads if read.key in wanted and read.outcome == "ok"]


def _ms(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:,.1f} ms"
