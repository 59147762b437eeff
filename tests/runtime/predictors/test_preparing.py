"""Plug-ins that fail or contradict themselves: named with file and line, before anything starts."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import TinyLlama, write_llama

from hotcold.native.errors import CheckpointError, ConfigError, PolicyError
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig

HEAD = """\
from dataclasses import dataclass
import numpy as np
from hotcold.runtime.predictors.predictor import PredictorLayer, SignLayer, WindowLayer


class Mine:
    def prepare(self, model, profile):
        self.spec = model.spec

    def native(self, layer):
        d, n = self.spec.d_model, self.spec.n_neurons
        fc1 = np.full((4, d), 0.1 + layer, np.float32)
        return PredictorLayer(fc1, np.ones((n, 4), np.float32), None, True, 0.5)

    def scores(self, x_BD, layer):
        return self.native(layer).scores(x_BD)


class Changed(Mine):
"""
LINE = len(HEAD.splitlines()) + 2  # of the second line of a method in Changed


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "model", TinyLlama(layers=3))


def tried(folder: Path, model: Path, body: str) -> Any:
    """Prepare the model with a plug-in whose class Changed has this body."""
    (folder / "mine.py").write_text(HEAD + body)
    begin = time.monotonic()
    try:
        return prepare_model(EngineConfig(model=model, predictor=f"{folder}/mine.py:Changed"))
    finally:
        assert time.monotonic() - begin < 3


def method(signature: str, line: str) -> str:
    return f"    def {signature}:\n        {line}\n"


BOOM = "raise RuntimeError('boom')"
RAISING = [
    method("prepare(self, model, profile)", BOOM),
    method("native(self, layer)", BOOM),
    method("scores(self, x_BD, layer)", BOOM),
    method("density(self, layer)", BOOM),
    method("__init__(self)", BOOM),
]


@pytest.mark.parametrize("body", RAISING)
def test_what_a_plug_in_raises_names_its_line(tmp_path: Path, model: Path, body: str) -> None:
    with pytest.raises(PolicyError) as caught:
        tried(tmp_path, model, body)
    assert str(caught.value) == f"{tmp_path}/mine.py:{LINE}: RuntimeError: boom"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "line"), [("predicts", BOOM), ("lookahead", BOOM), ("predicts", "raise SystemExit(3)")]
)
def test_a_property_that_raises(tmp_path: Path, model: Path, name: str, line: str) -> None:
    with pytest.raises(PolicyError, match=rf"mine.py:{LINE + 1}: (RuntimeError: boom|SystemExit)"):
        tried(tmp_path, model, "    @property\n" + method(f"{name}(self)", line))


@pytest.mark.parametrize("line", ["return 1 / 0", "return self.nothing", "import no_such_module"])
def test_a_mistake_is_named(tmp_path: Path, model: Path, line: str) -> None:
    with pytest.raises(PolicyError, match=rf"mine\.py:{LINE}: \w+Error: "):
        tried(tmp_path, model, method("native(self, layer)", line))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import nothing_like_it\n", r"mine\.py:1: ModuleNotFoundError"),
        ("class Changed\n", r"mine\.py:1: SyntaxError"),
        ("class Changed: pass\n", r"is not a predictor: it has no method 'scores'"),
        ("class Other: pass\n", r"no class 'Changed'; did you mean"),
    ],
)
def test_a_file_that_is_no_plug_in(tmp_path: Path, model: Path, source: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(PolicyError, match=words):
        prepare_model(EngineConfig(model=model, predictor=f"{tmp_path}/mine.py:Changed"))


CONTRADICTIONS = {
    "other numbers": "return super().scores(x_BD, layer) * 2",
    "another layer": "return self.native(0).scores(x_BD)",
    "no relu": "return (x_BD @ self.native(layer).fc1.T) @ self.native(layer).fc2.T",
    "not finite": "return super().scores(x_BD, layer) * np.nan",
    "one neuron": "s = super().scores(x_BD, layer); s[1, 7] += 1; return s",
    "another shape": "return super().scores(x_BD, layer)[:, 1:]",
    "no array": "return None",
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_scores_that_contradict_the_native_form(tmp_path: Path, model: Path, kind: str) -> None:
    with pytest.raises(PolicyError) as caught:
        tried(tmp_path, model, method("scores(self, x_BD, layer)", CONTRADICTIONS[kind]))
    text = str(caught.value)
    assert "mine.py:Changed', scores of layer" in text and "\n" not in text
    if kind == "one neuron":
        assert "neuron 7 scores" in text and "by native(0)" in text
    if kind == "another layer":
        assert "scores of layer 0" not in text


FORMS = {
    "gate rows": """
    def prepare(self, model, profile):
        self.model = model
    def native(self, layer):
        return PredictorLayer(None, None, None, False, 0.0)
    def scores(self, x_BD, layer):
        return x_BD @ self.model.gate_rows(layer).T {change}
""",
    "signs": """
    def native(self, layer):
        signs = np.arange(self.spec.n_neurons, dtype=np.uint64)[:, None]
        ones = np.ones(self.spec.n_neurons, np.float32)
        return SignLayer(signs, ones, None, np.ones(self.spec.d_model, np.float32), 4, 0.5)
    def scores(self, x_BD, layer):
        return self.native(layer).scores(x_BD) {change}
""",
    "window": """
    def prepare(self, model, profile):
        self.model = model
    def native(self, layer):
        return WindowLayer(3, 5, None, 0.5)
    def scores(self, x_BD, layer):
        return self.native(layer).scores_of(x_BD @ self.model.gate_rows(layer).T > 0) {change}
""",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_native_form_is_compared(tmp_path: Path, model: Path, form: str) -> None:
    assert tried(tmp_path, model, FORMS[form].format(change="")).predicts
    with pytest.raises(PolicyError, match="differ by more than rounding"):
        tried(tmp_path, model, FORMS[form].format(change="+ 1"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (method("density(self, layer)", "return 1.5"), r"density\(0\) is 1\.5"),
        (method("density(self, layer)", "return 'most'"), r"density\(0\) is 'most'"),
        ("    lookahead = 'two'\n", "lookahead is 'two'"),
        ("    lookahead = -1\n", "lookahead is -1"),
        (
            method("native(self, layer)", "return PredictorLayer(None, None, None, True, 'high')"),
            r"native\(0\): threshold is 'high'",
        ),
        (
            method("native(self, layer)", "return SignLayer(None, None, None, None, None, 0.0)"),
            r"native\(0\): a field of it cannot be used",
        ),
    ],
)
def test_what_a_plug_in_says_is_checked(tmp_path: Path, model: Path, body: str, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        tried(tmp_path, model, body)


def test_a_plug_in_that_agrees_is_used(tmp_path: Path, model: Path) -> None:
    assert tried(tmp_path, model, "    lookahead = 0\n").predicts


def test_a_plug_in_that_refuses_on_purpose_is_named(tmp_path: Path, model: Path) -> None:
    line = "from hotcold.native.errors import ConfigError; raise ConfigError('a profile is needed')"
    with pytest.raises(PolicyError, match=rf"mine.py:{LINE}: ConfigError: a profile is needed"):
        tried(tmp_path, model, method("prepare(self, model, profile)", line))


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"predictor": "learned"}, CheckpointError),
        ({"predictor": "learned", "settings": {"predictor.path": "nowhere"}}, CheckpointError),
        ({"predictor": "frequency"}, ConfigError),
    ],
)
def test_what_our_own_refuse_needs_no_line(
    model: Path, config: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        prepare_model(EngineConfig(model=model, **config))
    assert ".py:" not in str(caught.value)


def test_our_own_are_not_compared(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their scores cost memory on a large model, and tests compare them."""
    from hotcold.policies.predictor.low_rank import LowRank

    def never(self: LowRank, x_BD: Any, layer: int) -> Any:
        raise AssertionError("scores was called")

    monkeypatch.setattr(LowRank, "scores", never)
    assert prepare_model(EngineConfig(model=model, predictor="low-rank")).predicts


def test_an_object_is_named_by_its_class(model: Path) -> None:
    class Broken:
        prepare: Callable[..., None] = lambda *_: None  # noqa: E731
        native: Callable[..., Any] = lambda *_: np.zeros(3)  # noqa: E731
        scores: Callable[..., Any] = lambda *_: None  # noqa: E731

    with pytest.raises(PolicyError, match=r"predictor 'Broken', native\(0\): returned ndarray"):
        prepare_model(EngineConfig(model=model, predictor=Broken()))
