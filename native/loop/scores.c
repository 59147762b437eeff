/* scores.c - scores of every neuron of a layer, by the predictor's form; window.c has the fourth.
 *
 * Each writes scores_BN, [B][N] contiguous, whole. The bytes read are the step's.
 */
#include "loop/executor.h"

/* Gate rows lie in the records, record.bytes apart: a gemv with that stride reads them where
 * they are, and the biases likewise. */
hc_status hc_gate_scores(hc_executor *e, const hc_step *step) {
    const hc_model *m = e->args.model;
    const char *records = m->layers[step->layer].records;
    hc_gemv_args a = hc_product(records + m->record.gate, m->record.dtype, m->n, m->d,
                                (const float *)hc_slot(e, step->x), e->scores_BN, e->batch);
    a.stride_bytes = m->record.bytes, a.scales = m->record.scales;
    if (m->record.bias) {
        a.bias_R = (const float *)(records + m->record.bias);
        a.bias_stride = m->record.bytes;
    }
    hc_count(&hc_state_of(e)->gate_rows, m->n * e->batch);
    return hc_gemv(&a, e->args.pool);
}

/* The two matrices of a predictor.
 * scores = fc2 act(fc1 input) + bias; the hidden layer [B][H] is this executor's scratch. */
hc_status hc_matrix_scores(hc_executor *e, const hc_predictor_layer *p, const float *input) {
    const hc_model *m = e->args.model;
    hc_gemv_args first =
        hc_product(p->fc1, p->dtype, p->hidden, m->d, input, e->hidden_BH, e->batch);
    hc_gemv_args second =
        hc_product(p->fc2, p->dtype, m->n, p->hidden, e->hidden_BH, e->scores_BN, e->batch);
    first.relu = p->relu;
    second.bias_R = p->bias_N;
    hc_status s = hc_gemv(&first, e->args.pool);
    return s ? s : hc_gemv(&second, e->args.pool);
}

/* Whole-number arithmetic up to two roundings (ops/sign.c): the same proposals as on a GPU. */
hc_status hc_sign_scores(hc_executor *e, const hc_predictor_layer *p, const float *input) {
    const hc_model *m = e->args.model;
    hc_sign_args a = {.signs_NW = p->signs_NW,
                      .scale_N = p->scale_N,
                      .bias_N = p->bias_N,
                      .column_D = p->column_D,
                      .n = m->n,
                      .d = m->d,
                      .input_bits = p->input_bits,
                      .batch = e->batch,
                      .x_BD = input,
                      .scores_BN = e->scores_BN,
                      .planes_BPW = e->planes_BPW};
    return hc_sign(&a, e->args.pool);
}
