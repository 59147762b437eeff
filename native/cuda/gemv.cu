// gemv.cu - dense y = W x for 1 to 32 tokens, optionally with the norm of x folded in.
//
// Bytes: rows * d * e of weights, read once for every eight tokens; 2 FLOPs a weight and token. At
// batch 1 in fp16 that is 1 FLOP a byte: the memory is the bound (H100: 3.35 TB/s on paper).
//   qkv 13B: 157 MB, 47 us; o: 52 MB, 16 us; head: 328 MB, 98 us; predictor 960: 36 MB, 11 us.
//
// v1: a row belongs to K warps of one block (K = 4 where there are too few rows to fill the chip),
// R rows a warp, U packs in flight a row; x comes from L1. The first packs are requested before
// wait_prior(): they are weights, which no earlier kernel writes. Folding the norm in costs every
// warp a second sum (of squares) over values it reads anyway, and saves a kernel.
#include "common.cuh"
#include "norm.cuh"

namespace hotcold {
namespace v1 {

constexpr int THREADS = 256, WARPS = THREADS / WARP;

struct Gemv1 : Gemv {
    int32_t groups, row_blocks; // groups of eight tokens; blocks that hold rows
    bool vec;
};

template <int B>
__device__ __forceinline__ void write_out(const Gemv1 &a, int row, int group, const float (&y)[B]) {
    if (a.epilogue == MEMBERS) {
        unsigned bits = 0;
#pragma unroll
        for (int b = 0; b < B; b++)
            bits |= static_cast<unsigned>(y[b] + (a.bias_R ? a.bias_R[row] : 0.0f) >= a.threshold)
                    << b;
        a.members[4 * static_cast<int64_t>(row) + group] = static_cast<uint8_t>(bits);
        return;
    }
#pragma unroll
    for (int b = 0; b < B; b++) {
        float *to = a.y + (group * 8 + b) * a.y_stride + row;
        if (a.epilogue == ADD)
            *to += y[b];
        else
            *to = a.epilogue == RELU ? fmaxf(y[b], 0.0f) : y[b];
    }
}

// One pack of each row times the same elements of x, for B tokens.
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
template <int B, int R, int K, bool NORM>
__device__ __forceinline__ void combine(float (&sum)[R][B], float (&squares)[B], int warp,
                                        int lane) {
    __shared__ float shared[K > 1 ? WARPS : 1][(R + 1) * B];
#pragma unroll
    for (int b = 0; b < B; b++) {
#pragma unroll
        for (int r = 0; r < R; r++)
            sum[r][b] = warp_sum(sum[r][b]);
        if (NORM)
            squares[b] = warp_sum(squares[b]);
    }
    if (K == 1)
        return;
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

template <class W, int B, int R, int U, int K, bool NORM>
__global__ void __launch_bounds__(THREADS) gemv_kernel(const Gemv1 a) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int group = blockIdx.x % a.groups, block = blockIdx.x / a.groups;
    launch_next();
    if (NORM && block == a.row_blocks) { // the block more
        wait_prior();
        norm_rows(a.x, a.norm_D, a.d, a.eps, a.normed, a.normed_host, a.residual_host, group * 8,
                  min(a.pass->batch, group * 8 + B));
        return;
    }
    const int row0 = (block * (WARPS / K) + warp / K) * R;
    const int step = WARP * K * W::E;
    int at = (lane + WARP * (warp % K)) * W::E;
    const char *rows[R];
#pragma unroll
    for (int r = 0; r < R; r++)
        rows[r] = static_cast<const char *>(a.w) + min(row0 + r, a.rows - 1) * a.stride;
    uint4 w[U][R];
#pragma unroll
    for (int u = 0; u < U; u++)
#pragma unroll
        for (int r = 0; r < R; r++)
            w[u][r] = load_pack<W>(rows[r], at + u * step, a.d, a.vec);
    wait_prior();
    stamp(a.stamps, a.stamp);
    const int batch = a.pass->batch;
    if (a.when != ALWAYS && a.pass->head_rows != (a.when == ONE_ROW ? 1 : batch))
        return;
    if (a.when == ALL_ROWS && batch == 1)
        return;
    const float *x = a.x + (a.when == ONE_ROW ? batch - 1 : group * 8) * a.x_stride;
    float sum[R][B] = {}, squares[B] = {};
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
    if (lane != 0 || warp % K != 0)
        return;
#pragma unroll
    for (int r = 0; r < R; r++) {
        if (row0 + r >= a.rows)
            return;
#pragma unroll
        for (int b = 0; b < B; b++) {
            if (NORM)
                sum[r][b] *= rsqrtf(squares[b] / static_cast<float>(a.d) + a.eps);
            if (a.scale_R)
                sum[r][b] *= a.scale_R[row0 + r];
        }
        write_out<B>(a, row0 + r, group, sum[r]);
    }
}

template <class W, int B, int R, int U, int K> void launch_k(Gemv1 &a, const Launch &launch) {
    const int per_block = WARPS / K * R;
    a.row_blocks = (a.rows + per_block - 1) / per_block;
    const int blocks = a.row_blocks + (a.norm_D && a.normed ? 1 : 0);
    const dim3 grid(blocks * a.groups);
    if (a.norm_D)
        enqueue<Gemv1>(gemv_kernel<W, B, R, U, K, true>, grid, THREADS, 0, launch, a);
    else
        enqueue<Gemv1>(gemv_kernel<W, B, R, U, K, false>, grid, THREADS, 0, launch, a);
}

// K depends on the shape alone: it decides the order of a row's sum, which no batch may change.
template <class W, int B, int R> void launch_b(Gemv1 &a, const Launch &launch) {
    constexpr int U = B == 1 ? 4 : B <= 4 ? 2 : 1;
    if (a.rows >= 4096)
        launch_k<W, B, R, U, 1>(a, launch);
    else
        launch_k<W, B, 1, U, 4>(a, launch);
}

template <class W> void launch_w(Gemv1 &a, int bucket, const Launch &launch) {
    if (bucket == 1 || a.when == ONE_ROW)
        launch_b<W, 1, 1>(a, launch);
    else if (bucket == 2)
        launch_b<W, 2, 2>(a, launch);
    else if (bucket == 4)
        launch_b<W, 4, 2>(a, launch);
    else
        launch_b<W, 8, 4>(a, launch);
}

} // namespace v1

void gemv(const Gemv &args, int bucket, const Launch &launch) {
    v1::Gemv1 a;
    static_cast<Gemv &>(a) = args;
    const int pack = args.dtype == HC_I8 ? 16 : args.dtype == HC_F32 ? 4 : 8;
    a.vec = args.d % pack == 0 && args.stride % 16 == 0 && args.x_stride % 4 == 0 &&
            reinterpret_cast<uintptr_t>(args.w) % 16 == 0;
    a.groups = args.when == ONE_ROW ? 1 : (bucket + 7) / 8;
    switch (args.dtype) {
    case HC_F32: return v1::launch_w<F32>(a, bucket, launch);
    case HC_F16: return v1::launch_w<F16>(a, bucket, launch);
    case HC_BF16: return v1::launch_w<BF16>(a, bucket, launch);
    default: return v1::launch_w<I8>(a, bucket, launch);
    }
}

} // namespace hotcold
