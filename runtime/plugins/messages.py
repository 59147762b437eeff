"""Messages between the caller of a policy and the child process that runs it.

Used by child.py, on both sides. Everything is npz with a header of plain JSON data
(runtime/files/npz.py): nothing that a policy returns is unpickled, and damaged data raises a
ValueError, KeyError, TypeError or AttributeError, which the caller turns into an error that names
the policy. The rules for placements and schedules are not checked here but by check_placement and
check_schedule.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from hotcold.native.errors import ConfigError, HotcoldError, PolicyError
from hotcold.runtime.files.npz import pack, unpack
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.plan.dag import Dag, Node
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plan.problem import Module, Placement, Problem
from hotcold.runtime.plan.schedule import Schedule
from hotcold.runtime.plugins.blame import PluginTraceback, traceback_text
from hotcold.runtime.plugins.settings import Setting

Arrays = dict[str, Any]  # numpy arrays by name
Header = dict[str, Any]

_PROBLEM_ARRAYS = ("activations_LN", "neuron_bytes_L", "predictor_density_L")
_PROBLEM_SCALARS = ("context", "batch", "dtype", "profiled", "gate_share")
_PLAN_ARRAYS = ("device_LN", "neuron_bytes_L", "activations_LN")


def pack_request(
    kind: str, spec: str, settings: Mapping[str, Setting], content: tuple[Arrays, Header]
) -> bytes:
    """A question: which policy, its settings, and what it is given.

    Raises:
        ConfigError: a setting that is neither text nor a number.
    """
    arrays, header = content
    question = {"kind": kind, "spec": spec, "settings": dict(settings), "content": header}
    try:
        json.dumps(question["settings"], allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"settings of policy {spec!r} must be text or numbers: {error}"
        ) from error
    return pack(arrays, question)


def pack_problem(problem: Problem) -> tuple[Arrays, Header]:
    """What a placement policy is given, as arrays and plain data."""
    header: Header = {name: getattr(problem, name) for name in _PROBLEM_SCALARS}
    header |= {"budgets": dict(problem.budgets), "devices": problem.devices}
    header |= {"modules": [asdict(module) for module in problem.modules]}
    header |= {"hardware": problem.hardware.to_json()}
    return {name: getattr(problem, name) for name in _PROBLEM_ARRAYS}, header


def unpack_problem(arrays: Arrays, header: Header) -> Problem:
    """Inverse of pack_problem."""
    return Problem(
        **{name: arrays[name] for name in _PROBLEM_ARRAYS},
        **{name: header[name] for name in (*_PROBLEM_SCALARS, "budgets")},
        modules=tuple(Module(**module) for module in header["modules"]),
        devices=tuple(header["devices"]),
        hardware=HardwareProfile.from_json(header["hardware"]),
    )


def pack_graph(dag: Dag, plan: Plan, hardware: HardwareProfile) -> tuple[Arrays, Header]:
    """What a schedule policy is given, as arrays and plain data."""
    plain = [field.name for field in fields(Plan) if field.name not in _PLAN_ARRAYS]
    values = {name: getattr(plan, name) for name in plain}
    header: Header = {
        "nodes": [asdict(node) for node in dag.nodes],
        "edges": dag.edges,
        "n_layers": dag.n_layers,
        "plan": {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in values.items()
        },
        "hardware": hardware.to_json(),
    }
    return {name: getattr(plan, name) for name in _PLAN_ARRAYS}, header


def unpack_graph(arrays: Arrays, header: Header) -> tuple[Dag, Plan, HardwareProfile]:
    """Inverse of pack_graph."""
    nodes = (
        Node(**{**node, "device_choices": tuple(node["device_choices"])})
        for node in header["nodes"]
    )
    edges = tuple((source, target) for source, target in header["edges"])
    plan = Plan(**{name: arrays[name] for name in _PLAN_ARRAYS}, **header["plan"])
    return (
        Dag(tuple(nodes), edges, header["n_layers"]),
        plan,
        HardwareProfile.from_json(header["hardware"]),
    )


def pack_placement(placement: Placement, solve_s: float) -> bytes:
    """An answer; the placement was checked."""
    modules = {str(name): str(home) for name, home in placement.modules.items()}
    figures = {str(name): float(value) for name, value in placement.figures.items()}
    header = {"modules": modules, "note": placement.note, "figures": figures, "solve_s": solve_s}
    return pack({"device_LN": placement.device_LN}, header)


def unpack_placement(arrays: Arrays, header: Header) -> Placement:
    """Inverse of pack_placement; the answer may be anything."""
    return Placement(
        np.array(arrays["device_LN"]),
        dict(header["modules"]),
        note=str(header["note"]),
        figures=dict(header["figures"]),
        solve_s=float(header["solve_s"]),
    )


def pack_schedule(schedule: Schedule) -> bytes:
    """An answer; the schedule was checked."""
    return pack(
        {},
        {
            "lane": {str(node): str(lane) for node, lane in schedule.lane.items()},
            "order": {str(lane): list(ids) for lane, ids in schedule.order.items()},
            "sync": list(schedule.sync),
            "lookahead": [int(ahead) for ahead in schedule.lookahead],
            "merge_on": str(schedule.merge_on),
            "threads": {str(lane): int(count) for lane, count in schedule.threads.items()},
            "after": [list(pair) for pair in schedule.after],
            "fetch": [float(share) for share in schedule.fetch],
        },
    )


def unpack_schedule(_arrays: Arrays, header: Header) -> Schedule:
    """Inverse of pack_schedule; the answer may be anything."""
    return Schedule(
        lane=dict(header["lane"]),
        order={lane: tuple(ids) for lane, ids in header["order"].items()},
        sync=tuple(header["sync"]),
        lookahead=tuple(header["lookahead"]),
        merge_on=header["merge_on"],
        threads=dict(header["threads"]),
        after=tuple((source, target) for source, target in header["after"]),
        fetch=tuple(header["fetch"]),
    )


def pack_error(kind: str, message: str, error: BaseException) -> bytes:
    """An answer that says what went wrong, with the traceback as text."""
    return pack({}, {"error": kind, "message": message, "traceback": traceback_text(error)})


def unpack_reply(content: bytes, limit: int) -> tuple[Arrays, Header]:
    """An answer's parts.

    Raises:
        PolicyError: the error that is in it.
        ConfigError: likewise.
        ValueError: it is damaged.
    """
    header, arrays = unpack(content, limit)
    if "error" not in header:
        return arrays, header
    kind: type[HotcoldError] = ConfigError if header["error"] == "ConfigError" else PolicyError
    raise kind(str(header["message"])) from PluginTraceback(str(header["traceback"]))
