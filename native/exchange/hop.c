/* hop.c - the time of one hop: ping and pong on two flags, in resident C loops as the engine's.
 *
 * Side 0 signals and waits for the answer; side 1 answers. A ring of three is side 0 and two side 1s,
 * each with its own flags. Numbers go on from the last run on the same flags: both sides start from
 * the flag that the answering side sets, which stands still until the first ping.
 */
#define _GNU_SOURCE /* sched_setaffinity and cpu_set_t */
#include "core/internal.h"
#include <errno.h>
#include <sched.h>
#include <string.h>

#define ROUND_TIMEOUT_NS INT64_C(20000000000) /* a side that never comes */

static hc_status pin(int32_t core, cpu_set_t *before) {
    cpu_set_t wanted;
    if (core >= CPU_SETSIZE)
        return hc_fail(HC_ERR_ARGUMENT, "hop: core %d, this build knows %d", core, CPU_SETSIZE);
    CPU_ZERO(&wanted);
    CPU_SET(core, &wanted);
    if (sched_getaffinity(0, sizeof(*before), before) != 0 ||
        sched_setaffinity(0, sizeof(wanted), &wanted) != 0)
        return hc_fail(HC_ERR_SYSTEM, "hop: cannot pin to core %d: %s", core, strerror(errno));
    return HC_OK;
}

static uint32_t flag_value(const hc_segment *segment, int32_t flag) {
    const hc_flag *flags = (const hc_flag *)((const char *)segment + segment->flags_offset);
    return __atomic_load_n(&flags[flag].value, __ATOMIC_ACQUIRE);
}

/* A round trip is two hops. Side 0 alone reads the clock, before its signal and after the answer:
 * those two readings are part of every round. */
static hc_status play(hc_segment *segment, int32_t side, int32_t flag_out, int32_t flag_in,
                      int64_t n, uint64_t epoch, uint32_t *rtt_ns) {
    uint32_t seq = flag_value(segment, side == 0 ? flag_in : flag_out);
    hc_status status = HC_OK;
    for (int64_t i = 0; i < n && status == HC_OK; i++) {
        uint64_t begin_ns = 0;
        seq++;
        if (side == 0) {
            begin_ns = hc_now_ns();
            hc_flag_signal(segment, flag_out, seq);
        }
        status = hc_flag_wait(segment, flag_in, seq, epoch, ROUND_TIMEOUT_NS, NULL);
        if (side != 0 && status == HC_OK)
            hc_flag_signal(segment, flag_out, seq);
        if (side == 0) {
            uint64_t rtt = hc_now_ns() - begin_ns;
            rtt_ns[i] = rtt < UINT32_MAX ? (uint32_t)rtt : UINT32_MAX;
        }
    }
    return status;
}

/* The thread's affinity is restored: it is the caller's. */
hc_status hc_hop(hc_segment *segment, int32_t side, int32_t flag_out, int32_t flag_in, int64_t n,
                 uint64_t epoch, int32_t core, uint32_t *rtt_ns) {
    int64_t flags = segment->n_flags;
    if (flag_out < 0 || flag_out >= flags || flag_in < 0 || flag_in >= flags || flag_in == flag_out)
        return hc_fail(HC_ERR_ARGUMENT, "hop: flags %d and %d of %lld", flag_out, flag_in,
                       (long long)flags);
    if (n < 1 || (side == 0 && !rtt_ns) || side < 0 || side > 1)
        return hc_fail(HC_ERR_ARGUMENT, "hop: side %d, %lld rounds", side, (long long)n);
    if (core < 0)
        return play(segment, side, flag_out, flag_in, n, epoch, rtt_ns);
    cpu_set_t before;
    hc_status status = pin(core, &before);
    if (status != HC_OK)
        return status;
    status = play(segment, side, flag_out, flag_in, n, epoch, rtt_ns);
    sched_setaffinity(0, sizeof(before), &before);
    return status;
}
