// remote_predictor.h - the predictor as a process of its own on the GPU executor's GPU.
#ifndef HOTCOLD_CUDA_REMOTE_PREDICTOR_H
#define HOTCOLD_CUDA_REMOTE_PREDICTOR_H
#include "cuda/memory/model.h"

namespace hotcold {

// The counterpart of Executor in the predictor's process. It owns its memory, stream, graphs and
// pinned words; the mailbox is the executor's, and only mapped here.
class PredictorProcess {
  public:
    PredictorProcess(const hc_executor_args &args, const hc_device_args &device,
                     const hc_device_layer *layers_L);
    // Answers for every predicted layer of pass seq, then returns; HC_ERR_POISONED where a question
    // did not come.
    hc_status pass(uint32_t seq, int32_t batch, hc_device_report &report);

  private:
    void open_mailbox();
    void capture(int32_t bucket);

    hc_executor_args args_;
    hc_device_args device_;
    std::vector<Asked> order_;
    const Shape shape_;
    int32_t bucket_; // largest batch, rounded up to a graph's
    std::vector<Predictor> layers_;
    Mailbox mailbox_ = {};
    Owned<void *, cudaIpcCloseMemHandle> mapped_; // another process's memory
    DeviceMemory<char> memory_;
    Pinned<char> parts_;
    int64_t bytes_ = 0, pinned_ = 0;
    Reads reads_;
    hc_remote_parts to_ = {};
    const Stream stream_;
    const Launch launch_;
    const Pinned<PredictorHost> host_;
    BatchGraphs graphs_; // last, so they end first
};

} // namespace hotcold
#endif
