// norm.cuh - rms norm of rows by one block: y = x / sqrt(mean(x^2) + eps) * weight.
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

} // namespace hotcold
#endif
