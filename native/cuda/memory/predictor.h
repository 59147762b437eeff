// predictor.h - a layer's predictor on a GPU: its memory, and its kernels in order.
//
// Shared by the GPU executor, which predicts in its own graph (fused), and by a predictor that has a
// process of its own (remote_predictor.h): the same kernels in the same order, so the same proposals.
#ifndef HOTCOLD_CUDA_PREDICTOR_H
#define HOTCOLD_CUDA_PREDICTOR_H
#include "cuda/kernels/kernels.h"

namespace hotcold {

using Predictor = hc_predictor_parts;

// i8: quantised by row.
void upload_predictor(const hc_model &m, const hc_predictor_layer &from, bool i8, Predictor &to);

// Whether the first product of a layer's prediction, made at layer `at`, folds the norm of its input
// in. The input is the residual stream then, or where the predictor asks for that.
bool folds_norm(const hc_model &m, const hc_predictor_layer &shape, int layer, int at);

// y = w x, rows of w side by side; the caller adds bias, norm and epilogue.
Gemv product(const hc_model &m, int32_t dtype, const void *w, int64_t rows, int64_t d,
             const float *x, float *y, const PassState *pass);

struct Prediction {
    const hc_model *model;
    const hc_predictor_layer *shape;
    const Predictor *weights;
    const float *input;          // [B][D]
    const float *norm_D;         // of folds_norm; NULL: none
    float *normed, *normed_host; // with norm_D: NULL, or where the normed input goes
    float *hidden;               // scratch, [B][H]
    uint64_t *planes_BPW;        // scratch of the form sign
    float *step_B;               // likewise
    uint32_t *members_N;         // out
    const PassState *pass;
    uint64_t *stamps;
};
void predict(const Prediction &args, int bucket, const Launch &launch);

int64_t bytes_of(int32_t dtype);

} // namespace hotcold
#endif
