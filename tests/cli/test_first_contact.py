"""A model or a prompt that cannot be used: one line, exit code 2, soon, and no engine launched."""

import time
from pathlib import Path

import pytest
from support.command import Run, only_line
from support.fake_engine import FakeEngine
from support.models import TinyLlama, write_llama

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
