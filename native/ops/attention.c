/* ops/attention.c - decode attention with grouped queries over fp32 caches.
 *
 *   k_cache, v_cache: [slot][kv_heads][context][head_dim]; a head's positions are contiguous.
 *
 * A task is one head of one row: scores = q . k / sqrt(head_dim), softmax with the maximum taken
 * off, then the weighted sum of v. 8 bytes and 4 FLOPs a position and element, so it is bound by
 * reading the cache. Positions are visited in ascending order: a row's result depends on nothing
 * but its own position.
 *
 * Measured on one core of a 2-core Intel Xeon (Sapphire Rapids) under load, 2026-11-22, best of 80,
 * 32 heads of 128, 1024 positions, caches from memory; reading alone 17-19 GB/s in the same runs:
 *   v1 no prefetch                              AVX2 16.1 GB/s   AVX-512 13.9
 *   v2 eight positions ahead prefetched (in use)     15.7                15.0
 * Oracle: numpy in float64, tests/native/test_token_kernels.py.
 */
#include "core/internal.h"

#include <math.h>

#define GROUP 64 /* positions handed to the primitives at once */
#define AHEAD 8  /* positions the prefetch runs ahead (v2) */

typedef struct {
    const hc_attention_args *a;
    const hc_primitives *p;
} attention_run;

/* Point at positions [begin, begin + n) of a head's cache and at AHEAD more, none beyond the last. */
static void point(const void **rows, const float *cache, int64_t begin, int64_t n, int64_t last,
                  int64_t head_dim) {
    for (int64_t i = 0; i < n + AHEAD; i++)
        rows[i] = cache + (begin + i < last ? begin + i : last) * head_dim;
}

/* scores is this thread's own part of the caller's scratch: threads run one task at a time. */
static void attention_head(void *context, int64_t task, int32_t thread) {
    const attention_run *run = context;
    const hc_attention_args *a = run->a;
    const int64_t b = task / a->heads, head = task % a->heads, hd = a->head_dim;
    const int64_t slot = a->slot_B ? a->slot_B[b] : 0;
    /* Grouped queries: heads / kv_heads query heads read the same keys and values. */
    const int64_t kv_head = head / (a->heads / a->kv_heads);
    const int64_t n = hc_attended(a->window, a->position_B[b]);
    const int64_t first = (int64_t)a->position_B[b] + 1 - n;
    const int64_t base = ((slot * a->kv_heads + kv_head) * a->context + first) * hd;
    const float *q = a->q + b * a->q_stride + head * hd;
    float *scores = a->scores + thread * a->context;
    float *out = a->out + (b * a->heads + head) * hd;
    const void *rows[GROUP + AHEAD];
    for (int64_t i = 0; i < n; i += GROUP) {
        const int64_t m = n - i < GROUP ? n - i : GROUP;
        point(rows, a->k_cache + base, i, m, n - 1, hd);
        run->p->dot[HC_F32](rows, rows + AHEAD, m, q, hd, 0, scores + i);
    }
    /* softmax((q . k) scale) with the scale inside exp_sum: scale > 0, so the maximum is of the
     * same position. The division by the sum comes last, once an element. */
    const float max = run->p->max(scores, n), scale = 1.0f / sqrtf((float)hd);
    const float sum = run->p->exp_sum(scores, n, max, scale, scores);
    for (int64_t e = 0; e < hd; e++)
        out[e] = 0;
    for (int64_t i = 0; i < n; i += GROUP) {
        const int64_t m = n - i < GROUP ? n - i : GROUP;
        point(rows, a->v_cache + base, i, m, n - 1, hd);
        run->p->axpy[HC_F32](rows, rows + AHEAD, scores + i, m, hd, 0, out);
    }
    for (int64_t e = 0; e < hd; e++)
        out[e] /= sum;
}

static hc_status check_args(const hc_attention_args *a) {
    if (!a || !a->q || !a->k_cache || !a->v_cache || !a->position_B || !a->scores || !a->out)
        return hc_fail(HC_ERR_ARGUMENT,
                       "attention: q, caches, positions, scores and out must be given");
    if (a->batch < 1 || a->batch > HC_MAX_BATCH)
        return hc_fail(HC_ERR_ARGUMENT, "attention: batch %d; 1 to %d are possible", a->batch,
                       HC_MAX_BATCH);
    if (a->heads < 1 || a->kv_heads < 1 || a->heads % a->kv_heads || a->head_dim < 1 ||
        (int64_t)a->heads * a->head_dim > HC_MAX_D)
        return hc_fail(HC_ERR_ARGUMENT,
                       "attention: %d heads of %d on %d key heads, which must divide them",
                       a->heads, a->head_dim, a->kv_heads);
    if (a->context < 1 || a->context > INT32_MAX ||
        (a->batch > 1 && a->q_stride < (int64_t)a->heads * a->head_dim))
        return hc_fail(HC_ERR_ARGUMENT, "attention: context %lld, rows of q %lld floats apart",
                       (long long)a->context, (long long)a->q_stride);
    if (a->window < 0)
        return hc_fail(HC_ERR_ARGUMENT, "attention: window %lld; 0, of all positions, is the least",
                       (long long)a->window);
    for (int32_t b = 0; b < a->batch; b++) {
        if (a->position_B[b] < 0 || a->position_B[b] >= a->context)
            return hc_fail(HC_ERR_ARGUMENT, "attention: position %d of a context of %lld",
                           a->position_B[b], (long long)a->context);
        if (a->slot_B && a->slot_B[b] < 0)
            return hc_fail(HC_ERR_ARGUMENT, "attention: slot %d; 0 is the least", a->slot_B[b]);
    }
    return HC_OK;
}

hc_status hc_attention(const hc_attention_args *args, hc_pool *pool) {
    hc_status status = check_args(args);
    if (status != HC_OK)
        return status;
    attention_run run = {.a = args, .p = hc_primitives_get()};
    if (!run.p)
        return HC_ERR_UNSUPPORTED;
    int64_t work = 0;
    for (int32_t b = 0; b < args->batch; b++)
        work += hc_attended(args->window, args->position_B[b]) * args->heads * args->head_dim;
    /* Below 16k elements (some 2 us) handing work over costs more than it saves. */
    hc_pool_run(work >= 16384 ? pool : NULL, attention_head, &run,
                (int64_t)args->batch * args->heads);
    return HC_OK;
}
