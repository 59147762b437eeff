// failure.cu - a CUDA error as an exception; kernels.h declares both.
#include "cuda/kernels/kernels.h"

namespace hotcold {

void fail(cudaError_t error, const std::string &what) {
    const std::string text = what + ": " + cudaGetErrorString(error);
    if (error != cudaErrorMemoryAllocation)
        throw Failure(HC_ERR_SYSTEM, text);
    cudaGetLastError(); // not sticky: the next call starts clean
    size_t free = 0, total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess)
        free = total = 0;
    throw Failure(HC_ERR_GPU_MEMORY, text, static_cast<int64_t>(free), static_cast<int64_t>(total));
}

void check_host(cudaError_t error, int64_t bytes) {
    if (error == cudaSuccess)
        return;
    cudaGetLastError();
    throw Failure(
        HC_ERR_PINNED,
        "the system refused to pin host memory: " + std::string(cudaGetErrorString(error)), bytes);
}

} // namespace hotcold
