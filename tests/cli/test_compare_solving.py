"""What `hotcold compare` solves before it runs anything, and what it tells of policies."""

import json
import re
import time
from pathlib import Path

import pytest
from support.command import Run, only_line
from support.fake_engine import FakeEngine
from support.models import TinyLlama, write_llama
from support.problems import tiny_problem

from hotcold.actors.cli.compare import command as compare
from hotcold.actors.cli.compare import solving, subjects
from hotcold.actors.cli.compare.solving import solve_all
from hotcold.native.errors import PolicyError
from hotcold.runtime.engine import deployment
from hotcold.runtime.engine.prepare import Prepared
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plugins.run import place

pytestmark = pytest.mark.usefixtures("placed")


@pytest.fixture
def placed(solved: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Real placements, and a tiny model in the place of the planted one."""
    tiny_model = write_llama(tmp_path / "tiny", TinyLlama())
    monkeypatch.setattr(compare, "solve_all", solve_all)
    monkeypatch.setattr(subjects, "planted_model", lambda: tiny_model)


def test_the_implied_model_is_solved_first_and_may_lack_a_case(
    monkeypatch: pytest.MonkeyPatch, engines: list[FakeEngine], run: Run
) -> None:
    """A recording of the embedded model is none of the planted one: that must cost no run."""

    def solve(prepared: Prepared, policy: str) -> Plan:
        assert not engines, "a model was run before all were solved"
        if policy == "random" and prepared.bundle.spec.n_layers < 8:
            raise PolicyError("policy 'random': boom")
        return deployment_solve(prepared, policy)

    deployment_solve = deployment.solve
    monkeypatch.setattr(deployment, "solve", solve)
    given = ("compare", "--policy", "random", "--repeat", "1", "--json")
    done = run(*given, "--policy", "greedy")
    assert done.code == 0, done.err
    runs = json.loads(done.out.splitlines()[-1])["runs"]
    cases = [(one["model"], one["policy"]) for one in runs]
    assert cases == [("embedded", "random"), ("embedded", "greedy"), ("planted", "greedy")]
    assert "random, selective is left out: policy 'random': boom" in done.err
    engines.clear()
    done = run(*given)
    assert done.code == 0 and "the planted model is left out: policy" in done.err
    assert len(json.loads(done.out.splitlines()[-1])["runs"]) == 1
    engines.clear()
    done = run(*given, "--planted")
    assert done.code == 2 and "boom" in only_line(done.err) and not engines


def test_a_schedule_of_a_file_is_named_as_typed(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import os\n\n\nclass Mine:\n    def schedule(self, dag, plan, hardware):\n"
        "        os._exit(0)\n"
    )
    done = run("compare", "--schedule", f"{file}:Mine", "--no-planted")
    assert done.code == 2
    assert f"policy '{file}:Mine' ended its process with exit code 0" in only_line(done.err)
    file.write_text(file.read_text().replace("os._exit(0)", "while True: pass"))
    for given in (("--schedule", f"{file}:Mine", "--no-planted"), ("--shape", "opt-125m")):
        done = run("compare", "--schedule", f"{file}:Mine", "--policy-timeout", "1", *given[2:])
        assert done.code == 2 and "did not finish in 1 s" in only_line(done.err)


def test_a_policy_that_placed_nothing_says_why(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    given = ("--policy", "ilp", "--policy", "all-cpu", "--vram", "22MiB", "--no-planted")
    done = run("compare", *given, "--repeat", "1", "--json", "--out", str(tmp_path / "out"))
    remark = "8 layers without a neuron on the GPU, which would need at least 1,"
    assert f"ilp on embedded, 22MiB: no neuron on the GPU: {remark}" in " ".join(done.out.split())
    assert "all-cpu on embedded" not in done.out
    runs = json.loads(done.out.splitlines()[-1])["runs"]
    assert runs[0]["note"].startswith(remark)
    page = (tmp_path / "out" / "compare.html").read_text()
    assert f'<p class="small">ilp, selective: {remark}' in page
    words = f"hotcold compare {' '.join(given)} --repeat 1"
    assert re.search(rf"hotcold .*, \d{{4}}-\d\d-\d\d, \d+ cores of .*: {words}", page)


def test_a_note_stands_on_the_page_under_the_table_it_is_about(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    given = ("--policy", "greedy", "--vram", "28MiB", "--repeat", "1", "--out", str(tmp_path / "o"))
    done = run("compare", *given)
    assert done.code == 0, done.err
    first, planted = (tmp_path / "o" / "compare.html").read_text().split("<h2>planted, ")
    assert "planted: its budget holds" in planted and "planted: its budget" not in first
    assert first.count("do not rank placements") == planted.count("do not rank placements") == 1
    assert first.index("GPU neuron load</h2>") < first.index("Tokens a second</h2>")
    assert "overflow-wrap: anywhere" in first  # long paths and names do not widen the page


def test_an_interruption_does_not_wait_for_a_policy(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import time\n\n\nclass Mine:\n    place = lambda *_: time.sleep(600)\n")

    def call(name: str) -> object:
        if name == "interrupted":
            raise KeyboardInterrupt
        return place(name, tiny_problem(), timeout_s=600)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        solving._several(call, ["interrupted", f"{file}:Mine", f"{file}:Mine"])
    assert time.monotonic() - began < 60
