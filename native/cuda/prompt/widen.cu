// widen.cu - int8 neurons as a dense prompt multiplies them: float16, or float32 where all is.
//
// A piece at a time, in one buffer that all pieces share: the bus and the memory of the GPU hold
// neurons in int8. Bytes of 1024 neurons of 13B: 16 MB in, 31 MB out, 15 us at least.
// A weight q s has 18 bits: float32 holds it, float16 rounds it by 2^-11 of itself at most, an eighth of
// what rounding to int8 cost it (half a step of 1/127 of its group's largest). bfloat16, 2^-9, would be
// half of that, so models in bfloat16 are widened to float16, too.
//
// A thread widens four weights of a part: neighbours read and write neighbouring bytes.
// Oracle: sessions of int8 models against torch (tests/cuda/test_gpu_int8.py).
#include "cuda/kernels/common.cuh"
#include "cuda/prompt/dense.h"

#include <algorithm>

namespace hotcold {
namespace {

constexpr int THREADS = 128;

// Grid: neurons. Parts begin on 16 bytes in either record; what pads a part is not written, nor read
// by any product.
template <class E> __global__ void __launch_bounds__(THREADS) widen_kernel(const WidenNeurons a) {
    const int64_t gate[] = {a.record.gate, a.wide.gate}, up[] = {a.record.up, a.wide.up},
                  down[] = {a.record.down, a.wide.down};
    const int64_t *parts[] = {gate, down, up};
    for (int64_t k = blockIdx.x; k < a.n; k += gridDim.x) {
        const char *record = a.from + k * a.record.bytes;
        char *to = a.to + k * a.wide.bytes;
        for (int p = 0; p < (a.record.up < 0 ? 2 : 3); p++) {
            const char *row = record + parts[p][0];
            E *wide = reinterpret_cast<E *>(to + parts[p][1]);
            for (int at = threadIdx.x * 4; at < a.d; at += THREADS * 4) {
                const char4 q = *reinterpret_cast<const char4 *>(row + at);
                const float s = __half2float(
                    reinterpret_cast<const __half *>(row + a.record.scales)[at / HC_GROUP]);
                const float w[] = {q.x * s, q.y * s, q.z * s, q.w * s};
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (at + i < a.d)
                        wide[at + i] = static_cast<E>(w[i]);
            }
        }
        if (a.record.bias && threadIdx.x == 0)
            *reinterpret_cast<float *>(to + a.wide.bias) =
                *reinterpret_cast<const float *>(record + a.record.bias);
    }
}

} // namespace

void widen_neurons(const WidenNeurons &args, const Launch &launch) {
    const dim3 grid(static_cast<unsigned>(std::min<int64_t>(args.n, launch.sms * 16)));
    enqueue<WidenNeurons>(args.wide.dtype == HC_F32 ? widen_kernel<float> : widen_kernel<__half>,
                          grid, THREADS, 0, launch, args);
}

} // namespace hotcold
