"""A model or a prompt that cannot be used: one line, exit code 2, soon, and no engine launched."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.cli_inputs import profiled_llama, random_words
from support.command import Run, only_line
from support.fake_engine import FakeEngine
from support.models import TinyLlama, write_llama

from hotcold.actors import Engine
from hotcold.actors.cli.commands.inspect import kind_of_neuron
from hotcold.native.errors import ConfigError
from hotcold.runtime.files import reserve
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.text.generation import TextCodec

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 1842767\n"
COMMANDS = ("generate Hello --model {}", "inspect {}", "profile {} --text {}/t --out {}/o")


def refused(run: Run, engines: list[FakeEngine], argv: list[str], *words: str) -> str:
    """The one line a command ends with."""
    begin = time.monotonic()
    ended = run(*argv)
    assert ended.code == 2 and not engines and not ended.out, ended
    assert time.monotonic() - begin < 3
    line = only_line(ended.err)
    for word in words:
        assert word in line, line
    return line


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_in_a_model(
    run: Run, engines: list[FakeEngine], tmp_path: Path, name: str, command: str
) -> None:
    folder = write_llama(tmp_path / "m")
    (folder / name).write_text(POINTER)
    (folder / "t").write_text("text")
    argv = command.replace("{}", str(folder)).split()
    refused(run, engines, argv, str(folder / name), "Git LFS pointer", "git lfs pull")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer.model": "\n\x0e"}, ["tokenizer.model is no SentencePiece model"]),
        ({"vocab.json": "{}"}, ["needs merges.txt"]),
        ({}, ["no tokenizer.json"]),
    ],
)
def test_text_for_a_model_without_a_tokenizer(
    run: Run, engines: list[FakeEngine], tmp_path: Path, files: dict[str, str], words: list[str]
) -> None:
    folder = write_llama(tmp_path / "m", TinyLlama(tokenizer=None))
    for name, text in files.items():
        (folder / name).write_text(text)
    refused(run, engines, ["generate", "Hello", "--model", str(folder)], str(folder), *words)


@pytest.mark.parametrize(
    ("prompt", "argv", "words"),
    [
        ("word " * 100, [], ["501 tokens", "holds 64"]),
        ("word " * 10, ["--context", "16"], ["51 tokens", "holds 16", "up to 64"]),
    ],
)
def test_a_prompt_longer_than_the_context(
    run: Run,
    engines: list[FakeEngine],
    tmp_path: Path,
    prompt: str,
    argv: list[str],
    words: list[str],
) -> None:
    folder = write_llama(tmp_path / "m")
    refused(run, engines, ["generate", prompt, "--model", str(folder), *argv], *words)


def test_a_prompt_of_a_tokenizer_that_is_another_models(
    run: Run, engines: list[FakeEngine], tmp_path: Path
) -> None:
    folder = write_llama(tmp_path / "m", TinyLlama(vocab=300))
    write_llama(tmp_path / "small", TinyLlama(vocab=50, tokenizer=None))
    (tmp_path / "small" / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    argv = ["generate", "Hello", "--model", str(tmp_path / "small")]
    refused(run, engines, argv, "the model has 50", "another model")


@pytest.mark.parametrize(
    "argv",
    ["generate Hello --vram 28", "compare --vram 1MiB --vram 28", "solve --out o --vram 28"]
    + ["roofline --vram 28", "bench stores --size 28", "bench kernels --buffer 28"],
)
def test_bytes_that_were_meant_in_another_unit(
    run: Run, engines: list[FakeEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: str
) -> None:
    monkeypatch.chdir(tmp_path)
    option = argv.split()[-2].strip("-")
    refused(run, engines, argv.split(), option, "28MiB or 28GiB", "give 28B")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("argv", "special"), [([], False), (["--special"], True)])
def test_control_tokens_reach_the_engine_as_asked(
    run: Run, engines: list[FakeEngine], argv: list[str], special: bool
) -> None:
    assert run("generate", "a</s>b", *argv).code == 0
    assert engines[0].requests[0]["prompt"] == "a</s>b"
    assert engines[0].requests[0]["special"] is special


WITHOUT_TORCH = """
import contextlib, io, json, sys, time
sys.modules["torch"] = None  # importing it fails
from hotcold.actors.cli.main import main
for argv in json.load(sys.stdin):
    begin = time.monotonic()
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(argv)
    print(json.dumps([code, time.monotonic() - begin, said.getvalue()]))
"""
BOTH = ("profile", "train-predictors")


def test_offline_jobs_refuse_before_torch_is_imported(tmp_path: Path) -> None:
    """Whatever model, texts, output folder and options show to be unusable; nothing is made."""
    model, bad = profiled_llama(tmp_path / "m"), write_llama(tmp_path / "bad")
    (bad / "config.json").write_text("{}")
    bare = write_llama(tmp_path / "bare")
    text, empty = random_words(tmp_path / "t", 6000), tmp_path / "empty"
    latin, short = tmp_path / "latin", random_words(tmp_path / "short", 60)
    empty.write_text("")
    latin.write_bytes(b"caf\xe9 au lait " * 50)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("x")
    out = tmp_path / "out"
    cases = [
        (BOTH, f"{tmp_path / 'no'} --text {text} --out {out}", "does not exist"),
        (BOTH, f"{bad} --text {text} --out {out}", "config.json"),
        (BOTH, f"{model} --text {tmp_path / 'no'} --out {out}", "does not exist"),
        (BOTH, f"{model} --text {empty} --out {out}", "no text"),
        (BOTH, f"{model} --text {latin} --out {out}", "not UTF-8"),
        (BOTH, f"{model} --text {text} --out {text}", "is a file"),
        (BOTH, f"{model} --text {text} --out {text}/below", "is a file"),
        (BOTH, f"{model} --text {text} --out /proc/below", "cannot be written"),
        (BOTH, f"{model} --text {text} --out {tmp_path / 'taken'}", "--out"),
        (BOTH[:1], f"{model} --text {text} --out {out} --context 65", "64 positions"),
        (BOTH[:1], f"{model} --text {text} --out {out} --bitmaps --max-tokens {10**9}", "--bitm"),
        (BOTH[:1], f"{model} --text {text} --out {out} --against {bare}", "holds no profile"),
        (BOTH[1:], f"{model} --text {short} --out {out}", "--text of 16 windows"),
        (BOTH[1:], f"{model} --text {text} --report {short} --out {out} --recall 2", "recall 2.0"),
        (BOTH[1:], f"{model} --text {text} --out {out} --perplexity nan", "ratio nan"),
        (BOTH[1:], f"{model} --text {text} --out {out} --width 999", "width 999 is more than"),
        (BOTH[1:], f"{model} --text {text} --out {out} --lookahead 2", "lookahead 2"),
        (BOTH[1:], f"{bare} --text {text} --out {out}", "no profile"),
    ]
    calls = [([name, *argv.split()], said) for names, argv, said in cases for name in names]
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        input=json.dumps([argv for argv, _ in calls]),
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(answers) == len(calls)
    for (argv, said), (code, seconds, error) in zip(calls, answers, strict=True):
        assert code == 2 and said in only_line(error) and seconds < 3, (argv, code, seconds, error)
    assert not out.exists()


def test_a_disk_without_room_for_an_offline_job(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text = profiled_llama(tmp_path / "m"), random_words(tmp_path / "t", 6000)
    monkeypatch.setattr(reserve.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    for job, way_out in (("train-predictors", "--out"), ("profile --bitmaps", "--max-tokens")):
        argv = f"{job} {model} --text {text} --out {tmp_path / 'out'} --max-tokens 4096"
        ended = run(*argv.split())
        assert ended.code and "0.0 MB free" in only_line(ended.err) and way_out in ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prompt", [["Hello", "World"], [1.5], None, 123, b"Hello"])
def test_a_prompt_that_is_neither_a_text_nor_ids(prompt: Any) -> None:
    bundle = resolve_model()
    with pytest.raises(ConfigError, match="neither one text nor token ids"):
        TextCodec(bundle.path, bundle.spec).check(prompt, 64)


@pytest.mark.parametrize(
    ("field", "words"),
    [({"max_new_tokens": 4}, "did you mean 'max_tokens'"), ({"stop": 3}, "stop")],
)
def test_a_field_that_generate_does_not_have(field: dict[str, Any], words: str) -> None:
    engine = Engine.__new__(Engine)
    engine._prepared = None
    with pytest.raises(ConfigError, match=words):
        engine.generate("Hello", **field)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "gated ReLU"),
        ({"gated": False, "biases": True}, "ReLU with bias"),
        ({"gated": False, "activation": "relu2"}, "ReLU2"),
        ({"activation": "fatrelu", "activation_threshold": 0.01}, "gated fatReLU at 0.01"),
        ({"activation": "relu both"}, "gated ReLU both"),
    ],
)
def test_inspect_names_the_activation(spec: dict[str, Any], words: str) -> None:
    assert kind_of_neuron(spec) == words
