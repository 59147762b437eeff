/* request.c - the GPU executor's inbox: requests that control threads post, read, cancel and release.
 *
 * A request waits, runs once the scheduler gives it a slot (scheduler.c), and is done; its tokens and
 * times can be read until it is released. The loop thread and control threads meet under one lock.
 */
#define _GNU_SOURCE
#include "loop/executor.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Deadlines are CLOCK_MONOTONIC: a clock that is set does not lengthen a wait. */
static void init_condition(pthread_cond_t *condition) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
}

void hc_inbox_init(hc_executor *e) {
    pthread_mutex_init(&e->inbox.lock, NULL);
    init_condition(&e->inbox.posted);
}

void hc_wake(hc_inbox *inbox) {
    pthread_mutex_lock(&inbox->lock);
    pthread_cond_signal(&inbox->posted);
    pthread_mutex_unlock(&inbox->lock);
}

static void free_sequence(hc_sequence *q) {
    pthread_cond_destroy(&q->changed);
    free(q->prompt);
    free(q->eos);
    free(q->tokens);
    free(q->top);
    free(q);
}

void hc_inbox_free(hc_executor *e) {
    for (hc_sequence *q = e->inbox.first, *next; q; q = next) {
        next = q->next;
        free_sequence(q);
    }
    pthread_cond_destroy(&e->inbox.posted);
    pthread_mutex_destroy(&e->inbox.lock);
}

/* May return early, as condition variables do. */
void hc_wait_changed(hc_inbox *inbox, pthread_cond_t *changed, int64_t milliseconds) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += milliseconds % 1000 * 1000000;
    until.tv_sec += milliseconds / 1000 + until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(changed, &inbox->lock, &until);
}

/* NULL where memory is short; never for a count of 0. */
static void *copy_of(const void *from, int64_t count, size_t size) {
    void *to = malloc(count > 0 ? count * size : 1);
    if (to && count > 0)
        memcpy(to, from, count * size);
    return to;
}

static hc_sequence *new_sequence(const hc_request *request) {
    hc_sequence *q = calloc(1, sizeof *q);
    if (!q)
        return NULL;
    init_condition(&q->changed);
    q->request = *request;
    q->waiting = 1;
    q->prompt = copy_of(request->prompt, request->n_prompt, sizeof(int32_t));
    q->eos = copy_of(request->eos, request->n_eos, sizeof(int32_t));
    q->tokens = calloc(request->max_tokens + 1, sizeof(hc_token));
    q->top = calloc((int64_t)request->max_tokens * request->n_top + 1, sizeof(hc_top));
    if (q->prompt && q->eos && q->tokens && q->top)
        return q;
    free_sequence(q);
    return NULL;
}

/* Everything the loop will index with: afterwards nothing of a request can be out of range. */
static hc_status check_request(const hc_executor *e, const hc_request *request) {
    int64_t context = e->args.model->context;
    if (request->id < 0)
        return hc_fail(HC_ERR_ARGUMENT, "request id %lld; 0 is the least", (long long)request->id);
    if (request->n_prompt < 1 || request->n_prompt > context)
        return hc_fail(HC_ERR_ARGUMENT, "prompt of %d tokens, the context holds 1 to %lld",
                       request->n_prompt, (long long)context);
    if (request->n_top < 0 || request->n_top > HC_MAX_TOP)
        return hc_fail(HC_ERR_ARGUMENT, "%d alternatives of a token; 0 to %d are possible",
                       request->n_top, HC_MAX_TOP);
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
    return HC_OK;
}

/* The link that points to a request; of the last one's end, where there is none. */
static hc_sequence **find(hc_inbox *inbox, int64_t id) {
    hc_sequence **link = &inbox->first;
    while (*link && ((*link)->released || (*link)->request.id != id))
        link = &(*link)->next;
    return link;
}

static void count_waiting(hc_inbox *inbox, int32_t more) { /* for who reads it without the lock */
    __atomic_store_n(&inbox->waiting, inbox->waiting + more, __ATOMIC_RELAXED);
}

hc_status hc_executor_post(hc_executor *e, const hc_request *request) {
    hc_inbox *inbox = &e->inbox;
    hc_status s = check_request(e, request);
    if (s)
        return s;
    hc_sequence *q = new_sequence(request);
    if (!q)
        return hc_fail(HC_ERR_MEMORY, "no memory for a request of %d tokens",
                       request->n_prompt + request->max_tokens);
    pthread_mutex_lock(&inbox->lock);
    hc_sequence **last = find(inbox, request->id);
    if (*last) {
        s = hc_fail(HC_ERR_ARGUMENT, "request %lld is still there", (long long)request->id);
    } else {
        *last = q;
        count_waiting(inbox, 1);
        pthread_cond_signal(&inbox->posted);
    }
    pthread_mutex_unlock(&inbox->lock);
    if (s)
        free_sequence(q);
    return s;
}

static void unlink_sequence(hc_inbox *inbox, hc_sequence *q) {
    hc_sequence **link = &inbox->first;
    while (*link != q)
        link = &(*link)->next;
    *link = q->next;
    free_sequence(q);
}

void hc_end_sequence(hc_inbox *inbox, hc_sequence *q) {
    if (q->waiting)
        hc_leave_queue(inbox, q);
    q->done = 1;
    pthread_cond_broadcast(&q->changed);
    if (q->released)
        unlink_sequence(inbox, q);
}

void hc_leave_queue(hc_inbox *inbox, hc_sequence *q) {
    q->waiting = 0;
    count_waiting(inbox, -1);
    q->state.begin_ns = q->state.prompt_ns = q->state.end_ns = hc_now_ns();
}

/* Of a running one the loop thread takes notice behind its pass. */
static void cancel_one(hc_inbox *inbox, hc_sequence *q) {
    __atomic_store_n(&q->cancelled, 1, __ATOMIC_RELAXED);
    if (q->waiting)
        hc_end_sequence(inbox, q);
}

void hc_executor_cancel(hc_executor *e, int64_t id) {
    hc_inbox *inbox = &e->inbox;
    pthread_mutex_lock(&inbox->lock);
    for (hc_sequence *q = inbox->first, *next; q; q = next) {
        next = q->next;
        if (id < 0 || (q->request.id == id && !q->released))
            cancel_one(inbox, q);
    }
    pthread_mutex_unlock(&inbox->lock);
}

int32_t hc_executor_release(hc_executor *e, int64_t id) {
    hc_inbox *inbox = &e->inbox;
    pthread_mutex_lock(&inbox->lock);
    hc_sequence *q = *find(inbox, id);
    const int32_t gone = !q || q->done || q->waiting;
    if (q) {
        q->released = 1;
        if (q->done)
            unlink_sequence(inbox, q);
        else
            cancel_one(inbox, q);
    }
    pthread_mutex_unlock(&inbox->lock);
    return gone;
}

/* `wanted` is the one reader's alone, and lets the loop wake it once for several tokens. */
int32_t hc_executor_tokens(hc_executor *e, int64_t id, int64_t index, int32_t at_least,
                           hc_token *out, hc_top *top, int32_t max, int32_t timeout_ms,
                           int32_t *done) {
    hc_inbox *inbox = &e->inbox;
    uint64_t until = hc_now_ns() + (uint64_t)timeout_ms * 1000000u;
    int32_t n = 0;
    *done = 1;
    pthread_mutex_lock(&inbox->lock);
    hc_sequence *q = *find(inbox, id);
    if (q) {
        q->wanted = index > INT64_MAX - at_least ? INT64_MAX : index + at_least;
        while (q->n_tokens < q->wanted && !q->done) {
            uint64_t now = hc_now_ns();
            if (now >= until)
                break;
            hc_wait_changed(inbox, &q->changed, (int64_t)((until - now + 999999) / 1000000));
        }
        int64_t ready = q->n_tokens - index;
        n = ready < 0 ? 0 : ready > max ? max : (int32_t)ready;
        const int64_t n_top = q->request.n_top;
        if (n > 0)
            memcpy(out, q->tokens + index, n * sizeof *out);
        if (n > 0 && top)
            memcpy(top, q->top + index * n_top, n * n_top * sizeof *top);
        *done = q->done;
    }
    pthread_mutex_unlock(&inbox->lock);
    return n;
}

void hc_executor_request_state(const hc_executor *executor, int64_t id, hc_request_state *out) {
    /* The lock is taken, so the const is only the interface's promise. */
    hc_inbox *inbox = &((hc_executor *)executor)->inbox;
    pthread_mutex_lock(&inbox->lock);
    const hc_sequence *q = *find(inbox, id);
    *out = q ? q->state : (hc_request_state){0};
    pthread_mutex_unlock(&inbox->lock);
}
