"""The leak check itself: whatever is left on purpose, it finds, and nothing else."""

import ctypes
import mmap
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from support.leaks import assert_nothing_left, left_behind

from hotcold.actors import Engine
from hotcold.actors.cluster import footprint
from hotcold.native.gpu import nvml

SLEEP = ["-c", "import time; time.sleep(60)"]
Leak = Callable[[], Callable[[], object]]  # makes something, and returns what ends it


def a_thread() -> Callable[[], object]:
    ended = threading.Event()
    threading.Thread(target=ended.wait, name="hotcold-left", daemon=True).start()
    return ended.set


def a_process(name: str) -> Callable[[], object]:
    process = subprocess.Popen([name, *SLEEP], executable=sys.executable)

    def end() -> None:
        process.kill()
        process.wait()

    return end


def an_orphan() -> Callable[[], object]:
    """A process that is nobody's child any more, as those of a killed driver."""
    script = f"import subprocess; print(subprocess.Popen([{sys.executable!r}, *{SLEEP}]).pid)"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdout=pipe, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    return lambda: os.kill(pid, 9)


def a_memfd() -> Callable[[], object]:
    fd = os.memfd_create("hotcold-left")
    return lambda: os.close(fd)


def a_mapping() -> Callable[[], object]:
    fd = os.memfd_create("hotcold-left")
    os.truncate(fd, 4096)
    mapping = mmap.mmap(fd, 4096)
    os.close(fd)
    return mapping.close


def a_pidfd() -> Callable[[], object]:
    fd = os.pidfd_open(os.getpid())
    return lambda: os.close(fd)


def an_eventfd() -> Callable[[], object]:
    fd = ctypes.CDLL(None).eventfd(0, 0)
    return lambda: os.close(fd)


def an_open_file() -> Callable[[], object]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - left open on purpose
    return file.close


def a_unix_socket() -> Callable[[], object]:
    pair = socket.socketpair()
    return lambda: [end.close() for end in pair]


def a_listening_socket() -> Callable[[], object]:
    server = socket.create_server(("127.0.0.1", 0))
    return server.close


def a_connection() -> Callable[[], object]:
    server = socket.create_server(("127.0.0.1", 0))
    ends = [socket.create_connection(server.getsockname()), server.accept()[0], server]
    return lambda: [end.close() for end in ends]


def a_file(folder: str) -> Callable[[], object]:
    fd, path = tempfile.mkstemp(prefix="hotcold-left", dir=folder)
    os.close(fd)
    return lambda: os.unlink(path)


LEAKS: dict[str, tuple[Leak, str]] = {
    "thread": (a_thread, "thread hotcold-left"),
    "actor": (lambda: a_process("ray::CpuExecutor"), "process ray::CpuExecutor"),
    "process": (lambda: a_process("sleeper"), "sleeper"),
    "orphan": (an_orphan, "time.sleep"),
    "memfd": (a_memfd, "descriptor /memfd:hotcold-left of this process"),
    "mapping": (a_mapping, "mapping memfd:hotcold-left of this process"),
    "pidfd": (a_pidfd, "descriptor anon_inode:[pidfd]"),
    "eventfd": (an_eventfd, "descriptor anon_inode:[eventfd]"),
    "open file": (an_open_file, f"descriptor {tempfile.gettempdir()}"),
    "unix socket": (a_unix_socket, "socket of this process, unix"),
    "listening socket": (a_listening_socket, "socket of this process, tcp listening"),
    "connection": (a_connection, "socket of this process, tcp;"),
    "shared memory": (lambda: a_file("/dev/shm"), "file /dev/shm/hotcold-left"),
    "temp file": (
        lambda: a_file(tempfile.gettempdir()),
        f"file {tempfile.gettempdir()}/hotcold-left",
    ),
}


@contextmanager
def ended(end: Callable[[], object]) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            end()


@pytest.mark.parametrize("kind", LEAKS)
def test_what_is_left_is_found_and_named(kind: str) -> None:
    leak, expected = LEAKS[kind]
    before = left_behind()
    with ended(leak()):
        with pytest.raises(AssertionError, match="left behind") as caught:
            assert_nothing_left(before, wait_s=0.2)
        assert expected in f"{caught.value};"
    assert_nothing_left(before)


@pytest.mark.parametrize(("mib", "found"), [(footprint.GPU_SLACK_MIB, False), (300, True)])
def test_gpu_memory_counts_beyond_what_a_driver_keeps(
    mib: int, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml, "used_bytes", lambda: 5 << 30)
    before = footprint.take()
    monkeypatch.setattr(nvml, "used_bytes", lambda: (5 << 30) + (mib << 20))
    assert (footprint.GPU in footprint.growth(before, footprint.take())) is found
    monkeypatch.setattr(nvml, "used_bytes", lambda: None)  # no GPU, no figure
    assert footprint.GPU not in footprint.take()


CONTEXT = """
import ctypes, sys
cuda, context, device = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(), ctypes.c_int()
assert cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.alone
@pytest.mark.gpu
def test_gpu_memory_of_another_process_is_found() -> None:
    before, pipe = Counter(footprint.take()), subprocess.PIPE
    command = [sys.executable, "-c", CONTEXT]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert footprint.GPU in footprint.growth(before, footprint.take())
        process.communicate()
    assert footprint.GPU not in footprint.settled(before)


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_an_engine_that_runs_is_found_and_a_closed_one_leaves_nothing() -> None:
    before = left_behind()
    engine = Engine.launch()
    try:
        with pytest.raises(AssertionError) as caught:
            assert_nothing_left(before, wait_s=0.2)
        for what in ("ray::GpuExecutor", "ray::CpuExecutor", "ray::Predictor", "hotcold-exchange"):
            assert f"process {what}" in str(caught.value) or f"memfd:{what}" in str(caught.value)
        for what in ("thread hotcold-supervisor", "mapping memfd:hotcold-kv", "pidfd", "actor"):
            assert what in str(caught.value)
    finally:
        engine.close()
    assert_nothing_left(before)  # though the engine is still held
    engine.close()
