"""A model or a prompt that cannot be used: one line, exit code 2, soon, and no engine launched."""

import time
from pathlib import Path
from typing import Any

import pytest
from support.command import Run, only_line
from support.fake_engine import FakeEngine
from support.models import TinyLlama, write_llama

from hotcold.actors import Engine
from hotcold.native.errors import ConfigError
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.text.generation import TextCodec

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 1842767\n"
COMMANDS = ("generate Hello --model {}", "inspect {}", "profile {} --text {}/t --out {}/o")


def refused(run: Run, engines: list[FakeEngine], argv: list[str], *words: str) -> str:
    """The one line a command ends with."""
    begin = time.monotonic()
    ended = run(*argv)
    assert ended.code == 2 and not engines and not ended.out, ended
    if argv[0] != "profile":  # which imports torch first
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
        ({"tokenizer.model": "\n\x0e"}, ["tokenizer.model is not read", "AutoTokenizer"]),
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


@pytest.mark.parametrize(("argv", "special"), [([], False), (["--special"], True)])
def test_control_tokens_reach_the_engine_as_asked(
    run: Run, engines: list[FakeEngine], argv: list[str], special: bool
) -> None:
    assert run("generate", "a</s>b", *argv).code == 0
    assert engines[0].requests[0]["prompt"] == "a</s>b"
    assert engines[0].requests[0]["special"] is special


@pytest.mark.parametrize("prompt", [["Hello", "World"], [1.5], None, 123])
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
