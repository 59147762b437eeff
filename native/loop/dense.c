/* dense.c - the dense steps of the GPU executor: embedding, norms and attention of a block, head.
 *
 * A layer's norms and its attention are operators of the model's block, walked in their order; no
 * architecture is known here. Models differ beside it in a few fields of hc_model: the norm (RMS or
 * layer norm), biases (a NULL pointer is none), positions (rotary tables, or learned rows added to the
 * embeddings), and embeddings of another width than the residual stream, projected on the way in and
 * out.
 *
 * All rows of a pass go through together, [B][...] contiguous; B = e->batch.
 */
#include "loop/executor.h"
#include <string.h>

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

/* y = W x (+ bias) for all rows of the pass. */
static hc_status multiply(hc_executor *e, const void *w, const float *bias_R, int64_t rows,
                          int64_t d, const float *x, float *y, int32_t accumulate, int32_t batch) {
    hc_gemv_args a = hc_product(w, e->args.model->dtype, rows, d, x, y, batch);
    a.bias_R = bias_R;
    a.accumulate = accumulate;
    return hc_gemv(&a, e->args.pool);
}

/* The model's kind of norm; y may be x. */
static hc_status model_norm(const hc_model *m, const float *x_BD, const float *weight_D,
                            const float *bias_D, float *y_BD, int32_t batch) {
    return hc_norm_rows(m->norm, x_BD, weight_D, bias_D, m->norm_eps, y_BD, batch, m->d);
}

/* residual = embedding row (projected, where it has another width), plus the position's row. */
hc_status hc_embed(hc_executor *e) {
    const hc_model *m = e->args.model;
    const int64_t element = hc_dtype_bytes(m->dtype), width = m->embed_dim;
    const float scale = m->embed_scale != 0 ? m->embed_scale : 1;
    float *rows = m->project_in ? e->embedded_BE : e->residual_BD;
    for (int32_t b = 0; b < e->batch; b++) {
        int32_t token = e->token_B[b];
        if (token < 0 || token >= m->vocab)
            return hc_fail(HC_ERR_ARGUMENT, "token id %d is outside the vocabulary of %lld", token,
                           (long long)m->vocab);
        /* Rows are widened one by one: embeddings stay in the checkpoint's dtype, B rows a pass. */
        const char *row = (const char *)m->embed + token * width * element;
        for (int64_t i = 0; i < width; i++)
            rows[b * width + i] = to_float(row, m->dtype, i) * scale;
    }
    if (m->project_in) {
        hc_status s =
            multiply(e, m->project_in, NULL, m->d, width, rows, e->residual_BD, 0, e->batch);
        if (s)
            return s;
    }
    for (int32_t b = 0; m->positions && b < e->batch; b++) {
        const char *row = (const char *)m->positions + e->position_B[b] * m->d * element;
        for (int64_t i = 0; i < m->d; i++)
            e->residual_BD[b * m->d + i] += to_float(row, m->dtype, i);
    }
    return HC_OK;
}

/* Append this pass's keys and values: cache [slot][kv_heads][context][head_dim] of one layer. Each row is stored at its own position: later rows of a block attend to earlier ones. */
static void append_kv(hc_executor *e, const float *qkv, float *k_cache, float *v_cache) {
    const hc_model *m = e->args.model;
    int64_t q_dim = (int64_t)m->heads * m->head_dim, kv_dim = (int64_t)m->kv_heads * m->head_dim;
    int64_t stride = q_dim + 2 * kv_dim;
    for (int32_t b = 0; b < e->batch; b++)
        for (int32_t head = 0; head < m->kv_heads; head++) {
            int64_t to = ((int64_t)e->slot_B[b] * m->kv_heads + head) * m->context;
            to = (to + e->position_B[b]) * m->head_dim;
            const float *k = qkv + b * stride + q_dim + head * m->head_dim;
            memcpy(k_cache + to, k, sizeof(float) * m->head_dim);
            memcpy(v_cache + to, k + kv_dim, sizeof(float) * m->head_dim);
        }
}

/* The norm of heads, side by side, in place: each is a row of the operator. */
static hc_status norm_heads(const hc_model *m, float *heads_HE, int32_t heads,
                            const float *weight_E, const float *bias_E) {
    hc_status s = HC_OK;
    for (int32_t h = 0; !s && h < heads; h += HC_MAX_BATCH) {
        const int32_t count = heads - h < HC_MAX_BATCH ? heads - h : HC_MAX_BATCH;
        float *at = heads_HE + (int64_t)h * m->head_dim;
        s = hc_norm_rows(m->norm, at, weight_E, bias_E, m->norm_eps, at, count, m->head_dim);
    }
    return s;
}

/* Queries, keys and values of this pass, normed by head where the model does, positions applied, from
 * attention's input. */
static hc_status project(hc_executor *e, const hc_layer *layer, const float *x, int64_t width) {
    const hc_model *m = e->args.model;
    hc_status s = multiply(e, layer->qkv, layer->qkv_bias, width, m->d, x, e->qkv_BQ, 0, e->batch);
    const int64_t q_dim = (int64_t)m->heads * m->head_dim;
    for (int32_t b = 0; !s && layer->q_norm_E && b < e->batch; b++) {
        float *q = e->qkv_BQ + b * width;
        s = norm_heads(m, q, m->heads, layer->q_norm_E, layer->q_norm_bias_E);
        if (!s)
            s = norm_heads(m, q + q_dim, m->kv_heads, layer->k_norm_E, layer->k_norm_bias_E);
    }
    if (s || !m->cos_PE)
        return s;
    /* query and key heads lie side by side and turn by the same angles: one call for both */
    return hc_rotary(e->qkv_BQ, width, m->heads + m->kv_heads, m->head_dim, m->cos_PE, m->sin_PE,
                     e->position_B, e->batch);
}

/* residual += Wo attention(x) */
static hc_status attend(hc_executor *e, const hc_step *step, const float *x) {
    const hc_model *m = e->args.model;
    const hc_layer *layer = &m->layers[step->layer];
    int64_t q_dim = (int64_t)m->heads * m->head_dim, kv_dim = (int64_t)m->kv_heads * m->head_dim;
    int64_t stride = q_dim + 2 * kv_dim,
            cache = (int64_t)step->layer * e->args.n_slots * m->kv_heads * m->context * m->head_dim;
    float *k_cache = e->args.k_cache + cache, *v_cache = e->args.v_cache + cache;
    hc_status s = project(e, layer, x, stride);
    if (s)
        return s;
    /* Before attention: a token attends to itself, and in a block of a prompt to the tokens before
     * it. */
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
                           .slot_B = e->slot_B,
                           .position_B = e->position_B,
                           .scores = e->attention_scores,
                           .out = e->attended_BQ,
                           .window = m->window};
    s = hc_attention(&a, e->args.pool);
    /* accumulate = 1: the output projection is added to the residual stream in place. */
    if (!s)
        s = multiply(e, layer->o, layer->o_bias_D, m->d, q_dim, e->attended_BQ, e->residual_BD, 1,
                     e->batch);
    return s;
}

/* Where a stream lies. x goes straight into the segment's slot, where the predictor and both executors
 * read it; the step's flag, set by pass.c, publishes it. */
static float *stream_of(hc_executor *e, const hc_step *step, int32_t stream) {
    return stream == HC_STREAM_X   ? (float *)hc_slot(e, step->x)
           : stream == HC_STREAM_A ? e->normed_BD
                                   : e->residual_BD;
}

/* The input of the feed-forward part, and the residual stream behind it where a predictor reads
 * that: max_batch rows behind x, so its place does not depend on the batch. */
static void hand_over(hc_executor *e, const hc_step *step, int32_t source) {
    const hc_model *m = e->args.model;
    const size_t bytes = sizeof(float) * e->batch * m->d;
    float *x = stream_of(e, step, HC_STREAM_X);
    if (source != HC_STREAM_X)
        memcpy(x, stream_of(e, step, source), bytes);
    if (step->flags & HC_STEP_RESIDUAL)
        memcpy(x + (int64_t)e->args.max_batch * m->d, e->residual_BD, bytes);
}

hc_status hc_compute_block(hc_executor *e, const hc_step *step) {
    const hc_model *m = e->args.model;
    const hc_layer *layer = &m->layers[step->layer];
    hc_status s = HC_OK;
    for (int32_t i = 0; !s && i < m->n_block; i++) {
        const hc_operator *op = &m->block[i];
        if (op->step != step->op)
            continue;
        float *source = stream_of(e, step, op->source);
        if (op->kind == HC_OPERATOR_NORM)
            s = model_norm(m, source, op->of_ffn ? layer->ffn_norm_D : layer->attention_norm_D,
                           op->of_ffn ? layer->ffn_norm_bias_D : layer->attention_norm_bias_D,
                           stream_of(e, step, op->target), e->batch);
        else if (op->kind == HC_OPERATOR_ATTEND)
            s = attend(e, step, source);
        else
            hand_over(e, step, op->source);
    }
    return s;
}

/* The rows whose logits are wanted, side by side: where they lie, or else copied. */
static const float *head_input(hc_executor *e) {
    const int64_t d = e->args.model->d, first = e->head_B[0];
    if (e->head_B[e->head_rows - 1] - first == e->head_rows - 1)
        return e->residual_BD + first * d;
    for (int32_t i = 0; i < e->head_rows; i++)
        memcpy(e->normed_BD + i * d, e->residual_BD + e->head_B[i] * d, sizeof(float) * d);
    return e->normed_BD;
}

/* Of rows that nobody draws from, a prompt's inner ones, no logits are made. */
hc_status hc_head(hc_executor *e) {
    const hc_model *m = e->args.model;
    const int32_t rows = e->head_rows;
    if (!rows)
        return HC_OK;
    const float *h = head_input(e);
    hc_status s = HC_OK;
    if (m->final_norm_D) {
        s = model_norm(m, h, m->final_norm_D, m->final_norm_bias_D, e->normed_BD, rows);
        h = e->normed_BD;
    }
    if (!s && m->project_out) {
        s = multiply(e, m->project_out, NULL, m->embed_dim, m->d, h, e->embedded_BE, 0, rows);
        h = e->embedded_BE;
    }
    return s ? s : multiply(e, m->head, NULL, m->vocab, m->embed_dim, h, e->logits_BV, 0, rows);
}
