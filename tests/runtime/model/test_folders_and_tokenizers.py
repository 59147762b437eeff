"""Folders that lead to a model, tokenizers, and what config.json says twice or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.models import byte_level_tokenizer
from support.opt_models import write_opt
from support.refusals import POINTER, SINGLE, llama, refused

from hotcold.native.errors import CheckpointError
from hotcold.runtime.model.architectures.hf_config import EXPERTS
from hotcold.runtime.model.checkpoints.bundle import look_at, resolve_model
from hotcold.runtime.text.generation import TextCodec


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# ---- rope: what is not said, or said twice -----------------------------------------------------


def test_a_null_rope_type_is_none(tmp_path: Path, cache: Path) -> None:
    for number, rope in enumerate(
        (
            {"rope_type": None, "type": "linear", "factor": 2.0},
            {"rope_type": "linear", "type": None, "factor": 2.0},
            {"rope_type": "linear", "type": "linear", "factor": 2.0},
        )
    ):
        spec = resolve_model(llama(tmp_path / f"m{number}", rope=rope), cache=cache).spec
        assert spec.rope_scaling == {"rope_type": "linear", "factor": 2.0}
    nothing = llama(tmp_path / "n", rope={"rope_type": None, "type": None})
    assert resolve_model(nothing, cache=cache).spec.rope_scaling is None


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"rope_type": "default", "type": "linear", "factor": 2.0}, ["'default'", "'linear'"]),
        ({"rope_type": "llama3", "type": "linear", "factor": 2.0}, ["'llama3'", "'linear'"]),
        ({"factor": 2.0}, ["factor of 2.0", '"rope_type"']),
        ({"rope_type": None, "factor": 2.0}, ["factor of 2.0", '"rope_type"']),
    ],
)
def test_rope_parameters_that_contradict(
    tmp_path: Path, cache: Path, rope: dict[str, Any], words: list[str]
) -> None:
    refused(llama(tmp_path / "m", rope=rope), cache, "config.json", *words)


def test_rope_given_twice_must_agree(tmp_path: Path, cache: Path) -> None:
    twice = llama(tmp_path / "m", rope={"rope_type": "linear", "factor": 2.0})
    config = json.loads((twice / "config.json").read_text())
    new = {"rope_type": "linear", "factor": 2.0, "rope_theta": config.get("rope_theta", 1e4)}
    for given in (new, {**new, "factor": 4.0}, {**new, "rope_theta": 7.0}):
        config |= {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": given}
        (twice / "config.json").write_text(json.dumps(config))
        if given == new:
            spec = look_at(twice)[1]
            assert spec.rope_scaling == {"rope_type": "linear", "factor": 2.0}
        else:
            refused(twice, cache, "rope_scaling and rope_parameters differ", "keep the one")


# ---- experts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", EXPERTS)
@pytest.mark.parametrize("write", [llama, write_opt], ids=["llama", "opt"])
def test_a_mixture_of_experts(tmp_path: Path, cache: Path, key: str, write: Any) -> None:
    folder = tmp_path / "m"
    write(folder)
    config = json.loads((folder / "config.json").read_text())
    for count in (None, 1):
        (folder / "config.json").write_text(json.dumps(config | {key: count}))
        look_at(folder)
    (folder / "config.json").write_text(json.dumps(config | {key: 8}))
    refused(folder, cache, f"{key} is 8", "mixture of experts", f"remove {key}")


# ---- folders that lead to a model --------------------------------------------------------------


def hub(folder: Path, *names: str, main: str = "") -> Path:
    """A repository as Hugging Face's cache has it."""
    for name in names:
        llama(folder / "snapshots" / name)
    (folder / "blobs").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(main)
    return folder


def test_a_repository_of_the_cache_names_its_snapshot(tmp_path: Path, cache: Path) -> None:
    folder = hub(tmp_path / "models--org--llama", "aaa", "bbb", "ccc", main="bbb")
    refused(folder, cache, f"give {folder / 'snapshots' / 'bbb'}")
    refused(folder / "snapshots", cache, f"give {folder / 'snapshots'}", "others there")
    refused(tmp_path, cache, f"give {folder / 'snapshots'}")


def test_a_repository_whose_download_did_not_finish(tmp_path: Path, cache: Path) -> None:
    folder = hub(tmp_path / "models--org--llama")
    (folder / "snapshots" / "aaa").mkdir(parents=True)
    refused(folder, cache, str(folder), "did not finish", "hf download")


@pytest.mark.parametrize("name", ["llama", "checkpoint-500"])
def test_a_folder_above_the_model(tmp_path: Path, cache: Path, name: str) -> None:
    llama(tmp_path / "above" / name)
    refused(tmp_path / "above", cache, f"give {tmp_path / 'above' / name}")


def test_a_name_of_the_hub(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    refused("org/llama", cache, "'org/llama'", "hf download org/llama --local-dir DIR")
    folder = hub(tmp_path / "hub" / "models--org--llama", "aaa", main="aaa")
    refused("org/llama", cache, f"give {folder / 'snapshots' / 'aaa'}")


@pytest.mark.parametrize("name", ["config.json", SINGLE, "tokenizer.json"])
def test_a_file_of_a_model(tmp_path: Path, cache: Path, name: str) -> None:
    folder = llama(tmp_path / "m")
    refused(folder / name, cache, str(folder / name), f"give its folder, {folder}")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.gguf", "GGUF", ["m.gguf", "ends inside its header"]),
        ("m", "GGUF\x03\0\0\0", ["ends inside its header"]),
        ("m.zip", "PK\x03\x04", ["archive", "unpack"]),
        ("m.tar.gz", "\x1f\x7f", ["is a file"]),
    ],
)
def test_a_file_that_is_no_model(
    tmp_path: Path, cache: Path, name: str, content: str, words: list[str]
) -> None:
    (tmp_path / name).write_text(content)
    refused(tmp_path / name, cache, str(tmp_path / name), *words)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["config.json", "it is empty"]),
        ({"README.md": "x"}, ["config.json", "it holds README.md"]),
        ({"model-Q4_K_M.gguf": "GGUF"}, ["model-Q4_K_M.gguf", "ends inside its header"]),
        ({"params.json": "{}", "consolidated.00.pth": "PK"}, ["Meta's own format", "-hf"]),
    ],
)
def test_a_folder_that_is_no_model(
    tmp_path: Path, cache: Path, files: dict[str, str], words: list[str]
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    refused(folder, cache, str(folder), *words)


# ---- tokenizers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer.model": "\n\x0e"}, ["tokenizer.model is no SentencePiece model"]),
        ({"tokenizer.model": POINTER}, ["tokenizer.model is a Git LFS pointer"]),
        ({"tokenizer.model": ""}, ["tokenizer.model is empty"]),
        ({"vocab.json": "{}"}, ["vocab.json", "needs merges.txt"]),
        ({"merges.txt": ""}, ["merges.txt", "needs vocab.json"]),
        ({}, ["no tokenizer.json", "token ids instead"]),
    ],
)
def test_text_without_a_tokenizer(
    tmp_path: Path, cache: Path, files: dict[str, str], words: list[str]
) -> None:
    """The model can still be run from token ids; what text needs is said with the user's path."""
    folder = llama(tmp_path / "m", tokenizer=None)
    for name, text in files.items():
        (folder / name).write_text(text)
    bundle = resolve_model(folder, cache=cache)
    text = TextCodec(bundle.path, bundle.spec)
    assert text.ids([3, 4], 64) == [3, 4]
    with pytest.raises(CheckpointError) as caught:
        text.ids("hello", 64)
    assert str(cache) not in str(caught.value) and "\n" not in str(caught.value)
    for word in (str(folder), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "text", ["{}", '{"version": "1.0", "model": {"type": "New"}}', "[]", "cut"]
)
def test_a_tokenizer_that_cannot_be_read_is_not_converted(
    tmp_path: Path, cache: Path, text: str
) -> None:
    path = llama(tmp_path / "m") / "tokenizer.json"
    path.write_text(byte_level_tokenizer().to_str()[:900] if text == "cut" else text)
    refused(tmp_path / "m", cache, str(path))
