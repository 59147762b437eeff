"""Qwen2 (2.5 too) and Qwen3: Llamas with biases of q, k and v, or with norms of queries and keys.

Some layers may look back on a window only, where `use_sliding_window` is true: those from
`max_window_layers` on, or those that `layer_types` names. The defaults are those transformers gives
either.
"""

from collections.abc import Sequence
from typing import Any

from hotcold.runtime.model.architectures.base import Architecture
from hotcold.runtime.model.architectures.hf_config import Config
from hotcold.runtime.model.architectures.llama_like import read_llama_like, sources
from hotcold.runtime.model.spec import DType, ModelSpec

WINDOW, WINDOW_FROM = 4096, 28
KV_HEADS, CONTEXT, HEAD_DIM = 32, 32768, 128
FULL, SLIDING = "full_attention", "sliding_attention"


def read_qwen2(config: Config, dtype: DType) -> ModelSpec:
    """The spec of a Qwen2, whose q, k and v have biases always."""
    return _read(config, dtype, "qwen2", None, attention_biases="qkv")


def read_qwen3(config: Config, dtype: DType) -> ModelSpec:
    """The spec of a Qwen3, whose heads have a size of their own."""
    return _read(config, dtype, "qwen3", HEAD_DIM, qk_norm=True)


def _read(
    config: Config,
    dtype: DType,
    name: str,
    head_dim: int | None,
    **kinds: Any,  # noqa: ANN401 - as ModelSpec has them
) -> ModelSpec:
    return read_llama_like(
        config,
        dtype,
        name,
        context=CONTEXT,
        kv_heads=None if "num_key_value_heads" in config.data else KV_HEADS,
        head_dim=head_dim,
        activation=config.activation("hidden_act", "silu"),
        attention_window=_window(config),
        **kinds,
    )


def _window(config: Config) -> int | None:
    """The window of all layers; layers of both kinds are refused."""
    if not config.flag("use_sliding_window") or config.data.get("sliding_window", WINDOW) is None:
        return None
    window = config.integer("sliding_window", "max_context", WINDOW)
    n_layers = config.integer("num_hidden_layers", "n_layers")
    said = config.data.get("layer_types")
    if said is None:
        first = config.data.get("max_window_layers", WINDOW_FROM)
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise config.refuse(
                f"max_window_layers is {first!r:.80}, it must be an integer of at least 0; "
                "correct it"
            )
        said = [SLIDING if layer >= first else FULL for layer in range(n_layers)]
    if (
        not isinstance(said, Sequence)
        or len(said) != n_layers
        or {*map(str, said)} - {FULL, SLIDING}
    ):
        raise config.refuse(
            f"layer_types is {said!r:.80}, it must be a list of {n_layers} times {FULL!r} or "
            f"{SLIDING!r}; correct it"
        )
    kinds = {str(kind) for kind in said}
    if len(kinds) > 1:
        raise config.refuse(
            f"{said.count(SLIDING)} of {n_layers} layers look back on {window} positions only and "
            "the others on all, which is not supported; set use_sliding_window to false: up to "
            f"{window} tokens that changes nothing"
        )
    return window if SLIDING in kinds else None


QWEN2 = Architecture("qwen2", "Qwen2", "Qwen2ForCausalLM", read_qwen2, sources)
QWEN3 = Architecture("qwen3", "Qwen3", "Qwen3ForCausalLM", read_qwen3, sources)
