"""A private MPS daemon and its guard, with a stand-in for it: whoever dies, nothing is left."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import fake_mps

from hotcold.native.errors import BackendError
from hotcold.native.gpu import mps
from hotcold.native.gpu.mps import Daemon

WAIT_S = 10.0


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No folder, no process of ours after any test."""
    before = folders()
    yield
    within(lambda: folders() == before, "a folder is left")


def folders() -> set[Path]:
    places = {tempfile.gettempdir(), "/tmp"}
    return {path for at in places for path in Path(at).glob("hotcold-mps-*")}


def within(reached: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not reached():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def members(folder: str) -> list[int]:
    """Control process and server, as the stand-in wrote them down."""
    return [int(Path(folder, name).read_text()) for name in ("pid", "server")]


def assert_gone(pids: list[int]) -> None:
    within(lambda: all(map(is_gone, pids)), "a process is left")


def test_it_runs_until_it_is_closed(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mps.PIPES, "/nowhere/of/somebody/else")
    fake_mps.install(programs)
    with Daemon() as daemon:
        assert daemon.is_running
        assert daemon.environment[mps.PIPES] == daemon.folder != os.environ[mps.PIPES]
        assert Path(daemon.environment[mps.LOGS]).is_dir()
        assert Path(daemon.folder).stat().st_mode & 0o077 == 0
        pids = members(daemon.folder)
        assert mps._members(daemon.folder) == set(pids)
    assert not daemon.is_running
    assert not Path(daemon.folder).exists()
    assert all(map(is_gone, [*pids, daemon.pid]))
    daemon.close()


def test_two_know_nothing_of_each_other(programs: Path) -> None:
    fake_mps.install(programs)
    with Daemon() as first:
        with Daemon() as second:
            assert first.folder != second.folder
            assert not mps._members(first.folder) & mps._members(second.folder)
        assert first.is_running
        assert not any(map(is_gone, members(first.folder)))


@pytest.mark.parametrize("victim", [0, 1], ids=["control", "server"])
def test_a_killed_daemon(programs: Path, victim: int) -> None:
    fake_mps.install(programs)
    daemon = Daemon()
    pids = members(daemon.folder)
    time.sleep(2 * mps.SERVER_S)  # the guard has seen the server
    os.kill(pids[victim], signal.SIGKILL)
    within(lambda: not daemon.is_running, "the guard did not notice")  # by which others learn of it
    assert_gone(pids)
    assert not Path(daemon.folder).exists()
    daemon.close()


def test_a_killed_guard(programs: Path) -> None:
    fake_mps.install(programs)
    daemon = Daemon()
    pids = members(daemon.folder)
    os.kill(daemon.pid, signal.SIGKILL)
    within(lambda: not daemon.is_running, "the guard lives")
    within(lambda: is_gone(pids[0]), "the control process outlived its guard")
    daemon.close()
    assert_gone(pids)
    assert not Path(daemon.folder).exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_owner(programs: Path, number: int) -> None:
    fake_mps.install(programs)
    code = (
        "import time; from hotcold.native.gpu.mps import Daemon; d = Daemon(); "
        "print(d.pid, d.folder, flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    guard, folder = owner.stdout.readline().split()
    pids = members(folder)
    owner.send_signal(number)
    owner.communicate()
    assert_gone([int(guard), *pids])
    assert not Path(folder).exists()


def test_it_outlives_the_thread_that_made_it(programs: Path) -> None:
    fake_mps.install(programs)
    made: list[Daemon] = []
    thread = threading.Thread(target=lambda: made.append(Daemon()))
    thread.start()
    thread.join()
    time.sleep(0.3)
    with made[0] as daemon:
        assert daemon.is_running
        assert not any(map(is_gone, members(daemon.folder)))


def test_a_daemon_that_does_not_start_says_why(programs: Path) -> None:
    fake_mps.install(programs, begin="sys.exit('An instance of this daemon is already running')")
    with pytest.raises(BackendError, match="An instance of this daemon is already running"):
        Daemon()


def test_no_program_is_an_error(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(programs))
    assert mps.control_path() is None
    with pytest.raises(BackendError, match="nvidia-cuda-mps-control"):
        Daemon()


def test_one_that_does_not_quit_is_killed(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_mps.install(programs, quit_="sys.exit(0)")
    daemon = Daemon()
    pids = members(daemon.folder)
    began = time.monotonic()
    daemon.close()
    assert time.monotonic() - began < mps.QUIT_S + 2 * mps.KILL_S + 1
    assert_gone(pids)


def test_sockets_fit_below_a_long_temporary_folder(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_mps.install(programs)
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    with Daemon() as daemon:
        assert len(daemon.folder) <= mps.MAX_FOLDER
        assert daemon.folder.startswith("/tmp/")
