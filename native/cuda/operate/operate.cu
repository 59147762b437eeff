// operate.cu - run one operator on host arrays: for tests and benches, not used by passes.
//
// Memory and runs are in operate.h; the operators of prompts in operate_prompt.cu.
//
// Each operator: arrays in (inputs of the pass `late`, weights at once), the launcher of the
// product, arrays out. Device rows exist for the whole bucket, as in passes; what lies past the
// batch is zeros. A thrown error leaves nothing behind: Scratch and Rounds free what they made.
#include "cuda/operate/operate.h"

#include <cstring>
#include <numeric>

namespace hotcold {
namespace {

// The rows of a token each, `width` floats apart, of arrays that have them `stride` apart.
std::vector<float> gathered(const float *rows, int64_t stride, int64_t width, int32_t batch) {
    std::vector<float> side_by_side(batch * width);
    for (int b = 0; b < batch; b++)
        std::memcpy(&side_by_side[b * width], rows + b * stride, width * sizeof(float));
    return side_by_side;
}

// y = W x, all epilogues; with members_R the bits instead of y.
void operate_gemv(const hc_device_op &op) {
    const hc_gemv_args &a = *op.gemv;
    const int32_t bucket = hc_bucket_of(a.batch);
    Scratch scratch(op);
    Gemv g = {};
    const int64_t size = a.rows * a.stride_bytes;
    const char *w = scratch.repeated(size, a.w);
    g.stride = a.stride_bytes, g.rows = static_cast<int32_t>(a.rows),
    g.d = static_cast<int32_t>(a.d), g.dtype = a.dtype;
    g.scale_R = scratch.given(a.rows, op.scale_R);
    g.bias_R = scratch.given(a.rows, a.bias_R);
    const std::vector<float> x = gathered(a.x_BD, a.x_stride, a.d, a.batch);
    const std::vector<float> before = gathered(a.y_BR, a.y_stride, a.rows, a.batch);
    // Late: what an earlier kernel would have written. y too: ADD reads it.
    g.x = scratch.late<float>(a.batch * a.d, x.data(), bucket * a.d), g.x_stride = a.d;
    g.y = scratch.late<float>(a.batch * a.rows, before.data(), bucket * a.rows);
    g.y_stride = a.rows, g.eps = op.eps;
    g.norm_D = scratch.given(a.d, op.norm_D);
    if (op.normed_BD) {
        g.normed = scratch.make<float>(bucket * a.d);
        g.normed_host = scratch.host(bucket * a.d);
    }
    g.epilogue = op.members_R ? MEMBERS : a.accumulate ? ADD : a.relu ? RELU : STORE;
    g.threshold = op.threshold;
    // Zeros: a kernel of a small bucket writes only the bytes of its tokens' groups.
    uint32_t *members = op.members_R ? scratch.zeros<uint32_t>(a.rows) : nullptr;
    g.members = reinterpret_cast<uint8_t *>(members);
    g.when = static_cast<hc_when>(op.when), g.pass = scratch.pass(a.batch, nullptr, op.head_rows);
    const auto body = [&](int copy) {
        g.w = w + copy * size;
        gemv(g, bucket, scratch.launch);
    };
    scratch.run(body, [&] {
        for (int b = 0; b < a.batch; b++)
            fetch(a.y_BR + b * a.y_stride, g.y + b * a.rows, a.rows * 4);
        if (members)
            fetch(op.members_R, members, a.rows * 4);
        if (!op.normed_BD)
            return;
        fetch(op.normed_BD, g.normed, a.batch * a.d * 4);
        std::memcpy(op.normed_BD + a.batch * a.d, g.normed_host, a.batch * a.d * 4);
    });
}

void operate_attention(const hc_device_op &op) { // q holds qkv rows, not rotated
    const hc_attention_args &a = *op.attention;
    const int32_t bucket = hc_bucket_of(a.batch);
    const int64_t row = (a.heads + 2 * a.kv_heads) * static_cast<int64_t>(a.head_dim);
    const int64_t rows = static_cast<int64_t>(bucket) * a.heads, cache = cache_bytes(op);
    Scratch scratch(op);
    Attention t = attention_of<Attention>(op, scratch);
    t.qkv = scratch.late<float>(a.batch * row, a.q, bucket * row);
    char *k_cache = scratch.repeated(cache, a.k_cache);
    char *v_cache = scratch.repeated(cache, a.v_cache);
    t.out = scratch.make<float>(rows * a.head_dim);
    t.pieces = hc_attention_pieces(a.context);
    t.pass = scratch.pass(a.batch, a.position_B, 0);
    if (t.pieces > 1) {
        t.partial = scratch.make<float>(rows * t.pieces * a.head_dim);
        t.stats = scratch.make<float2>(rows * t.pieces);
    }
    // The kernel leaves zeros again, so timed rounds need no clearing.
    t.arrived = scratch.zeros<uint32_t>(rows);
    // A copy's caches; the appended position is the same in each round.
    const auto body = [&](int copy) {
        t.k_cache = k_cache + copy * cache, t.v_cache = v_cache + copy * cache;
        attention(t, bucket, scratch.launch);
    };
    scratch.run(body, [&] {
        fetch(a.out, t.out, static_cast<int64_t>(a.batch) * a.heads * a.head_dim * 4);
        fetch(const_cast<float *>(a.k_cache), k_cache, cache);
        fetch(const_cast<float *>(a.v_cache), v_cache, cache);
    });
}

// ids are rows of a table of n_rows = bounds' last; NULL ids: all rows, gate first.
void operate_ffn(const hc_device_op &op) {
    hc_ffn_args &a = *op.ffn;
    // S: chunks of the sum. ffn_bounds cut the rows of the table, the last bound is their number.
    const int32_t bucket = hc_bucket_of(a.batch), S = op.ffn_chunks;
    const int32_t n_rows = op.ffn_bounds[S];
    Scratch scratch(op);
    Ffn f = {};
    const char *records = scratch.repeated(n_rows * a.record.bytes, a.records);
    // One table of addresses a copy, behind each other.
    std::vector<const char *> record_R(static_cast<size_t>(n_rows) * scratch.copies());
    for (size_t r = 0; r < record_R.size(); r++)
        record_R[r] = records + r * a.record.bytes;
    const char **tables = scratch.given<const char *>(record_R.size(), record_R.data());
    f.record = a.record, f.d = static_cast<int32_t>(a.d);
    f.activation = a.activation, f.activation_threshold = a.activation_threshold;
    f.n_rows = n_rows, f.n_chunks = S;
    // The residual stream starts at 0, so what merge() leaves is y.
    float *h = scratch.zeros<float>(bucket * a.d);
    f.x = scratch.late<float>(a.batch * a.d, a.x_BD, bucket * a.d);
    std::vector<int32_t> starts(op.ffn_bounds, op.ffn_bounds + S + 1);
    const int32_t count = static_cast<int32_t>(a.n_ids);
    if (a.ids) {
        // Bounds are neuron ids; the kernels want positions in the list.
        for (int32_t &start : starts)
            start = static_cast<int32_t>(std::lower_bound(a.ids, a.ids + a.n_ids, start) - a.ids);
        f.hot.rows = scratch.late<int32_t>(a.n_ids, a.ids);
        f.hot.members = a.members ? scratch.late<uint32_t>(a.n_ids, a.members) : nullptr;
        f.hot.count = scratch.late<int32_t>(1, &count);
    }
    f.hot.starts = scratch.late<int32_t>(S + 1, starts.data());
    f.hot.c_KB = scratch.make<float>(static_cast<int64_t>(n_rows) * bucket);
    f.partial_CBD = scratch.make<float>(S * bucket * a.d);
    f.fired_C = scratch.make<int32_t>(4 * S);
    PassState *pass = scratch.pass(a.batch, nullptr, 0);
    f.pass = pass;
    Merge m = {};
    m.h = h, m.partial_CBD = f.partial_CBD, m.n_chunks = S, m.d = f.d, m.bucket = bucket;
    m.pass = pass;
    const auto body = [&](int copy) { // h grows by y each time; only the first is looked at
        f.record_R = tables + static_cast<int64_t>(copy) * n_rows;
        gate_up(f, bucket, scratch.launch);
        down(f, bucket, scratch.launch);
        merge(m, scratch.launch);
    };
    scratch.run(body, [&] {
        fetch(a.y_BD, h, a.batch * a.d * 4);
        std::vector<int32_t> fired((bucket + 7) / 8 * S); // others were not written
        fetch(fired.data(), f.fired_C, fired.size() * 4);
        a.up_down_rows = std::accumulate(fired.begin(), fired.end(), int64_t{0});
    });
}

void operate_norm(const hc_device_op &op) { // y: [B][D]
    const hc_gemv_args &a = *op.gemv;
    const int32_t bucket = hc_bucket_of(a.batch);
    Scratch scratch(op);
    Norm n = {};
    n.x = scratch.late<float>(a.batch * a.d, a.x_BD, bucket * a.d);
    n.weight_D = scratch.make<float>(a.d, op.norm_D), n.d = a.d, n.eps = op.eps;
    n.y = scratch.make<float>(bucket * a.d);
    n.y_host = op.normed_BD ? scratch.host(bucket * a.d) : nullptr;
    n.bias_D = scratch.given(a.d, op.norm_bias_D);
    n.kind = op.norm_kind, n.pass = scratch.pass(a.batch, nullptr, 0);
    const auto take = [&] {
        fetch(a.y_BR, n.y, a.batch * a.d * 4);
        if (op.normed_BD)
            std::memcpy(op.normed_BD, n.y_host, a.batch * a.d * 4);
    };
    scratch.run([&](int) { norm(n, bucket, scratch.launch); }, take);
}

void operate_sign(const hc_device_op &op) {
    const hc_sign_args &a = *op.sign;
    const int32_t bucket = hc_bucket_of(a.batch);
    Scratch scratch(op);
    Sign s = sign_of<Sign>(op, scratch);
    s.x = scratch.late<float>(a.batch * a.d, a.x_BD, bucket * a.d);
    s.planes_BPW = scratch.make<uint64_t>(bucket * 8 * ((a.d + 63) / 64));
    s.step_B = scratch.make<float>(bucket);
    s.members_N = scratch.make<uint32_t>(a.n);
    s.pass = scratch.pass(a.batch, nullptr, 0);
    // Bits of tokens become the scores 1 and 0 of the caller's array.
    std::vector<uint32_t> members(a.n);
    const auto take = [&] { fetch(members.data(), s.members_N, a.n * 4); };
    scratch.run([&](int) { sign(s, bucket, scratch.launch); }, take);
    for (int64_t b = 0; b < a.batch; b++)
        for (int64_t i = 0; i < a.n; i++)
            a.scores_BN[b * a.n + i] = static_cast<float>(members[i] >> b & 1);
}

// Thresholds are applied here, on the host: the kernel starts from proposals, as it does behind a
// predictor.
void operate_split(const hc_device_op &op) { // out[0]: rows of the hot table; out[1]: cold ids
    const hc_split_args &a = *op.split;
    Scratch scratch(op);
    std::vector<uint32_t> members(a.n);
    std::vector<int32_t> rows((a.n + 31) / 32), bounds(5);
    std::vector<uint32_t> owned(rows.size());
    for (int64_t i = 0; i < a.n; i++) {
        // Rows of the table before this group: those before the last one, and its own.
        if (i % 32 == 0 && i)
            rows[i / 32] = rows[i / 32 - 1] + __builtin_popcount(owned[i / 32 - 1]);
        owned[i / 32] |= static_cast<uint32_t>(a.device_N[i] == 0) << i % 32;
        for (int b = 0; b < a.batch; b++)
            members[i] |= static_cast<uint32_t>(a.scores_BN[b * a.n + i] >= a.threshold) << b;
    }
    for (int c = 0; c <= 4; c++)
        bounds[c] = static_cast<int32_t>(c * a.n / 4);
    Split s = {};
    s.members_N = scratch.late<uint32_t>(a.n, members.data());
    s.owned_G = scratch.given(owned.size(), owned.data());
    s.row_G = scratch.given(rows.size(), rows.data());
    s.n = static_cast<int32_t>(a.n), s.n_chunks = 4;
    s.bounds_C = scratch.given(5, bounds.data());
    s.hot.rows = scratch.make<int32_t>(a.n), s.hot.members = scratch.make<uint32_t>(a.n);
    s.hot.count = scratch.make<int32_t>(1), s.hot.starts = scratch.make<int32_t>(5);
    s.cold_ids = scratch.make<int32_t>(a.n);
    s.cold_members = scratch.make<uint32_t>(a.n);
    s.counts = scratch.make<int32_t>(COUNTS);
    char *cold = scratch.make<char>(HC_ACTIVE_BYTES(a.n, 0));
    s.to.cold = reinterpret_cast<hc_active *>(cold);
    s.to.capacity = a.n;
    uint32_t *flags = reinterpret_cast<uint32_t *>(scratch.host(2));
    s.to.x_flag = flags, s.to.active_flag = flags + 1;
    s.pass = scratch.pass(a.batch, nullptr, 0);
    const auto take = [&] {
        // seq is 1 (Scratch::pass).
        if (flags[0] != 1 || flags[1] != 1)
            throw Failure(HC_ERR_SYSTEM, "split: the host has not been told of the lists");
    };
    scratch.run([&](int) { split(s, scratch.launch); }, take);
    const void *ids[2] = {s.hot.rows, cold + HC_ACTIVE_IDS()};
    const void *words[2] = {s.hot.members, cold + HC_ACTIVE_MEMBERS(a.n)};
    int32_t counts[2];
    fetch(&counts[0], s.hot.count, 4);
    fetch(&counts[1], s.counts, 4);
    for (int d = 0; d < 2; d++) {
        a.out[d]->count = counts[d];
        char *at = reinterpret_cast<char *>(a.out[d]);
        fetch(at + HC_ACTIVE_IDS(), ids[d], counts[d] * 4);
        fetch(at + HC_ACTIVE_MEMBERS(a.out[d]->capacity), words[d], counts[d] * 4);
    }
}

// What the graphs of a model will take: as many kernels in one graph, never destroyed.
// Neither the memory nor the graph goes before the process does, and whoever measures free memory
// meanwhile finds it taken.
void hold(const hc_device_op &op) {
    static Scratch scratch(op);
    const Stream &stream = *new Stream;
    const Launch launch = {stream, true, 0, nullptr};
    Gemv g = {};
    g.w = scratch.make<float>(64), g.x = scratch.make<float>(64), g.y = scratch.make<float>(64);
    g.stride = 32, g.rows = 8, g.d = 8, g.dtype = HC_F32, g.x_stride = 8, g.y_stride = 8;
    g.pass = scratch.make<PassState>(1);
    const Graph &graph = *new Graph(captured(stream, [&] {
        for (int i = 0; i < op.repeat; i++)
            gemv(g, 1, launch);
    }));
    check(cudaGraphUpload(graph, stream), "uploading the graph");
    check(cudaStreamSynchronize(stream), "graph");
}

constexpr struct {
    int32_t kind;
    void (*run)(const hc_device_op &op);
} OPERATORS[] = {{HC_DEVICE_GEMV, operate_gemv},
                 {HC_DEVICE_FFN, operate_ffn},
                 {HC_DEVICE_SPLIT, operate_split},
                 {HC_DEVICE_ATTENTION, operate_attention},
                 {HC_DEVICE_NORM, operate_norm},
                 {HC_DEVICE_SIGN, operate_sign},
                 {HC_DEVICE_PRODUCT, operate_product},
                 {HC_DEVICE_PROMPT_ATTENTION, operate_prompt_attention},
                 {HC_DEVICE_PROMPT_NORM, operate_prompt_norm},
                 {HC_DEVICE_PROMPT_SIGN, operate_prompt_sign},
                 {HC_DEVICE_GAPS, rate_of_gaps},
                 {HC_DEVICE_EXCHANGE, rate_of_exchange},
                 {HC_DEVICE_HOLD, hold}};

} // namespace

hc_status operate(const hc_device_op &op) {
    check(cudaSetDevice(op.index), "CUDA device");
    for (const auto &one : OPERATORS)
        if (one.kind == op.kind) {
            one.run(op);
            return HC_OK;
        }
    throw Failure(HC_ERR_ARGUMENT, "unknown operator " + std::to_string(op.kind));
}

} // namespace hotcold
