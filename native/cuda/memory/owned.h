// owned.h - what must be given back, by whom it goes out of scope with: a constructor that throws
// half way leaks nothing.
#ifndef HOTCOLD_CUDA_OWNED_H
#define HOTCOLD_CUDA_OWNED_H
#include "cuda/kernels/kernels.h"

#include <cstring>
#include <memory>
#include <vector>

namespace hotcold {

class Stream { // what was enqueued is done when it goes
  public:
    explicit Stream(const char *what = "stream") {
        check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), what);
    }
    ~Stream() {
        cudaStreamSynchronize(stream_);
        cudaStreamDestroy(stream_);
    }
    Stream(const Stream &) = delete;
    operator cudaStream_t() const {
        return stream_;
    }

  private:
    cudaStream_t stream_ = nullptr;
};

class Event {
  public:
    explicit Event(unsigned flags = cudaEventDisableTiming) {
        check(cudaEventCreateWithFlags(&event_, flags), "event");
    }
    ~Event() {
        cudaEventDestroy(event_);
    }
    Event(const Event &) = delete;
    operator cudaEvent_t() const {
        return event_;
    }

  private:
    cudaEvent_t event_ = nullptr;
};

template <class T> class Pinned { // host memory that the device reads and writes
  public:
    explicit Pinned(int64_t count, bool zeroed = true) {
        const int64_t size = count * static_cast<int64_t>(sizeof(T));
        check_host(cudaHostAlloc(reinterpret_cast<void **>(&host_), size, cudaHostAllocMapped),
                   size);
        if (zeroed)
            std::memset(static_cast<void *>(host_), 0, size);
    }
    ~Pinned() {
        cudaFreeHost(host_);
    }
    Pinned(const Pinned &) = delete;
    T *get() const {
        return host_;
    }
    T *mapped() const { // as the device sees it
        void *at = nullptr;
        check(cudaHostGetDevicePointer(&at, host_, 0), "pinned memory");
        return static_cast<T *>(at);
    }

  private:
    T *host_ = nullptr;
};

template <class T> class DeviceMemory { // zeroed
  public:
    explicit DeviceMemory(int64_t count) {
        const int64_t size = count * static_cast<int64_t>(sizeof(T));
        check(cudaMalloc(reinterpret_cast<void **>(&at_), size), "GPU memory");
        try {
            clear(at_, size);
        } catch (...) {
            cudaFree(at_);
            throw;
        }
    }
    ~DeviceMemory() {
        cudaFree(at_);
    }
    DeviceMemory(const DeviceMemory &) = delete;
    T *get() const {
        return at_;
    }

  private:
    T *at_ = nullptr;
};

class Graph { // what body enqueues on the stream
  public:
    template <class Body> Graph(cudaStream_t stream, Body body) {
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
        const cudaError_t error = cudaGraphInstantiate(&exec_, graph, 0);
        cudaGraphDestroy(graph);
        check(error, "instantiating the graph");
    }
    ~Graph() {
        cudaGraphExecDestroy(exec_);
    }
    Graph(const Graph &) = delete;
    operator cudaGraphExec_t() const {
        return exec_;
    }

  private:
    cudaGraphExec_t exec_ = nullptr;
};

class BatchGraphs { // of batches of 1, 2, 4, ...: a graph each
  public:
    // What record(bucket) enqueues, for every bucket up to `largest`.
    template <class Record> void capture(cudaStream_t stream, int32_t largest, Record record) {
        for (int32_t bucket = 1; bucket <= largest; bucket *= 2) {
            graphs_.push_back(std::make_unique<Graph>(stream, [&] { record(bucket); }));
            check(cudaGraphUpload(*graphs_.back(), stream), "uploading the graph");
        }
    }
    void launch(int32_t batch, cudaStream_t stream) const {
        int index = 0;
        while (1 << index < batch)
            index++;
        check(cudaGraphLaunch(*graphs_.at(index), stream), "launching a pass");
    }
    void clear() {
        graphs_.clear();
    }

  private:
    std::vector<std::unique_ptr<Graph>> graphs_;
};

} // namespace hotcold
#endif
