"""The dense prompt phase: the oracle's logits, the sparse form's tokens, and where one ends."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import CONTEXT, PROMPTED, TinyLlama, write_llama
from support.oracle import Oracle

from hotcold.native.gpu import cuda_plugin
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig, Sampling

pytestmark = pytest.mark.gpu

TINY = {
    "float32": TinyLlama(neurons=96, context=CONTEXT),
    "tied": TinyLlama(
        d=24, neurons=40, heads=3, kv_heads=3, tied=True, dtype="float16", seed=1, context=CONTEXT
    ),
    **PROMPTED,
}
LOW_RANK: dict[str, Any] = {
    "predictor": "low-rank",
    "settings": {"predictor.rank": "6", "predictor.margin": "0.5"},
}


class Share:
    """A random share of each layer's neurons on the GPU, modules of some kinds on the host."""

    def __init__(self, share: float, *host: str) -> None:
        self.share, self.host = share, host

    def place(self, problem: Any) -> Any:
        filled = problem.fill(np.ones(problem.shape))
        rng = np.random.default_rng(0)
        device_LN = (rng.random(problem.shape) >= self.share).astype(np.int8)
        homes = {
            name: "cpu0" if name.partition(".")[0] in self.host else "gpu0"
            for name in filled.modules
        }
        return type(filled)(device_LN, homes)


@contextmanager
def session(
    model: Path, form: str, share: float = 0.4, rows: int | None = None, **options: Any
) -> Iterator[LocalSession]:
    options.setdefault("policy", Share(share))
    prepared = prepare_model(
        EngineConfig(model=model, vram="2GiB", prompt_form=form, context=CONTEXT, **options)
    )
    assert prepared.gpu is not None
    assert prepared.gpu.prompt_rows == (0 if form == "sparse" else CONTEXT)
    made = deploy(prepared, solve(prepared))
    if rows is not None:
        made = replace(made, gpu=replace(prepared.gpu, prompt_rows=rows))
    with LocalSession(made) as local:
        yield local


@pytest.fixture(params=list(TINY), scope="module")
def tiny(request: pytest.FixtureRequest, plugin: Any, tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("models") / request.param
    write_llama(folder, TINY[request.param])
    return folder


def ids_of(model: Path, count: int) -> list[int]:
    vocab = Oracle.load(model).tensors["model.embed_tokens.weight"].shape[0]
    return np.random.default_rng(0).integers(3, vocab, count).tolist()


def seqs(local: LocalSession) -> int:
    """Passes that the CPU executor took part in."""
    return local.segment.actor_state("cpu").passes


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("count", [1, 100, 193])
def test_dense_without_prediction_is_the_dense_model(tiny: Path, share: float, count: int) -> None:
    ids = ids_of(tiny, count)
    with session(tiny, "dense", share, predictor="exact") as local:
        logits, _ = local.logits(ids)
        assert seqs(local) == 0
    expected = Oracle.load(tiny).forward(ids).logits_TV
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("predictor_dtype", [None, "int8"])
def test_dense_applies_the_predictors_masks(
    tiny: Path, share: float, predictor_dtype: str | None
) -> None:
    ids = ids_of(tiny, 130)
    with session(tiny, "dense", share, predictor_dtype=predictor_dtype, **LOW_RANK) as local:
        logits, masks_TLN = local.logits(ids)
        fired = local.segment.actor_state("gpu").up_down_rows
    assert 0.05 < masks_TLN.mean() < 0.98  # some are masked, many are not
    expected = Oracle.load(tiny).forward(ids, masks_LTN=masks_TLN.transpose(1, 0, 2))
    np.testing.assert_allclose(logits, expected.logits_TV, atol=1e-3, rtol=0)
    wanted = (masks_TLN.transpose(1, 0, 2) & (expected.gates_LTN > 0)).sum()
    assert abs(fired - wanted) <= max(3, 1e-3 * wanted)
    with session(tiny, "sparse", share, predictor_dtype=predictor_dtype, **LOW_RANK) as local:
        sparse, sparse_masks_TLN = local.logits(ids)
    flips = (masks_TLN != sparse_masks_TLN).mean()
    assert flips < 1e-4  # proposals at the threshold itself
    if not flips:
        np.testing.assert_allclose(logits, sparse, atol=1e-3, rtol=0)


@pytest.mark.parametrize("predictor", [{"predictor": "exact"}, LOW_RANK])
def test_the_same_tokens_follow_either_form(tiny: Path, predictor: dict[str, Any]) -> None:
    ids, sampling = ids_of(tiny, 150), Sampling(max_tokens=24, ignore_eos=True)
    runs = []
    for form in ("sparse", "dense"):
        with session(tiny, form, **predictor) as local:
            runs.append([list(local.sample(ids[:n], sampling)) for n in (150, 64, 33, 150)])
    for sparse, dense in zip(*runs, strict=True):
        assert [id_ for id_, _ in sparse] == [id_ for id_, _ in dense]
        np.testing.assert_allclose(
            [logprob for _, logprob in sparse], [logprob for _, logprob in dense], atol=1e-3
        )
    assert runs[1][0] == runs[1][3]  # to the bit


def test_the_length_of_a_pass_changes_no_bit(tiny: Path) -> None:
    ids = ids_of(tiny, 200)
    runs = []
    for rows in (CONTEXT, 64, 40):
        with session(tiny, "dense", rows=rows, **LOW_RANK) as local:
            runs.append(local.logits(ids))
    for logits, masks in runs[1:]:
        np.testing.assert_array_equal(runs[0][0], logits)
        np.testing.assert_array_equal(runs[0][1], masks)


@pytest.mark.parametrize(
    "options",
    [
        {"kv_dtype": "float16"},
        {"bus_share": 0.4},
        {"policy": Share(0.4, "attention", "head", "kv", "predictor")},
        {"max_batch": 1},
    ],
)
def test_dense_goes_with_every_other_choice(tiny: Path, options: dict[str, Any]) -> None:
    ids = ids_of(tiny, 120)
    with session(tiny, "dense", **LOW_RANK, **options) as local:
        logits, masks_TLN = local.logits(ids)
    expected = Oracle.load(tiny).forward(ids, masks_LTN=masks_TLN.transpose(1, 0, 2))
    loose = 0.05 if "kv_dtype" in options else 1e-3
    np.testing.assert_allclose(logits, expected.logits_TV, atol=loose, rtol=0)


def test_auto_measures_once_and_keeps_it(
    tiny: Path, plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cuda_plugin.find()
    assert found is not None
    monkeypatch.setenv("HOTCOLD_CUDA_PLUGIN", str(found.path))
    switches = []
    for _ in range(2):
        with session(tiny, "auto", predictor="exact") as local:
            monkeypatch.setenv("HOTCOLD_CACHE", str(tmp_path))
            prompts = local.leader.prompts
            expected = Oracle.load(tiny).forward(ids_of(tiny, 200)).logits_TV
            for count in (20, 64):
                local.logits(ids_of(tiny, count))
            assert prompts.switch is None  # no length to ask for
            logits, _ = local.logits(ids_of(tiny, 200))
            np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)
            assert prompts.switch is not None
            switches.append(prompts.switch)
            monkeypatch.delenv("HOTCOLD_CACHE")
    assert switches[0] == switches[1]
    assert switches[0].sparse_s > 0 and switches[0].dense_s > 0
    assert len(list(tmp_path.glob("prompt-*.json"))) == 1


def test_a_prompt_may_go_on_after_a_cancelled_one(tiny: Path) -> None:
    ids = ids_of(tiny, 150)
    with session(tiny, "dense", predictor="exact") as local:
        whole = list(local.sample(ids, Sampling(max_tokens=8, ignore_eos=True)))
        stream = local.sample(ids, Sampling(max_tokens=90, ignore_eos=True))
        assert list(itertools.islice(stream, 2)) == whole[:2]
        stream.close()
        assert list(local.sample(ids, Sampling(max_tokens=8, ignore_eos=True))) == whole
