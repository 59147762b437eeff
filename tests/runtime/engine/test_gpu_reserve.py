"""What a budget keeps back covers whatever a plan makes the device hold, and not much more."""

import itertools
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from support.gpu_layout import Case

from hotcold.runtime.engine.gpu import _asked_depth
from hotcold.runtime.engine.gpu_memory import (
    int8_bytes,
    kept_bytes,
    pass_bytes,
    scratch_bytes,
    table_bytes,
)
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.model.neurons import NeuronRecord
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.offline.plant.shapes import SHAPES
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.plan.problem import Module, make_problem
from hotcold.runtime.predictors.predictor import PredictorLayer
from hotcold.runtime.predictors.predictor_forms import SignLayer

KINDS = ("head", "attention", "kv", "predictor")
NAMES = ("tiny", "small-opt", "llama2-13b", "opt-350m", "opt-30b")


def matrices(spec: ModelSpec, hidden: int, biased: bool) -> tuple[Any, ...]:
    """Predictors that take no memory here: views of one number."""
    fc1, fc2 = (
        np.broadcast_to(np.float16(0), shape)
        for shape in ((hidden, spec.d_model), (spec.n_neurons, hidden))
    )
    bias_N = np.zeros(spec.n_neurons, np.float32) if biased else None
    return (PredictorLayer(fc1, fc2, bias_N, True, 0.0),) * spec.n_layers


def signs(spec: ModelSpec) -> tuple[Any, ...]:
    words = np.broadcast_to(np.uint64(0), (spec.n_neurons, -(-spec.d_model // 64)))
    one_N, one_D = np.ones(spec.n_neurons, np.float32), np.ones(spec.d_model, np.float32)
    return (SignLayer(words, one_N, one_N, one_D, 8, 0.0),) * spec.n_layers


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
    hidden = max((x.fc1.shape[0] for x in case.layers if x.form == "matrices"), default=0)
    tables = table_bytes(
        *(case.spec, case.context, case.max_batch, max(1, case.early)),
        kept_bytes(case.layers, case.int8),
    )
    return pass_bytes(case.spec, case.max_batch, hidden) + tables


def placed(case: Case) -> int:
    """What the placement problem counts for the device."""
    spec, one = case.spec, case.layers[0] if case.layers else None
    size = 0 if one is None else int8_bytes(one, spec) if case.int8 else int(one.bytes)
    found = modules(spec.architecture, spec.d_model, case.context, case.kv_bytes, size)
    there = sum(module.bytes for module in found if module.name not in case.on_host)
    return there + sum(case.owned_L) * NeuronRecord.for_spec(spec).record_bytes


@cache
def modules(family: str, d: int, context: int, kv_bytes: int, size: int) -> tuple[Module, ...]:
    """Of the model of this width, whose predictors have so many bytes a layer."""
    specs = [SHAPES[name].spec(None, "float16") for name in NAMES]
    spec = next(s for s in specs if (s.architecture, s.d_model) == (family, d))
    problem = make_problem(
        *(spec, NeuronRecord.for_spec(spec).record_bytes, None, None, context, 1),
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


@pytest.mark.parametrize("name", ["llama2-13b", "opt-30b"])
def test_it_keeps_little_back_for_nothing(name: str) -> None:
    """Where every neuron is owned and nothing is audited the rest is rounding."""
    spec = SHAPES[name].spec(None, "float16")
    case = Case(spec, (spec.n_neurons,) * spec.n_layers, max_batch=1, early=1)
    case = replace(case, layers=matrices(spec, 960, True))
    spare = placed(case) + reserved(case) - case.bytes
    assert 0 <= spare < 24 << 20


def test_an_opt_30b_that_owns_all_with_one_token_a_pass_fits() -> None:
    """The case that 2 L N numbers were too few for."""
    spec = SHAPES["opt-30b"].spec(None, "float16")
    case = Case(spec, (spec.n_neurons,) * spec.n_layers, max_batch=1)
    assert case.bytes <= placed(case) + scratch_bytes(spec, 512, 1)


def test_a_schedule_that_looks_far_ahead_is_counted() -> None:
    spec = SHAPES["tiny"].spec(None, "float16")
    assert _asked_depth(EngineConfig()) == 0
    assert _asked_depth(EngineConfig(settings={"schedule.depth": "3"})) == 3
    assert _asked_depth(EngineConfig(settings={"schedule.depth": "deep"})) == 0
    more = table_bytes(spec, 512, 1, 3) - table_bytes(spec, 512, 1, 1)
    assert more >= 2 * 2 * 2 * 4 * spec.n_neurons
