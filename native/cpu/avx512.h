/* cpu/avx512.h - what avx512.c reads rows with: weights widened, their scales, and prefetches. */
#ifndef HOTCOLD_CPU_AVX512_H
#define HOTCOLD_CPU_AVX512_H
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) AVX512
#define UNROLL _Pragma("GCC unroll 24")
#include "cpu/avx2.h"

#if defined(__x86_64__)
#define SCALES 16  /* widened at once */
#define LEAD   512 /* weights of a long row that are prefetched before they are read */

/* bfloat16 is the upper half of a float: a shift. */
INLINE __m512 widen(__m256i half, int dtype) {
    if (dtype == HC_F16)
        return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

INLINE __m512 whole16(__m128i bytes) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

/* Of HC_I8 without their scale. */
INLINE __m512 load16(const void *row, int64_t i, int dtype) {
    const char *p = at(row, i, dtype);
    if (dtype == HC_F32)
        return _mm512_loadu_ps(p);
    if (dtype == HC_I8)
        return whole16(_mm_loadu_si128((const __m128i *)p));
    return widen(_mm256_loadu_si256((const __m256i *)p), dtype);
}

/* The elements of mask; zeros elsewhere, where nothing is read. */
INLINE __m512 load_some(const void *row, int64_t i, __mmask16 mask, int dtype) {
    const char *p = at(row, i, dtype);
    if (dtype == HC_F32)
        return _mm512_maskz_loadu_ps(mask, p);
    if (dtype == HC_I8)
        return whole16(_mm_maskz_loadu_epi8(mask, p));
    return widen(_mm256_maskz_loadu_epi16(mask, p), dtype);
}

/* The low n bits, 0 <= n < 16. */
INLINE __mmask16 first(int64_t n) {
    return (__mmask16)((1u << n) - 1);
}

/* Folds 16 -> 8 -> 4 -> 2 -> 1: halves first, then pairs. No reduce intrinsic: its order is the
 * compiler's. */
INLINE float sum16(__m512 v) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v),
                             _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
    return sum8(a);
}

/* ---- scales of HC_I8; for other dtypes nothing is left of this ---- */

/* Some scales of a row, widened SCALES at a time: one by one they cost as much as the weights. */
typedef struct {
    _Alignas(64) float of[SCALES];
} some_scales;

/* Those of the groups from weight i on, times c. */
INLINE void widen_scales(some_scales *to, const void *row, int64_t i, int64_t d, int64_t scales,
                         float c) {
    const int64_t left = (d - i + HC_GROUP - 1) / HC_GROUP;
    const __mmask16 mask = left < SCALES ? first(left) : (__mmask16)0xffff;
    const char *from = (const char *)row + scales + i / HC_GROUP * 2;
    const __m512 wide = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from));
    _mm512_store_ps(to->of, _mm512_mul_ps(wide, _mm512_set1_ps(c)));
}

/* n rows' scales times c (NULL: 1) of the groups of weights from i on, where a group begins. */
INLINE void new_scales(some_scales *some, const void *const *rows, int n, int64_t i, int64_t d,
                       int64_t scales, const float *c, __m512 *scale, int dtype) {
    if (dtype != HC_I8 || i % HC_GROUP)
        return;
    if (i % (SCALES * HC_GROUP) == 0)
        UNROLL for (int k = 0; k < n; k++)
            widen_scales(&some[k], rows[k], i, d, scales, c ? c[k] : 1);
    UNROLL for (int k = 0; k < n; k++) scale[k] = _mm512_set1_ps(some[k].of[i / HC_GROUP % SCALES]);
}

INLINE __m512 scaled(__m512 weights, __m512 scale, int dtype) {
    return dtype == HC_I8 ? _mm512_mul_ps(weights, scale) : weights;
}

/* The scale of weight i's group, alone. */
INLINE __m512 scale16(const void *row, int64_t i, int64_t scales, int dtype) {
    if (dtype != HC_I8)
        return _mm512_setzero_ps();
    return _mm512_cvtph_ps(_mm256_set1_epi16((short)scale_bits(row, i, scales)));
}

/* 32 weights of each of n rows, from i on, or 64 bytes.
 * Into L2 (T1), not L1: v5 against v2 in the header. 32 half weights are a line, floats take
 * two. */
INLINE void prefetch(const void *const *rows, int n, int64_t i, int dtype) {
    UNROLL for (int k = 0; k < n; k++) {
        _mm_prefetch(at(rows[k], i, dtype), _MM_HINT_T1);
        if (dtype == HC_F32)
            _mm_prefetch(at(rows[k], i + 16, dtype), _MM_HINT_T1);
    }
}

/* Weights that one prefetch covers, and those it runs ahead of a long row. */
INLINE int64_t stretch(int dtype) {
    return dtype == HC_I8 ? 64 : 32;
}
INLINE int64_t long_lead(int dtype) {
    return dtype == HC_I8 ? 6 * LEAD : LEAD;
}

/* Weights the prefetch runs ahead: LEAD of a long row, so that the first rows of a list have been
 * prefetched too (first_rows), else a whole row. */
INLINE int64_t lead_of(int64_t whole, int dtype) {
    return whole < 2 * long_lead(dtype) ? whole : long_lead(dtype);
}

/* The scales of n rows: they lie behind the weights, and are needed with the first of them. */
INLINE void prefetch_scales(const void *const *rows, int n, int64_t d, int64_t scales, int dtype) {
    for (int64_t at = 0; dtype == HC_I8 && at < hc_scale_bytes(HC_I8, d); at += HC_CACHE_LINE)
        UNROLL for (int k = 0; k < n; k++)
            _mm_prefetch((const char *)rows[k] + scales + at, _MM_HINT_T1);
}

INLINE void first_rows(const void *const *rows, int n, int64_t d, int64_t scales, int dtype) {
    const int64_t lead = long_lead(dtype);
    prefetch_scales(rows, n, d, scales, dtype);
    for (int64_t i = 0; d >= 2 * lead && i < lead; i += stretch(dtype))
        prefetch(rows, n, i, dtype);
}

/* While weights i of the rows are read.
 * Within the rows while there is something left of them, then the beginning of the next ones:
 * the stream of requests has no gap between two groups of rows. */
INLINE void prefetch_next(const void *const *rows, const void *const *ahead, int n, int64_t i,
                          int64_t whole, int dtype) {
    const int64_t to = i + lead_of(whole, dtype);
    if (i % stretch(dtype))
        return;
    if (to < whole)
        prefetch(rows, n, to, dtype);
    else
        prefetch(ahead, n, to - whole, dtype);
}
#endif
#endif
