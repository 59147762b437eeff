/* variant.c - kernels of one's own: a compiled variant file is opened and its table completed.
 *
 * The plug-in exports hc_variant_abi and hc_variant (HC_VARIANT in variant.h). It is opened with
 * its own symbols kept apart, its ABI number is compared before the table is touched, and it stays
 * open for the life of the process. Compiling and testing are done in Python, before.
 */
#include "core/internal.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define MAX_LOADED 64

typedef struct {
    char name[HC_VARIANT_NAME];
    char path[4096];
    hc_primitives table;
} loaded_variant;

/* Fixed storage: addresses of tables stay good for ever, as dispatch.c's users need. Guarded by
 * lock. */
static loaded_variant loaded[MAX_LOADED];
static int32_t n_loaded;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* One of dot and dot_batch made of the other, which the table in force has of its own: no table
 * ever lacks both. */
#define DERIVED(suffix, dtype)                                                                     \
    static void dot_of_batch_##suffix(const void *const *rows, const void *const *ahead,           \
                                      int64_t n, const float *x, int64_t d, int64_t scales,        \
                                      float *out) {                                                \
        (void)ahead;                                                                               \
        hc_primitives_get()->dot_batch[dtype](rows, n, &x, 1, d, scales, out);                     \
    }                                                                                              \
    static void batch_of_dot_##suffix(const void *const *rows, int64_t n, const float *const *xs,  \
                                      int32_t n_x, int64_t d, int64_t scales, float *out) {        \
        const hc_primitives *p = hc_primitives_get();                                              \
        for (int64_t i = 0; i < n; i++)                                                            \
            for (int32_t t = 0; t < n_x; t++)                                                      \
                p->dot[dtype](rows + i, NULL, 1, xs[t], d, scales, out + i * n_x + t);             \
    }
DERIVED(f32, HC_F32)
DERIVED(f16, HC_F16)
DERIVED(bf16, HC_BF16)
DERIVED(i8, HC_I8)

/* Fill what a table leaves out; dot and dot_batch share one order, so never from two sources. */
static void complete(hc_primitives *t, const hc_primitives *best) {
    static const hc_primitives derived = {
        .dot = {dot_of_batch_f32, dot_of_batch_f16, dot_of_batch_bf16, dot_of_batch_i8},
        .dot_batch = {batch_of_dot_f32, batch_of_dot_f16, batch_of_dot_bf16, batch_of_dot_i8}};
    for (int i = 0; i < HC_DTYPES; i++) {
        const hc_primitives *from = t->dot[i] || t->dot_batch[i] ? &derived : best;
        if (!t->dot[i])
            t->dot[i] = from->dot[i];
        if (!t->dot_batch[i])
            t->dot_batch[i] = from->dot_batch[i];
        if (!t->axpy[i])
            t->axpy[i] = best->axpy[i];
    }
    t->supported = best->supported;
    t->max = t->max ? t->max : best->max;
    t->exp_sum = t->exp_sum ? t->exp_sum : best->exp_sum;
    t->sign_count = t->sign_count ? t->sign_count : best->sign_count;
}

/* On failure v's slot is free again: n_loaded has not been raised. */
static hc_status open_variant(const char *path, loaded_variant *v) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return hc_fail(HC_ERR_UNSUPPORTED, "variant %s does not open: %s", v->name, dlerror());
    /* The number first: with another ABI the table's fields would lie elsewhere. */
    const int32_t *abi = dlsym(library, "hc_variant_abi");
    const hc_primitives *table = dlsym(library, "hc_variant");
    hc_status status = HC_OK;
    if (!abi || !table)
        status = hc_fail(HC_ERR_UNSUPPORTED,
                         "variant %s exports no table; end the file with HC_VARIANT(...)", v->name);
    else if (*abi != HC_ABI_VERSION)
        status = hc_fail(HC_ERR_UNSUPPORTED, "variant %s has ABI %d, this library has %d", v->name,
                         *abi, HC_ABI_VERSION);
    if (status != HC_OK) {
        dlclose(library);
        return status;
    }
    /* A copy, completed here: the library's own table is constant. */
    v->table = *table;
    v->table.name = v->name;
    complete(&v->table, hc_primitives_best());
    return HC_OK;
}

/* The newest of that name: a changed file is compiled and loaded again, from another path. */
static const hc_primitives *find_variant(const char *name) {
    const hc_primitives *found = NULL;
    pthread_mutex_lock(&lock);
    for (int32_t i = n_loaded - 1; i >= 0 && !found; i--)
        if (!strcmp(loaded[i].name, name))
            found = &loaded[i].table;
    pthread_mutex_unlock(&lock);
    return found;
}

/* Loading a path twice under one name does nothing the second time. */
hc_status hc_cpu_load(const char *path, const char *name) {
    if (!path || !name || strlen(name) >= HC_VARIANT_NAME || strlen(path) >= sizeof loaded->path)
        return hc_fail(HC_ERR_ARGUMENT, "a variant needs a path and a name of less than %d bytes",
                       HC_VARIANT_NAME);
    hc_status status = HC_OK;
    pthread_mutex_lock(&lock);
    int32_t known = 0;
    for (int32_t i = 0; i < n_loaded; i++)
        known |= !strcmp(loaded[i].name, name) && !strcmp(loaded[i].path, path);
    if (!known && n_loaded == MAX_LOADED) {
        status = hc_fail(HC_ERR_MEMORY, "%d variants are loaded already; start a new process",
                         MAX_LOADED);
    } else if (!known) {
        loaded_variant *v = &loaded[n_loaded];
        snprintf(v->name, sizeof v->name, "%s", name);
        snprintf(v->path, sizeof v->path, "%s", path);
        status = open_variant(path, v);
        n_loaded += status == HC_OK;
        hc_primitives_extend(find_variant);
    }
    pthread_mutex_unlock(&lock);
    return status;
}
