/* fault.c - fault injection: an armed signal is raised in this process at a step of a pass.
 *
 * For `hotcold chaos` and tests: a control thread arms, the loop thread fires, once. The operation
 * is stored last (release) and loaded first (acquire), so pass and signal are those of this arming.
 */
#include "loop/executor.h"
#include <signal.h>
#include <unistd.h>

static void fail_on_purpose(hc_executor *e) {
    int32_t signal_number = e->fault_signal;
    __atomic_store_n(&e->fault_op, -1, __ATOMIC_RELEASE);
    kill(getpid(), signal_number);
}

void hc_executor_arm(hc_executor *e, int32_t op, uint32_t at_seq, int32_t signal_number) {
    e->fault_seq = at_seq;
    e->fault_signal = signal_number;
    __atomic_store_n(&e->fault_op, op, __ATOMIC_RELEASE);
}

void hc_fail_if_armed(hc_executor *e, uint32_t seq) {
    if (__atomic_load_n(&e->fault_op, __ATOMIC_ACQUIRE) >= 0 && seq >= e->fault_seq)
        fail_on_purpose(e);
}

void hc_fail_if_armed_for(hc_executor *e, int32_t op, uint32_t seq) {
    if (__atomic_load_n(&e->fault_op, __ATOMIC_ACQUIRE) == op && seq >= e->fault_seq)
        fail_on_purpose(e);
}
