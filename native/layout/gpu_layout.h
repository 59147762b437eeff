/* gpu_layout.h - where every tensor lies in the memory of a GPU.
 *
 * The one place where that memory is counted, and the one by which it is handed out: each function
 * goes through its tensors in order and takes room for one after the other from an arena; an arena
 * without a base only counts. Compiled twice: as C into the host module, which needs no CUDA, and as
 * C++ into the plug-in (cuda/memory/shape.cu).
 *
 * Shape suffixes as in hotcold.h, and G groups of 32 neurons, H hidden rows of a predictor, T tokens
 * of a dense prompt pass, W words of 64 signs. B is a batch rounded up to that of a graph.
 */
#ifndef HOTCOLD_GPU_LAYOUT_H
#define HOTCOLD_GPU_LAYOUT_H
#include "abi/hotcold.h"
#include "abi/layout.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HC_ARENA_ALIGN  256
#define HC_STREAM_SLOTS 3  /* buffers for streamed neurons */
#define HC_TOKEN_TILE   64 /* operands of dense products have rows for a multiple of it */
#define HC_PACK         8  /* elements of 16 bytes of half precision */
#define HC_STAMPS       9  /* of the device's clock, a row of them a layer and one of the pass */
#define HC_COUNTS       4  /* of a pass, a row of them a layer */
#define HC_MAILBOX_LINE 32 /* words from one of the mailbox to the next */
#define HC_SIGN_BITS    8  /* bit planes of an input, at most */

typedef struct {
    char *base; /* NULL: only count */
    int64_t used;
    int64_t parts; /* handed out so far, empty ones aside */
} hc_arena;

typedef struct { /* the running pass; written by its first kernel */
    uint32_t seq;
    int32_t batch, head_rows;
    uint32_t failed; /* a wait ended without its flag */
    int32_t position_B[HC_MAX_BATCH];
} hc_pass_state;

typedef struct {       /* active hot neurons of one layer, ascending */
    int32_t *rows;     /* of the neuron table; NULL: every row */
    uint32_t *members; /* NULL: all tokens */
    int32_t *count;
    int32_t *starts; /* n_chunks + 1 positions in the list */
    float *c_KB;     /* act(gate) * up, or act(gate); entry [k * bucket + b]; all lists share it */
    int32_t *audit;  /* entries from audit[0] to audit[1] are looked at and not summed */
} hc_hot_list;

typedef struct { /* one layer's predictor */
    void *fc1, *fc2;
    float *scale1_H, *scale2_N, *bias_N;
    int32_t dtype;      /* of the matrices, as uploaded */
    uint64_t *signs_NW; /* of the form sign, with a scale a row in scale2_N */
    float *column_D;
    float *norm_D; /* in a process of its own: a copy of what folds_norm needs */
} hc_predictor_parts;

typedef struct {
    float *attention_norm_D, *ffn_norm_D;
    float *attention_norm_bias_D, *ffn_norm_bias_D; /* NULL: none, as all biases */
    float *qkv_bias, *o_bias_D, *ffn_bias_D;
    char *qkv, *o, *records; /* records: of the neurons that are on the device */
    const char **record_R;   /* of all owned neurons */
    void *k_cache, *v_cache;
    uint32_t *owned_G;
    int32_t *row_G, *bounds_C, *starts_C; /* starts: of the whole table, where all are proposed */
    uint32_t *members_N, *relay;
    int32_t *counts, *fired_4C;
    /* dense prompts: ids of the neurons whose records are on the device, then of the streamed ones */
    int32_t *ids_N;
    hc_predictor_parts predictor;
} hc_layer_parts;

typedef struct { /* of one sparse pass */
    hc_pass_state *pass;
    float *h, *normed, *qkv, *attended, *hidden, *partial_CBD, *logits;
    float *attention_input; /* where it is kept beside `normed`; else `normed` */
    float *final_norm_D, *final_norm_bias_D, *cos_PE, *sin_PE; /* NULL: the model has none */
    char *head, *project_out;
    float *projected;     /* [B][embed_dim] */
    uint64_t *planes_BPW; /* of the form sign */
    float *step_B;
    float *partial; /* of attention, as its stats: NULL where the context is one piece */
    float *stats;   /* two numbers each */
    uint32_t *arrived;
    int32_t *cold_ids, *skipped, *n_hot_L;
    uint32_t *cold_members;
    uint64_t *stamps;
} hc_pass_parts;

typedef struct {        /* of a dense prompt pass; they share memory with a sparse pass's scratch */
    int64_t tokens;     /* there is room for; 0: there is no dense form */
    int64_t piece_rows; /* neurons that are streamed and computed at once */
    float *h, *attended, *scale_T, *spare_scale_T;
    float *wide;           /* qkv, then the predictor's hidden layer, then act(gate) * up */
    char *operand, *spare; /* activations as products want them */
    uint8_t *mask, *bits;  /* mask: proposals of as many layers as are alive at once */
    int64_t masks;
    char *expanded;   /* int8 predictor matrices as float16 */
    char *widened;    /* a piece of int8 neurons */
    char *project_in; /* there all the time; the sparse form projects on the host */
    unsigned long long *fired;
    char *slots[HC_STREAM_SLOTS];
} hc_prompt_parts;

typedef struct {
    hc_layer_parts *layers_L; /* of the caller; NULL where nothing but bytes is wanted */
    hc_hot_list *hot_A;       /* likewise, hc_layout_ahead + 1: layers use them in turn */
    hc_pass_parts pass;
    hc_prompt_parts prompt;
} hc_executor_parts;

typedef struct { /* cuda/memory/mailbox.h */
    uint32_t *asks, *answers;
    float *inputs; /* [ahead + 1][B][D] */
    uint32_t *members_LN;
    int64_t input_floats; /* of one */
    int32_t n_inputs;
} hc_mailbox_parts;

typedef struct { /* nanoseconds of a pass of the predictor's process, in device memory */
    uint64_t since, busy, waited;
} hc_turn_times;

typedef struct {                  /* of the predictor's process */
    hc_predictor_parts *layers_L; /* of the caller, or NULL */
    hc_pass_state *pass;
    hc_turn_times *times;
    float *hidden, *step_B;
    uint64_t *planes_BPW;
} hc_remote_parts;

/* A batch rounded up to that of a graph: 1, 2, 4, ... */
static inline int32_t hc_bucket_of(int32_t batch) {
    int32_t bucket = 1;
    while (bucket < batch)
        bucket *= 2;
    return bucket;
}

static inline int32_t hc_attention_pieces(int64_t context) {
    return (int32_t)((context + HC_ATTENTION_PIECE - 1) / HC_ATTENTION_PIECE);
}

/* What a dense prompt makes of an int8 neuron, in a dtype that its products take: float32 where the
 * model's other matrices are, which is exact, else float16, at most 2^-11 off. Offsets on 16 bytes;
 * without up rows there is room for a bias. */
hc_record hc_layout_widened(const hc_layout_shape *shape);

/* Layers by which a prediction is early, at most. */
int32_t hc_layout_ahead(const hc_layout_shape *shape);
/* members_LN: the mailbox's, where the predictor is remote. */
void hc_lay_out_executor(const hc_layout_shape *shape, hc_arena *device, hc_arena *host,
                         uint32_t *members_LN, hc_executor_parts *to);
void hc_lay_out_remote(const hc_layout_shape *shape, hc_arena *device, hc_arena *host,
                       hc_remote_parts *to);
/* Both processes lay it out alike; returns its bytes, whole granules. */
int64_t hc_lay_out_mailbox(const hc_layout_shape *shape, char *base, hc_mailbox_parts *to);

#ifdef __cplusplus
}
#endif
#endif
