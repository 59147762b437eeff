"""`hotcold compare`: all placements solved first, runs in a drawn order, honest about tokens."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import Run, only_line
from support.fake_engine import FakeEngine

from hotcold.actors.cli.compare import cases, subjects
from hotcold.actors.cli.compare.cases import Case, make_cases
from hotcold.actors.cli.compare.solving import solve_all
from hotcold.native.errors import ConfigError, PolicyError
from hotcold.runtime.engine import deployment
from hotcold.runtime.engine.prepare import Prepared
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.plan.plan import Plan

pytestmark = pytest.mark.usefixtures("solved")


def test_the_table_has_a_row_a_policy(run: Run) -> None:
    ended = run("compare", "--policy", "greedy", "--policy", "odd", "--repeat", "2", "--no-planted")
    assert ended.code == 0
    header, greedy, odd, *notes = ended.out.splitlines()
    assert header.split()[:6] == ["policy", "gpu", "neuron", "load", "pc-low*", "tokens/s"]
    assert greedy.startswith("greedy") and "62.0 %" in greedy
    assert "25.0 %" in greedy  # waits of 0.25 s beside 0.75 s of work
    assert greedy.endswith("yes")
    assert odd.endswith("NO")
    assert "1000" in greedy and "500.0" in odd
    said = " ".join(notes)
    assert "do not rank placements: without a GPU both executors share the same cores" in said
    assert "pc-low*: tokens/s that the cost model computes" in said and "RTX 2080 Ti" in said
    assert "All cases gave" not in said and max(map(len, ended.out.splitlines())) <= 100


def test_where_all_tokens_are_the_same_a_line_says_so(run: Run) -> None:
    out = run("compare", "--policy", "greedy", "--policy", "random", "--no-planted").out
    assert "All cases gave the same tokens." in out.splitlines() and "same tokens " not in out


def test_json_keys(run: Run) -> None:
    ended = run("compare", "--policy", "greedy", "--policy", "random", "--no-planted", "--json")
    result = json.loads(ended.out.splitlines()[-1])
    assert result["report"] is None
    assert [entry["policy"] for entry in result["runs"]] == ["greedy", "random"]
    for entry, predicted in zip(result["runs"], (1000.0, 500.0), strict=True):
        assert entry["schedule"] == "selective"
        assert entry["decode_tokens_per_s"] == 250.0
        assert entry["predicted_tokens_per_s"] == pytest.approx(predicted)
        assert (entry["predicted_for"], entry["on_gpu"]) == ("pc-low", False)
        assert (entry["gpu_neuron_load"], entry["predicted_gpu_neuron_load"]) == (0.62, 0.6)
        assert entry["wait_s"] == pytest.approx(0.25)
        assert (entry["same_tokens"], entry["refused"], entry["repeat"]) == (True, "", 3)


def test_the_embedded_and_a_planted_model_where_none_is_named(
    run: Run, engines: list[FakeEngine], tmp_path: Path
) -> None:
    ended = run("compare", "--policy", "greedy", "--repeat", "1")
    assert ended.code == 0
    assert [line.split()[:2] for line in ended.out.splitlines()[:3]] == [
        *(["model", "policy"], ["embedded", "greedy"], ["planted", "greedy"])
    ]
    assert [engine.arguments.get("model") for engine in engines] == [
        None,
        str(tmp_path / "planted"),
    ]
    engines.clear()
    assert run("compare", "here", "--policy", "greedy", "--repeat", "1").code == 0
    assert [engine.arguments["model"] for engine in engines] == ["here"]


def test_every_schedule_with_every_policy_under_every_budget(
    run: Run, engines: list[FakeEngine]
) -> None:
    options = "--policy a --policy b --schedule serial --schedule fetch --vram 1MiB --vram 2MiB"
    assert run("compare", "here", *options.split(), "--repeat", "2").code == 0
    expected = [(p, s, v) for v in ("1MiB", "2MiB") for p in "ab" for s in ("serial", "fetch")]
    assert set(engines[0].under) | {expected[0]} == set(expected)
    assert len(engines[0].requests) == 2 * 2 * len(expected)  # warm-ups, too
    assert len(engines) == 1, "the model is loaded once"


def test_the_ablation_is_a_list_of_steps(run: Run) -> None:
    ended = run("compare", "here", "--ablation", "--policy", "latency", "--repeat", "1", "--json")
    result = json.loads(ended.out.splitlines()[-1])["runs"]
    assert [entry["step"] for entry in result] == ["+PO", "+Engine", "+Policy", "ours"]
    assert [entry["schedule"] for entry in result] == ["serial", "paper", "paper", "selective"]
    # Without a GPU both executors share a CPU, so the steps are the cost model's: 1, 2, 3, 4 ms.
    assert [entry["speedup"] for entry in result] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert "0.25 x" in ended.out


def test_who_compares_schedules_gets_one_placement() -> None:
    assert len(make_cases((), (), (), False)) == 3
    made = make_cases((), ("paper", "fetch"), (), False)
    assert [(case.policy, case.schedule) for case in made] == [
        *(("greedy", "paper"), ("greedy", "fetch"))
    ]


def test_all_means_the_built_in_ones_that_need_no_setting() -> None:
    made = make_cases(("all", "mine.py:Mine", "ilp"), (), (), False)
    names = [case.policy for case in made]
    assert len(names) == len(set(names)) and names[-1] == "mine.py:Mine"
    assert {"ilp", "latency", "greedy", "random", "ffn-split"} < set(names)
    assert "oracle" not in names
    assert {case.policy for case in made if case.named} == {"mine.py:Mine", "ilp"}


def test_all_says_what_it_leaves_out_and_takes_it_where_it_can(
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_cases(("all",), (), (), False)
    said = dict(line.split(": ", 2)[1:] for line in capsys.readouterr().err.splitlines())
    assert "--set masks=FILE" in said["oracle is left out"]
    assert "--set file=FILE" in said["powerinfer-index is left out"] and len(said) == 2
    settings = {"placement.masks": "r.npz", "placement.file": "i.gpuidx"}
    given = make_cases(("all",), (), (), False, settings)
    assert {"oracle", "powerinfer-index"} <= {case.policy for case in given}
    asked = make_cases(("oracle", "powerinfer-index", "all"), (), (), False)
    assert asked[0] == Case("oracle", "selective")
    assert capsys.readouterr().err == ""


def test_a_policy_error_ends_it_before_a_token(run: Run, engines: list[FakeEngine]) -> None:
    ended = run("compare", "--policy", "greedy", "--policy", "broken", "--policy", "random")
    assert ended.code == 2
    assert ended.out == ""
    assert only_line(ended.err) == "hotcold: error: broken.py:7: RuntimeError: boom"
    assert engines == []


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--policy", "greedy", "--policy", "greedy"], "twice"),
        (["--schedule", "paper", "--schedule", "paper"], "twice"),
        (["--vram", "1MiB", "--vram", "1MiB"], "twice"),
        (["--prompt", " "], "empty"),
        (["here", "--model", "there"], "two models"),
        (["--plan", "x"], "--plan"),
        (["--out", "/dev/null"], "is a file"),
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


def test_a_shape_is_judged_by_the_cost_model_and_nothing_is_run(
    run: Run, engines: list[FakeEngine], tmp_path: Path
) -> None:
    options = "--shape opt-1.3b --ablation --policy all-cpu --vram 2GiB --json"
    ended = run("compare", *options.split(), "--out", str(tmp_path))
    assert ended.code == 0, ended.err
    assert engines == [] and "Nothing was run here" in ended.out
    runs = json.loads(ended.out.splitlines()[-1])["runs"]
    assert [entry["step"] for entry in runs] == ["+PO", "+Engine", "+Policy", "ours", ""]
    speeds = {entry["step"]: entry["predicted_tokens_per_s"] for entry in runs}
    assert (
        speeds["+Engine"] < speeds["+Policy"] <= speeds["ours"] and speeds["+PO"] < speeds["ours"]
    )
    assert all(entry["decode_tokens_per_s"] is None for entry in runs)
    page = (tmp_path / "compare.html").read_text()
    assert page.count("data:image/png") == 2 and "Nothing was run" in page
    assert "continued the same prompt" not in page
    assert run("compare", "here", "--shape", "opt-1.3b").code == 2
    assert "unknown" in only_line(run("compare", "--shape", "opt-1.4b").err)


class Images(HTMLParser):
    """Sources of all images, and all that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")


def test_the_page_holds_every_picture_and_fetches_nothing(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--policy", "<b>", "--policy", "odd", "--repeat", "2", "--out", str(out)]
    ended = run("compare", "here", *options, "--max-tokens", "4", "--json")
    assert ended.code == 0, ended.err
    page = Path(json.loads(ended.out.splitlines()[-1])["report"])
    text = page.read_text()
    parser = Images()
    parser.feed(text)
    assert len(parser.images) == 5 and not parser.tags & {"script", "link", "iframe"}
    for image in parser.images:
        kind, _, data = image.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    assert "&lt;b&gt;" in text and "<b>" not in text
    assert not re.search(r"https?://", re.sub(r"base64,[^\"]*", "", text))
    assert "not measured" in text
    names = sorted(path.name for path in out.iterdir())
    kinds = ("hot_maps", "load", "speeds", "tokens", "waits")
    assert names == ["compare.html", *(f"here-default-budget-{kind}.png" for kind in kinds)]


def test_without_matplotlib_the_page_is_refused_first(
    run: Run, engines: list[FakeEngine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    ended = run("compare", "--out", str(tmp_path / "out"))
    assert ended.code == 2 and "hotcold[pictures]" in only_line(ended.err)
    assert engines == [] and not (tmp_path / "out").exists()


def options(**more: Any) -> EngineConfig:
    return EngineConfig(**{"predictor": "exact", "hardware": "pc-low", **more})


def test_solving_places_once_and_schedules_each() -> None:
    made = solve_all(
        options(settings={"schedule.share": "0.5"}),
        make_cases(("greedy", "random"), ("selective", "fetch"), ("26MiB", "28MiB"), False),
    )
    by_case = {(one.case.policy, one.case.schedule, one.case.vram): one for one in made}
    assert len(by_case) == 8
    for policy in ("greedy", "random"):
        for vram in ("26MiB", "28MiB"):
            plain, fetch = (by_case[policy, s, vram] for s in ("selective", "fetch"))
            assert plain.plan is fetch.plan and plain.hardware.name == "pc-low"
            assert plain.load == plain.plan.gpu_activation_share
            assert fetch.load == pytest.approx((1 + plain.load) / 2, abs=0.02)
            assert plain.plan.bytes_by_device["gpu0"] <= plain.plan.budgets["gpu0"]
    more, less = (by_case["greedy", "selective", vram] for vram in ("28MiB", "26MiB"))
    assert more.load > less.load and more.predicted.tokens_per_s > less.predicted.tokens_per_s


def test_one_of_all_that_fails_is_left_out_and_a_named_one_ends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def solve(prepared: Prepared, policy: str) -> Plan:
        if policy == "random":
            raise PolicyError("policy 'random': boom")
        return deployment_solve(prepared, policy)

    deployment_solve = deployment.solve
    monkeypatch.setattr(deployment, "solve", solve)
    given = make_cases(("all",), (), ("28MiB",), False)
    capsys.readouterr()
    left = [one.case.policy for one in solve_all(options(), given)]
    assert "ilp" in left and "random" not in left and len(left) == len(given) - 1
    assert "random, selective, 28MiB is left out: policy" in only_line(capsys.readouterr().err)
    with pytest.raises(PolicyError, match="boom"):
        solve_all(options(), make_cases(("random", "greedy"), (), (), False))


def test_a_setting_that_no_schedule_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="--set share: no schedule of paper, serial has such"):
        solve_all(
            options(settings={"schedule.share": "0.5"}),
            [Case("greedy", "paper"), Case("greedy", "serial")],
        )


def test_settings_go_to_the_policies_that_have_them(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Mine:\n"
        "    share: float = 1.0\n\n    def place(self, problem):\n"
        "        return problem.fill(problem.activations_LN, share=self.share)\n"
    )
    mine = f"{file}:Mine"
    given = make_cases((mine, "greedy", "random"), (), ("28MiB",), False)
    used = [
        {
            one.case.policy: one.plan.bytes_by_device["gpu0"]
            for one in solve_all(options(settings=settings), given)
        }
        for settings in ({}, {"share": "0.5"})
    ]
    assert used[1][mine] < used[0][mine] and used[1]["random"] == used[0]["random"]
    with pytest.raises(ConfigError, match="--set share: no placement of random has such"):
        solve_all(options(settings={"share": "0.5"}), make_cases(("random",), (), (), False))


def test_the_planted_model_is_drawn_once_and_has_the_papers_skew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("HOTCOLD_CACHE", str(tmp_path))
    folder = subjects.planted_model()
    before = (folder / "bundle.json").stat().st_mtime_ns
    assert subjects.planted_model() == folder
    assert (folder / "bundle.json").stat().st_mtime_ns == before
    (folder / "bundle.json").write_text("{")  # damaged: drawn again
    assert subjects.planted_model() == folder
    made = solve_all(options(model=str(folder)), [cases.Case("greedy", "selective")])
    p_LN = np.sort(made[0].plan.activations_LN, axis=1)[:, ::-1]
    owned_L = (np.cumsum(p_LN, axis=1) < 0.8 * p_LN.sum(axis=1, keepdims=True)).mean(axis=1)
    assert owned_L == pytest.approx(0.26, abs=0.02)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    given = [Case("greedy", "selective", "30MiB")]
    embedded, planted = subjects.make_subjects(EngineConfig(predictor="exact"), given, True)
    assert embedded.cases == tuple(given) and isinstance(planted.cases[0].vram, int)
    shares = [
        float((solve_all(options(model=one.model), one.cases)[0].plan.device_LN == 0).mean())
        for one in (embedded, planted)
    ]
    assert shares[0] == pytest.approx(shares[1], abs=0.01) and 0.1 < shares[0] < 0.9
