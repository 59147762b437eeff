// common.cuh - what the CUDA kernels share: weight packs, flags in host memory, launch overlap.
//
// Shape suffixes as in hotcold.h. A row's dot product has one fixed order: lane i of a warp takes
// packs i, i + 32, ... and adds their elements in turn; the lanes are then summed by a butterfly.
// The order depends on the row's length and the number of warps a row, never on the batch.
#ifndef HOTCOLD_COMMON_CUH
#define HOTCOLD_COMMON_CUH
#include "cuda/kernels/kernels.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace hotcold {

// Threads of a warp, and the mask by which a warp intrinsic takes all of them. Every intrinsic here
// is called by whole warps: no caller diverges inside a warp before one.
constexpr int WARP = 32;
constexpr unsigned FULL = 0xffffffffu;

// ---- launch overlap: the next kernel of the stream may start while this one runs. Nothing that an
// earlier kernel wrote may be read before wait_prior(). Both are no-ops without the attribute, which
// is why a build for less than 9.0 must not set it (waits_itself).
// Called early in a kernel of a pass: the next kernel may start as soon as all blocks of this one
// have called it, and does what does not depend on this one (its weights) meanwhile.
__device__ __forceinline__ void launch_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Returns when all earlier kernels have ended and what they wrote is visible. A kernel that ends
// without it would let its successor overtake the predecessor: each kernel of a pass calls it on
// every path.
__device__ __forceinline__ void wait_prior() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- entries of c_KB: what a neuron's down column is multiplied by for a token
// u: the up projection, 1 where there is none. Shut, or not asked for: 0. Fired with a factor of 0: -0,
// which adds as little, so that counts and audit still know of it.
__device__ __forceinline__ float entry(const Ffn &a, bool asked, float g, float u) {
    if (!asked || !hc_fires(a.activation, g, a.activation_threshold))
        return 0.0f;
    const float c = hc_factor(a.activation, g, u);
    return c == 0 ? -0.0f : c;
}
__device__ __forceinline__ bool fired_with(float c) {
    return __float_as_uint(c) != 0;
}

// ---- weights: 16 bytes a lane and load, streamed past L1 (a weight is used once a kernel)
// .nc: the read-only path, so only for memory that nobody writes while the kernel runs.
// L1::no_allocate leaves L1 to x, which every warp reads again. `at` lies on 16 bytes.
__device__ __forceinline__ uint4 load_stream(const void *at) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at));
    return v;
}

// One type of weights each: E elements make a pack of 16 bytes, unpack() widens them exactly to
// float (an int8 is an integer here; its row's scale is applied to the finished sum).
struct F32 {
    typedef float type;
    static constexpr int32_t DTYPE = HC_F32;
    static constexpr int E = 4; // elements of a pack of 16 bytes
    static __device__ __forceinline__ void unpack(const uint4 &v, float (&out)[E]) {
        out[0] = __uint_as_float(v.x), out[1] = __uint_as_float(v.y);
        out[2] = __uint_as_float(v.z), out[3] = __uint_as_float(v.w);
    }
};
struct F16 {
    typedef __half type;
    static constexpr int32_t DTYPE = HC_F16;
    static constexpr int E = 8;
    static __device__ __forceinline__ void unpack(const uint4 &v, float (&out)[E]) {
        const __half2 *h = reinterpret_cast<const __half2 *>(&v);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 f = __half22float2(h[i]);
            out[2 * i] = f.x, out[2 * i + 1] = f.y;
        }
    }
};
struct BF16 {
    typedef __nv_bfloat16 type;
    static constexpr int32_t DTYPE = HC_BF16;
    static constexpr int E = 8;
    static __device__ __forceinline__ void unpack(const uint4 &v, float (&out)[E]) {
        const unsigned w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            // A bfloat16 is the upper half of a float. Little endian: the low half of the word is
            // the even element.
            out[2 * i] = __uint_as_float(w[i] << 16);
            out[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
        }
    }
};
struct I8 {
    typedef int8_t type;
    static constexpr int32_t DTYPE = HC_I8;
    static constexpr int E = 16;
    static __device__ __forceinline__ void unpack(const uint4 &v, float (&out)[E]) {
        const unsigned w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                out[4 * i + j] = static_cast<float>(static_cast<int8_t>(w[i] >> (8 * j)));
    }
};

// ---- launchers: the one instance of a kernel, of those that are compiled, that a call needs
// body(W()) for the type of weights that `dtype` names; false: it is none of these.
template <class... W, class Body> bool by_dtype(int32_t dtype, Body body) {
    return ((dtype == W::DTYPE && (body(W()), true)) || ...);
}
// body(constant N) for the number that n is; false: it is none of these.
template <int... N, class Body> bool by_number(int n, Body body) {
    return ((n == N && (body(std::integral_constant<int, N>()), true)) || ...);
}

// The pack at element `at` of a row of d; elements past the end are 0. vec: row and d allow 16-byte
// loads; rows of odd sizes are gathered element by element.
// The caller's `at` is a multiple of E, so with vec, which implies d % E == 0, a pack that begins
// inside the row also ends there.
template <class W>
__device__ __forceinline__ uint4 load_pack(const char *row, int at, int d, bool vec) {
    if (vec)
        return at < d ? load_stream(row + static_cast<int64_t>(at) * sizeof(typename W::type))
                      : make_uint4(0, 0, 0, 0);
    uint4 v = make_uint4(0, 0, 0, 0);
    typename W::type *to = reinterpret_cast<typename W::type *>(&v);
    for (int i = 0; i < W::E; i++)
        if (at + i < d)
            to[i] = reinterpret_cast<const typename W::type *>(row)[at + i];
    return v;
}

// The same E elements of x as load_pack gives of a row; from L1 or L2, since other warps read them
// too. With vec the caller keeps at < d.
template <int E>
__device__ __forceinline__ void load_floats(const float *x, int at, int d, bool vec,
                                            float (&out)[E]) {
    if (vec) {
#pragma unroll
        for (int i = 0; i < E; i += 4) {
            const float4 v = *reinterpret_cast<const float4 *>(x + at + i);
            out[i] = v.x, out[i + 1] = v.y, out[i + 2] = v.z, out[i + 3] = v.w;
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < E; i++)
        out[i] = at + i < d ? x[at + i] : 0.0f;
}

// Four elements at `at`; with vec `to` lies on 16 bytes and d is a multiple of 4.
__device__ __forceinline__ void store_floats(float *to, int at, int d, bool vec,
                                             const float (&v)[4]) {
    if (vec) {
        *reinterpret_cast<float4 *>(to + at) = make_float4(v[0], v[1], v[2], v[3]);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (at + i < d)
            to[at + i] = v[i];
}

// Butterfly: every lane ends with the sum of all 32. The pairs are the same in every warp, so the
// order of the additions is a constant of the code.
template <class T> __device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
    for (int step = 16; step; step /= 2)
        v += __shfl_xor_sync(FULL, v, step);
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int step = 16; step; step /= 2)
        v = fmaxf(v, __shfl_xor_sync(FULL, v, step));
    return v;
}

// Sum over a block of up to 32 warps, in one order; every thread gets it. scratch: 33 numbers.
// Three barriers: partial sums are there; the total is there; nobody still reads it when the caller
// uses scratch again. Called by all threads of the block.
template <class T> __device__ __forceinline__ T block_sum(T v, T *scratch) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    v = warp_sum(v);
    if (lane == 0)
        scratch[warp] = v;
    __syncthreads();
    if (warp == 0) {
        v = warp_sum(lane < warps ? scratch[lane] : T(0));
        if (lane == 0)
            scratch[32] = v;
    }
    __syncthreads();
    v = scratch[32];
    __syncthreads();
    return v;
}

// The largest of a block of so many warps; every thread gets it. scratch: as many floats, which
// nobody else uses. One barrier: all warps' largest are there.
__device__ __forceinline__ float block_max(float v, float *scratch, unsigned warps) {
    v = warp_max(v);
    if (threadIdx.x % WARP == 0)
        scratch[threadIdx.x / WARP] = v;
    __syncthreads();
    return warp_max(scratch[threadIdx.x % WARP % warps]);
}

// ---- host memory that other processes read and write
// Two scopes. sys: words in pinned host memory that CPU threads, or other processes' kernels, see;
// an acquire here pairs with a release store of the CPU (hc_flag_signal, __ATOMIC_RELEASE) and the
// other way round. gpu: words in device memory between blocks of this GPU; cheaper, as L2 is the
// point where they meet. "memory" keeps the compiler from moving other accesses across.
__device__ __forceinline__ uint32_t load_flag(const uint32_t *at) {
    uint32_t v;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
    return v;
}
__device__ __forceinline__ void store_flag(uint32_t *at, uint32_t v) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(at), "r"(v) : "memory");
}
__device__ __forceinline__ uint32_t load_relay(const uint32_t *at) { // device memory only
    uint32_t v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
    return v;
}
__device__ __forceinline__ void store_relay(uint32_t *at, uint32_t v) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(v) : "memory");
}
// Counts who has arrived: what one wrote before is there for those who arrive behind it.
__device__ __forceinline__ uint32_t add_relay(uint32_t *at, uint32_t v) {
    uint32_t old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(old)
                 : "l"(at), "r"(v)
                 : "memory");
    return old;
}
// Tell the host that what was written is there; by one thread, behind a barrier of its block.
// The fence makes what the other threads wrote, and the barrier ordered before this thread, visible
// to the whole system; then the flags follow, each a release store.
__device__ __forceinline__ void signal(const Exchange &to, uint32_t seq) {
    __threadfence_system();
    if (to.x_flag)
        store_flag(to.x_flag, seq);
    if (to.active_flag)
        store_flag(to.active_flag, seq);
}
// A payload in host memory, read once behind the acquire of its flag. Relaxed, but of scope sys: it
// must come from the host and not from a line that L1 kept.
__device__ __forceinline__ float load_host(const float *at) {
    float v;
    asm volatile("ld.relaxed.sys.global.f32 %0, [%1];" : "=f"(v) : "l"(at) : "memory");
    return v;
}
// Nanoseconds of a clock that all multiprocessors share; its step may be as long as 1 us
// (timeline.cu measures it).
__device__ __forceinline__ uint64_t now() {
    uint64_t t;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
    return t;
}
// Until *flag == seq; false where the wait was ended otherwise: by the abort word, or by its limit.
// seq is that of this pass, so a flag that is left from an earlier one never matches. Aborts are
// looked at every LOOKS times: each look is a read over the bus.
template <unsigned LOOKS>
__device__ __forceinline__ bool await(const uint32_t *flag, uint32_t seq, const uint32_t *abort,
                                      uint64_t limit_ns) {
    const uint64_t begin = now();
    for (unsigned spins = 0;; spins++) {
        if (load_flag(flag) == seq)
            return true;
        if (spins % LOOKS == LOOKS - 1 && (load_flag(abort) || now() - begin > limit_ns))
            return false;
    }
}
// One thread of the grid stamps. It is called behind wait_prior(), so the time is that at which the
// kernel's input was there.
__device__ __forceinline__ void stamp(uint64_t *stamps, int slot) {
    if (stamps && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0)
        stamps[slot] = now();
}

} // namespace hotcold
#endif
