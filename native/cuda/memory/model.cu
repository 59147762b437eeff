// model.cu - allocate one GPU executor's memory, check it against the budget, fill it.
//
// One allocation, and one more for the mailbox. The layout (layout/gpu_layout.h) runs twice, first to
// count and then to hand out, so what is checked against the budget is what is used. Hot neurons become
// a compact table of whole records, ascending by id; the host's copy of the weights stays where it is.
// What a dense prompt streams is what has no record on the device, neurons read over the bus included.
#include "cuda/memory/upload.h"

#include <algorithm>
#include <cstring>

namespace hotcold {

void Reads::add(const hc_step *steps, int32_t n) {
    for (const hc_step *step = steps; step < steps + n; step++) {
        if (step->op == HC_OP_HOT)
            proposed = step->bytes[HC_PROPOSED], fired = step->bytes[HC_FIRED];
        int64_t &sum = step->op == HC_OP_EMBED ? embed : step->op == HC_OP_HEAD ? head : fixed;
        sum += step->bytes[HC_FIXED];
        position += step->bytes[HC_POSITION];
    }
}

constexpr int UPLOADERS = 4; // threads that copy weights

Model::Model(const hc_executor_args &args, const hc_device_args &device,
             const hc_device_layer *layers_L)
    : shape(args, device, layers_L), layers(shape.n_layers), bucket(hc_bucket_of(args.max_batch)),
      args_(args), device_(device), hot_(hc_layout_ahead(&shape) + 1) {
    parts_.layers_L = layers.data(), parts_.hot_A = hot_.data();
    hc_layout_bytes need;
    hc_layout_executor(&shape, &need);
    bytes = need.device + need.mailbox, pinned = need.host;
    if (device.vram_bytes > 0 && bytes > device.vram_bytes)
        throw Failure(HC_ERR_BUDGET, "the plan does not fit the GPU memory budget", bytes,
                      device.vram_bytes);
    if (need.mailbox) {
        shared_ = DeviceMemory<char>(need.mailbox);
        hc_lay_out_mailbox(&shape, shared_.get(), &mailbox);
    }
    memory_ = DeviceMemory<char>(need.device);
    if (pinned)
        parts_on_host_ = Pinned<char>(pinned);
    // Owned neurons that stay in host memory: a pinned copy, so that the device can read them.
    int64_t on_bus = 0;
    for (int i = 0; i < shape.n_layers; i++)
        on_bus += (shape.layers[i].owned - shape.layers[i].resident) * record_of(args_, i).bytes;
    if (on_bus)
        bus_ = Pinned<char>(on_bus, false);
    bus_end_ = bus_.get();
    hc_arena arena = {memory_.get(), 0, 0}, host = {parts_on_host_.mapped(), 0, 0};
    hc_lay_out_executor(&shape, &arena, &host, mailbox.members_LN, &parts_);
    upload();
}

void Model::upload() {
    const hc_model &m = *args_.model;
    const int64_t half_table = m.context * m.head_dim / 2 * 4;
    Uploader up;
    up.copy(buffers.final_norm_D, m.final_norm_D, m.d * 4);
    up.copy(buffers.final_norm_bias_D, m.final_norm_bias_D, m.d * 4);
    up.copy(buffers.cos_PE, m.cos_PE, half_table);
    up.copy(buffers.sin_PE, m.sin_PE, half_table);
    up.copy(buffers.head, m.head, m.vocab * m.embed_dim * bytes_of(m.dtype));
    up.copy(buffers.project_out, m.project_out, m.embed_dim * m.d * bytes_of(m.dtype));
    up.copy(prompt.project_in, prompt.project_in ? m.project_in : nullptr,
            m.embed_dim * m.d * bytes_of(m.dtype));
    streamed.resize(shape.prompt_rows ? m.n_layers : 0);
    std::vector<int32_t> n_hot(m.n_layers);
    for (int i = 0; i < m.n_layers; i++)
        n_hot[i] = static_cast<int32_t>(args_.owned_L[i].n_ids);
    up.copy(buffers.n_hot_L, n_hot.data(), 4 * m.n_layers);
    up.finish();
    // What goes on the bus is laid out neuron after neuron, so by one thread.
    by_threads(m.n_layers, bus_.get() ? 1 : UPLOADERS, device_.index, [this, &m](int i) {
        upload_layer(i);
        if (shape.layers[i].predicted_at >= 0 && !shape.remote_predictor)
            upload_predictor(m, device_.predictors_L[i], device_.predictor_i8, layers[i].predictor);
    });
}

// Called by several threads, each with a layer and an Uploader of its own; bus_end_ is shared, so
// with neurons on the bus there is one thread.
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
    up.copy(to.attention_norm_bias_D, from.attention_norm_bias_D, D * 4);
    up.copy(to.ffn_norm_bias_D, from.ffn_norm_bias_D, D * 4);
    up.copy(to.qkv_bias, from.qkv_bias, (q_dim + 2 * kv_dim) * 4);
    up.copy(to.o_bias_D, from.o_bias_D, D * 4);
    up.copy(to.ffn_bias_D, from.ffn_bias_D, D * 4);
    up.copy(to.qkv, from.qkv, (q_dim + 2 * kv_dim) * D * e);
    up.copy(to.o, from.o, D * q_dim * e);
    std::vector<int32_t> rows((m.n + 31) / 32), starts(S + 1);
    std::vector<uint32_t> owned(rows.size());
    const char *records = records_of(args_, index);
    const int64_t record_bytes = record_of(args_, index).bytes;
    std::vector<const char *> record_R(share.n_ids);
    int64_t on_device = 0;
    std::vector<int32_t> ids;
    for (int64_t k = 0; k < share.n_ids; k++) {
        const char *record = records + share.ids[k] * record_bytes;
        // Bit i of word g: neuron 32 g + i is ours. row_G below counts those before each word.
        owned[share.ids[k] / 32] |= 1u << share.ids[k] % 32;
        if (on_bus(m, device_, index, share.ids[k])) {
            std::memcpy(bus_end_, record, record_bytes);
            record_R[k] = bus_.mapped() + (bus_end_ - bus_.get());
            bus_end_ += record_bytes;
        } else {
            char *target = to.records + on_device++ * record_bytes;
            up.copy(target, record, record_bytes);
            record_R[k] = target;
            ids.push_back(share.ids[k]);
        }
    }
    up.copy(to.record_R, record_R.data(), share.n_ids * sizeof(char *));
    if (to.ids_N) { // those on the device, then those of its own format, then all others
        const auto ours = [&](int32_t id) { return owned[id / 32] >> id % 32 & 1; };
        const size_t resident = ids.size();
        const auto there = [&](int32_t id) {
            return std::binary_search(ids.begin(), ids.begin() + resident, id);
        };
        std::vector<int32_t> others;
        for (int32_t id = 0; id < m.n; id++)
            if (!there(id))
                (share.records && ours(id) ? ids : others).push_back(id);
        ids.insert(ids.end(), others.begin(), others.end());
        streamed[index].assign(ids.begin() + resident, ids.end());
        up.copy(to.ids_N, ids.data(), ids.size() * 4);
    }
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
