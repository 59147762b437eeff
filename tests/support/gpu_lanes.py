"""`make test-gpu`: every GPU test in two lanes, one after the other, and one table of counts.

Tests marked `alone` count the device's memory, measure it or start actors on it; all others run in
several processes on the same GPU. Needs what the tests need, pytest-xdist among it.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

from hotcold.native.errors import HotcoldError
from hotcold.native.gpu import cuda_plugin, nvml

WORKERS = os.environ.get("GPU_WORKERS", str(max(1, min(8, len(os.sched_getaffinity(0)) // 2))))
LANES = {
    "alone": ["-m", "gpu and alone", "--durations", "15"],
    "side by side": ["-m", "gpu and not alone", "-n", WORKERS, "--dist", "worksteal"],
}
COUNTS = ("passed", "failed", "skipped")
REPORTS = Path("build/test-gpu")
MARK = "pytest.mark.gpu"  # a file without it is not collected: no time, and no extra that it needs


def run(name: str, options: list[str]) -> tuple[dict[str, int], bool]:
    """Run one lane; its counts, and whether pytest called it a success."""
    report = REPORTS / f"{name.replace(' ', '-')}.xml"
    report.unlink(missing_ok=True)
    files = [str(p) for p in sorted(Path("tests").rglob("test_*.py")) if MARK in p.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *files]
    done = subprocess.run([*command, f"--junitxml={report}"], check=False)
    counts = dict.fromkeys(COUNTS, 0)
    if report.exists():
        for suite in ElementTree.parse(report).iter("testsuite"):
            wrong = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            skipped = int(suite.get("skipped", 0))
            counts["failed"] += wrong
            counts["skipped"] += skipped
            counts["passed"] += int(suite.get("tests", 0)) - wrong - skipped
    return counts, done.returncode == 0


def main() -> None:
    if not nvml.gpus():
        sys.exit("make test-gpu needs an NVIDIA GPU; there is none on this machine")
    try:
        os.environ["HOTCOLD_CUDA_PLUGIN"] = str(cuda_plugin.required().path)
    except HotcoldError as error:
        sys.exit(f"a GPU is there and no plug-in for it: {error}")
    REPORTS.mkdir(parents=True, exist_ok=True)
    rows, good, total = [], True, dict.fromkeys(COUNTS, 0)
    for name, options in LANES.items():
        began = time.monotonic()
        counts, passed = run(name, options)
        rows.append((name, counts, time.monotonic() - began))
        good = good and passed
        total = {key: total[key] + counts[key] for key in COUNTS}
    rows.append(("total", total, sum(took for _, _, took in rows)))
    print(f"\n{'GPU tests':<14}" + "".join(f"{key:>9}" for key in COUNTS) + "  seconds")
    for name, counts, took in rows:
        print(f"{name:<14}" + "".join(f"{counts[key]:>9}" for key in COUNTS) + f"{took:>9.0f}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
