// rows.cuh - one row of activations as a block of the dense prompt phase reads it: normed on the way.
// A row is read twice (three times with a layer norm: mean, squares, values): from L2 after the
// first time, and no buffer for normed activations is needed.
#ifndef HOTCOLD_ROWS_CUH
#define HOTCOLD_ROWS_CUH
#include "cuda/kernels/common.cuh"
#include "cuda/prompt/dense.h"

namespace hotcold {

// A function of the column, for the kernel to call: x is not copied.
struct NormedRow {
    const float *x, *weight_D, *bias_D;
    float mean, scale; // 0 for the rms norm; 1 over the deviation, or over the root of the squares

    __device__ __forceinline__ float operator()(int i) const {
        if (!weight_D)
            return x[i];
        const float v = (x[i] - mean) * scale * weight_D[i];
        return bias_D ? v + bias_D[i] : v;
    }
};

// Row t of d elements, by the whole block; scratch: 33 floats. The mean is taken out before squares
// are summed, as in norm.cu: squares of what is left round far less than those of x.
__device__ __forceinline__ NormedRow normed_row(const Rows &a, int t, int d, float *scratch) {
    const float *x = a.x + t * a.stride;
    NormedRow row = {x, a.norm_D, a.norm_bias_D, 0, 1};
    if (!a.norm_D)
        return row;
    if (a.kind == HC_NORM_LAYER) {
        float sum = 0;
        // The order of these sums follows from d and the block's size (256 threads everywhere),
        // never from the number of tokens.
        for (int i = threadIdx.x; i < d; i += blockDim.x)
            sum += x[i];
        row.mean = block_sum(sum, scratch) / static_cast<float>(d);
    }
    float squares = 0;
    for (int i = threadIdx.x; i < d; i += blockDim.x)
        squares = fmaf(x[i] - row.mean, x[i] - row.mean, squares);
    row.scale = rsqrtf(block_sum(squares, scratch) / static_cast<float>(d) + a.eps);
    return row;
}

} // namespace hotcold
#endif
