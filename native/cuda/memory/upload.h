// upload.h - weights on their way to the device: through pinned memory, quantised where asked.
#ifndef HOTCOLD_CUDA_UPLOAD_H
#define HOTCOLD_CUDA_UPLOAD_H
#include "cuda/memory/model.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <cuda_fp16.h>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace hotcold {

// Host to device through two pinned buffers: pageable memory would be copied at a third of the rate.
class Uploader {
  public:
    // Does nothing where from is NULL: there is no such tensor.
    void copy(void *to, const void *from, int64_t bytes) {
        const char *source = static_cast<const char *>(from);
        char *target = static_cast<char *>(to);
        // Parts of 4 MiB, two buffers in turn: one is filled by the host while the other is copied.
        // An event a buffer says when it may be filled again.
        while (from && bytes > 0) {
            const int64_t part = std::min(bytes, SIZE - filled_);
            if (filled_ == 0)
                check(cudaEventSynchronize(free_[turn_]), "upload");
            char *at = pinned_[turn_].get() + filled_;
            std::memcpy(at, source, part);
            check(cudaMemcpyAsync(target, at, part, cudaMemcpyDefault, stream_), "upload");
            // Parts begin on 256 bytes.
            filled_ += (part + 255) / 256 * 256;
            source += part, target += part, bytes -= part;
            if (filled_ >= SIZE)
                flush();
        }
    }
    void flush() {
        check(cudaEventRecord(free_[turn_], stream_), "upload");
        turn_ = 1 - turn_;
        filled_ = 0;
    }
    void finish() {
        flush();
        check(cudaStreamSynchronize(stream_), "upload");
    }

  private:
    static constexpr int64_t SIZE = 4 << 20; // pinned anew for every layer
    Pinned<char> pinned_[2] = {Pinned<char>(SIZE, false), Pinned<char>(SIZE, false)};
    Event free_[2];
    Stream stream_; // last: copies out of the buffers are done before those go
    int turn_ = 0;
    int64_t filled_ = 0;
};

// Call do_one(i) for i below n, by several threads: a single one copies into pinned memory more
// slowly than the bus could take it. The first failure is thrown again, here.
template <class F> void by_threads(int n, int threads, int device, F do_one) {
    std::atomic<int> next{0};
    std::mutex lock;
    std::exception_ptr failure;
    auto work = [&] {
        try {
            check(cudaSetDevice(device), "CUDA device");
            for (int i = next++; i < n; i = next++)
                do_one(i);
        } catch (...) {
            std::lock_guard<std::mutex> hold(lock);
            if (!failure)
                failure = std::current_exception();
            next = n;
        }
    };
    std::vector<std::thread> others;
    try {
        for (int t = 1; t < std::min(threads, n); t++)
            others.emplace_back(work);
    } catch (const std::system_error &) { // fewer threads are there than we wanted
    }
    work();
    for (std::thread &other : others)
        other.join();
    if (failure)
        std::rethrow_exception(failure);
}

// Symmetric int8 with one scale a row.
inline void quantise(const void *w, int32_t dtype, int64_t rows, int64_t d,
                     std::vector<int8_t> &out, std::vector<float> &scales) {
    out.resize(rows * d);
    scales.resize(rows);
    std::vector<float> row(d);
    // scale = largest / 127, so the largest weight of a row is +-127 and 0 stays 0.
    for (int64_t r = 0; r < rows; r++) {
        float most = 0;
        for (int64_t i = 0; i < d; i++) {
            row[i] = dtype == HC_F32 ? static_cast<const float *>(w)[r * d + i]
                                     : __half2float(static_cast<const __half *>(w)[r * d + i]);
            most = std::max(most, std::fabs(row[i]));
        }
        scales[r] = most / 127.0f;
        const float inverse = most > 0 ? 127.0f / most : 0;
        for (int64_t i = 0; i < d; i++)
            out[r * d + i] = static_cast<int8_t>(std::lrintf(row[i] * inverse));
    }
}

} // namespace hotcold
#endif
