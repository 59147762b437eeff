"""Joining Ray: what hinders is said in a sentence, soon; workers import what their driver does."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from hotcold.actors import Engine
from hotcold.actors.cluster import clusters, ray_cluster
from hotcold.native.errors import LaunchError

DEAD = "127.0.0.1:9"


@pytest.fixture
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No Ray on this machine, as far as it can be told; Ray's folder."""
    if ray.is_initialized():
        pytest.skip("this process is in a Ray, which would be used")
    monkeypatch.setattr(clusters, "ray_heads", lambda: [])
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray"


def refused(action: object, *words: str) -> None:
    begin = time.monotonic()
    with pytest.raises(LaunchError) as raised:
        action()  # type: ignore[operator]
    assert time.monotonic() - begin < 10
    for word in words:
        assert word in str(raised.value), raised.value


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (DEAD, ["nobody answers (Connection refused)", "ray start --head"]),
        ("127.0.0.1", ["HOST:PORT"]),
        ("ray://127.0.0.1:10001", ["hotcold submit"]),
        ("auto", ["no Ray cluster runs on this machine", "RAY_ADDRESS"]),
    ],
)
@pytest.mark.parametrize("way", ["address", "RAY_ADDRESS", "connect", "launch"])
def test_an_address_that_leads_nowhere(
    nothing_runs: Path, monkeypatch: pytest.MonkeyPatch, address: str, words: list[str], way: str
) -> None:
    words = words if address == "auto" else [f"cannot join the Ray cluster at {address}", *words]
    if way == "connect":
        refused(lambda: Engine.connect("lab", address=address), *words)
    elif way == "launch":  # before the model is looked at
        refused(lambda: Engine.launch("/no/model", address=address), *words)
    elif way == "address":
        refused(lambda: ray_cluster.join(address), *words)
    else:
        monkeypatch.setenv("RAY_ADDRESS", address)
        refused(lambda: ray_cluster.join(None), *words)


@pytest.mark.parametrize("address", [None, "local", "auto"])
def test_connecting_starts_no_cluster(nothing_runs: Path, address: str | None) -> None:
    refused(lambda: Engine.connect("lab", address=address), "no Ray cluster runs")
    assert not ray.is_initialized()


def test_a_cluster_that_was_killed(
    nothing_runs: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (nothing_runs / "ray_current_cluster").write_text(DEAD)
    refused(lambda: ray_cluster.join("auto"), DEAD, "nobody answers")
    refused(lambda: Engine.connect("lab"), DEAD, "nobody answers")
    check = clusters.noted_cluster()
    assert check.state == "warn" and "ray_current_cluster names" in check.found
    assert "ray stop" in check.mend
    monkeypatch.setenv("RAY_ADDRESS", DEAD)
    check = clusters.noted_cluster()
    assert check.state == "fail" and check.found.startswith("RAY_ADDRESS names 127.0.0.1:9")
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(clusters, "starting", lambda machine: [])
    with caplog.at_level("INFO", "hotcold"):
        assert ray_cluster.look("", say=True) is None  # a Ray of our own, then
    assert f"not joining the Ray cluster at {DEAD}" in caplog.text


@pytest.mark.parametrize("folder", ["/tmp/" + "x" * 90, "/dev/null", "r"])
def test_a_folder_in_which_ray_cannot_start(
    nothing_runs: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", folder)
    refused(lambda: ray_cluster.join("local"), f"cannot start Ray: RAY_TMPDIR={folder}", "export")


@pytest.mark.parametrize(
    ("name", "version", "level", "other"),
    [
        ("ray", "2.9.3", "patch", True),
        ("ray", ray.__version__, "patch", False),
        ("python", "3.9.1", "patch", True),
        ("python", "3.9.1", "minor", True),
        ("python", f"3.{sys.version_info[1]}.99", "patch", True),
        ("python", f"3.{sys.version_info[1]}.99", "minor", False),
    ],
)
def test_another_version(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str, level: str, other: bool
) -> None:
    monkeypatch.setenv("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", level)
    said = clusters._other_versions({f"{name}_version": version})
    assert (f"it runs {name.capitalize()} {version}, this process " in said) is other


@pytest.mark.parametrize(
    ("address", "here"),
    [("127.0.0.1:1", True), ("http://127.0.0.1:8265", True), ("192.0.2.77:6379", False)],
)
def test_a_token_is_shown_to_clusters_of_this_machine_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str, here: bool
) -> None:
    monkeypatch.setattr(clusters, "Config", SimpleNamespace(initialize=lambda text: None))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "x")  # what it was comes back in the end
        monkeypatch.delenv(name)
    assert not clusters.use_token(address)  # there is none
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("ab" * 32)
    assert clusters.use_token(address) is here
    assert os.environ.get("RAY_AUTH_MODE") == ("token" if here else None)


@pytest.mark.parametrize("home", ["/dev/null/none", "/dev/null", None])
def test_a_token_without_a_home_to_keep_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str | None
) -> None:
    monkeypatch.setenv("HOME", home or str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    clusters.have_token()
    assert len(os.environ.get("RAY_AUTH_TOKEN", "")) == (64 if home else 0)


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        (["/bin", "LIBRARY", "/work"], []),  # a console script; a policy's folder comes last
        (["/work", "LIBRARY"], ["/work"]),  # python -m: the driver has it first itself
        (["", "LIBRARY"], ["/work"]),  # python -c
        (["/script", "LIBRARY"], ["/script"]),
    ],
)
def test_folders_that_workers_search_first(
    monkeypatch: pytest.MonkeyPatch, path: list[str], kept: list[str]
) -> None:
    library = ray_cluster.sysconfig.get_path("stdlib")
    monkeypatch.setattr(sys, "path", [library if at == "LIBRARY" else at for at in path])
    monkeypatch.setattr(os, "getcwd", lambda: "/work")
    found = ray_cluster._SearchPath()
    found.extend(["/script", "/work"])
    assert found == kept


COMMAND = """
import sys
del sys.path[0]  # as where the script lies beside Python
from hotcold.actors.cli.main import main
sys.exit(main(["generate", "Hello", "--max-tokens", "2"]))
"""


@pytest.mark.ray
def test_modules_of_the_working_directory_hide_no_library(one_ray: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for name in ("numpy", "tokenizers", "safetensors", "torch", "queue"):
        (work / f"{name}.py").write_text("raise RuntimeError('the one in the working directory')")
    (tmp_path / "hotcold.py").write_text(COMMAND)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "hotcold.py")],
        cwd=work,
        env={**os.environ, "RAY_ADDRESS": one_ray},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.ray
@pytest.mark.parametrize("version", ["2.9.3", "3.0.0"])
def test_a_real_cluster_of_another_version(
    one_ray: str, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    assert clusters.refusal(one_ray) == ""
    own = ray.__version__
    monkeypatch.setattr(ray, "__version__", version)
    assert f"it runs Ray {own}, this process {version}" in clusters.refusal(one_ray)
