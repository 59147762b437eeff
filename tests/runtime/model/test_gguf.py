"""GGUF files as models: the bundle of a file is the one of the folder it was made of."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from support import gguf_files
from support.models import TinyLlama, random_tensors, write_llama

from hotcold.native.errors import CheckpointError
from hotcold.runtime import embedded
from hotcold.runtime.model.checkpoints.bundle import look_at, resolve_model
from hotcold.runtime.model.checkpoints.conversion import convert_into
from hotcold.runtime.text.tokenizer import Tokenizer

Kind = gguf.GGMLQuantizationType
RELU = {"hotcold.hidden_act": "relu"}
TEXTS = ("Hello, world  12345!\n\n it's", "</s> is text", "\u65e5\u672c \U0001f600 \u00fcber", "")
# Types whose quantisation the gguf package can make, and one file with several of them.
QUANTISED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "MXFP4")


def same_tokens(made: Path, source: Path) -> None:
    ours, theirs = (Tokenizer.load(folder) for folder in (made, source))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
    assert ours.encode("a</s>b", special=True) == theirs.encode("a</s>b", special=True)
    ids = theirs.encode(TEXTS[0])
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.eos_ids == theirs.eos_ids


def test_the_embedded_model_as_gguf_is_the_embedded_model(tmp_path: Path) -> None:
    folder = embedded.path()
    file = gguf_files.write(tmp_path / "model.gguf", folder, Kind.F16, extra=RELU)
    made, source = resolve_model(file, cache=tmp_path / "c"), resolve_model()
    assert made.checksum == source.checksum  # spec and every byte of the weights
    assert made.source == str(file)
    same_tokens(made.path, folder)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_plain_types_are_kept(tmp_path: Path, kind: str) -> None:
    dtype = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[kind]
    folder = write_llama(tmp_path / "hf", TinyLlama(dtype=dtype, tied=kind == "F16"))
    file = gguf_files.write(tmp_path / "m.gguf", folder, Kind[kind], extra=RELU)
    cache = tmp_path / "c"
    made, source = resolve_model(file, cache=cache), resolve_model(folder, cache=cache)
    assert made.spec == source.spec and made.checksum == source.checksum


def test_quantised_types_are_dequantised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = TinyLlama(d=256, neurons=256, heads=4, kv_heads=4, layers=1, hidden_act="relu")
    values = {n: v.astype(np.float16).astype(np.float32) for n, v in random_tensors(model).items()}
    folder = write_llama(tmp_path / "hf", model, values)
    kinds = {name: QUANTISED[i % len(QUANTISED)] for i, name in enumerate(values)}
    by_name = {gguf_files.stored_name(name): Kind[kind] for name, kind in kinds.items()}
    file = gguf_files.write(tmp_path / "m.gguf", folder, by_name.__getitem__, extra=RELU)
    rounded: dict[str, Any] = {}
    for name, value in values.items():
        if value.ndim == 1:
            rounded[name] = value
            continue
        back = dequantize(quantize(value, Kind[kinds[name]]), Kind[kinds[name]])
        rounded[name] = back.astype(np.float16).astype(np.float32)
    expected = write_llama(
        tmp_path / "back", TinyLlama(**{**vars(model), "dtype": "float16"}), rounded
    )
    cache = tmp_path / "c"
    with caplog.at_level("INFO"):
        made = resolve_model(file, cache=cache)
    assert made.checksum == resolve_model(expected, cache=cache).checksum
    assert "are dequantised" in caplog.text and "in Q4_0" in caplog.text
    wide = resolve_model(file, "float32", cache)
    assert wide.spec.dtype == "float32"


def test_split_files_by_any_part_or_their_folder(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf")
    (tmp_path / "split").mkdir()
    first = gguf_files.write(tmp_path / "split" / "m.gguf", folder, extra=RELU, split=3)
    second = first.with_name("m-00002-of-00003.gguf")
    cache = tmp_path / "c"
    expected = resolve_model(folder, cache=cache).checksum
    for model in (first, second, first.parent):
        assert resolve_model(model, cache=cache).checksum == expected
    assert len(list((cache / "bundles").iterdir())) == 4  # two bundles and their locks
    second.unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of 3 parts.*m-00002-of-00003"):
        resolve_model(first, cache=cache)


def test_a_folder_of_several_asks_which(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf")
    for name in ("a", "b"):
        (tmp_path / "two").mkdir(exist_ok=True)
        gguf_files.write(tmp_path / "two" / f"{name}.gguf", folder, extra=RELU)
    with pytest.raises(CheckpointError, match=r"more than one model as GGUF \(a.gguf, b.gguf\)"):
        look_at(tmp_path / "two")


def test_keys_say_rope_heads_and_activation(tmp_path: Path) -> None:
    model = TinyLlama(head_dim=10, rope_theta=5e5, hidden_act="silu")
    folder = write_llama(tmp_path / "hf", model)
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.5}
    spec = look_at(gguf_files.write(tmp_path / "m.gguf", folder, extra=scaling))[1]
    assert spec.rope_scaling == {"rope_type": "linear", "factor": 2.5}
    assert (spec.head_dim, spec.rope_theta, spec.norm_eps) == (10, 5e5, 1e-5)
    assert spec.activation == "silu"  # llama.cpp's Llama, where nothing else is said
    assert (spec.bos_ids, spec.eos_ids) == ((1,), (2,))


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3s_frequencies_are_read_back(tmp_path: Path, factor: float) -> None:
    from hotcold.runtime.model.gguf.kinds import llama3_scaling
    from hotcold.runtime.model.rotary import inverse_frequencies

    rope = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    folder = write_llama(tmp_path, TinyLlama(head_dim=64, rope_theta=5e5, rope=rope))
    spec = look_at(folder)[1]
    plain = 5e5 ** -(np.arange(0, 64, 2) / 64)
    factors = (plain / inverse_frequencies(spec)).astype(np.float32)
    assert llama3_scaling(factors, 5e5, 64) == spec.rope_scaling
    assert llama3_scaling(factors * np.linspace(1, 2, 32), 5e5, 64) is None


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"general.architecture": "gpt2"}, ["general.architecture 'gpt2'", "llama"]),
        ({"llama.expert_count": 8}, ["mixture of experts"]),
        ({"hotcold.hidden_act": "softplus"}, ["'softplus'"]),
        ({"llama.rope.scaling.type": "foo"}, ["'foo'"]),
        ({"tokenizer.ggml.pre": "mystery"}, ["'mystery'", "token ids"]),
    ],
)
def test_what_is_not_supported_is_named(
    tmp_path: Path, extra: dict[str, Any], words: list[str]
) -> None:
    folder = write_llama(tmp_path / "hf")
    arch = extra.pop("general.architecture", "llama")
    file = tmp_path / "m.gguf"
    pre = extra.pop("tokenizer.ggml.pre", None)
    gguf_files.write(file, folder, arch=arch, extra={**RELU, **extra})
    if pre:
        file.write_bytes(
            file.read_bytes().replace(
                b"\x05" + bytes(7) + b"gpt-2", b"\x07" + bytes(7) + pre.encode(), 1
            )
        )
    with pytest.raises(CheckpointError) as error:
        look_at(file)
    assert all(word in str(error.value) for word in (*words, str(file))), error.value
    assert "\n" not in str(error.value)


def test_a_file_of_ones_own_is_a_bundle_by_convert(tmp_path: Path) -> None:
    file = gguf_files.write(tmp_path / "m.gguf", write_llama(tmp_path / "hf"), extra=RELU)
    made = convert_into(tmp_path / "out", file, "int8")
    assert made.spec.neuron_format == "int8" and made.source == str(file)
    assert Tokenizer.in_folder(made.path)
