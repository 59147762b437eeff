/* ops/read.c - the yardstick: read rows and do nothing else.
 *
 * What the sparse operators can reach at best is how fast rows of their length come from memory.
 * Rows are read `side` at a time, a cache line of each in turn, so that the hardware prefetchers
 * follow several streams. A yardstick that is too slow flatters what it measures, so the bench takes
 * the fastest of 1, 4 and 8 rows. Measured on one core of a 2-core Intel Xeon (Sapphire Rapids) under
 * load, 2026-11-22, records of 24 KB in random order from 2 GB on huge pages, best of 120, GB/s:
 *                         1 row    4 rows   8 rows
 *   v1 16-byte loads      11.0              15.3
 *   v2 64-byte loads      14.2     16.2     16.4     in use where there is AVX-512
 */
#include "core/internal.h"

#define BLOCK_BYTES 262144 /* bytes of a task, at least */
#define LINE        64

typedef struct {
    hc_read_args *a;
    int64_t block;
} read_run;

/* Vector types of the compiler: the loads are of this width in any build. */
typedef uint64_t narrow __attribute__((vector_size(16)));
typedef uint64_t wide __attribute__((vector_size(64)));

/* The rows of one block, side by side in groups (a constant); lanes: the loads' width. */
#define READ_ROWS(lanes, side)                                                                     \
    for (int64_t k = begin; k < end; k += (side)) {                                                \
        const char *row[side];                                                                     \
        for (int j = 0; j < (side); j++)                                                           \
            row[j] =                                                                               \
                (const char *)a->base + a->ids[k + j < end ? k + j : end - 1] * a->stride_bytes;   \
        for (int64_t i = 0; i < a->row_bytes; i += LINE)                                           \
            for (int j = 0; j < (side); j++)                                                       \
                for (size_t at = 0; at < LINE; at += sizeof(lanes))                                \
                    sum[j % 4] ^= *(const lanes *)(row[j] + i + (int64_t)at);                      \
    }

/* Four accumulators: one chain of xors would be slower than memory. The result leaves the function,
 * so the loads cannot be optimised away; xor commutes, so tasks may end in any order. */
#define READ_BLOCK(name, lanes, target)                                                            \
    target static void name(void *context, int64_t task, int32_t thread) {                         \
        (void)thread;                                                                              \
        const read_run *run = context;                                                             \
        hc_read_args *a = run->a;                                                                  \
        const int64_t begin = task * run->block;                                                   \
        const int64_t end = begin + run->block < a->n ? begin + run->block : a->n;                 \
        lanes sum[4] = {{0}, {0}, {0}, {0}}, all;                                                  \
        if (a->side == 8) {                                                                        \
            READ_ROWS(lanes, 8)                                                                    \
        } else if (a->side == 4) {                                                                 \
            READ_ROWS(lanes, 4)                                                                    \
        } else {                                                                                   \
            READ_ROWS(lanes, 1)                                                                    \
        }                                                                                          \
        all = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];                                                   \
        uint64_t fold = 0;                                                                         \
        for (size_t i = 0; i < sizeof all / 8; i++)                                                \
            fold ^= all[i];                                                                        \
        __atomic_fetch_xor(&a->fold, fold, __ATOMIC_RELAXED);                                      \
    }
READ_BLOCK(read_narrow, narrow, )
#if defined(__x86_64__)
READ_BLOCK(read_wide, wide, __attribute__((target("avx512f"))))
#endif

static hc_task reader(const hc_read_args *a) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && a->stride_bytes % 64 == 0 &&
        (uintptr_t)a->base % 64 == 0)
        return read_wide;
#endif
    (void)a;
    return read_narrow;
}

hc_status hc_read(hc_read_args *a, hc_pool *pool) {
    if (!a || !a->base || !a->ids || a->n < 0 || a->row_bytes < 0 || a->row_bytes % LINE ||
        a->stride_bytes < a->row_bytes || a->stride_bytes % 16 || (uintptr_t)a->base % 16 ||
        (a->side != 1 && a->side != 4 && a->side != 8))
        return hc_fail(HC_ERR_ARGUMENT,
                       "read: rows of %lld bytes %lld apart, %d side by side; whole lines of 64, "
                       "1, 4 or 8 are possible",
                       a ? (long long)a->row_bytes : 0, a ? (long long)a->stride_bytes : 0,
                       a ? a->side : 0);
    const int64_t rows = a->row_bytes ? BLOCK_BYTES / a->row_bytes : 1;
    read_run run = {.a = a, .block = (rows + 8) / 8 * 8};
    a->fold = 0;
    hc_pool_run(pool, reader(a), &run, (a->n + run.block - 1) / run.block);
    return HC_OK;
}
