"""The dense prompt phase of OPT, and of predictors of signs: the oracle's, the sparse form's, the
CPU device's.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gpu import Share
from support.models import TinyLlama, write_llama
from support.opt_models import FORMS, TinyOpt, write_opt
from support.opt_oracle import OptOracle
from support.oracle import Oracle

from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig, Sampling

pytestmark = pytest.mark.gpu

CONTEXT = 256
MORE = {
    "two pieces a layer": TinyOpt(d=256, layers=2, neurons=2500, heads=4, dtype="float16", seed=9),
    "350m, float16": TinyOpt(
        d=128, layers=2, neurons=300, heads=4, embed=64, pre_norm=False, dtype="float16", seed=10
    ),
}
ALL = {name: replace(form, context=CONTEXT) for name, form in {**FORMS, **MORE}.items()}
LLAMAS = {
    "llama, odd": TinyLlama(
        d=35, layers=3, neurons=51, heads=5, kv_heads=1, head_dim=6, vocab=301, context=CONTEXT
    ),
    "llama, float16": TinyLlama(
        d=192, neurons=1300, heads=6, vocab=301, dtype="float16", context=CONTEXT
    ),
}
LOW_RANK: dict[str, Any] = {
    "predictor": "low-rank",
    "settings": {"predictor.rank": "9", "predictor.margin": "0.5"},
}
PREDICTORS = {
    "low-rank": LOW_RANK,
    "low-rank, int8": {**LOW_RANK, "predictor_dtype": "int8"},
    "sign": {"predictor": "sign"},
    "sign, 1 bit": {"predictor": "sign", "settings": {"predictor.input_bits": "1"}},
    "sign, 8 bits": {"predictor": "sign", "settings": {"predictor.input_bits": "8"}},
}


def prepared_of(model: Path, form: str, share: float = 0.4, **options: Any) -> Any:
    options.setdefault("policy", Share(share))
    options.setdefault("vram", "2GiB")
    return prepare_model(EngineConfig(model=model, prompt_form=form, context=CONTEXT, **options))


def session(model: Path, form: str, share: float = 0.4, **options: Any) -> LocalSession:
    """A session on the GPU; rows: tokens of a dense pass, if not as many as fit."""
    rows = options.pop("rows", None)
    prepared = prepared_of(model, form, share, **options)
    assert prepared.gpu is not None
    assert bool(prepared.gpu.prompt_rows) == (form == "dense")
    if rows and form == "dense":
        assert rows <= prepared.gpu.prompt_rows
        prepared = replace(prepared, gpu=replace(prepared.gpu, prompt_rows=rows))
    return LocalSession(deploy(prepared, solve(prepared)))


def written(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Path:
    return write_opt(tmp_path_factory.mktemp("models") / "model", ALL[request.param])


@pytest.fixture(params=list(ALL), scope="module")
def opt(request: pytest.FixtureRequest, plugin: Any, tmp_path_factory: Any) -> Path:
    return written(request, tmp_path_factory)


@pytest.fixture(params=["odd", "350m, float16", "two pieces a layer"], scope="module")
def few(request: pytest.FixtureRequest, plugin: Any, tmp_path_factory: Any) -> Path:
    """One of each way through the products, for what hardly depends on a model's form."""
    return written(request, tmp_path_factory)


@pytest.fixture(params=list(LLAMAS), scope="module")
def llama(request: pytest.FixtureRequest, plugin: Any, tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("models") / "model"
    write_llama(folder, LLAMAS[request.param])
    return folder


def ids_of(count: int) -> list[int]:
    return np.random.default_rng(0).integers(4, 300, count).tolist()


def loose(model: Path) -> float:
    """What may lie between two ways to add: bfloat16 activations keep 16 bits as two halves."""
    return 4e-3 if 'bfloat16"' in (model / "config.json").read_text() else 1e-3


def check_exact(model: Path, share: float) -> None:
    ids = ids_of(193)
    with session(model, "dense", share, predictor="exact") as local:
        logits, _ = local.logits(ids)
        assert local.segment.actor_state("cpu").passes == 0
        fired = local.segment.actor_state("gpu").up_down_rows
    expected = OptOracle.load(model).forward(ids)
    np.testing.assert_allclose(logits, expected.logits_TV, atol=loose(model), rtol=0)
    wanted = (expected.gates_LTN > 0).sum()
    assert abs(fired - wanted) <= max(3, 1e-3 * wanted)


def test_dense_without_prediction_is_the_dense_model(opt: Path) -> None:
    check_exact(opt, 0.4)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_neurons_resident_and_all_streamed(few: Path, share: float) -> None:
    check_exact(few, share)


def check_masks(model: Path, oracle: Oracle, sparse_too: bool = True, **options: Any) -> None:
    """The dense form's logits are the masked oracle's, its masks the sparse form's."""
    ids = ids_of(130)
    with session(model, "dense", **options) as local:
        logits, masks_TLN = local.logits(ids)
        assert local.segment.actor_state("cpu").passes == 0
    assert 0.02 < masks_TLN.mean() < 1
    expected = oracle.forward(ids, masks_LTN=masks_TLN.transpose(1, 0, 2))
    np.testing.assert_allclose(logits, expected.logits_TV, atol=loose(model), rtol=0)
    if not sparse_too:
        return
    with session(model, "sparse", **options) as local:
        sparse, sparse_masks_TLN = local.logits(ids)
    flips = (masks_TLN != sparse_masks_TLN).mean()
    assert flips < 1e-3  # proposals at the threshold itself, inputs at a step's border
    if not flips:
        np.testing.assert_allclose(logits, sparse, atol=loose(model), rtol=0)


@pytest.mark.parametrize("predictor", ["low-rank", "sign"])
def test_dense_applies_the_predictors_masks(opt: Path, predictor: str) -> None:
    check_masks(opt, OptOracle.load(opt), predictor == "sign", **PREDICTORS[predictor])


@pytest.mark.parametrize("predictor", ["low-rank, int8", "sign, 1 bit", "sign, 8 bits"])
def test_other_forms_of_the_predictors(few: Path, predictor: str) -> None:
    check_masks(few, OptOracle.load(few), **PREDICTORS[predictor])


@pytest.mark.parametrize("predictor", ["sign", "sign, 8 bits"])
def test_signs_propose_for_llama_too(llama: Path, predictor: str) -> None:
    check_masks(llama, Oracle.load(llama), **PREDICTORS[predictor])


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "lookahead", **LOW_RANK},
        {"schedule": "lookahead", "predictor": "sign"},
        {"bus_share": 0.4, "predictor": "sign"},
        {"max_batch": 1, "predictor": "sign"},
        {"policy": Share(0.4, host=("attention", "head", "kv", "predictor")), "predictor": "sign"},
    ],
)
def test_dense_goes_with_every_other_choice(few: Path, options: dict[str, Any]) -> None:
    check_masks(few, OptOracle.load(few), sparse_too=False, **options)


def test_the_same_tokens_follow_on_every_device(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense, sparse, and the CPU device; 90 tokens are two passes of 64, the last one short."""
    ids, sampling, runs = ids_of(150), Sampling(max_tokens=16, ignore_eos=True), []
    for form in ("dense", "sparse", "cpu"):
        if form == "cpu":
            monkeypatch.setenv("HOTCOLD_CUDA", "off")
            prepared = prepared_of(few, "auto", predictor="exact")
            assert prepared.gpu is None
            local = LocalSession(deploy(prepared, solve(prepared)))
        else:
            local = session(few, form, rows=64, predictor="exact")
        with local:
            runs.append([list(local.sample(ids[:n], sampling)) for n in (150, 90, 1)])
    for other in runs[1:]:
        for dense, sparse in zip(runs[0], other, strict=True):
            assert [id_ for id_, _ in dense] == [id_ for id_, _ in sparse]
            np.testing.assert_allclose(
                [logprob for _, logprob in dense], [logprob for _, logprob in sparse], atol=4e-3
            )


def test_the_length_of_a_pass_changes_no_bit(few: Path) -> None:
    ids, runs = ids_of(200), []
    for rows in (CONTEXT, 64, 40):
        with session(few, "dense", rows=rows, predictor="sign") as local:
            runs.append(local.logits(ids))
    for logits, masks in runs[1:]:
        np.testing.assert_array_equal(runs[0][0], logits)
        np.testing.assert_array_equal(runs[0][1], masks)


@pytest.mark.parametrize("predictor", ["exact", "low-rank, int8", "sign"])
def test_the_smallest_budget_has_room_for_a_dense_pass(few: Path, predictor: str) -> None:
    """What engine/prompt.py counts is at least what the device takes: else this is refused."""
    options = PREDICTORS.get(predictor, {"predictor": predictor})
    options = {**options, "policy": "greedy"}
    least = 2 << 30
    for _ in range(2):  # with less memory passes may be shorter, which needs less
        least = prepared_of(few, "dense", vram=least, **options).gpu.reserve_bytes
    ids = ids_of(100)
    with session(few, "dense", vram=least, **options) as local:
        logits, masks_TLN = local.logits(ids)
    masks_LTN = None if predictor == "exact" else masks_TLN.transpose(1, 0, 2)
    expected = OptOracle.load(few).forward(ids, masks_LTN=masks_LTN).logits_TV
    np.testing.assert_allclose(logits, expected, atol=loose(few), rtol=0)
