"""Which measured hardware file is this machine's, so that users need not name it.

`hotcold hardware` writes its file into the user's cache, and commands without `--hardware` use it
from then on:

    <cache>/hardware/<key>.json

The key is there because a cache may be copied with a home folder, built into an image, or mounted
by several machines, and rates of another machine are worse than none. The key is a digest of what
the rates depend on: the system's machine id, CPU model, cores this process may use, kernels in
force, memory to the GiB, GPUs. It is in the file's name and again in its contents; a file whose
contents name another machine (a copy, a rename) is not used. Two clones of one virtual machine
share a key, and their rates. A changed affinity (taskset), CPU quota or HOTCOLD_CPU is another
machine: the rates would not hold.

Looked up by `prepare_model` and the offline commands. Measures nothing.
"""

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

from hotcold.native.errors import ConfigError, HotcoldError
from hotcold.native.gpu import nvml
from hotcold.runtime.hardware.machine_file import MachineFile, load_hardware
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.limits import processors
from hotcold.runtime.model.checkpoints.cache import cache_folder
from hotcold.runtime.weights import host_memory as memory

logger = logging.getLogger(__name__)


def identity(root: Path = Path("/")) -> dict[str, Any]:
    """What distinguishes this machine from others, plain data; `key` is the digest of the rest.

    The system's machine id goes into the key only: files are passed on, the id is nobody's concern.
    Asks the compiled kernels which of them are in force.
    """
    from hotcold.native.bindings.pool import active_cpu_variant

    here = processors(root)
    found: dict[str, Any] = {
        "cpu": _cpu_model(root),
        "cores": here.at_once,
        "kernels": active_cpu_variant(),
        "memory_gib": round(memory.meminfo(root).get("MemTotal", 0) / 2**30),
        "gpus": [gpu.name for gpu in nvml.gpus()],
    }
    try:
        id_ = (root / "etc/machine-id").read_text(errors="replace").strip()
    except OSError:
        id_ = ""
    quota = [] if here.quota is None else [here.quota]
    text = json.dumps([id_, found, *quota], sort_keys=True)
    return {**found, "key": hashlib.sha256(text.encode()).hexdigest()[:16]}


def _cpu_model(root: Path) -> str:
    try:
        text = (root / "proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return "unknown"
    found = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", text, re.M)
    return found[1].strip() if found else "unknown"


def own_path(key: str) -> Path:
    """Where the file of the machine with that key lies in the user's cache.

    Raises:
        ConfigError: there is no place for a cache.
    """
    return cache_folder() / "hardware" / f"{key}.json"


def this_machine(threads: int | None = None) -> HardwareProfile:
    """This machine's measured rates; round figures where it was not measured.

    A file that cannot be used is logged and not an error: nobody asked for it.

    Args:
        threads: of each executor; None: all cores.
    """
    key = identity()["key"]
    try:
        path = own_path(key)
    except ConfigError:
        return HardwareProfile.unmeasured()
    if not path.is_file():
        return HardwareProfile.unmeasured()
    try:
        file = MachineFile.load(path)
    except HotcoldError as error:
        logger.warning("not used: %s; measure again with `hotcold hardware`", error)
        return HardwareProfile.unmeasured()
    if file.machine.get("key") != key:
        logger.warning(
            "not used: %s was measured on another machine; measure this one with "
            "`hotcold hardware`",
            path,
        )
        return HardwareProfile.unmeasured()
    return file.with_threads(threads)


def chosen_hardware(name: str | None, threads: int | None = None) -> HardwareProfile:
    """The profile that --hardware names; without a name, this machine's.

    Raises:
        ConfigError: neither a file nor a reference machine.
        CheckpointError: a file that does not hold a profile.
    """
    return this_machine(threads) if name is None else load_hardware(name, threads)
