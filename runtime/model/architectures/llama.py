"""Llama with ReLU or SiLU gates: RMS norms, rotary positions, gated neurons, no biases.

With SiLU every neuron fires: such a model runs, and nothing of it is skipped.
"""

from hotcold.runtime.model.architectures.base import Architecture
from hotcold.runtime.model.architectures.hf_config import Config
from hotcold.runtime.model.architectures.llama_like import read_llama_like, sources
from hotcold.runtime.model.spec import DType, ModelSpec


def read_spec(config: Config, dtype: DType) -> ModelSpec:
    """The spec of a checkpoint, refusing what is not a plain Llama."""
    if config.data.get("hidden_act", "silu") in ("silu", "swish"):
        return read_llama_like(config, dtype, "llama", activation="silu")
    config.require_relu("hidden_act", "silu")
    return read_llama_like(config, dtype, "llama")


ARCHITECTURE = Architecture("llama", "Llama", "LlamaForCausalLM", read_spec, sources)
