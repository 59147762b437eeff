// operate_run.cu - memory and late inputs of single operators (operate.h).
#include "cuda/kernels/common.cuh"
#include "cuda/operate/operate.h"

namespace hotcold {
namespace {

constexpr uint64_t LATE_NS = 20000; // what is launched next has started by then
constexpr int THREADS = 256, BLOCKS = 32;

// Lets the kernel under test start at once, then waits 20 us and only then writes its inputs: one
// that reads before wait_prior() computes with zeros, and the test fails every time, not now and
// then.
__global__ void __launch_bounds__(THREADS) late_kernel(const Late a) {
    launch_next();
    const uint64_t begin = now();
    while (now() - begin < LATE_NS)
        ;
    for (int part = 0; part < a.n; part++)
        for (int64_t i = blockIdx.x * THREADS + threadIdx.x; i < a.words[part];
             i += BLOCKS * THREADS)
            a.to[part][i] = a.from[part][i];
}

} // namespace

// All bytes 0xff: a NaN in every float type, -1 in the integers. What a kernel forgets to write
// shows.
void *Scratch::array(int64_t bytes, const void *from) {
    void *block = nullptr;
    const int64_t size = std::max<int64_t>(bytes, 1);
    // guard | array | guard in one allocation: cudaMalloc's 256 bytes of alignment hold for the
    // array too.
    check(cudaMalloc(&block, size + 2 * guard_), "GPU memory");
    char *at = static_cast<char *>(block) + guard_;
    arrays_.push_back({Owned<void *, cudaFree>(block), at, size});
    if (!op_.bare)
        check(cudaMemset(block, 0xff, size + 2 * guard_), "GPU memory");
    if (from)
        check(cudaMemcpy(at, from, bytes, cudaMemcpyHostToDevice), "copy in");
    return at;
}

char *Scratch::repeated(int64_t count, const void *from) {
    // The first copy comes from the host, the others from it: copies lie side by side.
    char *first = make<char>(count * copies());
    check(cudaMemcpy(first, from, count, cudaMemcpyHostToDevice), "copy in");
    for (int i = 1; i < copies(); i++)
        check(cudaMemcpy(first + i * count, first, count, cudaMemcpyDeviceToDevice), "copy");
    return first;
}

// Unified addressing: pinned memory has one address for host and device on every 64-bit system.
float *Scratch::host(int64_t count) {
    pinned_.emplace_back(count);
    return pinned_.back().get();
}

PassState *Scratch::pass(int32_t batch, const int32_t *position_B, int32_t head_rows) {
    PassState state = {};
    state.seq = 1, state.batch = batch, state.head_rows = head_rows;
    for (int b = 0; b < batch; b++)
        state.position_B[b] = position_B ? position_B[b] : b;
    return late<PassState>(1, &state);
}

// Sources of late parts are arrays of this scratch, copied by now: settle() waits for the default
// stream.
void Scratch::deliver() {
    settle();
    enqueue<Late>(late_kernel, dim3(BLOCKS), THREADS, 0, launch, late_);
}

// Empty guards (bare) compare as equal.
void Scratch::verify() const {
    std::vector<unsigned char> around(guard_), whole(guard_, 0xff);
    for (const Array &array : arrays_)
        for (const int64_t at : {-guard_, array.bytes}) {
            fetch(around.data(), array.at + at, guard_);
            if (around != whole)
                throw Failure(HC_ERR_SYSTEM,
                              "a kernel wrote " + std::string(at < 0 ? "in front of" : "behind") +
                                  " an array of " + std::to_string(array.bytes) + " bytes");
        }
}

// Synchronous: returns when the bytes are in host memory.
void fetch(void *to, const void *from, int64_t bytes) {
    if (bytes)
        check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "copy out");
}

} // namespace hotcold
