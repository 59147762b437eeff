"""The pictures of a comparison: speeds, loads, waits, a token of each case, what lies where.

A group is what was compared on one model under one budget; each picture is of a whole group, its
cases from top to bottom in the order of the table. Drawn for `hotcold compare --out`; the numbers
come from there, nothing is measured here.
"""

from dataclasses import dataclass
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hotcold.runtime.offline.pictures.draw import BLUE, GREY, VERMILLION, empty_axes, titled
from hotcold.runtime.offline.pictures.timeline import COLOURS, draw_lanes, legend
from hotcold.runtime.tracing.timeline import Pass

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 64  # columns of a map: as many equal parts of a layer's neurons, hottest first
MAX_TOKENS = 24  # timelines in one picture
CPU_COLOUR = COLOURS["cold"]


@dataclass(frozen=True)
class Entry:
    """One case.

    Args:
        label: policy and schedule.
        speeds: tokens/s of each run; empty where it could not run.
        predicted: tokens/s by the cost model.
        load: measured share of the active neurons that the GPU executor computed, or None.
        predicted_load: the same as expected from the profile.
        waits_us: microseconds a token that each executor waited.
        token: its token of median length, or None.
        hot_LB: share of the neurons of each part of a layer that are on the GPU.
    """

    label: str
    speeds: tuple[float, ...]
    predicted: float
    load: float | None
    predicted_load: float
    waits_us: dict[str, float]
    token: Pass | None
    hot_LB: NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """What was compared on one model under one budget.

    Args:
        caption: model, budget and machine.
        hardware: whose speed the cost model computed.
        entries: the cases.
        on_gpu: whether they ran on a GPU; without one, measured speeds do not rank them.
    """

    caption: str
    hardware: str
    entries: tuple[Entry, ...]
    on_gpu: bool

    @property
    def ran(self) -> bool:
        """Whether anything was measured."""
        return any(entry.speeds for entry in self.entries)


def hot_map(
    device_LN: NDArray[np.int8], activations_LN: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Share of the neurons on device 0 [L, BINS], each layer's neurons ranked hottest first."""
    order_LN = np.argsort(-activations_LN, axis=1, kind="stable")
    ranked_LN = np.take_along_axis(device_LN == 0, order_LN, axis=1)
    bins = min(BINS, ranked_LN.shape[1])
    parts = np.array_split(ranked_LN, bins, axis=1)
    return np.stack([part.mean(axis=1) for part in parts], axis=1)


def _height(group: Group) -> float:
    return 1.7 + 0.36 * len(group.entries)


def _rows(axes: "Axes", group: Group) -> "NDArray[np.int64]":
    """One row a case, the first at the top."""
    rows = np.arange(len(group.entries))
    axes.set_yticks(rows, [entry.label for entry in group.entries])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(False, axis="y")
    return rows


def draw_speeds(group: Group) -> "Figure":
    """Tokens/s by the cost model, and as measured, with their spread; to the left what ranks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, _height(group)), layout="constrained")
    sides = figure.subplots(1, 2 if group.ran else 1, sharey=True, squeeze=False)[0]
    model, here = sides[:: -1 if group.on_gpu else 1][[0, -1]]
    if group.ran:
        titled(here, "Tokens/s, measured here", group.caption)
    machine = shorten(group.hardware, 40, placeholder=" ...")  # half of the figure is its room
    titled(model, "Tokens/s, cost model", f"{machine}: computed, not measured")
    for axes in sides:
        rows = _rows(axes, group)
        axes.set_xlabel("tokens/s")
    model.barh(rows, [entry.predicted for entry in group.entries], 0.6, color=GREY, alpha=0.6)
    for row, entry in zip(rows, group.entries if group.ran else (), strict=False):
        if not entry.speeds:
            here.annotate("not run here", (0, row), (6, -3), textcoords="offset points")
            continue
        middle, low, high = float(np.median(entry.speeds)), min(entry.speeds), max(entry.speeds)
        here.barh(row, middle, 0.6, color=VERMILLION, alpha=0.85)
        here.plot([low, high], [row, row], color="black", linewidth=1.6)
        here.plot(entry.speeds, [row] * len(entry.speeds), "|", color="black", markersize=9)
    here.set_xlim(left=0)
    sides[-1].tick_params(labelleft=not group.ran)
    return figure


def draw_load(group: Group) -> "Figure":
    """Figure 12: which executor computed the active neurons."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure, axes = empty_axes(
        "Share of the active neurons by executor", group.caption, (10.0, _height(group))
    )
    rows = _rows(axes, group)
    for row, entry in zip(rows, group.entries, strict=True):
        load = entry.load
        if load is not None:
            axes.barh(row, load, 0.6, color=VERMILLION)
            axes.barh(row, 1 - load, 0.6, left=load, color=CPU_COLOUR)
            inside = load > 0.12
            axes.annotate(
                f"{100 * load:.1f} %",
                (load if not inside else load / 2, row),
                (4 if not inside else 0, 0),
                textcoords="offset points",
                va="center",
                ha="left" if not inside else "center",
                color="black" if not inside else "white",
                fontsize=9,
            )
        axes.plot([entry.predicted_load] * 2, [row - 0.36, row + 0.36], color="black", lw=1.4)
    executors = {"GPU executor": VERMILLION, "CPU executor": CPU_COLOUR}
    handles: list[Any] = [Patch(color=colour, label=text) for text, colour in executors.items()]
    handles.append(Line2D([], [], color="black", lw=1.4, label="expected from the profile"))
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.set_xlabel("active neurons computed (% of all)")
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def draw_waits(group: Group) -> "Figure":
    """How long the executors waited for others, a token."""
    figure, axes = empty_axes("Waits of a token by executor", group.caption, (10.0, _height(group)))
    rows = _rows(axes, group)
    pairs = (("gpu", -0.17, VERMILLION, "GPU executor"), ("cpu", 0.17, CPU_COLOUR, "CPU executor"))
    for actor, shift, colour, label in pairs:
        waits = [entry.waits_us.get(actor, 0.0) for entry in group.entries]
        axes.barh(rows + shift, waits, 0.32, color=colour, label=label)
    axes.set_xlabel("microseconds a token")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def draw_tokens(group: Group) -> "Figure | None":
    """The token of median length of the first cases, one below the other on one axis."""
    from matplotlib.figure import Figure

    found = [(e.label, e.token) for e in group.entries if e.token is not None]
    shown, more = found[:MAX_TOKENS], len(found[MAX_TOKENS:])
    if not shown:
        return None
    figure = Figure(figsize=(10.0, 1.2 + 1.35 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, token) in zip(grid, shown, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color="#e3e3e3", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.set_title(f"{label}: {token.total_ns / 1e3:,.0f} us", loc="left", fontsize=10)
        draw_lanes(axes, token)
        axes.tick_params(axis="y", labelsize=8)
    grid[0].set_xlim(0, max(token.total_ns for _, token in shown) / 1e3)
    left_out = f"; {more} more cases are not shown" if more else ""
    grid[-1].set_xlabel(f"time (us){left_out}")
    legend(figure, [token for _, token in shown])
    return figure


def draw_hot_maps(group: Group) -> "Figure":
    """Which neurons are on the GPU: a row a layer, its hottest neurons to the left."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    columns = min(4, len(group.entries))
    lines = -(-len(group.entries) // columns)
    figure = Figure(figsize=(10.0, 0.9 + 2.3 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    shades = LinearSegmentedColormap.from_list("hot", ["#eef2f6", "#f2b38a", VERMILLION])
    for axes, entry in zip(grid, group.entries, strict=False):
        layers = len(entry.hot_LB)
        image = axes.imshow(
            entry.hot_LB,
            aspect="auto",
            interpolation="nearest",
            cmap=shades,
            vmin=0,
            vmax=1,
            extent=(0, 1, layers - 0.5, -0.5),
        )
        axes.set_title(entry.label, fontsize=9, loc="left", color=BLUE)
        axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}")
        axes.set_xticks([0, 0.5, 1])
        axes.yaxis.get_major_locator().set_params(integer=True)
    for axes in grid[len(group.entries) :]:
        axes.set_visible(False)
    bar = figure.colorbar(image, ax=list(grid), pad=0.01, shrink=0.9)
    bar.set_label("neurons on the GPU")
    bar.ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    figure.supxlabel("neurons of the layer, hottest first (%)", fontsize=10)
    figure.supylabel("layer", fontsize=10)
    return figure


TEXTS: dict[str, tuple[str, str]] = {
    "speeds": (
        "Tokens a second",
        "Measured: decode speed on this machine, the bar the median, the line from the slowest run "
        "to the fastest, a tick a run. Cost model: what it computes for the machine named; that is "
        "no measurement.",
    ),
    "load": (
        "GPU neuron load",
        "Which executor computed the neurons that were active, counted while the runs went on "
        "(Figure 12 of the PowerInfer paper). The black mark is what the activation profile led to "
        "expect.",
    ),
    "waits": (
        "Waits",
        "Time a token in which an executor had nothing it could do before another was done.",
    ),
    "tokens": (
        "One token",
        "The token of median length of each case's last run, all actors on one clock. "
        "White is neither work nor a wait: the machine did something else. hotcold trace records "
        "every token for ui.perfetto.dev.",
    ),
    "hot_maps": (
        "What lies on the GPU",
        "A row a layer, its neurons from the hottest (left) to the coldest by the profile: the "
        "redder, the more of them the placement put on the GPU.",
    ),
}


def draw_all(group: Group) -> "list[tuple[str, Figure]]":
    """The pictures of a group that have something to show, by name."""
    if not group.ran:
        return [("speeds", draw_speeds(group)), ("hot_maps", draw_hot_maps(group))]
    drawn: list[tuple[str, Figure | None]] = [
        ("load", draw_load(group)),
        ("speeds", draw_speeds(group)),
        ("waits", draw_waits(group)),
        ("tokens", draw_tokens(group)),
        ("hot_maps", draw_hot_maps(group)),
    ]
    return [(name, figure) for name, figure in drawn if figure is not None]
