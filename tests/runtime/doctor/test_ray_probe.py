"""What keeps Ray from starting, and a port that is not Ray's: told at once, with the way out."""

import os
import resource
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from hotcold.runtime.doctor import ray_probe
from hotcold.runtime.doctor.probes import Check, Machine


def failed(env: dict[str, str]) -> Check:
    """The one check that fails."""
    bad = [check for check in ray_probe.starting(Machine(env=env)) if check.state == "fail"]
    assert len(bad) == 1 and bad[0].mend
    return bad[0]


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("/tmp/" + "x" * 90, "has 95 bytes, of which Ray's sockets leave it 39"),
        ("/tmp/" + "\u00e9" * 18, "has 41 bytes"),
        ("r", "is not an absolute path"),
        ("", "is not an absolute path"),
        ("/dev/null", "cannot be written (/dev/null)"),
        ("/dev/null/x", "cannot be written (/dev/null)"),
    ],
)
def test_a_folder_that_ray_cannot_use(name: str, folder: str, words: str) -> None:
    check = failed({name: folder})
    assert f"{name}={folder} {words}" in check.found
    assert "export RAY_TMPDIR" in check.mend


def test_the_longest_folder_is_the_one_that_ray_still_takes(tmp_path: Path) -> None:
    folder = "/tmp/".ljust(ray_probe.FOLDER_BYTES, "x")
    assert len(f"{folder}/{ray_probe.SOCKET}") == ray_probe.SOCKET_BYTES
    assert {c.state for c in ray_probe.starting(Machine(env={"RAY_TMPDIR": folder}))} == {"ok"}
    failed({"RAY_TMPDIR": folder + "x"})


class Usage(NamedTuple):
    free: int


@pytest.mark.parametrize("free", [0, 1 << 20])
def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(free))
    assert "free, Ray needs 16.0 MiB" in failed({}).found


@pytest.mark.parametrize("most", [64, 95])
def test_too_few_open_files(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda number: (most, most))
    check = failed({})
    assert f"may open {most} files" in check.found and "ulimit -n" in check.mend


@pytest.mark.parametrize(
    ("most", "state"), [(resource.RLIM_INFINITY, "ok"), (4096, "ok"), (256, "warn"), (96, "warn")]
)
def test_enough_open_files(monkeypatch: pytest.MonkeyPatch, most: int, state: str) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda number: (64, most))
    assert [check.state for check in ray_probe.starting(Machine(env={}))] == ["ok", state]


@contextmanager
def answering(text: bytes | None) -> Iterator[str]:
    """Address of a port that says so much to whoever comes; None: that takes no one."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            link, _ = server.accept()
            with link:
                link.sendall(text or b"")
                link.recv(100)

        thread = threading.Thread(target=serve)
        if text is not None:
            thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        if text is not None:
            thread.join()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not the port of Ray's head"),
        (b"HTTP/1.1 400 Bad Request\r\n", "not the port of Ray's head"),
        (None, "nobody answers within 0.5 s"),
        (bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), ""),
    ],
)
def test_what_answers(monkeypatch: pytest.MonkeyPatch, text: bytes | None, words: str) -> None:
    monkeypatch.setattr(ray_probe, "ANSWER_S", 0.5)
    with answering(text) as address:
        said = ray_probe.unreachable(address)
    assert (words in said) if words else (said == ""), said


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:9", "Connection refused"),
        ("127.0.0.1:99999999999", "nobody answers"),
        ("a..b:6379", "nobody answers"),
        ("nonsense", "HOST:PORT"),
        ("127.0.0.1:", "HOST:PORT"),
        (":6379", "HOST:PORT"),
    ],
)
def test_nobody_answers(address: str, words: str) -> None:
    assert words in ray_probe.unreachable(address)


def test_the_cluster_that_is_named(tmp_path: Path) -> None:
    env = {"RAY_TMPDIR": str(tmp_path)}
    file = tmp_path / "ray" / "ray_current_cluster"
    assert ray_probe.noted_address(env) == ("", "")
    file.parent.mkdir()
    file.write_text("10.0.0.1:6379\n")
    assert ray_probe.noted_address(env) == ("10.0.0.1:6379", str(file))
    assert ray_probe.noted_address({**env, "RAY_ADDRESS": "auto"})[1] == str(file)
    assert ray_probe.noted_address({**env, "RAY_ADDRESS": "local"}) == ("", "")
    assert ray_probe.noted_address({**env, "RAY_ADDRESS": "h:1"}) == ("h:1", "RAY_ADDRESS")
    os.truncate(file, 0)
    assert ray_probe.noted_address(env)[0] == ""
