/* audit.c - the recall audit: a sample of the neurons a predictor left out, computed anyway.
 *
 * What a predictor proposes is checked by the gate; what it misses is never seen. Here each executor
 * cuts the neurons it owns in strata of audit_every and evaluates the gate of one neuron of each,
 * drawn by a counter-based hash of (seed, pass, layer, token, stratum), unless it was proposed.
 * Every neuron is drawn with probability 1 / audit_every, so that
 *
 *   missed ~ audit_every * audit_missed,   recall = fired / (fired + missed)   (runtime/audit.py)
 *
 * The result goes to counters alone: outputs do not depend on it. A token costs
 * neurons / audit_every gate rows; nothing is allocated.
 */
#include "executor.h"

#define GROUP 32   /* gate rows evaluated together */
#define AHEAD 1024 /* bytes of a row asked for while the others are drawn */

static uint64_t mix(uint64_t z) { /* splitmix64's finaliser */
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Whether token b was proposed neuron id. */
static int proposed(hc_active *list, int32_t id, int32_t b) {
    const int32_t *ids = hc_active_ids(list);
    int64_t low = 0, n = list->count;
    while (n > 0) {
        int64_t half = n / 2;
        if (ids[low + half] < id) {
            low += half + 1;
            n -= half + 1;
        } else {
            n = half;
        }
    }
    return low < list->count && ids[low] == id && (hc_active_members(list)[low] >> b & 1);
}

static int64_t count_fired(const hc_executor *e, const void *const *rows, int64_t n,
                           const float *x_D) {
    float gate[GROUP];
    int64_t fired = 0;
    hc_primitives_get()->dot[e->args.model->dtype](rows, NULL, n, x_D, e->args.model->d, gate);
    const hc_model *m = e->args.model;
    for (int64_t i = 0; i < n; i++) {
        if (m->bias_offset)
            gate[i] += *(const float *)((const char *)rows[i] - m->gate_offset + m->bias_offset);
        fired += gate[i] > 0;
    }
    return fired;
}

void hc_audit(hc_executor *e, const hc_step *step, uint32_t seq) {
    const hc_model *m = e->args.model;
    const hc_share *share = &e->args.shares_L[step->layer];
    hc_active *list = (hc_active *)((char *)e->args.segment + step->active[e->args.actor]);
    const char *records = m->layers[step->layer].records;
    const float *x_BD = (const float *)((char *)e->args.segment + step->x);
    const int64_t every = e->args.audit_every;
    const int64_t row_bytes = m->d * hc_dtype_bytes(m->dtype);
    const void *rows[GROUP];
    int64_t evaluated = 0, missed = 0;
    for (int32_t b = 0; b < e->batch; b++) {
        uint64_t key = mix(e->args.audit_seed + 0x9e3779b97f4a7c15u);
        key = mix(key ^ ((uint64_t)seq << 32 | (uint64_t)step->layer << 8 | (uint64_t)b));
        int64_t n = 0;
        for (int64_t stratum = 0; stratum * every < share->n_ids; stratum++) {
            const uint64_t draw = mix(key + (uint64_t)stratum * 0x9e3779b97f4a7c15u);
            const int64_t k = stratum * every + (int64_t)(draw % (uint64_t)every);
            if (k >= share->n_ids || proposed(list, share->ids[k], b))
                continue;
            rows[n] = records + share->ids[k] * m->record_bytes + m->gate_offset;
            for (int64_t at = 0; at < row_bytes && at < AHEAD; at += 64)
                __builtin_prefetch((const char *)rows[n] + at);
            n++;
            evaluated++;
            if (n == GROUP) {
                missed += count_fired(e, rows, n, x_BD + b * m->d);
                n = 0;
            }
        }
        if (n)
            missed += count_fired(e, rows, n, x_BD + b * m->d);
    }
    hc_actor_state *state = hc_state_of(e);
    hc_count(&state->audit_rows, evaluated);
    hc_count(&state->audit_missed, missed);
    hc_count(&state->bytes, evaluated * row_bytes);
}
