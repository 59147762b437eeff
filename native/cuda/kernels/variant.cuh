// variant.cuh - what a CUDA variant of one's own includes: the operators' arguments and device helpers.
//
// A variant is a .cu file that ends with HC_CUDA_VARIANT(table) { table.gate_up = mine; ... };
// examples/07_own_cuda_kernel.cu is the guide. It is compiled to a library of its own, whose ABI
// number is compared before its table is touched.
#ifndef HOTCOLD_VARIANT_CUH
#define HOTCOLD_VARIANT_CUH
#include "cuda/kernels/common.cuh"

namespace hotcold {
// How a launcher's check() ends where the device refuses; the plug-in has its own, a variant this.
[[noreturn]] void fail(cudaError_t error, const std::string &what) {
    throw Failure(HC_ERR_SYSTEM, what + ": " + cudaGetErrorString(error));
}
} // namespace hotcold

// C linkage, so that dlsym finds both names; the user's braces become the body of the last line.
#define HC_CUDA_VARIANT(table)                                                                     \
    static void hc_cuda_variant_fill(hotcold::Operators &table);                                   \
    extern "C" {                                                                                   \
    extern const uint32_t hc_cuda_variant_abi;                                                     \
    const uint32_t hc_cuda_variant_abi = HC_DEVICE_ABI;                                            \
    void hc_cuda_variant(hotcold::Operators *to) {                                                 \
        hc_cuda_variant_fill(*to);                                                                 \
    }                                                                                              \
    }                                                                                              \
    static void hc_cuda_variant_fill(hotcold::Operators &table)

#endif
