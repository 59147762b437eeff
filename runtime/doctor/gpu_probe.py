"""What `hotcold doctor` can learn of GPUs without any CUDA library of its own.

Asks nvidia-smi where it is installed and libcuda by ctypes, in that order of trust; looks for MPS
and nvcc. A machine without a GPU is fine: its GPU executor runs on its CPU device.
"""

import ctypes
import os
import shutil
import subprocess

from hotcold.native.gpu.mps import CONTROL
from hotcold.runtime.doctor.probes import Check, Machine

QUERY = "--query-gpu=name,driver_version,memory.total"
LIBCUDA = "libcuda.so.1"
TIMEOUT_S = 20.0
HIDDEN = "libcuda reports error 100"  # CUDA_ERROR_NO_DEVICE


def gpus(machine: Machine) -> list[Check]:
    """Devices, driver and memory; MPS and nvcc only where there is a device."""
    listed, trouble = _smi(machine)
    driver = _libcuda()
    present = bool(listed) or (machine.root / "dev/nvidiactl").exists()
    if not present:
        return [Check("GPU", "ok", "none: the GPU executor runs on its CPU device")]
    shown = machine.env.get("CUDA_VISIBLE_DEVICES")
    if driver == HIDDEN and shown is not None:
        found = "; ".join([*listed, f"CUDA_VISIBLE_DEVICES={shown} hides all: the CPU device"])
        return [Check("GPU", "warn", found, "unset CUDA_VISIBLE_DEVICES, or name a GPU there")]
    if isinstance(driver, str) or trouble:
        found = "; ".join(text for text in (*listed, trouble, str(driver)) if text)
        mend = "reinstall the driver so that nvidia-smi works (containers: --gpus all)"
        return [Check("GPU", "warn", found, mend)]
    version = f"driver for CUDA {driver // 1000}.{driver % 1000 // 10}"
    return [
        Check("GPU", "ok", "; ".join([*listed, version])),
        _mps(machine),
        _nvcc(machine),
    ]


def _smi(machine: Machine) -> tuple[list[str], str]:
    """One line a GPU, and what went wrong."""
    program = shutil.which("nvidia-smi", path=machine.env.get("PATH", ""))
    if program is None:
        return [], "nvidia-smi is not on PATH"
    try:
        done = subprocess.run(
            [program, QUERY, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi does not answer ({type(error).__name__})"
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())[:160]
        return [], f"nvidia-smi fails: {said or f'exit code {done.returncode}'}"
    return lines, ""


def _libcuda() -> int | str:
    """CUDA version of the driver as the driver counts (12040), or what is wrong."""
    try:
        library = ctypes.CDLL(LIBCUDA)
    except OSError:
        return f"{LIBCUDA} cannot be loaded"
    version = ctypes.c_int()
    status = library.cuInit(0) or library.cuDriverGetVersion(ctypes.byref(version))
    return f"libcuda reports error {status}" if status else version.value


def _mps(machine: Machine) -> Check:
    program = shutil.which(CONTROL, path=machine.env.get("PATH", ""))
    running = "; a daemon runs already, and is left alone" if machine.processes(CONTROL) else ""
    if program is None:
        mend = f"install {CONTROL} for --predictor-process mps; without it the predictor is fused"
        return Check("MPS", "ok", f"{CONTROL} is not on PATH{running}", mend)
    return Check("MPS", "ok", f"{program}, for --predictor-process mps{running}")


def _nvcc(machine: Machine) -> Check:
    homes = [machine.env[key] for key in ("CUDA_HOME", "CUDA_PATH") if machine.env.get(key)]
    places = [machine.env.get("PATH", "")]
    places += [os.path.join(home, "bin") for home in (*homes, str(machine.root / "usr/local/cuda"))]
    found = shutil.which("nvcc", path=os.pathsep.join(places))
    if found:
        return Check("nvcc", "ok", found)
    mend = "install the CUDA toolkit, or set CUDA_HOME: GPU kernels are compiled at first use"
    return Check("nvcc", "warn", "not found", mend)
