import os
import threading

import pytest

from hotcold.native.errors import ConfigError, KernelError
from hotcold.runtime.bench import hop
from hotcold.runtime.exchange.segment import PoisonCode, Segment


@pytest.mark.parametrize("sides", [2, 3])
@pytest.mark.parametrize("parked", [0, 1])
def test_measures_between_processes(sides: int, parked: int) -> None:
    result = hop.measure_hop(200, sides=sides, parked=parked)
    assert 0 < result.p50_us <= result.p99_us
    assert (result.rounds, result.sides, result.cores) == (200, sides, ())


def test_pins_each_side_to_a_core_of_its_own() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core only")
    result = hop.measure_hop(200, pinned=True)
    assert len(set(result.cores)) == 2


def test_a_run_may_follow_a_run_on_the_same_flags() -> None:
    with Segment.create(hop.hop_layout(), epoch=1) as segment:
        for _ in range(3):
            ping, pong = hop.ring(2, 50)
            answer = threading.Thread(target=hop.hop_side, args=(segment.handle, pong))
            answer.start()
            assert hop.hop_side(segment.handle, ping).all()
            answer.join()
        assert segment.native.value(0) == segment.native.value(1) == 150


def test_pinning_is_taken_back() -> None:
    before = os.sched_getaffinity(0)
    with Segment.create(hop.hop_layout(), epoch=1) as segment:
        ping, pong = hop.ring(2, 20, (min(before), max(before)))
        answer = threading.Thread(target=hop.hop_side, args=(segment.handle, pong))
        answer.start()
        hop.hop_side(segment.handle, ping)
        answer.join()
    assert os.sched_getaffinity(0) == before


def test_the_time_of_a_hop_is_a_share_of_the_round_trip() -> None:
    import numpy as np

    rtt_ns = np.array([900_000] * 10 + [3000] * 90, dtype=np.uint32)
    assert hop.summarise(rtt_ns, 3).p99_us == pytest.approx(1.0)


def test_poison_ends_a_side() -> None:
    with Segment.create(hop.hop_layout(), epoch=1) as segment:
        segment.poison(PoisonCode.CLOSED)
        with pytest.raises(KernelError):
            hop.hop_side(segment.handle, hop.ring(2, 10)[1])


@pytest.mark.parametrize(
    "side",
    [
        hop.HopSide(hop.PONG, 0, 0, 5),
        hop.HopSide(hop.PONG, 9, 0, 5),
        hop.HopSide(hop.PONG, 0, -1, 5),
        hop.HopSide(hop.PONG, 0, 1, 0),
        hop.HopSide(hop.PONG, 0, 1, 5, core=100_000),
    ],
)
def test_sides_that_cannot_be_are_refused(side: hop.HopSide) -> None:
    with Segment.create(hop.hop_layout(), epoch=1) as segment, pytest.raises(ConfigError):
        hop.hop_side(segment.handle, side)


@pytest.mark.parametrize("settings", [dict(rounds=1), dict(sides=4), dict(parked=-1)])
def test_settings_that_cannot_be_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 10"):
        hop.measure_hop(**settings)


def test_a_failing_side_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = hop.ring
    monkeypatch.setattr(hop, "ring", lambda n, rounds, cores: ring(n, rounds, (100_000,) * n))
    with pytest.raises(KernelError, match="a side failed"):
        hop.measure_hop(10)
