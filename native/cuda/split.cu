// split.cu - proposals become two ascending lists: hot rows for this device, cold ids for the host.
//
// Reads 4 bytes a neuron (twice, the second time from cache), writes 8 bytes an active one. The cold
// list goes straight into the shared segment, followed by the flags: what the host waits for leaves
// the device here. Order comes from ballots and a prefix sum, never from atomics.
//
// v1: one block; a warp takes groups of 32 neurons. About 3 us for 13824 neurons, of which the system
// fence and the posted writes are one. The cold list is first built in device memory so that the
// writes over the bus are whole lines.
#include "common.cuh"

namespace hotcold {
namespace v1 {

constexpr int THREADS = 1024, WARPS = THREADS / WARP;

// Exclusive prefix sums of both halves (hot low, cold high) of packed counts over all groups.
__device__ __forceinline__ void scan_groups(uint2 *groups, int n_groups) {
    __shared__ uint2 warp_total[WARPS];
    __shared__ uint2 carry;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (threadIdx.x == 0)
        carry = make_uint2(0, 0);
    __syncthreads();
    for (int base = 0; base < n_groups; base += THREADS) {
        const int g = base + threadIdx.x;
        const uint2 own = g < n_groups ? groups[g] : make_uint2(0, 0);
        uint2 sum = own;
#pragma unroll
        for (int step = 1; step < WARP; step *= 2) {
            const unsigned x = __shfl_up_sync(FULL, sum.x, step);
            const unsigned y = __shfl_up_sync(FULL, sum.y, step);
            if (lane >= step)
                sum.x += x, sum.y += y;
        }
        if (lane == WARP - 1)
            warp_total[warp] = sum;
        __syncthreads();
        uint2 before = carry;
        for (int w = 0; w < warp; w++)
            before.x += warp_total[w].x, before.y += warp_total[w].y;
        if (g < n_groups)
            groups[g] = make_uint2(before.x + sum.x - own.x, before.y + sum.y - own.y);
        __syncthreads();
        if (threadIdx.x == THREADS - 1)
            carry = make_uint2(before.x + sum.x, before.y + sum.y);
        __syncthreads();
    }
    if (threadIdx.x == 0)
        groups[n_groups] = carry;
    __syncthreads();
}

__device__ __forceinline__ unsigned proposals(const Split &a, int id, unsigned tokens) {
    return id < a.n ? a.members_N[id] & tokens : 0;
}

// Write the entries of all groups; returns this thread's hot rows times tokens.
__device__ __forceinline__ int write_lists(const Split &a, const uint2 *groups, int n_groups,
                                           unsigned tokens) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const unsigned below = (1u << lane) - 1;
    int work = 0;
    for (int g = warp; g < n_groups; g += WARPS) {
        const int id = g * WARP + lane;
        const unsigned m = proposals(a, id, tokens);
        const int row = id < a.n ? a.row_of_id[id] : 0;
        const unsigned hot = __ballot_sync(FULL, m && row >= 0);
        const unsigned cold = __ballot_sync(FULL, m && row < 0);
        if (m && row >= 0) {
            const int k = groups[g].x + __popc(hot & below);
            a.hot.rows[k] = row;
            a.hot.members[k] = m;
            work += __popc(m);
        } else if (m) {
            const int k = groups[g].y + __popc(cold & below);
            a.cold_ids[k] = id;
            a.cold_members[k] = m;
        }
    }
    return work;
}

__device__ __forceinline__ void send(const Split &a, int cold) {
    hc_active *list = a.to.cold;
    int32_t *ids = reinterpret_cast<int32_t *>(list + 1);
    const int64_t part = (a.to.capacity * 4 + 63) / 64 * 64;
    uint32_t *members = reinterpret_cast<uint32_t *>(reinterpret_cast<char *>(ids) + part);
    for (int k = threadIdx.x; k < cold; k += THREADS) {
        ids[k] = a.cold_ids[k];
        members[k] = a.cold_members[k];
    }
    if (threadIdx.x == 0) {
        list->epoch = a.to.epoch;
        list->seq = a.pass->seq;
        list->batch = a.pass->batch;
        list->count = cold;
        list->capacity = a.to.capacity;
        list->has_gate = 0;
    }
}

__device__ __forceinline__ void signal(const Exchange &to, uint32_t seq) {
    __threadfence_system();
    if (to.x_flag)
        store_flag(to.x_flag, seq);
    if (to.active_flag)
        store_flag(to.active_flag, seq);
}

__global__ void __launch_bounds__(THREADS) split_kernel(const Split a) {
    extern __shared__ uint2 groups[]; // counts, then first positions; one more entry than groups
    __shared__ float scratch[33];
    launch_next();
    wait_prior();
    stamp(a.stamps, AT_SPLIT);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int n_groups = (a.n + WARP - 1) / WARP, batch = a.pass->batch;
    const unsigned tokens = batch == 32 ? FULL : (1u << batch) - 1;
    for (int g = warp; g < n_groups; g += WARPS) {
        const int id = g * WARP + lane;
        const unsigned m = proposals(a, id, tokens);
        const int row = id < a.n ? a.row_of_id[id] : 0;
        const unsigned hot = __ballot_sync(FULL, m && row >= 0);
        const unsigned cold = __ballot_sync(FULL, m && row < 0);
        if (lane == 0)
            groups[g] = make_uint2(__popc(hot), __popc(cold));
    }
    __syncthreads();
    scan_groups(groups, n_groups);
    const int work = write_lists(a, groups, n_groups, tokens);
    const int cold = groups[n_groups].y;
    for (int c = threadIdx.x; c <= a.n_chunks; c += THREADS) {
        const int id = a.bounds_C[c], g = id / WARP;
        int k = groups[min(g, n_groups)].x;
        for (int i = g * WARP; i < id && g < n_groups; i++)
            k += proposals(a, i, tokens) && a.row_of_id[i] >= 0;
        a.hot.starts[c] = k;
    }
    const float total = block_sum(static_cast<float>(work), scratch); // exact below 2^24
    if (threadIdx.x == 0) {
        *a.hot.count = groups[n_groups].x;
        a.counts[0] = cold;
        a.counts[1] = static_cast<int32_t>(total);
    }
    if (!a.to.cold)
        return;
    send(a, cold);
    __syncthreads();
    if (threadIdx.x == 0)
        signal(a.to, a.pass->seq);
}

struct Signal {
    Exchange to;
    const PassState *pass;
};
__global__ void signal_kernel(const Signal a) {
    launch_next();
    wait_prior();
    signal(a.to, a.pass->seq);
}

} // namespace v1

void split(const Split &args, const Launch &launch) {
    const size_t shared = sizeof(uint2) * ((args.n + WARP - 1) / WARP + 1);
    if (shared > 48 * 1024)
        check(cudaFuncSetAttribute(v1::split_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared)),
              "split: too many neurons for shared memory");
    enqueue<Split>(v1::split_kernel, dim3(1), v1::THREADS, shared, launch, args);
}

void signal_x(const Exchange &to, const PassState *pass, const Launch &launch) {
    enqueue<v1::Signal>(v1::signal_kernel, dim3(1), 1, 0, launch, v1::Signal{to, pass});
}

} // namespace hotcold
