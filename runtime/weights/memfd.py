"""Shared memory without a name: a sealed memfd, and how another process of the machine opens it.

Used by the exchange and the weight stores. It is sealed against changes of size, so that no process
gets SIGBUS because another one truncated it; anything that is not sealed is refused. Nothing shows
up in /dev/shm, and the kernel frees the memory with the last process that has it open or mapped.
"""

import errno
import fcntl
import os
from pathlib import Path

from hotcold.native.errors import LaunchError

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
FINISHED = SEALS | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL  # filled; it never changes again


def create_sealed(name: str, n_bytes: int) -> int:
    """Make a zeroed memfd of a size it keeps; the caller closes it. LaunchError: it is refused."""
    fd = -1
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, n_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise LaunchError(
            f"cannot make {n_bytes} bytes of shared memory ({name}): {error}"
        ) from error
    return fd


def finish(fd: int) -> None:
    """Seal a memfd against all writes; OSError (EBUSY) where a writable mapping of it exists."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, FINISHED & ~SEALS)


def find_finished(name: str, n_bytes: int) -> int | None:
    """A read-only descriptor of a finished memfd that any process of this user has open.

    Looks through /proc, this process first, so that it needs no register that could be stale: what
    is found is alive, and who has it keeps it. None: nobody has one.
    """
    user, wanted = os.geteuid(), f"/memfd:{name} (deleted)"
    own = str(os.getpid())
    pids = sorted((e for e in os.listdir("/proc") if e.isdigit()), key=lambda pid: pid != own)
    for folder in (Path("/proc") / pid / "fd" for pid in pids):
        try:
            if folder.stat().st_uid != user:
                continue
            paths = [folder / fd for fd in os.listdir(folder)]
        except OSError:
            continue  # ended meanwhile, or not ours to read
        for path in paths:
            try:
                if os.readlink(path) != wanted:
                    continue
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError:
                continue
            if _is_finished(fd, user, n_bytes):
                return fd
            os.close(fd)
    return None


def _is_finished(fd: int, user: int, n_bytes: int) -> bool:
    try:
        stat = os.fstat(fd)
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & FINISHED == FINISHED
    except OSError:
        return False  # something else by that name
    return sealed and stat.st_uid == user and stat.st_size == n_bytes


def check_sealed(fd: int, what: str) -> None:
    """Raise LaunchError unless fd is a memfd whose size is sealed."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise LaunchError(f"descriptor {fd} is not the {what}: not a memfd ({error})") from error
    if seals & SEALS != SEALS:
        raise LaunchError(f"descriptor {fd} is not the {what}: its size is not sealed")


def open_sealed(pid: int, fd: int, what: str) -> int:
    """Open descriptor fd of process pid, a sealed memfd, as a new descriptor of this process.

    Raises:
        LaunchError: the process or its descriptor is gone, out of reach, or something else.
    """
    if pid < 1 or fd < 0:
        raise LaunchError(f"cannot open the {what}: no descriptor {fd} of process {pid}")
    try:
        own = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        reason = "process or descriptor is gone" if error.errno == errno.ENOENT else str(error)
        raise LaunchError(
            f"cannot open the {what}, descriptor {fd} of process {pid} ({reason}); actors must run "
            "on the driver's machine, as its user and in its PID namespace"
        ) from error
    try:
        check_sealed(own, what)
    except LaunchError:
        os.close(own)
        raise
    return own
