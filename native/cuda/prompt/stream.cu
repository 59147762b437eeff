// stream.cu - gather records into pinned blocks with several threads, copy block after block.
//
// The weights lie in a memfd or a mapped file, which the device cannot read: pinning all of them
// would cost a second copy or minutes at launch. Blocks are small (8 MiB, four of them), so that
// the copying engine reads them out of the processor's cache and host memory is read once and
// written never. Threads spin between blocks, because a wake-up costs a third of a block's time; they
// sleep outside of wake(true) to wake(false).
#include "cuda/prompt/stream.h"

#include <algorithm>
#include <cstring>
#include <sched.h>

namespace hotcold {
namespace {

constexpr int64_t BLOCK_BYTES = 8 << 20;
constexpr int MOST_THREADS = 12;

// One core less than this process may use: the loop thread is one of the copiers, and the last core
// is left to the CUDA driver and the actor's control calls.
int threads_here() {
    cpu_set_t set;
    CPU_ZERO(&set);
    const int cores = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    return std::max(1, std::min(MOST_THREADS, cores - 1));
}

} // namespace

// What this constructor leaves is whole: where the other one throws, threads that have begun end by
// the destructor.
Streamer::Streamer(int64_t record_bytes, int64_t per_block)
    : block_bytes_(per_block * record_bytes) {
    for (int i = 0; i < BLOCKS; i++)
        pinned_.emplace_back(block_bytes_, false);
}

Streamer::Streamer(int64_t record_bytes)
    : Streamer(record_bytes,
               std::max<int64_t>(1, BLOCK_BYTES / std::max<int64_t>(1, record_bytes))) {
    for (int i = 1; i < threads_here(); i++) // the caller is the first
        threads_.emplace_back(&Streamer::work, this, i);
}

// Threads first: they write into the pinned blocks; then, with the stream, copies in flight, which
// read them.
Streamer::~Streamer() {
    stop_ = true;
    wake(false);
    for (std::thread &thread : threads_)
        thread.join();
}

void Streamer::wake(bool active) {
    {
        std::lock_guard<std::mutex> hold(lock_);
        active_ = active;
    }
    changed_.notify_all();
}

// Records of one contiguous part: the order in the block is the order of the ids.
void Streamer::copy_part(int index) const {
    const int64_t parts = static_cast<int64_t>(threads_.size()) + 1;
    const int64_t begin = job_n_ * index / parts, end = job_n_ * (index + 1) / parts;
    for (int64_t k = begin; k < end; k++)
        std::memcpy(job_to_ + k * job_bytes_, job_from_ + job_ids_[k] * job_bytes_, job_bytes_);
}

// Sees every job once: the caller waits for all threads before it raises job_ again.
void Streamer::work(int index) {
    uint64_t seen = 0;
    for (;;) {
        for (unsigned spins = 0; job_.load(std::memory_order_acquire) == seen; spins++) {
            // Between passes: sleep. job_ != seen covers a job that was posted just before.
            if (!active_) {
                std::unique_lock<std::mutex> hold(lock_);
                changed_.wait(hold, [&] { return active_ || stop_ || job_ != seen; });
                if (stop_)
                    return;
            }
            __builtin_ia32_pause();
            if (spins % 64 == 63)
                sched_yield();
        }
        seen++;
        copy_part(index);
        // Release: the copied bytes are there for the caller, who hands them to the copying engine.
        left_.fetch_sub(1, std::memory_order_release);
    }
}

// One job by all threads; returns when the last of them is done.
void Streamer::copy_all() {
    // Relaxed is enough: the release on job_ publishes it together with the job.
    left_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
    job_.fetch_add(1, std::memory_order_release);
    copy_part(0);
    for (unsigned spins = 0; left_.load(std::memory_order_acquire); spins++) {
        __builtin_ia32_pause();
        if (spins % 64 == 63)
            sched_yield();
    }
}

void Streamer::feed(char *target, const char *records, int64_t record_bytes, const int32_t *ids,
                    int64_t n, cudaEvent_t free, cudaEvent_t ready) {
    const int64_t per_block = block_bytes_ / record_bytes;
    // The target slot's last piece has been computed; copies queue behind that on the device, the
    // host goes on gathering.
    check(cudaStreamWaitEvent(stream_, free, 0), "stream");
    for (int64_t at = 0; at < n; at += per_block) {
        const int block = static_cast<int>(next_++ % BLOCKS);
        // The pinned block's last copy is done: only here the host waits for the bus, BLOCKS copies
        // behind.
        check(cudaEventSynchronize(copied_[block]), "streaming weights");
        job_to_ = pinned_[block].get(), job_from_ = records, job_ids_ = ids + at;
        job_n_ = std::min(per_block, n - at), job_bytes_ = record_bytes;
        copy_all();
        check(cudaMemcpyAsync(target + at * record_bytes, job_to_, job_n_ * record_bytes,
                              cudaMemcpyHostToDevice, stream_),
              "streaming weights");
        check(cudaEventRecord(copied_[block], stream_), "event");
    }
    check(cudaEventRecord(ready, stream_), "event");
}

} // namespace hotcold
