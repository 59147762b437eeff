/* ops/ffn_check.c - whether a sparse feed-forward can be computed as it was asked for (ffn.c).
 *
 * Python and the programs of a plan are checked before they get here; this keeps whatever else calls
 * from reading or counting outside of what it named.
 */
#include "core/internal.h"

static hc_status check_shapes(const hc_ffn_args *a) {
    if (!a || !a->x_BD || !a->y_BD || !a->scratch)
        return hc_fail(HC_ERR_ARGUMENT, "ffn: x, y and the scratch area must be given");
    const int64_t bytes = hc_dtype_bytes(a->record.dtype);
    if (!bytes)
        return hc_fail(HC_ERR_ARGUMENT, "ffn: dtype %d is unknown; 0 to 3 are", a->record.dtype);
    if (a->activation < 0 || a->activation >= HC_N_ACTIVATIONS)
        return hc_fail(HC_ERR_ARGUMENT, "ffn: activation %d is unknown; 0 to %d are", a->activation,
                       HC_N_ACTIVATIONS - 1);
    if (a->batch < 1 || a->batch > HC_MAX_BATCH)
        return hc_fail(HC_ERR_ARGUMENT, "ffn: batch %d; 1 to %d are possible", a->batch,
                       HC_MAX_BATCH);
    if (a->d < 1 || a->d > HC_MAX_D || a->n < 0 || a->n > INT32_MAX)
        return hc_fail(HC_ERR_ARGUMENT, "ffn: d %lld of %lld neurons; 1 to %d of up to %d",
                       (long long)a->d, (long long)a->n, HC_MAX_D, INT32_MAX);
    const int64_t scales = hc_scale_bytes(a->record.dtype, a->d);
    if (a->record.group != hc_formats[a->record.dtype].group ||
        (scales ? a->record.scales < a->d || a->record.scales % 2 : a->record.scales))
        return hc_fail(
            HC_ERR_ARGUMENT, "ffn: scales of %d weights at byte %lld, dtype %d of d %lld",
            a->record.group, (long long)a->record.scales, a->record.dtype, (long long)a->d);
    const int64_t row = scales ? a->record.scales + scales : a->d * bytes;
    /* Each of the three rows lies inside the record and on a weight's own alignment. No up
     * rows: checked as a second down row. */
    const int64_t up = a->record.up == -1 ? a->record.down : a->record.up;
    const int64_t offsets[] = {a->record.gate, up, a->record.down};
    for (int i = 0; i < 3; i++)
        if (offsets[i] < 0 || offsets[i] % bytes || a->record.bytes % bytes ||
            offsets[i] > a->record.bytes - row)
            return hc_fail(HC_ERR_ARGUMENT, "ffn: a row at byte %lld of a record of %lld bytes",
                           (long long)offsets[i], (long long)a->record.bytes);
    if (a->record.bias && (a->record.bias < 0 || a->record.bias % 4 || a->record.bytes % 4 ||
                           a->record.bias > a->record.bytes - 4))
        return hc_fail(HC_ERR_ARGUMENT, "ffn: a bias at byte %lld of a record of %lld bytes",
                       (long long)a->record.bias, (long long)a->record.bytes);
    return HC_OK;
}

/* The list must ascend within the layer: then no id or counter is out of range. */
static hc_status check_ids(const hc_ffn_args *a) {
    if (a->n_ids < 0 || (a->n_ids > 0 && (!a->ids || !a->records)))
        return hc_fail(HC_ERR_ARGUMENT, "ffn: %lld ids without a list or without records",
                       (long long)a->n_ids);
    /* One pass without branches, which the compiler vectorises. Strictly ascending with both ends
     * in range means that all ids are. */
    uint32_t descents = 0;
    for (int64_t k = 1; k < a->n_ids; k++)
        descents += a->ids[k - 1] >= a->ids[k];
    if (descents)
        return hc_fail(HC_ERR_ARGUMENT, "ffn: the id list does not ascend at %u places", descents);
    if (a->n_ids > 0 && (a->ids[0] < 0 || a->ids[a->n_ids - 1] >= a->n))
        return hc_fail(HC_ERR_ARGUMENT, "ffn: ids %d to %d; the layer has %lld neurons", a->ids[0],
                       a->ids[a->n_ids - 1], (long long)a->n);
    return HC_OK;
}

hc_status hc_ffn_check(const hc_ffn_args *a) {
    const hc_status status = check_shapes(a);
    return status ? status : check_ids(a);
}
