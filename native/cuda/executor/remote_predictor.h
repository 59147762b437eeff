// remote_predictor.h - the predictor as a process of its own on the GPU executor's GPU.
#ifndef HOTCOLD_CUDA_APART_H
#define HOTCOLD_CUDA_APART_H
#include "cuda/memory/mailbox.h"
#include "cuda/memory/owned.h"
#include "cuda/memory/predictor.h"

#include <vector>

namespace hotcold {

// The counterpart of Executor in the predictor's process. It owns its memory, stream, graphs and
// pinned words; the mailbox is the executor's, and only mapped here.
class PredictorProcess {
  public:
    PredictorProcess(const hc_executor_args &args, const hc_device_args &device,
                     const hc_device_layer *layers_L);
    ~PredictorProcess();
    PredictorProcess(const PredictorProcess &) = delete;
    // Answers for every predicted layer of pass seq, then returns; HC_ERR_POISONED where a question
    // did not come.
    hc_status pass(uint32_t seq, int32_t batch, hc_device_report &report);

  private:
    struct LayerParts {
        Predictor weights;
        float *norm_D; // of folds_norm
    };
    void start();
    void release();
    void lay_out(Arena &arena, Arena &host);
    void open_mailbox();
    void upload();
    void capture(int32_t bucket);
    void capture_layer(const Asked &asked, int32_t bucket);
    bool stays(int layer) const;

    hc_executor_args args_;
    hc_device_args device_;
    std::vector<hc_device_layer> plan_;
    std::vector<Asked> order_;
    int32_t bucket_; // largest batch, rounded up to a graph's
    std::vector<LayerParts> layers_;
    Launch launch_ = {};
    Mailbox mailbox_ = {};
    void *mapped_ = nullptr; // another process's memory
    char *memory_ = nullptr, *parts_ = nullptr;
    int64_t bytes_ = 0, pinned_ = 0, read_bytes_ = 0;
    PassState *pass_ = nullptr;
    TurnTimes *times_ = nullptr;
    float *hidden_ = nullptr, *step_B_ = nullptr;
    uint64_t *planes_BPW_ = nullptr;
    PredictorHost *host_ = nullptr, *host_mapped_ = nullptr;
    BatchGraphs graphs_;
};

} // namespace hotcold
#endif
