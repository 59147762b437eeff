// sign.cu - the predictor that reads only the signs of the gate rows: native/ops/sign.c on the GPU.
//
//   pack   a block a token: largest magnitude, then bit planes [B][P][W] of 64 inputs a word
//   score  a warp a neuron: sum over planes of 2^p popcount(row ^ plane), then the threshold
//
// Bytes: 8 W + 8 a neuron (5120 x 13824: 8.9 MB a layer, 3 us); whole numbers up to the last two
// products, each rounded by itself: the same proposals as on the CPU, bit for bit, in any batch.
// Operations: P W xors, popcounts and shifted additions a neuron and token. At 8 a clock and
// multiprocessor the 8.8 M popcounts of 8 planes above take 5 us: with many planes they are the
// bound, with few the bytes.
// Oracle: SignLayer (runtime/predictors/predictor_forms.py), in tests/cuda/test_kernels.py.
#include "cuda/kernels/sign.cuh"

namespace hotcold {
namespace v1 {

constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int KEEP = 4; // words of a row a lane holds, requested before the planes are there

struct Sign1 : Sign {
    int32_t words;
};

__global__ void __launch_bounds__(THREADS) pack_kernel(const Sign1 a) {
    __shared__ float scratch[WARPS];
    launch_next();
    wait_prior();
    stamp(a.stamps, AT_PREDICT);
    const int b = blockIdx.x;
    if (b >= a.pass->batch)
        return;
    const float *x = a.x + static_cast<int64_t>(b) * a.d;
    uint64_t *planes = a.planes_BPW + static_cast<int64_t>(b) * a.input_bits * a.words;
    pack_planes([&](int i) { return x[i]; }, a.column_D, a.d, a.input_bits, a.words, planes,
                a.step_B + b, scratch);
}

// Differing bits of one word and its planes, each plane at its weight.
__device__ __forceinline__ int differing(const Sign1 &a, const uint64_t *planes, uint64_t row,
                                         int word) {
    int count = 0;
    for (int p = 0; p < a.input_bits; p++)
        count += __popcll(row ^ planes[static_cast<int64_t>(p) * a.words + word]) << p;
    return count;
}

// Lane l holds words l, l + 32, ... of the neuron's row. KEEP words a lane are 8192 weights; a
// longer row's rest is read in the loop, once a token.
__global__ void __launch_bounds__(THREADS) score_kernel(const Sign1 a) {
    const int lane = threadIdx.x % WARP, row = blockIdx.x * WARPS + threadIdx.x / WARP;
    launch_next();
    const uint64_t *signs = a.signs_NW + static_cast<int64_t>(min(row, a.n - 1)) * a.words;
    uint64_t own[KEEP];
#pragma unroll
    for (int i = 0; i < KEEP; i++)
        // Signs are weights: requested before the planes, which pack_kernel writes, are there.
        own[i] = lane + i * WARP < a.words ? __ldg(signs + lane + i * WARP) : 0;
    wait_prior();
    if (row >= a.n)
        return;
    const int batch = a.pass->batch;
    unsigned bits = 0;
    for (int b = 0; b < batch; b++) {
        const uint64_t *planes = a.planes_BPW + static_cast<int64_t>(b) * a.input_bits * a.words;
        int count = 0;
#pragma unroll
        for (int i = 0; i < KEEP; i++)
            if (lane + i * WARP < a.words)
                count += differing(a, planes, own[i], lane + i * WARP);
        for (int w = lane + KEEP * WARP; w < a.words; w += WARP)
            count += differing(a, planes, __ldg(signs + w), w);
        count = warp_sum(count);
        bits |= static_cast<unsigned>(fires(a, row, a.step_B[b], count)) << b;
    }
    // One writer a word, all tokens at once; bits of tokens past the pass are 0 here.
    if (lane == 0)
        a.members_N[row] = bits;
}

} // namespace v1

void sign(const Sign &args, int bucket, const Launch &launch) {
    const v1::Sign1 a = {args, (args.d + 63) / 64};
    enqueue<v1::Sign1>(v1::pack_kernel, dim3(bucket), v1::THREADS, 0, launch, a);
    const int blocks = (args.n + v1::WARPS - 1) / v1::WARPS;
    enqueue<v1::Sign1>(v1::score_kernel, dim3(blocks), v1::THREADS, 0, launch, a);
}

} // namespace hotcold
