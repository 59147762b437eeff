/* steps.c - what each operation of a program computes.
 *
 * Bytes a token, batch 1, e bytes a weight: attention (D * (q + 2 kv) + q * D) * e and the KV rows
 * read; predict N * D * e (gate rows) or (H * D + N * H) * e (learned); hot and cold: a record's
 * 3 D * e per fired neuron, D * e per proposed one whose gate stays shut; head V * D * e. Every
 * step is bound by these bytes; its FLOPs are one multiply-add a weight.
 *
 * A step reads its inputs from the segment or from the executor's own scratch, and writes its
 * output before loop.c sets the flag. Nothing here waits, signals or allocates.
 */
#include "executor.h"
#include <string.h>

static char *slot(hc_executor *e, int64_t offset) {
    return (char *)e->args.segment + offset;
}

static int64_t element_bytes(int32_t dtype) {
    return dtype == HC_F32 ? 4 : 2;
}

static float to_float(const void *row, int32_t dtype, int64_t i) {
    if (dtype == HC_F32)
        return ((const float *)row)[i];
    uint16_t bits = ((const uint16_t *)row)[i];
    if (dtype == HC_F16) {
        _Float16 half;
        memcpy(&half, &bits, sizeof half);
        return (float)half;
    }
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

static hc_status embed(hc_executor *e) {
    const hc_model *m = e->args.model;
    int64_t row_bytes = m->d * element_bytes(m->dtype);
    for (int32_t b = 0; b < e->batch; b++) {
        int32_t token = e->token_B[b];
        if (token < 0 || token >= m->vocab)
            return hc_fail(HC_ERR_ARGUMENT, "token id %d is outside the vocabulary of %lld", token,
                           (long long)m->vocab);
        const char *row = (const char *)m->embed + token * row_bytes;
        for (int64_t i = 0; i < m->d; i++)
            e->residual_BD[b * m->d + i] = to_float(row, m->dtype, i);
    }
    return HC_OK;
}

/* y = W x for all rows of the pass, counting the weight bytes. */
static hc_status multiply(hc_executor *e, const void *w, int64_t rows, int64_t d, const float *x,
                          float *y, int32_t accumulate, int32_t batch) {
    int32_t dtype = e->args.model->dtype;
    hc_gemv_args a = {.w = w,
                      .stride_bytes = d * element_bytes(dtype),
                      .rows = rows,
                      .d = d,
                      .dtype = dtype,
                      .batch = batch,
                      .x_BD = x,
                      .x_stride = d,
                      .y_BR = y,
                      .y_stride = rows,
                      .accumulate = accumulate};
    hc_count(&hc_state_of(e)->bytes, rows * d * element_bytes(dtype));
    return hc_gemv(&a, e->args.pool);
}

/* Append this pass's keys and values: cache [slot 0][kv_heads][context][head_dim] of one layer. */
static void append_kv(hc_executor *e, const float *qkv, float *k_cache, float *v_cache) {
    const hc_model *m = e->args.model;
    int64_t q_dim = (int64_t)m->heads * m->head_dim, kv_dim = (int64_t)m->kv_heads * m->head_dim;
    int64_t stride = q_dim + 2 * kv_dim;
    for (int32_t b = 0; b < e->batch; b++)
        for (int32_t head = 0; head < m->kv_heads; head++) {
            int64_t to = (head * m->context + e->position_B[b]) * m->head_dim;
            const float *k = qkv + b * stride + q_dim + head * m->head_dim;
            memcpy(k_cache + to, k, sizeof(float) * m->head_dim);
            memcpy(v_cache + to, k + kv_dim, sizeof(float) * m->head_dim);
        }
}

static hc_status attention(hc_executor *e, const hc_step *step) {
    const hc_model *m = e->args.model;
    const hc_layer *layer = &m->layers[step->layer];
    int64_t q_dim = (int64_t)m->heads * m->head_dim, kv_dim = (int64_t)m->kv_heads * m->head_dim;
    int64_t stride = q_dim + 2 * kv_dim,
            cache = step->layer * m->kv_heads * m->context * m->head_dim;
    float *k_cache = e->args.k_cache + cache, *v_cache = e->args.v_cache + cache;
    hc_status s = hc_rmsnorm(e->residual_BD, layer->attention_norm_D, m->norm_eps, e->normed_BD,
                             e->batch, m->d);
    if (!s)
        s = multiply(e, layer->qkv, stride, m->d, e->normed_BD, e->qkv_BQ, 0, e->batch);
    /* query and key heads lie side by side and turn by the same angles: one call for both */
    if (!s)
        s = hc_rotary(e->qkv_BQ, stride, m->heads + m->kv_heads, m->head_dim, m->cos_PE, m->sin_PE,
                      e->position_B, e->batch);
    if (s)
        return s;
    append_kv(e, e->qkv_BQ, k_cache, v_cache);
    hc_attention_args a = {.q = e->qkv_BQ,
                           .q_stride = stride,
                           .k_cache = k_cache,
                           .v_cache = v_cache,
                           .heads = m->heads,
                           .kv_heads = m->kv_heads,
                           .head_dim = m->head_dim,
                           .batch = e->batch,
                           .context = m->context,
                           .slot_B = NULL,
                           .position_B = e->position_B,
                           .scores = e->attention_scores,
                           .out = e->attended_BQ};
    s = hc_attention(&a, e->args.pool);
    hc_count(&hc_state_of(e)->bytes, (e->position_B[e->batch - 1] + 1) * kv_dim * 8);
    if (!s)
        s = multiply(e, layer->o, m->d, q_dim, e->attended_BQ, e->residual_BD, 1, e->batch);
    float *x = (float *)slot(e, step->x);
    if (!s)
        s = hc_rmsnorm(e->residual_BD, layer->ffn_norm_D, m->norm_eps, x, e->batch, m->d);
    if (!s && (step->flags & HC_STEP_RESIDUAL))
        memcpy(x + (int64_t)e->args.max_batch * m->d, e->residual_BD,
               sizeof(float) * e->batch * m->d);
    return s;
}

/* Scores of one layer: gate rows, or the two matrices of a predictor. */
static hc_status score(hc_executor *e, const hc_step *step, const hc_predictor_layer *p) {
    const hc_model *m = e->args.model;
    const float *x = (const float *)slot(e, step->x);
    hc_actor_state *state = hc_state_of(e);
    hc_gemv_args a = {.rows = m->n, .batch = e->batch, .y_BR = e->scores_BN, .y_stride = m->n};
    if (!p->fc1) {
        a.w = (const char *)m->layers[step->layer].records + m->gate_offset;
        a.stride_bytes = m->record_bytes, a.d = m->d, a.dtype = m->dtype;
        a.x_BD = x, a.x_stride = m->d;
        hc_count(&state->gate_rows, m->n * e->batch);
        hc_count(&state->bytes, m->n * m->d * element_bytes(m->dtype));
        return hc_gemv(&a, e->args.pool);
    }
    int64_t size = element_bytes(p->dtype);
    const float *input = p->input ? x + (int64_t)e->args.max_batch * m->d : x;
    hc_gemv_args first = {.w = p->fc1,
                          .stride_bytes = m->d * size,
                          .rows = p->hidden,
                          .d = m->d,
                          .dtype = p->dtype,
                          .batch = e->batch,
                          .x_BD = input,
                          .x_stride = m->d,
                          .y_BR = e->hidden_BH,
                          .y_stride = p->hidden,
                          .relu = p->relu};
    hc_status s = hc_gemv(&first, e->args.pool);
    a.w = p->fc2, a.stride_bytes = p->hidden * size, a.d = p->hidden, a.dtype = p->dtype;
    a.x_BD = e->hidden_BH, a.x_stride = p->hidden, a.bias_R = p->bias_N;
    hc_count(&state->bytes, (m->d + m->n) * p->hidden * size);
    return s ? s : hc_gemv(&a, e->args.pool);
}

static hc_status predict(hc_executor *e, const hc_step *step, uint32_t seq) {
    const hc_model *m = e->args.model;
    const hc_predictor_layer *p = &e->args.predictors_L[step->layer];
    hc_status s = score(e, step, p);
    hc_split_args a = {.scores_BN = e->scores_BN,
                       .n = m->n,
                       .batch = e->batch,
                       .threshold = p->threshold,
                       .device_N = e->args.device_LN + step->layer * m->n,
                       .with_gate = !p->fc1};
    for (int device = 0; device < HC_MAX_DEVICES; device++) {
        a.out[device] = (hc_active *)slot(e, step->active[device]);
        a.out[device]->epoch = e->args.epoch;
        a.out[device]->seq = seq;
        a.out[device]->capacity = m->n;
    }
    return s ? s : hc_split(&a);
}

/* The sparse FFN of this actor's share of a layer, into y. */
static hc_status feed_forward(hc_executor *e, const hc_step *step, uint32_t seq, float *y) {
    const hc_model *m = e->args.model;
    const hc_share *share = &e->args.shares_L[step->layer];
    hc_ffn_args a = {.records = m->layers[step->layer].records,
                     .record_bytes = m->record_bytes,
                     .gate_offset = m->gate_offset,
                     .up_offset = m->up_offset,
                     .down_offset = m->down_offset,
                     .d = m->d,
                     .dtype = m->dtype,
                     .batch = e->batch,
                     .ids = share->ids,
                     .n_ids = share->n_ids,
                     .bounds = share->bounds,
                     .n_chunks = e->args.n_chunks,
                     .x_BD = (const float *)slot(e, step->x),
                     .y_BD = y,
                     .partial_CBD = e->partial_CBD,
                     .work_C = e->work_C};
    if (e->args.fired_LN)
        a.fired_N = e->args.fired_LN + step->layer * m->n;
    if (!(step->flags & HC_STEP_ALL)) {
        hc_active *list = (hc_active *)slot(e, step->active[e->args.actor]);
        if (list->epoch != e->args.epoch || list->seq != seq || list->batch != e->batch)
            return hc_fail(HC_ERR_EPOCH, "active list of layer %d is of pass %u, expected %u",
                           step->layer, list->seq, seq);
        a.ids = hc_active_ids(list), a.n_ids = list->count, a.members = hc_active_members(list);
        if (list->has_gate)
            a.gate_KB = hc_active_gate(list);
    }
    if (!a.n_ids && e->args.actor == HC_CPU)
        return HC_OK; /* nobody reads y then */
    hc_status s = hc_ffn(&a, e->args.pool);
    hc_actor_state *state = hc_state_of(e);
    hc_count(&state->gate_rows, a.gate_rows);
    hc_count(&state->up_down_rows, a.up_down_rows);
    hc_count(&state->bytes, a.bytes);
    return s;
}

/* Set the bits of what both devices' lists propose. */
static void record_masks(hc_executor *e, const hc_step *step) {
    int64_t row = (e->args.model->n + 7) / 8, token = e->args.model->n_layers * row;
    for (int device = 0; device < HC_MAX_DEVICES; device++) {
        hc_active *list = (hc_active *)slot(e, step->active[device]);
        const int32_t *ids = hc_active_ids(list);
        const uint32_t *members = hc_active_members(list);
        for (int64_t k = 0; k < list->count; k++)
            for (int32_t b = 0; b < e->batch; b++)
                if (members[k] >> b & 1)
                    e->mask_LN[b * token + step->layer * row + ids[k] / 8] |= 1u << ids[k] % 8;
    }
}

static hc_status merge(hc_executor *e, const hc_step *step) {
    const hc_model *m = e->args.model;
    int64_t n = e->batch * m->d;
    int predicted = step->active[HC_CPU] >= 0;
    if (step->flags & HC_STEP_HOT)
        for (int64_t i = 0; i < n; i++)
            e->residual_BD[i] += e->hot_BD[i];
    int cold = step->flags & HC_STEP_COLD;
    if (cold && predicted)
        cold = ((hc_active *)slot(e, step->active[HC_CPU]))->count > 0;
    if (cold) {
        const float *y = (const float *)slot(e, step->y);
        for (int64_t i = 0; i < n; i++)
            e->residual_BD[i] += y[i];
    }
    if (predicted && e->mask_LN)
        record_masks(e, step);
    return HC_OK;
}

static hc_status head(hc_executor *e) {
    const hc_model *m = e->args.model;
    int32_t rows = e->head_rows;
    if (!rows)
        return HC_OK;
    const float *h = e->residual_BD + (e->batch - rows) * m->d;
    hc_status s = hc_rmsnorm(h, m->final_norm_D, m->norm_eps, e->normed_BD, rows, m->d);
    return s ? s : multiply(e, m->head, m->vocab, m->d, e->normed_BD, e->logits_BV, 0, rows);
}

hc_status hc_compute_step(hc_executor *e, const hc_step *step, uint32_t seq) {
    switch (step->op) {
    case HC_OP_EMBED:
        return embed(e);
    case HC_OP_ATTENTION:
        return attention(e, step);
    case HC_OP_PREDICT:
        return predict(e, step, seq);
    case HC_OP_HOT:
        return feed_forward(e, step, seq, e->hot_BD);
    case HC_OP_COLD:
        return feed_forward(e, step, seq, (float *)slot(e, step->y));
    case HC_OP_MERGE:
        return merge(e, step);
    case HC_OP_HEAD:
        return head(e);
    }
    return hc_fail(HC_ERR_ARGUMENT, "unknown operation %d in a program", step->op);
}
