/* pool.c - persistent worker threads for the operators.
 *
 * A run publishes one word, its number and how many tasks it has. Task t belongs to thread t modulo
 * the threads: a thread takes its own first, so what it has read ahead for them (ops/ahead.c) lies in
 * its own cache, and then those that others have not begun, so a core that is busy elsewhere costs
 * speed and nothing else. To take one is a compare-and-swap on its owner's word, which holds the run
 * it is about: a thread that comes late with an old run finds nothing. Body and context are read
 * after a task was taken, when they cannot change: the run ends only once that task is finished.
 *
 * Waiting: spin, sched_yield every 64 spins (there may be no more cores than threads: the thread
 * waited for must be able to run), after 1 ms sleep on a futex; an idle pool costs nothing. A
 * sleeper counts itself and looks at `run` again before it sleeps, the caller publishes before it
 * looks at the count; both in one total order, so no wake-up is lost. A pool made not to spin sleeps
 * after the first 64: under a quota, spins are paid for with work.
 */
#define _GNU_SOURCE /* affinity of threads */
#include "core/internal.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SPIN_NS 1000000 /* with 200 us a planted 1B model took 2.7 % longer: phases last 0.4 ms */
#define YIELD_EVERY 64
#define TASK_BITS   24 /* of a run's word; the rest numbers runs: 2 years of 14,000 a second */
#define MOST_TASKS  ((1ll << TASK_BITS) - 1)

#if defined(__x86_64__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

/* A line of its own: the word is written at every task. (worker: 64 bytes, so neighbours do not
 * share lines.) */
typedef struct {
    _Alignas(64) atomic_ullong taken; /* run's number << TASK_BITS | tasks of its own taken there */
    hc_pool *pool;
    pthread_t thread; /* not the caller's */
    int32_t index;
} worker;

/* Lines by writer: set-up and the caller's words | run, written once a run | finished, by every
 * task | wake, by the caller when someone sleeps | the workers' words. */
struct hc_pool {
    int32_t threads; /* the caller, worker 0, included */
    int32_t started; /* workers that run, without it */
    int32_t spin_ns;
    hc_task body;
    void *context;
    atomic_int busy;
    _Alignas(64) atomic_ullong run; /* number << TASK_BITS | its tasks */
    _Alignas(64) atomic_llong finished;
    _Atomic uint32_t done; /* futex of the caller: runs finished */
    atomic_int caller_sleeps;
    _Alignas(64) _Atomic uint32_t wake; /* futex of the workers: wake-ups sent */
    atomic_int sleepers;
    atomic_int closing;
    worker workers[];
};

/* Returns at once where *word is no longer `seen`. Spurious returns are harmless: callers look
 * again. */
static void futex_wait(_Atomic uint32_t *word, uint32_t seen) {
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int n) {
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* One round of waiting; 0 once the time to spin is over. */
static int spin(const hc_pool *pool, uint32_t *round, int64_t *until) {
    RELAX();
    if (++*round % YIELD_EVERY)
        return 1;
    int64_t now = now_ns();
    if (!*until)
        *until = now + pool->spin_ns;
    if (now >= *until)
        return 0;
    sched_yield();
    return 1;
}

/* Take the next task of a run that belongs to thread `of`; -1: none is left.
 * Tasks of thread `of` are of, of + threads, of + 2 threads, ...; the word counts how many were
 * taken in this run. A word of an earlier run counts as 0, so nobody resets words between runs. */
static int64_t take(hc_pool *pool, int32_t of, unsigned long long run) {
    worker *owner = &pool->workers[of];
    unsigned long long seen = atomic_load_explicit(&owner->taken, memory_order_acquire);
    for (;;) {
        const unsigned long long number = seen >> TASK_BITS;
        if (number > run >> TASK_BITS)
            return -1; /* that run is over */
        const int64_t before = number == run >> TASK_BITS ? (int64_t)(seen & MOST_TASKS) : 0;
        const int64_t task = of + before * pool->threads;
        if (task >= (int64_t)(run & MOST_TASKS))
            return -1;
        /* acq_rel: what is read for the task (body, context) comes after the word that names
         * the run. */
        const unsigned long long next = (run & ~(unsigned long long)MOST_TASKS) + before + 1;
        if (atomic_compare_exchange_weak_explicit(&owner->taken, &seen, next, memory_order_acq_rel,
                                                  memory_order_acquire))
            return task;
    }
}

/* Take and run tasks of a run until none is left: a thread's own, then others'. */
static void work(hc_pool *pool, int32_t thread, unsigned long long run) {
    const int64_t n = (int64_t)(run & MOST_TASKS);
    for (int32_t i = 0; i < pool->threads; i++) {
        const int32_t of = (thread + i) % pool->threads;
        for (int64_t task; of < n && (task = take(pool, of, run)) >= 0;) {
            pool->body(pool->context, task, thread);
            /* The last task of the run, whoever had it. seq_cst: all tasks' results are before
             * `done` rises, and the look at caller_sleeps comes after it; the caller does the
             * same two the other way round. */
            if (atomic_fetch_add(&pool->finished, 1) + 1 == n) {
                atomic_fetch_add(&pool->done, 1);
                if (atomic_load(&pool->caller_sleeps))
                    futex_wake(&pool->done, 1);
            }
        }
    }
}

/* `last` is the run this worker has seen to; after a run it spins anew, since the next one is
 * near. */
static void *worker_main(void *argument) {
    worker *self = argument;
    hc_pool *pool = self->pool;
    unsigned long long last = 0;
    uint32_t round = 0;
    int64_t until = 0;
    while (!atomic_load_explicit(&pool->closing, memory_order_acquire)) {
        const unsigned long long run = atomic_load_explicit(&pool->run, memory_order_acquire);
        if (run != last) {
            work(pool, self->index, run);
            last = run;
            until = 0;
        } else if (!spin(pool, &round, &until)) {
            /* The order that loses no wake-up: note `wake`, count oneself, look at run again,
             * sleep while wake is what was noted. The caller publishes the run, then looks at
             * sleepers, then raises wake. */
            uint32_t seen = atomic_load(&pool->wake);
            atomic_fetch_add(&pool->sleepers, 1);
            if (atomic_load(&pool->run) == last && !atomic_load(&pool->closing))
                futex_wait(&pool->wake, seen);
            atomic_fetch_sub(&pool->sleepers, 1);
            until = 0;
        }
    }
    return NULL;
}

/* Wait until the run that will raise done above `before` has finished. */
static void wait_done(hc_pool *pool, uint32_t before) {
    uint32_t round = 0;
    int64_t until = 0;
    while (atomic_load_explicit(&pool->done, memory_order_acquire) == before) {
        if (spin(pool, &round, &until))
            continue;
        atomic_store(&pool->caller_sleeps, 1);
        if (atomic_load(&pool->done) == before)
            futex_wait(&pool->done, before);
        atomic_store(&pool->caller_sleeps, 0);
    }
}

void hc_pool_run(hc_pool *pool, hc_task body, void *context, int64_t n_tasks) {
    /* A second caller, or a task that runs the pool again, gets its own thread alone. */
    const int alone = n_tasks <= 1 || n_tasks > MOST_TASKS || !pool || !pool->started;
    if (alone || atomic_exchange(&pool->busy, 1)) {
        for (int64_t task = 0; task < n_tasks; task++)
            body(context, task, 0);
        return;
    }
    /* From here on this thread owns the pool (busy). The last run is over, so no worker reads
     * body, context or finished: they may be written. */
    const uint32_t before = atomic_load(&pool->done);
    pool->body = body;
    pool->context = context;
    atomic_store(&pool->finished, 0);
    const unsigned long long last = atomic_load_explicit(&pool->run, memory_order_relaxed);
    const unsigned long long run = ((last >> TASK_BITS) + 1) << TASK_BITS | (uint64_t)n_tasks;
    atomic_store(&pool->run, run);
    /* No more workers are woken than there are tasks besides the caller's. */
    const int sleepers = atomic_load(&pool->sleepers);
    if (sleepers > 0) {
        atomic_fetch_add(&pool->wake, 1);
        futex_wake(&pool->wake, n_tasks - 1 < sleepers ? (int)(n_tasks - 1) : sleepers);
    }
    work(pool, 0, run);
    wait_done(pool, before);
    atomic_store(&pool->busy, 0);
}

/* Start worker i, on its core where cores are given; an errno value. */
static int start_worker(hc_pool *pool, int32_t i, const int32_t *cores) {
    pthread_attr_t attributes;
    int code = pthread_attr_init(&attributes);
    if (code)
        return code;
    if (cores) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cores[i], &set);
        code = pthread_attr_setaffinity_np(&attributes, sizeof set, &set);
    }
    pool->workers[i].pool = pool;
    pool->workers[i].index = i;
    if (!code)
        code =
            pthread_create(&pool->workers[i].thread, &attributes, worker_main, &pool->workers[i]);
    pthread_attr_destroy(&attributes);
    if (!code)
        pool->started++;
    return code;
}

/* The caller is worker 0 and keeps its own affinity: cores[0] is for it to set. */
hc_pool *hc_pool_create(int32_t threads, const int32_t *cores, int32_t spins) {
    if (threads < 1 || threads > HC_MAX_THREADS) {
        hc_fail(HC_ERR_ARGUMENT, "a pool of %d threads; 1 to %d are possible", threads,
                HC_MAX_THREADS);
        return NULL;
    }
    for (int32_t i = 0; cores && i < threads; i++)
        if (cores[i] < 0 || cores[i] >= CPU_SETSIZE) {
            hc_fail(HC_ERR_ARGUMENT, "core %d for thread %d; 0 to %d are possible", cores[i], i,
                    CPU_SETSIZE - 1);
            return NULL;
        }
    const size_t bytes = sizeof(hc_pool) + sizeof(worker) * (size_t)threads; /* whole lines */
    hc_pool *pool = aligned_alloc(64, bytes);
    if (!pool) {
        hc_fail(HC_ERR_MEMORY, "no memory for a pool of %d threads", threads);
        return NULL;
    }
    memset(pool, 0, bytes);
    pool->threads = threads;
    pool->spin_ns = spins ? SPIN_NS : 0;
    sigset_t all, before; /* signals stay with the threads that were there before */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = 0;
    for (int32_t i = 1; i < threads && !code; i++)
        code = start_worker(pool, i, cores);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code) {
        const int32_t failed = pool->started + 1;
        hc_pool_destroy(pool);
        hc_fail(code == EINVAL ? HC_ERR_ARGUMENT : HC_ERR_SYSTEM,
                "thread %d of a pool of %d could not start%s: %s", failed, threads,
                cores ? " on its core" : "", strerror(code));
        return NULL;
    }
    return pool;
}

/* The caller guarantees that no run is under way. Workers that spin see `closing`, those that
 * sleep are woken; one that is about to sleep looks at it after it has counted itself. */
void hc_pool_destroy(hc_pool *pool) {
    if (!pool)
        return;
    atomic_store(&pool->closing, 1);
    atomic_fetch_add(&pool->wake, 1);
    futex_wake(&pool->wake, HC_MAX_THREADS);
    for (int32_t i = 1; i <= pool->started; i++)
        pthread_join(pool->workers[i].thread, NULL);
    free(pool);
}

int32_t hc_pool_threads(const hc_pool *pool) {
    return pool ? pool->threads : 1;
}
