"""What `--predictor auto` means: the kind that reads the fewest weight bytes a token.

Decode is bound by the bytes it reads, so kinds are compared by those: `exact` reads every gate row
and the up row and down column of what fires; `learned` reads its own matrices and then whole
records of what it proposes; learned and then gate-first, which is what the executors do, reads the
gate row of what is proposed and the rest only where it fires. Without gating there is no up row.
Called once a deployment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotcold.runtime.formats.predictors import predictor_costs
from hotcold.runtime.model import ModelSpec
from hotcold.runtime.profile import ActivationProfile

if TYPE_CHECKING:
    from hotcold.runtime.formats.bundle import Bundle


@dataclass(frozen=True)
class FeedForwardBytes:
    """Feed-forward weight bytes a decoded token reads, all layers together, by way of predicting.

    Args:
        exact: every gate row, then up and down where it fires.
        learned: predictor, then whole records of what it proposes; None without predictors.
        gate_first: predictor, then gate rows of what it proposes, then up and down where it fires.
    """

    exact: float
    learned: float | None = None
    gate_first: float | None = None

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        fired_L: Sequence[float],
        predictor_bytes: float | None = None,
        density_L: Sequence[float] | None = None,
    ) -> "FeedForwardBytes":
        """From shares of neurons: those that fire and those that are proposed, by layer."""
        row = spec.n_neurons * spec.d_model * spec.element_bytes  # of all neurons of a layer
        fired, rest = sum(fired_L), spec.neuron_rows - 1  # rows that only a neuron that fires needs
        exact = row * (spec.n_layers + rest * fired)
        if predictor_bytes is None or density_L is None:
            return cls(exact)
        proposed = sum(density_L)
        return cls(
            exact,
            predictor_bytes + (1 + rest) * row * proposed,
            predictor_bytes + row * (proposed + rest * min(fired, proposed)),
        )

    def __str__(self) -> str:
        parts = [f"exact {self.exact / 1e6:.2f} MB"]
        if self.learned is not None and self.gate_first is not None:
            parts.append(f"learned {self.learned / 1e6:.2f} MB")
            parts.append(f"learned then gate-first {self.gate_first / 1e6:.2f} MB")
        return ", ".join(parts)


def choose_auto(bundle: "Bundle", profile: ActivationProfile | None) -> tuple[str, str]:
    """The kind `auto` stands for with a bundle, and why.

    Raises:
        CheckpointError: the bundle has predictors that cannot be read.
    """
    if bundle.predictors_path is None:
        return "exact", "the model has no trained predictors"
    own_bytes, density_L = predictor_costs(bundle.predictors_path, bundle.spec)
    if profile is None or None in density_L:
        return "learned", "the model has trained predictors; their density is not known"
    fired_L = [float(share) for share in 1.0 - profile.sparsity_L]
    known_L = [density for density in density_L if density is not None]
    cost = FeedForwardBytes.of(bundle.spec, fired_L, own_bytes, known_L)
    assert cost.gate_first is not None  # noqa: S101 - both were given
    kind = "learned" if cost.gate_first < cost.exact else "exact"
    return kind, f"feed-forward weights a token: {cost}"
