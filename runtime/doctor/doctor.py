"""`hotcold doctor`: what this machine offers, what is badly set, and how to fix it.

Runs the checks of the machine (probes.py, gpu_probe.py) and those of the installation: Ray, torch,
a compiler, the cache of converted models. Changes nothing, and imports neither Ray nor torch.
"""

import importlib.metadata
import importlib.util
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from hotcold.native.errors import ConfigError
from hotcold.runtime.doctor import gpu_probe, probes, ray_probe
from hotcold.runtime.doctor.probes import Check, Machine
from hotcold.runtime.model.checkpoints.cache import cache_folder
from hotcold.runtime.units import format_bytes

RAY_AT_LEAST = (2, 50)
CACHE_BYTES = 1 << 30


def python_packages(machine: Machine) -> list[Check]:
    """Ray and torch, by their metadata."""
    return [_ray(), _torch()]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _ray() -> Check:
    version = _version("ray")
    numbers = tuple(int(part) for part in re.findall(r"\d+", version or "")[:2])
    if numbers < RAY_AT_LEAST:
        return Check("Ray", "fail", version or "not installed", "pip install 'ray>=2.50'")
    # What the extra `default` brings; without it there is no dashboard and no `ray job submit`.
    if importlib.util.find_spec("aiohttp") and importlib.util.find_spec("opencensus"):
        return Check("Ray", "ok", f"{version} with ray[default]")
    mend = "pip install 'ray[default]', for the dashboard and `ray job submit`"
    return Check("Ray", "ok", f"{version} without ray[default]", mend)


def _torch() -> Check:
    version = _version("torch")
    if version is None:
        return Check("torch", "fail", "not installed", "pip install torch")
    spec = importlib.util.find_spec("torch")
    cuda = ""
    if spec is not None and spec.origin:
        try:
            text = Path(spec.origin).with_name("version.py").read_text()
        except OSError:
            text = ""
        found = re.search(r"^cuda\b[^=]*= *'([^']+)'", text, re.MULTILINE)
        cuda = f", built for CUDA {found[1]}" if found else ", built for the CPU"
    return Check("torch", "ok", f"{version}{cuda}")


def compiler(machine: Machine) -> list[Check]:
    """A C compiler: an installed hotcold runs without one, but its kernels cannot be changed."""
    path = machine.env.get("PATH", "")
    found = next((c for c in ("cc", "gcc", "clang") if shutil.which(c, path=path)), None)
    if found is None:
        mend = "install gcc or clang, if you want to change kernels"
        return [Check("C compiler", "ok", "none", mend)]
    return [Check("C compiler", "ok", found)]


def cache(machine: Machine) -> list[Check]:
    """The folder of converted models: can it be written, is there room."""
    try:
        folder = cache_folder()
    except ConfigError as error:
        return [Check("cache", "fail", str(error), "export HOTCOLD_CACHE=/a/folder")]
    place = probes.nearest(folder)
    mend = "export HOTCOLD_CACHE=/a/folder/that/can/be/written"
    if not probes.writable(place):
        # Models that are converted already can still be read.
        state: probes.State = "warn" if any(folder.glob("bundles/*/bundle.json")) else "fail"
        return [Check("cache", state, f"{folder}: {place} cannot be written", mend)]
    free = shutil.disk_usage(place).free
    found = f"{folder}, {format_bytes(free)} free"
    if free < CACHE_BYTES:
        mend = "make room, or export HOTCOLD_CACHE to a folder on another disk"
        return [Check("cache", "warn", found, mend)]
    return [Check("cache", "ok", found)]


PROBES: tuple[Callable[[Machine], list[Check]], ...] = (
    probes.instruction_sets,
    probes.cores,
    probes.priorities,
    probes.main_memory,
    probes.huge_pages,
    probes.shared_memory,
    ray_probe.starting,
    gpu_probe.gpus,
    cache,
    python_packages,
    compiler,
)


def examine(machine: Machine | None = None) -> list[Check]:
    """Run every probe."""
    machine = machine or Machine()
    return [check for probe in PROBES for check in probe(machine)]
