"""Arcee (AFM): Llama's attention and norms; neurons without a gate, the square of a ReLU.

The defaults are those transformers gives an Arcee.
"""

from hotcold.runtime.model.architectures.base import Architecture
from hotcold.runtime.model.architectures.hf_config import Config
from hotcold.runtime.model.architectures.llama_like import read_llama_like, sources
from hotcold.runtime.model.spec import DType, ModelSpec


def read_spec(config: Config, dtype: DType) -> ModelSpec:
    """The spec of a checkpoint, refusing what is not an Arcee with the square of a ReLU."""
    config.require_relu("hidden_act", "relu2", "relu2")
    return read_llama_like(
        config,
        dtype,
        "arcee",
        context=4096,
        eps=("rms_norm_eps", 1e-5),
        gated=False,
        activation="relu2",
    )


ARCHITECTURE = Architecture("arcee", "Arcee", "ArceeForCausalLM", read_spec, sources)
