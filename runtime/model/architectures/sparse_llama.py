"""ProSparse and Sakana's SparseLM: Llamas made sparse after training, of one class name.

ProSparse (arXiv 2402.13516; model type `sparsellama`) has FATReLU gates, whose threshold is
`hidden_act_param`. SparseLM (model type `llama_sparse_relu`) says `hidden_act` silu and computes a
ReLU: what its file says there is not read.
"""

from hotcold.runtime.model.architectures.base import Architecture
from hotcold.runtime.model.architectures.hf_config import Config
from hotcold.runtime.model.architectures.llama_like import read_llama_like, sources
from hotcold.runtime.model.spec import DType, ModelSpec

SPARSE_LM = "llama_sparse_relu"


def read_spec(config: Config, dtype: DType) -> ModelSpec:
    """The spec of a checkpoint of either kind."""
    if config.data.get("model_type") == SPARSE_LM:
        return read_llama_like(config, dtype, "sparsellama")
    config.require_relu("hidden_act", "silu", "fatrelu")
    return read_llama_like(
        config,
        dtype,
        "sparsellama",
        activation="fatrelu",
        activation_threshold=config.number("hidden_act_param", 0.01, 1e3),
    )


ARCHITECTURE = Architecture(
    "sparsellama", "ProSparse or SparseLM", "SparseLlamaForCausalLM", read_spec, sources
)
