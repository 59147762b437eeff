// timeline.cu - stamps of the device's clock become spans on the host's.
//
// The kernels of a pass run one after the other, so a step ends where the next begins; that is all
// there is to a stamp: one thread of a kernel reads %globaltimer when what it waited for is there.
// 72 bytes a layer travel to the host with the report.
//
// %globaltimer and CLOCK_MONOTONIC differ by an offset and drift (the one is a crystal, the other is
// slewed). The offset is known within bounds: from a ping-pong at the start (an H100 answers over
// the bus in about 2 us), and from every pass, which cannot have begun before it was launched nor
// ended after that was seen. Between two looks the bounds widen by DRIFT. What is left is the error.
#include "cuda/executor/timeline.h"
#include "cuda/kernels/common.cuh"
#include "cuda/memory/owned.h"

#include <algorithm>

namespace hotcold {

namespace {

constexpr int ROUNDS = 64, TICKS = 32;
constexpr int64_t GIVE_UP_NS = 1000000000;
constexpr int64_t DRIFT = 5000; // nanoseconds of a second for one: 200 per million

// ask: written by the host; the others by the device, `answer` last (release).
struct Ping { // pinned, mapped
    uint32_t ask, answer;
    uint64_t stamp, tick;
};

// One thread. First the step of its clock: the least difference of two readings that differ.
__global__ void clock_kernel(Ping *ping) {
    uint64_t last = now(), least = ~0ull;
    for (int i = 0; i < TICKS;) {
        const uint64_t t = now();
        if (t != last)
            least = min(least, t - last), last = t, i++;
    }
    ping->tick = least;
    const uint64_t begin = now();
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        while (load_flag(&ping->ask) != round)
            // The host thread was not scheduled, or gave up: a kernel that spins for ever would
            // hang the stream.
            if (now() - begin > GIVE_UP_NS)
                return;
        ping->stamp = now();
        store_flag(&ping->answer, round);
    }
}

} // namespace

void Clock::take(int64_t low, int64_t high) {
    low_ = std::max(low_, low), high_ = std::min(high_, high);
    if (low_ > high_) // a clock was set, or the machine slept
        low_ = low, high_ = high;
}

void Clock::calibrate(cudaStream_t stream) {
    const Pinned<Ping> ping(1);
    clock_kernel<<<1, 1, 0, stream>>>(ping.mapped());
    const cudaError_t error = cudaGetLastError();
    const int64_t begin = now_ns();
    for (uint32_t round = 1; error == cudaSuccess && round <= ROUNDS; round++) {
        const int64_t asked = now_ns();
        // host time = device time + offset. The stamp was taken between asked and answered, so
        // asked - stamp <= offset <= answered - stamp; the stamp may lag by one tick of its clock.
        int64_t answered = asked;
        __atomic_store_n(&ping->ask, round, __ATOMIC_RELEASE);
        while (__atomic_load_n(&ping->answer, __ATOMIC_ACQUIRE) != round &&
               answered - begin < GIVE_UP_NS)
            answered = now_ns();
        answered = now_ns();
        if (answered - begin >= GIVE_UP_NS)
            break; // passes will give bounds
        tick_ = static_cast<int64_t>(ping->tick);
        const int64_t stamp = static_cast<int64_t>(ping->stamp);
        take(asked - stamp - tick_, answered - stamp);
    }
    seen_ns_ = now_ns();
    const cudaError_t ended = cudaStreamSynchronize(stream);
    check(error == cudaSuccess ? ended : error, "calibrating the clock");
}

// The same two bounds: the pass cannot have begun before it was launched, nor ended after the host
// saw that it had. First they widen by what the clocks may have drifted since the last look.
void Clock::narrow(int64_t launched_ns, uint64_t begin, uint64_t end, int64_t done_ns) {
    const int64_t drift = (done_ns - seen_ns_) / DRIFT + 1;
    low_ -= drift, high_ += drift;
    seen_ns_ = done_ns;
    take(launched_ns - static_cast<int64_t>(begin) - tick_, done_ns - static_cast<int64_t>(end));
}

namespace {

constexpr int phase_of(int op) { // hc_phase; -1: of none
    switch (op) {
    case HC_OP_INPUT:
    case HC_OP_ATTENTION:
        return HC_PHASE_ATTENTION;
    case HC_OP_PREDICT:
        return HC_PHASE_PREDICT;
    case HC_OP_HOT:
        return HC_PHASE_HOT;
    case HC_OP_MERGE:
        return HC_PHASE_MERGE;
    case HC_OP_HEAD:
        return HC_PHASE_HEAD;
    default:
        return -1;
    }
}

// The stamp with which a step begins; of the row of the pass: AT_BEGIN.
constexpr int stamp_of(int op) {
    return op == HC_OP_EMBED       ? static_cast<int>(AT_BEGIN)
           : op == HC_OP_INPUT     ? AT_INPUT
           : op == HC_OP_ATTENTION ? AT_QKV
           : op == HC_OP_PREDICT   ? AT_PREDICT
                                   : AT_HOT;
}

// Collects steps in the order of the stream; each ends where the next begins.
class Steps {
  public:
    Steps(const Clock &clock, uint32_t seq, hc_span *out, int64_t *phase_ns)
        : clock_(clock), seq_(seq), out_(out), phase_ns_(phase_ns) {}
    // ready: when the step's wait was over; 0: it waits for nothing.
    void begin(uint64_t at, int op, int layer, uint64_t ready = 0) {
        end(at);
        at_ = at, ready_ = ready ? ready : at, op_ = op, layer_ = layer;
    }
    void end(uint64_t at) {
        if (op_ < 0)
            return;
        out_[count_++] = {clock_.host_ns(at_),          clock_.host_ns(ready_),
                          clock_.host_ns(at),           seq_,
                          static_cast<int16_t>(layer_), static_cast<int16_t>(op_)};
        const int phase = phase_of(op_);
        if (phase >= 0)
            phase_ns_[phase] += static_cast<int64_t>(at - ready_);
        // From the step's begin to its being ready.
        phase_ns_[HC_PHASE_WAIT] += static_cast<int64_t>(ready_ - at_);
        op_ = -1;
    }
    int32_t count() const {
        return count_;
    }

  private:
    const Clock &clock_;
    uint32_t seq_;
    hc_span *out_;
    int64_t *phase_ns_;
    uint64_t at_ = 0, ready_ = 0;
    int op_ = -1, layer_ = -1;
    int32_t count_ = 0;
};

} // namespace

// Where something runs between a layer's hot neurons and its merge, their partial sums are a second
// span.
int32_t read_timeline(const uint64_t *stamps, const std::vector<hc_step> &program,
                      const Clock &clock, uint32_t seq, hc_span *out, int64_t *phase_ns) {
    Steps steps(clock, seq, out, phase_ns);
    bool hot = false, apart = false;
    for (const hc_step &step : program) {
        const uint64_t *s = stamps + (step.layer + 1) * STAMPS;
        switch (step.op) {
        case HC_OP_MERGE:
            if (apart)
                steps.begin(s[AT_MERGE], HC_OP_HOT, step.layer);
            steps.begin(s[AT_SUMMED], HC_OP_MERGE, step.layer, s[AT_WAITED]);
            hot = apart = false;
            continue;
        case HC_OP_HEAD:
            steps.begin(stamps[AT_HEAD], step.op, -1);
            continue;
        default:
            apart = hot;
            hot |= step.op == HC_OP_HOT;
            steps.begin(s[stamp_of(step.op)], step.op, step.layer);
        }
    }
    steps.end(stamps[AT_END]);
    return steps.count();
}

} // namespace hotcold
