/* device.c - open a GPU plug-in, and run the GPU executor's passes on it.
 *
 * The GPU executor keeps its inbox, its prompt blocks and its sampling on the host (scheduler.c); with
 * a device, a pass is one call of the plug-in instead of the program's steps. What the device must
 * know of the exchange is read out of the programs here, so there is one source of it.
 */
#include "loop/device.h"
#include "loop/executor.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#define FAILED_TOGETHER_NS INT64_C(300000000)

/* What the core keeps of a plug-in's executor (or of a predictor, `follows`): `self` is the
 * plug-in's own and goes back to it in every call. */
struct hc_device {
    const hc_device_api *api;
    int32_t prompt_rows;
    int32_t follows; /* a predictor, which is asked */
    int32_t pass_flag;
    void *self;
    hc_device_report report;
    hc_span *spans; /* of the last pass */
};

/* The library is never closed once its table was accepted: graphs and handles live in it. */
const void *hc_device_open(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        hc_fail(HC_ERR_UNSUPPORTED, "cannot open the GPU plug-in: %.300s", dlerror());
        return NULL;
    }
    const hc_device_api *(*table)(void) = NULL;
    *(void **)&table = dlsym(library, "hc_device_table");
    const hc_device_api *api = table ? table() : NULL;
    if (!api || api->abi != HC_DEVICE_ABI) {
        hc_fail(HC_ERR_UNSUPPORTED,
                "GPU plug-in %.200s has ABI %u, this build expects %u; remove it", path,
                api ? api->abi : 0, HC_DEVICE_ABI);
        dlclose(library);
        return NULL;
    }
    return api;
}

/* One layer's flags and offsets out of a step of a program. */
static void read_step(hc_device_layer *layers, int32_t n_layers, const hc_step *step) {
    if (step->layer < 0 || step->layer >= n_layers)
        return;
    hc_device_layer *layer = &layers[step->layer];
    switch (step->op) {
    case HC_OP_INPUT:
    case HC_OP_ATTENTION:
        if (step->signal < 0) /* the other one hands x over */
            break;
        layer->x_flag = step->signal;
        layer->x = step->x;
        break;
    case HC_OP_PREDICT:
        layer->active_flag = step->signal;
        break;
    /* The merge knows both shares: whether there are any, where y lies, and which flag says that
     * it is there. */
    case HC_OP_MERGE:
        layer->has_hot = (step->flags & HC_STEP_HOT) != 0;
        layer->selective = (step->flags & HC_STEP_SELECTIVE) != 0;
        for (int d = 0; d < HC_MAX_DEVICES; d++)
            if (step->wait[1 + d] >= 0) { /* one at most: runtime/engine/gpu.py */
                layer->has_cold = 1;
                layer->y_flag = step->wait[1 + d];
                layer->y = step->y[d];
                layer->cold_list = step->active[d];
            }
        break;
    }
}

/* The predictor's own process has gpu_steps beside its own program: both sides read the same
 * two programs, so they agree on who asks what when. */
static hc_device_layer *read_programs(const hc_executor_args *args, const hc_device_args *device) {
    const int32_t n = args->model->n_layers;
    hc_device_layer *layers = calloc((size_t)n, sizeof *layers);
    if (!layers)
        return NULL;
    /* calloc gave zeros, which are valid flags and layers; -1 is none. */
    for (int32_t i = 0; i < n; i++)
        layers[i].x_flag = layers[i].active_flag = layers[i].y_flag = layers[i].predicted_at = -1;
    const hc_step *steps = device->gpu_steps ? device->gpu_steps : args->steps;
    const int32_t n_steps = device->gpu_steps ? device->n_gpu_steps : args->n_steps;
    for (int32_t i = 0; i < n_steps; i++)
        read_step(layers, n, &steps[i]);
    for (int32_t i = 0; i < device->n_predict_steps; i++) {
        const hc_step *step = &device->predict_steps[i];
        read_step(layers, n, step);
        if (step->op != HC_OP_PREDICT || !device->predictors_L)
            continue;
        for (int32_t at = 0; at < n; at++) /* a lookahead reads an earlier layer's input */
            /* An input is told by its slot in the segment. */
            if (layers[at].x == step->x)
                layers[step->layer].predicted_at = at;
    }
    return layers;
}

/* The plug-in copies args, device and layers; what they point to must outlive the device. layers is
 * this function's own. */
hc_device *hc_device_create(const void *plugin, const hc_executor_args *args,
                            const hc_device_args *device) {
    const hc_device_api *api = plugin;
    hc_device *made = calloc(1, sizeof *made);
    hc_device_layer *layers = made ? read_programs(args, device) : NULL;
    if (layers)
        made->spans = calloc((size_t)HC_DEVICE_SPANS(args->model->n_layers), sizeof *made->spans);
    if (!layers || !made->spans) {
        free(layers);
        free(made);
        hc_fail(HC_ERR_MEMORY, "no memory for the plan of %d layers", args->model->n_layers);
        return NULL;
    }
    made->api = api;
    made->prompt_rows = (int32_t)device->prompt_rows;
    made->pass_flag = device->remote_predictor ? device->pass_flag : -1;
    made->follows = args->role == HC_PREDICTOR;
    made->self = (made->follows ? api->create_predictor : api->create)(args, device, layers);
    free(layers);
    if (made->self)
        return made;
    hc_fail_as(api->error());
    free(made->spans);
    free(made);
    return NULL;
}

void hc_device_destroy(hc_device *device) {
    if (!device)
        return;
    (device->follows ? device->api->destroy_predictor : device->api->destroy)(device->self);
    free(device->spans);
    free(device);
}

int32_t hc_device_prompt_rows(const hc_device *device) {
    return device->prompt_rows;
}

void hc_device_mailbox(const hc_device *device, hc_mailbox *out) {
    device->api->mailbox(device->self, out);
}

void hc_device_report_last(const hc_device *device, hc_device_report *out) {
    *out = device->report;
}

hc_status hc_device_operate(const void *plugin, const hc_device_op *op) {
    const hc_device_api *api = plugin;
    return api->operate(op) ? hc_fail_as(api->error()) : HC_OK;
}

/* Pinned memory of the device's: valid until it is destroyed; overwritten by every pass. */
float *hc_device_logits(hc_device *device) {
    return device->api->logits(device->self);
}

/* Turn the plug-in's words (bit b: token b proposes the neuron) into the request's bits. */
static void write_masks(hc_executor *e, const uint32_t *members_LN) {
    const hc_model *m = e->args.model;
    const int64_t row = (m->n + 7) / 8;
    for (int64_t l = 0; l < m->n_layers; l++)
        for (int64_t i = 0; i < m->n; i++)
            for (int32_t b = 0; b < e->batch; b++)
                if (e->mask_B[b] && members_LN[l * m->n + i] >> b & 1)
                    e->mask_B[b][l * row + i / 8] |= (uint8_t)(1u << i % 8);
}

/* What a call of the plug-in came to; nobody_came: that it waited and the exchange is not poisoned.
 * When one of two processes on a GPU dies, the other one's calls fail as well. Wait for the poison that
 * names the dead one (some milliseconds), so that the survivor is not taken for the cause. */
static hc_status outcome(hc_executor *e, hc_status s, const char *nobody_came) {
    hc_segment *segment = e->args.segment;
    if (s == HC_ERR_POISONED)
        return hc_segment_poisoned(segment) ? hc_fail_poisoned(segment)
                                            : hc_fail(HC_ERR_TIMEOUT, "%s", nobody_came);
    if (!s)
        return HC_OK;
    const hc_error *error = e->args.device->api->error();
    if (e->args.device->pass_flag >= 0 &&
        hc_flag_wait(segment, (int32_t)segment->n_flags - 1, UINT32_MAX, e->args.epoch,
                     FAILED_TOGETHER_NS, NULL) == HC_ERR_POISONED)
        return hc_fail(HC_ERR_POISONED, "%s", error->text);
    return hc_fail_as(error);
}

/* One pass: embeddings on the host (the table is not on the device), header, then one call of
 * the plug-in. */
static hc_status run(hc_executor *e, uint32_t seq, uint32_t *members_LN) {
    hc_device *device = e->args.device;
    hc_segment *segment = e->args.segment;
    hc_status s = hc_compute_step(e, e->args.steps, seq); /* every program begins with embed */
    if (s)
        return s;
    hc_begin_pass(e, seq);
    /* The header is complete: a remote predictor launches its graph at this flag. */
    if (device->pass_flag >= 0)
        hc_flag_signal(segment, device->pass_flag, seq);
    const hc_device_pass pass = {.seq = seq,
                                 .batch = e->batch,
                                 .head_rows = e->head_rows,
                                 .position_B = e->position_B,
                                 .embedded_BD = e->residual_BD,
                                 .members_LN = members_LN,
                                 .spans = device->spans};
    /* Blocks until the pass is over; the plug-in wakes sleeping peers and watches for poison
     * meanwhile. */
    s = device->api->pass(device->self, &pass, &device->report);
    return outcome(e, s, "the GPU waited for another actor longer than it may");
}

/* What a pass leaves behind: its counts, and its spans in the ring. */
static void account(hc_executor *e) {
    const hc_device *device = e->args.device;
    const hc_device_report *report = &device->report;
    hc_actor_state *state = hc_state_of(e);
    const int64_t wait = report->phase_ns[HC_PHASE_WAIT];
    hc_count(&state->gate_rows, report->gate_rows);
    hc_count(&state->up_down_rows, report->up_down_rows);
    hc_count(&state->bytes, report->bytes);
    hc_count(&state->skipped_exchanges, report->skipped_exchanges);
    hc_count(&state->audit_rows, report->audit_rows);
    hc_count(&state->audit_missed, report->audit_missed);
    hc_count(&state->asks, report->asks);
    hc_count(&state->asked_ns, report->asked_ns);
    hc_count(&state->busy_ns, report->pass_ns - wait);
    hc_count(&state->wait_ns, wait);
    if (report->n_spans)
        __atomic_store_n(&state->clock_error_ns, report->clock_error_ns, __ATOMIC_RELAXED);
    for (int32_t i = 0; i < report->n_spans; i++)
        hc_put_span(e, device->spans[i]);
    __atomic_store_n(&state->progress, state->progress + 1, __ATOMIC_RELAXED);
}

/* members is only there for requests that record their proposals: four bytes a neuron of every
 * layer. */
hc_status hc_device_run_pass(hc_executor *e) {
    const hc_model *m = e->args.model;
    uint32_t *members = NULL;
    if (e->masked) {
        members = calloc((size_t)(m->n_layers * m->n), sizeof *members);
        if (!members)
            return hc_fail(HC_ERR_MEMORY, "no memory for the proposals of %lld neurons",
                           (long long)(m->n_layers * m->n));
    }
    hc_status s = run(e, ++e->seq, members);
    if (!s && members)
        write_masks(e, members);
    free(members);
    if (s)
        return s;
    account(e);
    hc_count(&hc_state_of(e)->passes, 1);
    return HC_OK;
}

/* Spends no sequence number and counts as no pass, since the other actors take no part: its header
 * says that it runs, and the plug-in counts progress meanwhile. */
hc_status hc_device_run_prompt(hc_executor *e, const hc_device_prompt *prompt) {
    hc_device *device = e->args.device;
    hc_segment *segment = e->args.segment;
    segment->pass_begin_ns = hc_now_ns();
    __atomic_store_n(&segment->pass_prompt, prompt->count, __ATOMIC_RELEASE);
    hc_fail_if_armed(e, e->seq + 1);
    hc_status s = device->api->prompt(device->self, prompt, &device->report);
    __atomic_store_n(&segment->pass_prompt, 0, __ATOMIC_RELEASE);
    s = outcome(e, s, "the exchange was left");
    if (s)
        return s;
    account(e);
    return HC_OK;
}

/* One pass as the predictor: no spans, since the GPU executor's show the prediction already. */
static hc_status answer(hc_executor *e, uint32_t seq) {
    hc_device *device = e->args.device;
    hc_actor_state *state = hc_state_of(e);
    hc_status s =
        device->api->answer(device->self, seq, e->args.segment->pass_batch, &device->report);
    s = outcome(e, s, "the GPU executor did not ask for as long as it may wait");
    if (s)
        return s;
    hc_count(&state->bytes, device->report.bytes);
    hc_count(&state->busy_ns, device->report.asked_ns);
    hc_count(&state->wait_ns, device->report.pass_ns - device->report.asked_ns);
    hc_count(&state->asks, device->report.asks);
    hc_count(&state->passes, 1);
    __atomic_store_n(&state->progress, state->progress + 1, __ATOMIC_RELAXED);
    return HC_OK;
}

/* As the predictor: each pass begins with the GPU executor's flag. */
hc_status hc_device_follow(hc_executor *e) {
    for (;;) {
        const uint32_t seq = ++e->seq;
        hc_status s =
            hc_flag_wait(e->args.segment, e->args.device->pass_flag, seq, e->args.epoch, -1, NULL);
        if (s)
            return s;
        hc_fail_if_armed(e, seq);
        s = answer(e, seq);
        if (s)
            return s;
    }
}
