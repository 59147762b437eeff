"""What other programs did while something was measured here, which makes rates too low."""

import os
import time
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
BUSY = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
NOT_BUSY = ("idle", "iowait")


class OtherWork:
    """Counts from its creation on; what this process and its ended children do is left out."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._stat = root / "proc/stat"
        self._begin = self._now()

    def cores(self) -> float:
        """Cores that others kept busy on average, the host of a virtual machine too (steal).

        0 where the system does not say.
        """
        all_s, own_s, now = (b - a for a, b in zip(self._begin, self._now(), strict=True))
        return max(0.0, (all_s - own_s) / now) if now > 0 else 0.0

    def _now(self) -> tuple[float, float, float]:
        """Seconds that all cores were busy, that this process took of them, and of the clock."""
        own_s = sum(os.times()[:4])
        try:
            words = self._stat.read_text().split("\n", 1)[0].split()[1 : 1 + len(BUSY)]
            times = dict(zip(BUSY, map(int, words), strict=True))
        except (OSError, ValueError):
            return own_s, own_s, time.monotonic()
        busy = sum(ticks for name, ticks in times.items() if name not in NOT_BUSY)
        return busy * TICK_S, own_s, time.monotonic()
