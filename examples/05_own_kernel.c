/* A kernel of your own in one C file: compiled, tested, timed and used without installing anything.
 *
 *     hotcold bench kernels --variant examples/05_own_kernel.c --d 4096 --density 10
 *     hotcold generate --kernels examples/05_own_kernel.c "Once upon a time"
 *     HOTCOLD_CPU=examples/05_own_kernel.c hotcold generate "Once upon a time"
 *
 * What you write. All operators (sparse FFN, dense layers, attention, sampling) rest on five
 * primitives: dot, dot_batch, axpy, max, exp_sum. native/abi/variant.h declares them and says what each
 * one owes its callers. Replace one for one dtype, or all; HC_VARIANT exports your table and the
 * best built-in kernels fill the rest. Weights are rows of float, IEEE half or bfloat16; x, sums and
 * results are float. Rows are aligned to their element and nothing more; d is any number from 1.
 *
 * What happens. The file is compiled with your cc (or $CC) for this CPU, with -O3 -march=native and
 * without contraction of a * b + c, into the cache folder. Its ABI number is compared. Then a
 * process of its own compares every operator with float64: all dtypes, odd sizes, batches, memory
 * that ends where a row ends. Wrong results, a crash or a hang are refused, with the case. Only what
 * passed is timed or used; every actor loads the same file, and none falls back to built-in kernels.
 *
 * What to mind. The sum over a row must have one order, whatever the number of rows and tokens: this
 * is what makes text independent of batches and threads, and it is tested. If you replace dot, leave
 * dot_batch out (it is then made of your dot) or give it the same order. Keep no state: several
 * threads call at once. For speed, keep several rows in flight: four streams are read faster than
 * one; ahead[i] is a row that is needed soon, prefetch it while you read rows[i].
 */
#include "variant.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

typedef _Float16 half;
typedef half halves __attribute__((vector_size(16), aligned(2)));
typedef float floats __attribute__((vector_size(32), aligned(4)));

#define SIDE 4 /* rows read side by side */

static inline floats widen(const half *w) {
#if defined(__F16C__) /* gcc 12 converts one by one without it */
    return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)w));
#else
    return __builtin_convertvector(*(const halves *)w, floats);
#endif
}

/* out[i] = rows[i] . x: element j of each 16 goes to sum j, the sums are added in order, then the
 * last d mod 16 elements: one order, for one row and for four. n is a constant once inlined. */
static inline __attribute__((always_inline)) void dot_rows(const void *const *rows,
                                                           const void *const *ahead, int n,
                                                           const float *x, int64_t d, float *out) {
    floats low[SIDE] = {0}, high[SIDE] = {0};
    int64_t i = 0;
    for (; i + 16 <= d; i += 16)
        for (int k = 0; k < n; k++) {
            const half *w = (const half *)rows[k] + i;
            if (ahead && i % 32 == 0)
                __builtin_prefetch((const half *)ahead[k] + i);
            low[k] += widen(w) * *(const floats *)(x + i);
            high[k] += widen(w + 8) * *(const floats *)(x + i + 8);
        }
    for (int k = 0; k < n; k++) {
        float total = 0;
        for (int j = 0; j < 16; j++)
            total += j < 8 ? low[k][j] : high[k][j - 8];
        for (int64_t j = i; j < d; j++)
            total += (float)((const half *)rows[k])[j] * x[j];
        out[k] = total;
    }
}

static void dot(const void *const *rows, const void *const *ahead, int64_t n, const float *x,
                int64_t d, int64_t scales, float *out) {
    (void)scales; /* of int8 weights */
    int64_t r = 0;
    for (; r + SIDE <= n; r += SIDE)
        dot_rows(rows + r, ahead ? ahead + r : NULL, SIDE, x, d, out + r);
    for (; r < n; r++)
        dot_rows(rows + r, ahead ? ahead + r : NULL, 1, x, d, out + r);
}

HC_VARIANT(.dot = {[HC_F16] = dot})
