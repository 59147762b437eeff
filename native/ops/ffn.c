/* ops/ffn.c - the neuron-aware operator: a sparse feed-forward layer over an id list.
 *
 *   ReGLU, record i:  | gate row g_i | up row u_i | down column d_i |
 *                     y = sum over listed i of  relu(g_i . x) * (u_i . x) * d_i
 *   ReLU,  record i:  | gate row g_i (of fc1) | down column d_i (of fc2) | bias b_i, fp32 |
 *                     y = sum over listed i of  relu(g_i . x + b_i) * d_i
 *
 * A neuron that fires: 6 d FLOPs on 6 d bytes in fp16 (ReLU: 4 d on 4 d); another: a third of both
 * (ReLU: half). That is 1 FLOP a byte for one token, so what counts is bytes not read, then reads in
 * flight. Chunks are cut by neuron id, not by position in the list: in a batch it is the union of its
 * tokens' lists.
 *
 * Measured on one core of a 2-core Intel Xeon (Sapphire Rapids) shared with other work, 2026-11-21,
 * fp16, records from memory, plain stream read in the same run 15-17 GB/s:
 *                                                            d 320, 1280 gates   d 4096, 1100 listed
 *   v1 gates of 32 neurons, then fired up rows, down columns   8.0 GB/s            11.3 GB/s
 *   v2 and the next four gate rows prefetched                  8.9                 11.0
 *   v3 and up rows, then down columns prefetched as one list   9.7                 13.6
 *   v4 and gates of 128 neurons at once (in use)               9.9                 13.3
 * `hotcold bench kernels --d 4096 --density 10 --samples 101`, 2026-11-22, same machine, v4 with
 * AVX-512 v5 as a share of reading records of 24 KB alone, five runs under varying load, one core:
 * best calls 0.88 0.88 0.87 0.88 0.86 (14.3 of 16.5 GB/s), medians 0.80 0.53 0.81 0.64 0.79: a busy
 * machine moves medians. Turns of 300 on a nearly idle one: medians 0.88 0.88 0.88. Two cores: best
 * calls 26.9 of 30.5 (0.88) where other work left both cores free.
 *
 * Many threads: 14 cores of an H100 host, 278 and 600 fired neurons of d 5120 in a layer: 28 chunks
 * 82 and 98 GB/s, 42 chunks 77 and 98, 56 chunks 72 and 95 (a plain stream: 140). Cutting the sum by
 * columns instead (no partial sums, 256 bytes of every down column a thread): 70 and 74. Huge pages
 * changed none of it.
 */
#include "internal.h"

#include <string.h>

#define SINGLE 128 /* neurons whose gates are evaluated before their up rows: one token */
#define GROUP  32  /* the same in a batch */
#define AHEAD  4   /* rows the prefetch runs ahead */
#define REDUCE 512 /* columns of a task that adds partial sums */

/* Counters of a chunk: its line of work_C. */
enum { GATE_ROWS, UP_DOWN_ROWS, BYTES, FIRED_TOKENS };

typedef struct {
    hc_ffn_args *a;
    const hc_primitives *p;
    int64_t row_bytes;
    int64_t gate_bytes;  /* gate row and bias */
    int64_t fired_bytes; /* up row, where there are any, and down column */
} ffn_run;

/* First entry of the list that is >= id. */
static int64_t lower_bound(const int32_t *ids, int64_t n, int32_t id) {
    int64_t low = 0;
    while (n > 0) {
        int64_t half = n / 2;
        if (ids[low + half] < id) {
            low += half + 1;
            n -= half + 1;
        } else {
            n = half;
        }
    }
    return low;
}

static const char *record(const hc_ffn_args *a, int64_t k) {
    return (const char *)a->records + a->ids[k] * a->record_bytes;
}

/* Pre-activation of entry k from its gate row's sum. */
static float biased(const hc_ffn_args *a, int64_t k, float sum) {
    return a->bias_offset ? sum + *(const float *)(record(a, k) + a->bias_offset) : sum;
}

static float *partial(const hc_ffn_args *a, int64_t chunk, int32_t token) {
    return a->partial_CBD + (chunk * a->batch + token) * a->d;
}

/* Start the partial sum of each token that fires for the first time in this chunk. */
static void begin_partials(const hc_ffn_args *a, int64_t chunk, int64_t *work, uint32_t fired) {
    uint32_t fresh = fired & ~(uint32_t)work[FIRED_TOKENS];
    work[FIRED_TOKENS] |= fresh;
    for (; fresh; fresh &= fresh - 1)
        memset(partial(a, chunk, __builtin_ctz(fresh)), 0, sizeof(float) * (size_t)a->d);
}

/* One token: which entries of a group ask for it, and their pre-activations; how many. */
static int64_t single_gates(const ffn_run *run, int64_t begin, int64_t end, int64_t *work,
                            int64_t *entry, float *gate) {
    const hc_ffn_args *a = run->a;
    const void *rows[SINGLE + AHEAD];
    int64_t n = 0;
    for (int64_t k = begin; k < end; k++)
        if (!a->members || a->members[k] & 1)
            entry[n++] = k;
    if (a->gate_KB) {
        for (int64_t i = 0; i < n; i++)
            gate[i] = a->gate_KB[entry[i]];
        return n;
    }
    if (n <= 0)
        return 0;
    for (int64_t i = 0; i < n + AHEAD; i++)
        rows[i] = record(a, entry[i < n ? i : n - 1]) + a->gate_offset;
    run->p->dot[a->dtype](rows, rows + AHEAD, n, a->x_BD, a->d, gate);
    for (int64_t i = 0; i < n && a->bias_offset; i++)
        gate[i] = biased(a, entry[i], gate[i]);
    work[GATE_ROWS] += n;
    work[BYTES] += n * run->gate_bytes;
    return n;
}

/* One token: gates of a group, then up rows and down columns of those that fired. While four rows
 * are read the next four are prefetched, the first down columns during the last up rows. */
static void group_single(const ffn_run *run, int64_t chunk, int64_t begin, int64_t end,
                         int64_t *work) {
    const hc_ffn_args *a = run->a;
    const void *rows[2 * SINGLE + AHEAD];
    float gate[SINGLE], up[SINGLE];
    int64_t entry[SINGLE], fired = 0;
    const int64_t n = single_gates(run, begin, end, work, entry, gate);
    for (int64_t i = 0; i < n; i++)
        if (gate[i] > 0) {
            entry[fired] = entry[i];
            gate[fired++] = gate[i];
        }
    if (!fired)
        return;
    const int64_t ups = a->up_offset >= 0 ? fired : 0, all = ups + fired;
    for (int64_t i = 0; i < fired; i++) {
        rows[ups + i] = record(a, entry[i]) + a->down_offset;
        if (ups)
            rows[i] = record(a, entry[i]) + a->up_offset;
        if (a->fired_N)
            a->fired_N[a->ids[entry[i]]]++;
    }
    for (int64_t i = all; i < all + AHEAD; i++)
        rows[i] = rows[all - 1];
    const int64_t ahead = fired < AHEAD ? fired : AHEAD;
    if (ups)
        run->p->dot[a->dtype](rows, rows + ahead, ups, a->x_BD, a->d, up);
    for (int64_t i = 0; i < ups; i++)
        gate[i] *= up[i];
    begin_partials(a, chunk, work, 1);
    run->p->axpy[a->dtype](rows + ups, rows + ups + AHEAD, gate, fired, a->d, partial(a, chunk, 0));
    work[UP_DOWN_ROWS] += fired;
    work[BYTES] += fired * run->fired_bytes;
}

/* Rows' sums for those tokens of x that are in mask, in ascending order. */
static int32_t dot_masked(const ffn_run *run, const void *row, uint32_t mask, float *out) {
    const float *xs[HC_MAX_BATCH];
    int32_t n = 0;
    for (; mask; mask &= mask - 1)
        xs[n++] = run->a->x_BD + __builtin_ctz(mask) * run->a->d;
    if (n)
        run->p->dot_batch[run->a->dtype](&row, 1, xs, n, run->a->d, out);
    return n;
}

/* A batch, first half: which tokens fire each neuron of the group, and their pre-activations. */
static void group_gates(const ffn_run *run, int64_t begin, int64_t n, int64_t *work,
                        float gate[GROUP][HC_MAX_BATCH], uint32_t fired[GROUP]) {
    const hc_ffn_args *a = run->a;
    const uint32_t all = (uint32_t)((1ull << a->batch) - 1);
    const void *rows[GROUP];
    const float *xs[HC_MAX_BATCH];
    float dense[GROUP * HC_MAX_BATCH], some[HC_MAX_BATCH];
    if (!a->gate_KB && !a->members) {
        for (int64_t i = 0; i < n; i++)
            rows[i] = record(a, begin + i) + a->gate_offset;
        for (int32_t t = 0; t < a->batch; t++)
            xs[t] = a->x_BD + t * a->d;
        run->p->dot_batch[a->dtype](rows, n, xs, a->batch, a->d, dense);
    }
    for (int64_t i = 0; i < n; i++) {
        const uint32_t members = a->members ? a->members[begin + i] & all : all;
        const float *values =
            a->gate_KB ? a->gate_KB + (begin + i) * a->batch : dense + i * a->batch;
        if (!a->gate_KB && a->members) {
            dot_masked(run, record(a, begin + i) + a->gate_offset, members, some);
            values = some;
        }
        if (!a->gate_KB) {
            work[GATE_ROWS] += __builtin_popcount(members);
            work[BYTES] += members ? run->gate_bytes : 0;
        }
        fired[i] = 0;
        int32_t next = 0;
        for (uint32_t rest = members; rest; rest &= rest - 1) {
            const int32_t t = __builtin_ctz(rest);
            float value = values == some ? some[next++] : values[t];
            if (!a->gate_KB)
                value = biased(a, begin + i, value);
            gate[i][t] = value;
            fired[i] |= (uint32_t)(value > 0) << t;
        }
    }
}

/* A batch: each row is read once for all tokens that need it. */
static void group_batch(const ffn_run *run, int64_t chunk, int64_t begin, int64_t end,
                        int64_t *work) {
    const hc_ffn_args *a = run->a;
    const int64_t n = end - begin;
    const void *down[GROUP];
    float gate[GROUP][HC_MAX_BATCH], up[HC_MAX_BATCH], c[GROUP];
    uint32_t fired[GROUP], any = 0;
    group_gates(run, begin, n, work, gate, fired);
    for (int64_t i = 0; i < n; i++) {
        const int32_t m = __builtin_popcount(fired[i]);
        int32_t next = 0;
        if (a->up_offset >= 0) {
            dot_masked(run, record(a, begin + i) + a->up_offset, fired[i], up);
            for (uint32_t rest = fired[i]; rest; rest &= rest - 1)
                gate[i][__builtin_ctz(rest)] *= up[next++];
        }
        any |= fired[i];
        work[UP_DOWN_ROWS] += m;
        work[BYTES] += m ? run->fired_bytes : 0;
        if (a->fired_N)
            a->fired_N[a->ids[begin + i]] += m;
    }
    begin_partials(a, chunk, work, any);
    for (; any; any &= any - 1) {
        const int32_t t = __builtin_ctz(any);
        int64_t m = 0;
        for (int64_t i = 0; i < n; i++)
            if (fired[i] >> t & 1) {
                down[m] = record(a, begin + i) + a->down_offset;
                c[m++] = gate[i][t];
            }
        run->p->axpy[a->dtype](down, NULL, c, m, a->d, partial(a, chunk, t));
    }
}

static void ffn_chunk(void *context, int64_t chunk, int32_t thread) {
    (void)thread;
    const ffn_run *run = context;
    const hc_ffn_args *a = run->a;
    int64_t *work = a->work_C + chunk * 8;
    memset(work, 0, 8 * sizeof *work);
    const int64_t begin = lower_bound(a->ids, a->n_ids, a->bounds[chunk]);
    const int64_t end = lower_bound(a->ids, a->n_ids, a->bounds[chunk + 1]);
    const int64_t step = a->batch == 1 ? SINGLE : GROUP;
    for (int64_t k = begin; k < end; k += step) {
        const int64_t stop = end - k < step ? end : k + step;
        if (a->batch == 1)
            group_single(run, chunk, k, stop, work);
        else
            group_batch(run, chunk, k, stop, work);
    }
}

/* Sum the partial sums of one token's piece of REDUCE columns, chunk after chunk. A chunk that never
 * began would add zeros. */
static void ffn_reduce(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const hc_ffn_args *a = ((const ffn_run *)context)->a;
    const int64_t pieces = (a->d + REDUCE - 1) / REDUCE, token = task / pieces;
    const int64_t begin = task % pieces * REDUCE;
    const int64_t n = a->d - begin < REDUCE ? a->d - begin : REDUCE;
    float *y = a->y_BD + token * a->d + begin;
    memset(y, 0, sizeof(float) * (size_t)n);
    for (int32_t c = 0; c < a->n_chunks; c++) {
        if (!(a->work_C[c * 8 + FIRED_TOKENS] >> token & 1))
            continue;
        const float *part = partial(a, c, (int32_t)token) + begin;
        for (int64_t i = 0; i < n; i++)
            y[i] += part[i];
    }
}

static hc_status check_shapes(const hc_ffn_args *a) {
    if (!a || !a->bounds || !a->x_BD || !a->y_BD || !a->partial_CBD || !a->work_C)
        return hc_fail(HC_ERR_ARGUMENT, "ffn: bounds, x, y and both scratch areas must be given");
    const int64_t bytes = hc_dtype_bytes(a->dtype);
    if (!bytes)
        return hc_fail(HC_ERR_ARGUMENT, "ffn: dtype %d is unknown; 0 to 2 are", a->dtype);
    if (a->batch < 1 || a->batch > HC_MAX_BATCH)
        return hc_fail(HC_ERR_ARGUMENT, "ffn: batch %d; 1 to %d are possible", a->batch,
                       HC_MAX_BATCH);
    if (a->d < 1 || a->d > HC_MAX_D || a->n_chunks < 1 || a->n_chunks > INT16_MAX)
        return hc_fail(HC_ERR_ARGUMENT, "ffn: d %lld in %d chunks; 1 to %d in 1 to %d",
                       (long long)a->d, a->n_chunks, HC_MAX_D, INT16_MAX);
    const int64_t up = a->up_offset == -1 ? a->down_offset : a->up_offset;
    const int64_t offsets[] = {a->gate_offset, up, a->down_offset};
    for (int i = 0; i < 3; i++)
        if (offsets[i] < 0 || offsets[i] % bytes || a->record_bytes % bytes ||
            offsets[i] > a->record_bytes - a->d * bytes)
            return hc_fail(HC_ERR_ARGUMENT, "ffn: a row at byte %lld of a record of %lld bytes",
                           (long long)offsets[i], (long long)a->record_bytes);
    if (a->bias_offset && (a->bias_offset < 0 || a->bias_offset % 4 || a->record_bytes % 4 ||
                           a->bias_offset > a->record_bytes - 4))
        return hc_fail(HC_ERR_ARGUMENT, "ffn: a bias at byte %lld of a record of %lld bytes",
                       (long long)a->bias_offset, (long long)a->record_bytes);
    return HC_OK;
}

/* The list must ascend within the bounds: then no id, chunk or counter is out of range. */
static hc_status check_ids(const hc_ffn_args *a) {
    if (a->n_ids < 0 || (a->n_ids > 0 && (!a->ids || !a->records)))
        return hc_fail(HC_ERR_ARGUMENT, "ffn: %lld ids without a list or without records",
                       (long long)a->n_ids);
    if (a->bounds[0] < 0)
        return hc_fail(HC_ERR_ARGUMENT, "ffn: bounds begin at %d; 0 is the least", a->bounds[0]);
    for (int32_t c = 0; c < a->n_chunks; c++)
        if (a->bounds[c] > a->bounds[c + 1])
            return hc_fail(HC_ERR_ARGUMENT, "ffn: bounds do not ascend at chunk %d", c);
    uint32_t descents = 0;
    for (int64_t k = 1; k < a->n_ids; k++)
        descents += a->ids[k - 1] >= a->ids[k];
    if (descents)
        return hc_fail(HC_ERR_ARGUMENT, "ffn: the id list does not ascend at %u places", descents);
    const int32_t first = a->bounds[0], limit = a->bounds[a->n_chunks];
    if (a->n_ids > 0 && (a->ids[0] < first || a->ids[a->n_ids - 1] >= limit))
        return hc_fail(HC_ERR_ARGUMENT, "ffn: ids %d to %d; the chunks hold %d to %d", a->ids[0],
                       a->ids[a->n_ids - 1], first, limit - 1);
    return HC_OK;
}

hc_status hc_ffn(hc_ffn_args *args, hc_pool *pool) {
    hc_status status = check_shapes(args);
    if (status == HC_OK)
        status = check_ids(args);
    if (status != HC_OK)
        return status;
    ffn_run run = {.a = args, .p = hc_primitives_get()};
    if (!run.p)
        return HC_ERR_UNSUPPORTED;
    run.row_bytes = args->d * hc_dtype_bytes(args->dtype);
    run.gate_bytes = run.row_bytes + (args->bias_offset ? 4 : 0);
    run.fired_bytes = run.row_bytes * (args->up_offset >= 0 ? 2 : 1);
    hc_pool_run(args->n_ids ? pool : NULL, ffn_chunk, &run, args->n_chunks);
    /* Partial sums lie in the caches of the threads that made them: below some 64k floats in all,
     * fetching them costs less than handing the work over. */
    hc_pool_run(args->n_ids && args->batch * args->d * args->n_chunks >= 65536 ? pool : NULL,
                ffn_reduce, &run, args->batch * ((args->d + REDUCE - 1) / REDUCE));
    args->gate_rows = args->up_down_rows = args->bytes = 0;
    for (int32_t c = 0; c < args->n_chunks; c++) {
        args->gate_rows += args->work_C[c * 8 + GATE_ROWS];
        args->up_down_rows += args->work_C[c * 8 + UP_DOWN_ROWS];
        args->bytes += args->work_C[c * 8 + BYTES];
    }
    return HC_OK;
}
