// operate.cu - one operator on host arrays: the door for tests and benches, not used by passes.
#include "model.h"

#include <algorithm>
#include <memory>

namespace hotcold {
namespace {

constexpr int64_t BEHIND = 256;

int copies_of(const hc_device_op &op) {
    return std::max(op.copies, 1);
}

class Scratch { // device memory that goes with the scope
  public:
    ~Scratch() {
        for (void *block : blocks_)
            cudaFree(block);
    }
    // What lies behind it is no number of any dtype, so that a kernel that reads too far shows.
    template <class T> T *make(int64_t count, const void *from = nullptr) {
        void *block = nullptr;
        const size_t bytes = std::max<int64_t>(count, 1) * sizeof(T);
        check(cudaMalloc(&block, bytes + BEHIND), "GPU memory");
        blocks_.push_back(block);
        check(cudaMemset(block, 0, bytes), "GPU memory");
        check(cudaMemset(static_cast<char *>(block) + bytes, 0xff, BEHIND), "GPU memory");
        if (from)
            check(cudaMemcpy(block, from, count * sizeof(T), cudaMemcpyHostToDevice), "copy in");
        return static_cast<T *>(block);
    }
    // Copies of count bytes, one behind the other.
    char *repeated(int64_t count, const void *from, int copies) {
        char *first = make<char>(count * copies);
        check(cudaMemcpy(first, from, count, cudaMemcpyHostToDevice), "copy in");
        for (int i = 1; i < copies; i++)
            check(cudaMemcpy(first + i * count, first, count, cudaMemcpyDeviceToDevice), "copy");
        return first;
    }
    PassState *pass(int32_t batch, const int32_t *position_B, int32_t head_rows) {
        PassState state = {};
        state.seq = 1, state.batch = batch, state.head_rows = head_rows;
        for (int b = 0; b < batch; b++)
            state.position_B[b] = position_B ? position_B[b] : b;
        return make<PassState>(1, &state);
    }

  private:
    std::vector<void *> blocks_;
};

void fetch(void *to, const void *from, int64_t bytes) {
    check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "copy out");
}

// Run body once and take what came out, then `repeat` rounds over all copies; seconds gets the median
// time of a launch in a round.
template <class Body, class Take>
void run(const hc_device_op &op, Launch &launch, Body body, Take take) {
    check(cudaStreamCreateWithFlags(&launch.stream, cudaStreamNonBlocking), "stream");
    check(cudaDeviceGetAttribute(&launch.sms, cudaDevAttrMultiProcessorCount, op.index), "device");
    launch.variant = open_variant(op.variant);
    body(0);
    check(cudaStreamSynchronize(launch.stream), "kernel");
    take();
    std::vector<float> times;
    cudaEvent_t begin, end;
    check(cudaEventCreate(&begin), "event");
    check(cudaEventCreate(&end), "event");
    for (int i = 0; i < op.repeat; i++) {
        check(cudaEventRecord(begin, launch.stream), "event");
        for (int copy = 0; copy < copies_of(op); copy++)
            body(copy);
        check(cudaEventRecord(end, launch.stream), "event");
        check(cudaEventSynchronize(end), "kernel");
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, begin, end), "event");
        times.push_back(milliseconds * 1e-3f / static_cast<float>(copies_of(op)));
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    cudaStreamDestroy(launch.stream);
    std::sort(times.begin(), times.end());
    if (op.seconds && !times.empty())
        *op.seconds = times[times.size() / 2];
}

void operate_gemv(const hc_device_op &op) {
    const hc_gemv_args &a = *op.gemv;
    const int32_t bucket = bucket_of(a.batch);
    Scratch scratch;
    Launch launch = {};
    Gemv g = {};
    const int64_t size = a.rows * a.stride_bytes;
    const char *w = scratch.repeated(size, a.w, copies_of(op));
    g.stride = a.stride_bytes, g.rows = static_cast<int32_t>(a.rows),
    g.d = static_cast<int32_t>(a.d);
    g.dtype = a.dtype;
    g.scale_R = a.dtype == HC_I8 ? scratch.make<float>(a.rows, a.bias_R) : nullptr;
    if (a.dtype != HC_I8 && a.bias_R)
        g.bias_R = scratch.make<float>(a.rows, a.bias_R);
    float *x = scratch.make<float>(bucket * a.d);
    float *y = scratch.make<float>(bucket * a.rows);
    for (int b = 0; b < a.batch; b++) {
        check(cudaMemcpy(x + b * a.d, a.x_BD + b * a.x_stride, a.d * 4, cudaMemcpyHostToDevice),
              "");
        check(
            cudaMemcpy(y + b * a.rows, a.y_BR + b * a.y_stride, a.rows * 4, cudaMemcpyHostToDevice),
            "");
    }
    g.x = x, g.x_stride = a.d, g.y = y, g.y_stride = a.rows, g.eps = op.eps;
    g.norm_D = op.norm_D ? scratch.make<float>(a.d, op.norm_D) : nullptr;
    g.epilogue = a.accumulate ? ADD : a.relu ? RELU : STORE;
    g.pass = scratch.pass(a.batch, nullptr, 0);
    const auto body = [&](int copy) {
        g.w = w + copy * size;
        gemv(g, bucket, launch);
    };
    run(op, launch, body, [&] {
        for (int b = 0; b < a.batch; b++)
            fetch(a.y_BR + b * a.y_stride, y + b * a.rows, a.rows * 4);
    });
}

void operate_attention(const hc_device_op &op) { // q holds qkv rows, not rotated
    const hc_attention_args &a = *op.attention;
    const int32_t bucket = bucket_of(a.batch);
    const int64_t row = (a.heads + 2 * a.kv_heads) * static_cast<int64_t>(a.head_dim);
    const int64_t rows = static_cast<int64_t>(bucket) * a.heads, e = op.kv_f16 ? 2 : 4;
    const int64_t cache = static_cast<int64_t>(a.kv_heads) * a.context * a.head_dim * e;
    Scratch scratch;
    Launch launch = {};
    float *qkv = scratch.make<float>(bucket * row);
    check(cudaMemcpy(qkv, a.q, a.batch * row * 4, cudaMemcpyHostToDevice), "copy in");
    Attention t = {};
    t.qkv = qkv, t.kv_f16 = op.kv_f16;
    char *k_cache = scratch.repeated(cache, a.k_cache, copies_of(op));
    char *v_cache = scratch.repeated(cache, a.v_cache, copies_of(op));
    if (op.cos_PE) {
        t.cos_PE = scratch.make<float>(a.context * a.head_dim / 2, op.cos_PE);
        t.sin_PE = scratch.make<float>(a.context * a.head_dim / 2, op.sin_PE);
    }
    t.out = scratch.make<float>(rows * a.head_dim);
    t.heads = a.heads, t.kv_heads = a.kv_heads, t.head_dim = a.head_dim;
    t.context = static_cast<int32_t>(a.context), t.pieces = attention_pieces(a.context);
    t.pass = scratch.pass(a.batch, a.position_B, 0);
    if (t.pieces > 1) {
        t.partial = scratch.make<float>(rows * t.pieces * a.head_dim);
        t.stats = scratch.make<float2>(rows * t.pieces);
    }
    const std::vector<uint32_t> zeros(rows);
    t.arrived = scratch.make<uint32_t>(rows, zeros.data());
    const auto body = [&](int copy) {
        t.k_cache = k_cache + copy * cache, t.v_cache = v_cache + copy * cache;
        attention(t, bucket, launch);
    };
    run(op, launch, body, [&] {
        fetch(a.out, t.out, static_cast<int64_t>(a.batch) * a.heads * a.head_dim * 4);
        fetch(const_cast<float *>(a.k_cache), k_cache, cache);
        fetch(const_cast<float *>(a.v_cache), v_cache, cache);
    });
}

// ids are rows of a table of n_rows = bounds' last; NULL ids: all rows, gate first.
void operate_ffn(const hc_device_op &op) {
    hc_ffn_args &a = *op.ffn;
    const int32_t bucket = bucket_of(a.batch), S = a.n_chunks;
    const int32_t n_rows = a.bounds[S];
    Scratch scratch;
    Launch launch = {};
    Ffn f = {};
    const int copies = copies_of(op);
    const char *records = scratch.repeated(n_rows * a.record_bytes, a.records, copies);
    std::vector<const char *> record_R(static_cast<size_t>(n_rows) * copies);
    for (size_t r = 0; r < record_R.size(); r++)
        record_R[r] = records + r * a.record_bytes;
    const char **tables =
        scratch.make<const char *>(static_cast<int64_t>(record_R.size()), record_R.data());
    f.record_bytes = a.record_bytes, f.gate_offset = a.gate_offset, f.up_offset = a.up_offset;
    f.bias_offset = a.bias_offset;
    f.down_offset = a.down_offset, f.d = static_cast<int32_t>(a.d), f.dtype = a.dtype;
    f.n_rows = n_rows, f.n_chunks = S;
    float *x = scratch.make<float>(bucket * a.d), *h = scratch.make<float>(bucket * a.d);
    check(cudaMemcpy(x, a.x_BD, a.batch * a.d * 4, cudaMemcpyHostToDevice), "copy in");
    f.x = x;
    std::vector<int32_t> starts(a.bounds, a.bounds + S + 1);
    const int32_t count = static_cast<int32_t>(a.n_ids);
    if (a.ids) {
        for (int32_t &start : starts)
            start = static_cast<int32_t>(std::lower_bound(a.ids, a.ids + a.n_ids, start) - a.ids);
        f.hot.rows = scratch.make<int32_t>(a.n_ids, a.ids);
        f.hot.members = a.members ? scratch.make<uint32_t>(a.n_ids, a.members) : nullptr;
        f.hot.count = scratch.make<int32_t>(1, &count);
    }
    f.hot.starts = scratch.make<int32_t>(S + 1, starts.data());
    f.hot.c_KB = scratch.make<float>(static_cast<int64_t>(n_rows) * bucket);
    f.partial_CBD = scratch.make<float>(S * bucket * a.d);
    f.fired_C = scratch.make<int32_t>(4 * S);
    PassState *pass = scratch.pass(a.batch, nullptr, 0);
    f.pass = pass;
    Merge m = {h, f.partial_CBD, S, f.d, bucket, {}, nullptr, 0, nullptr, pass, nullptr};
    const auto body = [&](int copy) { // h grows by y each time; only the first is looked at
        f.record_R = tables + static_cast<int64_t>(copy) * n_rows;
        gate_up(f, bucket, launch);
        down(f, bucket, launch);
        merge(m, launch);
    };
    run(op, launch, body, [&] {
        fetch(a.y_BD, h, a.batch * a.d * 4);
        std::vector<int32_t> fired(4 * S);
        fetch(fired.data(), f.fired_C, fired.size() * 4);
        a.up_down_rows = 0;
        for (int i = 0; i < (bucket + 7) / 8 * S; i++)
            a.up_down_rows += fired[i];
    });
}

void operate_norm(const hc_device_op &op) { // y: [B][D]
    const hc_gemv_args &a = *op.gemv;
    const int32_t bucket = bucket_of(a.batch);
    Scratch scratch;
    Launch launch = {};
    float *x = scratch.make<float>(bucket * a.d), *y = scratch.make<float>(bucket * a.d);
    check(cudaMemcpy(x, a.x_BD, a.batch * a.d * 4, cudaMemcpyHostToDevice), "copy in");
    Norm n = {x, scratch.make<float>(a.d, op.norm_D), nullptr, y, nullptr, a.d, op.eps};
    n.bias_D = op.norm_bias_D ? scratch.make<float>(a.d, op.norm_bias_D) : nullptr;
    n.kind = op.norm_kind, n.pass = scratch.pass(a.batch, nullptr, 0);
    run(
        op, launch, [&](int) { norm(n, bucket, launch); },
        [&] { fetch(a.y_BR, y, a.batch * a.d * 4); });
}

void operate_sign(const hc_device_op &op) {
    const hc_sign_args &a = *op.sign;
    const int32_t bucket = bucket_of(a.batch);
    const int64_t words = (a.d + 63) / 64;
    Scratch scratch;
    Launch launch = {};
    float *x = scratch.make<float>(bucket * a.d);
    check(cudaMemcpy(x, a.x_BD, a.batch * a.d * 4, cudaMemcpyHostToDevice), "copy in");
    Sign s = {};
    s.signs_NW = scratch.make<uint64_t>(a.n * words, a.signs_NW);
    s.scale_N = scratch.make<float>(a.n, a.scale_N);
    s.bias_N = a.bias_N ? scratch.make<float>(a.n, a.bias_N) : nullptr;
    s.column_D = a.column_D ? scratch.make<float>(a.d, a.column_D) : nullptr;
    s.x = x, s.n = static_cast<int32_t>(a.n), s.d = static_cast<int32_t>(a.d);
    s.input_bits = a.input_bits, s.threshold = op.threshold;
    s.planes_BPW = scratch.make<uint64_t>(bucket * 8 * words);
    s.step_B = scratch.make<float>(bucket);
    s.members_N = scratch.make<uint32_t>(a.n);
    s.pass = scratch.pass(a.batch, nullptr, 0);
    std::vector<uint32_t> members(a.n);
    run(
        op, launch, [&](int) { sign(s, bucket, launch); },
        [&] { fetch(members.data(), s.members_N, a.n * 4); });
    for (int64_t b = 0; b < a.batch; b++)
        for (int64_t i = 0; i < a.n; i++)
            a.scores_BN[b * a.n + i] = static_cast<float>(members[i] >> b & 1);
}

void operate_split(const hc_device_op &op) { // out[0]: rows of the hot table; out[1]: cold ids
    const hc_split_args &a = *op.split;
    Scratch scratch;
    Launch launch = {};
    std::vector<uint32_t> members(a.n);
    std::vector<int32_t> rows((a.n + 31) / 32), bounds(5);
    std::vector<uint32_t> owned(rows.size());
    for (int64_t i = 0; i < a.n; i++) {
        if (i % 32 == 0 && i)
            rows[i / 32] = rows[i / 32 - 1] + __builtin_popcount(owned[i / 32 - 1]);
        owned[i / 32] |= static_cast<uint32_t>(a.device_N[i] == HC_GPU) << i % 32;
        for (int b = 0; b < a.batch; b++)
            members[i] |= static_cast<uint32_t>(a.scores_BN[b * a.n + i] >= a.threshold) << b;
    }
    for (int c = 0; c <= 4; c++)
        bounds[c] = static_cast<int32_t>(c * a.n / 4);
    Split s = {};
    s.members_N = scratch.make<uint32_t>(a.n, members.data());
    s.owned_G = scratch.make<uint32_t>(owned.size(), owned.data());
    s.row_G = scratch.make<int32_t>(rows.size(), rows.data());
    s.n = static_cast<int32_t>(a.n), s.n_chunks = 4;
    s.bounds_C = scratch.make<int32_t>(5, bounds.data());
    s.hot = {scratch.make<int32_t>(a.n), scratch.make<uint32_t>(a.n), scratch.make<int32_t>(1),
             scratch.make<int32_t>(5), nullptr};
    s.cold_ids = scratch.make<int32_t>(a.n);
    s.cold_members = scratch.make<uint32_t>(a.n);
    s.counts = scratch.make<int32_t>(2);
    const int64_t part = (a.n * 4 + 63) / 64 * 64;
    s.to.cold = reinterpret_cast<hc_active *>(scratch.make<char>(64 + 2 * part));
    s.to.capacity = a.n;
    s.pass = scratch.pass(a.batch, nullptr, 0);
    run(op, launch, [&](int) { split(s, launch); }, [] {});
    const char *sent = reinterpret_cast<const char *>(s.to.cold + 1);
    const void *ids[2] = {s.hot.rows, sent}, *words[2] = {s.hot.members, sent + part};
    int32_t counts[2];
    fetch(&counts[0], s.hot.count, 4);
    fetch(&counts[1], s.counts, 4);
    for (int d = 0; d < 2; d++) {
        a.out[d]->count = counts[d];
        char *at = reinterpret_cast<char *>(a.out[d] + 1);
        fetch(at, ids[d], counts[d] * 4);
        fetch(at + (a.out[d]->capacity * 4 + 63) / 64 * 64, words[d], counts[d] * 4);
    }
}

// What the graphs of a model will take: as many kernels in one graph, never destroyed.
void hold(const hc_device_op &op) {
    static Scratch scratch;
    Launch launch = {};
    launch.overlap = true;
    Gemv g = {};
    g.w = scratch.make<float>(64), g.x = scratch.make<float>(64), g.y = scratch.make<float>(64);
    g.stride = 32, g.rows = 8, g.d = 8, g.dtype = HC_F32, g.x_stride = 8, g.y_stride = 8;
    g.pass = scratch.pass(1, nullptr, 0);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t made = nullptr;
    check(cudaStreamCreateWithFlags(&launch.stream, cudaStreamNonBlocking), "stream");
    check(cudaStreamBeginCapture(launch.stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < op.repeat; i++)
        gemv(g, 1, launch);
    check(cudaStreamEndCapture(launch.stream, &graph), "capture");
    check(cudaGraphInstantiate(&made, graph, 0), "instantiating the graph");
    check(cudaGraphDestroy(graph), "graph");
    check(cudaGraphUpload(made, launch.stream), "uploading the graph");
    check(cudaStreamSynchronize(launch.stream), "graph");
}

} // namespace

hc_status operate(const hc_device_op &op) {
    check(cudaSetDevice(op.index), "CUDA device");
    switch (op.kind) {
    case HC_DEVICE_GEMV:
        operate_gemv(op);
        break;
    case HC_DEVICE_FFN:
        operate_ffn(op);
        break;
    case HC_DEVICE_SPLIT:
        operate_split(op);
        break;
    case HC_DEVICE_ATTENTION:
        operate_attention(op);
        break;
    case HC_DEVICE_NORM:
        operate_norm(op);
        break;
    case HC_DEVICE_SIGN:
        operate_sign(op);
        break;
    case HC_DEVICE_HOLD:
        hold(op);
        break;
    default:
        throw std::runtime_error("unknown operator " + std::to_string(op.kind));
    }
    return HC_OK;
}

} // namespace hotcold
