/* The CPU variants against double, as a program: what runs where Python does not (under qemu).
 *
 * Every supported variant computes dots, the sparse FFN, attention and sampling; prints a line each,
 * ends with 1 at the first wrong result.
 */
#include "core/internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_D 1040
#define ROWS  13
#define N     37

static uint64_t state = 1;
static int64_t cases;

static double uniform(void) { /* in (-1, 1) */
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)state / 9223372036854775808.0;
}

/* Bytes from a row to its scales, and to the next row. */
static int64_t scales_of(int dtype, int64_t d) {
    return dtype == HC_I8 ? (d + 15) / 16 * 16 : 0;
}
static int64_t row_of(int dtype, int64_t d) {
    return dtype == HC_I8 ? scales_of(dtype, d) + ((d + 63) / 64 * 2 + 15) / 16 * 16
                          : d * hc_dtype_bytes(dtype);
}

/* Weight i of row r. */
static float widened(const void *w, int64_t r, int64_t d, int64_t i, int dtype) {
    uint32_t bits;
    float value;
    const char *row = (const char *)w + r * row_of(dtype, d);
    if (dtype == HC_F32)
        return ((const float *)row)[i];
    if (dtype == HC_I8)
        return (float)((const int8_t *)row)[i] *
               (float)((const _Float16 *)(row + scales_of(dtype, d)))[i / 64];
    const uint16_t half = ((const uint16_t *)row)[i];
    if (dtype == HC_F16) {
        _Float16 f16;
        memcpy(&f16, &half, sizeof f16);
        return (float)f16;
    }
    bits = (uint32_t)half << 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void store(char *row, int64_t d, int64_t i, int dtype, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (dtype == HC_F32)
        ((float *)row)[i] = value;
    else if (dtype == HC_F16)
        ((_Float16 *)row)[i] = (_Float16)value;
    else if (dtype == HC_BF16)
        ((uint16_t *)row)[i] = (uint16_t)(bits >> 16);
    else {
        ((int8_t *)row)[i] = (int8_t)(127 * value);
        if (i % 64 == 0)
            ((_Float16 *)(row + scales_of(dtype, d)))[i / 64] = (_Float16)(uniform() / 127);
    }
}

static void fill(void *w, int64_t rows, int64_t d, int dtype) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < d; i++)
            store((char *)w + r * row_of(dtype, d), d, i, dtype, (float)uniform());
}

static void expect(const char *what, int dtype, int64_t d, double got, double exact,
                   double allowed) {
    cases++;
    if (fabs(got - exact) <= allowed)
        return;
    printf("%s: %s, dtype %d, d %lld: %.9g, expected %.9g\n", hc_cpu_active(), what, dtype,
           (long long)d, got, exact);
    exit(1);
}

static void check_status(hc_status status) {
    if (status == HC_OK)
        return;
    printf("%s\n", hc_last_error()->text);
    exit(1);
}

static void gemv(int dtype, int64_t d, int32_t batch, hc_pool *pool) {
    static float w[ROWS * (MAX_D + 16)], x[32 * MAX_D], y[32 * ROWS], alone[ROWS];
    fill(w, ROWS, d, dtype);
    for (int64_t i = 0; i < batch * d; i++)
        x[i] = (float)uniform();
    hc_gemv_args a = {.w = w,
                      .stride_bytes = row_of(dtype, d),
                      .rows = ROWS,
                      .d = d,
                      .dtype = dtype,
                      .scales = scales_of(dtype, d),
                      .batch = batch,
                      .x_BD = x,
                      .x_stride = d,
                      .y_BR = y,
                      .y_stride = ROWS};
    check_status(hc_gemv(&a, pool));
    for (int32_t b = 0; b < batch; b++) {
        hc_gemv_args one = a;
        one.batch = 1, one.x_BD = x + b * d, one.y_BR = alone;
        check_status(hc_gemv(&one, NULL));
        for (int64_t r = 0; r < ROWS; r++) {
            double sum = 0, size = 0;
            for (int64_t i = 0; i < d; i++) {
                const double term = (double)widened(w, r, d, i, dtype) * x[b * d + i];
                sum += term, size += fabs(term);
            }
            expect("gemv", dtype, d, y[b * ROWS + r], sum, 2e-6 * size);
            expect("gemv alone", dtype, d, alone[r], y[b * ROWS + r], 0);
        }
    }
}

static void ffn(int dtype, int64_t d, int32_t batch, hc_pool *pool) {
    static float w[N * 3 * (MAX_D + 16)], x[32 * MAX_D], y[32 * MAX_D], alone[MAX_D];
    static _Alignas(64) char scratch[64 * 1024];
    int32_t ids[N], n = 0;
    for (int32_t i = 0; i < N; i++)
        if (i % 5)
            ids[n++] = i;
    const int64_t row = row_of(dtype, d);
    fill(w, 3 * N, d, dtype);
    for (int64_t i = 0; i < batch * d; i++)
        x[i] = (float)uniform();
    hc_ffn_args a = {.records = w,
                     .record = {.bytes = 3 * row,
                                .up = row,
                                .down = 2 * row,
                                .dtype = dtype,
                                .scales = scales_of(dtype, d),
                                .group = dtype == HC_I8 ? HC_GROUP : 0},
                     .d = d,
                     .batch = batch,
                     .ids = ids,
                     .n_ids = n,
                     .n = N,
                     .x_BD = x,
                     .y_BD = y,
                     .scratch = scratch};
    check_status(hc_ffn(&a, pool));
    for (int32_t b = 0; b < batch; b++) {
        static double exact[MAX_D];
        double scale = 1;
        memset(exact, 0, sizeof exact);
        for (int32_t k = 0; k < n; k++) {
            double gate = 0, up = 0;
            for (int64_t i = 0; i < d; i++) {
                gate += (double)widened(w, 3 * ids[k], d, i, dtype) * x[b * d + i];
                up += (double)widened(w, 3 * ids[k] + 1, d, i, dtype) * x[b * d + i];
            }
            for (int64_t i = 0; gate > 0 && i < d; i++) {
                exact[i] += gate * up * widened(w, 3 * ids[k] + 2, d, i, dtype);
                scale = fmax(scale, fabs(exact[i]));
            }
        }
        hc_ffn_args one = a;
        one.batch = 1, one.x_BD = x + b * d, one.y_BD = alone;
        check_status(hc_ffn(&one, NULL));
        for (int64_t i = 0; i < d; i++) {
            expect("ffn", dtype, d, y[b * d + i], exact[i], 1e-5 * scale);
            expect("ffn alone", dtype, d, alone[i], y[b * d + i], 0);
        }
    }
}

static void attention(int32_t head_dim, int32_t context) {
    static float q[2 * 64], k[200 * 64], v[200 * 64], scores[200], out[2 * 64];
    for (int i = 0; i < 2 * head_dim; i++)
        q[i] = (float)(3 * uniform());
    for (int i = 0; i < context * head_dim; i++)
        k[i] = (float)uniform(), v[i] = (float)uniform();
    const int32_t position = context - 1;
    hc_attention_args a = {.q = q,
                           .q_stride = 2 * head_dim,
                           .k_cache = k,
                           .v_cache = v,
                           .heads = 2,
                           .kv_heads = 1,
                           .head_dim = head_dim,
                           .batch = 1,
                           .context = context,
                           .position_B = &position,
                           .scores = scores,
                           .out = out};
    check_status(hc_attention(&a, NULL));
    for (int head = 0; head < 2; head++) {
        double share[200], sum = 0;
        for (int p = 0; p < context; p++) {
            double score = 0;
            for (int e = 0; e < head_dim; e++)
                score += (double)q[head * head_dim + e] * k[p * head_dim + e];
            sum += share[p] = exp(score / sqrt(head_dim));
        }
        for (int e = 0; e < head_dim; e++) {
            double value = 0;
            for (int p = 0; p < context; p++)
                value += share[p] / sum * v[p * head_dim + e];
            expect("attention", 0, head_dim, out[head * head_dim + e], value, 1e-5);
        }
    }
}

static void sampling(void) {
    static float logits[5003], prob[5003];
    static int32_t ids[5003];
    double sum = 0, best = -INFINITY;
    for (int i = 0; i < 5003; i++) {
        logits[i] = (float)(12 * uniform());
        sum += exp(logits[i]);
        best = fmax(best, logits[i]);
    }
    hc_sample_args a = {
        .logits_V = logits, .vocab = 5003, .top_p = 1, .scratch_V = ids, .prob_V = prob};
    check_status(hc_sample(&a));
    expect("greedy", 0, 5003, logits[a.id], best, 0);
    expect("log probability", 0, 5003, a.logprob, best - log(sum), 2e-5);
    logits[17] = NAN;
    expect("a NaN is found", 0, 5003, hc_primitives_get()->max(logits, 5003) > 0, 0, 0);
}

static void signs(int64_t words, int32_t planes) {
    static uint64_t rows[ROWS * 33], bits[8 * 33];
    int64_t counts[ROWS];
    for (int64_t i = 0; i < ROWS * words; i++)
        rows[i] = (uint64_t)(int64_t)(uniform() * 9e18);
    for (int64_t i = 0; i < planes * words; i++)
        bits[i] = (uint64_t)(int64_t)(uniform() * 9e18) << 1;
    hc_primitives_get()->sign_count(rows, ROWS, bits, planes, words, counts);
    for (int64_t r = 0; r < ROWS; r++) {
        int64_t sum = 0;
        for (int64_t k = 0; k < planes * words; k++)
            for (int b = 0; b < 64; b++)
                sum += (int64_t)((rows[r * words + k % words] ^ bits[k]) >> b & 1) << k / words;
        expect("sign_count", planes, words, (double)counts[r], (double)sum, 0);
    }
}

static void halves(void) {
    for (uint32_t bits = 0; bits < 1 << 16; bits++)
        for (int dtype = HC_F16; dtype <= HC_BF16; dtype++) {
            const uint16_t half = (uint16_t)bits;
            const void *row = &half;
            const float one = 1, exact = widened(&half, 0, 1, 0, dtype);
            float got;
            hc_primitives_get()->dot[dtype](&row, NULL, 1, &one, 1, 0, &got);
            if (!isfinite(exact))
                continue;
            expect("one weight", dtype, bits, got, exact, 0);
        }
}

int main(void) {
    static const int64_t widths[] = {1, 3, 7, 8, 15, 16, 17, 31, 32, 65, 320, 513, MAX_D};
    hc_pool *pool = hc_pool_create(2, NULL, 1);
    for (int32_t i = 0; hc_cpu_variant(i); i++) {
        check_status(hc_cpu_force(hc_cpu_variant(i)));
        cases = 0;
        for (int dtype = 0; dtype < HC_DTYPES; dtype++)
            for (size_t k = 0; k < sizeof widths / sizeof *widths; k++)
                for (int32_t batch = 1; batch <= 32; batch = batch * 5 - 2) {
                    gemv(dtype, widths[k], batch, pool);
                    ffn(dtype, widths[k], batch, pool);
                }
        for (int32_t context = 1; context <= 200; context += 61)
            attention(1, context), attention(24, context), attention(64, context);
        for (int64_t words = 1; words <= 33; words += 4)
            for (int32_t planes = 1; planes <= 8; planes++)
                signs(words, planes);
        sampling();
        halves();
        printf("%s: %lld results are right\n", hc_cpu_active(), (long long)cases);
    }
    hc_pool_destroy(pool);
    return 0;
}
