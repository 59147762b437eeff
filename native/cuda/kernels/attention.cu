// attention.cu - rotary embedding, append to the KV cache and decode attention, in one kernel.
//
//   caches of a layer: [kv_heads][context][head_dim], float or half; qkv: [B][q | k | v]
//
// Bytes: 2 * positions * kv_heads * head_dim * e, and 4 FLOPs an element and query: bound by reading
// the cache (13B, 4096 positions, halves: 84 MB a layer, 25 us of an H100's 3.35 TB/s), and below
// some hundred positions by latency. The length comes from device memory, so one graph serves every
// length; blocks beyond it return at once.
//
// v1 (gone): a block a head, a lane an element at a time, all scores in shared memory: 40 of 132 SMs
// at work, and the context limited by shared memory. (H100, 13B, 2026-11-22, some 100 positions: qkv,
// attention and o 3.36 ms a token; with v2 3.15.)
// v2: positions are cut into pieces of HC_ATTENTION_PIECE, counted from position 0. A block is one piece
// of one key head and up to ROWS queries (heads of the key head, token by token): it reads keys and
// values once, 16 bytes a lane, LANES lanes a position. A context of one piece is written out at
// once; of more, each block leaves its sums, and the last of a tile to arrive adds them up in the
// order of the pieces. Which positions a warp takes, and every order of adding, follow from the
// position alone: a token's bits do not depend on the batch, its bucket or the tile.
//
// Blocks of 256 threads, three an SM: with 512, two an SM, the 320 blocks of 40 heads and 2048 positions
// took two turns (H100, halves, one token, GB/s at 256, 2048, 4096 positions: 616, 1543, 1919, now 570,
// 1807, 2103; a position after the other, with branches around loads: 423, 1182).
//
// With a window, pieces that lie before it are not visited, and positions of its first piece that do
// have a weight of 0.
//
// A block appends the keys and values of the pass that lie in its piece, those of tokens up to its
// own (several blocks write the same values to the same places), so it reads nothing that another
// block of this kernel must write first. Older positions are on their way meanwhile.
//
// Oracle: numpy in float64, tests/cuda/test_kernels_attention.py.
#include "cuda/kernels/attention.cuh"

namespace hotcold {
namespace v2 {

// Whether this block is the last of its tile to hand a piece out; the counter is then 0 again.
__device__ __forceinline__ bool last_of(uint32_t *arrived, int pieces, int &last) {
    __syncthreads(); // what the block wrote is before what its first thread releases
    if (threadIdx.x == 0) {
        // acq_rel: the release publishes this block's parts, which the barrier above put before it;
        // the acquire of the last one makes all other blocks' parts visible here.
        last = add_relay(arrived, 1) + 1 == static_cast<uint32_t>(pieces);
        if (last)
            // A plain store: the next one to count is a later kernel.
            *arrived = 0;
    }
    __syncthreads();
    return last;
}

// One row's parts from piece `from` on in order, 32 elements of it by one warp.
// Parts were written by other multiprocessors in this kernel: __ldcg reads them in L2. Each lane
// holds the stats of one piece of 32 and hands them round by shuffles; eight parts are in flight.
__device__ __forceinline__ void combine(const Attention &a, int64_t row, int from, int pieces,
                                        int e) {
    const int lane = threadIdx.x % WARP, hd = a.head_dim;
    const float2 *stats = a.stats + row * a.pieces + from;
    const float *partial = a.partial + (row * a.pieces + from) * hd;
    const auto of = [&](int i) {
        return i < pieces ? __ldcg(stats + i) : make_float2(-INFINITY, 0.0f);
    };
    float2 mine = of(lane);
    float top = mine.x, sum = 0, total = 0;
    for (int i = lane + WARP; i < pieces; i += WARP)
        top = fmaxf(top, of(i).x);
    top = warp_max(top);
    for (int first = 0; first < pieces; first += WARP) {
        const int count = min(WARP, pieces - first);
        if (first > 0)
            mine = of(first + lane);
        const float scale = mine.x == -INFINITY ? 0.0f : exp2f(mine.x - top);
        for (int i = 0; i < count; i += 8) {
            float part[8];
#pragma unroll
            for (int j = 0; j < 8; j++)
                part[j] = i + j < count && e < hd
                              ? __ldcg(partial + static_cast<int64_t>(first + i + j) * hd + e)
                              : 0.0f;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const float share = __shfl_sync(FULL, scale, i + j);
                const float weights = __shfl_sync(FULL, mine.y, i + j);
                if (i + j < count)
                    sum = fmaf(part[j], share, sum), total = fmaf(weights, share, total);
            }
        }
    }
    if (e < hd)
        a.out[row * hd + e] = sum / total;
}

// blockIdx.x: key head and tile. blockIdx.y: the first piece; with more pieces than grid.y a block
// takes every grid.y-th. Blocks beyond the context's length fall through the loop.
template <class S>
__global__ void __launch_bounds__(THREADS, S::ROWS == 1 ? 3 : 2)
    attention_kernel(const Attention a) {
    extern __shared__ __align__(16) char shared[];
    Shared<S> &s = *reinterpret_cast<Shared<S> *>(shared);
    launch_next();
    wait_prior();
    const Tile tile = tile_of<S::ROWS>(a);
    const int pieces = (tile.n + PIECE - 1) / PIECE, chunks = (a.head_dim + WARP - 1) / WARP;
    const int parts = pieces - tile.piece0; // that are handed out
    for (int piece = tile.piece0 + blockIdx.y; piece < pieces; piece += gridDim.y) {
        attend<S>(a, tile, piece, s);
        // last_of's barriers also keep the next piece from writing shared memory that hand_out
        // still reads.
        if (parts == 1 || !last_of(a.arrived + blockIdx.x, parts, s.last))
            continue;
        for (int i = threadIdx.x / WARP; i < S::ROWS * chunks; i += WARPS) {
            const int r = S::ROWS == 1 ? 0 : i / chunks;
            const int from = s.firsts[r] / PIECE, to = (s.lengths[r] + PIECE - 1) / PIECE;
            if (to - from > 1)
                combine(a, row_of(a, tile, r), from, to - from,
                        (i - r * chunks) * WARP + static_cast<int>(threadIdx.x) % WARP);
        }
    }
}

// grid.y: as many pieces side by side as give eight blocks a multiprocessor. A longer context is
// walked by the same blocks; a graph for a long one does not launch thousands that return at once.
template <class S> void launch_shape(const Attention &a, int bucket, const Launch &launch) {
    const int tiles = (a.heads / a.kv_heads * bucket + S::ROWS - 1) / S::ROWS;
    const int blocks = a.kv_heads * tiles;                     // of a piece
    const int enough = (8 * launch.sms + blocks - 1) / blocks; // pieces at once that fill the GPU
    enqueue<Attention>(attention_kernel<S>, dim3(blocks, max(1, min(a.pieces, enough))), THREADS,
                       sizeof(Shared<S>), launch, a);
}

// ROWS by the queries that share a key head: 1 for one token and head; 8 with grouped queries of
// more than four heads, where registers allow; else 4. A row's bits are the same with each.
template <class W, int LANES, int PACKS, bool VEC>
void launch_rows(const Attention &a, int bucket, const Launch &launch) {
    const int group = a.heads / a.kv_heads;
    if (group * bucket == 1)
        return launch_shape<Shape<W, LANES, PACKS, 1, VEC>>(a, bucket, launch);
    if constexpr (LANES * PACKS * W::E <= 128)
        if (group > 4)
            return launch_shape<Shape<W, LANES, PACKS, 8, VEC>>(a, bucket, launch);
    launch_shape<Shape<W, LANES, PACKS, 4, VEC>>(a, bucket, launch);
}

// The fewest lanes whose 16-byte packs cover a head. Odd sizes are gathered element by element.
template <class W> void launch_heads(const Attention &a, int bucket, const Launch &launch) {
    constexpr int MAX_PACKS = HC_GPU_MAX_HEAD_DIM / W::E; // packs of the largest head
    const int packs = (a.head_dim + W::E - 1) / W::E;
    if (packs > MAX_PACKS)
        throw Failure(HC_ERR_UNSUPPORTED,
                      "attention: heads of " + std::to_string(a.head_dim) + " elements, at most " +
                          std::to_string(HC_GPU_MAX_HEAD_DIM) + " are possible");
    if (a.head_dim % W::E)
        return launch_rows<W, 32, MAX_PACKS / 32, false>(a, bucket, launch);
    if constexpr (W::E == 8)
        if (packs <= 8)
            return launch_rows<W, 8, 1, true>(a, bucket, launch);
    if (packs <= 16)
        return launch_rows<W, 16, 1, true>(a, bucket, launch);
    if (packs <= 32)
        return launch_rows<W, 32, 1, true>(a, bucket, launch);
    if constexpr (MAX_PACKS > 32)
        launch_rows<W, 32, 2, true>(a, bucket, launch);
}

} // namespace v2

void attention(const Attention &args, int bucket, const Launch &launch) {
    if (by_variant(&Operators::attention, args, bucket, launch))
        return;
    args.kv_f16 ? v2::launch_heads<F16>(args, bucket, launch)
                : v2::launch_heads<F32>(args, bucket, launch);
}

} // namespace hotcold
