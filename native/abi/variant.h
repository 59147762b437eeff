/* variant.h - what one instruction set's kernels are: a table of primitives.
 *
 * The built-in ones lie in cpu/. A variant of one's own is a C file that includes this header and
 * ends with HC_VARIANT(...), naming what it replaces; examples/05_own_kernel.c is the guide. Arrays
 * are indexed by hc_dtype.
 *
 * A row of HC_I8 has a scale, binary16, for each HC_GROUP weights in turn: weight i is q[i] times scale
 * i / HC_GROUP, exactly, in fp32. `scales` is the number of bytes from where a row points to the scale
 * of its first group; it is 0, and means nothing, for the other dtypes. Rows that point past their
 * beginning (axpy of some columns) do so by whole groups.
 *
 * Within one variant the sum over a row has one fixed order, the same in dot and in dot_batch, for
 * any number of rows and tokens: this is what makes results independent of batch and threads.
 */
#ifndef HOTCOLD_VARIANT_H
#define HOTCOLD_VARIANT_H
#include "abi/hotcold.h"

typedef struct {
    const char *name;
    int (*supported)(void);
    /* out[i] = rows[i] . x for n rows of d weights. ahead[i] (NULL: nothing) is a row of as many
     * bytes that will be needed soon; it is prefetched while rows[i] is read. */
    void (*dot[HC_DTYPES])(const void *const *rows, const void *const *ahead, int64_t n,
                           const float *x, int64_t d, int64_t scales, float *out);
    /* out[i * n_x + t] = rows[i] . xs[t], n_x <= HC_MAX_BATCH: a row is read and converted once. */
    void (*dot_batch[HC_DTYPES])(const void *const *rows, int64_t n, const float *const *xs,
                                 int32_t n_x, int64_t d, int64_t scales, float *out);
    /* y += c[0] rows[0]; y += c[1] rows[1]; ... element by element in this order. */
    void (*axpy[HC_DTYPES])(const void *const *rows, const void *const *ahead, const float *c,
                            int64_t n, int64_t d, int64_t scales, float *y);
    float (*max)(const float *x, int64_t n); /* NaN where x holds one; -infinity for n = 0 */
    /* sum of exp((x - max) * scale), scale > 0; the terms are stored in out unless it is NULL
     * (out may be x). */
    float (*exp_sum)(const float *x, int64_t n, float max, float scale, float *out);
    /* out[i] = sum over planes p of 2^p * (bits in which row i and plane p differ); rows and planes
     * of `words` words each lie side by side. Whole numbers: every variant gives the same. */
    void (*sign_count)(const uint64_t *rows, int64_t n, const uint64_t *planes, int32_t n_planes,
                       int64_t words, int64_t *out);
} hc_primitives;

/* Export a table: HC_VARIANT(.dot = {[HC_F16] = my_dot}). What it leaves out is taken from the best
 * built-in variant; dot_batch is made of dot, and dot of dot_batch, where only one is given. name
 * and supported are ignored. */
#define HC_VARIANT(...)                                                                            \
    extern const int32_t hc_variant_abi;                                                           \
    extern const hc_primitives hc_variant;                                                         \
    const int32_t hc_variant_abi = HC_ABI_VERSION;                                                 \
    const hc_primitives hc_variant = {__VA_ARGS__};

#endif
