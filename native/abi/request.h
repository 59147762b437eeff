/* request.h - the part of the ABI that control threads talk to the GPU executor by: requests.
 *
 * Included by hotcold.h, and fed to cffi and to the compilers exactly as that is.
 */
#ifndef HOTCOLD_REQUEST_H
#define HOTCOLD_REQUEST_H

/* cffi: begin */
typedef enum { /* which rows of the KV cache a request may begin with, where their tokens are its own */
               HC_REUSE_NONE = 0,
               HC_REUSE_PLAN = 1, /* those of the plan that runs: the bits of a run from scratch */
               HC_REUSE_ANY = 2   /* those of any plan: it goes on, after a loss or a new plan */
} hc_reuse;
typedef struct {
    int64_t id; /* 0 or more; no other request has it until this one is released */
    const int32_t *prompt;
    int32_t n_prompt, max_tokens, n_eos;
    int32_t reuse;   /* hc_reuse; one that is not HC_REUSE_ANY begins after those that are */
    int32_t n_dense; /* leading tokens that a device computes in dense passes; 0: none */
    int32_t n_top;   /* alternatives of each token that are wanted, 0 to HC_MAX_TOP */
    const int32_t *eos;
    float temperature, top_p;
    int32_t top_k;
    uint64_t seed;
    float *logits_PV;   /* NULL, or logits of every prompt position and of every decoded one */
    uint8_t *masks_PLN; /* NULL, or proposed neurons, bits: [position][layer][(N + 7) / 8] */
} hc_request;
typedef struct {
    int32_t id;
    float logprob;
    uint64_t time_ns;
} hc_token;
/* Requests are told by their ids. Any number may be posted, at any time; they begin in that order as
 * slots become free, and none sees another in its tokens. */
hc_status hc_executor_post(hc_executor *executor, const hc_request *request);
/* End it after its current token, or before its first; id -1: all of them. */
void hc_executor_cancel(hc_executor *executor, int64_t id);
/* Copy up to max of its tokens from index on; wait timeout_ms until at_least of them are there. done: 0
 * running, 1 finished (all tokens were ever delivered once this returns fewer than max) or unknown. top:
 * NULL, or receives n_top alternatives of each. One reader a request at a time. */
int32_t hc_executor_tokens(hc_executor *executor, int64_t id, int64_t index, int32_t at_least,
                           hc_token *out, hc_top *top, int32_t max, int32_t timeout_ms,
                           int32_t *done);
typedef struct {
    hc_error error;                       /* status HC_OK: none */
    uint64_t begin_ns, prompt_ns, end_ns; /* given a slot, prompt done, all done */
    int64_t passes, reused;               /* reused: prompt tokens that were not computed */
    int64_t prompt_bytes, decode_bytes;   /* weight and KV bytes all actors read meanwhile */
} hc_request_state;
void hc_executor_request_state(const hc_executor *executor, int64_t id, hc_request_state *out);
/* Forget a request, at once or when it has ended. Returns 1 where it has: what it points to is then
 * the caller's again. */
int32_t hc_executor_release(hc_executor *executor, int64_t id);
/* cffi: end */

#endif
