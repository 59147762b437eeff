/* ops/sign.c - scores of a gate matrix of which only the signs are read: one bit a weight.
 *
 *   signs_NW  row i: | word 0: weights 0-63 | word 1 | ... |   bit set: the weight is positive
 *   planes    of a token: input_bits rows of the same W words
 *
 * An input v = x * column is cut in 2^P - 1 steps of m / 2^P around zero, m being its largest
 * magnitude: q = 2 u - (2^P - 1) with u = floor(v * 2^(P-1) / m) + 2^(P-1), 0 <= u < 2^P. Bit p of
 * every u is plane p, so that with s = +-1 for the signs of a row
 *
 *   sum_d s_d q_d = D (2^P - 1) - 2 sum_p 2^p popcount(row ^ plane_p)
 *
 * in whole numbers: no rounding, hence the same scores for every CPU variant, thread count and batch,
 * and in NumPy. P = 1 is the XNOR product of two sign vectors (SparseInfer, 2024).
 *
 * A row: W * 8 bytes, 1/16 of fp16 (and 8 bytes of scale and bias), W * P words of xor, popcount, add.
 *
 * Oracle: SignLayer (runtime/predictors/predictor_forms.py), equal to the last bit in
 * tests/native/test_sign.py.
 */
#include "core/internal.h"

#include <math.h>
#include <string.h>

#define BLOCK_BYTES 16384 /* signs of a task, at least */
#define GROUP       64    /* rows whose counts wait on the stack */

typedef struct {
    const hc_sign_args *a;
    const hc_primitives *p;
    int64_t words, block; /* rows of a task */
    float step_B[HC_MAX_BATCH];
} sign_run;

static float column(const hc_sign_args *a, int64_t d) {
    return a->column_D ? a->column_D[d] : 1.0f;
}

/* Cut a token in bit planes; its step.
 * Bits past d stay 0 in planes, and are 0 in signs: they differ nowhere. The division by
 * `largest` is one multiplication by its inverse, here and in the reference. */
static float pack(const hc_sign_args *a, const float *x, uint64_t *planes, int64_t words) {
    const float half = (float)(1 << (a->input_bits - 1)), top = 2 * half - 1;
    float largest = 0;
    for (int64_t d = 0; d < a->d; d++) {
        const float size = fabsf(x[d] * column(a, d));
        largest = size > largest ? size : largest;
    }
    const float inverse = largest > 0 ? half / largest : 0;
    memset(planes, 0, sizeof(uint64_t) * (size_t)(words * a->input_bits));
    for (int64_t d = 0; d < a->d; d++) {
        const float level = floorf(x[d] * column(a, d) * inverse) + half;
        const uint64_t u = (uint64_t)fminf(fmaxf(level, 0), top); /* not a number: 0 */
        for (int32_t p = 0; p < a->input_bits; p++)
            planes[p * words + d / 64] |= (u >> p & 1) << d % 64;
    }
    return largest / (2 * half);
}

/* Tokens inside groups of rows: 64 rows of signs (40 KB at d 5120) are read from memory once
 * and serve every token from the cache. */
static void sign_block(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const sign_run *run = context;
    const hc_sign_args *a = run->a;
    const int64_t whole = a->d * ((1 << a->input_bits) - 1);
    const int64_t begin = task * run->block;
    const int64_t end = begin + run->block < a->n ? begin + run->block : a->n;
    int64_t counts[GROUP];
    for (int64_t r = begin; r < end; r += GROUP) {
        const int64_t n = end - r < GROUP ? end - r : GROUP;
        for (int32_t b = 0; b < a->batch; b++) {
            const uint64_t *planes = a->planes_BPW + b * a->input_bits * run->words;
            run->p->sign_count(a->signs_NW + r * run->words, n, planes, a->input_bits, run->words,
                               counts);
            float *scores = a->scores_BN + b * a->n + r;
            for (int64_t i = 0; i < n; i++) {
                /* Two roundings, in this order, in every implementation: the whole number times
                 * the step, times the row's scale; then the bias. */
                const float value = (float)(whole - 2 * counts[i]) * run->step_B[b];
                scores[i] = value * a->scale_N[r + i];
                if (a->bias_N)
                    scores[i] += a->bias_N[r + i];
            }
        }
    }
}

static hc_status check_args(const hc_sign_args *a) {
    if (!a || !a->signs_NW || !a->scale_N || !a->x_BD || !a->scores_BN || !a->planes_BPW)
        return hc_fail(HC_ERR_ARGUMENT, "sign: signs, scales, x, scores and planes must be given");
    if (a->batch < 1 || a->batch > HC_MAX_BATCH || a->input_bits < 1 || a->input_bits > 8)
        return hc_fail(HC_ERR_ARGUMENT, "sign: batch %d of %d bits; 1 to %d of 1 to 8 are possible",
                       a->batch, a->input_bits, HC_MAX_BATCH);
    if (a->d < 1 || a->d > HC_MAX_D || a->n < 0 || a->n > INT32_MAX)
        return hc_fail(HC_ERR_ARGUMENT, "sign: %lld rows of %lld; at most %d of 1 to %d",
                       (long long)a->n, (long long)a->d, INT32_MAX, HC_MAX_D);
    return HC_OK;
}

hc_status hc_sign(const hc_sign_args *a, hc_pool *pool) {
    hc_status status = check_args(a);
    if (status != HC_OK)
        return status;
    sign_run run = {.a = a, .p = hc_primitives_get(), .words = (a->d + 63) / 64};
    if (!run.p)
        return HC_ERR_UNSUPPORTED;
    for (int32_t b = 0; b < a->batch; b++)
        run.step_B[b] =
            pack(a, a->x_BD + b * a->d, a->planes_BPW + b * a->input_bits * run.words, run.words);
    const int64_t even = a->n / (hc_pool_threads(pool) * 8);
    const int64_t least = BLOCK_BYTES / (8 * run.words);
    run.block = ((even > least ? even : least) + GROUP) / GROUP * GROUP;
    hc_pool_run(pool, sign_block, &run, (a->n + run.block - 1) / run.block);
    return HC_OK;
}
