"""`set` by hand after a miss, against invalidations: by the same process, and by another one.

Cache-aside by hand is a load like any other: get misses, the value is computed, set stores it.  The generations it stores are those that the miss saw; where a token was
missing then, it can say nothing: the set asks (and plants) now, and an invalidation between miss and asking leaves no trace in Redis.  The process knows its own ones.
Protocol (one process, one key, one scope; tasks of the process miss, compute and set; `began` and `dropped` by the process's tick)
  get          MGET of value and token; a miss is remembered: (began, token or nothing)
  compute      reads the source
  set          recalls the miss (none: as if missed now, nothing seen).  Asks: [SET NX][GET].  Then, in one stretch: an own invalidation at or after `began` -> void
               (the key is deleted); else SET value with the miss's token, or with the asked one where the miss saw none
  invalidate   by the same process: dropped := tick at the call, DEL, dropped := tick at the answer.  By another: DEL
Memory of misses, three forms
  task         one for each task that missed: a set is judged by its own task's miss
  merged       one for each key: when the oldest miss began that no set has answered, and the first token that any of them saw; it goes with the last of the sets due
  oldest       the same, with the oldest miss's token only
  last         one for each key, the last one: a later miss of another task makes an older value look younger than it is
Faults: the token is evicted; another process plants it.
Invariant P3: after an invalidation by this process has returned, and after one by another process that came when the miss had seen the token, nothing computed before it is
              servable.  Not promised: a set without a miss, against what began before its call; another process's invalidation of a token that was missing (limit)
"""
from __future__ import annotations

from typing import NamedTuple

from checker import Result, Variant, explore, main, put


class W(NamedTuple):
    kind: str = "aside"        # aside: get, compute, set; blind: compute, set
    pc: str = "idle"           # idle, asked, missed, computed, called, planted, stored
    began: int = 0
    token: int = 0             # what the miss saw, 0 = missing
    version: int = 0
    own: int = 0               # what the set was judged by
    asked: int = 0
    due: int = 0               # ghost: the invalidations (bits: 1 own, 2 other's) that have to void it


class S(NamedTuple):
    source: int
    token: int
    value: tuple | None        # (version, token, ghost: the invalidations that have to void it)
    fresh: int
    tick: int
    dropped: int
    writers: tuple
    memory: tuple              # ((began, token), ...) for last and oldest
    invals: tuple              # pc of own, of other's
    returned: int              # bits
    evictions: int
    plants: int
    bad: str


def run(kinds=("aside", "aside"), own=True, other=False, evictions=1, plants=1, memory="task", limit=False, mutation="") -> Result:
    def check(s: S) -> S:
        if s.value and s.value[1] == s.token and s.value[2] & s.returned:
            return s._replace(bad=f"P3: set left v{s.value[0]} servable after {'its own' if s.value[2] & s.returned & 1 else 'another'} process's invalidation returned")
        return s

    def steps(s: S):
        for i, w in enumerate(s.writers):
            def to(base=s, **change):
                return base._replace(writers=put(base.writers, i, w._replace(**change)))
            name = f"task {i}"
            if w.pc == "idle":
                if i and s.writers[i - 1] == w:
                    continue
                if w.kind == "blind":
                    yield f"{name}: computes v{s.source}, no miss before", to(pc="computed", version=s.source, began=-1)
                else:
                    yield f"{name}: get begins at tick {s.tick}", to(pc="asked", began=s.tick)
            elif w.pc == "asked":
                if s.value and s.value[1] == s.token:
                    yield f"{name}: hit", to(pc="stored")
                    continue
                remembered = s.memory
                if memory == "last":
                    remembered = ((w.began, s.token),)
                elif memory == "oldest":
                    remembered = tuple(sorted(s.memory + ((w.began, s.token),)))
                elif memory == "merged":
                    began, token = s.memory[0] if s.memory else (w.began, s.token)
                    remembered = ((min(began, w.began), token or s.token),) * (len(s.memory) + 1)
                yield f"{name}: miss, token {s.token or 'missing'}", to(s._replace(memory=remembered), pc="missed", token=s.token)
            elif w.pc == "missed":
                yield f"{name}: computes v{s.source}", to(pc="computed", version=s.source)
            elif w.pc == "computed":
                base, judged = s, (s.tick, 0)
                if memory == "task" and w.began >= 0:
                    judged = (w.began, w.token)
                elif memory == "last" and s.memory:
                    judged, base = s.memory[0], s._replace(memory=())
                elif memory in ("oldest", "merged") and s.memory:
                    judged, base = s.memory[0], s._replace(memory=(s.memory[0],) * (len(s.memory) - 1))
                void = mutation == "check_before_asking" and s.dropped >= judged[0]
                # a blind set owes nothing to what began before its call
                exempt = sum(1 << k for k, pc in enumerate(s.invals) if w.kind == "blind" and pc != "idle")
                yield f"{name}: set of v{w.version} begins, judged by a miss at tick {judged[0]}{'' if judged[1] else ', token missing'}", to(
                    base, pc="stored" if void else "called", own=judged[0], token=judged[1], due=w.due & ~exempt)
            elif w.pc == "called":
                base = s if s.token else s._replace(token=s.fresh, fresh=s.fresh + 1)
                yield f"{name}: set asks: token {base.token}{'' if s.token else ' planted'}", to(base, pc="planted", asked=base.token)
            elif w.pc == "planted":
                if s.dropped >= w.own and mutation not in ("no_rule", "check_before_asking"):
                    yield f"{name}: set is void", to(s._replace(value=None), pc="stored")
                else:
                    token = w.asked if mutation == "asked_over_missed" else w.token or w.asked
                    yield f"{name}: SET v{w.version} with token {token}", check(to(s._replace(value=(w.version, token, w.due)), pc="stored"))
        for k, pc in enumerate(s.invals):
            who = ("own", "another process's")[k]
            def act(base, to, k=k):
                return base._replace(invals=put(base.invals, k, to))
            if pc == "idle":
                base = s._replace(source=s.source + 1)
                if k == 0:
                    base = base._replace(tick=s.tick + 1, dropped=s.dropped if mutation == "dropped_at_answer_only" else s.tick)
                # everything computed by now is older; another's is promised only where the miss saw the token
                base = base._replace(writers=tuple(
                    w._replace(due=w.due | (1 << k)) if w.version and (k == 0 or limit or w.token) else w for w in base.writers))
                if base.value and base.value[0] < base.source and (k == 0 or limit or base.value[1] == base.token):
                    base = base._replace(value=(*base.value[:2], base.value[2] | (1 << k)))
                yield f"!source := v{base.source}, {who} invalidation begins{f' at tick {s.tick}' if k == 0 else ''}", act(base, "sent")
            elif pc == "sent":
                yield f"{who} invalidation executes", check(act(s._replace(token=0), "executed"))
            elif pc == "executed":
                base = s._replace(returned=s.returned | (1 << k))
                if k == 0:
                    base = base._replace(dropped=s.tick, tick=s.tick + 1)
                yield f"{who} invalidation returns", check(act(base, "done"))
        if s.evictions and s.token:
            yield "!the token is evicted", s._replace(token=0, evictions=s.evictions - 1)
        if s.plants and not s.token:
            yield f"another process's load plants token {s.fresh}", s._replace(token=s.fresh, fresh=s.fresh + 1, plants=s.plants - 1)

    invals = ("idle" if own else "done", "idle" if other else "done")
    init = S(1, 0, None, 1, 1, 0, tuple(W(k) for k in kinds), (), invals, 0, evictions, plants, "")
    return explore(init, steps, lambda s: s.bad or None)


VARIANTS = [
    Variant("own_invalidation", "ok", dict(kinds=("aside", "aside"))),
    Variant("own_invalidation_three_tasks", "ok", dict(kinds=("aside",) * 3, evictions=0, plants=0), long=True),
    Variant("own_and_another", "ok", dict(kinds=("aside", "aside"), other=True, plants=0), long=True),
    Variant("own_and_another_blind", "ok", dict(kinds=("aside", "blind"), other=True, plants=0), long=True),
    Variant("merged_misses_of_the_key", "ok", dict(kinds=("aside", "aside"), other=True, memory="merged"), "without tasks: more sets are void than need be", long=True),
    Variant("one_task_last_miss", "ok", dict(kinds=("aside",), other=True, memory="last")),
    Variant("mutant_last_miss_of_the_key", "P3", dict(kinds=("aside", "aside"), evictions=0, plants=0, memory="last"),
            "a later miss of another task replaces the older one, and vouches for the older value"),
    Variant("mutant_last_miss_another", "P3", dict(kinds=("aside", "aside"), own=False, other=True, evictions=0, plants=2, memory="last"),
            "the same against another process: the younger miss saw the younger token"),
    Variant("mutant_oldest_miss_of_the_key", "P3", dict(kinds=("aside", "aside"), own=False, other=True, memory="oldest"),
            "the oldest saw no token, a younger one did: what the younger one's set owes is forgotten"),
    Variant("mutant_no_rule", "P3", dict(kinds=("aside",), evictions=0, plants=0, mutation="no_rule")),
    Variant("mutant_check_before_asking", "P3", dict(kinds=("aside",), evictions=0, plants=0, mutation="check_before_asking")),
    Variant("mutant_dropped_at_answer_only", "P3", dict(kinds=("aside",), evictions=0, plants=0, mutation="dropped_at_answer_only")),
    Variant("mutant_asked_over_missed", "P3", dict(kinds=("aside",), own=False, other=True, mutation="asked_over_missed")),
    Variant("limit_another_token_missing", "P3", dict(kinds=("aside",), own=False, other=True, evictions=0, plants=0, limit=True),
            "what another process invalidates between a miss that saw no token and the set's asking leaves no trace: said in docs"),
]

if __name__ == "__main__":
    main(run, VARIANTS)
