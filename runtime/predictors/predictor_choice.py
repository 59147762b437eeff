"""What `--predictor auto` means: the kind that reads the fewest weight bytes per token.

Decoding is bound by the bytes it reads, so kinds are compared by those. `exact` reads every gate
row, and the up row and down column of what fires. `learned` reads its own matrices and then whole
records of what it proposes. Learned, then gate-first, which is what the executors do, reads the
gate rows of what is proposed and the rest only where it fires. Without gating there is no up row.
Called once per deployment.

Bytes are compared and not tokens/s because the choice must be the same on every machine and in
every run; otherwise tokens would differ from one launch to the next. Measured beside it on the
embedded model (two cores, 24.4 GB/s, 2026-11-22, six launches of each in turn): exact reads 7.9 MB
of feed-forward weights a token, learned then gate-first 5.7; native 1114 and 1100 tokens/s, medians
with a spread of 5 %: the two dependent products of a predictor cost what the bytes save; transport
ray 12.9 and 19.7. The larger the layers, the more the bytes matter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotcold.native.errors import PolicyError
from hotcold.runtime.model.checkpoints.bundle import Bundle
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.plan.work import ModelWork
from hotcold.runtime.plugins import registry
from hotcold.runtime.predictors.predictor import Predictor
from hotcold.runtime.predictors.predictor_file import predictor_costs
from hotcold.runtime.profiles.profile import ActivationProfile


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
        read = ModelWork(spec).neurons.bytes
        n, fired = spec.n_neurons, sum(fired_L)
        exact = read.at(proposed=n * spec.n_layers, fired=n * fired)
        if predictor_bytes is None or density_L is None:
            return cls(exact)
        proposed = sum(density_L)
        return cls(
            exact,
            predictor_bytes + read.at(proposed=n * proposed, fired=n * proposed),
            predictor_bytes + read.at(proposed=n * proposed, fired=n * min(fired, proposed)),
        )

    def to_json(self) -> dict[str, float | None]:
        """The three figures under their public names, in bytes."""
        return {
            "exact": self.exact,
            "learned": self.learned,
            "learned_gate_first": self.gate_first,
        }

    def __str__(self) -> str:
        parts = [f"exact {self.exact / 1e6:.2f} MB"]
        if self.learned is not None and self.gate_first is not None:
            parts.append(f"learned {self.learned / 1e6:.2f} MB")
            parts.append(f"learned then gate-first {self.gate_first / 1e6:.2f} MB")
        return ", ".join(parts)


@dataclass(frozen=True)
class AutoChoice:
    """What `auto` stands for with a bundle.

    Args:
        kind: "exact" or "learned".
        why: in words.
        bytes: what was compared; None where the profile or the predictors' density is not known.
    """

    kind: str
    why: str
    bytes: FeedForwardBytes | None = None


def choose_auto(bundle: Bundle, profile: ActivationProfile | None) -> AutoChoice:
    """The kind `auto` stands for with a bundle, and why.

    Raises:
        CheckpointError: the bundle has predictors that cannot be read.
    """
    fired_L = None if profile is None else [float(share) for share in 1.0 - profile.sparsity_L]
    if bundle.predictors_path is None:
        exact = None if fired_L is None else FeedForwardBytes.of(bundle.spec, fired_L)
        return AutoChoice("exact", "the model has no trained predictors", exact)
    own_bytes, density_L = predictor_costs(bundle.predictors_path, bundle.spec)
    known_L = [density for density in density_L if density is not None]
    if fired_L is None or len(known_L) < len(density_L):
        why = "the model has trained predictors; their density is not known"
        return AutoChoice("learned", why)
    cost = FeedForwardBytes.of(bundle.spec, fired_L, own_bytes, known_L)
    assert cost.gate_first is not None  # noqa: S101 - both were given
    kind = "learned" if cost.gate_first < cost.exact else "exact"
    return AutoChoice(kind, f"feed-forward weights a token: {cost}", cost)


def choose_predictor(
    name: object,
    bundle: Bundle,
    settings: Mapping[str, str | int | float | bool | None] | None = None,
) -> Predictor:
    """Make an unprepared predictor from what the user asked for.

    Args:
        name: "auto" (see predictor_choice.py), the name of a kind, a
            predictors file or a folder that holds predictors.safetensors, "file.py:Class",
            "package.module:Class", or a predictor object, which is returned as it is.
        bundle: the model it is for.
        settings: values for the kind's dataclass fields, as typed on the command line or typed
            already; an object takes none.

    Raises:
        PolicyError: no such kind, or the object is not a predictor.
        ConfigError: a setting the kind does not have.
    """
    settings = dict(settings or {})
    if not isinstance(name, str | Path):
        return _checked_object(registry.instantiate(name, settings))
    kind = str(name)
    installed = [entry.name for entry in registry.listing("predictor")]
    if kind == "auto":
        path = bundle.profile_path
        kind = choose_auto(bundle, None if path is None else ActivationProfile.load(path)).kind
    elif kind not in installed and (kind.endswith(".safetensors") or Path(kind).is_dir()):
        kind, settings = "learned", {**settings, "path": str(Path(kind).resolve())}
    found = registry.find("predictor", kind)
    return _checked_object(registry.instantiate(found, settings, kind, "predictor"), kind)


def _checked_object(candidate: object, name: str = "") -> Predictor:
    blame = name or type(candidate).__name__
    for method in ("prepare", "scores", "native"):
        if not callable(getattr(candidate, method, None)):
            raise PolicyError(
                f"predictor '{blame}' has no method {method}(...); a predictor needs "
                "prepare(model, profile), scores(x_BD, layer) and native(layer)"
            )
    return candidate  # type: ignore[return-value]
