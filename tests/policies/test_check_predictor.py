"""check_predictor: the built-in predictors and the template conform, and each fault is named."""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import TinyLlama, write_llama
from support.predictors import random_layers

from hotcold.native.errors import ConfigError
from hotcold.policies import check_predictor
from hotcold.policies.predictor.frequency import Frequency
from hotcold.policies.predictor.learned import Learned
from hotcold.policies.predictor.sign import Sign
from hotcold.policies.templates.predictor import Mine as Template
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.plugins.registry import BUILT_IN
from hotcold.runtime.predictors.predictor import PredictorLayer
from hotcold.runtime.predictors.predictor_file import FILE_NAME, save_predictors


@pytest.mark.parametrize("name", sorted(set(BUILT_IN["predictor"]) - {"learned"}))
def test_built_in_predictors_conform(name: str) -> None:
    check_predictor(name)


def test_settings_and_standing_by_conform() -> None:
    from hotcold.policies.predictor.exact import Exact

    check_predictor(Exact(by="executors"))
    check_predictor(Sign(input_bits=1, margin=0.5))
    check_predictor(Frequency(share=0.3))


def test_the_template_conforms(tmp_path: Path) -> None:
    from hotcold.actors.cli.commands.policies import template_text

    file = tmp_path / "mine.py"
    file.write_text(template_text("predictor"))
    check_predictor(f"{file}:Mine")


def test_a_trained_predictor_is_tried_on_its_own_model(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ordinary model, prepare: .* bundle has none"):
        check_predictor("learned")
    write_llama(tmp_path / "model", TinyLlama(dtype="float16"))
    spec = resolve_model(tmp_path / "model").spec
    save_predictors(tmp_path / FILE_NAME, random_layers(spec, dtype="float16"))
    check_predictor(Learned(path=str(tmp_path)), tmp_path / "model")


class Spoilt(Template):
    """A good predictor that the cases below spoil, each in one way."""


class WrongShape(Spoilt):
    def scores(self, x_BD: Any, layer: int) -> Any:
        return super().scores(x_BD, layer)[:, 1:]


class Doubles(Spoilt):
    def scores(self, x_BD: Any, layer: int) -> Any:
        return super().scores(x_BD, layer).astype(np.float64)


class Infinite(Spoilt):
    def scores(self, x_BD: Any, layer: int) -> Any:
        return super().scores(x_BD, layer) * np.float32(np.inf)


class Mutates(Spoilt):
    def scores(self, x_BD: Any, layer: int) -> Any:
        x_BD += 1
        return super().scores(x_BD, layer)


class Dice(Spoilt):
    def scores(self, x_BD: Any, layer: int) -> Any:
        return super().scores(x_BD, layer) + np.random.default_rng().random(1, np.float32)


class Unseeded(Spoilt):
    def native(self, layer: int) -> Any:
        return replace(super().native(layer), threshold=float(np.random.default_rng().random()))


class OtherNative(Spoilt):
    def native(self, layer: int) -> Any:
        found = super().native(layer)
        return replace(found, bias_N=None)

    def scores(self, x_BD: Any, layer: int) -> Any:
        return super().native(layer).scores(x_BD)


class LooksAhead(Spoilt):
    def scores(self, x_BD: Any, layer: int) -> Any:
        return super().scores(x_BD, layer) + x_BD.sum(dtype=np.float32)


class Mixed(Spoilt):
    """The native form of the wrong layer."""

    def native(self, layer: int) -> Any:
        return self._layers[0] if layer == 1 else super().native(layer)

    def scores(self, x_BD: Any, layer: int) -> Any:
        return self._layers[layer].scores(x_BD)


class Dense(Spoilt):
    def density(self, layer: int) -> float:
        return 1.5


class UsesAnyProfile(Spoilt):
    def prepare(self, model: Any, profile: Any = None) -> None:
        super().prepare(model, profile)
        for i, layer in enumerate(self._layers):
            prior_N = np.resize(profile.probabilities_LN[i], model.spec.n_neurons)
            self._layers[i] = replace(layer, bias_N=prior_N.astype(np.float32))


class UsesAnyProfileOrNone(UsesAnyProfile):
    def prepare(self, model: Any, profile: Any = None) -> None:
        if profile is None:
            raise ConfigError("this predictor needs a profile")
        super().prepare(model, profile)


class TripsOverProfiles(Spoilt):
    def prepare(self, model: Any, profile: Any = None) -> None:
        super().prepare(model, None)
        if profile is not None:
            assert profile.counts_LN.shape == (model.spec.n_layers, model.spec.n_neurons)


class Refuses(Spoilt):
    def prepare(self, model: Any, profile: Any = None) -> None:
        if profile is None:
            raise ConfigError("no")
        super().prepare(model, profile)


class Keeps(Spoilt):
    def prepare(self, model: Any, profile: Any = None) -> None:
        if not self._layers:
            super().prepare(model, profile)


class Ready(Spoilt):
    def native(self, layer: int) -> Any:
        fc1, fc2 = np.ones((1, 32), np.float32), np.ones((96, 1), np.float32)
        return super().native(layer) if self._layers else PredictorLayer(fc1, fc2, None, True, 0.0)


class NoArrays(Spoilt):
    def native(self, layer: int) -> Any:
        return None


@dataclass(frozen=True)
class Raises(Template):
    calls: Any = itertools.count()

    def prepare(self, model: Any, profile: Any = None) -> None:
        raise ValueError("boom")


@pytest.mark.parametrize(
    ("predictor", "message"),
    [
        (WrongShape(), r"ordinary model, scores of layer 0: .*\[7, 95\], must be float32\[7, 96\]"),
        (Doubles(), "returned float64"),
        (Infinite(), "672 scores are not finite"),
        (Mutates(), "changed its input"),
        (Dice(), "two calls gave different scores"),
        (Unseeded(), "a copy prepared otherwise; seed every draw"),
        (OtherNative(), "layer 0: the native form's scores differ from scores.. by"),
        (LooksAhead(), "depend on the tokens after it"),
        (Mixed(), "layer 1: the native form's scores differ"),
        (Dense(), r"density\(0\) is 1.5"),
        (UsesAnyProfile(), "no profile: the predictor raised AttributeError"),
        (UsesAnyProfileOrNone(), "another model's profile was used"),
        (TripsOverProfiles(), "another model's profile: the predictor raised AssertionError"),
        (Refuses(), "no profile: refused without saying why: no"),
        (Keeps(), "prepared after other models: .*fc1 is float32"),
        (Ready(), "before prepare"),
        (NoArrays(), "returned NoneType, not a PredictorLayer"),
        (Raises(), "ordinary model, prepare: the predictor raised ValueError: boom"),
        (object(), "cannot be constructed: 'object' is not a predictor:"),
    ],
)
def test_faults_are_found_and_named(predictor: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_predictor(predictor)
