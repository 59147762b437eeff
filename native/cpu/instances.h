/* cpu/instances.h - what the instruction sets have alike: one function a dtype, and counted signs.
 *
 * An instruction set's file defines dot_any, dot_batch_any and axpy_any, inlined with a constant
 * dtype; HC_TABLE makes the entries of its table out of them, compiled for TARGET, and the table.
 */
#ifndef HOTCOLD_CPU_INSTANCES_H
#define HOTCOLD_CPU_INSTANCES_H
#include "core/internal.h"

#include <string.h>

#define ALWAYS static inline __attribute__((always_inline))

#define HC_INSTANCE(TARGET, suffix, dtype)                                                         \
    static TARGET void dot_##suffix(const void *const *rows, const void *const *ahead, int64_t n,  \
                                    const float *x, int64_t d, int64_t scales, float *out) {       \
        dot_any(rows, ahead, n, x, d, out, scales, dtype);                                         \
    }                                                                                              \
    static TARGET void dot_batch_##suffix(const void *const *rows, int64_t n,                      \
                                          const float *const *xs, int32_t n_x, int64_t d,          \
                                          int64_t scales, float *out) {                            \
        dot_batch_any(rows, n, xs, n_x, d, out, scales, dtype);                                    \
    }                                                                                              \
    static TARGET void axpy_##suffix(const void *const *rows, const void *const *ahead,            \
                                     const float *c, int64_t n, int64_t d, int64_t scales,         \
                                     float *y) {                                                   \
        axpy_any(rows, ahead, c, n, d, y, scales, dtype);                                          \
    }
/* The functions a dtype, and the table that names them. */
#define HC_TABLE(TARGET, variant, is_supported, max_of, exp_sum_of, sign_count_of)                 \
    HC_INSTANCE(TARGET, f32, HC_F32)                                                               \
    HC_INSTANCE(TARGET, f16, HC_F16)                                                               \
    HC_INSTANCE(TARGET, bf16, HC_BF16)                                                             \
    HC_INSTANCE(TARGET, i8, HC_I8)                                                                 \
    const hc_primitives hc_primitives_##variant = {                                                \
        .name = #variant,                                                                          \
        .supported = is_supported,                                                                 \
        .dot = {dot_f32, dot_f16, dot_bf16, dot_i8},                                               \
        .dot_batch = {dot_batch_f32, dot_batch_f16, dot_batch_bf16, dot_batch_i8},                 \
        .axpy = {axpy_f32, axpy_f16, axpy_bf16, axpy_i8},                                          \
        .max = max_of,                                                                             \
        .exp_sum = exp_sum_of,                                                                     \
        .sign_count = sign_count_of,                                                               \
    };

/* Weight i of a row; n, rows and dtype are constants where the files of this folder call what is
 * inlined, so arrays of registers stay in registers. */
ALWAYS const char *at(const void *row, int64_t i, int dtype) {
    return (const char *)row + i * hc_formats[dtype].bytes;
}

/* Weights of a cache line. */
ALWAYS int64_t of_line(int dtype) {
    return HC_CACHE_LINE / hc_formats[dtype].bytes;
}

/* The scale, binary16, of weight i's group. */
ALWAYS uint16_t scale_bits(const void *row, int64_t i, int64_t scales) {
    uint16_t bits;
    memcpy(&bits, (const char *)row + scales + i / HC_GROUP * 2, sizeof bits);
    return bits;
}

/* out[i] = sum over planes p of popcount(row i ^ plane p) << p, word by word.
 * Inlined into each variant's function, where `popcount` becomes what that target has. 64-bit
 * words, whole numbers: the same result everywhere. A row (80 words at d 5120) stays in L1 for
 * its planes. */
ALWAYS void count_signs(const uint64_t *rows, int64_t n, const uint64_t *planes, int32_t n_planes,
                        int64_t words, int64_t *out) {
    for (int64_t i = 0; i < n; i++, rows += words) {
        int64_t sum = 0;
        for (int32_t p = 0; p < n_planes; p++) {
            int64_t count = 0;
            for (int64_t w = 0; w < words; w++)
                count += __builtin_popcountll(rows[w] ^ planes[p * words + w]);
            sum += count << p;
        }
        out[i] = sum;
    }
}
#endif
