// prompt.h - the dense prompt phase of one GPU executor.
#ifndef HOTCOLD_CUDA_PROMPT_H
#define HOTCOLD_CUDA_PROMPT_H
#include "cuda/memory/model.h"
#include "cuda/prompt/dense.h"
#include "cuda/prompt/stream.h"

#include <memory>

namespace hotcold {

// Used by the loop thread alone. It owns pinned rows, events and the streamer with its threads;
// weights, caches and buffers are the Model's.
class Prompt {
  public:
    // All references outlive it; launch has the stream of the passes.
    Prompt(const hc_executor_args &args, const hc_device_args &device,
           const std::vector<hc_device_layer> &plan, Model &model, const Launch &launch);
    // One dense pass over in.count tokens, at most device.prompt_rows. Returns when the device is
    // done, or HC_ERR_POISONED; throws where the device failed. logits_host: of the last token.
    hc_status run(const hc_device_prompt &in, float *logits_host, hc_device_report &report);

  private:
    struct Piece { // neurons that are streamed together
        int32_t layer;
        int64_t begin, n; // of the layer's streamed ids
        bool own;         // in the device's own format
    };
    void feed(int64_t piece);
    bool poisoned() const;
    void progress() const; // something was done, for those who watch
    // prompt_layer.cu
    void embed(const hc_device_prompt &in);
    void layer(int index, const hc_device_prompt &in);
    void attend(int layer, int32_t source, const hc_device_prompt &in);
    void add_attention(int layer, const hc_device_prompt &in, bool spare);
    void predict(int layer, int at, const hc_device_prompt &in);
    const uint8_t *propose(int layer, const hc_device_prompt &in);
    void feed_forward(int layer, int32_t source, const hc_device_prompt &in);
    hc_record multiplied(const hc_record &record) const;
    int32_t operand_of(const hc_record &record, const char *records) const;
    void neurons(const char *records, const hc_record &stored, int64_t n, const int32_t *ids,
                 const uint8_t *mask, const float *bias_D, const Operand &x, int tokens);
    void head(const hc_device_prompt &in, float *logits_host);
    void dense(const Rows &x, const void *w, const float *bias_R, int64_t rows, int64_t d,
               hc_epilogue epilogue, float *y, int tokens, bool spare);
    Rows stream(const float *norm_D, const float *norm_bias_D) const;
    Rows stream_of(int layer, int32_t which) const;
    Operand operand(bool spare, const Rows &rows, int64_t k, int32_t dtype, int tokens);
    Gemm product(const Operand &x, const void *w, int64_t stride, int64_t rows, int32_t dtype,
                 int tokens) const;
    uint8_t *mask(int layer) const;

    const hc_executor_args &args_;
    const hc_device_args &device_;
    const std::vector<hc_device_layer> &plan_;
    Model &model_;
    Launch launch_;
    std::vector<Piece> pieces_;
    Reads reads_;
    // free_[s]: the device has computed what slot s held; ready_[s]: the copy into it is done.
    const Event free_[HC_STREAM_SLOTS], ready_[HC_STREAM_SLOTS];
    const Event layer_[2];    // a layer is done
    int64_t at_ = 0;          // the piece to compute next
    const Pinned<char> rows_; // of embedding, then of positions
    std::unique_ptr<Streamer>
        streamer_; // goes first: its copies end in the slots and record events
};

} // namespace hotcold
#endif
