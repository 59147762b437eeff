"""Telemetry of a running engine: true, through losses and new plans, and gone with it."""

import os
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from support.asgi import Response, get

from hotcold.actors import Engine
from hotcold.actors.serve.page import add_page
from hotcold.actors.telemetry.following import Follower, addresses_of, running_names
from hotcold.actors.telemetry.metrics import ACTOR_COUNTERS, COUNTERS, GAUGES, HISTOGRAMS
from hotcold.native.errors import ConfigError

starlette = pytest.importorskip("starlette.applications", reason="needs hotcold[serve]")
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]
NAME = "watched"
METRICS_S = 25.0  # Ray's own interval is ten


@pytest.fixture(scope="module")
def engine(one_ray: str, tiny_model: Path) -> Iterator[Engine]:
    with Engine.launch(tiny_model, predictor="exact", vram="60KB", name=NAME) as made:
        yield made


@pytest.fixture
def follower(engine: Engine) -> Iterator[Follower]:
    with Follower(lambda: addresses_of(NAME)) as made:
        assert heard(made, lambda: made.view.leader is not None)
        yield made


def heard(follower: Follower, what: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    """Whether it becomes true while messages come."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        follower.update(0.1)
        if what():
            return True
    return False


def generate(engine: Engine, max_tokens: int = 8) -> list[int]:
    return [one.id for one in engine.generate([5], max_tokens=max_tokens, ignore_eos=True)]


def test_the_lists_of_a_pass_are_what_fired_in_it(engine: Engine, follower: Follower) -> None:
    before = engine.stats().actors
    generate(engine, max_tokens=1)  # of one token: one pass of one row
    after = engine.stats().actors
    seq = after["gpu"].passes
    assert heard(follower, lambda: all(one.seq == seq for one in follower.view.layers))
    for device, actor in enumerate(("gpu", "cpu")):
        fired = after[actor].up_down_rows - before[actor].up_down_rows
        listed = [one.listed[device] for one in follower.view.layers]
        assert sum(n for n in listed if n is not None) == fired
        for layer, active in follower.view.active.items():
            ids = active.ids[device]
            assert ids is not None and active.is_exact and len(ids) == listed[layer]
            assert set(ids.tolist()) <= set(ids_of(engine, layer, device))


def ids_of(engine: Engine, layer: int, device: int) -> list[int]:
    ids: list[int] = engine._deployment.plan.ids(layer, device).tolist()
    return ids


def test_counters_and_requests_are_the_engines_own(engine: Engine, follower: Follower) -> None:
    lead = follower.view.leader
    assert lead is not None and lead.requests is not None
    made = lead.requests["generation_tokens"]
    generate(engine, 8)
    assert heard(follower, lambda: follower.view.leader.requests["running"] == 0)  # type: ignore
    assert heard(
        follower,
        lambda: follower.view.leader.requests["generation_tokens"] == made + 8,  # type: ignore
    )
    for actor, own in engine.stats().actors.items():
        last = follower.view.actors[actor].last
        assert last is not None
        found = {name: last.counters[name] for name in ("bytes", "passes", "up_down_rows")}
        assert found == {name: getattr(own, name) for name in found}


def test_spans_come_once_each(engine: Engine, follower: Follower) -> None:
    seen: list[int] = []
    generate(engine, 8)
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        report = follower._subscriber.receive(0.2)
        if report is not None and report.actor == "cpu":
            seen += report.spans["begin_ns"].tolist()
            assert report.spans_lost == 0
    assert seen and seen == sorted(set(seen))


def test_engines_are_found_by_name(engine: Engine) -> None:
    assert NAME in running_names()
    assert engine.telemetry() == addresses_of(NAME)
    assert engine.telemetry()[0].startswith("tcp://127.0.0.1:")
    with pytest.raises(ConfigError, match=f"no engine named 'nobody'.*{NAME}"):
        addresses_of("nobody")


def app_of(engine: Engine) -> starlette.Starlette:
    app = starlette.Starlette()
    add_page(app, engine)
    return app


def test_live_sends_what_the_page_shows(engine: Engine) -> None:
    generate(engine, 2)

    def whole(response: Response) -> bool:
        return any("looked_at" in one for one in response.events)

    found = get(app_of(engine), "/live?layer=1", until=whole)
    assert found.status == 200 and found.headers["content-type"].startswith("text/event-stream")
    seen = found.events[-1]
    assert seen["engine"] == NAME and seen["looked_at"]["layer"] == 1
    for number, layer in enumerate(seen["layers"]):
        cells = seen["active"][str(number)]
        assert [sum(one) for one in cells] == layer["listed"]
    hot, cold = seen["looked_at"]["ids"]
    assert set(hot) <= set(ids_of(engine, 1, 0)) and set(cold) <= set(ids_of(engine, 1, 1))
    heat_N = engine._deployment.profile
    if heat_N is not None:
        shares = heat_N.probabilities_LN[1][cold]
        assert (shares[:-1] >= shares[1:]).all()


def test_live_ends_when_the_server_does(engine: Engine) -> None:
    app = app_of(engine)
    app.state.service = SimpleNamespace(draining=False)

    def begun(response: Response) -> bool:
        app.state.service.draining = bool(response.body)
        return False

    begun_s = time.monotonic()
    found = get(app, "/live?layer=x", until=begun, timeout_s=60.0)
    assert found.status == 200 and found.events
    assert time.monotonic() - begun_s < 30


def test_losses_are_counted_and_the_address_stays(one_ray: str, tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with (
        Engine.launch(tiny_model, predictor="exact", name="lost", telemetry=address) as engine,
        Follower(lambda: [address]) as follower,
    ):
        assert heard(follower, lambda: follower.view.leader is not None)
        for losses, victim in enumerate(("cpu", "gpu"), 1):
            epoch = follower.view.snapshot()["epoch"]
            os.kill(engine.pids[victim], signal.SIGKILL)
            generate(engine, 4)
            assert heard(follower, lambda epoch=epoch: follower.view.snapshot()["epoch"] > epoch)
            requests = follower.view.snapshot()["requests"]
            assert requests["losses"] == losses == len(engine.recoveries)
        engine.replan(policy="random")  # is no loss
        generate(engine, 2)
        assert heard(follower, lambda: follower.view.snapshot()["about"]["policy"] == "random")
        assert follower.view.snapshot()["requests"]["losses"] == 2
    port, deadline = int(address.rpartition(":")[2]), time.monotonic() + 10
    while True:  # free again, once the last thread of the process has ended
        try:
            socket.create_server(("127.0.0.1", port)).close()
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_over_the_ray_transport_each_actor_tells_of_itself(one_ray: str, tiny_model: Path) -> None:
    with Engine.launch(tiny_model, predictor="exact", transport="ray", name="slow") as engine:
        generate(engine, 3)
        assert len(set(engine.telemetry())) == 3
        with Follower(engine.telemetry) as follower:
            assert heard(follower, lambda: len(follower.view.actors) == 3)
            for actor, own in engine.stats().actors.items():
                last = follower.view.actors[actor].last
                assert last is not None and last.counters["bytes"] == own.bytes


def test_prometheus_gets_every_metric_that_the_dashboard_asks_for(engine: Engine) -> None:
    generate(engine, 8)
    port = ray.nodes()[0]["MetricsExportPort"]
    wanted = {*GAUGES, *COUNTERS, *ACTOR_COUNTERS} - {
        *("hotcold_audited_neurons_total", "hotcold_missed_neurons_total"),  # exact: no audit
        "hotcold_predictor_recall",
    }
    wanted |= {f"{name}_bucket" for name in HISTOGRAMS}
    deadline, missing, text = time.monotonic() + METRICS_S, wanted, ""
    while missing and time.monotonic() < deadline:
        time.sleep(0.5)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = set(re.findall(rf'^ray_(hotcold_\w+){{.*engine="{NAME}"', text, re.M))
        missing = wanted - found
    assert not missing
    own = [line for line in text.splitlines() if "hotcold_generation_tokens_total{" in line]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in own if NAME in line) >= 8
