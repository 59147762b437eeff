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

#endif
