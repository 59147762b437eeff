/* cpu/avx2_softmax.c - the AVX2 maximum and sum of exponentials behind softmax and sampling.
 *
 * exp: split the argument in n ln 2 + r, |r| <= ln 2 / 2, a Taylor polynomial of degree 7 in r, the
 * exponent n put in as bits; within 2 units in the last place of float64's exp. Eight partial sums.
 */
#include "cpu/avx2.h"

#if defined(__x86_64__)
#include <math.h>
#include <string.h>

AVX2 float hc_max_avx2(const float *x, int64_t n) {
    __m256 max = _mm256_set1_ps(-INFINITY), nan = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 v = _mm256_loadu_ps(x + i);
        max = _mm256_max_ps(max, v);
        /* max_ps returns its second operand where one is a NaN, so NaNs are looked for apart. */
        nan = _mm256_or_ps(nan, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    }
    float lane[8], best = -INFINITY;
    int bad = _mm256_movemask_ps(nan);
    _mm256_storeu_ps(lane, max);
    for (int k = 0; k < 8; k++)
        best = lane[k] > best ? lane[k] : best;
    for (; i < n; i++) {
        bad |= isnan(x[i]);
        best = x[i] > best ? x[i] : best;
    }
    return bad ? NAN : best;
}

/* exp for arguments <= 0 (to 2 units in the last place; 0 below -87.3, where floats end). */
INLINE __m256 exp8(__m256 v) {
    __m256 tiny = _mm256_cmp_ps(v, _mm256_set1_ps(-87.3f), _CMP_LT_OQ);
    v = _mm256_max_ps(_mm256_set1_ps(-87.3f), v);
    /* n = round(v / ln 2), and r = v - n ln 2 with ln 2 in two parts: the first has trailing
     * zeros, so its product with n is exact. */
    __m256 n = _mm256_round_ps(_mm256_mul_ps(v, _mm256_set1_ps(0x1.715476p+0f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e400p-1f), v);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
    __m256 p = _mm256_set1_ps(1.0f / 5040);
    static const float taylor[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    /* Horner from the highest term down. */
    UNROLL for (int k = 0; k < 7; k++) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(taylor[k]));
    __m256i power =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(tiny, _mm256_mul_ps(p, _mm256_castsi256_ps(power)));
}

/* The last n mod 8 go through the same eight lanes, padded with -infinity, whose exp is 0: the
 * order of the sum is one for every n, and `out` is never written past n. */
AVX2 float hc_exp_sum_avx2(const float *x, int64_t n, float max, float scale, float *out) {
    __m256 sum = _mm256_setzero_ps(), m = _mm256_set1_ps(max), s = _mm256_set1_ps(scale);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 term = exp8(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), m), s));
        sum = _mm256_add_ps(sum, term);
        if (out)
            _mm256_storeu_ps(out + i, term);
    }
    if (i < n) {
        float rest[8];
        for (int k = 0; k < 8; k++)
            rest[k] = i + k < n ? (x[i + k] - max) * scale : -INFINITY;
        __m256 term = exp8(_mm256_loadu_ps(rest));
        sum = _mm256_add_ps(sum, term);
        _mm256_storeu_ps(rest, term);
        if (out)
            memcpy(out + i, rest, sizeof(float) * (size_t)(n - i));
    }
    return sum8(sum);
}
#endif
