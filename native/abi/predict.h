/* predict.h - the part of the ABI that says how a predictor scores the neurons of a layer.
 *
 * Included by hotcold.h and fed to cffi and to the compilers exactly as that is; split off for its
 * length alone. W: words of 64 sign bits a gate row, (D + 63) / 64.
 */
#ifndef HOTCOLD_PREDICT_H
#define HOTCOLD_PREDICT_H

/* cffi: begin */
typedef enum {
    HC_PREDICT_MATRICES = 0, /* fc2 . act(fc1 . x) + bias */
    HC_PREDICT_GATE = 1,     /* the gate rows' own pre-activations */
    HC_PREDICT_SIGN = 2,     /* one bit a weight of the gate rows (ops/sign.c) */
    HC_PREDICT_WINDOW = 3    /* neurons that fired lately, and the gates of those (window.c) */
} hc_predictor_form;

typedef enum { /* whether an active list carries gate pre-activations */
               HC_GATE_NONE = 0,
               HC_GATE_ALL =
                   1, /* the list was made from all of the layer's: it leaves out none that fires */
               HC_GATE_PROPOSED = 2 /* only proposed neurons were evaluated */
} hc_gate_list;

struct hc_predictor_layer {
    const void *fc1, *fc2; /* matrices */
    const float *bias_N;   /* matrices, sign: added; window: a score of its own, or NULL */
    int64_t hidden;
    int32_t dtype, relu;
    float threshold;
    int32_t input;      /* 0: the normed FFN input x; 1: the residual stream before the norm */
    int32_t form;       /* hc_predictor_form */
    int32_t input_bits; /* sign: bit planes of an input, 1 to 8 */
    const uint64_t *signs_NW; /* sign: bit d mod 64 of word d / 64: weight d is positive */
    const float *scale_N, *column_D;
    int32_t window, probe_every; /* window: tokens looked back; one in so many is proposed anyway */
};

/* scores = scale * (sign(w) . q) + bias, q being x * column in input_bits bits; see ops/sign.c. */
typedef struct {
    const uint64_t *signs_NW;
    const float *scale_N;
    const float *bias_N;   /* NULL: none */
    const float *column_D; /* NULL: ones */
    int64_t n, d;
    int32_t input_bits, batch;
    const float *x_BD;    /* contiguous */
    float *scores_BN;     /* written, contiguous */
    uint64_t *planes_BPW; /* scratch, batch * input_bits * W words */
} hc_sign_args;
hc_status hc_sign(const hc_sign_args *args, hc_pool *pool);
/* cffi: end */

#endif
