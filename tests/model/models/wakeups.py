"""Wake-ups: one subscription for each process, for ever, and a holder that publishes only if it is followed.

leases.py subscribes for each follow.  Here a process subscribes once, to one channel for all keys of a prefix; messages name the key.
Protocol (keys, processes, one flight for each process and key)
  acquire      one script: value differs from the one seen -> take it; lease free -> lead; held -> lease := followed, keeping its life; answer held
  listen       the flight is registered as a listener of its key BEFORE its acquire is written: message and answer come on two connections, in any order
  follow       the subscription was live when the acquire was WRITTEN -> wait.  Else subscribe (or wait for the SUBSCRIBE under way), confirmed, THEN acquire again
  wait         for the message, or PTTL; each leads to acquire
  fill         one script: lease still mine -> SET value, DEL lease, and PUBLISH if followed.  Not mine -> PUBLISH in any case: who followed the lost lease may wait
  release      (the last caller leaves, the load fails) still mine -> DEL lease (or mark), PUBLISH if followed
  take over    (forced or doomed) the new lease inherits `followed`
  reconnect    when the loss is noticed: subscribe, and when it is confirmed every waiting flight of the process acquires again
Faults: a holder dies or hangs, leaves; the subscription's connection is lost, noticed or not, with all messages until the process is subscribed again; delete(key).
Invariants: P1 as in leases.py; nobody is left without an answer: while nothing is lost, without any PTTL (`poll` off); else by PTTL
"""
from __future__ import annotations

from typing import NamedTuple

from checker import Result, Variant, explore, main, put


class F(NamedTuple):
    pc: str = "new"            # new, looked, told, subscribing, waiting, leading, hung, done, dead, left
    seen: int = 0
    token: int = 0
    sure: bool = False         # the subscription was live when the acquire was written
    woken: bool = False
    saw: int = 0               # the lease that it follows


class K(NamedTuple):
    value: int = 0
    lease: tuple = ()          # (token, followed)
    immortal: bool = False     # mutation flag_drops_ttl
    loads: int = 0
    allowed: int = 1


class S(NamedTuple):
    keys: tuple
    subs: tuple                # of each process: none, asked, live, lost
    inbox: tuple               # of each process: keys whose message is on its way
    fresh: int
    faults: tuple              # (deaths, hangs, leaves, losses, deletes)
    fs: tuple
    bad: str


DEATH, HANG, LEAVE, LOSS, DELETE = range(5)


def run(flights=((0, 0), (1, 0), (2, 0)), forced=(), deaths=0, hangs=0, leaves=0, losses=0, deletes=0, poll=False, notices=True, mutation="") -> Result:
    processes, keys = 1 + max(i for i, _ in flights), 1 + max(k for _, k in flights)

    def publish(s: S, k: int) -> S:
        inbox = tuple(tuple(sorted({*box, k})) if s.subs[i] == "live" else box for i, box in enumerate(s.inbox))
        return s._replace(inbox=inbox)

    def spend(s: S, which: int) -> S:
        return s._replace(faults=put(s.faults, which, s.faults[which] - 1))

    def key(s: S, k: int, **change) -> S:
        return s._replace(keys=put(s.keys, k, s.keys[k]._replace(**change)))

    def allow(s: S, k: int) -> S:
        return key(s, k, allowed=s.keys[k].allowed + 1)

    def acquire(s: S, n: int):
        f, (i, k) = s.fs[n], flights[n]
        def to(base, **change):
            return base._replace(fs=put(base.fs, n, base.fs[n]._replace(**change)))
        it = s.keys[k]
        if it.value and it.value != f.seen and n not in forced:
            yield f"flight {n}: acquire finds value {it.value}", to(s, pc="done", saw=0)
        elif not it.lease or n in forced:
            followed = bool(it.lease) and it.lease[1] and mutation != "takeover_drops_flag"
            base = key(s, k, lease=(s.fresh, followed), loads=it.loads + 1, immortal=False, allowed=it.allowed + (n in forced))
            bad = f"P1: load number {it.loads + 1} of key {k}, allowed {base.keys[k].allowed}" if it.loads + 1 > base.keys[k].allowed else s.bad
            yield f"flight {n} (process {i}, key {k}): {'takes over with' if it.lease else 'leads with'} lease {s.fresh}", to(
                base._replace(fresh=s.fresh + 1, bad=bad), pc="leading", token=s.fresh, saw=0)
        else:
            sure = s.subs[i] in (("live", "lost", "asked") if mutation == "asked_counts_as_live" else ("live", "lost"))   # a loss not noticed looks live
            base = s if mutation == "flag_not_set" else key(s, k, lease=(it.lease[0], True), immortal=mutation == "flag_drops_ttl")
            yield f"flight {n} (process {i}, key {k}): acquire executes: held, now followed, subscription {s.subs[i]}", to(base, pc="told", sure=sure, saw=it.lease[0])

    def steps(s: S):
        for n, f in enumerate(s.fs):
            i, k = flights[n]
            it = s.keys[k]
            def to(base=s, n=n, **change):
                return base._replace(fs=put(base.fs, n, base.fs[n]._replace(**change)))
            mine = bool(it.lease) and it.lease[0] == f.token
            name = f"flight {n}"
            if f.pc == "new":
                if it.value and n not in forced:
                    yield f"{name}: hit", to(pc="done")
                else:
                    yield f"{name}: miss", to(pc="looked", seen=it.value)
            elif f.pc == "looked":
                yield from acquire(s, n)
            elif f.pc == "told":
                live = s.subs[i] in ("live", "lost")
                if f.sure or live and mutation == "live_at_answer":
                    yield f"{name}: told that it is held{', woken meanwhile' if f.woken else ', waits'}", to(pc="looked" if f.woken else "waiting", woken=False, sure=False)
                elif live:
                    yield f"{name}: told that it is held; subscribed meanwhile, acquires again", to(pc="looked", woken=False)
                elif mutation == "no_acquire_after_subscribe":
                    base = s._replace(subs=put(s.subs, i, "asked")) if s.subs[i] == "none" else s
                    yield f"{name}: told that it is held, subscribes, waits", to(base, pc="waiting")
                else:
                    base = s._replace(subs=put(s.subs, i, "asked")) if s.subs[i] == "none" else s
                    yield f"{name}: told that it is held, {'subscribes' if s.subs[i] == 'none' else 'subscription is under way'}", to(base, pc="subscribing", woken=False)
            elif f.pc == "waiting":
                if f.woken:
                    yield f"{name}: woken", to(pc="looked", woken=False)
                elif poll and (not it.lease or it.lease[0] != f.saw or it.value != f.seen):
                    yield f"{name}: PTTL is over", to(pc="looked")
            elif f.pc == "leading":
                if mine:
                    base = to(key(s, k, value=s.fresh, lease=(), immortal=False)._replace(fresh=s.fresh + 1), pc="done", token=0)
                    yield f"{name}: fill, {'published' if it.lease[1] else 'followed by nobody'}", publish(base, k) if it.lease[1] else base
                    if s.faults[LEAVE]:
                        base = allow(spend(to(key(s, k, lease=(), immortal=False), pc="left", token=0), LEAVE), k)
                        yield f"!{name}: last caller leaves, lease released, {'published' if it.lease[1] else 'followed by nobody'}", publish(base, k) if it.lease[1] else base
                else:
                    base = to(pc="done", token=0)
                    yield f"{name}: fill refused", base if mutation == "refused_is_silent" else publish(base, k)
                if s.faults[DEATH]:
                    yield f"!{name}: its process's load dies", allow(spend(to(pc="dead"), DEATH), k)
                if s.faults[HANG] and not mine:
                    yield f"!{name}: hangs, overtaken", spend(to(pc="hung"), HANG)
        for i, sub in enumerate(s.subs):
            if sub == "asked":
                fs = tuple(f._replace(pc="looked") if flights[n][0] == i and f.pc == "subscribing" else f for n, f in enumerate(s.fs))
                yield f"process {i}: subscribed", s._replace(subs=put(s.subs, i, "live"), fs=fs)
            elif sub == "live" and s.faults[LOSS]:
                yield f"!process {i}: its subscription's connection is lost", spend(s._replace(subs=put(s.subs, i, "lost"), inbox=put(s.inbox, i, ())), LOSS)
            elif sub == "lost" and notices:
                again = ("told", "waiting") if mutation != "no_acquire_after_loss" else ()
                fs = tuple(f._replace(pc="subscribing", sure=False, woken=False) if flights[n][0] == i and f.pc in again else f for n, f in enumerate(s.fs))
                yield f"process {i}: notices the loss, subscribes again", s._replace(subs=put(s.subs, i, "asked"), fs=fs)
            for k in s.inbox[i]:
                hearing = ("waiting",) if mutation == "listens_from_answer" else ("told", "waiting")
                fs = tuple(f._replace(woken=True) if flights[n] == (i, k) and f.pc in hearing else f for n, f in enumerate(s.fs))
                yield f"process {i}: message for key {k}", s._replace(inbox=put(s.inbox, i, tuple(q for q in s.inbox[i] if q != k)), fs=fs)
        for k, it in enumerate(s.keys):
            if it.lease and not it.immortal and not any(f.token == it.lease[0] and f.pc == "leading" for f in s.fs):
                yield f"the lease of key {k}, whose holder is gone, expires", key(s, k, lease=())
            if s.faults[DELETE] and it.lease:
                yield f"!delete(key {k}): value and lease removed", allow(spend(key(s, k, value=0, lease=(), immortal=False), DELETE), k)

    def final(s: S) -> str | None:
        if any(f.pc not in ("done", "dead", "left", "hung") for f in s.fs):
            return "wedged: a follower is left without a wake-up"
        return "a lease is left for ever" if any(k.lease for k in s.keys) else None

    def canonical(s: S) -> S:
        names: dict[int, int] = {0: 0}
        def name(token: int) -> int:
            return names.setdefault(token, len(names))
        ks = tuple(k._replace(value=name(k.value), lease=k.lease and (name(k.lease[0]), k.lease[1])) for k in s.keys)
        fs = tuple(f._replace(seen=name(f.seen), token=name(f.token), saw=name(f.saw)) for f in s.fs)
        return s._replace(keys=ks, fs=fs, fresh=len(names))

    def canonical_steps(s: S):
        for label, following in steps(s):
            yield label, canonical(following)

    init = S((K(),) * keys, ("none",) * processes, ((),) * processes, 1, (deaths, hangs, leaves, losses, deletes), (F(),) * len(flights), "")
    return explore(init, canonical_steps, lambda s: s.bad or None, final=final,
                   goal=lambda s: all(f.pc in ("new", "done", "dead", "left", "hung") for f in s.fs) and not any(k.lease for k in s.keys))


THREE, TWO = ((0, 0), (1, 0), (2, 0)), ((0, 0), (1, 0))
KEYS = ((0, 0), (1, 0), (0, 1), (1, 1))
VARIANTS = [
    Variant("nothing_lost", "ok", dict(flights=THREE), "without any poll"),
    Variant("nothing_lost_two_keys", "ok", dict(flights=KEYS), "without any poll"),
    Variant("leaves", "ok", dict(flights=THREE, leaves=2), "without any poll"),
    Variant("leaves_two_keys", "ok", dict(flights=KEYS, leaves=1), "without any poll", long=True),
    Variant("deletes", "ok", dict(flights=THREE, deletes=2), "without any poll: the refused fill publishes"),
    Variant("forced", "ok", dict(flights=THREE, forced=(2,), leaves=1, hangs=1), "without any poll, the overtaken holder hangs"),
    Variant("loss_noticed", "ok", dict(flights=THREE, losses=2, leaves=1), "without any poll", long=True),
    Variant("loss_noticed_two_keys", "ok", dict(flights=KEYS, losses=1), "without any poll", long=True),
    Variant("loss_never_noticed", "ok", dict(flights=THREE, losses=2, leaves=1, notices=False, poll=True), "PTTL frees everybody"),
    Variant("everything", "ok", dict(flights=THREE, forced=(2,), deaths=1, hangs=1, leaves=1, losses=1, deletes=1, poll=True)),
    Variant("everything_two_keys", "ok", dict(flights=((0, 0), (1, 0), (0, 1), (1, 1)), deaths=1, losses=1, poll=True), long=True),
    Variant("mutant_listens_from_answer", "wedged", dict(flights=TWO, leaves=0, mutation="listens_from_answer"), "one message before the acquire's answer is parsed"),
    Variant("mutant_live_at_answer", "wedged", dict(flights=KEYS, mutation="live_at_answer"), "the subscription became live between acquire and its answer"),
    Variant("mutant_asked_counts_as_live", "wedged", dict(flights=KEYS, mutation="asked_counts_as_live")),
    Variant("mutant_no_acquire_after_subscribe", "wedged", dict(flights=TWO, mutation="no_acquire_after_subscribe")),
    Variant("mutant_flag_not_set", "wedged", dict(flights=TWO, mutation="flag_not_set")),
    Variant("mutant_flag_drops_ttl", "wedged", dict(flights=TWO, deaths=1, poll=True, mutation="flag_drops_ttl"), "SET without KEEPTTL: the lease of a dead holder stays"),
    Variant("mutant_takeover_drops_flag", "wedged", dict(flights=THREE, forced=(2,), hangs=1, mutation="takeover_drops_flag"), "followers of the old lease hear nothing of the new one"),
    Variant("mutant_refused_is_silent", "wedged", dict(flights=TWO, deletes=1, mutation="refused_is_silent"), "delete took the lease and its flag away; nobody publishes"),
    Variant("mutant_no_acquire_after_loss", "wedged", dict(flights=TWO, losses=1, mutation="no_acquire_after_loss")),
    Variant("mutant_no_poll_loss_unnoticed", "wedged", dict(flights=TWO, losses=1, notices=False)),
    Variant("mutant_no_poll_death", "wedged", dict(flights=TWO, deaths=1)),
]

if __name__ == "__main__":
    main(run, VARIANTS)
