"""Jobs: each due time of a job is run by one process of the fleet, whatever dies, pauses, is lost or is cut short on the way.

One job, N processes, a clock of the server's (`now`, whole units; a lease is good for LEASE of them, due times are `interval` apart).
Redis: record = (due, holder's token, until when the lease is good, token of the last run that ended) or nothing.
Protocol
  claim        one script: no record -> due := now.  Held by another and until > now -> "held".  Free, or lapsed, and due > now -> "wait".  Else holder := token,
               until := now + LEASE -> "run".  Held by this very token -> "run" again, so that a claim whose answer was lost is made once more with the same token
  begin        only if the claim was asked for less than LEASE ago; else it is asked again
  renew        one script: holder is my token (lapsed or not) -> until := now + LEASE.  Else the run is cancelled
  end          one script: holder is my token -> due := the first one of the grid after now, no holder, last := token.  last is my token -> it has been done, its answer was
               lost.  Else refused: the run does not count
  give back    (cancelled) one script: holder is my token -> no holder, due stays
  run now      as a claim, but does not wait until it is due; due stays, unless it has come when the run ends
Faults: a process dies, is paused while time goes on, its run is cancelled; the record is lost (FLUSHALL, eviction); an answer is lost after its script ran, or late.
Invariants   twice     no two runs of one due time begin, unless the first one's process died, was paused or cancelled, or the record was lost
             finished  one run of a due time is told that it has ended it
             overlap   no run begins while another goes on, but for that of a paused process or of a lost record
             early     none begins before its due time; the first one only if there is no record
             lost      a due time whose runner died or was cancelled is still due
             robbed    who was not paused, and whose record was not lost, is never refused; but an end whose answer was lost, and that is sent again after another's
             nobody is wedged: as long as one process lives, what is due is run, by protocol steps alone
"""
from __future__ import annotations

from typing import NamedTuple

from checker import Result, Variant, explore, main, put


class P(NamedTuple):
    pc: str = "idle"           # idle answered running ending dead
    token: int = 0
    due: int = 0
    asked: int = 0             # how long ago, as a negative number
    paused: bool = False
    excused: bool = False      # ghost: was paused while it ran, or its record is lost
    eager: bool = False        # runs before it is due
    fast: bool = False         # mutation own_clock: its clock is ahead
    joined: bool = False       # has had an answer before


class S(NamedTuple):
    now: int
    rec: tuple                 # () | (due, holder, until, last)
    fresh: int
    faults: tuple              # (deaths, pauses, losses, lost answers, cancels, runs now) still to come
    ps: tuple
    begun: tuple               # ghost: due times begun by somebody who has no excuse
    ended: tuple               # ghost: due times that somebody was told to have ended
    due: int                   # ghost: no run may begin before
    bad: str


DEATH, PAUSE, LOSS, ANSWER, CANCEL, EAGER = range(6)
LEASE = 2


def run(processes=2, interval=2, end=5, deaths=0, pauses=0, losses=0, answers=0, cancels=0, eager=0, mutation="") -> Result:
    def spend(s: S, which: int) -> S:
        return s._replace(faults=put(s.faults, which, s.faults[which] - 1))

    def without(dues: tuple, due: int) -> tuple:
        return tuple(d for d in dues if d != due)

    def rest(p: P, **change) -> P:
        return P(fast=p.fast, joined=True)._replace(**change)

    def following(due: int, now: int, eager: bool = False) -> int:
        if mutation == "eager_takes_due":
            eager = False
        return due + ((now if eager else max(now, due)) - due) // interval * interval + interval

    def claim(s: S, i: int):
        """The script of process i's claim, and what it hears."""
        p, name = s.ps[i], f"process {i}"
        def to(base, new):
            return base._replace(ps=put(base.ps, i, new))
        time = s.now + (p.fast and mutation == "own_clock")
        due, holder, until, last = s.rec or (time, 0, 0, 0)
        if holder and holder != p.token and (until > time or mutation == "no_expiry") and mutation != "claim_ignores_lease":
            yield f"{name}: claim: held by {holder}", to(s, rest(p))
            return
        free = not holder or holder != p.token
        eager = free and due > time
        if eager and s.faults[EAGER]:
            base = spend(s, EAGER)._replace(rec=(due, p.token, time + LEASE, last))
            yield f"!{name}: claim: may run now, with token {p.token}; {due} is due", to(base, p._replace(pc="answered", due=due, eager=True))
        if eager and not (mutation == "join_at_once" and not p.joined):
            yield f"{name}: claim: {due} is due, it is {s.now}", to(s, rest(p))
            return
        rec = (following(due, time) if mutation == "claim_moves_due" and free else due, p.token, time + LEASE, last)
        base = s._replace(rec=rec)
        yield f"{name}: claim: may run {due}, with token {p.token}", to(base, p._replace(pc="answered", due=due, eager=p.eager and not free))
        if s.faults[ANSWER]:
            yield f"!{name}: claim: may run {due}, and does not hear of it", to(spend(base, ANSWER), p._replace(pc="idle", asked=0))

    def begin(s: S, i: int) -> S:
        p = s.ps[i]
        bad = ""
        if not p.excused:
            if p.due in s.begun and not p.eager:
                bad = f"twice: {p.due} is begun again"
            elif any(q.pc == "running" and not q.excused for q in s.ps):
                bad = f"overlap: {p.due} begins while another runs"
            elif s.now < s.due and not p.eager:
                bad = f"early: a run begins at {s.now}, {s.due} is due"
        begun = s.begun if p.excused or p.eager else tuple(sorted({*s.begun, p.due}))
        return s._replace(ps=put(s.ps, i, p._replace(pc="running", asked=0)), begun=begun, bad=bad)

    def refused(s: S, i: int, what: str) -> S:
        p = s.ps[i]
        bad = "" if p.excused else f"robbed: {what} of process {i} is refused"
        return s._replace(ps=put(s.ps, i, rest(p)), bad=bad)

    def finish(s: S, i: int):
        p, name = s.ps[i], f"process {i}"
        due, holder, until, last = s.rec or (0, 0, 0, 0)
        def told(base):
            counts = not p.eager or p.due < base.rec[0]
            bad = f"finished: {p.due} is ended twice" if counts and p.due in base.ended else base.bad
            ended = tuple(sorted({*base.ended, p.due})) if counts else base.ended
            return base._replace(ps=put(base.ps, i, rest(p)), ended=ended, bad=bad)
        after = following(p.due, s.now, p.eager)
        if s.rec and (holder == p.token or mutation == "end_without_token"):
            rec = () if mutation == "end_deletes" else (after, 0, 0, 0 if mutation == "end_forgets" else p.token)
            late = tuple(q._replace(excused=True) if q.pc == "ending" and q.token == last and last else q for q in s.ps)
            base = s._replace(rec=rec, due=after, ps=late)
            if p.eager and s.now < p.due < after:
                base = base._replace(bad=f"lost: a run before {p.due} has made {after} the next")
            yield f"{name}: ends {p.due}, {after} is next", told(base)
            if s.faults[ANSWER]:
                yield f"!{name}: ends {p.due}, {after} is next, and does not hear of it", spend(base, ANSWER)
        elif s.rec and (last == p.token or mutation == "known_by_due" and due == after):
            yield f"{name}: has ended {p.due}", told(s)
        else:
            yield f"{name}: the end of {p.due} is refused", refused(s, i, "the end")

    def is_on_time(s: S) -> bool:
        """Whoever runs, and is not paused, renews its lease before it lapses."""
        if mutation in ("no_renewal", "claim_ignores_lease"):
            return True
        return not any(p.pc in ("running", "ending") and not p.paused and s.rec and s.rec[1] == p.token and s.rec[2] <= s.now + 1 for p in s.ps)

    def steps(s: S):
        if s.now < end and is_on_time(s):
            ps = tuple(p._replace(asked=max(p.asked - 1, -LEASE)) if p.pc == "answered" else p for p in s.ps)
            yield f"time {s.now + 1}", s._replace(now=s.now + 1, ps=ps)
        if s.now == end and s.rec and s.rec[1] and s.rec[2] > s.now:
            if not any(p.token == s.rec[1] and p.pc != "dead" for p in s.ps):
                yield "time: the lease of nobody lapses", s._replace(rec=(*s.rec[:2], s.now, s.rec[3]))
        for i, p in enumerate(s.ps):
            name = f"process {i}"
            def to(new, base=s, i=i):
                return base._replace(ps=put(base.ps, i, new))
            if p.pc == "dead" or any(s.ps[j] == p for j in range(i)):
                continue
            if p.paused:
                yield f"{name} goes on", to(p._replace(paused=False))
            elif p.pc == "idle":
                token = p.token or s.fresh
                yield from claim(to(p._replace(token=token, asked=0), s._replace(fresh=max(s.fresh, token + 1))), i)
            elif p.pc == "answered":
                if p.asked <= -LEASE and mutation != "late_answer_begins":
                    for label, after in claim(to(p._replace(asked=0)), i):
                        yield f"{label} (again: the answer was late)", after
                else:
                    yield f"{name}: begins {p.due}", begin(s, i)
            elif p.pc in ("running", "ending"):
                mine = bool(s.rec) and s.rec[1] == p.token
                if p.pc == "running":
                    yield f"{name}: the work has ended", to(p._replace(pc="ending"))
                else:
                    yield from finish(s, i)
                if mutation == "renew_by_set" and s.rec and p.pc == "running":
                    if s.rec[1:3] != (p.token, s.now + LEASE):
                        yield f"{name}: renews by setting", s._replace(rec=(s.rec[0], p.token, s.now + LEASE, s.rec[3]))
                elif mine and s.rec[2] < s.now + LEASE and mutation != "no_renewal":
                    yield f"{name}: renews", s._replace(rec=(s.rec[0], p.token, s.now + LEASE, s.rec[3]))
                elif not mine and p.pc == "running":
                    yield f"{name}: is told that its lease is lost", refused(s, i, "the renewal")
            if p.pc in ("answered", "running", "ending"):
                if s.faults[DEATH]:
                    base = spend(s._replace(begun=without(s.begun, p.due) if p.pc in ("running", "ending") else s.begun), DEATH)
                    if s.rec and p.pc == "running" and not p.excused and s.rec[0] > p.due:
                        base = base._replace(bad=f"lost: the runner of {p.due} is dead, and {s.rec[0]} is next")
                    yield f"!{name} dies", to(P("dead", token=p.token), base)
                if s.faults[PAUSE] and not p.paused:
                    runs = p.pc in ("running", "ending")
                    base = spend(s._replace(begun=without(s.begun, p.due) if runs else s.begun), PAUSE)
                    yield f"!{name} is paused", to(p._replace(paused=True, excused=p.excused or runs), base)
            if p.pc == "running" and not p.paused and s.faults[CANCEL]:
                base = spend(s._replace(begun=s.begun if p.excused else without(s.begun, p.due)), CANCEL)
                if s.rec and s.rec[1] == p.token:
                    due = following(p.due, s.now) if mutation == "give_back_moves_due" else s.rec[0]
                    base = base._replace(rec=(due, 0, 0, s.rec[3]))
                    if due > p.due:
                        base = base._replace(bad=f"lost: the run of {p.due} was cancelled, and {due} is next")
                yield f"!{name}: the run of {p.due} is cancelled", to(rest(p), base)
        if s.faults[LOSS] and s.rec:
            ps = tuple(p._replace(excused=True) if p.pc in ("answered", "running", "ending") else p for p in s.ps)
            yield "!the record is lost", spend(s._replace(rec=(), ps=ps, begun=(), ended=(), due=0), LOSS)

    def canonical(s: S) -> S:
        names: dict[int, int] = {0: 0}
        def name(token: int) -> int:
            return names.setdefault(token, len(names))
        rec = s.rec
        if rec:
            rec = (rec[0], name(rec[1]), rec[2], name(rec[3]) if any(p.token == rec[3] for p in s.ps) else 0)
        ps = s.ps if mutation == "own_clock" else tuple(sorted(s.ps, key=lambda p: (names.get(p.token, 99), p)))
        ps = tuple(p._replace(token=name(p.token) if p.pc != "dead" or rec and s.rec[1] == p.token else 0) for p in ps)
        live = {p.due for p in ps if p.pc in ("answered", "running", "ending")} | {s.rec[0] if s.rec else 0}
        begun, ended = (tuple(due for due in dues if not rec or due in live) for dues in (s.begun, s.ended))
        return s._replace(rec=rec, ps=tuple(sorted(ps)) if mutation != "own_clock" else ps, fresh=len(names), begun=begun, ended=ended)

    def canonical_steps(s: S):
        for label, after in steps(s):
            yield label, canonical(after)

    def goal(s: S) -> bool:
        alive = [p for p in s.ps if p.pc != "dead"]
        return not alive or bool(s.rec) and s.rec[0] > s.now and not (s.rec[1] and s.rec[2] > s.now) and all(p.pc == "idle" for p in alive)

    ps = tuple(P(fast=mutation == "own_clock" and i == 0, joined=i == 0 or mutation != "join_at_once") for i in range(processes))
    init = S(0, (), 1, (deaths, pauses, losses, answers, cancels, eager), ps, (), (), 0, "")
    return explore(init, canonical_steps, lambda s: s.bad or None, goal=goal)


VARIANTS = [
    Variant("four_processes", "ok", dict(processes=4, end=7), "no fault: each due time is run once"),
    Variant("short_interval", "ok", dict(processes=3, interval=1, end=6), "runs that take longer skip what they missed"),
    Variant("long_interval", "ok", dict(processes=3, interval=4, end=9)),
    Variant("deaths", "ok", dict(processes=3, deaths=2, end=7), "the same due time is run by another"),
    Variant("pauses", "ok", dict(processes=3, pauses=2, end=7)),
    Variant("pause_and_death", "ok", dict(processes=3, pauses=1, deaths=1, interval=1, end=6)),
    Variant("record_lost", "ok", dict(processes=3, losses=2, deaths=1)),
    Variant("answers_lost", "ok", dict(processes=3, answers=3, end=7)),
    Variant("cancels", "ok", dict(processes=3, cancels=2, pauses=1, end=6)),
    Variant("run_now", "ok", dict(processes=3, eager=2, deaths=1), "runs that somebody wants before they are due"),
    Variant("run_now_pause", "ok", dict(processes=3, eager=2, pauses=1, interval=3, end=6)),
    Variant("everything", "ok", dict(processes=2, deaths=1, pauses=1, losses=1, answers=1, cancels=1)),
    Variant("everything_3", "ok", dict(processes=3, deaths=1, pauses=1, losses=1, answers=1, cancels=1), long=True),
    Variant("everything_3_short", "ok", dict(processes=3, interval=1, end=4, deaths=1, pauses=2, losses=1, answers=2), long=True),
    Variant("mutant_claim_ignores_lease", "twice", dict(mutation="claim_ignores_lease")),
    Variant("mutant_no_renewal", "twice", dict(mutation="no_renewal")),
    Variant("mutant_late_answer_begins", "twice", dict(mutation="late_answer_begins"), "the claim has lapsed on its way back, another has run it meanwhile"),
    Variant("mutant_end_without_token", "early", dict(pauses=1, mutation="end_without_token"), "a paused runner ends what another has ended, or runs"),
    Variant("mutant_known_by_due", "finished", dict(pauses=1, mutation="known_by_due"),
            "an end that is sent again is known by its token, not by the due time that it would set: another may have set the same"),
    Variant("mutant_end_forgets", "robbed", dict(answers=1, mutation="end_forgets"), "an end whose answer was lost is refused when it is sent again"),
    Variant("mutant_renew_by_set", "robbed", dict(pauses=1, mutation="renew_by_set"), "a paused runner takes the lease of who took over"),
    Variant("mutant_claim_moves_due", "lost", dict(deaths=1, mutation="claim_moves_due"), "who dies takes the due time along"),
    Variant("mutant_give_back_moves_due", "lost", dict(cancels=1, mutation="give_back_moves_due")),
    Variant("mutant_eager_takes_due", "lost", dict(eager=1, interval=3, mutation="eager_takes_due"), "a run now takes the next due time along"),
    Variant("mutant_join_at_once", "early", dict(mutation="join_at_once"), "whoever joins runs at once, though the record says when"),
    Variant("mutant_end_deletes", "twice", dict(mutation="end_deletes"), "the lease alone, as a lock: the record has to outlive the run"),
    Variant("mutant_own_clock", "twice", dict(mutation="own_clock"), "due, and lapsed, by the process's clock instead of the server's"),
    Variant("mutant_no_expiry", "wedged", dict(deaths=1, mutation="no_expiry")),
]

if __name__ == "__main__":
    main(run, VARIANTS)
