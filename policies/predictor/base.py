"""What predictors that are prepared once share: their layers, and how settings are refused."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from hotcold.native.errors import ConfigError
from hotcold.runtime.predictors.predictor import F32

Layer = TypeVar("Layer")


def remembered() -> Any:
    """A field of what prepare() made, which is no setting."""
    return field(default_factory=list, init=False, repr=False, compare=False)


@dataclass(frozen=True)
class Prepared(Generic[Layer]):
    """A predictor whose prepare() makes one native layer for each layer of the model."""

    kind: ClassVar[str]
    _layers: list[Layer] = remembered()
    _density_L: list[float | None] = remembered()

    def check(self, low: float, high: float, *names: str) -> None:
        """Refuse settings outside a range, or that are not numbers.

        Raises:
            ConfigError: naming the setting.
        """
        for name in names:
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(
                    f"predictor {self.kind!r}: {name} is {value}, must be {low:g} to {high:g}"
                )

    def scores(self, x_BD: F32, layer: int) -> F32:
        """Scores [B, N]; at or above the layer's threshold a neuron is proposed."""
        native: Any = self.native(layer)
        scores_BN: F32 = native.scores(x_BD)
        return scores_BN

    def native(self, layer: int) -> Layer:
        """The layer in the form the kernels run.

        Raises:
            ConfigError: it was not prepared.
        """
        if not self._layers:
            raise ConfigError(
                f"predictor {self.kind!r} is not prepared; call prepare(model, profile)"
            )
        return self._layers[layer]

    def density(self, layer: int) -> float | None:
        """Share of neurons it expects to propose; None where it cannot tell."""
        return self._density_L[layer] if self._density_L else None
