/* ops/rotary.c - rotary position embedding, rotate-half form, in place.
 *
 * A head's elements e and e + head_dim/2 are one pair, turned by the angle of its position:
 * (a, b) -> (a cos - b sin, b cos + a sin). 3 FLOPs an element; the tables cover every position the
 * caller passes.
 */
#include "core/internal.h"

static void turn_head(float *head, int32_t half, const float *cos_E, const float *sin_E) {
    float *low = head, *high = head + half;
    for (int32_t e = 0; e < half; e++) {
        const float a = low[e], b = high[e];
        low[e] = a * cos_E[e] - b * sin_E[e];
        high[e] = b * cos_E[e] + a * sin_E[e];
    }
}

hc_status hc_rotary(float *x, int64_t x_stride, int32_t heads, int32_t head_dim,
                    const float *cos_PE, const float *sin_PE, const int32_t *position_B,
                    int32_t batch) {
    if (!x || !cos_PE || !sin_PE || !position_B)
        return hc_fail(HC_ERR_ARGUMENT, "rotary: x, both tables and positions must be given");
    if (batch < 1 || batch > HC_MAX_BATCH)
        return hc_fail(HC_ERR_ARGUMENT, "rotary: batch %d; 1 to %d are possible", batch,
                       HC_MAX_BATCH);
    if (heads < 1 || head_dim < 2 || head_dim % 2 || (int64_t)heads * head_dim > HC_MAX_D)
        return hc_fail(HC_ERR_ARGUMENT, "rotary: %d heads of %d; a head has an even size", heads,
                       head_dim);
    if (batch > 1 && x_stride < (int64_t)heads * head_dim)
        return hc_fail(HC_ERR_ARGUMENT, "rotary: tokens %lld floats apart; one takes %lld",
                       (long long)x_stride, (long long)heads * head_dim);
    for (int32_t b = 0; b < batch; b++)
        if (position_B[b] < 0)
            return hc_fail(HC_ERR_ARGUMENT, "rotary: position %d; 0 is the least", position_B[b]);
    const int32_t half = head_dim / 2;
    for (int32_t b = 0; b < batch; b++) {
        const int64_t row = (int64_t)position_B[b] * half;
        for (int32_t h = 0; h < heads; h++)
            turn_head(x + b * x_stride + (int64_t)h * head_dim, half, cos_PE + row, sin_PE + row);
    }
    return HC_OK;
}
