"""CUDA kernels of one's own: what is refused, what is timed, and that passes compute with them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkout import ROOT
from support.models import TinyLlama, write_llama
from support.oracle import Oracle

from hotcold.actors.cli.main import main
from hotcold.native.errors import BackendError, ConfigError
from hotcold.native.gpu import cuda_plugin, cuda_probe, nvml
from hotcold.native.gpu.nvml import Gpu
from hotcold.runtime.engine.cuda_variant import prepare_cuda_variant, variant_library
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.factory import roles
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_kernels, prepare_model
from hotcold.runtime.offline.kernel_checks.cuda_variant_passes import EveryOther, masked_logits
from hotcold.runtime.options.config import EngineConfig

EXAMPLE = ROOT / "examples" / "07_own_cuda_kernel.cu"


def changed(folder: Path, old: str, new: str) -> Path:
    text = EXAMPLE.read_text()
    assert old in text
    path = folder / "mine.cu"
    path.write_text(text.replace(old, new))
    return path


# ---- on a GPU ------------------------------------------------------------------------------------
@pytest.mark.alone
@pytest.mark.gpu
def test_the_example_is_timed_beside_the_built_in_kernels(
    plugin: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--case", "sparse_ffn", "--d", "1024", "--density", "10", "--samples", "5"]
    assert main(["bench", "kernels", "--variant", str(EXAMPLE), *asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    figures = said["sparse_ffn"]["d1024"]["density10"]
    assert figures["bytes"] == round(4096 * 0.1) * 3 * 2048 == figures["variant"]["bytes"]
    assert 0 < figures["variant"]["gb_per_s"] < 2 * said["read_gb_per_s"]


@pytest.mark.gpu
def test_passes_compute_with_it(plugin: Any, tmp_path: Path) -> None:
    model = tmp_path / "model"
    write_llama(model, TinyLlama(d=512, neurons=300, heads=8, kv_heads=2, dtype="float16"))
    ids = np.random.default_rng(0).integers(3, 200, 40).tolist()
    runs = {}
    for name, kernels in (("own", str(EXAMPLE)), ("built-in", None)):
        config = EngineConfig(model=model, predictor="low-rank", vram="2GiB", kernels=kernels)
        prepared = prepare_model(config)
        with LocalSession(deploy(prepared, solve(prepared))) as local:
            runs[name], masks_TLN = local.logits(ids)
            assert ("07_own_cuda_kernel" in roles(local.deployment)["gpu"]) == (name == "own")
    expected = Oracle.load(model).forward(ids, masks_LTN=masks_TLN.transpose(1, 0, 2)).logits_TV
    for logits in runs.values():
        np.testing.assert_allclose(logits, expected, atol=2e-3, rtol=0)
    assert (runs["own"] != runs["built-in"]).any(), "sums of another order: other last bits"
    wrong = changed(tmp_path, "c = entry(", "c = 2 * entry(")
    with pytest.raises(ConfigError, match=r"mine.cu is refused: .* float64 gives"):
        prepare_model(EngineConfig(model=model, kernels=str(wrong)))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("at < a.d; at", "at < a.d - 8; at", "float64 gives"),
        ("* gridDim.y + b] = c", "* gridDim.y + b] = gridDim.y > 1 ? c * 1.000001f : c", "batch"),
        ("record + a.record.gate + 2 * at", "record + (1ll << 44)", "is refused"),
        # right in the operator door, where there are no stamps, and wrong in every pass
        ("wanted, gate", "wanted, gate - (a.stamps != 0)", r"a pass of the embedded model \("),
        ("bool wanted = a.hot", "bool wanted = !a.stamps && a.hot", r"a pass of the embedded"),
    ],
    ids=["short row", "batch", "wild", "pass", "no token in a pass"],
)
def test_wrong_kernels_are_refused(
    plugin: Any, tmp_path: Path, old: str, new: str, match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        prepare_cuda_variant(changed(tmp_path, old, new))


@pytest.mark.alone
@pytest.mark.gpu
def test_its_kernels_count_with_the_context(plugin: Any) -> None:
    found = cuda_plugin.find()
    assert found is not None
    own = variant_library(prepare_cuda_variant(EXAMPLE))
    with_it = cuda_probe.context_bytes(found.path, 32, 1, variant=own)
    without = cuda_probe.context_bytes(found.path, 32, 1)
    assert with_it is not None and without is not None
    assert 100 << 20 < without < with_it + cuda_probe.SAME < without + (64 << 20)


@pytest.mark.gpu
def test_another_abi_is_refused(plugin: Any, tmp_path: Path) -> None:
    path = changed(
        tmp_path,
        '#include "variant.cuh"',
        '#include "variant.cuh"\n#undef HC_DEVICE_ABI\n#define HC_DEVICE_ABI 7',
    )
    with pytest.raises((BackendError, ConfigError), match="ABI 7"):
        prepare_cuda_variant(path)


def test_the_passes_oracle_is_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a variant's passes are compared with, compared with the CPU device itself."""
    monkeypatch.setenv("HOTCOLD_CUDA", "off")
    for predictor in ("learned", "exact"):
        prepared = prepare_model(EngineConfig(predictor=predictor, policy=EveryOther()))
        made = deploy(prepared, solve(prepared))
        with LocalSession(made) as local:
            logits_TV, masks_TLN = local.logits(list(range(3, 40)))
        assert 0.02 < masks_TLN.mean() < 0.9
        exact_TV = masked_logits(made, list(range(3, 40)), masks_TLN)
        np.testing.assert_allclose(logits_TV, exact_TV, atol=1e-4 * np.abs(exact_TV).max())


# ---- without one ---------------------------------------------------------------------------------
def test_without_a_gpu_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "gpus", list)
    monkeypatch.setenv("HOTCOLD_CUDA", "auto")
    with pytest.raises(BackendError, match="holds CUDA kernels and there is no GPU"):
        prepare_kernels(str(EXAMPLE))
    with pytest.raises(ConfigError, match="there is no kernel file"):
        prepare_kernels(str(tmp_path / "none.cu"))
    assert main(["bench", "kernels", "--gpu", "--threads", "1"]) == 2
    assert main(["bench", "kernels", "--gpu", "--d", "128"]) != 0


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc to compile CUDA files with")
def test_it_is_compiled_once_and_its_errors_are_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOTCOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOTCOLD_CUDA_ARCH", "90")
    monkeypatch.setattr(nvml, "gpus", lambda: [Gpu("H100", "90", 80 << 30, 0)])
    monkeypatch.setattr(cuda_plugin, "find", lambda: cuda_plugin.Plugin(tmp_path / "x.so", "path"))
    tested = []
    monkeypatch.setattr(
        "hotcold.runtime.engine.cuda_variant.check_in_child", lambda *given: tested.append(given)
    )
    first, second = prepare_cuda_variant(EXAMPLE), prepare_cuda_variant(EXAMPLE)
    assert first == second
    assert len(tested) == 1
    assert b"hc_cuda_variant_abi" in variant_library(first).read_bytes()
    assert first.on_gpu
    path = changed(tmp_path, "return true;", "return nothing;")
    with pytest.raises(ConfigError, match=r"mine.cu does not compile: .*nothing"):
        prepare_cuda_variant(path)
