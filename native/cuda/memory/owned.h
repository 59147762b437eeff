// owned.h - what must be given back, by whom it goes out of scope with: a constructor that throws
// half way leaks nothing. Members go in the reverse order of their declaration: what a copy or a
// kernel in flight still uses is declared before the stream, whose end waits for all of it.
#ifndef HOTCOLD_CUDA_OWNED_H
#define HOTCOLD_CUDA_OWNED_H
#include "cuda/kernels/kernels.h"

#include <cstring>
#include <time.h>
#include <utility>
#include <vector>

namespace hotcold {

inline int64_t now_ns() { // CLOCK_MONOTONIC
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

// What all else is made on.
inline const hc_device_args &on_device(const hc_device_args &device) {
    check(cudaSetDevice(device.index), "CUDA device");
    return device;
}

inline Launch launch_on(cudaStream_t stream, int device, bool overlap, const char *variant) {
    int sms = 0;
    check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device), "CUDA device");
    return {stream, overlap, sms, open_variant(variant)};
}

// A handle, and the one call that gives it back; empty until it is made.
template <class T, cudaError_t (*give_back)(T)> class Owned {
  public:
    Owned() = default;
    explicit Owned(T made) : made_(made) {}
    Owned(Owned &&other) noexcept : made_(std::exchange(other.made_, nullptr)) {}
    Owned &operator=(Owned &&other) noexcept {
        std::swap(made_, other.made_);
        return *this;
    }
    ~Owned() {
        if (made_)
            give_back(made_);
    }
    operator T() const {
        return made_;
    }

  protected:
    T made_ = nullptr;
};

inline cudaError_t end_stream(cudaStream_t stream) { // what was enqueued is done when it goes
    cudaStreamSynchronize(stream);
    return cudaStreamDestroy(stream);
}

struct Stream : Owned<cudaStream_t, end_stream> {
    Stream() {
        check(cudaStreamCreateWithFlags(&made_, cudaStreamNonBlocking), "stream");
    }
};

struct Event : Owned<cudaEvent_t, cudaEventDestroy> {
    explicit Event(unsigned flags = cudaEventDisableTiming) {
        check(cudaEventCreateWithFlags(&made_, flags), "event");
    }
};

// Host memory that the device reads and writes.
template <class T> class Pinned : public Owned<void *, cudaFreeHost> {
  public:
    Pinned() = default;
    explicit Pinned(int64_t count, bool zeroed = true) {
        const int64_t size = count * static_cast<int64_t>(sizeof(T));
        check_host(cudaHostAlloc(&made_, size, cudaHostAllocMapped), size);
        if (zeroed)
            std::memset(made_, 0, size);
        check(cudaHostGetDevicePointer(&mapped_, made_, 0), "pinned memory");
    }
    T *get() const {
        return static_cast<T *>(made_);
    }
    T *operator->() const {
        return get();
    }
    T *mapped() const { // as the device sees it
        return static_cast<T *>(mapped_);
    }

  private:
    void *mapped_ = nullptr;
};

template <class T> struct DeviceMemory : Owned<void *, cudaFree> { // zeroed
    DeviceMemory() = default;
    explicit DeviceMemory(int64_t count) {
        const int64_t size = count * static_cast<int64_t>(sizeof(T));
        check(cudaMalloc(&made_, size), "allocating " + std::to_string(size) + " bytes");
        clear(made_, size);
    }
    T *get() const {
        return static_cast<T *>(made_);
    }
};

using Graph = Owned<cudaGraphExec_t, cudaGraphExecDestroy>;
// What body enqueues on the stream.
template <class Body> Graph captured(cudaStream_t stream, Body body) {
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    try {
        body();
    } catch (...) {
        cudaStreamEndCapture(stream, &graph);
        if (graph)
            cudaGraphDestroy(graph);
        throw;
    }
    check(cudaStreamEndCapture(stream, &graph), "capture");
    cudaGraphExec_t made = nullptr;
    const cudaError_t error = cudaGraphInstantiate(&made, graph, 0);
    cudaGraphDestroy(graph);
    check(error, "instantiating the graph");
    return Graph(made);
}

class BatchGraphs { // of batches of 1, 2, 4, ...: a graph each
  public:
    ~BatchGraphs() { // nothing runs any more before anything is freed
        if (stream_)
            cudaStreamSynchronize(stream_);
    }
    // What record(bucket) enqueues, for every bucket up to `largest`.
    template <class Record> void capture(cudaStream_t stream, int32_t largest, Record record) {
        stream_ = stream;
        for (int32_t bucket = 1; bucket <= largest; bucket *= 2) {
            graphs_.push_back(captured(stream, [&] { record(bucket); }));
            check(cudaGraphUpload(graphs_.back(), stream), "uploading the graph");
        }
    }
    void launch(int32_t batch) const {
        int index = 0;
        while (1 << index < batch)
            index++;
        check(cudaGraphLaunch(graphs_.at(index), stream_), "launching a pass");
    }

  private:
    cudaStream_t stream_ = nullptr;
    std::vector<Graph> graphs_;
};

} // namespace hotcold
#endif
