"""The bound, against arithmetic done by hand."""

from dataclasses import replace

import numpy as np
import pytest

from hotcold.native.errors import ConfigError
from hotcold.runtime.hardware.machine_file import load_hardware
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.offline.plant.shaped import Ask, shaped_problem
from hotcold.runtime.plan.problem import Module, Placement, Problem
from hotcold.runtime.plan.roofline import for_batch, for_gpu, graph_nodes, roofline
from hotcold.runtime.plugins.run import place

# 1 GB/s reads a byte in a nanosecond.
HAND = HardwareProfile("hand", False, 1.0, 10.0, 2.0, 1e9, 1e9, 1e-6, gap_s=1e-7)
MODULES = (
    Module("norms", None, 1000),
    Module("head", None, 8000, read_share=0.5),
    Module("attention.0", 0, 20_000),
    Module("attention.1", 1, 20_000),
    Module("predictor.0", 0, 3000),
    Module("kv.0", 0, 4000, read_share=0.5),
)


def small(hardware: HardwareProfile = HAND) -> Problem:
    """Two layers of four neurons of 1000 bytes; the first layer's fire half of the time."""
    return Problem(
        activations_LN=np.array([[0.5] * 4, [1.0, 1.0, 0.0, 0.0]]),
        neuron_bytes_L=np.array([1000, 1000]),
        modules=MODULES,
        budgets={"gpu0": 10**6, "cpu0": 10**6},
        hardware=hardware,
        predictor_density_L=np.array([0.5, 0.5]),
        context=8,
        batch=1,
        dtype="float16",
    )


def placed(*hot: tuple[int, int], away: str = "") -> Placement:
    device_LN = np.ones((2, 4), np.int8)
    for at in hot:
        device_LN[at] = 0
    modules = {m.name: "cpu0" if m.name == away else "gpu0" for m in MODULES}
    return Placement(device_LN, modules)


def test_parts_by_hand() -> None:
    # Layer 0: two hot (2 * 0.5 * 1000 bytes at 10 GB/s: 100 ns), two cold (1000 ns). Layer 1: both
    # that fire are hot (200 ns), no cold neuron is ever proposed.
    bound = roofline(small(), placed((0, 0), (0, 1), (1, 0), (1, 1)))
    ns = {name: seconds * 1e9 for name, seconds in bound.parts_s.items()}
    assert ns["attention"] == pytest.approx(4000)
    assert ns["predictor"] == pytest.approx(300)
    assert ns["kv"] == pytest.approx(200)
    assert ns["head"] == pytest.approx(100 + 400)
    assert ns["ffn"] == pytest.approx(1000 + 200)
    assert ns["exchange"] == pytest.approx(0.75 * 1000)  # quiet: neither of two proposed, 1/4
    # qkv, attention, o, split, merge and gate-up, down in two layers; fc1, fc2 in one; 3 once.
    assert graph_nodes(small(), placed((0, 0), (1, 0))) == 2 * 7 + 2 + 3
    assert ns["gaps"] == pytest.approx(100 * 19)
    assert bound.token_s * 1e9 == pytest.approx(4000 + 300 + 200 + 500 + 1200 + 750 + 1900)
    assert bound.tokens_per_s == pytest.approx(1e9 / 8850)
    assert (bound.hot_s * 1e9, bound.cold_s * 1e9) == pytest.approx((300, 1000))
    expected = {"attention": 40_000, "predictor": 3000, "kv": 2000, "head": 5000}
    assert bound.bytes == pytest.approx({**expected, "hot": 3000, "cold": 1000})
    assert bound.elsewhere == ()


def test_reading_ahead_hides_cold_neurons_behind_attention_and_predictions_behind_them() -> None:
    # Layer 0: hot 100 ns, cold 1000, never early. Layer 1: cold 2000, behind 2000 of attention.
    spread = placed((0, 0), (0, 1))
    plain, ahead = roofline(small(), spread), roofline(small(), spread, ahead=True)
    assert plain.parts_s["ffn"] * 1e9 == pytest.approx(1000 + 2000)
    assert ahead.parts_s["ffn"] * 1e9 == pytest.approx(1000)
    assert (ahead.hot_s, ahead.cold_s) == (plain.hot_s, plain.cold_s)
    # The second layer's prediction, 300 ns, beside layer 0: hot 200 and no cold; attention a tenth.
    modules = [replace(module, bytes=module.bytes // 10) for module in MODULES[:-2]]
    guess = replace(MODULES[-2], name="predictor.1", layer=1)
    problem = replace(small(), modules=(*modules, guess))
    whole = placed(*((0, neuron) for neuron in range(4)))
    where = replace(whole, modules={module.name: "gpu0" for module in problem.modules})
    ahead = roofline(problem, where, ahead=True)
    assert ahead.parts_s["ffn"] * 1e9 == pytest.approx(200 + 300 + (2000 - 200))
    assert ahead.parts_s["predictor"] == 0
    in_turn = small(replace(HAND, gpu_gb_per_s=1.0, pcie_gb_per_s=1.0, has_gpu=False))
    assert roofline(in_turn, spread, ahead=True) == roofline(in_turn, spread)


def test_without_a_gpu_hot_and_cold_take_turns_and_there_is_no_graph() -> None:
    machine = replace(HAND, gpu_gb_per_s=1.0, pcie_gb_per_s=1.0, has_gpu=False)
    bound = roofline(small(machine), placed((0, 0), (0, 1), (1, 0), (1, 1)))
    assert bound.parts_s["ffn"] * 1e9 == pytest.approx(1000 + 1000 + 2000)
    assert bound.parts_s["gaps"] == 0
    everywhere = [roofline(small(machine), placed(*at)) for at in ((), ((0, 0),), ((1, 0),))]
    ffn = {round(one.parts_s["ffn"] * 1e12) for one in everywhere}
    assert len(ffn) == 1, "one memory: the bytes are read wherever they are said to lie"


def test_what_does_not_fit_is_read_over_the_bus() -> None:
    bound = roofline(small(), placed(away="attention.1"))
    assert bound.parts_s["attention"] * 1e9 == pytest.approx(2000 + 10_000)
    assert bound.elsewhere == ("attention.1",)


def test_over_firing_costs_gate_rows_only() -> None:
    # Half fires, all are proposed: a third of the neuron (its gate) is read for the others too.
    problem = replace(small(), predictor_density_L=np.array([1.0, 1.0]))
    bound = roofline(problem, placed())
    assert bound.bytes["cold"] == pytest.approx(4000 * (1 / 3 + 2 / 3 * 0.5) * 2)


def test_a_plan_for_another_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="the options the plan was solved with"):
        roofline(small(), Placement(np.ones((2, 5), np.int8), placed().modules))
    modules = {name: home for name, home in placed().modules.items() if name != "kv.0"}
    with pytest.raises(ConfigError, match="differs in kv.0"):
        roofline(small(), Placement(placed().device_LN, modules))


def test_context_and_scratch_leave_the_budget() -> None:
    machine = replace(HAND, context_bytes=700)
    assert for_gpu(small(machine), 2000, 300).budgets["gpu0"] == 1000
    assert for_gpu(small(machine), None, 300).budgets["gpu0"] == 56_000 + 8000
    with pytest.raises(ConfigError, match="less than the 1000 bytes"):
        for_gpu(small(machine), 999, 300)


@pytest.mark.parametrize(
    ("gib", "dtype", "by_hand", "measured"),
    [(None, "float16", 230, 168.6), (16, "float16", 130, 102.6), (10, "int8", 38, 39.4)],
)
def test_the_13b_shape_on_the_h100(
    gib: int | None, dtype: str, by_hand: float, measured: float
) -> None:
    """Within 12 % of what was worked out by hand; and no engine was faster."""
    ask = Ask(0.12, 0.3, 960, dtype, kv_bytes=2, embed_on_host=True)
    machine = load_hardware("h100-box")
    budget = None if gib is None else gib << 30
    problem = shaped_problem("llama2-13b", budget, hardware=machine, ask=ask)
    problem = for_gpu(problem, budget, 64 << 20)
    bound = roofline(problem, place("greedy", problem))
    assert bound.tokens_per_s == pytest.approx(by_hand, rel=0.12)
    assert bound.tokens_per_s > measured
    read = 40 * 4 * 5120**2 * 2
    assert bound.bytes["attention"] == pytest.approx(read)
    assert bound.bytes["hot"] + bound.bytes["cold"] == pytest.approx(
        0.12 * 40 * 13824 * 3 * 5120 * 2, rel=0.01
    )


@pytest.mark.parametrize(
    "wrong",
    [{"predictor_dtype": "int4"}, {"overfire": 0.5}, {"overfire": float("nan")}]
    + [{"predictor_width": -1}],
)
def test_an_ask_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Ask(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"density": 0.0}, {"density": float("nan")}, {"share80": 0.9}])
def test_statistics_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        shaped_problem("tiny", None, ask=Ask(**wrong))


def test_a_batch_reads_weights_once_unions_of_neurons_and_every_cache() -> None:
    where = placed((0, 0), (0, 1), (1, 0), (1, 1))
    one, four = (roofline(for_batch(small(), batch), where) for batch in (1, 4))
    assert one == roofline(small(), where)
    for name in ("attention", "predictor", "head"):
        assert four.parts_s[name] == one.parts_s[name]
    assert four.parts_s["kv"] == pytest.approx(4 * one.parts_s["kv"])
    assert four.bytes["cold"] == pytest.approx(2 * 1000 * (1 - 0.5**4))
    assert for_batch(for_batch(small(), 4), 1).modules == small().modules
