/* operate.h - single operators of the GPU plug-in on host arrays: for tests and benches alone.
 *
 * Fed to cffi and to both compilers exactly as hotcold.h is; passes do not come through here.
 */
#ifndef HOTCOLD_OPERATE_H
#define HOTCOLD_OPERATE_H
#include "abi/hotcold.h"

/* cffi: begin */
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

typedef enum { /* whether a product of logits is computed, by the rows that the pass asks for */
               HC_WHEN_ALWAYS = 0,
               HC_WHEN_ONE_ROW = 1,
               HC_WHEN_ALL_ROWS = 2
} hc_when;

typedef enum { /* what becomes of the products of a dense prompt */
               HC_EPILOGUE_STORE = 0,
               HC_EPILOGUE_ADD = 1,
               HC_EPILOGUE_RELU = 2,
               HC_EPILOGUE_MASK = 3,
               HC_EPILOGUE_NEURON = 4, /* gate and up row in one go */
               HC_EPILOGUE_PLAIN = 5   /* a neuron without an up row */
} hc_epilogue;

typedef struct {          /* a product of dense prompts: y[t][r] = sum over k of x[t][k] w[r][k] */
    const void *w;        /* [rows], or transposed [k], of stride_bytes */
    int64_t offset_bytes; /* where in each of them the row begins */
    int64_t stride_bytes, rows, k;
    int32_t dtype, transposed; /* HC_I8 is widened first */
    const float *x_TK;
    int32_t tokens, epilogue;      /* hc_epilogue */
    int64_t up_bytes, bias_bytes;  /* of neurons: from a gate row to its up row, or to its bias */
    const float *scale_R, *bias_R; /* NULL: none */
    int32_t activation;            /* hc_activation, of neurons */
    float threshold;               /* of scores; of neurons: the activation's */
    const int32_t *ids_R;          /* of neurons, with a mask: their ids */
    const uint8_t *mask_TN;        /* of neurons: NULL: all take part */
    int64_t n;
    float *y_TR;     /* in and out */
    uint8_t *bits_T; /* receives what reached the threshold, instead of y */
    int64_t fired;   /* out, of neurons: entries whose gate fired */
} hc_product_args;
typedef struct { /* tests and benches: one operator on host arrays, copied in and out */
    int32_t kind, index;
    hc_gemv_args *gemv;  /* HC_I8 too; norms: x and y alone */
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
    int32_t when, head_rows; /* gemv: hc_when, and the pass's rows of logits */
    hc_product_args *product;
    int32_t kv_f16; /* both attentions: caches are float16 */
    int32_t bare;   /* nothing guards the arrays, see cuda/operate/operate.h */
} hc_device_op;

hc_status hc_device_operate(const void *plugin, const hc_device_op *op);
/* cffi: end */

#endif
