"""bench replan: its plans differ by a share, its times are those of the tokens, and these stay."""

from functools import partial

import numpy as np
import pytest

from hotcold.actors import Engine
from hotcold.actors.bench.replan import Swapped, generate, measure
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_a_share_changes_its_device_and_no_device_its_bytes(share: float) -> None:
    problem = prepare_model(EngineConfig(vram="24MiB")).problem
    plain, swapped = Swapped(0.0).place(problem), Swapped(share).place(problem)
    differ_LN = plain.device_LN != swapped.device_LN
    host = len(problem.devices) - 1
    least_L = np.minimum(
        (plain.device_LN == host).sum(axis=1), (plain.device_LN < host).sum(axis=1)
    )
    half = round(share * problem.shape[1] / 2)
    assert differ_LN.sum(axis=1).tolist() == (2 * np.minimum(least_L, half)).tolist()
    assert np.array_equal(
        np.bincount(plain.device_LN.ravel()), np.bincount(swapped.device_LN.ravel())
    )


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_moves_are_counted_and_timed() -> None:
    launch = partial(Engine.launch, vram="28MiB", prefix_cache=False)
    problem = prepare_model(EngineConfig(vram="28MiB")).problem
    plans = [Swapped(share).place(problem).device_LN for share in (0.0, 0.2)]
    result = measure(launch, share=0.2, rate="64MiB", new_tokens=80, rounds=1)
    assert result["same_tokens"] and result["versions"] >= 1
    assert result["neurons"] == np.count_nonzero(plans[0] != plans[1]) > 100
    assert 0 < result["longest_gap_undisturbed_ms"] and 0 < result["longest_gap_ms"] < 5000
    assert all(rate > 0 for rate in result["tokens_per_s"].values())
    with launch() as engine:
        times = generate(engine, 20).time_ns_P
    assert len(times) == 20 and (np.diff(times) > 0).all()
