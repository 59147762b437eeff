"""Nemotron-4 and Minitron: layer norms around 1, heads that turn in part, the square of a ReLU.

A norm multiplies by its weight + 1, which the bundle holds as the weight. Neurons have no gate. The
defaults are those transformers gives a Nemotron.
"""

from functools import partial

from hotcold.runtime.model.architectures import llama_like
from hotcold.runtime.model.architectures.base import Architecture
from hotcold.runtime.model.architectures.hf_config import Config
from hotcold.runtime.model.spec import DType, ModelSpec


def read_spec(config: Config, dtype: DType) -> ModelSpec:
    """The spec of a checkpoint, refusing what is not a Nemotron with the square of a ReLU."""
    config.require_relu("hidden_act", "relu2", "relu2")
    return llama_like.read_llama_like(
        config,
        dtype,
        "nemotron",
        context=4096,
        eps=("norm_eps", 1e-5),
        turned=0.5,
        norm="layer",
        gated=False,
        activation="relu2",
    )


sources = partial(llama_like.sources, norm_plus=1.0)
ARCHITECTURE = Architecture("nemotron", "Nemotron", "NemotronForCausalLM", read_spec, sources)
