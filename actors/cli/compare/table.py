"""The table of `hotcold compare`, for people: which columns there are, and what they mean.

Used by the command for the terminal and by page.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

from hotcold.actors.cli.common import output
from hotcold.actors.cli.compare.runs import Row
from hotcold.runtime.hardware.machine_file import about
from hotcold.runtime.units import format_bytes

Columns = dict[str, Callable[[dict[str, Any]], str]]


def table(runs: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows for people; columns in which all are alike are left out."""

    def varies(key: str) -> bool:
        return len({run[key] for run in runs}) > 1

    names: Columns = {}
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
    load: Columns = {}
    measured: Columns = {}
    if ran:
        load["gpu neuron load"] = lambda run: _share(run["gpu_neuron_load"])
        measured["tokens/s"] = lambda run: _number(run["decode_tokens_per_s"])
        measured["min..max"] = _spread
    else:
        load["expected gpu load"] = lambda run: _share(run["predicted_gpu_neuron_load"])
    names |= measured if runs[0]["on_gpu"] else load
    names[f"{runs[0]['predicted_for']}*"] = lambda run: _number(run["predicted_tokens_per_s"])
    if any("speedup" in run for run in runs):
        names["speedup"] = lambda run: f"{run['speedup']:.2f} x" if "speedup" in run else "-"
    names |= load | measured  # what ranks placements comes first
    if ran:
        names["gpu waits"] = lambda run: _share(run["wait_share"])
    if not _all_same(runs):
        names["same tokens"] = _same
    return list(names), [[show(run) for show in names.values()] for run in runs]


def _all_same(runs: Sequence[dict[str, Any]]) -> bool:
    return all(run["same_tokens"] for run in runs)


def _same(run: dict[str, Any]) -> str:
    if run["refused"]:
        return "does not run here"
    if run["same_tokens"] is None:
        return "-"  # its turn did not come
    return "yes" if run["same_tokens"] else "NO"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else output.percent(value)


def _spread(run: dict[str, Any]) -> str:
    low, high = run["decode_tokens_per_s_min"], run["decode_tokens_per_s_max"]
    return (
        "-" if low is None or low == high else f"{_number(low)}..{_number(high)}"
    )  # one run has none


def _budget(vram: str | int | None) -> str:
    return format_bytes(vram) if isinstance(vram, int) else vram or "default"


def explain(rows: Sequence[Row]) -> list[str]:
    """What the columns are, below the table: which is measured and which is not."""
    hardware, on_gpu = rows[0].ready.hardware, rows[0].ready.on_gpu
    rates = "measured rates" if hardware.measured else "rates"
    lines = [
        "gpu neuron load: share of the computed neurons that the GPU executor computes.",
        f"{hardware.name}*: tokens/s that the cost model computes from the {rates} of "
        f"{about(hardware.name) or hardware.name}; not measured.",
    ]
    if not any(row.measured.tokens_per_s for row in rows):
        lines.insert(0, "Nothing was run here.")
    elif not on_gpu:
        lines.append(
            "tokens/s, measured here, do not rank placements: without a GPU both executors share the"
            " same cores, so an even split wins."
        )
    if any("speedup" in row.run for row in rows):
        by = "measured" if on_gpu else "by the cost model"
        lines.append(f"speedup: over the step +PO, {by} (paper, Figure 15).")
    if _all_same([row.run for row in rows]):
        lines.append("All cases gave the same tokens.")
    for model in dict.fromkeys(r.run["model"] for r in rows if isinstance(r.run["vram"], int)):
        lines.append(f"{model}: its budget holds the same share of neurons as the first model's.")
    return lines + _empty(rows)


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
