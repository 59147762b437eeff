// merge.cu - add the hot sum to the residual stream, then, once it has arrived, the cold sum.
//
// Bytes: n_chunks * 4 d of partial sums, read while the host still computes; then 4 d over the bus.
// The wait is part of the kernel (form A of the exchange): one thread of the grid polls the flag in
// host memory, 1 to 1.5 us a look, and gives up on the abort word, which the host thread sets when
// the exchange is poisoned, or after WAIT_NS. Measured on an H100 on 2026-11-22 at 14d9f69, `make
// exchange-forms`, 48 layers in a graph, x out and y back at d 5120, us a layer: no exchange 3.1; 20
// blocks polling, 4-byte loads of y 25.5; 10 blocks polling, 16-byte loads 16.9; one block polling,
// the others on its relay in device memory 9.3 (in use); a wait kernel of one thread 9.0; form B,
// memory operations 12.1.
//
// The last block also counts which of the audited neurons fired (split.cu), while others wait.
//
// v1: a thread V elements (4, or 1 where a row is not a multiple of 16 bytes). Partial sums in order:
// those of a quarter of the chunks in turn, then the four quarters.
//
// Oracle: numpy in float64, through the whole operator in tests/cuda/test_kernels.py (test_ffn);
// the exchange by tests/cuda/test_gpu_rates.py and every engine test.
#include "cuda/kernels/common.cuh"

namespace hotcold {
namespace v1 {

constexpr int COLUMNS = 128, PARTS = 4, THREADS = COLUMNS * PARTS;
// A last resort: the death or standstill of a peer poisons the exchange, and then the host's watch
// over the pass (executor/host.h) ends the wait by the abort word.
constexpr uint64_t WAIT_NS = 60ull * 1000 * 1000 * 1000;

template <int V> struct Pack {
    float v[V];
    __device__ __forceinline__ void operator+=(const Pack &more) {
#pragma unroll
        for (int i = 0; i < V; i++)
            v[i] += more.v[i];
    }
};
template <int V> __device__ __forceinline__ Pack<V> load(const float *at) {
    if constexpr (V == 4) {
        const float4 f = *reinterpret_cast<const float4 *>(at);
        return {f.x, f.y, f.z, f.w};
    } else {
        return {*at};
    }
}
// The cold sum lies in host memory: 16 bytes a load, so a warp asks for 512 bytes over the bus.
template <int V> __device__ __forceinline__ Pack<V> load_bus(const float *at) {
    if constexpr (V == 4) {
        Pack<V> p;
        asm volatile("ld.relaxed.sys.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(p.v[0]), "=f"(p.v[1]), "=f"(p.v[2]), "=f"(p.v[3])
                     : "l"(at)
                     : "memory");
        return p;
    } else {
        return {load_host(at)};
    }
}

// Wait for the cold sum: is there one to add? The first block polls the bus, the others the relay in
// device memory: ten blocks polling slow each other and the peer's writes (17 us a layer, not 9).
__device__ __forceinline__ bool cold_arrives(const Merge &a) {
    __shared__ bool cold;
    if (threadIdx.x == 0) {
        const int count = a.cold_count ? *a.cold_count : 1;
        const uint32_t seq = a.pass->seq;
        const bool first = blockIdx.x == 0 && blockIdx.y == 0, skip = count == 0 && a.selective;
        if (skip && first)
            *a.skipped += 1;
        // Thread 0 of one block alone looks at the bus. Its acquire, then the relay's release and
        // the other blocks' acquire, make y visible to all: acquire and release are cumulative.
        if (!skip && first) {
            if (!a.pass->failed && !await<8>(a.from.y_flag, seq, a.from.abort, WAIT_NS))
                a.pass->failed = 1;
            store_relay(a.from.relay, seq);
        } else if (!skip) {
            // No end of its own: the first block always sets the relay, also when it gave up.
            while (load_relay(a.from.relay) != seq)
                ;
        }
        cold = count > 0 && !load_relay(&a.pass->failed);
    }
    // `cold` is there; and the barrier hands thread 0's acquire to the whole block.
    __syncthreads();
    stamp(a.stamps, AT_WAITED);
    return cold;
}

// Sum of this thread's part of the chunks, then of the parts, in order; complete in part 0 alone.
// Four threads share a column so that n_chunks dependent additions become a quarter; the split
// follows from n_chunks alone. Called by all threads: it has a barrier.
template <int V> __device__ __forceinline__ Pack<V> hot_sum(const Merge &a, int i, int b) {
    __shared__ float shared[PARTS][COLUMNS * V];
    const int part = threadIdx.x / COLUMNS, column = threadIdx.x % COLUMNS;
    const int begin = a.n_chunks * part / PARTS, end = a.n_chunks * (part + 1) / PARTS;
    Pack<V> sum = {};
    if (i < a.d)
#pragma unroll 16
        for (int c = begin; c < end; c++)
            sum += load<V>(a.partial_CBD + (static_cast<int64_t>(c) * a.bucket + b) * a.d + i);
#pragma unroll
    for (int v = 0; v < V; v++)
        // v slowest: threads of a warp write neighbouring words.
        shared[part][v * COLUMNS + column] = sum.v[v];
    __syncthreads();
    if (part == 0)
#pragma unroll
        for (int v = 0; v < V; v++)
            for (int p = 1; p < PARTS; p++)
                sum.v[v] += shared[p][v * COLUMNS + column];
    return sum;
}

// Audited entries lie behind the hot ones in the list (split.cu): of a gate that fired, the token
// lacked the neuron.
__device__ __forceinline__ void count_missed(const Merge &a) {
    __shared__ int scratch[33];
    const int n = (a.audit[1] - a.audit[0]) * a.bucket;
    const float *c = a.c_KB + static_cast<int64_t>(a.audit[0]) * a.bucket;
    int fired = 0;
    for (int i = threadIdx.x; i < n; i += THREADS)
        fired += fired_with(c[i]);
    fired = block_sum(fired, scratch);
    if (threadIdx.x == 0)
        *a.missed = fired;
}

// Grid: columns, tokens. PARTS * COLUMNS threads add the hot sum; those of part 0 own V columns of
// h and do the rest.
template <int V> __global__ void __launch_bounds__(THREADS) merge_kernel(const Merge a) {
    launch_next();
    wait_prior();
    stamp(a.stamps, AT_MERGE);
    const int i = (blockIdx.x * COLUMNS + threadIdx.x % COLUMNS) * V, b = blockIdx.y;
    // The whole block. Token 0's blocks always stay, the one that polls among them.
    if (b >= a.pass->batch)
        return;
    const bool mine = threadIdx.x < COLUMNS && i < a.d;
    const int64_t at = static_cast<int64_t>(b) * a.d + i;
    Pack<V> h = {};
    if (mine)
        h = load<V>(a.h + at);
    if (a.partial_CBD)
        h += hot_sum<V>(a, i, b);
    stamp(a.stamps, AT_SUMMED);
    if (a.audit && blockIdx.x == gridDim.x - 1 && b == 0)
        count_missed(a);
    const bool cold = a.from.y_flag && cold_arrives(a);
    if (!mine)
        return;
    // Not through L1 and not before the wait: load_bus is volatile and reads the system's copy.
    if (cold)
        h += load_bus<V>(a.from.y + at);
    if (a.bias_D)
        h += load<V>(a.bias_D + i);
#pragma unroll
    for (int v = 0; v < V; v++)
        a.h[at + v] = h.v[v];
}

} // namespace v1

void merge(const Merge &args, const Launch &launch) {
    const int V = args.d % 4 == 0 ? 4 : 1, per_block = v1::COLUMNS * V;
    const dim3 grid((args.d + per_block - 1) / per_block, args.bucket);
    enqueue<Merge>(V == 4 ? v1::merge_kernel<4> : v1::merge_kernel<1>, grid, v1::THREADS, 0, launch,
                   args);
}

} // namespace hotcold
