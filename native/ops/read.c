/* ops/read.c - the yardstick: read rows and do nothing else.
 *
 * What the sparse operators can reach at best is how fast rows of their length come from memory.
 * Rows are read `side` at a time, a cache line of each in turn, so that the hardware prefetchers
 * follow several streams. Measured on one core of a 2-core Intel Xeon (Sapphire Rapids) shared with
 * other work, 2026-11-22, records of 24 KB in random order from 2 GB on huge pages, best of 70:
 *   1 row 15.2 GB/s    4 rows 16.5    8 rows 16.9
 *   1 row with a software prefetch 4 KB or one row ahead 14.6: why the kernels, which compute
 *   between their reads and gain from prefetching, end a little below this.
 */
#include "internal.h"

#define BLOCK_BYTES 262144 /* bytes of a task, at least */
#define LINE        64

typedef uint64_t lanes __attribute__((vector_size(16)));

typedef struct {
    hc_read_args *a;
    int64_t block;
} read_run;

static inline __attribute__((always_inline)) lanes line(const char *p) {
    const lanes *v = (const lanes *)p;
    return (v[0] ^ v[1]) ^ (v[2] ^ v[3]);
}

static inline __attribute__((always_inline)) lanes read_rows(const hc_read_args *a, int64_t k,
                                                             int side) {
    const char *row[8];
    lanes sum = {0, 0};
    for (int j = 0; j < side; j++) {
        const int64_t id = a->ids[k + j < a->n ? k + j : a->n - 1];
        row[j] = (const char *)a->base + id * a->stride_bytes;
    }
    for (int64_t i = 0; i < a->row_bytes; i += LINE)
        for (int j = 0; j < side; j++)
            sum ^= line(row[j] + i);
    return sum;
}

static void read_block(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const read_run *run = context;
    hc_read_args *a = run->a;
    const int64_t begin = task * run->block;
    const int64_t end = begin + run->block < a->n ? begin + run->block : a->n;
    lanes sum = {0, 0};
    for (int64_t k = begin; k < end; k += a->side)
        sum ^= a->side == 8 ? read_rows(a, k, 8) : read_rows(a, k, 1);
    __atomic_fetch_xor(&a->fold, sum[0] ^ sum[1], __ATOMIC_RELAXED);
}

hc_status hc_read(hc_read_args *a, hc_pool *pool) {
    if (!a || !a->base || !a->ids || a->n < 0 || a->row_bytes < 0 || a->row_bytes % LINE ||
        a->stride_bytes < a->row_bytes || a->stride_bytes % 16 || (uintptr_t)a->base % 16 ||
        (a->side != 1 && a->side != 8))
        return hc_fail(HC_ERR_ARGUMENT,
                       "read: rows of %lld bytes %lld apart, %d side by side; whole lines of 64, "
                       "1 or 8 are possible",
                       a ? (long long)a->row_bytes : 0, a ? (long long)a->stride_bytes : 0,
                       a ? a->side : 0);
    const int64_t rows = a->row_bytes ? BLOCK_BYTES / a->row_bytes : 1;
    read_run run = {.a = a, .block = (rows + 8) / 8 * 8};
    a->fold = 0;
    hc_pool_run(pool, read_block, &run, (a->n + run.block - 1) / run.block);
    return HC_OK;
}
