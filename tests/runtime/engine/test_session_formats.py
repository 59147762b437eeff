"""Hot and cold neurons in different formats: computed, counted, kept and refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.formats import MIXES, Mixed, mixed_oracle
from support.models import TinyLlama, write_llama
from support.opt_models import TinyOpt, write_opt
from support.opt_oracle import OptOracle
from support.oracle import Oracle
from support.work import Run, ids_of

from hotcold.native.errors import BudgetError, ConfigError
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.factory import roles
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.plan.fetch import fetched
from hotcold.runtime.weights import stores
from hotcold.runtime.weights.own_records import OwnRecords
from hotcold.runtime.weights.weights import WeightStore

LLAMA = TinyLlama(d=88, layers=3, neurons=131, heads=4, kv_heads=2, dtype="float16", seed=4)
MODELS: dict[str, Any] = {
    "llama": (write_llama, LLAMA, Oracle),
    "llama bfloat16": (write_llama, replace(LLAMA, dtype="bfloat16", d=72), Oracle),
    "opt": (write_opt, TinyOpt(neurons=51), OptOracle),
}
PREDICTORS: dict[str, dict[str, Any]] = {
    "gate-first": {"predictor": "exact", "settings": {"predictor.by": "executors"}},
    "exact": {"predictor": "exact"},
    "window": {"predictor": "window"},
    "low-rank": {"predictor": "low-rank", "settings": {"predictor.rank": "6"}, "audit": 4},
}
GATES_SENT = ("exact", "window")
IDS = ids_of(45)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, (write, model, _) in MODELS.items():
        write(root / name, model)
    return {name: root / name for name in MODELS}


def session(folder: Path, policy: Any, **options: Any) -> LocalSession:
    config = EngineConfig(model=folder, policy=policy, **{"vram": "1GiB", **options})
    prepared = prepare_model(config)
    return LocalSession(deploy(prepared, solve(prepared)))


def logits_of(folder: Path, policy: Any, **options: Any) -> Any:
    with session(folder, policy, **options) as local:
        return local.logits(IDS)[0]


@pytest.mark.parametrize("predictor", list(PREDICTORS))
@pytest.mark.parametrize("mix", list(MIXES))
@pytest.mark.parametrize("model", list(MODELS))
def test_each_device_computes_in_its_own_format(
    folders: dict[str, Path], model: str, mix: str, predictor: str
) -> None:
    options = PREDICTORS[predictor]
    policy, oracle = Mixed(*MIXES[mix]), MODELS[model][2].load(folders[model])
    for batch in (1, 32):
        with session(folders[model], policy, max_batch=batch, **options) as local:
            run, plan = Run.of(local, IDS), local.deployment.plan
            logits, masks_TLN = local.logits(IDS)
        of_plan = mixed_oracle(oracle, plan, gates_sent=predictor in GATES_SENT)
        masks_LTN = masks_TLN.transpose(1, 0, 2)
        expected = of_plan.forward(IDS, masks_LTN=masks_LTN).logits_TV
        np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)
        plain = oracle.forward(IDS, masks_LTN=masks_LTN).logits_TV
        assert np.abs(plain - expected).max() > 2e-3  # it can be told which weights were taken
        assert run.masks_TLN.any()


@pytest.mark.parametrize("mix", list(MIXES))
def test_logits_are_those_of_torch_with_these_weights(
    folders: dict[str, Path], tmp_path: Path, mix: str
) -> None:
    with session(folders["llama"], Mixed(*MIXES[mix]), **PREDICTORS["gate-first"]) as local:
        logits, _ = local.logits(IDS)
        tensors = mixed_oracle(Oracle.load(folders["llama"]), local.deployment.plan).tensors
    exact = {name: value.astype(np.float32) for name, value in tensors.items()}
    folder = write_llama(tmp_path / "exact", replace(LLAMA, dtype="float32"), exact)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = model.eval()(torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("predictor", list(PREDICTORS))
@pytest.mark.parametrize("mix", list(MIXES))
def test_steps_carry_the_bytes_of_their_format(
    folders: dict[str, Path], mix: str, predictor: str
) -> None:
    hot, cold = MIXES[mix]
    policy = Mixed(hot, cold)
    with session(folders["llama"], policy, max_batch=1, **PREDICTORS[predictor]) as local:
        run = Run.of(local, IDS)
        for actor in local.executors:
            assert run.stated(actor, run.counted(actor)) == run.state(actor).bytes
        programs = local.deployment.programs
    row = {None: 2 * LLAMA.d, "int8": LLAMA.d + 2 * 2}
    for actor, kind in (("gpu", hot), ("cpu", cold)):
        assert programs[actor]["bytes"][:, 3].max() == 2 * row[kind]


@pytest.mark.parametrize("store", ["file", "memfd", "private"])
def test_threads_batch_and_store_change_no_bit(folders: dict[str, Path], store: str) -> None:
    runs = [
        logits_of(
            *(folders["llama"], Mixed("int8", None) if swap else Mixed(None, "int8")),
            **{"threads": threads, "max_batch": batch, "store": store, "schedule": "lookahead"},
            **PREDICTORS["low-rank"],
        )
        for swap in (False, True)
        for threads, batch in [(1, 32), (2, 5), (2, 1)]
    ]
    for i in (0, 3):
        np.testing.assert_array_equal(runs[i], runs[i + 1])
        np.testing.assert_array_equal(runs[i], runs[i + 2])
    assert np.abs(runs[0] - runs[3]).max() > 1e-4


def test_the_models_own_format_by_its_number_changes_nothing(folders: dict[str, Path]) -> None:
    class Plain(Mixed):
        def place(self, problem: Any) -> Any:
            return replace(super().place(problem), dtype_LN=None)

    runs = []
    for policy in (Mixed(), Plain()):
        with session(folders["llama"], policy) as local:
            runs.append((local.deployment.plan.hash, local.logits(IDS)[0]))
    assert runs[0][0] == runs[1][0]
    np.testing.assert_array_equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize("model", list(MODELS))
def test_own_records_are_those_of_convert(folders: dict[str, Path], model: str) -> None:
    plain, made = resolve_model(folders[model]), resolve_model(folders[model], "int8")
    rng = np.random.default_rng(1)
    neurons, layers = plain.spec.n_neurons, plain.spec.n_layers
    ids_L = [np.flatnonzero(rng.random(neurons) < 0.4).astype(np.int32) for _ in range(layers)]
    formats_L = ["int8"] * (layers - 1) + [None]
    with WeightStore.open(plain) as store, WeightStore.open(made) as whole:
        own = OwnRecords(store, formats_L, ids_L)
        for layer, ids in enumerate(ids_L[:-1]):
            found = own.array(layer)
            np.testing.assert_array_equal(found[ids], whole.array(f"layers.{layer}.neurons")[ids])
            assert not np.delete(found, ids, axis=0).any()
            assert own.fields(layer)["record"] == made.record.fields()
        assert not own.fields(layers - 1)
        own.close()
        assert not own.fields(0)


def test_own_records_need_memory_and_weights_that_fit(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(LLAMA, dtype="float32", layers=2)
    folder = write_llama(tmp_path / "large", model)
    tensors = Oracle.load(folder).tensors
    tensors["model.layers.1.mlp.up_proj.weight"][7, 3] = 1e9
    write_llama(folder, model, {k: v.astype(np.float32) for k, v in tensors.items()})
    with pytest.raises(ConfigError, match=r"up rows of layer 1 .*1e\+09 is beyond int8.*dtype_LN"):
        session(folder, Mixed("int8", "int8"))

    def require(nbytes: int, what: str, way_out: str, private: bool = False) -> None:
        if "format of their own" in what:
            raise BudgetError(f"{what} needs {nbytes}; {way_out}")

    monkeypatch.setattr(stores.memory, "require", require)
    with pytest.raises(BudgetError, match="needs .*the model's format"):
        session(folders["llama"], Mixed(None, "int8"))
    session(folders["llama"], Mixed()).close()


def test_what_is_fetched_has_the_format_of_the_layer_or_is_refused(
    folders: dict[str, Path],
) -> None:
    folder, oracle = folders["llama"], Oracle.load(folders["llama"])
    for policy in (Mixed("int8", "int8"), Mixed(None, "int8", share=0.0)):
        with session(folder, policy, schedule="fetch", **PREDICTORS["gate-first"]) as local:
            made, (logits, _) = local.deployment, local.logits(IDS)
            assert fetched(made.plan.device_LN, made.fetch_L).any()
        expected = mixed_oracle(oracle, made.plan).forward(IDS).logits_TV
        np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)
    with pytest.raises(ConfigError, match="layer 0 are float16 on gpu0 and int8 on cpu0.*fetch"):
        session(folder, Mixed(None, "int8"), schedule="fetch")


def test_a_saved_plan_runs_and_tells_its_formats(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, policy = folders["llama"], Mixed("int8", None)
    with session(folder, policy) as local:
        logits, plan = local.logits(IDS)[0], local.deployment.plan
        words = roles(local.deployment)
    assert ", neurons.0-2 in int8" in words["gpu"] and "int8" not in words["cpu"]
    plan.save(tmp_path / "plan")
    with session(folder, "greedy", plan=tmp_path / "plan") as local:
        assert local.deployment.plan.hash == plan.hash
        np.testing.assert_array_equal(local.logits(IDS)[0], logits)
    replace(plan, format_bytes={"int8": 320}).save(tmp_path / "other")
    with pytest.raises(ConfigError, match="stores neurons in int8, 320 bytes each; .*solve again"):
        session(folder, "greedy", plan=tmp_path / "other")
