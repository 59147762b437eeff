"""Models with int8 neurons: converted, run, predicted, trained on and refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from support.models import TinyLlama, random_tensors, write_llama
from support.opt_models import TinyOpt, random_opt_tensors, write_opt
from support.oracle import Oracle, top2_margin

from hotcold.native.abi.formats import FORMATS
from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.model.checkpoints.bundle import Bundle, look_at, resolve_model
from hotcold.runtime.model.checkpoints.convert import header_digest
from hotcold.runtime.offline.training.dense import DenseModel
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.weights.gguf import check_gguf
from hotcold.runtime.weights.weights import WeightStore

MODEL = TinyLlama(d=88, layers=3, neurons=131, heads=4, kv_heads=2, dtype="float16", seed=4)
PARTS = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
INT8 = FORMATS["int8"]


def quantised(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Nearest multiples of float16(largest / 127), 64 weights at a time."""
    out = np.zeros_like(rows)
    for row, to in zip(rows, out, strict=True):
        for begin in range(0, len(row), 64):
            group = row[begin : begin + 64]
            scale = np.float32(np.float16(np.abs(group).max() / 127))
            to[begin : begin + 64] = np.round(group / scale) * scale
    return out


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("models") / "float16", MODEL)


@pytest.fixture(scope="module")
def dequantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint in float32 that the int8 bundle stands for."""
    tensors = {}
    for name, value in random_tensors(MODEL).items():
        held = value.astype(np.float16).astype(np.float32)
        if "down_proj" in name:
            held = quantised(held.T).T
        elif "gate_proj" in name or "up_proj" in name:
            held = quantised(held)
        tensors[name] = held
    folder = tmp_path_factory.mktemp("models") / "float32"
    return write_llama(folder, replace(MODEL, dtype="float32"), tensors)


def session(model: Path, **options: Any) -> LocalSession:
    options = {"predictor": "exact", "dtype": "int8", **options}
    prepared = prepare_model(EngineConfig(model=model, **options))
    return LocalSession(deploy(prepared, solve(prepared)))


def ids_of(count: int) -> list[int]:
    return np.random.default_rng(0).integers(3, MODEL.vocab, count).tolist()


def test_only_the_neurons_are_quantised(source: Path, dequantised: Path) -> None:
    made, plain = resolve_model(source, "int8"), resolve_model(source)
    assert (made.spec.dtype, made.spec.neuron_dtype) == ("float16", "int8")
    assert made.checksum != plain.checksum and made.path != plain.path
    assert [part.bytes for part in made.record.parts] == [INT8.part_bytes(88)] * 3 == [112] * 3
    assert (made.record.bytes, made.record.fields()["scales"]) == (384, 96)
    expected = Oracle.load(dequantised).tensors
    with WeightStore.open(made) as store, WeightStore.open(plain) as whole:
        for name in plain.tensors:
            if not name.endswith(".neurons"):
                np.testing.assert_array_equal(store.array(name), whole.array(name))
        for part, name in PARTS.items():
            rows = store.neuron_rows(1, part)  # type: ignore[arg-type]
            exact = expected[f"model.layers.1.mlp.{name}.weight"]
            np.testing.assert_array_equal(rows, exact.T if part == "down" else exact)


def test_a_bundle_keeps_its_format(source: Path, tmp_path: Path) -> None:
    made = resolve_model(source, "int8")
    assert resolve_model(made.path).spec == resolve_model(made.path, "int8").spec == made.spec
    assert look_at(source, "int8")[1] == made.spec
    with pytest.raises(ConfigError, match="holds int8, dtype float16 was asked for"):
        resolve_model(made.path, "float16")
    with pytest.raises(ConfigError, match="holds float16, dtype int8 was asked for"):
        resolve_model(resolve_model(source).path, "int8")
    with pytest.raises(ConfigError, match="dtype 'int4' is unknown; choose one of .*, int8"):
        resolve_model(source, "int4")


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("int5", "neuron_dtype 'int5' is not possible"),
        ("float16", "neuron_dtype 'float16' is not possible"),
        (None, "the tensors in bundle.json are not those its spec implies"),
    ],
)
def test_a_header_that_names_another_format_is_refused(
    source: Path, tmp_path: Path, kind: str | None, match: str
) -> None:
    folder = Path(shutil.copytree(resolve_model(source, "int8").path, tmp_path / "b"))
    header = json.loads((folder / "bundle.json").read_text())
    header["spec"]["neuron_dtype"] = kind
    header["header_sha256"] = header_digest(header)
    (folder / "bundle.json").write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match=match):
        resolve_model(folder)


def test_what_no_scale_reaches_is_refused(tmp_path: Path) -> None:
    model = replace(MODEL, dtype="float32", layers=1)
    tensors = random_tensors(model)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 70] = 1e9
    folder = write_llama(tmp_path / "m", model, tensors)
    with pytest.raises(CheckpointError, match="up rows of layer 0 of .*1e\\+09 is beyond int8"):
        resolve_model(folder, "int8")


def test_tokens_are_those_of_the_dequantised_weights(source: Path, dequantised: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(dequantised, dtype=torch.float32)
    prompt = ids_of(9)
    with session(source) as local:
        sampling = Sampling(max_tokens=40, ignore_eos=True)
        ours = [id_ for id_, _ in local.sample(prompt, sampling)]
        logits, _ = local.logits(prompt + ours)
    with torch.inference_mode():
        expected = model.eval()(torch.tensor([prompt + ours])).logits[0].double().numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)
    chosen = expected[len(prompt) - 1 : -1]
    clear = top2_margin(chosen) > 2e-3
    assert len(ours) == 40 and clear.mean() > 0.9
    assert np.array(ours)[clear].tolist() == chosen.argmax(axis=-1)[clear].tolist()


@pytest.mark.parametrize("predictor", ["exact", "low-rank", "window"])
@pytest.mark.parametrize("store", ["file", "private"])
def test_threads_batch_and_store_change_no_bit(source: Path, predictor: str, store: str) -> None:
    ids, runs = ids_of(37), []
    for threads, batch in [(1, 32), (2, 32), (2, 1), (1, 5)]:
        asked = {"threads": threads, "max_batch": batch, "predictor": predictor, "store": store}
        with session(source, **asked) as local:
            runs.append(local.logits(ids)[0])
    for other in runs[1:]:
        np.testing.assert_array_equal(runs[0], other)


@pytest.mark.parametrize("vram", [None, 0, "1GiB", "300KiB"])
@pytest.mark.parametrize("by", ["predictor", "executors"])
def test_any_split_gives_the_same_logits(
    source: Path, dequantised: Path, vram: Any, by: str
) -> None:
    ids = ids_of(30)
    expected = Oracle.load(dequantised).forward(ids).logits_TV
    with session(source, vram=vram, settings={"predictor.by": by}) as local:
        logits, _ = local.logits(ids)
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)


def test_early_lists_leave_out_the_unpredicted(source: Path, dequantised: Path) -> None:
    ids, asked = ids_of(30), {"vram": 0, "predictor": "low-rank", "schedule": "lookahead"}
    with session(source, audit=2, **asked) as local:
        logits, masks_TLN = local.logits(ids)
        assert local.segment.actor_state("cpu").audit_rows > 0
    trace = Oracle.load(dequantised).forward(ids, masks_LTN=masks_TLN.transpose(1, 0, 2))
    assert 0.05 < masks_TLN.mean() < 0.95
    np.testing.assert_allclose(logits, trace.logits_TV, atol=1e-3, rtol=0)


def test_bytes_are_those_of_the_parts(source: Path) -> None:
    with session(source, vram=0, max_batch=1) as local:
        ids = ids_of(20)
        _, masks_TLN = local.logits(ids)
        states = {actor: local.segment.actor_state(actor) for actor in local.executors}
    rows = len(ids) * MODEL.layers * MODEL.neurons
    row = 88 + 2 * 2
    assert states["predictor"].bytes == rows * row
    assert states["cpu"].bytes == 2 * int(masks_TLN.sum()) * row


def test_biases_stay_exact(tmp_path: Path) -> None:
    model = TinyOpt(dtype="float16")
    made = resolve_model(write_opt(tmp_path / "opt", model), "int8")
    values = {k: v.astype(np.float16) for k, v in random_opt_tensors(model).items()}
    with WeightStore.open(made) as store:
        name = "model.decoder.layers.0.fc1"
        np.testing.assert_array_equal(store.neuron_biases(0), values[f"{name}.bias"])
        gate = values[f"{name}.weight"].astype(np.float32)
        np.testing.assert_array_equal(store.neuron_rows(0, "gate"), quantised(gate))


def test_training_sees_the_same_model(source: Path, dequantised: Path) -> None:
    made = resolve_model(source, "int8")
    ids = ids_of(16)
    with WeightStore.open(made) as store:
        model = DenseModel(made, store, 16)
        logits = logits_of(model, ids)
    expected = Oracle.load(dequantised).forward(ids).logits_TV
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)


def logits_of(model: DenseModel, ids: list[int]) -> NDArray[Any]:
    with torch.inference_mode():
        return np.asarray(model.logits(model.hidden(torch.tensor([ids]))))


def test_what_cannot_hold_it_says_so(source: Path) -> None:
    made: Bundle = resolve_model(source, "int8")
    with pytest.raises(ConfigError, match="this one is llama in int8"):
        check_gguf(made.spec)
    with pytest.raises(ConfigError, match="this one is llama in int8"):
        check_gguf(made.spec, powerinfer=True)
