"""What an architecture says of a checkpoint: its spec, and the tensors behind a bundle's."""

from collections.abc import Callable
from dataclasses import dataclass

from hotcold.runtime.model.architectures.hf_config import Config
from hotcold.runtime.model.spec import DType, ModelSpec


@dataclass(frozen=True)
class Source:
    """A checkpoint tensor that a bundle tensor is made of.

    Args:
        name: in the checkpoint.
        shape: it must have.
        rows: those that the bundle has, in its order; None: all of them as they are.
        plus: added to every element of a tensor that the bundle has in float32.
        times: what every element of such a tensor is multiplied by.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[range, ...] | None = None
    plus: float = 0.0
    times: float = 1.0

    @property
    def runs(self) -> tuple[range, ...]:
        """`rows`, all of them spelt out."""
        return (range(self.shape[0]),) if self.rows is None else self.rows


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
            it has, always whole and as they are.
        prefix: before the names of the base model's tensors, which saved alone have none.
    """

    name: str
    title: str
    hf_class: str
    read_spec: Callable[[Config, DType], ModelSpec]
    sources: Callable[[ModelSpec, Config], Sources]
    prefix: str = "model."
