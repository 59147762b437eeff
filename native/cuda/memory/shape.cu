// shape.cu - describes an executor to the layout, which is compiled into the plug-in here.
#include "cuda/memory/model.h"

#include "layout/gpu_layout.c"

#include <algorithm>

namespace hotcold {
namespace {

hc_layout_layer layer_of(const hc_executor_args &args, const hc_device_args &device,
                         const hc_device_layer *plan_L, int index) {
    const hc_model &m = *args.model;
    const hc_owned &share = args.owned_L[index];
    hc_layout_layer layer = {};
    layer.owned = share.n_ids;
    layer.resident = std::count_if(share.ids, share.ids + share.n_ids,
                                   [&](int32_t id) { return !on_bus(m, device, index, id); });
    layer.record_bytes = share.records ? share.record.bytes : 0;
    layer.host_parts = device.host_parts_L ? device.host_parts_L[index] : 0;
    layer.predicted_at = plan_L[index].predicted_at;
    if (layer.predicted_at < 0)
        return layer;
    const hc_predictor_layer &from = device.predictors_L[index];
    layer.form = from.form, layer.hidden = from.hidden;
    layer.bias = from.bias_N != nullptr, layer.column = from.column_D != nullptr;
    layer.folds_norm = folds_norm(m, from, index, layer.predicted_at);
    layer.fc_bytes = device.predictor_i8 ? 1 : bytes_of(from.dtype);
    return layer;
}

} // namespace

const hc_record &record_of(const hc_executor_args &args, int layer) {
    const hc_owned &share = args.owned_L[layer];
    return share.records ? share.record : args.model->record;
}

const char *records_of(const hc_executor_args &args, int layer) {
    const hc_owned &share = args.owned_L[layer];
    return static_cast<const char *>(share.records ? share.records
                                                   : args.model->layers[layer].records);
}

bool on_bus(const hc_model &m, const hc_device_args &device, int layer, int32_t id) {
    return device.bus_LN && device.bus_LN[layer * m.n + id];
}

Shape::Shape(const hc_executor_args &args, const hc_device_args &device,
             const hc_device_layer *plan_L)
    : hc_layout_shape() {
    const hc_model &m = *args.model;
    n_layers = m.n_layers, heads = m.heads, kv_heads = m.kv_heads, head_dim = m.head_dim;
    element_bytes = static_cast<int32_t>(bytes_of(m.dtype)), kv_bytes = device.kv_f16 ? 2 : 4;
    d = m.d, n = m.n, vocab = m.vocab, context = m.context, embed_dim = m.embed_dim;
    record_bytes = m.record.bytes, gated = m.record.up >= 0;
    norm_bias = m.norm == HC_NORM_LAYER;
    biases = m.layers[0].qkv_bias != nullptr;
    final_norm = m.final_norm_D != nullptr, rotary = m.cos_PE != nullptr;
    projected = m.project_out != nullptr, keeps_both = hc_keeps_both(&m);
    head_on_host = device.host_parts_L && (device.host_parts_L[m.n_layers] & HC_PART_HEAD);
    max_batch = args.max_batch, slots = args.n_slots, n_chunks = device.n_chunks,
    audit_every = args.audit_every;
    predictor_i8 = device.predictor_i8, remote_predictor = device.remote_predictor;
    prompt_rows = device.prompt_rows;
    widens = m.record.dtype == HC_I8;
    for (int i = 0; i < m.n_layers; i++) {
        layers.push_back(layer_of(args, device, plan_L, i));
        widens |= record_of(args, i).dtype == HC_I8;
    }
    layers_L = layers.data();
}

} // namespace hotcold
