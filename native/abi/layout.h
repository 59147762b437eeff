/* layout.h - what the memory of a GPU depends on, and how many bytes it comes to.
 *
 * Fed to cffi and to both compilers as hotcold.h is. Planner, benches and tests ask for bytes here;
 * the CUDA plug-in hands its memory out by the same functions (layout/gpu_layout.h).
 */
#ifndef HOTCOLD_LAYOUT_H
#define HOTCOLD_LAYOUT_H
#include <stdint.h>

/* cffi: begin */
#define HC_HOT_CHUNKS       64      /* partial sums of the hot FFN: enough blocks for a large GPU */
#define HC_ATTENTION_PIECE  256     /* positions that decode attention sums up on their own */
#define HC_PIECE_ROWS_GATED 1024    /* neurons that a dense prompt pass streams and computes at */
#define HC_PIECE_ROWS_PLAIN 2048    /* once; so many fill the GPU: 128 rows a block, gate and up */
#define HC_DEVICE_GRANULE   2097152 /* bytes; an allocation of device memory takes whole ones */

typedef struct {
    int64_t owned;            /* neurons that the GPU computes */
    int64_t resident;         /* of those, with their records in device memory */
    int64_t record_bytes;     /* of those, in a format of the GPU's own; 0: as the model's */
    int32_t host_parts;       /* HC_PART_*: modules that stay in host memory */
    int32_t predicted_at;     /* layer whose input the prediction reads; -1: not predicted */
    int32_t form;             /* hc_predictor_form; of the rest, what the predictor has: */
    int32_t bias, column;     /* not 0: such a vector */
    int32_t folds_norm;       /* not 0: the first product folds the norm of its input in */
    int64_t hidden, fc_bytes; /* matrices: rows of fc1, bytes of an element as uploaded */
} hc_layout_layer;

typedef struct {
    int32_t n_layers, heads, kv_heads, head_dim, element_bytes, kv_bytes; /* kv_bytes: an element */
    int64_t d, n, vocab, context, embed_dim, record_bytes;
    int32_t norm_bias, biases, gated, final_norm, rotary, projected; /* not 0: the model has it */
    int32_t widens;       /* not 0: there are int8 neurons, which a dense prompt widens */
    int32_t keeps_both;   /* not 0: attention's input is alive beside the feed-forward part's */
    int32_t head_on_host; /* as host_parts */
    int32_t max_batch, n_chunks;
    int32_t slots;            /* sequences that the KV cache has room for */
    int32_t audit_every;      /* one in so many neurons is looked at; 0: none */
    int32_t predictor_i8;     /* predictor matrices have a scale a row */
    int32_t remote_predictor; /* the predictor has a process and memory of its own */
    int64_t prompt_rows;      /* tokens of a dense prompt pass; 0: there is none */
    const hc_layout_layer *layers_L;
} hc_layout_shape;

typedef struct {
    int64_t device;   /* device memory, an allocation of the process's own */
    int64_t mailbox;  /* and another that the predictor's process maps */
    int64_t host;     /* pinned host memory of modules that stay there */
    int64_t rounding; /* by which modules and records take more than their bytes, were all of them
                       * in device memory, at most */
} hc_layout_bytes;
void hc_layout_executor(const hc_layout_shape *shape, hc_layout_bytes *out);
void hc_layout_predictor(const hc_layout_shape *shape,
                         hc_layout_bytes *out); /* the other process */
/* cffi: end */

#endif
