// operate.h - what operators on host arrays (operate.cu) need: memory of one call, and its runs.
//
// The memory checks the kernels. Arrays that a kernel is to fill are NaN before (bytes 0xff), and
// so are guards around every array, which are compared once the kernel is done. What an earlier
// kernel of a pass would have written comes late: a kernel writes it long after the one under test
// may have started (launch overlap), so one that does not wait reads zeros. hc_device_op.bare
// leaves out guards and filling: for sanitizers, which know what is allocated and written.
#ifndef HOTCOLD_CUDA_OPERATE_H
#define HOTCOLD_CUDA_OPERATE_H
#include "cuda/memory/model.h"

#include <algorithm>
#include <vector>

namespace hotcold {

class Scratch { // device memory that goes with the scope
  public:
    // 256 bytes on either side of an array: beyond what one misplaced pack of 16 bytes, or a row's
    // tail, would hit.
    explicit Scratch(const hc_device_op &op) : guard_(op.bare ? 0 : 256), bare_(op.bare != 0) {}
    Scratch(const Scratch &) = delete;
    ~Scratch();
    // Of no content, or a copy of what is at from.
    template <class T> T *make(int64_t count, const void *from = nullptr) {
        return static_cast<T *>(array(count * static_cast<int64_t>(sizeof(T)), from));
    }
    template <class T> T *zeros(int64_t count) {
        T *made = make<T>(count);
        clear(made, count * sizeof(T));
        return made;
    }
    // Of no content that is read and ignored, which a tool would report.
    template <class T> T *ignored(int64_t count) {
        return bare_ ? zeros<T>(count) : make<T>(count);
    }
    // Zeros, until deliver() puts what is at from in front.
    template <class T> T *late(int64_t count, const void *from, int64_t size = 0) {
        T *made = zeros<T>(std::max(count, size));
        later(made, from, count * static_cast<int64_t>(sizeof(T)));
        return made;
    }
    // count bytes, `copies` times, one behind the other.
    char *repeated(int64_t count, const void *from, int copies);
    float *host(int64_t count); // zeros in pinned memory, at one address for host and device
    // A pass of `batch` tokens, seq 1; positions NULL: 0, 1, 2, ...
    PassState *pass(int32_t batch, const int32_t *position_B, int32_t head_rows); // late
    void deliver(const Launch &launch);
    void verify() const; // throws where something around an array has changed

  private:
    struct Array {
        char *block;
        int64_t bytes; // between the guards
    };
    struct Part {
        void *to;
        const void *from;
        int64_t bytes;
    };
    void *array(int64_t bytes, const void *from);
    void later(void *to, const void *from, int64_t bytes); // bytes: a multiple of 4
    const int64_t guard_;
    const bool bare_;
    std::vector<Array> arrays_;
    std::vector<Part> late_;
    std::vector<void *> pinned_;
};

void fetch(void *to, const void *from, int64_t bytes);

class Rounds { // a stream, and the times of launches on it
  public:
    explicit Rounds(const hc_device_op &op);
    Rounds(const Rounds &) = delete;
    ~Rounds();
    void begin();
    // Waits for the round; its time is shared by `launches`.
    void end(int launches);
    cudaStream_t stream = nullptr;
    void report() const; // the median of a launch's time
    int copies() const {
        return std::max(op_.copies, 1);
    }

  private:
    void release();
    const hc_device_op &op_;
    cudaEvent_t begin_ = nullptr, end_ = nullptr;
    std::vector<float> times_;
};

// Run body(copy) once, late and overlapping (unless its kernels do not wait by themselves), and take
// what came out; then op.repeat timed rounds over all copies, in turn.
// `take` sees the first, checked run alone. Timed rounds run without overlap, so that a launch's
// time is the kernel's; with more copies than fit the L2 cache each visit finds its weights cold.
template <class Body, class Take>
void run(const hc_device_op &op, Scratch &scratch, Launch &launch, Body body, Take take,
         bool waits = true) {
    Rounds rounds(op);
    launch.stream = rounds.stream;
    check(cudaDeviceGetAttribute(&launch.sms, cudaDevAttrMultiProcessorCount, op.index), "device");
    launch.variant = open_variant(op.variant);
    // Copies ran on the default stream, which ours does not wait for.
    check(cudaDeviceSynchronize(), "copy in");
    launch.overlap = waits;
    scratch.deliver(launch);
    body(0);
    check(cudaStreamSynchronize(launch.stream), "kernel");
    // Before the results are taken: a kernel that wrote elsewhere fails as that, not as wrong
    // numbers.
    scratch.verify();
    take();
    launch.overlap = false;
    for (int i = 0; i < op.repeat; i++) {
        rounds.begin();
        for (int copy = 0; copy < rounds.copies(); copy++)
            body(copy);
        rounds.end(rounds.copies());
    }
    rounds.report();
}

// operate_prompt.cu
void operate_product(const hc_device_op &op);
void operate_prompt_attention(const hc_device_op &op);
void operate_prompt_norm(const hc_device_op &op);
void operate_prompt_sign(const hc_device_op &op);

} // namespace hotcold
#endif
