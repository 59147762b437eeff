"""A private MPS daemon: what lets two processes run kernels on one GPU at the same time.

`Daemon` starts a guard, `python -m hotcold.native.gpu.mps PID`, which makes a folder for the
daemon's pipes and logs, runs `nvidia-cuda-mps-control -f` in it and ends it again: when it is told
to (SIGTERM), when process PID is gone, or when the control process or its server ends. The guard
adopts what that leaves (it is a subreaper), so nothing survives it, server and folder included,
however the others ended. Should the guard itself be killed, the kernel ends the control process,
and `Daemon.close` ends the rest.

Never a foreign daemon: clients join by `Daemon.environment` alone. A client that dies with kernels
in flight leaves the server in an undefined state, so whoever loses one takes a new Daemon. Called
by the actor group and by cuda_probe.py; knows nothing of either.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from hotcold.native.errors import BackendError

CONTROL = "nvidia-cuda-mps-control"
COMM = "nvidia-cuda-mps"  # of control and server processes, whose names are cut to 15 letters
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
PREFIX = "hotcold-mps-"
MAX_FOLDER = 60  # letters: sockets lie in it, whose whole paths may have 107
START_S, QUIT_S, KILL_S, LOOK_S, SERVER_S = 10.0, 2.0, 2.0, 0.02, 0.2
_SUBREAPER, _DEATH_SIGNAL = 36, 1  # of prctl


def control_path() -> str | None:
    """The program that runs an MPS daemon, or None where it is not installed."""
    return shutil.which(CONTROL)


class Daemon:
    """A running private daemon. Use as a context manager, or close it.

    Attributes:
        pid: process of the guard; its end is the daemon's.
        folder: of the pipes.

    Raises:
        BackendError: there is no such program, or it does not start.
    """

    def __init__(self) -> None:
        # A child of its own process group, so that Ctrl-C in a terminal reaches the driver first.
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "hotcold.native.gpu.mps", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        self.pid, self.folder = self._guard.pid, ""
        assert self._guard.stdout is not None
        try:
            ready, _, _ = select.select([self._guard.stdout], [], [], 2 * START_S)
            said = self._guard.stdout.readline().strip() if ready else "no answer"
        except BaseException:
            self.close()
            raise
        if not said.startswith("/"):
            self.close()
            raise BackendError(f"the MPS daemon does not start: {said or 'its guard ended'}")
        self.folder = said

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make a process its client, set before it first touches CUDA."""
        return {PIPES: self.folder, LOGS: f"{self.folder}/log"}

    @property
    def is_running(self) -> bool:
        """Whether it can still be used."""
        return self._guard.poll() is None

    def close(self) -> None:
        """End it, its clients being gone; idempotent. Nothing is left afterwards."""
        with suppress(ProcessLookupError):
            self._guard.terminate()
        try:
            self._guard.wait(QUIT_S + 2 * KILL_S + 1)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        if self._guard.stdout is not None:
            self._guard.stdout.close()
        if self.folder:  # only where the guard was killed is anything there
            _end(_members(self.folder))
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "Daemon":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


# ---- the guard ---------------------------------------------------------------------------------


def _guard(owner: int) -> str:
    """Run a daemon until it has to end; returns what went wrong at its start, or nothing."""
    watched = _open_process(owner)
    if watched is None or os.getppid() != owner:
        return "the process it was for is gone"
    told, tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the wake-up descriptor says it
    _prctl(_SUBREAPER, 1)
    folder = _make_folder()
    control = None
    try:
        try:
            control = _start(folder)
        except OSError as error:
            return f"{CONTROL} cannot be run ({error.strerror})"
        ended = _open_process(control.pid)
        ends = [fd for fd in (watched, told, ended) if fd is not None]
        if trouble := _until_up(folder, control, ends):
            return trouble
        print(folder, flush=True)
        _until_ended(control.pid, ends)
        return ""
    finally:
        _quit(folder, control)
        shutil.rmtree(folder, ignore_errors=True)


def _make_folder() -> str:
    here = tempfile.gettempdir()
    room = MAX_FOLDER - len(PREFIX) - 9
    folder = tempfile.mkdtemp(prefix=PREFIX, dir=here if len(here) <= room else "/tmp")
    os.mkdir(f"{folder}/log")
    return folder


def _start(folder: str) -> "subprocess.Popen[bytes]":
    guard = os.getpid()

    def die_with_the_guard() -> None:
        _prctl(_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(1)

    environment = {**os.environ, PIPES: folder, LOGS: f"{folder}/log"}
    # A server numbers what it sees anew, clients count all: they choose among those by themselves.
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    with open(f"{folder}/said", "wb") as said:
        return subprocess.Popen(
            [CONTROL, "-f"],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env=environment,
            preexec_fn=die_with_the_guard,  # noqa: PLW1509 - this process has one thread
        )


def _until_up(folder: str, control: "subprocess.Popen[bytes]", ends: list[int]) -> str:
    """Wait for the control pipe; what went wrong, or nothing."""
    deadline = time.monotonic() + START_S
    while not Path(folder, "control").exists():
        if select.select(ends, [], [], LOOK_S)[0] or time.monotonic() > deadline:
            said = Path(folder, "said").read_text(errors="replace").split("\n")[0][:200]
            return said or f"{CONTROL} ended with {control.poll()} before it was up"
    return ""


def _until_ended(control: int, ends: list[int]) -> None:
    """Wait for one of the descriptors, or for the end of the server, which the first client starts.

    A server that is gone has taken its clients with it; a new one would not know them.
    """
    served = False
    while not select.select(ends, [], [], None if served else SERVER_S)[0]:
        for pid in _children(control):
            served = True
            found = _open_process(pid)
            if found is None:
                return
            ends = [*ends, found]


def _quit(folder: str, control: "subprocess.Popen[bytes] | None") -> None:
    """End the daemon: in good order if it can be, else by force."""
    if control is not None and control.poll() is None:
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                [CONTROL],
                input=b"quit\n",
                env={**os.environ, PIPES: folder, LOGS: f"{folder}/log"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=QUIT_S,
                check=False,
            )
            control.wait(QUIT_S)
    _end(_members(folder) | _children(os.getpid()))


def _end(pids: set[int]) -> None:
    """Kill processes and wait until they are gone."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + KILL_S
    while any(_is_there(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(LOOK_S)


def _is_there(pid: int) -> bool:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # if it is ours: adopted, or the control process
    return _stat(pid)[:1] not in ([], ["Z"], ["X"])


def _members(folder: str) -> set[int]:
    """Control and server processes of the daemon in a folder, whoever their parent is."""
    found = set()
    for pid in _processes():
        with suppress(OSError):
            comm = Path(f"/proc/{pid}/comm").read_text()
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            if comm.startswith(COMM) and f"{PIPES}={folder}\0".encode() in environment:
                found.add(pid)
    return found


def _children(of: int) -> set[int]:
    return {pid for pid in _processes() if _stat(pid)[1:2] == [str(of)]}


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _stat(pid: int) -> list[str]:
    """State, parent, ... of a process; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _open_process(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None where it has."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    if trouble := _guard(int(sys.argv[1])):
        print(" ".join(trouble.split()) or "?", flush=True)
        sys.exit(1)
