// gemv.cuh - what the variants of gemv share: the epilogue, and the way to the one-token variant.
#ifndef HOTCOLD_GEMV_CUH
#define HOTCOLD_GEMV_CUH
#include "cuda/kernels/common.cuh"

namespace hotcold {

// Results of one row for B tokens of a group of eight. What was scaled comes in rounded (__fmul_rn):
// one kernel must not fuse it with the addition here where another does not.
// Called by one thread a row, with the row's whole sums. `group`: which eight tokens y holds.
template <int B>
__device__ __forceinline__ void write_out(const Gemv &a, int row, int group, const float (&y)[B]) {
    const float bias = a.bias_R ? a.bias_R[row] : 0.0f;
    // A row's word has a byte for each eight tokens, low byte first, so groups write without
    // atomics and a reader sees bit b as token b. Bits of tokens past the pass are left for the
    // reader to mask.
    if (a.epilogue == MEMBERS) {
        unsigned bits = 0;
#pragma unroll
        for (int b = 0; b < B; b++)
            bits |= static_cast<unsigned>(y[b] + bias >= a.threshold) << b;
        a.members[4 * static_cast<int64_t>(row) + group] = static_cast<uint8_t>(bits);
        return;
    }
#pragma unroll
    for (int b = 0; b < B; b++) {
        float *to = a.y + (group * 8 + b) * a.y_stride + row;
        // One thread owns this element: no atomics.
        if (a.epilogue == ADD)
            *to += y[b] + bias;
        else
            *to = a.epilogue == RELU ? fmaxf(y[b] + bias, 0.0f) : y[b] + bias;
    }
}

// Does a row take part in this pass, by its `when`?
// A graph for more than one token has a head for one row and a head for all rows. Where logits are
// wanted exactly one of them takes part, and none where head_rows is 0 (a prompt's inner blocks).
__device__ __forceinline__ bool takes_part(const Gemv &a) {
    const int rows = a.pass->head_rows, batch = a.pass->batch;
    return a.when == HC_WHEN_ALWAYS ||
           (a.when == HC_WHEN_ONE_ROW ? rows == 1 : rows == batch && batch > 1);
}

// gemv_one.cu: one token; false where the shape needs v1.
bool gemv_one(const Gemv &args, bool vec, const Launch &launch);

} // namespace hotcold
#endif
