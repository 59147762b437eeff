/* ops/norm.c - the two norms, token by token; y may be x.
 *
 *   RMS norm    y = x / sqrt(mean(x^2) + eps) * weight                        4 d FLOPs
 *   layer norm  y = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias   7 d FLOPs
 *
 * Reads 12 d bytes a token (x twice, weight), from the caches: microseconds, so the caller's thread
 * does it alone. Oracle: numpy in float64, tests/native/test_token_kernels.py and test_relu_ffn.py.
 */
#include "core/internal.h"

#include <math.h>

#define LANES 8

/* Sum of x in double, in eight lanes: one fixed order, and no chain of d dependent additions. */
static double sum_of(const float *x, int64_t d) {
    double lane[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] += (double)x[i + j];
    for (int j = 0; i < d; i++, j++)
        lane[j] += (double)x[i];
    for (int j = 0; j < LANES; j++)
        sum += lane[j];
    return sum;
}

hc_status hc_norm_rows(int32_t kind, const float *x_BD, const float *weight_D, const float *bias_D,
                       float eps, float *y_BD, int32_t batch, int64_t d) {
    const int layer = kind == HC_NORM_LAYER;
    const char *name = layer ? "layernorm" : "rmsnorm";
    if (!x_BD || !weight_D || !y_BD)
        return hc_fail(HC_ERR_ARGUMENT, "%s: x, weight and y must be given", name);
    if (batch < 1 || batch > HC_MAX_BATCH || d < 1 || d > HC_MAX_D)
        return hc_fail(HC_ERR_ARGUMENT, "%s: batch %d of %lld; 1 to %d of 1 to %d", name, batch,
                       (long long)d, HC_MAX_BATCH, HC_MAX_D);
    if (!(eps >= 0))
        return hc_fail(HC_ERR_ARGUMENT, "%s: eps %g; 0 is the least", name, (double)eps);
    const hc_primitives *p = hc_primitives_get();
    if (!p)
        return HC_ERR_UNSUPPORTED;
    for (int32_t b = 0; b < batch; b++) {
        const float *x = x_BD + b * d;
        float *y = y_BD + b * d, squares;
        if (layer) { /* first: squares of what is left round far less than of x */
            const float mean = (float)(sum_of(x, d) / (double)d);
            for (int64_t i = 0; i < d; i++)
                y[i] = x[i] - mean;
            x = y;
        }
        /* The row's product with itself: dot has a fixed order, so a norm has the same bits in
         * any batch. */
        const void *row = x;
        p->dot[HC_F32](&row, NULL, 1, x, d, 0, &squares);
        const float scale = 1.0f / sqrtf(squares / (float)d + eps);
        if (bias_D)
            for (int64_t i = 0; i < d; i++)
                y[i] = x[i] * scale * weight_D[i] + bias_D[i];
        else
            for (int64_t i = 0; i < d; i++)
                y[i] = x[i] * scale * weight_D[i];
    }
    return HC_OK;
}
