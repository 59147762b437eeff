"""What a budget of GPU memory refuses and where modules go, on machines without a GPU too."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hotcold.native.abi.generated import Part
from hotcold.native.errors import BudgetError, ConfigError
from hotcold.native.gpu import cuda_plugin, cuda_probe, nvml
from hotcold.native.gpu.nvml import Gpu
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.factory import roles
from hotcold.runtime.engine.gpu import (
    GpuChoice,
    check_budget,
    check_promise,
    host_parts,
    say_parts,
    with_formats,
)
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig

CHOICE = GpuChoice("float16", None, 1000 << 20, 600 << 20, 500 << 20, used_before=7 << 20)


def plan_of(**homes: str) -> Any:
    modules = {"norms": "gpu0", "head": "gpu0"}
    modules |= {f"{kind}.{i}": "gpu0" for kind in ("attention", "kv", "predictor") for i in (0, 1)}
    modules |= {name.replace("_", "."): home for name, home in homes.items()}
    return SimpleNamespace(shape=(2, 8), modules=modules, devices=("gpu0", "cpu0"))


def test_the_minimum_is_exact() -> None:
    check_budget(replace(CHOICE, vram_bytes=CHOICE.reserve_bytes), 2 << 30)
    with pytest.raises(BudgetError, match=f"at least {CHOICE.reserve_bytes} bytes") as caught:
        check_budget(replace(CHOICE, vram_bytes=CHOICE.reserve_bytes - 1), 2 << 30)
    assert f"the budget is {CHOICE.reserve_bytes - 1}" in str(caught.value)
    assert "raise --vram" in str(caught.value)


def test_a_budget_is_not_more_than_what_is_free() -> None:
    check_budget(CHOICE, CHOICE.vram_bytes)
    with pytest.raises(BudgetError, match=r"1000.0 MiB of GPU memory, of which 999.0 MiB are free"):
        check_budget(CHOICE, 999 << 20)


def test_a_gpu_runs_one_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_plugin, "find", lambda: SimpleNamespace(path=Path("/nowhere")))
    gpu = Gpu("any", "90", total_bytes=8 << 30, used_bytes=0)
    monkeypatch.setattr(nvml, "visible", lambda: gpu)
    with pytest.raises(ConfigError, match="sequences 2: a GPU runs one; choose sequences 1, or"):
        prepare_model(EngineConfig(sequences=2))


def test_modules_on_the_host_are_bits() -> None:
    assert host_parts(plan_of()) is None
    assert host_parts(plan_of(norms="cpu0")) is None  # they always lie on the device
    parts_L = host_parts(plan_of(attention_1="cpu0", kv_1="cpu0", predictor_0="cpu0", head="cpu0"))
    assert parts_L is not None
    wanted = [
        Part.PREDICTOR,
        Part.ATTENTION | Part.KV,
        Part.HEAD,
    ]
    np.testing.assert_array_equal(parts_L, np.array(wanted, np.uint8))


def test_parts_on_the_host_are_said(caplog: pytest.LogCaptureFixture) -> None:
    say_parts(plan_of())
    assert not caplog.records
    plan = plan_of(kv_0="cpu0")
    plan.modules_on = lambda device: f"kv.0 on {device}"
    say_parts(plan)
    assert "read over the bus, token by token: kv.0 on cpu0" in caplog.text


def test_dense_prompts_need_room_to_widen_int8(caplog: pytest.LogCaptureFixture) -> None:
    choice = replace(CHOICE, prompt_rows=64, widen_bytes=100 << 20)  # of 400 MiB for weights

    def rows(used: int, formats: str) -> int:
        plan: Any = SimpleNamespace(devices=("gpu0", "cpu0"), bytes_by_device={"gpu0": used})
        computed: Any = SimpleNamespace(format_text=lambda device: formats if device == 0 else "")
        return with_formats(choice, plan, computed).prompt_rows

    assert rows(300 << 20, ", neurons.0 in int8") == rows(400 << 20, "") == 64
    assert not caplog.records
    assert rows((300 << 20) + 1024, ", neurons.0 in int8") == 0
    assert "prompts stay sparse: dense ones widen int8 neurons, which takes 1.0 KiB" in caplog.text


def test_a_broken_promise_is_said_with_the_figures(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(nvml, "used_bytes", lambda: (1000 + 7) << 20)
    assert check_promise(CHOICE, "after the launch") == 1000 << 20
    assert not caplog.records
    monkeypatch.setattr(nvml, "used_bytes", lambda: (1001 + 7) << 20)
    check_promise(CHOICE, "after the launch")
    assert "1001.0 MiB more than before the launch, the budget is 1000.0 MiB" in caplog.text


def test_on_a_gpu_the_predictor_actor_says_that_it_stands_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The GPU executor prepares the predictors itself; their actor's program is empty."""
    monkeypatch.setenv("HOTCOLD_CUDA", "off")
    prepared = prepare_model(EngineConfig(predictor="learned"))
    made = deploy(prepared, solve(prepared))
    assert roles(made)["predictor"] == "predicts every layer (learned)"
    role = roles(replace(made, gpu=CHOICE))["predictor"]
    assert role == "stands by: the GPU executor's graph runs predictor learned"


def test_the_gpu_actor_says_what_it_reads_over_the_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTCOLD_CUDA", "off")
    prepared = prepare_model(EngineConfig(predictor="exact"))
    made = deploy(prepared, solve(prepared))
    assert "over the bus" not in roles(replace(made, gpu=CHOICE))["gpu"]
    homes = {**made.plan.modules, "kv.0": "cpu0", "kv.1": "cpu0"}
    plan = replace(made.plan, modules=homes)
    assert roles(replace(made, plan=plan, gpu=CHOICE))["gpu"].endswith("; over the bus: kv.0-1")


MiB = 1 << 20


def probed(
    monkeypatch: pytest.MonkeyPatch, runs: list[tuple[int | None, int]], name: str
) -> tuple[int | None, int]:
    """What context_bytes makes of runs: what each printed, what others took on the device then."""
    used, left = [5 << 30], list(runs)

    def run(command: list[str]) -> int | None:
        taken, others = left.pop(0)
        used[0] += others
        return taken

    monkeypatch.setattr(cuda_probe, "_run", run)
    monkeypatch.setattr(cuda_probe, "FREED_S", 0.05)
    monkeypatch.setattr(nvml, "used_bytes", lambda: used[0])
    return cuda_probe.context_bytes(Path(name), 8, 1), len(runs) - len(left)


@pytest.mark.parametrize(
    ("runs", "result"),
    [
        ([(520 * MiB, 0)], (520 * MiB, 1)),
        ([(-300 * MiB, -820 * MiB), (520 * MiB, 0)], (520 * MiB, 2)),  # freed by another program
        ([(120 * MiB, -400 * MiB), (520 * MiB, 0)], (520 * MiB, 2)),  # it could be, but is not
        ([(900 * MiB, 380 * MiB), (520 * MiB, 0)], (520 * MiB, 2)),  # taken by another
        ([(120 * MiB, -400 * MiB), (600 * MiB, 80 * MiB), (500 * MiB, -9 * MiB)], (600 * MiB, 3)),
        ([(0, -520 * MiB), (-1, -521 * MiB), (9 << 30, 9 << 30)], (None, 3)),
        ([(None, 0)], (None, 1)),
    ],
    ids=["quiet", "negative", "too small", "too much", "never quiet", "implausible", "failed"],
)
def test_a_context_is_measured_while_nobody_else_moves(
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    runs: list[tuple[int | None, int]],
    result: tuple[int | None, int],
) -> None:
    assert probed(monkeypatch, runs, request.node.name) == result


def test_graphs_are_one_a_power_of_two() -> None:
    graphs = [cuda_probe.graph_shape(1, batch)[1] for batch in (1, 2, 3, 32)]
    assert graphs == [1, 2, 3, 6]
    assert cuda_probe.graph_shape(40, 1)[0] == 40 * cuda_probe.KERNELS_A_LAYER + 8
