// merge.cu - the residual stream takes the hot sum, then, once it is there, the cold one.
//
// Bytes: n_chunks * 4 d of partial sums, read while the host still computes; then 4 d over the bus.
// The wait is part of the kernel (form A of the exchange): one thread of a block polls the flag in
// host memory, 1 to 1.5 us a look, with back-off, and gives up on the abort word, which the host
// thread sets when the exchange is poisoned, or after WAIT_NS.
//
// v1: a thread an element; partial sums in order of the chunks.
#include "common.cuh"

namespace hotcold {
namespace v1 {

constexpr int THREADS = 128;
constexpr uint64_t WAIT_NS = 60ull * 1000 * 1000 * 1000;

// Until *flag == seq; false where the wait was ended otherwise.
__device__ __forceinline__ bool await(const uint32_t *flag, uint32_t seq, const uint32_t *abort) {
    const uint64_t begin = now();
    for (unsigned spins = 0;; spins++) {
        if (load_flag(flag) == seq)
            return true;
        if (spins % 8 == 7) {
            if (load_flag(abort) || now() - begin > WAIT_NS)
                return false;
            __nanosleep(200);
        }
    }
}

__global__ void __launch_bounds__(THREADS) merge_kernel(const Merge a) {
    __shared__ bool cold;
    launch_next();
    wait_prior();
    stamp(a.stamps, AT_MERGE);
    const int i = blockIdx.x * THREADS + threadIdx.x, b = blockIdx.y;
    if (b >= a.pass->batch)
        return;
    const int64_t at = static_cast<int64_t>(b) * a.d + i;
    float sum = 0;
    if (a.partial_CBD && i < a.d) {
#pragma unroll 16
        for (int c = 0; c < a.n_chunks; c++)
            sum += a.partial_CBD[(static_cast<int64_t>(c) * a.bucket + b) * a.d + i];
    }
    if (a.from.y_flag) {
        if (threadIdx.x == 0) {
            const int count = a.cold_count ? *a.cold_count : 1;
            const bool skip = count == 0 && a.selective;
            bool arrived = true;
            if (!skip && !a.pass->failed)
                arrived = await(a.from.y_flag, a.pass->seq, a.from.abort);
            if (!arrived)
                a.pass->failed = 1;
            cold = count > 0 && arrived;
            if (skip && blockIdx.x == 0 && b == 0)
                *a.skipped += 1;
        }
        __syncthreads();
        stamp(a.stamps, AT_WAITED);
    }
    if (i >= a.d)
        return;
    float h = a.h[at];
    if (a.partial_CBD)
        h += sum;
    if (a.from.y_flag && cold)
        h += load_host(a.from.y + at);
    a.h[at] = h;
    stamp(a.stamps, AT_MERGED);
}

} // namespace v1

void merge(const Merge &args, const Launch &launch) {
    const int blocks = (args.d + v1::THREADS - 1) / v1::THREADS;
    enqueue<Merge>(v1::merge_kernel, dim3(blocks, args.bucket), v1::THREADS, 0, launch, args);
}

} // namespace hotcold
