/* device.h - the C face of a GPU plug-in, included by both sides of the dlopen.
 *
 * The plug-in (native/cuda, built by nvcc) exports hc_device_table(); everything else goes through
 * the table it returns. The core never links against CUDA, and a plug-in of another ABI is refused
 * before anything else of it is called.
 */
#ifndef HOTCOLD_DEVICE_H
#define HOTCOLD_DEVICE_H
#include "abi/operate.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One layer's place in the exchange, taken from the programs of the GPU executor and the predictor.
 * Flags and offsets are -1 where there is none. */
typedef struct {
    int32_t x_flag, active_flag, y_flag;
    int32_t has_hot, has_cold, selective;
    int32_t predicted_at; /* layer whose input the prediction of this layer reads; -1: none */
    int64_t x, cold_list, y;
} hc_device_layer;

typedef struct { /* one pass, called by the loop thread */
    uint32_t seq;
    int32_t batch, head_rows;
    const int32_t *position_B;
    const float *embedded_BD; /* rows of the embedding, gathered by the host */
    uint32_t *members_LN;     /* NULL, or receives the proposals of every layer */
    hc_span *spans; /* receives what the pass did when, HC_DEVICE_SPANS(L) at most, in order */
} hc_device_pass;
#define HC_DEVICE_SPANS(n_layers) (7 * (n_layers) + 2)

/* prompt tokens in one dense pass, without the exchange; the plug-in counts what it has done in the
 * GPU executor's progress, so that a device that hangs is told from one that works */
typedef struct {
    const int32_t *tokens;
    int32_t count, position, head; /* head: logits of the last one are wanted */
    float *logits_PV;              /* NULL, or receives those of every token */
    uint8_t *masks_PLN;            /* NULL, or receives proposals, as bits */
} hc_device_prompt;

typedef struct {
    uint32_t abi;
    const char *name;
    /* NULL after a failure; why is in error. layers_L: one entry a layer. */
    void *(*create)(const hc_executor_args *args, const hc_device_args *device,
                    const hc_device_layer *layers_L);
    void (*destroy)(void *self);
    hc_status (*pass)(void *self, const hc_device_pass *pass, hc_device_report *report);
    hc_status (*prompt)(void *self, const hc_device_prompt *prompt, hc_device_report *report);
    float *(*logits)(void *self); /* pinned, [max_batch][V]; filled by pass */
    void (*mailbox)(void *self, hc_mailbox *out);
    /* A predictor in a process of its own; layers_L as in create. answer() returns once it has
     * answered for every layer of a pass, or HC_ERR_POISONED. */
    void *(*create_predictor)(const hc_executor_args *args, const hc_device_args *device,
                              const hc_device_layer *layers_L);
    void (*destroy_predictor)(void *self);
    hc_status (*answer)(void *self, uint32_t seq, int32_t batch, hc_device_report *report);
    const hc_error *(*error)(void); /* this thread's last failure, of a call that failed */
    /* For benches and tests: run one operator on host arrays. */
    hc_status (*operate)(const hc_device_op *op);
} hc_device_api;

#define HC_DEVICE_ABI (HC_ABI_VERSION * 1000u)
const hc_device_api *hc_device_table(void);

#ifdef __cplusplus
}
#else
/* device.c, for scheduler.c, pass.c and loop.c */
hc_status hc_device_run_pass(struct hc_executor *executor);
hc_status hc_device_run_prompt(struct hc_executor *executor, const hc_device_prompt *prompt);
float *hc_device_logits(hc_device *device);
hc_status hc_device_follow(struct hc_executor *executor); /* pass after pass, as the predictor */
#endif
#endif
