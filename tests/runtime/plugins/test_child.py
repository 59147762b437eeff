import contextlib
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.problems import tiny_plan, tiny_problem, tiny_spec

from hotcold.native.errors import ConfigError, PolicyError
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.plan.dag import Dag, build_dag
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plan.schedule import Schedule, fetching, in_order
from hotcold.runtime.plugins.child import place_in_child, schedule_in_child, stop_children
from hotcold.runtime.plugins.run import make_schedule

HARDWARE = HardwareProfile.unmeasured()

# The policy of the documentation, as printed there.
PRINTED = '''from dataclasses import dataclass
from hotcold.policies import Placement, Problem

@dataclass(frozen=True)
class Mine:
    """Hottest bytes first."""
    share: float = 1.0                                                # --set share=0.8
    def place(self, problem: Problem) -> Placement:
        return problem.fill(problem.activations_LN / problem.neuron_bytes_L[:, None], share=self.share)
'''  # noqa: E501

BODY = """import os, sys, time, signal, threading, subprocess
import numpy as np
from hotcold.policies import Placement


class Mine:
    def place(self, problem):
        {}
"""


@pytest.fixture
def mine(tmp_path: Path) -> Any:
    def write(body: str) -> str:
        file = tmp_path / "mine.py"
        file.write_text(body if "\n" in body else BODY.format(body))
        return f"{file}:Mine"

    return write


def test_the_printed_policy_runs(mine: Any) -> None:
    problem = tiny_problem(seed=3)
    for share, settings in ((1.0, {}), (0.5, {"share": "0.5"})):
        placement = place_in_child(mine(PRINTED), settings, problem)
        expected = problem.fill(problem.activations_LN, share=share)
        np.testing.assert_array_equal(placement.device_LN, expected.device_LN)
        assert placement.modules == expected.modules


def test_the_child_sees_the_whole_problem(mine: Any, tmp_path: Path) -> None:
    problem = tiny_problem(predictor_bytes_L=[1, 2, 3], context=17, batch=2)
    out = tmp_path / "pickle"
    body = (
        f"import pickle; pickle.dump(problem, open({str(out)!r}, 'wb')); "
        "return problem.fill(problem.activations_LN)"
    )
    place_in_child(mine(body), {}, problem)
    seen = pickle.loads(out.read_bytes())
    for field in fields(problem):
        one, other = getattr(seen, field.name), getattr(problem, field.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('boom')", "mine.py:8: RuntimeError: boom$"),
        ("raise RuntimeError('boom\\nmore')", "mine.py:8: RuntimeError: boom$"),
        ("raise KeyboardInterrupt", "mine.py:8: KeyboardInterrupt$"),
        ("np.zeros(3)[7]", "mine.py:8: IndexError: index 7 is out of bounds"),
        ("problem.fill(1)", "mine.py:8: PolicyError: fill: score_LN"),
        ("problem.activations_LN[:] = 0", "mine.py:8: ValueError: .*read-only"),
        ("sys.exit(3)", "mine.py:8: SystemExit: 3$"),
        ("self.place(problem)", "mine.py:8: RecursionError"),
        ("os._exit(3)", "mine.py:Mine' ended its process with exit code 3 before it returned"),
        ("os._exit(0)", "ended its process with exit code 0 before"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed its process by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"by SIGKILL \(out of memory\?\)"),
        ("pass", "mine.py:Mine' returned nothing; place.problem. must return a Placement"),
        ("return 1, 2", "mine.py:Mine' returned an object of type tuple"),
        (
            "return Placement(np.full(problem.shape, np.nan), {})",
            "mine.py:Mine' returned device_LN of float64",
        ),
        (
            "return Placement(np.zeros(problem.shape, object), {})",
            "mine.py:Mine' returned device_LN of object",
        ),
        (
            "return Placement(np.zeros(problem.shape, 'int8'), {m.name: 'gpu0' for m in "
            "problem.modules})",
            "mine.py:Mine' puts .* bytes on gpu0, .* over its budget",
        ),
    ],
)
def test_whatever_a_policy_does_is_one_error_that_names_it(
    mine: Any, body: str, message: str
) -> None:
    with pytest.raises(PolicyError, match=message) as caught:
        place_in_child(mine(body), {}, tiny_problem())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class Mine(\n", "mine.py:1: SyntaxError"),
        ("import os\nimport no_such_thing\n", "mine.py:2: ModuleNotFoundError"),
        ("import os\nos._exit(4)\n", "exit code 4"),
        ("import os\nx = 1\n", "has no class 'Mine'"),
    ],
)
def test_files_that_fail_to_load(mine: Any, source: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        place_in_child(mine(source), {}, tiny_problem())


def test_the_traceback_is_kept_as_the_cause(mine: Any) -> None:
    with pytest.raises(PolicyError) as caught:
        place_in_child(mine("raise RuntimeError('boom')"), {}, tiny_problem())
    assert "Traceback" in str(caught.value.__cause__) and "boom" in str(caught.value.__cause__)


def test_names_and_settings_are_refused_before_anything_runs(mine: Any) -> None:
    with pytest.raises(PolicyError, match="^no placement policy named 'nope'; installed:"):
        place_in_child("nope", {}, tiny_problem())
    with pytest.raises(ConfigError, match="did you mean 'share'"):
        place_in_child(mine(PRINTED), {"shares": "1"}, tiny_problem())
    with pytest.raises(ConfigError, match="must be text or numbers"):
        place_in_child(mine(PRINTED), {"share": object()}, tiny_problem())  # type: ignore[dict-item]
    for timeout in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="policy timeout"):
            place_in_child("greedy", {}, tiny_problem(), timeout)


def test_a_policy_without_end_is_killed_with_all_it_started(mine: Any, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    body = (
        f"p = subprocess.Popen(['sleep', '600']); open({str(pid_file)!r}, 'w').write(str(p.pid)); "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    )
    started = time.monotonic()
    with pytest.raises(
        PolicyError, match="mine.py:Mine' did not finish in 2 s; .*--policy-timeout"
    ):
        place_in_child(mine(body), {}, tiny_problem(), timeout_s=2)
    assert time.monotonic() - started < 30
    assert ends(int(pid_file.read_text())), "the policy's own child is still running"


def ends(pid: int) -> bool:
    """Whether a process ends within five seconds."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_threads_left_behind_do_not_hold_the_answer(mine: Any) -> None:
    body = (
        "threading.Thread(target=time.sleep, args=(600,)).start(); "
        "return problem.fill(problem.activations_LN)"
    )
    assert place_in_child(mine(body), {}, tiny_problem(), timeout_s=30).modules


def test_prints_pass_through_and_input_is_empty(
    mine: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    body = (
        "print('out', repr(sys.stdin.read())); print('err', file=sys.stderr); "
        "return problem.fill(problem.activations_LN)"
    )
    place_in_child(mine(body), {}, tiny_problem())
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("out ''\n", "err\n")


def test_a_script_without_a_main_guard(mine: Any, tmp_path: Path) -> None:
    """The caller's __main__ must not run again in the child, nor shadow what the child imports."""
    (tmp_path / "random.py").write_text("raise RuntimeError('shadowed')")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from hotcold.runtime.plugins.child import place_in_child\n"
        "from support.problems import tiny_problem\n"
        "print('once')\n"
        f"print(len(place_in_child({mine(PRINTED)!r}, {{}}, tiny_problem()).modules))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')",
        ],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "once\n8\n", done.stderr


def test_nothing_is_left_open(mine: Any) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    place_in_child("greedy", {}, tiny_problem())
    with pytest.raises(PolicyError):
        place_in_child(mine("os._exit(1)"), {}, tiny_problem())
    assert sorted(os.listdir("/proc/self/fd")) == before


SCHEDULES = """
import os, signal, sys, time
from dataclasses import dataclass, replace

from hotcold.policies import in_order


@dataclass(frozen=True)
class Mine:
    start: int = 1

    def schedule(self, dag, plan, hardware):
        {}
"""


@pytest.fixture
def graph() -> tuple[Dag, Plan]:
    """Three layers; the last has all of its neurons on the GPU."""
    plan = tiny_plan(np.array([[0, 1, 1], [1, 0, 1], [0, 0, 0]], dtype=np.int8))
    return build_dag(tiny_spec(3, 3), plan, True), plan


def scheduled(mine: Any, graph: tuple[Dag, Plan], body: str, **settings: str) -> Schedule:
    return schedule_in_child(mine(SCHEDULES.format(body)), settings, *graph, HARDWARE)


def test_a_schedule_comes_back_as_it_was_made(mine: Any, graph: tuple[Dag, Plan]) -> None:
    dag, _ = graph
    body = (
        "return fetching(dag, replace(in_order(dag, 'selective', [0] * self.start + [1] * (3 - "
        "self.start)), threads={'cpu0': 2}, after=[('cold.0', 'hot.1')], read_ahead=True), "
        "[0.5, 0, 1])"
    )
    source = "from hotcold.policies import fetching; "
    found = scheduled(mine, graph, source + body, start="2")
    plain = replace(
        in_order(dag, "selective", (0, 0, 1)),
        threads={"cpu0": 2},
        after=(("cold.0", "hot.1"),),
        read_ahead=True,
    )
    assert found == fetching(dag, plain, (0.5, 0, 1))


def test_the_child_sees_the_whole_graph(mine: Any, graph: tuple[Dag, Plan], tmp_path: Path) -> None:
    out = tmp_path / "pickle"
    body = (
        f"import pickle; pickle.dump((dag, plan, hardware), open({str(out)!r}, 'wb')); "
        "return in_order(dag)"
    )
    scheduled(mine, graph, body)
    dag, plan, hardware = pickle.loads(out.read_bytes())
    assert dag == graph[0] and hardware == HARDWARE
    assert plan.hash == graph[1].hash and plan.budgets == graph[1].budgets


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('boom')", "mine.py:13: RuntimeError: boom$"),
        ("raise KeyboardInterrupt", "mine.py:13: KeyboardInterrupt$"),
        ("os._exit(0)", "mine.py:Mine' ended its process with exit code 0 before it .* a schedule"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "mine.py:Mine' crashed its process by SIGKILL"),
        ("pass", "mine.py:Mine' returned nothing; schedule.. must return a Schedule"),
        (
            "s = in_order(dag); return replace(s, order={k: v[::-1] for k, v in s.order.items()})",
            "mine.py:Mine' runs .* before .* on lane",
        ),
        (
            "import hotcold.runtime.plugins.child as c; c.check_schedule = print; "
            "return replace(in_order(dag), sync=('odd',) * 3)",
            "mine.py:Mine' has sync 'odd' for layer 0",
        ),
        ("return replace(in_order(dag), fetch=(float('nan'),) * 3)", "mine.py:Mine' has fetch nan"),
    ],
)
def test_whatever_a_schedule_does_is_one_error_that_names_it(
    mine: Any, graph: tuple[Dag, Plan], body: str, message: str
) -> None:
    with pytest.raises(PolicyError, match=message) as caught:
        scheduled(mine, graph, body)
    assert "\n" not in str(caught.value)


def test_a_schedule_without_end_is_stopped(mine: Any, graph: tuple[Dag, Plan]) -> None:
    endless = mine(SCHEDULES.format("time.sleep(600)"))
    with pytest.raises(PolicyError, match="mine.py:Mine' did not finish in 1 s; .*-timeout"):
        make_schedule(endless, *graph, HARDWARE, timeout_s=1)


@pytest.mark.parametrize("end", ["return problem.fill(problem.activations_LN)", "os._exit(3)"])
def test_what_a_policy_started_ends_with_it(mine: Any, tmp_path: Path, end: str) -> None:
    pids = tmp_path / "pids"
    body = (
        "p = subprocess.Popen(['sleep', '600']); pid = os.fork() or time.sleep(600); "
        f"open({str(pids)!r}, 'w').write(f'{{p.pid}} {{pid}}'); {end}"
    )
    with contextlib.suppress(PolicyError):
        place_in_child(mine(body), {}, tiny_problem(), timeout_s=30)
    for pid in map(int, pids.read_text().split()):
        assert ends(pid), "what the policy started is still running"


def test_all_that_runs_can_be_stopped(mine: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(place_in_child, mine("time.sleep(600)"), {}, tiny_problem())
        while not wait([waiting], 0.05).done:
            stop_children()
        with pytest.raises(PolicyError, match="crashed its process by SIGKILL"):
            waiting.result()


def test_an_answer_too_large_or_that_cannot_be_written(mine: Any) -> None:
    large = "return replace(problem.fill(problem.activations_LN), figures={'x' * 3000000: 1.0})"
    head = "import hotcold.runtime.plugins.child as c; c.check_placement = print; "
    head += "from dataclasses import replace; "
    with pytest.raises(PolicyError, match="mine.py:Mine' returned 30.* bytes; a placement of this"):
        place_in_child(mine(head + large), {}, tiny_problem())
    closed = "os.closerange(3, 64); return problem.fill(problem.activations_LN)"
    with pytest.raises(PolicyError, match="ended its process with exit code 1 before it returned"):
        place_in_child(mine(closed), {}, tiny_problem())
