"""The conformance suites find what an engine would refuse: run them before you share a policy."""

from warm_layers.policy import LateSync, WarmLayers

from hotcold.policies import check_placement_policy, check_schedule_policy


def test_placement() -> None:
    check_placement_policy(WarmLayers())


def test_schedule() -> None:
    check_schedule_policy(LateSync())
