/* scheduler.c - which rows the next pass has: sequences are admitted, fed and ended between passes.
 *
 * A pass has up to max_batch rows (slot, position, token): one of every sequence that decodes, in the
 * order in which they began, and pieces of prompts, which share the other rows evenly: a short prompt
 * is done soon, however long those before it are. Where others decode, prompts together have no more
 * than prompt_piece of them, since every row makes the pass longer. No more sequences run at once than there are slots
 * and rows, so each that decodes is in every pass, and a prompt always gets a row. A row's bits do not
 * depend on its neighbours (variant.h), nor does a draw: it is of the sequence's own seed, settings
 * and position. One request alone is the simplest case: its prompt in pieces of max_batch rows, then
 * passes of one row.
 *
 * A device of one slot computes the first n_dense tokens of a prompt in dense passes of their own.
 *
 * Beside its passes the loop thread takes the inbox's lock where a request begins and once a pass that
 * draws; nothing is allocated here.
 */
#include "loop/device.h"
#include "loop/executor.h"
#include <string.h>

/* Bytes all actors have read; between passes, when the others are done counting. */
static int64_t bytes_read(const hc_executor *e) {
    int64_t sum = 0;
    for (int actor = 0; actor < HC_MAX_ACTORS; actor++)
        sum += __atomic_load_n(&e->args.segment->actor[actor].bytes, __ATOMIC_RELAXED);
    return sum;
}

static void begin(hc_executor *e, hc_sequence *q) {
    hc_scheduler *all = &e->scheduler;
    hc_actor_state *state = hc_state_of(e);
    hc_take_slot(e, q);
    all->running[all->n_running++] = q;
    q->passes = state->passes;
    q->bytes = bytes_read(e);
    hc_leave_queue(&e->inbox, q);
    q->state.prompt_ns = 0;
    q->state.reused = q->at;
    hc_count(&state->prompt_tokens, q->request.n_prompt);
    hc_count(&state->reused_tokens, q->at);
}

/* Those of the queue that go on, or the others, while there are slots. */
static void begin_some(hc_executor *e, int goes_on) {
    hc_scheduler *all = &e->scheduler;
    for (hc_sequence *q = e->inbox.first; q && all->n_running < all->most; q = q->next)
        if (q->waiting && (q->request.reuse == HC_REUSE_ANY) == goes_on)
            begin(e, q);
}

/* Give free slots to who waits, in the order of their posts, but first to who goes on, before its rows
 * are lost; wait where nobody is there and no neuron changes its owner, and look at poison every
 * 20 ms: nothing wakes a condition variable for it. 0: there is poison and nothing to do. */
static int admit(hc_executor *e) {
    hc_inbox *inbox = &e->inbox;
    hc_scheduler *all = &e->scheduler;
    if (all->n_running == all->most ||
        (all->n_running && !__atomic_load_n(&inbox->waiting, __ATOMIC_RELAXED)))
        return 1;
    pthread_mutex_lock(&inbox->lock);
    while (!all->n_running && !inbox->waiting && !hc_owners_due(e) &&
           !hc_segment_poisoned(e->args.segment))
        hc_wait_changed(inbox, &inbox->posted, 20);
    begin_some(e, 1);
    begin_some(e, 0);
    pthread_mutex_unlock(&inbox->lock);
    return all->n_running > 0 || hc_owners_due(e);
}

static int decodes(const hc_sequence *q) {
    return q->at >= q->request.n_prompt;
}

/* The next `count` positions of a sequence. Logits are wanted of every one where the request says so,
 * else of those behind which a token is drawn. */
static void add_rows(hc_executor *e, hc_sequence *q, int32_t count) {
    const hc_request *r = &q->request;
    q->rows = count;
    for (int32_t at = q->at; at < q->at + count; at++) {
        const int32_t b = e->batch;
        hc_add_row(e, q->slot, at, hc_token_at(q, at));
        if (r->masks_PLN) {
            e->mask_B[b] = r->masks_PLN + at * hc_mask_bytes(e->args.model);
            e->masked = 1;
        }
        if (r->logits_PV || at + 1 >= r->n_prompt) {
            q->logits = e->head_rows;
            e->head_B[e->head_rows++] = b;
        }
    }
}

/* How many rows each sequence has in the next pass: one, then one more of each prompt in turn. */
static void share_rows(const hc_executor *e, int32_t rows_Q[HC_MAX_BATCH]) {
    const hc_scheduler *all = &e->scheduler;
    int32_t free = e->args.max_batch - all->n_running, before = -1, decoding = 0;
    for (int32_t i = 0; i < all->n_running; i++) {
        rows_Q[i] = 1;
        decoding += decodes(all->running[i]);
    }
    const int32_t most = e->args.prompt_piece - (all->n_running - decoding);
    if (decoding && free > most)
        free = most;
    while (free > 0 && free != before) {
        before = free;
        for (int32_t i = 0; i < all->n_running && free > 0; i++)
            if (all->running[i]->at + rows_Q[i] < all->running[i]->request.n_prompt) {
                rows_Q[i]++;
                free--;
            }
    }
}

static hc_status run_rows(hc_executor *e) {
    hc_scheduler *all = &e->scheduler;
    const int64_t vocab = e->args.model->vocab;
    int32_t rows_Q[HC_MAX_BATCH];
    share_rows(e, rows_Q);
    e->batch = e->head_rows = e->masked = 0;
    for (int prompts = 0; prompts < 2; prompts++)
        for (int32_t i = 0; i < all->n_running; i++)
            if (decodes(all->running[i]) != prompts)
                add_rows(e, all->running[i], rows_Q[i]);
    hc_status s = hc_run_pass(e);
    for (int32_t i = 0; !s && i < all->n_running; i++) {
        const hc_sequence *q = all->running[i];
        hc_commit_rows(e, q);
        if (q->request.logits_PV && q->rows)
            memcpy(q->request.logits_PV + q->at * vocab,
                   e->logits_BV + (q->logits + 1 - q->rows) * vocab,
                   sizeof(float) * q->rows * vocab);
    }
    return s;
}

/* Tokens of a sequence that the next dense pass takes. */
static int32_t dense_rows(const hc_executor *e, const hc_sequence *q) {
    const int32_t most = e->args.device ? hc_device_prompt_rows(e->args.device) : 0;
    const int32_t left = q->request.n_dense - q->at;
    return left < 0 ? 0 : left < most ? left : most;
}

static hc_status run_dense(hc_executor *e, hc_sequence *q, int32_t count) {
    const hc_request *r = &q->request;
    const hc_model *m = e->args.model;
    const hc_device_prompt prompt = {
        .tokens = q->prompt + q->at,
        .count = count,
        .position = q->at,
        .head = q->at + count == r->n_prompt,
        .logits_PV = r->logits_PV ? r->logits_PV + q->at * m->vocab : NULL,
        .masks_PLN = r->masks_PLN ? r->masks_PLN + q->at * hc_mask_bytes(m) : NULL};
    q->rows = count;
    q->logits = 0; /* where the device leaves those of the prompt's last token */
    return hc_device_run_prompt(e, &prompt);
}

static hc_status run_next(hc_executor *e) {
    hc_scheduler *all = &e->scheduler;
    for (int32_t i = 0; i < all->n_running; i++)
        all->running[i]->rows = 0;
    /* a device has one slot; without sequences the pass has no rows */
    const int32_t dense = all->n_running ? dense_rows(e, all->running[0]) : 0;
    return dense ? run_dense(e, all->running[0], dense) : run_rows(e);
}

/* q->at is the new token's position: with the seed it is all that the draw depends on, so a repeated
 * or recovered generation draws the same. */
static hc_status draw(hc_executor *e, hc_sequence *q) {
    const hc_request *r = &q->request;
    const hc_model *m = e->args.model;
    hc_sample_args a = {.logits_V = e->logits_BV + q->logits * m->vocab,
                        .vocab = m->vocab,
                        .temperature = r->temperature,
                        .top_k = r->top_k,
                        .top_p = r->top_p,
                        .seed = r->seed,
                        .position = (uint64_t)q->at,
                        .scratch_V = e->sample_ids,
                        .prob_V = e->sample_probs,
                        .n_top = r->n_top,
                        .top = q->drawn_top};
    hc_status s = hc_sample(&a);
    q->drawn = (hc_token){.id = a.id, .logprob = a.logprob, .time_ns = hc_now_ns()};
    return s;
}

static int is_eos(const hc_sequence *q, int32_t id) {
    for (int32_t i = 0; i < q->request.n_eos; i++)
        if (q->eos[i] == id)
            return 1;
    return 0;
}

/* What the pass came to for one sequence. Logits that cannot be sampled end it alone. */
static void advance(hc_executor *e, hc_sequence *q) {
    const hc_request *r = &q->request;
    q->at += q->rows;
    q->drew = 0;
    q->over = __atomic_load_n(&q->cancelled, __ATOMIC_RELAXED);
    if (!q->rows || !decodes(q))
        return;
    if (!q->state.prompt_ns) {
        q->state.prompt_ns = hc_now_ns();
        q->state.prompt_bytes = bytes_read(e) - q->bytes;
        q->over |= !r->max_tokens;
    }
    if (q->over)
        return;
    if (draw(e, q)) {
        q->state.error = *hc_last_error();
        q->over = 1;
        return;
    }
    q->drew = 1; /* the last token needs no pass: nobody samples behind it */
    q->over = q->n_tokens + 1 == r->max_tokens || is_eos(q, q->drawn.id);
}

/* Called with the lock held; the slot is free then. */
static void end(hc_executor *e, hc_sequence *q) {
    hc_request_state *state = &q->state;
    const int64_t bytes = bytes_read(e) - q->bytes;
    state->end_ns = hc_now_ns();
    if (!state->prompt_ns) {
        state->prompt_ns = state->end_ns;
        state->prompt_bytes = bytes;
    }
    state->decode_bytes = bytes - state->prompt_bytes;
    state->passes = hc_state_of(e)->passes - q->passes;
    e->scheduler.used_S[q->slot] = 0;
    hc_end_sequence(&e->inbox, q);
}

/* Publish what was drawn, and let those go that are over. */
static void publish(hc_executor *e) {
    hc_scheduler *all = &e->scheduler;
    int32_t kept = 0;
    pthread_mutex_lock(&e->inbox.lock);
    for (int32_t i = 0; i < all->n_running; i++) {
        hc_sequence *q = all->running[i];
        if (q->drew) {
            const int32_t n_top = q->request.n_top;
            memcpy(q->top + q->n_tokens * n_top, q->drawn_top, n_top * sizeof(hc_top));
            q->tokens[q->n_tokens++] = q->drawn;
            if (q->n_tokens >= q->wanted)
                pthread_cond_broadcast(&q->changed);
        }
        if (q->over)
            end(e, q);
        else
            all->running[kept++] = q;
    }
    all->n_running = kept;
    pthread_mutex_unlock(&e->inbox.lock);
}

/* A pass that failed has broken the exchange: nobody goes on. */
static hc_status fail(hc_executor *e, hc_status status) {
    hc_scheduler *all = &e->scheduler;
    for (int32_t i = 0; i < all->n_running; i++) {
        hc_sequence *q = all->running[i];
        q->state.error = *hc_last_error();
        q->drew = 0;
        q->over = 1;
    }
    publish(e);
    return status;
}

hc_status hc_serve_requests(hc_executor *e) {
    hc_scheduler *all = &e->scheduler;
    while (admit(e)) {
        hc_status s = run_next(e);
        if (s)
            return fail(e, s);
        int news = 0;
        for (int32_t i = 0; i < all->n_running; i++) {
            advance(e, all->running[i]);
            news |= all->running[i]->drew | all->running[i]->over;
        }
        if (news)
            publish(e);
    }
    return hc_fail_poisoned(e->args.segment);
}

void hc_scheduler_init(hc_executor *e) {
    hc_scheduler *all = &e->scheduler;
    const int32_t rows = e->args.max_batch, slots = e->args.n_slots;
    all->most = slots < rows ? slots : rows;
}
