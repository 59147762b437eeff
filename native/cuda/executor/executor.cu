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

// A constructor that throws runs no destructor: what start() had made is given back here.
Executor::Executor(const hc_executor_args &args, const hc_device_args &device,
                   const hc_device_layer *layers_L)
    : args_(args), device_(device), plan_(layers_L, layers_L + args.model->n_layers) {
    try {
        start();
    } catch (...) {
        release();
        throw;
    }
}

// Order: memory before graphs, which hold its addresses; the segment is registered before they hold
// its mapped ones.
void Executor::start() {
    check(cudaSetDevice(device_.index), "CUDA device");
    model_ = std::make_unique<Model>(args_, device_, plan_.data());
    check(cudaStreamCreateWithFlags(&launch_.stream, cudaStreamNonBlocking), "stream");
    launch_.overlap = device_.launch_overlap != 0;
    launch_.variant = open_variant(device_.variant);
    check(cudaDeviceGetAttribute(&launch_.sms, cudaDevAttrMultiProcessorCount, device_.index),
          "CUDA device");
    for (size_t i = 0; i < plan_.size(); i++) {
        predicted_ |= plan_[i].predicted_at >= 0;
        plan_[i].has_hot = args_.owned_L[i].n_ids > 0; // those read over the bus too
    }
    shown_ = plan_;
    for (size_t i = 0; device_.remote_predictor && i < shown_.size(); i++)
        if (shown_[i].predicted_at >= 0) // what of a prediction takes time here is its own layer's
            shown_[i].predicted_at = static_cast<int32_t>(i);
    // Room for the largest bucket; passes of fewer tokens use the front.
    pin(&host_, &host_mapped_, 1);
    pin(&embedded_, &embedded_mapped_, model_->bucket * args_.model->d);
    pin(&logits_host_, &logits_mapped_, model_->bucket * args_.model->vocab);
    pin(&stamps_host_, &stamps_mapped_, (plan_.size() + 1) * STAMPS);
    clock_.calibrate(launch_.stream);
    register_segment();
    graphs_.capture(launch_.stream, model_->bucket, [&](int32_t bucket) { capture(bucket); });
    if (device_.prompt_rows)
        prompt_ = std::make_unique<Prompt>(args_, device_, plan_, *model_, launch_);
    if (device_.remote_predictor)
        share();
    check(cudaStreamSynchronize(launch_.stream), "graphs");
}

Executor::~Executor() {
    release();
}

// Nothing runs any more before anything is freed. Safe on a half-built object: null pointers are no
// error to cudaFreeHost.
void Executor::release() {
    if (launch_.stream)
        cudaStreamSynchronize(launch_.stream);
    prompt_.reset();
    graphs_.clear();
    if (segment_)
        cudaHostUnregister(args_.segment);
    cudaFreeHost(host_);
    cudaFreeHost(embedded_);
    cudaFreeHost(logits_host_);
    cudaFreeHost(stamps_host_);
    if (launch_.stream)
        cudaStreamDestroy(launch_.stream);
}

// The whole segment, pinned and mapped: kernels read and write flags and payloads in place. Pinned
// pages can no longer be collapsed to huge ones: whoever wants those has done it before.
void Executor::register_segment() {
    check(cudaHostRegister(args_.segment, args_.segment->bytes,
                           cudaHostRegisterMapped | cudaHostRegisterPortable),
          "registering the exchange segment");
    void *mapped = nullptr;
    const cudaError_t error = cudaHostGetDevicePointer(&mapped, args_.segment, 0);
    if (error != cudaSuccess)
        cudaHostUnregister(args_.segment);
    check(error, "mapping the exchange segment");
    segment_ = static_cast<char *>(mapped);
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
// pass, by arithmetic on what was counted.
void Executor::fill(const hc_device_pass &in, hc_device_report &report) {
    const hc_model &m = *args_.model;
    const int64_t e = bytes_of(m.dtype), row = m.d * e, rest = m.up_offset < 0 ? 1 : 2;
    const int64_t q_dim = m.heads * m.head_dim, kv_dim = m.kv_heads * m.head_dim;
    std::memset(&report, 0, sizeof report);
    report.gate_rows = host_->counters[0];
    report.up_down_rows = host_->counters[1];
    report.skipped_exchanges = host_->counters[2];
    report.cold_neurons = host_->counters[3];
    report.audit_rows = host_->counters[4];
    report.audit_missed = host_->counters[5];
    report.pass_ns = stamps_host_[AT_END] - stamps_host_[AT_BEGIN];
    report.clock_error_ns = clock_.error_ns();
    report.n_spans = read_timeline(stamps_host_, shown_, clock_, in.seq, in.spans, report.phase_ns);
    report.bytes = m.n_layers * (2 * q_dim + 2 * kv_dim) * row;
    report.bytes +=
        // Keys and values of the longest row, once for the batch.
        (in.position_B[in.batch - 1] + 1) * kv_dim * m.n_layers * (device_.kv_f16 ? 4 : 8);
    report.bytes += in.head_rows ? m.vocab * m.embed_dim * e : 0;
    for (int l = 0; l < m.n_layers; l++)
        if (plan_[l].predicted_at >= 0 && !device_.remote_predictor)
            report.bytes += predictor_read_bytes(m, device_.predictors_L[l], model_->dtype_of(l));
        else if (plan_[l].predicted_at >= 0) {
            const uint64_t *stamps = stamps_host_ + (l + 1) * STAMPS;
            report.asks++;
            report.asked_ns += static_cast<int64_t>(stamps[AT_ANSWERED] - stamps[AT_ASKED]);
        }
    /* a batch reads a row once for all its tokens: tokens that share a neuron are not told apart */
    report.bytes += (report.gate_rows + rest * (report.up_down_rows + report.audit_rows)) * row;
    report.allocated_bytes = model_->bytes;
    report.pinned_bytes = model_->pinned;
}

// embedded_ and host_ are free to be written: the last pass set `done` after it had read them.
hc_status Executor::pass(const hc_device_pass &in, hc_device_report &report) {
    const hc_model &m = *args_.model;
    check(cudaSetDevice(device_.index), "CUDA device");
    std::memcpy(embedded_, in.embedded_BD, in.batch * m.d * sizeof(float));
    std::copy(in.position_B, in.position_B + in.batch, host_->position_B);
    // The device uses seq, batch and head_rows of it; the pointers in it are the host's.
    host_->in = in;
    const int64_t launched_ns = now_ns();
    // From here on the device reads embedded_ and host_; they are not touched until it is done.
    graphs_.launch(in.batch, launch_.stream);
    const int64_t done_ns = watch({args_.segment, launch_.stream, &host_->done, &host_->abort},
                                  in.seq, [&] { ring(in.seq); });
    if (host_->failed)
        return HC_ERR_POISONED;
    clock_.narrow(launched_ns, stamps_host_[AT_BEGIN], stamps_host_[AT_END], done_ns);
    fill(in, report);
    // All layers' words lie side by side (Model::lay_out). The stream is idle: `done` was its last
    // write.
    if (in.members_LN)
        check(cudaMemcpy(in.members_LN, model_->layers[0].members_N, m.n_layers * m.n * 4,
                         cudaMemcpyDeviceToHost),
              "reading the proposals");
    return HC_OK;
}

hc_status Executor::prompt(const hc_device_prompt &in, hc_device_report &report) {
    if (!prompt_)
        throw Failure(HC_ERR_SYSTEM, "this executor was made without a dense prompt form");
    check(cudaSetDevice(device_.index), "CUDA device");
    return prompt_->run(in, logits_host_, report);
}

} // namespace hotcold
