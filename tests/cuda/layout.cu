// layout.cu - how many bytes a GPU executor asks for, without a GPU: model.cu's layout, counted.
//
// Build: nvcc layout.cu ../../native/cuda/model.cu ../../native/cuda/prompt_memory.cu
// Use: layout L D N heads kv_heads head_dim vocab context dtype norm_bias biases gated embed_dim
//      final_norm max_batch prompt_rows piece_rows hidden sign predictor_i8 ahead hot
#include "cuda/memory/model.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>

namespace hotcold {
void fail(cudaError_t, const std::string &what) {
    throw Failure(HC_ERR_SYSTEM, what);
}
void check_host(cudaError_t, int64_t) {}
void gemv(const Gemv &, int, const Launch &) {} // nothing is launched
void sign(const Sign &, int, const Launch &) {}
} // namespace hotcold

int main(int argc, char **argv) {
    int at = 1;
    const auto next = [&] { return at < argc ? std::atoll(argv[at++]) : 0; };
    static float there; // stands for any tensor: none is read
    hc_model m = {};
    m.n_layers = static_cast<int32_t>(next()), m.d = next(), m.n = next();
    m.heads = static_cast<int32_t>(next()), m.kv_heads = static_cast<int32_t>(next());
    m.head_dim = static_cast<int32_t>(next()), m.vocab = next(), m.context = next();
    m.dtype = static_cast<int32_t>(next());
    const bool norm_bias = next(), biases = next(), gated = next();
    const int64_t embed = next(), e = m.dtype == HC_F32 ? 4 : 2, row = m.d * e;
    m.embed_dim = embed ? embed : m.d;
    if (embed)
        m.project_in = m.project_out = &there;
    if (next())
        m.final_norm_D = &there;
    m.up_offset = gated ? row : -1;
    m.record_bytes = ((gated ? 3 : 2) * row + 4 * biases + 63) / 64 * 64;
    hc_layer layer = {};
    layer.attention_norm_bias_D = layer.ffn_norm_bias_D = norm_bias ? &there : nullptr;
    layer.qkv_bias = layer.o_bias_D = layer.ffn_bias_D = biases ? &there : nullptr;
    const std::vector<hc_layer> layers(m.n_layers, layer);
    m.layers = layers.data();
    hc_executor_args args = {};
    args.model = &m, args.max_batch = static_cast<int32_t>(next());
    hc_device_args device = {};
    device.n_chunks = 64, device.vram_bytes = 1, device.kv_f16 = 1;
    device.prompt_rows = next(), device.piece_rows = next();
    hc_predictor_layer predictor = {};
    predictor.hidden = next(), predictor.dtype = HC_F16;
    if (next())
        predictor.form = HC_PREDICT_SIGN, predictor.input_bits = 8, predictor.column_D = &there;
    const bool predicts = predictor.hidden || predictor.form == HC_PREDICT_SIGN;
    const std::vector<hc_predictor_layer> predictors(m.n_layers, predictor);
    device.predictors_L = predicts ? predictors.data() : nullptr;
    device.predictor_i8 = next() != 0;
    const int ahead = static_cast<int>(next());
    std::vector<hc_device_layer> plan(m.n_layers);
    for (int i = 0; i < m.n_layers; i++)
        plan[i].predicted_at = !predicts ? -1 : i < ahead ? i : i - ahead;
    std::vector<int32_t> ids(next());
    std::iota(ids.begin(), ids.end(), 0);
    hc_owned share = {};
    share.ids = ids.data(), share.n_ids = static_cast<int64_t>(ids.size());
    const std::vector<hc_owned> shares(m.n_layers, share);
    args.owned_L = shares.data();
    const std::vector<uint8_t> parts(m.n_layers + 1, 15); // all that may, on the host
    device.host_parts_L = parts.data();
    try {
        const hotcold::Model made(args, device, plan.data());
    } catch (const hotcold::Failure &failure) { // the budget is one byte
        if (failure.status == HC_ERR_BUDGET) {
            std::printf("%lld\n", static_cast<long long>(failure.value));
            return 0;
        }
        std::fprintf(stderr, "%s\n", failure.what());
    }
    return 1;
}
