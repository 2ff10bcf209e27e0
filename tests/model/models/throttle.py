"""Failure marks: who can wait for a while leaves a failing loader alone, who has nothing tries, and nobody is asked twice for one failure.

One key; its stored value is stale.  Three kinds of reads: `content` has the stale value and does not wait, `patient` has it too and follows a load under way for a
while (soft_timeout), `empty` has nothing (its lookup missed, or it is strict).  Time passes at any moment, by whole units.
Protocol
  mark         in the lease's place: failed(attempts, chain, until): until = the end of the throttle, by the server's clock.  It lives until then, and at least RETRY
               (long enough for the waiters of its chain to come)
  content      acquire: value differs from the one seen -> take it; held -> serve stale (patient: follow); a mark with now < until -> serve stale, no load; else lead, new chain
  empty        acquire: held -> follow, join its chain; a mark of its chain: attempts 1 -> lead, attempt 2; attempts 2 -> raise; a mark of another chain, or none -> lead, new chain
  lease        remembers the `until` of the mark (or doomed lease) that it replaced
  doomed       a lease whose load an invalidation has doomed is taken by who has nothing; by content and patient reads only if the until it remembers is over
  failure      still mine -> mark(attempt, chain, max(now + throttle, the remembered until)), wake-up
  release      (last caller leaves) still mine -> a mark (attempts 2, a chain of nobody) while the remembered until is not over, else DEL; wake-up
  fill         still mine -> SET value, DEL lease, wake-up
Faults: leaves; deaths (the lease expires, and the remembered `until` with it: the throttle begins anew with the next failure).
Invariants   throttle  no content or patient read begins a load earlier than `throttle` after a failure that was marked
             chain     who raises has led, or waited for a failed attempt, and there were two of its chain; no chain has a third
             nobody is left waiting
"""
from __future__ import annotations

from typing import NamedTuple

from checker import Result, Variant, explore, main, put


class P(NamedTuple):
    kind: str
    asks: int                  # reads still to come
    pc: str = "idle"           # idle, looked, waiting, leading, failed
    seen: int = 0
    chain: int = 0
    token: int = 0
    local: int = 0             # mutation own_throttle: until when this process leaves the loader alone
    waited: int = 0            # ghost: failed attempts that it has waited for


class S(NamedTuple):
    now: int
    value: int                 # 1 = the stale one, else fresh
    slot: tuple                # () | ("held", token, attempt, chain, until, doomed) | ("failed", attempts, chain, until, gone)
    fresh: int
    quiet: int                 # ghost: until when no content read may begin a load
    faults: tuple              # (leaves, deaths, soft invalidations)
    ps: tuple
    bad: str


LEAVE, DEATH, SOFT = range(3)


def run(kinds=("content", "content", "empty"), asks=(2, 2, 1), throttle=2, retry=1, end=4, leaves=0, deaths=0, softs=0, mutation="") -> Result:
    def mark(s: S) -> tuple:
        return s.slot if s.slot and s.slot[0] == "failed" and s.now < s.slot[4] else ()

    def failed(s: S, attempts: int, chain: int, until: int) -> tuple:
        life = retry if mutation == "mark_is_short" else max(retry, until - s.now)
        return ("failed", attempts, chain, until, s.now + life)

    def rest(p: P, **change) -> P:
        return P(p.kind, p.asks - 1, local=p.local)._replace(**change)

    def acquire(s: S, i: int):
        p, m = s.ps[i], mark(s)
        name = f"{p.kind} {i}"
        def to(base, new):
            return base._replace(ps=put(base.ps, i, new))
        held = bool(s.slot) and s.slot[0] == "held"
        content = p.kind != "empty"
        mine = bool(m) and m[2] == p.chain
        if s.value != p.seen:
            yield f"{name}: acquire finds a fresh value", to(s, rest(p))
            return
        if held and s.slot[5] and (not content or s.now >= s.slot[4] or mutation == "content_takes_doomed"):
            held = False
        if held and p.kind == "content":
            yield f"{name}: lease held, serves stale", to(s, rest(p))
            return
        if held:
            yield f"{name}: follows chain {s.slot[3]}", to(s, p._replace(pc="waiting", chain=s.slot[3], waited=p.waited if p.chain == s.slot[3] else 0))
            return
        throttled = content and bool(m) and s.now < m[3]
        if mutation == "no_throttle" or mutation == "patient_retries" and mine and m[1] < 2:
            throttled = False
        if mutation == "own_throttle":
            throttled = content and s.now < p.local
        if throttled:
            yield f"{name}: finds {m}, serves stale", to(s, rest(p))
            return
        if not content and mine and m[1] >= 2:
            base = to(s, rest(p))
            if p.waited < 1:
                base = base._replace(bad=f"chain: {name} raises after {p.waited} failed attempts")
            yield f"{name}: chain {p.chain} failed twice, raises", base
            return
        if not content and m and not mine and mutation == "newcomer_raises":
            yield f"{name}: finds {m}, raises", to(s, rest(p))._replace(bad=f"chain: {name} raises after {p.waited} failed attempts")
            return
        again = mine and m[1] < 2 and (not content or mutation == "patient_retries")
        attempt, chain = (m[1] + 1, m[2]) if again else (1, s.fresh)
        if mutation == "attempts_not_counted":
            attempt = 1
        until = m[3] if m else 0
        if s.slot and s.slot[0] == "held" and mutation != "takeover_forgets_until":
            until = s.slot[4]
        base = s._replace(slot=("held", s.fresh + 1, attempt, chain, until, False), fresh=s.fresh + 2)
        if again and p.waited >= 2:
            base = base._replace(bad=f"chain: {name} makes attempt {p.waited + 1} of chain {chain}")
        if content and s.now < s.quiet:
            base = base._replace(bad=f"throttle: {name} loads at {s.now}, a load failed that throttles until {s.quiet}")
        yield f"{name}: leads at {s.now}, attempt {attempt} of chain {chain}", to(base, p._replace(pc="leading", chain=chain, token=s.fresh + 1))

    def steps(s: S):
        if s.now < end:
            yield f"time {s.now + 1}", s._replace(now=s.now + 1)
        for i, p in enumerate(s.ps):
            name = f"{p.kind} {i}"
            def to(new, base=s):
                return base._replace(ps=put(base.ps, i, new))
            mine = bool(s.slot) and s.slot[0] == "held" and s.slot[1] == p.token
            if p.pc == "idle" and p.asks:
                if any(s.ps[j] == p for j in range(i)):
                    continue
                if s.value == 1 or p.kind == "empty" and s.value == 0:
                    yield f"{name}: lookup", to(p._replace(pc="looked", seen=s.value))
                else:
                    yield f"{name}: lookup: fresh", to(rest(p))
            elif p.pc == "looked":
                yield from acquire(s, i)
            elif p.pc == "waiting":
                if not s.slot or s.slot[0] == "failed" or s.slot[3] != p.chain or s.slot[5] and (p.kind == "empty" or s.now >= s.slot[4]) or s.value != p.seen:
                    yield from acquire(s, i)
                elif p.kind == "patient":
                    yield f"{name}: soft_timeout, serves stale", to(rest(p))
            elif p.pc == "leading":
                if mine:
                    yield f"{name}: load and fill", to(rest(p), s._replace(value=2, slot=()))
                    until = max(s.now + throttle, 0 if mutation == "mark_is_shortened" else s.slot[4])
                    if p.kind == "empty" and mutation == "mark_is_shortened":
                        until = s.now
                    # whoever waits for this chain has now waited for one failed attempt more
                    ps = tuple(q._replace(waited=q.waited + 1) if q.pc == "waiting" and q.chain == p.chain else q for q in s.ps)
                    base = s._replace(slot=failed(s, s.slot[2], p.chain, until), ps=ps, quiet=max(s.quiet, s.now + throttle if p.kind != "empty" or mutation != "mark_is_shortened" else 0))
                    if mutation == "own_throttle":
                        p = p._replace(local=s.now + throttle)
                    yield f"!{name}: load fails at {s.now}, mark until {until}", to(rest(p), base)
                    if s.faults[LEAVE]:
                        back = failed(s, 2, 0 if mutation == "no_chain_is_a_chain" else s.fresh, s.slot[4]) if s.now < s.slot[4] and mutation != "release_forgets_mark" else ()
                        yield f"!{name}: last caller leaves, lease released{', the mark is back' if back else ''}", to(
                            rest(p), s._replace(slot=back, fresh=s.fresh + 1, faults=put(s.faults, LEAVE, s.faults[LEAVE] - 1)))
                    if s.faults[DEATH]:
                        yield f"!{name} dies, its lease expires", to(P(p.kind, 0, "dead"), s._replace(
                            slot=(), quiet=0, faults=put(s.faults, DEATH, s.faults[DEATH] - 1)))
                else:
                    yield f"{name}: its lease was taken over, it ends", to(rest(p))
        if s.faults[SOFT] and s.slot and s.slot[0] == "held" and not s.slot[5]:
            yield "!soft invalidation: the load under way is doomed", s._replace(slot=(*s.slot[:5], True), faults=put(s.faults, SOFT, s.faults[SOFT] - 1))
        if s.slot and s.slot[0] == "failed" and s.now >= s.slot[4]:
            yield "the mark is gone", s._replace(slot=())

    def canonical(s: S) -> S:
        names: dict[int, int] = {0: 0}
        def name(token: int) -> int:
            return names.setdefault(token, len(names))
        slot = s.slot
        if slot:
            slot = ("held", name(slot[1]), slot[2], name(slot[3]), *slot[4:]) if slot[0] == "held" else ("failed", slot[1], name(slot[2]), *slot[3:])
        ps = tuple(p._replace(chain=name(p.chain), token=name(p.token)) for p in s.ps)
        return s._replace(slot=slot, ps=ps, fresh=len(names))

    def canonical_steps(s: S):
        for label, following in steps(s):
            yield label, canonical(following)

    init = S(0, 1, (), 1, 0, (leaves, deaths, softs), tuple(P(k, a) for k, a in zip(kinds, asks)), "")
    return explore(init, canonical_steps, lambda s: s.bad or None,
                   goal=lambda s: all(p.pc in ("idle", "dead") for p in s.ps) and (not s.slot or s.slot[0] == "failed"))


C, T, E = "content", "patient", "empty"
VARIANTS = [
    Variant("three_content", "ok", dict(kinds=(C, C, C), asks=(2, 2, 2), end=5), "the loader is asked once in each period, by whoever comes first"),
    Variant("content_and_newcomer", "ok", dict(kinds=(C, C, E), asks=(2, 2, 2))),
    Variant("content_and_waiters", "ok", dict(kinds=(C, E, E), asks=(2, 1, 1))),
    Variant("patient", "ok", dict(kinds=(C, T, E), asks=(2, 2, 1))),
    Variant("mark_outlives_throttle", "ok", dict(kinds=(C, T, E), asks=(2, 1, 1), throttle=1, retry=2)),
    Variant("leaves", "ok", dict(kinds=(C, T, E), asks=(2, 1, 2), leaves=2)),
    Variant("deaths", "ok", dict(kinds=(C, T, E), asks=(2, 1, 1), deaths=1, leaves=1), "with the lease of a dead holder the throttle is forgotten"),
    Variant("doomed", "ok", dict(kinds=(C, T, E), asks=(2, 1, 2), softs=2), long=True),
    Variant("three_empty", "ok", dict(kinds=(E, E, E), asks=(2, 1, 1), throttle=1, leaves=1)),
    Variant("mutant_no_throttle", "throttle", dict(kinds=(C, C, C), asks=(1, 1, 1), mutation="no_throttle")),
    Variant("mutant_own_throttle", "throttle", dict(kinds=(C, C), asks=(2, 2), mutation="own_throttle"), "a throttle in each process: n loads in a period"),
    Variant("mutant_mark_is_short", "throttle", dict(kinds=(C, C), asks=(1, 1), mutation="mark_is_short")),
    Variant("mutant_mark_is_shortened", "throttle", dict(kinds=(C, C, E), asks=(2, 1, 1), mutation="mark_is_shortened"),
            "a newcomer without throttle (strict) fails and writes its own mark over that of the refresh"),
    Variant("mutant_patient_retries", "throttle", dict(kinds=(C, T), asks=(1, 1), mutation="patient_retries"), "attempt 2 is for those who have nothing"),
    Variant("mutant_release_forgets_mark", "throttle", dict(kinds=(C, C, E), asks=(2, 1, 1), leaves=1, mutation="release_forgets_mark"),
            "a newcomer takes the mark's place and leaves: nothing holds the refreshers back"),
    Variant("mutant_attempts_not_counted", "chain", dict(kinds=(E, E, E), asks=(1, 1, 1), mutation="attempts_not_counted"), "each waiter makes an attempt in its turn"),
    Variant("mutant_no_chain_is_a_chain", "chain", dict(kinds=(C, E), asks=(1, 2), leaves=1, mutation="no_chain_is_a_chain"),
            "a released lease's mark names no chain, and so does a newcomer"),
    Variant("mutant_content_takes_doomed", "throttle", dict(kinds=(C, C, E), asks=(2, 1, 1), softs=1, mutation="content_takes_doomed"),
            "a newcomer tries in spite of the mark; a soft invalidation dooms its load; a refresher overtakes it"),
    Variant("mutant_takeover_forgets_until", "throttle", dict(kinds=(C, E, E), asks=(2, 1, 1), softs=1, leaves=1, mutation="takeover_forgets_until")),
    Variant("mutant_newcomer_raises", "chain", dict(kinds=(C, E), asks=(1, 1), mutation="newcomer_raises")),
]

if __name__ == "__main__":
    main(run, VARIANTS)
