// exchange_forms.cu - the two forms of the exchange, measured: 48 layers in one captured graph.
//
// Form A: one-thread kernels set and poll flags in host memory. Form B: stream memory operations with
// binary words. A host thread answers every layer at once. Each layer copies x out, signals, waits
// and adds y. Prints microseconds a layer. Build: nvcc -arch=native exchange_forms.cu -lcuda
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
        auto e = (call);                                                                           \
        if ((int)e != 0) {                                                                         \
            std::printf("%s failed: %d\n", #call, (int)e);                                         \
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
__global__ void wait_add(float *h, const float *y, const unsigned *done, const unsigned *seq) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (threadIdx.x == 0) {
        unsigned v;
        do
            asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(done) : "memory");
        while (v != *seq);
    }
    __syncthreads();
    h[i] += ((volatile const float *)y)[i];
}
__global__ void add(float *h, const float *y) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    h[i] += ((volatile const float *)y)[i];
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
            s->y[l][0] = s->x[l][0];
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
    unsigned *seq;
    CHECK(cudaMalloc(&h, D * 4));
    CHECK(cudaMalloc(&seq, 4));
    CHECK(cudaMemset(h, 0, D * 4));
    CHECK(cudaMemset(seq, 0, 4));
    cudaStream_t stream;
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    next<<<1, 1, 0, stream>>>(seq);
    for (int l = 0; l < LAYERS; l++) {
        if (form == 0) { // no exchange: what the kernels themselves cost
            copy_out<<<D / 256, 256, 0, stream>>>(h, m->x[l]);
            add<<<D / 256, 256, 0, stream>>>(h, m->y[l]);
        } else if (form == 1) {
            copy_signal<<<1, 1024, 0, stream>>>(h, m->x[l], &m->ready[l * LINE], seq);
            wait_add<<<D / 256, 256, 0, stream>>>(h, m->y[l], &m->done[l * LINE], seq);
        } else {
            copy_out<<<D / 256, 256, 0, stream>>>(h, m->x[l]);
            CHECK(cuStreamWriteValue32(stream, (CUdeviceptr)&m->ready[l * LINE], 1, 0));
            CHECK(cuStreamWaitValue32(stream, (CUdeviceptr)&m->done[l * LINE], 1,
                                      CU_STREAM_WAIT_VALUE_EQ));
            CHECK(cuStreamWriteValue32(stream, (CUdeviceptr)&m->done[l * LINE], 0, 0));
            add<<<D / 256, 256, 0, stream>>>(h, m->y[l]);
        }
    }
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    stop = false;
    std::thread peer;
    if (form)
        peer = std::thread(answer, s, form == 2);
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
    const char *names[] = {"no exchange", "A: kernels", "B: memory operations"};
    for (int form = 0; form < 3; form++)
        std::printf("%-22s %.2f us a layer\n", names[form], run(form));
    return 0;
}
