// kernels.h - the operators of the plug-in: arguments and launchers, one .cu file each.
//
// Launchers only enqueue. All pointers are device memory, or host memory mapped into the device
// where the name says host. `bucket` is the batch a graph was made for (1, 2, 4, 8, 16, 32); the
// tokens that really travel are in PassState, and rows past them are computed and ignored.
#ifndef HOTCOLD_KERNELS_H
#define HOTCOLD_KERNELS_H
#include "layout/gpu_layout.h"
#include "loop/device.h"

#include <cuda_runtime.h>
#include <stdexcept>
#include <string>

namespace hotcold {

// Stamps of the device's clock, a row of them a layer, each written by the kernel that begins (or,
// SUMMED and WAITED, gets so far) then; timeline.cu reads them. The row before those of the layers
// is of the whole pass.
constexpr int STAMPS = HC_STAMPS;
enum {
    AT_QKV,
    AT_PREDICT,
    AT_HOT,
    AT_MERGE,
    AT_SUMMED,
    AT_WAITED,
    AT_ASKED,
    AT_ANSWERED,
    AT_INPUT
};
enum { AT_BEGIN, AT_HEAD, AT_END };
// Counts of a pass, a row of them a layer.
constexpr int COUNTS = HC_COUNTS;
enum { COUNT_COLD, COUNT_HOT, COUNT_AUDITED, COUNT_MISSED }; // neurons; the others * tokens

using PassState = hc_pass_state; // in device memory
using HotList = hc_hot_list;

struct Operators;
struct Launch { // how to enqueue
    cudaStream_t stream;
    bool overlap; // programmatic dependent launch, where the code waits_itself
    int sms;
    const Operators *variant; // NULL, or a user's launchers, asked before the built-in ones
};

// What becomes of a finished sum: y = it, y += it, y = max(it, 0), or a bit where it reaches the
// threshold.
enum Epilogue { STORE, ADD, RELU, MEMBERS };
// y[b][r] (epilogue)= sum over d of w[r][d] x[b][d], for the bucket's tokens b. Rows of x and y
// exist for the whole bucket, also past the tokens of the pass.
struct Gemv {
    const void *w; // rows `stride` bytes apart
    int64_t stride;
    int32_t rows, d, dtype;
    const float *scale_R; // HC_I8
    const float *x;       // rows of x are x_stride floats apart
    int64_t x_stride;
    const float *norm_D; // x is rms-normed on the way in; NULL: taken as it is
    float eps;
    float *y;
    int64_t y_stride;
    const float *bias_R; // added to the product; NULL: none
    float threshold;     // MEMBERS: bit b of members[row] = y[b] >= threshold
    uint8_t *members;    // 4 bytes a row, one for each eight tokens
    Epilogue epilogue;
    hc_when when; // head: by PassState.head_rows
    const PassState *pass;
    float *normed, *normed_host; // with norm_D: one block more writes the normed x here
    uint64_t *stamps;
    int32_t stamp;
};
void gemv(const Gemv &args, int bucket, const Launch &launch);

struct Sign { // the predictor that reads one bit a weight; see native/ops/sign.c
    const uint64_t *signs_NW;
    const float *scale_N, *bias_N, *column_D; // bias, column NULL: none, ones
    const float *x;                           // [B][D]
    int32_t n, d, input_bits;
    float threshold;
    uint64_t *planes_BPW; // scratch
    float *step_B;        // scratch
    uint32_t *members_N;  // out
    const PassState *pass;
    uint64_t *stamps;
};
void sign(const Sign &args, int bucket, const Launch &launch);

// One layer's attention of a pass. Each token appends its k and v at its position and attends to
// positions 0 to its own, of which a window leaves the last so many; a pass's positions ascend with
// the token.
struct Attention {
    const float *qkv;             // [B][(heads + 2 kv_heads) * head_dim], not yet rotated
    void *k_cache, *v_cache;      // one layer: [kv_heads][context][head_dim]
    const float *cos_PE, *sin_PE; // NULL: no rotary embedding
    float *out;                   // [B][heads * head_dim]
    int32_t heads, kv_heads, head_dim, context, kv_f16;
    const PassState *pass;
    int32_t pieces;    // hc_attention_pieces(context)
    float *partial;    // [B * heads][pieces][head_dim]; NULL for one piece
    float2 *stats;     // [B * heads][pieces]: highest score and sum of weights; NULL likewise
    uint32_t *arrived; // [B * heads] zeros, and zeros again after every launch
    int32_t window;    // 0: none
};
void attention(const Attention &args, int bucket, const Launch &launch);

// Who writes what: the device x_flag and active_flag, behind the payloads; the CPU executor y_flag,
// behind y. All values are numbers of passes.
struct Exchange { // one layer's part of the shared segment, mapped; NULL where there is none
    uint32_t *x_flag, *active_flag, *y_flag;
    hc_active *cold;
    const float *y;
    uint64_t epoch;
    int64_t capacity;
    const uint32_t *abort; // host word: not 0: end every wait
    uint32_t *relay;       // device word: seq once the wait of this layer is over
};
struct Norm {
    const float *x, *weight_D, *bias_D; // bias NULL: none
    float *y, *y_host;                  // y may be x; y_host NULL: none
    int64_t d;
    float eps;
    int32_t kind; // hc_norm
    Exchange to;  // flags to set once y is out
    const PassState *pass;
    uint64_t *stamps;
    int32_t stamp;
};
void norm(const Norm &args, int bucket, const Launch &launch);
// One layer's proposals, members_N[n] bit b: token b, against the table of owned (hot) neurons.
struct Split {
    const uint32_t *members_N;
    const uint32_t *owned_G; // bit i of word g: neuron 32 g + i is hot
    const int32_t *row_G;    // rows of the hot table before group g
    int32_t n, n_chunks;
    const int32_t *bounds_C; // n_chunks + 1 neuron ids
    HotList hot;
    int32_t *cold_ids; // the cold list, where it is too long for shared memory
    uint32_t *cold_members;
    bool in_shared;             // set by split()
    int32_t *counts;            // out: COUNT_COLD, COUNT_HOT, COUNT_AUDITED
    int32_t layer, audit_every; // one in so many neurons that are left out is looked at; 0: none
    uint64_t audit_seed;
    Exchange to;
    const PassState *pass;
};
void split(const Split &args, const Launch &launch);
void signal_x(const Exchange &to, const PassState *pass, const Launch &launch);

// Two launches share it: gate_up() fills hot.c_KB, down() reads that and fills partial_CBD,
// [n_chunks][bucket][d], whole: merge() adds it up without anyone having cleared it.
struct Ffn {
    const char *const
        *record_R;    // where each row of the table lies: on the device or in host memory
    hc_record record; // in any format; how int8 is read: neuron.cuh
    int32_t d, n_rows, n_chunks;
    const float *x;
    HotList hot;
    float *partial_CBD;
    int32_t *fired_C; // [4][n_chunks]: neurons * tokens whose gate fired
    const PassState *pass;
    uint64_t *stamps;
    int32_t activation; // hc_activation
    float activation_threshold;
};
void gate_up(const Ffn &args, int bucket, const Launch &launch);
void down(const Ffn &args, int bucket, const Launch &launch);

// h += hot sum, += cold sum, += bias, in this order.
struct Merge {
    float *h;                 // [B][D] residual
    const float *partial_CBD; // NULL: no hot neurons
    int32_t n_chunks, d, bucket;
    Exchange from;             // y_flag NULL: no cold neurons
    const int32_t *cold_count; // NULL: not predicted, always wait and add
    int32_t selective;
    int32_t *skipped; // += 1 where the exchange was skipped
    PassState *pass;
    uint64_t *stamps;
    const float *bias_D;  // of the down matrix, added once; NULL: none
    const int32_t *audit; // of the hot list; NULL: no audit
    const float *c_KB;
    int32_t *missed; // out: audited neurons * tokens whose gate fired
};
void merge(const Merge &args, const Launch &launch);

struct PassHost { // pinned and mapped: how a pass goes in and its report out
    hc_device_pass in;
    int32_t position_B[HC_MAX_BATCH];
    uint32_t abort, done; // done: seq of the last finished pass
    uint32_t failed;
    int64_t counters[6]; // gate_rows, up_down_rows, skipped, cold, audited, missed
};
// First kernel of a graph: the host's header becomes PassState, the embeddings become h. It also
// resets what a pass counts.
struct Begin {
    const PassHost *host;
    const float *embedded_host;
    float *h;
    int64_t d;
    PassState *pass;
    int32_t *skipped;
    uint64_t *stamps;
};
void begin(const Begin &args, int bucket, const Launch &launch);
// Last kernels of a graph. `done` is set after everything else is in host memory: who sees it may
// read all of it and overwrite the inputs.
struct Finish {
    const float *logits;
    float *logits_host;
    int64_t vocab;
    const PassState *pass;
    PassHost *host;
    const int32_t *counts_LC, *fired_LC, *skipped, *n_hot_L; // counts: [L][COUNTS]
    int32_t n_layers, n_chunks, groups, predicted;
    uint64_t *stamps, *stamps_host; // [L + 1][STAMPS]
};
void finish(const Finish &args, const Launch &launch);

// What a variant (variant.cuh) may replace. A launcher enqueues and returns true, or returns false
// where it has no kernel for this shape; NULL: never asked.
struct Operators {
    bool (*gemv)(const Gemv &args, int bucket, const Launch &launch);
    bool (*norm)(const Norm &args, int bucket, const Launch &launch);
    bool (*attention)(const Attention &args, int bucket, const Launch &launch);
    bool (*gate_up)(const Ffn &args, int bucket, const Launch &launch);
    bool (*down)(const Ffn &args, int bucket, const Launch &launch);
};
const Operators *open_variant(const char *path); // variant.cu; NULL: none; throws

// The variant's kernel where it has one for this shape; false: the built-in one is to be launched.
template <class Args>
bool by_variant(bool (*Operators::*op)(const Args &, int, const Launch &), const Args &args,
                int bucket, const Launch &launch) {
    const Operators *variant = launch.variant;
    return variant && variant->*op && (variant->*op)(args, bucket, launch);
}

// What the plug-in throws: an exception that is an hc_error once it crosses the C face.
struct Failure : std::runtime_error {
    Failure(hc_status status, const std::string &text, int64_t value = 0, int64_t limit = 0)
        : std::runtime_error(text), status(status), value(value), limit(limit) {}
    hc_status status; // says what value and limit mean
    int64_t value, limit;
};

// Throws, HC_ERR_GPU_MEMORY with the figures where the device has no memory left.
[[noreturn]] void fail(cudaError_t error, const std::string &what); // failure.cu
template <class Text>
void check(cudaError_t error, const Text &what) { // Text: no string where all is well
    if (error != cudaSuccess)
        fail(error, what);
}
void check_host(cudaError_t error, int64_t bytes); // of an allocation of pinned host memory

// Wait for the default stream: copies and fills there return before they are done, and our streams
// (non-blocking ones) do not wait for it. Without this a memset could overwrite weights that are
// copied on another stream.
inline void settle() {
    check(cudaStreamSynchronize(nullptr), "GPU memory");
}
inline void clear(void *at, int64_t bytes) {
    check(cudaMemset(at, 0, bytes), "GPU memory");
    settle();
}

// Whether the code waits for the kernels before it: below compute capability 9.0 wait_prior()
// (common.cuh) compiles to nothing, also where a newer GPU compiles it from the plug-in's PTX.
constexpr bool waits_itself() {
    constexpr int built[] = {__CUDA_ARCH_LIST__};
    for (int arch : built)
        if (arch < 900)
            return false;
    return true;
}

// One launch on the stream, captured or not. Args travel by value as the kernel's parameter, at
// most 4 KB; a graph keeps that copy, so what differs from pass to pass must lie behind a pointer
// (PassState).
template <class Args>
void enqueue(void (*kernel)(Args), dim3 grid, int threads, size_t shared, const Launch &launch,
             const Args &args) {
    // More than the default limit has to be asked for, once a kernel; launches repeat it at no cost.
    if (shared > 48 * 1024)
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared)),
              "a kernel's shared memory");
    cudaLaunchAttribute attribute[1];
    attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute[0].val.programmaticStreamSerializationAllowed = 1;
    const unsigned attributes = launch.overlap && waits_itself() ? 1 : 0;
    const cudaLaunchConfig_t config = {grid,          dim3(threads), shared,
                                       launch.stream, attribute,     attributes};
    check(cudaLaunchKernelEx(&config, kernel, args), "kernel launch");
}

} // namespace hotcold
#endif
