"""The network: a Llama of transformers with ReLU gates, new or made of a SwiGLU checkpoint.

`transformers` runs it here and reads the result, hotcold runs the same weights: nothing about the
architecture is new. A neuron's gate row, up row and down column stay as they are; only the
activation between them changes.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.model.architectures.hf_config import Config, config_dtype
from hotcold.runtime.model.architectures.llama import read_spec
from relu_recipe.recipe import Recipe
from relu_recipe.sparsity import Gate

KNOWN = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")


def load_transformers() -> Any:
    """The library, quiet and offline.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "the recipe needs transformers 5; pip install 'transformers>=5,<6'"
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def new_model(recipe: Recipe, vocab: int) -> Any:
    """A model from scratch, weights drawn by the seed."""
    transformers = load_transformers()
    config = transformers.LlamaConfig(
        vocab_size=vocab,
        hidden_size=recipe.d_model,
        intermediate_size=recipe.ffn,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_heads,
        max_position_embeddings=recipe.context,
        hidden_act=recipe.activation,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
    )
    torch.manual_seed(recipe.seed)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():  # what adds to the residual stream starts smaller with depth (GPT-2)
        for layer in model.model.layers:
            for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
                matrix.weight.div_((2 * recipe.layers) ** 0.5)
    return model


def check_source(folder: Path) -> str | None:
    """Refuse a source that hotcold could not run even with ReLU; its dtype, where it says one.

    Raises:
        CheckpointError: naming file, key and value.
    """
    config = Config(folder / "config.json")
    kind, activation = config.data.get("model_type"), config.data.get("hidden_act", "silu")
    if kind != "llama":
        raise config.refuse(f"model_type is {kind!r:.80}; --from takes Llama checkpoints")
    if activation not in KNOWN:
        raise config.refuse(
            f"hidden_act {activation!r:.80} is not known; it must be one of {', '.join(KNOWN)}"
        )
    config.data["hidden_act"] = "relu"
    read_spec(config, "float32")
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} has no *.safetensors; convert the checkpoint first")
    return config_dtype(config)


def load_model(folder: Path) -> Any:
    """A checkpoint in float32, as it is.

    Raises:
        CheckpointError: it cannot be read, or weights are missing.
    """
    transformers = load_transformers()
    try:
        model, report = transformers.LlamaForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever the library makes of a damaged folder
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{folder} cannot be read by transformers ({said:.200}); restore it"
        ) from error
    missing = sorted(report["missing_keys"]) + [str(k) for k in report.get("mismatched_keys", ())]
    if missing:
        raise CheckpointError(f"{folder} lacks weights ({missing[0]}); restore it")
    model.config.use_cache = False
    return model


def put_gates(model: Any) -> list[Gate]:
    """Make every layer's activation a ReLU that keeps its input; one Gate a layer."""
    gates = []
    for layer in model.model.layers:
        layer.mlp.act_fn = Gate()
        gates.append(layer.mlp.act_fn)
    model.config.hidden_act = "relu"
    return gates


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object this package wrote; an empty one if it is not there or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
