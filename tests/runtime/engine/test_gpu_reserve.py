"""What a budget keeps back covers whatever a plan makes the device hold, and not much more."""

import itertools
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from support.gpu_shapes import Case, matrices, signs

from hotcold.runtime.engine.gpu import _asked_depth
from hotcold.runtime.engine.gpu_memory import model_shape, predicted_layers
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.model.neurons import NeuronRecord
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.offline.plant.shapes import SHAPES
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.plan.problem import Module, make_problem
from hotcold.runtime.plan.work import predictor_bytes
from hotcold.runtime.predictors.predictor_forms import WindowLayer

KINDS = ("head", "attention", "kv", "predictor")
NAMES = ("tiny", "small-opt", "llama2-13b", "opt-350m", "opt-30b")


def predictors(spec: ModelSpec) -> list[tuple[tuple[Any, ...], bool]]:
    wide = 4 * spec.d_model  # wider than anything a pass has otherwise
    return [
        ((), False),
        (matrices(spec, 960, True), False),
        (matrices(spec, wide, True), True),
        (signs(spec), False),
    ]


def reserved(case: Case) -> int:
    """What gpu.py keeps back for it, without the context."""
    shape = model_shape(
        *(case.spec, case.context, case.max_batch),
        predicted_layers(case.spec, case.layers, max(1, case.early), case.int8),
        head_on_host=True,
        audit_every=case.audit_every,
        predictor_i8=case.int8,
        prompt_rows=case.prompt_rows,
        remote_predictor=case.remote,
    )
    return shape.executor().reserve


def placed(case: Case) -> int:
    """What the placement problem counts for the device."""
    spec, one = case.spec, case.layers[0] if case.layers else None
    size = 0 if one is None else predictor_bytes(spec, one, case.int8)
    found = modules(spec.architecture, spec.d_model, case.context, case.kv_bytes, size)
    there = sum(module.bytes for module in found if module.name not in case.on_host)
    return there + sum(case.owned_L) * NeuronRecord.for_spec(spec).bytes


@cache
def modules(family: str, d: int, context: int, kv_bytes: int, size: int) -> tuple[Module, ...]:
    """Of the model of this width, whose predictors have so many bytes a layer."""
    specs = [SHAPES[name].spec(None, "float16") for name in NAMES]
    spec = next(s for s in specs if (s.architecture, s.d_model) == (family, d))
    problem = make_problem(
        *(spec, NeuronRecord.for_spec(spec).bytes, None, None, context, 1),
        *((size,) * spec.n_layers, None, HardwareProfile.unmeasured()),
        kv_bytes=kv_bytes,
        embed_on_host=True,
    )
    return problem.modules


def cases(name: str) -> list[Case]:
    """Every size of batch, owner, lookahead, audit, predictor; modules here, there and mixed."""
    spec = SHAPES[name].spec(None, "float16")
    L, N = spec.n_layers, spec.n_neurons
    homes = [
        frozenset[str](),
        frozenset(f"{kind}.{i}" for kind in KINDS for i in range(L)) | {"head", "norms"},
        frozenset(f"{kind}.{i}" for kind in ("attention", "predictor") for i in range(0, L, 2)),
    ]
    found = []
    for (layers, int8), owned, batch, early, every, on_host in itertools.product(
        predictors(spec), (0, N // 3, N), (1, 5, 32), (0, 1, 2), (0, 256, 1), homes
    ):
        if layers or not (early or every):
            found.append(
                Case(
                    *(spec, (owned,) * L, min(512, spec.max_context), batch, early),
                    *(every, 2 if batch > 1 else 4, layers, int8, on_host),
                )
            )
    return found


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_back_covers_every_layout(name: str) -> None:
    for case in cases(name):
        needed, counted = case.bytes, placed(case) + reserved(case)
        words = replace(case, layers=case.layers[:1])
        assert needed <= counted, f"{needed - counted} bytes too few: {words}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [64, 512])
def test_it_covers_dense_prompts_and_the_bus(name: str, rows: int) -> None:
    spec = SHAPES[name].spec(None, "float16")
    L, N = spec.n_layers, spec.n_neurons
    for (layers, int8), owned, early in itertools.product(predictors(spec), (0, N // 3, N), (0, 1)):
        case = Case(
            *(spec, (owned,) * L, 512, 32, early if layers else 0),
            layers=layers,
            int8=int8,
            bus_L=(owned // 2,) * L,
            prompt_rows=rows,
        )
        assert case.bytes <= placed(case) + reserved(case)


@pytest.mark.parametrize("name", NAMES)
def test_it_covers_a_remote_predictor(name: str) -> None:
    """The predictors are placed on the device and counted by the other process."""
    spec = SHAPES[name].spec(None, "float16")
    for layers, int8 in predictors(spec)[1:]:
        case = Case(spec, (spec.n_neurons,) * spec.n_layers, layers=layers, int8=int8, remote=True)
        mine = replace(case, on_host=frozenset(f"predictor.{i}" for i in range(spec.n_layers)))
        assert case.bytes <= placed(mine) + reserved(case)
        own = replace(case.shape, layers=predicted_layers(spec, layers, 1, int8)).predictor()
        matrices = placed(case) - placed(mine)
        assert case.shape.predictor().device <= matrices + own.reserve


@pytest.mark.parametrize("name", ["llama2-13b", "opt-30b"])
def test_it_keeps_little_back_for_nothing(name: str) -> None:
    """Where every neuron is owned the rest is rounding, norms and a predictor's vectors."""
    spec = SHAPES[name].spec(None, "float16")
    case = Case(spec, (spec.n_neurons,) * spec.n_layers, max_batch=1, early=1)
    case = replace(case, layers=matrices(spec, 960, True))
    spare = placed(case) + reserved(case) - case.bytes
    assert 0 <= spare < 20 << 20


def test_an_opt_30b_that_owns_all_with_one_token_a_pass_fits() -> None:
    """The case that 2 L N numbers were too few for."""
    spec = SHAPES["opt-30b"].spec(None, "float16")
    case = Case(spec, (spec.n_neurons,) * spec.n_layers, max_batch=1)
    assert case.bytes <= placed(case) + model_shape(spec, 512, 1).executor().reserve


def test_a_schedule_that_looks_far_ahead_is_counted() -> None:
    spec = SHAPES["small"].spec(None, "float16")
    assert _asked_depth(EngineConfig()) == 0
    assert _asked_depth(EngineConfig(settings={"schedule.depth": "3"})) == 3
    assert _asked_depth(EngineConfig(settings={"schedule.depth": "deep"})) == 0
    case = Case(spec, (0,) * spec.n_layers, max_batch=1, layers=signs(spec), early=1)
    more = reserved(replace(case, early=3)) - reserved(case)
    assert more >= 2 * 2 * 4 * spec.n_neurons


def test_forms_that_no_gpu_runs_are_described_and_refused_elsewhere() -> None:
    spec = SHAPES["tiny"].spec(None, "float16")
    layers = (WindowLayer(8, 0, None, 0.5),) * spec.n_layers
    assert [layer.hidden for layer in predicted_layers(spec, layers, 1)] == [0] * spec.n_layers
