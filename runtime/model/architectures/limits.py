"""What a model's shapes may be: the one table behind every refusal of an absurd number.

Called by the checkpoint readers (which name the checkpoint's own keys) and by the bundle reader.
The limits are far beyond any model that exists; they keep a wrong number from causing an overflow
or an allocation of terabytes later.
"""

import math
from typing import Any, get_args

from hotcold.runtime.model.block import check_block
from hotcold.runtime.model.rotary import ORIGINAL
from hotcold.runtime.model.spec import (
    DTYPE_BYTES,
    NEURON_DTYPES,
    Activation,
    AttentionBiases,
    ModelSpec,
)

LIMITS: dict[str, tuple[int, int]] = {  # inclusive
    "n_layers": (1, 1024),
    "d_model": (1, 1 << 17),
    "n_neurons": (1, 1 << 20),
    "n_heads": (1, 4096),
    "n_kv_heads": (1, 4096),
    "head_dim": (2, 4096),
    "vocab_size": (1, 1 << 22),
    "max_context": (1, 1 << 24),
}
KINDS: dict[str, tuple[str, ...]] = {
    "norm": ("rms", "layer"),
    "activation": get_args(Activation),
    "positions": ("rotary", "learned"),
    "attention_biases": get_args(AttentionBiases),
}
FLAGS = ("tied", "gated", "biases", "final_norm", "qk_norm")
ROPE_NUMBERS: dict[str, tuple[str, ...]] = {  # of a kind of scaling (rotary.py)
    "linear": ("factor",),
    "dynamic": ("factor", ORIGINAL),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
    "yarn": ("factor", "beta_fast", "beta_slow", "attention_factor", ORIGINAL),
    "longrope": ("attention_factor", ORIGINAL),
}
ROPE_LISTS = {"longrope": ("long_factor", "short_factor")}  # a number a pair


def is_int(value: object) -> bool:
    """Whether value is an integer and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether value is a finite number and not a bool."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) or math.isfinite(value)


def positive(value: object, limit: float) -> bool:
    """Whether value is a number in (0, limit]."""
    return is_number(value) and 0 < value <= limit  # type: ignore[operator]


def check_rope_scaling(scaling: dict[str, Any] | None, turned: int) -> None:
    """Check a normalised scaling entry; turned: elements of a head that turn.

    Raises:
        ValueError: another type, or a factor missing or out of range; the text says which.
    """
    if scaling is None:
        return
    kind = scaling.get("rope_type")
    if not isinstance(kind, str) or kind not in ROPE_NUMBERS:
        raise ValueError(
            f"rope type {kind!r:.80} is not supported; supported: default, "
            f"{', '.join(ROPE_NUMBERS)}"
        )
    for name in ROPE_LISTS.get(kind, ()):
        values = scaling.get(name)
        if not isinstance(values, list) or not all(positive(value, 1e9) for value in values):
            raise ValueError(
                f"rope parameter {name} of type {kind!r} is {values!r:.80}, it must be a list of "
                "numbers above 0 and at most 1e9"
            )
        if len(values) != turned // 2:
            raise ValueError(
                f"rope parameter {name} of type {kind!r} has {len(values)} numbers, it must have "
                f"{turned // 2}, one for each pair of a head's elements that turns"
            )
    for name in ROPE_NUMBERS[kind]:
        if not positive(scaling.get(name), 1e9):
            raise ValueError(
                f"rope parameter {name} of type {kind!r} is {scaling.get(name)!r:.80}, "
                "it must be a number above 0 and at most 1e9"
            )
    if kind == "yarn" and not isinstance(scaling.get("truncate"), bool):
        raise ValueError(
            f"rope parameter truncate is {scaling.get('truncate')!r:.80}, it must be true or false"
        )
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise ValueError(
            f"rope parameter high_freq_factor {scaling['high_freq_factor']} must exceed "
            f"low_freq_factor {scaling['low_freq_factor']}"
        )


def check_spec(spec: ModelSpec) -> None:
    """Check every field of a spec, types included.

    Raises:
        ValueError: the first field that cannot be right; the text says which and why.
    """
    for name, (low, high) in LIMITS.items():
        value = getattr(spec, name)
        if not is_int(value) or not low <= value <= high:
            raise ValueError(f"{name} is {value!r:.80}, it must be an integer of {low} to {high}")
    _check_kinds(spec)
    if spec.n_heads % spec.n_kv_heads:
        raise ValueError(
            f"{spec.n_heads} query heads cannot share {spec.n_kv_heads} key-value heads evenly"
        )
    if not positive(spec.norm_eps, 1.0):
        raise ValueError(f"norm epsilon is {spec.norm_eps!r:.80}, it must be above 0, at most 1")
    if not positive(spec.embed_scale, 1e9):
        raise ValueError(
            f"embed_scale is {spec.embed_scale!r:.80}, it must be above 0, at most 1e9"
        )
    if spec.dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype {spec.dtype!r:.80} is not possible")
    if spec.neuron_dtype not in (None, *NEURON_DTYPES):
        raise ValueError(f"neuron_dtype {spec.neuron_dtype!r:.80} is not possible")
    for token in spec.bos_ids + spec.eos_ids:
        if not is_int(token) or not 0 <= token < spec.vocab_size:
            raise ValueError(
                f"token id {token!r:.80} is outside the vocabulary of {spec.vocab_size}"
            )


def _check_kinds(spec: ModelSpec) -> None:
    for name, kinds in KINDS.items():
        if getattr(spec, name) not in kinds:
            raise ValueError(
                f"{name} is {getattr(spec, name)!r:.80}, it must be one of {', '.join(kinds)}"
            )
    for name in FLAGS:
        if not isinstance(getattr(spec, name), bool):
            raise ValueError(f"{name} is {getattr(spec, name)!r:.80}, it must be true or false")
    check_block(spec.block)
    low, high = LIMITS["d_model"]
    if spec.embed_dim is not None and not (
        is_int(spec.embed_dim) and low <= spec.embed_dim <= high
    ):
        raise ValueError(f"embed_dim is {spec.embed_dim!r:.80}, it must be from {low} to {high}")
    window, limit = spec.attention_window, LIMITS["max_context"][1]
    if window is not None and not (is_int(window) and 1 <= window <= limit):
        raise ValueError(f"attention_window is {window!r:.80}, it must be from 1 to {limit}")
    _check_activation(spec)
    if spec.positions == "learned":
        if spec.rope_theta != 0 or spec.rope_scaling is not None or spec.rotary_dim is not None:
            raise ValueError("a model with learned positions has no rotary parameters")
        return
    if spec.head_dim % 2:
        raise ValueError(f"head_dim {spec.head_dim} is odd; rotary embedding turns pairs")
    turned = spec.rotary_dim
    if turned is not None and not (
        is_int(turned) and 2 <= turned < spec.head_dim and turned % 2 == 0
    ):
        raise ValueError(
            f"rotary_dim is {turned!r:.80}, it must be even, from 2 to below head_dim "
            f"{spec.head_dim}"
        )
    if not positive(spec.rope_theta, 1e12):
        raise ValueError(f"rope theta is {spec.rope_theta!r:.80}, it must be above 0, at most 1e12")
    check_rope_scaling(spec.rope_scaling, turned or spec.head_dim)
    if (spec.rope_scaling or {}).get("rope_type") == "yarn" and spec.rope_theta <= 1:
        raise ValueError(f"rope theta is {spec.rope_theta!r:.80}, with yarn it must be above 1")


def _check_activation(spec: ModelSpec) -> None:
    if spec.biases and spec.gated:
        raise ValueError("biases are not supported in a gated feed-forward layer")
    if spec.biases and spec.attention_biases:
        raise ValueError("biases are everywhere, so attention_biases must be empty")
    if spec.activation == "relu both" and not spec.gated:
        raise ValueError("activation 'relu both' needs a gated feed-forward layer")
    threshold, fat = spec.activation_threshold, spec.activation == "fatrelu"
    if not (positive(threshold, 1e9) if fat else is_number(threshold) and threshold == 0):
        allowed = "above 0 and at most 1e9" if fat else "0"
        raise ValueError(
            f"activation_threshold is {threshold!r:.80}, of {spec.activation} it must be {allowed}"
        )
