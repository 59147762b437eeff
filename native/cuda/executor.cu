// executor.cu - one pass of the whole model as one CUDA graph launch.
//
// A graph for each batch bucket, captured once. A layer is, in order (predicted, with cold neurons):
//   qkv (norm folded in) | attention | o + residual | fc1 (+ x to both devices) | fc2 and threshold
//   | split, cold list and flags to the host | gate and up | down | wait for the cold sum, merge
// The host thread that launched it watches: it ends the pass's waits when the exchange is poisoned
// and wakes peers that fell asleep on a flag, which the device cannot.
#include "model.h"

#include <algorithm>
#include <cstring>
#include <linux/futex.h>
#include <memory>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace hotcold {
namespace {

constexpr int BUCKETS = 6; // 1, 2, 4, 8, 16, 32
constexpr int64_t LOOK_NS = 50000, QUERY_NS = 2000000, DRAIN_NS = 1500000000;

int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

class Executor {
  public:
    Executor(const hc_executor_args &args, const hc_device_args &device,
             const hc_device_layer *layers_L);
    ~Executor();
    hc_status pass(const hc_device_pass &in, hc_device_report &report);
    float *logits() {
        return logits_host_;
    }

  private:
    void register_segment();
    void capture(int index);
    void record(int32_t bucket);
    void record_attention(int layer, int32_t bucket);
    void record_prediction(int layer, int at, bool carries_norm, int32_t bucket);
    void record_ffn(int layer, int32_t bucket);
    void record_head(int32_t bucket);
    Exchange exchange(int layer) const;
    uint32_t *flag(int32_t index) const;
    void watch(uint32_t seq);
    void ring(uint32_t seq);
    void fill(const hc_device_pass &in, hc_device_report &report);
    Gemv dense(const void *w, int64_t rows, int64_t d, const float *x, float *y) const;

    hc_executor_args args_;
    hc_device_args device_;
    std::vector<hc_device_layer> plan_;
    std::unique_ptr<Model> model_;
    Launch launch_ = {};
    PassHost *host_ = nullptr, *host_mapped_ = nullptr;
    float *embedded_ = nullptr, *embedded_mapped_ = nullptr;
    float *logits_host_ = nullptr, *logits_mapped_ = nullptr;
    char *segment_ = nullptr; // as the device sees it
    bool predicted_ = false;
    cudaGraphExec_t graph_[BUCKETS] = {};
};

template <class T> void pin(T **host, T **mapped, size_t count) {
    check(cudaHostAlloc(reinterpret_cast<void **>(host), count * sizeof(T), cudaHostAllocMapped),
          "pinned memory");
    std::memset(static_cast<void *>(*host), 0, count * sizeof(T));
    check(cudaHostGetDevicePointer(reinterpret_cast<void **>(mapped), *host, 0), "pinned memory");
}

Executor::Executor(const hc_executor_args &args, const hc_device_args &device,
                   const hc_device_layer *layers_L)
    : args_(args), device_(device), plan_(layers_L, layers_L + args.model->n_layers) {
    check(cudaSetDevice(device.index), "CUDA device");
    model_ = std::make_unique<Model>(args_, device_, plan_.data());
    check(cudaStreamCreateWithFlags(&launch_.stream, cudaStreamNonBlocking), "stream");
    launch_.overlap = device.launch_overlap != 0;
    check(cudaDeviceGetAttribute(&launch_.sms, cudaDevAttrMultiProcessorCount, device.index),
          "CUDA device");
    for (size_t i = 0; i < plan_.size(); i++) {
        predicted_ |= plan_[i].predicted_at >= 0;
        plan_[i].has_hot = args_.shares_L[i].n_ids > 0; // those read over the bus too
    }
    pin(&host_, &host_mapped_, 1);
    pin(&embedded_, &embedded_mapped_, model_->bucket * args.model->d);
    pin(&logits_host_, &logits_mapped_, model_->bucket * args.model->vocab);
    register_segment();
    for (int i = 0; 1 << i <= model_->bucket; i++)
        capture(i);
    check(cudaStreamSynchronize(launch_.stream), "graphs");
}

Executor::~Executor() {
    if (launch_.stream)
        cudaStreamSynchronize(launch_.stream);
    for (cudaGraphExec_t graph : graph_)
        if (graph)
            cudaGraphExecDestroy(graph);
    if (segment_)
        cudaHostUnregister(args_.segment);
    cudaFreeHost(host_);
    cudaFreeHost(embedded_);
    cudaFreeHost(logits_host_);
    if (launch_.stream)
        cudaStreamDestroy(launch_.stream);
}

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
    Gemv qkv = dense(from.qkv, q_dim + 2 * kv_dim, m.d, b.h, b.qkv);
    qkv.norm_D = from.attention_norm_D;
    qkv.stamps = b.stamps + (layer + 1) * STAMPS, qkv.stamp = AT_QKV;
    gemv(qkv, bucket, launch_);
    attention(Attention{b.qkv, from.k_cache, from.v_cache, b.cos_PE, b.sin_PE, b.attended, m.heads,
                        m.kv_heads, m.head_dim, static_cast<int32_t>(m.context), device_.kv_f16,
                        b.pass},
              bucket, launch_);
    Gemv o = dense(from.o, m.d, q_dim, b.attended, b.h);
    o.epilogue = ADD;
    gemv(o, bucket, launch_);
}

// The proposals of `layer`, from the input of layer `at`; carries_norm: x of `at` goes out with it.
void Executor::record_prediction(int layer, int at, bool carries_norm, int32_t bucket) {
    const hc_model &m = *args_.model;
    const Buffers &b = model_->buffers;
    const Predictor &p = model_->layers[layer].predictor;
    const hc_predictor_layer &shape = device_.predictors_L[layer];
    Gemv fc1 = dense(p.fc1, shape.hidden, m.d, b.h, b.hidden);
    fc1.dtype = p.dtype, fc1.stride = m.d * bytes_of(p.dtype), fc1.scale_R = p.scale1_H;
    fc1.epilogue = shape.relu ? RELU : STORE;
    fc1.stamps = b.stamps + (at + 1) * STAMPS, fc1.stamp = AT_PREDICT;
    if (!shape.input) {
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
    bool normed = false;
    for (int later = layer; later < m.n_layers; later++)
        if (plan_[later].predicted_at == layer) {
            const bool carries = !normed && !device_.predictors_L[later].input;
            record_prediction(later, layer, carries, bucket);
            normed |= carries;
        }
    if (!normed) {
        float *slot = plan.has_cold ? reinterpret_cast<float *>(segment_ + plan.x) : nullptr;
        norm(Norm{b.h, from.ffn_norm_D, b.normed, slot, nullptr, m.d, m.norm_eps, b.pass, stamps},
             bucket, launch_);
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
                         b.normed,
                         hot,
                         b.partial_CBD,
                         from.fired_4C,
                         b.pass,
                         stamps};
        gate_up(ffn, bucket, launch_);
        down(ffn, bucket, launch_);
    }
    merge(Merge{b.h, plan.has_hot ? b.partial_CBD : nullptr, device_.n_chunks,
                static_cast<int32_t>(m.d), bucket, to,
                plan.predicted_at >= 0 ? from.counts_2 : nullptr, plan.selective, b.skipped, b.pass,
                stamps},
          launch_);
}

void Executor::record_head(int32_t bucket) {
    const hc_model &m = *args_.model;
    const Buffers &b = model_->buffers;
    Gemv head = dense(b.head, m.vocab, m.d, b.h, b.logits);
    head.norm_D = b.final_norm_D;
    head.when = ONE_ROW;
    head.stamps = b.stamps, head.stamp = 1;
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

// Wake peers that sleep on a flag that the device has set meanwhile.
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

// Until the pass is done; throws when the device fails or does not drain after poison.
void Executor::watch(uint32_t seq) {
    int64_t look = now_ns(), query = look, poisoned = 0;
    while (__atomic_load_n(&host_->done, __ATOMIC_ACQUIRE) != seq) {
        for (int i = 0; i < 20; i++)
            __builtin_ia32_pause();
        const int64_t now = now_ns();
        if (now - look > LOOK_NS) {
            look = now;
            ring(seq);
            if (!poisoned && __atomic_load_n(&args_.segment->poison, __ATOMIC_ACQUIRE)) {
                poisoned = now;
                __atomic_store_n(&host_->abort, 1u, __ATOMIC_SEQ_CST);
            }
        }
        if (now - query > QUERY_NS) {
            query = now;
            const cudaError_t error = cudaStreamQuery(launch_.stream);
            if (error != cudaSuccess && error != cudaErrorNotReady)
                check(error, "the pass failed on the device");
        }
        if (poisoned && now - poisoned > DRAIN_NS)
            throw std::runtime_error("the device did not end its pass after the exchange was "
                                     "poisoned");
    }
}

void Executor::fill(const hc_device_pass &in, hc_device_report &report) {
    const hc_model &m = *args_.model;
    const int64_t e = bytes_of(m.dtype), row = m.d * e;
    const int64_t q_dim = m.heads * m.head_dim, kv_dim = m.kv_heads * m.head_dim;
    std::memset(&report, 0, sizeof report);
    report.gate_rows = host_->counters[0];
    report.up_down_rows = host_->counters[1];
    report.skipped_exchanges = host_->counters[2];
    report.cold_neurons = host_->counters[3];
    report.pass_ns = host_->counters[5];
    std::copy(host_->phase_ns, host_->phase_ns + HC_PHASES, report.phase_ns);
    report.bytes = m.n_layers * (2 * q_dim + 2 * kv_dim) * row;
    report.bytes +=
        (in.position_B[in.batch - 1] + 1) * kv_dim * m.n_layers * (device_.kv_f16 ? 4 : 8);
    report.bytes += in.head_rows ? m.vocab * row : 0;
    for (int l = 0; l < m.n_layers; l++)
        if (plan_[l].predicted_at >= 0)
            report.bytes +=
                (m.d + m.n) * device_.predictors_L[l].hidden * bytes_of(model_->dtype_of(l));
    /* a batch reads a row once for all its tokens: tokens that share a neuron are not told apart */
    report.bytes += (report.gate_rows + 2 * report.up_down_rows) * row;
    report.allocated_bytes = model_->bytes;
}

hc_status Executor::pass(const hc_device_pass &in, hc_device_report &report) {
    const hc_model &m = *args_.model;
    check(cudaSetDevice(device_.index), "CUDA device");
    std::memcpy(embedded_, in.embedded_BD, in.batch * m.d * sizeof(float));
    std::copy(in.position_B, in.position_B + in.batch, host_->position_B);
    host_->in = in;
    int index = 0;
    while (1 << index < in.batch)
        index++;
    check(cudaGraphLaunch(graph_[index], launch_.stream), "launching a pass");
    watch(in.seq);
    if (host_->failed)
        return HC_ERR_POISONED;
    fill(in, report);
    if (in.members_LN)
        check(cudaMemcpy(in.members_LN, model_->layers[0].members_N, m.n_layers * m.n * 4,
                         cudaMemcpyDeviceToHost),
              "reading the proposals");
    return HC_OK;
}

thread_local std::string last_error;

template <class Body> hc_status guarded(Body body) {
    try {
        return body();
    } catch (const std::exception &error) {
        last_error = error.what();
        return HC_ERR_SYSTEM;
    }
}

void *create(const hc_executor_args *args, const hc_device_args *device,
             const hc_device_layer *layers_L) {
    Executor *made = nullptr;
    guarded([&] {
        made = new Executor(*args, *device, layers_L);
        return HC_OK;
    });
    return made;
}

void destroy(void *self) {
    delete static_cast<Executor *>(self);
}

hc_status pass(void *self, const hc_device_pass *in, hc_device_report *report) {
    return guarded([&] { return static_cast<Executor *>(self)->pass(*in, *report); });
}

float *logits(void *self) {
    return static_cast<Executor *>(self)->logits();
}

const char *error() {
    return last_error.c_str();
}

} // namespace

hc_status operate(const hc_device_op &op); // operate.cu

namespace {
hc_status operate_guarded(const hc_device_op *op) {
    return guarded([&] { return hotcold::operate(*op); });
}
} // namespace

} // namespace hotcold

extern "C" const hc_device_api *hc_device_table(void) {
    static const hc_device_api table = {
        HC_DEVICE_ABI, "cuda",          hotcold::create, hotcold::destroy,
        hotcold::pass, hotcold::logits, hotcold::error,  hotcold::operate_guarded};
    return &table;
}
