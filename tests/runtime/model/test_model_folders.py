"""Model folders as people have them: each is refused in one sentence, and nothing enters the cache.

The cases follow public reports: pointers of Git LFS, web pages under a file's name, weights of
other frameworks, shards that are missing, links to nothing, adapters, quantised checkpoints.
"""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import (
    TinyLlama,
    random_tensors,
    write_safetensors,
)
from support.refusals import INDEX, POINTER, SINGLE, llama, refused

from hotcold.runtime.model.checkpoints.bundle import Bundle, resolve_model

PAGE = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>please</body></html>"
Make = Callable[[Path], Any]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def replaced(name: str, content: str | bytes, **kind: Any) -> Make:
    """A good model, one of its files replaced."""

    def make(folder: Path) -> None:
        llama(folder, **kind)
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)

    return make


def without(*names: str, plus: dict[str, str] | None = None, **kind: Any) -> Make:
    """A good model without some files, and with others."""

    def make(folder: Path) -> None:
        llama(folder, **kind)
        for name in names:
            (folder / name).unlink()
        for name, text in (plus or {}).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)

    return make


def renamed(old: str, new: str, **kind: Any) -> Make:
    def make(folder: Path) -> None:
        llama(folder, **kind)
        (folder / old).rename(folder / new)

    return make


def with_tensors(change: Callable[[dict[str, Any]], dict[str, Any]], **kind: Any) -> Make:
    """A model whose tensors were changed."""

    def make(folder: Path) -> None:
        llama(folder, **kind)
        write_safetensors(folder / SINGLE, change(dict(random_tensors(TinyLlama(**kind)))))

    return make


def linked(name: str) -> Make:
    def make(folder: Path) -> None:
        llama(folder)
        (folder / name).unlink()
        (folder / name).symlink_to("../../blobs/46cdbac5")

    return make


# ---- files that are not what their name says --------------------------------------------------

IMPOSTORS = {
    "pointer": (POINTER, ["Git LFS pointer", "13476925163 bytes", "git lfs pull"]),
    "annex": ("/annex/objects/SHA256E-s9--ab.bin\n", ["git-annex", "git annex get"]),
    "page": (PAGE, ["HTML page ('Sign in')", "hf download"]),
    "xml": ('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', ["XML answer"]),
    "answer": ("Invalid username or password.", ["'Invalid username or password.'", "answer"]),
    "json answer": ('{"error":"Access is restricted."}', ["Access is restricted", "answer"]),
    "link": ("../../blobs/46cdbac5c500458cbc2b", ["../../blobs/46cdbac5", "cp -rL"]),
    "empty": ("", ["is empty", "download it again"]),
    "gguf": ("GGUF\x03\0\0\0\0\0\0\0\0\0\0\0", ["GGUF"]),
    "zip": ("PK\x03\x04\0\0\0\0\0\0\0\0\0\0", ["torch.save", "save_pretrained"]),
    "conflict": ("<<<<<<< HEAD\n{}\n=======\n", ["merge conflict"]),
    "zeros": (bytes(4000), ["begins with zeros", "download it again"]),
    "gzip": (gzip.compress(b"{}"), ["gzip", "gunzip"]),
}
NAMES = [SINGLE, "config.json", "tokenizer.json", "generation_config.json"]
NAMES += ["tokenizer_config.json", "special_tokens_map.json", "predictors.safetensors"]


PLACES = [  # where a file is to be JSON, a JSON answer is no other kind of file
    (kind, name)
    for kind in IMPOSTORS
    for name in NAMES
    if kind != "json answer" or not name.endswith(".json")
]


@pytest.mark.parametrize(("kind", "name"), PLACES)
def test_a_file_that_is_something_else(tmp_path: Path, cache: Path, kind: str, name: str) -> None:
    content, words = IMPOSTORS[kind]
    folder = tmp_path / "m"
    replaced(name, content)(folder)
    refused(folder, cache, str(folder / name), *words)


@pytest.mark.parametrize("name", [INDEX, "model-00002-of-00002.safetensors", "activations.npz"])
def test_a_pointer_among_other_files(tmp_path: Path, cache: Path, name: str) -> None:
    replaced(name, POINTER, shards=2)(tmp_path / "m")
    refused(tmp_path / "m", cache, str(tmp_path / "m" / name), "Git LFS pointer", "git lfs pull")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", SINGLE])
def test_a_link_to_nothing(tmp_path: Path, cache: Path, name: str) -> None:
    linked(name)(tmp_path / "m")
    refused(tmp_path / "m", cache, str(tmp_path / "m" / name), "../../blobs/46cdbac5", "cp -rL")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"vocab_size": 300,', '"vocab_size": 300,,', ["not valid JSON"]),
        ("}", ",}", ["remove the comma"]),
        ("{", "// a Llama\n{", ["no comments"]),
        ('"', "'", ["json.dumps"]),
        ('"initial": 1}', "", []),
    ],
)
def test_slips_in_json(tmp_path: Path, cache: Path, old: str, new: str, words: list[str]) -> None:
    path = llama(tmp_path / "m") / "config.json"
    text = path.read_text()
    changed = text.replace(old, new) if old in text else text[: len(text) // 2]
    path.write_text(changed)
    refused(tmp_path / "m", cache, str(path), "not valid JSON", *words)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_with_a_byte_order_mark_is_read(tmp_path: Path, cache: Path, encoding: str) -> None:
    path = llama(tmp_path / "m") / "config.json"
    path.write_bytes(path.read_text().encode(encoding))
    assert resolve_model(tmp_path / "m", cache=cache).spec.n_layers == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\r\n",
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data[:-100],
        lambda data: data[:9000],
        lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
        lambda data: data[:-6144] + bytes(6144),  # the last matrix
    ],
)
def test_weights_of_another_size(
    tmp_path: Path, cache: Path, change: Callable[[bytes], bytes]
) -> None:
    path = llama(tmp_path / "m") / SINGLE
    path.write_bytes(change(path.read_bytes()))
    refused(tmp_path / "m", cache, str(path), "download it again")


def test_an_embedding_that_ends_in_zeros_is_one(tmp_path: Path, cache: Path) -> None:
    """Vocabularies are padded, to a multiple of 64 for example, by rows of zeros."""
    tensors = dict(random_tensors(TinyLlama()))
    head = tensors.pop("lm_head.weight").copy()
    head[-200:] = 0
    folder = llama(tmp_path / "m")
    write_safetensors(folder / SINGLE, {**tensors, "lm_head.weight": head})
    assert resolve_model(folder, cache=cache).spec.vocab_size == 300


# ---- weights under other names, of other frameworks, in pieces ---------------------------------

SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
BIN = {f"pytorch_model-0000{i}-of-00002.bin": "PK" for i in (1, 2)}
FOLDERS: dict[str, tuple[Make, list[str]]] = {
    "sharded pickles": (
        without(SINGLE, plus={**BIN, "pytorch_model.bin.index.json": "{}"}),
        ["pytorch_model-00001-of-00002.bin", "pickle", "save_pretrained"],
    ),
    "one pickle": (renamed(SINGLE, "pytorch_model.bin"), ["pickle", "save_pretrained"]),
    "pointers to pickles": (
        without(SINGLE, plus=dict.fromkeys(BIN, POINTER)),
        ["pytorch_model-00001-of-00002.bin", "Git LFS pointer"],
    ),
    "another pickle": (renamed(SINGLE, "last.ckpt"), ["last.ckpt", "pickle"]),
    "tensorflow": (renamed(SINGLE, "tf_model.h5"), ["tf_model.h5", "from_tf=True"]),
    "flax": (renamed(SINGLE, "flax_model.msgpack"), ["flax_model.msgpack", "from_flax=True"]),
    "onnx": (renamed(SINGLE, "model.onnx"), ["model.onnx", "ONNX"]),
    "gguf": (renamed(SINGLE, "m.gguf"), ["m.gguf", "GGUF"]),
    "deepspeed": (renamed(SINGLE, "zero_to_fp32.py"), ["DeepSpeed", "safe_serialization"]),
    "mistral": (renamed(SINGLE, "consolidated.safetensors"), ["Mistral", "model-*.safetensors"]),
    "meta": (renamed(SINGLE, "consolidated.00.pth"), ["Meta", "pickle", "-hf"]),
    "another name": (renamed(SINGLE, "model.fp16.safetensors"), ["rename it to", SINGLE]),
    "no index, one shard missing": (
        without(INDEX, SHARDS[1], shards=3),
        ["1 of 3 shards", SHARDS[1], "download"],
    ),
    "index, one shard missing": (without(SHARDS[1], shards=3), ["1 of 3 shards", SHARDS[1]]),
    "index, all shards missing": (without(*SHARDS, shards=3), ["3 of 3 shards", INDEX]),
    "an interrupted download": (
        renamed(SHARDS[1], f"{SHARDS[1]}.incomplete", shards=3),
        [SHARDS[1], "did not finish"],
    ),
    "two sets of shards": (
        without(INDEX, plus={"model-00001-of-00002.safetensors": ""}, shards=3),
        ["two sets", "of 2 and of 3"],
    ),
    "a stray file beside an index": (
        without(plus={SINGLE: "x"}, shards=3),
        ["two sets", SINGLE, INDEX, "move one"],
    ),
    "an adapter": (
        without(SINGLE, plus={"adapter_config.json": '{"base_model_name_or_path": "a/base"}'}),
        ["LoRA adapter", "'a/base'", "merge_and_unload"],
    ),
    "an adapter alone": (
        without("config.json", SINGLE, plus={"adapter_config.json": "{}"}),
        ["LoRA adapter", "merge_and_unload"],
    ),
    "quantised by name": (
        renamed(SINGLE, "gptq_model-4bit-128g.safetensors"),
        ["quantised", "gptq_model", "float16"],
    ),
    "quantised by a file": (
        without(SINGLE, plus={"quantize_config.json": "{}", "x.safetensors": ""}),
        ["quantised", "quantize_config.json"],
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_weights_we_do_not_read(tmp_path: Path, cache: Path, kind: str) -> None:
    make, words = FOLDERS[kind]
    make(tmp_path / "m")
    refused(tmp_path / "m", cache, str(tmp_path / "m"), *words)


def weights(bundle: Bundle) -> bytes:
    return bundle.weights_path.read_bytes()


def test_shards_without_an_index_are_one_model(tmp_path: Path, cache: Path) -> None:
    whole = resolve_model(llama(tmp_path / "whole"), cache=cache)
    without(INDEX, shards=3)(tmp_path / "m")
    assert weights(resolve_model(tmp_path / "m", cache=cache)) == weights(whole)


def test_a_tensor_in_two_shards_without_an_index(tmp_path: Path, cache: Path) -> None:
    without(INDEX, shards=3)(tmp_path / "m")
    write_safetensors(tmp_path / "m" / SHARDS[1], random_tensors(TinyLlama(seed=1)))
    refused(tmp_path / "m", cache, "twice", SHARDS[0], SHARDS[1], "download")


def test_of_a_tensor_in_two_shards_the_index_chooses(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = resolve_model(llama(tmp_path / "whole"), cache=cache)
    folder = llama(tmp_path / "m", shards=2)
    tensors = random_tensors(TinyLlama())
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    second = "model-00002-of-00002.safetensors"
    other = {n: raw if places[n] == second else raw + 1 for n, raw in tensors.items()}
    write_safetensors(folder / second, other)
    assert weights(resolve_model(folder, cache=cache)) == weights(whole)
    assert second in caplog.text and "model.embed_tokens.weight" in caplog.text


def test_an_index_whose_shards_are_gone(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Saved again as one file, the old index forgotten."""
    whole = resolve_model(llama(tmp_path / "whole"), cache=cache)
    folder = llama(tmp_path / "m")
    places = dict.fromkeys(random_tensors(TinyLlama()), "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    assert weights(resolve_model(folder, cache=cache)) == weights(whole)
    assert INDEX in caplog.text and "not there" in caplog.text


def test_an_index_of_the_single_file(tmp_path: Path, cache: Path) -> None:
    folder = llama(tmp_path / "m")
    places = dict.fromkeys(random_tensors(TinyLlama()), SINGLE)
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    assert resolve_model(folder, cache=cache).spec.n_layers == 2


# ---- tensors that say what went wrong ----------------------------------------------------------


def prefixed(start: str) -> Make:
    return with_tensors(lambda tensors: {start + name: raw for name, raw in tensors.items()})


def extended(ending: str, drop: str = "") -> Make:
    """Every projection with one more tensor beside it, and without its weights' own ending."""

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        for name in [name for name in tensors if "proj" in name]:
            tensors[name.removesuffix(drop) + ending] = np.zeros(4, np.uint8)
            if drop:
                del tensors[name]
        return tensors

    return with_tensors(change)


def dropped(name: str, **kind: Any) -> Make:
    return with_tensors(lambda all_: {n: raw for n, raw in all_.items() if n != name}, **kind)


QUANTISED = "float16 or bfloat16"
TENSORS: dict[str, tuple[Make, list[str]]] = {
    "gptq": (extended(".g_idx", ".weight"), ["GPTQ", QUANTISED]),
    "awq": (extended(".qweight", ".weight"), ["AWQ", QUANTISED]),
    "nf4": (extended(".quant_state.bitsandbytes__nf4"), ["bitsandbytes", QUANTISED]),
    "int8": (extended(".SCB", ".weight"), ["bitsandbytes, 8 bits", QUANTISED]),
    "fp8": (extended("_scale_inv"), ["FP8", QUANTISED]),
    "packed": (extended("_packed", ""), ["compressed-tensors", QUANTISED]),
    "peft": (prefixed("base_model.model."), ["'base_model.model.'", "merge_and_unload"]),
    "data parallel": (prefixed("module."), ["'module.'", "model.module"]),
    "compiled": (prefixed("_orig_mod."), ["'_orig_mod.'", "compiled"]),
    "other names": (prefixed("transformer.h."), ["transformer.h.", "save_pretrained"]),
    "a layer short": (
        dropped("model.layers.1.mlp.up_proj.weight"),
        ["1 of 21", "layers.1.mlp.up_proj", "download"],
    ),
    "no head": (dropped("lm_head.weight"), ["lm_head.weight", '"tie_word_embeddings": true']),
    "no embedding": (
        dropped("model.embed_tokens.weight"),
        ["embed_tokens", '"tie_word_embeddings": true'],
    ),
    "tokens added": (
        with_tensors(lambda _: dict(random_tensors(TinyLlama(vocab=304)))),
        ["[304, 32]", "[300, 32]", "set vocab_size to 304"],
    ),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_do_not_fit(tmp_path: Path, cache: Path, kind: str) -> None:
    make, words = TENSORS[kind]
    make(tmp_path / "m")
    refused(tmp_path / "m", cache, str(tmp_path / "m"), *words)


def test_a_head_that_config_json_does_not_mention(tmp_path: Path, cache: Path) -> None:
    """The advice works: with it the folder is a model."""
    folder = llama(tmp_path / "m", tied=True, config={"tie_word_embeddings": None})
    refused(folder, cache, "lm_head.weight", '"tie_word_embeddings": true')
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert resolve_model(folder, cache=cache).spec.tied


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8"])
def test_quantisation_by_config(tmp_path: Path, cache: Path, method: str) -> None:
    folder = llama(tmp_path / "m", config={"quantization_config": {"quant_method": method}})
    refused(folder, cache, "config.json", f"quantised by {method}", QUANTISED)
