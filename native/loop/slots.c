/* slots.c - which slot of the KV cache a sequence gets, and what of its prompt is there already.
 *
 * A slot has a mark (hc_kv_mark): the tokens whose keys and values are in its first rows. A sequence
 * takes the free slot that has most of its prompt's beginning, and computes the rest. Where a slot in
 * use has more, or one that would lose more than that, the slot unused for longest gets a copy. The
 * prompt's last token is always computed, since its logits are wanted.
 *
 * Rows are committed when their pass is over, token by token of what was computed, and a slot is
 * rolled back before a row of it is written again. So whoever maps the memory after the writer was
 * killed, at whatever instruction, finds marks that are true: a recovered sequence goes on from them.
 *
 * Bits: a row of the cache depends on the tokens up to it and on the plan (variant.h), so rows of the
 * same plan are what the sequence would compute itself. Rows of another plan differ in rounding, and
 * in more where neurons are stored in another format: they are for who goes on, and asks so.
 */
#include "loop/executor.h"
#include <string.h>

static int32_t *tokens_of(const hc_executor *e, int32_t slot) {
    return e->args.kv_tokens_SP + slot * e->args.model->context;
}

/* What the bits of a row depend on beside tokens: the plan, and how neurons have moved since. */
static int64_t plan_of(const hc_executor *e) {
    return (int64_t)e->args.kv_plan << 32 | e->owners_version;
}

/* Leading tokens of the prompt that are in a slot, of those that need not be computed. */
static int32_t common(const hc_executor *e, const hc_sequence *q, int32_t slot) {
    const hc_kv_mark *mark = &e->args.kv_marks_S[slot];
    const hc_request *r = &q->request;
    if (r->reuse == HC_REUSE_NONE || (r->reuse == HC_REUSE_PLAN && mark->plan != plan_of(e)))
        return 0;
    const int32_t most = mark->n < r->n_prompt ? (int32_t)mark->n : r->n_prompt - 1;
    const int32_t *tokens = tokens_of(e, slot);
    int32_t n = 0;
    while (n < most && tokens[n] == q->prompt[n])
        n++;
    return n;
}

/* Keep the first n rows, which may be of another plan than those that follow. */
static void roll_back(hc_executor *e, int32_t slot, int32_t n, int64_t plan) {
    hc_kv_mark *mark = &e->args.kv_marks_S[slot];
    __atomic_store_n(&mark->n, (int64_t)n, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* no write to a row comes before */
    mark->plan = !n || plan == plan_of(e) ? plan_of(e) : 0;
    mark->used_ns = hc_now_ns();
}

static void commit(hc_executor *e, int32_t slot, int32_t n) {
    __atomic_store_n(&e->args.kv_marks_S[slot].n, (int64_t)n, __ATOMIC_RELEASE);
}

/* The first n rows of another slot. */
static void copy_rows(hc_executor *e, int32_t from, int32_t to, int32_t n) {
    const hc_model *m = e->args.model;
    const int64_t head = m->context * m->head_dim, slot = head * m->kv_heads;
    const size_t bytes = sizeof(float) * n * m->head_dim;
    for (int64_t l = 0; l < m->n_layers; l++)
        for (int64_t h = 0; h < m->kv_heads; h++) {
            const int64_t at = l * e->args.n_slots * slot + h * head;
            memcpy(e->args.k_cache + at + to * slot, e->args.k_cache + at + from * slot, bytes);
            memcpy(e->args.v_cache + at + to * slot, e->args.v_cache + at + from * slot, bytes);
        }
    memcpy(tokens_of(e, to), tokens_of(e, from), n * sizeof(int32_t));
}

/* What makes one slot a better choice than another, the first difference deciding. */
typedef struct {
    int32_t slot, n, free, lost;
    uint64_t used_ns;
} candidate;

static int better(const candidate *a, const candidate *b) {
    if (b->slot < 0 || a->n != b->n)
        return b->slot < 0 || a->n > b->n;
    if (a->free != b->free)
        return a->free;
    if (a->n && !a->lost != !b->lost)
        return !a->lost;
    return a->used_ns < b->used_ns;
}

/* Without marks: the first free one. */
void hc_take_slot(hc_executor *e, hc_sequence *q) {
    const hc_kv_mark *marks = e->args.kv_marks_S;
    int32_t *used_S = e->scheduler.used_S;
    candidate best = {.slot = -1}, oldest = {.slot = -1};
    for (int32_t slot = 0; slot < e->args.n_slots; slot++) {
        candidate one = {.slot = slot, .free = !used_S[slot]};
        if (marks) {
            one.n = common(e, q, slot);
            one.lost = (int32_t)marks[slot].n - one.n;
            one.used_ns = marks[slot].used_ns;
        }
        if (better(&one, &best))
            best = one;
        one.n = 0;
        if (one.free && better(&one, &oldest))
            oldest = one;
    }
    /* One that would lose more than it gives is left, and copied: to one that is new or old. */
    const int gives = !best.lost || (best.lost <= best.n && oldest.used_ns);
    const int take = best.free && (gives || best.slot == oldest.slot);
    q->slot = take ? best.slot : oldest.slot;
    q->at = best.n;
    used_S[q->slot] = 1;
    if (!marks)
        return;
    const int64_t plan = marks[best.slot].plan;
    roll_back(e, q->slot, take ? best.n : 0, plan);
    if (take || !best.n)
        return;
    copy_rows(e, best.slot, q->slot, best.n);
    e->args.kv_marks_S[q->slot].plan = plan == plan_of(e) ? plan : 0;
    commit(e, q->slot, best.n);
}

void hc_commit_rows(hc_executor *e, const hc_sequence *q) {
    if (!e->args.kv_marks_S || !q->rows)
        return;
    int32_t *tokens = tokens_of(e, q->slot);
    if (e->args.kv_marks_S[q->slot].plan != plan_of(e))
        e->args.kv_marks_S[q->slot].plan = 0; /* neurons have moved since its first row */
    for (int32_t at = q->at; at < q->at + q->rows; at++)
        tokens[at] = hc_token_at(q, at);
    commit(e, q->slot, q->at + q->rows);
}
