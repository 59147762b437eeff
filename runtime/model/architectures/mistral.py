"""Mistral, and Bamboo (TurboSparse-Mistral): Llamas whose attention looks back on a window.

In Bamboo the gate and the up projection both go through a ReLU (Turbo Sparse, arXiv 2406.05955); it
is not to be taken for Bamba, a Mamba hybrid. The defaults are those that each one's own
configuration class gives, and they are the same.
"""

from hotcold.runtime.model.architectures.base import Architecture
from hotcold.runtime.model.architectures.hf_config import Config
from hotcold.runtime.model.architectures.llama_like import read_llama_like, sources
from hotcold.runtime.model.spec import Activation, DType, ModelSpec

WINDOW, KV_HEADS = 4096, 8  # where a key is absent; a null means none, and as many as heads
CONTEXT = 4096 * 32


def read_mistral(config: Config, dtype: DType) -> ModelSpec:
    """The spec of a Mistral."""
    return _read(config, dtype, "mistral", config.activation("hidden_act", "silu"))


def read_bamboo(config: Config, dtype: DType) -> ModelSpec:
    """The spec of a checkpoint, refusing what is not a Bamboo with ReLU."""
    config.require_relu("hidden_act", "silu")
    return _read(config, dtype, "bamboo", "relu both")


def _read(config: Config, dtype: DType, name: str, activation: Activation) -> ModelSpec:
    window = None
    if config.data.get("sliding_window", WINDOW) is not None:
        window = config.integer("sliding_window", "max_context", WINDOW)
    return read_llama_like(
        config,
        dtype,
        name,
        context=CONTEXT,
        kv_heads=None if "num_key_value_heads" in config.data else KV_HEADS,
        activation=activation,
        attention_window=window,
        attention_biases="",  # whatever the file says
    )


MISTRAL = Architecture("mistral", "Mistral", "MistralForCausalLM", read_mistral, sources)
BAMBOO = Architecture("bamboo", "Bamboo", "BambooForCausalLM", read_bamboo, sources)
