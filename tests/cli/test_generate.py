"""`hotcold generate`: the prompt's ways in, the text's way out, the JSON line."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from support.command import Run, only_line
from support.fake_engine import FakeEngine, GenerationStats
from support.models import write_llama

from hotcold.actors.cli.commands import generate
from hotcold.runtime.engine.audit import RecallEstimate
from hotcold.runtime.options.config import EngineConfig

STORY = "There was a caf\u00e9."


def test_the_text_and_nothing_else_goes_to_standard_output(run: Run) -> None:
    ended = run("generate", "Once upon a time")
    assert ended.code == 0
    assert ended.out == STORY + "\n"


def test_each_actor_has_a_line_with_its_work(run: Run) -> None:
    err = run("generate", "Once upon a time").err
    for actor in ("gpu", "cpu", "predictor"):
        line = next(line for line in err.splitlines() if line.startswith(actor + " "))
        assert line.split()[1:5] == ["4242", "1,000", "100", "5.0"]
    assert "250.0 tokens/s" in err
    assert "3.50 GB/s" in err
    assert "predictor: computes" in err and max(map(len, err.splitlines())) <= 100


def test_one_token_has_no_speed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(**arguments: Any) -> FakeEngine:
        return FakeEngine(arguments, last=GenerationStats(new_tokens=1))

    monkeypatch.setattr(FakeEngine, "launch", launch)
    assert "decode: 1 token; GPU" in run("generate", "Once").err


def test_the_json_line_is_the_whole_of_standard_output(run: Run) -> None:
    ended = run("generate", "Once upon a time", "--json")
    result = json.loads(only_line(ended.out))
    assert result["text"] == STORY
    assert result["token_ids"] == [100, 101, 102, 103, 104]
    for key in ("prompt_tokens_per_s", "decode_tokens_per_s", "gb_per_s", "gpu_neuron_load"):
        assert isinstance(result[key], float)
    assert result["finish"] == "length"
    assert result["plan"] == "abc123"
    assert set(result["actors"]) == {"gpu", "cpu", "predictor"}
    for work in result["actors"].values():
        expected = {"node_id", "pid", "gate_rows", "up_down_rows", "bytes", "busy_s", "wait_s"}
        assert expected <= set(work)
    assert ended.err.startswith(STORY)


def test_an_audited_recall_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run("generate", "Once", "--json")
    assert json.loads(ended.out)["recall"] is None and "recall" not in ended.err
    monkeypatch.setattr(FakeEngine, "recall", RecallEstimate(95_000, 25, 192))
    ended = run("generate", "Once", "--json")
    assert "recall: 95.2 % of the neurons that fire were predicted (+- 1.8," in ended.err
    assert json.loads(ended.out)["recall"] == pytest.approx(0.9519, abs=1e-4)


def test_what_json_cannot_say_becomes_null(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "gpu_neuron_load", math.nan)
    assert '"gpu_neuron_load": null' in run("generate", "Once", "--json").out


@pytest.mark.parametrize(
    ("argv", "stdin", "prompt"),
    [
        (["Hello there"], b"ignored", "Hello there"),
        ([], b"From a pipe\n", "From a pipe"),
        (["-"], b"Two\nlines\r\n", "Two\nlines"),
        (["-"], "caf\u00e9".encode(), "caf\u00e9"),
    ],
)
def test_prompts(
    run: Run, engines: list[FakeEngine], argv: list[str], stdin: bytes, prompt: str
) -> None:
    assert run("generate", *argv, stdin=stdin).code == 0
    assert engines[0].requests[0]["prompt"] == prompt


@pytest.mark.parametrize(
    ("argv", "stdin", "expected"),
    [
        ([""], b"", "empty"),
        (["  \n"], b"", "empty"),
        ([], b"", "empty"),
        (["-"], b"abc\xff", "0xff at offset 3"),
        (["bad \udcff"], b"", "not UTF-8"),
    ],
)
def test_refused_prompts(
    run: Run, engines: list[FakeEngine], argv: list[str], stdin: bytes, expected: str
) -> None:
    ended = run("generate", *argv, stdin=stdin)
    assert ended.code == 2
    assert expected in only_line(ended.err)
    assert engines == []


def test_a_prompt_beyond_reason_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "MAX_PROMPT_BYTES", 10)
    assert run("generate", "-", stdin=b"x" * 10).code == 0
    ended = run("generate", "-", stdin=b"x" * 11)
    assert ended.code == 2
    assert "10 bytes" in only_line(ended.err)


def test_options_reach_the_engine(
    run: Run, engines: list[FakeEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_llama(tmp_path / "dir")
    argv = "--model dir --vram 24MiB --policy mine.py:Mine --schedule paper --set share=0.8"
    argv += " --set note=a=b --predictor exact --dtype float16 --threads 2 --context 64"
    argv += " --transport ray --address auto --seed 7 --max-tokens 9 --temperature 0.5 --top-k 3"
    argv += " --top-p 0.9 --stop END --stop . --ignore-eos --special --logprobs 4"
    assert run("generate", "Hello", *argv.split()).code == 0
    asked = EngineConfig(
        model="dir",
        vram="24MiB",
        policy="mine.py:Mine",
        schedule="paper",
        settings={"share": "0.8", "note": "a=b"},
        predictor="exact",
        dtype="float16",
        threads=2,
        context=64,
        transport="ray",
        address="auto",
        seed=7,
    )
    assert engines[0].arguments == vars(asked)
    request = engines[0].requests[0]
    assert request == {
        "prompt": "Hello",
        "plan": "plan of mine.py:Mine",
        "max_tokens": 9,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "seed": 7,
        "stop": ("END", "."),
        "ignore_eos": True,
        "special": True,
        "logprobs": 4,
    }


def test_what_is_not_said_is_left_to_the_engine(run: Run, engines: list[FakeEngine]) -> None:
    assert run("generate", "Hello").code == 0
    assert engines[0].arguments == vars(EngineConfig())
    assert engines[0].closed == 1


def test_a_plan_replaces_a_policy(run: Run, engines: list[FakeEngine], tmp_path: Path) -> None:
    assert run("generate", "Hello", "--plan", str(tmp_path)).code == 0
    assert engines[0].arguments["plan"] == tmp_path
    ended = run("generate", "Hello", "--plan", str(tmp_path), "--policy", "greedy")
    assert ended.code == 2
    assert "--plan and --policy" in only_line(ended.err)


def test_chat_puts_every_turn_into_the_template(run: Run, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m")
    refused = run("generate", "--model", str(folder), "--chat", "Hi")
    assert refused.code == 2 and "no chat template" in refused.err
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role ~ ':' ~ m.content ~ eos_token }}{% endfor %}"
    )
    ended = run("generate", "--model", str(folder), "--chat", "--json", stdin=b"Hi\n\nAgain </s>\n")
    assert ended.code == 0, ended.err
    said = json.loads(only_line(ended.out))["messages"]
    assert [one["role"] for one in said] == ["user", "assistant"] * 2
    assert [one["content"] for one in said] == ["Hi", STORY, "Again </s>", STORY]
