"""The conformance suite for authors of predictors, to be called from their own pytest.

    from hotcold.policies import check_predictor
    def test_mine():
        check_predictor(Mine())

Prepares the predictor for small random models (or for one of the author's), and raises an
AssertionError that says which case failed and why. It does not judge how good a predictor is: that
is `hotcold evaluate MODEL --predictor mine.py:Mine --predictor all`.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import HotcoldError
from hotcold.policies.suites.check import attempt, require, small_spec, subject_of
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.predictors.predictor import (
    ModelView,
    NativeLayer,
    PredictorLayer,
    SignLayer,
    WindowLayer,
    native_layers,
    predicts,
)
from hotcold.runtime.predictors.preparing import allowed_difference
from hotcold.runtime.profiles.profile import ActivationProfile
from hotcold.runtime.weights.weights import WeightStore

F32 = NDArray[np.float32]
TOKENS, NOUN = 7, "predictor"


def check_predictor(predictor: Any, model: str | Path | None = None) -> None:
    """Try a predictor on small random models, or on a model, given by the folder it was made for.

    It is an object, a class that needs no settings, or a name as for --predictor.

    Raises:
        AssertionError: the case that failed, and why.
    """
    subject: Any = subject_of("predictor", predictor)
    with _cases(model) as cases:
        for case, (view, profile) in cases.items():
            _check_case(subject, case, view, profile)
        case, (view, profile) = next(iter(cases.items()))
        _check_unprepared(subject, view.spec)
        _check_profiles(subject, case, view)
        _check_again(subject, cases)


def _check_case(
    subject: Any, case: str, view: ModelView, profile: ActivationProfile | None
) -> None:
    mine = _prepared(subject, view, profile, case)
    if not predicts(mine):
        return
    layers = _layers(mine, view.spec, case)
    twin = _layers(_prepared(subject, view, profile, f"{case}, a copy"), view.spec, case)
    require(_digest(layers) == _digest(twin), f"{case}: a copy prepared otherwise; seed every draw")
    x_BD = np.random.default_rng(3).standard_normal((TOKENS, view.spec.d_model)).astype(np.float32)
    found = [_scores(mine, x_BD, index, view.spec, case) for index in range(len(layers))]
    for index, scores_BN in enumerate(found):
        where = f"{case}, layer {index}"
        again_BN = _scores(mine, x_BD, index, view.spec, case)
        require(np.array_equal(scores_BN, again_BN), f"{where}: two calls gave different scores")
        few_BN = _scores(mine, x_BD[:2].copy(), index, view.spec, case)
        require(
            np.allclose(few_BN, scores_BN[:2], atol=allowed_difference(scores_BN)),
            f"{where}: a token's scores depend on the tokens after it",
        )
        _check_native(layers[index], scores_BN, x_BD, view, index, where)
    _check_density(mine, len(layers), case)


def _check_density(mine: Any, n_layers: int, case: str) -> None:
    density: Any = getattr(mine, "density", None)
    for index in range(n_layers) if callable(density) else ():
        share = attempt(partial(density, index), f"{case}, density({index})", NOUN)
        fine = share is None or (isinstance(share, float | int) and 0 <= share <= 1)
        require(fine, f"{case}: density({index}) is {share!r}, must be within 0 and 1, or None")


def _check_native(
    layer: NativeLayer, scores_BN: F32, x_BD: F32, view: ModelView, index: int, where: str
) -> None:
    native_BN = native_scores(layer, x_BD, view, index)
    allowed = allowed_difference(scores_BN)
    worst = float(np.abs(native_BN - scores_BN).max())
    require(
        worst <= allowed,
        f"{where}: the native form's scores differ from scores() by {worst:.3g}, more than "
        f"rounding ({allowed:.3g}); they must be the same computation",
    )
    threshold = np.float32(layer.threshold)
    clear_BN = np.abs(scores_BN - threshold) > allowed
    wrong = int(((native_BN >= threshold) != (scores_BN >= threshold))[clear_BN].sum())
    require(not wrong, f"{where}: {wrong} neurons are proposed by one form and not by the other")


def native_scores(layer: NativeLayer, x_BD: F32, view: ModelView, index: int) -> F32:
    """Scores [B, N] as the kernels compute them; a window's from gates, token by token."""
    from hotcold.native.bindings import kernels  # authors import this file without compiled code

    if isinstance(layer, SignLayer):
        arrays = (layer.signs_NW, layer.scale_N, x_BD)
        bits, bias, column = layer.input_bits, layer.bias_N, layer.column_D
        return kernels.sign(*arrays, input_bits=bits, bias_N=bias, column_D=column)
    if isinstance(layer, PredictorLayer) and layer.fc1 is not None and layer.fc2 is not None:
        hidden_BH = kernels.gemv(layer.fc1, x_BD, relu=layer.relu)
        return kernels.gemv(layer.fc2, hidden_BH, bias_R=layer.bias_N)
    gates_BN = kernels.gemv(view.gate_rows(index), x_BD, bias_R=view.gate_biases(index))
    if isinstance(layer, WindowLayer):
        return layer.scores_of(view.spec.fires(gates_BN))
    return gates_BN


def _check_unprepared(subject: Any, spec: ModelSpec) -> None:
    fresh = copy.deepcopy(subject)
    try:
        fresh.scores(np.ones((1, spec.d_model), np.float32), 0)
    except Exception:  # noqa: BLE001 - whatever says so
        return
    raise AssertionError("scores before prepare() returned something; it must raise")


def _check_profiles(subject: Any, case: str, view: ModelView) -> None:
    """Without a profile it works or says that it needs one; another model's profile is refused."""
    plain = copy.deepcopy(subject)
    alone = None
    try:
        plain.prepare(view, None)
        alone = _digest(_layers(plain, view.spec, f"{case}, no profile")) if predicts(plain) else []
    except HotcoldError as error:
        require("profile" in str(error), f"{case}, no profile: refused without saying why: {error}")
    except Exception as error:  # noqa: BLE001 - the author's
        text = f"{type(error).__name__}: {error}"
        raise AssertionError(
            f"{case}, no profile: the predictor raised {text}; do without, or raise a ConfigError"
        ) from error
    layers, neurons = view.spec.n_layers, view.spec.n_neurons
    foreign = ActivationProfile(np.ones((layers + 1, neurons + 5), np.int64), 9)
    other = copy.deepcopy(subject)
    try:
        other.prepare(view, foreign)
        used = []
        if predicts(other):
            used = _digest(_layers(other, view.spec, "another model's profile"))
    except HotcoldError:
        return
    except Exception as error:  # noqa: BLE001 - the author's
        text = f"{type(error).__name__}: {error}"
        raise AssertionError(
            f"another model's profile: the predictor raised {text}; call "
            "profile.check_fits(model.spec) first"
        ) from error
    require(
        used == alone,
        "another model's profile was used and not refused; call profile.check_fits(model.spec)",
    )


def _check_again(subject: Any, cases: dict[str, tuple[ModelView, Any]]) -> None:
    mine = copy.deepcopy(subject)
    for case, (view, profile) in cases.items():
        name = f"{case}, prepared after other models"
        attempt(partial(mine.prepare, view, profile), name, NOUN)
        if predicts(mine):
            fresh = _layers(_prepared(subject, view, profile, case), view.spec, case)
            same = _digest(_layers(mine, view.spec, name)) == _digest(fresh)
            require(same, f"{name}: something of the model before is left")


def _prepared(subject: Any, view: ModelView, profile: ActivationProfile | None, case: str) -> Any:
    """A prepared copy: predictors are sent unprepared and are prepared where they are used."""
    mine = copy.deepcopy(subject)
    attempt(lambda: mine.prepare(view, profile), f"{case}, prepare", NOUN)
    return mine


def _layers(mine: Any, spec: ModelSpec, case: str) -> tuple[NativeLayer, ...]:
    try:
        layers: tuple[NativeLayer, ...] = attempt(lambda: native_layers(mine, spec), case, NOUN)
    except AssertionError as error:
        cause = error.__cause__
        if not isinstance(cause, HotcoldError):
            raise
        raise AssertionError(f"{case}: {cause}") from error
    return layers


def _scores(mine: Any, x_BD: F32, index: int, spec: ModelSpec, case: str) -> F32:
    before, where = x_BD.copy(), f"{case}, scores of layer {index}"
    scores: Any = attempt(lambda: mine.scores(x_BD, index), where, NOUN)
    require(np.array_equal(before, x_BD), f"{where}: the predictor changed its input")
    kind = type(scores).__name__
    require(isinstance(scores, np.ndarray), f"{where}: returned type {kind}, must be a numpy array")
    shape = (x_BD.shape[0], spec.n_neurons)
    require(
        scores.shape == shape and scores.dtype == np.float32,
        f"{where}: returned {scores.dtype}{list(scores.shape)}, must be float32{list(shape)}",
    )
    bad = int(scores.size - np.count_nonzero(np.isfinite(scores)))
    require(not bad, f"{where}: {bad} scores are not finite")
    found: F32 = scores.copy()
    return found


def _digest(layers: tuple[NativeLayer, ...]) -> list[Any]:
    found: list[Any] = []
    for layer in layers:
        arrays = {
            name: None if part is None else (str(part.dtype), part.shape, part.tobytes())
            for name, part in layer.arrays.items()
        }
        numbers = {k: v for k, v in vars(layer).items() if isinstance(v, int | float | str)}
        found.append((layer.form, arrays, numbers))
    return found


@dataclass(frozen=True)
class _Weights:
    spec: ModelSpec

    def _draw(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.spec.n_neurons, self.spec.d_model, *key])

    def neuron_rows(self, layer: int, part: Literal["gate", "up", "down"]) -> F32:
        shape = (self.spec.n_neurons, self.spec.d_model)
        rows_ND = self._draw(layer, len(part)).standard_normal(shape)
        found: F32 = (rows_ND / np.sqrt(self.spec.d_model)).astype(np.float32)
        return found

    def neuron_biases(self, layer: int) -> F32:
        scale = 0.3 if self.spec.biases else 0.0
        return (scale * self._draw(layer, 9).standard_normal(self.spec.n_neurons)).astype(
            np.float32
        )

    def float32(self, name: str) -> F32:
        draw = self._draw(len(name)).standard_normal(self.spec.d_model)
        found: F32 = (0.2 * draw + (0.0 if name.endswith("bias") else 1.0)).astype(np.float32)
        return found


def _random_cases() -> dict[str, tuple[ModelView, ActivationProfile | None]]:
    usual = small_spec(3, 96, "float16")
    specs = {
        "an ordinary model": usual,
        "float32, a width that is no multiple of 8": replace(usual, d_model=35, dtype="float32"),
        "a wider model": replace(usual, d_model=192, n_neurons=130, dtype="bfloat16"),
        "plain ReLU layers with layer norms and biases": replace(
            usual, architecture="opt", norm="layer", gated=False, positions="learned", biases=True
        ),
        "one layer of one neuron": replace(usual, n_layers=1, n_neurons=1),
    }
    cases: dict[str, tuple[ModelView, ActivationProfile | None]] = {}
    for case, spec in specs.items():
        shape = (spec.n_layers, spec.n_neurons)
        counts_LN = np.random.default_rng(5).geometric(0.02, shape).clip(0, 400)
        profile = ActivationProfile(counts_LN.astype(np.int64), 400)
        cases[case] = (ModelView(spec, _Weights(spec)), profile)
    never = ActivationProfile(np.zeros((usual.n_layers, usual.n_neurons), np.int64), 400)
    cases["no neuron ever fires"] = (ModelView(usual, _Weights(usual)), never)
    return cases


@contextmanager
def _cases(
    model: str | Path | None,
) -> Iterator[dict[str, tuple[ModelView, ActivationProfile | None]]]:
    if model is None:
        yield _random_cases()
        return
    bundle = resolve_model(Path(model))
    profile = None if bundle.profile_path is None else ActivationProfile.load(bundle.profile_path)
    store = WeightStore.open(bundle)
    try:
        yield {f"model {bundle.path}": (ModelView.of(bundle, store), profile)}
    finally:
        store.close()
