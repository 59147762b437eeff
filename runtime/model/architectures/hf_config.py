"""config.json of a Hugging Face checkpoint, every value checked as it is asked for.

Called by the Hugging Face reader and by runtime/model/architectures, which know what the keys of
each architecture mean. Reads no weights.
"""

from pathlib import Path
from typing import Any

from hotcold.native.errors import CheckpointError
from hotcold.runtime.files.json_files import read_json_object, regular_file
from hotcold.runtime.model.architectures.limits import LIMITS, check_spec, is_int, positive
from hotcold.runtime.model.spec import Activation, ModelSpec

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
ACTIVATIONS: dict[str, Activation] = {  # as transformers names them
    "relu": "relu",
    "relu2": "relu2",
    **dict.fromkeys(("silu", "swish"), "silu"),
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(
        ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh"), "gelu tanh"
    ),
}
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


class Config:
    """Typed access to config.json; every complaint names file, key, value and limit.

    Args:
        path: the file, named in complaints.
        data: what it says, where that is known from elsewhere (a GGUF file's keys).

    Raises:
        CheckpointError: it is missing or not a JSON object.
    """

    def __init__(self, path: Path, data: dict[str, Any] | None = None) -> None:
        self.path = path
        if data is not None:
            self.data = data
            return
        if not regular_file(path):
            raise CheckpointError(
                f"{path.parent} holds no {path.name}, so it is neither a Hugging Face checkpoint "
                "nor a bundle; give the folder that does"
            )
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

    def flag(self, key: str, default: bool = False) -> bool:
        """A bool; null counts as absent."""
        value = self.data.get(key)
        if value is None:
            return default
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

    def refuse_unsupported(self) -> None:
        """Refuse experts, and weights that are not plain numbers."""
        for key in EXPERTS:
            if self.data.get(key) not in (None, 0, 1):
                raise self.refuse(
                    f"{key} is {self.data[key]!r:.80}: a mixture of experts is not supported; use "
                    f"a model whose layers have one feed-forward part, or remove {key} if this is "
                    "one"
                )
        said = self.data.get("quantization_config")
        if said is None:
            said = self.data.get("compression_config")
        if said is not None:
            method = said.get("quant_method") if isinstance(said, dict) else None
            by = f" by {method:.40}" if isinstance(method, str) else ""
            raise self.refuse(
                f"the checkpoint is quantised{by} (quantization_config), which is not supported; "
                "use the one in float16 or bfloat16 that it was made from"
            )

    def require_relu(self, key: str, default: str, kind: str = "relu") -> None:
        """Refuse every activation but this kind of ReLU."""
        activation = self.data.get(key, default)
        if activation != kind:
            raise self.refuse(
                f"activation {activation!r:.80} is not supported: only with ReLU is a neuron whose "
                "gate does not fire exactly zero, so that it can be skipped; use a checkpoint with "
                f"{key} {kind!r}"
            )

    def activation(self, key: str, default: str) -> Activation:
        """A ModelSpec's activation, of its name in the file."""
        said = self.data.get(key)
        said = default if said is None else said
        if not isinstance(said, str) or said not in ACTIVATIONS:
            raise self.refuse(
                f"activation {said!r:.80} ({key}) is not supported; supported: "
                f"{', '.join(ACTIVATIONS)}"
            )
        return ACTIVATIONS[said]

    def checked(self, spec: ModelSpec) -> ModelSpec:
        """The spec itself, every field of it found possible."""
        try:
            check_spec(spec)
        except ValueError as error:
            raise self.refuse(f"{error}; correct it") from error
        return spec


def eos_ids(config: Config, vocab_size: int) -> tuple[int, ...]:
    """Ids that end a generation: generation_config.json first, as transformers has it."""
    path = config.path.with_name(GENERATION_CONFIG)
    if config.path.name == CONFIG and regular_file(path):
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
