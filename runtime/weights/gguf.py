"""GGUF files of bundles, for llama.cpp and PowerInfer; runtime/model/gguf reads them back.

llama.cpp's Llama applies SiLU, PowerInfer's ReLU; a key of our own says which a file means, so that
hotcold reads it rightly, but llama.cpp computes a text of its own for a model with ReLU. The file
of a bundle has no vocabulary, so prompts are ids; a planted one has bytes and numbered words.
Sources of the layout: the GGUF specification, version 3; llama.cpp's converter, which permutes
query and key rows from rotate-half to interleaved pairs; PowerInfer's converter
(convert-hf-to-powerinfer-gguf.py), whose file differs in this:

    the first four bytes are "PWRI"; the key powerinfer.sparse_threshold (of the logits);
    blk.N.ffn_down_t.weight [N, D] instead of ffn_down [D, N]; blk.N.fc1.weight [H, D] and
    blk.N.fc2.weight [N, H], the predictor, which is given the stream before the norm
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import ConfigError
from hotcold.runtime.model.checkpoints.bundle import Bundle
from hotcold.runtime.model.gguf.companions import THRESHOLD as THRESHOLD_KEY
from hotcold.runtime.model.gguf.header import POWERINFER_MAGIC
from hotcold.runtime.model.gguf.kinds import ACTIVATION
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.weights.weights import WeightStore

Predictors = Sequence[tuple[NDArray[Any], NDArray[Any]]]
NO_VOCABULARY = "no_vocab"
ENDS = {"embed": "token_embd.weight", "final_norm": "output_norm.weight", "head": "output.weight"}


def gguf_package() -> ModuleType:
    """The gguf package, loaded when it is needed: it costs a start 0.1 s."""
    import gguf

    module: ModuleType = gguf
    return module


def check_gguf(spec: ModelSpec, powerinfer: bool = False) -> None:
    """Refuse a model that has no such file.

    Raises:
        ConfigError: not a Llama in float16 (for llama.cpp, float32 too).
    """
    dtypes = ("float16",) if powerinfer else ("float16", "float32")
    if spec.architecture != "llama" or spec.neuron_format not in dtypes:
        raise ConfigError(
            f"{'PowerInfer GGUF' if powerinfer else 'GGUF'} is written for Llama models in "
            f"{' or '.join(dtypes)}, this one is {spec.architecture} in {spec.neuron_format}"
        )
    if spec.attention_biases:
        raise ConfigError(
            "GGUF is written for models without biases, attention of this one has some"
        )


def open_gguf(path: Path, spec: ModelSpec, name: str) -> Any:
    """A GGUFWriter of a Llama, its keys filled in but for the tokenizer's; no tensors yet.

    Raises:
        ConfigError: see check_gguf.
    """
    check_gguf(spec)
    writer = gguf_package().GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_context_length(spec.max_context)
    writer.add_embedding_length(spec.d_model)
    writer.add_block_count(spec.n_layers)
    writer.add_feed_forward_length(spec.n_neurons)
    writer.add_head_count(spec.n_heads)
    writer.add_head_count_kv(spec.n_kv_heads)
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(spec.head_dim)
    writer.add_rope_freq_base(spec.rope_theta)
    if spec.rope_scaling is not None:
        if spec.rope_scaling["rope_type"] != "linear":
            raise ConfigError(
                f"GGUF is not written of rope scaling {spec.rope_scaling['rope_type']!r}; only of "
                "linear scaling, or none"
            )
        writer.add_rope_scaling_type(gguf_package().RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(spec.rope_scaling["factor"])
    writer.add_string(ACTIVATION, spec.activation)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_file_type(1 if spec.dtype == "float16" else 0)
    return writer


def write_gguf(
    bundle: Bundle, path: Path, powerinfer: Predictors | None = None, threshold: float = 0.0
) -> None:
    """Write a bundle's weights as a GGUF file of the architecture "llama"; atomic.

    Args:
        bundle: the model.
        path: of the file.
        powerinfer: fc1 and fc2 of every layer: the file is PowerInfer's.
        threshold: of the predictors' logits, PowerInfer's.

    Raises:
        ConfigError: not a Llama in float16 or float32, or with a rope scaling it has no key for.
    """
    check_gguf(bundle.spec, powerinfer is not None)
    temporary = path.with_name(f".{path.name}.tmp")
    writer = open_gguf(temporary, bundle.spec, bundle.name)
    writer.add_tokenizer_model(NO_VOCABULARY)
    for add, ids in (
        (writer.add_bos_token_id, bundle.spec.bos_ids),
        (writer.add_eos_token_id, bundle.spec.eos_ids),
    ):
        for at in ids[:1]:
            add(at)
    if powerinfer is not None:
        writer.add_float32(THRESHOLD_KEY, threshold)
    try:
        with WeightStore.open(bundle) as store:
            for name, tensor in _tensors(bundle, store, powerinfer):
                writer.add_tensor(name, tensor)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
    finally:
        writer.close()
    if powerinfer is not None:
        with temporary.open("r+b") as file:
            file.write(POWERINFER_MAGIC)
    temporary.replace(path)


def _tensors(
    bundle: Bundle, store: WeightStore, powerinfer: Predictors | None
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Tensors by GGUF name; matrices in the bundle's dtype, norms float32."""
    spec, record = bundle.spec, bundle.record
    ends = [name for name in ENDS if name != "head" or not spec.tied]
    yield from end_tensors({name: store.array(name) for name in ends}).items()
    for layer in range(spec.n_layers):
        ours = f"layers.{layer}"
        tensors: dict[str, Any] = {
            name: store.array(f"{ours}.{name}")
            for name in ("attention_norm", "ffn_norm", "qkv", "o")
        }
        records = store.array(f"{ours}.neurons")
        for part in record.parts:
            raw = np.ascontiguousarray(records[:, part.slice])
            tensors[part.name] = raw.view(np.dtype(spec.dtype))
        named = layer_tensors(spec, layer, tensors, powerinfer is not None)
        if powerinfer is not None:
            for fc, matrix in zip(("fc1", "fc2"), powerinfer[layer], strict=True):
                named[f"blk.{layer}.{fc}.weight"] = matrix
        for name, tensor in named.items():
            yield name, np.ascontiguousarray(tensor)


def end_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """What is not part of a layer by GGUF name, from a bundle's names."""
    return {ENDS[name]: tensor for name, tensor in tensors.items()}


def layer_tensors(
    spec: ModelSpec, layer: int, tensors: Mapping[str, Any], powerinfer: bool = False
) -> dict[str, Any]:
    """A layer's tensors by GGUF name; of numpy or torch, not necessarily contiguous.

    tensors: by a bundle's names, the neurons as rows [N, D] of gate, up and down; powerinfer: down
    as rows, not as columns.
    """
    q_dim, kv_dim, qkv = spec.q_dim, spec.kv_dim, tensors["qkv"]
    q, k, v = qkv[:q_dim], qkv[q_dim : q_dim + kv_dim], qkv[q_dim + kv_dim :]
    named = {
        "attn_norm": tensors["attention_norm"],
        "ffn_norm": tensors["ffn_norm"],
        "attn_q": _interleaved(q, spec.n_heads),
        "attn_k": _interleaved(k, spec.n_kv_heads),
        "attn_v": v,
        "attn_output": tensors["o"],
        "ffn_gate": tensors["gate"],
        "ffn_up": tensors["up"],
        **({"ffn_down_t": tensors["down"]} if powerinfer else {"ffn_down": tensors["down"].T}),
    }
    return {f"blk.{layer}.{name}.weight": tensor for name, tensor in named.items()}


def _interleaved(rows: Any, heads: int) -> Any:
    """Rotate-half rows of every head in the order of interleaved pairs; numpy's or torch's."""
    shape = (heads, 2, rows.shape[0] // heads // 2, rows.shape[1])
    return rows.reshape(shape).swapaxes(1, 2).reshape(rows.shape)
