/* steps.c - what each operation of a program computes.
 *
 * Every step is bound by the bytes it reads, which it carries as coefficients (hc_term; counted in
 * runtime/plan/work.py). What does not depend on neurons is added to the counters here, the rest
 * where neurons are found: window.c, audit.c, ops/ffn.c. The dense steps are in dense.c.
 *
 * A step reads its inputs from the segment or from the executor's own scratch, and writes its
 * output before pass.c sets the flag. Nothing here waits, signals or allocates.
 */
#include "loop/executor.h"
#include <float.h>

/* Scores of one layer. */
static hc_status score(hc_executor *e, const hc_step *step, const hc_predictor_layer *p) {
    const float *x = (const float *)hc_slot(e, step->x);
    const float *input = p->input ? x + (int64_t)e->args.max_batch * e->args.model->d : x;
    switch (p->form) {
    case HC_PREDICT_MATRICES:
        return hc_matrix_scores(e, p, input);
    case HC_PREDICT_GATE:
        return hc_gate_scores(e, step);
    case HC_PREDICT_SIGN:
        return hc_sign_scores(e, p, input);
    case HC_PREDICT_WINDOW:
        return hc_window_scores(e, step, p);
    }
    return hc_fail(HC_ERR_ARGUMENT, "layer %d has a predictor of unknown form %d", step->layer,
                   p->form);
}

/* Scores into scores_BN, then one list for each device into its slot of the segment. epoch and seq let
 * the reader see that a list is this pass's. */
static hc_status predict(hc_executor *e, const hc_step *step, uint32_t seq) {
    const hc_model *m = e->args.model;
    const hc_predictor_layer *p = &e->args.predictors_L[step->layer];
    hc_status s = score(e, step, p);
    hc_split_args a = {.scores_BN = e->scores_BN,
                       .n = m->n,
                       .batch = e->batch,
                       .threshold = p->threshold,
                       .device_N = e->device_LN + step->layer * m->n};
    /* The scores are the gates themselves: they travel along, and the executors read no gate
     * row. */
    if (p->form == HC_PREDICT_GATE)
        a.with_gate = HC_GATE_ALL;
    if (p->form == HC_PREDICT_WINDOW) /* its scores are gates, -infinity where not proposed */
        a.threshold = -FLT_MAX, a.with_gate = HC_GATE_PROPOSED;
    for (int device = 0; device < HC_MAX_DEVICES; device++) {
        if (step->active[device] < 0)
            continue;
        a.out[device] = (hc_active *)hc_slot(e, step->active[device]);
        a.out[device]->epoch = e->args.epoch;
        a.out[device]->seq = seq;
        a.out[device]->capacity = m->n;
    }
    return s ? s : hc_split(&a);
}

/* The sparse FFN of this executor's share of a layer: records, lists, shapes.
 * `to` points into the segment and the model: valid until the flag of this step is set. */
static hc_status describe_ffn(hc_executor *e, const hc_step *step, uint32_t seq, hc_ffn_args *to) {
    const hc_model *m = e->args.model;
    const hc_owned *share = &e->args.owned_L[step->layer];
    hc_ffn_args a = {.records = hc_records_of(e, step->layer),
                     .record = *hc_record_of(e, step->layer),
                     .slot_N = share->slot_N,
                     .activation = m->activation,
                     .activation_threshold = m->activation_threshold,
                     .d = m->d,
                     .batch = e->batch,
                     .ids = share->ids,
                     .n_ids = share->n_ids,
                     .n = m->n,
                     .x_BD = (const float *)hc_slot(e, step->x),
                     .scratch = e->ffn_scratch};
    if (e->args.fired_LN)
        a.fired_N = e->args.fired_LN + step->layer * m->n;
    /* The list's owner wrote it before the flag that this step waited for; a wrong epoch, pass
     * or batch is a program that waits for the wrong flag. */
    if (!(step->flags & HC_STEP_ALL)) {
        hc_active *list = (hc_active *)hc_slot(e, step->active[step->device]);
        if (list->epoch != e->args.epoch || list->seq != seq || list->batch != e->batch)
            return hc_fail(HC_ERR_EPOCH, "active list of layer %d is of pass %u, expected %u",
                           step->layer, list->seq, seq);
        a.ids = hc_active_ids(list), a.n_ids = list->count, a.members = hc_active_members(list);
        if (list->has_gate)
            a.gate_KB = hc_active_gate(list);
    }
    *to = a;
    return HC_OK;
}

void hc_read_ahead(hc_executor *e, const hc_step *step, uint32_t seq) {
    const uint32_t *x_flag = hc_flag_word(e->args.segment, step->wait[0]);
    hc_ffn_args a;
    e->batch = e->args.segment->pass_batch;
    if (!x_flag || !e->batch || describe_ffn(e, step, seq, &a) != HC_OK)
        return; /* the step itself says what is wrong */
    hc_count(&hc_state_of(e)->ahead_bytes, hc_ffn_ahead(&a, e->args.pool, x_flag, seq));
}

static hc_status feed_forward(hc_executor *e, const hc_step *step, uint32_t seq) {
    const int leads = e->args.role == HC_LEADER;
    hc_ffn_args a;
    hc_status s = describe_ffn(e, step, seq, &a);
    if (s)
        return s;
    a.y_BD = leads ? e->hot_BD : (float *)hc_slot(e, step->y[step->device]);
    if (!a.n_ids && !leads && !(step->flags & HC_STEP_ALL))
        return HC_OK; /* nobody reads y then */
    s = hc_ffn(&a, e->args.pool);
    hc_actor_state *state = hc_state_of(e);
    hc_count(&state->gate_rows, a.gate_rows);
    hc_count(&state->up_down_rows, a.up_down_rows);
    hc_count(&state->bytes, a.bytes);
    return s;
}

/* Set the bits of what the devices' lists propose. */
static void record_masks(hc_executor *e, const hc_step *step) {
    int64_t row = (e->args.model->n + 7) / 8;
    for (int device = 0; device < HC_MAX_DEVICES; device++) {
        if (step->active[device] < 0)
            continue;
        hc_active *list = (hc_active *)hc_slot(e, step->active[device]);
        const int32_t *ids = hc_active_ids(list);
        const uint32_t *members = hc_active_members(list);
        for (int64_t k = 0; k < list->count; k++)
            for (int32_t b = 0; b < e->batch; b++)
                if (e->mask_B[b] && members[k] >> b & 1)
                    e->mask_B[b][step->layer * row + ids[k] / 8] |= 1u << ids[k] % 8;
    }
}

/* Add every share and, once, the bias of the down matrix to the residual stream.
 * In this order for every plan: residual + leader's + each other device's + bias. A program whose
 * layer has no neurons on a device, or no active ones, leaves its term out. */
static hc_status merge(hc_executor *e, const hc_step *step) {
    const hc_model *m = e->args.model;
    int64_t n = e->batch * m->d;
    if (step->flags & HC_STEP_HOT)
        for (int64_t i = 0; i < n; i++)
            e->residual_BD[i] += e->hot_BD[i];
    for (int device = 0; device < HC_MAX_DEVICES; device++) {
        if (step->wait[1 + device] < 0 || hc_none_active(e, step, device))
            continue;
        const float *y = (const float *)hc_slot(e, step->y[device]);
        for (int64_t i = 0; i < n; i++)
            e->residual_BD[i] += y[i];
    }
    const hc_layer *layer = &m->layers[step->layer];
    if (layer->ffn_bias_D)
        for (int64_t i = 0; i < n; i++)
            e->residual_BD[i] += layer->ffn_bias_D[i % m->d];
    if (e->masked)
        record_masks(e, step);
    return hc_compute_block(e, step);
}

/* What a step does once its result is out: a peer that waits for a sum does not wait for the audit. */
void hc_after_step(hc_executor *e, const hc_step *step, uint32_t seq) {
    if (e->args.audit_every <= 0 || (step->flags & HC_STEP_ALL) ||
        (step->op != HC_OP_HOT && step->op != HC_OP_COLD))
        return;
    if (((hc_active *)hc_slot(e, step->active[step->device]))->has_gate != HC_GATE_ALL)
        hc_audit(e, step, seq);
}

/* Weights once a pass, and keys and values of each of its sequences. */
static void count_dense(hc_executor *e, const hc_step *step) {
    const int64_t window = e->args.model->window;
    int64_t bytes = step->bytes[HC_FIXED];
    if (step->op == HC_OP_HEAD && !e->head_rows)
        return;
    for (int32_t b = 0, first = 0; step->op == HC_OP_ATTENTION && b < e->batch; b++)
        if (b + 1 == e->batch || e->slot_B[b + 1] != e->slot_B[b]) { /* a sequence's last row */
            bytes +=
                step->bytes[HC_POSITION] * hc_attended_in(window, b + 1 - first, e->position_B[b]);
            first = b + 1;
        }
    hc_count(&hc_state_of(e)->bytes, bytes);
}

hc_status hc_compute_step(hc_executor *e, const hc_step *step, uint32_t seq) {
    count_dense(e, step);
    switch (step->op) {
    case HC_OP_EMBED:
        return hc_embed(e);
    case HC_OP_INPUT:
    case HC_OP_ATTENTION:
        return hc_compute_block(e, step);
    case HC_OP_PREDICT:
        return predict(e, step, seq);
    case HC_OP_HOT:
    case HC_OP_COLD:
        return feed_forward(e, step, seq);
    case HC_OP_MERGE:
        return merge(e, step);
    case HC_OP_HEAD:
        return hc_head(e);
    }
    return hc_fail(HC_ERR_ARGUMENT, "unknown operation %d in a program", step->op);
}
