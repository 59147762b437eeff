/* ops/ahead.c - a list's records, read into the caches before the layer's input is there.
 *
 * A schedule that looks ahead has a layer's cold list out while the GPU still computes the layer's
 * attention: for that long the host's cores and its memory stand idle. Here every thread prefetches
 * into its own second-level cache what it will read in ffn.c, in that order: gate rows and up rows of
 * its pieces of the list, then its columns of the down columns. It stops once the input is there (a
 * flag of the exchange), or its share of the cache is full. Only caches change: the result does not.
 *
 * Bytes: those of ffn.c, moved out of the time that the GPU waits. A core of the H100's host reads
 * 8 GB/s, 14 of them 118: in the 80 us that attention of a 13B layer takes 9 MB, in the 150 us of an
 * OPT-30B layer 18 MB, where 14 second-level caches of 2 MB hold 28.
 *
 * No oracle: nothing is computed. tests/runtime/engine/test_session_schedules.py checks that no bit
 * changes.
 */
#include "core/internal.h"

#define CACHE_BYTES 1310720 /* a thread's share: of 2 MiB, beside x, y and what ffn.c writes */
#define LINE        64

typedef struct {
    const hc_ffn_args *a;
    hc_ffn_cut cut;
    int64_t threads;
    const uint32_t *flag;
    uint32_t seq;
    int64_t bytes; /* of all threads */
} ahead_run;

/* Prefetch some bytes of a record; 0 once it is time to stop.
 * The flag is looked at once a row, relaxed: nothing is read on the strength of it; the step's
 * own wait acquires. */
static int fetch(const ahead_run *run, int64_t k, int64_t offset, int64_t bytes, int64_t *room) {
    const hc_ffn_args *a = run->a;
    if (*room < bytes || __atomic_load_n(run->flag, __ATOMIC_RELAXED) == run->seq)
        return 0;
    const char *record = hc_ffn_record(a, k);
    for (int64_t i = 0; i < bytes; i += LINE)
        /* Locality 2: into L2, past L1. */
        __builtin_prefetch(record + offset + i, 0, 2);
    if (a->record.bias && offset == a->record.gate)
        __builtin_prefetch(record + a->record.bias, 0, 2);
    *room -= bytes;
    return 1;
}

/* n weights of a part of a record, from `first` on, and their scales. */
static int fetch_weights(const ahead_run *run, int64_t k, int64_t part, int64_t first, int64_t n,
                         int64_t *room) {
    const hc_record *r = &run->a->record;
    const int64_t size = hc_dtype_bytes(r->dtype);
    if (!fetch(run, k, part + first * size, n * size, room))
        return 0;
    return !r->scales || fetch(run, k, part + r->scales + hc_scale_bytes(r->dtype, first),
                               hc_scale_bytes(r->dtype, n), room);
}

/* What thread `task` reads of the list, until it is time to stop.
 * The pieces that ffn.c's first phase gives this thread, then its columns of the second. */
static void fetch_share(const ahead_run *run, int64_t task, int64_t *room) {
    const hc_ffn_args *a = run->a;
    const int64_t pieces = run->cut.pieces;
    for (int64_t piece = task; piece < pieces; piece += run->threads) {
        const int64_t end = a->n_ids * (piece + 1) / pieces;
        const int64_t offsets[] = {a->gate_KB ? -1 : a->record.gate, a->record.up};
        for (int row = 0; row < 2; row++)
            for (int64_t k = a->n_ids * piece / pieces; k < end && offsets[row] >= 0; k++)
                if (!fetch_weights(run, k, offsets[row], 0, a->d, room))
                    return;
    }
    const int64_t begin = task * run->cut.columns;
    const int64_t columns = a->d - begin < run->cut.columns ? a->d - begin : run->cut.columns;
    for (int64_t k = 0; k < a->n_ids && columns > 0; k++)
        if (!fetch_weights(run, k, a->record.down, begin, columns, room))
            return;
}

static void ahead(void *context, int64_t task, int32_t thread) {
    ahead_run *run = context;
    int64_t room = CACHE_BYTES;
    if (task != thread)
        return; /* a thread that has not come: its caches are not these */
    fetch_share(run, task, &room);
    __atomic_fetch_add(&run->bytes, CACHE_BYTES - room, __ATOMIC_RELAXED);
}

int64_t hc_ffn_ahead(const hc_ffn_args *args, hc_pool *pool, const uint32_t *flag, uint32_t seq) {
    const int64_t threads = hc_pool_threads(pool);
    ahead_run run = {.a = args,
                     .cut = hc_ffn_cut_of(args, threads),
                     .threads = threads,
                     .flag = flag,
                     .seq = seq};
    if (args->n_ids > 0)
        hc_pool_run(pool, ahead, &run, threads);
    return run.bytes;
}
