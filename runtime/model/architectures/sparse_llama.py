"""ProSparse, Sakana's SparseLM and MiniCPM: Llamas made sparse after training.

ProSparse (arXiv 2402.13516; model type `sparsellama`) has FATReLU gates, whose threshold is
`hidden_act_param`. SparseLM (model type `llama_sparse_relu`) has the same class name, says
`hidden_act` silu and computes a ReLU: what its file says there is not read.

MiniCPM (MiniCPM-S has FATReLU; arXiv 2404.06395) multiplies its embeddings by `scale_emb`, what a
part of a layer adds to the residual stream by s = scale_depth / sqrt(layers), and what the head
sees by dim_model_base / hidden_size. The stream divided by s is what we run: embeddings times
scale_emb / s, additions as they are, and norms, which see no scale, with an epsilon of eps / s^2.
The defaults are those of its own configuration class.
"""

import math
from dataclasses import replace
from typing import Any

from hotcold.runtime.model.architectures.base import Architecture, Source, Sources
from hotcold.runtime.model.architectures.hf_config import Config
from hotcold.runtime.model.architectures.llama_like import read_llama_like, sources
from hotcold.runtime.model.spec import DType, ModelSpec

SPARSE_LM, FATRELU = "llama_sparse_relu", "fatrelu"


def read_sparse_llama(config: Config, dtype: DType) -> ModelSpec:
    """The spec of a ProSparse or a SparseLM."""
    if config.data.get("model_type") == SPARSE_LM:
        return read_llama_like(config, dtype, "sparsellama")
    config.require_relu("hidden_act", "silu", FATRELU)
    return read_llama_like(config, dtype, "sparsellama", **_fatrelu(config))


def read_minicpm(config: Config, dtype: DType) -> ModelSpec:
    """The spec of a MiniCPM."""
    kind: dict[str, Any]
    if config.data.get("hidden_act") == FATRELU:
        kind = _fatrelu(config)
    else:
        kind = {"activation": config.activation("hidden_act", "silu")}
    spec = read_llama_like(config, dtype, "minicpm", tied=True, **kind)
    added = config.number("scale_depth", 1.0, 1e6) / math.sqrt(spec.n_layers)
    scaled = replace(
        spec,
        embed_scale=config.number("scale_emb", 1.0, 1e6) / added,
        norm_eps=spec.norm_eps / added**2,
    )
    return config.checked(scaled)


def _fatrelu(config: Config) -> dict[str, Any]:
    threshold = config.number("hidden_act_param", 0.01, 1e3)
    return {"activation": "fatrelu", "activation_threshold": threshold}


def minicpm_sources(spec: ModelSpec, config: Config) -> Sources:
    """A Llama's, the last norm's weight times what logits are multiplied by."""
    seen = config.integer("dim_model_base", "d_model", 1) / spec.d_model
    last = Source("model.norm.weight", (spec.d_model,), times=seen)
    return {**sources(spec, config), "final_norm": (last,)}


SPARSE_LLAMA = Architecture(
    "sparsellama", "ProSparse or SparseLM", "SparseLlamaForCausalLM", read_sparse_llama, sources
)
MINICPM = Architecture("minicpm", "MiniCPM", "MiniCPMForCausalLM", read_minicpm, minicpm_sources)
