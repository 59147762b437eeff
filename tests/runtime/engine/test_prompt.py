"""Which prompts are dense, and what that costs: without a GPU, on made-up times."""

import json
import logging
from pathlib import Path

import pytest
from support.gpu_shapes import matrices

from hotcold.actors.engine.requests import rest_of as rest
from hotcold.native.errors import ConfigError
from hotcold.native.gpu import nvml
from hotcold.runtime.engine.gpu_memory import model_shape, predicted_layers
from hotcold.runtime.engine.prompt import (
    NEVER,
    PromptForm,
    Switch,
    choose_rows,
    dense_tokens,
)
from hotcold.runtime.engine.request import make_request
from hotcold.runtime.offline.plant.shapes import find_shape
from hotcold.runtime.options.config import EngineConfig, Sampling


class Clock:
    """Times of both forms, and what was asked for."""

    def __init__(self, sparse_s: float, dense_s: float) -> None:
        self.sparse_s, self.dense_s = sparse_s, dense_s
        self.asked: list[tuple[int, int]] = []

    def __call__(self, tokens: int, dense: int) -> float:
        self.asked.append((tokens, dense))
        return self.dense_s if dense else self.sparse_s


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOTCOLD_CACHE", str(tmp_path))
    monkeypatch.setattr(nvml, "gpus", list)
    return tmp_path


@pytest.mark.parametrize(
    ("sparse_s", "dense_s", "tokens"),
    [(0.1, 0.35, 97), (0.1, 0.01, 65), (0.1, 1.55, 481), (0.1, 1.6, NEVER), (0.1, 9.0, NEVER)],
)
def test_the_switch_is_where_blocks_take_longer(
    sparse_s: float, dense_s: float, tokens: int
) -> None:
    switch = Switch.measured(sparse_s, dense_s, block=32, rows=512)
    assert switch.tokens == tokens
    if 65 < tokens < NEVER:  # one token less is one block less
        assert -(-tokens // 32) * sparse_s > dense_s >= -(-(tokens - 1) // 32) * sparse_s


@pytest.mark.parametrize(
    ("given", "dense"),
    [(96, 0), (97, 97), (512, 512), (513, 512), (608, 512), (609, 609), (1024, 1024), (1100, 1024)],
)
def test_a_short_rest_goes_sparse(given: int, dense: int) -> None:
    assert dense_tokens(given, 97, 512) == dense


def test_auto_asks_once_for_long_prompts(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    clock, form = Clock(0.1, 0.35), PromptForm("auto", 512, 32, "plan")
    assert form.dense_tokens(64, clock) == 0
    assert not clock.asked
    assert form.dense_tokens(80, clock) == 0
    assert form.dense_tokens(300, clock) == 300
    assert clock.asked == [(32, 0)] * 2 + [(80, 80)] * 2
    assert "prompts of 97 tokens and more go dense: a block of 32 tokens takes 100.0 ms sparse" in (
        caplog.text
    )
    again, other = PromptForm("auto", 512, 32, "plan"), PromptForm("auto", 512, 32, "another")
    slow = Clock(0.1, 9.0)
    assert again.dense_tokens(300, slow) == 300
    assert not slow.asked
    assert other.dense_tokens(300, slow) == 0
    assert slow.asked
    assert "prompts stay sparse" in caplog.text


@pytest.mark.parametrize("content", ["", "{", "[]", '{"tokens": 1}', '{"tokens": null}'])
def test_a_damaged_measurement_is_made_again(cache: Path, content: str) -> None:
    PromptForm("auto", 512, 32, "plan").dense_tokens(300, Clock(0.1, 0.35))
    (kept,) = cache.glob("prompt-*.json")
    kept.write_text(content)
    clock = Clock(0.1, 0.35)
    assert PromptForm("auto", 512, 32, "plan").dense_tokens(300, clock) == 300
    assert clock.asked
    assert json.loads(kept.read_text())["tokens"] == 97


def test_the_other_forms_measure_nothing(cache: Path) -> None:
    clock = Clock(0.1, 0.1)
    assert PromptForm("sparse", 512, 32, "p").dense_tokens(500, clock) == 0
    assert PromptForm("dense", 512, 32, "p").dense_tokens(5, clock) == 5
    assert PromptForm("dense", 0, 32, "p").dense_tokens(500, clock) == 0
    assert not clock.asked


def test_a_pass_is_as_long_as_memory_and_context_allow() -> None:
    def need(rows: int) -> int:
        return 1000 + rows

    budget = 50 * 300  # a fiftieth: 300 bytes
    assert choose_rows("auto", 4096, budget, need) == 256
    assert choose_rows("auto", 200, budget, need) == 200
    assert choose_rows("auto", 64, budget, need) == 0
    assert choose_rows("auto", 4096, 50 * 10, need) == 0
    assert choose_rows("dense", 4096, 50 * 10, need) == 64
    assert choose_rows("dense", 40, 50 * 10, need) == 40
    assert choose_rows("sparse", 4096, budget, need) == 0


@pytest.mark.parametrize(
    ("name", "width", "budget", "slots"),
    [
        ("llama2-13b", 960, 10 << 30, 3 * 1024 * 30720),
        ("opt-30b", 1024, 24 << 30, 3 * 2048 * 28736),
    ],
)
def test_a_large_model_gets_whole_passes(name: str, width: int, budget: int, slots: int) -> None:
    """Three pieces of neurons on the device, and what 512 tokens need beside a sparse pass."""
    spec = find_shape(name).spec(None, "float16")
    layers = predicted_layers(spec, matrices(spec, width, True), 1, True)
    shape = model_shape(spec, 512, 32, layers, head_on_host=True, predictor_i8=True)

    def need(rows: int) -> int:
        return shape.with_rows(rows).executor().reserve

    assert slots < need(512) - need(0) < slots + (150 << 20)
    assert choose_rows("auto", 512, budget, need) == 512


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose from auto, dense, sparse"):
        EngineConfig(prompt_form="thick")


def test_what_was_generated_before_a_loss_is_not_given() -> None:
    """A resumed request takes the dense form for what was asked, not for what it had generated."""
    request = make_request([1, 2, 3], Sampling(9), 64)
    resumed = rest(request, [4, 5])
    assert resumed.prompt.tolist() == [1, 2, 3, 4, 5]
    assert (resumed.n_given, resumed.max_tokens) == (3, 7)
    again = rest(resumed, [6])
    assert (again.n_given, again.prompt.tolist()) == (3, [1, 2, 3, 4, 5, 6])
