"""Making a predictor ready for a model: in its native form, its faults blamed on its file.

Called by the driver before anything starts, and by the actor that predicts. What tokens come from
is the native form; `scores` is what the author reads and tests. The driver compares the two for
plug-ins (ours are compared in tests), since a difference would go unnoticed: nothing else calls
`scores`.
"""

import numpy as np

from hotcold.native.errors import PolicyError
from hotcold.runtime.plugins.blame import blaming_predictor, is_own
from hotcold.runtime.predictors.predictor import (
    F32,
    ModelView,
    NativeLayer,
    Predictor,
    PredictorLayer,
    SignLayer,
    WindowLayer,
    native_layers,
)
from hotcold.runtime.profiles.profile import ActivationProfile

TOKENS = 3  # compared
MOST_LAYERS = 4  # compared, spread over the model: one of a large model is some 100 MB of scores
TOLERANCE = 2e-3  # of the scores' size: float16 matrices, sums in another order


def prepare_predictor(
    predictor: Predictor,
    name: object,
    model: ModelView,
    profile: ActivationProfile | None,
    compare: bool = False,
) -> tuple[NativeLayer, ...]:
    """Prepare a predictor and take the native form of every layer.

    Args:
        predictor: unprepared.
        name: as the user gave it.
        model: what it may look at.
        profile: of the model, or None.
        compare: whether `scores` of a plug-in must agree with its native form.

    Raises:
        PolicyError: it raised, naming its file and line; a layer does not fit the model, or
            `scores` contradicts it.
        HotcoldError: what a predictor of hotcold's own refuses.
    """
    shown = str(name) if isinstance(name, str) else type(predictor).__name__
    with blaming_predictor(shown, predictor):
        predictor.prepare(model, profile)
    layers = native_layers(predictor, model.spec, shown)
    if compare and not is_own(predictor):
        last = len(layers) - 1
        for index in sorted({round(i * last / (MOST_LAYERS - 1)) for i in range(MOST_LAYERS)}):
            _compare(predictor, shown, index, layers[index], model)
    return layers


def _compare(
    predictor: Predictor, name: str, index: int, layer: NativeLayer, model: ModelView
) -> None:
    """Refuse a layer whose scores are not those of its native form."""
    spec = model.spec
    x_BD = np.random.default_rng(index).standard_normal((TOKENS, spec.d_model)).astype(np.float32)
    with blaming_predictor(name, predictor):
        found_BN = predictor.scores(x_BD.copy(), index)
    where = f"predictor '{name}', scores of layer {index}"
    shape = (TOKENS, spec.n_neurons)
    if not isinstance(found_BN, np.ndarray) or found_BN.shape != shape:
        what = getattr(found_BN, "shape", type(found_BN).__name__)
        raise PolicyError(f"{where}: returned {what}, must be an array of shape {list(shape)}")
    native_BN = reference_scores(layer, x_BD, model, index)
    difference_BN = np.abs(found_BN.astype(np.float32) - native_BN)
    allowed = allowed_difference(native_BN)
    if not difference_BN.max() <= allowed:  # NaN is no agreement
        token, neuron = np.unravel_index(int(np.argmax(difference_BN)), shape)
        raise PolicyError(
            f"{where}: neuron {neuron} scores {found_BN[token, neuron]:.4g}, by native({index}) "
            f"{native_BN[token, neuron]:.4g}; they differ by more than rounding ({allowed:.2g}) "
            "and must be the same computation: tokens come from native"
        )


def reference_scores(layer: NativeLayer, x_BD: F32, model: ModelView, index: int) -> F32:
    """Scores [B, N] of a native form, computed plainly; a window's token by token."""
    if isinstance(layer, SignLayer) or (
        isinstance(layer, PredictorLayer) and layer.fc1 is not None
    ):
        return layer.scores(x_BD)
    gates_BN: F32 = x_BD @ model.gate_rows(index).T + model.gate_biases(index)
    if isinstance(layer, WindowLayer):
        return layer.scores_of(model.spec.fires(gates_BN))
    return gates_BN


def allowed_difference(scores_BN: F32) -> float:
    """How far scores of the same computation may lie apart."""
    return TOLERANCE * (1e-3 + float(np.abs(scores_BN).max()))
