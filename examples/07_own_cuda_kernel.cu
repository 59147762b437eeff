// A CUDA kernel of your own in one file: compiled, tested, timed and used without installing anything.
//
//     hotcold bench kernels --variant examples/07_own_cuda_kernel.cu --case sparse_ffn --density 10
//     hotcold generate --kernels examples/07_own_cuda_kernel.cu "Once upon a time"
//
// What you write. Launchers for the operators of a pass: gemv, norm, attention, gate_up, down.
// native/cuda/kernels/kernels.h declares their arguments, variant.cuh brings helpers (packs of 16 bytes, warp
// sums). Replace one or all; HC_CUDA_VARIANT names them. A launcher enqueues its kernel and returns
// true, or returns false where it has none for this shape: the built-in kernel serves it then.
//
// What happens. nvcc compiles the file for your GPU into the cache folder. Its ABI number is compared.
// Then a process of its own compares every operator with float64: dtypes, odd sizes, batches, with
// memory behind the arrays that is no number; and then passes of the embedded model. Wrong results, a
// crash or a hang are refused, with the case. Only what passed is timed (weights in rotating copies,
// larger than the GPU's cache, beside the rate of a dense product) or used.
//
// What to mind. Launchers only enqueue: passes are captured in a graph. A kernel calls wait_prior()
// before it reads what an earlier one wrote, launch_next() as early as it likes; weights may be read
// before. The sum over a row has one order, whatever the batch: this is tested. `bucket` is the batch
// the graph was made for; a.pass->batch tokens are really there, rows beyond them are ignored.
#include "variant.cuh"

using namespace hotcold;

namespace {

constexpr int THREADS = 256, WARPS = THREADS / WARP;

// Predicted neurons in float16: a warp a neuron and token, lane i takes packs i, i + 32, ...
// c = act(gate . x + bias) * (up . x), or without the last factor where there are no up rows.
__global__ void __launch_bounds__(THREADS) mine(const Ffn a) {
    launch_next();
    wait_prior();
    stamp(a.stamps, AT_HOT);
    const int lane = threadIdx.x % WARP, count = *a.hot.count, b = blockIdx.y;
    const float *token = a.x + static_cast<int64_t>(b) * a.d;
    for (int k = blockIdx.x * WARPS + threadIdx.x / WARP; k < count; k += gridDim.x * WARPS) {
        const char *record = a.record_R[a.hot.rows[k]];
        const bool wanted = a.hot.members ? a.hot.members[k] >> b & 1 : b < a.pass->batch;
        float gate = 0, up = 0;
        for (int at = lane * F16::E; wanted && at < a.d; at += WARP * F16::E) {
            float x[F16::E], w[F16::E];
            load_floats<F16::E>(token, at, a.d, true, x);
            F16::unpack(load_stream(record + a.record.gate + 2 * at), w);
#pragma unroll
            for (int i = 0; i < F16::E; i++)
                gate = fmaf(w[i], x[i], gate);
            if (a.record.up < 0)
                continue;
            F16::unpack(load_stream(record + a.record.up + 2 * at), w);
#pragma unroll
            for (int i = 0; i < F16::E; i++)
                up = fmaf(w[i], x[i], up);
        }
        gate = warp_sum(gate), up = warp_sum(up);
        if (a.record.bias && wanted)
            gate += *reinterpret_cast<const float *>(record + a.record.bias);
        const float c = entry(a, wanted, gate, a.record.up < 0 ? 1.0f : up);
        if (lane == 0) // 0 where the token does not ask for the neuron
            a.hot.c_KB[static_cast<int64_t>(k) * gridDim.y + b] = c;
    }
}

// By shape alone, never by batch: a token's bits must not depend on who travels with it.
bool gate_up_of_mine(const Ffn &a, int bucket, const Launch &launch) {
    const bool packs = a.d % F16::E == 0 && a.record.bytes % 16 == 0 && a.record.gate % 16 == 0 &&
                       (a.record.up < 0 || a.record.up % 16 == 0);
    if (a.record.dtype != HC_F16 || !a.hot.rows || !packs)
        return false;
    enqueue<Ffn>(mine, dim3(launch.sms * 8, bucket), THREADS, 0, launch, a);
    return true;
}

} // namespace

HC_CUDA_VARIANT(table) {
    table.gate_up = gate_up_of_mine;
}
