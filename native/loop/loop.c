/* loop.c - the resident loop: an actor's program, pass after pass, without Python.
 *
 * A pass runs every step once: wait for the step's flags, compute, set its flag. The GPU executor
 * leads: it numbers the passes and writes the pass header before its first signal; the others follow
 * by the flags. No flag or payload of pass s is reused before pass s is over for everyone, since the
 * GPU waits for every active list and, on the last layer with cold neurons, always for their sum:
 * that merge is never selective, and the CPU executor takes its layers in order.
 *
 * Cost of a step beside its work: two or three clock reads and a span, under 0.1 us.
 */
#define _GNU_SOURCE
#include "loop/device.h"
#include "loop/executor.h"
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void hc_put_span(hc_executor *e, hc_span span) {
    hc_segment *segment = e->args.segment;
    hc_actor_state *state = hc_state_of(e);
    if (segment->span_capacity <= 0)
        return;
    hc_span *ring = (hc_span *)((char *)segment + segment->span_offset[e->args.actor]);
    ring[state->span_count % (uint64_t)segment->span_capacity] = span;
    __atomic_store_n(&state->span_count, state->span_count + 1, __ATOMIC_RELEASE);
}

static void record_span(hc_executor *e, const hc_step *step, uint32_t seq, uint64_t begin,
                        uint64_t ready, uint64_t end) {
    hc_segment *segment = e->args.segment;
    hc_actor_state *state = hc_state_of(e);
    hc_put_span(e, (hc_span){begin, ready, end, seq, (int16_t)step->layer, (int16_t)step->op});
    hc_count(&state->busy_ns, (int64_t)(end - ready));
    /* idle time between passes is no waiting: count from the pass's own beginning */
    uint64_t from = begin > segment->pass_begin_ns ? begin : segment->pass_begin_ns;
    if (ready > from)
        hc_count(&state->wait_ns, (int64_t)(ready - from));
    __atomic_store_n(&state->progress, state->progress + 1, __ATOMIC_RELAXED);
}

/* Wait for a step's flags. A selective merge waits for the cold sum only where cold ids are listed. */
static hc_status await(hc_executor *e, const hc_step *step, uint32_t seq) {
    if (step->flags & HC_STEP_AHEAD) {
        hc_status s = hc_flag_wait(e->args.segment, step->wait[1], seq, e->args.epoch, -1, NULL);
        if (s)
            return s;
        hc_read_ahead(e, step, seq);
    }
    for (int i = 0; i < 2; i++) {
        if (step->wait[i] < 0)
            continue;
        if (i == 1 && (step->flags & HC_STEP_SELECTIVE)) {
            const hc_active *cold =
                (const hc_active *)((char *)e->args.segment + step->active[HC_CPU]);
            if (!cold->count) {
                hc_count(&hc_state_of(e)->skipped_exchanges, 1);
                continue;
            }
        }
        hc_status s = hc_flag_wait(e->args.segment, step->wait[i], seq, e->args.epoch, -1, NULL);
        if (s)
            return s;
    }
    return HC_OK;
}

static void fail_on_purpose(hc_executor *e) {
    int32_t signal_number = e->fault_signal;
    __atomic_store_n(&e->fault_op, -1, __ATOMIC_RELEASE);
    kill(getpid(), signal_number);
}

void hc_executor_arm(hc_executor *e, int32_t op, uint32_t at_seq, int32_t signal_number) {
    e->fault_seq = at_seq;
    e->fault_signal = signal_number;
    __atomic_store_n(&e->fault_op, op, __ATOMIC_RELEASE);
}

void hc_fail_if_armed(hc_executor *e, uint32_t seq) {
    if (__atomic_load_n(&e->fault_op, __ATOMIC_ACQUIRE) >= 0 && seq >= e->fault_seq)
        fail_on_purpose(e);
}

hc_status hc_run_pass(hc_executor *e) {
    if (e->args.device) {
        hc_fail_if_armed(e, e->seq + 1);
        return hc_device_run_pass(e);
    }
    hc_segment *segment = e->args.segment;
    uint32_t seq = ++e->seq;
    if (e->args.actor == HC_GPU) {
        segment->pass_batch = e->batch;
        segment->pass_seq = seq;
        segment->pass_position = e->position_B[0];
        segment->pass_begin_ns = hc_now_ns();
    }
    for (int32_t i = 0; i < e->args.n_steps; i++) {
        const hc_step *step = &e->args.steps[i];
        if (__atomic_load_n(&e->fault_op, __ATOMIC_ACQUIRE) == step->op && seq >= e->fault_seq)
            fail_on_purpose(e);
        uint64_t begin = hc_now_ns(), ready = begin;
        if (step->wait[0] >= 0 || step->wait[1] >= 0) {
            hc_status s = await(e, step, seq);
            if (s)
                return s;
            ready = hc_now_ns();
        }
        if (e->args.actor != HC_GPU)
            e->batch = segment->pass_batch;
        hc_status s = hc_compute_step(e, step, seq);
        if (s)
            return s;
        const int last = i + 1 == e->args.n_steps; /* counters must be whole when a pass is over */
        if (last)
            hc_after_step(e, step, seq);
        const uint64_t end = hc_now_ns(); /* before the signal: whom it wakes may take this core */
        if (step->signal >= 0)
            hc_flag_signal(segment, step->signal, seq);
        record_span(e, step, seq, begin, ready, end);
        if (!last)
            hc_after_step(e, step, seq);
    }
    hc_count(&hc_state_of(e)->passes, 1);
    return HC_OK;
}

hc_status hc_executor_begin(hc_executor *e, uint32_t seq, int32_t batch, const int32_t *tokens,
                            int32_t position, int32_t rows) {
    if (batch < 1 || batch > e->args.max_batch)
        return hc_fail(HC_ERR_ARGUMENT, "batch %d is outside 1..%d", batch, e->args.max_batch);
    if (position < 0 || position + batch > e->args.model->context)
        return hc_fail(HC_ERR_ARGUMENT, "position %d is outside the context of %lld",
                       position + batch - 1, (long long)e->args.model->context);
    e->args.segment->pass_batch = batch;
    e->args.segment->pass_seq = seq;
    e->args.segment->pass_position = position;
    e->args.segment->pass_begin_ns = hc_now_ns();
    e->batch = batch;
    e->head_rows = rows;
    e->mask_LN = NULL;
    for (int32_t b = 0; tokens && b < batch; b++) {
        e->token_B[b] = tokens[b];
        e->position_B[b] = position + b;
    }
    return HC_OK;
}

const float *hc_executor_logits(const hc_executor *e) {
    return e->logits_BV;
}

hc_status hc_executor_step(hc_executor *e, int32_t index, uint32_t seq) {
    if (index < 0 || index >= e->args.n_steps)
        return hc_fail(HC_ERR_ARGUMENT, "step %d is outside the program of %d", index,
                       e->args.n_steps);
    const hc_step *step = &e->args.steps[index];
    uint64_t begin = hc_now_ns();
    hc_status s = hc_compute_step(e, step, seq);
    record_span(e, step, seq, begin, begin, hc_now_ns());
    if (!s)
        hc_after_step(e, step, seq);
    return s;
}

static void pin_here(int32_t core) {
    if (core < 0)
        return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    sched_setaffinity(0, sizeof set, &set); /* advisory: an engine runs unpinned where it may not */
}

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

hc_executor *hc_executor_create(const hc_executor_args *args) {
    if (args->max_batch < 1 || args->max_batch > HC_MAX_BATCH) {
        hc_fail(HC_ERR_ARGUMENT, "batch %d is outside 1..%d", args->max_batch, HC_MAX_BATCH);
        return NULL;
    }
    hc_executor *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    e->args = *args;
    e->fault_op = -1;
    if (!allocate(e) || hc_inbox_init(e)) {
        hc_fail(HC_ERR_MEMORY, "no memory for the scratch of a batch of %d", args->max_batch);
        hc_executor_destroy(e);
        return NULL;
    }
    return e;
}

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
