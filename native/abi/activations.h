/* activations.h - the table of activations: what decides whether a neuron fires, written once.
 *
 * A row: name; where a neuron fires, of its gate pre-activation g and the model's threshold t; the
 * gate's value there (elsewhere it is 0); whether the up projection goes through a ReLU, too. The
 * expressions are C, and Python over numbers, numpy arrays and torch tensors: _build.py makes the enum
 * for cffi and the table of abi/generated.py of the same rows.
 *
 * relu, relu2: t = 0. fatrelu: x where x >= t, t > 0 (ProSparse, arXiv 2402.13516). relu both:
 * relu(g) relu(u) (TurboSparse, arXiv 2406.05955). silu: dense, every neuron fires (arXiv 1702.03118);
 * gelu and its approximation by tanh, which is a sigmoid of twice as much, too (arXiv 1606.08415).
 */
#ifndef HOTCOLD_ACTIVATIONS_H
#define HOTCOLD_ACTIVATIONS_H
#include <math.h>
#include <stdint.h>

/* clang-format off */
#define HC_SPARSE_ACTIVATIONS(X)  \
    X(RELU,      g > t,  g,     0) \
    X(RELU2,     g > t,  g * g, 0) \
    X(FATRELU,   g >= t, g,     0) \
    X(RELU_BOTH, g > t,  g,     1)
#define HC_DENSE_ACTIVATIONS(X)                                                                \
    X(SILU,      g != 0, g / (1 + expf(-g)),                                                 0) \
    X(GELU,      g != 0, g * erfcf(-g / 1.4142135623730951) / 2,                             0) \
    X(GELU_TANH, g != 0, g / (1 + expf(-1.5957691216057308 * (g + 0.044715 * g * g * g))),   0)
#define HC_ACTIVATIONS(X) HC_SPARSE_ACTIVATIONS(X) HC_DENSE_ACTIVATIONS(X)
/* clang-format on */

#ifdef __CUDACC__
#define HC_EACH_NEURON static __host__ __device__ __forceinline__
/* On a GPU the sparse ones alone: code of the dense ones gives the kernels of all up to 12 registers
 * more, and has not been measured. runtime/engine/gpu.py refuses their models there. */
#define HC_COMPUTED HC_SPARSE_ACTIVATIONS
#else
#define HC_EACH_NEURON static inline
#define HC_COMPUTED    HC_ACTIVATIONS
#endif

#define HC_ROW(name, fires, value, both) HC_ACTIVATION_##name,
typedef enum { HC_ACTIVATIONS(HC_ROW) HC_N_ACTIVATIONS } hc_activation;
#undef HC_ROW

HC_EACH_NEURON int hc_fires(int32_t activation, float g, float t) {
#define HC_ROW(name, fires, value, both)                                                           \
    case HC_ACTIVATION_##name:                                                                     \
        return fires;
    switch (activation) { HC_COMPUTED(HC_ROW) }
#undef HC_ROW
    return 0;
}

HC_EACH_NEURON int hc_both(int32_t activation) {
#define HC_ROW(name, fires, value, both)                                                           \
    case HC_ACTIVATION_##name:                                                                     \
        return both;
    switch (activation) { HC_COMPUTED(HC_ROW) }
#undef HC_ROW
    return 0;
}

/* What a neuron that fires multiplies its down column by. u: its up projection, 1 where there is
 * none. A NaN stays one. */
HC_EACH_NEURON float hc_factor(int32_t activation, float g, float u) {
#define HC_ROW(name, fires, value, both)                                                           \
    case HC_ACTIVATION_##name:                                                                     \
        return (value) * (both && u < 0 ? 0 : u);
    switch (activation) { HC_COMPUTED(HC_ROW) }
#undef HC_ROW
    return 0;
}

#endif
