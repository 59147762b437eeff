"""A profile as a job: interrupted, it goes on and ends the same; what does not fit is refused."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import TinyLlama, random_tensors, write_llama

from hotcold.native.errors import BudgetError, CheckpointError, ConfigError
from hotcold.policies.placement.oracle import read_masks
from hotcold.runtime.files import recording
from hotcold.runtime.files.recording import read_recording
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.offline.profiling import job as job_module
from hotcold.runtime.offline.profiling.job import ProfileJob, run_job
from hotcold.runtime.offline.profiling.sampling import SelfText
from hotcold.runtime.offline.profiling.work import BITS, FOLDER, alone
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.profiles.profile import ActivationProfile

UNIT = 300  # tokens; the text below makes 7 of them


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "choose_unit", lambda *_: UNIT)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("models") / "tiny", TinyLlama())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("The old ship lay in the harbour.\n" * 60)
    return path


@pytest.fixture
def job(model: Path, text: Path) -> ProfileJob:
    config = EngineConfig(str(model), predictor="exact", context=40)
    given: Any = {"texts": (text,), "bitmaps": True}
    return ProfileJob(resolve_model(model), config, 40, torch.device("cpu"), 2, **given)


def files(out: Path) -> dict[str, bytes]:
    assert all(path.is_file() for path in out.iterdir()), "work was left behind"
    return {path.name: path.read_bytes() for path in out.iterdir()}


def interrupt_after(units: int) -> Any:
    """A progress report that ends the run as Ctrl-C would, after so many units."""
    left = [units]

    def report(tokens: int, share: float) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    return report


def test_interrupted_at_every_unit_it_ends_the_same(job: ProfileJob, tmp_path: Path) -> None:
    whole = run_job(job, tmp_path / "whole")
    expected = files(tmp_path / "whole")
    assert set(expected) == {"activations.npz", "bitmaps.npz"}
    out, said, ends = tmp_path / "parts", list[str](), 0
    for _ in range(5):  # one unit, two more, and so on: at last all are done, but not written
        try:
            done = run_job(job, out, interrupt_after(2 if ends else 1), said.append)
        except KeyboardInterrupt:
            ends += 1
            assert list(out.iterdir()) == [out / FOLDER], "half a result is in the folder"
    assert ends == 4 and done.resumed_tokens == whole.profile.tokens
    assert files(out) == expected
    resumed = [*(n * (UNIT + 20) for n in (1, 3, 5)), whole.profile.tokens]
    assert said == [f"going on after {tokens:,} tokens" for tokens in resumed]


def test_what_was_half_written_is_written_again(job: ProfileJob, tmp_path: Path) -> None:
    run_job(job, tmp_path / "whole")
    expected = files(tmp_path / "whole")
    out = tmp_path / "out"

    def interrupted() -> Path:
        shutil.rmtree(out, ignore_errors=True)
        with pytest.raises(KeyboardInterrupt):
            run_job(job, out, interrupt_after(2))
        return out / FOLDER

    with open(interrupted() / BITS, "ab") as file:  # the next unit's bits, but not its sums
        file.write(b"\xff" * 1000)
    assert run_job(job, out).resumed_tokens and files(out) == expected
    (interrupted() / "state.npz").write_bytes(b"PK\x03\x04")
    assert not run_job(job, out).resumed_tokens and files(out) == expected
    with open(interrupted() / BITS, "r+b") as file:  # a disk that lost the bits' end
        file.truncate(100)
    assert not run_job(job, out).resumed_tokens and files(out) == expected


def test_the_recording_is_what_oracle_reads(job: ProfileJob, tmp_path: Path) -> None:
    profile = run_job(job, tmp_path / "out").profile
    for path in (tmp_path / "out", tmp_path / "out" / "bitmaps.npz"):
        counts_LN, tokens = read_masks(str(path), (2, 48))
        np.testing.assert_array_equal(counts_LN, profile.counts_LN)
        assert tokens == profile.tokens
    with pytest.raises(ConfigError, match="this model needs uint8"):
        read_masks(str(tmp_path / "out"), (2, 47))  # as many bytes, but other neurons
    found = read_recording(tmp_path / "out")
    assert (found.neurons, found.model, found.source) == (48, job.bundle.checksum, "book.txt")
    assert found.windows[:3] == (40, 40, 40) and sum(found.windows) == tokens
    with np.load(tmp_path / "out" / "bitmaps.npz", allow_pickle=False) as archive:
        bits = np.unpackbits(archive["fired_TLB"], axis=-1, count=48)
    np.testing.assert_array_equal(bits.sum(axis=0), profile.counts_LN)
    run_job(replace(job, bitmaps=False), tmp_path / "out")
    assert set(files(tmp_path / "out")) == {"activations.npz"}, "a recording of another run stayed"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"context": 41}, "another context .40, this one is 41"),
        ({"max_tokens": 900}, "another max tokens .None, this one is 900"),
        ({"bitmaps": False}, "another bitmaps"),
        ({"field": "body"}, "another field"),
        ({"own": SelfText(), "texts": ()}, "another text"),
        ({"device": torch.device("cuda")}, "another device .cpu, this one is cuda"),
    ],
)
def test_other_settings_do_not_go_on(
    job: ProfileJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    says: str,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_job(job, tmp_path / "out", interrupt_after(2))
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match=says) as caught:
        patch.setattr(job_module, "choose_streamed", lambda *_: False)  # asks no GPU
        run_job(replace(job, **change), tmp_path / "out")
    assert "repeat that command" in str(caught.value)
    assert run_job(job, tmp_path / "out").resumed_tokens, "the refusal harmed what was there"


def test_another_model_or_text_does_not_go_on(job: ProfileJob, tmp_path: Path, text: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_job(job, out, interrupt_after(2))
    other = resolve_model(write_llama(tmp_path / "other", TinyLlama(seed=1)))
    with pytest.raises(ConfigError, match="another model"):
        run_job(replace(job, bundle=other), out)
    whole = text.read_text()
    text.write_text(whole + "x")
    with pytest.raises(ConfigError, match="another text"):
        run_job(job, out)
    text.write_text("W" + whole[1:])  # of the same size
    with pytest.raises(ConfigError, match="text has changed since"):
        run_job(job, out)
    text.write_text(whole)
    assert run_job(job, out).resumed_tokens


def test_a_damaged_job_and_a_second_run(job: ProfileJob, tmp_path: Path) -> None:
    work = tmp_path / "out" / FOLDER
    work.mkdir(parents=True)
    with alone(work), pytest.raises(ConfigError, match="another profile is being made in"):
        run_job(job, tmp_path / "out")
    for content in ("{", "[]", '{"job": 1}', '{"job": {}, "unit_tokens": "x"}'):
        (work / "job.json").write_text(content)
        with pytest.raises(ConfigError, match="is damaged"):
            run_job(job, tmp_path / "out")


def test_text_that_cannot_be_used_leaves_nothing(job: ProfileJob, tmp_path: Path) -> None:
    empty, latin, lines = (tmp_path / name for name in ("empty.txt", "latin.txt", "a.jsonl"))
    empty.write_bytes(b"")
    latin.write_bytes(b"fine so far " * 60 + b"caf\xe9")
    lines.write_text('{"body": "x"}\n')
    for path, says in ((empty, "no text to profile"), (latin, "not UTF-8"), (lines, "no field")):
        with pytest.raises(ConfigError, match=says):
            run_job(replace(job, texts=(path,)), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="is missing"):
        run_job(replace(job, texts=(tmp_path / "none.txt",)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_leaves_nothing(job: ProfileJob, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model", TinyLlama(tokenizer=None))
    with pytest.raises(CheckpointError, match="tokenizer"):
        run_job(replace(job, bundle=resolve_model(folder)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(
    job: ProfileJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot write to"):
        run_job(job, tmp_path / "file" / "out")
    before = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "activations.npz":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        before(source, target)

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        run_job(job, tmp_path / "out")
    monkeypatch.setattr("os.replace", before)
    assert run_job(job, tmp_path / "out").resumed_tokens, "what was counted is lost"


def test_skipped_lines_are_told(job: ProfileJob, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps({"text": "the sea " * 20})
    path.write_text("\n".join([good, "{", good, good, "[]", good]))
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_job(replace(job, texts=(path,)), out, interrupt_after(1))
    done = run_job(replace(job, texts=(path,)), out)
    assert done.resumed_tokens and done.skipped.lines == 2
    assert done.profile.source == "a.jsonl (2 lines skipped)"
    assert done.skipped.first == "line 2 of a.jsonl: it is not JSON"


def test_recordings_no_reader_would_take(
    job: ProfileJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "LIMIT_BYTES", 12 * 1001)
    with pytest.raises(ConfigError, match="lower --max-tokens to 1000 or leave out --bitmaps"):
        run_job(replace(job, max_tokens=1001), tmp_path / "out")
    with pytest.raises(ConfigError, match="lower --max-tokens to 1000"):  # found on the way
        run_job(job, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert run_job(replace(job, max_tokens=1000), tmp_path / "out").profile.tokens <= 1000


def test_too_little_memory_is_told(
    job: ProfileJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(job_module, "count_unit", full)
    with pytest.raises(BudgetError, match="too small.*--device cpu"):
        run_job(job, tmp_path / "out")


# ---- text the model writes itself ----------------------------------------------------------------


def test_the_models_own_text_goes_on_and_can_be_used_again(
    job: ProfileJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = replace(job, texts=(), own=SelfText(tokens=400, seed=5), bitmaps=False)
    run_job(own, tmp_path / "whole")
    expected = files(tmp_path / "whole")
    assert set(expected) == {"activations.npz", "sampled.jsonl"}
    out = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        run_job(own, out, interrupt_after(3))
    part = out / FOLDER / "sampled.jsonl"
    lines = part.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3 and expected["sampled.jsonl"].startswith(part.read_bytes())
    part.write_bytes(part.read_bytes() + b'{"text": "half a li')
    run_job(own, out)
    assert files(out) == expected
    profile = ActivationProfile.load(out)
    assert profile.source == "sampled from the model itself (seed 5, temperature 1.0)"
    again = run_job(replace(job, texts=(out / "sampled.jsonl",)), tmp_path / "again").profile
    np.testing.assert_array_equal(again.counts_LN, profile.counts_LN)
    texts = [json.loads(line)["text"] for line in expected["sampled.jsonl"].splitlines()]
    assert len(set(texts)) == len(texts) > 3, "documents repeat"
    other = replace(own, own=SelfText(tokens=400, seed=6))
    run_job(other, tmp_path / "other")
    assert files(tmp_path / "other")["sampled.jsonl"] != expected["sampled.jsonl"]


def test_temperatures_that_cannot_sample() -> None:
    for temperature in (0.0, -1.0, float("nan"), 1e9):
        with pytest.raises(ConfigError, match="temperature"):
            SelfText(temperature=temperature)


def test_a_model_that_writes_nothing(job: ProfileJob, tmp_path: Path) -> None:
    tensors = random_tensors(TinyLlama(tied=True))
    # The likeliest token by far is the end, whatever came before.
    tensors["model.embed_tokens.weight"][:] = 0
    tensors["model.embed_tokens.weight"][1] = tensors["model.embed_tokens.weight"][2] = 1
    folder = write_llama(tmp_path / "mute", TinyLlama(tied=True), tensors)
    config = EngineConfig(str(folder), predictor="exact", context=40)
    own = SelfText(tokens=10_000, temperature=0.1)
    mute = replace(job, bundle=resolve_model(folder), config=config, texts=(), own=own)
    with pytest.raises(ConfigError, match="wrote 64 documents without a text"):
        run_job(mute, tmp_path / "out")
    assert not (tmp_path / "out").exists()
