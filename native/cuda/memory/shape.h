// shape.h - what the layout of GPU memory depends on (abi/layout.h), out of an executor's arguments.
#ifndef HOTCOLD_CUDA_SHAPE_H
#define HOTCOLD_CUDA_SHAPE_H
#include "layout/gpu_layout.h"
#include "loop/device.h"

#include <vector>

namespace hotcold {

struct Shape : hc_layout_shape {
    Shape(const hc_executor_args &args, const hc_device_args &device,
          const hc_device_layer *plan_L);
    Shape(const Shape &) = delete; // layers_L points into it
    std::vector<hc_layout_layer> layers;
};

bool on_bus(const hc_model &m, const hc_device_args &device, int layer, int32_t id);

} // namespace hotcold
#endif
