"""A value that is not to be stored (None, Uncached, store_if, too large): the waiters of that load cannot have it from Redis, and need not queue for the lease.

Without a rule each waiter becomes leader in its turn, and the last waits for all the loads before it.
Protocol (one key, one flight per process)
  alone        the leader's load ends with a value that is not stored.  One script: lease still mine -> mark alone(upto = its chain), short PX; wake-up
  chains       are numbered in the lease's slot: a lease takes the number after the one that it finds there, in a lease that it overtakes or in a mark.
               `upto` is handed on from the mark to the lease that replaces it, and to the mark or lease after that
  waiter       of chain c that comes back and finds no new value: upto >= c, in a mark or in a lease -> loads at once for its own process: no lease, no fill, and a late
               caller of its process does not get that value (there is no verdict: it starts again).  Else as ever: mark of others or none -> lead; held -> follow
  newcomer     takes a lease, whatever the mark says; held -> follows that chain
  failure      the failure mark hands `upto` on as well; here it is a mark that says nothing of its own chain (its waiters: see throttle.py)
Faults: a mark expires before everybody has come; a leader dies; the key is deleted; one invalidation.
Invariants   waits   who waited for a load that was not stored waits for no other before its own begins (unless a value was stored, or the mark was lost, since)
             P1      without a mark, one load; a newcomer loads with a lease
             P3      as ever; a value loaded alone is not stored
             nobody is left waiting
"""
from __future__ import annotations

from typing import NamedTuple

from checker import Result, Variant, explore, main, put


class P(NamedTuple):
    pc: str = "new"            # new, looked, waiting, leading, read, alone, alone_read, done, dead
    need: int = 0
    late: int = -1             # a late caller of the process: what it needs, -1 = there is none
    again: bool = False        # the flight of a late caller that started again
    seen: int = 0
    chain: int = 0             # the chain that it follows, 0 = newcomer
    token: int = 0
    saw: int = 0               # the lease that it follows
    captured: int = 0
    version: int = 0
    owed: bool = False         # ghost: it has waited for a load that was not stored


class S(NamedTuple):
    source: int
    floor: int
    g: int                     # generation
    value: tuple               # () | (version, generation, id)
    slot: tuple                # () | ("held", token, chain, upto) | ("alone", upto, chain)
    fresh: int
    faults: tuple              # (unstored, expiries, deaths, deletes, late callers, failures)
    inval: str
    ps: tuple
    bad: str


UNSTORED, EXPIRY, DEATH, DELETE, LATE, FAILURE = range(6)


def run(processes=3, unstored=1, expiries=0, deaths=0, deletes=0, late=0, failures=0, invalidation=False, mutation="") -> Result:
    def spend(s: S, which: int) -> S:
        return s._replace(faults=put(s.faults, which, s.faults[which] - 1))

    def lost(s: S) -> S:
        """The slot is gone, and with it what waiters could be told."""
        return s._replace(slot=(), ps=tuple(q._replace(owed=False) for q in s.ps))

    def give(s: S, i: int, version: int, late_too: bool) -> S:
        """The value to the flight's caller, and to a late one if a verdict says so; else that one starts again."""
        p, bad = s.ps[i], s.bad
        if version < p.need:
            bad = f"P3: process {i} got v{version}, needs v{p.need}"
        if p.late >= 0 and late_too and version < p.late:
            bad = f"P3: a late caller of process {i} got v{version}, needs v{p.late}"
        after = P("looked", need=p.late, again=True) if p.late >= 0 and not late_too else P("done")
        return s._replace(ps=put(s.ps, i, after), bad=bad)

    def acquire(s: S, i: int):
        p = s.ps[i]
        name = f"process {i}"
        def to(base=s, **change):
            return base._replace(ps=put(base.ps, i, base.ps[i]._replace(**change)))
        if s.value and s.value[2] != p.seen:
            if s.value[1] == s.g:
                yield f"{name}: acquire finds v{s.value[0]}", give(s, i, s.value[0], True)
            else:
                yield f"{name}: acquire finds v{s.value[0]}, dead", to(pc="looked", seen=s.value[2])
            return
        held = bool(s.slot) and s.slot[0] == "held"
        upto = (s.slot[3] if held else s.slot[1]) if s.slot else 0
        number = s.slot[2] if s.slot else 0
        alone = p.chain and upto >= p.chain
        if mutation == "only_marks_tell" and held:
            alone = False
        if mutation == "last_chain_only":
            alone = bool(p.chain) and upto == p.chain
        if mutation == "no_mark":
            alone = False
        if mutation == "newcomers_too" and s.slot and not held:
            alone = True
        if alone:
            base = to(pc="alone", chain=0, saw=0, owed=False)
            if not p.chain:
                base = base._replace(bad=f"P1: {name}, a newcomer, loads without a lease")
            yield f"{name}: chain {p.chain} is not stored, loads alone", base
        elif held:
            bad = f"waits: {name} has waited for a load that was not stored, and follows another" if p.owed else s.bad
            yield f"{name}: follows chain {number}", to(pc="waiting", chain=number, saw=s.slot[1])._replace(bad=bad)
        else:
            if mutation == "upto_not_handed_on":
                upto = 0
            yield f"{name}: leads, chain {number + 1}", to(s._replace(slot=("held", s.fresh, number + 1, upto), fresh=s.fresh + 1),
                                                          pc="leading", token=s.fresh, captured=s.g, chain=0, saw=0, owed=False)

    def steps(s: S):
        for i, p in enumerate(s.ps):
            def to(base=s, **change):
                return base._replace(ps=put(base.ps, i, base.ps[i]._replace(**change)))
            name = f"process {i}"
            mine = bool(s.slot) and s.slot[0] == "held" and s.slot[1] == p.token
            if p.pc == "new":
                if i and s.ps[i - 1].pc == "new":
                    continue
                if s.value and s.value[1] == s.g:
                    yield f"{name}: hit", give(to(need=s.floor), i, s.value[0], True)
                else:
                    yield f"{name} (needs v{s.floor}): miss", to(pc="looked", need=s.floor, seen=s.value[2] if s.value else 0)
            elif p.pc == "looked":
                yield from acquire(s, i)
            elif p.pc == "waiting":
                if not s.slot or s.slot[0] == "alone" or s.slot[1] != p.saw or s.value and s.value[2] != p.seen:
                    yield from acquire(s, i)
            elif p.pc in ("leading", "alone"):
                yield f"{name}: reads the source, v{s.source}", to(pc="read" if p.pc == "leading" else "alone_read", version=s.source)
                if s.faults[FAILURE] and p.pc == "leading" and mine:
                    base = s._replace(slot=("alone", 0 if mutation == "failure_forgets_upto" else s.slot[3], s.slot[2]))
                    yield f"!{name}: load fails, failure mark, not stored up to {base.slot[1]}", spend(to(base, pc="done", late=-1), FAILURE)
                if s.faults[DEATH] and p.pc == "leading":
                    dead = to(pc="dead", late=-1)
                    yield f"!{name} dies, its lease expires", spend(lost(dead) if mine else dead, DEATH)
            elif p.pc == "read":
                if mine:
                    unchanged = s.g == p.captured
                    ps = tuple(q._replace(owed=False) for q in s.ps)      # a value is stored: it ends what was owed
                    base = s._replace(value=(p.version, p.captured, s.fresh), slot=(), fresh=s.fresh + 1, ps=ps)
                    yield f"{name}: fill of v{p.version}", give(base, i, p.version, unchanged)
                    if s.faults[UNSTORED]:
                        mark = () if mutation == "no_mark" else ("alone", s.slot[2], s.slot[2])
                        ps = tuple(q._replace(owed=True) if q.pc == "waiting" and q.saw == p.token else q for q in s.ps)
                        base = spend(s._replace(slot=mark, ps=ps), UNSTORED)
                        yield f"!{name}: v{p.version} is not to be stored, mark {mark}", give(base, i, p.version, unchanged)
                else:
                    yield f"{name}: fill refused", give(s, i, p.version, False)
            elif p.pc == "alone_read":
                base = s
                if mutation == "alone_stores":
                    base = s._replace(value=(p.version, s.g, s.fresh), fresh=s.fresh + 1)
                yield f"{name}: loaded alone, v{p.version}", give(base, i, p.version, mutation == "alone_serves_late")
            if p.pc in ("read", "alone_read") and s.faults[LATE] and p.late < 0 and not p.again:
                yield f"a late caller joins process {i}, needs v{s.floor}", spend(to(late=s.floor), LATE)
        if s.slot and s.slot[0] == "alone":
            if s.faults[EXPIRY]:
                # who comes late to a mark that is gone leads, or follows whoever does: the mark's PX has to be longer than a wake-up takes
                yield "!the mark expires early", spend(lost(s), EXPIRY)
            if not any(q.pc == "waiting" for q in s.ps):
                yield "the mark expires", s._replace(slot=())
        if s.faults[DELETE] and (s.slot or s.value):
            yield "!delete(key)", spend(lost(s._replace(value=())), DELETE)
        if s.inval == "idle":
            yield "!source := v2, invalidation begins", s._replace(source=2, inval="sent")
        elif s.inval == "sent":
            yield "invalidation executes", s._replace(g=s.g + 1, inval="executed")
        elif s.inval == "executed":
            yield "invalidation returns", s._replace(floor=2, inval="done")

    def bad(s: S) -> str | None:
        if s.value and s.value[1] == s.g and s.value[0] < s.floor:
            return f"P3: v{s.value[0]} is servable, v{s.floor} was invalidated"
        return s.bad or None

    def canonical(s: S) -> S:
        names: dict[int, int] = {0: 0}
        def name(token: int) -> int:
            return names.setdefault(token, len(names))
        value = s.value and (*s.value[:2], name(s.value[2]))
        slot = ("held", name(s.slot[1]), *s.slot[2:]) if s.slot and s.slot[0] == "held" else s.slot
        ps = tuple(p._replace(seen=name(p.seen), token=name(p.token), saw=name(p.saw)) for p in s.ps)
        return s._replace(value=value, slot=slot, ps=ps, fresh=len(names))

    def canonical_steps(s: S):
        for label, following in steps(s):
            yield label, canonical(following)

    init = S(1, 0, 1, (), (), 1, (unstored, expiries, deaths, deletes, late, failures), "idle" if invalidation else "done", (P(),) * processes, "")
    return explore(init, canonical_steps, bad, goal=lambda s: all(p.pc in ("new", "done", "dead") for p in s.ps) and (not s.slot or s.slot[0] == "alone"))


VARIANTS = [
    Variant("unstored_once", "ok", dict(processes=4, unstored=1)),
    Variant("never_stored", "ok", dict(processes=4, unstored=4)),
    Variant("never_stored_five", "ok", dict(processes=5, unstored=5), long=True),
    Variant("late_and_invalidated", "ok", dict(processes=3, unstored=2, late=1, invalidation=True), long=True),
    Variant("failures", "ok", dict(processes=4, unstored=2, failures=2)),
    Variant("faults", "ok", dict(processes=3, unstored=3, expiries=1, deaths=1, deletes=1)),
    Variant("everything", "ok", dict(processes=3, unstored=2, expiries=1, deaths=1, failures=1, late=1)),
    Variant("mutant_no_mark", "waits", dict(processes=3, unstored=3, mutation="no_mark"), "released only: the waiters become leader one after the other"),
    Variant("mutant_upto_not_handed_on", "waits", dict(processes=3, unstored=2, mutation="upto_not_handed_on"), "a newcomer's lease takes the mark's place before the waiters have seen it"),
    Variant("mutant_only_marks_tell", "waits", dict(processes=3, unstored=2, mutation="only_marks_tell")),
    Variant("mutant_last_chain_only", "waits", dict(processes=4, unstored=3, mutation="last_chain_only"), "two newcomers before a waiter comes: its chain is not the last one"),
    Variant("mutant_failure_forgets_upto", "waits", dict(processes=4, unstored=1, failures=1, mutation="failure_forgets_upto")),
    Variant("mutant_newcomers_too", "P1", dict(processes=2, unstored=1, mutation="newcomers_too")),
    Variant("mutant_alone_stores", "P3", dict(processes=2, unstored=1, invalidation=True, mutation="alone_stores")),
    Variant("mutant_alone_serves_late", "P3", dict(processes=2, unstored=1, late=1, invalidation=True, mutation="alone_serves_late")),
]

if __name__ == "__main__":
    main(run, VARIANTS)
