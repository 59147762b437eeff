// remote_predictor.cu - the predictor's own process on the GPU: one graph a pass, from question to question.
//
//   take the pass in | wait for the question of a layer | fc1 | fc2 and threshold into the mailbox
//   | answer, wait for the next question | ... | answer, report to the host
// The kernels are predictor.cu's, the order of the layers is the executor's (asking_order). Memory:
// the predictor's matrices, scratch and norms are this process's; the mailbox is the executor's and
// mapped here (cudaIpc), or used by its address where both are threads of one process.
//
// Wait and signal are turn_kernel (mailbox.cu): it stores answer words with release and polls ask
// words with acquire, both of system scope, since the peer is another process.
#include "cuda/executor/host.h"
#include "cuda/executor/remote_predictor.h"
#include "cuda/memory/upload.h"

#include <unistd.h>

namespace hotcold {

PredictorProcess::PredictorProcess(const hc_executor_args &args, const hc_device_args &device,
                                   const hc_device_layer *layers_L)
    : args_(args), device_(on_device(device)), order_(asking_order(layers_L, args.model->n_layers)),
      shape_(args_, device_, layers_L), bucket_(hc_bucket_of(args.max_batch)),
      layers_(args.model->n_layers),
      launch_(launch_on(stream_, device.index, device.launch_overlap != 0, device.variant)),
      host_(1) {
    hc_layout_bytes need;
    hc_layout_predictor(&shape_, &need);
    bytes_ = need.device, pinned_ = need.host;
    if (device_.vram_bytes > 0 && bytes_ > device_.vram_bytes)
        throw Failure(HC_ERR_BUDGET, "the predictor does not fit its part of the GPU memory budget",
                      bytes_, device_.vram_bytes);
    open_mailbox();
    memory_ = DeviceMemory<char>(bytes_);
    if (pinned_)
        parts_ = Pinned<char>(pinned_);
    hc_arena arena = {memory_.get(), 0, 0}, host = {parts_.mapped(), 0, 0};
    to_.layers_L = layers_.data();
    hc_lay_out_remote(&shape_, &arena, &host, &to_);
    const hc_model &m = *args_.model;
    reads_.add(device_.predict_steps, device_.n_predict_steps);
    for (const Asked &asked : order_) {
        const hc_predictor_layer &from = device_.predictors_L[asked.layer];
        Predictor &to = layers_[asked.layer];
        upload_predictor(m, from, device_.predictor_i8, to);
        if (!to.norm_D)
            continue;
        Uploader up;
        up.copy(to.norm_D, norm_weight(m.layers[asked.layer], *hc_input_norm(&m)), m.d * 4);
        up.finish();
    }
    graphs_.capture(stream_, bucket_, [&](int32_t bucket) { capture(bucket); });
    check(cudaStreamSynchronize(stream_), "graphs");
}

// An IPC handle cannot be opened by the process that made it: threads of one process use the
// address.
void PredictorProcess::open_mailbox() {
    const hc_mailbox &from = device_.mailbox;
    char *base = reinterpret_cast<char *>(from.address);
    if (from.pid != getpid()) {
        cudaIpcMemHandle_t handle;
        std::memcpy(&handle, from.handle, sizeof handle);
        void *opened = nullptr;
        check(cudaIpcOpenMemHandle(&opened, handle, cudaIpcMemLazyEnablePeerAccess),
              "mapping the GPU executor's memory");
        mapped_ = decltype(mapped_)(opened);
        base = static_cast<char *>(opened);
    }
    hc_lay_out_mailbox(&shape_, base, &mailbox_);
}

// Proposals go straight into the mailbox. A turn between two layers both answers the one and waits
// for the other: n + 1 turns for n layers.
void PredictorProcess::capture(int32_t bucket) {
    Turn t = {};
    t.host = host_.mapped(), t.pass = to_.pass, t.times = to_.times;
    Prediction p = {};
    p.model = args_.model, p.pass = to_.pass;
    p.hidden = to_.hidden, p.planes_BPW = to_.planes_BPW, p.step_B = to_.step_B;
    for (const Asked &asked : order_) {
        t.ask = mailbox_.ask(asked.layer);
        turn(t, launch_);
        p.shape = &device_.predictors_L[asked.layer], p.weights = &layers_[asked.layer];
        p.input = mailbox_.input(asked.layer), p.norm_D = p.weights->norm_D;
        p.members_N = mailbox_.members_LN + asked.layer * args_.model->n;
        predict(p, bucket, launch_);
        t.answer = mailbox_.answer(asked.layer);
    }
    t.ask = nullptr;
    turn(t, launch_);
}

// The host has seen the pass's flag; the graph then waits for the first question by itself.
hc_status PredictorProcess::pass(uint32_t seq, int32_t batch, hc_device_report &report) {
    on_device(device_);
    host_->seq = seq, host_->batch = batch;
    graphs_.launch(batch);
    watch(*args_.segment, stream_, *host_.get(), seq, [] {});
    if (host_->failed)
        return HC_ERR_POISONED;
    report = {};
    report.pass_ns = static_cast<int64_t>(host_->times.busy + host_->times.waited);
    report.asks = static_cast<int64_t>(order_.size());
    report.asked_ns = static_cast<int64_t>(host_->times.busy);
    report.bytes = reads_.fixed;
    report.allocated_bytes = bytes_, report.pinned_bytes = pinned_;
    return HC_OK;
}

} // namespace hotcold
