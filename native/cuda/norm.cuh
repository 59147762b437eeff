// norm.cuh - norms of rows by one block: y = x / sqrt(mean(x^2) + eps) * weight, or a layer norm.
#ifndef HOTCOLD_NORM_CUH
#define HOTCOLD_NORM_CUH
#include "common.cuh"

namespace hotcold {

// Rows [first, end) by the whole block, also into host memory and with x itself beside it.
__device__ __forceinline__ void norm_rows(const float *x_BD, const float *weight_D, int64_t d,
                                          float eps, float *y_BD, float *host_BD,
                                          float *residual_BD, int first, int end) {
    __shared__ float scratch[33];
    for (int b = first; b < end; b++) {
        const float *x = x_BD + b * d;
        float squares = 0;
        for (int64_t i = threadIdx.x; i < d; i += blockDim.x)
            squares = fmaf(x[i], x[i], squares);
        squares = block_sum(squares, scratch);
        const float scale = rsqrtf(squares / static_cast<float>(d) + eps);
        for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
            const float y = x[i] * scale * weight_D[i];
            y_BD[b * d + i] = y;
            if (host_BD)
                host_BD[b * d + i] = y;
            if (residual_BD)
                residual_BD[b * d + i] = x[i];
        }
    }
}

// y = (x - mean) / sqrt(variance + eps) * weight + bias of one row by the whole block; y may be x.
__device__ __forceinline__ void layer_norm_row(const float *x, const float *weight_D,
                                               const float *bias_D, int64_t d, float eps, float *y,
                                               float *host) {
    __shared__ float scratch[33];
    float sum = 0, squares = 0;
    for (int64_t i = threadIdx.x; i < d; i += blockDim.x)
        sum += x[i];
    const float mean = block_sum(sum, scratch) / static_cast<float>(d);
    for (int64_t i = threadIdx.x; i < d; i += blockDim.x)
        squares = fmaf(x[i] - mean, x[i] - mean, squares);
    const float scale = rsqrtf(block_sum(squares, scratch) / static_cast<float>(d) + eps);
    for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
        const float value = (x[i] - mean) * scale * weight_D[i] + (bias_D ? bias_D[i] : 0.0f);
        y[i] = value;
        if (host)
            host[i] = value;
    }
}

} // namespace hotcold
#endif
