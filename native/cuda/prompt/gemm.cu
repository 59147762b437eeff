// gemm.cu - y = x W^T for many tokens, weights read where they lie (neuron records included).
//
// FLOPs: 2 T R K, twice over on tensor cores, because activations travel as two halves (dense.h).
// 13B, 512 tokens: 27 TFLOP a pass; the bus needs 0.3 s for the 15 GB that are not resident, so 90
// TFLOP/s hide behind it. A neuron's gate and up row are multiplied in one go, so that the pair of
// products feeds on one load of x.
//
// v1, tensor cores: a block is 64 tokens by two tiles of 64 rows (gate and up, or 128 rows), four
// warps of 32 by 32, 32 deep, three stages by cp.async. Rows of tiles are padded by 16 bytes, which
// frees ldmatrix of bank conflicts. Token tiles run fastest over the grid: they share weights in L2.
// v2, float weights and odd shapes: 64 by 64 a block on the ordinary cores.
//
// Oracle: numpy in float64 (tests/cuda/test_kernels_prompt.py), and a token's bits alone against
// those in a block.
#include "cuda/kernels/common.cuh"
#include "cuda/prompt/dense.h"

#include <mma.h>

namespace hotcold {
namespace {

// The mask has all neurons of the layer; row r of this product is neuron ids_R[r] of it.
__device__ __forceinline__ bool proposed(const Gemm &a, int t, int r) {
    return !a.mask || a.mask[t * a.mask_stride + a.ids_R[r]];
}

// One element of the result, of one tile or of a pair (gate, up).
// Each element is written by one thread, so adding to y needs no atomics.
__device__ __forceinline__ void write_out(const Gemm &a, int t, int r, float v, float up,
                                          unsigned &fired) {
    if (a.scale_R)
        v *= a.scale_R[r];
    if (a.bias_R)
        v += a.bias_R[r];
    float *to = a.y + t * a.y_stride + r;
    switch (a.epilogue) {
    case HC_EPILOGUE_STORE:
        *to = v;
        break;
    case HC_EPILOGUE_ADD:
        *to += v;
        break;
    case HC_EPILOGUE_RELU:
        *to = fmaxf(v, 0.0f);
        break;
    case HC_EPILOGUE_MASK:
        a.mask[t * a.mask_stride + r] = v >= a.threshold;
        break;
    case HC_EPILOGUE_PLAIN:
        if (a.bias)
            v += *reinterpret_cast<const float *>(a.w + r * a.stride + a.bias);
        up = 1;
        [[fallthrough]];
    case HC_EPILOGUE_NEURON:
        const bool fires = hc_fires(a.activation, v, a.threshold) && proposed(a, t, r);
        *to = fires ? hc_factor(a.activation, v, up) : 0.0f;
        fired += fires;
    }
}

__device__ __forceinline__ void count_fired(const Gemm &a, unsigned fired) {
    if (!a.fired)
        return;
    fired = __reduce_add_sync(FULL, fired);
    if (threadIdx.x % WARP == 0 && fired)
        atomicAdd(a.fired, fired); // a count: the order of additions does not show
}

namespace v1 {

using namespace nvcuda;
constexpr int TILE = 64, DEEP = 32, STAGES = 3, THREADS = 128;
// Pitches in elements. 40 halves are 80 bytes: eight rows of 16 bytes that ldmatrix reads at once
// begin at banks 0, 20, 8, 28, 16, 4, 24 and 12, so they hit every bank once.
constexpr int PITCH = DEEP + PACK, PITCH_T = TILE + PACK, PITCH_Y = TILE + 4;
constexpr int PART = TILE * PITCH * 2; // bytes of one matrix of a stage
constexpr int STAGE = 4 * PART;        // x hi, x lo, w of either tile
static_assert(DEEP * PITCH_T * 2 <= PART && 2 * TILE * PITCH_Y * 4 <= STAGES * STAGE, "shared");

// 16 bytes to shared memory without a register; zeros where there is nothing to read.
__device__ __forceinline__ void copy_async(char *to, const char *from, bool there) {
    const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}

// Rows [row0, row0 + 64) of w, columns [k0, k0 + 32); or transposed, rows k and columns r.
// 256 pieces of 16 bytes, two a thread. Neighbouring threads read neighbouring bytes of a row of w.
template <bool TRANS>
__device__ __forceinline__ void load_w(const Gemm &a, const char *w, int row0, int k0, char *to) {
    constexpr int ACROSS = (TRANS ? TILE : DEEP) / PACK; // pieces of a row of w
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int at = threadIdx.x + i * THREADS;
        const int line = at / ACROSS, across = at % ACROSS;
        const int k = k0 + (TRANS ? line : across * PACK),
                  r = row0 + (TRANS ? across * PACK : line);
        const bool there = k < a.x.k && r < a.rows;
        const int64_t offset = TRANS ? k * a.stride + r * 2ll : r * a.stride + k * 2ll;
        copy_async(to + line * (TRANS ? PITCH_T : PITCH) * 2 + across * 16,
                   w + (there ? offset : 0), there);
    }
}

// Tokens need no check: operands have rows for whole tiles. The low halves lie a.x.half bytes
// behind.
__device__ __forceinline__ void load_x(const Gemm &a, int token0, int k0, char *to) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int at = threadIdx.x + i * THREADS;
        const int t = token0 + at / (DEEP / PACK), k = k0 + at % (DEEP / PACK) * PACK;
        const bool there = k < a.x.k;
        const char *from = a.x.data + (there ? (t * a.x.ld + k) * 2 : 0);
        char *slot = to + at / (DEEP / PACK) * PITCH * 2 + at % (DEEP / PACK) * 16;
        copy_async(slot, from, there);
        copy_async(slot + PART, from + a.x.half, there);
    }
}

// Grid: tiles of tokens, then of rows, so that blocks with the same rows run together. A warp owns
// 32 tokens by 32 rows of either tile: 2 by 2 fragments each.
template <class W, bool TRANS>
__global__ void __launch_bounds__(THREADS) gemm_kernel(const Gemm a) {
    typedef typename W::type E;
    typedef wmma::fragment<wmma::matrix_a, 16, 16, 16, E, wmma::row_major> FragmentX;
    typedef typename std::conditional<TRANS, wmma::row_major, wmma::col_major>::type Major;
    typedef wmma::fragment<wmma::matrix_b, 16, 16, 16, E, Major> FragmentW;
    typedef wmma::fragment<wmma::accumulator, 16, 16, 16, float> FragmentY;
    extern __shared__ __align__(128) char shared[];
    const bool neuron = a.epilogue == HC_EPILOGUE_NEURON;
    const int token0 = blockIdx.x * TILE, warp = threadIdx.x / WARP;
    const int row0 = blockIdx.y * (neuron ? TILE : 2 * TILE), second = neuron ? row0 : row0 + TILE;
    const char *w1 = a.w, *w2 = neuron ? a.w + a.up : a.w;
    const int t0 = warp / 2 * 32, r0 = warp % 2 * 32, steps = (a.x.k + DEEP - 1) / DEEP;
    // One stage; empty behind the last one, but committed all the same: wait_group counts groups.
    const auto load = [&](int step) {
        char *to = shared + step % STAGES * STAGE;
        if (step < steps) {
            load_x(a, token0, step * DEEP, to);
            load_w<TRANS>(a, w1, row0, step * DEEP, to + 2 * PART);
            load_w<TRANS>(a, w2, second, step * DEEP, to + 3 * PART);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    FragmentY y[2][2][2]; // tile, tokens, rows
#pragma unroll
    for (int i = 0; i < 8; i++)
        wmma::fill_fragment(y[i / 4][i / 2 % 2][i % 2], 0.0f);
    // Two stages are on their way before the first product.
    for (int s = 0; s < STAGES - 1; s++)
        load(s);
    for (int step = 0; step < steps; step++) {
        // All but the newest STAGES - 2 groups are complete, so stage `step` is; of this thread's
        // copies, hence the barrier.
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads(); // all have the stage, and none still reads the one that is filled next
        load(step + STAGES - 1);
        const char *stage = shared + step % STAGES * STAGE;
        const E *x = reinterpret_cast<const E *>(stage);
#pragma unroll
        for (int k = 0; k < DEEP; k += 16) {
            FragmentX hi[2], lo[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int at = (t0 + 16 * i) * PITCH + k;
                wmma::load_matrix_sync(hi[i], x + at, PITCH);
                wmma::load_matrix_sync(lo[i], x + PART / 2 + at, PITCH);
            }
#pragma unroll
            for (int tile = 0; tile < 2; tile++) {
                const E *w = reinterpret_cast<const E *>(stage + (2 + tile) * PART);
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    FragmentW f;
                    const int r = r0 + 16 * j;
                    wmma::load_matrix_sync(f, w + (TRANS ? k * PITCH_T + r : r * PITCH + k),
                                           TRANS ? PITCH_T : PITCH);
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        // hi and lo share the fragment of w. This order is part of every result.
                        wmma::mma_sync(y[tile][i][j], lo[i], f, y[tile][i][j]);
                        wmma::mma_sync(y[tile][i][j], hi[i], f, y[tile][i][j]);
                    }
                }
            }
        }
    }
    // The stages become the output's buffer: a fragment's layout is the compiler's own, so results
    // go through shared memory to be told apart by token and row.
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    float *out = reinterpret_cast<float *>(shared);
#pragma unroll
    for (int i = 0; i < 8; i++)
        wmma::store_matrix_sync(out + (i / 4 * TILE + t0 + i / 2 % 2 * 16) * PITCH_Y + r0 +
                                    i % 2 * 16,
                                y[i / 4][i / 2 % 2][i % 2], PITCH_Y, wmma::mem_row_major);
    __syncthreads();
    unsigned fired = 0;
    for (int i = threadIdx.x; i < TILE * TILE; i += THREADS) {
        const int t = token0 + i / TILE, r = i % TILE;
        if (t >= a.tokens)
            continue;
        // The operand was divided by it; a power of two, so this is exact.
        const float scale = a.x.scale_T[t];
        const float first = out[i / TILE * PITCH_Y + r] * scale;
        const float other = out[(TILE + i / TILE) * PITCH_Y + r] * scale;
        if (row0 + r < a.rows)
            write_out(a, t, row0 + r, first, other, fired);
        if (!neuron && second + r < a.rows)
            write_out(a, t, second + r, other, 0.0f, fired);
    }
    count_fired(a, fired);
}

// 60 KB of shared memory a block: at most three blocks on a multiprocessor of an H100.
template <class W> void start(const Gemm &a, const Launch &launch) {
    const int per_block = a.epilogue == HC_EPILOGUE_NEURON ? TILE : 2 * TILE;
    const dim3 grid((a.tokens + TILE - 1) / TILE, (a.rows + per_block - 1) / per_block);
    enqueue<Gemm>(a.transposed ? gemm_kernel<W, true> : gemm_kernel<W, false>, grid, THREADS,
                  STAGES * STAGE, launch, a);
}

} // namespace v1

namespace v2 {

constexpr int TILE = 64, DEEP = 16, THREADS = 256, EACH = 4; // a thread: 4 by 4

// One element as float, wherever its row begins: no alignment is asked for.
template <class W, bool TRANS>
__device__ __forceinline__ float read_w(const Gemm &a, int64_t offset, int r, int k) {
    if (r >= a.rows || k >= a.x.k)
        return 0;
    constexpr int64_t E = sizeof(typename W::type);
    const char *at = a.w + offset + (TRANS ? k * a.stride + r * E : r * a.stride + k * E);
    return static_cast<float>(*reinterpret_cast<const typename W::type *>(at));
}

// A thread's 4 by 4 results lie 16 apart, so the 16 threads of a row read neighbouring words of
// shared memory. The pitch of TILE + 1 keeps the transposing stores off one bank.
template <class W, bool TRANS>
__global__ void __launch_bounds__(THREADS) gemm_kernel(const Gemm a) {
    __shared__ float x[DEEP][TILE + 1], w[2][DEEP][TILE + 1];
    const bool neuron = a.epilogue == HC_EPILOGUE_NEURON;
    const int token0 = blockIdx.x * TILE, row0 = blockIdx.y * TILE;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float sum[EACH][EACH] = {}, up[EACH][EACH] = {};
    for (int k0 = 0; k0 < a.x.k; k0 += DEEP) {
        for (int i = threadIdx.x; i < TILE * DEEP; i += THREADS) {
            const int t = i / DEEP, k = i % DEEP;
            const float *from = reinterpret_cast<const float *>(a.x.data) + k0 + k;
            x[k][t] = token0 + t < a.tokens && k0 + k < a.x.k ? from[(token0 + t) * a.x.ld] : 0;
            // Threads run along whichever of k and r is contiguous in memory.
            const int wk = TRANS ? i / TILE : k, r = TRANS ? i % TILE : t;
            w[0][wk][r] = read_w<W, TRANS>(a, 0, row0 + r, k0 + wk);
            if (neuron)
                w[1][wk][r] = read_w<W, TRANS>(a, a.up, row0 + r, k0 + wk);
        }
        __syncthreads();
        for (int k = 0; k < DEEP; k++)
#pragma unroll
            for (int i = 0; i < EACH; i++)
#pragma unroll
                for (int j = 0; j < EACH; j++) {
                    const float v = x[k][ty + 16 * i];
                    sum[i][j] = fmaf(v, w[0][k][tx + 16 * j], sum[i][j]);
                    if (neuron)
                        up[i][j] = fmaf(v, w[1][k][tx + 16 * j], up[i][j]);
                }
        __syncthreads();
    }
    unsigned fired = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            const int t = token0 + ty + 16 * i, r = row0 + tx + 16 * j;
            if (t < a.tokens && r < a.rows)
                write_out(a, t, r, sum[i][j], up[i][j], fired);
        }
    count_fired(a, fired);
}

template <class W> void start(const Gemm &a, const Launch &launch) {
    const dim3 grid((a.tokens + TILE - 1) / TILE, (a.rows + TILE - 1) / TILE);
    enqueue<Gemm>(a.transposed ? gemm_kernel<W, true> : gemm_kernel<W, false>, grid, THREADS, 0,
                  launch, a);
}

} // namespace v2
} // namespace

// Tensor cores: weights of half precision, every row on 16 bytes, and whole packs along what is
// contiguous. Anything else multiplies floats.
int32_t operand_dtype(int32_t dtype, const void *w, int64_t stride, int64_t offsets, int64_t k,
                      int64_t rows, bool transposed) {
    const bool aligned =
        reinterpret_cast<uintptr_t>(w) % 16 == 0 && stride % 16 == 0 && offsets % 16 == 0;
    const bool whole = transposed ? rows % PACK == 0 : k % PACK == 0;
    return dtype != HC_F32 && aligned && whole ? dtype : static_cast<int32_t>(HC_F32);
}

void gemm(const Gemm &a, const Launch &launch) {
    if (a.x.dtype == HC_F32)
        by_dtype<F32, F16, BF16>(a.dtype, [&](auto w) { v2::start<decltype(w)>(a, launch); });
    else
        by_dtype<F16, BF16>(a.dtype, [&](auto w) { v1::start<decltype(w)>(a, launch); });
}

} // namespace hotcold
