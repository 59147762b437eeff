"""Predictors: which neurons of a layer will fire, guessed before the layer runs.

A predictor turns a layer's input into one score a neuron; neurons whose score reaches the layer's
threshold are proposed, and the gate row of a proposed neuron decides whether it fires (its up row
and down column are read only then). This file has what all kinds share: the protocol for plug-ins,
the arrays that the native loop runs (PredictorLayer; two more forms are in predictor_forms.py), the
weights that a predictor may read (ModelView), and the choice of a kind. The kinds themselves are in
policies/predictor, their file format in runtime/predictors/predictor_file.py, their quality in
runtime/engine/audit.py. Training is in runtime/offline/training.

Axes: B tokens, D d_model, H predictor width, N neurons of a layer, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from hotcold.native.errors import ConfigError, PolicyError
from hotcold.runtime.model.block import input_norm
from hotcold.runtime.model.checkpoints.bundle import Bundle
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.plugins.blame import blaming_predictor
from hotcold.runtime.predictors.predictor_forms import (
    F32,
    INPUTS,
    InputKind,
    NativeForm,
    SignLayer,
    WindowLayer,
    wrong_array,
)
from hotcold.runtime.profiles.profile import ActivationProfile

F64 = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float32] | npt.NDArray[np.float16]

__all__ = [
    "ABOVE_ZERO",
    "F32",
    "F64",
    "INPUTS",
    "InputKind",
    "Matrix",
    "ModelView",
    "NativeLayer",
    "NeuronSource",
    "Predictor",
    "PredictorLayer",
    "SignLayer",
    "WindowLayer",
    "expected_density_L",
    "native_layers",
    "predictor_parameters",
    "predicts",
]

# A score of at least this is a score above 0: the exact predictor's threshold.
ABOVE_ZERO = float(np.nextafter(np.float32(0), np.float32(1)))


@dataclass(frozen=True, eq=False)
class PredictorLayer(NativeForm):
    """One layer's predictor as the native loop runs it: scores = fc2 . act(fc1 . x) + bias.

    Args:
        fc1: [H, D], float32 or float16, C-contiguous; None: the scores are the gate rows' own
            pre-activations, computed from the weight store.
        fc2: [N, H], same dtype as fc1; None exactly when fc1 is.
        bias_N: added to the scores, or None.
        relu: act is relu; otherwise there is none.
        threshold: a neuron is proposed where its score is at least this.
        input: x is the feed-forward input after the norm, or the residual stream before it.
    """

    fc1: Matrix | None
    fc2: Matrix | None
    bias_N: F32 | None
    relu: bool
    threshold: float
    input: InputKind = "normed"

    @property
    def form(self) -> str:
        """Which computation this is, by its name in the kernels."""
        return "gate" if self.fc1 is None else "matrices"

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any] | None]:
        """What the kernels read, by their names for it (native/abi/predict.h)."""
        return {"fc1": self.fc1, "fc2": self.fc2, "bias_N": self.bias_N}

    def scores(self, x_BD: F32) -> F32:
        """The readable reference of the native form, [B, N] in float32; not for gate rows."""
        if self.fc1 is None or self.fc2 is None:
            raise ValueError("this layer's scores are gate pre-activations; use the predictor's")
        hidden_BH = np.asarray(x_BD, dtype=np.float32) @ self.fc1.astype(np.float32).T
        if self.relu:
            hidden_BH = np.maximum(hidden_BH, np.float32(0))
        scores_BN: F32 = hidden_BH @ self.fc2.astype(np.float32).T
        if self.bias_N is not None:
            scores_BN += self.bias_N
        return scores_BN

    def complaint(self, spec: ModelSpec) -> str:
        """What does not fit a model; empty when everything does."""
        checks = {
            "fc1 and fc2 must both be arrays, or both None (gate rows)": (
                (self.fc1 is None) == (self.fc2 is None)
            ),
            "gate rows need input 'normed' and no bias": (
                self.fc1 is not None or (self.input == "normed" and self.bias_N is None)
            ),
        }
        wrong = next((text for text, fine in checks.items() if not fine), "")
        if wrong or self.fc1 is None:
            return wrong
        width = self.fc1.shape[0] if isinstance(self.fc1, np.ndarray) and self.fc1.ndim else 0
        dtype = str(getattr(self.fc1, "dtype", None))
        return wrong_array(
            ("fc1", self.fc1, (max(1, width), spec.d_model), ("float32", "float16")),
            ("fc2", self.fc2, (spec.n_neurons, width), (dtype,)),
            ("bias_N", self.bias_N, (spec.n_neurons,), ("float32",)),
        )


NativeLayer = PredictorLayer | SignLayer | WindowLayer


class NeuronSource(Protocol):
    """What a ModelView needs of the weight store."""

    def neuron_rows(self, layer: int, part: Literal["gate", "up", "down"]) -> F32:
        """[N, D] float32 copy of one part of every neuron of a layer."""
        ...

    def neuron_biases(self, layer: int) -> F32:
        """[N] float32 copy of what is added to each gate row's product; zeros without biases."""
        ...

    def float32(self, name: str) -> npt.NDArray[np.float32]:
        """Float32 copy of a tensor of the bundle."""
        ...


@dataclass(frozen=True)
class ModelView:
    """The read-only part of a model that predictors see."""

    spec: ModelSpec
    store: NeuronSource
    predictors_path: Path | None = None

    @classmethod
    def of(cls, bundle: Bundle, store: NeuronSource) -> "ModelView":
        """View a bundle through its open weight store."""
        return cls(bundle.spec, store, bundle.predictors_path)

    def gate_rows(self, layer: int) -> F32:
        """Gate rows [N, D] of a layer (rows of fc1 without gating), a float32 copy."""
        return self.store.neuron_rows(layer, "gate")

    def gate_biases(self, layer: int) -> F32:
        """What is added to the gate rows' products, [N]: pre-activations are gate . x + bias."""
        return self.store.neuron_biases(layer)

    def norm_weight(self, layer: int) -> F32:
        """Weight [D] of the norm that a layer's feed-forward input comes out of."""
        return self.store.float32(self._norm(layer))

    def norm_bias(self, layer: int) -> F32:
        """Bias [D] of that norm; zeros where it has none (RMS norm)."""
        if self.spec.norm == "rms":
            return np.zeros(self.spec.d_model, np.float32)
        return self.store.float32(f"{self._norm(layer)}_bias")

    def _norm(self, layer: int) -> str:
        return f"layers.{layer}.{input_norm(self.spec.block)}"


class Predictor(Protocol):
    """What a predictor plug-in implements; its dataclass fields are its settings.

    It is made and sent around unprepared; the actor that needs it calls `prepare`. Three optional
    members: `predicts` (False: propose every neuron and leave the decision to the executors),
    `density(layer) -> float | None` (the share of neurons it expects to propose) and `lookahead`
    (how many layers early it was trained to predict; a schedule that does otherwise is refused).
    """

    def prepare(self, model: ModelView, profile: ActivationProfile | None) -> None:
        """Read or compute whatever `scores` and `native` need; called once, before both."""
        ...

    def scores(self, x_BD: F32, layer: int) -> F32:
        """Scores [B, N] of a layer, float32; x is what native(layer).input names."""
        ...

    def native(self, layer: int) -> "NativeLayer":
        """The same computation as arrays for the native loop."""
        ...


def predicts(predictor: Predictor, blame: str = "") -> bool:
    """False where the predictor stands by: executors then go gate-first over all their neurons.

    Raises:
        PolicyError: it raised, naming the line.
    """
    with blaming_predictor(blame or type(predictor).__name__, predictor):
        return bool(getattr(predictor, "predicts", True))


def trained_lookahead(predictor: Predictor, blame: str = "") -> int:
    """How many layers early a predictor was trained to predict.

    Raises:
        PolicyError: it says something else than a number of layers.
    """
    blame = blame or type(predictor).__name__
    with blaming_predictor(blame, predictor):
        ahead = getattr(predictor, "lookahead", 0)
    if not isinstance(ahead, int) or ahead < 0:
        raise PolicyError(
            f"predictor '{blame}': lookahead is {ahead!r:.80}, must be a whole "
            "number of layers, 0 or more"
        )
    return ahead


def check_lookahead(trained: int, lookahead_L: Sequence[int], schedule: str) -> None:
    """Refuse a schedule that feeds early predictors the input of another layer.

    Predictors trained on their own layer's input may be run early: that is a study of how slowly
    the residual stream changes. The other way round nothing can be learned from.

    Args:
        trained: how many layers early the predictors were trained to predict.
        lookahead_L: by layer, what the schedule does; the first layers have less to look back to.
        schedule: its name.

    Raises:
        ConfigError: naming the layer and the schedule to use.
    """
    for layer, found in enumerate(lookahead_L if trained else ()):
        if found != min(trained, layer):
            raise ConfigError(
                f"the predictors were trained to predict {trained} layer(s) early, schedule "
                f"'{schedule}' predicts layer {layer} {found} early; use --schedule lookahead "
                f"--set schedule.depth={trained}"
            )


def native_layers(
    predictor: Predictor, spec: ModelSpec, blame: str = ""
) -> tuple[NativeLayer, ...]:
    """The native form of every layer of a prepared predictor, checked.

    Raises:
        PolicyError: naming the predictor, the layer and what is wrong with it.
    """
    blame = blame or type(predictor).__name__
    layers = []
    for index in range(spec.n_layers):
        with blaming_predictor(blame, predictor):
            layer = predictor.native(index)
        try:
            complaint = _complaint(layer, spec)
        except (TypeError, ValueError, AttributeError) as error:
            complaint = f"a field of it cannot be used ({error})"
        if complaint:
            raise PolicyError(f"predictor '{blame}', native({index}): {complaint}")
        layers.append(layer)
    return tuple(layers)


def _complaint(layer: object, spec: ModelSpec) -> str:
    """What is wrong with a layer a plug-in returned; empty when nothing is."""
    if not isinstance(layer, PredictorLayer | SignLayer | WindowLayer):
        return f"returned {type(layer).__name__}, not a PredictorLayer, SignLayer or WindowLayer"
    if not isinstance(layer.threshold, float | int | np.floating) or not np.isfinite(
        layer.threshold
    ):
        return f"threshold is {layer.threshold!r:.80}, must be a finite number"
    if layer.input not in INPUTS:
        return f"input is {layer.input!r}, must be 'normed' or 'residual'"
    return layer.complaint(spec)


def predictor_parameters(layers: Sequence[NativeLayer]) -> int:
    """Weights the predictor adds to the model."""
    return sum(layer.parameters for layer in layers)


def expected_density_L(
    predictor: Predictor, profile: ActivationProfile | None, spec: ModelSpec, blame: str = ""
) -> tuple[float, ...]:
    """Share of neurons proposed for a token, by layer: what the placement problem reckons with.

    The predictor's own estimate where it has one, else the share that fires by the profile, else 1.

    Raises:
        PolicyError: it raised, naming the line, or an estimate is no share.
    """
    fired_L = [1.0] * spec.n_layers if profile is None else list(1.0 - profile.sparsity_L)
    blame = blame or type(predictor).__name__
    with blaming_predictor(blame, predictor):
        estimate = getattr(predictor, "density", lambda layer: None)
        own_L = [estimate(layer) for layer in range(spec.n_layers)]
    for layer, own in enumerate(own_L):
        if own is not None and not (isinstance(own, float | int | np.number) and 0 <= own <= 1):
            raise PolicyError(
                f"predictor '{blame}', density({layer}) is {own!r:.80}, must be within 0 and 1, or "
                "None"
            )
    return tuple(
        float(fired if own is None else own) for own, fired in zip(own_L, fired_L, strict=True)
    )
