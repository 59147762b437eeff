"""Running a policy in a process of its own, with a time limit.

A policy that loops, exits, crashes or prints does so there: the caller gets a placement or a
schedule, or one PolicyError. Used for policies given by name or file (run.py); objects and built-in
schedules run in the caller's process.

The child is a fresh interpreter, not a fork and not `multiprocessing`: the caller may have threads
and Ray in it, and its `__main__` must not be imported again. Question and answer (messages.py)
travel in two memfds, so nothing blocks on a full pipe and nothing is left on disk. Standard output
and error are inherited. The child leads a session; processes that it started there are killed with
it.
"""

import contextlib
import ctypes
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from hotcold.native.errors import ConfigError, HotcoldError, PolicyError
from hotcold.runtime.files.npz import pack, unpack
from hotcold.runtime.files.records import from_record, to_record
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.plan.dag import Dag
from hotcold.runtime.plan.placement import check_placement
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plan.problem import Placement, Problem
from hotcold.runtime.plan.schedule import Schedule, check_schedule
from hotcold.runtime.plugins import messages
from hotcold.runtime.plugins.blame import blaming, describe, source_file
from hotcold.runtime.plugins.registry import find, instantiate
from hotcold.runtime.plugins.settings import Setting

Made = TypeVar("Made")
TIMEOUT_S = 60.0
# The caller's import path, not the current folder: a user's random.py must not replace a library's.
_BOOT = (
    "import sys; reply, parent, *sys.path = sys.argv[1:]; "
    "from hotcold.runtime.plugins.child import main; main(int(reply), int(parent))"
)
_HEADER_LIMIT = 2**20  # of an answer: a note, or an error with its traceback
_NODE_LIMIT = 2**12  # of a schedule, a node of the graph
_REQUEST_LIMIT = 2**40  # our own data
_POLL_LIMIT_S = 1e6  # what poll() can count

_running: set[int] = set()  # children that have not been reaped
_lock = threading.Lock()


def place_in_child(
    spec: str,
    settings: Mapping[str, Setting],
    problem: Problem,
    timeout_s: float = TIMEOUT_S,
) -> Placement:
    """Run a placement policy in a child process.

    Returns the placement, checked.

    Raises:
        PolicyError: no such policy, it raised, ended its process, did not finish, or returned
            something that breaks a rule.
        ConfigError: a setting or the timeout cannot be used.
    """
    layers, neurons = problem.shape
    request = messages.pack_request("placement", spec, settings, to_record(problem))
    limit = 2 * layers * neurons + _HEADER_LIMIT  # device_LN and dtype_LN
    placement = _ask("placement", Placement, spec, request, limit, timeout_s)
    check_placement(problem, placement, spec)
    return placement


def schedule_in_child(
    spec: str,
    settings: Mapping[str, Setting],
    dag: Dag,
    plan: Plan,
    hardware: HardwareProfile,
    timeout_s: float = TIMEOUT_S,
) -> Schedule:
    """Run a schedule policy in a child process; like place_in_child."""
    given = messages.pack_graph(dag, plan, hardware)
    request = messages.pack_request("schedule", spec, settings, given)
    limit = _HEADER_LIMIT + _NODE_LIMIT * len(dag.nodes)
    schedule = _ask("schedule", Schedule, spec, request, limit, timeout_s)
    check_schedule(dag, schedule, spec)
    return schedule


def stop_children() -> None:
    """Kill every policy that runs now; its caller gets a PolicyError."""
    with _lock:
        for pid in _running:
            _kill(pid)


def _ask(
    kind: str, answer: type[Made], spec: str, question: bytes, limit: int, timeout_s: float
) -> Made:
    if not (math.isfinite(timeout_s) and timeout_s > 0):
        raise ConfigError(
            f"the policy timeout is {timeout_s} s; it must be a finite number above 0"
        )
    request = os.memfd_create("hotcold-request")
    reply = os.memfd_create("hotcold-reply")
    try:
        _write(request, question)
        os.lseek(request, 0, os.SEEK_SET)
        status = _run(request, reply, spec, timeout_s)
        size = os.fstat(reply).st_size
        if size == 0:
            raise PolicyError(f"policy {spec!r} {_ending(status)} before it returned a {kind}")
        if size > limit:
            most = f"a {kind} of this model has at most {limit}"
            raise PolicyError(f"policy {spec!r} returned {size} bytes; {most}")
        content = os.pread(reply, limit, 0)
    finally:
        os.close(request)
        os.close(reply)
    try:
        arrays, header = messages.unpack_reply(content, limit)
        return from_record(answer, arrays | header)
    except HotcoldError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PolicyError(f"policy {spec!r} damaged its answer: {error}") from error


def _run(request: int, reply: int, spec: str, timeout_s: float) -> int:
    command = [sys.executable, "-c", _BOOT, str(reply), str(os.getpid()), *map(str, sys.path)]
    # A session of its own: what the policy starts is killed with it; Ctrl-C reaches only us.
    with _lock:
        child = subprocess.Popen(command, stdin=request, pass_fds=(reply,), start_new_session=True)
        _running.add(child.pid)
    try:
        if not _ended(child.pid, timeout_s):
            raise PolicyError(
                f"policy {spec!r} did not finish in {timeout_s:g} s; "
                "make it faster, or give it longer with --policy-timeout"
            )
    finally:
        with _lock:  # not reaped yet, so the number is still its own
            _kill(child.pid)
            status = child.wait()
            _running.discard(child.pid)
    return status


def _ended(pid: int, timeout_s: float) -> bool:
    handle = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(1e3 * min(timeout_s, _POLL_LIMIT_S)))
    finally:
        os.close(handle)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _ending(status: int) -> str:
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
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no orphan if the caller dies
    if os.getppid() != parent:
        os._exit(1)
    os.set_inheritable(reply, False)
    with open(0, "rb", closefd=False) as question:  # a policy reads an empty file
        header, arrays = unpack(question.read(), _REQUEST_LIMIT)
    content = _answer(header, arrays)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    try:
        _write(reply, content)
    except OSError:  # the policy closed it, or memory ran out
        os._exit(1)
    os._exit(0)  # not sys.exit: threads that the policy left running would keep the process


def _answer(header: messages.Header, arrays: messages.Arrays) -> bytes:
    kind, spec, content = header["kind"], header["spec"], header["content"]
    file = None
    try:
        plugin = find(kind, spec)
        file = source_file(plugin)
        policy: Any = instantiate(plugin, header["settings"], spec)
        if kind == "schedule":
            dag, plan, hardware = messages.unpack_graph(arrays, content)
            with blaming(spec, file, caught=BaseException):
                schedule = policy.schedule(dag, plan, hardware)
            check_schedule(dag, schedule, spec)
            return pack({}, to_record(schedule)[1])
        problem = from_record(Problem, arrays | content)
        started = time.monotonic()
        with blaming(spec, file, caught=BaseException):
            placement = policy.place(problem)
        solve_s = time.monotonic() - started
        check_placement(problem, placement, spec)
        return pack(*to_record(replace(placement, solve_s=solve_s)))
    except HotcoldError as error:
        return messages.pack_error(type(error).__name__, str(error), error.__cause__ or error)
    except BaseException as error:
        return messages.pack_error("PolicyError", describe(error, spec, file), error)


def _write(handle: int, content: bytes) -> None:
    with open(handle, "wb", closefd=False) as file:
        file.write(content)
