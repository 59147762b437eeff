// variant.cu - open a user's compiled kernels (variant.cuh); they stay open for the process's life.
#include "cuda/kernels/kernels.h"

#include <dlfcn.h>
#include <map>
#include <mutex>

namespace hotcold {

const Operators *open_variant(const char *path) {
    // One table a path and process: graphs hold addresses of the library's kernels, so a library
    // that was opened once is never closed, and a second engine shares it.
    static std::mutex lock;
    static std::map<std::string, Operators> opened; // entries of a map never move
    if (!path)
        return nullptr;
    const std::lock_guard<std::mutex> held(lock);
    const auto found = opened.find(path);
    if (found != opened.end())
        return &found->second;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        throw Failure(HC_ERR_UNSUPPORTED,
                      std::string("the CUDA variant does not open: ") + dlerror());
    const auto *abi = static_cast<const uint32_t *>(dlsym(library, "hc_cuda_variant_abi"));
    const auto fill = reinterpret_cast<void (*)(Operators *)>(dlsym(library, "hc_cuda_variant"));
    // The table's layout is that of our own headers' Args: it may be filled only by a library that
    // was built with the same ones.
    std::string why;
    if (!abi || !fill)
        why = "exports no table; end the file with HC_CUDA_VARIANT(table) { ... }";
    else if (*abi != HC_DEVICE_ABI)
        why = "has ABI " + std::to_string(*abi) + ", this plug-in " + std::to_string(HC_DEVICE_ABI);
    if (!why.empty()) {
        dlclose(library);
        throw Failure(HC_ERR_UNSUPPORTED, "the CUDA variant " + why);
    }
    Operators table = {};
    fill(&table);
    return &opened.emplace(path, table).first->second;
}

} // namespace hotcold
