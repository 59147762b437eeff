"""bench batch: its rows add up, its rivals decode as many, and what is left out has a reason."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hotcold.actors.bench.batch import prompts_of
from hotcold.actors.cli.bench import bench_batch
from hotcold.actors.cli.bench.rivals import rivals_of
from hotcold.actors.cli.main import main
from hotcold.native.errors import ConfigError
from hotcold.runtime.engine import prepare
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.options.config import EngineConfig


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(("bench", "batch", "--max-tokens", "24", "--repeat", "1", "--json", *argv)) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_rows_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, "--count", "2", "--count", "6", "--rival", "none")
    assert result["left_out"] == {}
    assert [row["sequences"] for row in result["rows"]] == [1, 2, 6]
    one, two, six = (row["native"] for row in result["rows"])
    for row, count in ((one, 1), (two, 2), (six, 6)):
        rate = row["decode_tokens_per_s"]
        assert rate > 0
        assert row["decode_tokens_per_s_each"] == pytest.approx(rate / count)
        assert row["bound_fraction"] == pytest.approx(rate / row["bound_tokens_per_s"])
        assert row["density"] == pytest.approx(one["density"], rel=0.25)
    # A union is at most the sum of its parts, and at least one of them.
    assert one["density"] < one["union_density"] < two["union_density"] < six["union_density"] < 1
    assert two["union_density"] < 2.2 * one["union_density"]


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_transformers_decodes_as_many(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, "--model", str(tiny_model), "--count", "3", "--rival", "transformers")
    for row in result["rows"]:
        for dtype in ("float32", "bfloat16"):
            assert row["transformers"][dtype]["decode_tokens_per_s"] > 0
        assert row["speedup"] > 0


def test_llama_cpp_decodes_as_many(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    bundle = resolve_model(None, None)
    rate = rivals_of(("llama.cpp",), bundle, tmp_path)["llama_cpp"]
    assert rate(prompts_of(bundle, 3), 4) > 0


def test_prompts_differ_and_are_equally_long(tiny_model: Path) -> None:
    for bundle in (resolve_model(None, None), resolve_model(tiny_model, None)):
        prompts = prompts_of(bundle, 32)
        assert len({tuple(ids) for ids in prompts}) == 32
        assert len({len(ids) for ids in prompts}) == 1


def test_what_an_engine_does_not_run_at_once_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(options: EngineConfig) -> None:
        if options.sequences > 1:
            raise ConfigError("sequences 32: a GPU runs one; choose sequences 1")
        if options.context == 1:
            raise ConfigError("context 1 is too little")

    monkeypatch.setattr(prepare, "prepare_model", refuse)
    options = EngineConfig()
    assert bench_batch.allowed(options, 32) == (
        1,
        "sequences 32: a GPU runs one; choose sequences 1",
    )
    assert bench_batch.allowed(options, 1) == (1, "")
    with pytest.raises(ConfigError, match="context 1"):
        bench_batch.allowed(replace(options, context=1), 32)
