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
    rows.norm_D = op.norm_D ? scratch.make<float>(d, op.norm_D) : nullptr;
    rows.norm_bias_D = op.norm_bias_D ? scratch.make<float>(d, op.norm_bias_D) : nullptr;
    rows.eps = op.eps, rows.kind = op.norm_kind;
    return rows;
}

// What decides which rows and tokens count, and where the proposals go.
uint8_t *mask_of(const hc_product_args &a, Gemm &g, Scratch &scratch) {
    g.mask_stride = a.bits_T ? a.rows : a.n;
    if (a.bits_T)
        return scratch.make<uint8_t>(a.tokens * a.rows);
    g.ids_R = a.ids_R ? scratch.make<int32_t>(a.rows, a.ids_R) : nullptr;
    return a.mask_TN ? scratch.make<uint8_t>(a.tokens * a.n, a.mask_TN) : nullptr;
}

} // namespace

void operate_product(const hc_device_op &op) {
    hc_product_args &a = *op.product;
    Scratch scratch(op);
    Launch launch = {};
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
    g.scale_R = a.scale_R ? scratch.make<float>(a.rows, a.scale_R) : nullptr;
    g.bias_R = a.bias_R ? scratch.make<float>(a.rows, a.bias_R) : nullptr;
    g.x = operand_of(a, operand_dtype(g.dtype, g.w, g.stride, g.up, a.k, a.rows, g.transposed),
                     scratch);
    g.y = scratch.make<float>(a.tokens * a.rows, a.y_TR), g.y_stride = a.rows;
    g.mask = mask_of(a, g, scratch);
    g.fired = scratch.zeros<unsigned long long>(1);
    uint8_t *bits = a.bits_T ? scratch.make<uint8_t>(a.tokens * ((a.rows + 7) / 8)) : nullptr;
    const Rows from = rows_of(op, a.x_TK, a.tokens, a.k, scratch);
    const auto body = [&](int) {
        if (i8)
            expand_i8(reinterpret_cast<const int8_t *>(w), wide, a.rows * a.k, launch);
        make_operand(MakeOperand{from, g.x}, a.tokens, launch);
        gemm(g, launch);
        if (bits)
            pack_mask(g.mask, g.rows, bits, a.tokens, launch);
    };
    const auto take = [&] {
        unsigned long long fired = 0;
        fetch(&fired, g.fired, sizeof fired);
        a.fired = static_cast<int64_t>(fired);
        fetch(a.y_TR, g.y, a.tokens * a.rows * 4);
        if (bits)
            fetch(a.bits_T, bits, a.tokens * ((a.rows + 7) / 8));
    };
    run(op, scratch, launch, body, take, false);
}

void operate_prompt_attention(const hc_device_op &op) { // q holds qkv rows, not rotated
    const hc_attention_args &a = *op.attention;
    // Floats of a token's q, k and v; bytes of a cache; angles of all positions.
    const int64_t width = (a.heads + 2 * a.kv_heads) * static_cast<int64_t>(a.head_dim);
    const int64_t cache =
        static_cast<int64_t>(a.kv_heads) * a.context * a.head_dim * (op.kv_f16 ? 2 : 4);
    const int64_t angles = a.context * a.head_dim / 2;
    const int64_t result = static_cast<int64_t>(a.batch) * a.heads * a.head_dim;
    Scratch scratch(op);
    Launch launch = {};
    PromptAttention t = {};
    t.qkv = scratch.make<float>(a.batch * width, a.q);
    t.k_cache = scratch.make<char>(cache, a.k_cache);
    t.v_cache = scratch.make<char>(cache, a.v_cache);
    t.cos_PE = op.cos_PE ? scratch.make<float>(angles, op.cos_PE) : nullptr;
    t.sin_PE = op.sin_PE ? scratch.make<float>(angles, op.sin_PE) : nullptr;
    t.out = scratch.make<float>(result);
    t.heads = a.heads, t.kv_heads = a.kv_heads, t.head_dim = a.head_dim;
    t.context = static_cast<int32_t>(a.context), t.kv_f16 = op.kv_f16;
    t.position = a.position_B[0], t.tokens = a.batch;
    const auto body = [&](int) { prompt_attention(t, launch); };
    const auto take = [&] {
        fetch(a.out, t.out, result * 4);
        fetch(const_cast<float *>(a.k_cache), t.k_cache, cache);
        fetch(const_cast<float *>(a.v_cache), t.v_cache, cache);
    };
    run(op, scratch, launch, body, take, false);
}

// y is where x is: `run` takes the first run's result, later rounds norm it again.
void operate_prompt_norm(const hc_device_op &op) { // in place
    const hc_gemv_args &a = *op.gemv;
    Scratch scratch(op);
    Launch launch = {};
    const Rows rows = rows_of(op, a.x_BD, a.batch, a.d, scratch);
    float *y = const_cast<float *>(rows.x);
    const auto body = [&](int) { prompt_norm(rows, y, a.d, a.batch, launch); };
    const auto take = [&] { fetch(a.y_BR, y, a.batch * a.d * 4); };
    run(op, scratch, launch, body, take, false);
}

void operate_prompt_sign(const hc_device_op &op) {
    const hc_sign_args &a = *op.sign;
    const int64_t words = (a.d + 63) / 64;
    Scratch scratch(op);
    Launch launch = {};
    PromptSign s = {};
    s.signs_NW = scratch.make<uint64_t>(a.n * words, a.signs_NW);
    s.scale_N = scratch.make<float>(a.n, a.scale_N);
    s.bias_N = a.bias_N ? scratch.make<float>(a.n, a.bias_N) : nullptr;
    s.column_D = a.column_D ? scratch.make<float>(a.d, a.column_D) : nullptr;
    s.x = rows_of(op, a.x_BD, a.batch, a.d, scratch);
    s.n = static_cast<int32_t>(a.n), s.d = static_cast<int32_t>(a.d);
    s.input_bits = a.input_bits, s.tokens = a.batch, s.threshold = op.threshold;
    s.planes_TPW = scratch.make<uint64_t>(a.batch * a.input_bits * words);
    s.step_T = scratch.make<float>(a.batch);
    s.mask = scratch.make<uint8_t>(a.batch * a.n);
    const auto body = [&](int) { prompt_sign(s, launch); };
    std::vector<uint8_t> mask(a.batch * a.n);
    const auto take = [&] { fetch(mask.data(), s.mask, a.batch * a.n); };
    run(op, scratch, launch, body, take, false);
    std::copy(mask.begin(), mask.end(), a.scores_BN);
}

} // namespace hotcold
