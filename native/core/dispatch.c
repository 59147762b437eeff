/* dispatch.c - which instruction set's primitives are in force.
 *
 * Chosen once a process: the variant HOTCOLD_CPU names, else the first supported one of the list
 * below. A name this machine does not offer is an error in every operator, never a silent fallback;
 * hc_cpu_force overrides both, and can name a variant of one's own that was loaded (variant.c).
 * __builtin_cpu_supports asks the CPU and the operating system.
 */
#include "core/internal.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Best first; the last one runs everywhere. */
static const hc_primitives *const variants[] = {
#if defined(__x86_64__)
    &hc_primitives_avx512,
    &hc_primitives_avx2,
#elif defined(__aarch64__)
    &hc_primitives_neon,
#endif
    &hc_primitives_ref,
};
#define N_VARIANTS ((int32_t)(sizeof variants / sizeof variants[0]))

/* NULL until the first operator runs. Tables are constants, or live for ever (variant.c): who
 * has loaded the pointer may use it as long as it likes. */
static _Atomic(const hc_primitives *) active;
static _Atomic(hc_primitives_find) find_loaded; /* variant.c's, once one is loaded */

void hc_primitives_extend(hc_primitives_find find) {
    atomic_store_explicit(&find_loaded, find, memory_order_release);
}

const char *hc_cpu_variant(int32_t index) {
    for (int32_t i = 0; index >= 0 && i < N_VARIANTS; i++)
        if (variants[i]->supported() && index-- == 0)
            return variants[i]->name;
    return NULL;
}

const hc_primitives *hc_primitives_best(void) {
    int32_t i = 0;
    while (!variants[i]->supported()) /* the last one is */
        i++;
    return variants[i];
}

/* The supported variant of that name; NULL name: the best. NULL after hc_fail. */
static const hc_primitives *find(const char *name, const char *asked_by) {
    if (!name)
        return hc_primitives_best();
    char available[64] = "";
    for (int32_t i = 0; i < N_VARIANTS; i++) {
        if (!variants[i]->supported())
            continue;
        if (!strcmp(name, variants[i]->name))
            return variants[i];
        size_t used = strlen(available);
        snprintf(available + used, sizeof available - used, "%s%s", used ? ", " : "",
                 variants[i]->name);
    }
    hc_primitives_find loaded = atomic_load_explicit(&find_loaded, memory_order_acquire);
    const hc_primitives *own = loaded ? loaded(name) : NULL;
    if (own)
        return own;
    /* The way to a file of one's own: HOTCOLD_CPU=mine.c, loaded under that name before. */
    if (strchr(name, '.')) {
        hc_fail(HC_ERR_UNSUPPORTED,
                "%s names the file '%.200s', which is compiled and loaded by an engine or by "
                "hotcold.native.variant, and was not",
                asked_by, name);
        return NULL;
    }
    hc_fail(HC_ERR_UNSUPPORTED,
            "CPU variant '%.40s' asked for by %s is not supported here; available: %s", name,
            asked_by, available);
    return NULL;
}

/* Called by every operator, so the usual case is one load. Acquire pairs with the releases
 * below and in hc_cpu_force: a loaded variant's table is complete when its address is seen. */
const hc_primitives *hc_primitives_get(void) {
    const hc_primitives *table = atomic_load_explicit(&active, memory_order_acquire);
    if (table)
        return table;
    const char *name = getenv("HOTCOLD_CPU");
    table = find(name && name[0] ? name : NULL, "HOTCOLD_CPU");
    if (table) { /* a thread that forced a variant meanwhile has the last word */
        const hc_primitives *none = NULL;
        if (!atomic_compare_exchange_strong(&active, &none, table))
            table = none;
    }
    return table;
}

const char *hc_cpu_active(void) {
    const hc_primitives *table = hc_primitives_get();
    return table ? table->name : NULL;
}

hc_status hc_cpu_force(const char *name) {
    const hc_primitives *table = find(name, "hc_cpu_force");
    if (!table)
        return HC_ERR_UNSUPPORTED;
    atomic_store_explicit(&active, table, memory_order_release);
    return HC_OK;
}
