"""The table of `hotcold compare`, for people: which columns there are, and what they mean.

Used by the command for the terminal and by page.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

from hotcold.actors.cli.common import output
from hotcold.actors.cli.compare.cases import format_budget
from hotcold.actors.cli.compare.runs import Row
from hotcold.runtime.hardware.machine_file import about

Columns = dict[str, Callable[[dict[str, Any]], str]]


def table(runs: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows for people; columns in which all are alike are left out."""
    names: Columns = {}
    for key in ("model", "vram", "step", "policy", "schedule"):
        if key == "policy" or len({run[key] for run in runs}) > 1:
            names[key] = _column(key, format_budget if key == "vram" else str)
    ran = any(run["decode_tokens_per_s"] is not None or run["refused"] for run in runs)
    measured: Columns = {}
    load = {"expected gpu neuron load": _column("predicted_gpu_neuron_load", output.percent)}
    if ran:
        load = {"gpu neuron load": _column("gpu_neuron_load", output.percent)}
        measured["tokens/s"] = _column("decode_tokens_per_s", _speed)
        if any(run["repeat"] > 1 for run in runs):
            measured["min..max"] = _spread
    names |= measured if runs[0]["on_gpu"] else load  # what ranks placements comes first
    names[f"{runs[0]['predicted_for']}*"] = _column("predicted_tokens_per_s", _speed)
    if any("speedup" in run for run in runs):
        names["speedup"] = lambda run: f"{run['speedup']:.2f} x" if "speedup" in run else "-"
    names |= load | measured
    if ran:
        names["gpu waits"] = _column("wait_share", output.percent)
        if not all(run["same_tokens"] for run in runs):
            names["same tokens"] = _same
    return list(names), [[show(run) for show in names.values()] for run in runs]


def _column(key: str, form: Callable[[Any], str]) -> Callable[[dict[str, Any]], str]:
    return lambda run: "-" if run[key] is None and key != "vram" else form(run[key])


def _same(run: dict[str, Any]) -> str:
    if run["refused"]:
        return "does not run here"
    return {None: "-", True: "yes", False: "NO"}[run["same_tokens"]]  # None: its turn did not come


def _speed(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def _spread(run: dict[str, Any]) -> str:
    ends = [run[f"decode_tokens_per_s_{end}"] for end in ("min", "max")]
    return "..".join(map(_speed, ends)) if run["repeat"] > 1 else "-"


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
            "tokens/s, measured here, do not rank placements: without a GPU both executors share"
            " the same cores, so an even split may win."
        )
    if any("speedup" in row.run for row in rows):
        by = "measured" if on_gpu else "by the cost model"
        lines.append(f"speedup: over the step +PO, {by} (paper, Figure 15).")
    if all(row.run["same_tokens"] for row in rows):
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
        if remark and not plan.hot_LN.any():
            case = f"{run['policy']} on {run['model']}, {format_budget(run['vram'])}"
            found.append(f"{case}: no neuron on the GPU: {remark}.")
    return list(dict.fromkeys(found))
