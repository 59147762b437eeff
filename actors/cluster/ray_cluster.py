"""Joining Ray or starting it, and reserving room for one group of actors.

Measured facts this rests on (Ray 2.60, 2-core machine): a local Ray starts in 3.3 s; workers run at
nice +15 unless RAY_worker_niceness says otherwise; a placement group without room waits for ever,
so its readiness is awaited with a deadline.
"""

import logging
import os
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import ray
from ray.exceptions import RayError
from ray.job_config import JobConfig
from ray.util import placement_group
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from hotcold.actors.cluster import clusters
from hotcold.actors.cluster.processes import is_gone, is_stopped
from hotcold.native.errors import ConfigError, LaunchError

NAMESPACE = "hotcold"
SOON_S, READY_S, END_S = 1.5, 30.0, 3.0
# Of an actor, as Ray counts. Not what it uses, which --threads says: several engines may share a
# machine. Who wants to keep cores free for one gives it a placement group of that size.
ACTOR_CPUS = 0.1
WORKER_ENV = {"RAY_worker_niceness": "0"}
OURS = "HOTCOLD_"  # variables that actors must see as their driver does
_inherited: dict[str, str] | None = None  # the values that workers have anyway; None: unset


def worker_options() -> dict[str, Any]:
    """Ray options that give an actor our variables and niceness 0.

    None are needed where the Ray that this process started hands them down itself: a runtime
    environment costs 0.3 s a start (Ray 2.60), and Ray's idle workers cannot be used for it.
    """
    now = {name: value for name, value in os.environ.items() if name.startswith(OURS)}
    wanted = {**WORKER_ENV, **now}
    missing = {k: v for k, v in wanted.items() if (_inherited or {}).get(k) != v}
    return {"runtime_env": {"env_vars": missing}} if missing else {}


def look(address: str | None, start: bool = True, say: bool = False) -> str | None:
    """The cluster that `join` would join, None for one to be started; raises what it raises."""
    if ray.is_initialized():
        return None
    return clusters.find(address or os.environ.get("RAY_ADDRESS") or "", start, say)


def join(address: str | None, start: bool = True) -> bool:
    """Join a Ray cluster, or start one on this machine.

    Order: the Ray this process is already in; `address` (HOST:PORT, "auto" or "local");
    RAY_ADDRESS; a cluster running on this machine; a new local one, if `start`. Returns whether a
    new one was started, which the caller must then shut down.

    Raises:
        LaunchError: no cluster at the address, it refuses this process, or Ray does not start.
    """
    if ray.is_initialized():
        return False
    found = look(address, start, say=True)
    with _own_signal_handlers():
        _init(found)
    return found is None


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep the caller's handlers: ray.init puts C++ ones in their place, which end the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def _init(address: str | None) -> None:
    job = JobConfig()
    job._py_driver_sys_path = _SearchPath()
    options: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "job_config": job,
    }
    try:
        if address is None:
            _start(options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, RayError, RuntimeError, ValueError, OSError) as error:
        where = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
        raise LaunchError(f"cannot {where}: {_first_line(error)}") from error


class _SearchPath(list[str]):
    """Folders that go before all others where workers look for modules.

    Ray puts the working directory there, and a module called numpy in it ends them. A folder is
    taken only if this process has it before the standard library as well.
    """

    def extend(self, folders: Iterable[str]) -> None:
        library = sysconfig.get_path("stdlib")
        own = {os.path.abspath(at) for at in takewhile(lambda at: at != library, sys.path)}
        super().extend(folder for folder in folders if folder in own)


def _start(options: dict[str, Any]) -> None:
    """Start Ray here; its workers inherit this process's environment."""
    global _inherited  # noqa: PLW0603 - there is one Ray in a process
    clusters.have_token()
    with clusters.variables(WORKER_ENV):
        ray.init(address="local", include_dashboard=False, **options)
        _inherited = {k: v for k, v in os.environ.items() if k in WORKER_ENV or k.startswith(OURS)}


_started_here = 0  # users of the Ray this process started
_lock = threading.RLock()


def enter(address: str | None) -> bool:
    """Join or start Ray; whether `leave` must be called in the end. Counts its users here."""
    global _started_here  # noqa: PLW0603 - there is one Ray in a process
    with _lock:
        started = join(address) or _started_here > 0
        _started_here += started
        return started


def is_last() -> bool:
    """Whether the next `leave` shuts Ray down, so that nothing has to be given back to it.

    A signal to the whole process group (as `timeout` sends it) ends Ray before us. Giving anything
    back then makes Ray's client try for a minute to reach it, and end the process after that.
    """
    return _started_here == 1


def leave() -> None:
    """Shut down the Ray that was started here once its last user is gone."""
    global _started_here, _inherited  # noqa: PLW0603
    with _lock:
        _started_here -= 1
        if _started_here == 0:
            ray.shutdown()
            _inherited = None


@contextmanager
def joined(address: str | None) -> Iterator[None]:
    """Be in a Ray cluster for the length of a block; a cluster that it started is shut down."""
    started = enter(address)
    try:
        yield
    finally:
        if started:
            leave()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reserve(name: str, actors: int) -> PlacementGroup:
    """One bundle on the driver's node for so many actors (they share its memory).

    Raises:
        LaunchError: the node has no room; says who holds its CPUs.
    """
    node = ray.get_runtime_context().get_node_id()
    here = next(entry for entry in ray.nodes() if entry["NodeID"] == node)
    need = actors * ACTOR_CPUS
    bundle = {"CPU": need, f"node:{here['NodeManagerAddress']}": 0.001}
    label = f"hotcold-{name}-{os.getpid()}"
    group: PlacementGroup = placement_group([bundle], strategy="STRICT_PACK", name=label)
    try:
        # First for as long as Ray may take to hear that others have given up theirs.
        ready = group.wait(SOON_S) or _free_cpus() >= need and group.wait(READY_S)
    except Exception as error:  # noqa: BLE001 - Ray raises a bare Exception for a lost group
        raise LaunchError(f"the Ray cluster gave no room: {_first_line(error)}") from error
    if not ready:
        remove_placement_group(group)
        raise LaunchError(
            f"no room for the actors: they need {need:g} CPUs of this node, {_free_cpus():g} are "
            f"free in the cluster; {_holders()}; end one of them, or start Ray with --num-cpus"
        )
    return group


def _free_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0.0))


def _holders() -> str:
    """Who holds the cluster's CPUs, in words."""
    total = ray.cluster_resources().get("CPU", 0.0)
    held = {"tasks and actors": total - _free_cpus()}
    for group in placement_group_table().values():
        if group["state"] == "CREATED":
            name = group["name"] or "a group without a name"
            cpus = sum(bundle.get("CPU", 0.0) for bundle in group["bundles"].values())
            held[name] = held.get(name, 0.0) + cpus
            held["tasks and actors"] -= cpus
    words = [f"{name} {cpus:g}" for name, cpus in held.items() if cpus > 1e-3]
    return f"of {total:g} there are held: {', '.join(words) or 'none'}"


def check_name(name: str) -> None:
    """Refuse a name that is empty, odd, or taken."""
    if not name or not all(c.isalnum() or c in "-_." for c in name):
        raise ConfigError(f"engine name {name!r} must be letters, digits, '-', '_' and '.'")
    try:
        ray.get_actor(f"{name}-gpu", namespace=NAMESPACE)
    except ValueError:
        return
    raise ConfigError(
        f"an engine named {name!r} is running in this cluster; connect to it or choose another name"
    )


def kill_actors(actors: Sequence[Any], pids: Sequence[int]) -> None:
    """End actors and wait until their processes, as far as they are known, are gone."""
    for pid in pids:
        if is_stopped(pid):
            os.kill(pid, signal.SIGKILL)  # it would not receive it
    for actor in actors:
        ray.kill(actor, no_restart=True)
    deadline = time.monotonic() + END_S
    for pid in pids:
        while not is_gone(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.005)
