"""Bamboo (TurboSparse-Mistral): a Mistral whose gate and up projections both go through a ReLU.

Source: Turbo Sparse (arXiv 2406.05955). The defaults are those its own configuration class gives
it, which are Mistral's. Not to be taken for Bamba, a Mamba hybrid.
"""

from hotcold.runtime.model.architectures.base import Architecture
from hotcold.runtime.model.architectures.hf_config import Config
from hotcold.runtime.model.architectures.llama_like import read_llama_like, sources
from hotcold.runtime.model.spec import DType, ModelSpec

WINDOW, KV_HEADS = 4096, 8  # where a key is absent; a null means none, and as many as heads
CONTEXT = 4096 * 32


def read_spec(config: Config, dtype: DType) -> ModelSpec:
    """The spec of a checkpoint, refusing what is not a Bamboo with ReLU."""
    config.require_relu("hidden_act", "silu")
    window = None
    if config.data.get("sliding_window", WINDOW) is not None:
        window = config.integer("sliding_window", "max_context", WINDOW)
    return read_llama_like(
        config,
        dtype,
        "bamboo",
        context=CONTEXT,
        kv_heads=None if "num_key_value_heads" in config.data else KV_HEADS,
        activation="relu both",
        attention_window=window,
    )


ARCHITECTURE = Architecture("bamboo", "Bamboo", "BambooForCausalLM", read_spec, sources)
