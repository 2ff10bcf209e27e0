"""Acquire as ONE script on value, lease and scopes (one server): what a doomed lease costs is no round trip at all.

takeover.py has the two-step form that a cluster needs: generations are asked on their own nodes, the lease is judged by the process, a second script takes it.
Protocol (one key; scopes, of which holder and asker may depend on different ones; one flight per process)
  lookup       GET value and tokens: hit, or miss; the value's id is remembered (`seen`)
  acquire      one script: plant the asker's missing tokens, read them all; the value's id differs from `seen` -> return value and tokens (alive: taken; dead: its id
               is remembered, acquire again); lease free -> take it; lease of the same set of scopes, and its digest differs from the tokens as they are now
               -> doomed, take it in the same script; else held.  Who takes it captures the tokens of this script and writes (token, set, their digest)
  set          a hash of the names of the scopes.  Digests of different sets differ for ever: they judge nothing, and the asker follows
  fill         one script: lease still mine -> SET value, DEL lease
Faults: tokens are evicted, the lease is evicted, a doomed load hangs (`deadline`: its renewals end at load_deadline and the lease expires).
Invariants   P1   loads <= 1 + invalidations executed + tokens evicted + leases lost
             P3   a read gets nothing older than the invalidations of the value's scopes that had returned when it began
             nobody is kept by a doomed load that hangs (with different sets: until load_deadline)
"""
from __future__ import annotations

from typing import NamedTuple

from checker import Result, Variant, explore, main, put


class P(NamedTuple):
    pc: str = "new"            # new, looked, following, doomed (two steps), leading, read, hung, done
    need: tuple = ()
    seen: int = 0
    looked: tuple = ()         # the tokens of the lookup
    captured: tuple = ()
    token: int = 0
    version: int = 0
    saw: tuple = ()            # the lease that it follows
    saw_tokens: tuple = ()


class S(NamedTuple):
    source: int
    floors: tuple              # of each scope
    tokens: tuple              # of each scope, 0 = missing
    value: tuple | None        # (version, id, set, tokens)
    lease: tuple               # (token, set, tokens) or ()
    fresh: int
    loads: int
    allowed: int
    faults: tuple              # (token evictions, lease evictions, hangs)
    ps: tuple
    invals: tuple              # (scope, pc, version)
    bad: str


def run(sets=((0,), (0,), (0,)), invalidations=(0,), evictions=0, losses=0, hangs=0, two_steps=False, deadline=False, mutation="") -> Result:
    scopes = 1 + max(max(s) for s in sets)

    def now(s: S, i: int) -> tuple:
        return tuple(s.tokens[k] for k in sets[i])

    def alive(s: S) -> bool:
        return bool(s.value) and all(t and t == s.tokens[k] for k, t in zip(s.value[2], s.value[3]))

    def give(s: S, i: int, version: int, of: tuple) -> S:
        need = max(s.ps[i].need[k] for k in of)
        bad = f"P3: process {i} got v{version}, needs v{need}" if version < need else s.bad
        return s._replace(ps=put(s.ps, i, P("done")), bad=bad)

    def lead(s: S, i: int, captured: tuple) -> S:
        loads = s.loads + 1
        bad = f"P1: load number {loads}, allowed {s.allowed}" if loads > s.allowed else s.bad
        digest = s.lease[2] if mutation == "digest_kept" and s.lease else captured
        if mutation == "captured_at_lookup" and all(s.ps[i].looked):
            digest = captured = s.ps[i].looked
        return s._replace(lease=(s.fresh, sets[i], digest), fresh=s.fresh + 1, loads=loads, bad=bad,
                          ps=put(s.ps, i, P("leading", s.ps[i].need, captured=captured, token=s.fresh)))

    def acquire(s: S, i: int):
        p = s.ps[i]
        base = s
        if not (mutation == "plants_only_when_taking" and s.lease):
            for k in sets[i]:
                if not base.tokens[k]:
                    base = base._replace(tokens=put(base.tokens, k, base.fresh), fresh=base.fresh + 1)
        tokens = now(base, i)
        def to(**change):
            return base._replace(ps=put(base.ps, i, base.ps[i]._replace(**change)))
        lease = base.lease
        changed = bool(base.value) and base.value[1] != p.seen and mutation != "lease_before_value"
        judged = lease and (lease[1] == sets[i] or mutation == "sets_not_compared") and all(tokens)
        by = p.looked if mutation == "judged_by_lookup" and all(p.looked) else tokens
        if changed and alive(base):
            yield f"process {i}: acquire finds v{base.value[0]}", give(base, i, base.value[0], base.value[2])
        elif changed:
            yield f"process {i}: acquire finds v{base.value[0]}, dead", to(pc="looked", seen=base.value[1])
        elif not lease:
            yield f"process {i}: lease free, leads, captured {tokens}", lead(base, i, tokens)
        elif judged and lease[2] != by and not two_steps:
            yield f"process {i}: lease {lease[0]} is doomed (tokens now {tokens}), taken", lead(base, i, tokens)
        elif judged and lease[2] != by:
            yield f"process {i}: lease {lease[0]} is doomed (tokens now {tokens})", to(pc="doomed", saw=lease, captured=tokens)
        else:
            yield f"process {i}: held, follows lease {lease[0]}", to(pc="following", saw=lease, saw_tokens=tokens, looked=p.looked if mutation else ())

    def steps(s: S):
        for i, p in enumerate(s.ps):
            def to(base=s, **change):
                return base._replace(ps=put(base.ps, i, base.ps[i]._replace(**change)))
            mine = bool(s.lease) and s.lease[0] == p.token
            if p.pc == "new":
                if any(s.ps[j].pc == "new" and sets[j] == sets[i] for j in range(i)):      # symmetry
                    continue
                base = to(need=s.floors)
                if alive(s):
                    yield f"process {i}: hit", give(base, i, s.value[0], s.value[2])
                else:
                    yield f"process {i} (needs {s.floors}): miss", to(
                        pc="looked", need=s.floors, seen=s.value[1] if s.value else 0, looked=now(s, i) if mutation in ("captured_at_lookup", "judged_by_lookup") else ())
            elif p.pc == "looked":
                yield from acquire(s, i)
            elif p.pc == "following":
                if s.lease != p.saw or s.value and s.value[1] != p.seen or now(s, i) != p.saw_tokens:
                    yield from acquire(s, i)
            elif p.pc == "doomed":
                if s.lease == p.saw:
                    yield f"process {i}: takes over lease {s.lease[0]}", lead(s, i, p.captured)
                else:
                    yield f"process {i}: lease {p.saw[0]} is gone, asks again", to(pc="looked", saw=(), captured=())
            elif p.pc == "leading":
                yield f"process {i}: reads the source, v{s.source}", to(pc="read", version=s.source)
                if s.faults[2] and p.captured != now(s, i):
                    yield f"!process {i}: its doomed load hangs", to(s._replace(faults=put(s.faults, 2, s.faults[2] - 1)), pc="hung")
            elif p.pc == "read":
                base = s._replace(value=(p.version, s.fresh, sets[i], p.captured), fresh=s.fresh + 1, lease=()) if mine else s
                yield f"process {i}: fill of v{p.version} {'accepted' if mine else 'refused'}", give(base, i, p.version, sets[i])
            elif p.pc == "hung" and mine and deadline:
                yield f"load_deadline: the lease of process {i} expires", s._replace(lease=(), allowed=s.allowed + 1)
        for k, (scope, pc, version) in enumerate(s.invals):
            def act(base, *change):
                return base._replace(invals=put(base.invals, k, (scope, *change)))
            if pc == "idle":
                if k and s.invals[k - 1] == s.invals[k]:
                    continue
                yield f"!source := v{s.source + 1}", act(s._replace(source=s.source + 1), "sent", s.source + 1)
            elif pc == "sent":
                yield f"invalidation of scope {scope} executes", act(s._replace(tokens=put(s.tokens, scope, 0), allowed=s.allowed + 1), "executed", version)
            elif pc == "executed":
                yield f"invalidation of scope {scope} returns (v{version})", act(s._replace(floors=put(s.floors, scope, max(s.floors[scope], version))), "done", 0)
        for scope in range(scopes):
            if s.faults[0] and s.tokens[scope]:
                yield f"!the token of scope {scope} is evicted", s._replace(
                    tokens=put(s.tokens, scope, 0), allowed=s.allowed + 1, faults=put(s.faults, 0, s.faults[0] - 1))
        if s.faults[1] and s.lease:
            yield "!the lease is evicted", s._replace(lease=(), allowed=s.allowed + 1, faults=put(s.faults, 1, s.faults[1] - 1))

    def canonical(s: S) -> S:
        """Tokens, ids and leases have no meaning but equality: number them by first appearance."""
        names: dict[int, int] = {0: 0}
        def name(token: int) -> int:
            return names.setdefault(token, len(names))
        def all_of(tokens: tuple) -> tuple:
            return tuple(map(name, tokens))
        def lease_of(lease: tuple) -> tuple:
            return lease and (name(lease[0]), lease[1], all_of(lease[2]))
        tokens = all_of(s.tokens)
        value = s.value and (s.value[0], name(s.value[1]), s.value[2], all_of(s.value[3]))
        lease = lease_of(s.lease)
        ps = tuple(p._replace(seen=name(p.seen), looked=all_of(p.looked), captured=all_of(p.captured), token=name(p.token),
                              saw=lease_of(p.saw), saw_tokens=all_of(p.saw_tokens)) for p in s.ps)
        return s._replace(tokens=tokens, value=value, lease=lease, ps=ps, fresh=len(names))

    def canonical_steps(s: S):
        for label, following in steps(s):
            yield label, canonical(following)

    init = S(1, (0,) * scopes, (0,) * scopes, None, (), 1, 0, 1, (evictions, losses, hangs), (P(),) * len(sets),
             tuple((k, "idle", 0) for k in invalidations), "")
    return explore(init, canonical_steps, lambda s: s.bad or None, goal=lambda s: all(p.pc in ("new", "done", "hung") for p in s.ps))


A, B = (0,), (0, 1)
VARIANTS = [
    Variant("one_script", "ok", dict(sets=(A, A, A), invalidations=(0, 0))),
    Variant("one_script_four_processes", "ok", dict(sets=(A, A, A, A), invalidations=(0,))),
    Variant("one_script_faults", "ok", dict(sets=(B, B, B), invalidations=(1,), evictions=1, losses=1), long=True),
    Variant("one_script_hang", "ok", dict(sets=(B, B, B), invalidations=(0, 1), hangs=1), long=True),
    Variant("two_steps", "ok", dict(sets=(A, A, A), invalidations=(0, 0), two_steps=True), "the same promises, one more round trip, two more ways to cross", long=True),
    Variant("two_steps_faults", "ok", dict(sets=(B, B, B), invalidations=(1,), evictions=1, losses=1, two_steps=True), long=True),
    Variant("sets_differ", "ok", dict(sets=(A, B, B), invalidations=(0, 1)), long=True),
    Variant("sets_differ_faults", "ok", dict(sets=(A, B, B), invalidations=(0,), evictions=1, losses=1), long=True),
    Variant("sets_differ_hang", "ok", dict(sets=(A, B, B), invalidations=(0,), hangs=1, deadline=True)),
    Variant("limit_sets_differ_hang", "wedged", dict(sets=(A, B), invalidations=(0,), hangs=1), "who depends on another set waits for load_deadline"),
    Variant("mutant_sets_not_compared", "P1", dict(sets=(A, B), invalidations=(), mutation="sets_not_compared"), "two processes take the lease from each other without any invalidation"),
    Variant("mutant_plants_only_when_taking", "wedged", dict(sets=(A, A), invalidations=(0,), hangs=1, mutation="plants_only_when_taking"),
            "invalidate = DEL: the asker of a held lease finds no token, and can judge nothing"),
    Variant("mutant_digest_kept", "P1", dict(sets=(A, A, A), invalidations=(0,), mutation="digest_kept")),
    Variant("mutant_captured_at_lookup", "P1", dict(sets=(A, A, A), invalidations=(0,), evictions=0, mutation="captured_at_lookup")),
    Variant("mutant_judged_by_lookup", "P1", dict(sets=(A, A, A), invalidations=(0, 0), mutation="judged_by_lookup")),
    Variant("mutant_lease_before_value", "P1", dict(sets=(A, A), invalidations=(), mutation="lease_before_value")),
]

if __name__ == "__main__":
    main(run, VARIANTS)
