"""The table of `hotcold compare`, for people: which columns there are, and what they mean.

Used by the command for the terminal and by page.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

from hotcold.actors.cli.common import output
from hotcold.actors.cli.compare.runs import Row
from hotcold.runtime.units import format_bytes


def table(runs: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows for people; columns in which all are alike are left out."""

    def varies(key: str) -> bool:
        return len({run[key] for run in runs}) > 1

    names: dict[str, Callable[[dict[str, Any]], str]] = {}
    if varies("model"):
        names["model"] = lambda run: run["model"]
    if varies("vram"):
        names["vram"] = lambda run: _budget(run["vram"])
    if varies("step"):
        names["step"] = lambda run: run["step"]
    names["policy"] = lambda run: run["policy"]
    if varies("schedule"):
        names["schedule"] = lambda run: run["schedule"]
    ran = any(run["decode_tokens_per_s"] is not None or run["refused"] for run in runs)
    if ran:
        names["tokens/s"] = lambda run: _number(run["decode_tokens_per_s"])
        names["min..max"] = _spread
    names[f"{runs[0]['predicted_for']}*"] = lambda run: _number(run["predicted_tokens_per_s"])
    if any("speedup" in run for run in runs):
        names["speedup"] = lambda run: f"{run['speedup']:.2f} x" if "speedup" in run else "-"
    if not ran:
        names["expected gpu load"] = lambda run: _share(run["predicted_gpu_neuron_load"])
    else:
        names["gpu neuron load"] = lambda run: _share(run["gpu_neuron_load"])
        names["gpu waits"] = lambda run: _share(run["wait_share"])
        names["same tokens"] = _same
    return list(names), [[show(run) for show in names.values()] for run in runs]


def _same(run: dict[str, Any]) -> str:
    if run["refused"]:
        return "does not run here"
    if run["same_tokens"] is None:
        return "-"  # its turn did not come
    return "yes" if run["same_tokens"] else "NO"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else output.percent(value)


def _spread(run: dict[str, Any]) -> str:
    low, high = run["decode_tokens_per_s_min"], run["decode_tokens_per_s_max"]
    return "-" if low is None or low == high else f"{low:.1f}..{high:.1f}"  # one run has none


def _budget(vram: str | int | None) -> str:
    return format_bytes(vram) if isinstance(vram, int) else vram or "default"


def explain(rows: Sequence[Row]) -> str:
    """What the columns are, below the table: which is measured and which is not."""
    hardware, on_gpu = rows[0].ready.hardware, rows[0].ready.on_gpu
    rates = "its measured rates" if hardware.measured else "its rates, none measured here"
    where = "tokens/s: measured here."
    if not any(row.measured.tokens_per_s for row in rows):
        where = "Nothing was run here."
    elif not on_gpu:
        where = "tokens/s: measured here, without a GPU: both executors share this CPU."
    lines = [
        where,
        f"{hardware.name}*: tokens/s by the cost model from {rates}; computed, not measured.",
        "gpu neuron load: share of the computed neurons that the GPU executor computes.",
    ]
    if any("speedup" in row.run for row in rows):
        by = "measured" if on_gpu else "by the cost model"
        lines.append(f"speedup: over the step +PO, {by} (paper, Figure 15).")
    if len({row.run["model"] for row in rows}) > 1 and isinstance(rows[-1].run["vram"], int):
        first, last = rows[0].run["model"], rows[-1].run["model"]
        lines.append(f"{last}: its budgets hold the same share of its neurons as {first}'s do.")
    return "\n".join(lines + _empty(rows))


def _empty(rows: Sequence[Row]) -> list[str]:
    """Why some cases have no neuron on the GPU, in their policies' words."""
    found = []
    for row in rows:
        run, plan = row.run, row.ready.plan
        remark = plan.remark.replace("\n", "; ")
        if remark and not (plan.device_LN == 0).any():
            case = f"{run['policy']} on {run['model']}, {_budget(run['vram'])}"
            found.append(f"{case}: no neuron on the GPU: {remark}.")
    return list(dict.fromkeys(found))
