/* cpu/ref.c - the primitives in plain C: the oracle of the other variants, and what runs where
 * there is no AVX2.
 *
 * A dot has sixteen partial sums (element j goes to sum j mod 16), added in order at the end, and
 * the last d mod 16 elements follow one by one: the compiler may turn the sixteen into vectors, but
 * the order is written here. One product and one addition an element, each rounded.
 */
#include "cpu/instances.h"

#include <math.h>
#include <string.h>

#define LANES 16

static inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* binary16 to float, exact for every input: subnormals are normalised by the multiplication.
 * 2^112 moves the exponent from binary16's bias (15) to binary32's (127). */
static inline float half_to_float(uint16_t half) {
    uint32_t magnitude = half & 0x7fffu;
    float value = float_of(magnitude << 13) * 0x1p112f;
    if (magnitude >= 0x7c00u)
        value = float_of(magnitude << 13 | 0x7f800000u);
    return half & 0x8000u ? -value : value;
}

/* dtype is a constant where this is inlined, so no branch is left in the loops. */
ALWAYS float load(const void *row, int64_t i, int64_t scales, int dtype) {
    if (dtype == HC_F32)
        return ((const float *)row)[i];
    if (dtype == HC_I8)
        return (float)((const int8_t *)row)[i] * half_to_float(scale_bits(row, i, scales));
    uint16_t bits = ((const uint16_t *)row)[i];
    return dtype == HC_F16 ? half_to_float(bits) : float_of((uint32_t)bits << 16);
}

ALWAYS float dot_one(const void *row, const float *x, int64_t d, int64_t scales, int dtype) {
    float lane[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] += load(row, i + j, scales, dtype) * x[i + j];
    for (int j = 0; j < LANES; j++)
        sum += lane[j];
    for (; i < d; i++)
        sum += load(row, i, scales, dtype) * x[i];
    return sum;
}

ALWAYS void dot_any(const void *const *rows, const void *const *ahead, int64_t n, const float *x,
                    int64_t d, float *out, int64_t scales, int dtype) {
    (void)ahead;
    for (int64_t i = 0; i < n; i++)
        out[i] = dot_one(rows[i], x, d, scales, dtype);
}

/* A batch is one dot a row and token: the same order as alone, by construction. */
ALWAYS void dot_batch_any(const void *const *rows, int64_t n, const float *const *xs, int32_t n_x,
                          int64_t d, float *out, int64_t scales, int dtype) {
    for (int64_t i = 0; i < n; i++)
        for (int32_t t = 0; t < n_x; t++)
            out[i * n_x + t] = dot_one(rows[i], xs[t], d, scales, dtype);
}

/* Built with -ffp-contract=off: product and sum are rounded apart on every machine. */
ALWAYS void axpy_any(const void *const *rows, const void *const *ahead, const float *c, int64_t n,
                     int64_t d, float *y, int64_t scales, int dtype) {
    (void)ahead;
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = 0; i < d; i++)
            y[i] += c[k] * load(rows[k], i, scales, dtype);
}

/* A NaN must not be lost in comparisons, which are false for it: sampling refuses damaged
 * logits. */
static float max_ref(const float *x, int64_t n) {
    float max = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        if (isnan(x[i]))
            return NAN;
        max = x[i] > max ? x[i] : max;
    }
    return max;
}

static float exp_sum_ref(const float *x, int64_t n, float max, float scale, float *out) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) {
        float term = expf((x[i] - max) * scale);
        sum += term;
        if (out)
            out[i] = term;
    }
    return sum;
}

static int supported(void) {
    return 1;
}

HC_TABLE(, ref, supported, max_ref, exp_sum_ref, count_signs)
