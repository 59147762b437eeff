/* internal.h - what the C files share among themselves; not seen by cffi.
 *
 * Primitives are the only code that depends on an instruction set: one table of function pointers
 * per variant, chosen once in dispatch.c. Operators are plain C on top of them.
 */
#ifndef HOTCOLD_INTERNAL_H
#define HOTCOLD_INTERNAL_H
#include "hotcold.h"

/* Set this thread's error text and return status. */
hc_status hc_fail(hc_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Run body(context, task, thread) for every task of [0, n_tasks), on all threads of the pool (NULL:
 * here). Tasks are handed out by an atomic counter; what a task computes must not depend on thread. */
typedef void (*hc_task)(void *context, int64_t task, int32_t thread);
void hc_pool_run(hc_pool *pool, hc_task body, void *context, int64_t n_tasks);

/* One instruction set's primitives. Arrays of three are indexed by hc_dtype.
 *
 * Within one variant the sum over a row has one fixed order, the same in dot and in dot_batch, for
 * any number of rows and tokens: this is what makes results independent of batch and threads. */
typedef struct {
    const char *name;
    int (*supported)(void);
    /* out[i] = rows[i] . x for n rows of d weights. ahead[i] (NULL: nothing) is a row of as many
     * bytes that will be needed soon; it is prefetched while rows[i] is read. */
    void (*dot[3])(const void *const *rows, const void *const *ahead, int64_t n, const float *x,
                   int64_t d, float *out);
    /* out[i * n_x + t] = rows[i] . xs[t], n_x <= HC_MAX_BATCH: a row is read and converted once. */
    void (*dot_batch[3])(const void *const *rows, int64_t n, const float *const *xs, int32_t n_x,
                         int64_t d, float *out);
    /* y += c[0] rows[0]; y += c[1] rows[1]; ... element by element in this order. */
    void (*axpy[3])(const void *const *rows, const void *const *ahead, const float *c, int64_t n,
                    int64_t d, float *y);
    float (*max)(const float *x, int64_t n); /* NaN where x holds one; -infinity for n = 0 */
    /* sum of exp((x - max) * scale), scale > 0; the terms are stored in out unless it is NULL
     * (out may be x). */
    float (*exp_sum)(const float *x, int64_t n, float max, float scale, float *out);
} hc_primitives;

extern const hc_primitives hc_primitives_ref;
#if defined(__x86_64__)
extern const hc_primitives hc_primitives_avx2;
#endif

/* The table in force; NULL after hc_fail where HOTCOLD_CPU names a variant this machine lacks. */
const hc_primitives *hc_primitives_get(void);

/* Bytes of one weight; 0 for an unknown dtype. */
static inline int64_t hc_dtype_bytes(int32_t dtype) {
    return dtype == HC_F32 ? 4 : dtype == HC_F16 || dtype == HC_BF16 ? 2 : 0;
}

#define HC_MAX_D       (1 << 24) /* longest row: keeps every product of sizes within int64 */
#define HC_MAX_THREADS 1024

#endif
