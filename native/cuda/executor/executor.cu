// executor.cu - one pass of the whole model as one CUDA graph launch.
//
// The graphs are made in graph.cu. The host thread that launched it watches: it ends the pass's waits
// when the exchange is poisoned and wakes peers that fell asleep on a flag, which the device cannot.
#include "cuda/executor/executor.h"
#include "cuda/executor/host.h"

#include <algorithm>
#include <cstring>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace hotcold {

// Order: memory before graphs, which hold its addresses; the segment is registered before they hold
// its mapped ones.
Executor::Executor(const hc_executor_args &args, const hc_device_args &device,
                   const hc_device_layer *layers_L)
    : args_(args), device_(on_device(device)), plan_(layers_L, layers_L + args.model->n_layers),
      model_(args_, device_, plan_.data()),
      launch_(launch_on(stream_, device.index, device.launch_overlap != 0, device.variant)),
      host_(1), embedded_(model_.bucket * args.model->d),
      logits_host_(model_.bucket * args.model->vocab), stamps_host_((plan_.size() + 1) * STAMPS) {
    for (size_t i = 0; i < plan_.size(); i++) {
        predicted_ |= plan_[i].predicted_at >= 0;
        plan_[i].has_hot = args_.owned_L[i].n_ids > 0; // those read over the bus too
    }
    reads_.add(args_.steps, args_.n_steps);
    for (int32_t i = 0; i < args_.n_steps; i++) {
        const hc_step &step = args_.steps[i];
        shown_.push_back(step);
        // What of a remote prediction takes time here is its own layer's.
        if (device_.remote_predictor && step.layer >= 0 && step.signal >= 0 &&
            plan_[step.layer].predicted_at >= 0) {
            hc_step predict = step;
            predict.op = HC_OP_PREDICT;
            // An early one's answer is awaited before the norm with which an input step begins.
            const bool first =
                step.op == HC_OP_INPUT && plan_[step.layer].predicted_at != step.layer;
            shown_.insert(shown_.end() - first, predict);
        }
    }
    clock_.calibrate(stream_);
    // The whole segment, pinned and mapped: kernels read and write flags and payloads in place. Pinned
    // pages can no longer be collapsed to huge ones: whoever wants those has done it before.
    check(cudaHostRegister(args_.segment, args_.segment->bytes,
                           cudaHostRegisterMapped | cudaHostRegisterPortable),
          "registering the exchange segment");
    registered_ = decltype(registered_)(args_.segment);
    void *mapped = nullptr;
    check(cudaHostGetDevicePointer(&mapped, args_.segment, 0), "mapping the exchange segment");
    segment_ = static_cast<char *>(mapped);
    graphs_.capture(stream_, model_.bucket, [&](int32_t bucket) { capture(bucket); });
    if (device_.prompt_rows)
        prompt_ = std::make_unique<Prompt>(args_, device_, plan_, model_, launch_);
    if (device_.remote_predictor)
        share();
    check(cudaStreamSynchronize(stream_), "graphs");
}

// Wake peers that sleep on a flag that the device has set meanwhile.
// Pairs with park() of exchange.c: a sleeper counts itself, then looks at the value. Where this
// sees the value and no sleeper, one that counts itself later sees the value as well.
void Executor::ring(uint32_t seq) {
    hc_flag *flags = reinterpret_cast<hc_flag *>(reinterpret_cast<char *>(args_.segment) +
                                                 args_.segment->flags_offset);
    for (const hc_device_layer &layer : plan_)
        for (int32_t index : {layer.x_flag, layer.active_flag}) {
            if (index < 0 || __atomic_load_n(&flags[index].value, __ATOMIC_ACQUIRE) != seq)
                continue;
            if (__atomic_load_n(&flags[index].sleepers, __ATOMIC_SEQ_CST))
                syscall(SYS_futex, &flags[index].value, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
        }
}

// The report of the pass that just ended, from pinned memory. bytes: read by the device in this
// pass, by its steps and what was counted.
void Executor::fill(const hc_device_pass &in, hc_device_report &report) {
    const hc_model &m = *args_.model;
    const uint64_t *stamps = stamps_host_.get();
    report = {};
    report.gate_rows = host_->counters[0];
    report.up_down_rows = host_->counters[1];
    report.skipped_exchanges = host_->counters[2];
    report.cold_neurons = host_->counters[3];
    report.audit_rows = host_->counters[4];
    report.audit_missed = host_->counters[5];
    report.pass_ns = stamps[AT_END] - stamps[AT_BEGIN];
    report.clock_error_ns = clock_.error_ns();
    report.n_spans = read_timeline(stamps, shown_, clock_, in.seq, in.spans, report.phase_ns);
    report.bytes = reads_.fixed + (in.head_rows ? reads_.head : 0);
    report.bytes +=
        hc_attended_in(m.window, in.batch, in.position_B[in.batch - 1]) * reads_.position;
    /* a batch reads a row once for all its tokens: tokens that share a neuron are not told apart,
     * nor are neurons whose down column a ReLU on up leaves out; audited ones are rows of the list */
    report.bytes += (report.gate_rows + report.audit_rows) * reads_.proposed;
    report.bytes += report.up_down_rows * reads_.fired;
    for (int l = 0; l < m.n_layers && device_.remote_predictor; l++)
        if (plan_[l].predicted_at >= 0) {
            const uint64_t *own = stamps + (l + 1) * STAMPS;
            report.asks++;
            report.asked_ns += static_cast<int64_t>(own[AT_ANSWERED] - own[AT_ASKED]);
        }
    report.allocated_bytes = model_.bytes;
    report.pinned_bytes = model_.pinned;
}

// embedded_ and host_ are free to be written: the last pass set `done` after it had read them.
hc_status Executor::pass(const hc_device_pass &in, hc_device_report &report) {
    const hc_model &m = *args_.model;
    on_device(device_);
    std::memcpy(embedded_.get(), in.embedded_BD, in.batch * m.d * sizeof(float));
    std::copy(in.position_B, in.position_B + in.batch, host_->position_B);
    // The device uses seq, batch and head_rows of it; the pointers in it are the host's.
    host_->in = in;
    const int64_t launched_ns = now_ns();
    // From here on the device reads embedded_ and host_; they are not touched until it is done.
    graphs_.launch(in.batch);
    const int64_t done_ns =
        watch(*args_.segment, stream_, *host_.get(), in.seq, [&] { ring(in.seq); });
    if (host_->failed)
        return HC_ERR_POISONED;
    clock_.narrow(launched_ns, stamps_host_.get()[AT_BEGIN], stamps_host_.get()[AT_END], done_ns);
    fill(in, report);
    // All layers' words lie side by side (Model::lay_out). The stream is idle: `done` was its last
    // write.
    if (in.members_LN)
        check(cudaMemcpy(in.members_LN, model_.layers[0].members_N, m.n_layers * m.n * 4,
                         cudaMemcpyDeviceToHost),
              "reading the proposals");
    return HC_OK;
}

hc_status Executor::prompt(const hc_device_prompt &in, hc_device_report &report) {
    if (!prompt_)
        throw Failure(HC_ERR_SYSTEM, "this executor was made without a dense prompt form");
    on_device(device_);
    return prompt_->run(in, logits(), report);
}

} // namespace hotcold
