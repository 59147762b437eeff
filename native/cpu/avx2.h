/* cpu/avx2.h - what the files of AVX2 share, and what avx512.c takes of them. */
#ifndef HOTCOLD_CPU_AVX2_H
#define HOTCOLD_CPU_AVX2_H
#include "cpu/instances.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#ifndef INLINE
#define INLINE ALWAYS AVX2
#define UNROLL _Pragma("GCC unroll 8")
#endif

float hc_max_avx2(const float *x, int64_t n); /* avx2_softmax.c */
float hc_exp_sum_avx2(const float *x, int64_t n, float max, float scale, float *out);
void hc_sign_count_avx2(const uint64_t *rows, int64_t n, const uint64_t *planes, int32_t n_planes,
                        int64_t words, int64_t *out); /* avx2.c */

/* Folds 8 -> 4 -> 2 -> 1: halves first, then pairs. */
ALWAYS AVX2 float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
#endif
#endif
