// attention.cuh - what a block of attention.cu does with one piece of the positions: load, score, weigh.
//
// Lanes l of a position hold the elements of packs l, l + LANES, ...; a dot product is a lane's own
// elements in turn, then a butterfly. Positions go round robin over the warps; a lane adds up its own
// in turn, then the warp's, then the block's in the order of the warps.
// Bytes, operations and variants: attention.cu. fp16 heads of 128, one token: LANES 16, so a warp's
// load is EACH = 2 whole positions of 256 bytes and the block's STEP = 16 positions.
#ifndef HOTCOLD_ATTENTION_CUH
#define HOTCOLD_ATTENTION_CUH
#include "cuda/kernels/common.cuh"

#include <climits>

namespace hotcold {
namespace v2 {

constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int PIECE = HC_ATTENTION_PIECE;
constexpr int PITCH = PIECE + 1; // of scores: lanes that write one position's rows hit other banks
constexpr float LOG2E = 1.44269504f;

// Constants of one kernel. LANES lanes hold one position's row of the cache, PACKS loads of 16
// bytes each; ROWS queries use what was loaded.
template <class W_, int LANES_, int PACKS_, int ROWS_, bool VEC_> struct Shape {
    typedef W_ W;
    typedef typename W::type T;
    static constexpr int LANES = LANES_, PACKS = PACKS_, ROWS = ROWS_;
    static constexpr bool VEC = VEC_;         // rows of the cache allow 16-byte loads
    static constexpr int E = W::E * PACKS;    // elements of a head a lane holds
    static constexpr int WIDTH = LANES * E;   // of a head, with zeros behind it
    static constexpr int EACH = WARP / LANES; // positions of a warp's load
    static constexpr int STEP = WARPS * EACH; // and of the block's
    // positions of a lane whose dot products are added up together; not another for fewer rows
    static constexpr int TOGETHER = LANES / (ROWS > 4 ? 8 : 4) < 4 ? LANES / (ROWS > 4 ? 8 : 4) : 4;
    static constexpr int OWNERS = LANES / (ROWS * TOGETHER);      // lanes left with the same score
    static constexpr int AHEAD = (ROWS * E > 32 ? 4 : 8) / PACKS; // loads in flight
};

// Of one block, dynamic. A piece writes it in the order q and lengths (once a block), scores and
// tops, sums and totals, with a barrier between writing and reading each.
template <class S> struct Shared {
    float q[S::ROWS * S::WIDTH];
    float sums[WARPS * S::ROWS * S::WIDTH]; // of values, by each warp
    float totals[WARPS * S::ROWS];          // of weights
    float tops[WARPS * S::ROWS];            // highest scores
    float scores[S::ROWS * PITCH];
    int lengths[S::ROWS]; // behind the last position a row attends to; 0: there is no such row
    int firsts[S::ROWS];  // the first one
    int last;
};

struct Tile { // rows row0 ... of a key head: row i is head i % group of it, of token i / group
    int kv_head, row0, group;
    int tokens; // of the pass, up to the tile's last
    int n;      // behind the last position of its rows; 0: it has none
    int fresh;  // the first position that this pass appends
    int piece0; // the first piece in which one of them sees a position
};

// The first position that a token at `position` attends to.
__device__ __forceinline__ int first_seen(const Attention &a, int position) {
    return a.window ? max(0, position + 1 - a.window) : 0;
}

// The grid's x is key heads times tiles of ROWS rows; a tile's rows are consecutive, so several
// heads of one token come before the next token.
template <int ROWS> __device__ __forceinline__ Tile tile_of(const Attention &a) {
    if constexpr (ROWS == 1) { // of one token, a head a key head: nothing to divide
        const int position = a.pass->position_B[0];
        return {static_cast<int>(blockIdx.x),   0, 1, 1, position + 1, position,
                first_seen(a, position) / PIECE};
    }
    const int tiles = gridDim.x / a.kv_heads, lane = threadIdx.x % WARP;
    // A lane a token: HC_MAX_BATCH is a warp.
    const int batch = a.pass->batch, position = a.pass->position_B[lane];
    Tile t;
    t.kv_head = blockIdx.x / tiles, t.row0 = blockIdx.x % tiles * ROWS;
    t.group = a.heads / a.kv_heads;
    const int first = t.row0 / t.group;
    t.tokens = min((t.row0 + ROWS - 1) / t.group + 1, batch);
    t.n = __reduce_max_sync(FULL, lane >= first && lane < t.tokens ? position + 1 : 0);
    t.fresh = __reduce_min_sync(FULL, lane < t.tokens ? position : INT_MAX);
    // A pass's positions ascend: the tile's first token sees the earliest one.
    t.piece0 = t.n ? first_seen(a, __shfl_sync(FULL, position, first)) / PIECE : 0;
    return t;
}

// Which of [B][heads] a row of the tile is.
__device__ __forceinline__ int64_t row_of(const Attention &a, const Tile &tile, int r) {
    const int row = tile.row0 + r;
    return static_cast<int64_t>(row / tile.group) * a.heads + tile.kv_head * tile.group +
           row % tile.group;
}

// Element e of a head, turned by its position. The products are rounded as written here, whatever
// kernel this becomes part of.
__device__ __forceinline__ float turned(const Attention &a, const float *head, int e,
                                        int position) {
    if (!a.cos_PE) // positions came with the embeddings; head_dim may be odd
        return head[e];
    const int half = a.head_dim / 2;
    const bool low = e < half;
    const int64_t at = static_cast<int64_t>(position) * half + (low ? e : e - half);
    const float other = low ? -head[e + half] : head[e - half];
    return fmaf(head[e], a.cos_PE[at], __fmul_rn(other, a.sin_PE[at]));
}

// Queries, scaled so that 2 to the power of their products with keys are weights.
template <class S>
__device__ __forceinline__ void put_queries(const Attention &a, const Tile &tile, Shared<S> &s) {
    const int hd = a.head_dim;
    const float scale = LOG2E / sqrtf(static_cast<float>(hd));
    if (threadIdx.x < S::ROWS) {
        // Rows past the last token get length 0: their queries are zeros, their scores -infinity,
        // and hand_out skips them.
        const int t = (tile.row0 + static_cast<int>(threadIdx.x)) / tile.group;
        s.lengths[threadIdx.x] = t < tile.tokens ? a.pass->position_B[t] + 1 : 0;
        s.firsts[threadIdx.x] = t < tile.tokens ? first_seen(a, a.pass->position_B[t]) : 0;
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < S::ROWS * S::WIDTH; i += THREADS) {
        const int row = tile.row0 + i / S::WIDTH, e = i % S::WIDTH, t = row / tile.group;
        float v = 0;
        if (e < hd && t < tile.tokens) {
            const int head = tile.kv_head * tile.group + row % tile.group;
            const int64_t width = static_cast<int64_t>(a.heads + 2 * a.kv_heads) * hd;
            v = __fmul_rn(turned(a, a.qkv + t * width + head * hd, e, a.pass->position_B[t]),
                          scale);
        }
        s.q[i] = v;
    }
}

// Keys and values of the tokens whose positions lie in [start, end).
// v is stored as it comes; k is turned first, so keys in the cache are final. Every tile of the key
// head writes its own copy of the same values, which is why no block waits for another.
template <class T>
__device__ __forceinline__ void append(const Attention &a, const Tile &tile, int start, int end) {
    const int hd = a.head_dim, q_dim = a.heads * hd, kv_dim = a.kv_heads * hd;
    const int64_t cache = static_cast<int64_t>(tile.kv_head) * a.context * hd;
#pragma unroll 1
    for (int i = threadIdx.x; i < tile.tokens * hd; i += THREADS) {
        const int t = tile.tokens == 1 ? 0 : i / hd, e = i - t * hd;
        const int position = a.pass->position_B[t];
        if (position < start || position >= end)
            continue;
        const float *k =
            a.qkv + static_cast<int64_t>(t) * (q_dim + 2 * kv_dim) + q_dim + tile.kv_head * hd;
        const int64_t to = cache + static_cast<int64_t>(position) * hd + e;
        static_cast<T *>(a.k_cache)[to] = static_cast<T>(turned(a, k, e, position));
        static_cast<T *>(a.v_cache)[to] = static_cast<T>(k[kv_dim + e]);
    }
}

// Replaces v where `there`; not through the read-only path: the block itself writes some of it. The
// predicate is part of the instruction, so that many loads are under way at once.
// .cg: from L2, where the block's own appended rows are too; L1 may hold an older line of them.
template <class S>
__device__ __forceinline__ void load_cached(uint4 &v, const typename S::T *row, int at, int hd,
                                            bool there) {
    if constexpr (S::VEC) {
        const int wanted = there && at < hd;
        asm volatile("{\n"
                     ".reg .pred p;\n"
                     "setp.ne.s32 p, %5, 0;\n"
                     "@p ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                     "}\n"
                     : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
                     : "l"(row + at), "r"(wanted)
                     : "memory");
    } else if (there) {
        typename S::T *to = reinterpret_cast<typename S::T *>(&v);
#pragma unroll
        for (int i = 0; i < S::W::E; i++)
            if (at + i < hd)
                to[i] = row[at + i];
    }
}

// Where pack j of a lane's part of a head begins.
template <class S> __device__ __forceinline__ int element(int j) {
    return (j * S::LANES + static_cast<int>(threadIdx.x) % S::LANES) * S::W::E;
}

template <class S> struct Packs { // a lane's parts of positions at, at + STEP, ... of a piece
    uint4 v[S::AHEAD][S::PACKS];

    // Those that lie in [from, to); the others stay as they are.
    __device__ __forceinline__ void load(const typename S::T *rows, int at, int from, int to,
                                         int hd) {
#pragma unroll
        for (int i = 0; i < S::AHEAD; i++) {
            const int p = at + i * S::STEP;
#pragma unroll
            for (int j = 0; j < S::PACKS; j++)
                load_cached<S>(v[i][j], rows + p * hd, element<S>(j), hd, p >= from && p < to);
        }
    }
    __device__ __forceinline__ void unpack(int i, float (&out)[S::E]) const {
#pragma unroll
        for (int j = 0; j < S::PACKS; j++) {
            float part[S::W::E];
            S::W::unpack(v[i][j], part);
#pragma unroll
            for (int e = 0; e < S::W::E; e++)
                out[j * S::W::E + e] = part[e];
        }
    }
};

// Sums over a position's lanes of N values at once: lane l is left with that of value l / (LANES /
// N). The order in which one value is added up is the same for every N.
// Each step halves the values: a lane keeps one half and sends the other to its partner, so N
// values cost N - 1 + log2(LANES / N) shuffles and not N log2(LANES).
template <int N, int STEP> __device__ __forceinline__ float gather(const float (&v)[N]) {
    if constexpr (N == 1) {
        float sum = v[0];
#pragma unroll
        for (int step = STEP; step; step /= 2)
            sum += __shfl_xor_sync(FULL, sum, step);
        return sum;
    } else {
        const bool upper = threadIdx.x & STEP;
        float half[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            const float keep = upper ? v[i + N / 2] : v[i], send = upper ? v[i] : v[i + N / 2];
            half[i] = keep + __shfl_xor_sync(FULL, send, STEP);
        }
        return gather<N / 2, STEP / 2>(half);
    }
}

// The value that gather leaves a lane with: of row `row`, of position `later` of those together.
template <class S> struct Own {
    const int lane = threadIdx.x % WARP;
    const int row = lane % S::LANES / S::OWNERS % S::ROWS;
    const int later = lane % S::LANES / S::OWNERS / S::ROWS;
    const bool first = lane % S::OWNERS == 0; // of the lanes with the same value
};

// Scores of a piece and the highest of this warp's; packs holds the first keys.
template <class S>
__device__ __forceinline__ void score(Packs<S> &packs, const typename S::T *keys, int start,
                                      int len, int hd, Shared<S> &s) {
    // K dot products a row side by side: K * ROWS values go through one gather.
    constexpr int K = S::TOGETHER;
    const Own<S> own;
    const int warp = threadIdx.x / WARP, length = min(s.lengths[own.row] - start, len);
    const int begin = max(s.firsts[own.row] - start, 0);
    // This lane's elements of every query, in registers for the whole piece.
    float q[S::ROWS][S::E], top = -INFINITY;
#pragma unroll
    for (int r = 0; r < S::ROWS; r++)
#pragma unroll
        for (int e = 0; e < S::E; e++)
            q[r][e] = s.q[r * S::WIDTH + element<S>(e / S::W::E) + e % S::W::E];
    for (int first = warp * S::EACH; first < len; first += S::STEP * S::AHEAD) {
        const int at = first + own.lane / S::LANES;
        // The first round's loads were issued by attend() already.
        if (first != warp * S::EACH)
            packs.load(keys, at, 0, len, hd);
#pragma unroll
        for (int i = 0; i < S::AHEAD; i += K) {
            // Uniform over the warp: shuffles below need all lanes.
            if (first + i * S::STEP >= len)
                break;
            float dots[K * S::ROWS];
#pragma unroll
            for (int k = 0; k < K; k++) {
                float x[S::E];
                packs.unpack(i + k, x);
#pragma unroll
                for (int r = 0; r < S::ROWS; r++) {
                    float dot = 0;
#pragma unroll
                    for (int e = 0; e < S::E; e++)
                        dot = fmaf(q[r][e], x[e], dot);
                    dots[k * S::ROWS + r] = dot;
                }
            }
            const float dot = gather<K * S::ROWS, S::LANES / 2>(dots);
            const int p = at + (i + own.later) * S::STEP;
            // Causal: a row sees the positions of the piece before its own `length`, and none
            // before its window; what lies behind the piece's end is never used.
            const float found = p < length && p >= begin ? dot : -INFINITY;
            top = fmaxf(top, found);
            // One of OWNERS lanes with the same score writes it.
            if (own.first && p < len)
                s.scores[own.row * PITCH + p] = found;
        }
    }
    // Lanes of a position hold K * ROWS values in order (later, row), later slowest: xor steps from
    // LANES / K on join the same row of other positions.
#pragma unroll
    for (int step = S::LANES / K; step < WARP; step *= 2)
        top = fmaxf(top, __shfl_xor_sync(FULL, top, step));
    if (own.lane < S::LANES / K && own.first)
        s.tops[warp * S::ROWS + own.row] = top;
}

// Over the whole block; behind the barrier that ends score().
template <class S> __device__ __forceinline__ float highest(const Shared<S> &s, int r) {
    float top = -INFINITY;
#pragma unroll
    for (int w = 0; w < WARPS; w++)
        top = fmaxf(top, s.tops[w * S::ROWS + r]);
    return top;
}

// Weights of a piece and this warp's sums of values; packs holds the first values.
template <class S>
__device__ __forceinline__ void weigh(Packs<S> &packs, const typename S::T *values, int len, int hd,
                                      Shared<S> &s) {
    constexpr int K = S::TOGETHER;
    const Own<S> own;
    const int warp = threadIdx.x / WARP;
    // A row without a position in this piece: weights of 0, not of exp2(-infinity + infinity).
    const float found = highest(s, own.row), top = found == -INFINITY ? 0.0f : found;
    float sum[S::ROWS][S::E] = {}, total = 0;
    for (int first = warp * S::EACH; first < len; first += S::STEP * S::AHEAD) {
        const int at = first + own.lane / S::LANES;
        if (first != warp * S::EACH)
            packs.load(values, at, 0, len, hd);
#pragma unroll
        for (int i = 0; i < S::AHEAD; i += K) {
            if (first + i * S::STEP >= len)
                break;
            const int p = at + (i + own.later) * S::STEP;
            // Each lane computes the one weight it owns; the shuffle below hands it to the
            // position's lanes.
            const float mine = p < len ? exp2f(s.scores[own.row * PITCH + p] - top) : 0.0f;
            total += mine;
#pragma unroll
            for (int k = 0; k < K; k++) {
                float v[S::E];
                packs.unpack(i + k, v);
#pragma unroll
                for (int r = 0; r < S::ROWS; r++) {
                    const float weight =
                        __shfl_sync(FULL, mine, (k * S::ROWS + r) * S::OWNERS, S::LANES);
#pragma unroll
                    for (int e = 0; e < S::E; e++) // 0 * a later token's infinity is no number
                        sum[r][e] = weight == 0 ? sum[r][e] : fmaf(weight, v[e], sum[r][e]);
                }
            }
        }
    }
#pragma unroll
    for (int step = S::LANES / K; step < WARP; step *= 2)
        total += __shfl_xor_sync(FULL, total, step);
    // Lanes that hold the same elements of other positions: after this every group has the warp's
    // sum.
#pragma unroll
    for (int step = S::LANES; step < WARP; step *= 2)
#pragma unroll
        for (int r = 0; r < S::ROWS; r++)
#pragma unroll
            for (int e = 0; e < S::E; e++)
                sum[r][e] += __shfl_xor_sync(FULL, sum[r][e], step);
    if (own.lane < S::LANES / K && own.first)
        s.totals[warp * S::ROWS + own.row] = total;
    if (own.lane >= S::LANES)
        return;
#pragma unroll
    for (int r = 0; r < S::ROWS; r++)
#pragma unroll
        for (int e = 0; e < S::E; e += 4)
            *reinterpret_cast<float4 *>(
                &s.sums[(warp * S::ROWS + r) * S::WIDTH + element<S>(e / S::W::E) + e % S::W::E]) =
                make_float4(sum[r][e], sum[r][e + 1], sum[r][e + 2], sum[r][e + 3]);
}

// The warps' sums in order: the result, or where a row has more pieces, this one's part of it.
// sum / total is the result of softmax: both were scaled by 2^-top. Parts of several pieces keep
// their own top, which combine() in attention.cu brings to a common one.
template <class S>
__device__ __forceinline__ void hand_out(const Attention &a, const Tile &tile, int piece,
                                         const Shared<S> &s) {
    const int hd = a.head_dim;
#pragma unroll 1
    for (int i = threadIdx.x; i < S::ROWS * hd; i += THREADS) {
        const int r = S::ROWS == 1 ? 0 : i / hd, e = i - r * hd;
        if (s.lengths[r] <= piece * PIECE || s.firsts[r] >= (piece + 1) * PIECE)
            continue;
        float sum = 0, total = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            sum += s.sums[(w * S::ROWS + r) * S::WIDTH + e];
            total += s.totals[w * S::ROWS + r];
        }
        const int64_t row = row_of(a, tile, r), at = row * a.pieces + piece;
        if ((s.lengths[r] - 1) / PIECE == s.firsts[r] / PIECE) { // the row has this piece alone
            a.out[row * hd + e] = sum / total;
            continue;
        }
        a.partial[at * hd + e] = sum;
        if (e == 0)
            a.stats[at] = make_float2(highest(s, r), total);
    }
}

// One piece by one block. Loads come first and what does not need them runs meanwhile: old keys,
// then queries and appending; values, then the end of scoring.
template <class S>
__device__ __forceinline__ void attend(const Attention &a, const Tile &tile, int piece,
                                       Shared<S> &s) {
    typedef typename S::T T;
    const int hd = a.head_dim, start = piece * PIECE, len = min(PIECE, tile.n - start);
    const int old = max(0, min(tile.fresh - start, len)); // positions that earlier passes appended
    const int64_t cache = (static_cast<int64_t>(tile.kv_head) * a.context + start) * hd;
    const T *keys = static_cast<const T *>(a.k_cache) + cache;
    const T *values = static_cast<const T *>(a.v_cache) + cache;
    const int at = threadIdx.x / WARP * S::EACH + threadIdx.x % WARP / S::LANES;
    Packs<S> packs = {};
    packs.load(keys, at, 0, old, hd);
    if (piece == tile.piece0 + static_cast<int>(blockIdx.y))
        put_queries<S>(a, tile, s);
    if (old < len)
        append<T>(a, tile, start, start + len);
    // Queries and lengths are in shared memory, this block's new rows in the cache.
    __syncthreads();
    if (old < len)
        packs.load(keys, at, old, len, hd);
    score<S>(packs, keys, start, len, hd, s);
    // Issued before the barrier: they come while slower warps still score.
    packs.load(values, at, 0, len, hd);
    // All scores and tops are there.
    __syncthreads();
    weigh<S>(packs, values, len, hd, s);
    // All warps' sums and totals are there.
    __syncthreads();
    hand_out<S>(a, tile, piece, s);
}

} // namespace v2
} // namespace hotcold
#endif
