"""What is asked for of a planted model, checked, and the Drawing it becomes.

Made by `hotcold plant`, benches and tests; `making.plant` takes it. Draws nothing.
"""

from dataclasses import dataclass

from hotcold.native.abi.names import DTYPES
from hotcold.native.errors import ConfigError
from hotcold.native.options.table import check_all, option
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.offline.plant.drawing import Drawing
from hotcold.runtime.offline.plant.overfire import plan_noise
from hotcold.runtime.offline.plant.shapes import find_shape
from hotcold.runtime.offline.plant.statistics import Statistics, firing_probabilities

LENGTH = 128  # tokens of a calibration sequence
SHAPES_OWN = "the shape's"
CHEAP = 1 << 30  # multiplications of a calibration that nobody notices


@dataclass(frozen=True)
class PlantOptions:
    """What is asked for; None takes the shape's own.

    Args:
        shape: a name of `shapes.SHAPES`. The others are options of `hotcold plant`.

    Raises:
        ConfigError: a value that is not allowed.
    """

    shape: str
    layers: int | None = option(None, "Only the first so many layers.", low=1, shown="all")
    dtype: str = option(
        "float16", "Dtype of the matrices; int8: of the neurons'.", choices=tuple(DTYPES)
    )
    density: float | None = option(None, "Share of neurons that fire.", shown=SHAPES_OWN)
    share80: float | None = option(
        None, "Share of a layer's neurons that hold 80 % of its activations.", shown=SHAPES_OWN
    )
    quiet: float | None = option(
        None, "Share of the layers, from the first, that are nearly silent.", shown=SHAPES_OWN
    )
    quiet_density: float = option(0.005, "Share of a quiet layer's neurons that fire.")
    variation: float = option(
        0.2, "How much the other layers' densities rise from the first to the last."
    )
    recall: float = option(
        1.0, "Share of the fired neurons that the predictor proposes.", low=0.05, high=1.0
    )
    precision: float = option(1.0, "Share of the proposed neurons that fire.", low=0.05, high=1.0)
    hidden: int | None = option(
        None, "Width of the predictor.", low=1, shown="3/16 of the model's width"
    )
    correlation: float = option(
        0.0, "Correlation of a token's driving signal with the one before.", low=0.0, high=0.99
    )
    drift: float = option(
        0.0,
        "Share of the driving signal that turns slowly over thousands of tokens.",
        low=0.0,
        high=0.9,
    )
    seed: int = option(0, "Seed of everything drawn.", low=0, high=(1 << 63) - 1)
    tokens: int | None = option(
        None, "Calibration tokens.", low=128, high=1 << 17, shown="as many as are cheap"
    )

    def __post_init__(self) -> None:
        check_all(self)

    def spec(self) -> ModelSpec:
        """Shapes of the model."""
        return find_shape(self.shape).spec(self.layers, self.dtype)

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
