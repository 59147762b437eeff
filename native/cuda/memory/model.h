// model.h - one GPU executor's memory: what its layout depends on (abi/layout.h), and where every
// tensor lies on the device.
#ifndef HOTCOLD_MODEL_H
#define HOTCOLD_MODEL_H
#include "cuda/memory/mailbox.h"
#include "cuda/memory/owned.h"
#include "cuda/memory/predictor.h"

namespace hotcold {

using Layer = hc_layer_parts;
using Buffers = hc_pass_parts;
using PromptBuffers = hc_prompt_parts;

struct Shape : hc_layout_shape {
    Shape(const hc_executor_args &args, const hc_device_args &device,
          const hc_device_layer *plan_L);
    Shape(const Shape &) = delete; // layers_L points into it
    std::vector<hc_layout_layer> layers;
};
bool on_bus(const hc_model &m, const hc_device_args &device, int layer, int32_t id);
// Where the device's neurons lie, by id: in a format of its own, or as the model has them.
const hc_record &record_of(const hc_executor_args &args, int layer);
const char *records_of(const hc_executor_args &args, int layer);

// What a pass reads on the device by the programs' steps, whose kernels follow them.
struct Reads {
    int64_t fixed = 0, position = 0; // a pass; a cached position
    int64_t embed = 0, head = 0;     // where the device embeds; where logits are wanted
    int64_t proposed = 0, fired = 0; // a neuron on the device
    void add(const hc_step *steps, int32_t n);
};

// A norm's weights of a layer, in host or device memory.
template <class AnyLayer> const float *norm_weight(const AnyLayer &layer, const hc_operator &norm) {
    return norm.of_ffn ? layer.ffn_norm_D : layer.attention_norm_D;
}
template <class AnyLayer> const float *norm_bias(const AnyLayer &layer, const hc_operator &norm) {
    return norm.of_ffn ? layer.ffn_norm_bias_D : layer.attention_norm_bias_D;
}

class Model {
  public:
    Model(const hc_executor_args &args, const hc_device_args &device,
          const hc_device_layer *layers_L);

    const Shape shape;
    std::vector<Layer> layers;
    const Buffers &buffers = parts_.pass;
    const PromptBuffers &prompt = parts_.prompt;
    Mailbox mailbox = {}; // to a predictor that has a process of its own
    // Dense prompts: neurons whose records are not on the device, ascending; those of the device's own
    // format first, where it has one.
    std::vector<std::vector<int32_t>> streamed;
    int64_t bytes = 0;  // allocated on the device
    int64_t pinned = 0; // in host memory, read over the bus
    int32_t bucket;     // largest batch, rounded up to a graph's
    const HotList &hot_of(int layer) const {
        return hot_[layer % hot_.size()];
    }
    // With a matrix of the model. All addresses are final: graphs keep them.
    Gemv dense(const void *w, int64_t rows, int64_t d, const float *x, float *y) const {
        return product(*args_.model, args_.model->dtype, w, rows, d, x, y, buffers.pass);
    }

  private:
    void upload();
    void upload_layer(int index);
    const hc_executor_args &args_;
    const hc_device_args &device_;
    hc_executor_parts parts_ = {};
    std::vector<HotList> hot_; // as many as layers may be predicted before they are computed
    DeviceMemory<char> memory_;
    DeviceMemory<char>
        shared_; // the mailbox: of an allocation of its own, which another process maps
    Pinned<char> parts_on_host_; // modules that stay in host memory
    Pinned<char> bus_;           // copies of the neurons that stay in host memory
    char *bus_end_ = nullptr;
};

} // namespace hotcold
#endif
