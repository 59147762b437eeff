"""Which prompts are dense, and what that costs: without a GPU, on made-up times."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from hotcold.actors.engine.requests import rest_of as rest
from hotcold.native.errors import ConfigError
from hotcold.native.gpu import nvml
from hotcold.runtime.engine.prompt import (
    NEVER,
    PromptForm,
    Switch,
    choose_rows,
    dense_tokens,
    piece_rows,
    prompt_bytes,
    resident_bytes,
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
        return 100 + rows

    budget = 50 * 400  # a fiftieth: 400 bytes beside the 100 that are shared
    assert choose_rows("auto", 4096, budget, 100, need) == 256
    assert choose_rows("auto", 200, budget, 100, need) == 200
    assert choose_rows("auto", 64, budget, 100, need) == 0
    assert choose_rows("auto", 4096, 50 * 10, 100, need) == 0
    assert choose_rows("dense", 4096, 50 * 10, 100, need) == 64
    assert choose_rows("dense", 40, 50 * 10, 100, need) == 40
    assert choose_rows("sparse", 4096, budget, 100, need) == 0


def test_a_13b_model_in_10_gib_gets_whole_passes() -> None:
    spec = find_shape("llama2-13b").spec(40, "float16")
    need = prompt_bytes(spec, 512, 960, 1, True)
    assert 150 << 20 < need < 256 << 20
    assert choose_rows("auto", 512, 10 << 30, 0, lambda n: prompt_bytes(spec, n, 960, 1, True)) in (
        256,
        512,
    )


def test_opt_30b_in_24_gib_gets_whole_passes() -> None:
    """Sizes past 32 bits, and three pieces of 2048 plain neurons of 28.7 kB on the device."""
    spec = find_shape("opt-30b").spec(None, "float16")
    assert piece_rows(spec) == 2048
    slots = 3 * 2048 * 28736
    need = prompt_bytes(spec, 512, 1024, 2, False)
    assert slots + (100 << 20) < need < slots + (150 << 20)
    assert choose_rows("auto", 512, 24 << 30, 0, lambda n: need if n == 512 else 0) == 512
    assert prompt_bytes(spec, 1 << 15, 1024, 2, False) > 1 << 32
    assert resident_bytes(spec) == 48 * (4 * 28672 + 256) + 256


def test_a_pass_counts_what_its_model_has() -> None:
    plain = find_shape("opt-350m").spec(24, "float16")
    assert plain.embed_dim == 512
    level = replace(plain, embed_dim=None)
    assert resident_bytes(plain) - resident_bytes(level) == 1024 * 512 * 2
    assert prompt_bytes(plain, 64, 0, 0, False) == prompt_bytes(level, 64, 0, 0, False)
    wide = replace(plain, embed_dim=8192)  # rows as wide as their embeddings come in
    assert prompt_bytes(wide, 64, 0, 0, False) > prompt_bytes(level, 64, 0, 0, False)
    signs = prompt_bytes(plain, 64, 0, 2, True) - prompt_bytes(plain, 64, 0, 0, True)
    assert signs == 64 * (2 * 4096 + 4096 // 8 + 1)  # proposals alone: its planes have room
    matrices = prompt_bytes(plain, 64, 960, 2, True) - prompt_bytes(plain, 64, 0, 2, True)
    assert matrices == 2 * 960 * 4096
    assert piece_rows(replace(plain, n_neurons=300)) == 300
    assert piece_rows(replace(plain, ffn="reglu")) == 1024


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose from auto, dense, sparse"):
        EngineConfig(prompt_form="thick")


def test_what_was_generated_before_a_loss_is_not_given() -> None:
    """A resumed request takes the dense form for what was asked, not for what it had generated."""
    request = make_request([1, 2, 3], Sampling(9), 64)
    resumed = rest(request, [4, 5], kv_survives=False)
    assert resumed.prompt.tolist() == [1, 2, 3, 4, 5]
    assert (resumed.n_given, resumed.n_past, resumed.max_tokens) == (3, 0, 7)
    again = rest(resumed, [6], kv_survives=False)
    assert (again.n_given, again.prompt.tolist()) == (3, [1, 2, 3, 4, 5, 6])
