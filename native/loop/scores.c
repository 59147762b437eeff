/* scores.c - scores of every neuron of a layer, by the predictor's form; window.c has the fourth.
 *
 * Each writes scores_BN, [B][N] contiguous, whole, and counts the weight bytes that were read; a
 * row that serves a batch counts once. Bytes a layer: steps.c's header.
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
    hc_actor_state *state = hc_state_of(e);
    hc_count(&state->gate_rows, m->n * e->batch);
    hc_count(&state->bytes,
             m->n * (hc_row_bytes(m->record.dtype, m->d) + (m->record.bias ? 4 : 0)));
    return hc_gemv(&a, e->args.pool);
}

/* The two matrices of a predictor.
 * scores = fc2 act(fc1 input) + bias; the hidden layer [B][H] is this executor's scratch. */
hc_status hc_matrix_scores(hc_executor *e, const hc_predictor_layer *p, const float *input) {
    const hc_model *m = e->args.model;
    int64_t size = hc_dtype_bytes(p->dtype);
    hc_gemv_args first =
        hc_product(p->fc1, p->dtype, p->hidden, m->d, input, e->hidden_BH, e->batch);
    hc_gemv_args second =
        hc_product(p->fc2, p->dtype, m->n, p->hidden, e->hidden_BH, e->scores_BN, e->batch);
    first.relu = p->relu;
    second.bias_R = p->bias_N;
    hc_count(&hc_state_of(e)->bytes, (m->d + m->n) * p->hidden * size + (p->bias_N ? 4 * m->n : 0));
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
    hc_count(&hc_state_of(e)->bytes,
             m->n * ((m->d + 63) / 64 * 8 + (p->bias_N ? 8 : 4)) + (p->column_D ? 4 * m->d : 0));
    return hc_sign(&a, e->args.pool);
}
