// mailbox.h - how a GPU executor asks a predictor that has a process of its own on the same GPU.
//
// An allocation of the executor's, which the other process maps (cudaIpc):
//   | ask word a layer | answer word a layer | inputs | proposals of every layer |
// Words lie on lines of their own, hold the number of the pass they were last set in, and have one
// setter each: asks are the executor's, answers the predictor's. An input's room is used again only
// for a layer that is asked after this one's answer was awaited.
#ifndef HOTCOLD_CUDA_MAILBOX_H
#define HOTCOLD_CUDA_MAILBOX_H
#include "cuda/kernels/kernels.h"

#include <vector>

namespace hotcold {

struct Mailbox : hc_mailbox_parts {
    uint32_t *ask(int layer) const {
        return asks + layer * HC_MAILBOX_LINE;
    }
    uint32_t *answer(int layer) const {
        return answers + layer * HC_MAILBOX_LINE;
    }
    float *input(int layer) const {
        return inputs + layer % n_inputs * input_floats;
    }
};

struct Asked { // one prediction: of `layer`, by the feed-forward input of layer `at`
    int32_t layer, at;
};
// In the order in which the executor asks and the predictor answers.
std::vector<Asked> asking_order(const hc_device_layer *plan, int32_t n_layers);

// The executor's two halves of a prediction.
struct Ask {
    const float *from; // [B][D]
    float *to;
    int64_t d;
    uint32_t *word;
    const PassState *pass;
    uint64_t *stamps; // AT_ASKED
    int32_t stamp;    // another of this moment; -1: none
};
void ask(const Ask &args, const Launch &launch);
struct Await {
    const uint32_t *word;
    const uint32_t *abort; // host word: not 0: end every wait
    PassState *pass;
    uint64_t *stamps; // AT_ANSWERED
    int32_t stamp;    // of the wait's beginning; -1: none
};
void await_answer(const Await &args, const Launch &launch);

// The predictor's: say that one layer is answered, wait for the question of the next.
using TurnTimes = hc_turn_times;
struct PredictorHost { // pinned and mapped
    uint32_t seq, abort, done, failed;
    int32_t batch;
    TurnTimes times;
};
struct Turn {
    PredictorHost *host;
    PassState *pass;
    TurnTimes *times;
    uint32_t *answer;    // NULL: the pass begins
    const uint32_t *ask; // NULL: it is over
};
void turn(const Turn &args, const Launch &launch);

} // namespace hotcold
#endif
