// pass.cu - how a pass begins and ends: header and embedding in, logits and report out.
//
// Both ends read and write pinned host memory directly, so a pass is one graph launch and nothing
// else: 4 B d bytes in, 4 rows V bytes out (128 KB for 32000 logits, 4 us), and 72 a layer of stamps.
//
// Oracle: the engine tests' logits and counters (tests/cuda/test_gpu_engine.py).
#include "cuda/kernels/common.cuh"

namespace hotcold {
namespace v1 {

// Grid: columns of d, tokens of the bucket. One block also writes PassState, which no other block
// of this kernel reads.
__global__ void __launch_bounds__(256) begin_kernel(const Begin a) {
    launch_next();
    wait_prior();
    const int b = blockIdx.y, batch = a.host->in.batch;
    const int64_t i = blockIdx.x * 256 + threadIdx.x;
    if (b < batch && i < a.d)
        a.h[b * a.d + i] = load_host(a.embedded_host + b * a.d + i);
    if (blockIdx.x == 0 && b == 0) {
        if (threadIdx.x < HC_MAX_BATCH)
            a.pass->position_B[threadIdx.x] = a.host->position_B[threadIdx.x];
        if (threadIdx.x == 0) {
            a.pass->seq = a.host->in.seq;
            a.pass->batch = batch;
            a.pass->head_rows = a.host->in.head_rows;
            a.pass->failed = 0;
            *a.skipped = 0;
        }
        stamp(a.stamps, AT_BEGIN);
    }
}

// A grid-stride copy by 64 blocks: the bus is the bound, more of them add nothing.
__global__ void __launch_bounds__(256) logits_kernel(const Finish a) {
    launch_next();
    wait_prior();
    const int64_t n = a.pass->head_rows * a.vocab;
    for (int64_t i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256)
        a.logits_host[i] = a.logits[i];
}

// One block, the last of the graph. It adds up what the layers counted, [L][4][n_chunks] of down()
// and [L][COUNTS] of split() and merge(). Each is overwritten in every pass, or stays 0 where a
// layer has no such kernel, so nothing has to be cleared.
__global__ void __launch_bounds__(256) done_kernel(const Finish a) {
    __shared__ int scratch[33];
    launch_next();
    wait_prior();
    int fired = 0, counts[COUNTS] = {}; // at most layers * neurons * 32: far below 2^31
    // Rows of 4 groups a layer, of which the pass's bucket used the first ones.
    for (int i = threadIdx.x; i < a.n_layers * a.groups * a.n_chunks; i += 256)
        fired +=
            a.fired_LC[i / (a.groups * a.n_chunks) * 4 * a.n_chunks + i % (a.groups * a.n_chunks)];
    for (int l = threadIdx.x; l < a.n_layers; l += 256) {
        if (a.predicted)
            for (int i = 0; i < COUNTS; i++)
                counts[i] += a.counts_LC[l * COUNTS + i];
        else
            counts[COUNT_HOT] += a.n_hot_L[l] * a.pass->batch;
    }
    for (int i = threadIdx.x; i < (a.n_layers + 1) * STAMPS; i += 256)
        if (i != AT_END)
            a.stamps_host[i] = a.stamps[i];
    fired = block_sum(fired, scratch);
    for (int i = 0; i < COUNTS; i++)
        counts[i] = block_sum(counts[i], scratch);
    // block_sum's barriers are behind every thread's copy of the stamps.
    if (threadIdx.x != 0)
        return;
    a.host->counters[0] = counts[COUNT_HOT];
    a.host->counters[1] = fired;
    a.host->counters[2] = *a.skipped;
    a.host->counters[3] = counts[COUNT_COLD];
    a.host->counters[4] = counts[COUNT_AUDITED];
    a.host->counters[5] = counts[COUNT_MISSED];
    a.stamps_host[AT_END] = now();
    a.host->failed = a.pass->failed;
    // All of the report, the logits of the kernel before included, is in host memory before `done`:
    // the host's acquire of it (executor/host.h) pairs with this release.
    __threadfence_system();
    store_flag(&a.host->done, a.pass->seq);
}

} // namespace v1

void begin(const Begin &args, int bucket, const Launch &launch) {
    enqueue<Begin>(v1::begin_kernel, dim3((args.d + 255) / 256, bucket), 256, 0, launch, args);
}

void finish(const Finish &args, const Launch &launch) {
    enqueue<Finish>(v1::logits_kernel, dim3(64), 256, 0, launch, args);
    enqueue<Finish>(v1::done_kernel, dim3(1), 256, 0, launch, args);
}

} // namespace hotcold
