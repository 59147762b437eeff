// pass.cu - how a pass begins and ends: header and embedding in, logits and report out.
//
// Both ends read and write pinned host memory directly, so a pass is one graph launch and nothing
// else: 4 B d bytes in, 4 rows V bytes out (128 KB for 32000 logits, 4 us).
#include "common.cuh"

namespace hotcold {
namespace v1 {

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
        stamp(a.stamps, 0);
    }
}

__global__ void __launch_bounds__(256) logits_kernel(const Finish a) {
    launch_next();
    wait_prior();
    const int64_t n = a.pass->head_rows * a.vocab;
    for (int64_t i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256)
        a.logits_host[i] = a.logits[i];
}

// Nanoseconds of one layer's phases; a stamp of 0: the layer has no such kernel.
__device__ __forceinline__ void layer_phases(const Finish &a, int layer, float (&ns)[HC_PHASES]) {
    const uint64_t *s = a.stamps + (layer + 1) * STAMPS;
    const uint64_t next = layer + 1 < a.n_layers ? s[STAMPS + AT_QKV] : a.stamps[1];
    const uint64_t merge = s[AT_MERGE], hot = s[AT_HOT] ? s[AT_HOT] : merge;
    const uint64_t predict = s[AT_PREDICT] ? s[AT_PREDICT] : hot;
    const uint64_t waited = s[AT_WAITED] ? s[AT_WAITED] : merge;
    ns[0] += static_cast<float>(predict - s[AT_QKV]);
    ns[1] += static_cast<float>(hot - predict);
    ns[2] += static_cast<float>(merge - hot);
    ns[3] += static_cast<float>(waited - merge);
    ns[4] += static_cast<float>(next - waited);
}

__global__ void __launch_bounds__(256) done_kernel(const Finish a) {
    __shared__ float scratch[33];
    launch_next();
    wait_prior();
    float fired = 0, cold = 0, work = 0, ns[HC_PHASES] = {};
    for (int i = threadIdx.x; i < a.n_layers * a.groups * a.n_chunks; i += 256)
        fired +=
            a.fired_LC[i / (a.groups * a.n_chunks) * 4 * a.n_chunks + i % (a.groups * a.n_chunks)];
    for (int l = threadIdx.x; l < a.n_layers; l += 256) {
        cold += a.predicted ? a.counts_L2[2 * l] : 0;
        work += a.predicted ? a.counts_L2[2 * l + 1] : a.n_hot_L[l] * a.pass->batch;
        layer_phases(a, l, ns);
    }
    for (int i = 0; i < HC_PHASES; i++)
        ns[i] = block_sum(ns[i], scratch);
    fired = block_sum(fired, scratch);
    cold = block_sum(cold, scratch);
    work = block_sum(work, scratch);
    if (threadIdx.x != 0)
        return;
    a.host->counters[0] = static_cast<int64_t>(work);
    a.host->counters[1] = static_cast<int64_t>(fired);
    a.host->counters[2] = *a.skipped;
    a.host->counters[3] = static_cast<int64_t>(cold);
    const uint64_t end = now();
    ns[5] = static_cast<float>(end - a.stamps[1]);
    for (int i = 0; i < HC_PHASES; i++)
        a.host->phase_ns[i] = static_cast<int64_t>(ns[i]);
    a.host->counters[5] = end - a.stamps[0];
    a.host->failed = a.pass->failed;
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
