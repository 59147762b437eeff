"""Door 3 on a real cluster: plain `ray job submit`, `hotcold submit`, both stopped midway."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from jobs.conftest import HOTCOLD, UnderWay, ended
from support.checkout import ROOT
from support.command import only_line
from support.ray_cluster import Cluster

from hotcold.runtime.plan.plan import Plan

pytestmark = [pytest.mark.ray_cluster, pytest.mark.ray]
MINE = """from dataclasses import dataclass
from hotcold.policies import Placement, Problem

@dataclass(frozen=True)
class Mine:
    share: float = 1.0
    def place(self, problem: Problem) -> Placement:
        return problem.fill(problem.activations_LN, share=self.share)

class Broken:
    def place(self, problem: Problem) -> Placement:
        raise RuntimeError("boom")
"""
# Every command, in an order in which each finds what it reads; slow ones at their smallest. Not
# among them: bench, chaos, hardware and train-predictors, for their time alone.
COMMANDS = """set -e
hotcold() { python -m hotcold.actors.cli.main "$@" > /dev/null && echo "done $1"; }
hotcold doctor
hotcold policies
hotcold inspect
hotcold convert --dtype int8
hotcold generate "Once upon a time" --max-tokens 4
hotcold compare --policy mine.py:Mine --no-planted --vram 24MiB --repeat 1 --max-tokens 4 --out cmp
hotcold trace --vram 24MiB --max-tokens 4 --out trace
hotcold solve --policy mine.py:Mine --vram 24MiB --out plan
hotcold roofline --plan plan --hardware pc-low
hotcold profile --text text.txt --max-tokens 64 --out run
hotcold pictures --profile run --out pictures
hotcold plant tiny --density 0.2 --out planted
hotcold evaluate --text text.txt --max-tokens 64
"""
LONG = ("generate", "Once upon a time", "--max-tokens", "900", "--context", "1024")
LONG = (*LONG, "--ignore-eos", "--transport", "ray")  # a minute of it


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has in the folder that is sent."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "mine.py").write_text(MINE)
    (folder / "text.txt").write_text("Once upon a time there was a king. " * 40)
    (folder / "commands.sh").write_text(COMMANDS)
    return folder


@pytest.fixture(scope="module")
def jobs(
    under_way: Callable[[Path], UnderWay], installed: Path, work: Path
) -> dict[str, "subprocess.Popen[str]"]:
    """All jobs at once: most of a job's time is Ray's waiting for its own processes."""
    here = under_way(work)
    with_it = json.dumps({"env_vars": {"PYTHONPATH": str(installed)}})
    plain = ("submit", "--working-dir", ".", "--runtime-env-json", with_it)
    engine = ("--policy", "mine.py:Mine", "--policy", "all-cpu", "--no-planted", "--vram", "24MiB")
    return {
        "plain": here.ray_job(*plain, "--", "bash", "commands.sh"),
        "submit": here.submit(
            *("--", "compare", *engine, "--repeat", "1", "--max-tokens", "4", "--json")
        ),
        "fetch": here.submit(
            *("--fetch", "out", "--", "solve", "--policy", "mine.py:Mine", "--vram", "24MiB"),
            *("--out", "out"),
        ),
        "broken": here.submit("--", "compare", "--policy", "mine.py:Broken", "--vram", "24MiB"),
    }


def test_the_commands_run_as_a_plain_job(jobs: dict[str, "subprocess.Popen[str]"]) -> None:
    done = ended(jobs["plain"])
    assert done.code == 0, done.out + done.err
    wanted = re.findall(r"^hotcold ([\w-]+)", COMMANDS, re.M)
    assert re.findall(r"^done ([\w-]+)", done.out, re.M) == wanted


def test_submit_runs_an_engine_where_hotcold_is_not(
    jobs: dict[str, "subprocess.Popen[str]"], cluster: Cluster
) -> None:
    lacks = subprocess.run(
        [cluster.python, "-c", "import hotcold.runtime"], capture_output=True, env={}, check=False
    )
    if lacks.returncode == 0:
        pytest.skip("hotcold is installed here as a wheel; every Python of this machine has it")
    done = ended(jobs["submit"])
    assert done.code == 0, done.err
    runs = json.loads(done.out.splitlines()[-1])["runs"]
    assert [run["policy"] for run in runs] == ["mine.py:Mine", "all-cpu"]
    assert runs[0]["gpu_neuron_load"] > runs[1]["gpu_neuron_load"] == 0


def test_what_the_command_wrote_comes_back(
    jobs: dict[str, "subprocess.Popen[str]"], work: Path
) -> None:
    done = ended(jobs["fetch"])
    assert done.code == 0, done.err
    assert "2 files came back to out" in done.err
    plan = Plan.load(work / "out")
    assert plan.policy == "mine.py:Mine" and plan.bytes_by_device["gpu0"] <= 24 << 20
    assert not list(work.rglob("*.partial"))


@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_a_cluster_whose_token_this_machine_lacks(
    under_way: Callable[[Path], UnderWay], cluster: Cluster, tmp_path: Path, mode: str
) -> None:
    here = under_way(tmp_path)
    own = {"HOME": str(tmp_path), "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": "ab" * 32}
    sent = here.start(*HOTCOLD, "submit", "--address", cluster.address, "--", "doctor", **own)
    joined = here.start(*HOTCOLD, "generate", "Hello", "--address", cluster.gcs, **own)
    for process in (sent, joined):
        done = ended(process)
        assert done.code == 1 and not done.out
        assert "wants its token; export RAY_AUTH_MODE=token" in only_line(done.err)


def test_the_exit_code_is_the_commands_own(jobs: dict[str, "subprocess.Popen[str]"]) -> None:
    done = ended(jobs["broken"])
    assert done.code == 2
    assert "mine.py:12: RuntimeError: boom" in done.err.splitlines()[-1]
    assert "boom" not in done.out


def log_of(cluster: Cluster, job: str) -> str:
    said: str = cluster.ask(f"/api/jobs/{job}/logs")["logs"]
    return said


def await_text(cluster: Cluster, job: str) -> None:
    """Until the job's generation has begun."""
    deadline = time.monotonic() + 120
    while "there lived" not in log_of(cluster, job):
        assert time.monotonic() < deadline, log_of(cluster, job)
        time.sleep(0.2)


def nothing_runs_in(cluster: Cluster) -> bool:
    deadline = time.monotonic() + 20
    while (left := cluster.actors()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not left and not list(Path("/dev/shm").glob("*hotcold*"))


def test_a_stopped_job_has_cleaned_up(
    under_way: Callable[[Path], UnderWay],
    cluster: Cluster,
    installed: Path,
    work: Path,
) -> None:
    """SIGTERM to every process of the job, and SIGKILL 3 s later, as Ray does."""
    here = under_way(work)
    with_it = json.dumps({"env_vars": {"PYTHONPATH": str(installed), "PYTHONUNBUFFERED": "1"}})
    plain = here.ray_job(
        *("submit", "--no-wait", "--submission-id", "plain", "--runtime-env-json", with_it),
        *("--", "python", "-m", "hotcold.actors.cli.main", *LONG),
    )
    sent = here.submit("--", *LONG)
    assert sent.stderr is not None
    job = next(
        found[0] for line in sent.stderr if (found := re.findall(r"job (hotcold-\w+)", line))
    )
    await_text(cluster, job)
    sent.send_signal(signal.SIGINT)
    assert ended(sent).code == 130
    assert "hotcold: terminated" in log_of(cluster, job)
    assert ended(plain).code == 0
    await_text(cluster, "plain")
    assert ended(here.ray_job("stop", "plain")).code == 0
    assert "hotcold: terminated" in log_of(cluster, "plain")
    assert nothing_runs_in(cluster)


FOREIGN = """
from hotcold.actors import Engine
from hotcold.policies.placement.greedy import Greedy
from hotcold.native.errors import LaunchError
try:
    Engine.launch(address={gcs!r}, policy=Greedy())
except LaunchError as error:
    print(error)
"""


def test_a_driver_is_told_that_the_cluster_has_no_hotcold(
    under_way: Callable[[Path], UnderWay], cluster: Cluster, work: Path
) -> None:
    # Found as an editable install is: by this process alone, not by those that inherit its path.
    hook = f"import sys; sys.path[:0] = {sys.path!r}\n"
    (work / "driver.py").write_text(hook + FOREIGN.format(gcs=cluster.gcs))
    done = ended(under_way(work).start(sys.executable, "driver.py"))
    assert "the Ray cluster's Python has no hotcold" in done.out, done.out + done.err
    assert "hotcold submit" in done.out
    assert nothing_runs_in(cluster)


def test_the_sweep_of_the_examples_runs_as_a_job(
    under_way: Callable[[Path], UnderWay], tmp_path: Path
) -> None:
    shutil.copy(ROOT / "examples" / "04_sweep.py", tmp_path)
    done = ended(under_way(tmp_path).submit("--", "python", "04_sweep.py", "all-cpu"))
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "same tokens: yes"
