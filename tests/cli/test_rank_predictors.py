"""`hotcold evaluate` with several predictors: one sorted table, and what is left out or refused."""

import json
from pathlib import Path

import pytest
from support.cli_inputs import profiled_llama, random_words
from support.command import Run

from hotcold.runtime.plugins.registry import BUILT_IN


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return profiled_llama(tmp_path / "model")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return random_words(tmp_path / "book.txt", 900)


def test_all_are_ranked_and_what_cannot_run_is_named(run: Run, model: Path, text: Path) -> None:
    argv = f"evaluate {model} --text {text} --max-tokens 128 --decode 4 --predictor all"
    ended = run(*argv.split(), "--sort", "bytes", "--json")
    assert ended.code == 0, ended.err
    *lines, last = ended.out.splitlines()
    found = json.loads(last)
    runs = {entry["predictor"]: entry for entry in found["runs"]}
    assert set(runs) == set(BUILT_IN["predictor"]) - {"learned"}
    assert list(found["left_out"]) == ["learned"]
    assert "'learned' left out: predictor 'learned' needs trained predictors" in ended.err
    read = [entry["bytes_per_token"] for entry in found["runs"]]
    assert read == sorted(read)
    columns = "predictor recall precision density MB/token tokens/s perplexity"
    assert lines[0].split() == columns.split()
    assert [line.split()[0] for line in lines[1:-1]] == list(runs)
    assert runs["exact"]["recall"] == 1 and runs["exact"]["perplexity_ratio"] == pytest.approx(1)
    assert all(entry["decode_tokens_per_s"] > 0 for entry in runs.values())
    alone = run(*argv.replace("predictor all", "predictor sign").split(), "--json")
    one = json.loads(alone.out.splitlines()[-1])
    for key in ("recall", "density", "perplexity_ratio", "bytes_per_token"):
        assert one[key] == pytest.approx(runs["sign"][key])


def test_settings_go_to_those_that_know_them(run: Run, model: Path, text: Path) -> None:
    argv = f"evaluate {model} --text {text} --max-tokens 64 --decode 0 --json --sort recall"
    several = "--predictor frequency --predictor sign --predictor exact"
    ended = run(*argv.split(), *several.split(), "--set", "predictor.recall=0.5")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out.splitlines()[-1])["runs"]
    assert [entry["predictor"] for entry in found][0] == "exact"
    density = {entry["predictor"]: entry["density"] for entry in found}
    assert density["frequency"] < 0.6 and density["sign"] < 0.7
    assert found[0]["decode_tokens_per_s"] is None


def test_what_cannot_be_ranked(run: Run, model: Path, text: Path) -> None:
    argv = f"evaluate {model} --text {text} --max-tokens 64"
    for more, said in (
        ("--predictor sign --predictor learned", "needs trained predictors"),
        ("--predictor sign --predictor sign", "given twice"),
        ("--predictor sign --predictor nothing", "nothing"),
        ("--predictor sign --predictor exact --set predictor.width=4", "'width'"),
        ("--predictor all --set predictor.k=-1 --predictor window", "k is -1"),
        ("--predictor sign --set predictor.input_bits=9", "must be 1 to 8"),
    ):
        ended = run(*argv.split(), *more.split())
        assert (ended.code, said in ended.err) == (2, True), (more, ended.err)
