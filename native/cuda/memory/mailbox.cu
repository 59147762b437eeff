// mailbox.cu - questions and answers between two processes on one GPU; see mailbox.h.
//
// Under MPS the kernels of both run at once, so a wait is one thread that polls a word in device
// memory. Nothing may be launched early behind a wait (launch_next): blocks that only stand there
// would take the multiprocessors from the process that is waited for, and nobody would go on.
#include "cuda/kernels/common.cuh"
#include "cuda/memory/mailbox.h"

namespace hotcold {

std::vector<Asked> asking_order(const hc_device_layer *plan, int32_t n_layers) {
    std::vector<Asked> order;
    for (int32_t at = 0; at < n_layers; at++)
        for (int32_t layer = at; layer < n_layers; layer++)
            if (plan[layer].predicted_at == at)
                order.push_back({layer, at});
    return order;
}

namespace v1 {

constexpr int THREADS = 1024;
// The predictor is the more patient one: who waits for the host is the executor, and it says so.
// The abort word lies in host memory and costs ten looks at the other, so it is looked at less often.
constexpr unsigned LOOKS = 64;
constexpr uint64_t ANSWER_NS = 60ull * 1000 * 1000 * 1000, ASK_NS = 75ull * 1000 * 1000 * 1000;

// One block copies the input, at most 32 rows of D floats, so a barrier and one fence publish all
// of it. The word is the other process's sign: release of system scope, paired with await()'s
// acquire.
__global__ void __launch_bounds__(THREADS) ask_kernel(const Ask a) {
    launch_next();
    wait_prior();
    stamp(a.stamps, AT_ASKED);
    if (a.stamp >= 0)
        stamp(a.stamps, a.stamp);
    const int64_t count = a.pass->batch * a.d;
    if (a.d % 4 == 0) {
        const float4 *from = reinterpret_cast<const float4 *>(a.from);
        float4 *to = reinterpret_cast<float4 *>(a.to);
        for (int64_t i = threadIdx.x; i < count / 4; i += THREADS)
            to[i] = from[i];
    } else {
        for (int64_t i = threadIdx.x; i < count; i += THREADS)
            a.to[i] = a.from[i];
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence_system();
        store_flag(a.word, a.pass->seq);
    }
}

// One thread; without launch_next, as the file's header says. A wait that failed earlier in the
// pass makes all later ones return at once.
__global__ void await_kernel(const Await a) {
    wait_prior();
    if (a.stamp >= 0)
        stamp(a.stamps, a.stamp);
    if (!a.pass->failed && !await<LOOKS>(a.word, a.pass->seq, a.abort, ANSWER_NS))
        a.pass->failed = 1;
    stamp(a.stamps, AT_ANSWERED);
}

// First turn: the pass's number and batch out of pinned memory. Between: answer one layer, wait for
// the question of the next. Last turn: the report, then `done`. A failed pass answers nothing: the
// executor's waits end by its own abort word.
__global__ void turn_kernel(const Turn a) {
    wait_prior();
    uint64_t at = now();
    if (!a.answer) {
        a.pass->seq = load_flag(&a.host->seq);
        a.pass->batch =
            static_cast<int32_t>(load_flag(reinterpret_cast<const uint32_t *>(&a.host->batch)));
        a.pass->failed = 0;
        *a.times = {at, 0, 0};
    } else if (!a.pass->failed) {
        a.times->busy += at - a.times->since;
        // predict()'s kernels have ended (wait_prior): their proposals become visible before the
        // answer.
        __threadfence_system();
        store_flag(a.answer, a.pass->seq);
    }
    const uint32_t seq = a.pass->seq;
    if (a.ask) {
        if (!a.pass->failed && !await<LOOKS>(a.ask, seq, &a.host->abort, ASK_NS))
            a.pass->failed = 1;
        a.times->since = now();
        a.times->waited += a.times->since - at;
        return;
    }
    a.host->times = *a.times;
    a.host->failed = a.pass->failed;
    __threadfence_system();
    store_flag(&a.host->done, seq);
}

} // namespace v1

void ask(const Ask &args, const Launch &launch) {
    enqueue<Ask>(v1::ask_kernel, dim3(1), v1::THREADS, 0, launch, args);
}

void await_answer(const Await &args, const Launch &launch) {
    enqueue<Await>(v1::await_kernel, dim3(1), 1, 0, launch, args);
}

void turn(const Turn &args, const Launch &launch) {
    enqueue<Turn>(v1::turn_kernel, dim3(1), 1, 0, launch, args);
}

} // namespace hotcold
