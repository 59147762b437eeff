/* ops/ffn.c - the neuron-aware operator: a sparse feed-forward layer over an id list.
 *
 *   gated, record i:  | gate row g_i | up row u_i | down column d_i |
 *                     y = sum over listed i of  act(g_i . x) * (u_i . x) * d_i
 *   plain, record i:  | gate row g_i (of fc1) | down column d_i (of fc2) | bias b_i, fp32 |
 *                     y = sum over listed i of  act(g_i . x + b_i) * d_i
 *
 * act is a row of abi/activations.h. Two phases, a run of the pool each. First the factors of the
 * down columns, the list cut by position in pieces of even length; then the sum, cut by columns: a
 * thread adds its columns of every down column that fired, in the order of the list (but none whose
 * factor a ReLU on up makes 0). So there are no partial sums to clear, store and add up, no piece is
 * longer than another, and the result depends neither on the number of pieces nor on the batch.
 *
 * A neuron that fires: 6 d FLOPs on 6 d bytes in fp16 (plain: 4 d on 4 d); another: a third of both
 * (plain: half). That is 1 FLOP a byte for one token, so what counts is bytes not read, then reads in
 * flight.
 *
 * Measured on one core of a 2-core Intel Xeon (Sapphire Rapids) shared with other work, 2026-11-21,
 * fp16, records from memory, plain stream read in the same run 15-17 GB/s:
 *                                                            d 320, 1280 gates   d 4096, 1100 listed
 *   v1 gates of 32 neurons, then fired up rows, down columns   8.0 GB/s            11.3 GB/s
 *   v3 and up, then down rows prefetched as one list           9.7                 13.6
 *   v4 and gates of 128 neurons at once                        9.9                 13.3
 * `hotcold bench kernels --d 4096 --density 10 --samples 101`, v4 with AVX-512 v5, as a share of
 * reading records of 24 KB alone, one core: best calls 0.88 of 16.5 GB/s, two cores: 0.88 of 30.5.
 *
 * Many threads: 14 of 16 cores of an H100's host, lists of records in huge pages, GB/s; before them
 * what reading the same records alone gave in the same minute (2026-11-22, two runs, medians of 200):
 *                                              read alone   v5 chunks by id   v6 pieces, columns
 *   d 7168 without up rows, 300 fired             104-125        71-77             80-107
 *   d 5120, 300 and 900 fired                     104-142        76-98             83-110
 * v5 cut the list by neuron id in 28 chunks with a partial sum each: uneven lists, 28 KB to clear,
 * write and add a chunk. v7 adds up a thread's columns as one list, not piece by piece, short ones in
 * registers (avx512.c). Microseconds of the second phase and of the first beside it, d 7168, 344 fired,
 * each pair in one run, the runs in other sittings:
 *                                              v6 67 : 45, in the caches 34 : 19
 *                                              v7 85 : 84, in the caches 19 : 46
 *
 * Oracle: numpy in float64, tests/native/test_ffn.py and test_relu_ffn.py.
 */
#include "core/internal.h"

#include <string.h>

#define SINGLE     128    /* neurons whose gates are evaluated before their up rows: one token */
#define GROUP      32     /* the same in a batch */
#define AHEAD      4      /* rows the prefetch runs ahead */
#define PIECES     256    /* of either phase, at most */
#define TASK_BYTES 262144 /* of a piece, where a thread has more than one: about 20 us of reading */
#define MAX_PIECES 4      /* pieces of the list a thread */
#define COLUMNS    128    /* of a piece of the sum, at least */

typedef struct {                /* what a piece of the list leaves for the sum */
    _Alignas(64) int64_t begin; /* of the piece; what the sum takes is compacted there */
    int64_t kept;
    int64_t gate_rows, up_down_rows, bytes;
} piece;

typedef struct {
    hc_ffn_args *a;
    const hc_primitives *p;
    int64_t size;       /* of a weight */
    int64_t gate_bytes; /* gate row and bias */
    int64_t row_bytes;  /* up row or down column */
    int64_t pieces, columns;
    piece *piece_P;
    int32_t *entry_K; /* positions in the list of what has a factor */
    uint32_t *mask_K; /* a batch: for which tokens */
    float *c_KB;      /* and which; one token: compacted as entry_K */
} ffn_run;

static const char *record(const hc_ffn_args *a, int64_t k) {
    return hc_ffn_record(a, k);
}

/* Pre-activation of entry k from its gate row's sum. */
static float biased(const hc_ffn_args *a, int64_t k, float sum) {
    return a->record.bias ? sum + *(const float *)(record(a, k) + a->record.bias) : sum;
}

/* One token: which entries of a group ask for it, and their pre-activations; how many. */
static int64_t single_gates(const ffn_run *run, int64_t begin, int64_t end, piece *piece,
                            int32_t *entry, float *gate) {
    const hc_ffn_args *a = run->a;
    const void *rows[SINGLE + AHEAD];
    int64_t n = 0;
    for (int64_t k = begin; k < end; k++)
        if (!a->members || a->members[k] & 1)
            entry[n++] = (int32_t)k;
    if (a->gate_KB) {
        for (int64_t i = 0; i < n; i++)
            gate[i] = a->gate_KB[entry[i]];
        return n;
    }
    if (n <= 0)
        return 0;
    for (int64_t i = 0; i < n && a->record.bias; i++) /* a line of its own */
        __builtin_prefetch(record(a, entry[i]) + a->record.bias);
    /* AHEAD rows more than there are, the last one again: the primitive prefetches rows +
     * AHEAD. */
    for (int64_t i = 0; i < n + AHEAD; i++)
        rows[i] = record(a, entry[i < n ? i : n - 1]) + a->record.gate;
    run->p->dot[a->record.dtype](rows, rows + AHEAD, n, a->x_BD, a->d, a->record.scales, gate);
    for (int64_t i = 0; i < n && a->record.bias; i++)
        gate[i] = biased(a, entry[i], gate[i]);
    piece->gate_rows += n;
    piece->bytes += n * run->gate_bytes;
    return n;
}

/* One token: gates of a group, then up rows of those that fired. While four rows are read the next
 * four are prefetched.
 * Entries are appended to the piece's own part of entry_K and c_KB, which begins at the piece's
 * first position in the list: pieces never meet, and no lock is needed. */
static void group_single(const ffn_run *run, int64_t begin, int64_t end, piece *piece) {
    const hc_ffn_args *a = run->a;
    const void *rows[SINGLE + AHEAD];
    float gate[SINGLE], up[SINGLE];
    int32_t entry[SINGLE], *to = run->entry_K + piece->begin + piece->kept;
    float *c = run->c_KB + piece->begin + piece->kept;
    const int64_t n = single_gates(run, begin, end, piece, entry, gate);
    const int32_t activation = a->activation, gated = a->record.up >= 0;
    const float threshold = a->activation_threshold;
    int64_t fired = 0, kept = 0;
    for (int64_t i = 0; i < n; i++)
        if (hc_fires(activation, gate[i], threshold)) {
            to[fired] = entry[i];
            c[fired++] = gate[i];
        }
    if (!fired)
        return;
    /* Ids are unique in a list, so no other thread counts this neuron. */
    for (int64_t i = 0; i < fired && a->fired_N; i++)
        a->fired_N[a->ids[to[i]]]++;
    if (gated) {
        for (int64_t i = 0; i < fired + AHEAD; i++)
            rows[i] = record(a, to[i < fired ? i : fired - 1]) + a->record.up;
        run->p->dot[a->record.dtype](rows, rows + AHEAD, fired, a->x_BD, a->d, a->record.scales,
                                     up);
        piece->bytes += fired * run->row_bytes;
    }
    for (int64_t i = 0; i < fired; i++) {
        const float factor = hc_factor(activation, c[i], gated ? up[i] : 1);
        to[kept] = to[i], c[kept] = factor;
        kept += !hc_both(activation) || factor != 0;
    }
    piece->kept += kept;
    piece->up_down_rows += fired;
    piece->bytes += kept * run->row_bytes;
}

/* Rows' sums for those tokens of x that are in mask, in ascending order. */
static int32_t dot_masked(const ffn_run *run, const void *row, uint32_t mask, float *out) {
    const float *xs[HC_MAX_BATCH];
    int32_t n = 0;
    for (; mask; mask &= mask - 1)
        xs[n++] = run->a->x_BD + __builtin_ctz(mask) * run->a->d;
    if (n)
        run->p->dot_batch[run->a->record.dtype](&row, 1, xs, n, run->a->d, run->a->record.scales,
                                                out);
    return n;
}

/* A batch, first half: which tokens fire each neuron of the group, and their pre-activations.
 * Three sources of pre-activations: given ones (gate_KB); one dense product of the whole group,
 * where all tokens ask for all neurons; or row by row for the tokens that ask. */
static void group_gates(const ffn_run *run, int64_t begin, int64_t n, piece *piece,
                        float gate[GROUP][HC_MAX_BATCH], uint32_t fired[GROUP]) {
    const hc_ffn_args *a = run->a;
    const uint32_t all = (uint32_t)((1ull << a->batch) - 1);
    const int32_t activation = a->activation;
    const float threshold = a->activation_threshold;
    const void *rows[GROUP];
    const float *xs[HC_MAX_BATCH];
    float dense[GROUP * HC_MAX_BATCH], some[HC_MAX_BATCH];
    if (!a->gate_KB && !a->members) {
        for (int64_t i = 0; i < n; i++)
            rows[i] = record(a, begin + i) + a->record.gate;
        for (int32_t t = 0; t < a->batch; t++)
            xs[t] = a->x_BD + t * a->d;
        run->p->dot_batch[a->record.dtype](rows, n, xs, a->batch, a->d, a->record.scales, dense);
    }
    for (int64_t i = 0; i < n; i++) {
        const uint32_t members = a->members ? a->members[begin + i] & all : all;
        const float *values =
            a->gate_KB ? a->gate_KB + (begin + i) * a->batch : dense + i * a->batch;
        if (!a->gate_KB && a->members) {
            dot_masked(run, record(a, begin + i) + a->record.gate, members, some);
            values = some;
        }
        if (!a->gate_KB) {
            piece->gate_rows += __builtin_popcount(members);
            piece->bytes += members ? run->gate_bytes : 0;
        }
        fired[i] = 0;
        int32_t next = 0;
        for (uint32_t rest = members; rest; rest &= rest - 1) {
            const int32_t t = __builtin_ctz(rest);
            float value = values == some ? some[next++] : values[t];
            if (!a->gate_KB)
                value = biased(a, begin + i, value);
            /* Entries of tokens that did not ask are never read: fired masks them. */
            gate[i][t] = value;
            fired[i] |= (uint32_t)hc_fires(activation, value, threshold) << t;
        }
    }
}

/* A batch: gates of a group, then up rows of what fired; each row is read once for all tokens. */
static void group_batch(const ffn_run *run, int64_t begin, int64_t end, piece *piece) {
    const hc_ffn_args *a = run->a;
    float gate[GROUP][HC_MAX_BATCH], up[HC_MAX_BATCH];
    uint32_t fired[GROUP];
    const int32_t activation = a->activation, gated = a->record.up >= 0;
    group_gates(run, begin, end - begin, piece, gate, fired);
    for (int64_t i = 0; i < end - begin; i++) {
        if (!fired[i])
            continue;
        const int32_t m = __builtin_popcount(fired[i]);
        piece->up_down_rows += m;
        if (a->fired_N)
            a->fired_N[a->ids[begin + i]] += m;
        if (gated) {
            dot_masked(run, record(a, begin + i) + a->record.up, fired[i], up);
            piece->bytes += run->row_bytes;
        }
        uint32_t kept = hc_both(activation) ? 0 : fired[i];
        int32_t next = 0;
        for (uint32_t rest = fired[i]; rest; rest &= rest - 1) {
            const int32_t t = __builtin_ctz(rest);
            const float factor = hc_factor(activation, gate[i][t], gated ? up[next++] : 1);
            gate[i][t] = factor;
            if (hc_both(activation))
                kept |= (uint32_t)(factor != 0) << t;
        }
        if (!kept)
            continue;
        const int64_t to = piece->begin + piece->kept++;
        run->entry_K[to] = (int32_t)(begin + i);
        run->mask_K[to] = kept;
        /* The whole row, undefined for tokens without a factor: mask_K says which have one. */
        memcpy(run->c_KB + to * a->batch, gate[i], sizeof(float) * (size_t)a->batch);
        piece->bytes += run->row_bytes;
    }
}

/* First phase: the factors of a piece of the list. */
static void factors(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const ffn_run *run = context;
    const hc_ffn_args *a = run->a;
    const int64_t begin = a->n_ids * task / run->pieces, end = a->n_ids * (task + 1) / run->pieces;
    piece made = {.begin = begin};
    const int64_t step = a->batch == 1 ? SINGLE : GROUP;
    for (int64_t k = begin; k < end; k += step) {
        const int64_t stop = end - k < step ? end : k + step;
        if (a->batch == 1)
            group_single(run, k, stop, &made);
        else
            group_batch(run, k, stop, &made);
    }
    run->piece_P[task] = made;
}

/* Entry k's down column, from one of its columns on. */
static const char *down(const ffn_run *run, int64_t k, int64_t column) {
    return record(run->a, k) + run->a->record.down + column * run->size;
}

/* Bytes from there to the scale of its group: cuts are multiples of HC_GROUP. */
static int64_t down_scales(const ffn_run *run, int64_t column) {
    const hc_record *r = &run->a->record;
    return r->scales ? r->scales - column * run->size + hc_scale_bytes(r->dtype, column) : 0;
}

/* A batch: some columns of n (at most GROUP) down columns, for every token with a factor for one.
 * Token by token over the group's rows, which stay in the cache for the next token. A token's
 * own neurons are added in the list's order, as alone. */
static void add_down_batch(const ffn_run *run, int64_t k, int64_t n, int64_t column,
                           int64_t columns) {
    const hc_ffn_args *a = run->a;
    uint32_t any = 0;
    for (int64_t i = 0; i < n; i++)
        any |= run->mask_K[k + i];
    for (; any; any &= any - 1) {
        const int32_t t = __builtin_ctz(any);
        const void *rows[GROUP + AHEAD];
        float c[GROUP];
        int64_t m = 0;
        for (int64_t i = 0; i < n; i++)
            if (run->mask_K[k + i] >> t & 1) {
                rows[m] = down(run, run->entry_K[k + i], column);
                c[m++] = run->c_KB[(k + i) * a->batch + t];
            }
        for (int64_t i = 0; i < AHEAD; i++)
            rows[m + i] = rows[m - 1];
        run->p->axpy[a->record.dtype](rows, rows + AHEAD, c, m, columns, down_scales(run, column),
                                      a->y_BD + t * a->d + column);
    }
}

/* One token: some columns over the whole list, SINGLE rows and the next AHEAD at a time.
 * Pieces are joined to one list: rows are handed over in runs of SINGLE, with the next AHEAD
 * kept for the following run, so that the prefetch has no gap at a piece's end. */
static void sum_single(const ffn_run *run, int64_t column, int64_t columns) {
    const hc_ffn_args *a = run->a;
    const void *rows[SINGLE + 2 * AHEAD];
    const int64_t scales = down_scales(run, column);
    float c[SINGLE + AHEAD], *y = a->y_BD + column;
    int64_t n = 0;
    for (int64_t i = 0; i < run->pieces; i++) {
        const int64_t end = run->piece_P[i].begin + run->piece_P[i].kept;
        for (int64_t k = run->piece_P[i].begin; k < end; k++) {
            rows[n] = down(run, run->entry_K[k], column);
            c[n++] = run->c_KB[k];
            if (n < SINGLE + AHEAD)
                continue;
            run->p->axpy[a->record.dtype](rows, rows + AHEAD, c, SINGLE, columns, scales, y);
            memcpy(rows, rows + SINGLE, sizeof *rows * AHEAD);
            memcpy(c, c + SINGLE, sizeof *c * AHEAD);
            n = AHEAD;
        }
    }
    if (!n)
        return;
    for (int64_t i = 0; i < AHEAD; i++)
        rows[n + i] = rows[n - 1];
    run->p->axpy[a->record.dtype](rows, rows + AHEAD, c, n, columns, scales, y);
}

/* Second phase: some columns of the sum, over the whole list.
 * Runs when all factors are there: hc_pool_run of the first phase has returned. Columns are a
 * task's own, so nobody else writes them. */
static void sum_columns(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const ffn_run *run = context;
    const hc_ffn_args *a = run->a;
    const int64_t column = task * run->columns;
    const int64_t columns = a->d - column < run->columns ? a->d - column : run->columns;
    for (int32_t t = 0; t < a->batch; t++)
        memset(a->y_BD + t * a->d + column, 0, sizeof(float) * (size_t)columns);
    if (a->batch == 1) {
        sum_single(run, column, columns);
        return;
    }
    for (int64_t i = 0; i < run->pieces; i++) {
        const int64_t end = run->piece_P[i].begin + run->piece_P[i].kept;
        for (int64_t k = run->piece_P[i].begin; k < end; k += GROUP)
            add_down_batch(run, k, end - k < GROUP ? end - k : GROUP, column, columns);
    }
}

static int64_t lines(int64_t bytes) {
    return (bytes + 63) / 64 * 64;
}

/* Pieces, entry_K, mask_K, c_KB: each on a line of its own, in the order in which hc_ffn carves
 * them. */
int64_t hc_ffn_scratch_bytes(int64_t n_ids, int32_t batch) {
    return PIECES * (int64_t)sizeof(piece) + 2 * lines(4 * n_ids) + lines(4 * n_ids * batch);
}

/* Pieces of the list: as many for every thread, several where that leaves them long enough, since a
 * thread may be kept from running. Columns are cut once a thread: shorter reads of a row are slower. */
hc_ffn_cut hc_ffn_cut_of(const hc_ffn_args *a, int64_t threads) {
    const int64_t bytes = a->n_ids * hc_row_bytes(a->record.dtype, a->d);
    const int64_t each = bytes / (TASK_BYTES * threads);
    const int64_t pieces = threads * (each < 1 ? 1 : each < MAX_PIECES ? each : MAX_PIECES);
    const int64_t columns = ((a->d + threads - 1) / threads + 63) / 64 * 64;
    return (hc_ffn_cut){pieces < PIECES ? pieces : PIECES, columns > COLUMNS ? columns : COLUMNS};
}

hc_status hc_ffn(hc_ffn_args *args, hc_pool *pool) {
    const hc_status status = hc_ffn_check(args);
    if (status != HC_OK)
        return status;
    ffn_run run = {.a = args, .p = hc_primitives_get(), .size = hc_dtype_bytes(args->record.dtype)};
    if (!run.p)
        return HC_ERR_UNSUPPORTED;
    const int64_t n = args->n_ids;
    if (!n)
        pool = NULL; /* only y is cleared */
    run.row_bytes = hc_row_bytes(args->record.dtype, args->d);
    run.gate_bytes = run.row_bytes + (args->record.bias ? 4 : 0);
    char *scratch = args->scratch;
    run.piece_P = (piece *)scratch, scratch += PIECES * sizeof(piece);
    run.entry_K = (int32_t *)scratch, scratch += lines(4 * n);
    run.mask_K = (uint32_t *)scratch, scratch += lines(4 * n);
    run.c_KB = (float *)scratch;
    const int64_t threads = hc_pool_threads(pool);
    const hc_ffn_cut cut = hc_ffn_cut_of(args, threads);
    run.pieces = cut.pieces, run.columns = cut.columns;
    hc_pool_run(pool, factors, &run, run.pieces);
    args->gate_rows = args->up_down_rows = args->bytes = 0;
    for (int64_t i = 0; i < run.pieces; i++) {
        const piece *made = &run.piece_P[i];
        args->gate_rows += made->gate_rows;
        args->up_down_rows += made->up_down_rows;
        args->bytes += made->bytes;
    }
    hc_pool_run(pool, sum_columns, &run, (args->d + run.columns - 1) / run.columns);
    return HC_OK;
}
