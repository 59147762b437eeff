"""A real Ray cluster of this machine for tests of jobs: its own ports, folder, home and Python.

It has a token, as the README's lines make one on a machine that never had Ray.

Its Python has everything but hotcold, as a foreign cluster's would. It is ended by the pids of its
own processes; other Rays of the machine are left alone.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotcold.actors.cluster.footprint import descendants

START_S = 60.0
NAMES = "port dashboard-port ray-client-server-port dashboard-agent-listen-port "
NAMES += "dashboard-agent-grpc-port metrics-export-port"
WORKER_PORTS = 200
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@dataclass(frozen=True)
class Cluster:
    """Args: dashboard URL, GCS address, its Python, its main process, this side's environment."""

    address: str
    gcs: str
    python: Path
    pid: int
    environment: dict[str, str]

    def ask(self, path: str, body: dict[str, str] | None = None) -> Any:
        """What its dashboard answers."""
        token = Path(self.environment["HOME"], ".ray", "auth_token").read_text()
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        request = urllib.request.Request(self.address + path, data, headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def processes(self) -> set[int]:
        """Everything that runs in it."""
        return descendants(self.pid)

    def actors(self) -> list[str]:
        """Command lines of hotcold's actors and jobs in it."""
        found = []
        for pid in self.processes():
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if "Executor" in line or "ray::Predictor" in line or "hotcold.actors.cli" in line:
                found.append(f"{pid} {line[:80]}")
        return found


def bare_python(folder: Path) -> Path:
    """An interpreter that finds this one's packages, but no editable install among them."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(folder)], check=True
    )
    places = {path for path in sys.path if path.endswith("site-packages")}
    own = folder / "lib" / Path(sysconfig.get_path("purelib")).parent.name / "site-packages"
    (own / "all_but_hotcold.pth").write_text("".join(f"{path}\n" for path in sorted(places)))
    return folder / "bin" / "python"


def _free_block() -> int:
    """First of a block of ports that nobody listens on, outside the range of outgoing ones."""
    for _ in range(50):
        first = random.randrange(20000, 31000, 10)
        try:
            for port in range(first, first + 8):
                with socket.socket() as probe:
                    probe.bind(("", port))
            return first
        except OSError:
            continue
    raise OSError("no free ports for a Ray cluster")


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Start a head node without hotcold, hand it out, end it with all its processes."""
    # Its sockets' names must stay under 108 characters; not "hotcold...": leak checks look for it.
    folder = Path(tempfile.mkdtemp(prefix="hc-ray-"))
    first = _free_block()
    ports = dict(zip(NAMES.split(), range(first, first + 8), strict=False))
    python = bare_python(folder / "env")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "HOTCOLD_"))}
    environment["HOME"] = str(folder / "home")
    subprocess.run(
        [*RAY, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True
    )
    theirs = {k: v for k, v in environment.items() if k != "PYTHONPATH"}
    theirs["PATH"] = f"{python.parent}{os.pathsep}{theirs.get('PATH', '')}"
    theirs["RAY_AUTH_MODE"] = "token"
    theirs["HOTCOLD_CACHE"] = os.environ["HOTCOLD_CACHE"]
    command = [str(python), "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    command += [f"--min-worker-port={first + 10}", f"--max-worker-port={first + WORKER_PORTS}"]
    command += ["--num-cpus=32", "--object-store-memory=100000000", f"--temp-dir={folder / 'r'}"]
    command += ["--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    log = folder / "head.log"
    with log.open("wb") as sink:
        head = subprocess.Popen(
            command, env=theirs, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        )
    running = Cluster(
        f"http://127.0.0.1:{ports['dashboard-port']}",
        f"127.0.0.1:{ports['port']}",
        python,
        head.pid,
        environment,
    )
    try:
        _await_dashboard(running, head, log)
        yield running
    finally:
        _end(head)
        shutil.rmtree(folder, ignore_errors=True)


def _await_dashboard(running: Cluster, head: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            # A job that does nothing: taken once the node's agent has registered, seconds later.
            running.ask("/api/jobs/", {"entrypoint": "true"})
            return
        except OSError:
            if head.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Ray did not start:\n{log.read_text()[-3000:]}") from None
            time.sleep(0.1)


def _end(head: "subprocess.Popen[bytes]") -> None:
    everyone = descendants(head.pid)
    head.terminate()
    try:
        head.wait(10)
    except subprocess.TimeoutExpired:
        head.kill()
        head.wait()
    deadline = time.monotonic() + 5
    while (left := {pid for pid in everyone if Path(f"/proc/{pid}").exists()}) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
