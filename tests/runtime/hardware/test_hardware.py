import json
from dataclasses import replace
from typing import Any

import pytest

from hotcold.native.errors import CheckpointError
from hotcold.runtime.hardware.profile import HardwareProfile


def test_json_round_trip() -> None:
    profile = replace(HardwareProfile.unmeasured(), name="lab", measured=True, sync_s=4e-6)
    assert HardwareProfile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


def test_default_says_it_was_not_measured() -> None:
    assert not HardwareProfile.unmeasured().measured


@pytest.mark.parametrize(
    "change",
    [{"sync_s": 0}, {"sync_s": float("nan")}, {"host_gb_per_s": -1.0}, {"gpu_gflops": "10"}]
    + [{"name": 3}, {"measured": 1}, {"surprise": 1.0}],
)
def test_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        HardwareProfile.from_json({**HardwareProfile.unmeasured().to_json(), **change})


@pytest.mark.parametrize("data", [None, [], "x", {}])
def test_not_a_profile(data: object) -> None:
    with pytest.raises(CheckpointError, match="needs the keys"):
        HardwareProfile.from_json(data)
