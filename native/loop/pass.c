/* pass.c - one pass of an actor's program: wait for a step's flags, compute, set its flag.
 *
 * The first GPU executor leads: it numbers the passes and writes the pass header before its first
 * signal; the others follow by the flags. No flag or payload of pass s is reused before pass s is over
 * for everyone, since the leader waits for every active list and, on the last layer of each other
 * executor, always for its sum: that merge is never selective, and executors take their layers in order.
 *
 * Cost of a step beside its work: two or three clock reads and a span, under 0.1 us.
 */
#include "loop/device.h"
#include "loop/executor.h"

static int waits(const hc_step *step) {
    int any = 0;
    for (int i = 0; i < HC_MAX_WAITS; i++)
        any |= step->wait[i] >= 0;
    return any;
}

/* Wait for a step's flags. A selective merge waits for a device's sum only where its list names ids. */
static hc_status await(hc_executor *e, const hc_step *step, uint32_t seq) {
    /* wait[0] is x's flag, wait[1] the list's. The list comes first; hc_read_ahead returns when
     * x is there, and the loop below waits for both again, which costs nothing for the list. */
    if (step->flags & HC_STEP_AHEAD) {
        hc_status s = hc_flag_wait(e->args.segment, step->wait[1], seq, e->args.epoch, -1, NULL);
        if (s)
            return s;
        hc_follow_owners(e); /* the list's flag is behind the header */
        hc_read_ahead(e, step, seq);
    }
    for (int i = 0; i < HC_MAX_WAITS; i++) {
        if (step->wait[i] < 0)
            continue;
        /* wait[0] was the lists' flag, so the count is this pass's. The device's executor sets its
         * flag all the same, and nobody waits for it. */
        if (i && (step->flags & HC_STEP_SELECTIVE) && hc_none_active(e, step, i - 1)) {
            if (e->batch)
                hc_count(&hc_state_of(e)->skipped_exchanges, 1);
            continue;
        }
        hc_status s = hc_flag_wait(e->args.segment, step->wait[i], seq, e->args.epoch, -1, NULL);
        if (s)
            return s;
    }
    return HC_OK;
}

hc_status hc_run_pass(hc_executor *e) {
    if (e->args.device) {
        hc_fail_if_armed(e, e->seq + 1);
        return hc_device_run_pass(e);
    }
    hc_segment *segment = e->args.segment;
    uint32_t seq = ++e->seq;
    const int leads = e->args.role == HC_LEADER;
    if (leads)
        hc_begin_pass(e, seq);
    for (int32_t i = 0; i < e->args.n_steps; i++) {
        const hc_step *step = &e->args.steps[i];
        hc_fail_if_armed_for(e, step->op, seq);
        uint64_t begin = hc_now_ns(), ready = begin;
        if (waits(step)) {
            hc_status s = await(e, step, seq);
            if (s)
                return s;
            ready = hc_now_ns();
        }
        /* Behind the step's waits, so the header is this pass's. */
        if (!leads) {
            e->batch = segment->pass_batch;
            hc_follow_owners(e);
        }
        if (!e->batch) { /* only to change owners */
            if (step->signal >= 0)
                hc_flag_signal(segment, step->signal, seq);
            hc_count_step(e);
            continue;
        }
        hc_status s = hc_compute_step(e, step, seq);
        if (s)
            return s;
        const int last = i + 1 == e->args.n_steps; /* counters must be whole when a pass is over */
        if (last)
            hc_after_step(e, step, seq);
        const uint64_t end = hc_now_ns(); /* before the signal: whom it wakes may take this core */
        if (step->signal >= 0)
            hc_flag_signal(segment, step->signal, seq);
        hc_record_span(e, step, seq, begin, ready, end);
        if (!last)
            hc_after_step(e, step, seq);
    }
    hc_count(&hc_state_of(e)->passes, 1);
    return HC_OK;
}

/* The Ray transport's way: its caller orders the steps, so no flag is waited for or set. */
hc_status hc_executor_begin(hc_executor *e, uint32_t seq, int32_t batch, const int32_t *tokens,
                            int32_t position, int32_t rows) {
    if (batch < 1 || batch > e->args.max_batch)
        return hc_fail(HC_ERR_ARGUMENT, "batch %d is outside 1..%d", batch, e->args.max_batch);
    if (position < 0 || position + batch > e->args.model->context)
        return hc_fail(HC_ERR_ARGUMENT, "position %d is outside the context of %lld",
                       position + batch - 1, (long long)e->args.model->context);
    e->batch = e->head_rows = e->masked = 0;
    for (int32_t b = 0; b < batch; b++) {
        hc_add_row(e, 0, position + b, tokens ? tokens[b] : 0);
        if (b >= batch - rows)
            e->head_B[e->head_rows++] = b;
    }
    hc_begin_pass(e, seq);
    return HC_OK;
}

const float *hc_executor_logits(const hc_executor *e) {
    return e->logits_BV;
}

hc_status hc_executor_step(hc_executor *e, int32_t index, uint32_t seq) {
    if (index < 0 || index >= e->args.n_steps)
        return hc_fail(HC_ERR_ARGUMENT, "step %d is outside the program of %d", index,
                       e->args.n_steps);
    const hc_step *step = &e->args.steps[index];
    uint64_t begin = hc_now_ns();
    hc_status s = hc_compute_step(e, step, seq);
    hc_record_span(e, step, seq, begin, begin, hc_now_ns());
    if (!s)
        hc_after_step(e, step, seq);
    return s;
}
