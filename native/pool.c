/* pool.c - persistent worker threads for the operators.
 *
 * A run publishes `remaining` tasks; every thread, the caller included, takes one by a
 * compare-and-swap that lowers it, and counts it in `finished`. The caller returns as soon as all
 * tasks are finished: it waits for taken tasks only, never for a worker that slept through the run,
 * so a core that is busy elsewhere costs speed and nothing else. Body and context are read after a
 * task was taken, when they cannot change: the run ends only once that task is finished.
 *
 * Waiting: spin, sched_yield every 64 spins (there may be no more cores than threads: the thread
 * waited for must be able to run), after 1 ms sleep on a futex; an idle pool costs nothing. A
 * sleeper counts itself and looks at `remaining` again before it sleeps, the caller publishes before
 * it looks at the count; both in one total order, so no wake-up is lost.
 */
#define _GNU_SOURCE /* affinity of threads */
#include "internal.h"

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

#if defined(__x86_64__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

typedef struct {
    hc_pool *pool;
    pthread_t thread;
    int32_t index;
} worker;

struct hc_pool {
    int32_t threads; /* the caller included */
    int32_t started; /* workers that run */
    hc_task body;
    void *context;
    int64_t n_tasks;
    atomic_int busy;
    _Alignas(64) atomic_llong remaining; /* tasks nobody took */
    _Alignas(64) atomic_llong finished;
    _Atomic uint32_t done; /* futex of the caller: runs finished */
    atomic_int caller_sleeps;
    _Alignas(64) _Atomic uint32_t wake; /* futex of the workers: wake-ups sent */
    atomic_int sleepers;
    atomic_int closing;
    worker workers[];
};

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
static int spin(uint32_t *round, int64_t *until) {
    RELAX();
    if (++*round % YIELD_EVERY)
        return 1;
    int64_t now = now_ns();
    if (!*until)
        *until = now + SPIN_NS;
    sched_yield();
    return now < *until;
}

/* Take and run tasks until none is left. */
static void work(hc_pool *pool, int32_t thread) {
    long long left = atomic_load_explicit(&pool->remaining, memory_order_acquire);
    while (left > 0) {
        if (!atomic_compare_exchange_weak_explicit(&pool->remaining, &left, left - 1,
                                                   memory_order_acq_rel, memory_order_acquire))
            continue;
        const int64_t n = pool->n_tasks;
        pool->body(pool->context, n - left, thread);
        if (atomic_fetch_add(&pool->finished, 1) + 1 == n) {
            atomic_fetch_add(&pool->done, 1);
            if (atomic_load(&pool->caller_sleeps))
                futex_wake(&pool->done, 1);
        }
        left = atomic_load_explicit(&pool->remaining, memory_order_acquire);
    }
}

static void *worker_main(void *argument) {
    worker *self = argument;
    hc_pool *pool = self->pool;
    uint32_t round = 0;
    int64_t until = 0;
    while (!atomic_load_explicit(&pool->closing, memory_order_acquire)) {
        if (atomic_load_explicit(&pool->remaining, memory_order_acquire) > 0) {
            work(pool, self->index);
            until = 0;
        } else if (!spin(&round, &until)) {
            uint32_t seen = atomic_load(&pool->wake);
            atomic_fetch_add(&pool->sleepers, 1);
            if (atomic_load(&pool->remaining) <= 0 && !atomic_load(&pool->closing))
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
        if (spin(&round, &until))
            continue;
        atomic_store(&pool->caller_sleeps, 1);
        if (atomic_load(&pool->done) == before)
            futex_wait(&pool->done, before);
        atomic_store(&pool->caller_sleeps, 0);
    }
}

void hc_pool_run(hc_pool *pool, hc_task body, void *context, int64_t n_tasks) {
    /* A second caller, or a task that runs the pool again, gets its own thread alone. */
    if (n_tasks <= 1 || !pool || !pool->started || atomic_exchange(&pool->busy, 1)) {
        for (int64_t task = 0; task < n_tasks; task++)
            body(context, task, 0);
        return;
    }
    const uint32_t before = atomic_load(&pool->done);
    pool->body = body;
    pool->context = context;
    pool->n_tasks = n_tasks;
    atomic_store(&pool->finished, 0);
    atomic_store(&pool->remaining, n_tasks);
    const int sleepers = atomic_load(&pool->sleepers);
    if (sleepers > 0) {
        atomic_fetch_add(&pool->wake, 1);
        futex_wake(&pool->wake, n_tasks - 1 < sleepers ? (int)(n_tasks - 1) : sleepers);
    }
    work(pool, 0);
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
        CPU_SET(cores[i + 1], &set);
        code = pthread_attr_setaffinity_np(&attributes, sizeof set, &set);
    }
    pool->workers[i] = (worker){.pool = pool, .index = i + 1};
    if (!code)
        code =
            pthread_create(&pool->workers[i].thread, &attributes, worker_main, &pool->workers[i]);
    pthread_attr_destroy(&attributes);
    if (!code)
        pool->started++;
    return code;
}

hc_pool *hc_pool_create(int32_t threads, const int32_t *cores) {
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
    const size_t bytes = sizeof(hc_pool) + sizeof(worker) * (size_t)threads;
    hc_pool *pool = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!pool) {
        hc_fail(HC_ERR_MEMORY, "no memory for a pool of %d threads", threads);
        return NULL;
    }
    memset(pool, 0, bytes);
    pool->threads = threads;
    sigset_t all, before; /* signals stay with the threads that were there before */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = 0;
    for (int32_t i = 0; i < threads - 1 && !code; i++)
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

void hc_pool_destroy(hc_pool *pool) {
    if (!pool)
        return;
    atomic_store(&pool->closing, 1);
    atomic_fetch_add(&pool->wake, 1);
    futex_wake(&pool->wake, HC_MAX_THREADS);
    for (int32_t i = 0; i < pool->started; i++)
        pthread_join(pool->workers[i].thread, NULL);
    free(pool);
}

int32_t hc_pool_threads(const hc_pool *pool) {
    return pool ? pool->threads : 1;
}
