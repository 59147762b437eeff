// prompt.cu - many prompt tokens in one pass over the whole model, cold weights streamed through.
//
// The sparse form reads a block of 32 tokens' neurons on the host, block after block; a long prompt
// is better served by one dense pass on the device. Records that are not on the device come through
// HC_STREAM_SLOTS buffers: while one piece is computed the next ones are copied, across the borders of
// layers, so that attention and predictors run while the bus goes on. The CPU executor takes no part
// and no sequence number is spent.
//
// Same masks, same tokens: where a layer is predicted, the predictor's proposals of each token mask
// the dense products, so the result is that of the sparse form, not of the dense model; without a
// prediction it is the dense model, as in the sparse form.
//
// 13B, 10 GiB, 512 tokens: 15 GB over the bus, 27 TFLOP beside it. The operators in their order are
// in prompt_layer.cu.
#include "cuda/prompt/prompt.h"

#include <algorithm>

namespace hotcold {

Prompt::Prompt(const hc_executor_args &args, const hc_device_args &device,
               const std::vector<hc_device_layer> &plan, Model &model, const Launch &launch)
    : args_(args), device_(device), plan_(plan), model_(model), launch_(launch),
      rows_(device.prompt_rows * (args.model->embed_dim + args.model->d) *
                bytes_of(args.model->dtype),
            false) {
    reads_.add(args.steps, args.n_steps);
    launch_.overlap = false; // these kernels do not wait for their forerunners by themselves
    const hc_model &m = *args.model;
    const int64_t rows = model.prompt.piece_rows;
    int64_t longest = 0; // record
    // Streamed neurons in the order of use; piece i goes through slot i % HC_STREAM_SLOTS.
    for (int l = 0; l < m.n_layers; l++) {
        const hc_layout_layer &layer = model.shape.layers[l];
        const int64_t own = layer.record_bytes ? layer.owned - layer.resident : 0;
        const int64_t n = static_cast<int64_t>(model.streamed[l].size());
        for (int64_t at = 0, end; at < n; at = end) { // of one format each
            end = std::min(at + rows, at < own ? own : n);
            pieces_.push_back({l, at, end - at, at < own});
            longest = std::max(longest, at < own ? layer.record_bytes : m.record.bytes);
        }
    }
    if (!pieces_.empty())
        streamer_ = std::make_unique<Streamer>(longest);
}

// Another actor, or the supervisor, may set it at any time: acquire, as in exchange.c.
bool Prompt::poisoned() const {
    return __atomic_load_n(&args_.segment->poison, __ATOMIC_ACQUIRE) != 0;
}

// This actor's counter has one writer, the loop thread: a load and a store are enough. The
// supervisor compares it with what it was a deadline ago.
void Prompt::progress() const {
    uint64_t *count = &args_.segment->actor[args_.actor].progress;
    __atomic_store_n(count, *count + 1, __ATOMIC_RELAXED);
}

// Gathers a piece on the host and starts its copy. Takes as long as the gathering does.
void Prompt::feed(int64_t index) {
    if (index >= static_cast<int64_t>(pieces_.size()))
        return;
    const Piece &piece = pieces_[index];
    const int slot = static_cast<int>(index % HC_STREAM_SLOTS);
    const hc_model &m = *args_.model;
    const void *records =
        piece.own ? records_of(args_, piece.layer) : m.layers[piece.layer].records;
    streamer_->feed(model_.prompt.slots[slot], static_cast<const char *>(records),
                    (piece.own ? record_of(args_, piece.layer) : m.record).bytes,
                    model_.streamed[piece.layer].data() + piece.begin, piece.n, free_[slot],
                    ready_[slot]);
    progress();
}

hc_status Prompt::run(const hc_device_prompt &in, float *logits_host, hc_device_report &report) {
    const hc_model &m = *args_.model;
    const int64_t begin = now_ns();
    const PromptBuffers &b = model_.prompt;
    check(cudaMemsetAsync(b.fired, 0, sizeof *b.fired, launch_.stream), "counter");
    embed(in);
    at_ = 0;
    // The copying threads, for the length of the pass.
    auto sleep = [](Streamer *streamer) { streamer->wake(false); };
    const std::unique_ptr<Streamer, decltype(sleep)> awake(streamer_.get(), sleep);
    if (awake)
        awake->wake(true);
    // One slot less than there are: feed_forward() fills the last one when it has enqueued the first
    // piece. From then on a copy waits for the piece before the newest one, which the device has most
    // likely finished.
    for (int64_t i = 0; i + 1 < HC_STREAM_SLOTS; i++)
        feed(i);
    for (int index = 0; index < m.n_layers && !poisoned(); index++) {
        // two layers are enqueued at most, so that progress is the device's and not the host's
        check(cudaEventSynchronize(layer_[index % 2]), "the prompt failed on the device");
        progress();
        layer(index, in);
        check(cudaEventRecord(layer_[index % 2], launch_.stream), "event");
    }
    // Everything that was enqueued ends, poisoned or not: the buffers are reused by the next pass.
    unsigned long long fired = 0;
    check(cudaMemcpyAsync(&fired, b.fired, sizeof fired, cudaMemcpyDeviceToHost, launch_.stream),
          "counter");
    check(cudaStreamSynchronize(launch_.stream), "the prompt failed on the device");
    if (streamer_)
        streamer_->drain();
    if (poisoned())
        return HC_ERR_POISONED;
    head(in, logits_host);
    report = {};
    report.gate_rows = m.n_layers * m.n * in.count;
    report.up_down_rows = static_cast<int64_t>(fired);
    report.pass_ns = now_ns() - begin;
    report.allocated_bytes = model_.bytes, report.pinned_bytes = model_.pinned;
    // As if weights, keys and values were read once; records, resident or streamed, whole.
    report.bytes = reads_.embed + reads_.fixed;
    for (int l = 0; l < m.n_layers; l++) {
        const int64_t owned = args_.owned_L[l].n_ids;
        report.bytes += owned * record_of(args_, l).bytes + (m.n - owned) * m.record.bytes;
    }
    report.bytes +=
        hc_attended_in(m.window, in.count, in.position + in.count - 1) * reads_.position;
    report.bytes += in.head || in.logits_PV ? reads_.head : 0;
    return HC_OK;
}

} // namespace hotcold
