"""What authors of policies import: the data they get, the data they return, their tests.

The engine finds and runs policies through registry.py and run.py.

May import: policies.suites, runtime.hardware, runtime.plan
"""

from hotcold.policies.suites.check import check_placement_policy, check_schedule_policy
from hotcold.policies.suites.check_predictor import check_predictor
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.plan.dag import Dag, Node
from hotcold.runtime.plan.placement import check_placement
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plan.problem import Module, Placement, Problem
from hotcold.runtime.plan.schedule import Schedule, check_schedule, fetching, in_order

__all__ = [
    "Dag",
    "HardwareProfile",
    "Module",
    "Node",
    "Placement",
    "Plan",
    "Problem",
    "Schedule",
    "check_placement",
    "check_placement_policy",
    "check_predictor",
    "check_schedule",
    "check_schedule_policy",
    "fetching",
    "in_order",
]
