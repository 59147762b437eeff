/* gpu_layout.c - counts the memory of a GPU and hands it out; see gpu_layout.h.
 *
 * C and C++ at once: nothing here that either lacks.
 */
#include "layout/gpu_layout.h"

static void *take(hc_arena *arena, int64_t count, int64_t size) {
    char *at = arena->base ? arena->base + arena->used : NULL;
    arena->used += (count * size + HC_ARENA_ALIGN - 1) / HC_ARENA_ALIGN * HC_ARENA_ALIGN;
    arena->parts += count > 0;
    return at;
}
#define TAKE(arena, type, count) ((type *)take(arena, count, (int64_t)sizeof(type)))
/* Room for a tensor that not every model has. */
#define TAKE_IF(there, arena, type, count) ((there) ? TAKE(arena, type, count) : NULL)

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static int64_t whole(int64_t count, int64_t of) { /* units of so many */
    return (count + of - 1) / of;
}

static int64_t q_dim(const hc_layout_shape *s) {
    return (int64_t)s->heads * s->head_dim;
}

static int64_t kv_dim(const hc_layout_shape *s) {
    return (int64_t)s->kv_heads * s->head_dim;
}

static int64_t sign_words(const hc_layout_shape *s) {
    return whole(s->d, 64);
}

/* ---- Predictors: the executor's, or their own process's ---- */

typedef struct {    /* of all layers that are predicted */
    int64_t hidden; /* most rows of an fc1 */
    int matrices, signs;
} predicted;

static predicted predictions(const hc_layout_shape *s) {
    predicted all = {0, 0, 0};
    for (int32_t i = 0; i < s->n_layers; i++) {
        const hc_layout_layer *layer = &s->layers_L[i];
        if (layer->predicted_at < 0)
            continue;
        if (layer->form == HC_PREDICT_SIGN) {
            all.signs = 1;
            continue;
        }
        all.matrices = 1;
        all.hidden = larger(all.hidden, layer->hidden);
    }
    return all;
}

/* Matrices come from `at`, the rest from `arena`. */
static void lay_out_predictor(const hc_layout_shape *s, const hc_layout_layer *layer,
                              hc_arena *arena, hc_arena *at, hc_predictor_parts *to) {
    to->bias_N = TAKE_IF(layer->bias, arena, float, s->n);
    if (layer->form == HC_PREDICT_SIGN) {
        to->signs_NW = TAKE(at, uint64_t, s->n *sign_words(s));
        to->scale2_N = TAKE(arena, float, s->n);
        to->column_D = TAKE_IF(layer->column, arena, float, s->d);
        return;
    }
    to->fc1 = take(at, layer->hidden * s->d, layer->fc_bytes);
    to->fc2 = take(at, s->n * layer->hidden, layer->fc_bytes);
    to->scale1_H = TAKE_IF(s->predictor_i8, arena, float, layer->hidden);
    to->scale2_N = TAKE_IF(s->predictor_i8, arena, float, s->n);
}

/* ---- The executor ---- */

static int64_t record_bytes(const hc_layout_shape *s, const hc_layout_layer *layer) {
    return layer->record_bytes ? layer->record_bytes : s->record_bytes;
}

static void lay_out_layer(const hc_layout_shape *s, const hc_layout_layer *layer, hc_arena *arena,
                          hc_arena *host, hc_layer_parts *to) {
    const int64_t D = s->d, e = s->element_bytes, C = s->n_chunks, qkv = q_dim(s) + 2 * kv_dim(s);
    const int64_t kv = kv_dim(s) * s->context * s->slots, G = whole(s->n, 32);
    hc_arena *attention = layer->host_parts & HC_PART_ATTENTION ? host : arena;
    hc_arena *cache = layer->host_parts & HC_PART_KV ? host : arena;
    to->attention_norm_D = TAKE(arena, float, D);
    to->ffn_norm_D = TAKE(arena, float, D);
    to->attention_norm_bias_D = TAKE_IF(s->norm_bias, arena, float, D);
    to->ffn_norm_bias_D = TAKE_IF(s->norm_bias, arena, float, D);
    to->qkv_bias = TAKE_IF(s->biases, arena, float, qkv);
    to->o_bias_D = TAKE_IF(s->biases, arena, float, D);
    to->ffn_bias_D = TAKE_IF(s->biases, arena, float, D);
    to->qkv = (char *)take(attention, qkv * D, e);
    to->o = (char *)take(attention, D * q_dim(s), e);
    to->records = (char *)take(arena, layer->resident, record_bytes(s, layer));
    to->record_R = TAKE(arena, const char *, layer->owned);
    to->ids_N = TAKE_IF(s->prompt_rows, arena, int32_t, s->n);
    to->k_cache = take(cache, kv, s->kv_bytes);
    to->v_cache = take(cache, kv, s->kv_bytes);
    to->owned_G = TAKE(arena, uint32_t, G);
    to->row_G = TAKE(arena, int32_t, G);
    to->relay = TAKE(arena, uint32_t, 1);
    to->bounds_C = TAKE(arena, int32_t, C + 1);
    to->starts_C = TAKE(arena, int32_t, C + 1);
    if (layer->predicted_at >= 0 && !s->remote_predictor)
        lay_out_predictor(s, layer, arena, layer->host_parts & HC_PART_PREDICTOR ? host : arena,
                          &to->predictor);
}

static void lay_out_layers(const hc_layout_shape *s, hc_arena *arena, hc_arena *host,
                           uint32_t *members_LN, hc_layer_parts *layers_L) {
    hc_layer_parts unused = {0};
    if (!s->remote_predictor) /* one block: masks leave it whole */
        members_LN = TAKE(arena, uint32_t, s->n_layers * s->n);
    int32_t *counts = TAKE(arena, int32_t, HC_COUNTS * s->n_layers);
    int32_t *fired = TAKE(arena, int32_t, 4 * s->n_chunks * s->n_layers);
    for (int32_t i = 0; i < s->n_layers; i++) {
        hc_layer_parts *to = layers_L ? &layers_L[i] : &unused;
        lay_out_layer(s, &s->layers_L[i], arena, host, to);
        to->members_N = members_LN ? members_LN + i * s->n : NULL;
        to->counts = counts ? counts + HC_COUNTS * i : NULL;
        to->fired_4C = fired ? fired + 4 * s->n_chunks * i : NULL;
    }
}

/* Sums of decode attention. Not scratch: the counters are zeros between passes. */
static void lay_out_attention(const hc_layout_shape *s, hc_arena *arena, hc_pass_parts *to) {
    const int64_t rows = (int64_t)hc_bucket_of(s->max_batch) * s->heads;
    const int64_t pieces = hc_attention_pieces(s->context);
    to->arrived = TAKE(arena, uint32_t, rows);
    to->partial = TAKE_IF(pieces > 1, arena, float, rows * pieces * s->head_dim);
    to->stats = TAKE_IF(pieces > 1, arena, float, rows * pieces * 2);
}

/* What is not of a layer and keeps its content from pass to pass. */
static void lay_out_ends(const hc_layout_shape *s, hc_arena *arena, hc_arena *host,
                         hc_executor_parts *to) {
    const int64_t D = s->d, E = s->embed_dim, half_table = s->context * s->head_dim / 2;
    hc_pass_parts *b = &to->pass;
    b->pass = TAKE(arena, hc_pass_state, 1);
    b->logits = TAKE(arena, float, hc_bucket_of(s->max_batch) * s->vocab);
    b->final_norm_D = TAKE_IF(s->final_norm, arena, float, D);
    b->final_norm_bias_D = TAKE_IF(s->final_norm && s->norm_bias, arena, float, D);
    b->cos_PE = TAKE_IF(s->rotary, arena, float, half_table);
    b->sin_PE = TAKE_IF(s->rotary, arena, float, half_table);
    b->head = (char *)take(s->head_on_host ? host : arena, s->vocab * E, s->element_bytes);
    if (s->projected)
        b->project_out = (char *)take(arena, E * D, s->element_bytes);
    if (s->projected && s->prompt_rows)
        to->prompt.project_in = (char *)take(arena, E * D, s->element_bytes);
    b->skipped = TAKE(arena, int32_t, 1);
    b->n_hot_L = TAKE(arena, int32_t, s->n_layers);
    b->stamps = TAKE(arena, uint64_t, (s->n_layers + 1) * HC_STAMPS);
    lay_out_attention(s, arena, b);
}

/* Scratch of a sparse pass. */
static void lay_out_pass(const hc_layout_shape *s, hc_arena *arena, hc_executor_parts *to) {
    const int64_t B = hc_bucket_of(s->max_batch), D = s->d;
    predicted here = predictions(s);
    int64_t entries = 1;
    hc_pass_parts *b = &to->pass;
    if (s->remote_predictor)
        here.hidden = here.signs = 0;
    b->h = TAKE(arena, float, B *D);
    b->normed = TAKE(arena, float, B *D);
    b->attention_input = s->keeps_both ? TAKE(arena, float, B *D) : b->normed;
    b->qkv = TAKE(arena, float, B *(q_dim(s) + 2 * kv_dim(s)));
    b->attended = TAKE(arena, float, B *q_dim(s));
    b->hidden = TAKE(arena, float, B *here.hidden);
    b->partial_CBD = TAKE(arena, float, s->n_chunks * B * D);
    b->projected = TAKE_IF(s->projected, arena, float, B * s->embed_dim);
    b->planes_BPW = TAKE_IF(here.signs, arena, uint64_t, B * HC_SIGN_BITS * sign_words(s));
    b->step_B = TAKE_IF(here.signs, arena, float, B);
    for (int32_t i = 0; i < s->n_layers; i++)
        entries = larger(entries, s->layers_L[i].owned);
    entries += s->audit_every ? s->n / s->audit_every + 1 : 0;
    float *c_KB = TAKE(arena, float, entries *B);
    for (int32_t i = 0; i <= hc_layout_ahead(s); i++) {
        hc_hot_list hot;
        hot.rows = TAKE(arena, int32_t, entries);
        hot.members = TAKE(arena, uint32_t, entries);
        hot.count = TAKE(arena, int32_t, 1);
        hot.starts = TAKE(arena, int32_t, s->n_chunks + 1);
        hot.audit = TAKE(arena, int32_t, 2);
        hot.c_KB = c_KB;
        if (to->hot_A)
            to->hot_A[i] = hot;
    }
    b->cold_ids = TAKE(arena, int32_t, s->n);
    b->cold_members = TAKE(arena, uint32_t, s->n);
}

hc_record hc_layout_widened(const hc_layout_shape *s) {
    const int32_t dtype = s->element_bytes == 4 ? HC_F32 : HC_F16;
    const int64_t row = whole(s->d * (dtype == HC_F32 ? 4 : 2), 16) * 16;
    hc_record to = {0};
    to.up = s->gated ? row : -1, to.down = s->gated ? 2 * row : row;
    to.bias = s->gated ? 0 : to.down + row;
    to.bytes = to.down + row + (s->gated ? 0 : 16), to.dtype = dtype;
    return to;
}

/* Scratch of a dense prompt pass. What is streamed is what has no record on the device. */
static void lay_out_prompt(const hc_layout_shape *s, hc_arena *arena, hc_prompt_parts *b) {
    const int64_t T = whole(s->prompt_rows, HC_TOKEN_TILE) * HC_TOKEN_TILE, Q = q_dim(s), D = s->d;
    const int64_t rows = s->gated ? HC_PIECE_ROWS_GATED : HC_PIECE_ROWS_PLAIN;
    const int64_t piece = rows < s->n ? rows : s->n, E = s->projected ? s->embed_dim : 0;
    const predicted all = predictions(s);
    const int64_t planes = 2 * HC_SIGN_BITS * sign_words(s); /* as floats */
    const int64_t wide = larger(larger(Q + 2 * kv_dim(s), all.hidden), larger(piece, E));
    const int64_t in = larger(larger(D, Q), E);
    const int64_t out = larger(larger(larger(in, all.hidden), piece), planes);
    int64_t streamed = 0; /* bytes of the longest record */
    for (int32_t i = 0; i < s->n_layers; i++) {
        const hc_layout_layer *layer = &s->layers_L[i];
        if (layer->resident < layer->owned)
            streamed = larger(streamed, record_bytes(s, layer));
        if (layer->owned < s->n)
            streamed = larger(streamed, s->record_bytes);
    }
    b->tokens = T, b->piece_rows = piece, b->masks = hc_layout_ahead(s) + 1;
    b->h = TAKE(arena, float, T *D);
    b->attended = TAKE(arena, float, T *Q);
    b->wide = TAKE(arena, float, T *wide);
    b->operand = (char *)take(arena, T * whole(in, HC_PACK) * HC_PACK, 4);
    b->spare = (char *)take(arena, T * whole(out, HC_PACK) * HC_PACK, 4);
    b->scale_T = TAKE(arena, float, T);
    b->spare_scale_T = TAKE(arena, float, T);
    b->fired = TAKE(arena, unsigned long long, 1);
    if (all.matrices || all.signs) {
        b->mask = TAKE(arena, uint8_t, b->masks * T * s->n);
        b->bits = TAKE(arena, uint8_t, T *whole(s->n, 8));
    }
    if (all.matrices && s->predictor_i8)
        b->expanded = TAKE(arena, char, 2 * all.hidden * larger(D, s->n));
    if (s->widens)
        b->widened = (char *)take(arena, piece, hc_layout_widened(s).bytes);
    for (int i = 0; streamed && i < HC_STREAM_SLOTS; i++)
        b->slots[i] = (char *)take(arena, piece, streamed);
}

int32_t hc_layout_ahead(const hc_layout_shape *s) {
    int32_t ahead = 0;
    for (int32_t i = 0; i < s->n_layers; i++) {
        const int32_t at = s->layers_L[i].predicted_at;
        if (at >= 0 && i - at > ahead)
            ahead = i - at;
    }
    return ahead;
}

void hc_lay_out_executor(const hc_layout_shape *s, hc_arena *device, hc_arena *host,
                         uint32_t *members_LN, hc_executor_parts *to) {
    lay_out_layers(s, device, host, members_LN, to->layers_L);
    lay_out_ends(s, device, host, to);
    const int64_t scratch = device->used;
    lay_out_pass(s, device, to);
    if (!s->prompt_rows)
        return;
    const int64_t end = device->used;
    device->used = scratch; /* the two never run at once */
    lay_out_prompt(s, device, &to->prompt);
    device->used = larger(end, device->used);
}

/* ---- The predictor's process, and the mailbox between the two ---- */

void hc_lay_out_remote(const hc_layout_shape *s, hc_arena *device, hc_arena *host,
                       hc_remote_parts *to) {
    const predicted all = predictions(s);
    const int64_t B = hc_bucket_of(s->max_batch);
    hc_predictor_parts unused = {0};
    for (int32_t i = 0; i < s->n_layers; i++) {
        const hc_layout_layer *layer = &s->layers_L[i];
        hc_predictor_parts *part = to->layers_L ? &to->layers_L[i] : &unused;
        if (layer->predicted_at < 0)
            continue;
        lay_out_predictor(s, layer, device, layer->host_parts & HC_PART_PREDICTOR ? host : device,
                          part);
        part->norm_D = TAKE_IF(layer->folds_norm, device, float, s->d);
    }
    to->pass = TAKE(device, hc_pass_state, 1);
    to->times = TAKE(device, hc_turn_times, 1);
    to->hidden = TAKE(device, float, B *all.hidden);
    to->planes_BPW = TAKE_IF(all.signs, device, uint64_t, B * HC_SIGN_BITS * sign_words(s));
    to->step_B = TAKE(device, float, B);
}

int64_t hc_lay_out_mailbox(const hc_layout_shape *s, char *base, hc_mailbox_parts *to) {
    hc_arena arena = {base, 0, 0};
    to->n_inputs = hc_layout_ahead(s) + 1;
    to->input_floats = hc_bucket_of(s->max_batch) * s->d;
    to->asks = TAKE(&arena, uint32_t, s->n_layers *HC_MAILBOX_LINE);
    to->answers = TAKE(&arena, uint32_t, s->n_layers *HC_MAILBOX_LINE);
    to->inputs = TAKE(&arena, float, to->n_inputs * to->input_floats);
    to->members_LN = TAKE(&arena, uint32_t, s->n_layers * s->n);
    return whole(arena.used, HC_DEVICE_GRANULE) * HC_DEVICE_GRANULE; /* smaller ones would share */
}

/* ---- Bytes alone ---- */

void hc_layout_executor(const hc_layout_shape *s, hc_layout_bytes *out) {
    hc_arena device = {NULL, 0, 0}, host = {NULL, 0, 0};
    hc_executor_parts parts = {0};
    hc_mailbox_parts mailbox;
    hc_lay_out_executor(s, &device, &host, NULL, &parts);
    out->device = device.used, out->host = host.used;
    out->mailbox = s->remote_predictor ? hc_lay_out_mailbox(s, NULL, &mailbox) : 0;
    out->rounding = (HC_ARENA_ALIGN - 1) * (host.parts + s->n_layers);
}

void hc_layout_predictor(const hc_layout_shape *s, hc_layout_bytes *out) {
    hc_arena device = {NULL, 0, 0}, host = {NULL, 0, 0};
    hc_remote_parts parts = {0};
    hc_lay_out_remote(s, &device, &host, &parts);
    out->device = device.used, out->host = host.used, out->mailbox = 0;
    out->rounding = (HC_ARENA_ALIGN - 1) * host.parts;
}
