/* ops/ffn_tiles.c - the sparse FFN for many threads: dots by neuron, then the sum by columns.
 *
 *   c_k = relu(g_k . x) * (u_k . x)      tasks of NEURONS entries of the list
 *   y   = sum over k of c_k * d_k        tasks of TILE columns; each walks the whole list
 *
 * ffn.c gives a chunk of ids to a thread and adds one partial sum a chunk; with 14 threads and some
 * 300 active neurons, the chunks are uneven and the partial sums (20 KB each at d 5120) cross the
 * cores: 26 us of 90 a layer on 14 cores of an H100 host. Here both phases are even and there are no
 * partial sums. A column's sum has one order, that of the list, so bits depend neither on threads nor
 * on the batch, and equal those of ffn.c with a single chunk. The price: a thread reads TILE columns
 * of every down column (256 bytes in fp16), so the rows ahead are prefetched.
 */
#include "internal.h"

#include <string.h>

#define NEURONS 4   /* entries of a task of the first phase */
#define TILE    128 /* columns of a task of the second */
#define AHEAD   12  /* rows the prefetch of the second runs ahead */
#define GROUP   64

typedef struct {
    hc_ffn_args *a;
    const hc_primitives *p;
    int64_t row_bytes, gate_rows, up_down_rows, bytes;
    uint32_t *fired_K; /* which tokens fire an entry */
} tiles_run;

static const char *record(const hc_ffn_args *a, int64_t k) {
    return (const char *)a->records + a->ids[k] * a->record_bytes;
}

/* One token: gates of a task's entries, then the up rows of those that fire. The up rows are
 * prefetched while the gates are read: nearly all predicted neurons fire. */
static void dots_single(tiles_run *run, int64_t begin, int64_t end) {
    const hc_ffn_args *a = run->a;
    const void *rows[NEURONS], *up_rows[NEURONS];
    float gate[NEURONS], up[NEURONS];
    int64_t entry[NEURONS], n = 0, fired = 0;
    for (int64_t k = begin; k < end; k++) {
        run->fired_K[k] = 0;
        if (a->members && !(a->members[k] & 1))
            continue;
        rows[n] = record(a, k) + a->gate_offset;
        up_rows[n] = record(a, k) + a->up_offset;
        if (a->gate_KB)
            gate[n] = a->gate_KB[k];
        entry[n++] = k;
    }
    if (!a->gate_KB && n)
        run->p->dot[a->dtype](rows, up_rows, n, a->x_BD, a->d, gate);
    for (int64_t i = 0; i < n; i++)
        if (gate[i] > 0) {
            rows[fired] = up_rows[i];
            gate[fired] = gate[i];
            entry[fired++] = entry[i];
        }
    if (fired)
        run->p->dot[a->dtype](rows, NULL, fired, a->x_BD, a->d, up);
    for (int64_t i = 0; i < fired; i++) {
        a->c_KB[entry[i]] = gate[i] * up[i];
        run->fired_K[entry[i]] = 1;
        if (a->fired_N)
            a->fired_N[a->ids[entry[i]]]++;
    }
    const int64_t gates = a->gate_KB ? 0 : n;
    __atomic_fetch_add(&run->gate_rows, gates, __ATOMIC_RELAXED);
    __atomic_fetch_add(&run->up_down_rows, fired, __ATOMIC_RELAXED);
    __atomic_fetch_add(&run->bytes, (gates + 2 * fired) * run->row_bytes, __ATOMIC_RELAXED);
}

/* Sums of one row for the tokens in mask, in ascending order. */
static void dot_masked(const tiles_run *run, const void *row, uint32_t mask, float *out) {
    const float *xs[HC_MAX_BATCH];
    int32_t n = 0;
    for (; mask; mask &= mask - 1)
        xs[n++] = run->a->x_BD + __builtin_ctz(mask) * run->a->d;
    if (n)
        run->p->dot_batch[run->a->dtype](&row, 1, xs, n, run->a->d, out);
}

/* One entry of a batch: c of every token, 0 where it does not fire. */
static void dots_entry(tiles_run *run, int64_t k) {
    const hc_ffn_args *a = run->a;
    const uint32_t all = (uint32_t)((1ull << a->batch) - 1);
    const uint32_t members = a->members ? a->members[k] & all : all;
    float gate[HC_MAX_BATCH], up[HC_MAX_BATCH], *c = a->c_KB + k * a->batch;
    uint32_t fired = 0;
    if (!a->gate_KB)
        dot_masked(run, record(a, k) + a->gate_offset, members, gate);
    int32_t next = 0;
    memset(c, 0, sizeof(float) * (size_t)a->batch);
    for (uint32_t rest = members; rest; rest &= rest - 1) {
        const int32_t t = __builtin_ctz(rest);
        c[t] = a->gate_KB ? a->gate_KB[k * a->batch + t] : gate[next++];
        fired |= (uint32_t)(c[t] > 0) << t;
    }
    dot_masked(run, record(a, k) + a->up_offset, fired, up);
    next = 0;
    for (int32_t t = 0; t < a->batch; t++)
        c[t] = fired >> t & 1 ? c[t] * up[next++] : 0;
    run->fired_K[k] = fired;
    if (a->fired_N)
        a->fired_N[a->ids[k]] += next;
    const int64_t gates = a->gate_KB ? 0 : __builtin_popcount(members);
    __atomic_fetch_add(&run->gate_rows, gates, __ATOMIC_RELAXED);
    __atomic_fetch_add(&run->up_down_rows, next, __ATOMIC_RELAXED);
    __atomic_fetch_add(&run->bytes, ((gates > 0) + (next ? 2 : 0)) * run->row_bytes,
                       __ATOMIC_RELAXED);
}

static void dots(void *context, int64_t task, int32_t thread) {
    (void)thread;
    tiles_run *run = context;
    const int64_t begin = task * NEURONS;
    const int64_t end = run->a->n_ids - begin < NEURONS ? run->a->n_ids : begin + NEURONS;
    if (run->a->batch == 1)
        dots_single(run, begin, end);
    else
        for (int64_t k = begin; k < end; k++)
            dots_entry(run, k);
}

/* TILE columns of one token: the fired entries in the order of the list. */
static void sum_token(const tiles_run *run, int64_t column, int64_t width, int32_t token) {
    const hc_ffn_args *a = run->a;
    const int64_t at = a->down_offset + column * hc_dtype_bytes(a->dtype);
    const void *rows[GROUP + AHEAD];
    float c[GROUP + AHEAD], *y = a->y_BD + token * a->d + column;
    int64_t n = 0;
    memset(y, 0, sizeof(float) * (size_t)width);
    for (int64_t k = 0; k < a->n_ids; k++) {
        if (!(run->fired_K[k] >> token & 1))
            continue;
        rows[n] = record(a, k) + at;
        c[n++] = a->c_KB[k * a->batch + token];
        if (n < GROUP + AHEAD)
            continue;
        run->p->axpy[a->dtype](rows, rows + AHEAD, c, GROUP, width, y);
        memmove(rows, rows + GROUP, AHEAD * sizeof *rows); /* already on their way */
        memmove(c, c + GROUP, AHEAD * sizeof *c);
        n = AHEAD;
    }
    const int64_t ahead = n > AHEAD ? n - AHEAD : 0;
    run->p->axpy[a->dtype](rows, rows + AHEAD, c, ahead, width, y);
    run->p->axpy[a->dtype](rows + ahead, NULL, c + ahead, n - ahead, width, y);
}

static void sum(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const tiles_run *run = context;
    const int64_t column = task * TILE;
    const int64_t width = run->a->d - column < TILE ? run->a->d - column : TILE;
    for (int32_t token = 0; token < run->a->batch; token++)
        sum_token(run, column, width, token);
}

void hc_ffn_tiles(hc_ffn_args *a, const hc_primitives *p, hc_pool *pool) {
    tiles_run run = {.a = a, .p = p, .row_bytes = a->d * hc_dtype_bytes(a->dtype)};
    run.fired_K = (uint32_t *)(a->c_KB + a->n_ids * a->batch);
    hc_pool_run(a->n_ids ? pool : NULL, dots, &run, (a->n_ids + NEURONS - 1) / NEURONS);
    hc_pool_run(a->n_ids ? pool : NULL, sum, &run, (a->d + TILE - 1) / TILE);
    a->gate_rows = run.gate_rows;
    a->up_down_rows = run.up_down_rows;
    a->bytes = run.bytes;
}
