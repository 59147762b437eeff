// norm.cu - rms norm as a kernel of its own, for layers where no gemv of the norm carries it along.
//
// 8 bytes an element: latency bound, about 2 us for one token of 5120. One block, one token: it sets
// the layer's flags itself.
#include "norm.cuh"

namespace hotcold {
namespace v1 {

__global__ void __launch_bounds__(512) norm_kernel(const Norm a) {
    launch_next();
    wait_prior();
    const int b = blockIdx.x;
    if (b < a.pass->batch)
        norm_rows(a.x, a.weight_D, a.d, a.eps, a.y, a.y_host, nullptr, b, b + 1);
    if (gridDim.x > 1)
        return;
    __syncthreads();
    if (threadIdx.x == 0 && (a.to.x_flag || a.to.active_flag))
        signal(a.to, a.pass->seq);
}

} // namespace v1

void norm(const Norm &args, int bucket, const Launch &launch) {
    enqueue<Norm>(v1::norm_kernel, dim3(bucket), 512, 0, launch, args);
    if (bucket > 1 && args.to.x_flag)
        signal_x(args.to, args.pass, launch); // when all blocks are done
}

} // namespace hotcold
