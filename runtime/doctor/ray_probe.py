"""What keeps Ray from starting here or from being reached, found without asking Ray.

Ray itself tries for minutes. Read by `hotcold doctor`, and by actors/cluster before Ray starts or
is joined. Imports no Ray.
"""

import os
import resource
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

from hotcold.runtime.doctor.probes import Check, Machine, nearest, writable
from hotcold.runtime.units import format_bytes

SOCKET_BYTES = 107  # of a Unix socket's path, on Linux
SOCKET = "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"  # below RAY_TMPDIR
FOLDER_BYTES = SOCKET_BYTES - len(SOCKET) - 1
SESSION_BYTES = 16 << 20  # logs of one session
FILES, FILES_ADVISED = 96, 1024  # measured on two cores: a limit of 64 ends after two minutes
ANSWER_S = 3.0
# A client's first words in HTTP/2, which all of Ray's own servers speak, and the answer's type.
HTTP2, SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), b"\4"


def temp_folder(env: Mapping[str, str]) -> tuple[str, str]:
    """Folder in which Ray makes its own, and the variable that names it."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in env), "")
    return env.get(name, "/tmp"), name


def noted_address(env: Mapping[str, str]) -> tuple[str, str]:
    """Address of the cluster to join and what names it; both empty where none is named.

    What `ray start` notes in a file stays there when the cluster is killed.
    """
    address = env.get("RAY_ADDRESS", "")
    if address not in ("", "auto"):
        return ("", "") if address == "local" else (address, "RAY_ADDRESS")
    file = Path(temp_folder(env)[0], "ray", "ray_current_cluster")
    try:
        return file.read_text().strip(), str(file)
    except (OSError, ValueError):
        return "", ""


def starting(machine: Machine) -> list[Check]:
    """The folder and the open files that a Ray of this machine needs."""
    return [_folder(machine.env), _open_files()]


def _folder(env: Mapping[str, str]) -> Check:
    folder, name = temp_folder(env)
    place, size = nearest(Path(folder, "ray")), len(os.fsencode(folder))
    trouble = ""
    if not os.path.isabs(folder):
        trouble = "is not an absolute path"
    elif size > FOLDER_BYTES:
        trouble = f"has {size} bytes, of which Ray's sockets leave it {FOLDER_BYTES}"
    elif not writable(place):
        trouble = f"cannot be written ({place})"
    elif (free := shutil.disk_usage(place).free) < SESSION_BYTES:
        trouble = f"has {format_bytes(free)} free, Ray needs {format_bytes(SESSION_BYTES)}"
    found = f"{name}={folder}" if name else folder
    if trouble:
        mend = "export RAY_TMPDIR to a short path with room that can be written, such as /tmp"
        return Check("Ray's folder", "fail", f"{found} {trouble}", mend)
    return Check("Ray's folder", "ok", found)


def _open_files() -> Check:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # Ray raises the other limit itself
    if most == resource.RLIM_INFINITY or most >= FILES_ADVISED:
        return Check("open files", "ok", "unlimited" if most < 0 else str(most))
    needs = f"a process may open {most} files, Ray needs {FILES} or more"
    mend = "ulimit -n 8192 (systemd: LimitNOFILE=8192; Docker: --ulimit nofile=8192)"
    return Check("open files", "fail" if most < FILES else "warn", needs, mend)


def unreachable(address: str) -> str:
    """Why no server of Ray answers at HOST:PORT; "" where one does."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return "this is not HOST:PORT, such as 127.0.0.1:6379"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_S) as link:
            link.sendall(HTTP2)
            answer = link.recv(9)
    except TimeoutError:
        return f"nobody answers within {ANSWER_S:g} s"
    except (OSError, ValueError, OverflowError) as error:
        return f"nobody answers ({getattr(error, 'strerror', None) or error})"
    return (
        "" if answer[3:4] == SETTINGS else "what answers there is not the port of Ray's head (6379)"
    )
