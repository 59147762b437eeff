"""The actor API on a real Ray: right tokens, control while generating, replan, and errors."""

import gc
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from support.oracle import Oracle

from hotcold.actors import ActorLostError, Engine
from hotcold.actors.cluster import ray_cluster
from hotcold.actors.cluster.processes import is_gone
from hotcold.native.errors import CheckpointError, ConfigError, PolicyError
from hotcold.policies import Placement, Problem
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.model.checkpoints.convert import header_digest
from hotcold.runtime.options.config import EngineConfig, Sampling

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]
PROMPT = "Once upon a time"


def alive(pid: int) -> bool:
    return not is_gone(pid)  # Ray reaps its dead workers when it comes to it


@pytest.fixture(scope="module")
def local_ids() -> list[int]:
    """What one process without Ray makes of the prompt."""
    prepared = prepare_model(EngineConfig(predictor="exact"))
    with LocalSession(deploy(prepared, solve(prepared))) as local:
        ids = local.text.tokenizer.encode(PROMPT)
        return [id_ for id_, _ in local.sample(ids, Sampling(max_tokens=40, ignore_eos=True))]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transport": "ray"},
        {"threads": 2},
        {"vram": 0, "schedule": "paper"},
        {"vram": "1GiB", "settings": {"predictor.by": "executors"}},
        {"policy": "random", "pin": True},
    ],
    ids=str,
)
def test_the_same_tokens_whatever_carries_and_computes_them(
    options: dict[str, Any], local_ids: list[int]
) -> None:
    with Engine.launch(predictor="exact", **options) as engine:
        tokens = list(engine.generate(PROMPT, max_tokens=40, ignore_eos=True))
        figures, stats = engine.last, engine.stats()
    assert [token.id for token in tokens] == local_ids
    assert "".join(token.text for token in tokens).startswith(" there ")
    assert figures is not None
    assert (figures.prompt_tokens, figures.new_tokens, figures.finish) == (5, 40, "length")
    assert figures.decode_tokens_per_s > 0
    assert figures.bytes > 39 * 10e6  # attention, head and gate rows of every decoded token
    assert sum(actor.up_down_rows for actor in stats.actors.values()) > 0
    assert len({actor.pid for actor in stats.actors.values()}) == 3


def test_auto_predicts_and_says_why_and_how_well() -> None:
    prepared = prepare_model(EngineConfig())
    with LocalSession(deploy(prepared, solve(prepared))) as local:
        ids = local.text.tokenizer.encode(PROMPT)
        sampling = Sampling(max_tokens=40, ignore_eos=True)
        expected = [id_ for id_, _ in local.sample(ids, sampling)]
    with Engine.launch() as engine:
        tokens = list(engine.generate(PROMPT, max_tokens=40, ignore_eos=True))
        stats = engine.stats()
    assert [token.id for token in tokens] == expected
    assert "learned" in stats.actors["predictor"].role
    assert "gate-first" in stats.actors["predictor"].role
    assert stats.recall is not None
    assert 0.7 < stats.recall.recall <= 1 and stats.recall.standard_error > 0
    assert sum(actor.audit_rows for actor in stats.actors.values()) > 0
    phases = {"embed", "attention", "predict", "hot", "cold", "wait", "merge", "head", "pass"}
    assert set(stats.phase_s) == phases
    own = phases - {"predict", "cold", "pass"}  # of the lane that leads
    assert 0.5 < sum(stats.phase_s[name] for name in own) / stats.phase_s["pass"] <= 1


def test_logits_are_the_oracles(tiny_model: Path) -> None:
    ids = np.random.default_rng(0).integers(3, 300, 70).tolist()
    expected = Oracle.load(tiny_model).forward(ids).logits_TV
    for transport in ("native", "ray"):
        with Engine.launch(model=tiny_model, transport=transport) as engine:
            np.testing.assert_allclose(engine.logits(ids), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("victim", ["gpu", "cpu", "predictor"])
@pytest.mark.parametrize("transport", ["native", "ray"])
def test_a_killed_actor_is_named_within_two_seconds(victim: str, transport: str) -> None:
    with Engine.launch(context=1024, transport=transport, restarts=0) as engine:
        pids = {name: actor.pid for name, actor in engine.stats().actors.items()}
        began = 0.0
        with pytest.raises(ActorLostError, match=f"the {victim} actor died") as caught:
            for number, _ in enumerate(engine.generate(PROMPT, max_tokens=900, ignore_eos=True)):
                if number == 5:
                    os.kill(pids[victim], 9)
                    began = time.monotonic()
        assert caught.value.actor == victim
        assert time.monotonic() - began < 2.0
    assert not any(alive(pid) for pid in pids.values())
    if victim == "predictor":  # another one works after that; after the others, the next case's
        with Engine.launch() as engine:
            assert len(list(engine.generate(PROMPT, max_tokens=5))) == 5


def test_control_calls_are_answered_while_tokens_run() -> None:
    with Engine.launch(context=1024) as engine:
        stream = engine.generate(PROMPT, max_tokens=800, ignore_eos=True)
        next(stream)
        before = engine.stats().actors["gpu"].passes
        time.sleep(0.05)
        assert engine.stats().actors["gpu"].passes > before
        assert engine.last is None
        stream.close()
        assert len(list(engine.generate(PROMPT, max_tokens=7))) == 7


def test_connect_and_pass_to_a_task() -> None:
    @ray.remote(num_cpus=0)
    def continue_it(engine: Engine) -> str:
        return "".join(token.text for token in engine.generate(PROMPT, max_tokens=8))

    with Engine.launch(name="lab") as engine:
        text = "".join(token.text for token in engine.generate(PROMPT, max_tokens=8))
        assert ray.get(continue_it.remote(engine)) == text
        other = Engine.connect("lab")
        assert "".join(token.text for token in other.generate(PROMPT, max_tokens=8)) == text
        assert other.stats().plan_hash == engine.stats().plan_hash
        assert set(other.actors) == {"gpu", "cpu", "predictor"}
        other.close()
        assert len(list(engine.generate(PROMPT, max_tokens=3))) == 3
        with pytest.raises(ConfigError, match="'lab' is running"):
            Engine.launch(name="lab")
    with pytest.raises(ConfigError, match="no engine named 'lab'"):
        Engine.connect("lab")


class Broken:
    def place(self, problem: Problem) -> Placement:
        raise RuntimeError("boom")


def test_replan_keeps_the_actors_and_a_failed_one_keeps_the_plan() -> None:
    with Engine.launch(vram="24MiB") as engine:
        first, text = engine.stats(), [t.id for t in engine.generate(PROMPT, max_tokens=20)]
        with pytest.raises(PolicyError, match="boom"):
            engine.replan(policy=Broken())
        assert engine.stats().plan_hash == first.plan_hash
        assert [t.id for t in engine.generate(PROMPT, max_tokens=20)] == text
        assert 0 < engine.stats().gpu_neuron_load < 1
        engine.replan(policy="all-cpu", schedule="paper")
        second = engine.stats()
        assert second.plan_hash != first.plan_hash
        assert [second.actors[a].pid for a in second.actors] == [
            first.actors[a].pid for a in first.actors
        ]
        assert [t.id for t in engine.generate(PROMPT, max_tokens=20)] == text
        assert engine.stats().gpu_neuron_load == 0


def test_the_callers_placement_group() -> None:
    group = ray.util.placement_group([{"CPU": 1}], strategy="PACK")
    try:
        with Engine.launch(placement_group=group) as engine:
            assert len(list(engine.generate(PROMPT, max_tokens=3))) == 3
        assert ray.util.placement_group_table(group)["state"] == "CREATED"
    finally:
        ray.util.remove_placement_group(group)


def test_stop_strings_end_the_text() -> None:
    with Engine.launch(vram=0, predictor="exact") as engine:
        tokens = engine.generate(PROMPT, max_tokens=30, stop=[" who"])
        assert "".join(token.text for token in tokens) == " there lived a king"
        assert engine.last is not None
        assert engine.last.finish == "stop"


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    ("", {}, "prompt is empty"),
    ([], {}, "no tokens"),
    ("word " * 2000, {}, "context holds 512"),
    (PROMPT, {"temperature": -1.0}, "temperature"),
    (PROMPT, {"top_p": 0.0}, "top_p"),
    (PROMPT, {"max_tokens": 0}, "max_tokens"),
    ([9000], {}, "vocabulary of 8192"),
]


def test_requests_that_cannot_be_used() -> None:
    with Engine.launch() as engine:
        for prompt, options, message in REFUSED:
            with pytest.raises(ConfigError, match=message):
                engine.generate(prompt, **options)
            assert len(list(engine.generate(PROMPT, max_tokens=2))) == 2


def test_options_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="'vramm'; did you mean 'vram'"):
        Engine.launch(vramm="1GiB")


def test_a_bundle_whose_tokenizer_cannot_be_read(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before anything is started, with the user's own file."""
    folder = Path(shutil.copytree(resolve_model(tiny_model).path, tmp_path / "bundle"))
    header = json.loads((folder / "bundle.json").read_text())
    header |= {"files": {}, "source": str(folder)}  # by hand: its checksums cover the weights alone
    header["header_sha256"] = header_digest(header)
    (folder / "bundle.json").write_text(json.dumps(header))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    monkeypatch.setattr(ray_cluster, "enter", lambda _: pytest.fail("Ray was entered"))
    with pytest.raises(CheckpointError, match=r"bundle/tokenizer\.json is not a tokenizer"):
        Engine.launch(folder)


def test_close_is_idempotent_and_final() -> None:
    engine = Engine.launch()
    pid = engine.stats().actors["gpu"].pid
    engine.close()
    engine.close()
    assert not alive(pid)
    with pytest.raises(ConfigError, match="is closed"):
        list(engine.generate(PROMPT))


@pytest.mark.parametrize("in_a_cycle", [False, True])
def test_a_forgotten_engine_is_taken_down(in_a_cycle: bool) -> None:
    engine = Engine.launch()
    pid = engine.pids["gpu"]
    if in_a_cycle:
        engine.itself = engine  # type: ignore[attr-defined]
    del engine
    gc.collect()
    assert not alive(pid)


def test_a_generation_keeps_its_engine(tiny_model: Path) -> None:
    """Nobody else holds the engine here; it is taken down when its tokens are."""
    engine = Engine.launch(model=tiny_model)
    pids = list(engine.pids.values())
    tokens = engine.generate([5, 6, 7], max_tokens=20, ignore_eos=True)
    del engine
    got = []
    for token in tokens:
        gc.collect()
        got.append(token.id)
    assert len(got) == 20
    del tokens, token
    gc.collect()
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_an_exception_ends_the_actors() -> None:
    with pytest.raises(ZeroDivisionError), Engine.launch() as engine:
        pids = engine.pids
        for _ in engine.generate(PROMPT):
            raise ZeroDivisionError
    assert not any(alive(pid) for pid in pids.values())


def test_a_forked_child_is_refused_and_ends_no_actor(tiny_model: Path) -> None:
    """Ray does not survive a fork: a call there would wait for ever."""
    with Engine.launch(model=tiny_model) as engine:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                for ask in (lambda: list(engine.generate([5], max_tokens=2)), engine.stats):
                    with pytest.raises(ConfigError, match="call Engine.connect"):
                        ask()
                engine.close()
                os.write(writing, b"refused")
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as answer:
            assert answer.read() == "refused"
        os.waitpid(child, 0)
        assert len(list(engine.generate([5, 6], max_tokens=4, ignore_eos=True))) == 4
