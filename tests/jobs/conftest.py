"""One cluster for all tests of jobs, and commands that are under way beside each other on it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.command import Ended
from support.ray_cluster import RAY, Cluster, running_cluster

TIMEOUT_S = 300
HOTCOLD = [sys.executable, "-m", "hotcold.actors.cli.main"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("aiohttp", reason="needs Ray's job client: pip install 'hotcold[jobs]'")
    with running_cluster() as running:
        yield running


@dataclass
class UnderWay:
    """Commands of one folder, each a process."""

    cluster: Cluster
    folder: Path
    processes: list["subprocess.Popen[str]"] = field(default_factory=list)

    def start(self, *command: str, **env: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env={**self.cluster.environment, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def submit(self, *words: str) -> "subprocess.Popen[str]":
        """`hotcold submit`, to the cluster that lacks hotcold."""
        return self.start(*HOTCOLD, "submit", "--address", self.cluster.address, *words)

    def ray_job(self, *words: str) -> "subprocess.Popen[str]":
        """`ray job`, as where hotcold is installed; it has to be told of the token."""
        command = (*RAY, "job", words[0], "--address", self.cluster.address, *words[1:])
        return self.start(*command, RAY_AUTH_MODE="token")


def ended(process: "subprocess.Popen[str]") -> Ended:
    out, err = process.communicate(timeout=TIMEOUT_S)
    return Ended(process.returncode, out, err)


@pytest.fixture(scope="session")
def under_way(cluster: Cluster) -> Iterator[Callable[[Path], UnderWay]]:
    made: list[UnderWay] = []

    def in_folder(folder: Path) -> UnderWay:
        made.append(UnderWay(cluster, folder))
        return made[-1]

    yield in_folder
    for process in (one for each in made for one in each.processes):
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, on the import path, is as good as an installed hotcold."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "hotcold").symlink_to(ROOT, target_is_directory=True)
    return folder
