/* cpu/avx2.c - the primitives with AVX2, FMA and F16C (eight floats a register, sixteen registers).
 *
 * The order of every dot: elements 0-7 of each 16 go to the eight sums `even`, 8-15 to `odd`; a last
 * whole 8 goes to `even`; even + odd is folded 8 -> 4 -> 2 -> 1; the last d mod 8 follow one by one.
 * Two accumulators: four rows at once (one token) or two rows times three tokens (batch) keep the
 * FMA units busy and fit sixteen registers, and a single row is not too slow.
 *
 * Roofline, fp16: 2 FLOPs on 2 bytes for one token, so one core of 17 GB/s (stream read) allows 17
 * GFLOPS of its 118; with 32 tokens 32 FLOPs a byte, bound by arithmetic. Measured on one core of a
 * 2-core Intel Xeon (Sapphire Rapids) shared with other work, 2026-11-21, W from memory unless said
 * otherwise, plain stream read in the same run 15-17 GB/s:
 *   dot, fp16 8192 x 320    v1 four rows at once                     9.3-10.7 GB/s
 *                           v2 and the next four rows prefetched    13.2-14.8 GB/s   in use
 *                           v3 eight rows ahead                     14.0 GB/s
 *   dot, fp16 4096 x 4096   v1 13.2, v2 14.7 GB/s;   fp32: v1 14.3-16.1, v2 13.4-14.6 (v1 in use)
 *   dot, fp16 960 x 320 in L2        44 GB/s (fp32 81 GB/s, bfloat16 37 GB/s)
 *   dot_batch, 32 tokens, the same   v1 48 GFLOPS; v2 x kept in registers 57; v3 sums kept in
 *                                    registers where a row is one tile 66   in use
 *   sparse FFN, d 4096, a Zen 4 core, best calls: int8 14.8 GB/s (float16 16.7), in the caches 19.8 (48)
 */
#include "cpu/avx2.h"

#if defined(__x86_64__)
#include <string.h>

#define ROWS 4   /* rows a dot reads at once */
#define TILE 512 /* weights converted at once in the batched form */

/* What the weights of i's group are multiplied with; nothing where they have no scale. */
INLINE __m256 scale8(const void *row, int64_t i, int64_t scales, int dtype) {
    return dtype == HC_I8 ? _mm256_set1_ps(_cvtsh_ss(scale_bits(row, i, scales)))
                          : _mm256_setzero_ps();
}

/* No alignment is asked for: rows of a record begin where the record's layout puts them. */
INLINE __m256 load8(const void *row, int64_t i, __m256 scale, int dtype) {
    const char *p = at(row, i, dtype);
    if (dtype == HC_F32)
        return _mm256_loadu_ps((const float *)p);
    if (dtype == HC_I8) {
        const __m256i whole = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
        return _mm256_mul_ps(_mm256_cvtepi32_ps(whole), scale);
    }
    __m128i half = _mm_loadu_si128((const __m128i *)p);
    if (dtype == HC_F16)
        return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

INLINE float load1(const void *row, int64_t i, int64_t scales, int dtype) {
    uint16_t half;
    uint32_t bits;
    float value;
    const char *p = at(row, i, dtype);
    if (dtype == HC_F32) {
        memcpy(&value, p, sizeof value);
        return value;
    }
    if (dtype == HC_I8)
        return (float)*(const int8_t *)p * _cvtsh_ss(scale_bits(row, i, scales));
    memcpy(&half, p, sizeof half);
    if (dtype == HC_F16)
        return _cvtsh_ss(half);
    bits = (uint32_t)half << 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* What every dot ends with: the last d mod 16 elements on top of its two accumulators.
 * Shared by all forms, so that a row's bits do not depend on which of them ran. */
INLINE float finish(const void *row, const float *x, int64_t d, __m256 even, __m256 odd,
                    int64_t scales, int dtype) {
    int64_t i = d & ~(int64_t)15;
    if (d - i >= 8) {
        even = _mm256_fmadd_ps(load8(row, i, scale8(row, i, scales, dtype), dtype),
                               _mm256_loadu_ps(x + i), even);
        i += 8;
    }
    float sum = sum8(_mm256_add_ps(even, odd));
    for (; i < d; i++)
        sum = __builtin_fmaf(load1(row, i, scales, dtype), x[i], sum);
    return sum;
}

/* Where a group begins: what the weights of n rows are multiplied with from i on. */
INLINE void new_scales(const void *const *rows, int n, int64_t i, int64_t scales, __m256 *scale,
                       int dtype) {
    if (dtype == HC_I8 && i % HC_GROUP == 0)
        UNROLL for (int k = 0; k < n; k++) scale[k] = scale8(rows[k], i, scales, dtype);
}

/* The scales of n rows: they lie behind the weights, and are needed with the first of them. */
INLINE void prefetch_scales(const void *const *rows, int n, int64_t d, int64_t scales, int dtype) {
    for (int64_t at = 0; dtype == HC_I8 && at < hc_scale_bytes(HC_I8, d); at += HC_CACHE_LINE)
        UNROLL for (int k = 0; k < n; k++)
            _mm_prefetch((const char *)rows[k] + scales + at, _MM_HINT_T0);
}

INLINE void step16(const void *const *rows, int n, const float *x, int64_t i, __m256 *even,
                   __m256 *odd, const __m256 *scale, int dtype) {
    __m256 x0 = _mm256_loadu_ps(x + i), x1 = _mm256_loadu_ps(x + i + 8);
    UNROLL for (int k = 0; k < n; k++) {
        even[k] = _mm256_fmadd_ps(load8(rows[k], i, scale[k], dtype), x0, even[k]);
        odd[k] = _mm256_fmadd_ps(load8(rows[k], i + 8, scale[k], dtype), x1, odd[k]);
    }
}

/* n (a constant <= ROWS) rows with one x; 32 weights a round, one cache line of each row of ahead. */
INLINE void dot_rows(const void *const *rows, const void *const *ahead, int n, const float *x,
                     int64_t d, float *out, int64_t scales, int dtype) {
    __m256 even[ROWS], odd[ROWS], scale[ROWS];
    UNROLL for (int k = 0; k < n; k++) even[k] = odd[k] = scale[k] = _mm256_setzero_ps();
    int64_t i = 0;
    if (ahead)
        prefetch_scales(ahead, n, d, scales, dtype);
    for (; i + 32 <= d; i += 32) {
        /* One line of 64 bytes a row and round: 32 half weights, or (twice) 16 floats; bytes
         * every other round. */
        if (ahead && i % of_line(dtype) == 0)
            UNROLL for (int k = 0; k < n; k++) {
                _mm_prefetch(at(ahead[k], i, dtype), _MM_HINT_T0);
                if (dtype == HC_F32)
                    _mm_prefetch(at(ahead[k], i + 16, dtype), _MM_HINT_T0);
            }
        new_scales(rows, n, i, scales, scale, dtype);
        step16(rows, n, x, i, even, odd, scale, dtype);
        step16(rows, n, x, i + 16, even, odd, scale, dtype);
    }
    if (i + 16 <= d) {
        new_scales(rows, n, i, scales, scale, dtype);
        step16(rows, n, x, i, even, odd, scale, dtype);
    }
    UNROLL for (int k = 0; k < n; k++) out[k] =
        finish(rows[k], x, d, even[k], odd[k], scales, dtype);
}

INLINE void dot_any(const void *const *rows, const void *const *ahead, int64_t n, const float *x,
                    int64_t d, float *out, int64_t scales, int dtype) {
    int64_t r = 0;
    for (; r + ROWS <= n; r += ROWS)
        dot_rows(rows + r, ahead ? ahead + r : NULL, ROWS, x, d, out + r, scales, dtype);
    ahead = ahead ? ahead + r : NULL;
    /* Rows that are left run side by side as well; each row's sums are its own, so nothing
     * changes. */
    switch (n - r) {
    case 3:
        dot_rows(rows + r, ahead, 3, x, d, out + r, scales, dtype);
        break;
    case 2:
        dot_rows(rows + r, ahead, 2, x, d, out + r, scales, dtype);
        break;
    case 1:
        dot_rows(rows + r, ahead, 1, x, d, out + r, scales, dtype);
    }
}

/* ---- batched: rows converted a tile at a time, accumulators parked between tiles ---- */

/* On the stack, 8 KB: two rows as floats, and sums that wait for their next tile. */
typedef struct {
    float w[2][TILE];
    float acc[2][HC_MAX_BATCH][16]; /* even sums, odd sums */
} batch_scratch;

/* One tile of n rows with m tokens (constants), t the first: sums start at 0 or at those parked in
 * s->acc, and end there or, where no element is left over (last), in out.
 * Two rows by three tokens are twelve accumulators of the sixteen registers. */
INLINE void tile(batch_scratch *s, int n, const float *const *xs, int32_t t, int m, int64_t base,
                 int64_t length, float *last, int32_t n_x) {
    __m256 even[2][4], odd[2][4];
    UNROLL for (int k = 0; k < n; k++) UNROLL for (int j = 0; j < m; j++) {
        even[k][j] = base ? _mm256_loadu_ps(s->acc[k][t + j]) : _mm256_setzero_ps();
        odd[k][j] = base ? _mm256_loadu_ps(s->acc[k][t + j] + 8) : _mm256_setzero_ps();
    }
    for (int64_t i = 0; i < length; i += 16)
        UNROLL for (int j = 0; j < m; j++) {
            const float *x = xs[t + j] + base + i;
            __m256 x0 = _mm256_loadu_ps(x), x1 = _mm256_loadu_ps(x + 8);
            __asm__("" : "+x"(x0), "+x"(x1)); /* else gcc loads x anew for every row */
            UNROLL for (int k = 0; k < n; k++) {
                even[k][j] = _mm256_fmadd_ps(_mm256_loadu_ps(s->w[k] + i), x0, even[k][j]);
                odd[k][j] = _mm256_fmadd_ps(_mm256_loadu_ps(s->w[k] + i + 8), x1, odd[k][j]);
            }
        }
    UNROLL for (int k = 0; k < n; k++) UNROLL for (int j = 0; j < m; j++) {
        if (last) {
            last[k * n_x + t + j] = sum8(_mm256_add_ps(even[k][j], odd[k][j]));
        } else {
            _mm256_storeu_ps(s->acc[k][t + j], even[k][j]);
            _mm256_storeu_ps(s->acc[k][t + j] + 8, odd[k][j]);
        }
    }
}

/* All tokens of a tile, block (a constant) at a time. */
INLINE void tile_tokens(batch_scratch *s, int n, int block, const float *const *xs, int32_t n_x,
                        int64_t base, int64_t length, float *last) {
    int32_t t = 0;
    for (; t + block <= n_x; t += block)
        tile(s, n, xs, t, block, base, length, last, n_x);
    if (block > 2 && t + 2 <= n_x) {
        tile(s, n, xs, t, 2, base, length, last, n_x);
        t += 2;
    }
    if (t < n_x)
        tile(s, n, xs, t, 1, base, length, last, n_x);
}

/* n (1 or 2, a constant) rows with all tokens.
 * A row is converted once for all tokens, TILE weights at a time (2 KB of floats a row: they
 * stay in L1 while every token passes over them). */
INLINE void batch_rows(const void *const *rows, int n, const float *const *xs, int32_t n_x,
                       int64_t d, float *out, int64_t scales, int dtype) {
    batch_scratch s;
    const int64_t whole = d & ~(int64_t)15;
    /* Sums end in out directly where no element is left over; else finish() takes them from
     * s.acc. */
    const int parked = whole != d || !whole;
    if (!whole)
        memset(s.acc, 0, sizeof s.acc);
    for (int64_t base = 0; base < whole; base += TILE) {
        const int64_t length = whole - base < TILE ? whole - base : TILE;
        float *last = !parked && base + length == whole ? out : NULL;
        UNROLL for (int k = 0; k < n; k++) for (int64_t i = 0; i < length; i += 8) _mm256_storeu_ps(
            s.w[k] + i, load8(rows[k], base + i, scale8(rows[k], base + i, scales, dtype), dtype));
        tile_tokens(&s, n, n == 1 ? 4 : 3, xs, n_x, base, length, last);
    }
    for (int k = 0; parked && k < n; k++)
        for (int32_t t = 0; t < n_x; t++)
            out[k * n_x + t] = finish(rows[k], xs[t], d, _mm256_loadu_ps(s.acc[k][t]),
                                      _mm256_loadu_ps(s.acc[k][t] + 8), scales, dtype);
}

INLINE void dot_batch_any(const void *const *rows, int64_t n, const float *const *xs, int32_t n_x,
                          int64_t d, float *out, int64_t scales, int dtype) {
    int64_t r = 0;
    for (; r + 2 <= n; r += 2)
        batch_rows(rows + r, 2, xs, n_x, d, out + r * n_x, scales, dtype);
    if (r < n)
        batch_rows(rows + r, 1, xs, n_x, d, out + r * n_x, scales, dtype);
}

/* ---- y += sum c rows ---- */

/* n (a constant <= ROWS) rows; 32 weights a round, one cache line of each row of ahead.
 * Four rows go onto y in one pass over it, in their order: the same additions as row by row. */
INLINE void axpy_rows(const void *const *rows, const void *const *ahead, const float *c, int n,
                      int64_t d, float *y, int64_t scales, int dtype) {
    const void *row[ROWS], *next[ROWS]; /* locals: a store to y could change the arguments */
    __m256 factor[ROWS], scale[ROWS];
    UNROLL for (int k = 0; k < n; k++) {
        scale[k] = _mm256_setzero_ps();
        row[k] = rows[k];
        next[k] = ahead ? ahead[k] : NULL;
        factor[k] = _mm256_set1_ps(c[k]);
    }
    int64_t i = 0;
    for (; i + 8 <= d; i += 8) {
        if (ahead && i % of_line(dtype) == 0)
            UNROLL for (int k = 0; k < n; k++) _mm_prefetch(at(next[k], i, dtype), _MM_HINT_T0);
        new_scales(row, n, i, scales, scale, dtype);
        __m256 sum = _mm256_loadu_ps(y + i);
        UNROLL for (int k = 0; k < n; k++) sum =
            _mm256_fmadd_ps(factor[k], load8(row[k], i, scale[k], dtype), sum);
        _mm256_storeu_ps(y + i, sum);
    }
    for (; i < d; i++)
        for (int k = 0; k < n; k++)
            y[i] = __builtin_fmaf(c[k], load1(rows[k], i, scales, dtype), y[i]);
}

INLINE void axpy_any(const void *const *rows, const void *const *ahead, const float *c, int64_t n,
                     int64_t d, float *y, int64_t scales, int dtype) {
    int64_t r = 0;
    for (; r + 4 <= n; r += 4)
        axpy_rows(rows + r, ahead ? ahead + r : NULL, c + r, 4, d, y, scales, dtype);
    if (n - r >= 2) {
        axpy_rows(rows + r, NULL, c + r, 2, d, y, scales, dtype);
        r += 2;
    }
    if (r < n)
        axpy_rows(rows + r, NULL, c + r, 1, d, y, scales, dtype);
}

/* 64 bits an instruction and cycle: for 6 planes a word of 64 weights takes some 7 cycles. */
__attribute__((target("avx2,popcnt"))) void hc_sign_count_avx2(const uint64_t *rows, int64_t n,
                                                               const uint64_t *planes,
                                                               int32_t n_planes, int64_t words,
                                                               int64_t *out) {
    count_signs(rows, n, planes, n_planes, words, out);
}

static int supported(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c") && __builtin_cpu_supports("popcnt");
}

HC_TABLE(AVX2, avx2, supported, hc_max_avx2, hc_exp_sum_avx2, hc_sign_count_avx2)
#endif
