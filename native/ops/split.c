/* ops/split.c - predicted scores become one ascending active list per device.
 *
 * HC_ACTIVE_* (hotcold.h) say where the parts of a list lie. Reads 4 bytes a score; a block of 64 neurons is marked for
 * all tokens first (vectorised), then written out, so scores_BN is read in order.
 * Oracle: numpy, tests/native/test_token_kernels.py.
 */
#include "core/internal.h"

#define BLOCK 64

/* Offsets follow from capacity, which the list's owner sets before anything else. */
int32_t *hc_active_ids(hc_active *list) {
    return (int32_t *)((char *)list + HC_ACTIVE_IDS());
}

uint32_t *hc_active_members(hc_active *list) {
    return (uint32_t *)((char *)list + HC_ACTIVE_MEMBERS(list->capacity));
}

float *hc_active_gate(hc_active *list) {
    return (float *)((char *)list + HC_ACTIVE_GATE(list->capacity));
}

/* Which tokens have each neuron of [begin, begin + n).
 * A NaN score is below every threshold: it proposes nothing. */
static void mark(const hc_split_args *a, int64_t begin, int64_t n, uint32_t *mask) {
    for (int64_t i = 0; i < n; i++)
        mask[i] = 0;
    for (int32_t b = 0; b < a->batch; b++) {
        const float *score = a->scores_BN + b * a->n + begin;
        const float threshold = a->threshold;
        for (int64_t i = 0; i < n; i++)
            mask[i] |= (uint32_t)(score[i] >= threshold) << b;
    }
}

static hc_status check_args(const hc_split_args *a) {
    if (!a || !a->scores_BN || !a->device_N)
        return hc_fail(HC_ERR_ARGUMENT, "split: scores and devices must be given");
    if (a->batch < 1 || a->batch > HC_MAX_BATCH || a->n < 0 || a->n > INT32_MAX)
        return hc_fail(HC_ERR_ARGUMENT, "split: %lld neurons, batch %d; at most %d and %d",
                       (long long)a->n, a->batch, INT32_MAX, HC_MAX_BATCH);
    for (int d = 0; d < HC_MAX_DEVICES; d++)
        if (a->out[d] && a->out[d]->capacity < a->n)
            return hc_fail(HC_ERR_ARGUMENT, "split: list %d has room for %lld of %lld neurons", d,
                           (long long)a->out[d]->capacity, (long long)a->n);
    uint32_t bad = 0;
    for (int64_t i = 0; i < a->n; i++)
        bad |= (uint8_t)a->device_N[i] >= HC_MAX_DEVICES;
    if (bad)
        return hc_fail(HC_ERR_ARGUMENT, "split: a device index is not in 0 to %d",
                       HC_MAX_DEVICES - 1);
    return HC_OK;
}

/* Writes ids, members, gate, then count, batch and has_gate of every list: the flag that
 * publishes them is the caller's to set, afterwards (loop/pass.c). */
hc_status hc_split(const hc_split_args *a) {
    hc_status status = check_args(a);
    if (status != HC_OK)
        return status;
    int64_t count[HC_MAX_DEVICES] = {0};
    uint32_t mask[BLOCK];
    for (int64_t begin = 0; begin < a->n; begin += BLOCK) {
        const int64_t n = a->n - begin < BLOCK ? a->n - begin : BLOCK;
        mark(a, begin, n, mask);
        for (int64_t i = 0; i < n; i++) {
            if (!mask[i])
                continue;
            const int64_t id = begin + i;
            const int8_t device = a->device_N[id];
            hc_active *list = a->out[device];
            if (!list)
                return hc_fail(HC_ERR_ARGUMENT,
                               "split: neuron %lld is active on device %d, which "
                               "has no list",
                               (long long)id, device);
            /* Ids come in ascending order, so every list ascends. */
            const int64_t k = count[device]++;
            hc_active_ids(list)[k] = (int32_t)id;
            hc_active_members(list)[k] = mask[i];
            if (a->with_gate)
                for (int32_t b = 0; b < a->batch; b++)
                    hc_active_gate(list)[k * a->batch + b] = a->scores_BN[b * a->n + id];
        }
    }
    for (int d = 0; d < HC_MAX_DEVICES; d++)
        if (a->out[d]) {
            a->out[d]->count = count[d];
            a->out[d]->batch = a->batch;
            a->out[d]->has_gate = a->with_gate;
        }
    return HC_OK;
}
