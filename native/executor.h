/* executor.h - the state of one actor's resident loop, shared by loop.c, steps.c and request.c. */
#ifndef HOTCOLD_EXECUTOR_H
#define HOTCOLD_EXECUTOR_H
#include "internal.h"
#include <pthread.h>

/* A request on the GPU executor. The loop thread writes tokens and n_tokens, a reader thread copies
 * them out; lock guards all of it, and is taken once a token. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    hc_request request; /* a copy; its pointers belong to prompt and eos below, or to the caller */
    int32_t *prompt, *eos;
    hc_token *tokens; /* max_tokens of them */
    int64_t n_tokens;
    int32_t posted, running, done, cancelled;
    hc_request_state state;
} hc_inbox;

struct hc_executor {
    hc_executor_args args;
    uint32_t seq;
    int32_t fault_op, fault_signal; /* see hc_executor_arm; fault_op -1: none */
    uint32_t fault_seq;
    int32_t batch; /* tokens of the running pass */
    /* GPU executor */
    int32_t head_rows; /* logits wanted of the running pass: 0, 1 (the last row) or batch */
    int32_t token_B[HC_MAX_BATCH], position_B[HC_MAX_BATCH], slot_B[HC_MAX_BATCH];
    float *residual_BD, *normed_BD, *qkv_BQ, *attended_BQ, *attention_scores, *hot_BD, *logits_BV;
    uint8_t *mask_LN; /* NULL, or where this pass records its proposals; [b][layer][(N + 7) / 8] */
    int32_t *sample_ids;
    float *sample_probs;
    hc_inbox inbox;
    /* GPU and CPU executor */
    float *partial_CBD;
    int64_t *work_C;
    /* predictor */
    float *scores_BN, *hidden_BH;
};

/* steps.c: compute one step, whose waits are over. */
hc_status hc_compute_step(hc_executor *executor, const hc_step *step, uint32_t seq);
/* loop.c: one pass of the whole program with its waits and signals. */
hc_status hc_run_pass(hc_executor *executor);
/* request.c */
hc_status hc_inbox_init(hc_executor *executor);
void hc_inbox_free(hc_executor *executor);
hc_status hc_serve_requests(hc_executor *executor);

static inline hc_actor_state *hc_state_of(hc_executor *executor) {
    return &executor->args.segment->actor[executor->args.actor];
}
/* Counters have one writer; relaxed atomics so that readers elsewhere see whole values. */
static inline void hc_count(int64_t *counter, int64_t more) {
    __atomic_store_n(counter, *counter + more, __ATOMIC_RELAXED);
}
#endif
