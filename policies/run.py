"""Running a policy, wherever it comes from, and refusing what it must not return.

The one door for the engine, `compare` and `solve`: a name or a file runs in a child process with a
time limit (placement), an object in this one; foreign exceptions become a PolicyError that names
the line; the result is checked. Policies never run on the actors.
"""

import copy
from collections.abc import Mapping
from typing import Any, Protocol

from hotcold.policies.blame import blaming, source_file
from hotcold.policies.child import TIMEOUT_S, place_in_child
from hotcold.policies.registry import find, instantiate
from hotcold.policies.settings import Setting
from hotcold.runtime.dag import Dag
from hotcold.runtime.hardware import HardwareProfile
from hotcold.runtime.placement import check_placement
from hotcold.runtime.plan import Plan
from hotcold.runtime.problem import Placement, Problem
from hotcold.runtime.schedule import Schedule, check_schedule


class PlacementPolicy(Protocol):
    """Where neurons and modules live: same problem, same placement."""

    def place(self, problem: Problem) -> Placement:
        """Decide; runs once, before anything is loaded."""


class SchedulePolicy(Protocol):
    """In which order, where, and with which waits a token is computed."""

    def schedule(self, dag: Dag, plan: Plan, hardware: HardwareProfile) -> Schedule:
        """Decide; runs once for a plan."""


def policy_name(policy: object) -> str:
    """What to call a policy in messages and tables: as typed, or an object's class."""
    if isinstance(policy, str):
        return policy
    return policy.__name__ if isinstance(policy, type) else type(policy).__name__


def place(
    policy: str | PlacementPolicy,
    problem: Problem,
    settings: Mapping[str, Setting] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Placement:
    """Ask a placement policy.

    Args:
        policy: a name or file (runs in a child process), or an object (runs here, without limit).
        problem: what to place.
        settings: its parameters, if given by name or file.
        timeout_s: seconds a child process may take.

    Raises:
        PolicyError: it cannot be found, raised, did not finish, or broke a rule.
        ConfigError: a setting or the timeout cannot be used.
    """
    if isinstance(policy, str):
        return place_in_child(policy, settings or {}, problem, timeout_s)
    name = policy_name(policy)
    maker: Any = instantiate(find("placement", policy), settings or {}, name)
    with blaming(name, source_file(maker)):
        # Its own copy: what it does to the problem must not reach the check below.
        placement: Placement = maker.place(copy.deepcopy(problem))
    check_placement(problem, placement, name)
    return placement


def make_schedule(
    policy: str | SchedulePolicy,
    dag: Dag,
    plan: Plan,
    hardware: HardwareProfile,
    settings: Mapping[str, Setting] | None = None,
) -> Schedule:
    """Ask a schedule policy; it runs in this process, given by name or not.

    Raises:
        PolicyError: it cannot be found, raised, or its schedule cannot run.
        ConfigError: a setting cannot be used.
    """
    name = policy_name(policy)
    maker: Any = instantiate(find("schedule", policy), settings or {}, name)
    with blaming(name, source_file(maker)):
        schedule: Schedule = maker.schedule(dag, plan, hardware)
    check_schedule(dag, schedule, name)
    return schedule
