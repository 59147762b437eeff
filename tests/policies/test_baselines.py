"""per-layer, layer-split, ffn-split and oracle."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.problems import module_bytes, tiny_problem

from hotcold.native.errors import ConfigError, PolicyError
from hotcold.policies import check_placement
from hotcold.policies.placement.ffn_split import FfnSplit
from hotcold.policies.placement.greedy import Greedy
from hotcold.policies.placement.layer_split import LayerSplit
from hotcold.policies.placement.per_layer import PerLayer
from hotcold.runtime.plan.problem import Problem
from hotcold.runtime.plugins.run import place

RECORD = 192


def roomy(neurons: int, layers: int = 3, **changes: object) -> Problem:
    """Room for all modules and so many neurons of 40 a layer."""
    problem = tiny_problem(layers, 40, **changes)  # type: ignore[arg-type]
    gpu = module_bytes(problem) + neurons * RECORD
    return replace(problem, budgets={**problem.budgets, "gpu0": gpu})


def test_per_layer_gives_every_layer_its_hottest_the_same_number() -> None:
    problem = roomy(62)
    placement = PerLayer().place(problem)
    assert (placement.device_LN == 0).sum(axis=1).tolist() == [20, 20, 20]
    for p_N, device_N in zip(problem.activations_LN, placement.device_LN, strict=True):
        assert p_N[device_N == 0].min() >= p_N[device_N == 1].max()
    assert (PerLayer(share=0.5).place(problem).device_LN == 0).sum() == 30
    with pytest.raises(ConfigError, match="share is 2"):
        PerLayer(share=2)


def test_ffn_split_keeps_whole_layers_from_the_end() -> None:
    placement = FfnSplit().place(roomy(95))
    assert [set(row.tolist()) for row in placement.device_LN] == [{1}, {0}, {0}]
    assert set(placement.modules.values()) == {"gpu0"}
    assert "first 1 of 3 layers" in placement.note


def test_layer_split_moves_attention_and_cache_with_the_neurons() -> None:
    problem = roomy(40)
    placement = LayerSplit().place(problem)
    check_placement(problem, placement, "layer-split")
    on_gpu = {layer for layer in range(3) if not placement.device_LN[layer].any()}
    for name, home in placement.modules.items():
        kind, _, layer = name.partition(".")
        if layer:
            assert home == ("gpu0" if int(layer) in on_gpu else "cpu0"), kind
    assert on_gpu in ({2}, {1, 2})
    everything = LayerSplit().place(roomy(120))
    assert not everything.device_LN.any() and set(everything.modules.values()) == {"gpu0"}
    nothing = LayerSplit().place(replace(problem, budgets={**problem.budgets, "gpu0": 1}))
    assert nothing.device_LN.all() and set(nothing.modules.values()) == {"cpu0"}


def recording(path: Path, fired_TLN: np.ndarray) -> str:
    file = path / "masks.npz"
    np.savez(file, fired_TLB=np.packbits(fired_TLN, axis=-1))
    return str(file)


def test_oracle_places_by_what_really_fired(tmp_path: Path) -> None:
    fired_TLN = np.random.default_rng(0).random((50, 3, 40)) < 0.3
    problem = roomy(30)
    placement = place("oracle", problem, {"masks": recording(tmp_path, fired_TLN)})
    hot_LN = placement.device_LN == 0
    hits = int(fired_TLN[:, hot_LN].sum())
    assert placement.figures["objective"] == pytest.approx(hits / 50)
    assert hits >= int(fired_TLN[:, Greedy().place(problem).device_LN == 0].sum())
    assert hits == np.sort(fired_TLN.sum(axis=0).reshape(-1))[-30:].sum()


def test_oracle_without_a_usable_recording_says_so(tmp_path: Path) -> None:
    problem = roomy(30)
    with pytest.raises(PolicyError, match="^policy 'oracle' needs a recording: --set masks=FILE"):
        place("oracle", problem)
    with pytest.raises(PolicyError, match="cannot be read"):
        place("oracle", problem, {"masks": str(tmp_path / "none.npz")})
    wrong = recording(tmp_path, np.zeros((2, 3, 48), bool))
    with pytest.raises(PolicyError, match=r"needs uint8 \[tokens, 3, 5\]"):
        place("oracle", problem, {"masks": wrong})
    np.savez(tmp_path / "other.npz", other=np.zeros(3))
    with pytest.raises(PolicyError, match="has no array fired_TLB"):
        place("oracle", problem, {"masks": str(tmp_path / "other.npz")})


def test_a_layer_gets_its_own_neurons() -> None:
    """Twelve layers, each with other hot neurons: none gets those of another (10 before 2)."""
    layers, neurons = 12, 40
    p_LN = np.full((layers, neurons), 0.01)
    for layer in range(layers):
        p_LN[layer, 3 * layer : 3 * layer + 3] = 0.9
    problem = roomy(3 * layers, layers, activations_LN=p_LN)
    for name in ("greedy", "ilp", "per-layer"):
        device_LN = place(name, problem).device_LN
        np.testing.assert_array_equal(device_LN == 0, p_LN > 0.5, err_msg=name)
    fast = replace(problem.hardware, gpu_gb_per_s=1e4, sync_s=1e-12)
    device_LN = place("latency", replace(problem, hardware=fast)).device_LN
    assert not ((device_LN == 0) & (p_LN < 0.5)).any()
