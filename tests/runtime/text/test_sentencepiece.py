"""tokenizer.model alone, and the same vocabulary in a GGUF file."""

import json
import random
from pathlib import Path

import gguf
import pytest
from support.models import TinyLlama, write_llama
from support.sentencepiece_files import encode, model_bytes, vocabulary

from hotcold.native.errors import CheckpointError
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.model.checkpoints.tokenizer_files import read_tokenizer
from hotcold.runtime.model.gguf.companions import companions_of
from hotcold.runtime.model.gguf.header import read_header
from hotcold.runtime.text.tokenizer import Tokenizer

TEXTS = ["hello world", " hello  wor\n", "\u65e5 hello", "</s> hello", "", "lllllooo hhhe"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("spm")
    (made / "tokenizer.model").write_bytes(model_bytes())
    (made / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    )
    return made


def in_gguf(path: Path) -> Path:
    """A GGUF file that holds the vocabulary and nothing else."""
    writer = gguf.GGUFWriter(path, "llama")
    pieces = vocabulary()
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _, _ in pieces])
    writer.add_token_scores([score for _, score, _ in pieces])
    writer.add_token_types([kind for *_, kind in pieces])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file):
        write()
    writer.close()
    return path


def test_pieces_are_merged_as_sentencepiece_does(folder: Path, tmp_path: Path) -> None:
    ours = Tokenizer.load(folder)
    for name, text in companions_of(read_header(in_gguf(tmp_path / "v.gguf"))).items():
        (tmp_path / name).write_text(text)
    from_gguf = Tokenizer.load(tmp_path)
    rng = random.Random(3)  # noqa: S311 - no secret
    drawn = ["".join(rng.choices("helowrd  \u00fc", k=rng.randrange(30))) for _ in range(200)]
    for text in TEXTS + drawn:
        assert ours.encode(text) == [1, *encode(text)], text
        assert from_gguf.encode(text) == [1, *encode(text)], text
        assert ours.decode(ours.encode(text)) == text
    assert ours.eos_ids == from_gguf.eos_ids == (2,)


def test_added_tokens_and_special_ones(folder: Path, tmp_path: Path) -> None:
    count = len(vocabulary())
    said = json.loads((folder / "tokenizer_config.json").read_text())
    said["added_tokens_decoder"] = {
        str(count): {"content": "<|im_start|>", "special": True},
        str(count + 1): {"content": "<think>", "special": False},
    }
    (tmp_path / "tokenizer.model").write_bytes(model_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    tokenizer = Tokenizer.load(tmp_path)
    assert count in tokenizer.encode("<|im_start|>hello", special=True)
    assert count not in tokenizer.encode("<|im_start|>hello")
    assert count + 1 in tokenizer.encode("<think>hello")
    assert tokenizer.encode("<tool>")[1:] == [count - 1]
    said["added_tokens_decoder"] = {str(count + 7): {"content": "<|x|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match="out of turn"):
        read_tokenizer(tmp_path)


def test_unigram_and_single_spaces(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(model_bytes(bpe=False, spaces=True))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode("  hello   world ")) == "hello world"


def test_a_bundle_has_tokenizer_json_of_it(folder: Path, tmp_path: Path) -> None:
    source = write_llama(tmp_path / "hf", TinyLlama(tokenizer=None, vocab=300))
    (source / "tokenizer.model").write_bytes(model_bytes())
    bundle = resolve_model(source, cache=tmp_path / "c")
    assert (bundle.path / "tokenizer.json").is_file()
    made = Tokenizer.load(bundle.path)
    assert made.encode(TEXTS[0]) == [1, *encode(TEXTS[0])]


@pytest.mark.parametrize("raw", [b"\x0a\xff\xff\xff\xff\x0f", b"\x0b", b"\x12\x02\x18\x03", b"x"])
def test_what_is_no_model_is_one_line(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(raw)
    with pytest.raises(CheckpointError, match="tokenizer.model") as error:
        read_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
