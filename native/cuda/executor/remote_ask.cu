// remote_ask.cu - a layer's prediction where another process makes it: ask, go on, await the answer.
//
//   predicted by its own input:  ask | norm, x to the host | await | split, cold list and flags
//   predicted early:             ask behind the norm of the earlier layer; await and split where the
//                                lists are wanted, so that hot neurons, merge and attention of the
//                                layers between are computed meanwhile
// Where the first product folds the norm in (folds_norm) the question is the residual stream, so it
// leaves before the norm; else it is the normed input.
#include "cuda/executor/executor.h"

#include <cstring>
#include <unistd.h>

namespace hotcold {

// The question: [B][D] floats into the mailbox, then the layer's ask word = seq.
void Executor::capture_ask(int layer, int at) {
    const Mailbox &box = model_.mailbox;
    // Its own layer's prediction begins with the question; an early one's with the wait for the
    // answer.
    ask(Ask{prediction_input(layer, at), box.input(layer), args_.model->d, box.ask(layer),
            model_.buffers.pass, model_.buffers.stamps + (layer + 1) * STAMPS,
            at == layer ? AT_PREDICT : -1},
        launch_);
}

// Wait for the answer word = seq; the proposals are in the mailbox then, where split() reads them.
void Executor::capture_answer(int layer, bool with_x) {
    const Mailbox &box = model_.mailbox;
    await_answer(Await{box.answer(layer), &host_.mapped()->abort, model_.buffers.pass,
                       model_.buffers.stamps + (layer + 1) * STAMPS,
                       plan_[layer].predicted_at == layer ? -1 : AT_PREDICT},
                 launch_);
    capture_split(layer, with_x);
}

void Executor::capture_remote_input(const hc_step &step, int32_t bucket) {
    const int layer = step.layer;
    const int at = plan_[layer].predicted_at;
    const bool own = at == layer;
    const bool before = own && folds_norm(*args_.model, device_.predictors_L[layer], layer, layer);
    // Asked layers ago: the answer is most likely there.
    if (at >= 0 && !own)
        capture_answer(layer, false);
    if (before)
        capture_ask(layer, layer);
    capture_ffn_norm(step, !own, bucket);
    if (own && !before)
        capture_ask(layer, layer);
    // Questions by this layer's input leave before its own answer is awaited: the order of
    // asking_order(), which the predictor's graph follows.
    for (int later = layer + 1; later < args_.model->n_layers; later++)
        if (plan_[later].predicted_at == layer)
            capture_ask(later, layer);
    if (own)
        capture_answer(layer, true);
}

// The mailbox's name for other processes of this GPU, and its address for this one.
// The mailbox is an allocation of its own: an IPC handle always shares a whole one.
void Executor::share() {
    cudaIpcMemHandle_t handle;
    static_assert(sizeof handle == sizeof mailbox_.handle, "a handle fits");
    check(cudaIpcGetMemHandle(&handle, model_.mailbox.asks), "sharing GPU memory");
    std::memcpy(mailbox_.handle, &handle, sizeof handle);
    mailbox_.address = reinterpret_cast<int64_t>(model_.mailbox.asks);
    mailbox_.pid = getpid();
}

} // namespace hotcold
