"""refresh=True: a load that takes the lease from whoever holds it.

"Update the source, then refresh" is what people do in place of "update, then invalidate": what a refresh has returned has to be what later reads get, or something newer.
Protocol (one key, one flight per process)
  force        one script: lease := mine, whoever holds it; the value's id is remembered (`seen`).  No look at the value: what is found may be older than the call
  read         lookup, acquire and follow as in leases.py
  fill         one script: lease still mine -> SET value, DEL lease, wake-up; refused: not stored, founders take the value, late callers start again
  refused      the fill of a FORCED load that is refused takes away the value that it set out to replace: its id still the one seen -> DEL value (same script)
Faults: loads fail; a process dies, or is paused until its lease has expired; delete(key).
Invariants   fence    no value is stored by who has lost the lease
             refresh  a refresh returns nothing older than the source at its call; after it has returned, no read gets anything older than that
             P1       loads <= those that the reads need + refreshes + faults
             nobody is left waiting
"""
from __future__ import annotations

from typing import NamedTuple

from checker import Result, Variant, explore, main, put


class P(NamedTuple):
    kind: str                  # read, refresh
    pc: str = "new"            # new, again, looked, following, leading, loaded, done, dead
    need: int = 0
    promise: int = 0           # of a refresh: the source at its call
    late: int = -1             # what a late caller of the process needs
    seen: int = 0
    token: int = 0
    version: int = 0
    saw: int = 0
    forced: bool = False
    paused: bool = False


class S(NamedTuple):
    source: int
    floor: int
    value: tuple               # () | (version, id)
    lease: int
    fresh: int
    loads: int
    allowed: int
    faults: tuple              # (failures, deaths, pauses, deletes, updates, late callers)
    ps: tuple
    bad: str


FAILURE, DEATH, PAUSE, DELETE, UPDATE, LATE = range(6)


def run(kinds=("refresh", "refresh", "read"), warm=True, failures=0, deaths=0, pauses=0, deletes=0, updates=1, late=0, mutation="") -> Result:
    def spend(s: S, which: int) -> S:
        return s._replace(faults=put(s.faults, which, s.faults[which] - 1))

    def give(s: S, i: int, version: int, late_too: bool) -> S:
        p, bad = s.ps[i], s.bad
        if version < max(p.need, p.promise):
            bad = f"refresh: {p.kind} {i} got v{version}, needs v{max(p.need, p.promise)}"
        if p.late >= 0 and late_too and version < p.late:
            bad = f"refresh: a late caller of {p.kind} {i} got v{version}, needs v{p.late}"
        after = P("read", "again", need=p.late) if p.late >= 0 and not late_too else P(p.kind, "done")
        return s._replace(ps=put(s.ps, i, after), floor=max(s.floor, p.promise), bad=bad)

    def lead(s: S, i: int, forced: bool) -> S:
        loads, allowed = s.loads + 1, s.allowed + forced
        bad = f"P1: load number {loads}, allowed {allowed}" if loads > allowed else s.bad
        return s._replace(lease=s.fresh, fresh=s.fresh + 1, loads=loads, allowed=allowed, bad=bad, ps=put(
            s.ps, i, s.ps[i]._replace(pc="leading", token=s.fresh, seen=s.value[1] if s.value else 0, saw=0, forced=forced)))

    def acquire(s: S, i: int):
        p = s.ps[i]
        if s.value and s.value[1] != p.seen:
            yield f"{p.kind} {i}: acquire finds v{s.value[0]}", give(s, i, s.value[0], True)
        elif not s.lease:
            yield f"{p.kind} {i}: leads with lease {s.fresh}", lead(s, i, False)
        else:
            yield f"{p.kind} {i}: follows lease {s.lease}", s._replace(ps=put(s.ps, i, p._replace(pc="following", saw=s.lease)))

    def steps(s: S):
        for i, p in enumerate(s.ps):
            name = f"{p.kind} {i}"
            def to(base=s, **change):
                return base._replace(ps=put(base.ps, i, base.ps[i]._replace(**change)))
            mine = bool(s.lease) and s.lease == p.token
            if p.pc == "new":
                if any(s.ps[j] == p for j in range(i)):
                    continue
                if p.kind == "refresh":
                    yield f"{name} begins, source is v{s.source}", to(pc="looked", promise=s.source, seen=s.value[1] if s.value else 0)
                elif s.value:
                    yield f"{name} (needs v{s.floor}): hit", give(to(need=s.floor), i, s.value[0], True)
                else:
                    yield f"{name} (needs v{s.floor}): miss", to(pc="looked", need=s.floor)
            elif p.pc == "again":
                if s.value:
                    yield f"{name} looks again (needs v{p.need}): hit", give(s, i, s.value[0], True)
                else:
                    yield f"{name} looks again (needs v{p.need}): miss", to(pc="looked")
            elif p.pc == "looked" and p.kind == "refresh":
                if mutation == "takes_what_it_finds" and s.value and s.value[1] != p.seen:
                    yield f"{name}: finds v{s.value[0]}", give(s, i, s.value[0], True)
                elif mutation == "follows_a_holder" and s.lease:
                    yield f"{name}: follows lease {s.lease}", to(pc="following", saw=s.lease)
                else:
                    yield f"{name}: takes the lease {f'from {s.lease}' if s.lease else 'that is free'}, now {s.fresh}", lead(s, i, True)
            elif p.pc == "looked":
                yield from acquire(s, i)
            elif p.pc == "following":
                if s.lease != p.saw or s.value and s.value[1] != p.seen:
                    yield from acquire(s, i)
            elif p.pc == "leading" and not p.paused:
                yield f"{name}: reads the source, v{s.source}", to(pc="loaded", version=s.source)
                if s.faults[FAILURE]:
                    yield f"!{name}: its load fails", spend(to(s._replace(lease=0 if mine else s.lease, allowed=s.allowed + 1), pc="done", late=-1, promise=0), FAILURE)
            elif p.pc == "loaded" and not p.paused:
                if mine or mutation == "no_fence":
                    base = s._replace(value=(p.version, s.fresh), fresh=s.fresh + 1, lease=0 if mine else s.lease)
                    if not mine:
                        base = base._replace(bad=f"fence: v{p.version} is stored without the lease")
                    yield f"{name}: fill of v{p.version} accepted", give(base, i, p.version, True)
                else:
                    base, drops = s, p.forced and bool(s.value) and (s.value[1] == p.seen or mutation == "refused_drops_anything") and mutation != "refused_drops_nothing"
                    if drops:
                        base = s._replace(value=(), allowed=s.allowed + (s.value[1] == p.seen))
                    yield f"{name}: fill of v{p.version} refused{', the value it was to replace is dropped' if drops else ''}", give(base, i, p.version, mutation == "late_take_refused")
            if p.pc in ("leading", "loaded"):
                if s.faults[DEATH]:
                    yield f"!{name} dies, its lease expires", spend(to(s._replace(lease=0 if mine else s.lease, allowed=s.allowed + 1), pc="dead", late=-1), DEATH)
                if s.faults[PAUSE] and mine and not p.paused:
                    yield f"!{name} is paused, its lease expires", spend(to(s._replace(lease=0, allowed=s.allowed + 1), paused=True), PAUSE)
                if s.faults[LATE] and p.late < 0 and p.pc == "loaded":
                    yield f"a late caller joins {name}, needs v{s.floor}", spend(to(late=s.floor), LATE)
            if p.paused:
                yield f"{name} goes on", to(paused=False)
        if s.faults[UPDATE]:
            yield f"!source := v{s.source + 1}", spend(s._replace(source=s.source + 1), UPDATE)
        if s.faults[DELETE] and (s.value or s.lease):
            yield "!delete(key)", spend(s._replace(value=(), lease=0, allowed=s.allowed + 1), DELETE)

    def bad(s: S) -> str | None:
        if s.value and s.value[0] < s.floor:
            return s.bad or f"refresh: v{s.value[0]} is served, a refresh that has returned began at v{s.floor}"
        return s.bad or None

    def canonical(s: S) -> S:
        names: dict[int, int] = {0: 0}
        def name(token: int) -> int:
            return names.setdefault(token, len(names))
        value = s.value and (s.value[0], name(s.value[1]))
        lease = name(s.lease)
        ps = tuple(p._replace(seen=name(p.seen), token=name(p.token), saw=name(p.saw)) for p in s.ps)
        return s._replace(value=value, lease=lease, ps=ps, fresh=len(names))

    def canonical_steps(s: S):
        for label, following in steps(s):
            yield label, canonical(following)

    init = S(1, 0, (1, 1) if warm else (), 0, 2, 0, 0 if warm else 1, (failures, deaths, pauses, deletes, updates, late), tuple(P(k) for k in kinds), "")
    return explore(init, canonical_steps, bad, goal=lambda s: all(p.pc in ("new", "done", "dead") for p in s.ps) and not s.lease)


F, R = "refresh", "read"
VARIANTS = [
    Variant("two_refreshers", "ok", dict(kinds=(F, F, R, R), updates=2)),
    Variant("two_refreshers_cold", "ok", dict(kinds=(F, F, R, R), updates=1, warm=False)),
    Variant("failing", "ok", dict(kinds=(F, F, R), updates=1, failures=2)),
    Variant("dying", "ok", dict(kinds=(F, F, R), updates=1, deaths=1, pauses=1)),
    Variant("late_callers", "ok", dict(kinds=(F, F, R), updates=2, late=2, warm=False)),
    Variant("everything", "ok", dict(kinds=(F, F, R), updates=1, failures=1, deaths=1, pauses=1, deletes=1), long=True),
    Variant("everything_cold", "ok", dict(kinds=(F, F, R), updates=1, failures=1, pauses=1, deletes=1, late=1, warm=False), long=True),
    Variant("mutant_refused_drops_nothing", "refresh", dict(kinds=(F, F, R), updates=1, failures=1, mutation="refused_drops_nothing"),
            "a refresh is overtaken by another, returns, and that one fails: the old value stays until its life ends"),
    Variant("mutant_refused_drops_nothing_pause", "refresh", dict(kinds=(F, R), updates=1, pauses=1, mutation="refused_drops_nothing"), "the same with one, paused until its lease is gone"),
    Variant("mutant_refused_drops_anything", "P1", dict(kinds=(F, F, R), updates=0, mutation="refused_drops_anything")),
    Variant("mutant_no_fence", "fence", dict(kinds=(F, R), warm=False, mutation="no_fence")),
    Variant("mutant_late_take_refused", "refresh", dict(kinds=(F, R), updates=1, late=1, warm=False, mutation="late_take_refused")),
    Variant("mutant_takes_what_it_finds", "refresh", dict(kinds=(F, R), updates=1, warm=False, mutation="takes_what_it_finds"), "M12's second look is not for a refresh"),
    Variant("mutant_follows_a_holder", "refresh", dict(kinds=(F, R), updates=1, warm=False, mutation="follows_a_holder")),
]

if __name__ == "__main__":
    main(run, VARIANTS)
