/* loop.c - the resident loop of one actor, without Python: pass after pass until poison.
 *
 * Creates and frees an executor's scratch. The leader serves requests (scheduler.c), a remote
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
    if (e->args.role == HC_LEADER)
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

/* One zeroed, cache-line aligned block, freed with the executor; NULL only when memory is short. */
static void *scratch(hc_executor *e, int64_t bytes) {
    void *block = NULL;
    if (bytes <= 0)
        bytes = HC_CACHE_LINE;
    if (posix_memalign(&block, HC_CACHE_LINE, (size_t)bytes)) {
        e->out_of_memory = 1;
        return NULL;
    }
    return e->scratch[e->n_scratch++] = memset(block, 0, (size_t)bytes);
}

/* Sized for the largest of each over the layers; forms that no layer has get a line of nothing. */
static void allocate_predictor(hc_executor *e) {
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
    e->scores_BN = scratch(e, B * m->n * f);
    e->hidden_BH = scratch(e, B * hidden * f);
    e->planes_BPW = scratch(e, B * planes * ((m->d + 63) / 64) * 8);
    e->last_SLN = scratch(e, windows * a->n_slots * m->n_layers * m->n * 4);
    e->next_SL = scratch(e, windows * a->n_slots * m->n_layers * 4);
    e->proposed_N = scratch(e, windows * m->n * 4);
}

/* B = max_batch rows of everything. With a device the host's own FFN is never run, and logits
 * are the device's pinned memory. */
static void allocate(hc_executor *e) {
    const hc_executor_args *a = &e->args;
    const hc_model *m = a->model;
    int64_t B = a->max_batch, f = sizeof(float);
    int64_t q = (int64_t)m->heads * m->head_dim, kv = (int64_t)m->kv_heads * m->head_dim;
    if (a->role == HC_PREDICTOR) {
        allocate_predictor(e);
        return;
    }
    e->ffn_scratch = scratch(e, a->device ? 0 : hc_ffn_scratch_bytes(m->n, a->max_batch));
    if (a->role == HC_WORKER)
        return;
    e->embedded_BE = scratch(e, m->project_in ? B * m->embed_dim * f : 0);
    e->residual_BD = scratch(e, B * m->d * f);
    e->normed_BD = scratch(e, B * m->d * f);
    e->hot_BD = scratch(e, B * m->d * f);
    e->qkv_BQ = scratch(e, B * (q + 2 * kv) * f);
    e->attended_BQ = scratch(e, B * q * f);
    e->attention_scores = scratch(e, hc_pool_threads(a->pool) * m->context * f);
    e->logits_BV = a->device ? hc_device_logits(a->device) : scratch(e, B * m->vocab * f);
    e->sample_ids = scratch(e, m->vocab * 4);
    e->sample_probs = scratch(e, m->vocab * f);
}

/* args is copied, what it points to is not: model, steps, segment and pool must outlive the
 * executor. */
hc_executor *hc_executor_create(const hc_executor_args *args) {
    if (args->max_batch < 1 || args->max_batch > HC_MAX_BATCH) {
        hc_fail(HC_ERR_ARGUMENT, "batch %d is outside 1..%d", args->max_batch, HC_MAX_BATCH);
        return NULL;
    }
    if (args->n_slots < 1 || args->n_slots > (args->device ? 1 : HC_MAX_BATCH)) {
        hc_fail(HC_ERR_ARGUMENT, "%d sequences at once; 1 to %d are possible%s", args->n_slots,
                args->device ? 1 : HC_MAX_BATCH, args->device ? " on a GPU" : "");
        return NULL;
    }
    hc_executor *e = calloc(1, sizeof *e);
    if (!e) {
        hc_fail(HC_ERR_MEMORY, "no memory for an executor of %zu bytes", sizeof *e);
        return NULL;
    }
    e->args = *args;
    e->fault_op = -1;
    hc_scheduler_init(e);
    hc_inbox_init(e); /* before what may fail: destroying frees it too */
    allocate(e);
    hc_owners_init(e);
    if (e->out_of_memory) {
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
    for (int i = 0; i < e->n_scratch; i++)
        free(e->scratch[i]);
    hc_owners_free(e);
    hc_inbox_free(e);
    free(e);
}
