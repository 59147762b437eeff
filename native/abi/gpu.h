/* gpu.h - the part of the ABI that a GPU executor's device needs; hotcold.h includes it.
 *
 * Fed to cffi and to both compilers exactly as hotcold.h is; split off for its length alone.
 */
#ifndef HOTCOLD_GPU_H
#define HOTCOLD_GPU_H

/* cffi: begin */
/* ---- A GPU as the GPU executor's device: a plug-in library (device.c, cuda/) ---- */
typedef struct { /* how a predictor with a process of its own reaches the GPU executor's memory */
    uint8_t handle[64]; /* cudaIpcMemHandle_t */
    int64_t address;    /* for threads of process pid */
    int64_t pid;
} hc_mailbox;

typedef struct {
    int32_t index;            /* CUDA device */
    int32_t kv_f16;           /* KV cache in float16 instead of float32 */
    int32_t predictor_i8;     /* predictor matrices as int8 with a scale a row */
    int32_t n_chunks;         /* partial sums of the hot FFN */
    int64_t vram_bytes;       /* what may be allocated; 0: no limit */
    const int32_t *bounds_LC; /* [L][n_chunks + 1]: neuron ids that cut the hot neurons */
    const hc_predictor_layer *predictors_L; /* NULL: nothing is predicted */
    const hc_step *predict_steps;           /* the predictor's program */
    int32_t n_predict_steps;
    int32_t launch_overlap; /* programmatic dependent launch */
    const uint8_t
        *bus_LN; /* NULL, or 1: an owned neuron that stays in host memory, read over the bus */
    const uint8_t *host_parts_L; /* NULL, or [L + 1] of HC_PART_*: modules that stay there too */
    int64_t prompt_rows;         /* tokens of a dense prompt pass; 0: prompts are always sparse */
    const char *variant;         /* NULL, or a compiled CUDA variant (cuda/variant.cuh) */
    int32_t remote_predictor;    /* the predictor is a process of its own, and asked */
    int32_t pass_flag; /* remote predictor: set where a pass begins; the predictor waits for it */
    const hc_step *gpu_steps; /* predictor: the GPU executor's program */
    int32_t n_gpu_steps;
    hc_mailbox mailbox; /* predictor: the GPU executor's */
} hc_device_args;
#define HC_PART_ATTENTION 1
#define HC_PART_KV        2
#define HC_PART_PREDICTOR 4
#define HC_PART_HEAD      8 /* of entry L */

#define HC_PHASES 6
typedef struct { /* of the last pass */
    int64_t gate_rows, up_down_rows, bytes, skipped_exchanges, cold_neurons;
    int64_t phase_ns[HC_PHASES]; /* attention, predict, hot, wait, merge, head; sums over layers */
    int64_t pass_ns;             /* on the device */
    int64_t allocated_bytes;     /* device memory this executor asked for */
    int64_t pinned_bytes;        /* host memory that the device reads weights and KV from */
    int64_t audit_rows, audit_missed; /* neurons not proposed but evaluated; those that fired */
    int64_t clock_error_ns;           /* bound on the error of the spans' times */
    int32_t n_spans;                  /* steps of the pass, in the executor's span ring */
    int64_t asks,
        asked_ns; /* remote predictor: questions, and the time from each to its answer; as the
                             * predictor has it, to which the way there and back does not count */
} hc_device_report;

typedef enum {
    HC_DEVICE_GEMV = 0,
    HC_DEVICE_FFN = 1,
    HC_DEVICE_SPLIT = 2,
    HC_DEVICE_ATTENTION = 3,
    HC_DEVICE_HOLD = 4, /* a graph of `repeat` kernels, kept until the process ends: a probe */
    HC_DEVICE_PRODUCT = 5,
    HC_DEVICE_PROMPT_ATTENTION = 6, /* batch tokens from position_B[0] on */
    HC_DEVICE_PROMPT_SIGN = 7,
    HC_DEVICE_NORM = 8,
    HC_DEVICE_SIGN = 9,
    HC_DEVICE_GAPS = 10,     /* seconds a node of a graph that does nothing; copies: nodes */
    HC_DEVICE_EXCHANGE = 11, /* seconds an exchange adds to a layer; copies: layers, gemv->d */
    HC_DEVICE_PROMPT_NORM = 12
} hc_device_op_kind;
typedef struct {          /* a product of dense prompts: y[t][r] = sum over k of x[t][k] w[r][k] */
    const void *w;        /* [rows], or transposed [k], of stride_bytes */
    int64_t offset_bytes; /* where in each of them the row begins */
    int64_t stride_bytes, rows, k;
    int32_t dtype, transposed; /* 3: int8, widened first */
    const float *x_TK;
    int32_t tokens, epilogue;      /* DenseEpilogue in cuda/dense.h */
    int64_t up_bytes, bias_bytes;  /* of neurons: from a gate row to its up row, or to its bias */
    const float *scale_R, *bias_R; /* NULL: none */
    float threshold;
    const int32_t *ids_R;   /* of neurons, with a mask: their ids */
    const uint8_t *mask_TN; /* of neurons: NULL: all take part */
    int64_t n;
    float *y_TR;     /* in and out */
    uint8_t *bits_T; /* receives what reached the threshold, instead of y */
    int64_t fired;   /* out, of neurons: entries that are not 0 */
} hc_product_args;
typedef struct { /* tests and benches: one operator on host arrays, copied in and out */
    int32_t kind, index;
    hc_gemv_args *gemv;  /* dtype 3: int8 weights; norms: x and y alone */
    const float *norm_D; /* gemv, product: x is normed first; NULL: not; norms: the weight */
    float eps;
    const float *norm_bias_D; /* norms, product: NULL: none */
    int32_t norm_kind;        /* norms, product: hc_norm */
    hc_sign_args *sign;       /* scores become 1 where proposed, else 0 */
    float threshold;          /* sign, gemv with members_R */
    hc_ffn_args *ffn;
    const int32_t *ffn_bounds; /* ffn_chunks + 1: ids that cut the sum in pieces */
    int32_t ffn_chunks;
    hc_split_args *split;
    hc_attention_args *attention; /* q: whole qkv rows, not yet rotated; caches are in and out */
    const float *cos_PE, *sin_PE; /* NULL: no rotary embedding */
    int32_t repeat;               /* timed rounds after the first launch */
    int32_t copies;       /* gemv, ffn, attention: of weights or caches; a round visits each once */
    float *seconds;       /* NULL, or the median over the rounds of a launch's time */
    const char *variant;  /* as in hc_device_args */
    const float *scale_R; /* gemv: NULL, or of int8 rows */
    uint32_t *members_R;  /* gemv: NULL, or receives bits of the tokens with y >= threshold; no y */
    float *normed_BD; /* gemv with norm_D: NULL, or receives the normed x as it is on the device,
                           * then, in another BD, in host memory; norm: in host memory alone */
    int32_t when, head_rows; /* gemv: When in cuda/kernels.h, and the pass's rows of logits */
    hc_product_args *product;
    int32_t kv_f16; /* both attentions: caches are float16 */
    int32_t bare;   /* nothing guards the arrays, see cuda/operate.h */
} hc_device_op;

typedef struct hc_device hc_device;
int32_t hc_device_prompt_rows(const hc_device *device); /* 0: no dense prompts */
/* Open a plug-in library; NULL after a failure. The library stays loaded. */
const void *hc_device_open(const char *path);
/* Compute on the device what args describe; the executor made from args with it owns nothing. The
 * actor is the GPU executor, or a predictor that it asks. */
hc_device *hc_device_create(const void *plugin, const hc_executor_args *args,
                            const hc_device_args *device);
void hc_device_destroy(hc_device *device);
void hc_device_mailbox(const hc_device *device,
                       hc_mailbox *out); /* of a GPU executor with a remote predictor */
void hc_device_report_last(const hc_device *device, hc_device_report *out);
hc_status hc_device_operate(const void *plugin, const hc_device_op *op);
/* cffi: end */

#endif
