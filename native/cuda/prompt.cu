// prompt.cu - many prompt tokens in one pass over the whole model, cold weights streamed through.
//
// The sparse form reads a block of 32 tokens' neurons on the host, block after block; a long prompt
// is better served by one dense pass on the device. Records that are not on the device come through
// STREAM_SLOTS buffers: while one piece is computed the next ones are copied, across the borders of
// layers, so that attention and predictors run while the bus goes on. The CPU executor takes no part
// and no sequence number is spent.
//
// Same masks, same tokens: where a layer is predicted, the predictor's proposals of each token mask
// the dense products, so the result is that of the sparse form (design.md 5.1), not of the dense
// model; without a prediction it is the dense model, as in the sparse form.
//
// 13B, 10 GiB, 512 tokens: 15 GB over the bus, 27 TFLOP beside it.
#include "prompt.h"

#include <algorithm>
#include <cstring>
#include <time.h>

namespace hotcold {
namespace {

int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

struct Awake { // the copying threads, for the length of a pass
    explicit Awake(Streamer *streamer) : streamer_(streamer) {
        if (streamer_)
            streamer_->begin();
    }
    ~Awake() {
        if (streamer_)
            streamer_->end();
    }
    Streamer *streamer_;
};

} // namespace

Prompt::Prompt(const hc_executor_args &args, const hc_device_args &device,
               const std::vector<hc_device_layer> &plan, Model &model, const Launch &launch)
    : args_(args), device_(device), plan_(plan), model_(model), launch_(launch) {
    launch_.overlap = false; // these kernels do not wait for their forerunners by themselves
    const hc_model &m = *args.model;
    const int64_t rows = model.prompt.piece_rows;
    for (int l = 0; l < m.n_layers; l++) {
        const int64_t n = static_cast<int64_t>(model.layers[l].streamed.size());
        for (int64_t at = 0; at < n; at += rows)
            pieces_.push_back({l, at, std::min(rows, n - at)});
    }
    try {
        const int64_t size = device.prompt_rows * m.d * bytes_of(m.dtype);
        check_host(cudaHostAlloc(reinterpret_cast<void **>(&rows_), size, cudaHostAllocMapped),
                   size);
        check(cudaHostGetDevicePointer(&rows_mapped_, rows_, 0), "pinned memory");
        for (int i = 0; i < STREAM_SLOTS; i++) {
            check(cudaEventCreateWithFlags(&free_[i], cudaEventDisableTiming), "event");
            check(cudaEventCreateWithFlags(&ready_[i], cudaEventDisableTiming), "event");
        }
        if (!pieces_.empty())
            streamer_ = std::make_unique<Streamer>(m.record_bytes);
    } catch (...) {
        release();
        throw;
    }
}

Prompt::~Prompt() {
    release();
}

void Prompt::release() {
    streamer_.reset();
    cudaFreeHost(rows_);
    for (int i = 0; i < STREAM_SLOTS; i++) {
        if (free_[i])
            cudaEventDestroy(free_[i]);
        if (ready_[i])
            cudaEventDestroy(ready_[i]);
    }
}

bool Prompt::poisoned() const {
    return __atomic_load_n(&args_.segment->poison, __ATOMIC_ACQUIRE) != 0;
}

// One of the two operand buffers, filled from x.
Operand Prompt::operand(bool spare, const float *x, int64_t stride, const float *norm_D, int64_t k,
                        int32_t dtype, int tokens) {
    const PromptBuffers &b = model_.prompt;
    Operand to = {};
    to.data = spare ? b.spare : b.operand;
    to.scale_T = spare ? b.spare_scale_T : b.scale_T;
    to.ld = (k + PACK - 1) / PACK * PACK;
    to.half = b.tokens * to.ld * 2;
    to.dtype = dtype;
    to.k = static_cast<int32_t>(k);
    make_operand(MakeOperand{x, stride, norm_D, args_.model->norm_eps, to}, tokens, launch_);
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

uint8_t *Prompt::mask(int layer) const {
    const PromptBuffers &b = model_.prompt;
    return b.mask + layer % b.masks * b.tokens * args_.model->n;
}

void Prompt::embed(const hc_device_prompt &in) {
    const hc_model &m = *args_.model;
    const int64_t row = m.d * bytes_of(m.dtype);
    for (int32_t t = 0; t < in.count; t++)
        std::memcpy(rows_ + t * row, static_cast<const char *>(m.embed) + in.tokens[t] * row, row);
    widen(rows_mapped_, m.dtype, model_.prompt.h, in.count * m.d, launch_);
}

void Prompt::attend(int layer, const hc_device_prompt &in) {
    const hc_model &m = *args_.model;
    const Layer &from = model_.layers[layer];
    const PromptBuffers &b = model_.prompt;
    const int64_t e = bytes_of(m.dtype), q_dim = m.heads * m.head_dim;
    const int64_t width = q_dim + 2 * m.kv_heads * m.head_dim;
    const int32_t form = operand_dtype(m.dtype, from.qkv, m.d * e, 0, m.d, width, false);
    const Operand x = operand(false, b.h, m.d, from.attention_norm_D, m.d, form, in.count);
    Gemm qkv = product(x, from.qkv, m.d * e, width, m.dtype, in.count);
    qkv.y = b.wide, qkv.y_stride = width;
    gemm(qkv, launch_);
    prompt_attention(PromptAttention{b.wide, from.k_cache, from.v_cache, model_.buffers.cos_PE,
                                     model_.buffers.sin_PE, b.attended, m.heads, m.kv_heads,
                                     m.head_dim, static_cast<int32_t>(m.context), device_.kv_f16,
                                     in.position, in.count},
                     launch_);
    const int32_t form_o = operand_dtype(m.dtype, from.o, q_dim * e, 0, q_dim, m.d, false);
    const Operand attended = operand(false, b.attended, q_dim, nullptr, q_dim, form_o, in.count);
    Gemm o = product(attended, from.o, q_dim * e, m.d, m.dtype, in.count);
    o.epilogue = DENSE_ADD, o.y = b.h, o.y_stride = m.d;
    gemm(o, launch_);
}

// The proposals of `layer`, from the input of layer `at`.
void Prompt::predict(int layer, int at, const hc_device_prompt &in) {
    const hc_model &m = *args_.model;
    const PromptBuffers &b = model_.prompt;
    const Predictor &p = model_.layers[layer].predictor;
    const hc_predictor_layer &shape = device_.predictors_L[layer];
    const bool i8 = p.dtype == HC_I8;
    const int32_t dtype = i8 ? static_cast<int32_t>(HC_F16) : p.dtype;
    const int64_t e = bytes_of(dtype);
    const void *fc1 = i8 ? b.expanded : p.fc1, *fc2 = i8 ? b.expanded : p.fc2;
    if (i8)
        expand_i8(static_cast<const int8_t *>(p.fc1), b.expanded, shape.hidden * m.d, launch_);
    const int32_t form = operand_dtype(dtype, fc1, m.d * e, 0, m.d, shape.hidden, false);
    const float *norm_D = shape.input ? nullptr : model_.layers[at].ffn_norm_D;
    const Operand x = operand(true, b.h, m.d, norm_D, m.d, form, in.count);
    Gemm first = product(x, fc1, m.d * e, shape.hidden, dtype, in.count);
    first.epilogue = shape.relu ? DENSE_RELU : DENSE_STORE;
    first.y = b.wide, first.y_stride = shape.hidden, first.scale_R = p.scale1_H;
    gemm(first, launch_);
    if (i8)
        expand_i8(static_cast<const int8_t *>(p.fc2), b.expanded, m.n * shape.hidden, launch_);
    const int64_t H = shape.hidden;
    const int32_t form2 = operand_dtype(dtype, fc2, H * e, 0, H, m.n, false);
    const Operand hidden = operand(true, b.wide, H, nullptr, H, form2, in.count);
    Gemm second = product(hidden, fc2, H * e, m.n, dtype, in.count);
    second.epilogue = DENSE_MASK, second.scale_R = p.scale2_N, second.bias_R = p.bias_N;
    second.threshold = shape.threshold, second.mask = mask(layer), second.mask_stride = m.n;
    gemm(second, launch_);
}

// h += of n neurons that lie side by side on the device.
void Prompt::neurons(const char *records, int64_t n, const int32_t *ids, const uint8_t *mask,
                     const Operand &x, int tokens) {
    const hc_model &m = *args_.model;
    const PromptBuffers &b = model_.prompt;
    Gemm gate = product(x, records + m.gate_offset, m.record_bytes, n, m.dtype, tokens);
    gate.up = m.up_offset - m.gate_offset;
    gate.epilogue = DENSE_NEURON, gate.y = b.wide, gate.y_stride = n;
    gate.mask = const_cast<uint8_t *>(mask), gate.mask_stride = m.n;
    gate.ids_R = ids, gate.fired = b.fired;
    gemm(gate, launch_);
    const char *columns = records + m.down_offset;
    const int32_t form = operand_dtype(m.dtype, columns, m.record_bytes, 0, n, m.d, true);
    const Operand c = operand(true, b.wide, n, nullptr, n, form, tokens);
    Gemm down = product(c, columns, m.record_bytes, m.d, m.dtype, tokens);
    down.transposed = true;
    down.epilogue = DENSE_ADD, down.y = b.h, down.y_stride = m.d;
    gemm(down, launch_);
}

void Prompt::feed(int64_t index) {
    if (index >= static_cast<int64_t>(pieces_.size()))
        return;
    const Piece &piece = pieces_[index];
    const int slot = static_cast<int>(index % STREAM_SLOTS);
    streamer_->feed(model_.prompt.slots[slot],
                    static_cast<const char *>(args_.model->layers[piece.layer].records),
                    model_.layers[piece.layer].streamed.data() + piece.begin, piece.n, free_[slot],
                    ready_[slot]);
}

void Prompt::feed_forward(int layer, const hc_device_prompt &in) {
    const hc_model &m = *args_.model;
    const Layer &from = model_.layers[layer];
    const PromptBuffers &b = model_.prompt;
    for (int later = layer; later < m.n_layers; later++)
        if (plan_[later].predicted_at == layer)
            predict(later, layer, in);
    const uint8_t *allowed = plan_[layer].predicted_at >= 0 ? mask(layer) : nullptr;
    if (allowed && in.masks_PLN) {
        const int64_t row = (m.n + 7) / 8;
        pack_mask(allowed, static_cast<int32_t>(m.n), b.bits, in.count, launch_);
        check(cudaMemcpy2DAsync(in.masks_PLN + layer * row, m.n_layers * row, b.bits, row, row,
                                in.count, cudaMemcpyDeviceToHost, launch_.stream),
              "reading the proposals");
    }
    const int64_t offsets = m.gate_offset | m.up_offset;
    const int32_t form =
        operand_dtype(m.dtype, from.records, m.record_bytes, offsets, m.d, m.n, false);
    const Operand x = operand(false, b.h, m.d, from.ffn_norm_D, m.d, form, in.count);
    for (int64_t k = 0; k < from.n_resident; k += b.piece_rows)
        neurons(from.records + k * m.record_bytes, std::min(b.piece_rows, from.n_resident - k),
                from.ids_N + k, allowed, x, in.count);
    for (; at_ < static_cast<int64_t>(pieces_.size()) && pieces_[at_].layer == layer; at_++) {
        const Piece &piece = pieces_[at_];
        const int slot = static_cast<int>(at_ % STREAM_SLOTS);
        check(cudaStreamWaitEvent(launch_.stream, ready_[slot], 0), "stream");
        neurons(b.slots[slot], piece.n, from.ids_N + from.n_resident + piece.begin, allowed, x,
                in.count);
        check(cudaEventRecord(free_[slot], launch_.stream), "event");
        if (poisoned())
            return;
        feed(at_ + STREAM_SLOTS - 1);
    }
}

// Logits of the last row, or of every row where the request wants them, by the decode kernel.
void Prompt::head(const hc_device_prompt &in, float *logits_host) {
    const hc_model &m = *args_.model;
    const Buffers &b = model_.buffers;
    const int32_t first = in.logits_PV ? 0 : in.count - 1, step = in.logits_PV ? model_.bucket : 1;
    for (int32_t t = first; (in.logits_PV || in.head) && t < in.count; t += step) {
        const int32_t n = std::min(step, in.count - t);
        Gemv g = {};
        g.w = b.head, g.dtype = m.dtype, g.stride = m.d * bytes_of(m.dtype);
        g.rows = static_cast<int32_t>(m.vocab), g.d = static_cast<int32_t>(m.d);
        g.x = model_.prompt.h + t * m.d, g.x_stride = m.d, g.y = b.logits, g.y_stride = m.vocab;
        g.norm_D = b.final_norm_D, g.eps = m.norm_eps, g.pass = b.pass;
        gemv(g, bucket_of(n), launch_);
        float *to = in.logits_PV ? in.logits_PV + t * m.vocab : logits_host;
        check(cudaMemcpyAsync(to, b.logits, n * m.vocab * sizeof(float), cudaMemcpyDeviceToHost,
                              launch_.stream),
              "reading logits");
    }
    check(cudaStreamSynchronize(launch_.stream), "the prompt failed on the device");
    if (in.logits_PV)
        std::memcpy(logits_host, in.logits_PV + (in.count - 1) * m.vocab, m.vocab * sizeof(float));
}

hc_status Prompt::run(const hc_device_prompt &in, float *logits_host, hc_device_report &report) {
    const hc_model &m = *args_.model;
    const int64_t begin = now_ns();
    const PromptBuffers &b = model_.prompt;
    check(cudaMemsetAsync(b.fired, 0, sizeof *b.fired, launch_.stream), "counter");
    embed(in);
    at_ = 0;
    const Awake awake(streamer_.get());
    if (streamer_) {
        for (int64_t i = 0; i + 1 < STREAM_SLOTS; i++)
            feed(i);
    }
    for (int layer = 0; layer < m.n_layers && !poisoned(); layer++) {
        attend(layer, in);
        feed_forward(layer, in);
    }
    unsigned long long fired = 0;
    check(cudaMemcpyAsync(&fired, b.fired, sizeof fired, cudaMemcpyDeviceToHost, launch_.stream),
          "counter");
    check(cudaStreamSynchronize(launch_.stream), "the prompt failed on the device");
    if (streamer_)
        streamer_->drain();
    if (poisoned())
        return HC_ERR_POISONED;
    head(in, logits_host);
    std::memset(&report, 0, sizeof report);
    report.gate_rows = m.n_layers * m.n * in.count;
    report.up_down_rows = static_cast<int64_t>(fired);
    report.pass_ns = now_ns() - begin;
    report.allocated_bytes = model_.bytes, report.pinned_bytes = model_.pinned;
    const int64_t q_dim = m.heads * m.head_dim, kv_dim = m.kv_heads * m.head_dim;
    report.bytes =
        m.n_layers * (m.n * m.record_bytes + (2 * q_dim + 2 * kv_dim) * m.d * bytes_of(m.dtype));
    for (int l = 0; l < m.n_layers; l++)
        if (plan_[l].predicted_at >= 0)
            report.bytes +=
                (m.d + m.n) * device_.predictors_L[l].hidden * bytes_of(model_.dtype_of(l));
    return HC_OK;
}

} // namespace hotcold
