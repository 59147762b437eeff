/* still_device.c - a GPU plug-in without a GPU, whose dense prompt passes last for as long as a test
 * wants: computes nothing, so that what others see of such a pass can be tested anywhere. */
#include "loop/device.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int32_t hold = 0;       /* while not 0: a prompt pass goes on */
int32_t works = 0;      /* while not 0: it counts progress meanwhile */
hc_error failing = {0}; /* while its status is not HC_OK: no device is made, for this reason */

typedef struct {
    hc_executor_args args;
    float *logits;
} still;

static void *create(const hc_executor_args *args, const hc_device_args *device,
                    const hc_device_layer *layers_L) {
    (void)device, (void)layers_L;
    if (failing.status)
        return NULL;
    still *made = calloc(1, sizeof *made);
    made->args = *args;
    made->logits = calloc((size_t)(args->max_batch * args->model->vocab), sizeof(float));
    return made;
}

static void destroy(void *self) {
    free(((still *)self)->logits);
    free(self);
}

static hc_status pass(void *self, const hc_device_pass *in, hc_device_report *report) {
    (void)self, (void)in;
    memset(report, 0, sizeof *report);
    return HC_OK;
}

static hc_status prompt(void *self, const hc_device_prompt *in, hc_device_report *report) {
    const hc_executor_args *args = &((still *)self)->args;
    uint64_t *progress = &args->segment->actor[args->actor].progress;
    (void)in;
    memset(report, 0, sizeof *report);
    while (__atomic_load_n(&hold, __ATOMIC_ACQUIRE)) {
        if (__atomic_load_n(&args->segment->poison, __ATOMIC_ACQUIRE))
            return HC_ERR_POISONED;
        if (__atomic_load_n(&works, __ATOMIC_ACQUIRE))
            __atomic_store_n(progress, *progress + 1, __ATOMIC_RELAXED);
        usleep(1000);
    }
    return HC_OK;
}

static float *logits(void *self) {
    return ((still *)self)->logits;
}

static const hc_error *error(void) {
    return &failing;
}

static hc_status operate(const hc_device_op *op) {
    (void)op;
    return HC_ERR_UNSUPPORTED;
}

const hc_device_api *hc_device_table(void) {
    static const hc_device_api table = {.abi = HC_DEVICE_ABI,
                                        .name = "still",
                                        .create = create,
                                        .destroy = destroy,
                                        .pass = pass,
                                        .prompt = prompt,
                                        .logits = logits,
                                        .error = error,
                                        .operate = operate};
    return &table;
}
