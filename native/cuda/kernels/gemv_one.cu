// gemv_one.cu - dense y = W x for one token: v2 of gemv.cu, the kernel decoding spends its time in.
//
// A block of 128 threads holds x, spread over its threads, in registers for its whole life, and walks
// over groups of R rows: R * P loads of 16 bytes a thread are in flight (P packs of a row a thread),
// and those of the next group are requested before the sums of this one are reduced.
// Bytes and operations: gemv.cu at B = 1, rows * d * e bytes and 2 FLOPs a weight; x, 4 d bytes, is
// read once a block out of L2. The order of a row's sum is gemv.cu's: thread t has packs t,
// t + 128, ...
// Oracle: numpy in float64 for every P, and v1's bits (tests/cuda/test_kernels_long.py).
#include "cuda/kernels/gemv.cuh"
#include "cuda/kernels/norm.cuh"

namespace hotcold {
namespace v2 {

constexpr int THREADS = 128, WARPS = THREADS / WARP;

// Blocks: extra first, then workers; worker i has groups of R rows i, i + workers, ...
struct Gemv2 : Gemv {
    int32_t workers, row_groups, extra; // extra: block 0 writes the normed x out
};

// x of this thread's packs, times the norm's weight; returns 1 / rms of the whole row.
// With the norm the squares are summed here, over the block; every thread returns the same factor,
// which is applied to each finished row.
template <class W, int P, bool NORM>
__device__ __forceinline__ float load_x(const Gemv2 &a, float (&x)[P][W::E]) {
    __shared__ float shared[WARPS];
    const float *from = a.x + (a.when == HC_WHEN_ONE_ROW ? a.pass->batch - 1 : 0) * a.x_stride;
    float squares = 0;
#pragma unroll
    for (int p = 0; p < P; p++) {
        const int at = (threadIdx.x + p * THREADS) * W::E;
#pragma unroll
        for (int i = 0; i < W::E; i++)
            x[p][i] = 0;
        if (at >= a.d)
            continue;
        load_floats<W::E>(from, at, a.d, true, x[p]);
        if (!NORM)
            continue;
        float weight[W::E];
        load_floats<W::E>(a.norm_D, at, a.d, true, weight);
#pragma unroll
        for (int i = 0; i < W::E; i++) {
            squares = fmaf(x[p][i], x[p][i], squares);
            x[p][i] *= weight[i];
        }
    }
    if (!NORM)
        return 1.0f;
    squares = warp_sum(squares);
    if (threadIdx.x % WARP == 0)
        shared[threadIdx.x / WARP] = squares;
    __syncthreads();
    squares = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++)
        squares += shared[w];
    return rsqrtf(squares / static_cast<float>(a.d) + a.eps);
}

// All R * P loads of a group. Rows past the last repeat it: their sums are dropped.
template <class W, int P, int R>
__device__ __forceinline__ void request(const Gemv2 &a, int group, uint4 (&w)[R][P]) {
#pragma unroll
    for (int r = 0; r < R; r++) {
        const char *row =
            static_cast<const char *>(a.w) + min(group * R + r, a.rows - 1) * a.stride;
#pragma unroll
        for (int p = 0; p < P; p++)
            w[r][p] = load_pack<W>(row, (threadIdx.x + p * THREADS) * W::E, a.d, true);
    }
}

// A thread's share of R dot products; registers only.
template <class W, int P, int R>
__device__ __forceinline__ void multiply(const uint4 (&w)[R][P], const float (&x)[P][W::E],
                                         float (&sum)[R]) {
#pragma unroll
    for (int r = 0; r < R; r++) {
        sum[r] = 0;
#pragma unroll
        for (int p = 0; p < P; p++) {
            float weight[W::E];
            W::unpack(w[r][p], weight);
#pragma unroll
            for (int i = 0; i < W::E; i++)
                sum[r] = fmaf(weight[i], x[p][i], sum[r]);
        }
    }
}

template <class W, int P, int R, bool NORM, int BLOCKS>
__global__ void __launch_bounds__(THREADS, BLOCKS) gemv_one_kernel(const Gemv2 a) {
    // Two turns, so one barrier a group is enough: who writes turn t again has passed the barrier
    // of the group between, behind which nobody reads turn t any more.
    __shared__ float shared[2][WARPS][R];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    launch_next();
    const int worker = static_cast<int>(blockIdx.x) - a.extra;
    if (NORM && worker < 0) {
        wait_prior();
        stamp(a.stamps, a.stamp);
        norm_row<THREADS>(a.x, a.norm_D, a.d, a.eps, a.normed, a.normed_host);
        return;
    }
    uint4 w[R][P];
    // Before wait_prior(): weights of the first group are on their way while the last kernel ends.
    request<W, P, R>(a, worker, w);
    wait_prior();
    stamp(a.stamps, a.stamp);
    if (!takes_part(a))
        return;
    // P * E floats a thread for the kernel's life: 40 at d 5120 in fp16.
    float x[P][W::E];
    const float scale = load_x<W, P, NORM>(a, x);
    int turn = 0;
    for (int group = worker; group < a.row_groups; group += a.workers, turn ^= 1) {
        float sum[R];
        multiply<W, P, R>(w, x, sum);
        // w is free: its values are in sum. The next group's loads run during the reduction and the
        // barrier.
        if (group + a.workers < a.row_groups)
            request<W, P, R>(a, group + a.workers, w);
#pragma unroll
        for (int r = 0; r < R; r++) {
            sum[r] = warp_sum(sum[r]);
            if (lane == 0)
                shared[turn][warp][r] = sum[r];
        }
        __syncthreads();
        const int row = group * R + static_cast<int>(threadIdx.x);
        // Thread r finishes row r of the group: the four warps in order.
        if (threadIdx.x < R && row < a.rows) {
            float y[1] = {0};
#pragma unroll
            for (int k = 0; k < WARPS; k++)
                y[0] += shared[turn][k][threadIdx.x];
            if (NORM)
                y[0] = __fmul_rn(y[0], scale);
            if (a.scale_R)
                y[0] = __fmul_rn(y[0], a.scale_R[row]);
            write_out<1>(a, row, 0, y);
        }
    }
}

// As many workers as run at once (BLOCKS a multiprocessor, by launch bounds), never more than there
// are groups.
template <class W, int P, int R, int BLOCKS> void start(Gemv2 &a, const Launch &launch) {
    a.row_groups = (a.rows + R - 1) / R;
    a.workers = min(a.row_groups, BLOCKS * launch.sms);
    a.extra = a.norm_D && a.normed ? 1 : 0;
    enqueue<Gemv2>(a.norm_D ? gemv_one_kernel<W, P, R, true, BLOCKS>
                            : gemv_one_kernel<W, P, R, false, BLOCKS>,
                   dim3(a.workers + a.extra), THREADS, 0, launch, a);
}

// Rows at once and blocks a multiprocessor, by the length of a row and the number of rows; measured on
// an H100 (us, fp16): 15360 x 5120: 52.8 (3 TB/s); 5120 x 5120: 18.1, with R 2: 19.2; 960 x 5120: 5.9,
// with 5 blocks: 7.4; 13824 x 960: 10.5, with 3 blocks: 12.0; 32000 x 5120: 106.5.
template <class W, int P> void start_rows(Gemv2 &a, const Launch &launch) {
    if constexpr (P == 1)
        start<W, P, 8, 5>(a, launch);
    else if (a.rows >= launch.sms * 8)
        start<W, P, P == 2 ? 6 : P == 7 ? 3 : 4, 3>(a, launch); // P 7: 4 rows would spill
    else
        start<W, P, 1, 4>(a, launch);
}

// P, packs of 16 bytes a thread and row, is a constant so that x and w stay in registers: rows of
// up to 1024 P elements in fp16. Not every P is compiled; a length without one is v1's.
template <class W> bool start_packs(Gemv2 &a, const Launch &launch) {
    return by_number<1, 2, 3, 4, 5, 7>((a.d + THREADS * W::E - 1) / (THREADS * W::E),
                                       [&](auto p) { start_rows<W, p>(a, launch); });
}

} // namespace v2

bool gemv_one(const Gemv &args, bool vec, const Launch &launch) {
    v2::Gemv2 a = {args};
    bool started = false; // float32 models are small: v1 serves them
    if (vec)
        by_dtype<F16, BF16, I8>(args.dtype,
                                [&](auto w) { started = v2::start_packs<decltype(w)>(a, launch); });
    return started;
}

} // namespace hotcold
