/* executor.h - the state of one actor's resident loop, shared by the files of this folder.
 *
 * Threads: the loop thread runs hc_executor_run and everything below it; control threads post and
 * cancel requests, read tokens and arm faults. Both touch the inbox (under its lock), fault_* and
 * the counters in the segment, and nothing else. The executor owns all memory that is pointed to
 * from here, but for what args points to.
 */
#ifndef HOTCOLD_EXECUTOR_H
#define HOTCOLD_EXECUTOR_H
#include "core/internal.h"
#include <pthread.h>

/* A request on the leader, from its post to its release. */
typedef struct hc_sequence {
    struct hc_sequence *next;
    /* written by the loop thread, copied out by a reader, guarded by the inbox's lock */
    pthread_cond_t changed;
    hc_token *tokens;         /* max_tokens of them */
    hc_top *top;              /* n_top of each */
    int64_t n_tokens, wanted; /* wanted: what the reader waits for */
    int32_t waiting, done, released, cancelled;
    hc_request_state state;
    /* the loop thread's alone while the sequence runs */
    hc_request request; /* a copy; prompt and eos are copies too, the rest the caller's */
    int32_t *prompt, *eos;
    int32_t slot, at;     /* at: positions computed so far */
    int32_t rows, logits; /* in the running pass; logits of the last of those; -1: none */
    int32_t drew, over;   /* what the pass came to: a token, the end */
    hc_token drawn;       /* the last one */
    hc_top drawn_top[HC_MAX_TOP];
    int64_t passes, bytes; /* counts when it began */
} hc_sequence;

/* Sequences in the order of their posts; lock guards the list, and is taken once a pass that draws
 * tokens. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t posted;
    hc_sequence *first;
    int32_t waiting; /* of them without a slot yet; also read without the lock */
} hc_inbox;

/* Who is in the passes; the loop thread's alone (scheduler.c). */
typedef struct {
    hc_sequence *running[HC_MAX_BATCH]; /* in the order in which they began */
    int32_t n_running, most;            /* most: slots, but not more than rows of a pass */
    int32_t used_S[HC_MAX_BATCH];
} hc_scheduler;

struct hc_executor {
    hc_executor_args args;
    uint32_t seq;
    /* moves.c: whose neurons are whose, and the version that this follows */
    uint32_t owners_version;
    const int8_t *device_LN;
    hc_owned *owned_L;
    int32_t *owned_ids_LN;          /* of lists that have changed */
    int32_t fault_op, fault_signal; /* see hc_executor_arm; fault_op -1: none */
    uint32_t fault_seq;
    int32_t batch; /* rows of the running pass */
    /* leader; rows of a slot lie side by side, by position */
    int32_t token_B[HC_MAX_BATCH], position_B[HC_MAX_BATCH], slot_B[HC_MAX_BATCH];
    int32_t head_rows, head_B[HC_MAX_BATCH]; /* rows of the running pass with logits, ascending */
    float *embedded_BE; /* of width embed_dim; only where embeddings are projected */
    float *residual_BD, *normed_BD, *qkv_BQ, *attended_BQ, *attention_scores, *hot_BD, *logits_BV;
    uint8_t *mask_B[HC_MAX_BATCH]; /* where a row's proposals go, [layer][(N + 7) / 8]; NULL */
    int32_t masked;                /* whether there is one */
    int32_t *sample_ids;
    float *sample_probs;
    hc_inbox inbox;
    hc_scheduler scheduler;
    /* leader and workers */
    void *ffn_scratch;
    /* predictor */
    float *scores_BN, *hidden_BH;
    uint64_t *planes_BPW;        /* sign */
    int32_t *last_SLN, *next_SL; /* window: last firings; where a slot's sequence goes on */
    int32_t *proposed_N;
    void *scratch[16]; /* what of the above was allocated */
    int32_t n_scratch, out_of_memory;
};

/* dense.c: the steps that only the leader has. */
hc_status hc_embed(hc_executor *executor);
/* The operators of the block that this step computes, and x handed over where it does that. */
hc_status hc_compute_block(hc_executor *executor, const hc_step *step);
hc_status hc_head(hc_executor *executor);
/* steps.c: compute one step, whose waits are over. */
hc_status hc_compute_step(hc_executor *executor, const hc_step *step, uint32_t seq);
/* steps.c: read ahead what a cold step's list names, until its other flag is set. */
void hc_read_ahead(hc_executor *executor, const hc_step *step, uint32_t seq);
/* scores.c: into scores_BN, pre-activations of every neuron of a layer; or what a predictor's two
 * matrices, or its signs, make of an input [B][D]. */
hc_status hc_gate_scores(hc_executor *executor, const hc_step *step);
hc_status hc_matrix_scores(hc_executor *executor, const hc_predictor_layer *predictor,
                           const float *input);
hc_status hc_sign_scores(hc_executor *executor, const hc_predictor_layer *predictor,
                         const float *input);
/* window.c: the same of proposed neurons; -infinity for the others. */
hc_status hc_window_scores(hc_executor *executor, const hc_step *step,
                           const hc_predictor_layer *predictor);
/* steps.c: what a step leaves for after its signal: the recall audit. */
void hc_after_step(hc_executor *executor, const hc_step *step, uint32_t seq);
/* audit.c: count fired neurons among a sample of those a layer's list leaves out. */
void hc_audit(hc_executor *executor, const hc_step *step, uint32_t seq);
/* spans.c: append to the actor's span ring; the second also counts a step's times. */
void hc_put_span(hc_executor *executor, hc_span span);
void hc_record_span(hc_executor *executor, const hc_step *step, uint32_t seq, uint64_t begin,
                    uint64_t ready, uint64_t end);
void hc_count_step(hc_executor *executor); /* it has not stuck */
/* fault.c: raise the signal of hc_executor_arm where a device takes pass seq as a whole; at an
 * operation of it. */
void hc_fail_if_armed(hc_executor *executor, uint32_t seq);
void hc_fail_if_armed_for(hc_executor *executor, int32_t op, uint32_t seq);
/* moves.c: at the beginning of a pass, follow its version of the ownership. */
void hc_owners_init(hc_executor *executor);
void hc_owners_free(hc_executor *executor);
void hc_begin_owners(hc_executor *executor); /* GPU executor: name the pass's version first */
void hc_follow_owners(hc_executor *executor);
int hc_owners_due(const hc_executor *executor); /* a version is wanted that no pass has had */
/* pass.c: one pass of the whole program with its waits and signals. */
hc_status hc_run_pass(hc_executor *executor);
/* request.c: what control threads post and read. */
void hc_inbox_init(hc_executor *executor);
void hc_inbox_free(hc_executor *executor);
void hc_wake(hc_inbox *inbox); /* who waits for requests, to look around */
/* With the lock held: a while, or less; a sequence waits no longer; it is done, or already freed. */
void hc_wait_changed(hc_inbox *inbox, pthread_cond_t *changed, int64_t milliseconds);
void hc_leave_queue(hc_inbox *inbox, hc_sequence *sequence);
void hc_end_sequence(hc_inbox *inbox, hc_sequence *sequence);
/* slots.c: take a free slot for a sequence, with as much of its prompt there as can be; its rows of
 * the pass that is over are whole. */
void hc_take_slot(hc_executor *executor, hc_sequence *sequence);
void hc_commit_rows(hc_executor *executor, const hc_sequence *sequence);
/* scheduler.c: pass after pass, until poison. */
void hc_scheduler_init(hc_executor *executor);
hc_status hc_serve_requests(hc_executor *executor);

static inline hc_actor_state *hc_state_of(hc_executor *executor) {
    return &executor->args.segment->actor[executor->args.actor];
}
/* y = W x for the rows of a batch; rows of W, x and y lie side by side. */
static inline hc_gemv_args hc_product(const void *w, int32_t dtype, int64_t rows, int64_t d,
                                      const float *x, float *y, int32_t batch) {
    return (hc_gemv_args){.w = w,
                          .stride_bytes = d * hc_dtype_bytes(dtype),
                          .rows = rows,
                          .d = d,
                          .dtype = dtype,
                          .batch = batch,
                          .x_BD = x,
                          .x_stride = d,
                          .y_BR = y,
                          .y_stride = rows};
}
/* The token at a position that has been or is being computed. */
static inline int32_t hc_token_at(const hc_sequence *sequence, int32_t position) {
    const int32_t n_prompt = sequence->request.n_prompt;
    return position < n_prompt ? sequence->prompt[position]
                               : sequence->tokens[position - n_prompt].id;
}
/* One more row of the running pass. */
static inline void hc_add_row(hc_executor *executor, int32_t slot, int32_t position,
                              int32_t token) {
    const int32_t b = executor->batch++;
    executor->slot_B[b] = slot;
    executor->position_B[b] = position;
    executor->token_B[b] = token;
    executor->mask_B[b] = NULL;
}
/* Bytes of a token's proposals, as bits: [layer][(N + 7) / 8]. */
static inline int64_t hc_mask_bytes(const hc_model *model) {
    return model->n_layers * ((model->n + 7) / 8);
}
/* The header of a pass: plain stores, since every reader is behind a flag of this pass, whose release
 * comes later. */
static inline void hc_begin_pass(hc_executor *executor, uint32_t seq) {
    hc_segment *segment = executor->args.segment;
    segment->pass_batch = executor->batch;
    segment->pass_seq = seq;
    for (int32_t b = 0; b < executor->batch; b++) {
        segment->pass_slot_B[b] = executor->slot_B[b];
        segment->pass_position_B[b] = executor->position_B[b];
    }
    hc_begin_owners(executor);
    segment->pass_begin_ns = hc_now_ns();
}
/* Where a layer's neurons lie for this actor: in a format of its own, or as the model has them. */
static inline const hc_record *hc_record_of(const hc_executor *executor, int32_t layer) {
    const hc_owned *own = executor->args.owned_L ? &executor->args.owned_L[layer] : NULL;
    return own && own->records ? &own->record : &executor->args.model->record;
}
static inline const char *hc_records_of(const hc_executor *executor, int32_t layer) {
    const hc_owned *own = executor->args.owned_L ? &executor->args.owned_L[layer] : NULL;
    return own && own->records ? own->records : executor->args.model->layers[layer].records;
}
/* A payload of the segment. */
static inline char *hc_slot(hc_executor *executor, int64_t offset) {
    return (char *)executor->args.segment + offset;
}
/* Whether a device's list of a layer is there and names nobody; its flag must have been seen. */
static inline int hc_none_active(hc_executor *executor, const hc_step *step, int device) {
    const int64_t list = step->active[device];
    return list >= 0 && !((hc_active *)hc_slot(executor, list))->count;
}
/* Counters have one writer; relaxed atomics so that readers elsewhere see whole values. */
static inline void hc_count(int64_t *counter, int64_t more) {
    __atomic_store_n(counter, *counter + more, __ATOMIC_RELAXED);
}
#endif
