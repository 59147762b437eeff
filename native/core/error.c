/* error.c - the text of a thread's last failure.
 *
 * A failing function calls hc_fail once, with what, the value and the limit; Python reads the text
 * on the same thread (native/bindings/_ffi.py). The text stays until the thread's next failure.
 */
#include "core/internal.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char last_error[512];

const char *hc_last_error(void) {
    return last_error;
}

int32_t hc_abi_version(void) {
    return HC_ABI_VERSION;
}

hc_status hc_fail(hc_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(last_error, sizeof last_error, format, args);
    va_end(args);
    return status;
}
