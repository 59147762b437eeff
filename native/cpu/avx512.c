/* cpu/avx512.c - the primitives with AVX-512 F, BW and VL (sixteen floats a register, 32 registers).
 *
 * The order of every dot: elements 0-15 of each 32 go to the sixteen sums `even`, 16-31 to `odd`; a
 * last whole 16 goes to `even`; what is left, d mod 16, goes to `odd` under a mask; even + odd is
 * folded 16 -> 8 -> 4 -> 2 -> 1.
 *
 * Roofline as in avx2.c: for one token bound by reading, 1 FLOP a byte in fp16, where both come out
 * alike; for 32 tokens bound by arithmetic, where this one gains. Measured on one core of a 2-core
 * Intel Xeon (Sapphire Rapids) under heavy load of other work, 2026-11-22, best of many:
 *   sparse FFN, fp16, cold records of 24 KB, in a program of its own; reading alone 16.8 GB/s there
 *            v1 four rows at once                           13.0 GB/s
 *            v2 and the next four prefetched, to L1         14.5
 *            v3 eight rows at once                          13.5, prefetched 14.1 (to L2 14.7)
 *            v4 prefetched 0.5, 1 or 2 KB before a row ends 13.4, 13.8, 14.2
 *            v5 as v2, prefetched to L2                     14.6
 *   Best calls hide what parts v2 from v5: v2 falls to 11.6 GB/s for stretches at a time (the L1 fill
 *   buffers are few). Three runs of 300 calls on a nearly idle machine, 5th, 25th, 50th percentile:
 *            v2  10.6-11.1  11.5-12.8  12.9-13.4     v5  10.4-12.6  12.8-13.2  13.3-13.6
 *   dot_batch, fp16 960 x 320, 32 tokens (avx2.c: 67 GFLOPS)
 *            v1 four rows by three tokens, as gcc likes  88 GFLOPS
 *            v2 weights kept in registers, tile aligned 104   in use
 *   v5 leaves the first four rows of a list to chance; v6 prefetches their beginning, then 1 KB ahead in
 *   the rows themselves; in use. Lists of 300 neurons of d 7168, GB/s, one thread here and 14 threads of
 *   an H100's host (two GB/s mean little in either):
 *            gated      v5 12.7  89.0 (d 5120)   v6 13.2  92.8
 *            not gated  v5 12.1  81.1            v6 11.8  82.6    600 neurons: 96.8, 104.3
 *   Short rows (columns of many threads), 344 rows of 512, fp16, one thread, GB/s:
 *            four rows a time onto y 42.0 from the caches, 8.7 cold   y in registers 50.1, 8.2; in use
 * int8 (HC_I8), 2 FLOPs a byte. A dot sums a group's 64 products of whole numbers and x, then scales
 * them: three instructions for 16 weights (widen, convert, FMA) and a fourth for 64. A sum of columns has
 * the scale in its factor. Measured on one core of a 2-core AMD EPYC (Zen 4) shared with other work,
 * 2026-11-29, d 4096, one token, GB/s; sparse FFN from the caches and from memory (best calls; reading
 * alone 25 there, the best of 1, 4 and 8 rows side by side):
 *            v1 every weight scaled, scales widened one by one, 1 KB ahead   19.8   16.6
 *            v2 scales widened SCALES at a time                              23.6   16.9
 *            v3 prefetched 2 KB ahead (0.5 KB: 13.4)                         23.6   18.7
 *            v4 groups summed, then scaled; 3 KB ahead; in use               28.4   21.4
 *            float16 there                                                   61.7   20.3
 *   `hotcold bench kernels --dtype int8 --density 10`: 0.78, 0.82, 0.83 of reading at d 2048, 4096, 5120
 *   (medians of three runs; float16 at 4096: 0.81). VNNI would need x in whole numbers.
 * Not used: vdpbf16ps rounds x to bfloat16, 2^-9 relative, where the sums are promised in fp32;
 * x in three bfloat16 parts would keep the promise at three such instructions for two FMAs. AVX512-
 * FP16 sums in half precision.
 */
#include "cpu/avx512.h"

#if defined(__x86_64__)
#include <string.h>

#define ROWS   4    /* rows a dot reads at once */
#define TOKENS 3    /* tokens a tile multiplies at once */
#define TILE   512  /* weights converted at once in the batched form */
#define SHORT  1024 /* weights of a short row */
#define BLOCK  24   /* registers that hold what short rows are added to */
#define NEAR   4    /* short rows that are prefetched before they are read */

/* 64 weights of HC_I8 of n rows, one group: their products with x are summed, then scaled. */
INLINE void group_rows(const void *const *rows, int n, const float *x, int64_t i,
                       const __m512 *scale, __m512 *sum) {
    __m512 p[ROWS];
    UNROLL for (int q = 0; q < HC_GROUP; q += 16) {
        const __m512 xq = _mm512_loadu_ps(x + i + q);
        UNROLL for (int k = 0; k < n; k++) {
            const __m512 w = load16(rows[k], i + q, HC_I8);
            p[k] = q ? _mm512_fmadd_ps(w, xq, p[k]) : _mm512_mul_ps(w, xq);
        }
    }
    UNROLL for (int k = 0; k < n; k++) sum[k] = _mm512_fmadd_ps(p[k], scale[k], sum[k]);
}

/* The last d mod 64 weights, on top of the sum. */
INLINE float finish_groups(const void *row, const float *x, int64_t d, __m512 sum, int64_t scales) {
    int64_t i = d & ~(int64_t)(HC_GROUP - 1);
    if (i == d)
        return sum16(sum);
    const __m512 scale = scale16(row, i, scales, HC_I8);
    __m512 p = _mm512_setzero_ps();
    for (; i < d; i += 16) {
        const __mmask16 mask = d - i < 16 ? first(d - i) : (__mmask16)0xffff;
        p = _mm512_fmadd_ps(load_some(row, i, mask, HC_I8), _mm512_maskz_loadu_ps(mask, x + i), p);
    }
    return sum16(_mm512_fmadd_ps(p, scale, sum));
}

/* What every dot ends with: the last d mod 32 elements on top of its two accumulators.
 * Shared by all forms, so that a row's bits do not depend on which of them ran. */
INLINE float finish(const void *row, const float *x, int64_t d, __m512 even, __m512 odd,
                    int64_t scales, int dtype) {
    if (dtype == HC_I8)
        return finish_groups(row, x, d, even, scales);
    int64_t i = d & ~(int64_t)31;
    if (d - i >= 16) {
        even = _mm512_fmadd_ps(load16(row, i, dtype), _mm512_loadu_ps(x + i), even);
        i += 16;
    }
    if (i < d) {
        const __mmask16 mask = first(d - i);
        odd = _mm512_fmadd_ps(load_some(row, i, mask, dtype), _mm512_maskz_loadu_ps(mask, x + i),
                              odd);
    }
    return sum16(_mm512_add_ps(even, odd));
}

/* n (a constant <= ROWS) rows with one x; 32 weights a round, or a group. */
INLINE void dot_rows(const void *const *rows, const void *const *ahead, int n, const float *x,
                     int64_t d, float *out, int64_t scales, int dtype) {
    const int64_t whole = d & -stretch(dtype);
    some_scales some[ROWS];
    __m512 even[ROWS], odd[ROWS], scale[ROWS];
    UNROLL for (int k = 0; k < n; k++) even[k] = odd[k] = scale[k] = _mm512_setzero_ps();
    if (ahead)
        prefetch_scales(ahead, n, d, scales, dtype);
    for (int64_t i = 0; i < whole; i += stretch(dtype)) {
        if (ahead)
            prefetch_next(rows, ahead, n, i, whole, dtype);
        new_scales(some, rows, n, i, d, scales, NULL, scale, dtype);
        if (dtype == HC_I8) {
            group_rows(rows, n, x, i, scale, even);
            continue;
        }
        __m512 x0 = _mm512_loadu_ps(x + i), x1 = _mm512_loadu_ps(x + i + 16);
        UNROLL for (int k = 0; k < n; k++) {
            even[k] = _mm512_fmadd_ps(load16(rows[k], i, dtype), x0, even[k]);
            odd[k] = _mm512_fmadd_ps(load16(rows[k], i + 16, dtype), x1, odd[k]);
        }
    }
    UNROLL for (int k = 0; k < n; k++) out[k] =
        finish(rows[k], x, d, even[k], odd[k], scales, dtype);
}

INLINE void dot_any(const void *const *rows, const void *const *ahead, int64_t n, const float *x,
                    int64_t d, float *out, int64_t scales, int dtype) {
    int64_t r = 0;
    if (ahead && n >= ROWS)
        first_rows(rows, ROWS, d, scales, dtype);
    for (; r + ROWS <= n; r += ROWS)
        dot_rows(rows + r, ahead ? ahead + r : NULL, ROWS, x, d, out + r, scales, dtype);
    for (; r + 2 <= n; r += 2)
        dot_rows(rows + r, ahead ? ahead + r : NULL, 2, x, d, out + r, scales, dtype);
    if (r < n)
        dot_rows(rows + r, ahead ? ahead + r : NULL, 1, x, d, out + r, scales, dtype);
}

/* ---- batched: rows converted a tile at a time, accumulators parked between tiles ---- */

/* On the stack, 24 KB: four rows as floats, and sums that wait for their next tile. */
typedef struct {
    _Alignas(64) float w[4][TILE];
    _Alignas(64) float acc[4][HC_MAX_BATCH][32]; /* even sums, odd sums; of HC_I8 the first alone */
    some_scales scale[4];                        /* of the tile's groups */
} batch_scratch;

/* One tile of n rows with m tokens (constants), t the first: sums start at 0 or at those parked in
 * s->acc, and end there or, where no element is left over (last), in out.
 * Four rows by three tokens are 24 accumulators; with four weights and an x 29 of the 32
 * registers. */
INLINE void tile(batch_scratch *s, int n, const float *const *xs, int32_t t, int m, int64_t base,
                 int64_t length, float *last, int32_t n_x, int dtype) {
    __m512 even[4][TOKENS], odd[4][TOKENS];
    UNROLL for (int k = 0; k < n; k++) UNROLL for (int j = 0; j < m; j++) {
        even[k][j] = base ? _mm512_loadu_ps(s->acc[k][t + j]) : _mm512_setzero_ps();
        odd[k][j] = base ? _mm512_loadu_ps(s->acc[k][t + j] + 16) : _mm512_setzero_ps();
    }
    for (int64_t i = 0; i < length && dtype == HC_I8; i += HC_GROUP) { /* as in group_rows */
        UNROLL for (int q = 0; q < HC_GROUP; q += 16) {
            __m512 w[4];
            UNROLL for (int k = 0; k < n; k++) {
                w[k] = _mm512_load_ps(s->w[k] + i + q);
                __asm__("" : "+v"(w[k]));
            }
            UNROLL for (int j = 0; j < m; j++) {
                const __m512 x = _mm512_loadu_ps(xs[t + j] + base + i + q);
                UNROLL for (int k = 0; k < n; k++) odd[k][j] =
                    q ? _mm512_fmadd_ps(w[k], x, odd[k][j]) : _mm512_mul_ps(w[k], x);
            }
        }
        UNROLL for (int k = 0; k < n; k++) UNROLL for (int j = 0; j < m; j++) even[k][j] =
            _mm512_fmadd_ps(odd[k][j], _mm512_set1_ps(s->scale[k].of[i / HC_GROUP]), even[k][j]);
    }
    for (int64_t i = 0; i < length && dtype != HC_I8; i += 32) {
        __m512 w[4];
        UNROLL for (int k = 0; k < n; k++) {
            w[k] = _mm512_load_ps(s->w[k] + i);
            __asm__("" : "+v"(w[k])); /* else gcc loads w anew for every token */
        }
        UNROLL for (int j = 0; j < m; j++) {
            const __m512 x = _mm512_loadu_ps(xs[t + j] + base + i);
            UNROLL for (int k = 0; k < n; k++) even[k][j] = _mm512_fmadd_ps(w[k], x, even[k][j]);
        }
        UNROLL for (int k = 0; k < n; k++) {
            w[k] = _mm512_load_ps(s->w[k] + i + 16);
            __asm__("" : "+v"(w[k]));
        }
        UNROLL for (int j = 0; j < m; j++) {
            const __m512 x = _mm512_loadu_ps(xs[t + j] + base + i + 16);
            UNROLL for (int k = 0; k < n; k++) odd[k][j] = _mm512_fmadd_ps(w[k], x, odd[k][j]);
        }
    }
    UNROLL for (int k = 0; k < n; k++) UNROLL for (int j = 0; j < m; j++) {
        if (last) {
            last[k * n_x + t + j] =
                sum16(dtype == HC_I8 ? even[k][j] : _mm512_add_ps(even[k][j], odd[k][j]));
        } else {
            _mm512_storeu_ps(s->acc[k][t + j], even[k][j]);
            _mm512_storeu_ps(s->acc[k][t + j] + 16, odd[k][j]);
        }
    }
}

/* n (1, 2 or 4, a constant) rows with all tokens. */
INLINE void batch_rows(const void *const *rows, int n, const float *const *xs, int32_t n_x,
                       int64_t d, float *out, int64_t scales, int dtype) {
    batch_scratch s;
    const int64_t whole = d & -stretch(dtype);
    const int parked = whole != d;
    if (!whole)
        memset(s.acc, 0, sizeof s.acc);
    for (int64_t base = 0; base < whole; base += TILE) {
        const int64_t length = whole - base < TILE ? whole - base : TILE;
        float *last = !parked && base + length == whole ? out : NULL;
        UNROLL for (int k = 0; k < n; k++) {
            for (int64_t i = 0; i < length; i += 16)
                _mm512_storeu_ps(s.w[k] + i, load16(rows[k], base + i, dtype));
            if (dtype == HC_I8)
                widen_scales(&s.scale[k], rows[k], base, d, scales, 1);
        }
        int32_t t = 0;
        for (; t + TOKENS <= n_x; t += TOKENS)
            tile(&s, n, xs, t, TOKENS, base, length, last, n_x, dtype);
        for (; t < n_x; t++)
            tile(&s, n, xs, t, 1, base, length, last, n_x, dtype);
    }
    for (int k = 0; parked && k < n; k++)
        for (int32_t t = 0; t < n_x; t++)
            out[k * n_x + t] = finish(rows[k], xs[t], d, _mm512_loadu_ps(s.acc[k][t]),
                                      _mm512_loadu_ps(s.acc[k][t] + 16), scales, dtype);
}

INLINE void dot_batch_any(const void *const *rows, int64_t n, const float *const *xs, int32_t n_x,
                          int64_t d, float *out, int64_t scales, int dtype) {
    int64_t r = 0;
    for (; r + 4 <= n; r += 4)
        batch_rows(rows + r, 4, xs, n_x, d, out + r * n_x, scales, dtype);
    for (; r < n; r++)
        batch_rows(rows + r, 1, xs, n_x, d, out + r * n_x, scales, dtype);
}

/* ---- y += sum c rows ---- */

/* n (a constant <= ROWS) rows; 32 weights a round.
 * Rows go onto y in their order: the same additions as row by row. */
INLINE void axpy_rows(const void *const *rows, const void *const *ahead, const float *c, int n,
                      int64_t d, float *y, int64_t scales, int dtype) {
    some_scales some[ROWS];
    __m512 factor[ROWS]; /* c, of HC_I8 times the group's scale, rounded */
    UNROLL for (int k = 0; k < n; k++) factor[k] = _mm512_set1_ps(c[k]);
    if (ahead)
        prefetch_scales(ahead, n, d, scales, dtype);
    const int64_t whole = d & ~(int64_t)31;
    int64_t i = 0;
    for (; i < whole; i += 32) {
        if (ahead)
            prefetch_next(rows, ahead, n, i, whole, dtype);
        new_scales(some, rows, n, i, d, scales, c, factor, dtype);
        __m512 y0 = _mm512_loadu_ps(y + i), y1 = _mm512_loadu_ps(y + i + 16);
        UNROLL for (int k = 0; k < n; k++) {
            y0 = _mm512_fmadd_ps(factor[k], load16(rows[k], i, dtype), y0);
            y1 = _mm512_fmadd_ps(factor[k], load16(rows[k], i + 16, dtype), y1);
        }
        _mm512_storeu_ps(y + i, y0);
        _mm512_storeu_ps(y + i + 16, y1);
    }
    for (; i < d; i += 16) {
        const __mmask16 mask = d - i < 16 ? first(d - i) : (__mmask16)0xffff;
        __m512 sum = _mm512_maskz_loadu_ps(mask, y + i);
        new_scales(some, rows, n, i, d, scales, c, factor, dtype);
        UNROLL for (int k = 0; k < n; k++) sum =
            _mm512_fmadd_ps(factor[k], load_some(rows[k], i, mask, dtype), sum);
        _mm512_mask_storeu_ps(y + i, mask, sum);
    }
}

/* columns (a constant number of registers) of all n rows: y is read and written once. With `reach`
 * the d weights of the rows up to there are prefetched, NEAR rows before they are read.
 * The first NEAR rounds only prefetch (k < 0). */
INLINE void axpy_block(const void *const *rows, int64_t n, int64_t reach, const float *c, int64_t d,
                       int64_t i, int registers, float *y, int64_t scales, int dtype) {
    __m512 sum[BLOCK];
    UNROLL for (int v = 0; v < registers; v++) sum[v] = _mm512_loadu_ps(y + i + 16 * v);
    for (int64_t k = reach ? -NEAR : 0; k < n; k++) {
        for (int64_t w = 0; k + NEAR < reach && w < d; w += stretch(dtype))
            prefetch(rows + k + NEAR, 1, w, dtype);
        if (k + NEAR < reach)
            prefetch_scales(rows + k + NEAR, 1, d, scales, dtype);
        if (k < 0)
            continue;
        some_scales some;
        __m512 factor = _mm512_set1_ps(c[k]);
        if (dtype == HC_I8)
            widen_scales(&some, rows[k], i, d, scales, c[k]);
        UNROLL for (int v = 0; v < registers; v++) {
            if (dtype == HC_I8 && v % 4 == 0)
                factor = _mm512_set1_ps(some.of[v / 4]);
            sum[v] = _mm512_fmadd_ps(factor, load16(rows[k], i + 16 * v, dtype), sum[v]);
        }
    }
    UNROLL for (int v = 0; v < registers; v++) _mm512_storeu_ps(y + i + 16 * v, sum[v]);
}

/* Short rows: a thread's columns where many threads share them. The same sums as below, term by term,
 * but what is added to stays in registers.
 * 384 columns at a time, then 128, then 16 under a mask. Only the first block prefetches: whole
 * rows of up to SHORT weights, so the later ones find them in the cache. */
INLINE void axpy_short(const void *const *rows, int64_t reach, const float *c, int64_t n, int64_t d,
                       float *y, int64_t scales, int dtype) {
    int64_t i = 0;
    for (; i + 16 * BLOCK <= d; i += 16 * BLOCK, reach = 0)
        axpy_block(rows, n, reach, c, d, i, BLOCK, y, scales, dtype);
    for (; i + 16 * BLOCK / 3 <= d; i += 16 * BLOCK / 3, reach = 0)
        axpy_block(rows, n, reach, c, d, i, BLOCK / 3, y, scales, dtype);
    for (; i < d; i += 16) {
        const __mmask16 mask = d - i < 16 ? first(d - i) : (__mmask16)0xffff;
        __m512 sum = _mm512_maskz_loadu_ps(mask, y + i);
        for (int64_t k = 0; k < n; k++)
            sum = _mm512_fmadd_ps(
                scaled(_mm512_set1_ps(c[k]), scale16(rows[k], i, scales, dtype), dtype),
                load_some(rows[k], i, mask, dtype), sum);
        _mm512_mask_storeu_ps(y + i, mask, sum);
    }
}

INLINE void axpy_any(const void *const *rows, const void *const *ahead, const float *c, int64_t n,
                     int64_t d, float *y, int64_t scales, int dtype) {
    int64_t r = 0;
    if (d <= SHORT) {
        /* ahead points into the same array as rows, some entries further on: their distance
         * tells how many more rows may be prefetched. */
        axpy_short(rows, ahead ? ahead - rows + n : n, c, n, d, y, scales, dtype);
        return;
    }
    if (ahead && n >= ROWS)
        first_rows(rows, ROWS, d, scales, dtype);
    for (; r + ROWS <= n; r += ROWS)
        axpy_rows(rows + r, ahead ? ahead + r : NULL, c + r, ROWS, d, y, scales, dtype);
    for (; r + 2 <= n; r += 2)
        axpy_rows(rows + r, ahead ? ahead + r : NULL, c + r, 2, d, y, scales, dtype);
    if (r < n)
        axpy_rows(rows + r, ahead ? ahead + r : NULL, c + r, 1, d, y, scales, dtype);
}

#define POPCOUNT __attribute__((target("avx512f,avx512vpopcntdq")))

/* Eight words a register; the rows of a short matrix share one register's worth of planes.
 * Words past the row are masked to 0 in both operands: they differ nowhere. */
static POPCOUNT void sign_count_wide(const uint64_t *rows, int64_t n, const uint64_t *planes,
                                     int32_t n_planes, int64_t words, int64_t *out) {
    const int64_t whole = words / 8 * 8;
    const __mmask8 rest = (__mmask8)((1u << (words - whole)) - 1);
    for (int64_t i = 0; i < n; i++, rows += words) {
        __m512i sum = _mm512_setzero_si512();
        for (int64_t w = 0; w < words; w += 8) {
            const __mmask8 mask = w < whole ? 0xff : rest;
            const __m512i row = _mm512_maskz_loadu_epi64(mask, rows + w);
            for (int32_t p = 0; p < n_planes; p++) {
                const __m512i plane = _mm512_maskz_loadu_epi64(mask, planes + p * words + w);
                const __m512i count = _mm512_popcnt_epi64(_mm512_xor_si512(row, plane));
                sum = _mm512_add_epi64(sum, _mm512_sll_epi64(count, _mm_cvtsi32_si128(p)));
            }
        }
        out[i] = _mm512_reduce_add_epi64(sum);
    }
}

/* vpopcntdq is not part of what `supported` asks for. */
static void sign_count(const uint64_t *rows, int64_t n, const uint64_t *planes, int32_t n_planes,
                       int64_t words, int64_t *out) {
    if (__builtin_cpu_supports("avx512vpopcntdq"))
        sign_count_wide(rows, n, planes, n_planes, words, out);
    else
        hc_sign_count_avx2(rows, n, planes, n_planes, words, out);
}

static int supported(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && hc_primitives_avx2.supported();
}

HC_TABLE(AVX512, avx512, supported, hc_max_avx2, hc_exp_sum_avx2, sign_count)
#endif
