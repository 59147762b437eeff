/* internal.h - what the C files share among themselves; not seen by cffi.
 *
 * Primitives are the only code that depends on an instruction set: one table of function pointers
 * per variant, chosen once in dispatch.c. Operators are plain C on top of them.
 */
#ifndef HOTCOLD_INTERNAL_H
#define HOTCOLD_INTERNAL_H
#include "abi/hotcold.h"
#include "abi/variant.h"

/* Set this thread's error and return its status; hc_fail_as takes over another's, a plug-in's. */
hc_status hc_fail(hc_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
hc_status hc_fail_as(const hc_error *error);

/* Run body(context, task, thread) for every task of [0, n_tasks), on all threads of the pool (NULL:
 * here). Task t is offered to thread t modulo the threads first, then to any: what it computes must not
 * depend on thread. */
typedef void (*hc_task)(void *context, int64_t task, int32_t thread);
void hc_pool_run(hc_pool *pool, hc_task body, void *context, int64_t n_tasks);

/* ops/ffn.c: how a list is cut among threads: pieces by position, then columns of the sum. */
typedef struct {
    int64_t pieces, columns;
} hc_ffn_cut;
hc_ffn_cut hc_ffn_cut_of(const hc_ffn_args *args, int64_t threads);

/* ops/ffn_check.c: the arguments of hc_ffn; not HC_OK after hc_fail. */
hc_status hc_ffn_check(const hc_ffn_args *args);

/* ops/ahead.c: read what a list names into the caches of the threads that will compute it, until
 * *flag == seq; x is not looked at. Returns the bytes asked for. */
int64_t hc_ffn_ahead(const hc_ffn_args *args, hc_pool *pool, const uint32_t *flag, uint32_t seq);

/* exchange.c: HC_ERR_POISONED with the poison; the word of a flag, NULL where there is none. */
hc_status hc_fail_poisoned(const hc_segment *segment);
const uint32_t *hc_flag_word(hc_segment *segment, int32_t flag);

extern const hc_primitives hc_primitives_ref;
#if defined(__x86_64__)
extern const hc_primitives hc_primitives_avx2, hc_primitives_avx512;
#elif defined(__aarch64__)
extern const hc_primitives hc_primitives_neon;
#endif

/* The table in force; NULL after hc_fail where HOTCOLD_CPU names a variant this machine lacks
 * or a file that nobody has loaded. */
const hc_primitives *hc_primitives_get(void);
const hc_primitives *hc_primitives_best(void); /* of the built-in ones */
/* Where a name is looked for beside the built-in ones: variant.c's loaded ones; NULL: none there. */
typedef const hc_primitives *(*hc_primitives_find)(const char *name);
void hc_primitives_extend(hc_primitives_find find);
#define HC_VARIANT_NAME 128

/* The formats of weights, by hc_dtype: bytes of a weight, and how many share a scale (0: none). */
static const struct {
    int32_t bytes, group;
} hc_formats[HC_DTYPES] = {
    [HC_F32] = {4, 0}, [HC_F16] = {2, 0}, [HC_BF16] = {2, 0}, [HC_I8] = {1, HC_GROUP}};

/* Bytes of one weight; 0 for an unknown dtype. */
static inline int64_t hc_dtype_bytes(int32_t dtype) {
    return dtype >= 0 && dtype < HC_DTYPES ? hc_formats[dtype].bytes : 0;
}

/* Bytes that d weights take, and those of their scales. */
static inline int64_t hc_scale_bytes(int32_t dtype, int64_t d) {
    const int32_t group = hc_formats[dtype].group;
    return group ? (d + group - 1) / group * 2 : 0;
}
static inline int64_t hc_row_bytes(int32_t dtype, int64_t d) {
    return d * hc_dtype_bytes(dtype) + hc_scale_bytes(dtype, d);
}

/* Where a neuron's record lies: by its slot, or by its id. */
static inline const char *hc_record_at(const void *records, int64_t bytes, const int32_t *slot_N,
                                       int32_t id) {
    return (const char *)records + (slot_N ? slot_N[id] : id) * bytes;
}
/* Of entry k of a list. */
static inline const char *hc_ffn_record(const hc_ffn_args *a, int64_t k) {
    return hc_record_at(a->records, a->record.bytes, a->slot_N, a->ids[k]);
}

#define HC_MAX_D (1 << 24) /* longest row: keeps every product of sizes within int64 */

#endif
