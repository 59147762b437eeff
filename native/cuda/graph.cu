// graph.cu - the kernels of a pass in order, captured once for each batch bucket.
//
// A layer (predicted, with cold neurons):
//   qkv (norm folded in) | attention | o + residual | fc1 (+ x to both devices) | fc2 and threshold
//   | split, cold list and flags to the host | gate and up | down | wait for the cold sum, merge
// Layer norms are kernels of their own, before qkv and before fc1; where norms follow the residual
// additions (opt-350m) they work in place on the stream, which is then the next block's input.
#include "executor.h"

namespace hotcold {

uint32_t *Executor::flag(int32_t index) const {
    if (index < 0)
        return nullptr;
    char *flags = segment_ + args_.segment->flags_offset;
    return &reinterpret_cast<hc_flag *>(flags)[index].value;
}

Exchange Executor::exchange(int layer) const {
    const hc_device_layer &plan = plan_[layer];
    Exchange e = {};
    e.epoch = args_.epoch;
    e.capacity = args_.model->n;
    e.abort = &host_mapped_->abort;
    e.relay = model_->layers[layer].relay;
    if (!plan.has_cold)
        return e;
    e.x_flag = flag(plan.x_flag);
    e.active_flag = flag(plan.active_flag);
    e.y_flag = flag(plan.y_flag);
    if (plan.cold_list >= 0)
        e.cold = reinterpret_cast<hc_active *>(segment_ + plan.cold_list);
    e.y = reinterpret_cast<const float *>(segment_ + plan.y);
    return e;
}

Gemv Executor::dense(const void *w, int64_t rows, int64_t d, const float *x, float *y) const {
    Gemv g = {};
    g.w = w;
    g.dtype = args_.model->dtype;
    g.stride = d * bytes_of(g.dtype);
    g.rows = static_cast<int32_t>(rows);
    g.d = static_cast<int32_t>(d);
    g.x = x, g.x_stride = d, g.y = y, g.y_stride = rows;
    g.eps = args_.model->norm_eps;
    g.pass = model_->buffers.pass;
    return g;
}

void Executor::record_attention(int layer, int32_t bucket) {
    const hc_model &m = *args_.model;
    const Layer &from = model_->layers[layer];
    const Buffers &b = model_->buffers;
    const int64_t q_dim = m.heads * m.head_dim, kv_dim = m.kv_heads * m.head_dim;
    uint64_t *stamps = b.stamps + (layer + 1) * STAMPS;
    Gemv qkv = dense(from.qkv, q_dim + 2 * kv_dim, m.d, b.h, b.qkv);
    qkv.bias_R = from.qkv_bias;
    qkv.stamps = stamps, qkv.stamp = AT_QKV;
    if (m.norm == HC_NORM_RMS && !m.post_norm) {
        qkv.norm_D = from.attention_norm_D;
    } else if (!m.post_norm) {
        record_norm(Norm{b.h, from.attention_norm_D, from.attention_norm_bias_D, b.normed, nullptr,
                         0, 0, 0, nullptr, stamps, AT_QKV},
                    bucket);
        qkv.x = b.normed, qkv.stamps = nullptr;
    }
    gemv(qkv, bucket, launch_);
    attention(Attention{b.qkv, from.k_cache, from.v_cache, b.cos_PE, b.sin_PE, b.attended, m.heads,
                        m.kv_heads, m.head_dim, static_cast<int32_t>(m.context), device_.kv_f16,
                        b.pass},
              bucket, launch_);
    Gemv o = dense(from.o, m.d, q_dim, b.attended, b.h);
    o.bias_R = from.o_bias_D;
    o.epilogue = ADD;
    gemv(o, bucket, launch_);
}

// A norm of the model's kind; shapes and the pass are filled in here.
void Executor::record_norm(const Norm &args, int32_t bucket) {
    const hc_model &m = *args_.model;
    Norm n = args;
    n.d = m.d, n.eps = m.norm_eps, n.kind = m.norm, n.pass = model_->buffers.pass;
    norm(n, bucket, launch_);
}

// x of a layer's feed-forward block, to both devices, where no gemv can carry the norm; was it done?
bool Executor::hand_over(int layer, int32_t bucket) {
    const hc_model &m = *args_.model;
    const hc_device_layer &plan = plan_[layer];
    const Layer &from = model_->layers[layer];
    const Buffers &b = model_->buffers;
    bool whole = m.norm != HC_NORM_RMS || m.post_norm;
    for (int later = layer; later < m.n_layers; later++)
        whole |= plan_[later].predicted_at == layer &&
                 device_.predictors_L[later].form == HC_PREDICT_SIGN;
    if (!whole)
        return false;
    float *slot = plan.has_cold ? reinterpret_cast<float *>(segment_ + plan.x) : nullptr;
    Norm n = {b.h, from.ffn_norm_D, from.ffn_norm_bias_D, b.normed, slot};
    if (m.post_norm)
        n.weight_D = from.attention_norm_D, n.bias_D = from.attention_norm_bias_D, n.y = b.h;
    n.stamps = b.stamps + (layer + 1) * STAMPS, n.stamp = AT_PREDICT;
    record_norm(n, bucket);
    return true;
}

// The proposals of `layer`, from the input of layer `at`: normed, or NULL where fc1 folds the norm in;
// carries_norm: x of `at` goes out with it.
void Executor::record_prediction(int layer, int at, bool carries_norm, const float *normed,
                                 int32_t bucket) {
    const hc_model &m = *args_.model;
    const Buffers &b = model_->buffers;
    const Predictor &p = model_->layers[layer].predictor;
    const hc_predictor_layer &shape = device_.predictors_L[layer];
    const float *input = shape.input || !normed ? b.h : normed;
    if (shape.form == HC_PREDICT_SIGN) {
        sign(Sign{p.signs_NW, p.scale2_N, p.bias_N, p.column_D, input, static_cast<int32_t>(m.n),
                  static_cast<int32_t>(m.d), shape.input_bits, shape.threshold, b.planes_BPW,
                  b.step_B, model_->layers[layer].members_N, b.pass, nullptr},
             bucket, launch_);
        return;
    }
    Gemv fc1 = dense(p.fc1, shape.hidden, m.d, input, b.hidden);
    fc1.dtype = p.dtype, fc1.stride = m.d * bytes_of(p.dtype), fc1.scale_R = p.scale1_H;
    fc1.epilogue = shape.relu ? RELU : STORE;
    fc1.stamps = normed ? nullptr : b.stamps + (at + 1) * STAMPS, fc1.stamp = AT_PREDICT;
    if (!shape.input && !normed) {
        fc1.norm_D = model_->layers[at].ffn_norm_D;
        if (carries_norm) {
            const hc_device_layer &plan = plan_[at];
            float *slot = plan.has_cold ? reinterpret_cast<float *>(segment_ + plan.x) : nullptr;
            fc1.normed = b.normed, fc1.normed_host = slot;
        }
    }
    gemv(fc1, bucket, launch_);
    Gemv fc2 = dense(p.fc2, m.n, shape.hidden, b.hidden, nullptr);
    fc2.dtype = p.dtype, fc2.stride = shape.hidden * bytes_of(p.dtype), fc2.scale_R = p.scale2_N;
    fc2.epilogue = MEMBERS, fc2.threshold = shape.threshold, fc2.bias_R = p.bias_N;
    fc2.members = reinterpret_cast<uint8_t *>(model_->layers[layer].members_N);
    gemv(fc2, bucket, launch_);
}

void Executor::record_ffn(int layer, int32_t bucket) {
    const hc_model &m = *args_.model;
    const hc_device_layer &plan = plan_[layer];
    const Layer &from = model_->layers[layer];
    const Buffers &b = model_->buffers;
    const Exchange to = exchange(layer);
    uint64_t *stamps = b.stamps + (layer + 1) * STAMPS;
    const float *x = m.post_norm ? b.h : b.normed;
    const bool handed_over = hand_over(layer, bucket);
    bool normed = handed_over;
    for (int later = layer; later < m.n_layers; later++)
        if (plan_[later].predicted_at == layer) {
            const bool carries = !normed && !device_.predictors_L[later].input;
            record_prediction(later, layer, carries, handed_over ? x : nullptr, bucket);
            normed |= carries;
        }
    if (!normed) {
        float *slot = plan.has_cold ? reinterpret_cast<float *>(segment_ + plan.x) : nullptr;
        record_norm(Norm{b.h, from.ffn_norm_D, nullptr, b.normed, slot, 0, 0, 0, nullptr, stamps,
                         AT_PREDICT},
                    bucket);
    }
    HotList hot = b.hot;
    if (plan.predicted_at >= 0) {
        split(Split{from.members_N, from.owned_G, from.row_G, static_cast<int32_t>(m.n),
                    device_.n_chunks, from.bounds_C, hot, b.cold_ids, b.cold_members, false,
                    from.counts_2, to, b.pass, stamps},
              launch_);
    } else {
        hot.rows = nullptr, hot.members = nullptr, hot.starts = from.starts_C;
        if (to.x_flag)
            signal_x(to, b.pass, launch_);
    }
    if (plan.has_hot) {
        const Ffn ffn = {from.record_R,
                         m.record_bytes,
                         m.gate_offset,
                         m.up_offset,
                         m.down_offset,
                         static_cast<int32_t>(m.d),
                         m.dtype,
                         static_cast<int32_t>(args_.shares_L[layer].n_ids),
                         device_.n_chunks,
                         x,
                         hot,
                         b.partial_CBD,
                         from.fired_4C,
                         b.pass,
                         stamps,
                         m.bias_offset};
        gate_up(ffn, bucket, launch_);
        down(ffn, bucket, launch_);
    }
    merge(Merge{b.h, plan.has_hot ? b.partial_CBD : nullptr, device_.n_chunks,
                static_cast<int32_t>(m.d), bucket, to,
                plan.predicted_at >= 0 ? from.counts_2 : nullptr, plan.selective, b.skipped, b.pass,
                stamps, from.ffn_bias_D},
          launch_);
    if (m.post_norm)
        record_norm(Norm{b.h, from.ffn_norm_D, from.ffn_norm_bias_D, b.h}, bucket);
}

void Executor::record_head(int32_t bucket) {
    const hc_model &m = *args_.model;
    const Buffers &b = model_->buffers;
    Gemv head = dense(b.head, m.vocab, m.embed_dim, b.h, b.logits);
    Gemv project = dense(b.project_out, m.embed_dim, m.d, b.h, b.projected);
    Gemv &first = m.project_out ? project : head; // every row is projected: the head picks its own
    first.stamps = b.stamps, first.stamp = 1;
    if (m.norm == HC_NORM_RMS) {
        first.norm_D = b.final_norm_D;
    } else if (b.final_norm_D) {
        record_norm(Norm{b.h, b.final_norm_D, b.final_norm_bias_D, b.normed, nullptr, 0, 0, 0,
                         nullptr, b.stamps, 1},
                    bucket);
        first.x = b.normed, first.stamps = nullptr;
    }
    if (m.project_out) {
        gemv(project, bucket, launch_);
        head.x = b.projected;
    }
    head.when = ONE_ROW;
    gemv(head, bucket, launch_);
    head.when = ALL_ROWS;
    head.stamps = nullptr;
    if (bucket > 1)
        gemv(head, bucket, launch_);
}

void Executor::record(int32_t bucket) {
    const hc_model &m = *args_.model;
    const Buffers &b = model_->buffers;
    begin(Begin{host_mapped_, embedded_mapped_, b.h, m.d, b.pass, b.skipped, b.stamps}, bucket,
          launch_);
    for (int layer = 0; layer < m.n_layers; layer++) {
        record_attention(layer, bucket);
        record_ffn(layer, bucket);
    }
    record_head(bucket);
    const Layer &first = model_->layers[0];
    finish(Finish{b.logits, logits_mapped_, m.vocab, b.pass, host_mapped_, first.counts_2,
                  first.fired_4C, b.skipped, b.n_hot_L, m.n_layers, device_.n_chunks,
                  (bucket + 7) / 8, predicted_, b.stamps},
           launch_);
}

void Executor::capture(int index) {
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(launch_.stream, cudaStreamCaptureModeThreadLocal), "capture");
    try {
        record(1 << index);
    } catch (...) {
        cudaStreamEndCapture(launch_.stream, &graph);
        if (graph)
            cudaGraphDestroy(graph);
        throw;
    }
    check(cudaStreamEndCapture(launch_.stream, &graph), "capture");
    const cudaError_t error = cudaGraphInstantiate(&graph_[index], graph, 0);
    cudaGraphDestroy(graph);
    check(error, "instantiating the graph");
    check(cudaGraphUpload(graph_[index], launch_.stream), "uploading the graph");
}

} // namespace hotcold
