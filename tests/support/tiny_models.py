"""Every architecture that transformers is the reference of, in small random forms."""

from typing import Any

from support.references import Names, Tiny
from torch.nn.functional import relu, threshold
from transformers import (
    ArceeConfig,
    ArceeForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
    PersimmonConfig,
    PersimmonForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ODD: dict[str, Any] = {
    **SIZES,
    "vocab_size": 301,
    "hidden_size": 35,
    "intermediate_size": 51,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "head_dim": 6,
}


class Bamboo(MistralForCausalLM):
    """TurboSparse's own modelling code is Mistral's but for down(relu(gate) * relu(up))."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.forward = lambda x, mlp=layer.mlp: mlp.down_proj(
                relu(mlp.gate_proj(x)) * relu(mlp.up_proj(x))
            )


def bamboo(sizes: dict[str, Any], **more: Any) -> Tiny:
    config = MistralConfig(**sizes, hidden_act="relu", **more)
    written = {"architectures": ["BambooForCausalLM"], "model_type": "bamboo"}
    return Tiny(Bamboo, config, written=written)


UNGATED = Names(gate="mlp.up_proj")
BAMBOO = {
    "window": bamboo(SIZES, sliding_window=7),
    "no window": bamboo(SIZES, sliding_window=None),
    "odd": bamboo(ODD, sliding_window=19),
}


def arcee(sizes: dict[str, Any], dtype: str = "float32", **more: Any) -> Tiny:
    return Tiny(ArceeForCausalLM, ArceeConfig(**sizes, **more), UNGATED, dtype=dtype)


ARCEE = {
    "even": arcee(SIZES),
    "float16, linear": arcee(
        {**SIZES, "num_key_value_heads": 4},
        "float16",
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 5e3},
    ),
    "tied": arcee(SIZES, tie_word_embeddings=True),
}


def nemotron(sizes: dict[str, Any], dtype: str = "float32", **more: Any) -> Tiny:
    config = NemotronConfig(**sizes, **more)
    return Tiny(NemotronForCausalLM, config, UNGATED, centre=0.0, dtype=dtype)


NEMOTRON = {
    "half of a head": nemotron(SIZES),
    "odd, a third": nemotron(ODD, partial_rotary_factor=0.34),
    "bfloat16, whole": nemotron(SIZES, "bfloat16", partial_rotary_factor=1.0),
    "three quarters, scaled": nemotron(
        SIZES,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.75,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
}


def falcon(sizes: dict[str, Any], dtype: str = "float32", **more: Any) -> Tiny:
    names = Names("transformer.h", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    sizes = {key: value for key, value in sizes.items() if key not in LLAMAS_KEYS}
    config = FalconConfig(**sizes, activation="relu", **more)
    return Tiny(FalconForCausalLM, config, names, dtype=dtype)


LLAMAS_KEYS = ("intermediate_size", "num_key_value_heads", "head_dim")
NEW: dict[str, Any] = {"new_decoder_architecture": True, "num_kv_heads": 2}
FALCON = {
    "7b": falcon(SIZES),
    "7b, odd, with biases": falcon(
        {**ODD, "hidden_size": 30}, ffn_hidden_size=51, bias=True, tie_word_embeddings=False
    ),
    "7b, a key for each head": falcon(SIZES, multi_query=False),
    "40b": falcon(SIZES, **NEW),
    "40b, bfloat16, with biases": falcon(SIZES, "bfloat16", bias=True, **NEW),
    "11b": falcon(SIZES, num_ln_in_parallel_attn=1, **NEW),
}


class SparseLlama(LlamaForCausalLM):
    """ProSparse's and SparseLM's own code is Llama's but for the gate's ReLU, with a threshold."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.forward = lambda x, mlp=layer.mlp, t=config.least: mlp.down_proj(
                threshold(mlp.gate_proj(x), t, 0.0) * mlp.up_proj(x)
            )


def sparse_llama(least: float, **written: Any) -> Tiny:
    config = LlamaConfig(**SIZES, hidden_act="silu", least=least)
    written["architectures"] = ["SparseLlamaForCausalLM"]
    return Tiny(SparseLlama, config, written=written, threshold=least)


FATRELU: dict[str, Any] = {"hidden_act": "fatrelu", "hidden_act_param": 0.25}
SPARSE_LLAMA = {
    "prosparse": sparse_llama(0.25, model_type="sparsellama", **FATRELU),
    "sparselm": sparse_llama(0.0, model_type="llama_sparse_relu"),
}


MISTRAL = {"window": Tiny(MistralForCausalLM, MistralConfig(**ODD, sliding_window=7))}
SMOLLM2 = Tiny(LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=True), dtype="bfloat16")


def qwen2(sizes: dict[str, Any], **more: Any) -> Tiny:
    config = Qwen2Config(**sizes, hidden_act="relu", **more)
    return Tiny(Qwen2ForCausalLM, config, dtype="bfloat16")


def qwen3(sizes: dict[str, Any], **more: Any) -> Tiny:
    return Tiny(Qwen3ForCausalLM, Qwen3Config(**sizes, hidden_act="gelu_pytorch_tanh", **more))


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
QWEN = {
    "2, tied, yarn": qwen2(
        SIZES, tie_word_embeddings=True, rope_parameters={"rope_theta": 1e6, **YARN}
    ),
    "3, all biases, window": qwen3(
        {**ODD, "num_attention_heads": 34, "num_key_value_heads": 34},  # normed 32 at a time
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=9,
        max_window_layers=0,
    ),
}


def persimmon(sizes: dict[str, Any], **more: Any) -> Tiny:
    names = Names("model.layers", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    sizes = {key: value for key, value in sizes.items() if key not in LLAMAS_KEYS[1:]}
    return Tiny(PersimmonForCausalLM, PersimmonConfig(**sizes, **more), names)


PERSIMMON = {
    "half of a head": persimmon(SIZES),
    "no norms of heads": persimmon(
        {**ODD, "hidden_size": 30}, qk_layernorm=False, partial_rotary_factor=0.7
    ),
}


class MiniCPM(GraniteForCausalLM):
    """MiniCPM's own code is Llama's but for factors, which Granite has under other names.

    Of a gate a FATReLU is computed.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.forward = lambda x, mlp=layer.mlp, t=config.least: mlp.down_proj(
                threshold(mlp.gate_proj(x), t, 0.0) * mlp.up_proj(x)
            )


def minicpm(sizes: dict[str, Any], least: float, **written: Any) -> Tiny:
    size = sizes.get("head_dim", sizes["hidden_size"] // sizes["num_attention_heads"])
    config = GraniteConfig(
        **sizes,
        least=least,
        tie_word_embeddings=True,
        embedding_multiplier=12.0,
        residual_multiplier=1.4 / sizes["num_hidden_layers"] ** 0.5,
        logits_scaling=sizes["hidden_size"] / 16,
        attention_multiplier=size**-0.5,
    )
    own = {"architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm"}
    own |= {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16, "attention_bias": False}
    return Tiny(MiniCPM, config, written={**own, **written}, threshold=least)


MINICPM = {
    "fatrelu": minicpm(SIZES, 0.03, hidden_act="fatrelu", hidden_act_param=0.03),
    "relu": minicpm(ODD, 0.0, hidden_act="relu"),
}
KINDS = {"bamboo": BAMBOO, "arcee": ARCEE, "nemotron": NEMOTRON, "falcon": FALCON}
KINDS["sparse llama"] = SPARSE_LLAMA
MODELS = {f"{kind}, {form}": tiny for kind in KINDS for form, tiny in KINDS[kind].items()}

_WIDE = {**SIZES, "hidden_size": 768, "max_position_embeddings": 128, "num_hidden_layers": 3}
WIDE = {  # attention takes long enough to be seen
    "falcon": falcon(_WIDE, ffn_hidden_size=256, **NEW),
    "arcee": arcee({**_WIDE, "intermediate_size": 256}),
}
