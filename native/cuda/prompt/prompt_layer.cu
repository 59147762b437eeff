// prompt_layer.cu - the operators of a dense prompt pass in their order: embedding, layer, head.
//
// A layer is the model's block, operator by operator. A norm into a stream is part of the operand that
// is made of it, one into the residual stream works in place. Products are in gemm.cu, everything else
// in prompt_ops.cu and prompt_sign.cu.
//
// All launches are on the passes' stream, one after the other, without overlap: the stream's order
// is the only one there is, but for the events of the streamed pieces.
#include "cuda/prompt/prompt.h"

#include <algorithm>
#include <cstring>

namespace hotcold {

// The residual stream, normed where a weight is given.
Rows Prompt::stream(const float *norm_D, const float *norm_bias_D) const {
    const hc_model &m = *args_.model;
    return {model_.prompt.h, m.d, norm_D, norm_bias_D, m.norm_eps, m.norm};
}

// A stream of the block: the residual stream, through the norm that writes it; as long as nothing has
// been added to the residual stream since.
Rows Prompt::stream_of(int layer, int32_t which) const {
    const hc_model &m = *args_.model;
    const Layer &from = model_.layers[layer];
    for (const hc_operator *op = m.block; which != HC_STREAM_H && op < m.block + m.n_block; op++)
        if (op->kind == HC_OPERATOR_NORM && op->target == which)
            return stream(norm_weight(from, *op), norm_bias(from, *op));
    return stream(nullptr, nullptr);
}

// One of the two operand buffers, filled from k columns of rows.
// `spare` exists because the input x of a feed-forward block stays alive while products of its
// pieces make further operands, and while predictions are computed.
Operand Prompt::operand(bool spare, const Rows &rows, int64_t k, int32_t dtype, int tokens) {
    const PromptBuffers &b = model_.prompt;
    Operand to = {};
    to.data = spare ? b.spare : b.operand;
    to.scale_T = spare ? b.spare_scale_T : b.scale_T;
    // Pitch in whole packs: rows lie on 16 bytes for cp.async.
    to.ld = (k + PACK - 1) / PACK * PACK;
    to.half = b.tokens * to.ld * 2;
    to.dtype = dtype;
    to.k = static_cast<int32_t>(k);
    make_operand(MakeOperand{rows, to}, tokens, launch_);
    return to;
}

Gemm Prompt::product(const Operand &x, const void *w, int64_t stride, int64_t rows, int32_t dtype,
                     int tokens) const {
    Gemm g = {};
    g.x = x;
    g.w = static_cast<const char *>(w);
    g.stride = stride, g.rows = static_cast<int32_t>(rows), g.dtype = dtype, g.tokens = tokens;
    return g;
}

// y (+)= x W^T with a matrix of the model, its rows side by side. spare: which operand it may use.
void Prompt::dense(const Rows &x, const void *w, const float *bias_R, int64_t rows, int64_t d,
                   hc_epilogue epilogue, float *y, int tokens, bool spare) {
    const int32_t dtype = args_.model->dtype;
    const int64_t stride = d * bytes_of(dtype);
    // The product decides which form x must have, then x is made in it.
    const int32_t form = operand_dtype(dtype, w, stride, 0, d, rows, false);
    Gemm g = product(operand(spare, x, d, form, tokens), w, stride, rows, dtype, tokens);
    g.epilogue = epilogue, g.bias_R = bias_R, g.y = y, g.y_stride = rows;
    gemm(g, launch_);
}

// Rows of the embedding lie in a mapped file that the device cannot read: the host gathers them
// into pinned memory, as stored; the device widens them. The last pass has ended: nobody reads
// rows_.
void Prompt::embed(const hc_device_prompt &in) {
    const hc_model &m = *args_.model;
    const PromptBuffers &b = model_.prompt;
    const int64_t row = m.embed_dim * bytes_of(m.dtype), wide = m.d * bytes_of(m.dtype);
    const int64_t behind = device_.prompt_rows * row; // positions
    for (int64_t t = 0; t < in.count; t++) {
        std::memcpy(rows_.get() + t * row, static_cast<const char *>(m.embed) + in.tokens[t] * row,
                    row);
        if (m.positions)
            std::memcpy(rows_.get() + behind + t * wide,
                        static_cast<const char *>(m.positions) + (in.position + t) * wide, wide);
    }
    float *to = m.project_in ? b.wide : b.h;
    widen(rows_.mapped(), m.dtype, to, false, in.count * m.embed_dim, launch_);
    if (m.project_in)
        dense({b.wide, m.embed_dim}, b.project_in, nullptr, m.d, m.embed_dim, HC_EPILOGUE_STORE,
              b.h, in.count, false);
    if (m.positions)
        widen(rows_.mapped() + behind, m.dtype, b.h, true, in.count * m.d, launch_);
}

// A block's operators in their order. What attention adds to the residual stream waits until x has
// been taken from that, where both are side by side.
void Prompt::layer(int index, const hc_device_prompt &in) {
    const hc_model &m = *args_.model;
    const Layer &from = model_.layers[index];
    for (const hc_operator *op = m.block; op < m.block + m.n_block; op++) {
        if (op->kind == HC_OPERATOR_ATTEND) {
            attend(index, op->source, in);
            if (hc_ffn_operator(&m)->step != HC_OP_INPUT)
                add_attention(index, in, false);
        } else if (op->kind == HC_OPERATOR_FFN) {
            feed_forward(index, op->source, in);
        } else if (op->target == HC_STREAM_H) {
            prompt_norm(stream(norm_weight(from, *op), norm_bias(from, *op)), model_.prompt.h, m.d,
                        in.count, launch_);
        }
    }
}

// attended = attention(qkv(x))
void Prompt::attend(int layer, int32_t source, const hc_device_prompt &in) {
    const hc_model &m = *args_.model;
    const Layer &from = model_.layers[layer];
    const PromptBuffers &b = model_.prompt;
    const int64_t q_dim = m.heads * m.head_dim, width = q_dim + 2 * m.kv_heads * m.head_dim;
    dense(stream_of(layer, source), from.qkv, from.qkv_bias, width, m.d, HC_EPILOGUE_STORE, b.wide,
          in.count, false);
    prompt_attention(PromptAttention{b.wide, from.k_cache, from.v_cache, model_.buffers.cos_PE,
                                     model_.buffers.sin_PE, b.attended, m.heads, m.kv_heads,
                                     m.head_dim, static_cast<int32_t>(m.context), device_.kv_f16,
                                     in.position, in.count, static_cast<int32_t>(m.window)},
                     launch_);
}

// h += o(attended)
void Prompt::add_attention(int layer, const hc_device_prompt &in, bool spare) {
    const hc_model &m = *args_.model;
    const Layer &from = model_.layers[layer];
    const int64_t q_dim = m.heads * m.head_dim;
    dense({model_.prompt.attended, q_dim}, from.o, from.o_bias_D, m.d, q_dim, HC_EPILOGUE_ADD,
          model_.prompt.h, in.count, spare);
}

// The proposals of `layer`, from the input of layer `at`.
// scores = fc2 act(fc1 x), compared with the threshold in the second product's epilogue: scores are
// never stored. int8 matrices are widened to float16 first, a whole matrix at a time, exactly;
// their scales are applied to the sums.
void Prompt::predict(int layer, int at, const hc_device_prompt &in) {
    const hc_model &m = *args_.model;
    const PromptBuffers &b = model_.prompt;
    const Predictor &p = model_.layers[layer].predictor;
    const hc_predictor_layer &shape = device_.predictors_L[layer];
    const Rows input =
        shape.input ? stream(nullptr, nullptr) : stream_of(at, hc_ffn_operator(&m)->source);
    if (shape.form == HC_PREDICT_SIGN) {
        prompt_sign(PromptSign{p.signs_NW, p.scale2_N, p.bias_N, p.column_D, input,
                               static_cast<int32_t>(m.n), static_cast<int32_t>(m.d),
                               shape.input_bits, in.count, shape.threshold,
                               reinterpret_cast<uint64_t *>(b.spare), b.spare_scale_T, mask(layer)},
                    launch_);
        return;
    }
    const bool i8 = p.dtype == HC_I8;
    const int32_t dtype = i8 ? static_cast<int32_t>(HC_F16) : p.dtype;
    const int64_t e = bytes_of(dtype), H = shape.hidden;
    const void *fc1 = i8 ? b.expanded : p.fc1, *fc2 = i8 ? b.expanded : p.fc2;
    if (i8)
        expand_i8(static_cast<const int8_t *>(p.fc1), b.expanded, H * m.d, launch_);
    const int32_t form = operand_dtype(dtype, fc1, m.d * e, 0, m.d, H, false);
    const Operand x = operand(true, input, m.d, form, in.count);
    Gemm first = product(x, fc1, m.d * e, H, dtype, in.count);
    first.epilogue = shape.relu ? HC_EPILOGUE_RELU : HC_EPILOGUE_STORE;
    first.y = b.wide, first.y_stride = H, first.scale_R = p.scale1_H;
    gemm(first, launch_);
    if (i8)
        expand_i8(static_cast<const int8_t *>(p.fc2), b.expanded, m.n * H, launch_);
    const int32_t form2 = operand_dtype(dtype, fc2, H * e, 0, H, m.n, false);
    // The first operand is not needed any more: `spare` is filled anew, behind the product on the
    // stream.
    const Operand hidden = operand(true, {b.wide, H}, H, form2, in.count);
    Gemm second = product(hidden, fc2, H * e, m.n, dtype, in.count);
    second.epilogue = HC_EPILOGUE_MASK, second.scale_R = p.scale2_N, second.bias_R = p.bias_N;
    second.threshold = shape.threshold, second.mask = mask(layer), second.mask_stride = m.n;
    gemm(second, launch_);
}

// A ring of b.masks masks: proposals are alive from the layer whose input they read to their own.
uint8_t *Prompt::mask(int layer) const {
    const PromptBuffers &b = model_.prompt;
    return b.mask + layer % b.masks * b.tokens * args_.model->n;
}

// Every prediction that reads this layer's input; returns the layer's own proposals, NULL: all.
const uint8_t *Prompt::propose(int layer, const hc_device_prompt &in) {
    const hc_model &m = *args_.model;
    const PromptBuffers &b = model_.prompt;
    for (int later = layer; later < m.n_layers; later++)
        if (plan_[later].predicted_at == layer)
            predict(later, layer, in);
    if (plan_[layer].predicted_at < 0)
        return nullptr;
    if (in.masks_PLN) {
        const int64_t row = (m.n + 7) / 8;
        pack_mask(mask(layer), static_cast<int32_t>(m.n), b.bits, in.count, launch_);
        check(cudaMemcpy2DAsync(in.masks_PLN + layer * row, m.n_layers * row, b.bits, row, row,
                                in.count, cudaMemcpyDeviceToHost, launch_.stream),
              "reading the proposals");
    }
    return mask(layer);
}

// What products read of neurons: their records, or what those are widened to.
hc_record Prompt::multiplied(const hc_record &record) const {
    if (record.dtype != HC_I8)
        return record;
    hc_record wide = hc_layout_widened(&model_.shape);
    wide.bias = record.bias ? wide.bias : 0;
    return wide;
}

// The form in which x multiplies gate and up rows.
int32_t Prompt::operand_of(const hc_record &record, const char *records) const {
    const hc_model &m = *args_.model;
    const hc_record r = multiplied(record);
    const int64_t offsets = r.gate | (r.up >= 0 ? r.up : 0);
    return operand_dtype(r.dtype, records, r.bytes, offsets, m.d, m.n, false);
}

// h += the sum of n neurons that lie side by side on the device (+ bias).
// gate and up: c[t][r] in b.wide, masked; then down, transposed: h[t][d] += c[t][r] down[r][d].
// fired counts entries whose gate fired.
void Prompt::neurons(const char *records, const hc_record &stored, int64_t n, const int32_t *ids,
                     const uint8_t *mask, const float *bias_D, const Operand &x, int tokens) {
    const hc_model &m = *args_.model;
    const PromptBuffers &b = model_.prompt;
    const hc_record record = multiplied(stored);
    if (stored.dtype == HC_I8) { // behind the products of the last piece, on one stream
        widen_neurons({records, stored, b.widened, record, n, static_cast<int32_t>(m.d)}, launch_);
        records = b.widened;
    }
    const bool gated = record.up >= 0;
    Gemm gate = product(x, records + record.gate, record.bytes, n, record.dtype, tokens);
    gate.epilogue = gated ? HC_EPILOGUE_NEURON : HC_EPILOGUE_PLAIN;
    gate.up = gated ? record.up - record.gate : 0;
    gate.bias = record.bias ? record.bias - record.gate : 0;
    gate.activation = m.activation, gate.threshold = m.activation_threshold;
    gate.y = b.wide, gate.y_stride = n;
    gate.mask = const_cast<uint8_t *>(mask), gate.mask_stride = m.n;
    gate.ids_R = ids, gate.fired = b.fired;
    gemm(gate, launch_);
    const char *columns = records + record.down;
    const int32_t form = operand_dtype(record.dtype, columns, record.bytes, 0, n, m.d, true);
    // c of this piece's n neurons is the operand of the second product, over the neurons.
    const Operand c = operand(true, {b.wide, n}, n, form, tokens);
    Gemm down = product(c, columns, record.bytes, m.d, record.dtype, tokens);
    // A down column is a row of the record: k runs over records, so w is read transposed. The
    // layer's bias goes along with its first piece.
    down.transposed = true, down.bias_R = bias_D;
    down.epilogue = HC_EPILOGUE_ADD, down.y = b.h, down.y_stride = m.d;
    gemm(down, launch_);
}

void Prompt::feed_forward(int layer, int32_t source, const hc_device_prompt &in) {
    const hc_model &m = *args_.model;
    const Layer &from = model_.layers[layer];
    const PromptBuffers &b = model_.prompt;
    const int64_t resident = model_.shape.layers[layer].resident;
    const uint8_t *allowed = propose(layer, in);
    const hc_record &own = record_of(args_, layer);
    int32_t form = operand_of(own, from.records);
    if (form != operand_of(m.record, from.records)) // every product takes floats
        form = HC_F32;
    // Made before the first addition to h: every piece multiplies this same x.
    const Operand x = operand(false, stream_of(layer, source), m.d, form, in.count);
    if (hc_ffn_operator(&m)->step == HC_OP_INPUT)
        add_attention(layer, in, true);
    const float *bias_D = from.ffn_bias_D; // goes with the layer's first neurons
    for (int64_t k = 0; k < resident; k += b.piece_rows, bias_D = nullptr)
        neurons(from.records + k * own.bytes, own, std::min(b.piece_rows, resident - k),
                from.ids_N + k, allowed, bias_D, x, in.count);
    // The layer's streamed pieces. The stream waits for the copy, not the host; when the piece has
    // been enqueued its slot is free behind it, and the host gathers the piece two slots further
    // on.
    for (; at_ < static_cast<int64_t>(pieces_.size()) && pieces_[at_].layer == layer; at_++) {
        const Piece &piece = pieces_[at_];
        const int slot = static_cast<int>(at_ % HC_STREAM_SLOTS);
        check(cudaStreamWaitEvent(launch_.stream, ready_[slot], 0), "stream");
        neurons(b.slots[slot], piece.own ? own : m.record, piece.n,
                from.ids_N + resident + piece.begin, allowed, bias_D, x, in.count);
        bias_D = nullptr;
        check(cudaEventRecord(free_[slot], launch_.stream), "event");
        if (poisoned())
            return;
        feed(at_ + HC_STREAM_SLOTS - 1);
    }
}

// Logits of the last row, or of every row where the request wants them, by the decode kernels.
// A decode kernel takes at most model_.bucket rows.
void Prompt::head(const hc_device_prompt &in, float *logits_host) {
    const hc_model &m = *args_.model;
    const Buffers &b = model_.buffers;
    const bool folded =
        m.norm == HC_NORM_RMS; // into the first product; else in place, it is the last
    const int32_t first = in.logits_PV ? 0 : in.count - 1, step = in.logits_PV ? model_.bucket : 1;
    const int32_t end = in.logits_PV || in.head ? in.count : first;
    float *h = model_.prompt.h, *projected = reinterpret_cast<float *>(model_.prompt.spare);
    if (b.final_norm_D && !folded && first < end) {
        Rows rows = stream(b.final_norm_D, b.final_norm_bias_D);
        rows.x += first * m.d;
        prompt_norm(rows, h + first * m.d, m.d, end - first, launch_);
    }
    for (int32_t t = first; t < end; t += step) {
        const int32_t n = std::min(step, end - t);
        Gemv project = model_.dense(b.project_out, m.embed_dim, m.d, h + t * m.d, projected);
        Gemv head = model_.dense(b.head, m.vocab, m.embed_dim,
                                 m.project_out ? projected : project.x, b.logits);
        (m.project_out ? project : head).norm_D = folded ? b.final_norm_D : nullptr;
        if (m.project_out)
            gemv(project, hc_bucket_of(n), launch_);
        gemv(head, hc_bucket_of(n), launch_);
        float *to = in.logits_PV ? in.logits_PV + t * m.vocab : logits_host;
        check(cudaMemcpyAsync(to, b.logits, n * m.vocab * sizeof(float), cudaMemcpyDeviceToHost,
                              launch_.stream),
              "reading logits");
    }
    check(cudaStreamSynchronize(launch_.stream), "the prompt failed on the device");
    if (in.logits_PV)
        std::memcpy(logits_host, in.logits_PV + (in.count - 1) * m.vocab, m.vocab * sizeof(float));
}

} // namespace hotcold
