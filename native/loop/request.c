/* request.c - the GPU executor's inbox: one request at a time, from prompt to last token.
 *
 * A control thread posts a request and reads tokens; the loop thread computes them. Both meet under
 * one lock, taken once a token. Prompts go through the programs in blocks of max_batch tokens, each
 * decoded token in a pass of its own; sampling is part of the loop.
 *
 * States of the inbox: idle (done = 1) -> posted -> running -> done. A second request is refused
 * until then; tokens and state of the last one can be read until the next is posted.
 */
#define _GNU_SOURCE
#include "loop/device.h"
#include "loop/executor.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void hc_inbox_init(hc_executor *e) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    /* Deadlines are CLOCK_MONOTONIC: a clock that is set does not lengthen a wait. */
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&e->inbox.lock, NULL);
    pthread_cond_init(&e->inbox.changed, &attributes);
    pthread_condattr_destroy(&attributes);
    e->inbox.done = 1;
}

static void drop_request(hc_inbox *inbox) {
    free(inbox->prompt);
    free(inbox->eos);
    free(inbox->tokens);
    inbox->prompt = inbox->eos = NULL;
    inbox->tokens = NULL;
    inbox->n_tokens = 0;
}

void hc_inbox_free(hc_executor *e) {
    drop_request(&e->inbox);
    pthread_cond_destroy(&e->inbox.changed);
    pthread_mutex_destroy(&e->inbox.lock);
}

/* Called with the lock held; may return early, as condition variables do. */
static void wait_changed(hc_inbox *inbox, int64_t milliseconds) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += milliseconds % 1000 * 1000000;
    until.tv_sec += milliseconds / 1000 + until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&inbox->changed, &inbox->lock, &until);
}

/* NULL where memory is short; never for a count of 0. */
static void *copy_of(const void *from, int64_t count, size_t size) {
    void *to = malloc(count > 0 ? count * size : 1);
    if (to && count > 0)
        memcpy(to, from, count * size);
    return to;
}

/* Checks everything the loop will index with: afterwards nothing of a request can be out of
 * range. */
hc_status hc_executor_post(hc_executor *e, const hc_request *request) {
    hc_inbox *inbox = &e->inbox;
    int64_t context = e->args.model->context;
    if (request->n_prompt < 1 || request->n_prompt > context)
        return hc_fail(HC_ERR_ARGUMENT, "prompt of %d tokens, the context holds 1 to %lld",
                       request->n_prompt, (long long)context);
    if (request->n_past < 0 || request->n_past >= request->n_prompt)
        return hc_fail(HC_ERR_ARGUMENT, "%d positions are said to be cached of a prompt of %d",
                       request->n_past, request->n_prompt);
    /* The last sampled token is never fed back, so it needs no position. */
    if (request->max_tokens < 0 || request->n_prompt + request->max_tokens > context + 1)
        return hc_fail(HC_ERR_ARGUMENT, "%d new tokens after %d do not fit the context of %lld",
                       request->max_tokens, request->n_prompt, (long long)context);
    if (request->n_dense < 0 || request->n_dense > request->n_prompt)
        return hc_fail(HC_ERR_ARGUMENT, "%d dense tokens of a prompt of %d", request->n_dense,
                       request->n_prompt);
    for (int32_t i = 0; i < request->n_prompt; i++)
        if (request->prompt[i] < 0 || request->prompt[i] >= e->args.model->vocab)
            return hc_fail(HC_ERR_ARGUMENT, "token id %d is outside the vocabulary of %lld",
                           request->prompt[i], (long long)e->args.model->vocab);
    hc_status status = HC_OK;
    pthread_mutex_lock(&inbox->lock);
    if (inbox->posted || inbox->running) {
        status =
            hc_fail(HC_ERR_ARGUMENT, "request %lld is still running", (long long)inbox->request.id);
    } else {
        drop_request(inbox);
        inbox->request = *request;
        inbox->prompt = copy_of(request->prompt, request->n_prompt, sizeof(int32_t));
        inbox->eos = copy_of(request->eos, request->n_eos, sizeof(int32_t));
        inbox->tokens = calloc(request->max_tokens + 1, sizeof(hc_token));
        if (!inbox->prompt || !inbox->eos || !inbox->tokens) {
            drop_request(inbox);
            status = hc_fail(HC_ERR_MEMORY, "no memory for a request of %d tokens",
                             request->n_prompt + request->max_tokens);
        } else {
            inbox->posted = 1;
            inbox->done = inbox->cancelled = 0;
            memset(&inbox->state, 0, sizeof inbox->state);
            pthread_cond_broadcast(&inbox->changed);
        }
    }
    pthread_mutex_unlock(&inbox->lock);
    return status;
}

/* Takes effect at the next token, or the next block of a prompt. */
void hc_executor_cancel(hc_executor *e) {
    pthread_mutex_lock(&e->inbox.lock);
    e->inbox.cancelled = 1;
    pthread_mutex_unlock(&e->inbox.lock);
}

/* Copies tokens index, index + 1, ... as soon as at_least of them are there, or at the timeout.
 * One reader: `wanted` is its alone, and lets the loop wake it once for several tokens. */
int32_t hc_executor_tokens(hc_executor *e, int64_t index, int32_t at_least, hc_token *out,
                           int32_t max, int32_t timeout_ms, int32_t *done) {
    hc_inbox *inbox = &e->inbox;
    uint64_t until = hc_now_ns() + (uint64_t)timeout_ms * 1000000u;
    pthread_mutex_lock(&inbox->lock);
    inbox->wanted = index > INT64_MAX - at_least ? INT64_MAX : index + at_least;
    while (inbox->n_tokens < inbox->wanted && !inbox->done) {
        uint64_t now = hc_now_ns();
        if (now >= until)
            break;
        wait_changed(inbox, (int64_t)((until - now + 999999) / 1000000));
    }
    int64_t ready = inbox->n_tokens - index;
    int32_t n = ready < 0 ? 0 : ready > max ? max : (int32_t)ready;
    if (n > 0)
        memcpy(out, inbox->tokens + index, n * sizeof *out);
    *done = inbox->done;
    pthread_mutex_unlock(&inbox->lock);
    return n;
}

void hc_executor_request_state(const hc_executor *executor, hc_request_state *out) {
    /* The lock is taken, so the const is only the interface's promise. */
    hc_executor *e = (hc_executor *)executor;
    pthread_mutex_lock(&e->inbox.lock);
    *out = e->inbox.state;
    pthread_mutex_unlock(&e->inbox.lock);
}

/* Publish a token; returns 1 where the request was cancelled. */
static int push_token(hc_inbox *inbox, hc_token token) {
    pthread_mutex_lock(&inbox->lock);
    inbox->tokens[inbox->n_tokens++] = token;
    if (inbox->n_tokens >= inbox->wanted)
        pthread_cond_broadcast(&inbox->changed);
    int cancelled = inbox->cancelled;
    pthread_mutex_unlock(&inbox->lock);
    return cancelled;
}

/* One pass over count tokens from position on; logits of all rows where the request wants them. */
static hc_status forward(hc_executor *e, const int32_t *tokens, int32_t count, int32_t position,
                         int last) {
    const hc_request *r = &e->inbox.request;
    const hc_model *m = e->args.model;
    e->batch = count;
    e->head_rows = r->logits_PV ? count : last;
    for (int32_t b = 0; b < count; b++) {
        e->token_B[b] = tokens[b];
        e->position_B[b] = position + b;
    }
    e->mask_LN = r->masks_PLN ? r->masks_PLN + position * hc_mask_bytes(m) : NULL;
    hc_status s = hc_run_pass(e);
    if (!s && r->logits_PV)
        memcpy(r->logits_PV + position * m->vocab, e->logits_BV, sizeof(float) * count * m->vocab);
    return s;
}

/* Dense passes over the first n_dense tokens of the prompt; *done: how many there were. */
static hc_status prefill_dense(hc_executor *e, int32_t *done) {
    const hc_request *r = &e->inbox.request;
    const hc_model *m = e->args.model;
    const int32_t step = e->args.device ? hc_device_prompt_rows(e->args.device) : 0;
    const int32_t n = step ? r->n_dense : 0;
    for (int32_t at = 0; at < n; at += step) {
        const int32_t count = n - at < step ? n - at : step;
        const hc_device_prompt prompt = {
            .tokens = e->inbox.prompt + at,
            .count = count,
            .position = at,
            .head = at + count == r->n_prompt,
            .logits_PV = r->logits_PV ? r->logits_PV + at * m->vocab : NULL,
            .masks_PLN = r->masks_PLN ? r->masks_PLN + at * hc_mask_bytes(m) : NULL};
        hc_status s = hc_device_run_prompt(e, &prompt);
        if (s)
            return s;
        *done = at + count;
        if (__atomic_load_n(&e->inbox.cancelled, __ATOMIC_RELAXED))
            return HC_OK;
    }
    e->head_rows = 1; /* of the last pass, should it have been the prompt's last */
    return HC_OK;
}

/* Fills the cache for the whole prompt; logits of its last token are in logits_BV afterwards. */
static hc_status prefill(hc_executor *e) {
    const hc_inbox *inbox = &e->inbox;
    int32_t n = inbox->request.n_prompt, step = e->args.max_batch;
    /* a device's cache went with its process: what was computed before is computed again */
    int32_t past = e->args.device ? 0 : inbox->request.n_past;
    hc_status dense = prefill_dense(e, &past);
    if (dense || __atomic_load_n(&inbox->cancelled, __ATOMIC_RELAXED))
        return dense;
    for (int32_t at = past; at < n; at += step) {
        int32_t count = n - at < step ? n - at : step;
        hc_status s = forward(e, inbox->prompt + at, count, at, at + count == n);
        if (s)
            return s;
        if (__atomic_load_n(&inbox->cancelled, __ATOMIC_RELAXED))
            break;
    }
    return HC_OK;
}

/* position is the new token's: with the seed it is all that the draw depends on, so a repeated
 * or recovered generation draws the same. */
static hc_status sample(hc_executor *e, int32_t position, hc_token *token) {
    const hc_request *r = &e->inbox.request;
    const hc_model *m = e->args.model;
    const float *last = e->logits_BV + (e->head_rows - 1) * m->vocab;
    hc_sample_args a = {.logits_V = last,
                        .vocab = m->vocab,
                        .temperature = r->temperature,
                        .top_k = r->top_k,
                        .top_p = r->top_p,
                        .seed = r->seed,
                        .position = (uint64_t)position,
                        .scratch_V = e->sample_ids,
                        .prob_V = e->sample_probs};
    hc_status s = hc_sample(&a);
    *token = (hc_token){.id = a.id, .logprob = a.logprob, .time_ns = hc_now_ns()};
    return s;
}

static int is_eos(const hc_inbox *inbox, int32_t id) {
    for (int32_t i = 0; i < inbox->request.n_eos; i++)
        if (inbox->eos[i] == id)
            return 1;
    return 0;
}

/* Sample and pass in turn. A pass that fails breaks the exchange; logits that cannot be sampled end
 * this request alone, by its state's status. */
static hc_status decode(hc_executor *e, hc_status *status) {
    hc_inbox *inbox = &e->inbox;
    int32_t position = inbox->request.n_prompt;
    for (int32_t n = 0; n < inbox->request.max_tokens; n++, position++) {
        hc_token token;
        *status = sample(e, position, &token);
        if (*status)
            break;
        if (push_token(inbox, token) || is_eos(inbox, token.id))
            break;
        /* The last token needs no pass: nobody samples behind it. */
        if (n + 1 == inbox->request.max_tokens)
            break;
        hc_status s = forward(e, &token.id, 1, position, 1);
        if (s)
            return s;
    }
    return HC_OK;
}

/* Bytes all actors have read; between passes, when the others are done counting. */
static int64_t bytes_read(const hc_executor *e) {
    int64_t sum = 0;
    for (int actor = 0; actor < HC_ACTORS; actor++)
        sum += __atomic_load_n(&e->args.segment->actor[actor].bytes, __ATOMIC_RELAXED);
    return sum;
}

/* The request runs without the lock: the loop thread alone touches inbox->request and prompt
 * while `running` is set. */
static hc_status serve(hc_executor *e) {
    hc_inbox *inbox = &e->inbox;
    int64_t passes = hc_state_of(e)->passes, bytes = bytes_read(e);
    hc_request_state state = {.begin_ns = hc_now_ns()};
    hc_status fatal = prefill(e);
    state.prompt_ns = hc_now_ns();
    state.prompt_bytes = bytes_read(e) - bytes;
    hc_status status = HC_OK;
    if (!fatal && !inbox->cancelled)
        fatal = decode(e, &status);
    if (fatal || status)
        state.error = *hc_last_error();
    state.end_ns = hc_now_ns();
    state.decode_bytes = bytes_read(e) - bytes - state.prompt_bytes;
    state.passes = hc_state_of(e)->passes - passes;
    pthread_mutex_lock(&inbox->lock);
    inbox->state = state;
    inbox->running = 0;
    inbox->done = 1;
    pthread_cond_broadcast(&inbox->changed);
    pthread_mutex_unlock(&inbox->lock);
    return fatal;
}

/* Poison is looked at every 20 ms while idle: nothing wakes a condition variable for it. */
hc_status hc_serve_requests(hc_executor *e) {
    hc_inbox *inbox = &e->inbox;
    for (;;) {
        pthread_mutex_lock(&inbox->lock);
        while (!inbox->posted && !hc_segment_poisoned(e->args.segment))
            wait_changed(inbox, 20);
        int posted = inbox->posted;
        inbox->running = posted;
        inbox->posted = 0;
        pthread_mutex_unlock(&inbox->lock);
        if (!posted)
            return hc_fail_poisoned(e->args.segment);
        hc_status s = serve(e);
        if (s)
            return s;
    }
}
