// norm.cu - a norm as a kernel of its own: rms norms where no gemv carries them along, and all layer
// norms, whose mean would have to be taken out of a folded product again, at a loss of digits.
//
// 8 bytes an element: latency bound, about 2 us for one token of 5120. A row's sum has one order,
// whatever the batch. Where there is one token, its one block sets the layer's flags itself.
#include "norm.cuh"

namespace hotcold {
namespace v1 {

__global__ void __launch_bounds__(512) norm_kernel(const Norm a) {
    launch_next();
    wait_prior();
    stamp(a.stamps, a.stamp);
    const int b = blockIdx.x;
    const int64_t at = b * a.d;
    if (b < a.pass->batch) {
        if (a.kind == HC_NORM_LAYER)
            layer_norm_row(a.x + at, a.weight_D, a.bias_D, a.d, a.eps, a.y + at,
                           a.y_host ? a.y_host + at : nullptr);
        else
            norm_rows(a.x, a.weight_D, a.d, a.eps, a.y, a.y_host, nullptr, b, b + 1);
    }
    if (gridDim.x > 1)
        return;
    __syncthreads();
    if (threadIdx.x == 0 && (a.to.x_flag || a.to.active_flag))
        signal(a.to, a.pass->seq);
}

} // namespace v1

void norm(const Norm &args, int bucket, const Launch &launch) {
    if (by_variant(&Operators::norm, args, bucket, launch))
        return;
    enqueue<Norm>(v1::norm_kernel, dim3(bucket), 512, 0, launch, args);
    if (bucket > 1 && args.to.x_flag)
        signal_x(args.to, args.pass, launch); // when all blocks are done
}

} // namespace hotcold
