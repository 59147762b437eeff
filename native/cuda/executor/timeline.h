// timeline.h - when the steps of a pass ran, on the host's clock.
#ifndef HOTCOLD_TIMELINE_H
#define HOTCOLD_TIMELINE_H
#include "cuda/kernels/kernels.h"

#include <vector>

namespace hotcold {

// The device's clock against the host's: bounds on what to add to the one to get the other.
class Clock {
  public:
    // Ping-pong between a host thread and a kernel: every answer bounds the difference.
    void calibrate(cudaStream_t stream);
    // A pass began after it was launched and ended before that was seen: bounds once more. Between
    // them the clocks may drift apart.
    void narrow(int64_t launched_ns, uint64_t begin, uint64_t end, int64_t done_ns);
    // The middle of the bounds: off by half their distance at most.
    uint64_t host_ns(uint64_t device) const {
        return device + static_cast<uint64_t>(low_ + (high_ - low_) / 2);
    }
    int64_t error_ns() const { // at most
        return (high_ - low_ + 1) / 2 + tick_;
    }

  private:
    void take(int64_t low, int64_t high);
    int64_t low_ = INT64_MIN / 4, high_ = INT64_MAX / 4, tick_ = 1000, seen_ns_ = 0;
};

// Spans of a pass in order out of its stamps, into out, HC_DEVICE_SPANS at most; phase_ns: sums of
// attention, predict, hot, wait, merge, head. Returns the number of spans.
int32_t read_timeline(const uint64_t *stamps, const std::vector<hc_step> &program,
                      const Clock &clock, uint32_t seq, hc_span *out, int64_t *phase_ns);

} // namespace hotcold
#endif
