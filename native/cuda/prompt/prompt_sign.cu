// prompt_sign.cu - the predictor of one bit a weight for the many tokens of a dense prompt pass.
//
//   pack   a block a token: the input normed, its largest magnitude, then bit planes as in sign.cu
//   score  a product of bits: 64 neurons by 32 tokens a block, a thread 4 by 2, WORDS words at a time
//          in shared memory; sum over planes of 2^p popcount(row ^ plane_p), then the threshold
//
// The same whole numbers as sign.cu and native/ops/sign.c, and the same two roundings behind them:
// from the same input the same proposals, bit for bit.
//
// A layer costs T N W P popcounts of 64 bits (512 tokens, 13824 neurons of 5120, 8 planes: 4.5 G, 16
// halves a clock and SM: 2.5 ms), while the bus needs longer for the layer's cold records.
// Oracle: SignLayer (runtime/predictors/predictor_forms.py), in tests/cuda/test_kernels_prompt.py.
#include "cuda/kernels/sign.cuh"
#include "cuda/prompt/rows.cuh"

namespace hotcold {
namespace {

constexpr int THREADS = 256;
// Shared memory: WORDS * 8 * (NEURONS + PLANES * TOKENS) = 10 KB. PLANES: the most input bits.
constexpr int NEURONS = 64, TOKENS = 32, WORDS = 4, PLANES = 8, SIDE = 16;
constexpr int EACH_N = NEURONS / SIDE, EACH_T = TOKENS / SIDE;
static_assert(SIDE * SIDE == THREADS, "a thread has its own corner of the tile");

struct Bits : PromptSign {
    int32_t words;
};

__global__ void __launch_bounds__(THREADS) pack_kernel(const Bits a) {
    __shared__ float scratch[33];
    const int t = blockIdx.x;
    const NormedRow x = normed_row(a.x, t, a.d, scratch);
    uint64_t *planes = a.planes_TPW + static_cast<int64_t>(t) * a.input_bits * a.words;
    pack_planes(x, a.column_D, a.d, a.input_bits, a.words, planes, a.step_T + t, scratch);
}

// Words [w0, w0 + WORDS) of the tile's rows and planes; zeros beyond the last neuron, token and word,
// which differ nowhere.
__device__ __forceinline__ void load_tile(const Bits &a, int row0, int token0, int w0,
                                          uint64_t (&rows)[WORDS][NEURONS],
                                          uint64_t (&planes)[WORDS][PLANES][TOKENS]) {
    for (int i = threadIdx.x; i < NEURONS * WORDS; i += THREADS) {
        const int r = row0 + i / WORDS, w = w0 + i % WORDS;
        const bool there = r < a.n && w < a.words;
        // Word-major: threads of a half-warp then read 16 neighbouring neurons of one word.
        rows[i % WORDS][i / WORDS] =
            there ? __ldg(a.signs_NW + static_cast<int64_t>(r) * a.words + w) : 0;
    }
    const int each = a.input_bits * WORDS;
    for (int i = threadIdx.x; i < TOKENS * each; i += THREADS) {
        const int t = token0 + i / each, p = i % each / WORDS, w = w0 + i % WORDS;
        const bool there = t < a.tokens && w < a.words;
        const int64_t plane = static_cast<int64_t>(t) * a.input_bits + p;
        planes[i % WORDS][p][i / each] = there ? a.planes_TPW[plane * a.words + w] : 0;
    }
}

// Thread (tn, tt) owns neurons tn + 16 j and tokens tt + 16 i: each loaded row word meets EACH_T
// planes, each plane word EACH_N rows.
__global__ void __launch_bounds__(THREADS) score_kernel(const Bits a) {
    __shared__ uint64_t rows[WORDS][NEURONS], planes[WORDS][PLANES][TOKENS];
    const int row0 = blockIdx.x * NEURONS, token0 = blockIdx.y * TOKENS;
    const int tn = threadIdx.x % SIDE, tt = threadIdx.x / SIDE;
    int differing[EACH_T][EACH_N] = {};
    for (int w0 = 0; w0 < a.words; w0 += WORDS) {
        // Nobody still reads the last tile; then: this one is there.
        __syncthreads();
        load_tile(a, row0, token0, w0, rows, planes);
        __syncthreads();
#pragma unroll
        for (int w = 0; w < WORDS; w++) {
            uint64_t row[EACH_N];
#pragma unroll
            for (int j = 0; j < EACH_N; j++)
                row[j] = rows[w][tn + SIDE * j];
            for (int p = 0; p < a.input_bits; p++)
#pragma unroll
                for (int i = 0; i < EACH_T; i++) {
                    const uint64_t plane = planes[w][p][tt + SIDE * i];
#pragma unroll
                    for (int j = 0; j < EACH_N; j++)
                        differing[i][j] += __popcll(row[j] ^ plane) << p;
                }
        }
    }
#pragma unroll
    for (int i = 0; i < EACH_T; i++)
#pragma unroll
        for (int j = 0; j < EACH_N; j++) {
            const int t = token0 + tt + SIDE * i, r = row0 + tn + SIDE * j;
            if (t >= a.tokens || r >= a.n)
                continue;
            a.mask[static_cast<int64_t>(t) * a.n + r] = fires(a, r, a.step_T[t], differing[i][j]);
        }
}

} // namespace

void prompt_sign(const PromptSign &args, const Launch &launch) {
    const Bits a = {args, (args.d + 63) / 64};
    enqueue<Bits>(pack_kernel, dim3(args.tokens), THREADS, 0, launch, a);
    const dim3 grid((args.n + NEURONS - 1) / NEURONS, (args.tokens + TOKENS - 1) / TOKENS);
    enqueue<Bits>(score_kernel, grid, THREADS, 0, launch, a);
}

} // namespace hotcold
