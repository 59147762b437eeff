// model.h - one GPU executor's memory: where every tensor lies on the device.
#ifndef HOTCOLD_MODEL_H
#define HOTCOLD_MODEL_H
#include "kernels.h"

#include <cstdint>
#include <vector>

namespace hotcold {

struct Predictor {
    void *fc1 = nullptr, *fc2 = nullptr;
    float *scale1_H = nullptr, *scale2_N = nullptr, *bias_N = nullptr;
    int32_t dtype = 0;
    uint64_t *signs_NW = nullptr; // of the form sign, with a scale a row in scale2_N
    float *column_D = nullptr;
};

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

// Hands out parts of one allocation; with no base it only counts.
class Arena {
  public:
    explicit Arena(char *base = nullptr) : base_(base) {}
    template <class T> T *take(int64_t count) {
        const int64_t at = used_;
        used_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
        return base_ ? reinterpret_cast<T *>(base_ + at) : nullptr;
    }
    int64_t used() const {
        return used_;
    }

    void go_to(int64_t at) { // what is taken from here on shares memory with what was behind
        used_ = at;
    }

  private:
    char *base_;
    int64_t used_ = 0;
};

struct PromptBuffers { // of a dense pass; they share memory with a sparse pass's scratch
    int64_t tokens = 0, piece_rows = 0; // 0 tokens: there is no dense form
    int64_t masks = 1;                  // proposals of so many layers are alive at once
    float *h, *attended, *scale_T, *spare_scale_T;
    float *wide;           // qkv, then the predictor's hidden layer, then relu(gate) * up
    char *operand, *spare; // activations as products want them
    uint8_t *mask, *bits;
    char *expanded; // int8 predictor matrices as float16
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
    int64_t bytes = 0;   // allocated on the device
    int64_t pinned = 0;  // in host memory, read over the bus
    int64_t max_hot = 1; // longest table of hot neurons
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
    void lay_out_predictor(Arena &arena, Arena &host, int index);
    void upload();
    void upload_layer(int index);
    void upload_predictor(int index);
    bool signs(int layer) const; // its proposals come from one bit a weight
    const hc_executor_args &args_;
    const hc_device_args &device_;
    const hc_device_layer *plan_;
    bool on_bus(int layer, int32_t id) const;
    int64_t rows_on_device(int layer) const;
    bool stays(int index, int part) const; // of a layer, or the head: in host memory
    void allocate();
    std::vector<int32_t> streamed(int layer) const;
    void reserve_bus();
    std::vector<HotList> hot_; // as many as layers may be predicted before they are computed
    char *memory_ = nullptr;
    char *parts_ = nullptr; // pinned: modules that stay in host memory
    char *bus_ = nullptr;   // pinned copies of the neurons that stay in host memory
    char *bus_end_ = nullptr, *bus_mapped_ = nullptr;
};

int32_t bucket_of(int32_t batch);
int64_t bytes_of(int32_t dtype);

} // namespace hotcold
#endif
