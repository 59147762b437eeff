// rates.cu - what a node of a captured graph and an exchange take by themselves, for bounds.
//
// No kernel of a pass takes part in the first: a chain of kernels of one warp that do nothing, as
// long as a graph is, against one half as long. The second is the product's own two ends, a norm
// that sends its row out and a merge that waits and adds, against the same graph without an
// exchange; a host thread answers every flag at once and looks at no x. So faster kernels of a pass
// move neither, and a bound made of them does not come closer when a pass gets slower.
//
// Words that the two sides write lie 128 bytes apart, a line of the GPU's L2 and two of the host's:
// neither side's poll takes the other's line away.
#include "cuda/kernels/common.cuh"
#include "cuda/operate/operate.h"

#include <atomic>
#include <thread>

namespace hotcold {
namespace v1 {

__global__ void nothing_kernel(const int) {
    launch_next();
    wait_prior();
}

// A new pass number, so that flags of the last pass do not match.
__global__ void advance_kernel(PassState *const pass) {
    launch_next();
    wait_prior();
    pass->seq += 1;
}

} // namespace v1

namespace {

constexpr int WARM = 5;

struct Words { // a cache line each
    alignas(128) uint32_t x_flag;
    alignas(128) uint32_t y_flag;
};

// Median seconds of a launch.
float launch_s(const Graph &graph, const Stream &stream, int rounds) {
    const auto launch = [&] { check(cudaGraphLaunch(graph, stream), "launching a graph"); };
    return median_s(stream, std::max(rounds, 1), launch, WARM);
}

// The host's side: every flag of x is answered with one of y, pass after pass.
class Peer {
  public:
    Peer(Words *words, int layers, uint32_t *abort)
        : abort_(abort), thread_(&Peer::answer, this, words, layers) {}
    ~Peer() { // a graph that still waits, because something failed, is let go
        __atomic_store_n(abort_, 1u, __ATOMIC_SEQ_CST);
        stop_ = true;
        thread_.join();
    }
    Peer(const Peer &) = delete;

  private:
    // Spins without a pause: the fastest peer there can be, so that what is left is the exchange
    // itself.
    void answer(Words *words, int layers) {
        for (uint32_t seq = 1;; seq++)
            for (int l = 0; l < layers; l++) {
                while (__atomic_load_n(&words[l].x_flag, __ATOMIC_ACQUIRE) != seq)
                    if (stop_)
                        return;
                __atomic_store_n(&words[l].y_flag, seq, __ATOMIC_RELEASE);
            }
    }
    uint32_t *abort_;
    std::atomic<bool> stop_{false};
    std::thread thread_; // last: it begins when all else is there
};

struct Ends { // of the exchanges of a graph, on the device
    PassState *pass;
    float *h, *normed, *weight_D, *x_host;
    const float *y_host;
    Words *words; // NULL: there is no exchange
    uint32_t *abort, *relay;
    int32_t *skipped;
    int64_t d;
};

// A pass of layers that are a norm and a merge.
// Each layer: norm -> x to the host, x_flag | wait for y_flag, h += y. Without an exchange the same
// kernels with the pointers NULL.
void capture(const Ends &e, int layers, const Launch &launch) {
    enqueue<PassState *>(v1::advance_kernel, dim3(1), 1, 0, launch, e.pass);
    for (int l = 0; l < layers; l++) {
        Norm n = {};
        n.x = e.h, n.weight_D = e.weight_D, n.y = e.normed, n.d = e.d, n.eps = 1e-5f;
        n.kind = HC_NORM_RMS, n.pass = e.pass;
        Merge m = {};
        m.h = e.h, m.d = static_cast<int32_t>(e.d), m.bucket = 1, m.pass = e.pass;
        m.skipped = e.skipped;
        if (e.words) {
            n.y_host = e.x_host + l * e.d;
            n.to.x_flag = &e.words[l].x_flag;
            m.from.y_flag = &e.words[l].y_flag, m.from.y = e.y_host + l * e.d;
            // Relays a line apart, as in Model.
            m.from.abort = e.abort, m.from.relay = e.relay + l * 32;
        }
        norm(n, 1, launch);
        merge(m, launch);
    }
}

} // namespace

// copies: nodes of the chain.
// The difference of two lengths: launch and events, which both have, cancel.
void rate_of_gaps(const hc_device_op &op) {
    const Stream stream;
    const Launch launch = launch_on(stream, op.index, true, nullptr);
    const auto chain = [&](int nodes) {
        const Graph graph = captured(stream, [&] {
            for (int i = 0; i < nodes; i++)
                enqueue<int>(v1::nothing_kernel, dim3(1), WARP, 0, launch, 0);
        });
        return launch_s(graph, stream, op.repeat);
    };
    const int half = std::max(op.copies / 2, 1);
    const float longer = chain(2 * half);
    *op.seconds = std::max(longer - chain(half), 0.0f) / static_cast<float>(half);
}

// copies: layers of the graph; gemv->d: elements of a row.
void rate_of_exchange(const hc_device_op &op) {
    const int layers = std::max(op.copies, 1);
    const int64_t d = op.gemv->d;
    const Pinned<Words> words(layers);
    const Pinned<float> x(layers * d), y(layers * d);
    const Pinned<uint32_t> abort(1);
    // One for either graph: both start from seq 0, as the flags do.
    const DeviceMemory<PassState> passes(2);
    const DeviceMemory<float> rows(3 * d);
    const DeviceMemory<uint32_t> relay(layers * 32);
    const DeviceMemory<int32_t> skipped(1);
    PassState state = {};
    state.batch = 1;
    for (int i = 0; i < 2; i++)
        check(cudaMemcpy(passes.get() + i, &state, sizeof state, cudaMemcpyHostToDevice), "pass");
    settle();
    Ends ends = {
        passes.get(), rows.get(),     rows.get() + d, rows.get() + 2 * d, x.mapped(), y.mapped(),
        nullptr,      abort.mapped(), relay.get(),    skipped.get(),      d};
    const Stream stream;
    const Launch launch = launch_on(stream, op.index, true, nullptr);
    const Graph without = captured(stream, [&] { capture(ends, layers, launch); });
    ends.pass++, ends.words = words.mapped();
    const Graph with = captured(stream, [&] { capture(ends, layers, launch); });
    const float alone_s = launch_s(without, stream, op.repeat);
    // Last, so its destructor is the first: a graph that still waits is let go before the stream is
    // synchronised and the memory goes.
    const Peer peer(words.get(), layers, abort.get());
    const float both_s = launch_s(with, stream, op.repeat);
    *op.seconds = std::max(both_s - alone_s, 0.0f) / static_cast<float>(layers);
}

} // namespace hotcold
