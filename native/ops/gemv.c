/* ops/gemv.c - dense y = W x for one token or a batch.
 *
 * One row, one token: 2 d FLOPs on d weights (2 bytes each in fp16), so at batch 1 the operator is
 * bound by how fast rows can be read: 1 FLOP a byte. Tasks are blocks of rows; a row's sum never
 * depends on its block, so neither on the thread count.
 *
 * Oracle: numpy in float64, tests/native/test_gemv.py; and the same bits in any company.
 */
#include "core/internal.h"

#define BLOCK_BYTES 32768 /* weights of a task, at least: about 2 us, several times a hand-over */
#define GROUP       16    /* rows whose results wait on the stack */
#define AHEAD       4     /* rows the prefetch runs ahead (v2, not in fp32) */

typedef struct {
    const hc_gemv_args *a;
    const hc_primitives *p;
    int64_t block; /* rows of a task */
} gemv_run;

/* Bias, clamp and store one result. */
static void store(const hc_gemv_args *a, int64_t row, int32_t token, float value) {
    float *y = a->y_BR + token * a->y_stride + row;
    if (a->bias_R)
        value +=
            *(const float *)((const char *)a->bias_R + row * (a->bias_stride ? a->bias_stride : 4));
    if (a->accumulate)
        *y += value;
    else
        *y = a->relu && value < 0 ? 0 : value; /* a NaN stays one */
}

/* Rows [begin, end) of the block, GROUP at a time. rows[] holds AHEAD more than are computed:
 * what the primitive prefetches while it reads; past the block's end the last row again, whose
 * lines are there. */
static void gemv_block(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const gemv_run *run = context;
    const hc_gemv_args *a = run->a;
    const void *rows[GROUP + AHEAD];
    const float *xs[HC_MAX_BATCH];
    float out[GROUP * HC_MAX_BATCH];
    const void *const *ahead = a->dtype == HC_F32 ? NULL : rows + AHEAD;
    for (int32_t t = 0; t < a->batch; t++)
        xs[t] = a->x_BD + t * a->x_stride;
    const int64_t begin = task * run->block;
    const int64_t end = begin + run->block < a->rows ? begin + run->block : a->rows;
    for (int64_t r = begin; r < end; r += GROUP) {
        const int64_t n = end - r < GROUP ? end - r : GROUP;
        for (int64_t i = 0; i < n + AHEAD; i++) {
            const int64_t row = r + i < end ? r + i : end - 1;
            rows[i] = (const char *)a->w + row * a->stride_bytes;
        }
        if (a->batch == 1)
            run->p->dot[a->dtype](rows, ahead, n, xs[0], a->d, a->scales, out);
        else
            run->p->dot_batch[a->dtype](rows, n, xs, a->batch, a->d, a->scales, out);
        for (int64_t i = 0; i < n; i++)
            for (int32_t t = 0; t < a->batch; t++)
                store(a, r + i, t, out[i * a->batch + t]);
    }
}

/* Every product of sizes below stays within int64: d and rows are bounded here, dtype is known. */
static hc_status check_args(const hc_gemv_args *a) {
    if (!a || !a->w || !a->x_BD || !a->y_BR)
        return hc_fail(HC_ERR_ARGUMENT, "gemv: w, x and y must be given");
    const int64_t bytes = hc_dtype_bytes(a->dtype);
    if (!bytes)
        return hc_fail(HC_ERR_ARGUMENT, "gemv: dtype %d is unknown; 0 to 3 are", a->dtype);
    if (a->batch < 1 || a->batch > HC_MAX_BATCH)
        return hc_fail(HC_ERR_ARGUMENT, "gemv: batch %d; 1 to %d are possible", a->batch,
                       HC_MAX_BATCH);
    if (a->d < 1 || a->d > HC_MAX_D || a->rows < 0 || a->rows > INT32_MAX)
        return hc_fail(HC_ERR_ARGUMENT, "gemv: %lld rows of %lld; at most %d of 1 to %d",
                       (long long)a->rows, (long long)a->d, INT32_MAX, HC_MAX_D);
    const int64_t scale_bytes = hc_scale_bytes(a->dtype, a->d);
    if (scale_bytes ? a->scales < a->d || a->scales % 2 : a->scales)
        return hc_fail(HC_ERR_ARGUMENT, "gemv: scales %lld bytes behind rows of %lld in dtype %d",
                       (long long)a->scales, (long long)a->d, a->dtype);
    const int64_t row_bytes = scale_bytes ? a->scales + scale_bytes : a->d * bytes;
    if (a->stride_bytes < row_bytes || a->stride_bytes % bytes)
        return hc_fail(HC_ERR_ARGUMENT, "gemv: rows %lld bytes apart; a row takes %lld",
                       (long long)a->stride_bytes, (long long)row_bytes);
    if (a->batch > 1 && (a->x_stride < a->d || a->y_stride < a->rows))
        return hc_fail(
            HC_ERR_ARGUMENT, "gemv: strides %lld of x and %lld of y; tokens take %lld and %lld",
            (long long)a->x_stride, (long long)a->y_stride, (long long)a->d, (long long)a->rows);
    if (a->bias_stride < 0 || a->bias_stride % 4)
        return hc_fail(HC_ERR_ARGUMENT, "gemv: biases %lld bytes apart; a multiple of 4 is needed",
                       (long long)a->bias_stride);
    if (a->relu && a->accumulate)
        return hc_fail(HC_ERR_ARGUMENT, "gemv: relu and accumulate exclude each other");
    return HC_OK;
}

hc_status hc_gemv(const hc_gemv_args *args, hc_pool *pool) {
    hc_status status = check_args(args);
    if (status != HC_OK)
        return status;
    gemv_run run = {.a = args, .p = hc_primitives_get()};
    if (!run.p)
        return HC_ERR_UNSUPPORTED;
    /* Eight blocks a thread, so that one that is kept from running leaves its blocks to others;
     * none smaller than a hand-over is worth; whole groups of rows. */
    const int64_t row_bytes = args->d * hc_dtype_bytes(args->dtype) * args->batch;
    const int64_t even = args->rows / (hc_pool_threads(pool) * 8);
    const int64_t least = BLOCK_BYTES / row_bytes;
    run.block = ((even > least ? even : least) + GROUP) / GROUP * GROUP;
    hc_pool_run(pool, gemv_block, &run, (args->rows + run.block - 1) / run.block);
    return HC_OK;
}
