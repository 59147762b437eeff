"""The placement policy in the guide for authors does what the guide says."""

import json
import re
from pathlib import Path
from typing import Any

from support.command import Run

from hotcold.policies import check_placement_policy
from hotcold.runtime.plan.plan import Plan

GUIDE = Path(__file__).parents[2] / "examples" / "POLICIES.md"


def written(folder: Path, text: str = "") -> str:
    (code,) = re.findall(r"```python\n([^`]*class ColdInt8:[^`]*)```", GUIDE.read_text())
    (folder / "mine.py").write_text(code + text)
    return f"{folder / 'mine.py'}:"


def test_cold_neurons_in_int8(run: Run, tmp_path: Path) -> None:
    arguments = ("solve", "--vram", "28MiB", "--out", str(tmp_path / "plan"), "--json")
    ended = run(*arguments, "--policy", written(tmp_path) + "ColdInt8")
    assert ended.code == 0, ended.err
    assert re.search(r"cpu0: .* neurons\.0-\d+ in int8", ended.out)
    result = json.loads(ended.out.splitlines()[-1])
    plan = Plan.load(tmp_path / "plan")
    assert {layer["cold_format"] for layer in result["layers"]} == {"int8"}
    assert {layer["hot_format"] for layer in result["layers"]} == {plan.dtype}
    cold = int((plan.device_LN == 1).sum())
    assert cold and plan.bytes_by_device["cpu0"] == cold * plan.format_bytes["int8"]


def test_it_keeps_the_rules_of_the_suite(tmp_path: Path) -> None:
    made: dict[str, Any] = {}
    exec(Path(written(tmp_path)[:-1]).read_text(), made)
    check_placement_policy(made["ColdInt8"]())


FULL = """

class HotInt8(ColdInt8):
    def place(self, problem: Problem) -> Placement:
        size = problem.formats["int8"].bytes
        smaller = replace(problem, neuron_bytes_L=0 * problem.neuron_bytes_L + size)
        placed = smaller.fill(problem.activations_LN)
        numbers = np.array([DTYPES["int8"], DTYPES[problem.dtype]], np.int8)
        return replace(placed, dtype_LN=numbers[placed.device_LN])


class Odd(ColdInt8):
    def place(self, problem: Problem) -> Placement:
        placed = super().place(problem)
        placed.dtype_LN[2, 7] = 7
        return placed
"""


def test_a_gpu_full_of_int8_and_a_format_that_is_none(run: Run, tmp_path: Path) -> None:
    file = written(tmp_path, FULL)
    arguments = ("solve", "--vram", "28MiB", "--out", str(tmp_path / "plan"))
    ended = run(*arguments, "--policy", f"{file}HotInt8")
    assert ended.code == 0, ended.err
    plan = Plan.load(tmp_path / "plan")
    left = plan.budgets["gpu0"] - plan.bytes_by_device["gpu0"]
    assert 0 <= left < plan.format_bytes["int8"]
    ended = run(*arguments, "--policy", f"{file}Odd")
    assert ended.code == 2
    assert "Odd' gave neuron 7 of layer 2 the format 7; here it may be " in ended.err
