"""A predictor with its own process on the GPU: when it is refused, what of the budget it takes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import fake_mps
from support.models import TinyLlama, write_llama

from hotcold.native.abi.generated import DEVICE_GRANULE
from hotcold.native.errors import ConfigError
from hotcold.native.gpu import cuda_plugin, cuda_probe, nvml
from hotcold.runtime.engine import remote_predictor
from hotcold.runtime.engine.gpu import GpuChoice, choose_gpu
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.exchange.layout import SegmentLayout
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.options.config import EngineConfig

MATRICES = SimpleNamespace(
    form="matrices",
    fc1=np.zeros((96, 32), np.float16),
    fc2=np.zeros((48, 96), np.float16),
    bias_N=None,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: Any) -> Path:
    return write_llama(tmp_path_factory.mktemp("models") / "tiny", TinyLlama())


@pytest.fixture
def a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine that has a GPU of 8 GiB and MPS, as far as the choice can see."""
    seen: dict[str, Any] = {}

    def context_bytes(plugin: Path, nodes: int, graphs: int, remote: int, variant: Any) -> int:
        seen["nodes"], seen["remote"] = nodes, remote
        return (1100 if remote else 500) << 20

    fake_mps.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    gpu = nvml.Gpu("a GPU", "90", 8 << 30, 0)
    monkeypatch.setattr(nvml, "gpus", lambda: [gpu])
    plugin = cuda_plugin.Plugin(tmp_path / "plugin.so", "path")
    monkeypatch.setattr(cuda_plugin, "find", lambda: plugin)
    monkeypatch.setattr(cuda_probe, "context_bytes", context_bytes)
    return seen


def chosen(model: Path, *layers: Any, lookahead: int = 0, **options: Any) -> GpuChoice:
    config = EngineConfig(model=model, **options)
    choice = choose_gpu(config, resolve_model(model).spec, 64, 4 << 30, layers, lookahead)
    assert choice is not None
    return choice


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"predictor_process": "forked"}, "'forked' is unknown; choose from fused, mps"),
        ({"predictor_process": "mps", "transport": "ray"}, "choose transport native"),
        ({"predictor_process": "mps", "prompt_form": "dense"}, "choose prompt_form sparse"),
    ],
)
def test_what_cannot_go_together_is_refused(options: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        EngineConfig(**options)  # type: ignore[arg-type]


def test_without_a_gpu_it_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTCOLD_CUDA", "off")
    options: dict[str, Any] = {"model": tiny, "predictor": "low-rank"}
    assert prepare_model(EngineConfig(**options)).gpu is None
    with pytest.raises(ConfigError, match="shares a GPU, and this deployment uses none"):
        prepare_model(EngineConfig(**options, predictor_process="mps"))


def test_without_mps_it_is_refused(tiny: Path, a_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    layers = (MATRICES,) * resolve_model(tiny).spec.n_layers
    assert chosen(tiny, *layers).predictor_process == "fused"
    with pytest.raises(ConfigError, match="needs nvidia-cuda-mps-control, which is not on PATH"):
        chosen(tiny, *layers, predictor_process="mps")


@pytest.mark.parametrize("layers", [(), (SimpleNamespace(form="gate"),)], ids=["none", "gate"])
def test_with_nothing_to_predict_it_is_refused(
    tiny: Path, a_gpu: Any, layers: tuple[Any, ...]
) -> None:
    with pytest.raises(ConfigError, match="nothing to run"):
        chosen(tiny, *layers, predictor_process="mps")


def test_the_second_context_and_the_questions_are_in_the_budget(
    tiny: Path, a_gpu: dict[str, Any]
) -> None:
    spec = resolve_model(tiny).spec
    layers = (MATRICES,) * spec.n_layers
    fused, own = chosen(tiny, *layers), chosen(tiny, *layers, predictor_process="mps")
    assert a_gpu["remote"] == 3 * spec.n_layers + 1
    assert own.context_bytes - fused.context_bytes == 600 << 20
    assert fused.predictor_bytes == 0 < own.predictor_bytes
    mailbox = DEVICE_GRANULE  # which then holds the proposals
    proposals = spec.n_layers * spec.n_neurons * 4
    fused = chosen(tiny, *layers, prompt_form="sparse")
    more = own.reserve_bytes - fused.reserve_bytes - (600 << 20) - own.predictor_bytes
    vectors = 32 * 96 * 4 + spec.n_layers * 3 * 256  # the hidden layer is scratch over there
    assert mailbox - proposals - vectors - 256 <= more <= mailbox


def test_prompts_become_sparse(tiny: Path, a_gpu: Any) -> None:
    config = EngineConfig(model=tiny, predictor_process="mps")
    spec = resolve_model(tiny).spec
    layers = (MATRICES,) * spec.n_layers
    own = choose_gpu(config, spec, 512, 4 << 30, layers)
    assert own is not None and own.prompt_rows == 0
    fused = choose_gpu(EngineConfig(model=tiny), spec, 512, 4 << 30, layers)
    assert fused is not None and fused.prompt_rows > 0


def test_matrices_that_the_plan_has_on_the_gpu_are_counted() -> None:
    plan: Any = SimpleNamespace(
        devices=("gpu0", "cpu0"),
        modules={"predictor.0": "gpu0", "predictor.1": "cpu0", "kv.0": "gpu0"},
        module_bytes={"predictor.0": 100, "predictor.1": 50, "kv.0": 7},
    )
    assert remote_predictor.matrix_bytes(plan) == 100


def test_the_flag_of_a_pass_is_no_other_flag() -> None:
    layout = SegmentLayout.build(3, 32, 64, 8)
    others = {layout.flag(kind, layer) for kind in ("x", "active", "y") for layer in range(3)}
    never = {layout.spare_flag(0), layout.n_flags - 1}  # of the supervisor, of who stands by
    assert layout.spare_flag(1) not in others | never
