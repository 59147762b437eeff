/* moves.c - ownership that changes between passes: a loop follows the version of the pass it begins.
 *
 * The segment has the table of owners (abi/moves.h). An executor keeps a list of its own neurons for
 * each layer, ascending, made anew where the table has changed; the predictor reads the table itself.
 * Records of a format of the device's own lie in slots: those of neurons to come were filled, and
 * their entries of slot_N set, before the version was wanted.
 *
 * Without a new version a pass costs one comparison more. A new one: 2 L N bytes compared and N bytes
 * read for each changed layer, 70 us where all 40 layers of a 13B change. Nothing is allocated then.
 */
#include "loop/executor.h"
#include <stdlib.h>
#include <string.h>

static hc_owners *owners_of(const hc_executor *e) {
    hc_segment *segment = e->args.segment;
    return segment->owners_offset ? (hc_owners *)((char *)segment + segment->owners_offset) : NULL;
}

/* Without a table in the segment, and on a GPU, neurons stay where they are. */
void hc_owners_init(hc_executor *e) {
    const hc_model *m = e->args.model;
    e->device_LN = e->args.device_LN;
    if (!e->args.owned_L || e->args.device || !owners_of(e))
        return;
    const size_t layers = (size_t)m->n_layers, n = (size_t)m->n;
    e->owned_L = malloc(layers * sizeof *e->owned_L);
    e->owned_ids_LN = malloc(layers * n * sizeof(int32_t)); /* touched where lists change */
    if (!e->owned_L || !e->owned_ids_LN) {
        e->out_of_memory = 1;
        return;
    }
    e->args.owned_L = memcpy(e->owned_L, e->args.owned_L, layers * sizeof *e->owned_L);
}

void hc_owners_free(hc_executor *e) {
    free(e->owned_L);
    free(e->owned_ids_LN);
}

/* Executors have the first places, in the order of their devices (runtime/topology.py). */
static void list_owned(hc_executor *e, int32_t layer, const int8_t *device_N) {
    const int64_t n = e->args.model->n;
    const int8_t device = (int8_t)e->args.actor;
    int32_t *ids = e->owned_ids_LN + layer * n;
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        ids[count] = (int32_t)i; /* count <= i: inside */
        count += device_N[i] == device;
    }
    e->owned_L[layer].ids = ids;
    e->owned_L[layer].n_ids = count;
}

void hc_follow_owners(hc_executor *e) {
    const uint32_t version = e->args.segment->pass_owners;
    hc_owners *owners = owners_of(e);
    if (version == e->owners_version || !owners)
        return;
    const hc_model *m = e->args.model;
    const int8_t *now_LN = (const int8_t *)hc_slot(e, owners->table[version & 1]);
    const int8_t *before_LN = (const int8_t *)hc_slot(e, owners->table[~version & 1]);
    e->device_LN = now_LN;
    for (int32_t l = 0; e->owned_L && l < m->n_layers; l++)
        if (memcmp(now_LN + l * m->n, before_LN + l * m->n, (size_t)m->n) != 0)
            list_owned(e, l, now_LN + l * m->n);
    e->owners_version = version;
    __atomic_store_n(&owners->followed[e->args.actor], version, __ATOMIC_RELEASE);
}

int hc_owners_due(const hc_executor *e) {
    const hc_owners *owners = owners_of(e);
    return owners && __atomic_load_n(&owners->wanted, __ATOMIC_RELAXED) != e->owners_version;
}

void hc_begin_owners(hc_executor *e) {
    const hc_owners *owners = owners_of(e);
    if (e->args.role != HC_LEADER || !owners)
        return;
    /* The acquire pairs with the release of hc_executor_own: the table is there. */
    e->args.segment->pass_owners = __atomic_load_n(&owners->wanted, __ATOMIC_ACQUIRE);
    hc_follow_owners(e);
}

void hc_executor_own(hc_executor *e, uint32_t version) {
    hc_owners *owners = owners_of(e);
    if (!owners)
        return;
    __atomic_store_n(&owners->wanted, version, __ATOMIC_RELEASE);
    hc_wake(&e->inbox);
}

const int32_t *hc_executor_owned(const hc_executor *e, int32_t layer, int64_t *n_ids) {
    *n_ids = e->args.owned_L[layer].n_ids;
    return e->args.owned_L[layer].ids;
}
