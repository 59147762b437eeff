// rates.h - two measurements that operate.cu offers to benches; see rates.cu.
#ifndef HOTCOLD_CUDA_RATES_H
#define HOTCOLD_CUDA_RATES_H
#include "cuda/kernels/kernels.h"

namespace hotcold {

void rate_of_gaps(const hc_device_op &op);
void rate_of_exchange(const hc_device_op &op);

} // namespace hotcold
#endif
