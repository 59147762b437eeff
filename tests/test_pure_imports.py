"""What plans needs no compiled code: it imports, and plans, where the kernels are not built."""

import subprocess
import sys
from pathlib import Path

from support.checkout import ROOT, tracked

# Everything here that imports no compiled kernels; what only runs them (suites) asks when it does.
ROOMS = (
    *("native/abi", "native/gpu", "policies"),
    *("runtime/" + room for room in ("files", "hardware", "model", "options", "plan", "plugins")),
    *("runtime/" + room for room in ("predictors", "profiles", "text", "tracing", "weights")),
)
FILES = ("native/errors.py", "runtime/units.py", "runtime/exchange/layout.py")
WITHOUT_KERNELS = """
import sys
class NotBuilt:
    def find_spec(self, name, path=None, target=None):
        if name == "hotcold.native._kernels":
            raise ImportError("the compiled kernels were asked for")
sys.meta_path.insert(0, NotBuilt())
"""
PLAN = """
from hotcold.policies.placement.greedy import Greedy
from hotcold.policies.schedule.paper import Paper
from hotcold.runtime.exchange.layout import SegmentLayout
from hotcold.runtime.hardware.machine_file import load_hardware
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.plan.dag import build_dag
from hotcold.runtime.plan.plan import make_plan
from hotcold.runtime.plan.problem import make_problem
from hotcold.runtime.plan.program import compile_programs
from hotcold.runtime.plugins.run import make_schedule, place
from hotcold.runtime.profiles.profile import ActivationProfile

bundle, hardware = resolve_model(None), load_hardware("pc-low")
spec, profile = bundle.spec, ActivationProfile.load(bundle.profile_path)
problem = make_problem(
    *(spec, bundle.record.bytes, profile.probabilities_LN, 28 << 20, 512, 1),
    *((0,) * spec.n_layers, None, hardware),
)
plan = make_plan(problem, place(Greedy(), problem, {}), "greedy", bundle.checksum)
dag = build_dag(spec, plan, predicts=True)
schedule = make_schedule(Paper(), dag, plan, hardware, {})
layout = SegmentLayout.build(spec.n_layers, spec.d_model, spec.n_neurons, 4)
programs = compile_programs(dag, schedule, layout)
print(spec.n_layers, *(len(programs[actor]) for actor in ("gpu", "cpu", "predictor")))
"""


def in_a_room(path: Path) -> bool:
    return any(path.is_relative_to(room) for room in ROOMS)


def modules() -> list[str]:
    rooms = [path for path in tracked() if path.suffix == ".py" and in_a_room(path)]
    paths = [*rooms, *map(Path, FILES)]
    parts = [path.with_suffix("").parts for path in paths]
    return [".".join(("hotcold", *(name for name in of if name != "__init__"))) for of in parts]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_KERNELS + code],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=False,
    )


def test_planning_imports_without_compiled_code() -> None:
    wanted = modules()
    assert len(wanted) > 80
    done = run(f"import importlib\nfor name in {wanted}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_model_is_placed_and_its_programs_compiled() -> None:
    done = run(PLAN)
    assert done.returncode == 0, done.stderr[-2000:]
    layers, gpu, cpu, predictor = map(int, done.stdout.split())
    assert gpu == 3 * layers + 2  # attention, hot, merge; embed, head
    assert cpu == predictor == layers


def test_the_check_itself_finds() -> None:
    done = run("import hotcold.native.bindings.kernels")
    assert done.returncode != 0 and "the compiled kernels were asked for" in done.stderr
