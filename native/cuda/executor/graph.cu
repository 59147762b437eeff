// graph.cu - the kernels of a pass, captured once for each batch bucket: the program's steps in their
// order, and of a step the operators of the model's block. No order and no architecture is known here.
//
// A layer of a Llama (predicted, with cold neurons):
//   qkv (norm folded in) | attention | o + residual | fc1 (+ x to both devices) | fc2 and threshold
//   | split, cold list and flags to the host | gate and up | down | wait for the cold sum, merge
// A layer that is predicted early has its fc1, fc2 and split before the merge of an earlier one: they
// run while that one's cold sum is awaited, and the list is with the host long before x is. Its own x
// then leaves with a norm of its own. A predictor that has its own process is asked instead: remote_ask.cu.
// An rms norm goes into the product that reads it; layer norms are kernels of their own, in place where
// the block says so (opt-350m). Where attention and feed-forward part stand side by side (Falcon), x and
// the lists leave before attention.
#include "cuda/executor/executor.h"

#include <algorithm>

namespace hotcold {

// A flag's word as the device sees it; NULL for -1.
uint32_t *Executor::flag(int32_t index) const {
    if (index < 0)
        return nullptr;
    char *flags = segment_ + args_.segment->flags_offset;
    return &reinterpret_cast<hc_flag *>(flags)[index].value;
}

// What one layer's kernels need of the segment. Without cold neurons there are no flags and no
// payloads, and norm, split and merge exchange nothing.
Exchange Executor::exchange(int layer) const {
    const hc_device_layer &plan = plan_[layer];
    Exchange e = {};
    e.epoch = args_.epoch, e.capacity = args_.model->n;
    e.abort = &host_.mapped()->abort, e.relay = model_.layers[layer].relay;
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

// Where a stream of the block lies on the device.
float *Executor::stream(int32_t which) const {
    const Buffers &b = model_.buffers;
    return which == HC_STREAM_X ? b.normed : which == HC_STREAM_A ? b.attention_input : b.h;
}

// A norm of the residual stream, of the model's kind.
Norm Executor::norm_of(const float *weight_D, const float *bias_D, float *y) const {
    const hc_model &m = *args_.model;
    Norm n = {};
    n.x = model_.buffers.h, n.weight_D = weight_D, n.bias_D = bias_D, n.y = y;
    n.d = m.d, n.eps = m.norm_eps, n.kind = m.norm, n.pass = model_.buffers.pass;
    return n;
}

// A norm of the block.
Norm Executor::norm_of(int layer, const hc_operator &op) const {
    const Layer &from = model_.layers[layer];
    Norm n = norm_of(norm_weight(from, op), norm_bias(from, op), stream(op.target));
    n.x = stream(op.source);
    return n;
}

// The norm that leads a product of the residual stream: an rms norm goes into it; a layer norm is a
// kernel before it and takes the stamp along.
void Executor::capture_leading(Gemv &first, const float *weight_D, const float *bias_D,
                               int32_t bucket) {
    if (args_.model->norm == HC_NORM_RMS) {
        first.norm_D = weight_D;
        return;
    }
    Norm n = norm_of(weight_D, bias_D, model_.buffers.attention_input);
    n.stamps = first.stamps, n.stamp = first.stamp;
    norm(n, bucket, launch_);
    first.x = n.y, first.stamps = nullptr;
}

// The block's operators of a step. A norm into a stream is left to whoever reads it.
void Executor::capture_block(const hc_step &step, int32_t bucket) {
    const hc_model &m = *args_.model;
    const hc_operator *input_norm = hc_input_norm(&m), *leading = nullptr;
    for (const hc_operator *op = m.block; op < m.block + m.n_block; op++) {
        if (op->step != step.op || op == input_norm)
            continue;
        if (op->kind == HC_OPERATOR_ATTEND)
            capture_attention(step.layer, op->source, leading, bucket);
        else if (op->kind == HC_OPERATOR_FFN)
            capture_input(step, bucket);
        else if (op->target == HC_STREAM_A)
            leading = op;
        else
            norm(norm_of(step.layer, *op), bucket, launch_);
    }
}

// qkv = Wqkv x + bias, x a stream of the block, or norm(h) where one leads; attention;
// h += Wo attended + bias.
void Executor::capture_attention(int layer, int32_t source, const hc_operator *leading,
                                 int32_t bucket) {
    const hc_model &m = *args_.model;
    const Layer &from = model_.layers[layer];
    const Buffers &b = model_.buffers;
    const int64_t q_dim = m.heads * m.head_dim, kv_dim = m.kv_heads * m.head_dim;
    Gemv qkv =
        model_.dense(from.qkv, q_dim + 2 * kv_dim, m.d, leading ? b.h : stream(source), b.qkv);
    qkv.bias_R = from.qkv_bias;
    qkv.stamps = b.stamps + (layer + 1) * STAMPS, qkv.stamp = AT_QKV;
    if (leading)
        capture_leading(qkv, norm_weight(from, *leading), norm_bias(from, *leading), bucket);
    gemv(qkv, bucket, launch_);
    // `partial`, `stats` and `arrived` are shared by all layers: they follow each other on one
    // stream.
    attention(Attention{b.qkv, from.k_cache, from.v_cache, b.cos_PE, b.sin_PE, b.attended, m.heads,
                        m.kv_heads, m.head_dim, static_cast<int32_t>(m.context), device_.kv_f16,
                        b.pass, hc_attention_pieces(m.context), b.partial,
                        reinterpret_cast<float2 *>(b.stats), b.arrived,
                        static_cast<int32_t>(m.window)},
              bucket, launch_);
    Gemv o = model_.dense(from.o, m.d, q_dim, b.attended, b.h);
    o.bias_R = from.o_bias_D;
    o.epilogue = ADD;
    gemv(o, bucket, launch_);
}

// The proposals of `layer` from the feed-forward input of layer `at`. Its own: the norm goes with it,
// and x leaves for the host. An earlier layer's: that one has been normed, and is not merged yet.
void Executor::capture_prediction(int layer, int at, int32_t bucket) {
    const Buffers &b = model_.buffers;
    Prediction p = {};
    p.model = args_.model, p.shape = &device_.predictors_L[layer];
    p.weights = &model_.layers[layer].predictor;
    p.input = prediction_input(layer, at);
    // The product norms its input on the way in, and writes the normed x for the hot neurons
    // (b.normed) and the CPU executor (the layer's slot in the segment).
    if (folds_norm(*p.model, *p.shape, layer, at)) {
        p.norm_D = norm_weight(model_.layers[at], *hc_input_norm(p.model));
        p.normed = b.normed, p.normed_host = x_slot(at);
    }
    p.hidden = b.hidden, p.planes_BPW = b.planes_BPW, p.step_B = b.step_B;
    p.members_N = model_.layers[layer].members_N, p.pass = b.pass;
    p.stamps = b.stamps + (layer + 1) * STAMPS;
    predict(p, bucket, launch_);
}

// What a layer's prediction reads, on the device: [B][D].
const float *Executor::prediction_input(int layer, int at) const {
    const hc_predictor_layer &shape = device_.predictors_L[layer];
    const bool residual = shape.input || folds_norm(*args_.model, shape, layer, at);
    return residual ? model_.buffers.h : ffn_input();
}

// Where the normed input of a feed-forward block lies on the device.
float *Executor::ffn_input() const {
    return stream(hc_ffn_operator(args_.model)->source);
}

float *Executor::x_slot(int layer) const {
    return plan_[layer].has_cold ? reinterpret_cast<float *>(segment_ + plan_[layer].x) : nullptr;
}

// Lists of a layer out of its proposals; with_x: x is out too, tell the host of both.
void Executor::capture_split(int layer, bool with_x) {
    const Layer &from = model_.layers[layer];
    const Buffers &b = model_.buffers;
    Split s = {};
    s.members_N = from.members_N, s.owned_G = from.owned_G, s.row_G = from.row_G;
    s.n = static_cast<int32_t>(args_.model->n), s.n_chunks = device_.n_chunks;
    s.bounds_C = from.bounds_C, s.hot = model_.hot_of(layer);
    // Room for the cold list where shared memory is too small; one for all layers.
    s.cold_ids = b.cold_ids, s.cold_members = b.cold_members, s.counts = from.counts;
    s.layer = layer, s.audit_every = audit_of(layer), s.audit_seed = args_.audit_seed;
    s.to = exchange(layer), s.pass = b.pass;
    // x is not there yet, or its flag is another kernel's to set.
    if (!with_x)
        s.to.x_flag = nullptr;
    split(s, launch_);
}

// Neurons that were left out can be audited only where something was predicted, and only those that
// this device owns.
int32_t Executor::audit_of(int layer) const {
    return plan_[layer].predicted_at >= 0 && plan_[layer].has_hot ? args_.audit_every : 0;
}

// The feed-forward input of a layer by a norm of its own, in device memory and with the host; x_flag:
// tell it, here and not with the lists. A step of its own is stamped here.
void Executor::capture_ffn_norm(const hc_step &step, bool x_flag, int32_t bucket) {
    const int layer = step.layer;
    Norm n = norm_of(layer, *hc_input_norm(args_.model));
    n.y_host = x_slot(layer), n.to = exchange(layer);
    if (step.op == HC_OP_INPUT)
        n.stamps = model_.buffers.stamps + (layer + 1) * STAMPS, n.stamp = AT_INPUT;
    n.to.active_flag = nullptr;
    if (!x_flag)
        n.to.x_flag = nullptr;
    norm(n, bucket, launch_);
}

// The feed-forward input of a layer, in device memory and with the host. Where the layer's own
// prediction folds the norm in, which is the next step then, that does it.
void Executor::capture_input(const hc_step &step, int32_t bucket) {
    const int layer = step.layer;
    const bool own = plan_[layer].predicted_at == layer;
    if (device_.remote_predictor)
        capture_remote_input(step, bucket);
    else if (!own || !folds_norm(*args_.model, device_.predictors_L[layer], layer, layer))
        capture_ffn_norm(step, !own, bucket);
}

// c = act(gate) up, then partial sums of the chunks. n_ids: the table's rows, those read over the
// bus too.
void Executor::capture_hot(int layer, int32_t bucket) {
    const hc_model &m = *args_.model;
    const Layer &from = model_.layers[layer];
    const Buffers &b = model_.buffers;
    if (!plan_[layer].has_hot)
        return;
    HotList hot = model_.hot_of(layer);
    // Not predicted: every row of the table, cut in chunks once and for all (starts_C).
    if (plan_[layer].predicted_at < 0)
        hot.rows = nullptr, hot.members = nullptr, hot.starts = from.starts_C;
    Ffn ffn = {};
    ffn.record_R = from.record_R, ffn.record = record_of(args_, layer);
    ffn.activation = m.activation, ffn.activation_threshold = m.activation_threshold;
    ffn.d = static_cast<int32_t>(m.d);
    ffn.n_rows = static_cast<int32_t>(args_.owned_L[layer].n_ids);
    ffn.n_chunks = device_.n_chunks, ffn.x = ffn_input(), ffn.hot = hot;
    ffn.partial_CBD = b.partial_CBD, ffn.fired_C = from.fired_4C;
    ffn.pass = b.pass, ffn.stamps = b.stamps + (layer + 1) * STAMPS;
    gate_up(ffn, bucket, launch_);
    down(ffn, bucket, launch_);
}

// h += hot + cold + bias; the wait for the cold sum is inside. cold_count NULL: nothing was
// predicted, the CPU executor always answers.
void Executor::capture_merge(const hc_step &step, int32_t bucket) {
    const int layer = step.layer;
    const hc_device_layer &plan = plan_[layer];
    const Layer &from = model_.layers[layer];
    const Buffers &b = model_.buffers;
    const HotList &hot = model_.hot_of(layer);
    Merge m = {};
    m.h = b.h, m.partial_CBD = plan.has_hot ? b.partial_CBD : nullptr;
    m.n_chunks = device_.n_chunks, m.d = static_cast<int32_t>(args_.model->d), m.bucket = bucket;
    m.from = exchange(layer), m.selective = plan.selective, m.skipped = b.skipped;
    m.cold_count = plan.predicted_at >= 0 ? from.counts + COUNT_COLD : nullptr;
    m.pass = b.pass, m.stamps = b.stamps + (layer + 1) * STAMPS;
    if (audit_of(layer))
        m.audit = hot.audit, m.c_KB = hot.c_KB, m.missed = from.counts + COUNT_MISSED;
    m.bias_D = from.ffn_bias_D;
    merge(m, launch_);
    capture_block(step, bucket);
}

// logits = head norm(h), for one row or for all: both are in a graph for several tokens, and the
// pass header says which one runs.
void Executor::capture_head(int32_t bucket) {
    const hc_model &m = *args_.model;
    const Buffers &b = model_.buffers;
    Gemv head = model_.dense(b.head, m.vocab, m.embed_dim, b.h, b.logits);
    Gemv project = model_.dense(b.project_out, m.embed_dim, m.d, b.h, b.projected);
    Gemv &first = m.project_out ? project : head; // every row is projected: the head picks its own
    first.stamps = b.stamps, first.stamp = AT_HEAD;
    if (b.final_norm_D)
        capture_leading(first, b.final_norm_D, b.final_norm_bias_D, bucket);
    if (m.project_out) {
        gemv(project, bucket, launch_);
        head.x = b.projected;
    }
    head.when = HC_WHEN_ONE_ROW;
    gemv(head, bucket, launch_);
    head.when = HC_WHEN_ALL_ROWS;
    head.stamps = nullptr;
    if (bucket > 1)
        gemv(head, bucket, launch_);
}

// What differs between passes (tokens, positions, seq, rows of logits) is read from pinned memory by
// begin().
void Executor::capture_step(const hc_step &step, int32_t bucket) {
    const Buffers &b = model_.buffers;
    switch (step.op) {
    case HC_OP_EMBED:
        begin(Begin{host_.mapped(), embedded_.mapped(), b.h, args_.model->d, b.pass, b.skipped,
                    b.stamps},
              bucket, launch_);
        return;
    case HC_OP_INPUT:
    case HC_OP_ATTENTION:
        capture_block(step, bucket);
        return;
    case HC_OP_PREDICT:
        capture_prediction(step.layer, plan_[step.layer].predicted_at, bucket);
        capture_split(step.layer, plan_[step.layer].predicted_at == step.layer);
        return;
    case HC_OP_HOT:
        capture_hot(step.layer, bucket);
        return;
    case HC_OP_MERGE:
        capture_merge(step, bucket);
        return;
    case HC_OP_HEAD:
        capture_head(bucket);
        return;
    }
    throw Failure(HC_ERR_ARGUMENT, "a GPU has no kernels for operation " + std::to_string(step.op));
}

void Executor::capture(int32_t bucket) {
    const hc_model &m = *args_.model;
    const Buffers &b = model_.buffers;
    std::for_each(args_.steps, args_.steps + args_.n_steps,
                  [&](const hc_step &step) { capture_step(step, bucket); });
    const Layer &first = model_.layers[0];
    // Counts and fired of all layers lie side by side, from the first layer's on.
    finish(Finish{b.logits, logits_host_.mapped(), m.vocab, b.pass, host_.mapped(), first.counts,
                  first.fired_4C, b.skipped, b.n_hot_L, m.n_layers, device_.n_chunks,
                  (bucket + 7) / 8, predicted_, b.stamps, stamps_host_.mapped()},
           launch_);
}

} // namespace hotcold
