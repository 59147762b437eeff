/* ops/norm.c - RMS norm: y = x / sqrt(mean(x^2) + eps) * weight. 4 d FLOPs a token.
 *
 * y may be x.
 */
#include "internal.h"

#include <math.h>

hc_status hc_rmsnorm(const float *x_BD, const float *weight_D, float eps, float *y_BD,
                     int32_t batch, int64_t d) {
    if (!x_BD || !weight_D || !y_BD)
        return hc_fail(HC_ERR_ARGUMENT, "rmsnorm: x, weight and y must be given");
    if (batch < 1 || batch > HC_MAX_BATCH || d < 1 || d > HC_MAX_D)
        return hc_fail(HC_ERR_ARGUMENT, "rmsnorm: batch %d of %lld; 1 to %d of 1 to %d", batch,
                       (long long)d, HC_MAX_BATCH, HC_MAX_D);
    if (!(eps >= 0))
        return hc_fail(HC_ERR_ARGUMENT, "rmsnorm: eps %g; 0 is the least", (double)eps);
    const hc_primitives *p = hc_primitives_get();
    if (!p)
        return HC_ERR_UNSUPPORTED;
    for (int32_t b = 0; b < batch; b++) {
        const float *x = x_BD + b * d;
        float *y = y_BD + b * d, squares;
        const void *row = x;
        p->dot[HC_F32](&row, NULL, 1, x, d, &squares);
        const float scale = 1.0f / sqrtf(squares / (float)d + eps);
        for (int64_t i = 0; i < d; i++)
            y[i] = x[i] * scale * weight_D[i];
    }
    return HC_OK;
}
