/* gpu.h - the part of the ABI that a GPU executor's device needs; hotcold.h includes it.
 *
 * Fed to cffi and to both compilers exactly as hotcold.h is; split off for its length alone.
 */
#ifndef HOTCOLD_GPU_H
#define HOTCOLD_GPU_H

/* cffi: begin */
/* ---- A GPU as the GPU executor's device: a plug-in library (device.c, cuda/) ---- */
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
    int64_t piece_rows;          /* neurons that a dense pass streams and computes at once */
    const char *variant;         /* NULL, or a compiled CUDA variant (cuda/variant.cuh) */
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
} hc_device_report;

typedef enum {
    HC_DEVICE_GEMV = 0,
    HC_DEVICE_FFN = 1,
    HC_DEVICE_SPLIT = 2,
    HC_DEVICE_ATTENTION = 3,
    HC_DEVICE_HOLD = 4, /* a graph of `repeat` kernels, kept until the process ends: a probe */
    HC_DEVICE_NORM = 8,
    HC_DEVICE_SIGN = 9
} hc_device_op_kind;
typedef struct { /* tests and benches: one operator on host arrays, copied in and out */
    int32_t kind, index;
    hc_gemv_args *gemv;  /* dtype 3: int8 weights, bias_R their scales; norm: x and y alone */
    const float *norm_D; /* gemv: x is normed first; NULL: not; norm: the weight */
    float eps;
    const float *norm_bias_D; /* norm: NULL: none */
    int32_t norm_kind;        /* norm: hc_norm */
    hc_sign_args *sign;       /* scores become 1 where proposed, else 0 */
    float threshold;          /* sign */
    hc_ffn_args *ffn;
    hc_split_args *split;
    hc_attention_args *attention; /* q: whole qkv rows, not yet rotated; caches are in and out */
    int32_t kv_f16;               /* attention: caches are float16 */
    const float *cos_PE, *sin_PE; /* NULL: no rotary embedding */
    int32_t repeat;               /* timed rounds after the first launch */
    int32_t copies;      /* gemv, ffn, attention: of weights or caches; a round visits each once */
    float *seconds;      /* NULL, or the median over the rounds of a launch's time */
    const char *variant; /* as in hc_device_args */
} hc_device_op;

typedef struct hc_device hc_device;
int32_t hc_device_prompt_rows(const hc_device *device); /* 0: no dense prompts */
/* Open a plug-in library; NULL after a failure. The library stays loaded. */
const void *hc_device_open(const char *path);
/* Compute on the device what args describe; the executor made from args with it owns nothing. */
hc_device *hc_device_create(const void *plugin, const hc_executor_args *args,
                            const hc_device_args *device);
void hc_device_destroy(hc_device *device);
void hc_device_report_last(const hc_device *device, hc_device_report *out);
hc_status hc_device_operate(const void *plugin, const hc_device_op *op);
/* cffi: end */

#endif
