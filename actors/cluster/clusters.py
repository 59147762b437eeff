"""Which Ray cluster to join, whether it answers, and why it would refuse this process.

Ray waits up to 14 minutes for an address where nobody is, so this is asked first.
"""

import json
import logging
import os
import platform
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._raylet import Config, GcsClient  # type: ignore[attr-defined]
from ray.exceptions import RayError

from hotcold.actors.cluster.processes import ray_heads
from hotcold.native.errors import LaunchError
from hotcold.runtime.doctor.probes import Check, Machine, nearest, writable
from hotcold.runtime.doctor.ray_probe import noted_address, starting, unreachable

TOKEN = Path(".ray", "auth_token")  # below the home folder, where Ray keeps it
GIVE_TOKEN = (
    "export RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH as on the cluster"
)


def find(wanted: str, start: bool, say: bool) -> str | None:
    """Address of the cluster to join; None: a new one is to be started, and nothing hinders it.

    Args:
        wanted: HOST:PORT, "auto", "local", or "": one of this machine, else a new one.
        start: whether a new one may be started.
        say: log which clusters of this machine are passed by, and why.

    Raises:
        LaunchError: says what hinders.
    """
    passed_by = []
    if wanted in ("", "auto"):
        for one in _of_this_machine():
            if not (trouble := refusal(one)):
                return resolved(one)
            passed_by.append(f"not joining the Ray cluster at {one}: {trouble}")
    elif wanted != "local":
        if trouble := refusal(wanted):
            raise LaunchError(f"cannot join the Ray cluster at {wanted}: {trouble}")
        return resolved(wanted)
    if wanted == "auto" or not start:
        missing = "no Ray cluster runs on this machine; give one's --address or RAY_ADDRESS"
        raise LaunchError("; ".join(passed_by) or missing)
    for line in passed_by if say else ():
        logging.getLogger("hotcold").info(line)
    for check in starting(Machine()):
        if check.state == "fail":
            raise LaunchError(f"cannot start Ray: {check.found}; {check.mend}")
    return None


def _of_this_machine() -> list[str]:
    """Addresses of clusters with a node here: the last that `ray start` joined, then all others."""
    noted, _ = noted_address({**os.environ, "RAY_ADDRESS": ""})
    return [one for one in (noted, *ray_heads()) if one]


def resolved(address: str) -> str:
    """The address as Ray takes it: its nodes go by the machine's own address, not by loopback."""
    host, colon, port = address.rpartition(":")
    here = host in ("localhost", "127.0.0.1", "[::1]")
    return f"{ray.util.get_node_ip_address()}{colon}{port}" if here else address


def refusal(address: str) -> str:
    """Why this process cannot join the cluster at HOST:PORT, and what to do; "" where it can."""
    if "://" in address:
        return "engines run in a driver of the cluster; give HOST:PORT, or `hotcold submit` a job"
    trouble = unreachable(resolved(address))
    if trouble:
        return f"{trouble}; start it (ray start --head), or change --address or RAY_ADDRESS"
    try:
        with _silence():
            client = _client(address) or (use_token(address) and _client(address))
            if not client:
                return f"it wants its token; {GIVE_TOKEN}"
            about = json.loads(client.internal_kv_get(b"CLUSTER_METADATA", b"cluster") or b"{}")
            nodes = client.get_all_node_info().values()
    except RayError as error:
        return f"what answers there is no head of a cluster ({str(error).strip() or 'no answer'})"
    living = {node.node_manager_address for node in nodes if not node.state}
    if not any(map(_is_here, living)):
        own = ", ".join(sorted(living)) or "none"
        return (
            f"it has no node on this machine, its nodes are {own}; start one, or `hotcold submit`"
        )
    return _other_versions(about)


def _client(address: str) -> GcsClient | None:
    """A connection to the cluster's head; None: not without its token."""
    try:
        return GcsClient(address=resolved(address))
    except RayError as error:
        if wants_token(error):
            return None
        raise


def wants_token(error: BaseException) -> bool:
    """Whether a cluster refused for want of the right token."""
    return type(error).__name__ == "AuthenticationError" or "Unauthorized" in str(error)


def use_token(address: str) -> bool:
    """Show the token of this machine to one of its own clusters, as Ray does where it finds one."""
    host = address.rpartition("//")[2].rpartition(":")[0]
    if "RAY_AUTH_MODE" in os.environ or not _has_token() or not _is_here(host):
        return False
    os.environ["RAY_AUTH_MODE"] = "token"
    Config.initialize("")
    return True


def _has_token() -> bool:
    named = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    return named or (Path.home() / TOKEN).is_file()


def have_token() -> None:
    """Make a token for a new cluster where Ray could not write one into the home folder."""
    if not _has_token() and not writable(nearest((Path.home() / TOKEN).parent)):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _is_here(host: str) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
        return True


def _other_versions(about: dict[str, str]) -> str:
    level = 2 if os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL") == "minor" else 3
    python = platform.python_version()
    for name, own, kept in (("Ray", ray.__version__, 3), ("Python", python, level)):
        its = about.get(f"{name.lower()}_version", own)
        if its.split(".")[:kept] != own.split(".")[:kept]:
            return f"it runs {name} {its}, this process {own}; use the same, or `hotcold submit`"
    return ""


@contextmanager
def variables(given: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the length of a block."""
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what Ray's C++ code prints off standard error; the exception says the same."""
    with open(os.devnull, "w") as nowhere, open(os.dup(2), "w") as kept:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept.fileno(), 2)


def noted_cluster() -> Check:
    """For `hotcold doctor`: whether the cluster that RAY_ADDRESS or `ray start` names will do."""
    address, source = noted_address(os.environ)
    if not (trouble := refusal(address)):
        return Check("Ray cluster", "ok", address)
    found = f"{source} names {address}: {trouble}"
    if source == "RAY_ADDRESS":
        return Check("Ray cluster", "fail", found, "unset RAY_ADDRESS")
    return Check("Ray cluster", "warn", found, f"ray stop, or rm {source}")
