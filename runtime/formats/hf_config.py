"""config.json of a Hugging Face Llama checkpoint -> ModelSpec, every value checked.

Called by the Hugging Face reader. Knows old and new spellings of keys (`rope_theta` beside
`rope_scaling`, or both inside `rope_parameters`; `torch_dtype` or `dtype`) and the defaults
transformers gives a Llama. Reads no weights.
"""

from pathlib import Path
from typing import Any

from hotcold.runtime.errors import CheckpointError
from hotcold.runtime.formats.files import read_json_object, regular_file
from hotcold.runtime.formats.limits import (
    LIMITS,
    ROPE_NUMBERS,
    check_rope_scaling,
    check_spec,
    is_int,
    positive,
)
from hotcold.runtime.model import DType, ModelSpec

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM",)
CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"


class Config:
    """Typed access to config.json; every complaint names file, key, value and limit.

    Args:
        path: the file.

    Raises:
        CheckpointError: it is missing or not a JSON object.
    """

    def __init__(self, path: Path) -> None:
        if not regular_file(path):
            raise CheckpointError(
                f"{path.parent} holds no {path.name}, so it is neither a Hugging Face checkpoint "
                "nor a bundle; give the folder that does"
            )
        self.path = path
        self.data = read_json_object(path)

    def refuse(self, text: str) -> CheckpointError:
        """The error for something this file says."""
        return CheckpointError(f"{self.path}: {text}")

    def integer(self, key: str, field: str, default: int | None = None) -> int:
        """An integer within the limits of a ModelSpec field; null counts as absent."""
        value = self.data.get(key)
        if value is None:
            value = default
        if value is None:
            raise self.refuse(f"{key} is missing; restore the original config.json")
        low, high = LIMITS[field]
        if not is_int(value) or not low <= value <= high:
            raise self.refuse(
                f"{key} is {value!r:.80}, it must be an integer of {low} to {high}; correct it"
            )
        return int(value)

    def number(self, key: str, default: float, limit: float) -> float:
        """A number in (0, limit]; null counts as absent."""
        value = self.data.get(key)
        value = default if value is None else value
        if not positive(value, limit):
            raise self.refuse(
                f"{key} is {value!r:.80}, it must be above 0 and at most {limit:g}; correct it"
            )
        return float(value)

    def flag(self, key: str) -> bool:
        """A bool, false when absent."""
        value = self.data.get(key, False)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.refuse(f"{key} is {value!r:.80}, it must be true or false; correct it")
        return value

    def token_ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """One token id or a list of them; absent or null means none."""
        value = self.data.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if len(ids) > 1024 or any(not is_int(n) or not 0 <= n < vocab_size for n in ids):
            raise self.refuse(
                f"{key} is {value!r:.80}, it must be a token id, or a list of them, below the "
                f"vocabulary of {vocab_size}; correct it"
            )
        return tuple(ids)


def _check_kind(config: Config) -> None:
    """Refuse what is not a plain ReLU-gated Llama, saying why."""
    names = config.data.get("architectures")
    if names is None and config.data.get("model_type") == "llama":
        names = ["LlamaForCausalLM"]
    if not (isinstance(names, list) and len(names) == 1 and names[0] in SUPPORTED_ARCHITECTURES):
        if names is None:
            names = f"model type {config.data.get('model_type')!r}"
        raise config.refuse(
            f"architecture {names!r:.120} is not supported; supported: "
            f"{', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    activation = config.data.get("hidden_act", "silu")
    if activation != "relu":
        raise config.refuse(
            f"activation {activation!r:.80} is not supported: only with ReLU is a neuron whose "
            "gate does not fire exactly zero, so that it can be skipped; use a checkpoint with "
            "hidden_act 'relu'"
        )
    for key in ("attention_bias", "mlp_bias"):
        if config.flag(key):
            raise config.refuse(f"{key} is true; biases are not supported, use a model without")
    if config.data.get("quantization_config") is not None:
        raise config.refuse(
            "the checkpoint is quantised (quantization_config); use the float16 or bfloat16 one"
        )


def _rope(config: Config) -> tuple[float, dict[str, Any] | None]:
    """Theta and scaling from either spelling; inside the dict wins, as in transformers."""
    rope = config.data.get("rope_scaling") or config.data.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise config.refuse(f"rope parameters are {rope!r:.80}, they must be an object; correct it")
    theta = config.number("rope_theta", 10000.0, 1e12)
    if rope.get("rope_theta") is not None:
        theta = rope["rope_theta"]
        if not positive(theta, 1e12):
            raise config.refuse(
                f"rope_theta is {theta!r:.80}, it must be above 0 and at most 1e12; correct it"
            )
    for partial in (rope.get("partial_rotary_factor"), config.data.get("partial_rotary_factor")):
        if partial is not None and partial != 1:
            raise config.refuse(
                f"partial_rotary_factor {partial!r:.80} is not supported; a Llama turns whole heads"
            )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind is None or kind == "default":
        return float(theta), None
    scaling = {"rope_type": kind}
    scaling |= {key: rope.get(key) for key in ROPE_NUMBERS.get(str(kind), ())}
    if kind == "llama3":
        original = config.data.get("original_max_position_embeddings")
        fallback = config.data.get("max_position_embeddings")
        key = "original_max_position_embeddings"
        scaling[key] = original if original is not None else rope.get(key, fallback)
    try:
        check_rope_scaling(scaling)
    except ValueError as error:
        raise config.refuse(f"{error}; use a checkpoint that has one of these") from error
    return float(theta), scaling


def _head_dim(config: Config, d_model: int, n_heads: int) -> int:
    """Elements of a head: given, or the width divided among the heads."""
    if config.data.get("head_dim") is None and d_model % n_heads:
        raise config.refuse(
            f"hidden_size {d_model} is not a multiple of num_attention_heads {n_heads} and "
            "head_dim is not given; correct one of them"
        )
    head_dim = config.integer("head_dim", "head_dim", d_model // n_heads)
    if head_dim % 2:
        raise config.refuse(f"head_dim {head_dim} is odd; rotary embedding turns pairs, correct it")
    return head_dim


def _eos_ids(config: Config, vocab_size: int) -> tuple[int, ...]:
    """Ids that end a generation: generation_config.json first, as transformers has it."""
    path = config.path.with_name(GENERATION_CONFIG)
    if regular_file(path):
        ids = Config(path).token_ids("eos_token_id", vocab_size)
        if ids:
            return ids
    return config.token_ids("eos_token_id", vocab_size)


def config_dtype(config: Config) -> str | None:
    """The dtype config.json announces; None if it names none of the three.

    Only used where the weights themselves are of several dtypes.
    """
    value = config.data.get("dtype") or config.data.get("torch_dtype")
    if value is not None and not isinstance(value, str):
        raise config.refuse(f"dtype is {value!r:.80}, it must be a name like 'float16'; correct it")
    name = (value or "").removeprefix("torch.")
    return name if name in ("float32", "float16", "bfloat16") else None


def read_spec(config: Config, dtype: DType) -> ModelSpec:
    """The spec of a checkpoint whose matrices are to be stored in dtype.

    Raises:
        CheckpointError: something is missing, absurd or not supported; the sentence names it.
    """
    _check_kind(config)
    d_model = config.integer("hidden_size", "d_model")
    n_heads = config.integer("num_attention_heads", "n_heads")
    n_kv_heads = config.integer("num_key_value_heads", "n_kv_heads", n_heads)
    if n_heads % n_kv_heads:
        raise config.refuse(
            f"num_attention_heads {n_heads} is not a multiple of num_key_value_heads {n_kv_heads}; "
            "correct one of them"
        )
    vocab_size = config.integer("vocab_size", "vocab_size")
    theta, scaling = _rope(config)
    spec = ModelSpec(
        architecture="llama",
        n_layers=config.integer("num_hidden_layers", "n_layers"),
        d_model=d_model,
        n_neurons=config.integer("intermediate_size", "n_neurons"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=_head_dim(config, d_model, n_heads),
        vocab_size=vocab_size,
        max_context=config.integer("max_position_embeddings", "max_context", 2048),
        norm_eps=config.number("rms_norm_eps", 1e-6, 1.0),
        rope_theta=theta,
        rope_scaling=scaling,
        tied=config.flag("tie_word_embeddings"),
        dtype=dtype,
        bos_ids=config.token_ids("bos_token_id", vocab_size),
        eos_ids=_eos_ids(config, vocab_size),
    )
    try:
        check_spec(spec)
    except ValueError as error:
        raise config.refuse(f"{error}; correct it") from error
    return spec
