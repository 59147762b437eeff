// model.cu - lay out one GPU executor's memory, check it against the budget, fill it.
//
// One allocation. The layout function runs twice, first to count and then to hand out, so what is
// checked against the budget is what is used. Hot neurons become a compact table of whole records,
// ascending by id; the host's copy of the weights stays where it is.
#include "cuda/memory/upload.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <cuda_fp16.h>

namespace hotcold {

constexpr int UPLOADERS = 4; // threads that copy weights

Model::Model(const hc_executor_args &args, const hc_device_args &device,
             const hc_device_layer *layers_L)
    : bucket(bucket_of(args.max_batch)), args_(args), device_(device), plan_(layers_L) {
    const hc_model &m = *args.model;
    layers.resize(m.n_layers);
    for (int i = 0; i < m.n_layers; i++) {
        max_hot = std::max(max_hot, args.owned_L[i].n_ids);
        layers[i].n_resident = rows_on_device(i);
        if (device.prompt_rows)
            layers[i].streamed = streamed(i);
        if (predicts(i))
            max_hidden = std::max(max_hidden, device.predictors_L[i].hidden);
    }
    const int32_t ahead = layers_ahead(plan_, m.n_layers);
    hot_.resize(ahead + 1);
    Arena count, count_host;
    lay_out(count, count_host);
    const int64_t own = count.used();
    const int64_t shared =
        device.remote_predictor ? lay_out_mailbox(nullptr, m, bucket, ahead, mailbox) : 0;
    bytes = own + shared, pinned = count_host.used();
    if (device.vram_bytes > 0 && bytes > device.vram_bytes)
        throw Failure(HC_ERR_BUDGET, "the plan does not fit the GPU memory budget", bytes,
                      device.vram_bytes);
    try {
        if (device.remote_predictor) {
            check(cudaMalloc(&shared_, shared), "allocating " + std::to_string(shared) + " bytes");
            clear(shared_, shared);
            lay_out_mailbox(shared_, m, bucket, ahead, mailbox);
        }
        allocate(own);
        upload();
    } catch (...) {
        cudaFree(memory_);
        cudaFree(shared_);
        cudaFreeHost(parts_);
        cudaFreeHost(bus_);
        throw;
    }
}

Model::~Model() {
    cudaFree(memory_);
    cudaFree(shared_);
    cudaFreeHost(parts_);
    cudaFreeHost(bus_);
}

void Model::allocate(int64_t size) {
    check(cudaMalloc(&memory_, size), "allocating " + std::to_string(size) + " bytes");
    clear(memory_, size);
    void *mapped = nullptr;
    if (pinned) {
        check_host(cudaHostAlloc(reinterpret_cast<void **>(&parts_), pinned, cudaHostAllocMapped),
                   pinned);
        std::memset(parts_, 0, pinned);
        check(cudaHostGetDevicePointer(&mapped, parts_, 0), "pinned memory");
    }
    reserve_bus();
    Arena hand_out(memory_), hand_out_host(static_cast<char *>(mapped));
    lay_out(hand_out, hand_out_host);
}

bool Model::stays(int index, int part) const {
    return device_.host_parts_L && (device_.host_parts_L[index] & part);
}

bool Model::on_bus(int layer, int32_t id) const {
    return device_.bus_LN && device_.bus_LN[layer * args_.model->n + id];
}

int64_t Model::rows_on_device(int layer) const {
    const hc_owned &share = args_.owned_L[layer];
    return std::count_if(share.ids, share.ids + share.n_ids,
                         [&](int32_t id) { return !on_bus(layer, id); });
}

// Owned neurons that stay in host memory: a pinned copy, so that the device can read them.
void Model::reserve_bus() {
    int64_t rows = 0;
    for (int i = 0; i < args_.model->n_layers; i++)
        rows += args_.owned_L[i].n_ids - rows_on_device(i);
    if (!rows)
        return;
    const int64_t size = rows * args_.model->record_bytes;
    check_host(cudaHostAlloc(reinterpret_cast<void **>(&bus_), size, cudaHostAllocMapped), size);
    check(cudaHostGetDevicePointer(reinterpret_cast<void **>(&bus_mapped_), bus_, 0), "bus");
    bus_end_ = bus_;
}

bool Model::predicts(int layer) const {
    return plan_[layer].predicted_at >= 0 && !device_.remote_predictor;
}

bool Model::signs(int layer) const {
    return predicts(layer) && device_.predictors_L[layer].form == HC_PREDICT_SIGN;
}

void Model::lay_out(Arena &arena, Arena &host) {
    const hc_model &m = *args_.model;
    const int64_t B = bucket, D = m.d, S = device_.n_chunks, head_dim = m.head_dim;
    const int64_t q_dim = m.heads * head_dim, kv_dim = m.kv_heads * head_dim;
    Buffers &b = buffers;
    uint32_t *members = device_.remote_predictor
                            ? mailbox.members_LN // one block: masks leave it whole
                            : arena.take<uint32_t>(m.n_layers * m.n);
    int32_t *counts = arena.take<int32_t>(COUNTS * m.n_layers);
    int32_t *fired = arena.take<int32_t>(4 * S * m.n_layers);
    for (int i = 0; i < m.n_layers; i++) {
        layers[i].members_N = members ? members + i * m.n : nullptr;
        layers[i].counts = counts ? counts + COUNTS * i : nullptr;
        layers[i].fired_4C = fired ? fired + 4 * S * i : nullptr;
        lay_out_layer(arena, host, i);
    }
    b.pass = arena.take<PassState>(1);
    b.logits = arena.take<float>(B * m.vocab);
    b.final_norm_D = arena.like(m.final_norm_D, D);
    b.final_norm_bias_D = arena.like(m.final_norm_bias_D, D);
    b.cos_PE = arena.like(m.cos_PE, m.context * head_dim / 2);
    b.sin_PE = arena.like(m.sin_PE, m.context * head_dim / 2);
    Arena &head = stays(m.n_layers, HC_PART_HEAD) ? host : arena;
    b.head = head.take<char>(m.vocab * m.embed_dim * bytes_of(m.dtype));
    b.project_out = m.project_out ? arena.take<char>(m.embed_dim * D * bytes_of(m.dtype)) : nullptr;
    if (m.project_in && device_.prompt_rows)
        prompt.project_in = arena.take<char>(m.embed_dim * D * bytes_of(m.dtype));
    b.skipped = arena.take<int32_t>(1);
    b.n_hot_L = arena.take<int32_t>(m.n_layers);
    b.stamps = arena.take<uint64_t>((m.n_layers + 1) * STAMPS);
    lay_out_attention(arena);
    const int64_t scratch = arena.used();
    b.h = arena.take<float>(B * D);
    b.normed = arena.take<float>(B * D);
    b.qkv = arena.take<float>(B * (q_dim + 2 * kv_dim));
    b.attended = arena.take<float>(B * q_dim);
    b.hidden = arena.take<float>(B * max_hidden);
    b.partial_CBD = arena.take<float>(S * B * D);
    if (m.project_out)
        b.projected = arena.take<float>(B * m.embed_dim);
    for (int i = 0; i < m.n_layers; i++)
        if (signs(i)) {
            b.planes_BPW = arena.take<uint64_t>(B * 8 * ((D + 63) / 64));
            b.step_B = arena.take<float>(B);
            break;
        }
    const int64_t every = args_.audit_every, entries = max_hot + (every ? m.n / every + 1 : 0);
    float *c_KB = arena.take<float>(entries * B);
    for (HotList &hot : hot_) {
        hot.rows = arena.take<int32_t>(entries);
        hot.members = arena.take<uint32_t>(entries);
        hot.count = arena.take<int32_t>(1);
        hot.starts = arena.take<int32_t>(S + 1);
        hot.audit = arena.take<int32_t>(2);
        hot.c_KB = c_KB;
    }
    b.cold_ids = arena.take<int32_t>(m.n);
    b.cold_members = arena.take<uint32_t>(m.n);
    const int64_t end = arena.used();
    arena.go_to(scratch);
    lay_out_prompt(arena);
    arena.go_to(std::max(end, arena.used()));
}

// As runtime/engine/gpu_memory.py counts it. Beside the scratch: counters are zeros between passes.
void Model::lay_out_attention(Arena &arena) {
    const hc_model &m = *args_.model;
    const int64_t rows = static_cast<int64_t>(bucket) * m.heads,
                  pieces = attention_pieces(m.context);
    buffers.arrived = arena.take<uint32_t>(rows);
    if (pieces == 1)
        return;
    buffers.partial = arena.take<float>(rows * pieces * m.head_dim);
    buffers.stats = arena.take<float2>(rows * pieces);
}

void Model::lay_out_layer(Arena &arena, Arena &host, int index) {
    const hc_model &m = *args_.model;
    const int64_t D = m.d, e = bytes_of(m.dtype), S = device_.n_chunks;
    const int64_t q_dim = m.heads * m.head_dim, kv_dim = m.kv_heads * m.head_dim;
    const int64_t kv_bytes = kv_dim * m.context * (device_.kv_f16 ? 2 : 4);
    Layer &layer = layers[index];
    const auto home = [&](int part) -> Arena & { return stays(index, part) ? host : arena; };
    layer.attention_norm_D = arena.take<float>(D);
    layer.ffn_norm_D = arena.take<float>(D);
    const hc_layer &given = m.layers[index];
    layer.attention_norm_bias_D = arena.like(given.attention_norm_bias_D, D);
    layer.ffn_norm_bias_D = arena.like(given.ffn_norm_bias_D, D);
    layer.qkv_bias = arena.like(given.qkv_bias, q_dim + 2 * kv_dim);
    layer.o_bias_D = arena.like(given.o_bias_D, D);
    layer.ffn_bias_D = arena.like(given.ffn_bias_D, D);
    layer.qkv = home(HC_PART_ATTENTION).take<char>((q_dim + 2 * kv_dim) * D * e);
    layer.o = home(HC_PART_ATTENTION).take<char>(D * q_dim * e);
    layer.records = arena.take<char>(rows_on_device(index) * m.record_bytes);
    layer.record_R = arena.take<const char *>(args_.owned_L[index].n_ids);
    layer.ids_N = device_.prompt_rows ? arena.take<int32_t>(m.n) : nullptr;
    layer.k_cache = home(HC_PART_KV).take<char>(kv_bytes);
    layer.v_cache = home(HC_PART_KV).take<char>(kv_bytes);
    layer.owned_G = arena.take<uint32_t>((m.n + 31) / 32);
    layer.row_G = arena.take<int32_t>((m.n + 31) / 32);
    layer.relay = arena.take<uint32_t>(1);
    layer.bounds_C = arena.take<int32_t>(S + 1);
    layer.starts_C = arena.take<int32_t>(S + 1);
    if (predicts(index))
        lay_out_predictor(arena, home(HC_PART_PREDICTOR), m, device_.predictors_L[index],
                          device_.predictor_i8, layer.predictor);
}

void Model::upload() {
    const hc_model &m = *args_.model;
    const int64_t half_table = m.context * m.head_dim / 2 * 4;
    Uploader up;
    up.copy_if(buffers.final_norm_D, m.final_norm_D, m.d * 4);
    up.copy_if(buffers.final_norm_bias_D, m.final_norm_bias_D, m.d * 4);
    up.copy_if(buffers.cos_PE, m.cos_PE, half_table);
    up.copy_if(buffers.sin_PE, m.sin_PE, half_table);
    up.copy(buffers.head, m.head, m.vocab * m.embed_dim * bytes_of(m.dtype));
    up.copy_if(buffers.project_out, m.project_out, m.embed_dim * m.d * bytes_of(m.dtype));
    up.copy_if(prompt.project_in, prompt.project_in ? m.project_in : nullptr,
               m.embed_dim * m.d * bytes_of(m.dtype));
    std::vector<int32_t> n_hot(m.n_layers);
    for (int i = 0; i < m.n_layers; i++)
        n_hot[i] = static_cast<int32_t>(args_.owned_L[i].n_ids);
    up.copy(buffers.n_hot_L, n_hot.data(), 4 * m.n_layers);
    up.finish();
    // What goes on the bus is laid out neuron after neuron, so by one thread.
    by_threads(m.n_layers, bus_ ? 1 : UPLOADERS, device_.index, [this, &m](int i) {
        upload_layer(i);
        if (predicts(i))
            upload_predictor(m, device_.predictors_L[i], device_.predictor_i8, layers[i].predictor);
    });
}

void Model::upload_layer(int index) {
    const hc_model &m = *args_.model;
    const hc_layer &from = m.layers[index];
    const hc_owned &share = args_.owned_L[index];
    Layer &to = layers[index];
    const int64_t D = m.d, e = bytes_of(m.dtype), S = device_.n_chunks;
    const int64_t q_dim = m.heads * m.head_dim, kv_dim = m.kv_heads * m.head_dim;
    Uploader up;
    up.copy(to.attention_norm_D, from.attention_norm_D, D * 4);
    up.copy(to.ffn_norm_D, from.ffn_norm_D, D * 4);
    up.copy_if(to.attention_norm_bias_D, from.attention_norm_bias_D, D * 4);
    up.copy_if(to.ffn_norm_bias_D, from.ffn_norm_bias_D, D * 4);
    up.copy_if(to.qkv_bias, from.qkv_bias, (q_dim + 2 * kv_dim) * 4);
    up.copy_if(to.o_bias_D, from.o_bias_D, D * 4);
    up.copy_if(to.ffn_bias_D, from.ffn_bias_D, D * 4);
    up.copy(to.qkv, from.qkv, (q_dim + 2 * kv_dim) * D * e);
    up.copy(to.o, from.o, D * q_dim * e);
    std::vector<int32_t> rows((m.n + 31) / 32), starts(S + 1);
    std::vector<uint32_t> owned(rows.size());
    const char *records = static_cast<const char *>(from.records);
    std::vector<const char *> record_R(share.n_ids);
    int64_t on_device = 0;
    std::vector<int32_t> ids;
    for (int64_t k = 0; k < share.n_ids; k++) {
        const char *record = records + share.ids[k] * m.record_bytes;
        owned[share.ids[k] / 32] |= 1u << share.ids[k] % 32;
        if (on_bus(index, share.ids[k])) {
            std::memcpy(bus_end_, record, m.record_bytes);
            record_R[k] = bus_mapped_ + (bus_end_ - bus_);
            bus_end_ += m.record_bytes;
        } else {
            char *target = to.records + on_device++ * m.record_bytes;
            up.copy(target, record, m.record_bytes);
            record_R[k] = target;
            ids.push_back(share.ids[k]);
        }
    }
    up.copy(to.record_R, record_R.data(), share.n_ids * sizeof(char *));
    ids.insert(ids.end(), to.streamed.begin(), to.streamed.end());
    if (to.ids_N)
        up.copy(to.ids_N, ids.data(), ids.size() * 4);
    for (size_t g = 1; g < rows.size(); g++)
        rows[g] = rows[g - 1] + __builtin_popcount(owned[g - 1]);
    const int32_t *bounds = device_.bounds_LC + index * (S + 1);
    for (int64_t c = 0; c <= S; c++)
        starts[c] = static_cast<int32_t>(
            std::lower_bound(share.ids, share.ids + share.n_ids, bounds[c]) - share.ids);
    up.copy(to.owned_G, owned.data(), owned.size() * 4);
    up.copy(to.row_G, rows.data(), rows.size() * 4);
    up.copy(to.bounds_C, bounds, (S + 1) * 4);
    up.copy(to.starts_C, starts.data(), (S + 1) * 4);
    up.finish();
}

} // namespace hotcold
