// host.h - what the host side of a pass shares: the watch over a graph in flight.
#ifndef HOTCOLD_CUDA_HOST_H
#define HOTCOLD_CUDA_HOST_H
#include "cuda/memory/owned.h"

namespace hotcold {

// Until the pass is done; returns when that was seen. look() is called every 50 us. Throws when the
// device fails, or does not drain after poison.
// The host spins on a pinned word: a pass takes milliseconds, and each query of an event or a
// stream costs microseconds in the driver. look() is there because the device cannot wake futexes.
// The query every 2 ms finds a kernel that faulted, which never sets `done`. After poison the
// device has 1.5 s to end its waits: kernels look at `abort` (merge.cu, mailbox.cu).
// host: pinned words of the graph in flight; done: the last pass that ended; abort: not 0 ends all
// waits.
template <class Host, class Look>
int64_t watch(const hc_segment &segment, cudaStream_t stream, Host &host, uint32_t seq,
              Look look_around) {
    constexpr int64_t LOOK_NS = 50000, QUERY_NS = 2000000, DRAIN_NS = 1500000000;
    int64_t look = now_ns(), query = look, poisoned = 0;
    // Acquire: the report and the logits, written before `done` (pass.cu), are there.
    while (__atomic_load_n(&host.done, __ATOMIC_ACQUIRE) != seq) {
        for (int i = 0; i < 20; i++)
            __builtin_ia32_pause();
        const int64_t now = now_ns();
        if (now - look > LOOK_NS) {
            look = now;
            look_around();
            if (!poisoned && __atomic_load_n(&segment.poison, __ATOMIC_ACQUIRE)) {
                poisoned = now;
                // Never cleared: poison is final.
                __atomic_store_n(&host.abort, 1u, __ATOMIC_SEQ_CST);
            }
        }
        if (now - query > QUERY_NS) {
            query = now;
            const cudaError_t error = cudaStreamQuery(stream);
            if (error != cudaSuccess && error != cudaErrorNotReady)
                check(error, "the pass failed on the device");
        }
        if (poisoned && now - poisoned > DRAIN_NS)
            throw Failure(HC_ERR_SYSTEM, "the device did not end its pass after the exchange was "
                                         "poisoned");
    }
    return now_ns();
}

} // namespace hotcold
#endif
