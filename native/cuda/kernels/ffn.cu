// ffn.cu - the neuron-aware operator: a sparse layer over the device's own active neurons.
//
//   record: | gate row | up row | down column |, rows of the table in ascending order of neuron id
//   c_k = act(g_k . x) * (u_k . x);  y = sum over k of c_k * d_k
//   record: | gate row | down column | bias |  without up rows (OPT): c_k = act(g_k . x + bias_k)
// act is a row of abi/activations.h.
//
// Bytes: 3 d e a fired neuron (2 d e without up rows), d e a proposed one that stays shut (gate
// first), 6 d FLOPs: 1 FLOP a byte in fp16, bound by memory. 13B, 12 % of 13824 fire: 34 MB + 17 MB a
// layer, 10 us + 5 us. int8 with its scales (neuron.cuh), e 1 + 2/64: 17.5 MB + 8.8 MB, 5.3 us + 2.6 us at
// 3.35 TB/s, of which 75 % are the goal. That is 15 weights a clock and multiprocessor; 16 weights take 64
// instructions (8 selects, 4 xors, 16 permutations, 32 fused multiply-adds, the scale), so 60 of the 128
// lanes of a clock are busy and memory stays the bound. In flight, by Little's law at 1 us: 25 KB a
// multiprocessor; gate_up_one has 42 KB at d 5120 (4 blocks of 10.5 KB), down 79 KB (2.4 blocks of 32
// rows of 1 KB). Measured: MEASURED.md.
//
// No gather pass and no conversion pass: the kernels read whole records where they lie.
// v1. Predicted neurons: a block each, gate and up row in flight together, x from L1 (gate_up); for
//   one token and rows of usual lengths x in registers, the next neuron's rows requested ahead
//   (gate_up_one). Every neuron looked at: a warp each, gate first.
// down: a thread holds one pack of columns and walks the list, which is cut in chunks by neuron id, each
//   with its own partial sum; merge adds them in order. int8: 8 columns a thread, not 16, or 13B had 1.5
//   blocks a multiprocessor.
// No order depends on the batch.
//
// Oracle: numpy in float64 (tests/cuda/test_kernels.py and test_kernels_long.py), and a token's
// bits alone against those in a batch.
#include "cuda/kernels/neuron.cuh"

namespace hotcold {
namespace v1 {

constexpr int THREADS = 128, WARPS = THREADS / WARP;
constexpr int DOWN_BYTES = 256; // in flight a thread of down

// groups: of eight tokens, each a grid dimension of its own; bucket: tokens of the graph, the pitch
// of c_KB; tiles: blocks of columns of down().
struct Ffn1 : Ffn {
    int32_t groups, bucket, tiles;
    bool vec;
};

// One pack of a row times the same elements of x, for B tokens. x comes from L1: all warps of a
// multiprocessor read the same one.
template <class W, int B>
__device__ __forceinline__ void dot(const Ffn1 &a, const float *x, int at,
                                    const typename Part<W>::Pack &w, float (&sum)[B]) {
    float weight[W::E], part[W::E];
    Part<W>::unpack_dot(w, a.vec, weight);
#pragma unroll
    for (int b = 0; b < B; b++) {
        Part<W>::load_x(x + static_cast<int64_t>(b) * a.d, at, a.d, a.vec, part);
#pragma unroll
        for (int i = 0; i < W::E; i++)
            sum[b] = fmaf(weight[i], part[i], sum[b]);
    }
}

// A whole row by one warp; every lane ends with the sums. U loads a lane before the first use.
template <class W, int B, int U>
__device__ __forceinline__ void dot_row(const Ffn1 &a, const float *x, const char *row,
                                        float (&sum)[B]) {
    const int step = WARP * W::E;
    for (int at = (threadIdx.x % WARP) * W::E; at < a.d; at += U * step) {
        typename Part<W>::Pack w[U];
#pragma unroll
        for (int u = 0; u < U; u++)
            w[u] = Part<W>::load(row, at + u * step, a.d, a.vec, a.record.scales);
#pragma unroll
        for (int u = 0; u < U; u++)
            if (at + u * step < a.d)
                dot<W, B>(a, x, at + u * step, w[u], sum);
    }
#pragma unroll
    for (int b = 0; b < B; b++)
        sum[b] = warp_sum(sum[b]);
}

// record may be NULL, where a block has no next neuron.
__device__ __forceinline__ float bias_of(const Ffn1 &a, const char *record) {
    return a.record.bias && record ? *reinterpret_cast<const float *>(record + a.record.bias)
                                   : 0.0f;
}

// Every neuron of the table is looked at: a warp a neuron, the up row only where the gate fires.
template <class W, int B>
__global__ void __launch_bounds__(THREADS) gate_first_kernel(const Ffn1 a) {
    constexpr int U = B == 1 ? 8 : 4;
    launch_next();
    wait_prior();
    stamp(a.stamps, AT_HOT);
    const int group = blockIdx.y, batch = a.pass->batch, lane = threadIdx.x % WARP;
    // Bit b: token 8 group + b takes part. Here the list is the whole table, so every token of the
    // pass.
    const unsigned members = (batch == 32 ? FULL : (1u << batch) - 1) >> (8 * group);
    const float *x = a.x + static_cast<int64_t>(group) * 8 * a.d;
    for (int k = blockIdx.x * WARPS + threadIdx.x / WARP; k < a.n_rows; k += gridDim.x * WARPS) {
        const char *record = a.record_R[k];
        float gate[B] = {}, up[B] = {};
        const float bias = bias_of(a, record);
        dot_row<W, B, U>(a, x, record + a.record.gate, gate);
        bool fires = false;
#pragma unroll
        for (int b = 0; b < B; b++) {
            gate[b] += bias;
            // All lanes have the same sums, so the branch below is taken by whole warps.
            fires |= (members >> b & 1) && hc_fires(a.activation, gate[b], a.activation_threshold);
        }
        if (fires && a.record.up >= 0)
            dot_row<W, B, U>(a, x, record + a.record.up, up);
        float mine = 0;
#pragma unroll
        for (int b = 0; b < B; b++)
            if (lane == b && fires)
                mine = entry(a, members >> b & 1, gate[b], a.record.up >= 0 ? up[b] : 1.0f);
        // Every entry is written, zeros too: down() reads c_KB without anyone having cleared it.
        if (lane < B)
            a.hot.c_KB[static_cast<int64_t>(k) * a.bucket + 8 * group + lane] = mine;
    }
}

// Sums of gate and up over the block, in warp order; thread b of the first warp writes c of token b.
// `shared` is one of two turns, as in gemv_one.cu: one barrier a neuron is enough.
template <int B, bool UP>
__device__ __forceinline__ void write_c(const Ffn1 &a, int k, int group, unsigned members,
                                        float bias, float (&gate)[B], float (&up)[B],
                                        float (*shared)[2][B]) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int b = 0; b < B; b++) {
        gate[b] = warp_sum(gate[b]);
        if (UP)
            up[b] = warp_sum(up[b]);
        if (lane == 0)
            shared[warp][0][b] = gate[b], shared[warp][1][b] = up[b];
    }
    __syncthreads();
    const int b = threadIdx.x;
    if (b >= B)
        return;
    float g = 0, u = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++)
        g += shared[w][0][b], u += shared[w][1][b];
    g += bias;
    a.hot.c_KB[static_cast<int64_t>(k) * a.bucket + 8 * group + b] =
        entry(a, members >> b & 1, g, UP ? u : 1.0f);
}

// Predicted neurons, a block each, any batch: x from L1.
// Block i has entries i, i + grid.x, ... of the list. The whole block works on one row pair, so a
// neuron's 2 d e bytes are requested at once and end together. A thread's packs are t, t + 128, ...
template <class W, int B, bool UP>
__global__ void __launch_bounds__(THREADS) gate_up_kernel(const Ffn1 a) {
    __shared__ float shared[2][WARPS][2][B];
    launch_next();
    wait_prior();
    stamp(a.stamps, AT_HOT);
    const int group = blockIdx.y, count = *a.hot.count, step = THREADS * W::E;
    const float *x = a.x + static_cast<int64_t>(group) * 8 * a.d;
    int turn = 0;
    // count is read behind wait_prior(): split() wrote it in this pass.
    for (int k = blockIdx.x; k < count; k += gridDim.x, turn ^= 1) {
        const char *record = a.record_R[a.hot.rows[k]];
        const unsigned members =
            (a.hot.members ? a.hot.members[k] : FULL >> (32 - a.pass->batch)) >> (8 * group);
        float gate[B] = {}, up[B] = {};
        for (int at = threadIdx.x * W::E; at < a.d; at += step) {
            const auto g = Part<W>::load(record + a.record.gate, at, a.d, a.vec, a.record.scales);
            if (UP) {
                const auto u = Part<W>::load(record + a.record.up, at, a.d, a.vec, a.record.scales);
                dot<W, B>(a, x, at, g, gate);
                dot<W, B>(a, x, at, u, up);
            } else {
                dot<W, B>(a, x, at, g, gate);
            }
        }
        write_c<B, UP>(a, k, group, members, bias_of(a, record), gate, up, shared[turn]);
    }
}

// Both rows of a neuron: 2 P loads of 16 bytes a thread.
template <class W, int P, bool UP>
__device__ __forceinline__ void request(const Ffn1 &a, const char *record,
                                        typename Part<W>::Pack (&g)[P],
                                        typename Part<W>::Pack (&u)[P]) {
#pragma unroll
    for (int p = 0; p < P; p++) {
        const int at = (threadIdx.x + p * THREADS) * W::E;
        g[p] = Part<W>::load(record + a.record.gate, at, a.d, true, a.record.scales);
        if (UP)
            u[p] = Part<W>::load(record + a.record.up, at, a.d, true, a.record.scales);
    }
}

// Blocks of gate_up_one a multiprocessor. P > 5 needs more than the registers that four blocks leave:
// three then. int8 has half the bytes in flight a block and room for more blocks.
template <class W, int P, bool UP> constexpr int one_blocks() {
    if (W::DTYPE == HC_I8)
        return P == 1 ? 8 : P == 2 ? 6 : P == 3 && !UP ? 5 : P < 5 ? 4 : 3;
    return P > 5 && UP ? 3 : 4;
}

// One token: x in registers, the rows of the block's next neuron requested ahead.
// A record's address hangs on two loads (list, then table). It is looked up two neurons ahead, the
// rows are requested one neuron ahead, so neither latency stands in the loop.
template <class W, int P, bool UP>
__global__ void __launch_bounds__(THREADS, one_blocks<W, P, UP>())
    gate_up_one_kernel(const Ffn1 a) {
    __shared__ float shared[2][WARPS][2][1];
    launch_next();
    wait_prior();
    stamp(a.stamps, AT_HOT);
    const int count = *a.hot.count, stride = gridDim.x;
    const auto record = [&](int k) { return k < count ? a.record_R[a.hot.rows[k]] : nullptr; };
    typename Part<W>::Pack g[P], u[P];
    float x[P][W::E];
    const char *next = record(blockIdx.x);
    if (next)
        request<W, P, UP>(a, next, g, u);
    float bias = bias_of(a, next);
    next = record(blockIdx.x + stride); // two list lookups away: fetched a neuron ahead
#pragma unroll
    for (int p = 0; p < P; p++) {
        const int at = (threadIdx.x + p * THREADS) * W::E;
        if (at < a.d)
            Part<W>::load_x(a.x, at, a.d, true, x[p]);
        else
#pragma unroll
            for (int i = 0; i < W::E; i++)
                x[p][i] = 0;
    }
    int turn = 0;
    for (int k = blockIdx.x; k < count; k += stride, turn ^= 1) {
        float gate[1] = {}, up[1] = {};
        const float own_bias = bias;
#pragma unroll
        for (int p = 0; p < P; p++) {
            float weight[W::E];
            Part<W>::unpack_dot(g[p], true, weight);
#pragma unroll
            for (int i = 0; i < W::E; i++)
                gate[0] = fmaf(weight[i], x[p][i], gate[0]);
            if (!UP)
                continue;
            Part<W>::unpack_dot(u[p], true, weight);
#pragma unroll
            for (int i = 0; i < W::E; i++)
                up[0] = fmaf(weight[i], x[p][i], up[0]);
        }
        // g and u are free, their products taken. The next neuron's bytes come during write_c.
        if (next)
            request<W, P, UP>(a, next, g, u);
        bias = bias_of(a, next);
        next = record(k + 2 * stride);
        write_c<1, UP>(a, k, 0, 1, own_bias, gate, up, shared[turn]);
    }
}

// The entries of [begin, end) with a factor for any of B tokens, in order, into shared memory.
// A thread an entry, so at most THREADS of them. Ballot and the warps' counts give each its place:
// the list's order is kept. Returns how many. First barrier: counts are there; second: rows and c
// are, and counts may be written again.
template <int B>
__device__ __forceinline__ int gather(const Ffn1 &a, int begin, int end, int group,
                                      const char **rows, float (*c)[B], int *fired) {
    __shared__ int counts[WARPS];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, k = begin + threadIdx.x;
    float own[B];
    bool on = false;
#pragma unroll
    for (int b = 0; b < B; b++) {
        own[b] = k < end ? a.hot.c_KB[static_cast<int64_t>(k) * a.bucket + 8 * group + b] : 0.0f;
        on |= own[b] != 0;
        *fired += fired_with(own[b]);
    }
    const unsigned ballot = __ballot_sync(FULL, on);
    if (lane == 0)
        counts[warp] = __popc(ballot);
    __syncthreads();
    int at = __popc(ballot & ((1u << lane) - 1)), total = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        at += w < warp ? counts[w] : 0;
        total += counts[w];
    }
    // A record's address is looked up once for all columns' threads.
    if (on) {
        rows[at] = a.record_R[a.hot.rows ? a.hot.rows[k] : k] + a.record.down;
#pragma unroll
        for (int b = 0; b < B; b++)
            c[at][b] = own[b];
    }
    __syncthreads();
    return total;
}

// Grid: tiles of THREADS * E columns, chunks of the list, groups of tokens. A thread owns E columns
// and adds all fired entries of its chunk in order, so there is no reduction; chunks only make
// enough blocks (5 tiles of 5120 columns in fp16 are few for 132 multiprocessors).
template <class W, int B> __global__ void __launch_bounds__(THREADS) down_kernel(const Ffn1 a) {
    typedef DownPart<W> T;
    // Eight tokens' sums leave no registers for more than 16 rows.
    constexpr int AHEAD = DOWN_BYTES / (B == 8 || T::E == W::E ? 16 : 8);
    __shared__ const char *rows[THREADS];
    __shared__ float c[THREADS][B];
    __shared__ int scratch[33];
    launch_next();
    wait_prior();
    const int tile = blockIdx.x, chunk = blockIdx.y, group = blockIdx.z;
    const int column = (tile * THREADS + threadIdx.x) * T::E;
    const int begin = a.hot.starts[chunk], end = a.hot.starts[chunk + 1];
    float sum[B][T::E] = {};
    int fired = 0;
    for (int at = begin; at < end; at += THREADS) {
        const int n = gather<B>(a, at, end, group, rows, c, &fired);
        for (int i = 0; i < n; i += AHEAD) {
            typename T::Pack w[AHEAD];
#pragma unroll
            for (int j = 0; j < AHEAD; j++)
                // Loads are unconditional: beyond the end the last row once more, out of the cache.
                w[j] = T::load(rows[min(i + j, n - 1)], column, a.d, a.vec, a.record.scales);
#pragma unroll
            for (int j = 0; j < AHEAD; j++) {
                float value[T::E];
                T::unpack(w[j], value);
                if (i + j >= n)
                    break;
#pragma unroll
                for (int b = 0; b < B; b++)
#pragma unroll
                    for (int e = 0; e < T::E; e++)
                        sum[b][e] = fmaf(c[i + j][b], value[e], sum[b][e]);
            }
        }
        // rows and c are written anew.
        __syncthreads();
    }
#pragma unroll
    for (int b = 0; b < B; b++) {
        float *to = a.partial_CBD + (static_cast<int64_t>(chunk) * a.bucket + 8 * group + b) * a.d;
#pragma unroll
        for (int e = 0; e < T::E; e++)
            if (column + e < a.d)
                to[column + e] = sum[b][e];
    }
    // One of the blocks that see the same entries counts them.
    if (tile == 0) {
        const int total = block_sum(fired, scratch);
        if (threadIdx.x == 0)
            a.fired_C[group * a.n_chunks + chunk] = total;
    }
}

// How many neurons fire is not known when the graph is captured: the grid fills the GPU, at most a
// block a row of the table, and blocks without an entry return.
template <class W, int B> void launch_gate_up(const Ffn1 &a, const Launch &launch) {
    const int blocks = a.hot.rows ? min(a.n_rows, launch.sms * 8)
                                  : min((a.n_rows + WARPS - 1) / WARPS, launch.sms * 16);
    const auto listed = a.record.up < 0 ? gate_up_kernel<W, B, false> : gate_up_kernel<W, B, true>;
    enqueue<Ffn1>(a.hot.rows ? listed : gate_first_kernel<W, B>, dim3(blocks, a.groups), THREADS, 0,
                  launch, a);
}

template <class W, int P> void launch_one(const Ffn1 &a, const Launch &launch) {
    const bool up = a.record.up >= 0;
    const int blocks =
        min(a.n_rows, launch.sms * (up ? one_blocks<W, P, true>() : one_blocks<W, P, false>()));
    enqueue<Ffn1>(up ? gate_up_one_kernel<W, P, true> : gate_up_one_kernel<W, P, false>,
                  dim3(blocks), THREADS, 0, launch, a);
}

template <class W, int B> void launch_down(const Ffn1 &a, const Launch &launch) {
    enqueue<Ffn1>(down_kernel<W, B>, dim3(a.tiles, a.n_chunks, a.groups), THREADS, 0, launch, a);
}

template <class W> void launch_w(Ffn1 &a, bool is_down, const Launch &launch) {
    constexpr int COLUMNS = THREADS * DownPart<W>::E, ROW = THREADS * W::E;
    a.tiles = (a.d + COLUMNS - 1) / COLUMNS;
    const int packs = (a.d + ROW - 1) / ROW; // of a row, a thread
    const auto one = [&](auto p) { launch_one<W, p>(a, launch); };
    // One token, a predicted list and rows of a length there is a kernel for.
    if (!is_down && a.bucket == 1 && a.hot.rows && a.vec) {
        if constexpr (W::DTYPE == HC_I8) {
            if (by_number<1, 2, 3, 4, 5>(packs, one))
                return;
        } else if (by_number<1, 2, 4, 5, 7>(packs, one)) {
            return;
        }
    }
    by_number<1, 2, 4, 8>(min(a.bucket, 8), [&](auto b) {
        is_down ? launch_down<W, b>(a, launch) : launch_gate_up<W, b>(a, launch);
    });
}

// The caller guarantees: record_R has n_rows records, each readable by the device (device memory,
// or pinned host memory over the bus), and rows of x for the whole bucket.
void start(const Ffn &args, int bucket, bool is_down, const Launch &launch) {
    const hc_record &r = args.record;
    const bool i8 = r.dtype == HC_I8;
    const bool aligned =
        r.bytes % 16 == 0 && r.gate % 16 == 0 && r.down % 16 == 0 && (r.up < 0 || r.up % 16 == 0);
    if (i8 && !(aligned && r.group == HC_GROUP && r.scales % 16 == 0 && r.scales >= args.d))
        throw Failure(HC_ERR_ARGUMENT, "int8 neurons have parts on 16 bytes and a scale for each " +
                                           std::to_string(HC_GROUP) + " weights");
    const bool vec = aligned && args.d % (i8 ? I8::E : r.dtype == HC_F32 ? F32::E : F16::E) == 0;
    Ffn1 a = {args, (bucket + 7) / 8, bucket, 0, vec};
    by_dtype<F32, F16, BF16, I8>(r.dtype,
                                 [&](auto w) { launch_w<decltype(w)>(a, is_down, launch); });
}

} // namespace v1

void gate_up(const Ffn &args, int bucket, const Launch &launch) {
    if (!by_variant(&Operators::gate_up, args, bucket, launch))
        v1::start(args, bucket, false, launch);
}

void down(const Ffn &args, int bucket, const Launch &launch) {
    if (!by_variant(&Operators::down, args, bucket, launch))
        v1::start(args, bucket, true, launch);
}

} // namespace hotcold
