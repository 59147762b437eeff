import json
import re
from pathlib import Path

import pytest
from support.command import Run, only_line

from hotcold.runtime.hardware.machine_file import load_hardware, reference_machines
from hotcold.runtime.plan.plan import Plan


def test_solve_the_embedded_model(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "plan"
    ended = run("solve", "--policy", "ilp", "--vram", "24MiB", "--out", str(out), "--json")
    assert ended.code == 0, ended.err
    result = json.loads(ended.out.splitlines()[-1])
    assert {"solve_s", "objective", "bound", "gap", "bytes", "plan"} <= set(result)
    plan = Plan.load(result["plan"])
    assert result["plan"] == str(out) and result["plan_hash"] == plan.hash
    assert result["bytes"] == plan.bytes_by_device
    assert result["bytes"]["gpu0"] <= 24 * 2**20
    objective = plan.activations_LN[plan.device_LN == 0].sum()
    assert result["objective"] == pytest.approx(objective)
    assert result["gap"] <= 1e-9 or result["bound"] > result["objective"]
    layers_s = sum(layer["predicted_s"] for layer in result["layers"])
    assert result["predicted_token_s"] == pytest.approx(layers_s + result["predicted_rest_s"])
    assert "the cost model's, not a measurement" in ended.out and "rates not measured" in ended.out
    again = run("solve", "--vram", "24MiB", "--out", str(out))  # over its own earlier plan
    assert again.code == 0, again.err


def test_solve_a_shape_for_a_reference_machine(run: Run, tmp_path: Path) -> None:
    arguments = ["solve", "--shape", "llama-1b", "--vram", "1GiB", "--out", str(tmp_path / "p")]
    times = {}
    for machine in ("pc-low", "pc-high"):
        ended = run(*arguments, "--policy", "latency", "--hardware", machine, "--json")
        assert ended.code == 0, ended.err
        result = json.loads(ended.out.splitlines()[-1])
        assert result["hardware"] == load_hardware(machine).to_json()
        assert result["objective"] == pytest.approx(result["predicted_token_s"])
        times[machine] = result["objective"]
    assert times["pc-high"] < times["pc-low"]


def test_a_policy_without_figures_is_told_by_the_papers_objective(run: Run, tmp_path: Path) -> None:
    ended = run("solve", "--set", "share=0.5", "--out", str(tmp_path / "p"), "--json")
    result = json.loads(ended.out.splitlines()[-1])
    assert result["bound"] is None and result["gap"] is None
    assert result["objective"] == pytest.approx(result["gpu_activations"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shape", "gpt-9"), "shape 'gpt-9' is unknown; choose one of"),
        (("--hardware", "pc-medium"), "no hardware profile 'pc-medium'.*pc-high, pc-low"),
        (("--vram", "lots"), "--vram|lots"),
        (("--policy", "nope"), "no placement policy named 'nope'"),
        (("model", "--shape", "opt-30b"), "MODEL and --shape exclude each other"),
        (("--policy", "oracle"), "needs a recording"),
        (("--set", "shar=1"), "did you mean 'share'"),
    ],
)
def test_refused(run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    out = tmp_path / "plan"
    ended = run("solve", *arguments, "--out", str(out))
    assert ended.code == 2
    assert re.search(message, only_line(ended.err)), ended.err
    assert not out.exists()


def test_a_folder_of_something_else_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    ended = run("solve", "--out", str(tmp_path))
    assert ended.code == 2 and "is not a plan" in only_line(ended.err)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_reference_machines_load_by_name_and_path(tmp_path: Path) -> None:
    assert {"pc-high", "pc-low", "laptop-8gb", "h100-box"} <= set(reference_machines())
    for name in reference_machines():
        assert load_hardware(name).name == name
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(load_hardware("pc-low").to_json()))
    assert load_hardware(str(file)) == load_hardware("pc-low")


@pytest.mark.parametrize("kind", ["placement", "schedule", "predictor"])
def test_templates_are_printed(run: Run, kind: str) -> None:
    ended = run("policies", "--template", kind)
    assert ended.code == 0 and "class Mine" in ended.out and not ended.err
    compile(ended.out, "mine.py", "exec")
    assert run("policies", "--template", kind, "--json").code == 2
