// executor.h - one GPU executor: its memory, its graphs, its pinned words.
#ifndef HOTCOLD_CUDA_EXECUTOR_H
#define HOTCOLD_CUDA_EXECUTOR_H
#include "cuda/executor/timeline.h"
#include "cuda/memory/owned.h"
#include "cuda/prompt/prompt.h"

#include <memory>

namespace hotcold {

// Made, used and destroyed through the table (table.cu); passes come from the loop thread alone. It
// owns the Model, the graphs, its stream and the pinned words; args' pointers (model, segment,
// steps) are the caller's and outlive it.
class Executor {
  public:
    Executor(const hc_executor_args &args, const hc_device_args &device,
             const hc_device_layer *layers_L);
    // One pass: returns when it is over, HC_ERR_POISONED where a wait was ended; throws where the
    // device failed.
    hc_status pass(const hc_device_pass &in, hc_device_report &report);
    hc_status prompt(const hc_device_prompt &in, hc_device_report &report);
    const hc_mailbox &mailbox() const {
        return mailbox_;
    }
    float *logits() {
        return logits_host_.get();
    }

  private:
    // graph.cu: what a pass enqueues, operator by operator, while the stream is being captured.
    void capture(int32_t bucket);
    void capture_step(const hc_step &step, int32_t bucket);
    void capture_block(const hc_step &step, int32_t bucket);
    void capture_attention(int layer, int32_t source, const hc_operator *leading, int32_t bucket);
    float *stream(int32_t which) const;
    Norm norm_of(int layer, const hc_operator &op) const;
    Norm norm_of(const float *weight_D, const float *bias_D, float *y) const;
    void capture_leading(Gemv &first, const float *weight_D, const float *bias_D, int32_t bucket);
    float *ffn_input() const;
    const float *prediction_input(int layer, int at) const;
    float *x_slot(int layer) const;
    int32_t audit_of(int layer) const;
    void capture_prediction(int layer, int at, int32_t bucket);
    void capture_split(int layer, bool with_x);
    void capture_ffn_norm(const hc_step &step, bool x_flag, int32_t bucket);
    void capture_input(const hc_step &step, int32_t bucket);
    // remote_ask.cu: the same where the predictor is a process of its own.
    void capture_remote_input(const hc_step &step, int32_t bucket);
    void capture_ask(int layer, int at);
    void capture_answer(int layer, bool with_x);
    void capture_hot(int layer, int32_t bucket);
    void capture_merge(const hc_step &step, int32_t bucket);
    void capture_head(int32_t bucket);
    Exchange exchange(int layer) const;
    uint32_t *flag(int32_t index) const;
    void ring(uint32_t seq);
    void share();
    void fill(const hc_device_pass &in, hc_device_report &report);

    hc_executor_args args_;
    hc_device_args device_;
    std::vector<hc_device_layer> plan_;
    std::vector<hc_step> shown_; // the program as spans show it
    Model model_;
    const Stream stream_;
    const Launch launch_;
    // Room for the largest bucket; passes of fewer tokens use the front.
    const Pinned<PassHost> host_;
    const Pinned<float> embedded_, logits_host_;
    const Pinned<uint64_t> stamps_host_;
    Clock clock_;
    Owned<void *, cudaHostUnregister> registered_;
    char *segment_ = nullptr; // as the device sees it
    std::unique_ptr<Prompt> prompt_;
    Reads reads_;
    bool predicted_ = false;
    hc_mailbox mailbox_ = {};
    // They hold addresses of everything above, so they end first.
    BatchGraphs graphs_;
};

} // namespace hotcold
#endif
