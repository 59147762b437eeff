// split.cu - proposals become two ascending lists: hot rows for this device, cold ids for the host.
//
// Reads 4 bytes a neuron, writes 8 bytes an active one. The cold list goes straight into the shared
// segment, followed by the flags: what the host waits for leaves the device here. Order comes from
// ballots and a prefix sum, never from atomics.
//
// v1: one block; a warp takes ITER consecutive groups of 32 neurons and holds their proposals in
// registers, so that all loads are in flight at once. Who owns a neuron is a bit, and a hot neuron's
// row of the table is its group's first row plus the hot bits below it. The cold list is built in
// shared memory, so that the writes over the bus are whole lines. 4 us for 13824 neurons, of which
// the system fence and the posted writes are the half.
//
// Oracle: numpy, in tests/cuda/test_kernels.py (test_split); the same lists as native/ops/split.c.
#include "cuda/kernels/common.cuh"

namespace hotcold {
namespace v1 {

constexpr int THREADS = 1024, WARPS = THREADS / WARP;
// Below what an H100 grants a block on demand (227 KB). An A100 grants 163 KB: there a layer of
// 20,300 to 25,000 neurons is refused with a text, instead of taking the list in device memory.
constexpr size_t SHARED_LIMIT = 200 * 1024;

struct Counts {
    int hot, cold;
};

struct Scratch {   // dynamic shared memory
    int *before;   // hot entries before a group
    unsigned *hot; // hot active neurons of a group
    int32_t *ids;  // cold list; in device memory where shared memory is too small
    uint32_t *members;
};

// Entries [n_groups] of before and hot are a sentinel: a chunk may begin behind the last group.
__device__ __forceinline__ Scratch carve(const Split &a, int n_groups, char *shared) {
    Scratch s;
    s.before = reinterpret_cast<int *>(shared);
    s.hot = reinterpret_cast<unsigned *>(s.before + n_groups + 1);
    s.ids = a.in_shared ? reinterpret_cast<int32_t *>(s.hot + n_groups + 1) : a.cold_ids;
    s.members = a.in_shared ? reinterpret_cast<uint32_t *>(s.ids + a.n) : a.cold_members;
    return s;
}

// Counts of all warps before this one; the sums of all warps go to total.
// Warps have consecutive groups, so a prefix over warps is a prefix over ids. Every warp repeats
// the scan of the 32 totals: one barrier, no second one to hand results back.
__device__ __forceinline__ Counts before_warp(Counts own, Counts &total) {
    __shared__ Counts totals[WARPS];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (lane == 0)
        totals[warp] = own;
    __syncthreads();
    const Counts mine = totals[lane];
    Counts sum = mine;
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
        const int hot = __shfl_up_sync(FULL, sum.hot, step);
        const int cold = __shfl_up_sync(FULL, sum.cold, step);
        if (lane >= step)
            sum.hot += hot, sum.cold += cold;
    }
    total = {__shfl_sync(FULL, sum.hot, WARP - 1), __shfl_sync(FULL, sum.cold, WARP - 1)};
    return {__shfl_sync(FULL, sum.hot - mine.hot, warp),
            __shfl_sync(FULL, sum.cold - mine.cold, warp)};
}

// From shared memory in order, 4 bytes a thread: a warp's stores are one line on the bus. The
// layout is hc_active's: header, ids, members, each part on a cache line.
__device__ __forceinline__ void send(const Split &a, const Scratch &s, int cold) {
    hc_active *list = a.to.cold;
    char *at = reinterpret_cast<char *>(list);
    int32_t *ids = reinterpret_cast<int32_t *>(at + HC_ACTIVE_IDS());
    uint32_t *members = reinterpret_cast<uint32_t *>(at + HC_ACTIVE_MEMBERS(a.to.capacity));
    for (int k = threadIdx.x; k < cold; k += THREADS) {
        ids[k] = s.ids[k];
        members[k] = s.members[k];
    }
    if (threadIdx.x == 0) {
        list->epoch = a.to.epoch;
        list->seq = a.pass->seq;
        list->batch = a.pass->batch;
        list->count = cold;
        list->capacity = a.to.capacity;
        list->has_gate = HC_GATE_NONE;
    }
}

// The entries of one group; at: entries before it. Returns what it adds.
// A lane a neuron. below: the lanes of smaller ids.
__device__ __forceinline__ Counts write_group(const Split &a, const Scratch &s, int group,
                                              unsigned m, unsigned owned, int row0, Counts at,
                                              int &work) {
    const unsigned below = (1u << (threadIdx.x % WARP)) - 1, mine = below + 1;
    const unsigned active = __ballot_sync(FULL, m != 0);
    const unsigned hot = active & owned, cold = active & ~owned;
    if (threadIdx.x % WARP == 0)
        s.before[group] = at.hot, s.hot[group] = hot;
    if (hot & mine) {
        const int k = at.hot + __popc(hot & below);
        // The table has all owned neurons in order of id: the row is the number of owned ones
        // before.
        a.hot.rows[k] = row0 + __popc(owned & below);
        a.hot.members[k] = m;
        work += __popc(m);
    } else if (cold & mine) {
        const int k = at.cold + __popc(cold & below);
        s.ids[k] = group * WARP + static_cast<int>(threadIdx.x % WARP);
        s.members[k] = m;
    }
    return {__popc(hot), __popc(cold)};
}

__device__ __forceinline__ uint64_t mix(uint64_t z) { // splitmix64's finaliser
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// Neurons that were left out and are looked at anyway: of each audit_every ids one, drawn by a hash of
// (seed, pass, layer, stratum), where it is ours and a token lacks it. Every neuron is drawn with
// probability 1 / audit_every as in native/loop/audit.c, but for all tokens of a pass alike: in a prompt
// the draws of tokens are not independent. The entries follow the list's `hot` ones: gate and up are
// computed with the others', down stops before them, merge counts which fired. Returns their number.
__device__ __forceinline__ int append_audit(const Split &a, unsigned tokens, int hot, int &pairs) {
    // The increment of splitmix64, as in audit.c.
    const uint64_t golden = 0x9e3779b97f4a7c15u;
    const uint64_t pass = static_cast<uint64_t>(a.pass->seq) << 32 | static_cast<uint64_t>(a.layer);
    const uint64_t key = mix(mix(a.audit_seed + golden) ^ pass);
    const int strata = (a.n + a.audit_every - 1) / a.audit_every;
    const unsigned below = (1u << (threadIdx.x % WARP)) - 1;
    int entries = 0;
    for (int first = 0; first < strata; first += THREADS) {
        const int stratum = first + static_cast<int>(threadIdx.x);
        const uint64_t draw = mix(key + static_cast<uint64_t>(stratum) * golden);
        const int64_t id = static_cast<int64_t>(stratum) * a.audit_every +
                           draw % static_cast<unsigned>(a.audit_every);
        unsigned lacks = 0, bit = 0, owned = 0;
        if (stratum < strata && id < a.n) {
            owned = a.owned_G[id / WARP], bit = 1u << (id % WARP);
            lacks = owned & bit ? tokens & ~a.members_N[id] : 0;
        }
        const unsigned ballot = __ballot_sync(FULL, lacks != 0);
        __syncthreads(); // nobody reads the last round's totals any more
        Counts total;
        const Counts at = before_warp({__popc(ballot), 0}, total);
        if (lacks) {
            const int k = hot + entries + at.hot + __popc(ballot & below);
            a.hot.rows[k] = a.row_G[id / WARP] + __popc(owned & (bit - 1));
            a.hot.members[k] = lacks;
            pairs += __popc(lacks);
        }
        entries += total.hot;
    }
    return entries;
}

// Warp w has groups [w * ITER, (w + 1) * ITER). Lane i < ITER holds the table's words of the warp's
// group i and hands them to all lanes by shuffle.
template <int ITER> __global__ void __launch_bounds__(THREADS) split_kernel(const Split a) {
    extern __shared__ char shared[];
    __shared__ int scratch[33];
    launch_next();
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int n_groups = (a.n + WARP - 1) / WARP, first = warp * ITER;
    const Scratch s = carve(a, n_groups, shared);
    const bool own = lane < ITER && first + lane < n_groups; // tables: written once, at launch
    const unsigned owned_lane = own ? a.owned_G[first + lane] : 0;
    const int row_lane = own ? a.row_G[first + lane] : 0;
    wait_prior();
    const int batch = a.pass->batch;
    const unsigned tokens = batch == 32 ? FULL : (1u << batch) - 1;
    unsigned m[ITER];
#pragma unroll
    for (int i = 0; i < ITER; i++) {
        const int id = (first + i) * WARP + lane;
        // Bits of tokens past the pass are masked here: kernels of a larger bucket leave them
        // undefined.
        m[i] = id < a.n ? a.members_N[id] & tokens : 0;
    }
    // First round: count, so that every warp knows where its entries begin.
    Counts mine = {}, total;
#pragma unroll
    for (int i = 0; i < ITER; i++) {
        const unsigned active = __ballot_sync(FULL, m[i] != 0);
        const unsigned owned = __shfl_sync(FULL, owned_lane, i);
        mine.hot += __popc(active & owned), mine.cold += __popc(active & ~owned);
    }
    Counts at = before_warp(mine, total);
    int work = 0;
#pragma unroll
    for (int i = 0; i < ITER; i++) {
        const unsigned owned = __shfl_sync(FULL, owned_lane, i);
        // Second round: write.
        const int row0 = __shfl_sync(FULL, row_lane, i);
        if (first + i >= n_groups)
            break;
        const Counts more = write_group(a, s, first + i, m[i], owned, row0, at, work);
        at.hot += more.hot, at.cold += more.cold;
    }
    if (threadIdx.x == 0)
        s.before[n_groups] = total.hot, s.hot[n_groups] = 0;
    // Lists, before and hot are complete for all threads.
    __syncthreads();
    if (a.to.cold)
        send(a, s, total.cold);
    // Chunks are cut by neuron id, so which partial sum a neuron goes to never depends on what else
    // fired: the sums' order is the neuron's own.
    for (int c = threadIdx.x; c <= a.n_chunks; c += THREADS) {
        const int id = a.bounds_C[c], g = id / WARP;
        a.hot.starts[c] = s.before[g] + __popc(s.hot[g] & ((1u << (id % WARP)) - 1));
    }
    work = block_sum(work, scratch);
    if (threadIdx.x == 0) {
        a.counts[COUNT_COLD] = total.cold;
        a.counts[COUNT_HOT] = work;
        if (a.to.cold) // block_sum's barriers are behind every thread's part of the list
            signal(a.to, a.pass->seq);
    }
    // The audit comes after the flags: the host does not wait for it.
    int pairs = 0, entries = 0;
    if (a.audit_every > 0) {
        entries = append_audit(a, tokens, total.hot, pairs);
        pairs = block_sum(pairs, scratch);
    }
    if (threadIdx.x != 0)
        return;
    *a.hot.count = total.hot + entries;
    if (a.audit_every > 0) {
        a.hot.audit[0] = total.hot, a.hot.audit[1] = total.hot + entries;
        a.counts[COUNT_AUDITED] = pairs;
    }
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

template <int ITER> void start(const Split &args, const Launch &launch) {
    const size_t groups = (args.n + WARP - 1) / WARP + 1;
    size_t shared = 8 * groups + 8 * static_cast<size_t>(args.n);
    Split a = args;
    a.in_shared = shared <= SHARED_LIMIT;
    if (!a.in_shared)
        shared = 8 * groups;
    enqueue<Split>(split_kernel<ITER>, dim3(1), THREADS, shared, launch, a);
}

} // namespace v1

// ITER: registers for proposals, by the longest run of groups a warp may have.
void split(const Split &args, const Launch &launch) {
    const int groups = (args.n + WARP - 1) / WARP, each = (groups + v1::WARPS - 1) / v1::WARPS;
    const int iter = each <= 8 ? 8 : each <= 16 ? 16 : 32;
    if (each > 32)
        throw Failure(HC_ERR_UNSUPPORTED, "split: layers of at most " +
                                              std::to_string(HC_GPU_MAX_NEURONS) +
                                              " neurons are supported");
    by_number<8, 16, 32>(iter, [&](auto i) { v1::start<i>(args, launch); });
}

void signal_x(const Exchange &to, const PassState *pass, const Launch &launch) {
    enqueue<v1::Signal>(v1::signal_kernel, dim3(1), 1, 0, launch, v1::Signal{to, pass});
}

} // namespace hotcold
