/* window.c - the predictor that remembers: neurons which fired lately are proposed again.
 *
 * A neuron of a layer is proposed for the token at position t where
 *
 *   prior_N[i] + (it fired at a position in [t - window, t), or it is its turn) >= threshold
 *
 * prior NULL counting as 0; it is a neuron's turn where (i + t) mod probe_every = 0, and at the first
 * token of a context, of which nothing is known, all have it. Only the gate tells what fired, so the
 * gates of the proposed neurons are evaluated here and travel along with the list (the executors read
 * none): no word has to come back from them, the state is this actor's own, and the rows of a pass are
 * taken in order, as if they had come one by one. Then all gates are computed once for the pass, which
 * for 2 or more rows is less than their proposals one by one.
 *
 * State, of each slot: position of the last firing, 4 bytes a neuron. Bytes: a proposed neuron's gate, 8 a neuron of
 * prior and state. The sum over a row has one order (variant.h): batch changes nothing.
 */
#include "loop/executor.h"
#include <float.h>
#include <math.h>

#define NEVER INT32_MIN
#define BLOCK 128 /* gate rows of a task */
#define AHEAD 4   /* rows the prefetch runs ahead */

typedef struct {
    hc_executor *e;
    const hc_primitives *p;
    const char *records;
    const float *x_D;
    int64_t n_ids;
} window_run;

static float bias_of(const hc_model *m, const char *records, int64_t id) {
    if (!m->record.bias)
        return 0;
    return *(const float *)(records + id * m->record.bytes + m->record.bias);
}

/* Gates of a block of proposed neurons into scores. */
static void gate_block(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const window_run *run = context;
    const hc_model *m = run->e->args.model;
    const int32_t *ids = run->e->proposed_N + task * BLOCK;
    const int64_t left = run->n_ids - task * BLOCK, n = left < BLOCK ? left : BLOCK;
    const void *rows[BLOCK + AHEAD];
    float gate[BLOCK];
    for (int64_t i = 0; i < n + AHEAD; i++)
        rows[i] = run->records + ids[i < n ? i : n - 1] * m->record.bytes + m->record.gate;
    run->p->dot[m->record.dtype](rows, rows + AHEAD, n, run->x_D, m->d, m->record.scales, gate);
    for (int64_t i = 0; i < n; i++)
        run->e->scores_BN[ids[i]] = gate[i] + bias_of(m, run->records, ids[i]);
}

static int wanted(const hc_predictor_layer *p, int64_t id, int64_t position, int32_t last,
                  int first) {
    const int turn = p->probe_every > 0 && (id + position) % p->probe_every == 0;
    const int recent = last != NEVER && position - last <= p->window;
    const float prior = p->bias_N ? p->bias_N[id] : 0;
    return prior + (float)(first || recent || turn) >= p->threshold;
}

/* Keep of a token's gates what is proposed, -infinity elsewhere; remember what fired.
 * last_N is used and updated token by token: the rule sees exactly what a decode pass would
 * have. */
static void keep_proposed(const hc_model *m, const hc_predictor_layer *p, int64_t position,
                          int first, int32_t *last_N, float *scores_N) {
    for (int64_t i = 0; i < m->n; i++)
        if (!wanted(p, i, position, last_N[i], first))
            scores_N[i] = -INFINITY;
        else if (hc_fires(m->activation, scores_N[i], m->activation_threshold))
            last_N[i] = (int32_t)position;
}

/* One token: only proposed gates are read. How many. */
static int64_t one_token(window_run *run, const hc_predictor_layer *p, int64_t position, int first,
                         int32_t *last_N) {
    hc_executor *e = run->e;
    const hc_model *m = e->args.model;
    for (int64_t i = 0; i < m->n; i++) {
        e->scores_BN[i] = -INFINITY;
        if (wanted(p, i, position, last_N[i], first))
            e->proposed_N[run->n_ids++] = (int32_t)i;
    }
    hc_pool_run(e->args.pool, gate_block, run, (run->n_ids + BLOCK - 1) / BLOCK);
    for (int64_t k = 0; k < run->n_ids; k++) {
        const int32_t id = e->proposed_N[k];
        if (hc_fires(m->activation, e->scores_BN[id], m->activation_threshold))
            last_N[id] = (int32_t)position;
    }
    return run->n_ids;
}

/* A row's state: its slot's. Emptied where the past is empty, or unknown, which is returned. */
static int begin_row(hc_executor *e, int32_t layer, int32_t b, int32_t **last_N) {
    const hc_segment *segment = e->args.segment;
    const hc_model *m = e->args.model;
    const int64_t at = (int64_t)segment->pass_slot_B[b] * m->n_layers + layer;
    const int32_t position = segment->pass_position_B[b];
    const int first = !position || position != e->next_SL[at];
    *last_N = e->last_SLN + at * m->n;
    for (int64_t i = 0; first && i < m->n; i++)
        (*last_N)[i] = NEVER;
    e->next_SL[at] = position + 1;
    return first;
}

hc_status hc_window_scores(hc_executor *e, const hc_step *step, const hc_predictor_layer *p) {
    const hc_model *m = e->args.model;
    const int32_t *position_B = e->args.segment->pass_position_B;
    int32_t *last_N;
    window_run run = {.e = e,
                      .p = hc_primitives_get(),
                      .records = m->layers[step->layer].records,
                      .x_D = (const float *)hc_slot(e, step->x)};
    if (!run.p)
        return HC_ERR_UNSUPPORTED;
    hc_actor_state *state = hc_state_of(e);
    if (e->batch == 1) {
        const int first = begin_row(e, step->layer, 0, &last_N);
        const int64_t rows = one_token(&run, p, position_B[0], first, last_N);
        hc_count(&state->gate_rows, rows);
        hc_count(&state->bytes, rows * step->bytes[HC_PROPOSED]);
        return HC_OK;
    }
    hc_count(&state->bytes, m->n * step->bytes[HC_PROPOSED]);
    hc_status s = hc_gate_scores(e, step);
    for (int32_t b = 0; !s && b < e->batch; b++) {
        const int first = begin_row(e, step->layer, b, &last_N);
        keep_proposed(m, p, position_B[b], first, last_N, e->scores_BN + b * m->n);
    }
    return s;
}
