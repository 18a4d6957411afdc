/* The lock, ledger, fence and takeover protocol of one job, overlap `skip`, on_redis_down `run`.

What is modelled, and from where:
  locks/scripts.py   CLAIM and SETTLE, each atomic, as the Lua has them; RENEW (never re-creates)
  cron/runner.py     run_tick: claim, unfinished ticks first, begin, body, retry, finish, settle
                     with `covers`; the fallback on the ledger alone
  cron/sweep.py, cron/scheduler.py   the sweep over Redis and, while Redis is down, the ledger
  storage/runs.py    begin, fenced (check and row lock, then commit), retry, finish, heartbeat
A worker is one task with a fresh token per claim, so two workers are two servers or two tasks of
one. Ticks 1..T come due at any moments; when all is quiet, tick T + 1 comes (the closing tick, with
no faults left; how the earlier rows ended is then forgotten, for nobody is at work on them).
A trigger or a sweep picks the newest due tick and may claim it arbitrarily later.

Time: there is none. The owner's liveness key, the lock's TTL and the ledger's lease may each end
at ANY moment, whatever their owner does: a worker that is not scheduled is one under SIGSTOP, and
one that runs on has not noticed yet. So nothing that holds here rests on a clock. (With LIVE the
liveness key ends under a living owner only LAPSES times, else two owners could oust each other for
ever; and a heartbeat does not revive a lease of the ledger that has ended.)

Faults, FAULTS of them in all, of any kinds and at any points:
  a worker dies, and comes back with nothing or (while another is left) never
  Redis falls back to any earlier state: FLUSHALL, a restart, a failover that lost writes
  Redis is down for everybody, for a while or for ever (for one worker: request by request)
  a claim or a settle without a reply, executed at once, much later or, with Redis down, never;
    one that is executed, asked again and executed a second time later
  a commit without a reply: begin, batch, retry, finish; the database does not answer at all;
    a session ended by the database inside the batch
  the body fails

Left out: the length of any time (hence backoff, grace and the catch-up window: every tick is
within it), manual runs, `paused`, locks of older servers, overlap `queue`, on_redis_down `skip`,
several jobs (they share no key and no row), bodies of more than one batch (each is fenced and
conditional like the one here), notifications, the start without any row in the ledger. hand_over
is the ledger's lease ending, which is free to happen anyway. A database transaction whose commit
is under way holds its row, so a late commit is no other case than a commit before the next step.

Mutations, each to be found: NO_FENCE NO_ROW_LOCK NO_LEDGER_KEY FINISH_UNFENCED UNCONDITIONAL_BODY
SETTLE_UNOWNED_COVERS COVERS_WITHOUT_RUN NO_TAKEOVER LOCK_WITHOUT_TTL.
Stricter properties, see run.py: EVERY_NEWEST_RUNS, NONE_WAITS, NO_COVERED_RUN.
Narrower: PROMPT, in which a claim asks for the newest tick due when Redis executes it.
Sanity: REACH_TAKEOVER, REACH_FALLBACK. */

#ifndef N
#define N 2 /* workers */
#endif
#ifndef T
#define T 2 /* ticks, without the closing one */
#endif
#ifndef ATTEMPTS
#define ATTEMPTS 2 /* Job.attempts */
#endif
#ifndef FAULTS
#define FAULTS 1
#endif
#ifndef LAPSES
#define LAPSES 1
#endif

#define LAST (T + 1)
#define NONE 0
#define RUNNING 1
#define SUCCEEDED 2
#define FAILED 3

/* Redis. A token is its worker's number; what its owner has given up is DEAD, or LEFT(w) while a
   settle with that token is still under way. A settled tick of 0 is also "not known": tick 0 ended
   before the model begins. */
bit granted[N + 1]; /* the worker goes by its lock; else by the ledger alone */
byte lock; bit alive; bit lock_ttl; byte settled; byte down;
#define LEFT(w) (N + (w))
#define DEAD (2 * N + 1)

/* A request that Redis has not executed yet although its sender gave it up. */
#define CLAIM 1
#define SETTLE 2
byte late[N + 1]; byte late_tick[N + 1]; byte late_covers[N + 1]; bit late_ran[N + 1];

/* The ledger, by tick. `writer` holds the row's lock. `holder` is who was given the attempt. */
byte state[LAST + 1]; byte attempt[LAST + 1]; bit expired[LAST + 1]; byte writer[LAST + 1]; byte holder[LAST + 1];

bit effect[LAST + 1];  /* what the body writes: its condition is that it is not there yet */
bit covered[LAST + 1]; /* skipped, because a run that this server ended held the lock */

byte due; byte faults = FAULTS; byte survivors = N;
#ifdef LIVE
byte lapses = LAPSES;
#endif

#define ENDED(x) (state[x] >= SUCCEEDED)
#define CURRENT(x, a) (state[x] == RUNNING && attempt[x] == (a))
#define SILENT(x) (state[x] == RUNNING && expired[x])

inline fault() { faults > 0 -> faults-- }

/* CLAIM by `token` for `tick` */
inline claim(token, tick, yes) {
    yes = 0;
    if
    :: settled >= tick || (lock != 0 && alive)
    :: else ->
        lock = token; alive = 1; yes = 1;
#ifndef LOCK_WITHOUT_TTL
        lock_ttl = 1
#endif
    fi
}

/* SETTLE by `token`: `tick` was run (0: none), the ticks up to `covers` were skipped. */
inline settle(token, tick, covers, by_run) {
    if
    :: tick > 0 ->
        assert(ENDED(tick)); /* what is settled has ended in the ledger */
        settled = (settled > tick -> settled : tick)
    :: else
    fi;
#ifdef SETTLE_UNOWNED_COVERS
    if
    :: tick > 0 && covers > tick ->
#else
    if
    :: lock == token && tick > 0 && covers > tick ->
#endif
        x = tick + 1;
        do
        :: x <= covers ->
#ifdef NO_COVERED_RUN
            assert(state[x] != RUNNING);
#endif
            if :: settled < x && by_run -> covered[x] = 1 :: else fi;
            x++
        :: else -> break
        od;
        x = 0;
        settled = (settled > covers -> settled : covers)
    :: else
    fi;
    if :: lock == token -> lock = 0; alive = 0; lock_ttl = 0 :: else fi
}

inline open_attempt(tick, number) {
    assert((number) > attempt[tick]); /* the fencing token grows, whatever Redis forgot */
    k = number; /* first: `number` is an expression over what follows */
    state[tick] = RUNNING; attempt[tick] = k; expired[tick] = 0; holder[tick] = w
}

inline end_run(tick, how) { state[tick] = how; expired[tick] = 0; holder[tick] = 0;
    if :: (how) == FAILED -> effect[tick] = 0 :: else fi }

inline commit_batch() {
    assert(CURRENT(c, k));     /* nothing of attempt k commits once attempt k + 1 began or it ended */
    assert(holder[c] == w);    /* no two workers write under one attempt */
#ifdef UNCONDITIONAL_BODY
    assert(!effect[c]);        /* the effect is there once */
#endif
    effect[c] = 1;
    if :: writer[c] == w -> writer[c] = 0 :: else fi
}

/* The lease was lost and the worker has noticed: its lock is another's or gone, or cannot be
   renewed; or the heartbeat found another attempt. */
#define LOSES_LOCK (granted[w] && (lock != w || down))
#define LOSES_RUN (LOSES_LOCK || !CURRENT(c, k))

/* Done with a claim, or dead: nothing of it is left but what Redis and the ledger hold. */
inline leave() {
    if :: lock == w -> lock = (late[w] == SETTLE -> LEFT(w) : DEAD) :: else fi;
    if :: c > 0 && writer[c] == w -> writer[c] = 0 :: else fi;
    if :: c > 0 && holder[c] == w -> holder[c] = 0 :: else fi;
    t = 0; c = 0; k = 0; todo = 0; newest = 0; covers = 0; ran = 0; bad = 0; got = 0; x = 0;
    granted[w] = 0
}

proctype Worker(byte w) {
    byte t; byte c; byte k; byte todo; byte newest; byte covers; byte x; bit ran; bit bad; bit got;
#ifdef REACH_TAKEOVER
    bit took_over;
#endif

end_idle:
    if
    :: atomic { !down && settled < due -> t = due } /* a trigger or the sweep */
    :: atomic { down && due > 0 && state[due] == NONE -> t = due }
    :: atomic { down && SILENT(1) -> t = 1 } /* the sweep over the ledger */
    :: atomic { down && SILENT(2) -> t = 2 }
#if LAST > 2
    :: atomic { down && SILENT(3) -> t = 3 }
#endif
    fi;

    atomic { /* claim */
#ifdef PROMPT
        t = due;
#endif
        if
        :: down /* fallback */
        :: !down -> claim(w, t, got);
            if
            :: !got -> leave(); goto end_idle
            :: got -> granted[w] = 1; got = 0
            :: got && faults > 0 && late[w] == 0 -> faults--; granted[w] = 1; got = 0;
                late[w] = CLAIM; late_tick[w] = t /* asked twice */
            fi
        :: !down && faults > 0 && late[w] == 0 -> faults--; late[w] = CLAIM; late_tick[w] = t
        fi
    }

    atomic { /* which began before this tick and did not end? */
        if
        :: x = 1;
            do
            :: x < t ->
                if :: state[x] == RUNNING -> todo = todo | (1 << x) :: else fi;
                x++
            :: else -> break
            od;
            x = 0; todo = todo | (1 << t)
        :: fault(); goto release /* the database gives no answer */
        :: fault(); goto dies
        fi
    }

next:
    atomic {
        if
        :: LOSES_LOCK -> goto release
        :: c = 1;
            do
            :: !(todo & (1 << c)) -> c++
            :: else -> break
            od;
            todo = todo & ~(1 << c)
        :: fault(); goto dies
        fi
    }

    atomic { /* begin */
        writer[c] == 0;
        bad = 0; ran = 0;
#ifdef REACH_TAKEOVER
        took_over = 0;
#endif
        if
#ifdef NO_LEDGER_KEY
        :: open_attempt(c, 1)
#else
        :: state[c] == NONE -> open_attempt(c, 1)
        :: ENDED(c) -> goto ended
        :: state[c] == RUNNING && !expired[c] -> goto release /* held */
#ifdef NO_TAKEOVER
        :: SILENT(c) -> goto release
#else
        :: SILENT(c) && attempt[c] >= ATTEMPTS -> end_run(c, FAILED); goto ended
        :: SILENT(c) && attempt[c] < ATTEMPTS -> open_attempt(c, attempt[c] + 1);
#ifdef REACH_TAKEOVER
            took_over = 1
#endif
#endif
#endif
        fi;
        if
        :: skip
        :: fault(); goto release /* committed, without a reply */
        fi
    }

body:
    atomic {
        if
        :: LOSES_RUN -> goto release
        :: writer[c] == 0 -> /* fenced: the check, and the row's lock until the commit */
#ifndef NO_FENCE
            if :: !CURRENT(c, k) -> goto release :: else fi;
#endif
#ifndef NO_ROW_LOCK
            writer[c] = w
#endif
        :: fault(); goto raised
        :: fault(); goto dies
#ifndef LIVE
        :: CURRENT(c, k) && expired[c] -> expired[c] = 0; goto body /* heartbeat */
#endif
        fi
    }

    atomic { /* the batch */
        if
        :: commit_batch(); goto finish
        :: fault(); commit_batch(); goto raised /* committed, without a reply */
        :: fault(); if :: writer[c] == w -> writer[c] = 0 :: else fi; goto raised /* rolled back */
        :: fault(); goto dies
        fi
    }

raised:
    atomic {
        if
        :: LOSES_RUN -> goto release
        :: k >= ATTEMPTS -> bad = 1; goto finish
        :: k < ATTEMPTS && writer[c] == 0 -> /* retry */
            if
            :: CURRENT(c, k) -> open_attempt(c, k + 1)
            :: else -> goto release
            fi;
            if
            :: goto body
            :: fault(); goto release
            fi
        fi
    }

finish:
    atomic {
        if
        :: LOSES_RUN -> goto release
        :: fault(); goto dies
#ifdef FINISH_UNFENCED
        :: writer[c] == 0 ->
#else
        :: writer[c] == 0 && attempt[c] == k && (state[c] == RUNNING || state[c] == (bad -> FAILED : SUCCEEDED)) ->
#endif
            assert(attempt[c] == k && !(state[c] == (bad -> SUCCEEDED : FAILED)));
            end_run(c, (bad -> FAILED : SUCCEEDED));
            assert(bad || effect[c]); /* a success has its effect */
            ran = 1;
#ifdef REACH_TAKEOVER
            assert(bad || !took_over);
#endif
#ifdef REACH_FALLBACK
            assert(bad || granted[w]);
#endif
            if
            :: skip
            :: fault(); goto finish  /* without a reply: asked again */
            :: fault(); ran = 0; goto release /* no reply to the last try either */
            fi
        fi
    }

ended:
    atomic {
        newest = c; k = 0;
        if
        :: c == t
        :: c != t -> ran = 0; goto next
        :: fault(); goto dies
        fi
    }

release:
    atomic {
#ifdef COVERS_WITHOUT_RUN
        covers = (newest == t -> due : 0);
#else
        covers = (newest == t && ran -> due : 0);
#endif
        if
        :: !granted[w] || down
        :: granted[w] && !down -> settle(w, newest, covers, ran)
        :: granted[w] && !down && faults > 0 && late[w] == 0 -> faults--;
            late[w] = SETTLE; late_tick[w] = newest; late_covers[w] = covers; late_ran[w] = ran;
            if
            :: skip
            :: settle(w, newest, covers, ran) /* asked twice */
            fi
        :: fault(); goto dies
        fi;
        leave(); goto end_idle
    }

dies:
    atomic {
        leave();
        if
        :: goto end_idle
        :: survivors > 1 -> survivors--
        fi
    }
}

/* Requests that arrive late, with a token whose owner gave it up. */
proctype Network() {
    byte w; byte x; bit got;
end:
    do
    :: atomic { !down && late[1] -> w = 1; goto deliver }
    :: atomic { !down && late[2] -> w = 2; goto deliver }
#if N > 2
    :: atomic { !down && late[3] -> w = 3; goto deliver }
#endif
    od;
deliver:
    atomic {
        if
        :: late[w] == CLAIM -> claim(DEAD, late_tick[w], got)
        :: late[w] == SETTLE -> settle(LEFT(w), late_tick[w], late_covers[w], late_ran[w])
        fi;
        late[w] = 0; late_tick[w] = 0; late_covers[w] = 0; late_ran[w] = 0; w = 0; got = 0;
        goto end
    }
}

proctype Schedule() {
end:
    do
    :: atomic { due < T -> due++ }
    od
}

proctype RedisFaults() {
end:
    do
    :: atomic { faults > 0 && !down -> faults--; down = 1 }
    :: atomic { faults > 0 && !down -> faults--; down = 2 } /* for ever */
    :: atomic { down == 1 -> down = 0 }
    :: atomic { faults > 0 -> faults = 0 } /* no more of any kind */
    :: atomic { faults > 0 && !down -> faults--; /* an earlier state, perhaps an empty one */
        do
        :: settled > 0 -> settled--
        :: break
        od;
        if
        :: lock = 0; alive = 0; lock_ttl = 0
        :: lock = DEAD; alive = 1; lock_ttl = 1
        :: granted[1] -> lock = 1; alive = 1; lock_ttl = 1
        :: granted[2] -> lock = 2; alive = 1; lock_ttl = 1
#if N > 2
        :: granted[3] -> lock = 3; alive = 1; lock_ttl = 1
#endif
        :: skip
        fi
      }
    od
}

proctype RedisClock() {
end:
    do
#ifdef LIVE
    :: atomic { lock > N && alive -> alive = 0 }
    :: atomic { lock > 0 && lock <= N && alive && lapses > 0 -> lapses--; alive = 0 }
#else
    :: atomic { lock > 0 && alive -> alive = 0 }
#endif
    :: atomic { lock > 0 && !alive && lock_ttl -> lock = 0; lock_ttl = 0 }
    od
}

/* RENEW: the key of a living owner is set again if its lock is still its own. */
proctype Renewal() {
end:
    do
    :: atomic { !down && lock > 0 && lock <= N && !alive -> alive = 1 }
    od
}

proctype LedgerClock() {
end:
    do
    :: atomic { state[1] == RUNNING && !expired[1] -> expired[1] = 1 }
    :: atomic { state[2] == RUNNING && !expired[2] -> expired[2] = 1 }
#if LAST > 2
    :: atomic { state[3] == RUNNING && !expired[3] -> expired[3] = 1 }
#endif
    od
}

#ifdef LIVE
/* However the faults fall, the newest tick ends (or is covered by the run before it). */
ltl ends { <> (due == T && (ENDED(T) || covered[T])) }
#else
proctype Quiet() {
    byte x;
    timeout; /* every tick is due, and nothing moves any more */
    atomic {
        assert(lock == 0 && !alive);            /* no lock is left over */
        assert(down || settled == T);
        assert(ENDED(T) || settled == T);
#ifdef EVERY_NEWEST_RUNS
        assert(state[T] != NONE || covered[T]); /* not skipped unless a run was in its way */
#endif
        x = 1;
        do
        :: x <= T ->
#ifdef NONE_WAITS
            assert(state[x] != RUNNING);
#endif
            x++
        :: else -> break
        od;
        x = 1;
        do
        :: x <= T -> /* nobody is at work: how it ended makes no difference any more */
            if
            :: ENDED(x) -> state[x] = SUCCEEDED; attempt[x] = 0; effect[x] = 0
            :: else
            fi;
            covered[x] = 0;
            x++
        :: else -> break
        od;
        due++ /* the closing tick */
    }
    timeout;
    atomic {
        assert(lock == 0 && !alive);
        assert(down || settled == LAST);
        assert(ENDED(LAST));
        x = 1;
        do
        :: x <= T -> assert(state[x] != RUNNING); x++ /* what began has ended */
        :: else -> break
        od
    }
}
#endif

init {
    atomic {
        run Worker(1);
        run Worker(2);
#if N > 2
        run Worker(3);
#endif
        run Network();
        run Schedule();
        run RedisFaults();
        run RedisClock();
        run Renewal();
        run LedgerClock();
#ifndef LIVE
        run Quiet();
#endif
    }
}
