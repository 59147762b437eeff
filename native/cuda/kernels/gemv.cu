// gemv.cu - dense y = W x for 1 to 32 tokens, optionally with the norm of x folded in.
//
// Bytes: rows * d * e of weights, read once for every eight tokens; 2 FLOPs a weight and token. At
// batch 1 in fp16 that is 1 FLOP a byte: the memory is the bound (H100: 3.35 TB/s on paper).
//   qkv 13B: 157 MB, 47 us; o: 52 MB, 16 us; head: 328 MB, 98 us; predictor 960: 36 MB, 11 us.
//
// A row belongs to four warps of a block: thread t takes packs t, t + 128, ...; the lanes are summed by
// a butterfly, the warps in order. All variants keep this order, so a row's bits do not depend on
// which of them ran. The first packs are requested before wait_prior(): they are weights, which no
// earlier kernel writes. Folding the norm in saves a kernel.
// v1, batches: R rows at once, U packs of each in flight, x from L1 (its bandwidth is the bound from
//   four tokens on).
// v2, one token: persistent blocks that hold their part of x in registers, so only weights move
//   (gemv_one.cu).
// Oracle: numpy in float64 (tests/cuda/test_kernels.py and test_kernels_long.py, which also
// compares a token's bits between the variants).
#include "cuda/kernels/common.cuh"
#include "cuda/kernels/gemv.cuh"
#include "cuda/kernels/norm.cuh"

namespace hotcold {
namespace v1 {

constexpr int THREADS = 256, WARPS = THREADS / WARP;

// The grid, one dimension: (extra + blocks of rows) * groups, the group fastest. Blocks that want
// the same rows for other tokens run side by side, so all but the first find the weights in L2.
struct Gemv1 : Gemv {
    int32_t groups; // of eight tokens
    int32_t extra;  // blocks of a group that write normed rows out: the first ones, a token each
    bool vec;
};

// One pack of each row times the same elements of x, for B tokens.
// R rows share each load of x: from four tokens on x's way out of L1 is the bound and not the
// weights. The rms norm is linear but for one factor a token, so x * weight goes into the products,
// the squares are summed beside them, and the factor is applied to the finished sum.
template <class W, int B, int R, bool NORM>
__device__ __forceinline__ void multiply(const Gemv1 &a, const float *x, int at,
                                         const uint4 (&w)[R], float (&sum)[R][B],
                                         float (&squares)[B]) {
    constexpr int E = W::E;
    float weight[E], values[R][E];
#pragma unroll
    for (int r = 0; r < R; r++)
        W::unpack(w[r], values[r]);
    if (NORM)
        load_floats<E>(a.norm_D, at, a.d, a.vec, weight);
#pragma unroll
    for (int b = 0; b < B; b++) {
        float part[E];
        load_floats<E>(x + b * a.x_stride, at, a.d, a.vec, part);
#pragma unroll
        for (int i = 0; i < E; i++) {
            if (NORM) {
                squares[b] = fmaf(part[i], part[i], squares[b]);
                part[i] *= weight[i];
            }
#pragma unroll
            for (int r = 0; r < R; r++)
                sum[r][b] = fmaf(values[r][i], part[i], sum[r][b]);
        }
    }
}

// Sum over the K warps of a row, in their order.
// Each warp's lanes first, by butterfly. K and the order of the warps are part of a row's bits:
// every variant has K = 4.
template <int B, int R, int K, bool NORM>
__device__ __forceinline__ void combine(float (&sum)[R][B], float (&squares)[B], int warp,
                                        int lane) {
    __shared__ float shared[WARPS][(R + 1) * B];
#pragma unroll
    for (int b = 0; b < B; b++) {
#pragma unroll
        for (int r = 0; r < R; r++)
            sum[r][b] = warp_sum(sum[r][b]);
        if (NORM)
            squares[b] = warp_sum(squares[b]);
    }
    if (lane == 0)
        for (int b = 0; b < B; b++) {
            for (int r = 0; r < R; r++)
                shared[warp][r * B + b] = sum[r][b];
            shared[warp][R * B + b] = squares[b];
        }
    __syncthreads();
    const int first = warp / K * K;
    for (int b = 0; b < B; b++) {
        for (int r = 0; r < R; r++) {
            sum[r][b] = 0;
            for (int k = 0; k < K; k++)
                sum[r][b] += shared[first + k][r * B + b];
        }
        squares[b] = 0;
        for (int k = 0; k < K; k++)
            squares[b] += shared[first + k][R * B + b];
    }
}

// K warps share R rows: each thread has U packs of each row in flight, U * R loads of 16 bytes, and
// multiplies them with B tokens. The eight warps of a block are WARPS / K such groups.
template <class W, int B, int R, int U, int K, bool NORM, int BLOCKS>
__global__ void __launch_bounds__(THREADS, BLOCKS) gemv_kernel(const Gemv1 a) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int group = blockIdx.x % a.groups;
    const int block = static_cast<int>(blockIdx.x / a.groups) - a.extra;
    launch_next();
    // The first blocks carry x on: the same norm, summed in norm.cuh's order, for the kernels and
    // the host that read x itself.
    if (NORM && block < 0) {
        wait_prior();
        stamp(a.stamps, a.stamp);
        const int b = group * 8 + block + a.extra;
        const int64_t at = static_cast<int64_t>(b) * a.d;
        if (b < a.pass->batch)
            norm_row<THREADS>(a.x + b * a.x_stride, a.norm_D, a.d, a.eps, a.normed + at,
                              a.normed_host ? a.normed_host + at : nullptr);
        return;
    }
    const int row0 = (block * (WARPS / K) + warp / K) * R;
    const int step = WARP * K * W::E;
    int at = (lane + WARP * (warp % K)) * W::E;
    const char *rows[R];
#pragma unroll
    for (int r = 0; r < R; r++)
        // Past the last row: the last one again, whose result is dropped below. No branch around a
        // load.
        rows[r] = static_cast<const char *>(a.w) + min(row0 + r, a.rows - 1) * a.stride;
    uint4 w[U][R];
#pragma unroll
    for (int u = 0; u < U; u++)
#pragma unroll
        for (int r = 0; r < R; r++)
            w[u][r] = load_pack<W>(rows[r], at + u * step, a.d, a.vec);
    // Weights are under way. From here on x may be read.
    wait_prior();
    stamp(a.stamps, a.stamp);
    if (!takes_part(a))
        return;
    const float *x = a.x + (a.when == HC_WHEN_ONE_ROW ? a.pass->batch - 1 : group * 8) * a.x_stride;
    float sum[R][B] = {}, squares[B] = {};
    // A round: all U * R loads are issued together, then used. Other warps cover the wait.
    while (at < a.d) {
#pragma unroll
        for (int u = 0; u < U; u++)
            if (at + u * step < a.d)
                multiply<W, B, R, NORM>(a, x, at + u * step, w[u], sum, squares);
        at += U * step;
        if (at >= a.d)
            break;
#pragma unroll
        for (int u = 0; u < U; u++)
#pragma unroll
            for (int r = 0; r < R; r++)
                w[u][r] = load_pack<W>(rows[r], at + u * step, a.d, a.vec);
    }
    combine<B, R, K, NORM>(sum, squares, warp, lane);
    // One thread a group of warps has whole rows now; the others are done.
    if (lane != 0 || warp % K != 0)
        return;
#pragma unroll
    for (int r = 0; r < R; r++) {
        if (row0 + r >= a.rows)
            return;
#pragma unroll
        for (int b = 0; b < B; b++) {
            // Rounded by itself: write_out's addition must not be fused with it in one variant and
            // not in another.
            if (NORM)
                sum[r][b] =
                    __fmul_rn(sum[r][b], rsqrtf(squares[b] / static_cast<float>(a.d) + a.eps));
            if (a.scale_R)
                sum[r][b] = __fmul_rn(sum[r][b], a.scale_R[row0 + r]);
        }
        write_out<B>(a, row0 + r, group, sum[r]);
    }
}

// BLOCKS: on a multiprocessor, at least; more of them have fewer registers each.
template <class W, int B, int R, int U, int BLOCKS> void launch_b(Gemv1 &a, const Launch &launch) {
    constexpr int K = 4, PER_BLOCK = WARPS / K * R;
    a.extra = a.norm_D && a.normed ? B : 0;
    const dim3 grid(((a.rows + PER_BLOCK - 1) / PER_BLOCK + a.extra) * a.groups);
    enqueue<Gemv1>(a.norm_D ? gemv_kernel<W, B, R, U, K, true, BLOCKS>
                            : gemv_kernel<W, B, R, U, K, false, BLOCKS>,
                   grid, THREADS, 0, launch, a);
}

// More tokens: more accumulators (R * B), so fewer packs in flight. From 16 tokens on there are
// several groups, and two blocks a multiprocessor hide each other's waits.
template <class W> void launch_w(Gemv1 &a, int bucket, const Launch &launch) {
    if (bucket == 1)
        launch_b<W, 1, 1, 4, 1>(a, launch);
    else if (bucket == 2)
        launch_b<W, 2, 2, 2, 1>(a, launch);
    else if (bucket == 4)
        launch_b<W, 4, 2, 2, 1>(a, launch);
    else if (bucket == 8)
        launch_b<W, 8, 4, 1, 1>(a, launch);
    else
        launch_b<W, 8, 4, 1, 2>(a, launch);
}

} // namespace v1

// The caller guarantees: x and y have rows for the whole bucket; w has `rows` rows; nothing writes
// w, scales or biases while graphs run.
void gemv(const Gemv &args, int bucket, const Launch &launch) {
    if (by_variant(&Operators::gemv, args, bucket, launch))
        return;
    const int pack = args.dtype == HC_I8 ? 16 : args.dtype == HC_F32 ? 4 : 8;
    const bool one = bucket == 1 || args.when == HC_WHEN_ONE_ROW;
    // Rows begin and end on 16 bytes, those of x too: else packs are gathered element by element.
    const bool vec = args.d % pack == 0 && args.stride % 16 == 0 && args.x_stride % 4 == 0 &&
                     reinterpret_cast<uintptr_t>(args.w) % 16 == 0;
    if (one && gemv_one(args, vec, launch))
        return;
    v1::Gemv1 a = {args, one ? 1 : (bucket + 7) / 8, 0, vec};
    by_dtype<F32, F16, BF16, I8>(
        args.dtype, [&](auto w) { v1::launch_w<decltype(w)>(a, one ? 1 : bucket, launch); });
}

} // namespace hotcold
