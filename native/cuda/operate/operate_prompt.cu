// operate_prompt.cu - operators of dense prompts (dense.h) on host arrays, for tests.
//
// Their kernels run one after the other, without overlap, and so they do here.
// So inputs need not come late: all arrays are there before the first launch, and `waits` is false.
#include "cuda/operate/operate.h"
#include "cuda/prompt/dense.h"

namespace hotcold {
namespace {

// x in the form its product wants, tokens rounded up to whole tiles.
// Room for floats (4 bytes) is room for hi and lo halves (2 + 2). Tokens past the last are read by
// whole tiles and dropped: `ignored`.
Operand operand_of(const hc_product_args &a, int32_t dtype, Scratch &scratch) {
    const int64_t tokens = (a.tokens + TOKEN_TILE - 1) / TOKEN_TILE * TOKEN_TILE;
    Operand to = {};
    to.ld = (a.k + PACK - 1) / PACK * PACK;
    to.half = tokens * to.ld * 2;
    to.data = scratch.ignored<char>(tokens * to.ld * 4);
    to.scale_T = scratch.make<float>(tokens);
    to.dtype = dtype, to.k = static_cast<int32_t>(a.k);
    return to;
}

// x of so many tokens, or with a norm of the kind asked for.
Rows rows_of(const hc_device_op &op, const float *x, int64_t tokens, int64_t d, Scratch &scratch) {
    Rows rows = {};
    rows.x = scratch.make<float>(tokens * d, x), rows.stride = d;
    rows.norm_D = scratch.given(d, op.norm_D);
    rows.norm_bias_D = scratch.given(d, op.norm_bias_D);
    rows.eps = op.eps, rows.kind = op.norm_kind;
    return rows;
}

// What decides which rows and tokens count, and where the proposals go.
uint8_t *mask_of(const hc_product_args &a, Gemm &g, Scratch &scratch) {
    g.mask_stride = a.bits_T ? a.rows : a.n;
    if (a.bits_T)
        return scratch.make<uint8_t>(a.tokens * a.rows);
    g.ids_R = scratch.given(a.rows, a.ids_R);
    return scratch.given(a.tokens * a.n, a.mask_TN);
}

} // namespace

void operate_product(const hc_device_op &op) {
    hc_product_args &a = *op.product;
    Scratch scratch(op, false);
    // int8 rows are widened to float16 first, as Prompt::predict does.
    const bool i8 = a.dtype == HC_I8;
    // Rows of memory: `rows` of them, or k where the weights lie transposed.
    const int64_t lines = a.transposed ? a.k : a.rows;
    const char *w = scratch.make<char>(lines * a.stride_bytes, a.w);
    char *wide = i8 ? scratch.make<char>(a.rows * a.k * 2) : nullptr;
    Gemm g = {};
    g.w = i8 ? wide : w + a.offset_bytes;
    g.stride = i8 ? a.k * 2 : a.stride_bytes, g.up = a.up_bytes;
    g.bias = a.bias_bytes;
    g.rows = static_cast<int32_t>(a.rows), g.tokens = a.tokens;
    g.dtype = i8 ? static_cast<int32_t>(HC_F16) : a.dtype, g.transposed = a.transposed != 0;
    g.epilogue = static_cast<hc_epilogue>(a.epilogue), g.threshold = a.threshold;
    g.activation = a.activation;
    g.scale_R = scratch.given(a.rows, a.scale_R);
    g.bias_R = scratch.given(a.rows, a.bias_R);
    g.x = operand_of(a, operand_dtype(g.dtype, g.w, g.stride, g.up, a.k, a.rows, g.transposed),
                     scratch);
    g.y = scratch.make<float>(a.tokens * a.rows, a.y_TR), g.y_stride = a.rows;
    g.mask = mask_of(a, g, scratch);
    g.fired = scratch.zeros<unsigned long long>(1);
    uint8_t *bits = a.bits_T ? scratch.make<uint8_t>(a.tokens * ((a.rows + 7) / 8)) : nullptr;
    const Rows from = rows_of(op, a.x_TK, a.tokens, a.k, scratch);
    const auto body = [&](int) {
        if (i8)
            expand_i8(reinterpret_cast<const int8_t *>(w), wide, a.rows * a.k, scratch.launch);
        make_operand(MakeOperand{from, g.x}, a.tokens, scratch.launch);
        gemm(g, scratch.launch);
        if (bits)
            pack_mask(g.mask, g.rows, bits, a.tokens, scratch.launch);
    };
    const auto take = [&] {
        unsigned long long fired = 0;
        fetch(&fired, g.fired, sizeof fired);
        a.fired = static_cast<int64_t>(fired);
        fetch(a.y_TR, g.y, a.tokens * a.rows * 4);
        if (bits)
            fetch(a.bits_T, bits, a.tokens * ((a.rows + 7) / 8));
    };
    scratch.run(body, take);
}

void operate_prompt_attention(const hc_device_op &op) { // q holds qkv rows, not rotated
    const hc_attention_args &a = *op.attention;
    // Floats of a token's q, k and v.
    const int64_t width = (a.heads + 2 * a.kv_heads) * static_cast<int64_t>(a.head_dim);
    const int64_t result = static_cast<int64_t>(a.batch) * a.heads * a.head_dim;
    const int64_t cache = cache_bytes(op);
    Scratch scratch(op, false);
    PromptAttention t = attention_of<PromptAttention>(op, scratch);
    t.qkv = scratch.make<float>(a.batch * width, a.q);
    t.k_cache = scratch.make<char>(cache, a.k_cache);
    t.v_cache = scratch.make<char>(cache, a.v_cache);
    t.out = scratch.make<float>(result);
    t.position = a.position_B[0], t.tokens = a.batch;
    const auto take = [&] {
        fetch(a.out, t.out, result * 4);
        fetch(const_cast<float *>(a.k_cache), t.k_cache, cache);
        fetch(const_cast<float *>(a.v_cache), t.v_cache, cache);
    };
    scratch.run([&](int) { prompt_attention(t, scratch.launch); }, take);
}

// y is where x is: `run` takes the first run's result, later rounds norm it again.
void operate_prompt_norm(const hc_device_op &op) { // in place
    const hc_gemv_args &a = *op.gemv;
    Scratch scratch(op, false);
    const Rows rows = rows_of(op, a.x_BD, a.batch, a.d, scratch);
    float *y = const_cast<float *>(rows.x);
    const auto take = [&] { fetch(a.y_BR, y, a.batch * a.d * 4); };
    scratch.run([&](int) { prompt_norm(rows, y, a.d, a.batch, scratch.launch); }, take);
}

void operate_prompt_sign(const hc_device_op &op) {
    const hc_sign_args &a = *op.sign;
    Scratch scratch(op, false);
    PromptSign s = sign_of<PromptSign>(op, scratch);
    s.x = rows_of(op, a.x_BD, a.batch, a.d, scratch);
    s.tokens = a.batch;
    s.planes_TPW = scratch.make<uint64_t>(a.batch * a.input_bits * ((a.d + 63) / 64));
    s.step_T = scratch.make<float>(a.batch);
    s.mask = scratch.make<uint8_t>(a.batch * a.n);
    std::vector<uint8_t> mask(a.batch * a.n);
    const auto take = [&] { fetch(mask.data(), s.mask, a.batch * a.n); };
    scratch.run([&](int) { prompt_sign(s, scratch.launch); }, take);
    std::copy(mask.begin(), mask.end(), a.scores_BN);
}

} // namespace hotcold
