// stream.h - neuron records from pageable host memory to the device at the rate of the bus.
#ifndef HOTCOLD_CUDA_STREAM_H
#define HOTCOLD_CUDA_STREAM_H
#include "cuda/memory/owned.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace hotcold {

// feed() and wake() are called by one thread, the loop's. It owns four pinned blocks, a stream and
// the copying threads.
class Streamer {
  public:
    explicit Streamer(int64_t record_bytes); // of the longest
    ~Streamer();
    Streamer(const Streamer &) = delete;
    void wake(bool active); // the copying threads wake and spin, or sleep again
    // Records ids[0..n) of `records`, of so many bytes, to target, side by side, after `free` on the device. Returns
    // when the last of them is in pinned memory; ready is recorded behind the copies.
    void feed(char *target, const char *records, int64_t record_bytes, const int32_t *ids,
              int64_t n, cudaEvent_t free, cudaEvent_t ready);
    void drain() {
        cudaStreamSynchronize(stream_);
    }

  private:
    Streamer(int64_t record_bytes, int64_t per_block);
    void work(int index);
    void copy_part(int index) const;
    void copy_all();

    static constexpr int BLOCKS = 4;
    const int64_t block_bytes_;
    std::vector<Pinned<char>> pinned_;
    const Event copied_[BLOCKS];
    const Stream stream_;
    int64_t next_ = 0;
    // one job at a time: records of job_ids_ into job_to_, a part each thread
    // The job: written by the caller before it raises job_ (release), read by the threads behind
    // their acquire of it, and not written again before left_ is 0 (acquire of the threads'
    // releases).
    char *job_to_ = nullptr;
    const char *job_from_ = nullptr;
    const int32_t *job_ids_ = nullptr;
    int64_t job_n_ = 0, job_bytes_ = 0; // bytes: of a record
    std::atomic<uint64_t> job_{0};
    std::atomic<int> left_{0};
    std::atomic<bool> active_{false};
    std::atomic<bool> stop_{false};
    std::mutex lock_;
    std::condition_variable changed_;
    std::vector<std::thread> threads_;
};

} // namespace hotcold
#endif
