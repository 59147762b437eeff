"""Running a policy, wherever it comes from, and checking what it returns.

Used by the engine, `compare` and `solve`. A policy given by name or file runs in a child process
with a time limit; objects and built-in schedules run in this process. Exceptions become a
PolicyError that names the line, and the result is checked. Policies never run on the actors.
"""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.plan.dag import Dag
from hotcold.runtime.plan.placement import check_placement
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plan.problem import Placement, Problem
from hotcold.runtime.plan.schedule import Schedule, check_schedule
from hotcold.runtime.plugins.blame import blaming, source_file
from hotcold.runtime.plugins.child import TIMEOUT_S, place_in_child, schedule_in_child
from hotcold.runtime.plugins.registry import BUILT_IN, find, instantiate
from hotcold.runtime.plugins.settings import Setting


class PlacementPolicy(Protocol):
    """Where neurons and modules live: same problem, same placement."""

    def place(self, problem: Problem) -> Placement:
        """Decide; runs once, before anything is loaded."""


class SchedulePolicy(Protocol):
    """In which order, where, and with which waits a token is computed."""

    def schedule(self, dag: Dag, plan: Plan, hardware: HardwareProfile) -> Schedule:
        """Decide; runs once for a plan."""


@dataclass(frozen=True)
class MadeSchedule:
    """A schedule that is there already, in the place of the policy that made it."""

    name: str
    made: Schedule

    def schedule(self, dag: Dag, plan: Plan, hardware: HardwareProfile) -> Schedule:
        """The schedule, whatever the graph; it is checked like any other."""
        return self.made


def policy_name(policy: object) -> str:
    """What to call a policy in messages and tables: as typed, or an object's class."""
    if isinstance(policy, str):
        return policy
    if isinstance(policy, MadeSchedule):
        return policy.name
    return policy.__name__ if isinstance(policy, type) else type(policy).__name__


def place(
    policy: str | PlacementPolicy,
    problem: Problem,
    settings: Mapping[str, Setting] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Placement:
    """Ask a placement policy.

    Given by name or file it runs in a child process, for at most `timeout_s`; an object runs here,
    without limit.

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
        given = copy.deepcopy(problem)
        started = time.monotonic()
        placement: Placement = maker.place(given)
        solve_s = time.monotonic() - started
    check_placement(problem, placement, name)
    return replace(placement, solve_s=solve_s)


def make_schedule(
    policy: str | SchedulePolicy,
    dag: Dag,
    plan: Plan,
    hardware: HardwareProfile,
    settings: Mapping[str, Setting] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Schedule:
    """Ask a schedule policy.

    Where and how long it runs is as for `place`, but the built-in ones, which are quick and end,
    run here.

    Raises:
        PolicyError: it cannot be found, raised, did not finish, or its schedule cannot run.
        ConfigError: a setting or the timeout cannot be used.
    """
    if isinstance(policy, str) and policy not in BUILT_IN["schedule"]:
        return schedule_in_child(policy, settings or {}, dag, plan, hardware, timeout_s)
    name = policy_name(policy)
    maker: Any = instantiate(find("schedule", policy), settings or {}, name)
    with blaming(name, source_file(maker)):
        schedule: Schedule = maker.schedule(dag, plan, hardware)
    check_schedule(dag, schedule, name)
    return schedule
