// prompt_ops.cu - what the dense prompt phase does beside products: operands, cache, attention.
//
// Bytes of a 13B layer and 512 tokens: operands 10 to 40 MB each, microseconds of memory traffic.
// Attention: 4 T positions heads head_dim FLOPs, 2.7 GFLOP a layer at 512 positions.
//
// attention v1: a block is one head and 16 tokens, four a warp. Keys and values of 32 positions at a
// time in shared memory as floats; a lane scores one position for the warp's four tokens, then holds
// head_dim / 32 columns of their sums. Softmax runs along (max and sum so far), in the order of the
// positions, from position 0, or from the 32 in which a window begins: a token's bits depend neither
// on its block nor on other tokens.
// Oracle: numpy in float64, tests/cuda/test_kernels_prompt.py.
#include "cuda/prompt/rows.cuh"

namespace hotcold {
namespace {

constexpr int THREADS = 256;

// Exponent that brings the largest of a row to [2^13, 2^14): hi and lo stay clear of subnormals.
__device__ __forceinline__ int exponent_of(float most) {
    return most > 0 && most < INFINITY ? max(-100, min(100, ilogbf(most) - 13)) : 0;
}

// v is hi + lo but for the rounding of lo: 22 bits in float16, 16 in bfloat16.
template <class E>
__device__ __forceinline__ void put_halves(const Operand &to, int64_t at, float v) {
    const E hi = static_cast<E>(v);
    E *first = reinterpret_cast<E *>(to.data), *second = reinterpret_cast<E *>(to.data + to.half);
    first[at] = hi;
    second[at] = static_cast<E>(v - static_cast<float>(hi));
}

// A block a token: norm, largest magnitude, then both halves. One scale a token, a power of two, so
// scaling loses nothing and a token's operand depends on that token alone.
__global__ void __launch_bounds__(THREADS) operand_kernel(const MakeOperand a) {
    __shared__ float scratch[33];
    const int t = blockIdx.x, k = a.to.k;
    const NormedRow value = normed_row(a.from, t, k, scratch);
    if (a.to.dtype == HC_F32) {
        float *to = reinterpret_cast<float *>(a.to.data) + t * a.to.ld;
        for (int i = threadIdx.x; i < k; i += THREADS)
            to[i] = value(i);
        return;
    }
    float most = 0;
    for (int i = threadIdx.x; i < k; i += THREADS)
        most = fmaxf(most, fabsf(value(i)));
    const int exponent = exponent_of(block_max(most, scratch, THREADS / WARP));
    const float down = ldexpf(1.0f, -exponent);
    if (threadIdx.x == 0)
        a.to.scale_T[t] = ldexpf(1.0f, exponent);
    // Zeros up to whole packs: gemm.cu reads packs and multiplies what is in them.
    const int padded = (k + PACK - 1) / PACK * PACK;
    for (int i = threadIdx.x; i < padded; i += THREADS) {
        const float v = i < k ? value(i) * down : 0.0f;
        if (a.to.dtype == HC_F16)
            put_halves<__half>(a.to, t * a.to.ld + i, v);
        else
            put_halves<__nv_bfloat16>(a.to, t * a.to.ld + i, v);
    }
}

struct NormRows {
    Rows from;
    float *y;
    int32_t d;
};
__global__ void __launch_bounds__(THREADS) norm_kernel(const NormRows a) {
    __shared__ float scratch[33];
    const NormedRow value = normed_row(a.from, blockIdx.x, a.d, scratch);
    float *y = a.y + blockIdx.x * a.from.stride;
    for (int i = threadIdx.x; i < a.d; i += THREADS)
        y[i] = value(i); // in place: an element is read by the thread that writes it
}

struct Convert {
    const void *from;
    void *to;
    int64_t count;
    bool add;
};
// Grid-stride over `count` elements, neighbouring threads on neighbouring elements.
template <class From, class To>
__global__ void __launch_bounds__(THREADS) convert(const Convert a) {
    for (int64_t i = blockIdx.x * static_cast<int64_t>(THREADS) + threadIdx.x; i < a.count;
         i += gridDim.x * static_cast<int64_t>(THREADS)) {
        To *to = static_cast<To *>(a.to) + i;
        const float v = static_cast<float>(static_cast<const From *>(a.from)[i]);
        *to = static_cast<To>(a.add ? static_cast<float>(*to) + v : v);
    }
}
template <class From, class To> void start_convert(const Convert &args, const Launch &launch) {
    enqueue<Convert>(convert<From, To>, dim3(launch.sms * 8), THREADS, 0, launch, args);
}

// The mask of a pass as bits, a byte for eight neurons, lowest first: what a request records.
struct Pack {
    const uint8_t *mask;
    uint8_t *bits;
    int32_t n;
};
__global__ void __launch_bounds__(THREADS) pack_kernel(const Pack a) {
    const int t = blockIdx.x, row = (a.n + 7) / 8;
    for (int i = threadIdx.x; i < row; i += THREADS) {
        unsigned bits = 0;
        for (int j = 0; j < 8 && 8 * i + j < a.n; j++)
            bits |= static_cast<unsigned>(a.mask[t * static_cast<int64_t>(a.n) + 8 * i + j]) << j;
        a.bits[t * static_cast<int64_t>(row) + i] = static_cast<uint8_t>(bits);
    }
}

// Append k and v of token t as they are.
template <class T> __device__ __forceinline__ void append_plain(const PromptAttention &a, int t) {
    const int hd = a.head_dim, kv_dim = a.kv_heads * hd;
    const float *k = a.qkv + (static_cast<int64_t>(t) * (a.heads + 2 * a.kv_heads) + a.heads) * hd;
    for (int i = threadIdx.x; i < kv_dim; i += THREADS) {
        const int64_t at = static_cast<int64_t>(i / hd) * a.context + a.position + t;
        static_cast<T *>(a.k_cache)[at * hd + i % hd] = static_cast<T>(k[i]);
        static_cast<T *>(a.v_cache)[at * hd + i % hd] = static_cast<T>(k[kv_dim + i]);
    }
}

// Rotate q in place, append k (rotated) and v to the caches: a block a token.
// q of all tokens is turned and all k and v are in the caches when attention_kernel begins: it is a
// kernel of its own for that reason. A thread turns pairs (e, e + half).
template <class T>
__global__ void __launch_bounds__(THREADS) append_kernel(const PromptAttention a) {
    const int t = blockIdx.x, hd = a.head_dim, half = hd / 2, position = a.position + t;
    float *row = a.qkv + static_cast<int64_t>(t) * (a.heads + 2 * a.kv_heads) * hd;
    if (!a.cos_PE)
        return append_plain<T>(a, t);
    for (int i = threadIdx.x; i < (a.heads + a.kv_heads) * half; i += THREADS) {
        // Query heads come first, then key heads; values lie kv_heads heads behind their key.
        const int head = i / half, e = i % half;
        const float cos = a.cos_PE[position * half + e], sin = a.sin_PE[position * half + e];
        float *at = row + head * hd + e;
        const float low = at[0] * cos - at[half] * sin, high = at[half] * cos + at[0] * sin;
        if (head < a.heads) {
            at[0] = low, at[half] = high;
            continue;
        }
        const int kv_head = head - a.heads;
        const float *v = at + a.kv_heads * hd;
        const int64_t to = (static_cast<int64_t>(kv_head) * a.context + position) * hd + e;
        static_cast<T *>(a.k_cache)[to] = static_cast<T>(low);
        static_cast<T *>(a.k_cache)[to + half] = static_cast<T>(high);
        static_cast<T *>(a.v_cache)[to] = static_cast<T>(v[0]);
        static_cast<T *>(a.v_cache)[to + half] = static_cast<T>(v[half]);
    }
}

constexpr int WARPS = 4, EACH = 4, TOKENS = WARPS * EACH, KEYS = 32;
constexpr int MAX_LANE = 8; // elements of a head a lane holds: heads up to 256

// Grid: heads, blocks of 16 tokens; a block reads the whole cache of its head once for 16 tokens.
// most, total and sum are those of the positions so far; a higher maximum rescales the others by
// `keep`.
template <class T>
__global__ void __launch_bounds__(WARPS *WARP) attention_kernel(const PromptAttention a) {
    // q [TOKENS][hd] | keys [KEYS][hd + 1] | values [KEYS][hd]; heads of 128: 40 KB.
    extern __shared__ float shared[];
    const int head = blockIdx.x, first = blockIdx.y * TOKENS, hd = a.head_dim, pitch = hd + 1;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float *q = shared, *keys = q + TOKENS * hd, *values = keys + KEYS * pitch;
    const int64_t row = static_cast<int64_t>(a.heads + 2 * a.kv_heads) * hd;
    const int64_t cache = static_cast<int64_t>(head / (a.heads / a.kv_heads)) * a.context * hd;
    const T *k_cache = static_cast<const T *>(a.k_cache) + cache;
    const T *v_cache = static_cast<const T *>(a.v_cache) + cache;
    for (int i = threadIdx.x; i < TOKENS * hd; i += WARPS * WARP)
        q[i] = first + i / hd < a.tokens ? a.qkv[(first + i / hd) * row + head * hd + i % hd] : 0;
    // Positions up to the block's last token; later ones are masked for the earlier tokens, and those
    // before their windows for the later ones.
    const int last = min(first + TOKENS, a.tokens) - 1, n = a.position + last + 1;
    const float scale = 1.0f / sqrtf(static_cast<float>(hd));
    float most[EACH], total[EACH] = {}, sum[EACH][MAX_LANE] = {};
#pragma unroll
    for (int i = 0; i < EACH; i++)
        most[i] = -INFINITY;
    const int before = a.window ? max(0, a.position + first + 1 - a.window) : 0;
    for (int p0 = before / KEYS * KEYS; p0 < n; p0 += KEYS) {
        // The last 32 positions have been used by all warps.
        __syncthreads();
        for (int i = threadIdx.x; i < KEYS * hd; i += WARPS * WARP) {
            const int p = i / hd, e = i % hd;
            const bool there = p0 + p < n;
            const int64_t at = static_cast<int64_t>(p0 + p) * hd + e;
            keys[p * pitch + e] = there ? static_cast<float>(k_cache[at]) : 0;
            values[p * hd + e] = there ? static_cast<float>(v_cache[at]) : 0;
        }
        __syncthreads();
        // Lane = position: keys' odd pitch puts the 32 lanes on 32 banks; q is the same word for
        // all of them.
        float score[EACH] = {};
        for (int e = 0; e < hd; e++) {
            const float k = keys[lane * pitch + e];
#pragma unroll
            for (int i = 0; i < EACH; i++)
                score[i] = fmaf(q[(warp * EACH + i) * hd + e], k, score[i]);
        }
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            // Causal: a later position's score is -infinity, its weight exp(-infinity) = 0.
            const int position = a.position + first + warp * EACH + i, p_lane = p0 + lane;
            const bool seen = p_lane <= position && (!a.window || p_lane > position - a.window);
            const float s = seen ? score[i] * scale : -INFINITY;
            const float more = fmaxf(most[i], warp_max(s));
            // -infinity still, where a window begins behind the block's first positions: no number
            // may come of that.
            const float keep = more == most[i] ? 1.0f : expf(most[i] - more);
            const float p = seen ? expf(s - more) : 0.0f;
            most[i] = more;
            total[i] = fmaf(total[i], keep, warp_sum(p));
#pragma unroll
            for (int j = 0; j < MAX_LANE; j++)
                sum[i][j] *= keep;
            score[i] = p;
        }
        // Lane = columns lane, lane + 32, ...; the weights are handed round by shuffles.
        for (int p = 0; p < KEYS; p++) {
            float weight[EACH];
#pragma unroll
            for (int i = 0; i < EACH; i++)
                weight[i] = __shfl_sync(FULL, score[i], p);
#pragma unroll
            for (int j = 0; j < MAX_LANE; j++) {
                if (j * WARP >= hd)
                    break;
                const float v = lane + j * WARP < hd ? values[p * hd + lane + j * WARP] : 0;
#pragma unroll
                for (int i = 0; i < EACH; i++)
                    sum[i][j] = fmaf(weight[i], v, sum[i][j]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int t = first + warp * EACH + i;
        if (t >= a.tokens)
            break;
#pragma unroll
        for (int j = 0; j < MAX_LANE; j++)
            if (lane + j * WARP < hd)
                a.out[(static_cast<int64_t>(t) * a.heads + head) * hd + lane + j * WARP] =
                    sum[i][j] / total[i];
    }
}

template <class T> void start_attention(const PromptAttention &a, const Launch &launch) {
    enqueue<PromptAttention>(append_kernel<T>, dim3(a.tokens), THREADS, 0, launch, a);
    const size_t shared = sizeof(float) * (TOKENS * a.head_dim + KEYS * (2 * a.head_dim + 1));
    enqueue<PromptAttention>(attention_kernel<T>, dim3(a.heads, (a.tokens + TOKENS - 1) / TOKENS),
                             WARPS * WARP, shared, launch, a);
}

} // namespace

void make_operand(const MakeOperand &args, int tokens, const Launch &launch) {
    enqueue<MakeOperand>(operand_kernel, dim3(tokens), THREADS, 0, launch, args);
}

void prompt_norm(const Rows &from, float *y, int64_t d, int tokens, const Launch &launch) {
    enqueue<NormRows>(norm_kernel, dim3(tokens), THREADS, 0, launch,
                      NormRows{from, y, static_cast<int32_t>(d)});
}

void widen(const void *rows, int32_t dtype, float *h, bool add, int64_t count,
           const Launch &launch) {
    const Convert args = {rows, h, count, add};
    by_dtype<F32, F16, BF16>(
        dtype, [&](auto w) { start_convert<typename decltype(w)::type, float>(args, launch); });
}

void expand_i8(const int8_t *from, void *to_f16, int64_t count, const Launch &launch) {
    start_convert<int8_t, __half>(Convert{from, to_f16, count, false}, launch);
}

void pack_mask(const uint8_t *mask, int32_t n, uint8_t *bits, int tokens, const Launch &launch) {
    enqueue<Pack>(pack_kernel, dim3(tokens), THREADS, 0, launch, Pack{mask, bits, n});
}

void prompt_attention(const PromptAttention &args, const Launch &launch) {
    args.kv_f16 ? start_attention<__half>(args, launch) : start_attention<float>(args, launch);
}

} // namespace hotcold
