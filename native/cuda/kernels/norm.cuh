// norm.cuh - rms norm of a row by one block: y = x / sqrt(mean(x^2) + eps) * weight.
//
// The sum of squares has one order in a block of any size, that of NORM_LANES lanes: lane i takes the
// packs of four elements i, i + NORM_LANES, ... and adds their elements in turn; the lanes of a warp
// are summed by a butterfly, the warps in order. A thread of a smaller block stands for several
// lanes. So a normed row has the same bits whichever kernel writes it and whatever the batch.
#ifndef HOTCOLD_NORM_CUH
#define HOTCOLD_NORM_CUH
#include "cuda/kernels/common.cuh"

namespace hotcold {

constexpr int NORM_LANES = 512;

// 1 / rms of a row of d, by a whole block. vec: rows lie on 16 bytes.
// Threads call it together: it has a barrier, and its shared words are written once.
template <int THREADS>
__device__ __forceinline__ float norm_scale(const float *x, int d, float eps, bool vec) {
    constexpr int EACH = NORM_LANES / THREADS, WARPS = NORM_LANES / WARP;
    static_assert(EACH * THREADS == NORM_LANES && THREADS % WARP == 0, "lanes");
    __shared__ float shared[WARPS];
    float squares[EACH] = {};
    // EACH lanes a thread, all their loads before the first use.
    for (int at = 4 * threadIdx.x; at < d; at += 4 * NORM_LANES) {
        float part[EACH][4] = {};
#pragma unroll
        for (int k = 0; k < EACH; k++)
            if (at + 4 * THREADS * k < d)
                load_floats<4>(x, at + 4 * THREADS * k, d, vec, part[k]);
#pragma unroll
        for (int k = 0; k < EACH; k++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                squares[k] = fmaf(part[k][i], part[k][i], squares[k]);
    }
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        squares[k] = warp_sum(squares[k]);
        if (threadIdx.x % WARP == 0)
            // Lane k's warp number is that of the lane in a block of NORM_LANES threads.
            shared[(threadIdx.x + THREADS * k) / WARP] = squares[k];
    }
    __syncthreads();
    // Every thread adds the warps' sums itself, in order: no second barrier.
    float sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++)
        sum += shared[w];
    return rsqrtf(sum / static_cast<float>(d) + eps);
}

// The row into y, which may be x, and where host is not NULL into host memory. Once a kernel.
template <int THREADS>
__device__ __forceinline__ void norm_row(const float *x, const float *weight_D, int d, float eps,
                                         float *y, float *host) {
    constexpr int EACH = NORM_LANES / THREADS;
    const bool vec = d % 4 == 0;
    const float scale = norm_scale<THREADS>(x, d, eps, vec);
    // x is read a second time, from L1 or L2, so a row may be of any length. y may be x: a thread
    // writes only elements that it alone reads.
    for (int at = 4 * threadIdx.x; at < d; at += 4 * NORM_LANES) {
        float part[EACH][4] = {}, weight[EACH][4] = {};
#pragma unroll
        for (int k = 0; k < EACH; k++)
            if (at + 4 * THREADS * k < d) {
                load_floats<4>(x, at + 4 * THREADS * k, d, vec, part[k]);
                load_floats<4>(weight_D, at + 4 * THREADS * k, d, vec, weight[k]);
            }
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const int first = at + 4 * THREADS * k;
#pragma unroll
            for (int i = 0; i < 4; i++)
                part[k][i] = part[k][i] * scale * weight[k][i];
            if (first >= d)
                continue;
            store_floats(y, first, d, vec, part[k]);
            if (host)
                store_floats(host, first, d, vec, part[k]);
        }
    }
}

} // namespace hotcold
#endif
