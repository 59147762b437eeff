"""What is asked for of a planted model, checked, and the Drawing it becomes.

Made by `hotcold plant`, benches and tests; `making.plant` takes it. Draws nothing.
"""

from dataclasses import dataclass
from typing import cast

from hotcold.native.errors import ConfigError
from hotcold.runtime.model.spec import DTYPE_BYTES, DType, ModelSpec
from hotcold.runtime.offline.plant.drawing import Drawing
from hotcold.runtime.offline.plant.overfire import plan_noise
from hotcold.runtime.offline.plant.shapes import find_shape
from hotcold.runtime.offline.plant.statistics import Statistics, firing_probabilities

LENGTH = 128  # tokens of a calibration sequence
CHEAP = 1 << 30  # multiplications of a calibration that nobody notices


@dataclass(frozen=True)
class PlantOptions:
    """What is asked for; None takes the shape's own.

    Args:
        shape: a name of `shapes.SHAPES`.
        layers: the first so many layers only.
        dtype: of the matrices.
        density, share80, quiet: see Statistics.
        quiet_density, variation: see Statistics.
        recall, precision: of the predictor; 1 and 1 make it exact.
        hidden: width of the predictor; None: 3/16 of the model's.
        correlation: between a token's signal and its predecessor's, in [0, 0.99].
        drift: share of the signal that turns slowly instead of changing by token, in [0, 0.9].
        seed: of everything random.
        tokens: calibration tokens, None: as many as are cheap.
    """

    shape: str
    layers: int | None = None
    dtype: str = "float16"
    density: float | None = None
    share80: float | None = None
    quiet: float | None = None
    quiet_density: float = 0.005
    variation: float = 0.2
    recall: float = 1.0
    precision: float = 1.0
    hidden: int | None = None
    correlation: float = 0.0
    drift: float = 0.0
    seed: int = 0
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise ConfigError(
                f"dtype {self.dtype!r:.80} is unknown; choose one of {', '.join(DTYPE_BYTES)}"
            )
        for name, low, high in (
            ("recall", 0.05, 1.0),
            ("precision", 0.05, 1.0),
            ("correlation", 0.0, 0.99),
            ("drift", 0.0, 0.9),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}, it must be within {low:g} and {high:g}")
        for name, low_int, high_int in (("tokens", 128, 1 << 17), ("seed", 0, (1 << 63) - 1)):
            number = getattr(self, name)
            if number is not None and not low_int <= number <= high_int:
                raise ConfigError(f"{name} is {number}, it must be within {low_int} and {high_int}")

    def spec(self) -> ModelSpec:
        """Shapes of the model."""
        return find_shape(self.shape).spec(self.layers, cast(DType, self.dtype))

    def drawing(self, on_gpu: bool) -> Drawing:
        """Everything the construction needs, checked.

        Raises:
            ConfigError: an option that cannot be, or statistics no layer can have.
        """
        shape, spec = find_shape(self.shape), self.spec()
        statistics = Statistics(
            shape.density if self.density is None else self.density,
            shape.share80 if self.share80 is None else self.share80,
            shape.quiet if self.quiet is None else self.quiet,
            self.quiet_density,
            self.variation,
        )
        for density in set(statistics.density_L(spec.n_layers)):
            p_N = firing_probabilities(spec.n_neurons, density, statistics.share80)
            plan_noise(p_N, self.recall, self.precision)
        cheap = CHEAP // (spec.d_model * spec.n_neurons)
        tokens = self.tokens or min(8192, max(cheap, 2048 if on_gpu else 1024))
        return Drawing(
            spec,
            statistics,
            self._hidden(spec.d_model),
            self.recall,
            self.precision,
            self.correlation,
            self.drift,
            self.seed,
            -(-tokens // LENGTH),
            LENGTH,
        )

    def _hidden(self, d_model: int) -> int:
        hidden = self.hidden
        if hidden is None:
            hidden = max(min(32, d_model), d_model * 3 // 16)
        if not 9 <= hidden <= d_model:
            raise ConfigError(f"hidden is {hidden}, it must be within 9 and {d_model}")
        return hidden

    def describe(self) -> str:
        """What a bundle says about its source."""
        set_ = [f"{k}={v}" for k, v in vars(self).items() if v is not None and k != "shape"]
        return f"planted {self.shape}: {', '.join(set_)}"
