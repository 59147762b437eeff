// neuron.cuh - how the threads of ffn.cu read the parts of a neuron, in every format.
//
// A thread takes packs of E weights. Float weights: 16 bytes, as in common.cuh. int8: E whole numbers
// q and, since E divides HC_GROUP, the one scale s of their group; the weight q s is exact in fp32 (8
// and 11 bits). The scales of a row lie side by side behind its weights: 2 bytes for 64, 3 % more to
// read; lanes of a group ask for the same 2 bytes, a warp for one or two sectors.
// A number becomes a float by its place in one: 2^15 + (q + 128) is 0x4700uu00, a byte permutation,
// and (2^15 + 128 + q) s - (2^15 + 128) s one fused multiply-add, exact as the last product has 9 and
// 11 bits. The conversion instruction would take four times as long.
#ifndef HOTCOLD_NEURON_CUH
#define HOTCOLD_NEURON_CUH
#include "cuda/kernels/common.cuh"

namespace hotcold {

template <class W> struct Part {
    static constexpr int E = W::E;
    typedef uint4 Pack;
    static __device__ __forceinline__ Pack load(const char *row, int at, int d, bool vec, int64_t) {
        return load_pack<W>(row, at, d, vec);
    }
    static __device__ __forceinline__ void unpack(const Pack &pack, float (&out)[E]) {
        W::unpack(pack, out);
    }
    // Weights of a pack, and the same elements of x, in the order of a dot product.
    static __device__ __forceinline__ void unpack_dot(const Pack &pack, bool, float (&out)[E]) {
        W::unpack(pack, out);
    }
    static __device__ __forceinline__ void load_x(const float *x, int at, int d, bool vec,
                                                  float (&out)[E]) {
        load_floats<E>(x, at, d, vec, out);
    }
};

// Rows are padded to whole packs of 16 with zeros: weights past d may be read, x past d may not, and
// is read by whole packs with vec alone (d % 16 == 0).
template <int N> struct PartI8 {
    static constexpr int E = N, WORDS = N / 4;
    struct Pack {
        unsigned w[WORDS];
        unsigned scale; // binary16
    };
    static_assert(N == 8 || N == 16, "a load of 8 or 16 bytes");
    static __device__ __forceinline__ Pack load(const char *row, int at, int d, bool,
                                                int64_t scales) {
        Pack p = {};
        if (at >= d)
            return p;
        if constexpr (N == 16) {
            const uint4 v = load_stream(row + at);
            p.w[0] = v.x, p.w[1] = v.y, p.w[2] = v.z, p.w[3] = v.w;
        } else {
            asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
                         : "=r"(p.w[0]), "=r"(p.w[1])
                         : "l"(row + at));
        }
        unsigned short scale; // stays in L1: the sector's other scales are wanted by others
        asm volatile("ld.global.nc.u16 %0, [%1];"
                     : "=h"(scale)
                     : "l"(row + scales + at / HC_GROUP * 2));
        p.scale = scale;
        return p;
    }
    static __device__ __forceinline__ void unpack(const Pack &pack, float (&out)[E]) {
        const float scale = __half2float(__ushort_as_half(static_cast<unsigned short>(pack.scale)));
        const float offset = -32896.0f * scale;
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            const unsigned u = pack.w[i] ^ 0x80808080u; // q + 128
#pragma unroll
            for (int j = 0; j < 4; j++)
                out[4 * i + j] = fmaf(__uint_as_float(__byte_perm(u, 0x47000000u, 0x7504 | j << 4)),
                                      scale, offset);
        }
    }
    // Packs of x are 64 bytes, so eight lanes that read the same quad of theirs meet on two groups of
    // banks of L1, four on each. Every second lane begins a quad later than its forerunner: they meet
    // nowhere. This order is part of a row's sum in all kernels.
    static __device__ __forceinline__ int turn(bool vec) {
        return vec ? threadIdx.x / 2 % 4 : 0;
    }
    static __device__ __forceinline__ void unpack_dot(const Pack &pack, bool vec, float (&out)[E]) {
        static_assert(N == 16, "four words");
        const bool one = turn(vec) & 1, two = turn(vec) & 2;
        Pack once, twice;
#pragma unroll
        for (int i = 0; i < WORDS; i++)
            once.w[i] = one ? pack.w[(i + 1) % WORDS] : pack.w[i];
#pragma unroll
        for (int i = 0; i < WORDS; i++)
            twice.w[i] = two ? once.w[(i + 2) % WORDS] : once.w[i];
        twice.scale = pack.scale;
        unpack(twice, out);
    }
    static __device__ __forceinline__ void load_x(const float *x, int at, int d, bool vec,
                                                  float (&out)[E]) {
        if (!vec)
            return load_floats<E>(x, at, d, false, out);
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            const int quad = (i + turn(true)) % WORDS;
            const float4 v = *reinterpret_cast<const float4 *>(x + at + 4 * quad);
            out[4 * i] = v.x, out[4 * i + 1] = v.y, out[4 * i + 2] = v.z, out[4 * i + 3] = v.w;
        }
    }
};
template <> struct Part<I8> : PartI8<16> {};

// Of a down column, which is not multiplied by x: a pack of columns of y.
template <class W> struct DownPart : Part<W> {};
// As many threads a row as in half precision: 16 columns each would leave multiprocessors idle.
template <> struct DownPart<I8> : PartI8<8> {};

} // namespace hotcold
#endif
