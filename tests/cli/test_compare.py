"""`hotcold compare`: all placements solved first, runs in a drawn order, honest about tokens."""

import json

import pytest
from support.command import Run, only_line
from support.fake_engine import FakeEngine

from hotcold.runtime.cli import compare
from hotcold.runtime.cli.options import EngineOptions
from hotcold.runtime.errors import PolicyError


@pytest.fixture(autouse=True)
def solved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Placements by name: the fake engine knows nothing else of them."""

    def solve_all(_options: EngineOptions, policies: tuple[str, ...]) -> dict[str, str]:
        if "broken" in policies:
            raise PolicyError("broken.py:7: RuntimeError: boom")
        return {policy: policy for policy in policies}

    monkeypatch.setattr(compare, "solve_all", solve_all)


def test_the_table_has_a_row_a_policy(run: Run) -> None:
    ended = run("compare", "--policy", "greedy", "--policy", "odd", "--repeat", "2")
    assert ended.code == 0
    header, greedy, odd = ended.out.splitlines()
    assert header.split()[:2] == ["policy", "tokens/s"]
    assert greedy.startswith("greedy")
    assert "62.0 %" in greedy
    assert "25.0 %" in greedy  # waits of 0.25 s beside 0.75 s of work
    assert greedy.endswith("yes")
    assert odd.endswith("NO")


def test_json_keys(run: Run) -> None:
    ended = run("compare", "--policy", "greedy", "--policy", "random", "--json")
    result = json.loads(ended.out.splitlines()[-1])
    assert result["report"] is None
    assert [entry["policy"] for entry in result["runs"]] == ["greedy", "random"]
    for entry in result["runs"]:
        assert entry["schedule"] == "selective"
        assert entry["decode_tokens_per_s"] == 250.0
        assert entry["gpu_neuron_load"] == 0.62
        assert entry["wait_s"] == pytest.approx(0.25)
        assert entry["same_tokens"] is True


def test_a_policy_error_ends_it_before_a_token(run: Run, engines: list[FakeEngine]) -> None:
    ended = run("compare", "--policy", "greedy", "--policy", "broken", "--policy", "random")
    assert ended.code == 2
    assert ended.out == ""
    assert only_line(ended.err) == "hotcold: error: broken.py:7: RuntimeError: boom"
    assert engines == []


def test_the_order_of_runs_is_drawn_from_the_seed(run: Run, engines: list[FakeEngine]) -> None:
    orders = []
    for seed in ("1", "1", "2", "3", "4"):
        engines.clear()
        assert run("compare", "--repeat", "4", "--seed", seed).code == 0
        orders.append([request["plan"] for request in engines[0].requests])
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) > 1
    measured = orders[0][1::2]  # every measured run has a warm-up before it
    assert sorted(measured) == sorted(
        f"plan of {name}" for name in ("greedy", "random", "all-cpu") for _ in range(4)
    )


def test_every_run_has_the_same_length(run: Run, engines: list[FakeEngine]) -> None:
    assert run("compare", "--policy", "greedy", "--repeat", "1", "--max-tokens", "20").code == 0
    assert [request["max_tokens"] for request in engines[0].requests] == [8, 20]
    assert all(request["ignore_eos"] for request in engines[0].requests)
    assert all(request["temperature"] == 0.0 for request in engines[0].requests)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--policy", "greedy", "--policy", "greedy"], "twice"),
        (["--prompt", " "], "empty"),
        (["here", "--model", "there"], "two models"),
        (["--plan", "x"], "--plan"),
    ],
)
def test_refused(run: Run, engines: list[FakeEngine], argv: list[str], expected: str) -> None:
    ended = run("compare", *argv)
    assert ended.code == 2
    assert expected in only_line(ended.err)
    assert engines == []


@pytest.mark.parametrize("argv", [["here"], ["--model", "here"], ["here", "--model", "here"]])
def test_the_model_comes_first_or_by_name(
    run: Run, engines: list[FakeEngine], argv: list[str]
) -> None:
    assert run("compare", *argv, "--policy", "greedy", "--repeat", "1").code == 0
    assert engines[0].arguments["model"] == "here"
