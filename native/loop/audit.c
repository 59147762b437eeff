/* audit.c - the recall audit: a sample of the neurons a predictor left out, computed anyway.
 *
 * What a predictor proposes is checked by the gate; what it misses is never seen. Here each executor
 * cuts the neurons it owns in strata of audit_every and evaluates the gate of one neuron of each,
 * drawn by a counter-based hash of (seed, pass, layer, token, stratum), unless it was proposed.
 * Every neuron is drawn with probability 1 / audit_every, so that
 *
 *   missed ~ audit_every * audit_missed,   recall = fired / (fired + missed)   (runtime/engine/audit.py)
 *
 * The result goes to counters alone: outputs do not depend on it. A token costs
 * neurons / audit_every gate rows, on all threads of the pool (on one thread the 107 rows of an
 * OPT-30B layer took the 150 us in which the next layer's records can be read ahead, ahead.c);
 * nothing is allocated.
 *
 * Reading two or three rows a layer takes less time than the latency of the first, which no other
 * read hides. So where a share is small, one of `bursts` layers in a row, drawn by the same hash
 * for every token, is audited in strata that many times shorter: the probability stays, the latency
 * is shared. How much layers differ in what they miss then adds to the variance, which
 * runtime/engine/audit.py leaves out: little where the recall is high. Embedded model, two cores, 1
 * in 256, 2026-11-22, time of both executors: 1.06 % of a token's without bursts, 0.77 % with;
 * recall to +-0.85 points after 512 tokens, 95 of 100 intervals right (`hotcold evaluate
 * --audit-runs 100`).
 */
#include "loop/executor.h"

#define GROUP      32    /* gate rows evaluated together */
#define AHEAD      1024  /* bytes of a row asked for while the others are drawn */
#define BURST      8     /* rows worth waiting for, and the most layers that share a wait */
#define TASK_BYTES 65536 /* rows of so much are a task: 8 us of reading, a hand-over costs 1 */
#define DENSE      64    /* audits of more than one neuron in so many are for tests: no bursts */

static uint64_t mix(uint64_t z) { /* splitmix64's finaliser */
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Whether token b was proposed neuron id.
 * Binary search: lists ascend. */
static int proposed(hc_active *list, int32_t id, int32_t b) {
    const int32_t *ids = hc_active_ids(list);
    int64_t low = 0, n = list->count;
    while (n > 0) {
        int64_t half = n / 2;
        if (ids[low + half] < id) {
            low += half + 1;
            n -= half + 1;
        } else {
            n = half;
        }
    }
    return low < list->count && ids[low] == id && (hc_active_members(list)[low] >> b & 1);
}

/* Of how many layers in a row one is audited: a power of two that divides every. */
static int64_t bursts(int64_t every, int64_t n_ids) {
    int64_t n = 1;
    while (every >= DENSE && n < BURST && every % (2 * n) == 0 && n * n_ids < BURST * every)
        n *= 2;
    return n;
}

typedef struct { /* the audit of one token in one layer */
    const hc_executor *e;
    const hc_owned *share;
    const char *records;
    const hc_record *record;
    hc_active *list;
    const float *x_D;
    int32_t b;
    int64_t every, strata, tasks; /* every: neurons of a stratum */
    uint64_t key;
    int64_t evaluated, missed; /* of all tasks */
} audit_run;

static int64_t count_fired(const audit_run *run, const void *const *rows, int64_t n) {
    float gate[GROUP];
    int64_t fired = 0;
    const hc_model *m = run->e->args.model;
    const hc_record *at = run->record;
    hc_primitives_get()->dot[at->dtype](rows, NULL, n, run->x_D, m->d, at->scales, gate);
    for (int64_t i = 0; i < n; i++) {
        if (at->bias)
            gate[i] += *(const float *)((const char *)rows[i] - at->gate + at->bias);
        fired += hc_fires(m->activation, gate[i], m->activation_threshold);
    }
    return fired;
}

/* A stratum's neuron is drawn by position in the owned list; what lies past its end, or was
 * proposed, is no draw. Rows are prefetched as they are drawn and computed GROUP at a time. */
static void audit_strata(void *context, int64_t task, int32_t thread) {
    (void)thread;
    audit_run *run = context;
    const hc_record *record = run->record;
    const int64_t row_bytes = hc_row_bytes(record->dtype, run->e->args.model->d);
    const int64_t end = run->strata * (task + 1) / run->tasks;
    const void *rows[GROUP];
    int64_t n = 0, evaluated = 0, missed = 0;
    for (int64_t stratum = run->strata * task / run->tasks; stratum < end; stratum++) {
        const uint64_t draw = mix(run->key + (uint64_t)stratum * 0x9e3779b97f4a7c15u);
        const int64_t k = stratum * run->every + (int64_t)(draw % (uint64_t)run->every);
        if (k >= run->share->n_ids || proposed(run->list, run->share->ids[k], run->b))
            continue;
        rows[n] =
            hc_record_at(run->records, record->bytes, run->share->slot_N, run->share->ids[k]) +
            record->gate;
        for (int64_t at = 0; at < row_bytes && at < AHEAD; at += 64)
            __builtin_prefetch((const char *)rows[n] + at);
        n++;
        evaluated++;
        if (n == GROUP) {
            missed += count_fired(run, rows, n);
            n = 0;
        }
    }
    if (n)
        missed += count_fired(run, rows, n);
    __atomic_fetch_add(&run->evaluated, evaluated, __ATOMIC_RELAXED);
    __atomic_fetch_add(&run->missed, missed, __ATOMIC_RELAXED);
}

/* Called behind the step's signal (pass.c), so no peer waits for it. */
void hc_audit(hc_executor *e, const hc_step *step, uint32_t seq) {
    const hc_model *m = e->args.model;
    const hc_owned *share = &e->args.owned_L[step->layer];
    const int64_t skip = bursts(e->args.audit_every, share->n_ids);
    const hc_record *record = hc_record_of(e, step->layer);
    const int64_t row_bytes = hc_row_bytes(record->dtype, m->d);
    audit_run run = {.e = e,
                     .share = share,
                     .records = hc_records_of(e, step->layer),
                     .record = record,
                     .list = (hc_active *)hc_slot(e, step->active[step->device]),
                     .every = e->args.audit_every / skip};
    run.strata = (share->n_ids + run.every - 1) / run.every;
    const int64_t most = hc_pool_threads(e->args.pool), worth = run.strata * row_bytes / TASK_BYTES;
    run.tasks = worth < 1 ? 1 : worth < most ? worth : most;
    /* Two hashes: `group` decides whether the layer is audited for this token, run.key which
     * neurons. */
    for (int32_t b = 0; b < e->batch; b++) {
        uint64_t key = mix(e->args.audit_seed + 0x9e3779b97f4a7c15u);
        run.key = mix(key ^ ((uint64_t)seq << 32 | (uint64_t)step->layer << 8 | (uint64_t)b));
        uint64_t group = (uint64_t)seq << 32 | (uint64_t)(step->layer / skip) << 8 | (uint64_t)b;
        group = mix(mix(e->args.audit_seed + 1 + (uint64_t)step->device) ^ group);
        if ((int64_t)(group % (uint64_t)skip) != step->layer % skip)
            continue;
        run.b = b, run.x_D = (const float *)hc_slot(e, step->x) + b * m->d;
        hc_pool_run(e->args.pool, audit_strata, &run, run.tasks);
    }
    hc_actor_state *state = hc_state_of(e);
    hc_count(&state->audit_rows, run.evaluated);
    hc_count(&state->audit_missed, run.missed);
    hc_count(&state->bytes, run.evaluated * step->bytes[HC_PROPOSED]);
}
