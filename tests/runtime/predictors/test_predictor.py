"""Choosing a predictor, checking what a plug-in returns, and what the placement problem is told."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.predictors import random_layers, random_oracle, spec_of, view_of

from hotcold.native.errors import CheckpointError, ConfigError, PolicyError
from hotcold.policies.predictor.exact import Exact
from hotcold.policies.predictor.learned import Learned
from hotcold.runtime.predictors.predictor import (
    ABOVE_ZERO,
    ModelView,
    PredictorLayer,
    expected_density_L,
    native_layers,
    predictor_parameters,
    predicts,
)
from hotcold.runtime.predictors.predictor_choice import (
    FeedForwardBytes,
    choose_auto,
    choose_predictor,
)
from hotcold.runtime.predictors.predictor_file import save_predictors
from hotcold.runtime.profiles.profile import ActivationProfile

ORACLE = random_oracle()
SPEC = spec_of(ORACLE)


def bundle(predictors: Path | None = None) -> Any:
    return SimpleNamespace(spec=SPEC, predictors_path=predictors, profile_path=None)


@dataclass(frozen=True)
class Given:
    """A plug-in that returns what it was given."""

    layers: tuple[Any, ...]

    def prepare(self, model: ModelView, profile: ActivationProfile | None) -> None:
        pass

    def scores(self, x_BD: Any, layer: int) -> Any:
        return self.layers[layer].scores(x_BD)

    def native(self, layer: int) -> Any:
        return self.layers[layer]


def test_above_zero_separates_zero_from_the_smallest_positive_float() -> None:
    threshold = np.float32(ABOVE_ZERO)
    tiny = np.array([0.0, -0.0, -1.0, np.finfo(np.float32).smallest_subnormal], dtype=np.float32)
    np.testing.assert_array_equal(tiny >= threshold, tiny > 0)
    assert float(threshold) == ABOVE_ZERO


def saved(folder: Path, density: str | None) -> Path:
    notes = {} if density is None else {f"layers.{i}.density": density for i in range(2)}
    save_predictors(folder / "predictors.safetensors", random_layers(SPEC), notes)
    return folder / "predictors.safetensors"


def test_auto_takes_learned_where_there_are_predictors(tmp_path: Path) -> None:
    assert choose_predictor("auto", bundle()) == Exact()
    assert choose_predictor("auto", bundle(saved(tmp_path, None))) == Learned()


def test_auto_takes_what_reads_fewer_bytes(tmp_path: Path) -> None:
    profile = ActivationProfile(np.full((SPEC.n_layers, SPEC.n_neurons), 10, np.int64), 100)
    lean = choose_auto(bundle(saved(tmp_path, "0.15")), profile)
    wide = choose_auto(bundle(saved(tmp_path, "0.95")), profile)
    assert (lean.kind, wide.kind) == ("learned", "exact")
    assert "exact" in lean.why and "learned then gate-first" in lean.why
    assert lean.bytes is not None and wide.bytes is not None
    assert (lean.bytes.gate_first or 0) < lean.bytes.exact == wide.bytes.exact
    none = choose_auto(bundle(), profile)
    assert none.kind == "exact" and none.bytes is not None and none.bytes.learned is None
    with pytest.raises(CheckpointError):
        choose_auto(bundle(tmp_path / "none.safetensors"), profile)


def test_bytes_a_token_by_hand() -> None:
    """2 layers of 40 neurons, width 24, two bytes a weight."""
    cost = FeedForwardBytes.of(SPEC, [0.1, 0.2], 1000, [0.3, 0.3])
    row = 40 * 24 * 2
    assert cost.exact == pytest.approx(row * (2 + 2 * 0.3))
    assert cost.learned == pytest.approx(1000 + 3 * row * 0.6)
    assert cost.gate_first == pytest.approx(1000 + row * (0.6 + 2 * 0.3))
    plain = FeedForwardBytes.of(replace(SPEC, gated=False), [0.1, 0.2], 1000, [0.3, 0.3])
    assert plain.exact == pytest.approx(row * (2 + 0.3))
    assert plain.learned == pytest.approx(1000 + 2 * row * 0.6)
    assert plain.gate_first == pytest.approx(1000 + row * (0.6 + 0.3))


def test_kinds_by_name_and_settings() -> None:
    assert choose_predictor("exact", bundle(), {"by": "executors"}) == Exact(by="executors")
    assert choose_predictor("learned", bundle(), {"threshold": "-0.5"}) == Learned(threshold=-0.5)


def test_a_file_or_folder_means_learned(tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    assert choose_predictor(str(file), bundle()) == Learned(path=str(file))
    assert choose_predictor(tmp_path, bundle()) == Learned(path=str(tmp_path))


def test_a_folder_called_like_a_kind_does_not_hide_the_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exact").mkdir()
    monkeypatch.chdir(tmp_path)
    assert choose_predictor("exact", bundle()) == Exact()
    assert choose_predictor("./exact", bundle()) == Learned(path=str(tmp_path / "exact"))


def test_a_class_in_a_file(tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Mine:\n"
        "    width: int = 4\n"
        "    def prepare(self, model, profile): pass\n"
        "    def scores(self, x_BD, layer): return x_BD\n"
        "    def native(self, layer): return None\n"
        "class Half:\n"
        "    def prepare(self, model, profile): pass\n"
        "    def scores(self, x_BD, layer): return x_BD\n"
    )
    mine = choose_predictor(f"{source}:Mine", bundle(), {"width": "9"})
    assert mine.width == 9  # type: ignore[attr-defined]
    with pytest.raises(PolicyError, match=r"mine.py:Half' has no method native"):
        choose_predictor(f"{source}:Half", bundle())


def test_objects_pass_through_and_unknown_names_are_refused() -> None:
    given = Given(())
    assert choose_predictor(given, bundle()) is given
    with pytest.raises(ConfigError, match="takes no settings"):
        choose_predictor(given, bundle(), {"layers": "1"})
    with pytest.raises(PolicyError, match="'int' has no method prepare"):
        choose_predictor(3, bundle())
    with pytest.raises(PolicyError, match="oracle-of-delphi"):
        choose_predictor("oracle-of-delphi", bundle())


def test_native_layers_accepts_what_fits() -> None:
    layers = tuple(random_layers(SPEC, dtype="float16"))
    assert native_layers(Given(layers), SPEC) == layers
    exact = Exact()
    exact.prepare(view_of(ORACLE))
    assert [layer.fc1 for layer in native_layers(exact, SPEC)] == [None, None]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"input": "embedding"}, "input is 'embedding'"),
        ({"fc1": None}, "both be arrays, or both None"),
        ({"fc1": None, "fc2": None}, "no bias"),
        ({"fc1": np.ones((5, 23), np.float32)}, r"fc1 is float32\[5, 23\].*\[5, 24\]"),
        ({"fc1": np.ones(24, np.float32)}, r"fc1 is float32\[24\]"),
        ({"fc1": np.ones((0, 24), np.float32)}, r"fc1 is float32\[0, 24\].*\[1, 24\]"),
        ({"fc1": np.ones((5, 24))}, r"fc1 is float64\[5, 24\]"),
        ({"fc1": [[1.0]]}, "fc1 is of type list"),
        ({"fc2": np.ones((40, 4), np.float32)}, r"fc2 is float32\[40, 4\].*\[40, 5\]"),
        ({"fc2": np.ones((40, 5), np.float16)}, "fc2 is float16.*float32"),
        ({"fc2": np.ones((5, 40), np.float32).T}, "C-contiguous"),
        ({"bias_N": np.ones(40)}, "bias_N is float64"),
    ],
)
def test_native_layers_blames_the_predictor(change: dict[str, Any], says: str) -> None:
    first, second = random_layers(SPEC)
    with pytest.raises(PolicyError, match=says) as caught:
        native_layers(Given((first, replace(second, **change))), SPEC, "mine.py:Mine")
    assert "predictor 'mine.py:Mine', native(1)" in str(caught.value)


def test_native_layers_refuses_another_type() -> None:
    with pytest.raises(PolicyError, match="returned dict, not a PredictorLayer"):
        native_layers(Given(({}, {})), SPEC)


def test_bytes_and_parameters() -> None:
    half = random_layers(SPEC, dtype="float16", bias=False)
    assert [layer.bytes for layer in half] == [2 * 3 * (24 + 40), 2 * 5 * (24 + 40)]
    assert predictor_parameters(half) == 8 * (24 + 40)
    gate_rows = PredictorLayer(None, None, None, False, ABOVE_ZERO)
    assert gate_rows.bytes == 0
    with pytest.raises(ValueError, match="gate pre-activations"):
        gate_rows.scores(np.zeros((1, 24), np.float32))


def test_expected_density() -> None:
    counts = np.full((2, 40), 25, dtype=np.int64)
    profile = ActivationProfile(counts, tokens=100)
    assert expected_density_L(Given(()), None, SPEC) == (1.0, 1.0)
    assert expected_density_L(Given(()), profile, SPEC) == (0.25, 0.25)

    class Own(Given):
        def density(self, layer: int) -> float | None:
            return 0.5 if layer else None

    assert expected_density_L(Own(()), profile, SPEC) == (0.25, 0.5)


def test_standing_by() -> None:
    assert predicts(Given(())) and predicts(Exact()) and not predicts(Exact(by="executors"))
