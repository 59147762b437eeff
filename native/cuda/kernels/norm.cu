// norm.cu - a norm as a kernel of its own: rms norms where no gemv carries them along, and all layer
// norms, whose mean would have to be taken out of a folded product again, at a loss of digits.
//
// 8 bytes an element: latency bound, about 2 us for one token of 5120. A row's sum has one order,
// whatever the batch. Layer norms: 1024 threads hold the row, its weights and biases (those requested
// before wait_prior) in registers, up to 8192 elements; what is beyond is read again. Where there is
// one token, its one block sets the layer's flags itself.
// Oracle: numpy in float64, tests/cuda/test_kernels.py (test_norm); one order in every kernel that
// norms: tests/cuda/test_kernels_long.py.
#include "cuda/kernels/norm.cuh"

namespace hotcold {
namespace v1 {

constexpr int THREADS = 512, LAYER_THREADS = 1024, KEEP = 8;

// The flags of a row that is out; where there are more blocks, a kernel of its own tells of all.
// The barrier: all threads' parts of the row, in device and in host memory, are written before
// thread 0 fences and sets the flags.
__device__ __forceinline__ void tell(const Norm &a) {
    if (gridDim.x > 1)
        return;
    __syncthreads();
    if (threadIdx.x == 0 && (a.to.x_flag || a.to.active_flag))
        signal(a.to, a.pass->seq);
}

// Blocks of tokens past the pass do nothing; with one block there always is a token.
__global__ void __launch_bounds__(THREADS) rms_norm_kernel(const Norm a) {
    launch_next();
    wait_prior();
    stamp(a.stamps, a.stamp);
    const int b = blockIdx.x;
    if (b < a.pass->batch)
        norm_row<THREADS>(a.x + b * a.d, a.weight_D, static_cast<int>(a.d), a.eps, a.y + b * a.d,
                          a.y_host ? a.y_host + b * a.d : nullptr);
    tell(a);
}

__device__ __forceinline__ void put(const Norm &a, int64_t at, float normed, float weight,
                                    float bias) {
    const float y = normed * weight + bias;
    a.y[at] = y;
    if (a.y_host)
        a.y_host[at] = y;
}

// y = (x - mean) / sqrt(variance + eps) * weight + bias, a row a block.
// Elements threadIdx.x + k * 1024 are a thread's own: the first KEEP of them in registers. Two sums
// over the block, one after the other: the squares need the mean.
__global__ void __launch_bounds__(LAYER_THREADS) layer_norm_kernel(const Norm a) {
    __shared__ float scratch[33];
    launch_next();
    const int d = static_cast<int>(a.d), rest = threadIdx.x + KEEP * LAYER_THREADS;
    const int64_t row = blockIdx.x * a.d;
    float x[KEEP], weight[KEEP], bias[KEEP], sum = 0, squares = 0;
#pragma unroll
    for (int k = 0; k < KEEP; k++) {
        const int i = threadIdx.x + k * LAYER_THREADS;
        weight[k] = i < d ? a.weight_D[i] : 0;
        bias[k] = i < d && a.bias_D ? a.bias_D[i] : 0;
    }
    wait_prior();
    stamp(a.stamps, a.stamp);
    // The whole block leaves together: no barrier is left waiting.
    if (static_cast<int>(blockIdx.x) >= a.pass->batch)
        return;
#pragma unroll
    for (int k = 0; k < KEEP; k++) {
        const int i = threadIdx.x + k * LAYER_THREADS;
        x[k] = i < d ? a.x[row + i] : 0;
        sum += x[k];
    }
    for (int i = rest; i < d; i += LAYER_THREADS)
        sum += a.x[row + i];
    const float mean = block_sum(sum, scratch) / static_cast<float>(d);
#pragma unroll
    for (int k = 0; k < KEEP; k++)
        if (static_cast<int>(threadIdx.x) + k * LAYER_THREADS < d)
            squares = fmaf(x[k] - mean, x[k] - mean, squares);
    for (int i = rest; i < d; i += LAYER_THREADS)
        squares = fmaf(a.x[row + i] - mean, a.x[row + i] - mean, squares);
    const float scale = rsqrtf(block_sum(squares, scratch) / static_cast<float>(d) + a.eps);
#pragma unroll
    for (int k = 0; k < KEEP; k++) {
        const int i = threadIdx.x + k * LAYER_THREADS;
        if (i < d)
            put(a, row + i, (x[k] - mean) * scale, weight[k], bias[k]);
    }
    for (int i = rest; i < d; i += LAYER_THREADS)
        put(a, row + i, (a.x[row + i] - mean) * scale, a.weight_D[i], a.bias_D ? a.bias_D[i] : 0);
    tell(a);
}

} // namespace v1

void norm(const Norm &args, int bucket, const Launch &launch) {
    const bool done = by_variant(&Operators::norm, args, bucket, launch);
    if (!done && args.kind == HC_NORM_LAYER)
        enqueue<Norm>(v1::layer_norm_kernel, dim3(bucket), v1::LAYER_THREADS, 0, launch, args);
    else if (!done)
        enqueue<Norm>(v1::rms_norm_kernel, dim3(bucket), v1::THREADS, 0, launch, args);
    // Several blocks: no block knows when the others are done, so a kernel behind them sets the
    // flags.
    if ((done || bucket > 1) && args.to.x_flag)
        signal_x(args.to, args.pass, launch); // when all blocks are done
}

} // namespace hotcold
