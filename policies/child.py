"""Running a placement policy in a process of its own, with a time limit.

A policy that loops, exits, crashes or prints can do it there: the caller gets a Placement or one
PolicyError. Used for policies given by name or file (run.py); objects run in the caller's process.

The child is a fresh interpreter, not a fork and not `multiprocessing`: the caller may have threads
and Ray in it, and its `__main__` must not be imported again. Problem and answer travel as npz in
two memfds, so nothing blocks on a full pipe, nothing is left on disk, and nothing that a policy
returns is unpickled. Standard output and error are inherited.
"""

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from hotcold.policies.blame import PluginTraceback, describe, source_file, traceback_text
from hotcold.policies.registry import find, instantiate
from hotcold.policies.settings import Setting
from hotcold.runtime.errors import ConfigError, HotcoldError, PolicyError
from hotcold.runtime.hardware import HardwareProfile
from hotcold.runtime.npz import pack, unpack
from hotcold.runtime.placement import check_placement
from hotcold.runtime.problem import Module, Placement, Problem

TIMEOUT_S = 60.0
# The caller's import path, not the current folder: a user's random.py must not replace a library's.
_BOOT = (
    "import sys; reply, parent, *sys.path = sys.argv[1:]; "
    "from hotcold.policies.child import main; main(int(reply), int(parent))"
)
_ARRAYS = ("activations_LN", "neuron_bytes_L", "predictor_density_L")
_SCALARS = ("context", "batch", "dtype", "profiled")
_HEADER_LIMIT = 2**20  # of an answer: a note, or an error with its traceback
_REQUEST_LIMIT = 2**40  # our own data


def place_in_child(
    spec: str,
    settings: Mapping[str, Setting],
    problem: Problem,
    timeout_s: float = TIMEOUT_S,
) -> Placement:
    """Run a placement policy in a child process.

    Args:
        spec: entry-point name, "file.py:Class" or "package.module:Class".
        settings: the policy's parameters.
        problem: what to place.
        timeout_s: seconds until the child is killed.

    Returns:
        The placement, checked.

    Raises:
        PolicyError: no such policy, it raised, ended its process, did not finish, or returned
            something that breaks a rule.
        ConfigError: a setting or the timeout cannot be used.
    """
    if not (math.isfinite(timeout_s) and timeout_s > 0):
        raise ConfigError(f"the policy timeout is {timeout_s} s; it must be above 0")
    request = os.memfd_create("hotcold-problem")
    reply = os.memfd_create("hotcold-placement")
    try:
        _write(request, _pack_request(spec, settings, problem))
        os.lseek(request, 0, os.SEEK_SET)
        status = _run(request, reply, spec, timeout_s)
        layers, neurons = problem.shape
        limit = layers * neurons + _HEADER_LIMIT
        if os.fstat(reply).st_size == 0:
            raise PolicyError(f"policy {spec!r} {_ending(status)} before it returned a placement")
        placement = _unpack_reply(spec, os.pread(reply, limit, 0), limit)
    finally:
        os.close(request)
        os.close(reply)
    check_placement(problem, placement, spec)
    return placement


def _run(request: int, reply: int, spec: str, timeout_s: float) -> int:
    """Start the child and wait for it; it and all it started are killed if it takes too long."""
    command = [sys.executable, "-c", _BOOT, str(reply), str(os.getpid()), *map(str, sys.path)]
    # A session of its own: what the policy starts dies with it, and Ctrl-C reaches us, not it.
    child = subprocess.Popen(command, stdin=request, pass_fds=(reply,), start_new_session=True)
    try:
        return child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise PolicyError(
            f"policy {spec!r} did not finish in {timeout_s:g} s; "
            "make it faster, or give it longer with --policy-timeout"
        ) from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _ending(status: int) -> str:
    """How a process ended, as the rest of a sentence."""
    if status >= 0:
        return f"ended its process with exit code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"crashed its process by {name}{hint}"


def main(reply: int, parent: int) -> None:
    """The child: read the request from standard input, run the policy, write the answer, end."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no orphan if the caller is shot
    if os.getppid() != parent:
        os._exit(1)
    os.set_inheritable(reply, False)
    header, arrays = unpack(_read_all(0), _REQUEST_LIMIT)  # a policy finds it at its end
    content = _answer(header["spec"], header["settings"], _unpack_problem(header, arrays))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    _write(reply, content)
    os._exit(0)  # not sys.exit: threads that the policy left running would keep the process


def _answer(spec: str, settings: Mapping[str, Setting], problem: Problem) -> bytes:
    """Run the policy; its placement, or what went wrong, as an npz."""
    file = None
    try:
        plugin = find("placement", spec)
        file = source_file(plugin)
        policy: Any = instantiate(plugin, settings, spec)
        try:
            placement = policy.place(problem)
        except BaseException as error:
            return _pack_error("PolicyError", describe(error, spec, file), error)
        check_placement(problem, placement, spec)
    except HotcoldError as error:
        return _pack_error(type(error).__name__, str(error), error)
    except BaseException as error:
        return _pack_error("PolicyError", describe(error, spec, file), error)
    modules = {str(name): str(home) for name, home in placement.modules.items()}
    return pack({"device_LN": placement.device_LN}, {"modules": modules, "note": placement.note})


def _pack_error(kind: str, message: str, error: BaseException) -> bytes:
    return pack({}, {"error": kind, "message": message, "traceback": traceback_text(error)})


def _pack_request(spec: str, settings: Mapping[str, Setting], problem: Problem) -> bytes:
    header: dict[str, Any] = {name: getattr(problem, name) for name in _SCALARS}
    header |= {"budgets": dict(problem.budgets), "devices": problem.devices}
    header |= {"modules": [asdict(module) for module in problem.modules]}
    header |= {"hardware": problem.hardware.to_json(), "spec": spec, "settings": dict(settings)}
    try:
        return pack({name: getattr(problem, name) for name in _ARRAYS}, header)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"settings of policy {spec!r} must be text or numbers: {error}"
        ) from error


def _unpack_problem(header: dict[str, Any], arrays: dict[str, Any]) -> Problem:
    return Problem(
        **{name: arrays[name] for name in _ARRAYS},
        **{name: header[name] for name in (*_SCALARS, "budgets")},
        modules=tuple(Module(**module) for module in header["modules"]),
        devices=tuple(header["devices"]),
        hardware=HardwareProfile.from_json(header["hardware"]),
    )


def _unpack_reply(spec: str, content: bytes, limit: int) -> Placement:
    """The placement in an answer; raises the error in it."""
    try:
        header, arrays = unpack(content, limit)
        if "error" not in header:
            device_LN = np.array(arrays["device_LN"])
            return Placement(device_LN, dict(header["modules"]), note=str(header["note"]))
        message = str(header["message"])
        kind = ConfigError if header["error"] == "ConfigError" else PolicyError
        cause = PluginTraceback(header["traceback"])
    except (ValueError, KeyError, TypeError) as error:
        raise PolicyError(f"policy {spec!r} damaged its answer: {error}") from error
    raise kind(message) from cause


def _write(handle: int, content: bytes) -> None:
    with open(handle, "wb", closefd=False) as file:
        file.write(content)


def _read_all(handle: int) -> bytes:
    with open(handle, "rb", closefd=False) as file:
        return file.read()
