// failure.h - what the plug-in throws: an exception that is an hc_error once it crosses the C face.
#ifndef HOTCOLD_CUDA_FAILURE_H
#define HOTCOLD_CUDA_FAILURE_H
#include "abi/hotcold.h"

#include <stdexcept>
#include <string>

namespace hotcold {

struct Failure : std::runtime_error {
    Failure(hc_status status, const std::string &text, int64_t value = 0, int64_t limit = 0)
        : std::runtime_error(text), status(status), value(value), limit(limit) {}
    hc_status status; // says what value and limit mean
    int64_t value, limit;
};

} // namespace hotcold
#endif
