// dense.h - operators of the dense prompt phase: many tokens at once against whole matrices.
//
// An operand is a matrix of activations in the form its product wants: float, or, for tensor cores,
// two half precision matrices hi + lo = x / scale_T that together hold 22 bits (fp16; bf16: 16).
// Where a product with half precision weights is less exact than one in float, it is by the tensor
// cores' sums, cut off towards zero every 16 products. Errors relative to a result's norm at depth
// 5120 and 13824, on an H100: 1.2e-5 and 3.2e-5; floats 1.3e-6 and 2.1e-6; the products of a decode
// pass 1.4e-7 and 2.0e-7. int8 neurons are widened first, to float16 by which a weight is at most 2^-11
// off (widen.cu). Every result of a token depends on that token alone, in an order that is
// the same for any number of tokens.
#ifndef HOTCOLD_CUDA_DENSE_H
#define HOTCOLD_CUDA_DENSE_H
#include "cuda/kernels/kernels.h"

namespace hotcold {

// Tokens of a block of gemm.cu. What lies in an operand's rows past the last token is read and its
// results are dropped: it need not be initialised.
constexpr int TOKEN_TILE = HC_TOKEN_TILE; // operands have rows for a multiple of it
constexpr int PACK = HC_PACK;             // elements of 16 bytes of half precision

struct Operand {
    char *data;     // [T][ld] floats, or hi as [T][ld] halves followed by lo at `half`
    int64_t ld;     // elements from token to token
    int64_t half;   // bytes from hi to lo
    float *scale_T; // a power of two; unused for floats
    int32_t dtype;  // HC_F32, HC_F16, HC_BF16
    int32_t k;      // depth
};

// Activations as an operator reads them: as they lie, or normed on the way in.
struct Rows {
    const float *x;
    int64_t stride;                                        // floats from token to token
    const float *norm_D = nullptr, *norm_bias_D = nullptr; // NULL: not normed; a norm without bias
    float eps = 0;
    int32_t kind = 0; // hc_norm
};
// Rows in the operand's form, zeros up to a multiple of PACK.
struct MakeOperand {
    Rows from;
    Operand to;
};
void make_operand(const MakeOperand &args, int tokens, const Launch &launch);
// The normed rows, of d elements, to y [T][stride of from]; y may be where they come from.
void prompt_norm(const Rows &from, float *y, int64_t d, int tokens, const Launch &launch);

struct Gemm { // y[t][r] = sum over k of x[t][k] w[r][k]; or w[k][r] where transposed
    Operand x;
    const char *w;
    int64_t stride; // bytes from row to row of w, as it lies
    int64_t up;     // HC_EPILOGUE_NEURON: bytes from a gate row to its up row
    int64_t bias;   // HC_EPILOGUE_PLAIN: bytes from a gate row to its bias, a float; 0: none
    int32_t rows, dtype, tokens;
    bool transposed;
    hc_epilogue epilogue;
    float *y; // of neurons: act(gate) * up, or act(gate + bias), where the mask allows
    int64_t y_stride;
    const float *scale_R, *bias_R; // NULL: ones, zeros; the others' alone
    int32_t activation;            // hc_activation, of neurons
    float threshold;               // HC_EPILOGUE_MASK: of scores; of neurons: the activation's
    uint8_t *mask; // [t][n]: written by HC_EPILOGUE_MASK, read of neurons; NULL there: all ones
    int64_t mask_stride;
    const int32_t *ids_R;      // of neurons: their ids
    unsigned long long *fired; // of neurons: += entries whose gate fired
};
// Which form of an operand a product needs: tensor cores where shape and alignment allow.
int32_t operand_dtype(int32_t dtype, const void *w, int64_t stride, int64_t offsets, int64_t k,
                      int64_t rows, bool transposed);
void gemm(const Gemm &args, const Launch &launch);

// h = rows, or h += rows.
void widen(const void *rows, int32_t dtype, float *h, bool add, int64_t count,
           const Launch &launch);
struct WidenNeurons { // n int8 neurons side by side, in a record as hc_layout_widened gives it
    const char *from;
    hc_record record;
    char *to;
    hc_record wide;
    int64_t n;
    int32_t d;
};
void widen_neurons(const WidenNeurons &args, const Launch &launch); // widen.cu
void expand_i8(const int8_t *from, void *to_f16, int64_t count, const Launch &launch);
// bits [t][row_bytes] of mask [t][n].
void pack_mask(const uint8_t *mask, int32_t n, uint8_t *bits, int tokens, const Launch &launch);

struct PromptSign { // the proposals of Sign (kernels.h), for many tokens
    const uint64_t *signs_NW;
    const float *scale_N, *bias_N, *column_D; // bias, column NULL: none, ones
    Rows x;
    int32_t n, d, input_bits, tokens;
    float threshold;
    uint64_t *planes_TPW; // scratch
    float *step_T;        // scratch
    uint8_t *mask;        // [t][n], out
};
void prompt_sign(const PromptSign &args, const Launch &launch);

// A block of `tokens` tokens at positions position, position + 1, ... of one sequence; each attends
// to all positions up to its own, which the caches hold or this call appends; with a window, to the
// last so many of them.
struct PromptAttention {
    float *qkv; // [T][q | k | v]; q is rotated in place
    void *k_cache, *v_cache;
    const float *cos_PE, *sin_PE; // NULL: no rotary embedding
    float *out;                   // [T][heads * head_dim]
    int32_t heads, kv_heads, head_dim, context, kv_f16, position, tokens;
    int32_t window; // 0: none
};
void prompt_attention(const PromptAttention &args, const Launch &launch);

} // namespace hotcold
#endif
