/* spans.c - an actor's span ring, and the counters that go with every span. One writer a ring. */
#include "loop/executor.h"

/* The entry is written before span_count is raised (release): a reader who acquires the count
 * finds whole spans, but for the oldest, which may be overwritten while it reads. */
void hc_put_span(hc_executor *e, hc_span span) {
    hc_segment *segment = e->args.segment;
    hc_actor_state *state = hc_state_of(e);
    if (segment->span_capacity <= 0)
        return;
    hc_span *ring = (hc_span *)((char *)segment + segment->span_offset[e->args.actor]);
    ring[state->span_count % (uint64_t)segment->span_capacity] = span;
    __atomic_store_n(&state->span_count, state->span_count + 1, __ATOMIC_RELEASE);
}

void hc_record_span(hc_executor *e, const hc_step *step, uint32_t seq, uint64_t begin,
                    uint64_t ready, uint64_t end) {
    hc_segment *segment = e->args.segment;
    hc_actor_state *state = hc_state_of(e);
    hc_put_span(e, (hc_span){begin, ready, end, seq, (int16_t)step->layer, (int16_t)step->op});
    hc_count(&state->busy_ns, (int64_t)(end - ready));
    /* idle time between passes is no waiting: count from the pass's own beginning */
    uint64_t from = begin > segment->pass_begin_ns ? begin : segment->pass_begin_ns;
    if (ready > from)
        hc_count(&state->wait_ns, (int64_t)(ready - from));
    hc_count_step(e);
}

void hc_count_step(hc_executor *e) {
    hc_actor_state *state = hc_state_of(e);
    __atomic_store_n(&state->progress, state->progress + 1, __ATOMIC_RELAXED);
}
