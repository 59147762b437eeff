// attention.cu - rotary embedding, append to the KV cache and decode attention, in one kernel.
//
//   caches of a layer: [kv_heads][context][head_dim], float or half; qkv: [B][q | k | v]
//
// Bytes: 2 * positions * head_dim * e a key head; 4 FLOPs an element: bound by reading the cache,
// and below some hundred positions by latency. The length comes from device memory, so one graph
// serves every length.
//
// v1: a block is one head of one token. It appends the keys and values of all tokens up to its own
// (blocks of one key head write the same values to the same places), so it reads nothing that
// another block of this kernel must write first. Positions go round robin over the warps and the
// warps are summed in order: a token's result depends on its own position alone.
#include "common.cuh"

namespace hotcold {
namespace v1 {

constexpr int THREADS = 512, WARPS = THREADS / WARP, AHEAD = 4;
constexpr int MAX_LANE = 8; // elements of a head a lane holds: heads up to 256

__device__ __forceinline__ float to_float(float v) {
    return v;
}
__device__ __forceinline__ float to_float(__half v) {
    return __half2float(v);
}

template <class T>
__device__ __forceinline__ void append(const Attention &a, int kv_head, int tokens, T *k_cache,
                                       T *v_cache) {
    const int hd = a.head_dim, half = hd / 2, q_dim = a.heads * hd, kv_dim = a.kv_heads * hd;
    if (!a.cos_PE) { // positions came with the embeddings; head_dim may be odd
        for (int i = threadIdx.x; i < tokens * hd; i += THREADS) {
            const int t = i / hd, e = i % hd;
            const float *k =
                a.qkv + static_cast<int64_t>(t) * (q_dim + 2 * kv_dim) + q_dim + kv_head * hd;
            const int64_t to = static_cast<int64_t>(a.pass->position_B[t]) * hd + e;
            k_cache[to] = static_cast<T>(k[e]);
            v_cache[to] = static_cast<T>(k[kv_dim + e]);
        }
        return;
    }
    for (int i = threadIdx.x; i < tokens * half; i += THREADS) {
        const int t = i / half, e = i % half, position = a.pass->position_B[t];
        const float *k =
            a.qkv + static_cast<int64_t>(t) * (q_dim + 2 * kv_dim) + q_dim + kv_head * hd;
        const float cos = a.cos_PE[position * half + e], sin = a.sin_PE[position * half + e];
        const float low = k[e], high = k[e + half];
        const int64_t to = static_cast<int64_t>(position) * hd + e;
        k_cache[to] = static_cast<T>(low * cos - high * sin);
        k_cache[to + half] = static_cast<T>(high * cos + low * sin);
        v_cache[to] = static_cast<T>(k[kv_dim + e]);
        v_cache[to + half] = static_cast<T>(k[kv_dim + e + half]);
    }
}

// scores[p] = q . k_p * scale, AHEAD positions of a warp at once.
template <class T>
__device__ __forceinline__ void score(const float *q, const T *k_cache, int n, int hd, float scale,
                                      float *scores) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (int p = warp; p < n; p += WARPS * AHEAD) {
        float sum[AHEAD] = {};
        for (int e = lane; e < hd; e += WARP) {
            float k[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++)
                k[i] = to_float(k_cache[static_cast<int64_t>(min(p + i * WARPS, n - 1)) * hd + e]);
#pragma unroll
            for (int i = 0; i < AHEAD; i++)
                sum[i] = fmaf(q[e], k[i], sum[i]);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const float s = warp_sum(sum[i]);
            if (lane == 0 && p + i * WARPS < n)
                scores[p + i * WARPS] = s * scale;
        }
    }
}

// Sum of exp(score - max); the terms replace the scores.
__device__ __forceinline__ float soften(float *scores, int n, float *scratch) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float max = -INFINITY;
    for (int p = threadIdx.x; p < n; p += THREADS)
        max = fmaxf(max, scores[p]);
    max = warp_max(max);
    if (lane == 0)
        scratch[warp] = max;
    __syncthreads();
    max = warp_max(scratch[lane % WARPS]);
    __syncthreads();
    float sum = 0;
    for (int p = threadIdx.x; p < n; p += THREADS) {
        const float e = expf(scores[p] - max);
        scores[p] = e;
        sum += e;
    }
    return block_sum(sum, scratch);
}

template <class T>
__device__ __forceinline__ void weigh(const float *scores, const T *v_cache, int n, int hd,
                                      float *partial) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float sum[MAX_LANE] = {};
    for (int p = warp; p < n; p += WARPS * AHEAD) {
#pragma unroll
        for (int j = 0; j < MAX_LANE; j++) {
            const int e = lane + j * WARP;
            if (e >= hd)
                break;
            float v[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++)
                v[i] = to_float(v_cache[static_cast<int64_t>(min(p + i * WARPS, n - 1)) * hd + e]);
#pragma unroll
            for (int i = 0; i < AHEAD; i++)
                if (p + i * WARPS < n)
                    sum[j] = fmaf(scores[p + i * WARPS], v[i], sum[j]);
        }
    }
#pragma unroll
    for (int j = 0; j < MAX_LANE; j++)
        if (lane + j * WARP < hd)
            partial[warp * hd + lane + j * WARP] = sum[j];
}

template <class T> __global__ void __launch_bounds__(THREADS) attention_kernel(const Attention a) {
    extern __shared__ float shared[];
    __shared__ float scratch[33];
    launch_next();
    wait_prior();
    const int head = blockIdx.x, b = blockIdx.y, hd = a.head_dim, half = hd / 2;
    if (b >= a.pass->batch)
        return;
    float *q = shared, *partial = q + hd, *scores = partial + WARPS * hd;
    const int position = a.pass->position_B[b], n = position + 1;
    const int kv_head = head / (a.heads / a.kv_heads);
    const int64_t cache = static_cast<int64_t>(kv_head) * a.context * hd;
    T *k_cache = static_cast<T *>(a.k_cache) + cache,
      *v_cache = static_cast<T *>(a.v_cache) + cache;
    append<T>(a, kv_head, b + 1, k_cache, v_cache);
    const float *q_in =
        a.qkv + static_cast<int64_t>(b) * (a.heads + 2 * a.kv_heads) * hd + head * hd;
    for (int e = threadIdx.x; !a.cos_PE && e < hd; e += THREADS)
        q[e] = q_in[e];
    for (int e = threadIdx.x; a.cos_PE && e < half; e += THREADS) {
        const float cos = a.cos_PE[position * half + e], sin = a.sin_PE[position * half + e];
        const float low = q_in[e], high = q_in[e + half];
        q[e] = low * cos - high * sin;
        q[e + half] = high * cos + low * sin;
    }
    __syncthreads();
    score<T>(q, k_cache, n, hd, 1.0f / sqrtf(static_cast<float>(hd)), scores);
    __syncthreads();
    const float sum = soften(scores, n, scratch);
    weigh<T>(scores, v_cache, n, hd, partial);
    __syncthreads();
    for (int e = threadIdx.x; e < hd; e += THREADS) {
        float total = 0;
        for (int w = 0; w < WARPS; w++)
            total += partial[w * hd + e];
        a.out[(static_cast<int64_t>(b) * a.heads + head) * hd + e] = total / sum;
    }
}

template <class T> void launch_t(const Attention &args, int bucket, const Launch &launch) {
    const size_t shared = sizeof(float) * ((WARPS + 1) * args.head_dim + args.context);
    if (shared > 48 * 1024)
        check(cudaFuncSetAttribute(attention_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared)),
              "attention: the context is too long for shared memory");
    enqueue<Attention>(attention_kernel<T>, dim3(args.heads, bucket), THREADS, shared, launch,
                       args);
}

} // namespace v1

void attention(const Attention &args, int bucket, const Launch &launch) {
    if (by_variant(&Operators::attention, args, bucket, launch))
        return;
    if (args.kv_f16)
        v1::launch_t<__half>(args, bucket, launch);
    else
        v1::launch_t<float>(args, bucket, launch);
}

} // namespace hotcold
