/* loop.c - the resident loop of one actor, without Python: pass after pass until poison.
 *
 * Creates and frees an executor's scratch. The GPU executor serves requests (request.c), a remote
 * predictor follows its device (device.c), all others run pass after pass (pass.c).
 */
#define _GNU_SOURCE
#include "loop/device.h"
#include "loop/executor.h"
#include <sched.h>
#include <stdlib.h>
#include <string.h>

static void pin_here(int32_t core) {
    if (core < 0)
        return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    sched_setaffinity(0, sizeof set, &set); /* advisory: an engine runs unpinned where it may not */
}

/* The thread stays here until the exchange is poisoned; whatever ends it otherwise poisons it,
 * so that the other actors' waits end too. */
hc_status hc_executor_run(hc_executor *e) {
    pin_here(e->args.core);
    hc_status s = hc_segment_check(e->args.segment, e->args.segment->bytes, e->args.epoch);
    if (s)
        return s;
    if (e->args.actor == HC_GPU)
        s = hc_serve_requests(e);
    else if (e->args.device)
        s = hc_device_follow(e);
    else if (!e->args.n_steps) /* stands by: the last flag is never set */
        s = hc_flag_wait(e->args.segment, (int32_t)e->args.segment->n_flags - 1, UINT32_MAX,
                         e->args.epoch, -1, NULL);
    else
        while (!s)
            s = hc_run_pass(e);
    if (s != HC_ERR_POISONED)
        hc_segment_poison(e->args.segment, HC_POISON_FAILED, e->args.actor);
    return s;
}

/* One zeroed, cache-line aligned block; NULL only when memory is short. */
static void *scratch(int64_t bytes) {
    void *block = NULL;
    if (posix_memalign(&block, 64, bytes > 0 ? (size_t)bytes : 64))
        return NULL;
    return memset(block, 0, bytes > 0 ? (size_t)bytes : 64);
}

/* Sized for the largest of each over the layers; forms that no layer has get a line of nothing. */
static int allocate_predictor(hc_executor *e) {
    const hc_executor_args *a = &e->args;
    const hc_model *m = a->model;
    int64_t B = a->max_batch, f = sizeof(float), hidden = 0, planes = 0, windows = 0;
    for (int32_t l = 0; a->predictors_L && l < m->n_layers; l++) {
        const hc_predictor_layer *p = &a->predictors_L[l];
        hidden = p->hidden > hidden ? p->hidden : hidden;
        if (p->form == HC_PREDICT_SIGN)
            planes = p->input_bits > planes ? p->input_bits : planes;
        windows |= p->form == HC_PREDICT_WINDOW;
    }
    e->scores_BN = scratch(B * m->n * f);
    e->hidden_BH = scratch(B * hidden * f);
    e->planes_BPW = scratch(B * planes * ((m->d + 63) / 64) * 8);
    e->last_LN = scratch(windows * m->n_layers * m->n * 4);
    e->next_position_L = scratch(windows * m->n_layers * 4);
    e->proposed_N = scratch(windows * m->n * 4);
    return e->scores_BN && e->hidden_BH && e->planes_BPW && e->last_LN && e->next_position_L &&
           e->proposed_N;
}

/* B = max_batch rows of everything. With a device the host's own FFN is never run, and logits
 * are the device's pinned memory. */
static int allocate(hc_executor *e) {
    const hc_executor_args *a = &e->args;
    const hc_model *m = a->model;
    int64_t B = a->max_batch, f = sizeof(float);
    int64_t q = (int64_t)m->heads * m->head_dim, kv = (int64_t)m->kv_heads * m->head_dim;
    if (a->actor == HC_PREDICTOR)
        return allocate_predictor(e);
    e->ffn_scratch = scratch(a->device ? 0 : hc_ffn_scratch_bytes(m->n, a->max_batch));
    if (a->actor == HC_CPU)
        return e->ffn_scratch != NULL;
    e->embedded_BE = scratch(m->project_in ? B * m->embed_dim * f : 0);
    e->residual_BD = scratch(B * m->d * f);
    e->normed_BD = scratch(B * m->d * f);
    e->hot_BD = scratch(B * m->d * f);
    e->qkv_BQ = scratch(B * (q + 2 * kv) * f);
    e->attended_BQ = scratch(B * q * f);
    e->attention_scores = scratch(hc_pool_threads(a->pool) * m->context * f);
    e->logits_BV = a->device ? hc_device_logits(a->device) : scratch(B * m->vocab * f);
    e->sample_ids = scratch(m->vocab * 4);
    e->sample_probs = scratch(m->vocab * f);
    return e->ffn_scratch && e->residual_BD && e->normed_BD && e->hot_BD && e->embedded_BE &&
           e->qkv_BQ && e->attended_BQ && e->attention_scores && e->logits_BV && e->sample_ids &&
           e->sample_probs;
}

/* args is copied, what it points to is not: model, steps, segment and pool must outlive the
 * executor. */
hc_executor *hc_executor_create(const hc_executor_args *args) {
    if (args->max_batch < 1 || args->max_batch > HC_MAX_BATCH) {
        hc_fail(HC_ERR_ARGUMENT, "batch %d is outside 1..%d", args->max_batch, HC_MAX_BATCH);
        return NULL;
    }
    hc_executor *e = calloc(1, sizeof *e);
    if (!e) {
        hc_fail(HC_ERR_MEMORY, "no memory for an executor of %zu bytes", sizeof *e);
        return NULL;
    }
    e->args = *args;
    e->fault_op = -1;
    hc_inbox_init(e); /* before what may fail: destroying frees it too */
    if (!allocate(e)) {
        hc_fail(HC_ERR_MEMORY, "no memory for the scratch of a batch of %d", args->max_batch);
        hc_executor_destroy(e);
        return NULL;
    }
    return e;
}

/* hc_executor_run has returned, and no control thread is in a call. */
void hc_executor_destroy(hc_executor *e) {
    if (!e)
        return;
    if (e->args.device)
        e->logits_BV = NULL; /* the device's own */
    void *blocks[] = {e->residual_BD, e->normed_BD,    e->qkv_BQ,      e->attended_BQ,
                      e->hot_BD,      e->logits_BV,    e->ffn_scratch, e->attention_scores,
                      e->sample_ids,  e->sample_probs, e->scores_BN,   e->hidden_BH,
                      e->embedded_BE, e->planes_BPW,   e->last_LN,     e->next_position_L,
                      e->proposed_N};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        free(blocks[i]);
    hc_inbox_free(e);
    free(e);
}
