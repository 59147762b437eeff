// operate.h - what operators on host arrays (operate.cu) need: memory of one call, and its runs.
//
// The memory checks the kernels. Arrays that a kernel is to fill are NaN before (bytes 0xff), and
// so are guards around every array, which are compared once the kernel is done. What an earlier
// kernel of a pass would have written comes late: a kernel writes it long after the one under test
// may have started (launch overlap), so one that does not wait reads zeros. hc_device_op.bare
// leaves out guards and filling: for sanitizers, which know what is allocated and written.
#ifndef HOTCOLD_CUDA_OPERATE_H
#define HOTCOLD_CUDA_OPERATE_H
#include "cuda/memory/owned.h"

#include <algorithm>

namespace hotcold {

// Median seconds of what body enqueues on the stream, after `warm` rounds that do not count; a round
// that met another process's kernel does not count either. 0: there are no rounds.
template <class Body> float median_s(cudaStream_t stream, int rounds, Body body, int warm = 0) {
    const Event begin(cudaEventDefault), end(cudaEventDefault);
    std::vector<float> times;
    for (int i = -warm; i < rounds; i++) {
        check(cudaEventRecord(begin, stream), "event");
        body();
        check(cudaEventRecord(end, stream), "event");
        check(cudaEventSynchronize(end), "kernel");
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, begin, end), "event");
        if (i >= 0)
            times.push_back(milliseconds * 1e-3f);
    }
    std::sort(times.begin(), times.end());
    return times.empty() ? 0 : times[times.size() / 2];
}

void fetch(void *to, const void *from, int64_t bytes);

// Up to MAX_PIECES arrays, copied in words of 4 bytes; by value, as a kernel's argument.
struct Late {
    static constexpr int MAX_PIECES = 8;
    uint32_t *to[MAX_PIECES];
    const uint32_t *from[MAX_PIECES];
    int64_t words[MAX_PIECES];
    int32_t n;
};

// One operator's runs, and device memory that goes with the scope.
class Scratch {
  public:
    // waits: whether the kernels wait for their forerunners by themselves. 256 bytes on either side
    // of an array: beyond what one misplaced pack of 16 bytes, or a row's tail, would hit.
    explicit Scratch(const hc_device_op &op, bool waits = true)
        : op_(op), waits_(waits), guard_(op.bare ? 0 : 256) {}
    // Of no content, or a copy of what is at from.
    template <class T> T *make(int64_t count, const void *from = nullptr) {
        return static_cast<T *>(array(count * static_cast<int64_t>(sizeof(T)), from));
    }
    // A copy; NULL where there is nothing to copy.
    template <class T> T *given(int64_t count, const T *from) {
        return from ? make<T>(count, from) : nullptr;
    }
    template <class T> T *zeros(int64_t count) {
        T *made = make<T>(count);
        clear(made, count * sizeof(T));
        return made;
    }
    // Of no content that is read and ignored, which a tool would report.
    template <class T> T *ignored(int64_t count) {
        return op_.bare ? zeros<T>(count) : make<T>(count);
    }
    // Zeros, until deliver() puts what is at from in front.
    template <class T> T *late(int64_t count, const void *from, int64_t size = 0) {
        T *made = zeros<T>(std::max(count, size));
        if (count == 0)
            return made;
        if (late_.n == Late::MAX_PIECES)
            throw Failure(HC_ERR_SYSTEM, "operator: too many late inputs");
        late_.to[late_.n] = reinterpret_cast<uint32_t *>(made);
        late_.from[late_.n] = reinterpret_cast<uint32_t *>(make<T>(count, from));
        late_.words[late_.n++] = count * static_cast<int64_t>(sizeof(T)) / 4;
        return made;
    }
    int copies() const {
        return std::max(op_.copies, 1);
    }
    // count bytes, copies() times, one behind the other.
    char *repeated(int64_t count, const void *from);
    float *host(int64_t count); // zeros in pinned memory, at one address for host and device
    // A pass of `batch` tokens, seq 1; positions NULL: 0, 1, 2, ...
    PassState *pass(int32_t batch, const int32_t *position_B, int32_t head_rows); // late

    // Run body(copy) once, late and overlapping (unless its kernels do not wait by themselves), and
    // take what came out; then op.repeat timed rounds over all copies, in turn.
    // `take` sees the first, checked run alone. Timed rounds run without overlap, so that a launch's
    // time is the kernel's; with more copies than fit the L2 cache each visit finds its weights cold.
    template <class Body, class Take> void run(Body body, Take take) {
        const Stream stream;
        launch = launch_on(stream, op_.index, waits_, op_.variant);
        // Copies ran on the default stream, which ours does not wait for.
        check(cudaDeviceSynchronize(), "copy in");
        deliver();
        body(0);
        check(cudaStreamSynchronize(stream), "kernel");
        // Before the results are taken: a kernel that wrote elsewhere fails as that, not as wrong
        // numbers.
        verify();
        take();
        launch.overlap = false;
        const float round_s = median_s(stream, op_.repeat, [&] {
            for (int copy = 0; copy < copies(); copy++)
                body(copy);
        });
        if (op_.seconds && op_.repeat > 0)
            *op_.seconds = round_s / static_cast<float>(copies());
    }
    Launch launch = {}; // of the run

  private:
    struct Array {
        Owned<void *, cudaFree> block;
        char *at; // between the guards
        int64_t bytes;
    };
    void *array(int64_t bytes, const void *from);
    void deliver();
    void verify() const;    // throws where something around an array has changed
    const hc_device_op op_; // of hold() it outlives the caller's
    const bool waits_;
    const int64_t guard_;
    std::vector<Array> arrays_;
    Late late_ = {};
    std::vector<Pinned<float>> pinned_;
};

// What the operators of passes and of prompts have in common.
template <class Args> Args attention_of(const hc_device_op &op, Scratch &scratch) {
    const hc_attention_args &a = *op.attention;
    Args t = {};
    t.cos_PE = scratch.given(a.context * a.head_dim / 2, op.cos_PE);
    t.sin_PE = scratch.given(a.context * a.head_dim / 2, op.sin_PE);
    t.heads = a.heads, t.kv_heads = a.kv_heads, t.head_dim = a.head_dim;
    t.context = static_cast<int32_t>(a.context), t.kv_f16 = op.kv_f16;
    t.window = static_cast<int32_t>(a.window);
    return t;
}
inline int64_t cache_bytes(const hc_device_op &op) {
    const hc_attention_args &a = *op.attention;
    return static_cast<int64_t>(a.kv_heads) * a.context * a.head_dim * (op.kv_f16 ? 2 : 4);
}
template <class Args> Args sign_of(const hc_device_op &op, Scratch &scratch) {
    const hc_sign_args &a = *op.sign;
    Args s = {};
    s.signs_NW = scratch.given(a.n * ((a.d + 63) / 64), a.signs_NW);
    s.scale_N = scratch.given(a.n, a.scale_N);
    s.bias_N = scratch.given(a.n, a.bias_N);
    s.column_D = scratch.given(a.d, a.column_D);
    s.n = static_cast<int32_t>(a.n), s.d = static_cast<int32_t>(a.d);
    s.input_bits = a.input_bits, s.threshold = op.threshold;
    return s;
}

// rates.cu: two measurements for benches
void rate_of_gaps(const hc_device_op &op);
void rate_of_exchange(const hc_device_op &op);
// operate_prompt.cu
void operate_product(const hc_device_op &op);
void operate_prompt_attention(const hc_device_op &op);
void operate_prompt_norm(const hc_device_op &op);
void operate_prompt_sign(const hc_device_op &op);

} // namespace hotcold
#endif
