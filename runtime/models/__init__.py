"""Architectures: what a Hugging Face checkpoint of each kind says, in a bundle's terms.

One file an architecture: its config.json as a ModelSpec, and the checkpoint tensors behind every
tensor of a bundle. The Hugging Face reader asks `find` for the one a checkpoint is of. To add one,
write its file and name it in `listing`; what all share is `ModelSpec`'s kinds of layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotcold.runtime.model import DType, ModelSpec

if TYPE_CHECKING:
    from hotcold.runtime.formats.hf_config import Config


@dataclass(frozen=True)
class Source:
    """A checkpoint tensor that a bundle tensor is made of.

    Args:
        name: in the checkpoint.
        shape: it must have.
        skip: rows at its top that the bundle leaves out.
    """

    name: str
    shape: tuple[int, ...]
    skip: int = 0


@dataclass(frozen=True)
class Fill:
    """What a bundle holds where a checkpoint implies a constant.

    Args:
        value: of every element.
        size: elements.
    """

    value: float
    size: int


Sources = dict[str, tuple[Source, ...] | Fill]


@dataclass(frozen=True)
class Architecture:
    """One kind of checkpoint.

    Args:
        name: for ModelSpec.architecture.
        title: for people.
        hf_class: what config.json lists under `architectures`.
        read_spec: (config, dtype of the bundle's matrices) -> spec; raises CheckpointError.
        sources: (spec, config) -> checkpoint tensors, stacked by rows, behind each tensor of a
            bundle. A layer's neurons appear as `layers.{i}.gate`, `.up`, `.down` and `.bias`, those
            it has.
    """

    name: str
    title: str
    hf_class: str
    read_spec: Callable[["Config", DType], ModelSpec]
    sources: Callable[[ModelSpec, "Config"], Sources]


def listing() -> tuple[Architecture, ...]:
    """All of them."""
    # Imported here: they read configs with hotcold.runtime.formats, which imports this package.
    from hotcold.runtime.models import llama, opt

    return llama.ARCHITECTURE, opt.ARCHITECTURE


def find(config: "Config") -> Architecture:
    """The architecture of a checkpoint: by `architectures`, else by `model_type`.

    Raises:
        CheckpointError: none of ours.
    """
    names, kind = config.data.get("architectures"), config.data.get("model_type")
    for one in listing():
        if names == [one.hf_class] or (names is None and kind == one.name):
            return one
    said = f"model type {kind!r}" if names is None else names
    raise config.refuse(
        f"architecture {said!r:.120} is not supported; supported: "
        f"{', '.join(one.hf_class for one in listing())}"
    )
