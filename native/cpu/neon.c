/* cpu/neon.c - the primitives with NEON of ARMv8 (four floats a register, 32 registers).
 *
 * The order of every dot: of each 16 elements four go to each of four sums of four lanes; the last
 * whole fours go to the first; the sums are added in pairs, then folded 4 -> 2 -> 1; the last d mod 4
 * elements follow one by one. binary16 is widened by the conversion every ARMv8 has, bfloat16 by a
 * shift; sums are fp32 (FP16 and BF16 arithmetic, where a CPU has it, would round them).
 *
 * Roofline, fp16: as avx2.c, 1 FLOP a byte for one token. Checked against the other variants under
 * qemu, whose speed says nothing; not yet timed on an ARM machine.
 */
#include "cpu/instances.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

#define ROWS   4 /* rows a dot reads at once */
#define TOKENS 4 /* tokens a row is multiplied with at once */

/* What the weights of i's group are multiplied with; nothing where they have no scale. */
INLINE float scale1(const void *row, int64_t i, int64_t scales, int dtype) {
    if (dtype != HC_I8)
        return 0;
    const uint16x4_t half = vdup_n_u16(scale_bits(row, i, scales));
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(half)), 0);
}

INLINE float32x4_t load4(const void *row, int64_t i, float scale, int dtype) {
    const char *p = at(row, i, dtype);
    if (dtype == HC_F32)
        return vld1q_f32((const float *)p);
    if (dtype == HC_I8) {
        uint32_t four;
        memcpy(&four, p, sizeof four);
        const int16x4_t whole = vget_low_s16(vmovl_s8(vcreate_s8(four)));
        return vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(whole)), scale);
    }
    const uint16x4_t half = vld1_u16((const uint16_t *)p);
    if (dtype == HC_F16)
        return vcvt_f32_f16(vreinterpret_f16_u16(half));
    return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}

INLINE float load1(const void *row, int64_t i, int64_t scales, int dtype) {
    const char *p = at(row, i, dtype);
    if (dtype == HC_F32)
        return *(const float *)p;
    if (dtype == HC_I8)
        return (float)*(const int8_t *)p * scale1(row, i, scales, dtype);
    const uint16x4_t half = vdup_n_u16(*(const uint16_t *)p);
    if (dtype == HC_F16)
        return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(half)), 0);
    return vgetq_lane_f32(vreinterpretq_f32_u32(vshll_n_u16(half, 16)), 0);
}

INLINE float sum4(float32x4_t v) {
    const float32x2_t s = vadd_f32(vget_low_f32(v), vget_high_f32(v));
    return vget_lane_f32(s, 0) + vget_lane_f32(s, 1);
}

/* What every dot ends with: the last d mod 16 elements on top of its four accumulators. */
INLINE float finish(const void *row, const float *x, int64_t d, const float32x4_t *acc,
                    int64_t scales, int dtype) {
    int64_t i = d & ~(int64_t)15;
    float32x4_t first = acc[0];
    for (; i + 4 <= d; i += 4)
        first =
            vfmaq_f32(first, load4(row, i, scale1(row, i, scales, dtype), dtype), vld1q_f32(x + i));
    float sum = sum4(vaddq_f32(vaddq_f32(first, acc[1]), vaddq_f32(acc[2], acc[3])));
    for (; i < d; i++)
        sum = __builtin_fmaf(load1(row, i, scales, dtype), x[i], sum);
    return sum;
}

/* n rows with m tokens (constants, one of them 1): out[k * stride + j].
 * Four rows and one token, or one row and four tokens: sixteen accumulators of the 32 registers
 * either way, and one function for both, so that a dot has one order alone and in a batch. */
INLINE void block(const void *const *rows, const void *const *ahead, int n, const float *const *xs,
                  int m, int64_t d, float *out, int64_t stride, int64_t scales, int dtype) {
    float32x4_t acc[ROWS * TOKENS][4];
    UNROLL for (int k = 0; k < n * m; k++) UNROLL for (int q = 0; q < 4; q++) acc[k][q] =
        vdupq_n_f32(0);
    for (int64_t i = 0; i + 16 <= d; i += 16) {
        if (ahead && i % of_line(dtype) == 0)
            UNROLL for (int k = 0; k < n; k++) __builtin_prefetch(at(ahead[k], i, dtype));
        UNROLL for (int q = 0; q < 4; q++) {
            float32x4_t x[TOKENS];
            UNROLL for (int j = 0; j < m; j++) x[j] = vld1q_f32(xs[j] + i + 4 * q);
            UNROLL for (int k = 0; k < n; k++) {
                const float32x4_t w =
                    load4(rows[k], i + 4 * q, scale1(rows[k], i, scales, dtype), dtype);
                UNROLL for (int j = 0; j < m; j++) acc[k * m + j][q] =
                    vfmaq_f32(acc[k * m + j][q], w, x[j]);
            }
        }
    }
    UNROLL for (int k = 0; k < n; k++) UNROLL for (int j = 0; j < m; j++) out[k * stride + j] =
        finish(rows[k], xs[j], d, acc[k * m + j], scales, dtype);
}

INLINE void dot_any(const void *const *rows, const void *const *ahead, int64_t n, const float *x,
                    int64_t d, float *out, int64_t scales, int dtype) {
    int64_t r = 0;
    for (; r + ROWS <= n; r += ROWS)
        block(rows + r, ahead ? ahead + r : NULL, ROWS, &x, 1, d, out + r, 1, scales, dtype);
    for (; r < n; r++)
        block(rows + r, ahead ? ahead + r : NULL, 1, &x, 1, d, out + r, 1, scales, dtype);
}

/* A row is widened once for four tokens. */
INLINE void dot_batch_any(const void *const *rows, int64_t n, const float *const *xs, int32_t n_x,
                          int64_t d, float *out, int64_t scales, int dtype) {
    for (int64_t r = 0; r < n; r++) {
        int32_t t = 0;
        for (; t + TOKENS <= n_x; t += TOKENS)
            block(rows + r, NULL, 1, xs + t, TOKENS, d, out + r * n_x + t, n_x, scales, dtype);
        for (; t < n_x; t++)
            block(rows + r, NULL, 1, xs + t, 1, d, out + r * n_x + t, n_x, scales, dtype);
    }
}

/* ---- y += sum c rows ---- */

/* n (a constant <= ROWS) rows. */
INLINE void axpy_rows(const void *const *rows, const void *const *ahead, const float *c, int n,
                      int64_t d, float *y, int64_t scales, int dtype) {
    int64_t i = 0;
    for (; i + 4 <= d; i += 4) {
        if (ahead && i % of_line(dtype) == 0)
            UNROLL for (int k = 0; k < n; k++) __builtin_prefetch(at(ahead[k], i, dtype));
        float32x4_t sum = vld1q_f32(y + i);
        UNROLL for (int k = 0; k < n; k++) sum =
            vfmaq_n_f32(sum, load4(rows[k], i, scale1(rows[k], i, scales, dtype), dtype), c[k]);
        vst1q_f32(y + i, sum);
    }
    for (; i < d; i++)
        for (int k = 0; k < n; k++)
            y[i] = __builtin_fmaf(c[k], load1(rows[k], i, scales, dtype), y[i]);
}

INLINE void axpy_any(const void *const *rows, const void *const *ahead, const float *c, int64_t n,
                     int64_t d, float *y, int64_t scales, int dtype) {
    int64_t r = 0;
    for (; r + ROWS <= n; r += ROWS)
        axpy_rows(rows + r, ahead ? ahead + r : NULL, c + r, ROWS, d, y, scales, dtype);
    for (; r < n; r++)
        axpy_rows(rows + r, ahead ? ahead + r : NULL, c + r, 1, d, y, scales, dtype);
}

/* ---- softmax ---- */

static float max_neon(const float *x, int64_t n) {
    float32x4_t max = vdupq_n_f32(-INFINITY);
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        max = vmaxq_f32(max, vld1q_f32(x + i)); /* a NaN stays one */
    float best = vmaxvq_f32(max);
    for (; i < n; i++)
        best = isnan(x[i]) || x[i] > best ? x[i] : best;
    return best;
}

/* exp as in avx2_softmax.c: n ln 2 + r, a Taylor polynomial of degree 7; 0 below -87.3. */
INLINE float32x4_t exp4(float32x4_t v) {
    const uint32x4_t tiny = vcltq_f32(v, vdupq_n_f32(-87.3f));
    v = vmaxq_f32(v, vdupq_n_f32(-87.3f));
    const float32x4_t n = vrndnq_f32(vmulq_n_f32(v, 0x1.715476p+0f));
    float32x4_t r = vfmaq_n_f32(v, n, -0x1.62e400p-1f);
    r = vfmaq_n_f32(r, n, -0x1.7f7d1cp-20f);
    float32x4_t p = vdupq_n_f32(1.0f / 5040);
    static const float taylor[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    UNROLL for (int k = 0; k < 7; k++) p = vfmaq_f32(vdupq_n_f32(taylor[k]), p, r);
    const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    const float32x4_t value = vmulq_f32(p, vreinterpretq_f32_s32(power));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(value), tiny));
}

/* Four lanes; the last n mod 4 padded with -infinity, whose exp is 0, so the order is one for
 * every n. */
static float exp_sum_neon(const float *x, int64_t n, float max, float scale, float *out) {
    float32x4_t sum = vdupq_n_f32(0);
    const float32x4_t m = vdupq_n_f32(max);
    for (int64_t i = 0; i < n; i += 4) {
        const size_t bytes = sizeof(float) * (size_t)(n - i < 4 ? n - i : 4);
        float part[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
        memcpy(part, x + i, bytes);
        const float32x4_t term = exp4(vmulq_n_f32(vsubq_f32(vld1q_f32(part), m), scale));
        sum = vaddq_f32(sum, term);
        vst1q_f32(part, term);
        if (out)
            memcpy(out + i, part, bytes);
    }
    return sum4(sum);
}

static int supported(void) {
    return 1; /* every ARMv8 CPU has it */
}

HC_TABLE(, neon, supported, max_neon, exp_sum_neon, count_signs)
#endif
