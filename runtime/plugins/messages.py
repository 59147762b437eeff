"""Messages between the caller of a policy and the child process that runs it.

Used by child.py, on both sides. Everything is npz with a header of plain JSON data
(runtime/files/npz.py): nothing that a policy returns is unpickled, and damaged data raises a
ValueError, KeyError, TypeError or AttributeError, which the caller turns into an error that names
the policy. The rules for placements and schedules are not checked here but by check_placement and
check_schedule.
"""

import json
from collections.abc import Mapping
from typing import Any

from hotcold.native.errors import ConfigError, HotcoldError, PolicyError
from hotcold.runtime.files.npz import pack, unpack
from hotcold.runtime.files.records import from_record, plain, to_record
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.plan.dag import Dag
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plugins.blame import PluginTraceback, traceback_text
from hotcold.runtime.plugins.settings import Setting

Arrays = dict[str, Any]  # numpy arrays by name
Header = dict[str, Any]


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


def pack_graph(dag: Dag, plan: Plan, hardware: HardwareProfile) -> tuple[Arrays, Header]:
    """What a schedule policy is given, as arrays and plain data."""
    arrays, of_plan = to_record(plan)
    return arrays, {"dag": plain(dag), "plan": of_plan, "hardware": plain(hardware)}


def unpack_graph(arrays: Arrays, header: Header) -> tuple[Dag, Plan, HardwareProfile]:
    """Inverse of pack_graph."""
    plan = from_record(Plan, arrays | header["plan"])
    return from_record(Dag, header["dag"]), plan, from_record(HardwareProfile, header["hardware"])


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
