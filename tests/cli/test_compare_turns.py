"""Turns of `hotcold compare`: their order, what is left out, and what an early end leaves."""

import json

import pytest
from support.command import Run
from support.fake_engine import FakeEngine

pytestmark = pytest.mark.usefixtures("solved")


def test_a_case_that_does_not_fit_is_left_out_and_the_others_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "refuses", "big")
    ended = run(
        "compare", "here", "--policy", "big", "--policy", "small", "--repeat", "2", "--json"
    )
    assert ended.code == 0
    assert ended.err.count("is left out: the plan needs 9 MiB") == 1
    big, small = json.loads(ended.out.splitlines()[-1])["runs"]
    assert "raise --vram" in big["refused"] and big["decode_tokens_per_s"] is None
    assert small["same_tokens"] is True and big["same_tokens"] is None
    assert ended.out.splitlines()[1].endswith("does not run here")


def test_what_does_not_fit_at_launch_is_left_out_too(
    run: Run, engines: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "refuses", "big")
    ended = run("compare", "here", "--policy", "big", "--policy", "small", "--repeat", "1")
    assert ended.code == 0 and len(engines) == 1
    assert engines[0].arguments["policy"] == "small" and not engines[0].under
    assert run("compare", "here", "--policy", "big", "--repeat", "1").code == 2


def test_an_actor_lost_under_one_policy_does_not_end_the_others(
    run: Run, engines: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "breaks", "plan of bad")
    argv = ["--policy", "good", "--policy", "bad", "--policy", "fine", "--repeat", "3"]
    ended = run("compare", "here", *argv, "--json")
    assert ended.code == 1
    assert ended.err.splitlines()[-1] == "hotcold: error: the gpu actor was lost"
    assert ended.err.count("bad, selective is left out: the gpu actor was lost") == 1
    runs = json.loads(ended.out.splitlines()[-1])["runs"]
    assert [entry["repeat"] for entry in runs] == [3, 0, 3]
    assert "was lost" in runs[1]["refused"] and not runs[0]["refused"]


def test_an_interruption_leaves_what_was_measured(
    run: Run, engines: list[FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "interrupt_after", 8)  # two requests a turn: in the fifth
    argv = ["--policy", "a", "--policy", "b", "--policy", "c", "--repeat", "4"]
    ended = run("compare", "here", *argv, "--json")
    assert ended.code == 130 and engines[0].closed
    runs = json.loads(ended.out.splitlines()[-1])["runs"]
    assert sorted(entry["repeat"] for entry in runs) == [1, 1, 2]
    assert all(entry["decode_tokens_per_s"] == 250.0 for entry in runs)
    monkeypatch.setattr(FakeEngine, "interrupt_after", 0)
    ended = run("compare", "here", *argv, "--json")
    assert ended.code == 130 and ended.out == ""


def test_a_time_limit_leaves_what_was_measured(run: Run, engines: list[FakeEngine]) -> None:
    ended = run("compare", "here", "--policy", "a", "--policy", "b", "--time-limit", "0", "--json")
    assert ended.code == 0 and "time is up after 0 of 6 turns" in ended.err
    assert json.loads(ended.out.splitlines()[-1])["runs"][0]["repeat"] == 0
    assert "Nothing was run here" in ended.out
    assert not engines[0].requests
    ended = run("compare", "here", "--policy", "a", "--time-limit", "3600", "--json")
    assert json.loads(ended.out.splitlines()[-1])["runs"][0]["repeat"] == 3


def test_the_same_plan_is_not_loaded_twice(run: Run, engines: list[FakeEngine]) -> None:
    argv = ["--policy", "a", "--policy", "same as a", "--repeat", "5"]
    assert run("compare", "here", *argv).code == 0
    assert engines[0].under == [] and len(engines[0].requests) == 20
    assert run("compare", "here", "--policy", "a", "--policy", "b", "--repeat", "5").code == 0
    assert {policy for policy, _, _ in engines[1].under} == {"a", "b"}


def test_the_order_of_runs_is_drawn_from_the_seed(run: Run, engines: list[FakeEngine]) -> None:
    orders, names = [], ("greedy", "random", "all-cpu")
    for seed in ("1", "1", "2", "3", "4"):
        engines.clear()
        assert run("compare", "here", "--repeat", "4", "--seed", seed).code == 0
        orders.append([request["plan"] for request in engines[0].requests])
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) > 1
    measured = orders[0][1::2]  # every measured run has a warm-up before it
    for at in range(0, 12, 3):  # every case once before any comes again
        assert sorted(measured[at : at + 3]) == sorted(f"plan of {name}" for name in names)


def test_every_run_has_the_same_length(run: Run, engines: list[FakeEngine]) -> None:
    options = "--policy greedy --repeat 1 --each 2 --max-tokens 20"
    assert run("compare", "here", *options.split()).code == 0
    assert [request["max_tokens"] for request in engines[0].requests] == [8, 20, 20]
    assert all(request["ignore_eos"] for request in engines[0].requests)
    assert all(request["temperature"] == 0.0 for request in engines[0].requests)
