/* hotcold.h - the ABI between Python, the C kernels and the CUDA plug-in.
 *
 * The text between the two cffi marks is fed to cffi's cdef by _build.py and included by every C
 * file, so both compilers check the same declarations. Nothing below allocates or frees memory that
 * it was handed: the caller owns every pointer, and must keep it alive while it is in use.
 *
 * Shape suffixes: B batch (tokens of one pass, <= HC_MAX_BATCH), D d_model, N neurons of a layer,
 * R rows, K active neurons (entries of an id list), C chunks, L layers, V vocabulary, P positions.
 * Neuron ids are the checkpoint's own row numbers. Sizes are int64_t, ids int32_t, strides bytes
 * unless said otherwise. Weights are HC_F32, HC_F16 or HC_BF16, of neurons HC_I8 too; sums are fp32.
 */
#ifndef HOTCOLD_H
#define HOTCOLD_H
#include "abi/activations.h"

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
#define HC_ABI_VERSION 7
#define HC_MAX_BATCH   32
#define HC_MAX_DEVICES 7
#define HC_MAX_ACTORS  8 /* an executor a device, and the predictor */
#define HC_MAX_WAITS   8 /* of a step: a list's flag, and one of each device */
#define HC_MAX_THREADS 1024
#define HC_CACHE_LINE  64
#define HC_DTYPES      4
#define HC_GROUP       64 /* weights of HC_I8 that share a scale */
#define HC_MAX_TOP     20 /* alternatives that are told of a draw */

typedef enum {
    HC_OK = 0,
    HC_ERR_ARGUMENT = 1,    /* a size, id or pointer out of range */
    HC_ERR_MEMORY = 2,      /* an allocation failed */
    HC_ERR_POISONED = 3,    /* the exchange was poisoned: a peer died, or the engine is closing */
    HC_ERR_EPOCH = 4,       /* the segment belongs to another epoch */
    HC_ERR_TIMEOUT = 5,     /* a deadline passed */
    HC_ERR_UNSUPPORTED = 6, /* a variant this machine does not offer */
    HC_ERR_SYSTEM = 7,      /* a system call failed */
    HC_ERR_BUDGET = 8,      /* value bytes do not fit the budget of limit bytes */
    HC_ERR_GPU_MEMORY = 9,  /* the GPU has no memory left; of limit bytes value are free (0, 0:
                             * not known) */
    HC_ERR_PINNED = 10      /* the system refused to pin value bytes of host memory */
} hc_status;

typedef struct {    /* a failure; value and limit are 0 where the status gives them no meaning */
    int32_t status; /* hc_status */
    int64_t value, limit;
    char text[512]; /* what failed, with its figures; the way out is told in Python */
} hc_error;

/* Of weights. HC_I8 is of neurons: whole numbers -127 to 127 and a scale, binary16, for each
 * HC_GROUP of a row (variant.h); and of predictor matrices on a GPU, with a scale a row. Names in
 * Python: float32, float16, bfloat16, int8 (abi/names.py). */
typedef enum { HC_F32 = 0, HC_F16 = 1, HC_BF16 = 2, HC_I8 = 3 } hc_dtype;
typedef enum {                /* which actor has which, and what each owns: runtime/topology.py */
               HC_LEADER = 0, /* the first GPU executor: attention, its own neurons, merges, head */
               HC_WORKER = 1, /* any other executor: its own neurons, whose sum it hands over */
               HC_PREDICTOR = 2
} hc_role;

const hc_error *hc_last_error(void); /* this thread's last failure */
int32_t hc_abi_version(void);

/* ---- CPU variants (dispatch.c): "avx512", "avx2", "neon", "ref"; best supported first ---- */
const char *hc_cpu_variant(int32_t index); /* NULL past the end */
const char *hc_cpu_active(void);
hc_status hc_cpu_force(const char *name); /* process-wide; NULL: best */
/* Open a compiled variant (variant.h) under a name for hc_cpu_force; it stays open. */
hc_status hc_cpu_load(const char *path, const char *name);

/* ---- Thread pool (pool.c). threads counts the caller; cores NULL: not pinned; spins: whether
 * threads that wait spin before they sleep ---- */
typedef struct hc_pool hc_pool;
hc_pool *hc_pool_create(int32_t threads, const int32_t *cores, int32_t spins);
void hc_pool_destroy(hc_pool *pool);
int32_t hc_pool_threads(const hc_pool *pool);

/* ---- Operators (ops/: one file each). pool may be NULL: the caller's thread alone ---- */
typedef struct {
    const void *w; /* w_RD, rows stride_bytes apart */
    int64_t stride_bytes;
    int64_t rows, d;
    int32_t dtype, batch;
    const float *x_BD; /* rows of x are x_stride floats apart */
    int64_t x_stride;
    float *y_BR; /* written, or added to when accumulate; rows y_stride floats apart */
    int64_t y_stride;
    const float *bias_R; /* NULL: none */
    int32_t relu;        /* clamp the result at 0 (never with accumulate) */
    int32_t accumulate;
    int64_t bias_stride; /* bytes from one bias to the next; 0: 4 */
    int64_t scales;      /* HC_I8: bytes from a row to its first scale */
} hc_gemv_args;
hc_status hc_gemv(const hc_gemv_args *args, hc_pool *pool);

typedef struct {                  /* where the parts of a neuron lie in its record */
    int64_t bytes;                /* from one record to the next */
    int64_t gate, up, down, bias; /* bytes to each part; up -1: none; bias, one float: 0: none */
    int64_t scales; /* HC_I8: bytes from a part's first weight to its first scale; 0: no scales */
    int32_t dtype;  /* of gate, up and down */
    int32_t group;  /* weights that share a scale; 0 */
} hc_record;

/* Sparse FFN over an ascending id list, gate first: y = sum_i act(g_i.x) (u_i.x) d_i, or without
 * up rows (a plain layer: fc1 is the gate, fc2 the down matrix) y = sum_i act(g_i.x + b_i) d_i.
 * The gate row of every listed neuron is read (unless its pre-activation is given in gate_KB), its
 * up row only where the gate fired, and its down column too, unless a ReLU on up makes the factor 0.
 * Neurons are added in the list's order: the result depends neither on the thread count nor on the
 * batch a token travels in. */
typedef struct {
    const void *records; /* neuron-major records of one layer */
    hc_record record;
    int64_t d;
    int32_t batch;
    const int32_t *slot_N; /* which record is a neuron's; NULL: that of its id */
    const int32_t *ids;
    int64_t n_ids;
    const uint32_t *members; /* members[k] bit b: token b asks for neuron ids[k]; NULL: all do */
    const float *gate_KB;    /* NULL, or gate pre-activations (bias added), entry [k * batch + b] */
    int64_t n;               /* neurons of the layer: ids are less */
    const float *x_BD;       /* contiguous */
    float *y_BD;             /* written, contiguous */
    void *scratch;           /* hc_ffn_scratch_bytes(n_ids, batch), on a cache line */
    int64_t *fired_N;        /* NULL, or counts: += tokens for which the neuron's gate fired */
    int64_t gate_rows;       /* out: gate rows times tokens evaluated here */
    int64_t up_down_rows;    /* out: neurons times tokens whose gate fired */
    int64_t bytes;           /* out: weight bytes touched (a row counts once per batch) */
    int32_t activation;      /* hc_activation */
    float activation_threshold;
} hc_ffn_args;
int64_t hc_ffn_scratch_bytes(int64_t n_ids, int32_t batch);
hc_status hc_ffn(hc_ffn_args *args, hc_pool *pool);

typedef struct { /* header of an active list; ids, members, gate follow (HC_ACTIVE_* below) */
    uint64_t epoch;
    uint32_t seq;
    int32_t batch;
    int64_t count;
    int64_t capacity; /* entries there is room for: N */
    int32_t has_gate; /* hc_gate_list */
    int32_t reserved[7];
} hc_active; /* 64 bytes */
int32_t *hc_active_ids(hc_active *list);
uint32_t *hc_active_members(hc_active *list);
float *hc_active_gate(hc_active *list); /* entry [k * batch + b] */

/* Cut predicted scores into one ascending active list per device. Neuron i is active for token b
 * where scores_BN[b][i] >= threshold; it is listed where any token has it. */
typedef struct {
    const float *scores_BN; /* contiguous */
    int64_t n;
    int32_t batch;
    float threshold;
    const int8_t *device_N;         /* owner of each neuron: index into out */
    hc_active *out[HC_MAX_DEVICES]; /* epoch, seq, capacity are left as they are */
    int32_t with_gate;              /* hc_gate_list: copy the scores as gate pre-activations */
} hc_split_args;
hc_status hc_split(const hc_split_args *args);

/* y = x / sqrt(mean(x^2) + eps) * weight, where kind (hc_norm) is HC_NORM_LAYER of x - mean(x);
 * + bias unless it is NULL. y may be x. */
hc_status hc_norm_rows(int32_t kind, const float *x_BD, const float *weight_D, const float *bias_D,
                       float eps, float *y_BD, int32_t batch, int64_t d);
/* Rotate-half rotary embedding in place over heads * head_dim floats a token. cos, sin: [P][head_dim/2]. */
hc_status hc_rotary(float *x, int64_t x_stride, int32_t heads, int32_t head_dim,
                    const float *cos_PE, const float *sin_PE, const int32_t *position_B,
                    int32_t batch);

typedef struct {
    const float *q; /* [B][heads * head_dim], rows q_stride floats apart, rotary applied */
    int64_t q_stride;
    const float *k_cache; /* [slot][kv_heads][context][head_dim] */
    const float *v_cache;
    int32_t heads, kv_heads, head_dim, batch;
    int64_t context;
    const int32_t *slot_B;     /* which sequence a row belongs to; NULL: slot 0 */
    const int32_t *position_B; /* row b attends to positions 0..position_B[b] */
    float *scores;             /* scratch, threads * context floats */
    float *out;                /* [B][heads * head_dim] written, contiguous */
    int64_t window;            /* of those, to the last so many; 0: to all */
} hc_attention_args;
hc_status hc_attention(const hc_attention_args *args, hc_pool *pool);

typedef struct {
    int32_t id;    /* -1: no more ids have a finite logit */
    float logprob; /* log softmax of the raw logits */
} hc_top;

/* Sampling, counter-based on (seed, position): the same draw whatever ran before. Order: top-k,
 * temperature, softmax, top-p. temperature 0: greedy, the lowest id among equals. */
typedef struct {
    const float *logits_V;
    int64_t vocab;
    float temperature; /* >= 0 */
    int32_t top_k;     /* 0: off */
    float top_p;       /* 1: off */
    uint64_t seed, position;
    int32_t *scratch_V; /* ids */
    float *prob_V;      /* scratch */
    int32_t id;         /* out */
    float logprob;      /* out: log softmax of the raw logits at id */
    int32_t n_top;      /* 0 to HC_MAX_TOP */
    hc_top *top;        /* out: the n_top likeliest ids, best first, the lowest id among equals */
} hc_sample_args;
hc_status hc_sample(hc_sample_args *args);

typedef struct { /* bench: read rows and nothing else, what a sparse operator could reach at best */
    const void *base;
    int64_t stride_bytes, row_bytes; /* row_bytes a multiple of 64 */
    const int32_t *ids;
    int64_t n;
    int32_t side;  /* rows read side by side: 1, 4 or 8 */
    uint64_t fold; /* out: of all that was read */
} hc_read_args;
hc_status hc_read(hc_read_args *args, hc_pool *pool);

/* ---- The exchange (exchange.c; layout: runtime/exchange/layout.py) ---- */
typedef struct
{ /* one cache line, one setter: the sequence number of the last pass that signalled */
    uint32_t value;
    uint32_t sleepers;
    uint32_t reserved[14];
} hc_flag;

typedef struct {       /* written by its actor alone, read by anyone at any time */
    uint64_t progress; /* steps done: unchanged past a deadline while a pass runs means stuck */
    int64_t gate_rows, up_down_rows, bytes, busy_ns, wait_ns, passes, skipped_exchanges;
    uint64_t span_count; /* spans ever written; the ring keeps the last span_capacity */
    int64_t pid;
    int64_t audit_rows, audit_missed; /* neurons not proposed but evaluated; those that fired */
    int64_t clock_error_ns; /* spans of a GPU: by how much their times may be off at most */
    int64_t asks, asked_ns; /* predictor in a process of its own: questions, time until answered */
    int64_t ahead_bytes; /* of `bytes`, or of what was read in vain: asked for before x was there */
    int64_t prompt_tokens, reused_tokens; /* GPU: of all prompts; of those, not computed again */
    int64_t reserved[6];
} hc_actor_state; /* 192 bytes */

typedef struct {
    uint64_t begin_ns, ready_ns, end_ns; /* CLOCK_MONOTONIC: step begun, waits over, step ended */
    uint32_t seq;
    int16_t layer;
    int16_t op;
} hc_span; /* 32 bytes */

typedef struct {
    uint64_t magic;
    uint32_t abi, n_flags;
    uint64_t epoch, bytes;
    int64_t flags_offset, span_offset[HC_MAX_ACTORS];
    int64_t span_capacity;
    int32_t spin_ns,
        yield_every;       /* wait policy: futex after spin_ns, sched_yield every so many spins */
    int64_t owners_offset; /* of hc_owners (moves.h); 0: neurons stay */
    uint64_t poison;       /* own line. 0, or code << HC_POISON_SHIFT | actor: never cleared */
    uint64_t poison_pad[7];
    int32_t
        pass_batch; /* own line. the running pass, written by the GPU executor before its first signal */
    uint32_t pass_seq;
    uint64_t pass_begin_ns;
    int32_t pass_prompt;  /* tokens of the dense prompt pass that the GPU runs alone; 0: none */
    uint32_t pass_owners; /* version of the ownership in this pass (moves.h) */
    int32_t pass_reserved[10];
    int32_t pass_slot_B[HC_MAX_BATCH]; /* of each row: its sequence's slot, its place in there */
    int32_t pass_position_B[HC_MAX_BATCH];
    hc_actor_state actor[HC_MAX_ACTORS];
} hc_segment;

typedef enum {
    HC_POISON_CLOSED = 1, /* orderly end */
    HC_POISON_DIED = 2,   /* the named actor's process is gone */
    HC_POISON_FAILED = 3, /* the named actor reported an error */
    HC_POISON_STUCK = 4   /* no progress past the deadline */
} hc_poison_code;
#define HC_POISON_SHIFT 8
#define HC_DRIVER       255 /* the poisoner that is no actor */

hc_status hc_segment_init(hc_segment *segment, uint64_t bytes, uint64_t epoch, uint32_t n_flags,
                          int64_t flags_offset, const int64_t *span_offset, int64_t span_capacity);
hc_status hc_segment_check(const hc_segment *segment, uint64_t bytes, uint64_t epoch);
void hc_segment_poison(hc_segment *segment, int32_t code, int32_t actor); /* the first one stays */
uint64_t hc_segment_poisoned(const hc_segment *segment);
void hc_flag_signal(hc_segment *segment, int32_t flag, uint32_t seq);
/* Wait until flag == seq. timeout_ns < 0: no deadline. waited_ns (may be NULL) += time spent. */
hc_status hc_flag_wait(hc_segment *segment, int32_t flag, uint32_t seq, uint64_t epoch,
                       int64_t timeout_ns, int64_t *waited_ns);
uint64_t hc_now_ns(void);

/* A thread that poisons the segment (HC_POISON_DIED, actor) as soon as one of the pids ends. */
#define HC_MAX_WATCHED 64 /* processes of one watcher */
typedef struct hc_watcher hc_watcher;
hc_watcher *hc_watcher_start(hc_segment *segment, const int32_t *pids, const int32_t *actors,
                             int32_t n);
void hc_watcher_stop(hc_watcher *watcher);

/* Bench: play ping (side 0) or pong (side 1) on two flags for n round trips; ping fills rtt_ns. */
hc_status hc_hop(hc_segment *segment, int32_t side, int32_t flag_out, int32_t flag_in, int64_t n,
                 uint64_t epoch, int32_t core, uint32_t *rtt_ns);

/* ---- Programs and the resident loop (loop.c, steps.c, scheduler.c) ---- */
typedef enum {
    HC_OP_EMBED = 0,
    HC_OP_ATTENTION = 1,
    HC_OP_PREDICT = 2,
    HC_OP_HOT = 3,
    HC_OP_COLD = 4,
    HC_OP_MERGE = 5,
    HC_OP_HEAD = 6,
    HC_OP_INPUT = 7 /* of the feed-forward part, where attention reads as early */
} hc_op;

typedef enum { /* what the bytes and operations of a step grow with (runtime/plan/work.py) */
               HC_FIXED = 0,    /* bytes a pass; operations a token */
               HC_POSITION = 1, /* a cached position: that the pass, that a token attends to */
               HC_PROPOSED = 2, /* a neuron whose gate is evaluated here */
               HC_FIRED = 3     /* a neuron that fires, beyond its gate */
} hc_term;
#define HC_TERMS 4

typedef struct {
    int32_t op, layer;
    int32_t device; /* hot, cold: the owner of the neurons, as in active and y; else -1 */
    int32_t wait[HC_MAX_WAITS]; /* flags that must equal seq first; -1: none. merge: [0] is the
                                 * lists', [1 + d] that of device d's sum */
    int32_t signal;             /* flag set to seq afterwards; -1: none */
    int32_t flags;              /* of hc_step_flag */
    int64_t x;                  /* payload offsets in the segment; -1: none */
    int64_t active[HC_MAX_DEVICES], y[HC_MAX_DEVICES]; /* by device */
    int64_t bytes[HC_TERMS], flops[HC_TERMS]; /* by hc_term; a multiply-add is two operations */
} hc_step;
typedef enum {
    HC_STEP_SELECTIVE = 1, /* merge: do not wait for a device none of whose neurons is active */
    HC_STEP_ALL = 2, /* hot, cold: no active list; every owned neuron is proposed (gate-first) */
    HC_STEP_HOT = 4, /* merge: the leader owns neurons of this layer */
    HC_STEP_RESIDUAL = 16, /* who hands x over: the residual stream follows it in its slot
                            * (predictors that read it) */
    HC_STEP_AHEAD = 32     /* cold: its list, wait[1], comes well before x, wait[0]; read ahead
                            * meanwhile */
} hc_step_flag;

typedef struct {
    const float *attention_norm_D, *ffn_norm_D;
    const void *qkv; /* [(heads + 2 kv_heads) * head_dim][D] */
    const void *o;   /* [D][heads * head_dim] */
    const void *records;
    const float *attention_norm_bias_D, *ffn_norm_bias_D; /* NULL: none; as all biases here */
    const float *qkv_bias, *o_bias_D;
    const float *ffn_bias_D; /* of the down matrix; the merge adds it, once */
    const float *q_norm_E, *k_norm_E, *q_norm_bias_E, *k_norm_bias_E; /* of each head; NULL: none */
} hc_layer;

typedef enum { HC_NORM_RMS = 0, HC_NORM_LAYER = 1 } hc_norm;

/* A block as data (runtime/model/block.py): operators in the order in which they take effect. */
typedef enum { HC_OPERATOR_NORM = 0, HC_OPERATOR_ATTEND = 1, HC_OPERATOR_FFN = 2 } hc_operator_kind;
typedef enum {
    HC_STREAM_H = 0, /* the residual stream */
    HC_STREAM_A = 1, /* the input of attention */
    HC_STREAM_X = 2  /* the input of the feed-forward part, in the segment */
} hc_stream;
typedef struct {
    int32_t kind;           /* hc_operator_kind */
    int32_t source, target; /* hc_stream; a norm writes its target, the others add to it */
    int32_t of_ffn;         /* norm: not 0: with the layer's ffn_norm, else its attention_norm */
    int32_t step;           /* hc_op of the step that computes it; ffn: that hands its input over */
} hc_operator;

typedef struct {
    int32_t n_layers, heads, kv_heads, head_dim, dtype;
    int64_t d, n, vocab, context;
    float norm_eps;
    hc_record record; /* of every layer's neurons */
    const hc_layer *layers;
    const void *embed, *head;     /* [V][embed_dim] */
    const float *final_norm_D;    /* NULL: no norm before the head */
    const float *cos_PE, *sin_PE; /* NULL: no rotary embedding */
    int32_t norm;                 /* hc_norm */
    int32_t activation;           /* hc_activation */
    float activation_threshold;
    int32_t n_block;
    const hc_operator *block; /* the same in every layer */
    int64_t embed_dim;        /* width of embed and head; d unless projected */
    const float *final_norm_bias_D;
    const void *positions; /* [context at least][D], added to embeddings; NULL: none */
    const void *project_in, *project_out; /* [D][embed_dim], [embed_dim][D]; NULL: none */
    int64_t window;    /* positions that attention looks back on, its own included; 0: all */
    float embed_scale; /* what embeddings are multiplied by; 0: nothing */
} hc_model;

typedef struct {        /* what one device owns in one layer */
    const int32_t *ids; /* ascending */
    int64_t n_ids;
    const void *records;   /* of a format of the device's own; NULL: the model's, by neuron id */
    hc_record record;      /* where parts lie in those */
    const int32_t *slot_N; /* which of those records is a neuron's; NULL: that of its id */
} hc_owned;

typedef struct hc_predictor_layer hc_predictor_layer; /* predict.h */

/* What a slot of the KV cache holds: the keys and values of the first n of its tokens. It lies in
 * the memory of the cache, so that both outlive who wrote them. */
typedef struct {
    int64_t n;        /* raised when rows are whole, lowered before any of them is written again */
    int64_t plan;     /* kv_plan and version of the owners they were computed by; 0: by several */
    uint64_t used_ns; /* when a sequence last took it; 0: never */
} hc_kv_mark;

typedef struct {
    int32_t actor; /* its place in the segment's lists of actors */
    int32_t role;  /* hc_role */
    int32_t max_batch, n_steps;
    const hc_model *model;
    hc_segment *segment;
    uint64_t epoch;
    const hc_step *steps;
    const hc_owned *owned_L;                /* leader, worker */
    const hc_predictor_layer *predictors_L; /* predictor */
    const int8_t *device_LN;                /* predictor */
    float *k_cache, *v_cache;               /* leader: [L][slot][kv_heads][context][head_dim] */
    int32_t n_slots;                        /* sequences at once, 1 to HC_MAX_BATCH */
    int32_t
        prompt_piece; /* most prompt rows of a pass in which others decode; one of each is had */
    hc_kv_mark *kv_marks_S; /* NULL: a device has the cache, nothing is found again */
    int32_t *kv_tokens_SP;  /* [slot][context] */
    int32_t kv_plan;        /* 1 or more: rows of one plan have equal bits */
    int64_t *fired_LN;      /* NULL, or profile counts */
    hc_pool *pool;
    int32_t core; /* of the loop thread; -1: not pinned */
    int32_t
        audit_every; /* leader, worker: one in so many neurons is looked at; 0: no recall audit */
    uint64_t audit_seed;
    struct hc_device
        *device; /* leader, predictor: computes the passes; NULL: the CPU device does */
} hc_executor_args;
typedef struct hc_executor hc_executor;
hc_executor *hc_executor_create(const hc_executor_args *args);
void hc_executor_destroy(hc_executor *executor);
/* Worker, predictor: pass after pass. Leader: requests, n_slots at once. Returns when poisoned. */
hc_status hc_executor_run(hc_executor *executor);

/* Ray transport: the caller leads. Set up a pass (tokens NULL off the GPU executor), then compute
 * its steps one by one, without waits or signals. rows: logits wanted (0, 1 or batch). */
hc_status hc_executor_begin(hc_executor *executor, uint32_t seq, int32_t batch,
                            const int32_t *tokens, int32_t position, int32_t rows);
hc_status hc_executor_step(hc_executor *executor, int32_t step, uint32_t seq);
/* Fault injection (hotcold chaos): raise signal_number in this process when the loop next begins a
 * step of this operation in pass at_seq or later. op -1 disarms. */
void hc_executor_arm(hc_executor *executor, int32_t op, uint32_t at_seq, int32_t signal_number);
const float *hc_executor_logits(const hc_executor *executor); /* [rows][V] of the last head step */

/* cffi: end */

/* Positions that a token at `position` attends to. */
static inline int64_t hc_attended(int64_t window, int64_t position) {
    return window > 0 && window <= position ? window : position + 1;
}
/* The same of a pass of so many tokens, the last of them at `position`. */
static inline int64_t hc_attended_in(int64_t window, int64_t batch, int64_t position) {
    return hc_attended(window > 0 ? window + batch - 1 : 0, position);
}

/* Where the parts of an active list lie: |hc_active|ids int32|members uint32|gate float|, each on a
 * cache line of its own. Python gets these as functions too: names, whole numbers and + - * / alone. */
#define HC_LINES(bytes)             (((bytes) + HC_CACHE_LINE - 1) / HC_CACHE_LINE * HC_CACHE_LINE)
#define HC_ACTIVE_IDS()             (sizeof(hc_active))
#define HC_ACTIVE_MEMBERS(capacity) (HC_ACTIVE_IDS() + HC_LINES((capacity) * 4))
#define HC_ACTIVE_GATE(capacity)    (HC_ACTIVE_MEMBERS(capacity) + HC_LINES((capacity) * 4))
#define HC_ACTIVE_BYTES(capacity, gate_floats)                                                     \
    (HC_ACTIVE_GATE(capacity) + HC_LINES((capacity) * (gate_floats) * 4))

/* The block's feed-forward operator. */
static inline const hc_operator *hc_ffn_operator(const hc_model *model) {
    const hc_operator *op = model->block;
    while (op->kind != HC_OPERATOR_FFN)
        op++;
    return op;
}
/* The norm that its input comes out of; NULL: none. */
static inline const hc_operator *hc_input_norm(const hc_model *model) {
    const hc_operator *ffn = hc_ffn_operator(model), *op = ffn;
    while (op > model->block)
        if ((--op)->kind == HC_OPERATOR_NORM && op->target == ffn->source)
            return op;
    return NULL;
}
/* Whether attention has an input of its own while the feed-forward part's is alive. */
static inline int32_t hc_keeps_both(const hc_model *model) {
    for (int32_t i = 0; i < model->n_block; i++)
        if (model->block[i].target == HC_STREAM_A)
            return hc_ffn_operator(model)->step == HC_OP_INPUT;
    return 0;
}

#include "abi/moves.h"
#include "abi/predict.h"
#include "abi/request.h"

#include "abi/gpu.h" /* names what predict.h declares */

#endif
