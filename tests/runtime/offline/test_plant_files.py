"""Folders that `plant` writes: valid for everyone, never half-written; and what writes them."""

import errno
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.oracle import Oracle
from support.planted import options, session

from hotcold.native.errors import BackendError, BudgetError, ConfigError
from hotcold.runtime.model.checkpoints.bundle import open_bundle, resolve_model
from hotcold.runtime.model.checkpoints.digest import BlockWriter, file_digest
from hotcold.runtime.offline.plant import planting, room, streams
from hotcold.runtime.offline.plant.making import PlantReport, plant
from hotcold.runtime.offline.plant.options import PlantOptions
from hotcold.runtime.offline.plant.tokens import byte_tokenizer
from hotcold.runtime.options.config import Sampling
from hotcold.runtime.profiles.profile import ActivationProfile
from hotcold.runtime.text.tokenizer import Tokenizer
from hotcold.runtime.weights import host_memory as memory


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> PlantReport:
    path = tmp_path_factory.mktemp("planted") / "exact"
    return plant(options("tiny"), path, form="hf", device="cpu")


# ---- valid checkpoints ---------------------------------------------------------------------------
def test_bundle_and_checkpoint_are_the_same_model(exact: PlantReport, tmp_path: Path) -> None:
    made = plant(options("tiny"), tmp_path / "bundle", device="cpu")
    bundle = open_bundle(made.path)
    assert bundle.checksum == made.checksum == resolve_model(exact.path, cache=tmp_path).checksum
    assert (made.path / "verified.json").is_file()
    assert bundle.profile_path is not None
    assert ActivationProfile.load(bundle.profile_path).model == made.checksum
    assert (made.density, made.share80) == (exact.density, exact.share80)


@pytest.mark.parametrize("shape", ["tiny", "tiny-opt"])
def test_int8_neurons_are_those_of_the_converted_checkpoint(shape: str, tmp_path: Path) -> None:
    whole = plant(options(shape), tmp_path / "hf", form="hf", device="cpu")
    made = plant(options(shape, dtype="int8"), tmp_path / "bundle", device="cpu")
    assert made.checksum == resolve_model(whole.path, "int8", cache=tmp_path).checksum
    assert (made.spec.dtype, made.spec.neuron_dtype) == ("float16", "int8")
    ids = np.random.default_rng(0).integers(0, made.spec.vocab_size, 60).tolist()
    with session(made.path, predictor="learned", audit=1) as local:
        logits, _ = local.logits(ids)
        states = [local.segment.actor_state(actor) for actor in ("gpu", "cpu")]
    assert sum(state.audit_missed for state in states) == 0
    fired = sum(state.up_down_rows for state in states)
    share = fired / len(ids) / made.spec.n_layers / made.spec.n_neurons
    assert share == pytest.approx(made.density, rel=0.1)
    with session(made.path, predictor="exact") as local:
        np.testing.assert_array_equal(local.logits(ids)[0], logits)


def test_another_seed_is_another_model(exact: PlantReport, tmp_path: Path) -> None:
    first = plant(options("tiny", seed=1), tmp_path / "1", device="cpu")
    second = plant(options("tiny", seed=2), tmp_path / "2", device="cpu")
    assert first.checksum != second.checksum


def test_logits_are_the_oracles_and_those_of_transformers(exact: PlantReport) -> None:
    transformers = pytest.importorskip("transformers")
    oracle = Oracle.load(exact.path)
    ids = np.random.default_rng(0).integers(0, exact.spec.vocab_size, 60).tolist()
    expected = oracle.forward(ids).logits_TV
    model = transformers.AutoModelForCausalLM.from_pretrained(exact.path, dtype=torch.float32)
    with torch.no_grad():
        theirs = model.eval()(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(theirs, expected, atol=1e-3, rtol=0)
    for predictor in ("exact", "learned"):
        with session(exact.path, predictor=predictor) as local:
            logits, _ = local.logits(ids)
        np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exact.path)
    assert tokenizer("a b").input_ids == Tokenizer.load(exact.path).encode("a b")


def test_decoding_walks_on_without_a_loop(exact: PlantReport) -> None:
    sampling = Sampling(max_tokens=400)
    with session(exact.path, predictor="learned") as local:
        sampled = list(local.sample(Tokenizer.load(exact.path).encode("Once"), sampling))
        text = "".join(t.text for t in local.generate("Once", Sampling(max_tokens=8)))
    ids = [id_ for id_, _ in sampled]
    assert len(ids) == 400
    assert len(set(ids)) == 400
    assert np.isfinite([logprob for _, logprob in sampled]).all()
    assert text


# ---- nothing half-written ------------------------------------------------------------------------
def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("full", "file"):
        with pytest.raises(ConfigError, match=name):
            plant(options("tiny"), tmp_path / name, device="cpu")
    assert (tmp_path / "full" / "mine").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    plant(options("tiny"), tmp_path / "empty", device="cpu")
    open_bundle(tmp_path / "empty")


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plant(options("tiny"), tmp_path / "out", device="cpu", progress=fail)
    assert not list(tmp_path.iterdir())

    class Full:
        free = 1000

    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: Full)
    with pytest.raises(BudgetError, match=r"takes .* MiB, .* 1000 B free"):
        plant(options("tiny"), tmp_path / "deep" / "out", device="cpu")
    assert not list(tmp_path.iterdir())


def test_too_little_memory_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the largest model, one layer at a time and the embedding have to fit, not 350 GB."""
    drawing = PlantOptions("opt-175b").drawing(False)
    assert 4e9 < room.working_bytes(drawing) < 12e9
    little = memory.Available(4 << 30, "the machine")
    monkeypatch.setattr(memory, "available", lambda private: little)
    with pytest.raises(BudgetError, match="49152 neurons.*4.0 GiB available; free memory"):
        plant(PlantOptions("opt-175b", layers=1), tmp_path / "deep" / "out", device="cpu")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_meanwhile_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(streams.os, "pwrite", full)
    with pytest.raises(BudgetError, match="No space left"):
        plant(options("tiny"), tmp_path / "out", device="cpu")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_memory_that_runs_out_meanwhile_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def refuse(*arguments: Any) -> torch.Tensor:
        raise error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(planting, "randn", refuse)
    with pytest.raises(BudgetError, match="does not fit the memory of cpu; free memory"):
        plant(options("tiny"), tmp_path / "out", device="cpu")
    assert not list(tmp_path.iterdir())


def test_whoever_was_faster_keeps_the_folder(tmp_path: Path) -> None:
    def other(done: int, total: int) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "mine").write_text("precious")

    with pytest.raises(ConfigError, match="not empty"):
        plant(options("tiny"), tmp_path / "out", device="cpu", progress=other)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError):
        plant(options("tiny"), tmp_path / "out", device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="cuda"):
            plant(options("tiny"), tmp_path / "out", device="cuda")


# ---- parts ---------------------------------------------------------------------------------------
def test_blocks_have_the_checksum_of_their_file(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 40 << 20, np.uint8)
    with closing(BlockWriter(tmp_path / "file")) as out:
        for piece in np.array_split(data, 7):
            out.write(memoryview(piece))
        out.zeros(5)
        digest = out.digest()
    assert (tmp_path / "file").read_bytes() == data.tobytes() + bytes(5)
    assert digest == file_digest(tmp_path / "file")


@pytest.mark.parametrize("vocab", [259, 300, 512])
def test_every_id_has_a_text_and_every_text_its_bytes(vocab: int) -> None:
    tokenizer = byte_tokenizer(vocab)
    assert tokenizer.get_vocab_size() == vocab
    for text in ("plain", "two  blanks\n", "na\u00efve \U0001f600"):
        ids = tokenizer.encode(text).ids
        assert ids[0] == 1
        assert len(ids) == 1 + len(text.encode())
        assert tokenizer.decode(ids) == text
    if vocab > 259:
        assert tokenizer.decode([vocab - 1]) == f" w{vocab - 1}"
