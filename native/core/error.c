/* error.c - a thread's last failure.
 *
 * A failing function calls hc_fail once, with what, the value and the limit; Python reads it on the
 * same thread and raises what the status stands for (native/bindings/_ffi.py). It stays until the
 * thread's next failure.
 */
#include "core/internal.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local hc_error last_error;

const hc_error *hc_last_error(void) {
    return &last_error;
}

int32_t hc_abi_version(void) {
    return HC_ABI_VERSION;
}

hc_status hc_fail(hc_status status, const char *format, ...) {
    last_error.status = status;
    last_error.value = last_error.limit = 0;
    va_list args;
    va_start(args, format);
    vsnprintf(last_error.text, sizeof last_error.text, format, args);
    va_end(args);
    return status;
}

hc_status hc_fail_as(const hc_error *error) {
    last_error = *error;
    return (hc_status)error->status;
}
