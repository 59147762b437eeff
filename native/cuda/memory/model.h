// model.h - one GPU executor's memory: where every tensor lies on the device.
#ifndef HOTCOLD_MODEL_H
#define HOTCOLD_MODEL_H
#include "cuda/memory/mailbox.h"
#include "cuda/memory/predictor.h"

#include <vector>

namespace hotcold {

constexpr int STREAM_SLOTS = 3; // buffers on the device for streamed neurons

struct Layer {
    float *attention_norm_D, *ffn_norm_D;
    float *attention_norm_bias_D, *ffn_norm_bias_D; // NULL: none, as all biases
    float *qkv_bias, *o_bias_D, *ffn_bias_D;
    char *qkv, *o, *records; // records: of the neurons that are on the device
    const char **record_R;   // of all owned neurons
    void *k_cache, *v_cache;
    uint32_t *owned_G;
    int32_t *row_G, *bounds_C, *starts_C; // starts: of the whole table, where all are proposed
    uint32_t *members_N, *relay;
    int32_t *counts, *fired_4C;
    Predictor predictor;
    // dense prompts: ids of the neurons whose records are on the device, then of the streamed ones
    int32_t *ids_N;
    int64_t n_resident;
    std::vector<int32_t> streamed;
};

struct PromptBuffers { // of a dense pass; they share memory with a sparse pass's scratch
    int64_t tokens = 0, piece_rows = 0; // 0 tokens: there is no dense form
    int64_t masks = 1;                  // proposals of so many layers are alive at once
    float *h, *attended, *scale_T, *spare_scale_T;
    float *wide;           // qkv, then the predictor's hidden layer, then relu(gate) * up
    char *operand, *spare; // activations as products want them
    uint8_t *mask, *bits;
    char *expanded;   // int8 predictor matrices as float16
    char *project_in; // there all the time; the sparse form projects on the host
    unsigned long long *fired;
    char *slots[STREAM_SLOTS];
};

struct Buffers { // of one pass
    PassState *pass;
    float *h, *normed, *qkv, *attended, *hidden, *partial_CBD, *logits;
    float *final_norm_D, *final_norm_bias_D, *cos_PE, *sin_PE; // NULL: the model has none
    char *head, *project_out;
    float *projected;     // [B][embed_dim]
    uint64_t *planes_BPW; // of the form sign
    float *step_B;
    float *partial; // of attention, as its stats: NULL where the context is one piece
    float2 *stats;
    uint32_t *arrived;
    int32_t *cold_ids, *skipped, *n_hot_L;
    uint32_t *cold_members;
    uint64_t *stamps;
};

class Model {
  public:
    Model(const hc_executor_args &args, const hc_device_args &device,
          const hc_device_layer *layers_L);
    ~Model();
    Model(const Model &) = delete;

    std::vector<Layer> layers;
    Buffers buffers = {};
    PromptBuffers prompt = {};
    Mailbox mailbox = {}; // to a predictor that has a process of its own
    int64_t bytes = 0;    // allocated on the device
    int64_t pinned = 0;   // in host memory, read over the bus
    int64_t max_hot = 1;  // longest table of hot neurons
    int64_t max_hidden = 1;
    int32_t bucket; // largest batch, rounded up to a graph's
    const HotList &hot_of(int layer) const {
        return hot_[layer % hot_.size()];
    }
    int32_t dtype_of(int layer) const {
        return layers[layer].predictor.dtype;
    }

  private:
    void lay_out(Arena &arena, Arena &host);
    void lay_out_attention(Arena &arena);
    void lay_out_prompt(Arena &arena);
    void lay_out_layer(Arena &arena, Arena &host, int index);
    void upload();
    void upload_layer(int index);
    bool signs(int layer) const;    // its proposals come from one bit a weight
    bool predicts(int layer) const; // here, and in no other process
    const hc_executor_args &args_;
    const hc_device_args &device_;
    const hc_device_layer *plan_;
    bool on_bus(int layer, int32_t id) const;
    int64_t rows_on_device(int layer) const;
    bool stays(int index, int part) const; // of a layer, or the head: in host memory
    void allocate(int64_t size);
    std::vector<int32_t> streamed(int layer) const;
    void reserve_bus();
    std::vector<HotList> hot_; // as many as layers may be predicted before they are computed
    char *memory_ = nullptr;
    char *shared_ = nullptr; // the mailbox: of an allocation of its own, which another process maps
    char *parts_ = nullptr;  // pinned: modules that stay in host memory
    char *bus_ = nullptr;    // pinned copies of the neurons that stay in host memory
    char *bus_end_ = nullptr, *bus_mapped_ = nullptr;
};

} // namespace hotcold
#endif
