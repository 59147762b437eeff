// sign.cuh - one bit a weight: an input as bit planes, and a score from counted bits.
//
// Shared by sign.cu (a few tokens) and prompt_sign.cu (many): the arithmetic that makes their
// proposals equal to those of native/ops/sign.c, bit for bit. How rows are counted against planes
// is each file's own.
#ifndef HOTCOLD_SIGN_CUH
#define HOTCOLD_SIGN_CUH
#include "cuda/kernels/common.cuh"

namespace hotcold {

// input(i), times column_D where there is one, in steps of largest / 2^(bits - 1): plane p holds bit p
// of the step, 64 elements a word, [bits][words] from planes on; *step is half a step's size. By a
// whole block of up to 32 warps; scratch: as many floats. No elements but the d there are: bits of 0.
template <class Input>
__device__ __forceinline__ void pack_planes(const Input &element, const float *column_D, int d,
                                            int bits, int words, uint64_t *planes, float *step,
                                            float *scratch) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const auto input = [&](int i) {
        return i < d ? __fmul_rn(element(i), column_D ? column_D[i] : 1.0f) : 0.0f;
    };
    float largest = 0;
    for (int i = threadIdx.x; i < d; i += blockDim.x)
        largest = fmaxf(largest, fabsf(input(i)));
    largest = block_max(largest, scratch, blockDim.x / WARP);
    const float half = static_cast<float>(1 << (bits - 1)), top = 2 * half - 1;
    const float inverse = largest > 0 ? __fdiv_rn(half, largest) : 0.0f;
    // 0 to 2^bits - 1, each operation rounded as in ops/sign.c: the __f*_rn forms are never fused.
    const auto level = [&](int i) { // not a number: 0
        const float v = __fadd_rn(floorf(__fmul_rn(input(i), inverse)), half);
        return i < d ? static_cast<unsigned>(fminf(fmaxf(v, 0.0f), top)) : 0u;
    };
    // A warp makes whole words: lane l votes for elements 64 w + l and 64 w + 32 + l, and a ballot
    // is half a word of a plane.
    for (int w = warp; w < words; w += warps) {
        const unsigned low = level(64 * w + lane), high = level(64 * w + WARP + lane);
        for (int p = 0; p < bits; p++) {
            const uint64_t first = __ballot_sync(FULL, low >> p & 1);
            const uint64_t second = __ballot_sync(FULL, high >> p & 1);
            if (lane == 0)
                planes[static_cast<int64_t>(p) * words + w] = first | second << 32;
        }
    }
    if (threadIdx.x == 0)
        *step = largest / (2 * half); // a power of two: exact
}

// Whether a neuron fires whose row differs from the planes in so many bits, each at its plane's
// weight.
template <class Args>
__device__ __forceinline__ bool fires(const Args &a, int row, float step, int differing) {
    const int whole = a.d * ((1 << a.input_bits) - 1);
    const float sum = static_cast<float>(whole - 2 * differing);
    const float score = __fmul_rn(__fmul_rn(sum, step), a.scale_N[row]);
    return (a.bias_N ? __fadd_rn(score, a.bias_N[row]) : score) >= a.threshold;
}

} // namespace hotcold
#endif
