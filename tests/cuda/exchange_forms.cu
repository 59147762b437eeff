// exchange_forms.cu - the forms of the exchange, measured: 48 layers in one captured graph.
//
// Form A: kernels set and poll flags in host memory, in four ways. Form B: stream memory operations
// with binary words. A host thread answers every layer at once, with all of y. Each layer copies x
// out, signals, waits and adds y. Prints microseconds a layer.
// Built and run by `make exchange-forms`.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cuda.h>
#include <cuda_runtime.h>
#include <thread>
#include <vector>

constexpr int LAYERS = 48, D = 5120, LINE = 16;
#define CHECK(call)                                                                                \
    do {                                                                                           \
        auto e_ = (call);                                                                          \
        if ((int)e_ != 0) {                                                                        \
            std::printf("%s failed: %d\n", #call, (int)e_);                                        \
            std::exit(1);                                                                          \
        }                                                                                          \
    } while (0)

struct Shared {
    unsigned ready[LAYERS * LINE], done[LAYERS * LINE];
    float x[LAYERS][D], y[LAYERS][D];
};

__global__ void next(unsigned *seq) {
    *seq += 1;
}
__global__ void copy_out(const float *h, float *x) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    x[i] = h[i];
}
__global__ void copy_signal(const float *h, float *x, unsigned *ready, const unsigned *seq) {
    for (int i = threadIdx.x; i < D; i += 1024)
        x[i] = h[i];
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence_system();
        *(volatile unsigned *)ready = *seq;
    }
}
__device__ void await(const unsigned *flag, unsigned seq) {
    unsigned v;
    do
        asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory");
    while (v != seq);
}
__device__ void add_four(float *h, const float *y) {
    float4 v, *to = reinterpret_cast<float4 *>(h);
    asm volatile("ld.relaxed.sys.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(y)
                 : "memory");
    *to = make_float4(to->x + v.x, to->y + v.y, to->z + v.z, to->w + v.w);
}
// 20 blocks poll, 4 bytes a load
__global__ void wait_add(float *h, const float *y, const unsigned *done, const unsigned *seq) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (threadIdx.x == 0)
        await(done, *seq);
    __syncthreads();
    h[i] += ((volatile const float *)y)[i];
}
// 10 blocks of 128, 16 bytes a load; relay NULL: all poll; else one polls and tells the others
__global__ void wait_add_four(float *h, const float *y, const unsigned *done, const unsigned *seq,
                              unsigned *relay) {
    const int i = (blockIdx.x * 128 + threadIdx.x) * 4;
    if (threadIdx.x == 0) {
        if (!relay || blockIdx.x == 0)
            await(done, *seq);
        if (relay && blockIdx.x == 0)
            asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(relay), "r"(*seq) : "memory");
        unsigned v = relay ? 0 : *seq;
        while (v != *seq)
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(relay) : "memory");
    }
    __syncthreads();
    add_four(h + i, y + i);
}
__global__ void wait_one(const unsigned *done, const unsigned *seq) {
    await(done, *seq);
}
__global__ void add(float *h, const float *y) {
    const int i = (blockIdx.x * 128 + threadIdx.x) * 4;
    add_four(h + i, y + i);
}

static std::atomic<bool> stop{false};

static void answer(Shared *s, bool binary) {
    for (unsigned seq = 1; !stop; seq++)
        for (int l = 0; l < LAYERS; l++) {
            unsigned *ready = &s->ready[l * LINE], *done = &s->done[l * LINE];
            const unsigned wanted = binary ? 1 : seq;
            while (__atomic_load_n(ready, __ATOMIC_ACQUIRE) != wanted)
                if (stop)
                    return;
            for (int i = 0; i < D; i++)
                s->y[l][i] = s->x[l][i];
            if (binary)
                __atomic_store_n(ready, 0u, __ATOMIC_RELEASE);
            __atomic_store_n(done, wanted, __ATOMIC_RELEASE);
        }
}

static double run(int form) {
    Shared *s, *m;
    CHECK(cudaHostAlloc((void **)&s, sizeof(Shared), cudaHostAllocMapped));
    std::fill((char *)s, (char *)(s + 1), 0);
    CHECK(cudaHostGetDevicePointer((void **)&m, s, 0));
    float *h;
    unsigned *seq, *relay;
    CHECK(cudaMalloc(&relay, LAYERS * 128));
    CHECK(cudaMemset(relay, 0, LAYERS * 128));
    CHECK(cudaMalloc(&h, D * 4));
    CHECK(cudaMalloc(&seq, 4));
    CHECK(cudaMemset(h, 0, D * 4));
    CHECK(cudaMemset(seq, 0, 4));
    cudaStream_t stream;
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    next<<<1, 1, 0, stream>>>(seq);
    for (int l = 0; l < LAYERS; l++) {
        unsigned *ready = &m->ready[l * LINE], *done = &m->done[l * LINE];
        if (form == 0 || form == 5)
            copy_out<<<D / 256, 256, 0, stream>>>(h, m->x[l]);
        else
            copy_signal<<<1, 1024, 0, stream>>>(h, m->x[l], ready, seq);
        if (form == 1)
            wait_add<<<D / 256, 256, 0, stream>>>(h, m->y[l], done, seq);
        if (form == 2 || form == 3)
            wait_add_four<<<D / 512, 128, 0, stream>>>(h, m->y[l], done, seq,
                                                       form == 3 ? relay + l * 32 : nullptr);
        if (form == 4)
            wait_one<<<1, 1, 0, stream>>>(done, seq);
        if (form == 5) {
            CHECK(cuStreamWriteValue32(stream, (CUdeviceptr)ready, 1, 0));
            CHECK(cuStreamWaitValue32(stream, (CUdeviceptr)done, 1, CU_STREAM_WAIT_VALUE_EQ));
            CHECK(cuStreamWriteValue32(stream, (CUdeviceptr)done, 0, 0));
        }
        if (form == 0 || form >= 4)
            add<<<D / 512, 128, 0, stream>>>(h, m->y[l]);
    }
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    stop = false;
    std::thread peer;
    if (form)
        peer = std::thread(answer, s, form == 5);
    cudaEvent_t a, b;
    cudaEventCreate(&a);
    cudaEventCreate(&b);
    std::vector<float> times;
    for (int i = 0; i < 300; i++) {
        CHECK(cudaEventRecord(a, stream));
        CHECK(cudaGraphLaunch(exec, stream));
        CHECK(cudaEventRecord(b, stream));
        CHECK(cudaStreamSynchronize(stream));
        float ms;
        cudaEventElapsedTime(&ms, a, b);
        times.push_back(ms * 1000 / LAYERS);
    }
    stop = true;
    if (form)
        peer.join();
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

int main() {
    const char *names[] = {"no exchange",   "A: 20 blocks poll", "A: 10 blocks, 16 bytes",
                           "A: with relay", "A: a wait kernel",  "B: memory operations"};
    for (int form = 0; form < 6; form++)
        std::printf("%-24s %.2f us a layer\n", names[form], run(form));
    return 0;
}
