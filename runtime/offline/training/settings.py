"""What a training aims at, checked; without torch, so that commands can refuse before it loads."""

from dataclasses import dataclass, field

from hotcold.native.errors import ConfigError
from hotcold.runtime.limits import processors
from hotcold.runtime.model.spec import ModelSpec

RECALLS = (0.80, 0.85, 0.90, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995)
WORK = ".training"  # folder of what is unfinished, in the output's


@dataclass(frozen=True)
class FitSettings:
    """How a layer is fitted; the defaults are for the embedded model and hold for larger ones.

    Args:
        epochs: passes over the captured tokens.
        batch: tokens of a step.
        rate: highest learning rate.
        fired_weight: how much a fired neuron counts against a silent one.
        seed: of the initial matrices and the order of tokens.
    """

    epochs: int = 2
    batch: int = 512
    rate: float = 0.01
    fired_weight: float = 3.0
    seed: int = 0


@dataclass(frozen=True)
class TrainSettings:
    """The goals of a training and its limits.

    Args:
        recall: share of fired neurons each layer proposes at least, on text not seen before.
        density: mean share of neurons proposed that is good enough; layers shrink until they just
            meet their part of it.
        perplexity: highest ratio to the dense model's; recall is raised until it is met. 0: off.
        share: largest share of the model's parameters all predictors may have.
        start: share that the first widths tried have together.
        rounds: widths tried a layer at most.
        width: the same width in every layer instead of the sizing rule; 0: the rule.
        lookahead: take the input of so many layers earlier.
        context: tokens of a window.
        workers: layers or batches at a time.
        fit: how one layer is fitted.
    """

    recall: float = 0.95
    density: float = 0.25
    perplexity: float = 1.02
    share: float = 0.10
    start: float = 0.08
    rounds: int = 2
    width: int = 0
    lookahead: int = 0
    context: int = 512
    workers: int = field(default_factory=lambda: processors().at_once)
    fit: FitSettings = FitSettings()

    def __post_init__(self) -> None:
        if not RECALLS[0] <= self.recall <= RECALLS[-1]:
            raise ConfigError(f"recall {self.recall} is outside {RECALLS[0]}..{RECALLS[-1]}")
        for name in ("density", "share", "start"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} is outside (0, 1]")
        if self.perplexity != 0 and not self.perplexity > 1:
            raise ConfigError(f"perplexity ratio {self.perplexity} must be above 1; 0 turns it off")
        if self.rounds < 1 or self.workers < 1 or self.width < 0 or self.lookahead < 0:
            raise ConfigError("rounds and workers must be at least 1, width and lookahead 0")

    def check_fits(self, spec: ModelSpec) -> None:
        """Refuse what a model has no room for.

        Raises:
            ConfigError: a lookahead over all layers, or a width beyond a layer's neurons.
        """
        if self.lookahead >= spec.n_layers:
            raise ConfigError(f"lookahead {self.lookahead} needs more than {spec.n_layers} layers")
        if self.width > spec.n_neurons:
            raise ConfigError(
                f"width {self.width} is more than the {spec.n_neurons} neurons of a layer; lower it"
            )
