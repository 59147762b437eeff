// prompt_memory.cu - the dense prompt phase's part of a GPU executor's memory.
//
// Its buffers lie where a sparse pass has its scratch: the two never run at once. What is streamed
// is what has no record on the device, neurons read over the bus included.
#include "cuda/memory/model.h"

#include <algorithm>

namespace hotcold {

// Neurons whose records are not on the device, ascending.
std::vector<int32_t> Model::streamed(int layer) const {
    const hc_owned &share = args_.owned_L[layer];
    std::vector<int32_t> ids;
    for (int32_t id = 0, k = 0; id < args_.model->n; id++) {
        const bool owned = k < share.n_ids && share.ids[k] == id;
        k += owned;
        if (!owned || on_bus(layer, id))
            ids.push_back(id);
    }
    return ids;
}

// As runtime/engine/prompt.py counts it: prompt_bytes.
void Model::lay_out_prompt(Arena &arena) {
    const hc_model &m = *args_.model;
    PromptBuffers &b = prompt;
    if (!device_.prompt_rows)
        return;
    const int64_t T = (device_.prompt_rows + 63) / 64 * 64, q_dim = m.heads * m.head_dim;
    const int64_t piece = device_.piece_rows, H = max_hidden, D = m.d;
    const int64_t E = m.project_in ? m.embed_dim : 0, planes = 16 * ((D + 63) / 64); // 8, in floats
    const auto operand = [&](int64_t k) { return arena.take<char>(T * ((k + 7) / 8 * 8) * 4); };
    bool streams = false, matrices = false;
    for (int i = 0; i < m.n_layers; i++) {
        streams |= !layers[i].streamed.empty();
        if (plan_[i].predicted_at >= 0)
            b.masks = std::max<int64_t>(b.masks, i - plan_[i].predicted_at + 1);
        matrices |= plan_[i].predicted_at >= 0 && !signs(i);
    }
    b.tokens = T, b.piece_rows = piece;
    b.h = arena.take<float>(T * D);
    b.attended = arena.take<float>(T * q_dim);
    b.wide = arena.take<float>(
        T * std::max({q_dim + 2 * m.kv_heads * static_cast<int64_t>(m.head_dim), H, piece, E}));
    b.operand = operand(std::max({D, q_dim, E}));
    b.spare = operand(std::max({D, H, piece, E, planes}));
    b.scale_T = arena.take<float>(T);
    b.spare_scale_T = arena.take<float>(T);
    b.fired = arena.take<unsigned long long>(1);
    if (device_.predictors_L) {
        b.mask = arena.take<uint8_t>(b.masks * T * m.n);
        b.bits = arena.take<uint8_t>(T * ((m.n + 7) / 8));
    }
    if (matrices && device_.predictor_i8)
        b.expanded = arena.take<char>(2 * H * std::max(D, m.n));
    for (int i = 0; streams && i < STREAM_SLOTS; i++)
        b.slots[i] = arena.take<char>(piece * m.record_bytes);
}

} // namespace hotcold
