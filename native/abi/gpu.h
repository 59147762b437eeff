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
    const char *variant;         /* NULL, or a compiled CUDA variant (cuda/kernels/variant.cuh) */
    int32_t remote_predictor;    /* the predictor is a process of its own, and asked */
    int32_t pass_flag; /* remote predictor: set where a pass begins; the predictor waits for it */
    const hc_step *gpu_steps; /* predictor: the GPU executor's program */
    int32_t n_gpu_steps;
    hc_mailbox mailbox; /* predictor: the GPU executor's */
} hc_device_args;
typedef enum {
    HC_PART_ATTENTION = 1,
    HC_PART_KV = 2,
    HC_PART_PREDICTOR = 4,
    HC_PART_HEAD = 8 /* of entry L */
} hc_part;

#define HC_GPU_MAX_HEAD_DIM 256   /* elements of an attention head */
#define HC_GPU_MAX_NEURONS  32768 /* of a layer */

#define HC_PHASES 6
typedef enum {
    HC_PHASE_ATTENTION = 0,
    HC_PHASE_PREDICT = 1,
    HC_PHASE_HOT = 2,
    HC_PHASE_WAIT = 3,
    HC_PHASE_MERGE = 4,
    HC_PHASE_HEAD = 5
} hc_phase;
typedef struct { /* of the last pass */
    int64_t gate_rows, up_down_rows, bytes, skipped_exchanges, cold_neurons;
    int64_t phase_ns[HC_PHASES];      /* by hc_phase; sums over layers */
    int64_t pass_ns;                  /* on the device */
    int64_t allocated_bytes;          /* device memory this executor asked for */
    int64_t pinned_bytes;             /* host memory that the device reads weights and KV from */
    int64_t audit_rows, audit_missed; /* neurons not proposed but evaluated; those that fired */
    int64_t clock_error_ns;           /* bound on the error of the spans' times */
    int32_t n_spans;                  /* steps of the pass, in the executor's span ring */
    int64_t asks,
        asked_ns; /* remote predictor: questions, and the time from each to its answer; as the
                             * predictor has it, to which the way there and back does not count */
} hc_device_report;

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
/* cffi: end */

#endif
