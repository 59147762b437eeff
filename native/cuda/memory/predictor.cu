// predictor.cu - memory and kernels of one layer's predictor; see predictor.h.
#include "cuda/memory/predictor.h"
#include "cuda/memory/upload.h"

namespace hotcold {

int64_t bytes_of(int32_t dtype) {
    return dtype == HC_F32 ? 4 : dtype == HC_I8 ? 1 : 2;
}

void upload_predictor(const hc_model &m, const hc_predictor_layer &from, bool i8, Predictor &to) {
    Uploader up;
    std::vector<int8_t> weights;
    std::vector<float> scales;
    const auto matrix = [&](void *at, float *scale_at, const void *w, int64_t rows, int64_t d) {
        if (!i8)
            return up.copy(at, w, rows * d * bytes_of(from.dtype));
        quantise(w, from.dtype, rows, d, weights, scales);
        up.copy(at, weights.data(), weights.size());
        up.copy(scale_at, scales.data(), scales.size() * 4);
    };
    up.copy(to.bias_N, from.bias_N, m.n * 4);
    if (from.form == HC_PREDICT_SIGN) {
        up.copy(to.signs_NW, from.signs_NW, m.n * ((m.d + 63) / 64) * 8);
        up.copy(to.scale2_N, from.scale_N, m.n * 4);
        up.copy(to.column_D, from.column_D, m.d * 4);
    } else {
        to.dtype = i8 ? HC_I8 : from.dtype;
        matrix(to.fc1, to.scale1_H, from.fc1, from.hidden, m.d);
        matrix(to.fc2, to.scale2_N, from.fc2, m.n, from.hidden);
    }
    up.finish();
}

bool folds_norm(const hc_model &m, const hc_predictor_layer &shape, int layer, int at) {
    return at == layer && !shape.input && shape.form != HC_PREDICT_SIGN && m.norm == HC_NORM_RMS &&
           hc_ffn_operator(&m)->source == HC_STREAM_X && hc_ffn_operator(&m)->step != HC_OP_INPUT;
}

Gemv product(const hc_model &m, int32_t dtype, const void *w, int64_t rows, int64_t d,
             const float *x, float *y, const PassState *pass) {
    Gemv g = {};
    g.w = w, g.dtype = dtype, g.stride = d * bytes_of(dtype);
    g.rows = static_cast<int32_t>(rows), g.d = static_cast<int32_t>(d);
    g.x = x, g.x_stride = d, g.y = y, g.y_stride = rows;
    g.eps = m.norm_eps, g.pass = pass;
    return g;
}

// fc1 folds the norm in where it may, and then also writes the normed input; fc2 compares with the
// threshold, so scores are never stored.
void predict(const Prediction &a, int bucket, const Launch &launch) {
    const hc_model &m = *a.model;
    const hc_predictor_layer &shape = *a.shape;
    const Predictor &p = *a.weights;
    if (shape.form == HC_PREDICT_SIGN) {
        sign(Sign{p.signs_NW, p.scale2_N, p.bias_N, p.column_D, a.input, static_cast<int32_t>(m.n),
                  static_cast<int32_t>(m.d), shape.input_bits, shape.threshold, a.planes_BPW,
                  a.step_B, a.members_N, a.pass, a.stamps},
             bucket, launch);
        return;
    }
    Gemv fc1 = product(m, p.dtype, p.fc1, shape.hidden, m.d, a.input, a.hidden, a.pass);
    fc1.scale_R = p.scale1_H, fc1.epilogue = shape.relu ? RELU : STORE;
    fc1.norm_D = a.norm_D, fc1.normed = a.normed, fc1.normed_host = a.normed_host;
    fc1.stamps = a.stamps, fc1.stamp = AT_PREDICT;
    gemv(fc1, bucket, launch);
    Gemv fc2 = product(m, p.dtype, p.fc2, m.n, shape.hidden, a.hidden, nullptr, a.pass);
    fc2.scale_R = p.scale2_N, fc2.bias_R = p.bias_N;
    fc2.epilogue = MEMBERS, fc2.threshold = shape.threshold;
    fc2.members = reinterpret_cast<uint8_t *>(a.members_N);
    gemv(fc2, bucket, launch);
}

} // namespace hotcold
